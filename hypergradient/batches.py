"""Cycle through, cut and copy batches of any structure."""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from hypergradient.trace import Streams

# types of leaves that need not have one entry per sample
UNCUT = (str, bytes, int, float, complex, type(None), list, tuple)
# a list or tuple with an element of these types is a structure, not a leaf
PARTS = (Tensor, Mapping, list, tuple)


def has_len(batches: Any) -> bool:
    """Return whether the number of batches is known; a DataLoader of an IterableDataset does not know it."""
    try:
        return len(batches) >= 0
    except TypeError:
        return False


def endless(batches: Iterable[Any], start: int = 0) -> Generator[Any, None, None]:
    """Cycle through the batches without changing any random stream.

    start: number of batches to skip; if the length is known, whole rounds are skipped without reading them.

    Raises:
        ValueError: no batches, or an iterator that can be read only once.
    """
    known = len(batches) if has_len(batches) else 0  # type: ignore[arg-type]
    start = start % known if known else start
    loader = batches
    if getattr(batches, "persistent_workers", False):
        # such a loader has a single iterator, which the user may be reading
        loader = copy.copy(batches)
        vars(loader)["_iterator"] = None
    owners = [loader, *getattr(loader, "loaders", ())]
    owners += [getattr(owner, "sampler", None) for owner in owners]
    generators = {getattr(owner, "generator", None) for owner in owners}
    streams = Streams(generator for generator in generators if isinstance(generator, torch.Generator))
    while True:
        end, found = object(), False
        # a DataLoader draws a seed when iteration starts
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
            raise ValueError("No validation batches, or an iterator that can be read once: give a loader or a list.")


def samples(batch: Any) -> int:
    """Return the number of samples in a batch: the first dimension of all its tensors.

    0 if the tensors differ, or if the batch holds an object that cannot be cut, such as a graph.
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
    """Return a copy of the first `count` of the `size` samples of a batch, which a loss may modify.

    Tensors, and lists with one entry per sample, are cut. If `size` is 0, the whole batch is copied. Objects that
    cannot be copied are shared.
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
    """Apply `change` to the leaves of a batch; a list of words, numbers or other objects is one leaf."""
    if isinstance(batch, (list, tuple)) and any(isinstance(value, PARTS) for value in batch):
        values = [_mapped(change, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, MutableMapping):
        mapping = copy.copy(batch)
        for name, value in batch.items():
            mapping[name] = _mapped(change, value)
        return mapping
    return change(batch)
