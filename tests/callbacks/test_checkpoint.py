import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks import LastCheckpoint
from data import MNIST1DDataModule
from lightning_modules import MLP, SupervisedModule
from tests.store import heed


class Ends(Exception):  # noqa: N818  # not an error: the test's own end of a run
    pass


class Dies(SupervisedModule):
    """Breaks off in the third epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == 2:
            raise Ends


class Counts(LastCheckpoint):
    """Notes the step of every write."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        written.append(trainer.global_step)


written: list[int] = []


def steps_kept(folder: Path, seconds: float, module: LightningModule, ends: dict[str, Any]) -> list[int]:
    written.clear()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[Counts(seconds)], **quiet, **ends)
    with suppress(Ends):
        trainer.fit(module, datamodule=MNIST1DDataModule(batch_size=1000))
    [path] = folder.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == written[-1]
    return written


@pytest.mark.parametrize(
    ("seconds", "ends", "steps"),
    [
        (0.0, {"max_epochs": 2}, [1, 2, 3, 5, 6, 7, 8]),
        (60.0, {"max_epochs": 3}, [12]),
        (60.0, {"max_steps": 6}, [6]),
        (60.0, {"max_steps": 8}, [8]),
    ],
)
def test_the_end_of_a_run_is_kept_and_before_it_a_state_every_few_seconds(
    seconds: float, ends: dict[str, int], steps: list[int], tmp_path: Path
) -> None:
    assert steps_kept(tmp_path, seconds, SupervisedModule(MLP()), ends) == steps


class Validations(LastCheckpoint):
    """Notes the step of every write, and how many validations had begun."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.begun, self.seen = 0, []  # type: ignore[var-annotated]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun += not trainer.sanity_checking

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.seen.append((trainer.global_step, self.begun))


def test_nothing_is_written_between_a_step_and_a_validation_that_is_due_in_mid_epoch(tmp_path: Path) -> None:
    """A run that went on from there would skip it."""
    saver = Validations()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=[saver], max_epochs=2, val_check_interval=2, **quiet
    )
    trainer.fit(SupervisedModule(MLP()), datamodule=MNIST1DDataModule(batch_size=1000))
    assert saver.seen == [(step, step // 2) for step in range(1, 9)]


def test_a_run_that_fails_in_a_step_is_kept_as_it_was_before(tmp_path: Path) -> None:
    """The state there would not go on as the run that was never stopped."""
    assert steps_kept(tmp_path, 0.0, Dies(MLP()), {"max_epochs": 4}) == [1, 2, 3, 5, 6, 7]


class Pressed(Callback):
    """Presses Ctrl-C, once, in the middle of a step."""

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 9:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path: Path) -> None:
    written.clear()
    heed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, callbacks=[Counts(60.0), Pressed()], default_root_dir=tmp_path, **quiet
    )
    with pytest.raises(SystemExit):
        trainer.fit(SupervisedModule(MLP()), datamodule=MNIST1DDataModule(batch_size=1000))
    assert written == [10]
    assert signal.getsignal(signal.SIGINT) != trainer.checkpoint_callback._interrupt  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_state_has_lightnings_own_name_in_a_checkpoint() -> None:
    """Under another, Lightning would warn that a callback is missing where an older checkpoint goes on."""
    own = LastCheckpoint()
    assert own.state_key == ModelCheckpoint.state_key.fget(own)  # type: ignore[attr-defined]
