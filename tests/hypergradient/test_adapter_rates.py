"""The parameter groups keep the user's `lr`, so schedules compose with the adapter; `used_lr` is the adapted rate."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler

from hypergradient import RateAdapter
from tests.hypergradient.problem import SHORT, VALIDATION, adapted, groups, loss, network, train

pytestmark = pytest.mark.usefixtures("wins_its_races")

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "warm-up from 0": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3)),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [0.02, 0.02 / 3], total_steps=30),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 20),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_keeps_its_rates_and_a_step_uses_its_part_of_the_adapted_one(schedule: str) -> None:
    plain = groups(network(), lambda params: torch.optim.Adam(params, lr=0.02))
    _, optimizer, adapter = adapted()
    theirs, ours = SCHEDULES[schedule](plain), SCHEDULES[schedule](optimizer)
    rates, peak = set(), 0.0
    plain.step()
    for step in range(28):
        lr = [group["lr"] for group in plain.param_groups]
        assert [group["lr"] for group in optimizer.param_groups] == lr
        train(optimizer, adapter, range(step, step + 1))
        assert [group["lr"] for group in optimizer.param_groups] == lr
        peak = max(peak, lr[0])
        if lr[0]:
            rates.add(adapter.meta.rate)
            used = adapter.meta.rate * lr[0] / peak
            assert adapter.last["lr"] == pytest.approx(used)
            assert [group["used_lr"] for group in optimizer.param_groups] == pytest.approx([used, used / 3])
        for group in adapter.meta.hypothetical.attributes["param_groups"]:
            # one cycle cycles the momentum too
            assert group["betas"] in [own["betas"] for own in optimizer.param_groups]
        theirs.step()
        ours.step()
    assert len(rates) > 5


def test_the_used_rate_of_a_step_that_is_not_adapted_is_the_users_and_0_where_nothing_moves() -> None:
    _, optimizer, adapter = adapted()
    train(optimizer, adapter, range(8))
    rate = adapter.last["lr"]
    for lr, factor in ((0.0, 1.0), (0.02, torch.nan)):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, lr / 3
        train(optimizer, adapter, range(1), factor)
        assert adapter.last["lr"] == adapter.last["decay"] == 0
        assert [group["used_lr"] for group in optimizer.param_groups] == [0, 0]
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr / 3]
    train(optimizer, adapter, range(8, 9))
    assert 0.5 * rate < adapter.last["lr"] < 2 * rate
    assert adapter.report()["lowest"] > 0


@pytest.mark.parametrize("zero", [False, True])
def test_a_rate_that_is_a_tensor_is_used_as_a_number_is_and_a_group_at_rate_0_stays_there(zero: bool) -> None:
    reports = []
    for lr in (1e-3, torch.tensor(1e-3)):
        net = network()
        first, second = net.parameters()
        before = first.detach().clone()
        grouped: list[dict[str, Any]] = [{"params": [first]} | ({"lr": 0.0} if zero else {}), {"params": [second]}]
        optimizer = torch.optim.Adam(grouped, lr=lr)
        options: dict[str, Any] = {"decays": lambda p: p is second, "settings": SHORT}  # noqa: B023
        adapter = RateAdapter(optimizer, net, loss, VALIDATION, length=None, **options)
        train(optimizer, adapter, range(12))
        reports.append(adapter.report())
        assert optimizer.param_groups[1]["lr"] is lr
        assert torch.equal(before, first) is (optimizer.param_groups[0]["used_lr"] == 0) is zero
    assert reports[0] == pytest.approx(reports[1], rel=1e-4)
    assert reports[0]["highest"] > reports[0]["lowest"] > 0
