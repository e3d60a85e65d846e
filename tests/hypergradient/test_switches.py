"""Disabled parts have no effect, the length of steps is limited, and warm-ups of the user are followed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from hypergradient import RateAdapter, Settings
from tests.hypergradient.optimizers import Factory
from tests.hypergradient.problem import adapted, batch, equal, loss, network, train
from tests.hypergradient.test_race import ARMS, LARGE, RACE, every_arm, normalized, own_start, run


def warmed(step: int) -> float:
    return min(1.0, (step + 1) / 20)


class ByHand:
    """Writes the rate itself."""

    def __init__(self, optimizer: Optimizer, every: int) -> None:
        self.optimizer, self.every, self.steps = optimizer, every, 0
        self.full = [group["lr"] for group in optimizer.param_groups]
        self.write()

    def write(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = lr * warmed(self.steps)

    def step(self) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.write()


class Relative(ByHand):
    """Multiplies what is there."""

    def write(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.1 if self.steps == 0 else 1.1 if self.steps < 24 else 0.8


WARM_UPS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, warmed),
    "by hand, per step": lambda optimizer: ByHand(optimizer, 1),
    "by hand, per epoch": lambda optimizer: ByHand(optimizer, 6),
    "relative": lambda optimizer: Relative(optimizer, 1),
    "relative, per epoch": lambda optimizer: Relative(optimizer, 6),
}


@pytest.mark.parametrize("warm_up", WARM_UPS)
@pytest.mark.parametrize("lr", [1e-4, 0.008, 0.02])
def test_in_a_warm_up_lr_stays_the_users_and_what_is_used_rises_to_it_and_not_beyond_what_was_adapted(
    lr: float, warm_up: str
) -> None:
    _, plain, _ = adapted(ARMS["Adam"])
    _, optimizer, adapter = adapted(ARMS["Adam"], settings=Settings())
    for one in (plain, optimizer):
        for group, share in zip(one.param_groups, (1, 1 / 3), strict=True):
            group["lr"] = lr * share
    theirs, ours = WARM_UPS[warm_up](plain), WARM_UPS[warm_up](optimizer)
    before = 0.0
    # the scheduler wants it
    plain._opt_called = True  # type: ignore[attr-defined]
    for step in range(60):
        users = [group["lr"] for group in plain.param_groups]
        rises, adapted_rate = users[0] > adapter.meta.peak, adapter.meta.rate
        racing, looks = adapter.meta.racing, adapter.meta.looks
        train(optimizer, adapter, range(step, step + 1))
        assert [group["lr"] for group in optimizer.param_groups] == users
        used = optimizer.param_groups[0]["used_lr"]
        assert [group["used_lr"] for group in optimizer.param_groups] == pytest.approx([used, used / 3])
        if rises and adapter.meta.looks == looks and adapter.meta.racing == racing:
            assert used <= max(users[0], adapted_rate) * (1 + 1e-12)
        if adapter.meta.racing and adapter.meta.trusted:
            # held: the user's own
            assert used == pytest.approx(users[0], rel=1e-12)
        before = used
        theirs.step()
        ours.step()
    assert before > 0
    # of a race that was decided
    assert adapter.position >= 4


OWN_DECAY: dict[str, Factory] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.02),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.004, weight_decay=0.1),
}


@pytest.mark.parametrize("factory", OWN_DECAY.values(), ids=OWN_DECAY.keys())
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_run_that_is_held_is_the_plain_loop_bit_for_bit_in_noisy_batches_under_a_schedule(
    factory: Factory, scale: float
) -> None:
    """At a rate that is far too high as well."""
    ends = []
    for hold in (True, False):
        net = normalized()
        optimizer = factory(net.parameters())
        optimizer.param_groups[0]["lr"] *= scale
        adapter = RateAdapter(optimizer, net, loss, LARGE, length=None, hold=True) if hold else None
        schedule = lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=60)
        for step in range(50):
            torch.manual_seed(step)
            optimizer.zero_grad()
            (adapter.loss if adapter else lambda data: loss(net, data))(batch(step, 8)).backward()  # noqa: B023
            optimizer.step()
            schedule.step()
        if adapter:
            assert adapter.report()["looks"] > 0
            assert optimizer.param_groups[0].pop("used_lr") == adapter.last["lr"]
            adapter.remove()
        ends.append((net.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    assert equal(*ends)


def lengths(adapter: RateAdapter, optimizer: Optimizer, steps: int) -> Tensor:
    """The lengths of steps over those of the weights before them, of matrices."""
    found = []
    for step in range(steps):
        before = [p.detach().clone() for p in adapter.network.parameters() if p.dim() > 1]
        train(optimizer, adapter, range(step, step + 1))
        after = [p.detach() for p in adapter.network.parameters() if p.dim() > 1]
        moved = [p - b for p, b in zip(after, before, strict=True)]
        size, length = (torch.cat([part.flatten() for part in parts]).norm() for parts in (before, moved))
        found.append(length / size)
    return torch.stack(found)


@every_arm
@pytest.mark.parametrize("guard", [True, False])
def test_a_step_is_at_most_a_tenth_as_long_as_the_weights_unless_there_is_no_guard(
    factory: Factory, guard: bool
) -> None:
    _, optimizer, adapter = run(factory, 50 * own_start(factory, network()), guard=guard)
    # in a race, steps are the user's
    assert lengths(adapter, optimizer, 1).item() > 0.1
    adapter.meta.rival = 0.0
    found = lengths(adapter, optimizer, 12)
    assert bool((found <= 0.1 * (1 + 1e-9)).all()) is guard
    assert (adapter.report()["shortened"] > 0) is guard


@every_arm
def test_what_is_switched_off_is_off(factory: Factory) -> None:
    lr = own_start(factory, network())
    rates, decays = {}, {}
    for off in ("none", "rate", "decay", "average"):
        net, optimizer, adapter = run(factory, lr, None, **{off: False} if off != "none" else {})
        rates[off], decays[off] = set[float](), set[float]()
        for step in range(RACE + 20):
            train(optimizer, adapter, range(step, step + 1))
            rates[off].add(optimizer.param_groups[0]["used_lr"])
            decays[off].add(adapter.last["decay"])
        weights = copy.deepcopy(net.state_dict())
        adapter.eval()
        assert equal(net.state_dict(), weights) is (off == "average")
        assert not net.training
        adapter.train()
        assert equal(net.state_dict(), weights)
    assert all((len(found) == 1) is (off == "rate") for off, found in rates.items())
    assert rates["rate"] == {lr}
    assert all((found == {0.0}) is (off == "decay") for off, found in decays.items())


@every_arm
def test_the_used_rate_is_next_to_the_users_in_the_groups_and_in_what_is_saved(factory: Factory) -> None:
    _, optimizer, adapter = run(factory, 1e-5)
    optimizer.add_param_group({"params": [], "lr": 5e-6})
    train(optimizer, adapter, range(RACE + 8))
    for groups in (optimizer.param_groups, optimizer.state_dict()["param_groups"]):
        assert [group["lr"] for group in groups] == [1e-5, 5e-6]
        assert [group["used_lr"] for group in groups] == pytest.approx([adapter.last["lr"], adapter.last["lr"] / 2])
    assert adapter.last["lr"] > 1e-4
