from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import starting_rate
from hypergradient.start import weights_per_step


class Quadratic:
    """Σ h (θ - 1)² / 2, whose best rates are known."""

    def __init__(self, curvature: list[float]) -> None:
        self.h, self.theta = torch.tensor(curvature).double(), nn.Parameter(torch.zeros(len(curvature)).double())

    def loss(self) -> Tensor:
        return 0.5 * (self.h * (self.theta - 1) ** 2).sum()


def test_sgd_starts_at_the_exact_line_search() -> None:
    """Along the gradient g, ⟨∇L(θ - s g), g⟩ = 0 at s = gᵀg / gᵀHg (Cauchy)."""
    problem = Quadratic([1.0, 4.0, 9.0])
    exact = (problem.h**2).sum() / (problem.h**3).sum()
    rate = starting_rate(problem.loss, torch.optim.SGD([problem.theta], lr=1.0))
    # interpolated in log rate
    assert rate == pytest.approx(exact.item(), rel=0.05)


def test_momentum_lowers_the_rate_by_the_length_of_its_steps() -> None:
    problem = Quadratic([1.0, 4.0, 9.0])
    plain = starting_rate(problem.loss, torch.optim.SGD([problem.theta], lr=1.0))
    heavy = starting_rate(problem.loss, torch.optim.SGD([problem.theta], lr=1.0, momentum=0.9))
    assert heavy == pytest.approx(plain / 10, rel=0.05)


def test_adam_starts_at_the_line_search_along_the_sign() -> None:
    """⟨∇L(θ + s 1), 1⟩ = Σ h (s - 1) changes sign at s = 1."""
    problem = Quadratic([1.0, 4.0, 9.0])
    assert starting_rate(problem.loss, torch.optim.Adam([problem.theta], lr=5.0)) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_the_rate_given_is_never_read_and_nothing_is_left_behind(name: str) -> None:
    rates = []
    for lr in (1e-6, 1.0):
        problem = Quadratic([1.0, 4.0])
        optimizer = getattr(torch.optim, name)([problem.theta], lr=lr)
        rates.append(starting_rate(problem.loss, optimizer))
        assert torch.equal(problem.theta, torch.zeros(2).double())
        assert problem.theta.grad is None
        assert not optimizer.state
        assert optimizer.param_groups[0]["lr"] == lr
    assert rates[0] == rates[1]


def test_a_loss_that_falls_for_ever_and_one_without_a_slope_are_refused() -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([theta], lr=1.0)
    with pytest.raises(ValueError, match="is it bounded"):
        starting_rate(lambda: -theta.sum(), optimizer)
    for flat in (0.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="does not fall along its own gradient"):
            starting_rate(lambda: flat * theta.sum(), optimizer)  # noqa: B023
    assert theta.item() == 0


def test_groups_keep_the_ratio_of_their_rates() -> None:
    """Along (g, g/10) the exact line search is Σ d g / Σ h d², with d the direction."""
    one, other = Quadratic([1.0, 4.0, 9.0]), Quadratic([2.0, 3.0])
    groups: list[dict[str, Any]] = [{"params": [one.theta]}, {"params": [other.theta], "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    rate = starting_rate(lambda: one.loss() + other.loss(), optimizer)
    slope = (one.h**2).sum() + (other.h**2).sum() / 10
    exact = slope / ((one.h**3).sum() + (other.h**3).sum() / 100)
    assert rate == pytest.approx(exact.item(), rel=0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


def test_low_rank_adapters_have_a_scale_though_only_what_begins_at_zero_moves_first() -> None:
    """rms(Δ(1)) of Adam is 1, so the unit is rms(A)."""
    down, up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    nn.init.zeros_(up.weight)
    optimizer = torch.optim.Adam([down.weight, up.weight], lr=1.0)
    x = torch.randn(8, 6)
    (up(down(x)) - x).square().mean().backward()
    assert not down.weight.grad.any()  # type: ignore[union-attr]
    assert weights_per_step(optimizer) == pytest.approx(down.weight.detach().square().mean().sqrt().item(), rel=1e-3)
