from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest

from hypergradient import Settings
from tests.hypergradient.conftest import win_races
from tests.hypergradient.problem import adapted, batch, equal

WRONG = {"factor": (0.0, 1.0), "pull": (1.5,), "window": (1.5,), "part": (0.0, 1.5), "start": (0.0,), "every": (0.5,)}
WRONG |= {"batches": (1,), "highest": (0.0,)}


# so few steps are enough for each constant to matter
BASE = Settings(race=12, every=2, spacing=0.3, memory=2, smoothing=2, longest=0.05)
# few hypergradients are larger than 2, and no loss, gain or rate lies between two fractions
OTHER = {"cut": 0.5, "smoothing": 30, "lost": 1e6, "rewinds": 0, "margin": 1e3, "highest": 0.05}


@cache
def run(name: str = "meta_lr", value: float = BASE.meta_lr) -> Any:
    """The rates and the weights of short runs, of which one loses races; now and then they go up their losses."""
    rates, weights = [], []
    for times in (1e-4, 1.0):
        net, optimizer, adapter = adapted(settings=replace(BASE, **{name: value}))  # type: ignore[arg-type]
        for group in optimizer.param_groups:
            group["lr"] *= times
        for step in range(160):
            optimizer.zero_grad()
            (adapter.loss(batch(step, 48)) * (-1 if 40 < step < 70 or step > 100 else 1)).backward()
            with pytest.MonkeyPatch.context() as patch:
                if times == 1:
                    win_races(patch)
                optimizer.step()
            rates.append(adapter.last["lr"])
        assert adapter.meta.trusted is (times == 1) or name != "meta_lr"
        weights += [p.detach() for p in net.parameters()]
    return rates, weights


@pytest.mark.filterwarnings("ignore:.*the run goes back")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(field.name, marks=[] if field.name in ("meta_lr", "race", "pull") else [pytest.mark.slow])
        for field in fields(Settings)
    ],
)
def test_a_constant_that_is_changed_in_the_settings_changes_the_run_and_out_of_range_is_refused(name: str) -> None:
    value = getattr(BASE, name)
    assert not equal(run(name, OTHER.get(name, type(value)(1.5 * value))), run())
    for wrong in (-1.0, float("nan"), float("inf"), *WRONG.get(name, ())):
        with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
            replace(Settings(), **{name: wrong})  # type: ignore[arg-type]
