"""When the rule goes back to its last good weights, and when it does not."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch

from hypergradient import RateAdapter
from tests.hypergradient.problem import SINGLE, adapted, batch, equal, loss, network, train


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
    with pytest.warns(UserWarning, match=f"training diverged.* at half the learning rate, {rate / 2:.3g}"):
        train(optimizer, adapter, range(40, 41), math.nan)
    assert (adapter.finite.skipped, guard.rewound) == (3, 1)
    assert equal(good[0], [p.detach() for p in net.parameters()])
    assert equal((adapter.meta.average.weights, adapter.meta.hypothetical.weights), (good[0], good[0]))
    assert not optimizer.state
    train(optimizer, adapter, range(41, 42))
    assert adapter.last["lr"] == pytest.approx(rate / 2)
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert adapter.finite.in_a_row == 0


@pytest.mark.parametrize(
    ("first", "later", "rewound"),
    [(1.0, 1.15, 0), (1.0, 1.5, 1), (1.0, math.nan, 1), (-5.0, -4.5, 0), (-5.0, -3.0, 1)],
)
def test_a_run_whose_loss_grows_by_a_fifth_goes_back(first: float, later: float, rewound: int) -> None:
    """A loss may be negative."""
    net, optimizer, adapter = adapted()
    with pytest.warns(UserWarning, match="training diverged") if rewound else nullcontext():
        for step in range(60):
            data = batch(step)
            optimizer.zero_grad()
            loss(net, data).backward()
            adapter.see(data, torch.tensor(later if step > 20 else first))
            optimizer.step()
            if adapter.meta.guard.rewound:
                break
    assert adapter.meta.guard.rewound == rewound


@pytest.mark.parametrize(("look", "smooth"), [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("h", [-1.0, 1.0])
def test_the_rate_does_not_rise_while_both_losses_do_and_may_always_fall(look: float, smooth: float, h: float) -> None:
    _, optimizer, adapter = adapted()
    train(optimizer, adapter, range(30))
    meta = adapter.meta
    # at the last move
    meta.guard.at_move = [2.0, meta.guard.smooth - smooth]
    meta.sums, meta.count = torch.tensor([2.0 + look, h, 0.0], dtype=torch.float64), 1
    rate = meta.rate
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
