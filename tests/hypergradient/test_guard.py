"""When the rule goes back to its last good weights, and when it does not."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from hypergradient import RateAdapter
from hypergradient.processes import mean_over_processes
from tests.hypergradient.problem import VALIDATION, Batch, adapted, batch, equal, loss, network, train

SINGLE = [batch(1000 + number, dtype=torch.float32) for number in range(3)]


@pytest.mark.parametrize("schedule", ["none", "LambdaLR", "ExponentialLR"])
def test_of_two_steps_that_are_not_finite_the_good_weights_come_back_at_half_the_rate(schedule: str) -> None:
    """One may be a bad batch: it is skipped, and nothing else changes."""
    net, optimizer, adapter = adapted()
    guard, of = adapter.meta.guard, torch.optim.lr_scheduler
    if schedule == "LambdaLR":
        of.LambdaLR(optimizer, lambda _: 1.0)
    elif schedule == "ExponentialLR":
        of.ExponentialLR(optimizer, 1.0)
    for start in (0, 20, 40):
        train(optimizer, adapter, range(start, start + 19))
        before, rate = copy.deepcopy((net.state_dict(), adapter.meta.state_dict())), adapter.meta.rate
        train(optimizer, adapter, range(start + 19, start + 20), math.nan)
        assert equal((net.state_dict(), adapter.meta.state_dict()), before)
    assert (adapter.finite.skipped, guard.rewound) == (3, 0)
    good = copy.deepcopy(guard.good)
    train(optimizer, adapter, range(60, 61), math.nan)
    assert (adapter.finite.skipped, guard.rewound) == (4, 1)
    assert equal(good[0], [p.detach() for p in net.parameters()])
    assert equal((adapter.meta.average.weights, adapter.meta.hypothetical.weights), (good[0], good[0]))
    assert not optimizer.state
    train(optimizer, adapter, range(61, 62))
    assert adapter.last["lr"] == pytest.approx(rate / 2)
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert adapter.finite.in_a_row == 0


@pytest.mark.parametrize(("worse", "rewound"), [(1.0, 0), (1.15, 0), (1.5, 1), (math.nan, 1)])
def test_a_run_whose_loss_grows_by_a_fifth_goes_back(worse: float, rewound: int) -> None:
    net, optimizer, adapter = adapted(lr=1e-6)
    for step in range(80):
        data = batch(0)
        optimizer.zero_grad()
        now = loss(net, data)
        now.backward()
        adapter.see(data, torch.tensor(worse if step > 40 else 1.0))
        optimizer.step()
        if adapter.meta.guard.rewound:
            break
    assert adapter.meta.guard.rewound == rewound
    assert all(p.isfinite().all() for p in net.parameters())


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


@pytest.mark.parametrize("shift", [-0.5, -5.0, -500.0])
def test_a_loss_may_be_negative(shift: float) -> None:
    """A constant added to the loss has no gradient."""

    def shifted(net: nn.Module, data: Batch) -> Tensor:
        return loss(net, data) + shift

    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, shifted, VALIDATION)
    train(optimizer, adapter, range(60))
    report = adapter.report()
    assert report["rewound"] == 0
    assert report["lr"] > report["lowest"]


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_that_a_scaler_handles_is_not_counted(fused: bool) -> None:
    """A fused optimizer is stepped all the same, with `found_inf`; others are not stepped."""
    net = network().float()
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    adapter = RateAdapter(optimizer, net, loss, SINGLE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(60):
        optimizer.zero_grad()
        scaler.scale(adapter.loss(batch(step, dtype=torch.float32))).backward()
        if step == 50:
            assert adapter.meta.guard.good
            next(net.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512
    assert (adapter.report()["rewound"], adapter.finite.skipped, adapter.meta.steps) == (0, 0, 59)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_fused_step_under_a_scaler_is_the_plain_one(name: str) -> None:
    ends = []
    for fused, enabled in ((False, False), (True, False), (False, True), (True, True)):
        net = network().float()
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=1e-3, fused=fused)
        adapter = RateAdapter(optimizer, net, loss, SINGLE)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for step in range(5):
            optimizer.zero_grad()
            scaler.scale(adapter.loss(batch(step, dtype=torch.float32))).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append([*adapter.meta.hypothetical.weights, torch.tensor(adapter.last["lr"])])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-3, atol=1e-4)


def test_a_mean_over_processes_has_the_precision_of_each_tensor(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("group") / "group"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        given = [torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
        assert equal(mean_over_processes(given), given)
    finally:
        torch.distributed.destroy_process_group()
