import math
from collections.abc import Callable

import pytest

from hypergradient import search_rate

Stretch = Callable[[float, int], float]


def table(losses: dict[float, float]) -> Stretch:
    return lambda rate, _: losses[rate]


def bowl(best: float) -> tuple[list[float], Stretch]:
    seen: list[float] = []

    def stretch(rate: float, _: int) -> float:
        seen.append(rate)
        return 1 + math.log(rate / best) ** 2

    return seen, stretch


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.02, 0.5, 100.0])
def test_the_best_rate_is_found_from_anywhere(start: float) -> None:
    _, stretch = bowl(0.03)
    # a parabola in log rate: its vertex is exact
    assert search_rate(stretch, start, trust=0.0) == pytest.approx(0.03)


def test_a_smaller_rate_must_be_better_by_the_trust_and_a_larger_one_just_better() -> None:
    near, far = {1.0: 1.0, 3.0: 2.0, 1 / 3: 0.91, 1 / 9: 2.0}, {1.0: 1.0, 3.0: 2.0, 1 / 3: 0.5, 1 / 9: 1.0}
    assert search_rate(table(near), 1.0) == 1.0
    assert 1 / 9 < search_rate(table(far), 1.0) < 1.0
    assert search_rate(table({1.0: 1.0, 3.0: 0.99, 9.0: 1.0}), 1.0) == pytest.approx(3.0)


def test_three_stretches_are_enough_beside_the_best_rate() -> None:
    seen, stretch = bowl(1.0)
    search_rate(stretch, 1.1)
    assert seen == pytest.approx([1.1, 3.3, 1.1 / 3])


def test_rates_that_diverge_are_left_downwards() -> None:
    def stretch(rate: float, _: int) -> float:
        return math.nan if rate > 0.1 else 1 + math.log(rate / 0.05) ** 2

    assert 0.01 < search_rate(stretch, 10.0, trust=0.0) < 0.1


def test_a_stretch_that_ends_worse_than_it_began_is_left_downwards() -> None:
    losses = {1.0: 2.4, 3.0: 2.35, 1 / 3: 2.2, 1 / 9: 2.25}  # chance is 2.3
    assert 1 / 9 < search_rate(table(losses), 1.0, trust=0.0, tie=0.0, untrained=2.3) < 1


def test_a_training_that_diverges_at_every_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="Training lowers the validation loss at no rate from 1 down to"):
        search_rate(lambda *_: math.inf, 1.0)


def test_a_loss_that_falls_for_ever_ends_the_search() -> None:
    assert search_rate(lambda rate, _: 1 / (1 + rate), 1.0, trust=0.0) > 1e10


def test_larger_rates_that_tie_go_twice_as_long_alone_until_they_are_told_apart() -> None:
    seen: list[tuple[float, int]] = []

    def plateau(rate: float, times: int) -> float:  # as of the GRU: what a rate is worth shows late
        seen.append((round(rate, 2), times))
        losses = {1: {0.33: 1.9, 1.0: 1.65, 3.0: 1.68, 9.0: 2.2}, 2: {1.0: 1.6, 3.0: 1.3}}
        return losses[times][round(rate, 2)]

    assert search_rate(plateau, 1.0) == pytest.approx(3.0)
    assert seen == [(1.0, 1), (3.0, 1), (0.33, 1), (1.0, 2), (3.0, 2)]
    assert search_rate(plateau, 1.0, tie=0.01) == 1.0


def test_a_tie_that_stays_one_ends_at_four_times_the_length() -> None:
    lengths: list[int] = []

    def flat(rate: float, times: int) -> float:
        lengths.append(times)
        return 1.0 if rate in (1.0, 3.0) else 2.0

    assert search_rate(flat, 1.0) == 1.0
    assert lengths[-4:] == [2, 2, 4, 4]


def test_half_a_rung_beside_a_rate_that_diverged_must_win_at_four_times_the_length() -> None:
    def cliff(rate: float, times: int) -> float:
        return math.inf if rate > 2 else 1 + abs(math.log(rate / 1.7)) / times

    def crumbling(rate: float, times: int) -> float:
        return math.inf if rate > (2, 2, 2, 2, 1.5)[times] else 1 + abs(math.log(rate / 1.7))

    assert search_rate(cliff, 1.0) == pytest.approx(3**0.5)
    assert search_rate(crumbling, 1.0) == 1.0


@pytest.mark.parametrize(("lasts", "found"), [(2.0, 1.0), (5.0, 3.0), (0.1, 10.0)])
def test_where_no_rate_that_ties_lasts_the_largest_smaller_one_that_does_is_taken(lasts: float, found: float) -> None:
    """Where none does, the time of the run was over: the best of the short ones, as without a race."""

    def brittle(rate: float, times: int) -> float:
        return math.inf if times > 1 and rate > lasts else 1 + 0.01 * math.log(rate / 10) ** 2

    assert search_rate(brittle, 1.0) == pytest.approx(found)
