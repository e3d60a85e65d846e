from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hypergradient.batches import endless, first, samples


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


def test_a_part_of_a_batch_has_its_structure() -> None:
    x, y = torch.randn(32, 5), torch.arange(32)
    assert samples({"x": x, "more": [y, (x, y)]}) == 32
    part = first({"x": x, "more": [y, (x, y)], "name": "kept"}, 16)
    assert [len(part["x"]), len(part["more"][0]), len(part["more"][1][1]), part["name"]] == [16, 16, 16, "kept"]
    # cannot be cut: the whole batch is taken
    assert samples((x, torch.zeros(3))) == samples((x, torch.zeros(()))) == 0
