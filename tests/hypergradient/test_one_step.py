import math

import pytest
import torch
from mnist1d.data import make_dataset
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer

from hypergradient import hypergradient, lookahead, no_trace, real_step, scaled
from tests.hypergradient import problem
from tests.hypergradient.optimizers import SUPPORTED, Factory

VALIDATION = problem.batch(1000)
everything = pytest.mark.parametrize("factory", SUPPORTED.values(), ids=SUPPORTED.keys())


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Linear(5, 5, bias=False)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(5, 3, bias=False)).double()


def loss_after_real_step(net: nn.Sequential, optimizer: Optimizer, log_scale: float) -> float:
    """The truth: an ordinary `optimizer.step()` of a copy, at the rates `lr * exp(log_scale)`."""
    net, optimizer = problem.copied(net, optimizer)
    for group in optimizer.param_groups:
        group["lr"] *= math.exp(log_scale)
    optimizer.step()
    return problem.loss(net, VALIDATION).item()


@pytest.mark.parametrize("net", [problem.network, tied])
@everything
def test_hypergradient_is_the_finite_difference_of_the_real_step(factory: Factory, net: type[nn.Sequential]) -> None:
    network = net()
    optimizer = problem.groups(network, factory)
    problem.warm_up(network, optimizer)
    above, below = (loss_after_real_step(network, optimizer, e) for e in (1e-5, -1e-5))
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    update = lookahead(optimizer, 1.0)
    h = hypergradient(problem.loss(network, VALIDATION), update)
    assert h.item() == pytest.approx((above - below) / 2e-5, rel=1e-6, abs=1e-10)
    assert problem.equal([p.grad for p in network.parameters()], gradients)


@pytest.mark.parametrize("ratio", [1.0, 0.7])
@everything
def test_training_at_a_ratio_of_the_rate_is_the_plain_one_and_at_1_bit_for_bit(factory: Factory, ratio: float) -> None:
    net = problem.network()
    optimizer = problem.groups(net, factory)
    plain_net, plain = problem.copied(net, optimizer)
    for group in plain.param_groups:
        group["lr"] *= ratio
    for step in range(10):
        problem.backward(net, optimizer, step)
        update = lookahead(optimizer, torch.ones(()))
        with no_trace(net):
            assert hypergradient(problem.loss(net, problem.batch(step)), update)
        real_step(update, ratio)
        problem.backward(plain_net, plain, step)
        plain.step()
        torch.testing.assert_close(list(net.parameters()), list(plain_net.parameters()), rtol=0, atol=1e-13)
    if ratio == 1:
        assert problem.equal(net, plain_net)
        assert problem.equal(optimizer.state_dict(), plain.state_dict())


def test_frozen_parameters_stay_and_have_no_part_in_the_hypergradient() -> None:
    net = problem.network()
    frozen, start = next(net.parameters()).requires_grad_(False), next(net.parameters()).clone()
    optimizer = problem.groups(net, SUPPORTED["AdamW"])
    problem.backward(net, optimizer)
    update = lookahead(optimizer, torch.ones(()))
    assert hypergradient(problem.loss(net, VALIDATION), update) != 0
    real_step(update, torch.tensor(2.0))
    assert torch.equal(frozen, start)
    assert [p is frozen for p, _ in update] == [False]


def test_the_rates_come_back_also_where_the_step_raises_and_without_gradients_there_is_none() -> None:
    optimizer = torch.optim.SGD(problem.network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="call backward"):
        lookahead(optimizer, torch.ones(()))
    with pytest.raises(ZeroDivisionError), scaled(optimizer, 3.0):  # noqa: PT012
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
        raise ZeroDivisionError
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_greedy_rates_on_the_noisy_quadratic_are_those_of_wu_et_al() -> None:
    """Wu et al. 2018, arXiv 1803.02021: minimising the next loss anneals too early and ends at 144, not at 4.57.

    Curvatures h, targets drawn around 0 with variance σ² = 1/h, second moments A = E θ². The mean over the noise of
    the gradient is exact with two points, θ = √A each.
    The hypergradient is linear in α here, so two looks find the rate at which it vanishes: the greedy rate.
    """
    h = torch.logspace(-2, 0, 1000, dtype=torch.float64)
    noise = h * h.rsqrt()  # of the gradient: h σ
    second_moment, rates = 10 / h, []

    def loss(theta: Tensor) -> Tensor:
        return (0.5 * h * theta**2).sum(1).mean()

    for _ in range(300):
        theta = second_moment.sqrt().repeat(2, 1).requires_grad_()
        optimizer = torch.optim.SGD([theta], lr=1.0)
        theta.grad = h * theta.detach() + torch.stack([noise, -noise])
        update = lookahead(optimizer, torch.ones((), dtype=torch.float64))
        at_one = hypergradient(loss(theta), update).item()
        real_step(update, torch.tensor(1e-9, dtype=torch.float64))
        at_zero = hypergradient(loss(theta), update).item()
        greedy = at_zero / (at_zero - at_one)
        with torch.no_grad():
            theta += (greedy - 1e-9) * update[0][1]
            second_moment = (theta**2).mean(0)
        rates.append(greedy)
    assert (0.5 * h * second_moment).sum().item() == pytest.approx(144.0, abs=0.05)
    assert [rates[t] for t in (0, 10, 30, 100, 299)] == pytest.approx([1.80, 0.84, 0.43, 0.185, 0.079], abs=0.006)


def mean_loss_and_hypergradient(net: nn.Module, start: Tensor, data: problem.Batch, rate: float) -> tuple[float, float]:
    """Of 200 steps of SGD: dθ/dα is carried along the run, and takes the place of one step's Δ."""
    params, losses, slopes = list(net.parameters()), [], []
    vector_to_parameters(start.clone(), params)
    optimizer, tangent = torch.optim.SGD(params, lr=rate), [torch.zeros_like(p) for p in params]
    for step in range(200):
        rows = (torch.arange(50) + 50 * step) % 4000
        loss = problem.loss(net, (data[0][rows], data[1][rows]))
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        curvature = torch.autograd.grad(gradient, params, tangent, retain_graph=True)
        losses.append(loss.item())
        slopes.append(hypergradient(loss, list(zip(params, tangent, strict=True))).item())
        for p, g in zip(params, gradient, strict=True):
            p.grad = g.detach()
        tangent = [t - g.detach() - rate * c for t, g, c in zip(tangent, gradient, curvature, strict=True)]
        optimizer.step()
    return sum(losses) / 200, sum(slopes) / 200


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "expected"), [(1.5, {3: 1.2588, 12: 0.8209, 49: 0.6240}), (0.15, {49: 0.6204})])
def test_unrolled_it_finds_the_rate_of_mnist1ds_published_notebook(rate: float, expected: dict[int, float]) -> None:
    with isolate_rng():
        made = make_dataset()
        torch.manual_seed(0)
        net, rates = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 10)), list[float]()
    data, start = (torch.tensor(made["x"]).float(), torch.tensor(made["y"])), parameters_to_vector(net.parameters())
    for _ in range(50):
        loss, slope = mean_loss_and_hypergradient(net, start.detach(), data, rate)
        rate -= 0.3 * slope
        rates.append(rate)
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=2e-4)
    assert loss == pytest.approx(1.7163, abs=2e-3)
