"""Switch Schedule-Free optimizers between their two sets of weights."""

import copy
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class ScheduleFree(Callback):
    """Sets the optimizer to evaluation mode for validation, for checkpoints and at the end; else to training mode.

    In a checkpoint, `state_dict` has the averaged weights, which are validated; `current` has the trained weights.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the optimizer to training mode."""
        optimizer(trainer).train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averaged weights, during a fit."""
        if trainer.state.fn == "fit":
            optimizer(trainer).eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the optimizer to training mode, during a fit."""
        if trainer.state.fn == "fit":
            optimizer(trainer).train()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return the averaged weights."""
        optimizer(trainer).eval()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights as the module's; restore the trained weights bit for bit."""
        if optimizer(trainer).param_groups[0]["train_mode"]:
            checkpoint["current"] = copy.deepcopy(pl_module.state_dict())
            optimizer(trainer).eval()
            checkpoint["state_dict"] = copy.deepcopy(pl_module.state_dict())
            optimizer(trainer).train()
            pl_module.load_state_dict(checkpoint["current"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the trained weights to resume a fit."""
        if trainer.state.fn == "fit" and "current" in checkpoint:
            pl_module.load_state_dict(checkpoint["current"])


def optimizer(trainer: Trainer) -> Any:
    """Return the Schedule-Free optimizer."""
    return trainer.optimizers[0]
