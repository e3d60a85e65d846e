from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch

from hypergradient import Settings
from tests.hypergradient.problem import adapted, batch, equal, loss

WRONG = {"factor": (0.0, 1.0), "pull": (1.5,), "window": (1.5,), "part": (0.0, 1.5), "start": (0.0,), "every": (0.5,)}


@cache
def run(name: str = "meta_lr", value: float = Settings().meta_lr) -> Any:
    """The rates and the weights of a short run; its losses, as the guard sees them, grow from step 20 on."""
    net, optimizer, adapter = adapted(settings=replace(Settings(), **{name: value}))  # type: ignore[arg-type]
    rates = []
    for step in range(45):
        data = batch(step, 48)
        optimizer.zero_grad()
        loss(net, data).backward()
        adapter.see(data, torch.tensor(1.0 if step < 20 else 1.28))
        optimizer.step()
        rates.append(adapter.last["lr"])
    return rates, [p.detach() for p in net.parameters()]


@pytest.mark.filterwarnings("ignore:.*training diverged")
@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_a_constant_that_is_changed_in_the_settings_changes_the_run_and_out_of_range_is_refused(name: str) -> None:
    value = getattr(Settings(), name)
    # few hypergradients are larger than 2
    assert not equal(run(name, 0.5 if name == "cut" else type(value)(1.5 * value)), run())
    for wrong in (-1.0, float("nan"), float("inf"), *WRONG.get(name, ())):
        with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
            replace(Settings(), **{name: wrong})  # type: ignore[arg-type]
