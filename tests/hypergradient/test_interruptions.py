"""Errors within a step, and states and parameters that change at unusual times."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import RateAdapter, Settings
from tests.hypergradient import problem

pytestmark = pytest.mark.usefixtures("wins_its_races")

BATCHES = [problem.batch(number) for number in range(40)]


class Loss:
    """The loss of a network, which raises an error where it is told to."""

    fails = ""

    def __call__(self, net: nn.Module, data: Any) -> Tensor:
        if self.fails == ("step" if torch.is_grad_enabled() and net.training else "look"):
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(net(data[0]), data[1])


class Raises(torch.optim.Adam):
    """Runs out of memory in its step where it is told to."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if closure:
            closure()
        if self.fails:
            raise MemoryError
        return super().step()


def built(net: nn.Module | None = None, **settings: Any) -> tuple[Any, Raises, RateAdapter, Loss]:
    net, loss = net or problem.network(), Loss()
    optimizer = Raises(net.parameters(), lr=0.02)
    given = replace(problem.SHORT, **settings)
    return net, optimizer, RateAdapter(optimizer, net, loss, BATCHES[:3], settings=given, length=None), loss


def train(optimizer: Any, adapter: RateAdapter, steps: range, closures: bool = False) -> None:
    for step in steps:

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = adapter.loss(BATCHES[step % 40])
            loss.backward()
            return loss

        if closures:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("closures", [False, True], ids=["plain", "closures"])
@pytest.mark.parametrize("where", ["look", "hypothetical step", "real step", "closure"])
def test_after_an_error_in_a_step_the_lr_is_the_users_and_the_run_continues_at_its_rate(
    where: str, closures: bool
) -> None:
    _, optimizer, adapter, loss = built()
    train(optimizer, adapter, range(16), closures)
    rate = adapter.last["lr"]
    optimizer.zero_grad()
    loss_of_batch = adapter.loss(BATCHES[16])
    loss_of_batch.backward()
    loss.fails = {"look": "look", "hypothetical step": "step", "closure": "step"}.get(where, "")
    optimizer.fails = where == "real step"
    with pytest.raises((KeyboardInterrupt, MemoryError)):  # noqa: PT012
        if closures or where == "closure":
            train(optimizer, adapter, range(16, 17), closures=True)
        # the step before it looks at a validation batch in every 16th step
        optimizer.step()
    loss.fails, optimizer.fails = "", False
    if where != "real step":
        assert optimizer.param_groups[0]["lr"] == 0.02
    for step in range(17, 25):
        train(optimizer, adapter, range(step, step + 1), closures)
        assert optimizer.param_groups[0]["lr"] == 0.02
        assert 0.2 * rate < optimizer.param_groups[0]["used_lr"] < 5 * rate
    assert adapter.meta.steps >= 24


def test_layers_that_are_released_while_the_average_is_in_place_leave_each_weight_in_its_place() -> None:
    net, optimizer, adapter, _ = built()
    net[0].requires_grad_(False)
    train(optimizer, adapter, range(30))
    weight = net[2].weight.clone()
    adapter.eval()
    net[0].requires_grad_(True)
    adapter.train()
    assert torch.equal(weight, net[2].weight)


def test_a_state_that_is_loaded_while_the_average_is_in_place_is_the_run_of_that_state() -> None:
    net, optimizer, adapter, _ = built()
    train(optimizer, adapter, range(20))
    weights, state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    train(optimizer, adapter, range(20, 25))
    adapter.eval()
    net.load_state_dict(weights)
    optimizer.load_state_dict(state)
    adapter.train()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_the_state_from_before_the_first_step_starts_the_run_again() -> None:
    net, optimizer, adapter, _ = built()
    weights, state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    ends = []
    for _ in range(2):
        net.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(state))
        train(optimizer, adapter, range(30))
        ends.append((copy.deepcopy(net.state_dict()), adapter.meta.steps, adapter.finite.steps))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert ends[0][1:] == ends[1][1:] == (30, 30)


def test_a_frozen_parameter_with_a_gradient_of_zero_takes_no_hypothetical_step() -> None:
    net: Any = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    adapter = RateAdapter(
        optimizer, net, Loss(), BATCHES[:3], settings=Settings(meta_lr=0, weight_decay=0), length=None
    )
    train(optimizer, adapter, range(5))
    net[0].requires_grad_(False)
    before, momentum = net[0].weight.clone(), optimizer.state[net[0].weight]["momentum_buffer"].clone()
    rate = adapter.last["lr"]
    optimizer.zero_grad(set_to_none=False)
    adapter.loss(BATCHES[5]).backward()
    optimizer.step()
    torch.testing.assert_close(net[0].weight - before, -rate * 0.9 * momentum)


def test_a_first_gradient_of_zero_starts_nothing_and_the_next_one_does() -> None:
    _, optimizer, adapter, _ = built()
    (adapter.loss(BATCHES[0]) * 0).backward()
    optimizer.step()
    assert adapter.meta.steps == 0
    assert optimizer.param_groups[0]["lr"] == 0.02
    train(optimizer, adapter, range(1, 10))
    assert adapter.meta.steps == 9


class Grows(nn.Module):
    """Keeps a buffer as long as the longest batch so far, as a cache of positions does; BatchNorm by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(5).double(), nn.Linear(5, 3).double()
        self.positions: Tensor
        self.register_buffer("positions", torch.zeros(8, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.positions):
            self.positions = torch.zeros(len(x), dtype=torch.float64)
        out: Tensor = self.layer(self.norm(input=x)) + self.positions[: len(x), None]
        return out


def test_a_buffer_may_change_its_shape_during_the_run() -> None:
    net, optimizer, adapter, _ = built(Grows())
    small = [(x[:8], y[:8]) for x, y in BATCHES]
    take: Callable[[Any], Tensor] = adapter.loss
    for step in range(30):
        optimizer.zero_grad()
        take((small if step < 3 else BATCHES)[step]).backward()
        optimizer.step()
    assert len(net.positions) == 32
    assert adapter.meta.looks > 3
    assert all(p.isfinite().all() for p in net.parameters())


class Counts(torch.optim.SGD):
    """Keeps a state of a parameter's shape in whole numbers, as 8-bit optimizers do."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", torch.zeros_like(p, dtype=torch.uint8)) + 1


def test_a_state_of_whole_numbers_is_not_pulled() -> None:
    net: Any = problem.network()
    optimizer = Counts(net.parameters(), lr=0.1)
    adapter = RateAdapter(optimizer, net, Loss(), BATCHES[:3], length=None)
    train(optimizer, adapter, range(5))
    assert all((state["count"] == 5).all() for state in optimizer.state.values())
