from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hypergradient.batches import endless, first, samples


class Counted:
    """Three batches; counts how many are read."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(3):
            self.read += 1
            yield number

    def __len__(self) -> int:
        return 3


def test_a_resumed_run_reads_no_round_again() -> None:
    batches, start = Counted(), 1_000_000
    assert list(islice(endless(batches, start), 4)) == [(start + number) % 3 for number in range(4)]
    assert batches.read <= 7


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


@pytest.mark.parametrize("data", [list(range(6)), Stream()], ids=["sized", "stream"])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 8])
def test_a_resumed_run_takes_the_batches_that_come_next(data: Any, start: int) -> None:
    loader: Any = DataLoader(data, batch_size=2)
    whole = [batch.tolist() for batch in islice(endless(loader), start + 4)]
    assert [batch.tolist() for batch in islice(endless(loader, start), 4)] == whole[start:]


def test_a_part_of_a_batch_has_its_structure() -> None:
    x, y = torch.randn(32, 5), torch.arange(32)
    assert samples({"x": x, "more": [y, (x, y)]}) == 32
    part = first({"x": x, "more": [y, (x, y)], "name": "kept"}, 16)
    assert [len(part["x"]), len(part["more"][0]), len(part["more"][1][1]), part["name"]] == [16, 16, 16, "kept"]
    # cannot be cut: the whole batch is taken
    assert samples((x, torch.zeros(3))) == samples((x, torch.zeros(()))) == 0


def test_a_loader_leaves_the_random_stream_as_it_was() -> None:
    before = torch.get_rng_state()
    list(islice(endless(DataLoader(range(6), shuffle=True)), 20))  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
