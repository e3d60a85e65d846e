"""When the rule rewinds to its last good weights, and when it does not."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hypergradient import RateAdapter
from tests.hypergradient.optimizers import SUPPORTED
from tests.hypergradient.problem import SHORT, SINGLE, adapted, batch, equal, loss, network, train

pytestmark = pytest.mark.usefixtures("wins_its_races")

ARMS = ("SGD-momentum", "Adam", "RMSprop")


def test_of_two_steps_that_are_not_finite_the_good_weights_come_back_at_half_the_rate() -> None:
    """One may be a bad batch: it is skipped, and nothing else changes."""
    net, optimizer, adapter = adapted()
    guard = adapter.meta.guard
    # reads and patches the optimizer
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.0)
    for start in (0, 20):
        train(optimizer, adapter, range(start, start + 19))
        before, rate = copy.deepcopy((net.state_dict(), adapter.meta.state_dict())), adapter.meta.rate
        train(optimizer, adapter, range(start + 19, start + 20), math.nan)
        assert equal((net.state_dict(), adapter.meta.state_dict()), before)
    assert (adapter.finite.skipped, guard.rewound) == (2, 0)
    good = copy.deepcopy(guard.good)
    with pytest.warns(
        UserWarning,
        match=f"goes back to the last good average of its weights, at half the learning rate, {rate / 2:.3g}",
    ):
        train(optimizer, adapter, range(40, 41), math.nan)
    assert (adapter.finite.skipped, guard.rewound) == (3, 1)
    assert equal(good[0], [p.detach() for p in net.parameters()])
    assert equal((adapter.meta.average.weights, adapter.meta.hypothetical.weights), (good[0], good[0]))
    assert not optimizer.state
    train(optimizer, adapter, range(41, 42))
    assert adapter.last["lr"] == pytest.approx(rate / 2)
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert adapter.finite.in_a_row == 0


@pytest.mark.parametrize("rewinds", [0, 1, 3])
@pytest.mark.parametrize("name", ARMS)
def test_a_run_that_diverges_goes_back_at_half_the_rate_with_a_warning_and_so_often_at_most(
    name: str, rewinds: int
) -> None:
    """From step 30 on its steps go up the loss."""
    _, optimizer, adapter = adapted(SUPPORTED[name], decay=False, settings=replace(SHORT, rewinds=rewinds))
    guard, warned = adapter.meta.guard, list[str]()
    for step in range(110):
        rate, rewound = adapter.meta.rate, guard.rewound
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(optimizer, adapter, range(step, step + 1), 1.0 if step < 30 else -1.0)
        told = [str(warning.message) for warning in caught if "the run goes back" in str(warning.message)]
        if guard.rewound > rewound:
            assert step > 30
            assert adapter.meta.rate == rate / 2
            assert f"at half the learning rate, {rate / 2:.3g}" in told[0]
        assert len(told) == guard.rewound - rewound
        warned += told
    assert guard.rewound == len(warned) == rewinds
    assert [text.endswith("for the last time.") for text in warned] == [False] * (rewinds - 1) + [True] * (rewinds > 0)


@pytest.mark.parametrize("options", [{"hold": True}, {"rate": False}, {"guard": False}], ids=str)
@pytest.mark.parametrize("fault", [-1.0, math.nan])
def test_a_run_that_is_held_or_not_guarded_never_goes_back(fault: float, options: dict[str, Any]) -> None:
    _, optimizer, adapter = adapted(**options)
    train(optimizer, adapter, range(30))
    train(optimizer, adapter, range(30, 60 if fault < 0 else 35), fault)
    assert adapter.meta.guard.rewound == 0


LOSSES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "negative": lambda loss, _: loss - 5,
    "around zero": lambda loss, _: loss - 0.3,
    "a term that is annealed": lambda loss, step: loss + 0.05 * step,
    "a weight that is annealed": lambda loss, step: loss * (1 + 0.05 * step),
    "another weight, annealed faster": lambda loss, step: loss * (1 + 0.1 * step),
    "a constant from step 50 on": lambda loss, step: loss + 10 * (step > 50),
    "another unit from step 50 on": lambda loss, step: loss * (100 if step > 50 else 1),
}
STEADY = ("negative", "around zero")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    # a gradient step is as long as the unit of the loss is small
    [(name, change) for name in ARMS for change in LOSSES if (name, change[:7]) != ("SGD-momentum", "another")],
)
def test_a_run_that_is_fine_never_goes_back_whatever_its_loss_looks_like_in_noisy_batches(
    name: str, change: str
) -> None:
    """Where the loss itself changes, its value says nothing: the present one is compared at both sets of weights."""
    now = 0

    def of(net: Any, data: Any) -> Tensor:
        return LOSSES[change](loss(net, data), now)

    net, optimizer, adapter = adapted(
        SUPPORTED[name], loss=of, decay=False, batches=[batch(1000 + number, 8) for number in range(8)]
    )
    for now in range(100):
        optimizer.zero_grad()
        adapter.loss(batch(now, 8)).backward()
        optimizer.step()
    assert adapter.meta.guard.rewound == 0
    # beyond the batches of two races: it was in doubt
    assert adapter.position > adapter.meta.looks + 8 or change in STEADY
    adapter.eval()
    assert loss(net, batch(5000, 1000)) < 0.4


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(("look", "smooth"), [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
def test_unless_both_losses_rise_the_rate_does_not_fall_below_the_one_that_won_the_races(
    look: float, smooth: float, trusted: bool
) -> None:
    """It is the highest `lr` so far where that has lost no race, and else the one that the last race left."""
    _, optimizer, adapter = adapted()
    train(optimizer, adapter, range(30))
    meta = adapter.meta
    assert meta.raced == meta.peak == 0.02
    meta.trusted, meta.raced = trusted, 0.08
    won, holds = (0.02 if trusted else 0.08), not look > 0 < smooth

    def allowed(rate: float, times: float) -> float:
        meta.rate, meta.guard.at_move = rate, [2.0, meta.guard.smooth - smooth]
        return meta.allowed(times * rate, 2.0 + look)

    assert allowed(won, 0.5) == (1.0 if holds else 0.5) * won
    # what is above it may fall to it, and what is below it rise, or stay
    assert allowed(4 * won, 0.5) == 2 * won
    assert allowed(4 * won, 0.125) == (1.0 if holds else 0.5) * won
    assert allowed(0.5 * won, 0.5) == (0.5 if holds else 0.25) * won
    assert allowed(0.5 * won, 1.5) == (0.5 if look > 0 < smooth else 0.75) * won


def test_the_rate_does_not_rise_while_steps_are_shortened_and_may_fall() -> None:
    _, optimizer, adapter = adapted()
    train(optimizer, adapter, range(30))
    meta = adapter.meta
    for shortened in (True, False):
        for times in (0.5, 2.0):
            meta.shortened += shortened
            # above the rate that won the races
            meta.rate, meta.guard.at_move = 0.2, [2.0, meta.guard.smooth + 1]
            assert meta.allowed(times * 0.2, 1.0) == (min(times, 1.0) if shortened else times) * 0.2


@pytest.mark.parametrize(("look", "smooth"), [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("h", [-1.0, 1.0])
def test_the_rate_does_not_rise_while_both_losses_do_and_may_always_fall(look: float, smooth: float, h: float) -> None:
    _, optimizer, adapter = adapted()
    train(optimizer, adapter, range(30))
    meta = adapter.meta
    # at the last move
    meta.guard.at_move = [2.0, meta.guard.smooth - smooth]
    meta.sums, meta.count = torch.tensor([2.0 + look, h, 0.0], dtype=torch.float64), 1
    # above the rate that won the races
    rate = meta.rate = 0.1
    meta._move()
    if h > 0:
        assert meta.rate < rate
    elif look > 0 < smooth:
        assert meta.rate == rate
    else:
        assert meta.rate > rate


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_under_a_scaler_fused_or_not_a_run_is_the_plain_one_and_an_overflow_is_not_counted(name: str) -> None:
    """A fused optimizer is stepped at an overflow too, with `found_inf`; others are not stepped."""
    ends = []
    for fused, enabled in ((False, False), (True, False), (False, True), (True, True)):
        net = network().float()
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=1e-3, fused=fused)
        adapter = RateAdapter(optimizer, net, loss, SINGLE, length=None)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(adapter.loss(batch(step, dtype=torch.float32))).backward()
            if step == 4 and enabled:
                next(net.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
            if step != 4 or enabled:
                scaler.step(optimizer)
                scaler.update()
        assert (adapter.meta.guard.rewound, adapter.finite.skipped, adapter.meta.steps) == (0, 0, 5)
        ends.append([*adapter.meta.hypothetical.weights, torch.tensor(adapter.last["lr"])])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-3, atol=1e-4)
