import pytest
import torch

from data import TensorLoader


def loader(seed: int = 0, shuffle: bool = True) -> TensorLoader:
    return TensorLoader(torch.arange(10), torch.arange(10) * 2, batch_size=4, shuffle=shuffle, seed=seed)


def epoch(batches: TensorLoader) -> list[int]:
    return [int(i) for x, _ in batches for i in x]


def test_an_epoch_serves_every_sample_once_and_keeps_rows_together() -> None:
    batches = list(loader())
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert sorted(int(i) for x, _ in batches for i in x) == list(range(10))
    assert all(torch.equal(2 * x, y) for x, y in batches)


def test_order_follows_from_seed_and_epoch_alone() -> None:
    first, again, other = loader(), loader(), loader(seed=1)
    torch.manual_seed(99)
    orders = [epoch(first), epoch(first)]
    assert orders == [epoch(again), epoch(again)]
    assert orders[0] != orders[1]
    assert orders[0] != epoch(other)
    assert epoch(loader(shuffle=False)) == list(range(10))


def test_more_samples_than_there_are_begin_another_pass() -> None:
    batches = list(TensorLoader(torch.arange(10), batch_size=4, shuffle=True, samples=24))
    assert [len(x) for (x,) in batches] == [4] * 6
    order = [int(i) for (x,) in batches for i in x]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]


def test_each_of_several_processes_gets_a_part_of_every_batch() -> None:
    """Also of a last batch smaller than the number of processes: the mean of an empty part would be NaN."""
    parts = [list(TensorLoader(torch.arange(9), batch_size=4, share=(rank, 3))) for rank in range(3)]
    assert [[x.tolist() for (x,) in part] for part in parts] == [
        [[0, 3], [4, 7], [8]],
        [[1], [5], [8]],
        [[2], [6], [8]],
    ]


@pytest.mark.parametrize("begin", [0, 1, 5])
def test_a_resumed_run_sees_the_order_of_its_epoch_however_its_loader_was_made(begin: int) -> None:
    """Lightning sets the epoch of the sampler after it has asked for an iterator, and before the first batch."""
    whole = loader()
    orders = [epoch(whole) for _ in range(7)]
    resumed = loader()
    asked = iter(resumed)
    resumed.sampler.set_epoch(begin)
    assert [int(i) for x, _ in asked for i in x] == orders[begin]
    assert epoch(resumed) == orders[begin + 1]
