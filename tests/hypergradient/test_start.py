import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import starting_rate
from hypergradient.start import weights_per_step
from tests.hypergradient.problem import network


class Quadratic:
    """Σ h (θ - 1)² / 2, whose best rates are known."""

    def __init__(self, curvature: list[float]) -> None:
        self.h, self.theta = torch.tensor(curvature).double(), nn.Parameter(torch.zeros(len(curvature)).double())

    def loss(self) -> Tensor:
        return 0.5 * (self.h * (self.theta - 1) ** 2).sum()


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
    problem = Quadratic([1.0, 4.0, 9.0])
    optimizer = getattr(torch.optim, name)([problem.theta], lr=lr, **options)
    # interpolated in log rate
    assert starting_rate(problem.loss, optimizer) == pytest.approx(exact, rel=0.05)
    assert torch.equal(problem.theta, torch.zeros(3).double())
    assert problem.theta.grad is None
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == lr


def test_groups_keep_the_ratio_of_their_rates() -> None:
    """Along (g, g/10) the exact line search is Σ d g / Σ h d², with d the direction."""
    one, other = Quadratic([1.0, 4.0, 9.0]), Quadratic([2.0, 3.0])
    groups: list[dict[str, Any]] = [{"params": [one.theta]}, {"params": [other.theta], "lr": 0.05}]
    rate = starting_rate(lambda: one.loss() + other.loss(), torch.optim.SGD(groups, lr=0.5))
    slope = (one.h**2).sum() + (other.h**2).sum() / 10
    assert rate == pytest.approx((slope / ((one.h**3).sum() + (other.h**3).sum() / 100)).item(), rel=0.05)


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
    with pytest.raises(ValueError, match="No weight matrix has a scale"):
        weights_per_step(with_gradients(factory, net, 0.0))


def test_low_rank_adapters_have_a_scale_though_only_what_begins_at_zero_moves_first() -> None:
    """rms(Δ(1)) of Adam is 1, so the unit is rms(A)."""
    down, up, x = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False), torch.randn(8, 6)
    nn.init.zeros_(up.weight)
    optimizer = torch.optim.Adam([down.weight, up.weight], lr=1.0)
    (up(down(x)) - x).square().mean().backward()
    assert weights_per_step(optimizer) == pytest.approx(down.weight.detach().square().mean().sqrt().item(), rel=1e-3)
