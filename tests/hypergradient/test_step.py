import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import hypergradient, lookahead, real_step
from tests.hypergradient import problem
from tests.hypergradient.optimizers import SUPPORTED, Factory
from tests.hypergradient.problem import VAL

everything = pytest.mark.parametrize("factory", SUPPORTED.values(), ids=SUPPORTED.keys())


def loss_after_real_step(net: nn.Sequential, optimizer: Optimizer, log_scale: Tensor) -> float:
    """The truth: an ordinary `optimizer.step()` of a copy, at the rates `lr * exp(log_scale)`."""
    net, optimizer = problem.twin(net, optimizer)
    for group, factor in zip(optimizer.param_groups, log_scale.exp().tolist(), strict=True):
        group["lr"] *= factor
    optimizer.step()
    return problem.loss(net, VAL).item()


@everything
def test_hypergradient_is_the_finite_difference_of_the_real_step(factory: Factory) -> None:
    net = problem.network()
    optimizer = problem.groups(net, factory)
    problem.warm_up(net, optimizer)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    difference = [
        (loss_after_real_step(net, optimizer, e) - loss_after_real_step(net, optimizer, -e)) / 2e-5 for e in step
    ]
    update = lookahead(optimizer, torch.ones((), dtype=torch.float64))
    h = hypergradient(problem.loss(net, VAL), update)
    torch.testing.assert_close(h, torch.tensor(difference, dtype=torch.float64), rtol=5e-8, atol=1e-11)


@everything
def test_real_step_is_the_plain_step_at_the_new_rates(factory: Factory) -> None:
    net = problem.network()
    optimizer = problem.groups(net, factory)
    problem.warm_up(net, optimizer)
    plain_net, plain = problem.twin(net, optimizer)
    old, new = torch.tensor([1.3, 0.4]).double(), torch.tensor([0.7, 0.9]).double()
    real_step(lookahead(optimizer, old), new / old)
    for group, factor in zip(plain.param_groups, new.tolist(), strict=True):
        group["lr"] *= factor
    plain.step()
    torch.testing.assert_close(list(net.parameters()), list(plain_net.parameters()), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rates", [(), (2,)], ids=["one-rate", "rate-per-group"])
@everything
def test_frozen_meta_optimizer_reproduces_plain_training_bit_for_bit(
    factory: Factory, rates: tuple[int, ...], dtype: torch.dtype
) -> None:
    net = problem.network().to(dtype)
    optimizer = problem.groups(net, factory)
    plain_net, plain = problem.twin(net, optimizer)
    log_scale = torch.zeros(rates, requires_grad=True)
    meta = torch.optim.Adam([log_scale], lr=0.0)
    for step in range(20):
        problem.meta_step(net, optimizer, log_scale, meta, step)
        problem.backward(plain_net, plain, step)
        plain.step()
    torch.testing.assert_close(list(net.parameters()), list(plain_net.parameters()), rtol=0, atol=0)
    assert str(optimizer.state_dict()) == str(plain.state_dict())


def test_sgd_hypergradient_is_minus_rate_times_the_product_of_two_gradients() -> None:
    net = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    problem.backward(net, optimizer)
    train = [p.grad for p in net.parameters()]
    update = lookahead(optimizer, torch.ones(()))
    h = hypergradient(problem.loss(net, VAL), update)
    val = torch.autograd.grad(problem.loss(net, VAL), list(net.parameters()))
    product = sum((g * v).sum().item() for g, v in zip(train, val, strict=True) if g is not None)
    assert h.item() == pytest.approx(-0.1 * product, rel=1e-13)


def test_quadratic_has_the_closed_form() -> None:
    # L = a θ²/2 under SGD: θ' = (1 - α a) θ, so dL/d log α = -α a² θ² (1 - α a)
    a, rate = 3.0, 0.1
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=rate)
    (a * theta**2 / 2).sum().backward()
    update = lookahead(optimizer, torch.ones(()))
    h = hypergradient((a * theta**2 / 2).sum(), update)
    assert h.item() == pytest.approx(-rate * a**2 * 4 * (1 - rate * a), rel=1e-14)


def test_hypergradient_leaves_the_training_gradients() -> None:
    net = problem.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    problem.backward(net, optimizer)
    train = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    update = lookahead(optimizer, torch.ones(()))
    hypergradient(problem.loss(net, VAL), update)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), train, strict=True) if p.grad is not None)


def test_frozen_parameters_stay_and_the_rest_is_unchanged_by_their_presence() -> None:
    net = problem.network()
    frozen = next(net.parameters()).requires_grad_(False)
    start = frozen.clone()
    optimizer = problem.groups(net, SUPPORTED["AdamW"])
    problem.backward(net, optimizer)
    update = lookahead(optimizer, torch.ones(()))
    h = hypergradient(problem.loss(net, VAL), update)
    real_step(update, torch.tensor(2.0))
    assert torch.equal(frozen, start)
    assert h[0] == 0
    assert h[1] != 0


def test_tied_parameters_count_once() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(5, 5, bias=False).double()
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(5, 3, bias=False).double())
    optimizer = problem.groups(net, SUPPORTED["Adam"])
    problem.warm_up(net, optimizer)
    e = torch.full((2,), 1e-5, dtype=torch.float64)
    difference = (loss_after_real_step(net, optimizer, e) - loss_after_real_step(net, optimizer, -e)) / 2e-5
    update = lookahead(optimizer, torch.ones(()))
    h = hypergradient(problem.loss(net, VAL), update)
    assert h.sum().item() == pytest.approx(difference, rel=5e-8)


def test_a_schedule_keeps_its_own_rates() -> None:
    net = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(2):
        problem.backward(net, optimizer)
        lookahead(optimizer, torch.tensor(3.0))
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_looking_ahead_without_gradients_is_refused() -> None:
    optimizer = torch.optim.SGD(problem.network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="call backward"):
        lookahead(optimizer, torch.ones(()))


@pytest.mark.parametrize("name", ["SGD-momentum", "Adam", "AdamW"])
def test_float32_hypergradient_is_right_down_to_rates_of_1e_6(name: str) -> None:
    net = problem.network()
    single = problem.network().float()
    h = []
    for module in (net, single):
        optimizer = SUPPORTED[name](module.parameters())
        optimizer.param_groups[0]["lr"] = 1e-6
        x = torch.randn(32, 5, generator=torch.Generator().manual_seed(1)).to(next(module.parameters()))
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), x[:, :3].argmax(1)).backward()
        update = lookahead(optimizer, torch.ones(()))
        h.append(hypergradient(nn.functional.cross_entropy(module(-x), x[:, :3].argmax(1)), update).item())
    assert h[1] == pytest.approx(h[0], rel=0.02)


def test_of_complex_weights_it_is_the_finite_difference_too() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))
    x = torch.randn(4, dtype=torch.complex128)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def loss() -> Tensor:
        return (weight @ x).abs().square().sum()

    loss().backward()
    update = lookahead(optimizer, 1.0)
    h = hypergradient(loss(), update)
    [[(_, [step])]] = [update]
    with torch.no_grad():
        values = []
        for part in (1e-6, -2e-6):
            weight.add_(part * step)
            values.append(loss())
    assert h.item() == pytest.approx(float((values[0] - values[1]) / 2e-6), rel=1e-6)
