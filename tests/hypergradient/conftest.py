"""Fixtures that determine the result of races."""

import pytest

from hypergradient.race import RacedRun

end = RacedRun._end_race


def win_races(patch: pytest.MonkeyPatch) -> None:
    """Let the run win each race, clearly."""
    patch.setattr(RacedRun, "_end_race", lambda run, *_, **__: end(run, False))


@pytest.fixture
def wins_its_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested comes after the races, or has nothing to do with them."""
    win_races(monkeypatch)
