import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from hypergradient import Meta, Settings
from hypergradient.start import weights_per_step
from tests.hypergradient.problem import VALIDATION, backward, batch, loss, network

Seen = list[dict[str, float]]


def adapt(
    lr: float | None = None,
    steps: int = 100,
    settings: Settings | None = None,
    look: Callable[[int], float] = lambda _: 1.0,
    hypothetical: Callable[[int], float] = lambda _: 1.0,
) -> tuple[Meta, Seen]:
    """Train, with losses multiplied by what is given; return what each step reported."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    meta, seen = Meta(net, optimizer, settings, lr, steps), Seen()
    for step in range(steps):
        backward(net, optimizer, step)
        now = loss(net, batch(step)).detach()
        seen.append(meta.before_step(lambda: look(step) * loss(net, VALIDATION[0])))  # noqa: B023
        optimizer.step()
        meta.after_step(now, lambda: hypothetical(step) * loss(net, batch(step, 16)))  # noqa: B023
    return meta, seen


def test_moves_are_spaced_by_a_tenth_of_the_time_and_looks_by_16_steps_at_most() -> None:
    meta, seen = adapt(steps=150, settings=Settings(meta_lr=0.5))
    moved = [step for step, (a, b) in enumerate(pairwise(seen), 1) if a["lr"] != b["lr"]]
    assert moved[:9] == list(range(2, 11))
    assert all(b - a >= 0.1 * a for a, b in pairwise(moved))
    looked = {step for step, what in enumerate(seen) if "hypergradient" in what}
    assert looked == {1, *moved, *range(16, 150, 16)}
    assert meta.looks == len(looked)


def test_the_first_rate_is_the_start_a_higher_one_is_lowered_to_it_and_a_lower_one_is_doubled_up_to_it() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    backward(net, optimizer)
    start = 0.03 * weights_per_step(optimizer)
    assert adapt(steps=1)[1][0]["lr"] == start
    with pytest.warns(UserWarning, match=r"lr 5 is lowered to 0\.0\d+, where this method starts"):
        _, [seen] = adapt(lr=5.0, steps=1)
    assert seen["lr"] == start
    meta, climbed = adapt(lr=start / 1000, steps=20)
    rates = [what["lr"] for what in climbed]
    assert [b / a for a, b in pairwise(rates)][:9] == pytest.approx([2.0] * 9)
    assert max(rates[:11]) <= start * (1 + 1e-9)
    assert not meta.guard.climbing


@pytest.mark.parametrize("lr", [None, 1e-5])
def test_a_meta_rate_of_0_holds_the_rate_wherever_it_starts(lr: float | None) -> None:
    _, seen = adapt(lr, 30, settings=Settings(meta_lr=0.0))
    assert len({what["lr"] for what in seen}) == 1
    assert len({what["decay"] for what in seen}) > 1


@pytest.mark.slow
def test_from_every_start_the_rate_comes_to_the_same_place_and_lowers_the_loss() -> None:
    rates = []
    for lr in (None, 1e-6, 1e-4, 1e-3):
        meta, seen = adapt(lr, 200)
        rates.append(seen[-1]["lr"])
        with meta.average.in_place():
            assert loss(meta.network, VALIDATION[1]).item() < 0.5 * loss(network(), VALIDATION[1]).item()
    # the starts are a thousand apart
    assert max(rates) < 10 * min(rates)


def test_an_overflow_begins_the_hypothetical_run_again_and_a_look_that_is_not_finite_moves_nothing() -> None:
    meta, seen = adapt(steps=60, hypothetical=lambda step: math.inf if step == 30 else 1.0)
    looks = [what["hypergradient"] for what in seen if "hypergradient" in what]
    assert sum(not math.isfinite(h) for h in looks) == 1
    assert len({what["lr"] for what in seen[40:]}) > 3
    assert meta.guard.rewound == 0
    meta, seen = adapt(steps=21, look=lambda step: math.nan if step >= 10 else 1.0)
    assert len({what["lr"] for what in seen[10:]}) == 1
    # nor are its weights kept as good
    assert all(value.isfinite().all() for values in [[meta.sums], *meta.guard.good] for value in values)
    assert meta.moves <= 9
