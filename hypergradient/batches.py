"""Batches of any structure: validation batches without end, parts of training batches, and copies."""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from hypergradient.trace import Streams

# of a batch: what may be for no sample in particular, and what makes a list more than one of words or objects
UNCUT = (str, bytes, int, float, complex, type(None), list, tuple)
PARTS = (Tensor, Mapping, list, tuple)


def has_len(batches: Any) -> bool:
    """Return whether their number is known: a DataLoader of an IterableDataset has none."""
    try:
        return len(batches) >= 0
    except TypeError:
        return False


def endless(batches: Iterable[Any], start: int = 0) -> Generator[Any, None, None]:
    """Yield the batches in turn, again and again; to draw them leaves all random streams as they were.

    start: how many were taken before; of a known number, whole rounds of them are not read again.

    Raises:
        ValueError: there are none, or no more, as of an iterator that can be read once.
    """
    known = len(batches) if has_len(batches) else 0  # type: ignore[arg-type]
    start = start % known if known else start
    loader = batches
    if getattr(batches, "persistent_workers", False):
        # such a loader has a single iterator, and the user may be in the middle of it
        loader = copy.copy(batches)
        vars(loader)["_iterator"] = None
    owners = [loader, *getattr(loader, "loaders", ())]
    owners += [getattr(owner, "sampler", None) for owner in owners]
    generators = {getattr(owner, "generator", None) for owner in owners}
    streams = Streams(generator for generator in generators if isinstance(generator, torch.Generator))
    while True:
        end, found = object(), False
        # a DataLoader draws a seed when it begins
        with streams.own(), torch.random.fork_rng(devices=[]):
            iterator = iter(loader)
            batch = next(iterator, end)
        while batch is not end:
            found = True
            if start:
                start -= 1
            else:
                yield batch
            with streams.own(), torch.random.fork_rng(devices=[]):
                batch = next(iterator, end)
        if not found:
            raise ValueError("There are no validation batches, or no second time: give a loader or a list.")


def samples(batch: Any) -> int:
    """Return how many samples a batch has: the first dimension that all its tensors share; 0 where they share none.

    0 also where it holds an object that cannot be cut, as a graph.
    """
    sizes = set[int]()

    def note(leaf: Any) -> Any:
        if not isinstance(leaf, UNCUT):
            cuts = isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested and leaf.dim()
            sizes.add(leaf.shape[0] if cuts else 0)
        return leaf

    _mapped(note, batch)
    return sizes.pop() if len(sizes) == 1 else 0


def copied(batch: Any, size: int = 0, count: int = 0) -> Any:
    """Return a copy that a loss may write into, with the first `count` samples of a batch that has `size`.

    Tensors are cut and copied, and lists with a word, an object, ... of each sample, in the same structure.
    Without a size the batch is whole. An object that cannot be copied is shared.
    """

    def own(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            copy_of = (leaf[:count] if size else leaf).detach().clone()
            return copy_of.requires_grad_() if leaf.requires_grad else copy_of
        if size and isinstance(leaf, list | tuple) and len(leaf) == size:
            leaf = leaf[:count]
        with suppress(TypeError, RuntimeError):
            return copy.deepcopy(leaf)
        return leaf

    return _mapped(own, batch)


def _mapped(change: Callable[[Any], Any], batch: Any) -> Any:
    """Return the batch with its leaves changed: what is no container, and lists of words, numbers or objects."""
    if isinstance(batch, (list, tuple)) and any(isinstance(value, PARTS) for value in batch):
        values = [_mapped(change, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, MutableMapping):
        mapping = copy.copy(batch)
        for name, value in batch.items():
            mapping[name] = _mapped(change, value)
        return mapping
    return change(batch)
