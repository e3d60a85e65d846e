"""A run starts at the user's rate and changes it only after a race; disabled parts have no effect."""

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import RateAdapter, Settings
from hypergradient.guard import Guard
from hypergradient.start import weights_per_step
from tests.hypergradient.optimizers import Factory
from tests.hypergradient.problem import backward, batch, equal, loss, network, train

ARMS: dict[str, Factory] = {
    "SGD-momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.02),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
}
every_arm = pytest.mark.parametrize("factory", ARMS.values(), ids=ARMS.keys())
LARGE = [batch(1000 + number, 64) for number in range(8)]
RACE = Settings().race


def own_start(factory: Factory, net: nn.Module) -> float:
    """The method's own start, of a copy."""
    net = copy.deepcopy(net)
    optimizer = factory(net.parameters())
    backward(net, optimizer)
    return 0.03 * weights_per_step(optimizer)


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), *hidden, nn.Linear(32, 3)).double()


def normalized() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def run(
    factory: Factory, lr: float, net: nn.Module | None = None, **options: Any
) -> tuple[Any, Optimizer, RateAdapter]:
    net = net or network()
    optimizer = factory(net.parameters())
    optimizer.param_groups[0]["lr"] = lr
    return net, optimizer, RateAdapter(optimizer, net, loss, LARGE, **{"length": None} | options)


@every_arm
def test_from_a_rate_that_is_far_too_low_the_methods_own_start_takes_over_after_the_race(factory: Factory) -> None:
    _, optimizer, adapter = run(factory, 1e-6)
    for step in range(RACE + 1):
        train(optimizer, adapter, range(step, step + 1))
        expected = 1e-6 if step < RACE else pytest.approx(own_start(factory, network()), rel=1e-12)
        assert adapter.last["lr"] == expected
        assert optimizer.param_groups[0]["lr"] == 1e-6
    assert adapter.meta.rival == 4 * adapter.meta.rate


# of the small network, RMSprop's first steps at twice the method's own start double the weights
@pytest.mark.parametrize(("name", "make"), [("SGD-momentum", network), ("Adam", network), ("RMSprop", deep)])
@pytest.mark.parametrize("times", [0.5, 0.9, 1.1, 2.0])
@pytest.mark.usefixtures("wins_its_races")
def test_a_rate_that_wins_its_races_has_every_bit_of_the_users_own_run_up_to_the_first_move(
    name: str, make: Callable[[], nn.Module], times: float
) -> None:
    """A race with the method's own start, where that is another rate, and one with four times the rate."""
    factory, plain, own = ARMS[name], make(), own_start(ARMS[name], make())
    lr, races = times * own, 2 if times in (0.5, 2.0) else 1
    net, optimizer, adapter = run(factory, lr, make(), decay=False)
    alone = factory(plain.parameters())
    alone.param_groups[0]["lr"] = lr
    rivals = set[float]()
    for step in range(RACE * races + 1):
        train(optimizer, adapter, range(step, step + 1))
        backward(plain, alone, step)
        alone.step()
        rivals.add(adapter.meta.rival)
        assert equal(net, plain)
        assert adapter.last["lr"] == lr
    assert rivals == {0.0, 4 * lr} | ({own} if races > 1 else set())
    assert equal([*optimizer.state.values()], [*alone.state.values()])
    assert adapter.meta.trusted
    assert adapter.meta.raced == lr
    assert (adapter.position, adapter.meta.looks, adapter.meta.moved_at) == (8 * races, 0, RACE * races)


def decide(monkeypatch: pytest.MonkeyPatch, *better: float, gain: float = 1.0) -> None:
    """Let comparisons end so, one after the other: by how much the other run is better; then it is worse.

    gain: that of the run in the race; its loss is 10.
    """
    left = iter(better)

    def compared(guard: Guard) -> tuple[Tensor, ...]:
        if len(guard.losses) < guard.settings.batches:
            return ()
        runs, guard.losses = len(guard.losses[0]), []
        losses = torch.full((guard.settings.batches,), 10.0)
        return (losses, losses + gain, losses - next(left, -10.0))[:runs]

    monkeypatch.setattr(Guard, "compared", compared)


