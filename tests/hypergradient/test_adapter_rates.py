import math
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from hypergradient import RateAdapter
from tests.hypergradient.adapted import HELD, VALIDATION, batch, built, loss, train, warm_up
from tests.hypergradient.optimizers import SUPPORTED
from tests.hypergradient.problem import network


def test_a_schedule_composes_and_keeps_its_own_rates() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    schedule, scales = warm_up(optimizer), []
    for step, part in enumerate([0.0, 1 / 3, 2 / 3, *[1.0] * 30]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * part)
        train(optimizer, adapter, range(step, step + 1))
        schedule.step()
        scales.append(adapter.last["lr"] / (0.02 * part) if part else 1.0)
    assert scales[1] == pytest.approx(scales[2])  # before the first move
    assert scales[-1] != pytest.approx(scales[1])


def test_a_given_rate_is_a_start_from_below_and_one_that_is_too_high_is_lowered_in_words() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"], lr=1e-6)
    train(optimizer, adapter, range(1))
    assert adapter.last["lr"] == pytest.approx(1e-6)
    _, optimizer, adapter = built(SUPPORTED["Adam"], lr=10.0)
    with pytest.warns(UserWarning, match="lr 10 is lowered to 0.0"):
        train(optimizer, adapter, range(1))


def test_removed_it_leaves_an_optimizer_that_goes_on_at_the_rate_that_was_found() -> None:
    net, optimizer, adapter = built(SUPPORTED["Adam"])
    train(optimizer, adapter, range(30))
    adapter.remove()
    rate, steps = optimizer.param_groups[0]["lr"], adapter.steps
    loss(net, batch(30)).backward()
    optimizer.step()
    assert (rate, steps) == (adapter.last["lr"], adapter.steps)


def schedules(kind: str, optimizer: Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    of = torch.optim.lr_scheduler
    if kind == "OneCycleLR":
        return of.OneCycleLR(optimizer, 0.02, total_steps=200, anneal_strategy="linear")
    return of.LambdaLR(optimizer, lambda _: 1.0) if kind == "LambdaLR" else of.ExponentialLR(optimizer, 1.0)


@pytest.mark.parametrize("kind", ["none", "LambdaLR", "ExponentialLR"])
def test_going_back_halves_the_rate_under_any_schedule(kind: str) -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    schedule = schedules(kind, optimizer) if kind != "none" else None
    for step in range(40):
        if step == 30:
            rate, own = adapter.last["lr"], optimizer.param_groups[0]["lr"]
        factor = math.nan if step in (30, 31) else 1.0
        optimizer.zero_grad()
        (adapter.loss(batch(step)) * factor).backward()
        optimizer.step()
        if schedule:
            schedule.step()
        if step == 32:
            break
    assert adapter.last["lr"] == pytest.approx(rate / 2)
    assert adapter.report()["rewound"] == 1
    if schedule:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(own)


def test_a_climb_during_a_warm_up_ends_at_the_methods_start() -> None:
    _, optimizer, free = built(SUPPORTED["Adam"])
    train(optimizer, free, range(1))
    start = free.last["lr"]
    _, optimizer, adapter = built(SUPPORTED["Adam"], lr=start / 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    for step in range(30):
        train(optimizer, adapter, range(step, step + 1))
        schedule.step()
        if not adapter.adaptation.climbing:
            break
    assert not adapter.adaptation.climbing
    assert adapter.scale * optimizer.param_groups[0]["initial_lr"] == pytest.approx(start)  # the schedule goes on


def test_one_cycle_comes_to_the_methods_start_and_the_hypothetical_step_has_its_momentum() -> None:
    def one_group() -> tuple[Optimizer, RateAdapter]:
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        return optimizer, RateAdapter(optimizer, net, loss, VALIDATION, settings=HELD)

    (optimizer, adapter), (plain, free) = one_group(), one_group()
    schedule, rates = schedules("OneCycleLR", optimizer), []
    for step in range(100):
        train(optimizer, adapter, range(step, step + 1))
        assert adapter.adaptation.twin.optimizer.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]
        rates.append(adapter.last["lr"])
        schedule.step()
    train(plain, free, range(1))
    assert max(rates) == pytest.approx(free.last["lr"], rel=0.05)


def test_a_group_at_rate_0_stays_there_and_the_others_are_adapted() -> None:
    net = network()
    first_group, second = net.parameters()
    groups: list[dict[str, Any]] = [{"params": [first_group], "lr": 0.0}, {"params": [second]}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    before = first_group.detach().clone()
    adapter = RateAdapter(optimizer, net, loss, VALIDATION, decays=lambda p: p is not first_group)
    train(optimizer, adapter, range(40))
    assert adapter.report()["highest"] > adapter.report()["lowest"] > 0
    assert adapter.seen == []
    assert optimizer.param_groups[0]["lr"] == 0
    assert torch.equal(before, first_group)


def test_a_rate_that_is_a_tensor_starts_where_a_number_does() -> None:
    rates = []
    for lr in (1e-3, torch.tensor(1e-3)):
        net = network()
        groups: list[dict[str, Any]] = [{"params": [p]} for p in net.parameters()]
        optimizer = torch.optim.Adam(groups, lr=lr)
        adapter = RateAdapter(optimizer, net, loss, VALIDATION)
        train(optimizer, adapter, range(20))
        rates.append(adapter.report())
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)


def test_a_schedule_written_by_hand_is_told_of_once() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])

    def by_hand() -> None:
        for step in range(10):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            train(optimizer, adapter, range(step, step + 1))

    with pytest.warns(UserWarning, match="was set from outside before three steps in a row") as told:
        by_hand()
    assert len(told) == 1


def test_a_cycle_whose_peak_is_told_ends_its_first_climb_at_the_methods_start() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"], settings=HELD)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-2, step_size_up=4, cycle_momentum=False)
    for group in optimizer.param_groups:
        group["max_lr"] = 1e-2
    seen = []
    for step in range(5):
        train(optimizer, adapter, range(step, step + 1))
        seen.append(adapter.last["lr"])
        schedule.step()
    assert seen[4] == pytest.approx(adapter.adaptation.highest)
    assert seen[0] == pytest.approx(adapter.adaptation.highest / 100)
