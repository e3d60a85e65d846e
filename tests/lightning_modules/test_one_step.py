import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from data import MNIST1DDataModule
from lightning_modules import MLP, OneStepModule, SupervisedModule


def trainer(folder: Path, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    return Trainer(**settings | {"default_root_dir": folder, "accelerator": "cpu", "num_sanity_val_steps": 0} | options)


def fit(model: LightningModule, folder: Path, ckpt_path: str | None = None, **options: Any) -> Trainer:
    seed_everything(3)
    fitting = trainer(folder, **options)
    fitting.fit(model, MNIST1DDataModule(batch_size=500, val_batch_size=300), ckpt_path=ckpt_path)
    return fitting


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 10))


def same(first: LightningModule, second: LightningModule) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        self.seen.append(float(outputs["lr"]))


@pytest.mark.parametrize("adapt", ["rate", "log_rate"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_frozen_meta_optimizer_reproduces_automatic_optimization_bit_for_bit(
    name: str, adapt: Any, tmp_path: Path
) -> None:
    """With BatchNorm and dropout: the lookahead leaves no trace in statistics or random stream."""
    optimizer = getattr(torch.optim, name)
    plain = SupervisedModule(network(), lr=0.003, optimizer=optimizer)
    meta = OneStepModule(network(), lr=0.003, meta_lr=0.0, adapt=adapt, optimizer=optimizer)
    fit(plain, tmp_path / "plain")
    fit(meta, tmp_path / "meta")
    assert same(plain.network, meta.network)  # type: ignore[arg-type]
    assert not same(plain.network, network())  # type: ignore[arg-type]


def test_the_rate_moves_by_about_meta_lr_a_step_and_stays_positive(tmp_path: Path) -> None:
    rates = Rates()
    fit(OneStepModule(network(), lr=1e-5, meta_lr=0.05), tmp_path, callbacks=[rates])
    steps = torch.tensor([1e-5, *rates.seen]).log().diff()
    assert len(rates.seen) == 16
    assert steps[0] == pytest.approx(0.05, rel=1e-3)  # Adam's first step, up: the start is far too small
    assert min(rates.seen) > 0
    assert steps.abs().max() < 0.06


def test_the_real_step_is_the_plain_step_at_the_rate_that_is_reported(tmp_path: Path) -> None:
    rates, start = Rates(), network()
    meta = OneStepModule(copy.deepcopy(start), lr=0.01, meta_lr=0.7)
    fit(meta, tmp_path / "meta", max_steps=1, callbacks=[rates])
    plain = SupervisedModule(start, lr=rates.seen[0])
    fit(plain, tmp_path / "plain", max_steps=1)
    assert rates.seen[0] == pytest.approx(0.01 * 2.0137, rel=1e-3)  # exp(0.7), Adam's first step
    torch.testing.assert_close(meta.network.state_dict(), plain.network.state_dict(), rtol=0, atol=1e-6)


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


def test_the_rate_moves_in_every_kth_step_alone(tmp_path: Path) -> None:
    rates = Rates()
    fit(OneStepModule(network(), lr=1e-3, every=4), tmp_path, callbacks=[rates])
    changes = torch.tensor([1e-3, *rates.seen]).diff() != 0
    assert changes.nonzero().flatten().tolist() == [0, 4, 8, 12]
    assert not math.isclose(rates.seen[0], 1e-3, rel_tol=0.01)


def test_a_batch_counts_once(tmp_path: Path) -> None:
    assert fit(OneStepModule(network()), tmp_path / "epochs").global_step == 16
    assert fit(OneStepModule(network()), tmp_path / "steps", max_epochs=-1, max_steps=5).global_step == 5


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")  # it says that it saves after the step
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run saves nothing
@pytest.mark.parametrize("stop", [8, 11], ids=["at-an-epochs-end", "in-mid-epoch"])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(stop: int, tmp_path: Path) -> None:
    """Without dropout: the global random stream is not in a checkpoint."""
    torch.manual_seed(0)
    start = OneStepModule(MLP(), lr=1e-3)
    whole, part, resumed = (copy.deepcopy(start) for _ in range(3))
    rates, first, rest = Rates(), Rates(), Rates()
    fit(whole, tmp_path / "whole", max_epochs=3, callbacks=[rates])
    saver = ModelCheckpoint(tmp_path / "saved", filename="stop", every_n_train_steps=stop)
    fit(part, tmp_path / "part", max_epochs=3, max_steps=stop, callbacks=[first, saver])
    fit(resumed, tmp_path / "rest", str(tmp_path / "saved" / "stop.ckpt"), max_epochs=3, callbacks=[rest])
    assert same(whole, resumed)
    assert rates.seen == first.seen + rest.seen


def test_the_checkpoint_holds_the_learned_rate_and_loads_without_pickle(tmp_path: Path) -> None:
    meta = OneStepModule(network(), lr=1e-3)
    fitting = fit(meta, tmp_path)
    path = fitting.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state["learned"] == meta.learned != 0


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_and_finite_is_refused(lr: float) -> None:
    with pytest.raises(ValueError, match=r"--model\.lr must be a positive finite number"):
        OneStepModule(network(), lr=lr)


@pytest.mark.parametrize("meta_lr", [-0.1, float("nan"), float("inf")])
def test_a_meta_rate_that_is_negative_or_not_finite_is_refused(meta_lr: float) -> None:
    with pytest.raises(ValueError, match=r"--model\.meta_lr must be a finite number"):
        OneStepModule(network(), meta_lr=meta_lr)


def test_an_optimizer_that_cannot_be_adapted_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="Rprop cannot be adapted"):
        OneStepModule(network(), optimizer=torch.optim.Rprop)
