"""A run that diverges ends with a message, and with weights that can be looked at."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

HOPELESS = 1_000.0  # times the first loss: well above what a rate on its way down passes through


class DivergenceError(Exception):
    """The loss left all bounds. The message says at which step, how far, and what to do."""


class StopOnDivergence(Callback):
    """Raise DivergenceError where the loss is not finite, or a thousand times the first one.

    Before that, the weights of the last validation are put back: the checkpoint holds finite ones.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights the run starts from."""
        self._first: float | None = None
        self._keep(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the step."""
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        self._first = loss if self._first is None else self._first
        if not loss <= HOPELESS * max(abs(self._first), 1e-3):
            self._stop(trainer, pl_module, f"the training loss is {loss:.3g} and was {self._first:.3g} at first")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights before a checkpoint may be saved: the last step may have spoilt them unseen."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep_or_stop(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights where there is no validation."""
        self._keep_or_stop(trainer, pl_module)

    def _keep_or_stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            self._keep(pl_module)
        else:
            self._stop(trainer, pl_module, "a weight is not finite")

    def _keep(self, pl_module: LightningModule) -> None:
        self._weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def _stop(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        with torch.no_grad():
            pl_module.load_state_dict(self._weights)
        raise DivergenceError(
            f"Training diverged at step {trainer.global_step}: {reason}. Lower --model.lr (or --model.meta_lr)."
        )
