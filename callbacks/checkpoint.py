"""Write the checkpoint from which a run resumes."""

import io
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks.divergence import DivergenceError


def ends(trainer: Trainer) -> bool:
    """Return whether the epoch that ends is the last one."""
    last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
    return last or 0 < trainer.max_steps <= trainer.global_step


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under another name, then renames it: a killed process leaves no incomplete checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint to a file in its own folder; remove the file if the disk is full."""
        # a fixed name, so that at most one such file is left behind
        partial, content = Path(path).with_name("partial"), io.BytesIO()
        torch.save(checkpoint, content)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content.getbuffer())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        os.replace(partial, path)


class LastCheckpoint(ModelCheckpoint):
    """Saves the state of a run at the end of the first epoch, of the last one, and of others every few seconds.

    If the run diverged, the checkpoint has the finite weights that `StopOnDivergence` restored. If there is a progress
    bar, the folder is printed at the start.

    Args:
        seconds: the least time between two checkpoints.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__(save_on_train_epoch_end=True)
        self.seconds, self.written = seconds, -math.inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Use `WholeFiles` to write checkpoints."""
        super().setup(trainer, pl_module, stage)
        trainer.strategy.checkpoint_io = WholeFiles()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the folder of the checkpoints."""
        if trainer.progress_bar_callback and trainer.is_global_zero and self.dirpath:
            print(f"checkpoints in {self.dirpath}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint, if one is due."""
        due = ends(trainer) or time.monotonic() - self.written >= self.seconds
        # all processes take part in writing
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            for logger in trainer.loggers:
                getattr(logger, "flush", lambda: None)()
            super().on_train_epoch_end(trainer, pl_module)
            self.written = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write a checkpoint if the run diverged; after other errors, a run resumes from the end of an epoch."""
        if isinstance(exception, DivergenceError):
            super().on_train_epoch_end(trainer, pl_module)
