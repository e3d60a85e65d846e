import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from hypergradient import Twin
from tests.hypergradient import problem
from tests.hypergradient.optimizers import SUPPORTED, Factory


class Quadratic(nn.Module):
    """L(θ) = ½ Σ a θ²."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, curvature: torch.Tensor) -> torch.Tensor:
        return 0.5 * (curvature * self.theta**2).sum()


def test_on_a_quadratic_the_difference_and_the_hypergradient_are_the_closed_form() -> None:
    a, theta, alpha, pull, window = np.array([0.1, 1.0, 3.0]), np.array([1.0, -2.0, 0.5]), 0.2, 0.1, 0.3
    net, curvature = Quadratic(theta.tolist()), torch.tensor(a)
    optimizer = torch.optim.SGD(net.parameters(), lr=alpha)
    twin = Twin(net, optimizer, pull=pull, window=window)
    d, z = np.zeros(3), np.zeros(3)
    for step in range(1, 12):
        optimizer.zero_grad()
        net(curvature).backward()
        optimizer.step()
        twin.step(lambda network: network(curvature))
        d = (1 - pull) * ((1 - 2 * alpha * a) * d - alpha * a * theta)
        theta = (1 - alpha * a) * theta
        z = z + (d - z) / max(1, window * step)
        assert twin.difference[0].numpy() == pytest.approx(z, rel=1e-12)
    loss, h = twin.hypergradients(lambda network: network(2 * curvature), net).split([1, 2])
    assert loss.item() == pytest.approx(np.sum(a * theta**2))
    assert h.tolist() == pytest.approx([np.sum(2 * a * theta * z), -np.sum(2 * a * theta**2)])


def run(factory: Factory, scale: float, steps: int = 6) -> list[torch.Tensor]:
    net = problem.network()
    optimizer = factory(net.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= scale
    for step in range(steps):
        problem.backward(net, optimizer, step)
        optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("name", SUPPORTED)
def test_near_the_real_rate_and_without_pull_it_is_the_derivative_of_the_whole_run(name: str) -> None:
    """Forward-mode differentiation, against central differences of whole runs, in log α."""
    factory, factor, epsilon = SUPPORTED[name], 1 + 1e-6, 1e-4
    net = problem.network()
    optimizer = factory(net.parameters())
    twin = Twin(net, optimizer, factor=factor, pull=0.0, window=0.0)
    for step in range(6):
        problem.backward(net, optimizer, step)
        optimizer.step()
        twin.step(lambda network, step=step: problem.loss(network, problem.TRAIN, step))  # type: ignore[misc]
    ours = torch.cat([z.flatten() for z in twin.difference]) / math.log(factor)
    up, down = (run(factory, math.exp(sign * epsilon)) for sign in (1, -1))
    truth = torch.cat([(u - d).flatten() for u, d in zip(up, down, strict=True)]) / (2 * epsilon)
    assert torch.linalg.vector_norm(ours - truth) < 1e-4 * torch.linalg.vector_norm(truth)


@pytest.mark.parametrize("name", SUPPORTED)
def test_pulled_back_almost_whole_it_points_along_the_last_step(name: str) -> None:
    """Then h has the sign of the one-step rule's."""
    net = problem.network()
    optimizer = SUPPORTED[name](net.parameters())
    problem.warm_up(net, optimizer)
    twin = Twin(net, optimizer, pull=1 - 1e-6, window=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    twin.step(lambda network: problem.loss(network, problem.TRAIN))
    step = torch.cat([(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)])
    assert torch.cosine_similarity(torch.cat([z.flatten() for z in twin.difference]) / 1e-6, step, dim=0) > 1 - 1e-4


def test_the_hypothetical_run_leaves_no_trace_on_the_real_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
    optimizer, x = torch.optim.Adam(net.parameters(), lr=0.01), torch.randn(32, 4)
    twin = Twin(net, optimizer)
    net(x).square().mean().backward()
    optimizer.step()
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    gradients, stream = [p.grad for p in net.parameters()], torch.get_rng_state()
    twin.step(lambda network: network(x[:16]).square().mean())
    twin.hypergradients(lambda network: network(x).square().mean(), net)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients, strict=True))
    torch.testing.assert_close((net.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert net.training


def test_a_twin_goes_on_from_its_state() -> None:
    net = problem.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def steps(twin: Twin, start: int) -> None:
        for step in range(start, start + 3):
            problem.backward(net, optimizer, step)
            optimizer.step()
            twin.step(lambda network, step=step: problem.loss(network, problem.TRAIN, step))  # type: ignore[misc]

    whole = Twin(net, optimizer)
    steps(whole, 0)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), whole.state_dict()))
    steps(whole, 3)
    net.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    resumed = Twin(net, optimizer)
    resumed.load_state_dict(state[2])
    steps(resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.difference, resumed.difference, strict=True))


def test_a_hypothetical_rate_above_and_one_below_agree_on_the_sign() -> None:
    seen = []
    for factor in (0.5, 2.0):
        net = problem.network()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        twin = Twin(net, optimizer, factor=factor)
        for step in range(5):
            problem.backward(net, optimizer, step)
            optimizer.step()
            twin.step(lambda network, step=step: problem.loss(network, problem.TRAIN, step))  # type: ignore[misc]
        seen.append(twin.hypergradients(lambda network: problem.loss(network, problem.VAL), net)[1].item())
    assert seen[0] < 0  # the rate is far too small
    assert seen[1] < 0


@pytest.mark.parametrize("name", ["Adam", "SGD-momentum"])
def test_parameters_without_a_gradient_or_of_nobody_stay_where_they_are(name: str) -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({part: nn.Linear(3, 3) for part in ("used", "unused", "frozen", "nobodys")})
    net["frozen"].requires_grad_(False)
    optimizer = SUPPORTED[name]([*net["used"].parameters(), *net["unused"].parameters(), *net["frozen"].parameters()])
    twin, x = Twin(net, optimizer), torch.ones(4, 3)
    before = copy.deepcopy(net.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        net["used"](x).square().mean().backward()
        optimizer.step()
        twin.step(lambda network: network["used"](x).square().mean(), decay=0.1)  # type: ignore[index]
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("used")), key
    assert len(twin.own) == 4
