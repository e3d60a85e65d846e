"""Adverse losses, batches and parameters for races and comparisons."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import RateAdapter
from tests.hypergradient.problem import SHORT, adapted, batch, equal, loss, network, train

LARGE = [batch(1000 + number, 64) for number in range(5)]
NO_NUMBER = (torch.full((64, 5), math.nan, dtype=torch.float64), LARGE[0][1])


def started(lr: float, net: nn.Module | None = None, of: Any = loss, batches: Any = None, **options: Any) -> Any:
    net = net or network()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    return net, optimizer, RateAdapter(optimizer, net, of, batches or LARGE, **{"length": None} | options)


@pytest.mark.parametrize("batches", [[*LARGE[:4], NO_NUMBER], [NO_NUMBER]], ids=["one", "all"])
def test_validation_batches_without_a_number_do_not_cost_a_good_rate_its_race(batches: list[Any]) -> None:
    _, optimizer, adapter = started(0.012, batches=batches)
    train(optimizer, adapter, range(50))
    # the next one
    assert adapter.meta.rival == 4 * 0.012
    assert adapter.meta.trusted
    if len(batches) == 1:
        train(optimizer, adapter, range(50, 92))
        assert not adapter.meta.racing
        assert adapter.last["lr"] == 0.012


def force(net: Any, data: Any) -> Tensor:
    """A loss with a gradient along the inputs."""
    x = data[0].clone().requires_grad_()
    [slope] = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    penalty: Tensor = slope.square().mean()
    return loss(net, data) + penalty


def test_a_loss_may_take_gradients_along_its_inputs() -> None:
    _, optimizer, adapter = started(1e-6, of=force, length=60)
    train(optimizer, adapter, range(60))
    assert not adapter.meta.trusted


def flat(net: Any, data: Any) -> Tensor:
    """A loss whose gradient is zero on validation batches."""
    return loss(net, data) if len(data[1]) == 32 else loss(net, data) * 0


def test_hypergradients_of_zero_move_nothing_and_raise_nothing() -> None:
    _, optimizer, adapter = started(0.02, of=flat, length=300)
    train(optimizer, adapter, range(120))
    assert adapter.last["lr"] == 0.02


def test_a_row_of_steps_that_are_not_finite_goes_back_once() -> None:
    _, optimizer, adapter = adapted()
    train(optimizer, adapter, range(20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(optimizer, adapter, range(20, 27), math.nan)
    assert (adapter.finite.skipped, adapter.meta.guard.rewound) == (7, 1)


def test_evaluations_after_the_end_of_a_run_change_nothing() -> None:
    ends = []
    for evaluates in (False, True):
        net, optimizer, adapter = started(0.02, length=50)
        for step in range(90):
            train(optimizer, adapter, range(step, step + 1))
            if evaluates and step % 10 == 0:
                adapter.eval()
                adapter.train()
        ends.append((net.state_dict(), adapter.report(), adapter.position))
    assert equal(*ends)


@pytest.mark.parametrize("stop", [5, 30, 40])
def test_a_run_that_sees_its_batches_resumes_bit_for_bit_and_leaves_the_loaded_state_as_it_is(stop: int) -> None:
    def seen(optimizer: Any, net: nn.Module, adapter: RateAdapter, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            part = adapter.part(batch(step))
            now = loss(net, batch(step))
            adapter.see(part, now)
            now.backward()
            optimizer.step()

    net, optimizer, adapter = started(1e-4)
    seen(optimizer, net, adapter, range(stop))
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    losses = list(state[1]["rate_adapter"]["meta"]["guard"]["losses"])
    seen(optimizer, net, adapter, range(stop, 60))
    again, other, its = started(1e-4)
    again.load_state_dict(state[0])
    other.load_state_dict(state[1])
    seen(other, again, its, range(stop, 60))
    assert equal(again, net)
    assert state[1]["rate_adapter"]["meta"]["guard"]["losses"] == losses


def test_a_layer_that_is_released_in_a_race_ends_it_for_the_given_rate() -> None:
    net: Any = network()
    net[0].requires_grad_(False)
    _, optimizer, adapter = started(0.02, net)
    train(optimizer, adapter, range(10))
    assert adapter.meta.racing
    net[0].requires_grad_(True)
    train(optimizer, adapter, range(10, 12))
    assert not adapter.meta.racing
    assert adapter.last["lr"] == 0.02
    # of the moves' clock
    assert adapter.meta.moved_at == 10


@pytest.mark.usefixtures("wins_its_races")
def test_a_layer_that_is_released_while_the_run_is_in_doubt_ends_the_comparison() -> None:
    net: Any = network()
    net[0].requires_grad_(False)
    _, optimizer, adapter = started(0.02, net, settings=SHORT)
    train(optimizer, adapter, range(30))
    assert adapter.meta.guard.good
    adapter.meta.guard.doubted = True
    train(optimizer, adapter, range(30, 32))
    assert adapter.meta.guard.losses
    net[0].requires_grad_(True)
    adapter.meta.prepare()
    assert not adapter.meta.compares
    train(optimizer, adapter, range(32, 36))


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 3).double(), lambda: network()], ids=["regression", "network"])
@pytest.mark.parametrize("hold", [False, True])
def test_weights_that_begin_at_zero_train_at_the_given_rate(make: Callable[[], nn.Module], hold: bool) -> None:
    net = make()
    for p in net.parameters():
        nn.init.zeros_(p)
    if not isinstance(net, nn.Linear):
        nn.init.ones_(net[2].weight)  # type: ignore[index]
    _, optimizer, adapter = started(0.05, net, hold=hold)
    before = loss(net, LARGE[0]).item()
    train(optimizer, adapter, range(60))
    if isinstance(net, nn.Linear):
        assert loss(net, LARGE[0]).item() < before


@pytest.mark.parametrize("length", [0, -1, 1.5, "10"])
def test_a_length_that_is_no_number_of_steps_is_refused(length: Any) -> None:
    with pytest.raises(ValueError, match="length must be the number of steps of the run, or None if unknown"):
        started(0.1, length=length)
