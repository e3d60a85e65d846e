"""When the rule goes back to its last good weights, and when it does not."""

import pytest
import torch
from torch import Tensor, nn

from hypergradient import Average, RateAdapter
from hypergradient.processes import mean_over_processes
from tests.hypergradient.adapted import VALIDATION, Batch, batch, loss
from tests.hypergradient.problem import network


@pytest.mark.parametrize("shift", [0.0, -0.5, -5.0, -500.0])
def test_a_loss_may_be_negative(shift: float) -> None:
    """A constant beside the loss has no gradient: the run is the same one."""

    def shifted(net: nn.Module, data: Batch) -> Tensor:
        return loss(net, data) + shift

    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, shifted, VALIDATION)
    for step in range(60):
        optimizer.zero_grad()
        adapter.loss(batch(step)).backward()
        optimizer.step()
    report = adapter.report()
    assert report["rewound"] == 0
    assert report["lr"] > report["lowest"]


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_that_a_scaler_knows_of_is_its_own_matter(fused: bool) -> None:
    """A fused optimizer is stepped all the same, and told `found_inf`; others are not stepped."""
    net = network().float()
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    cast = [tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in data) for data in VALIDATION]
    adapter = RateAdapter(optimizer, net, loss, cast)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(60):
        optimizer.zero_grad()
        x, y = batch(step)
        scaler.scale(adapter.loss((x.float(), y))).backward()
        if step == 50:
            assert adapter.adaptation.good
            next(net.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512
    assert adapter.report()["rewound"] == 0
    assert adapter.adaptation.steps == 59


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_the_start_is_the_same_where_a_scaler_leaves_its_scale_to_a_fused_step(name: str) -> None:
    rates = []
    for fused, enabled in ((False, False), (True, False), (False, True), (True, True)):
        net = network().float()
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=1e-3, fused=fused)
        adapter = RateAdapter(optimizer, net, loss, [(x.float(), y) for x, y in VALIDATION])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        x, y = batch(0)
        scaler.scale(adapter.loss((x.float(), y))).backward()
        scaler.step(optimizer)
        rates.append(adapter.last["lr"])
    assert rates == pytest.approx([rates[0]] * 4, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_average_of_weights_that_were_put_back_goes_on_from_them(dtype: torch.dtype) -> None:
    net = nn.Linear(2, 2, bias=False).to(dtype)
    average = Average(net, 0.1)
    good = net.weight.detach().clone()
    copied = next(average.network.parameters())
    net.weight.data.fill_(torch.nan)
    average.update(1)
    for p in (net.weight, copied):
        p.data.copy_(good)
    average.update(2)
    assert torch.equal(copied, good)


def test_a_mean_over_processes_has_the_precision_of_each_tensor(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("group") / "group"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        given = [torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
        means = mean_over_processes(given)
    finally:
        torch.distributed.destroy_process_group()
    for mean, tensor in zip(means, given, strict=True):
        assert mean.dtype == tensor.dtype
        assert torch.equal(mean, tensor)