@every_arm
def test_races_climb_by_four_until_the_run_wins_one_and_each_winner_ran_at_its_rate_since_its_race_began(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, but the batch whose gradients are those of the run that is left; without a guard, as steps that are
    too long are shortened."""
    decide(monkeypatch, 1.0, 1.0, -1.0)
    lr, found = own_start(factory, network()), list[tuple[int, float, float]]()
    net, optimizer, adapter = run(factory, lr, decay=False, guard=False, settings=Settings(highest=100.0))

    def raced_alone() -> tuple[nn.Module, Optimizer]:
        plain = copy.deepcopy(net)
        alone = factory(plain.parameters())
        alone.load_state_dict({k: v for k, v in copy.deepcopy(optimizer.state_dict()).items() if k != "rate_adapter"})
        return plain, alone

    plain, alone = raced_alone()
    for step in range(3 * RACE + 2):
        rate, rival = adapter.meta.rate, adapter.meta.rival
        train(optimizer, adapter, range(step, step + 1))
        if adapter.meta.rival != rival:
            found.append((step, adapter.meta.rate, adapter.meta.rival))
        if rate and adapter.meta.rate != rate:
            assert equal(net, plain)
            assert equal([*optimizer.state.values()], [*alone.state.values()])
            plain, alone = raced_alone()
        else:
            alone.param_groups[0]["lr"] = 4 * adapter.last["lr"]
            backward(plain, alone, step)
            alone.step()
    rates = [(0, lr, 4 * lr), (RACE, 4 * lr, 16 * lr), (2 * RACE, 16 * lr, 64 * lr), (3 * RACE, 16 * lr, 0.0)]
    assert found == rates
    assert not adapter.meta.trusted
    assert (adapter.meta.raced, adapter.meta.moved_at, adapter.meta.looks) == (16 * lr, 3 * RACE, 0)


@pytest.mark.parametrize("given", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("better", "gain", "times", "ends"),
    [
        # a tenth of the gain, or of the loss of 10, decides
        (0.11, 1.0, 4, "next"),
        (0.09, 1.0, 2, "again"),
        (-0.09, 1.0, 1, "again"),
        (-0.11, 1.0, 1, "never"),
        (1.1, 30.0, 4, "next"),
        (0.9, 30.0, 2, "again"),
        # on a plateau, where the loss changes by less than a hundredth
        (0.005, 0.05, 2, "again"),
        (0.5, 0.05, 2, "again"),
        (-0.005, 0.09, 2, "again"),
        (-0.005, 0.11, 1, "again"),
        (-0.5, 0.05, 1, "never"),
        (0.5, -0.05, 2, "again"),
        # a run that has lost
        (0.01, -1.0, 4, "next"),
        (1.0, -math.inf, 4, "next"),
    ],
)
def test_what_a_race_does_to_the_rate_and_when_the_next_one_starts(
    better: float, gain: float, times: int, ends: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A given rate is not doubled."""
    decide(monkeypatch, better, gain=gain)
    lr = own_start(ARMS["Adam"], network())
    _, optimizer, adapter = run(ARMS["Adam"], lr, settings=Settings(highest=100.0))
    adapter.meta.trusted, races = given, list[int]()
    for step in range(100):
        train(optimizer, adapter, range(step, step + 1))
        races += [step] if adapter.meta.rival else []
        if step == RACE:
            times = 1 if given and times == 2 else times
            assert (adapter.meta.rate, adapter.meta.raced) == (times * lr, times * lr)
    assert races == [*range(RACE), *{"next": range(32, 64), "again": range(64, 96), "never": ()}[ends]]


@pytest.mark.parametrize("last", [False, True])
def test_an_undecided_race_is_repeated_when_the_number_of_steps_has_doubled(
    last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, 0.0, 0.0, 1.0 if last else -1.0)
    _, optimizer, adapter = run(ARMS["Adam"], own_start(ARMS["Adam"], network()), settings=Settings(highest=100.0))
    races, rates = [], []
    for step in range(512):
        train(optimizer, adapter, range(step, step + 1))
        races += [step] if adapter.meta.rival else []
        rates.append(adapter.meta.rate)
    again = 2 * RACE if last else RACE
    assert races == [*range(RACE), *range(64, 64 + RACE), *range(192, 192 + again)]
    assert rates[192 + RACE] == rates[191] * (4 if last else 1)
    # moves between races do not count
    assert adapter.meta.raced == (rates[192 + RACE] if last else rates[0])


@pytest.mark.parametrize(("start", "rates"), [(1.0, [4.0, 16.0]), (3.0, [4.0]), (8.0, [4.0]), (9.0, []), (100.0, [])])
def test_no_race_is_at_a_rate_whose_steps_are_longer_than_half_of_the_weights(
    start: float, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is 16.7 times the method's own start; below half of a climb there is no race."""
    decide(monkeypatch, 1.0, 1.0, 1.0)
    own = own_start(ARMS["Adam"], network())
    _, optimizer, adapter = run(ARMS["Adam"], start * own, settings=Settings(start=0.03 * start))
    rivals = list[float]()
    for step in range(3 * RACE):
        train(optimizer, adapter, range(step, step + 1))
        if adapter.meta.rival and adapter.meta.rival not in rivals:
            rivals.append(adapter.meta.rival)
    expected = [min(rate * start, 0.5 / 0.03) * own for rate in rates]
    assert rivals == pytest.approx(expected)


@pytest.mark.parametrize(("stop", "rate"), [(3, 0.5), (RACE + 3, 2.0)])
def test_a_higher_rate_is_no_way_out_of_steps_that_are_not_finite(
    stop: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes back to where the race started."""
    decide(monkeypatch, 1.0)
    lr = own_start(ARMS["Adam"], network())
    net, optimizer, adapter = run(ARMS["Adam"], lr)
    train(optimizer, adapter, range(stop))
    good = copy.deepcopy(adapter.meta.guard.good)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(optimizer, adapter, range(stop, stop + 2), math.nan)
    assert sum("the run goes back to the last good average" in str(warning.message) for warning in told) == 1
    assert (adapter.meta.rate, adapter.meta.rival, adapter.meta.guard.rewound) == (rate * lr, 0.0, 1)
    assert equal(good[0], [p.detach() for p in net.parameters()])
    train(optimizer, adapter, range(stop + 2, stop + 5))
    assert all(p.isfinite().all() for p in net.parameters())


@every_arm
def test_where_the_first_step_overflows_the_methods_own_start_takes_over_too(factory: Factory) -> None:
    net, optimizer, adapter = run(factory, 1e300, deep())
    train(optimizer, adapter, range(RACE))
    assert adapter.last["lr"] == pytest.approx(own_start(factory, deep()), rel=1e-12)
    assert all(p.isfinite().all() for p in net.parameters())
    assert adapter.finite.skipped == 2


@pytest.mark.slow
@every_arm
@pytest.mark.parametrize(
    ("make", "times"), [(network, 1e-4), (network, 1e3), (normalized, 1e-4), (deep, 1e3), (deep, 1e6)]
)
def test_after_a_lost_race_the_run_is_bit_for_bit_one_at_the_methods_own_start(
    make: Callable[[], nn.Module], times: float, factory: Factory
) -> None:
    """Of the same batches, but the one whose gradients are those of the run that is left: of weights that exploded."""
    net, optimizer, adapter = run(factory, times * own_start(factory, make()), make(), decay=False, guard=False)
    plain, left = make(), list[int]()
    alone = factory(plain.parameters())
    # the hypothetical run begins with the buffers after the first batch
    loss(plain, batch(0))
    # up to the end of the next race
    for step in range(RACE + 3 if times < 1 else RACE):
        rate = adapter.meta.rate
        train(optimizer, adapter, range(step, step + 1))
        # in the race, to the last bit
        [real], [hypothetical] = optimizer.param_groups, adapter.meta.hypothetical.attributes["param_groups"]
        alone.param_groups[0]["lr"] = real["used_lr"] if left else hypothetical["lr"]
        if rate and adapter.meta.rate != rate:
            left.append(step)
        else:
            backward(plain, alone, step)
            alone.step()
    # where the rate is far too high, at once
    assert left == [RACE if times < 1 else 1]
    assert adapter.meta.guard.smooth < 4
    assert equal(net, plain)
    assert equal([*optimizer.state.values()], [*alone.state.values()])


@pytest.mark.slow
@every_arm
@pytest.mark.parametrize(
    ("times", "stop"),
    [(1e-4, 3), (1e-4, RACE - 2), (2.0, RACE - 2), (4.0, RACE + 1), (1e-4, RACE + 3), (1e-4, 2 * RACE - 2)],
)
def test_a_race_that_is_saved_and_loaded_continues_bit_for_bit(times: float, stop: int, factory: Factory) -> None:
    lr = times * own_start(factory, network())
    whole, part, rest = (run(factory, lr) for _ in range(3))
    train(*whole[1:], range(2 * RACE + 8))
    train(*part[1:], range(stop))
    file = io.BytesIO()
    torch.save([part[0].state_dict(), part[1].state_dict()], file)
    file.seek(0)
    for own, state in zip(rest, torch.load(file, weights_only=True), strict=False):
        own.load_state_dict(state)
    train(*rest[1:], range(stop, 2 * RACE + 8))
    assert equal(whole[0], rest[0])
    assert equal(whole[1].state_dict(), rest[1].state_dict())
    assert whole[2].report() == rest[2].report()
