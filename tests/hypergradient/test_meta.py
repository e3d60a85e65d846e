import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from hypergradient import Meta, Settings
from hypergradient.start import weights_per_step
from tests.hypergradient.problem import VALIDATION, backward, batch, loss, network

Seen = list[dict[str, float]]
SHORT = Settings(race=4, batches=4)


def adapt(
    lr: float | None = None,
    steps: int = 100,
    settings: Settings | None = None,
    look: Callable[[int], float] = lambda _: 1.0,
    hypothetical: Callable[[int], float] = lambda _: 1.0,
) -> tuple[Meta, Seen]:
    """Train, with losses multiplied by what is given; return what each step reported."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr or 1.0)
    meta, seen = Meta(net, optimizer, settings, lr is not None, steps), Seen()
    for step in range(steps):
        backward(net, optimizer, step)
        now = loss(net, batch(step)).detach()
        seen.append(meta.before_step(lambda: lambda: look(step) * loss(net, VALIDATION[0])))  # noqa: B023
        optimizer.step()
        meta.after_step(now, lambda: hypothetical(step) * loss(net, batch(step, 16)))  # noqa: B023
    return meta, seen


def own_start() -> float:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    backward(net, optimizer)
    return 0.03 * weights_per_step(optimizer)


@pytest.mark.usefixtures("wins_its_races")
@pytest.mark.parametrize(("times", "races"), [(None, 1), (1.0, 1), (0.5, 2)])
def test_after_races_of_32_steps_a_tenth_of_the_time_passes_before_each_move(times: float | None, races: int) -> None:
    """One race, at four times the rate; and before it one with the method's own start, where that is another one."""
    meta, seen = adapt(times and times * own_start(), steps=150, settings=Settings(meta_lr=0.5))
    moved = [step for step, (a, b) in enumerate(pairwise(seen), 1) if a["lr"] != b["lr"]]
    ended = 32 * races
    assert moved[0] == (36 if races == 1 else 72)
    assert len(moved) > 8 / races
    assert all(b - a >= min(0.1 * b, 1 + 0.1 * a) for a, b in pairwise([ended, *moved]))
    looked = [step for step, what in enumerate(seen) if "hypergradient" in what]
    assert min(looked) == moved[0]
    assert max(b - a for a, b in pairwise(looked)) <= 16
    assert meta.looks == len(looked)


def test_a_run_without_a_given_rate_starts_from_the_methods_own_and_one_with_it_from_that() -> None:
    assert adapt(steps=1)[1][0]["lr"] == own_start()
    for lr in (1e-6, 5.0):
        assert adapt(lr, steps=1)[1][0]["lr"] == lr


@pytest.mark.parametrize("lr", [None, 1e-5])
def test_a_meta_rate_of_0_holds_the_rate_wherever_it_starts(lr: float | None) -> None:
    _, seen = adapt(lr, 80, settings=Settings(meta_lr=0.0))
    assert len({what["lr"] for what in seen}) == 1
    assert len({what["decay"] for what in seen}) > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the run goes back")
def test_from_every_start_the_rate_comes_to_the_same_place_and_lowers_the_loss() -> None:
    rates = []
    for lr in (None, 1e-6, 1e-4, 1e-3, 3.0):
        meta, seen = adapt(lr, 300)
        rates.append(seen[-1]["lr"])
        with meta.average.in_place():
            assert loss(meta.network, VALIDATION[1]).item() < 0.5 * loss(network(), VALIDATION[1]).item()
    # the starts are a million apart
    assert max(rates) < 10 * min(rates)


@pytest.mark.usefixtures("wins_its_races")
def test_an_overflow_begins_the_hypothetical_run_again_and_a_look_that_is_not_finite_moves_nothing() -> None:
    meta, seen = adapt(steps=90, settings=SHORT, hypothetical=lambda step: math.inf if step == 60 else 1.0)
    looks = [what["hypergradient"] for what in seen if "hypergradient" in what]
    assert sum(not math.isfinite(h) for h in looks) == 1
    assert len({what["lr"] for what in seen[70:]}) > 1
    assert meta.guard.rewound == 0
    meta, seen = adapt(steps=40, settings=SHORT, look=lambda step: math.nan if step >= 15 else 1.0)
    assert len({what["lr"] for what in seen[15:]}) == 1
    # nor are its weights kept as good
    assert all(value.isfinite().all() for values in [[meta.sums], *meta.guard.good] for value in values)
    assert meta.moves <= 12
