"""Races that end as a test wants."""

import pytest


@pytest.fixture
def wins_its_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run win each race at its end: what is tested comes after them, or has nothing to do with them."""
    monkeypatch.setattr("hypergradient.race.RACE", 1e9)
