import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from hypergradient import starting_rate
from hypergradient.start import weights_per_step
from tests.hypergradient.problem import network

H = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)


# along the gradient g, ⟨∇L(θ - s g), g⟩ = 0 at s = gᵀg / gᵀHg (Cauchy); steps with momentum 0.9 are ten times as long;
# along the sign, ⟨∇L(θ + s 1), 1⟩ = Σ h (s - 1) changes sign at s = 1
@pytest.mark.parametrize("lr", [1e-6, 1.0])
@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [("SGD", {}, 98 / 794), ("SGD", {"momentum": 0.9}, 9.8 / 794), ("Adam", {}, 1.0), ("RMSprop", {"alpha": 0.9}, 1.0)],
)
def test_the_start_is_the_line_search_whatever_the_given_rate_and_nothing_is_left_behind(
    name: str, options: dict[str, float], exact: float, lr: float
) -> None:
    """Of Σ h (θ - 1)² / 2."""
    theta = nn.Parameter(torch.zeros(3).double())
    optimizer = getattr(torch.optim, name)([theta], lr=lr, **options)
    # interpolated in log rate
    assert starting_rate(lambda: 0.5 * (H * (theta - 1) ** 2).sum(), optimizer) == pytest.approx(exact, rel=0.05)
    assert torch.equal(theta, torch.zeros(3).double())
    assert theta.grad is None
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == lr


@pytest.mark.parametrize(
    ("slope", "message"), [(-1.0, "is it bounded"), (0.0, "does not fall"), (math.inf, "fall"), (math.nan, "fall")]
)
def test_a_loss_without_a_rate_to_start_at_is_refused_and_the_weights_stay(slope: float, message: str) -> None:
    theta = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=message):
        starting_rate(lambda: slope * theta.sum() + (theta * 0).square().sum(), torch.optim.SGD([theta], lr=1.0))
    assert theta.item() == 1


def with_gradients(factory: Callable[..., Optimizer], net: nn.Module, gradient: float) -> Optimizer:
    for p in net.parameters():
        p.grad = torch.full_like(p, gradient)
    return factory(net.parameters(), lr=0.3)


@pytest.mark.parametrize(("factory", "step"), [(torch.optim.Adam, 1.0), (torch.optim.SGD, 0.2)])
def test_at_the_unit_rate_a_step_is_as_long_as_the_weights(factory: Callable[..., Optimizer], step: float) -> None:
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
    assert weights_per_step(with_gradients(factory, net, 0.0)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.complex128])
def test_weights_so_small_that_their_squares_vanish_in_16_bits_have_a_scale(dtype: torch.dtype) -> None:
    # the square of 1e-4 is 0 in float16
    net = nn.ParameterList([torch.full((4, 4), 1e-4, dtype=dtype)])
    assert weights_per_step(with_gradients(torch.optim.SGD, net, 0.25)) == pytest.approx(4e-4, rel=0.01)
