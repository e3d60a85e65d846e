import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_modules import MLP, OneStepModule, SupervisedModule
from tests.lightning_modules.fitting import Rates, fit, network, same


@pytest.mark.parametrize("adapt", ["rate", "log_rate"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
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


def test_the_rate_itself_moves_by_the_derivative_with_respect_to_it(tmp_path: Path) -> None:
    """dL/dα = dL/d log α / α: one step of plain descent on either, from the same weights and batches."""
    moved = {}
    for adapt, meta_lr in (("rate", 1e-7), ("log_rate", 1e-1)):
        rates, options = Rates(), {"meta_lr": meta_lr, "adapt": adapt, "meta_optimizer": torch.optim.SGD}
        fit(OneStepModule(network(), lr=1e-3, **options), tmp_path / adapt, max_steps=1, callbacks=[rates])  # type: ignore[arg-type]
        moved[adapt] = rates.seen[0]
    h = -math.log(moved["log_rate"] / 1e-3) / 1e-1
    assert moved["rate"] - 1e-3 == pytest.approx(-1e-7 * h / 1e-3, rel=1e-2)
    assert h < 0


def test_the_rate_itself_stays_at_a_thousandth_of_its_start_at_least(tmp_path: Path) -> None:
    rates, options = Rates(), {"meta_lr": 1e3, "adapt": "rate", "meta_optimizer": torch.optim.SGD}
    fit(OneStepModule(network(), lr=10.0, **options), tmp_path, max_steps=4, callbacks=[rates])  # type: ignore[arg-type]
    assert rates.seen[0] == pytest.approx(0.01)
    assert min(rates.seen) == pytest.approx(0.01)


def test_the_rate_moves_by_about_meta_lr_in_every_kth_step_and_a_batch_counts_once(tmp_path: Path) -> None:
    rates = Rates()
    fitting = fit(OneStepModule(network(), lr=1e-5, every=4, meta_lr=0.05), tmp_path, callbacks=[rates])
    changes = torch.tensor([1e-5, *rates.seen]).log().diff()
    assert changes.nonzero().flatten().tolist() == [0, 4, 8, 12]
    # Adam's first step, up: the start is far too low
    assert changes[0] == pytest.approx(0.05, rel=1e-3)
    assert changes.abs().max() < 0.06
    assert fitting.global_step == 16
    assert fit(OneStepModule(network()), tmp_path, max_epochs=-1, max_steps=5).global_step == 5


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")  # it says that it saves after the step
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run saves nothing
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stop = 8
    whole, rates, rest = OneStepModule(MLP(), lr=1e-3), Rates(), Rates()
    resumed = copy.deepcopy(whole)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)
    fit(whole, tmp_path / "whole", max_epochs=3, callbacks=[rates, saver])
    path = tmp_path / f"step={stop}.ckpt"
    fit(resumed, tmp_path / "rest", path, max_epochs=3, callbacks=[rest])
    assert same(whole, resumed)
    assert rates.seen[stop:] == rest.seen
    assert torch.load(path, weights_only=True)["state_dict"]["learned"].exp() * 1e-3 == rates.seen[stop - 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"lr": lr}, r"--model\.lr must be a positive finite number") for lr in (0.0, math.nan, math.inf)],
        *[({"meta_lr": lr}, r"--model\.meta_lr must be a finite number") for lr in (-0.1, math.nan, math.inf)],
        ({"every": 0}, r"--model\.every must be 1 or more"),
        ({"optimizer": torch.optim.Rprop}, "Rprop cannot be adapted"),
    ],
)
def test_what_is_out_of_range_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneStepModule(network(), **options)
