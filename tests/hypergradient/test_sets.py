import pytest
import torch
from torch import nn

from hypergradient import Average
from tests.hypergradient.kinds import Normalizes
from tests.hypergradient.problem import batch, equal


def averaged(net: nn.Module) -> Average:
    return Average(net, [p for p in net.parameters() if p.requires_grad], 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_precision_are_averaged_to_the_end_and_from_where_they_were_put_back(dtype: torch.dtype) -> None:
    """Of a ramp from 0 to 1: in 16 bits, an average would stop where a step's part is rounded away."""
    net = nn.Linear(1, 1, bias=False).to(dtype)
    average, steps = averaged(net), 1000
    for step in range(1, steps + 1):
        net.weight.data.fill_(step / steps)
        average.update(step)
    [weight] = average.weights
    assert weight.dtype == dtype
    assert weight.item() == pytest.approx(10 / 11, abs=0.01)
    again = averaged(net)
    again.load_state_dict(average.state_dict())
    for one in (average, again):
        one.update(steps + 1)
    assert equal(average.state_dict(), again.state_dict())
    good = [net.weight.detach().clone()]
    net.weight.data.fill_(torch.nan)
    average.update(steps + 2)
    net.weight.data.copy_(good[0])
    average.copy_from(good, [])
    average.update(steps + 3)
    assert equal(average.weights, good)


def test_buffers_are_averaged_and_what_has_no_mean_stays_as_it_is() -> None:
    """Replaced buffers have a mean; counters, a causal mask, and parameters that are not trained have none."""
    net: nn.Module = Normalizes()
    net.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    net.quantised = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    net.infinite = nn.Parameter(torch.full((2,), float("inf")), requires_grad=False)
    average = averaged(net)
    for step in range(1, 51):
        net(batch(step)[0])
        average.update(step)
    for mean, now in zip(average.buffers, net.buffers(), strict=True):
        torch.testing.assert_close(mean, now, rtol=0.3, atol=0.3)
        assert equal(mean, now) is (
            not now.is_floating_point() or not now.isfinite().all() or now.unique().numel() == 1
        )
    with average.in_place():
        assert bool((net.quantised == 1).all() and net.infinite.isinf().all())
