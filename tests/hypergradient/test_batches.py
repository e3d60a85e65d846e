from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from hypergradient.batches import endless


class Unsized:
    """Counts how many batches are read."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(3):
            self.read += 1
            yield number


class Sized(Unsized):
    def __len__(self) -> int:
        return 3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [(Sized, 7), (Unsized, 1_000_005)])
def test_a_run_that_goes_on_takes_the_batches_that_come_next_and_reads_no_round_again(
    kind: type[Unsized], most: int
) -> None:
    batches, start = kind(), 1_000_000
    assert list(islice(endless(batches, start), 4)) == [(start + number) % 3 for number in range(4)]
    assert batches.read <= most


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


@pytest.mark.parametrize("data", [list(range(6)), Stream()], ids=["sized", "stream"])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 8])
def test_of_a_loader_too(data: Any, start: int) -> None:
    loader: Any = DataLoader(data, batch_size=2)
    whole = [batch.tolist() for batch in islice(endless(loader), start + 4)]
    assert [batch.tolist() for batch in islice(endless(loader, start), 4)] == whole[start:]
