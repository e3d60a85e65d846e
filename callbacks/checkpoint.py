"""The checkpoint that a run leaves, and goes on from."""

import time

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Keep the newest state of a run, written at the end of an epoch, where it breaks off, and when training ends.

    Where epochs are shorter than `seconds`, some are not written: a write costs as much as some steps do.

    Args:
        seconds: that may be lost when the process is killed.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__(save_on_exception=True)
        self.seconds, self.written = seconds, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, if it is time or the last epoch."""
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        ends = ends or 0 < trainer.max_steps <= trainer.global_step
        if ends or time.monotonic() - self.written >= self.seconds:
            super().on_train_epoch_end(trainer, pl_module)
            self.written = time.monotonic()
