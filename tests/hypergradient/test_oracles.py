"""Published and exact numbers, reproduced with the functions of the package."""

import pytest
import torch
from mnist1d.data import make_dataset
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergradient import hypergradient, lookahead, real_step

F64 = torch.float64


def test_greedy_rates_on_the_noisy_quadratic_are_those_of_wu_et_al() -> None:
    """Wu et al. 2018, arXiv 1803.02021: minimising the next loss anneals too early and ends at 144, not at 4.57.

    Curvatures h, targets drawn around 0 with variance σ² = 1/h, second moments A = E θ². The mean over the noise of
    the gradient is exact with two points, θ = √A each.
    The hypergradient is linear in α here, so two looks find the rate at which it vanishes: the greedy rate.
    """
    h = torch.logspace(-2, 0, 1000, dtype=F64)
    noise = h * h.rsqrt()  # of the gradient: h σ
    second_moment, rates = 10 / h, []

    def loss(theta: Tensor) -> Tensor:
        return (0.5 * h * theta**2).sum(1).mean()

    for _ in range(300):
        theta = second_moment.sqrt().repeat(2, 1).requires_grad_()
        optimizer = torch.optim.SGD([theta], lr=1.0)
        theta.grad = h * theta.detach() + torch.stack([noise, -noise])
        update = lookahead(optimizer, torch.ones((), dtype=F64))
        at_one = hypergradient(loss(theta), update).item()
        real_step(update, torch.tensor(1e-9, dtype=F64))
        at_zero = hypergradient(loss(theta), update).item()
        greedy = at_zero / (at_zero - at_one)
        with torch.no_grad():
            theta += (greedy - 1e-9) * update[0][1][0]
            second_moment = (theta**2).mean(0)
        rates.append(greedy)
    assert (0.5 * h * second_moment).sum().item() == pytest.approx(144.0, abs=0.05)
    assert [rates[t] for t in (0, 10, 30, 100, 299)] == pytest.approx([1.80, 0.84, 0.43, 0.185, 0.079], abs=0.006)


class Unrolled:
    """The experiment of mnist1d's notebook on metalearning a rate: tanh MLP 40-50-10, batches of 50, 200 SGD steps."""

    def __init__(self) -> None:
        with isolate_rng():
            data = make_dataset()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 10))
        self.x = torch.tensor(data["x"], dtype=torch.float32)
        self.y = torch.tensor(data["y"])
        self.params: list[Tensor] = list(self.net.parameters())
        self.start = [p.detach().clone() for p in self.params]

    def mean_loss_and_gradient(self, rate: float) -> tuple[float, float]:
        """Carry dθ/dα along the run (it takes the place of one step's Δ) and sum the hypergradients."""
        with torch.no_grad():
            for p, start in zip(self.params, self.start, strict=True):
                p.copy_(start)
        optimizer = torch.optim.SGD(self.params, lr=rate)
        tangent = [torch.zeros_like(p) for p in self.params]
        losses, gradients = [], []
        for step in range(200):
            rows = torch.arange(50) + 50 * step
            loss = cross_entropy(self.net(self.x[rows % 4000]), self.y[rows % 4000])
            gradient = torch.autograd.grad(loss, self.params, create_graph=True)
            product = torch.stack([(g * t).sum() for g, t in zip(gradient, tangent, strict=True)]).sum()
            curvature = torch.autograd.grad(product, self.params, retain_graph=True)
            losses.append(loss.item())
            gradients.append(hypergradient(loss, [(self.params, tangent)]).item())
            for p, g in zip(self.params, gradient, strict=True):
                p.grad = g.detach()
            tangent = [t - g.detach() - rate * c for t, g, c in zip(tangent, gradient, curvature, strict=True)]
            optimizer.step()
        return sum(losses) / 200, sum(gradients) / 200


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "expected"), [(1.5, {3: 1.2588, 12: 0.8209, 49: 0.6240}), (0.15, {49: 0.6204})])
def test_unrolled_hypergradient_finds_the_rate_of_mnist1ds_notebook(rate: float, expected: dict[int, float]) -> None:
    run, rates = Unrolled(), []
    for _ in range(50):
        loss, gradient = run.mean_loss_and_gradient(rate)
        rate -= 0.3 * gradient
        rates.append(rate)
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=2e-4)
    assert loss == pytest.approx(1.7163, abs=2e-3)
