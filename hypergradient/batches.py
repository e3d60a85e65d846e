"""Batches of any structure: validation batches without end, and a part of a training batch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def has_len(batches: Any) -> bool:
    """Return whether their number is known: a DataLoader of an IterableDataset has none."""
    try:
        return len(batches) >= 0
    except TypeError:
        return False


def endless(batches: Iterable[Any], start: int = 0) -> Iterator[Any]:
    """Yield the batches in turn, again and again; to draw them leaves torch's random stream as it was.

    start: how many were taken before; of a known number, whole rounds of them are not read again.

    Raises:
        ValueError: there are none, or no more, as of an iterator that can be read once.
    """
    known = len(batches) if has_len(batches) else 0  # type: ignore[arg-type]
    start = start % known if known else start
    while True:
        end, found = object(), False
        # a DataLoader draws a seed when it begins
        with torch.random.fork_rng(devices=[]):
            iterator = iter(batches)
            batch = next(iterator, end)
        while batch is not end:
            found = True
            if start:
                start -= 1
            else:
                yield batch
            with torch.random.fork_rng(devices=[]):
                batch = next(iterator, end)
        if not found:
            raise ValueError("There are no validation batches, or no second time: give a loader or a list.")


def samples(batch: Any) -> int:
    """Return how many samples a batch has: the first dimension that all its tensors share; 0 where they share none."""
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in _tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else 0


def first(batch: Any, count: int) -> Any:
    """Return the batch with the first `count` samples of each tensor, in the same structure; what it cannot cut, whole.

    Structures: tensors, lists, tuples, named tuples, and mappings that are made from a dictionary.
    """
    if isinstance(batch, Tensor):
        return batch[:count]
    if isinstance(batch, Mapping):
        return type(batch)({name: first(value, count) for name, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(first(value, count) for value in batch))
    if isinstance(batch, list) and not any(isinstance(value, Tensor | Mapping | list | tuple) for value in batch):
        # a word, a name, ... of each sample
        return batch[:count]
    if isinstance(batch, list | tuple):
        return type(batch)(first(value, count) for value in batch)
    return batch


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
