"""The checkpoint that a run leaves, and goes on from."""

import math
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger

from callbacks.divergence import DivergenceError


def ends(trainer: Trainer) -> bool:
    """Return, at the end of an epoch, whether it is the last one."""
    last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
    return last or 0 < trainer.max_steps <= trainer.global_step


class LastCheckpoint(ModelCheckpoint):
    """Keep the newest state of a run: written every few seconds, where the run is stopped, and when training ends.

    Says at the start where it lies, to a person who watches. After a step, in mid-epoch: what an epoch logs at its end
    is then in the logger. (Lightning's own `train_time_interval` does nothing under manual optimization, and does not
    write the end of a run.) Ctrl-C waits for such a moment too, a second one does not: from the middle of a step a run
    would not go on as the one that was never stopped, so none is written there.

    Args:
        seconds: that may be lost when the process is killed.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__(save_on_exception=True)
        self.seconds, self.written = seconds, time.monotonic()
        self.between = self.stepping = self.interrupted = False  # two steps; at all; by Ctrl-C
        self._key = super().state_key

    @property
    def state_key(self) -> str:
        """Return the name of the state in a checkpoint, which Lightning would format anew in each hook of a step."""
        return self._key

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Become the one writer of the run, and say which it is."""
        for logger in trainer.loggers:
            if hasattr(logger, "hold"):
                logger.hold()
        if trainer.progress_bar_callback and trainer.is_global_zero and self.dirpath:
            run = f"run {trainer.logger.run_id}, " if isinstance(trainer.logger, MLFlowLogger) else ""
            print(f"{run}checkpoints in {self.dirpath}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let Ctrl-C wait for the end of a step."""
        super().on_train_start(trainer, pl_module)
        self.between = self.stepping = self.interrupted = False
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted or not self.stepping:
            raise KeyboardInterrupt
        self.interrupted = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        if signal.getsignal(signal.SIGINT) == self._interrupt:  # else Lightning ignores more of it, while it ends
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write nothing from now on."""
        self.between, self.stepping = False, True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, if it is time; not where gradients accumulate, nor where validation is due: it would be skipped."""
        # a module that optimizes by hand accumulates by itself
        accumulate = getattr(pl_module, "accumulate_grad_batches", trainer.accumulate_grad_batches)
        validates = trainer.enable_validation and (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        self.between = (batch_idx + 1) % accumulate == 0 and not trainer.is_last_batch and not validates
        due = self.between and time.monotonic() - self.written >= self.seconds
        if trainer.strategy.reduce_boolean_decision(due, all=False):  # processes write together
            self._write(trainer)
        if self.between and self.interrupted:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, if it is the last epoch."""
        if ends(trainer):
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write, if the run can go on from here; or can be looked at, where it diverged."""
        if self.between or isinstance(exception, DivergenceError):
            super().on_exception(trainer, pl_module, exception)

    def _write(self, trainer: Trainer) -> None:
        if self._should_skip_saving_checkpoint(trainer):
            return
        for logger in trainer.loggers:
            if hasattr(logger, "flush"):
                logger.flush()  # first: a run that goes on from here does not log again what came before
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self.written = time.monotonic()
        newest, old = (Path(path or "").absolute() for path in (self.best_model_path, trainer.ckpt_path))
        ours = re.fullmatch(r"epoch=\d+-step=\d+(-v\d+)?\.ckpt", old.name)  # not a copy that somebody made
        if ours and trainer.is_global_zero and old.parent == newest.parent and old != newest:
            old.unlink(missing_ok=True)  # the one that the run went on from, which Lightning keeps
