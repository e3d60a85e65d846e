"""Schedule-Free optimizers keep two sets of weights, and must be told which one is wanted."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class ScheduleFree(Callback):
    """Put the optimizer into evaluation mode for validation, for a checkpoint and at the end, else into training mode.

    A checkpoint's `state_dict` is what is validated; the weights that training goes on with lie beside it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train."""
        self._optimizer(trainer).train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the averaged weights, if they are trained."""
        if trainer.state.fn == "fit":
            self._optimizer(trainer).eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with training."""
        if trainer.state.fn == "fit":
            self._optimizer(trainer).train()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return the averaged weights."""
        self._optimizer(trainer).eval()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return them, where the run was over when it went on: then no training starts."""
        self._optimizer(trainer).eval()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights as the module's state, and put back every bit of the others."""
        optimizer = self._optimizer(trainer)
        if not optimizer.param_groups[0]["train_mode"]:
            return
        current = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
        optimizer.eval()
        checkpoint["state_dict"] = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
        checkpoint["current"] = current
        optimizer.train()
        with torch.no_grad():
            pl_module.load_state_dict(current)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with those, where training does."""
        if trainer.state.fn == "fit" and "current" in checkpoint:
            pl_module.load_state_dict(checkpoint["current"])

    def _optimizer(self, trainer: Trainer) -> Any:
        return trainer.optimizers[0]
