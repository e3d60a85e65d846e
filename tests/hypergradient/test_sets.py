from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import Average


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_precision_are_averaged_to_the_end(dtype: torch.dtype) -> None:
    """Of a ramp from 0 to 1: in 16 bits, an average would stop where a step's part is rounded away."""
    net = nn.Linear(1, 1, bias=False).to(dtype)
    average, steps = Average(net, 0.1), 4000
    copied: Any = average.network
    for step in range(1, steps + 1):
        net.weight.data.fill_(step / steps)
        average.update(step)
    assert copied.weight.dtype == dtype
    assert copied.weight.item() == pytest.approx(10 / 11, abs=0.01)
    again = Average(net, 0.1)
    again.load_state_dict(average.state_dict())
    for one in (average, again):
        one.update(steps + 1)
    assert torch.equal(copied.weight, next(again.network.parameters()))


class Reassigns(nn.Module):
    """Replaces its buffers, as many modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self) -> None:
        self.mean = 0.9 * self.mean + 0.1
        self.count = self.count + 1


def test_buffers_that_are_replaced_are_averaged_and_counted() -> None:
    net = Reassigns()
    average = Average(net, 0.1)
    for step in range(1, 201):
        net()
        average.update(step)
    copied: Any = average.network
    assert copied.count == net.count == 200
    assert copied.mean.item() == pytest.approx(net.mean.item(), abs=0.01)


def test_exchanged_or_not_the_states_are_the_average_and_the_current_weights() -> None:
    net = nn.Linear(2, 2)
    average = Average(net, 0.1)
    net.weight.data += 1
    own, current = next(average.network.parameters()).detach().clone(), net.weight.detach().clone()
    for swapped in (False, True, False):
        assert average.swapped is swapped
        states = average.states()
        assert torch.equal(states[0]["weight"], own)
        assert torch.equal(states[1]["weight"], current)
        average.swap()


class Unusual(nn.Module):
    """A causal mask, and a quantised weight that is not trained."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.quantised = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
        self.frozen = nn.Parameter(torch.full((2,), float("inf")), requires_grad=False)


def test_what_has_no_mean_is_copied() -> None:
    net = Unusual()
    average = Average(net, 0.1)
    for step in range(1, 30):
        with torch.no_grad():
            net.linear.weight.add_(0.1)
        average.update(step)
    copied: Any = average.network
    for name in ("mask", "quantised", "frozen"):
        assert torch.equal(getattr(copied, name), getattr(net, name))
    assert copied.linear.weight.isfinite().all()
    assert not torch.equal(copied.linear.weight, net.linear.weight)
