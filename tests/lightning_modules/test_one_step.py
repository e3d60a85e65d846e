import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import OneStepModule, SupervisedModule
from tests.lightning_modules.fitting import Rates, fit, network, same


@pytest.mark.parametrize(("name", "adapt"), [("SGD", "rate"), ("Adam", "log_rate"), ("AdamW", "rate")])
def test_with_a_meta_rate_of_0_the_run_is_that_of_automatic_optimization_bit_for_bit(
    name: str, adapt: Any, tmp_path: Path
) -> None:
    """With BatchNorm and dropout: the lookahead leaves no trace in statistics or random stream."""
    optimizer = getattr(torch.optim, name)
    plain = SupervisedModule(network(), lr=0.003, optimizer=optimizer)
    meta = OneStepModule(network(), lr=0.003, meta_lr=0.0, adapt=adapt, optimizer=optimizer)
    fit(plain, tmp_path / "plain")
    fit(meta, tmp_path / "meta")
    assert same(plain.network, meta.network)
    assert not same(plain.network, network())


def test_the_rate_itself_moves_by_the_derivative_with_respect_to_it_and_stays_above_0(tmp_path: Path) -> None:
    """dL/dα = dL/d log α / α: one step of plain descent on either, from the same weights and batches."""
    moved, sgd = {}, torch.optim.SGD
    for lr, adapt, meta_lr in ((1e-3, "rate", 1e-7), (1e-3, "log_rate", 1e-1), (10.0, "rate", 1e3)):
        rates, options = Rates(), dict[str, Any](lr=lr, adapt=adapt, meta_lr=meta_lr, meta_optimizer=sgd)
        fit(OneStepModule(network(), **options), tmp_path, max_steps=4, callbacks=[rates])
        moved[lr, adapt] = rates.seen
    h = -math.log(moved[1e-3, "log_rate"][0] / 1e-3) / 1e-1
    assert moved[1e-3, "rate"][0] - 1e-3 == pytest.approx(-1e-7 * h / 1e-3, rel=1e-2)
    assert h < 0
    # a thousandth of its start
    assert moved[10.0, "rate"][0] == min(moved[10.0, "rate"]) == pytest.approx(0.01)


def test_the_rate_moves_by_about_meta_lr_in_every_step_and_a_batch_counts_once(tmp_path: Path) -> None:
    rates = Rates()
    fitting = fit(OneStepModule(network(), lr=1e-5, meta_lr=0.05), tmp_path, callbacks=[rates])
    changes = torch.tensor([1e-5, *rates.seen]).log().diff()
    assert len(changes) == changes.count_nonzero() == 16
    # Adam's first step, up: the start is far too low
    assert changes[0] == pytest.approx(0.05, rel=1e-3)
    assert changes.abs().max() < 0.06
    assert fitting.global_step == 16
    assert fit(OneStepModule(network()), tmp_path, max_epochs=-1, max_steps=5).global_step == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": math.nan}, r"--model\.lr must be a positive finite number"),
        ({"meta_lr": -0.1}, r"--model\.meta_lr must be a finite number"),
        ({"optimizer": torch.optim.Rprop}, "Rprop cannot be adapted"),
    ],
)
def test_what_is_out_of_range_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneStepModule(network(), **options)
