import math
from collections.abc import Callable
from typing import Any

import pytest

from hypergradient import search_rate

Stretch = Callable[[float, int], float]


def table(losses: dict[float, float]) -> Stretch:
    return lambda rate, _: losses[rate]


def bowl(best: float, limit: float = math.inf) -> Stretch:
    """A parabola in log rate; rates above the limit diverge."""
    return lambda rate, _: math.nan if rate > limit else 1 + math.log(rate / best) ** 2


def plateau(rate: float, times: int) -> float:
    """As of the GRU: what a rate is worth shows late."""
    return {1: {0.33: 1.9, 1.0: 1.65, 3.0: 1.68, 9.0: 2.2}, 2: {1.0: 1.6, 3.0: 1.3}}[times][round(rate, 2)]


def cliff(rate: float, times: int) -> float:
    return math.inf if rate > 2 else 1 + abs(math.log(rate / 1.7)) / times


def brittle(lasts: float) -> Stretch:
    return lambda rate, times: math.inf if times > 1 and rate > lasts else 1 + 0.01 * math.log(rate / 10) ** 2


FREE: dict[str, Any] = {"trust": 0.0}
CASES: dict[str, tuple[Stretch, float, dict[str, Any], float]] = {
    # the vertex of a parabola is exact
    **{f"best from {start}": (bowl(0.03), start, FREE, 0.03) for start in (1e-6, 0.02, 100.0)},
    "a smaller rate that is better by less than the trust": (
        table({1.0: 1.0, 3.0: 2.0, 1 / 3: 0.91, 1 / 9: 2.0}), 1.0, {}, 1.0,
    ),
    "a larger rate that is just better": (table({1.0: 1.0, 3.0: 0.99, 9.0: 1.0}), 1.0, {}, 3.0),
    "rates that diverge are left downwards": (bowl(0.05, 0.1), 10.0, FREE | {"tie": 0.0}, 10 / 3**5),
    "larger rates that tie are told apart by longer stretches": (plateau, 1.0, {}, 3.0),
    "half a rung next to a rate that diverged wins at four times the length": (cliff, 1.0, {}, 3**0.5),
    "of smaller rates the largest that lasts": (brittle(2.0), 1.0, {}, 1.0),
    "of tied rates the one that lasts": (brittle(5.0), 1.0, {}, 3.0),
    # chance is 2.3
    "a stretch that ends worse than it began is left downwards": (
        table({1.0: 2.4, 3.0: 2.35, 1 / 3: 2.2, 1 / 9: 2.25}), 1.0, FREE | {"tie": 0.0, "untrained": 2.3}, 1 / 3,
    ),
    "where none lasts, the time was over: the best of the short stretches": (brittle(0.1), 1.0, {}, 10.0),
}  # fmt: skip


@pytest.mark.parametrize(("stretch", "start", "options", "expected"), CASES.values(), ids=CASES.keys())
def test_the_rate_is_the_best_of_hypothetical_stretches(
    stretch: Stretch, start: float, options: dict[str, Any], expected: float
) -> None:
    assert search_rate(stretch, start, **options) == pytest.approx(expected)


def test_a_training_that_diverges_at_every_rate_is_refused_and_a_loss_that_always_falls_ends() -> None:
    with pytest.raises(ValueError, match="Training lowers the validation loss at no rate from 1 down to"):
        search_rate(lambda *_: math.inf, 1.0)
    assert search_rate(lambda rate, _: 1 / (1 + rate), 1.0, trust=0.0) > 1e10
