from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, MutableMapping
from itertools import islice
from threading import Lock
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hypergradient.batches import copied, endless, samples


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


@pytest.mark.parametrize("data", [list(range(6)), Stream()], ids=["sized", "stream"])
@pytest.mark.parametrize("start", [0, 1, 3, 8])
def test_a_resumed_run_takes_the_batches_that_come_next_and_leaves_the_random_stream(data: Any, start: int) -> None:
    loader: Any = DataLoader(data, batch_size=2)
    before = torch.get_rng_state()
    whole = [batch.tolist() for batch in islice(endless(loader), start + 4)]
    assert [batch.tolist() for batch in islice(endless(loader, start), 4)] == whole[start:]
    assert torch.equal(before, torch.get_rng_state())


def test_whole_rounds_are_not_read_again() -> None:
    read = list[int]()
    # a million rounds of the stream would take seconds
    loader: Any = DataLoader(range(3), collate_fn=read.extend)  # type: ignore[arg-type]
    list(islice(endless(loader, 1_000_000), 4))
    assert read == [0, 1, 2, 0, 1]


class Views(NamedTuple):
    x: Any
    mask: Any


x, y, words = torch.randn(32, 5), torch.arange(32), tuple("a" * n for n in range(32))
CUT: dict[str, Any] = {
    "a tensor": x,
    "a tuple": (x, y, None, 0.5, True),
    "a list": [x, y],
    "a named tuple": Views(x, y),
    "a dictionary": {"x": x, "more": [y, (x, y)], "name": "kept", "names": list(words), "three": ["a", "b", "c"]},
    "other mappings": UserDict(x=OrderedDict(x=x), y=defaultdict(Tensor, y=y)),
    "names": (x, words),
}
WHOLE: dict[str, Any] = {
    "a scalar": (x, torch.zeros(())),
    "a mask": [x, torch.eye(5)],
    "a sparse matrix": (x, torch.eye(32).to_sparse()),
    "a nested tensor": (x, torch.nested.nested_tensor([y, y[:3]], layout=torch.jagged)),
    "a sequence": nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
    "an object": {"x": x, "graph": SimpleNamespace(y=y)},
    "an object that cannot be copied": [x, Lock()],
    "no tensor": list(words),
}


@pytest.mark.parametrize("batch", [*CUT.values(), *WHOLE.values()], ids=[*CUT, *WHOLE])
def test_a_copy_has_the_structure_of_the_batch_and_nothing_of_it_that_can_be_written_into(batch: Any) -> None:
    before, whole = str(batch), copied(batch)
    assert str(whole) == before or "object" in before
    write(whole)
    assert str(batch) == before
    part = copied(batch, samples(batch), 16)
    assert samples(batch) == (0 if any(batch is own for own in WHOLE.values()) else 32)
    assert set(lengths(part)) <= ({16, 3} if samples(batch) else set(lengths(batch)))
    write(part)
    assert str(batch) == before
    assert type(part) is type(batch)


def write(batch: Any) -> None:
    """Write into whatever can be written into."""
    if isinstance(batch, Tensor):
        batch.data.zero_() if batch.layout == torch.strided and not batch.is_nested else None
    elif isinstance(batch, SimpleNamespace):
        write(batch.y)
    elif isinstance(batch, MutableMapping | list | tuple):
        for value in list(batch.values()) if isinstance(batch, MutableMapping) else batch:
            write(value)
        batch.clear() if not isinstance(batch, tuple) else None


def lengths(batch: Any) -> list[int]:
    """Of all tensors, and lists and tuples of words."""
    if isinstance(batch, MutableMapping):
        return lengths(list(batch.values()))
    if isinstance(batch, list | tuple) and not all(isinstance(value, str) for value in batch):
        return [n for value in batch for n in lengths(value)]
    return [len(batch)] if isinstance(batch, list | tuple) or (isinstance(batch, Tensor) and batch.dim()) else []
