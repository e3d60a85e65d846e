"""The adapter's additional evaluations of the loss have no side effects, or are refused with a message."""

import gc
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from hypergradient import RateAdapter
from hypergradient.parts import Parts
from tests.hypergradient import problem
from tests.hypergradient.evaluations import CASES, Augmented, Bounded, Case, Checkpointed
from tests.hypergradient.problem import HELD, VALIDATION, adapted, equal

pytestmark = pytest.mark.usefixtures("wins_its_races")


def run(case: Case, adapt: bool, lr: float = 1.0) -> tuple[nn.Module, list[Tensor], Any]:
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(0)
    train, val = case.batches()
    net = case.network()
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9), []
    adapter = RateAdapter(optimizer, net, case.loss, val, settings=HELD, **case.options, length=None) if adapt else None
    for data in islice(chain.from_iterable(repeat(train)), 20):
        optimizer.zero_grad()
        found = adapter.loss(data) if adapter else case.loss(net, data)
        found.backward()
        losses.append(found.detach())
        optimizer.step()
    return net, losses, adapter


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_with_the_rate_held_each_loss_and_weight_is_that_of_the_loop_without_the_adapter(case: Case) -> None:
    if case.warns:
        with pytest.warns(UserWarning, match="whole batches, since the tensors of a batch differ in") as warned:
            held, losses, adapter = run(case, adapt=True)
        assert len(warned) == 1
    else:
        held, losses, adapter = run(case, adapt=True)
    plain, expected, _ = run(case, adapt=False, lr=adapter.optimizer.param_groups[0]["used_lr"])
    assert equal(losses, expected)
    assert equal(held, plain)
    assert adapter.meta.looks > 10


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", [40, 128])
def test_a_loss_that_is_a_sum_is_told_once_and_a_mean_never_however_different_the_samples_are(
    summed: bool, spread: float, size: int
) -> None:
    def of(net: nn.Module, data: Any) -> Tensor:
        each: Tensor = cross_entropy(net(data[0]), data[1], reduction="none") * (spread * data[0][:, 4]).exp()
        return each.sum() if summed else each.mean()

    _, optimizer, adapter = adapted(loss=of)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(2 * Parts.COMPARED):
            optimizer.zero_grad()
            adapter.loss(problem.batch(step, size)).backward()
            optimizer.step()
    sums = [str(warning.message) for warning in told if "seems to be a sum over samples" in str(warning.message)]
    # of samples so different, a part says nothing about the whole
    assert len(sums) == summed or (summed and spread == 3.0)


def test_a_look_leaves_the_average_as_it_is_where_a_forward_pass_changes_the_weights_in_place() -> None:
    net = Bounded()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    adapter = RateAdapter(optimizer, net, problem.loss, VALIDATION, length=None)
    for step in range(5):
        optimizer.zero_grad()
        adapter.loss(problem.batch(step)).backward()
        optimizer.step()
    before = [weight.clone() for weight in adapter.meta.average.weights]
    adapter.meta._look(adapter._draw)
    assert equal(adapter.meta.average.weights, before)
    with adapter.meta.average.in_place():
        problem.loss(net, VALIDATION[0])
    # as a forward pass would have done
    assert not equal(adapter.meta.average.weights, before)


def test_a_reentrant_checkpoint_changes_nothing_of_what_is_seen_and_learned() -> None:
    """`torch.autograd.grad` does not see the weights within it, and does not say so."""
    ends = []
    for old in (True, False):
        net = Checkpointed(old)
        optimizer = torch.optim.Adam(net.parameters())
        adapter = RateAdapter(optimizer, net, problem.loss, VALIDATION, length=None)
        problem.train(optimizer, adapter, range(20))
        ends.append((net.state_dict(), [p.grad for p in net.parameters()], adapter.last, adapter.meta.difference))
    assert equal(*ends)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(x, y) for x, y in zip(*problem.batch(0, 64), strict=True)])


LOADERS: dict[str, Callable[[], Any]] = {
    "workers": lambda: DataLoader(Augmented(), 16, num_workers=2),
    "persistent workers": lambda: DataLoader(Augmented(), 16, num_workers=2, persistent_workers=True),
    "an IterableDataset": lambda: DataLoader(Stream(), 16),
    "an IterableDataset in workers": lambda: DataLoader(Stream(), 16, num_workers=1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("persistent" not in name)) for name in LOADERS]
)
def test_a_loader_may_be_read_by_the_user_too_in_the_middle_of_the_looks(name: str) -> None:
    """The user trains on it as well: each of his passes has all its batches."""
    loader = LOADERS[name]()
    _, optimizer, adapter = adapted(batches=loader)
    for _ in range(5):
        passed = 0
        for data in loader:
            optimizer.zero_grad()
            adapter.loss(data).backward()
            optimizer.step()
            passed += 1
        assert passed == (8 if "in workers" in name and loader.num_workers > 1 else 4)
    assert adapter.meta.looks > 5
    stream = adapter.batches
    del adapter, optimizer
    gc.collect()
    # closed before it is collected: with its queues collected too, a loader waits five seconds for each worker
    assert inspect.getgeneratorstate(stream) == inspect.GEN_CLOSED


@pytest.mark.parametrize("made", [lambda: iter(VALIDATION), lambda: (data for data in VALIDATION), list])
def test_validation_batches_that_end_are_refused_when_they_do(made: Callable[[], Any]) -> None:
    _, optimizer, adapter = adapted(batches=made())
    with pytest.raises(ValueError, match="or an iterator that can be read once: give a loader or a list"):
        problem.train(optimizer, adapter, range(20))


def test_the_error_of_a_part_says_that_it_was_a_part_and_what_to_do() -> None:
    def square(net: nn.Module, data: Any) -> Tensor:
        return net(data[1] @ data[0]).square().mean()  # type: ignore[no-any-return]

    x = torch.randn(32, 5, dtype=torch.float64), torch.eye(32, dtype=torch.float64)
    _, optimizer, adapter = adapted(loss=square, batches=[x])

    def step() -> None:
        optimizer.zero_grad()
        adapter.loss(x).backward()
        optimizer.step()

    # the first nine, of two races, take whole batches
    for _ in range(9):
        step()
    with pytest.raises(
        RuntimeError, match=r"of a part of a training batch, cut along the first dimension. .* give cut="
    ):
        step()
