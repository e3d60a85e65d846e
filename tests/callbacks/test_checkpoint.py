import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks import LastCheckpoint
from callbacks.checkpoint import WholeFiles
from data import MNIST1DDataModule
from lightning_modules import MLP, MetaModule, SupervisedModule

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Counts(LastCheckpoint):
    """Notes the step of every write."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.steps.append(trainer.global_step)


class Fails(Callback):
    """Breaks off in the middle of the third epoch."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 10:
            raise KeyError


@pytest.mark.parametrize("kind", [SupervisedModule, MetaModule], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    ("seconds", "length", "others", "steps"),
    [
        (0.0, {"max_epochs": 3}, [], [4, 8, 12]),
        (60.0, {"max_epochs": 3}, [], [4, 12]),
        (60.0, {"max_steps": 8}, [], [4, 8]),
        (0.0, {"max_epochs": 3}, [Fails()], [4, 8]),
    ],
)
def test_the_newest_end_of_an_epoch_is_kept_every_few_seconds_and_the_last_one_always(
    seconds: float,
    length: dict[str, Any],
    others: list[Callback],
    steps: list[int],
    kind: type[SupervisedModule],
    tmp_path: Path,
) -> None:
    saver = Counts(seconds)
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[saver, *others], **QUIET, **length)
    with suppress(KeyError):
        trainer.fit(kind(MLP()), datamodule=MNIST1DDataModule(batch_size=1000))
    assert saver.steps == steps
    [path] = tmp_path.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == steps[-1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_has_its_final_name_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies before the renaming leaves the old file as it was, and one partial file at most."""
    path, files = tmp_path / "a.ckpt", WholeFiles()
    files.save_checkpoint({"step": 1}, path)
    monkeypatch.setattr(os, "replace", lambda *_: None)
    for step in (2, 3):
        files.save_checkpoint({"step": step}, path)
    assert torch.load(path) == {"step": 1}
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"a.ckpt", "partial"}
