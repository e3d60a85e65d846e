"""Stop a run that diverges, with a message and with finite weights."""

from typing import Any, NoReturn

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

# times the first loss: well above what a rate on its way down passes through
HOPELESS = 1_000.0


class DivergenceError(Exception):
    """The loss is not finite, or far above the first one. The message has the step, the value, and what to do."""


class StopOnDivergence(Callback):
    """Raise DivergenceError where the mean training loss is not finite, or a thousand times the loss of the first step.

    Checked before each validation and at the end of an epoch, as are the weights; what validation finds must be finite
    too. Before the error is raised, the weights of the last check are restored, so that the checkpoint of the run is
    finite. (Lightning's EarlyStopping stops as if the run had succeeded, and keeps the weights as they are.)
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the loss of the first step."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.first = state_dict["first"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights that training starts from."""
        self.losses.clear()
        self.check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, without waiting for the device."""
        self.losses.append((outputs["loss"] if isinstance(outputs, dict) else outputs).detach())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before validation, where the average may replace the weights."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the results of validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and (found := not_finite(trainer)):
            self.stop(trainer, pl_module, found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before a checkpoint is written; losses and weights have not changed since a validation."""
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the losses since the last check, and the weights, which are kept if they are finite."""
        if self.losses:
            self.first = self.losses[0] if self.first is None else self.first
            mean = torch.stack(self.losses).mean()
            self.losses.clear()
            # false for NaN too
            if not mean <= HOPELESS * self.first.abs().clamp(min=1e-3):
                self.stop(trainer, pl_module, f"the mean training loss is {mean:.3g}, the first was {self.first:.3g}")
        if not all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            self.stop(trainer, pl_module, "a weight is not finite")
        self.weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def stop(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> NoReturn:
        """Restore the weights and raise the error."""
        pl_module.load_state_dict(self.weights)
        averaging: Any = getattr(pl_module, "averaging", lambda: None)()
        if hasattr(averaging, "reset"):
            averaging.reset(self.weights)
        step = trainer.global_step
        raise DivergenceError(f"Training diverged by step {step}: {reason}. Lower --model.lr (or --model.meta_lr).")


def not_finite(trainer: Trainer) -> str | None:
    """Return the metrics of the trainer that are not finite, as text; None if all are finite."""
    found = [f"{name} is {float(value):g}" for name, value in trainer.callback_metrics.items() if not value.isfinite()]
    return ", ".join(found) or None
