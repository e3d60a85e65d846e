import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from hypergradient.start import weights_per_step
from tests.hypergradient.problem import network


def with_gradients(factory: Callable[..., Optimizer], net: nn.Module, gradient: float) -> Optimizer:
    for p in net.parameters():
        p.grad = torch.full_like(p, gradient)
    return factory(net.parameters(), lr=0.3)


@pytest.mark.parametrize(
    ("factory", "step"),
    [(torch.optim.Adam, 1.0), (torch.optim.SGD, 0.2), (partial(torch.optim.SGD, momentum=0.9), 2.0)],
    ids=["Adam", "SGD", "momentum"],
)
def test_at_the_unit_rate_a_step_is_as_long_as_the_weights_and_nothing_is_left_behind(
    factory: Callable[..., Optimizer], step: float
) -> None:
    """Adam's settled step is 1 whatever the gradient, that of SGD the gradient; zeros and biases have no scale."""
    last = nn.Linear(3, 3).double()
    net = nn.Sequential(*network(), last)
    nn.init.zeros_(last.weight)
    optimizer = with_gradients(factory, net, 0.2)
    scaled = [p for p in net.parameters() if p.dim() > 1 and p.any()]
    size = sum(p.numel() for p in scaled)
    rms = math.exp(sum(p.numel() * 0.5 * math.log(p.detach().square().mean().item()) for p in scaled) / size)
    assert weights_per_step(optimizer) == pytest.approx(rms / step, rel=1e-4)
    assert all(torch.equal(p.grad, torch.full_like(p, 0.2)) for p in net.parameters() if p.grad is not None)
    assert (dict(optimizer.state), optimizer.param_groups[0]["lr"]) == ({}, 0.3)
    assert weights_per_step(with_gradients(factory, net, 0.0)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.complex128])
def test_weights_so_small_that_their_squares_vanish_in_16_bits_have_a_scale(dtype: torch.dtype) -> None:
    # the square of 1e-4 is 0 in float16
    net = nn.ParameterList([torch.full((4, 4), 1e-4, dtype=dtype)])
    assert weights_per_step(with_gradients(torch.optim.SGD, net, 0.25)) == pytest.approx(4e-4, rel=0.01)
