"""Schedule-Free optimizers keep two sets of weights, and must be told which one to use."""

import copy
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class ScheduleFree(Callback):
    """Put the optimizer into evaluation mode for validation, for a checkpoint and at the end, else into training mode.

    A checkpoint's `state_dict` has the averaged weights, which are validated; `current` has those that are trained.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train."""
        optimizer(trainer).train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the averaged weights, if they are trained."""
        if trainer.state.fn == "fit":
            optimizer(trainer).eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue with training."""
        if trainer.state.fn == "fit":
            optimizer(trainer).train()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return the averaged weights."""
        optimizer(trainer).eval()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights as the module's state, and restore every bit of the others."""
        if optimizer(trainer).param_groups[0]["train_mode"]:
            checkpoint["current"] = copy.deepcopy(pl_module.state_dict())
            optimizer(trainer).eval()
            checkpoint["state_dict"] = copy.deepcopy(pl_module.state_dict())
            optimizer(trainer).train()
            pl_module.load_state_dict(checkpoint["current"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the weights that are trained, if training continues."""
        if trainer.state.fn == "fit" and "current" in checkpoint:
            pl_module.load_state_dict(checkpoint["current"])


def optimizer(trainer: Trainer) -> Any:
    """Return the Schedule-Free optimizer."""
    return trainer.optimizers[0]
