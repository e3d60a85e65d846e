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
