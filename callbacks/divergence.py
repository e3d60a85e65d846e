"""A run that diverges ends with a message, and with weights that can be looked at."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

HOPELESS = 1_000.0  # times the first loss: well above what a rate on its way down passes through
EVERY = 16  # steps between two looks at the loss, each of which waits for the device


class DivergenceError(Exception):
    """The loss left all bounds. The message says at which step, how far, and what to do."""


class StopOnDivergence(Callback):
    """Raise DivergenceError where the loss is not finite, or a thousand times the first one.

    Before that, the weights of the last validation are put back: the checkpoint holds finite ones. The losses are read
    in every 16th step and at an epoch's end, all of them: the message names the step where it began. What validation
    finds must be finite too.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the first loss."""
        return {"first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._first = state_dict["first"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights the run starts from."""
        self._losses: list[tuple[int, Tensor]] = []
        self._keep(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of the step; look, if it is time."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._losses.append((trainer.global_step, loss.detach()))
        if len(self._losses) == EVERY:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights before a checkpoint may be saved: the last step may have spoilt them unseen."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep_or_stop(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what validation found."""
        if trainer.state.fn == "fit" and (found := not_finite(trainer)):
            self._stop(pl_module, trainer.global_step, found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights where there is no validation."""
        self._keep_or_stop(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps, losses = zip(*self._losses, strict=True)
        self._losses.clear()
        self._first = losses[0] if self._first is None else self._first
        hopeless = ~(torch.stack(losses) <= HOPELESS * self._first.abs().clamp(min=1e-3))  # not finite too
        if hopeless.any():
            begun = int(hopeless.int().argmax())
            reason = f"the training loss is {losses[begun]:.3g} and was {self._first:.3g} at first"
            self._stop(pl_module, steps[begun], reason)

    def _keep_or_stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._losses:
            self._look(trainer, pl_module)
        if all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            self._keep(pl_module)
        else:
            self._stop(pl_module, trainer.global_step, "a weight is not finite")

    def _keep(self, pl_module: LightningModule) -> None:
        self._weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def _stop(self, pl_module: LightningModule, step: int, reason: str) -> None:
        with torch.no_grad():
            pl_module.load_state_dict(self._weights)
            if averaging := getattr(pl_module, "averaging", lambda: None)():  # a checkpoint holds the average
                averaging.reset(self._weights)
        raise DivergenceError(f"Training diverged at step {step}: {reason}. Lower --model.lr (or --model.meta_lr).")


def not_finite(trainer: Trainer) -> str | None:
    """Say which of the metrics that the trainer holds is not finite."""
    found = [f"{name} is {float(value):g}" for name, value in trainer.callback_metrics.items() if not value.isfinite()]
    return ", ".join(found) or None
