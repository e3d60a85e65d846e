"""Stop a run that diverges, with a message and with finite weights."""

import copy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

# factor over the first loss; runs that recover from too high an initial rate stay well below it
HOPELESS = 1_000.0


class DivergenceError(Exception):
    """The loss is not finite, or far above the first one. The message has the step, the value, and what to do."""


class StopOnDivergence(Callback):
    """Raises DivergenceError if an epoch's mean training loss is not finite, or a thousand times the first loss.

    Weights and metrics must be finite too. Before the error is raised, the weights of the last finite epoch are
    restored, so that the checkpoint of the run is finite. (Lightning's EarlyStopping would end the run as a success,
    with its current weights.)
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights from which training starts."""
        self.first = None
        self.losses.clear()
        self.weights = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the loss, without waiting for the device."""
        self.losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check losses, weights and metrics, before a checkpoint is written."""
        self.first = self.losses[0] if self.first is None else self.first
        mean = torch.stack(self.losses).mean()
        self.losses.clear()
        reason = None
        # `not <=` is also true if the mean is NaN
        if not mean <= HOPELESS * self.first.abs().clamp(min=1e-3):
            reason = f"the mean training loss is {mean:.3g}, the first was {self.first:.3g}"
        elif not all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            reason = "a weight is not finite"
        else:
            self.weights = copy.deepcopy(pl_module.state_dict())
        if reason := reason or not_finite(trainer):
            pl_module.load_state_dict(self.weights)
            step = trainer.global_step
            raise DivergenceError(f"Training diverged by step {step}: {reason}. Lower --model.lr (or --model.meta_lr).")


def not_finite(trainer: Trainer) -> str | None:
    """Return the metrics of the trainer that are not finite, as text; None if all are finite."""
    found = [f"{name} is {float(value):g}" for name, value in trainer.callback_metrics.items() if not value.isfinite()]
    return ", ".join(found) or None
