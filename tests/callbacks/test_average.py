from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks import TailAverage
from data import MNIST1DDataModule
from experiment.training import train
from lightning_modules import MLP, SupervisedModule
from tests.hypergradient.lightning_cases import SavesBefore

SHORT = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--data.batch_size=100"]


def averaged(course: list[float], window: float) -> float:
    """A ← A + (θ - A) / max(1, window t), by hand."""
    average = 0.0
    for t, theta in enumerate(course, 1):
        average += (theta - average) / max(1.0, window * t)
    return average


@pytest.mark.slow
@pytest.mark.parametrize("window", [0.1, 0.5, 1.0])
def test_the_average_is_the_one_of_the_formula(window: float) -> None:
    """window 1 is the plain mean of all."""
    course: list[float] = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
            course.append(next(pl_module.parameters())[0, 0].item())

    callback = TailAverage(window)
    run = train(["--optimizer", "adam", "--model.lr=0.01", *SHORT], callbacks=[Notes(), callback])
    average = next(run.model.parameters())[0, 0].item()
    assert len(course) == 80
    assert average == pytest.approx(averaged(course, window), abs=1e-6)
    if window == 1.0:
        assert average == pytest.approx(sum(course) / 80, abs=1e-6)


def test_what_is_validated_tested_and_saved_is_the_average() -> None:
    plain = train(["--optimizer", "adam", "--model.lr=0.01", *SHORT])
    average = train(["--optimizer", "adam_average", "--model.lr=0.01", *SHORT])
    assert plain.test_metrics["test/loss"] != average.test_metrics["test/loss"]
    path = str(average.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in average.model.state_dict().items())


def test_batchnorm_statistics_are_those_of_the_average() -> None:
    cli = train(["--optimizer", "adam_average", "--task", "conv_batchnorm", "--model.lr=0.05", *SHORT])
    norm, x = cli.model.network[2], cli.datamodule.train[0]
    with torch.no_grad():
        seen = cli.model.network[1](cli.model.network[0](x))
    assert norm.running_mean == pytest.approx(seen.mean((0, 2)), abs=1e-4)


def test_a_window_out_of_range_is_refused() -> None:
    for window in (0.0, 1.5):
        with pytest.raises(ValueError, match="window is a part of the run"):
            TailAverage(window)


def test_a_checkpoint_from_before_training_goes_on_holds_the_average_and_the_weights(tmp_path: Path) -> None:
    def run(epochs: int, path: Path | None, extra: Callback) -> None:
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        own = [TailAverage(), extra]
        trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=own, default_root_dir=tmp_path, **options)
        trainer.fit(SupervisedModule(MLP()), MNIST1DDataModule(batch_size=100), ckpt_path=path)

    last, before = tmp_path / "last.ckpt", tmp_path / "before.ckpt"
    run(2, None, ModelCheckpoint(tmp_path, filename="last"))
    run(3, last, SavesBefore(before))
    first, saved = (torch.load(path, weights_only=True) for path in (last, before))
    for name in ("state_dict", "current"):
        assert all(torch.equal(value, saved[name][key]) for key, value in first[name].items())
    assert not torch.equal(saved["current"]["network.0.weight"], saved["state_dict"]["network.0.weight"])


def test_a_checkpoint_saved_after_the_fit_goes_on_as_if_it_had_not_ended(tmp_path: Path) -> None:
    def run(epochs: int, path: Path | None = None) -> Trainer:
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[TailAverage(0.5)], default_root_dir=tmp_path, **options
        )
        torch.manual_seed(0)
        trainer.fit(SupervisedModule(MLP()), MNIST1DDataModule(batch_size=100), ckpt_path=path)
        return trainer

    run(2).save_checkpoint(tmp_path / "after.ckpt")
    whole, rest = run(3).lightning_module, run(3, tmp_path / "after.ckpt").lightning_module
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("arm", ["adam_average", "schedule_free", "meta"])
def test_a_run_that_was_over_when_it_went_on_is_tested_as_it_was(arm: str) -> None:
    """As one that was killed in its test: no training starts."""
    whole = train(["--optimizer", arm, *SHORT])
    path = str(whole.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    again = train(["--optimizer", arm, *SHORT, f"--ckpt_path={path}"])
    assert again.test_metrics["test/loss"] == pytest.approx(whole.test_metrics["test/loss"], rel=1e-5)


def test_batchnorm_statistics_are_those_of_the_average_where_training_stops_early() -> None:
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    stop += ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=9"]
    cli = train(["--optimizer", "adam_average", "--task", "conv_batchnorm", "--model.lr=0.05", *SHORT, *stop])
    assert cli.trainer.current_epoch == 2
    norm, x = cli.model.network[2], cli.datamodule.train[0]
    with torch.no_grad():
        seen = cli.model.network[1](cli.model.network[0](x))
    assert norm.running_mean == pytest.approx(seen.mean((0, 2)), abs=1e-4)


@pytest.mark.parametrize("arm", ["adam_average", "meta", "meta_search"])
def test_averages_and_searches_are_of_the_trainers_precision(arm: str) -> None:
    options = ["--task", "conv_batchnorm", "--trainer.precision=64-true", "--trainer.max_epochs=1", SHORT[1]]
    cli = train(["--optimizer", arm, *options, "--data.batch_size=500"])
    assert next(cli.model.parameters()).dtype == torch.float64
    assert cli.test_metrics["test/loss"] < 3
