"""Schedule-Free optimizers keep two sets of weights, and must be told which one is wanted."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class ScheduleFree(Callback):
    """Put the optimizer into evaluation mode for validation and at the end, else into training mode."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train."""
        self._optimizer(trainer).train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the averaged weights."""
        self._optimizer(trainer).eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with training."""
        self._optimizer(trainer).train()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return the averaged weights."""
        self._optimizer(trainer).eval()

    def _optimizer(self, trainer: Trainer) -> Any:
        return trainer.optimizers[0]
