"""The returned weights are an average over the end of the run."""

from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from callbacks.checkpoint import ends
from hypergradient.average import Average
from hypergradient.processes import mean_over_processes


class TailAverage(Callback):
    """Validate, save, and return in the end, the average of about the last tenth of the steps, however many they are.

    The average is `hypergradient.Average`. With the last epoch, BatchNorm's statistics are taken anew at it, from the
    training data. A checkpoint's `state_dict` is the average; the weights that training goes on with lie beside it.

    Args:
        window: the part of the run that is averaged, above 0 and up to 1.

    Raises:
        ValueError: window is out of range.
    """

    def __init__(self, window: float = 0.1) -> None:
        if not 0 < window <= 1:
            raise ValueError(f"TailAverage: window is a part of the run, above 0 and up to 1, got {window}.")
        self.window, self.steps = window, 0
        self.tail: Average | None = None
        self.kept: dict[str, Any] | None = None  # the average of a run that goes on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a copy of the module, where it is trained."""
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise MisconfigurationException(
                "TailAverage needs whole checkpoints: with save_weights_only Lightning saves no average."
            )
        self.tail, self.steps = Average(pl_module, self.window), trainer.global_step
        if self.kept:
            self.tail.load_state_dict(self.kept)
            self.kept = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, after a step."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self._tail.update(self.steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take BatchNorm's statistics at the average, if it is the last epoch."""
        norms = [module for module in self._tail.network.modules() if isinstance(module, _BatchNorm)]
        if norms and ends(trainer):
            loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            update_bn((batch["train"][0] for batch, *_ in loader), self._tail.network, device=pl_module.device)
            statistics = [
                value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None
            ]
            torch._foreach_copy_(statistics, mean_over_processes(statistics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        pl_module.load_state_dict(self._tail.network.state_dict())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._swap(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        self._swap(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the module's state."""
        if self.tail:
            checkpoint["state_dict"], checkpoint["current"] = self.tail.states()
            checkpoint["average"] = self.tail.state_dict()["exact"]
        if self.kept:  # training has not started again
            current = checkpoint["state_dict"]
            checkpoint |= {"state_dict": self.kept["network"], "current": current, "average": self.kept["exact"]}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average up again where training goes on; elsewhere the checkpoint's weights are it already."""
        if trainer.state.fn == "fit" and "current" in checkpoint:
            self.kept = {"network": dict(checkpoint["state_dict"]), "exact": checkpoint["average"]}
            pl_module.load_state_dict(checkpoint["current"])

    @property
    def average(self) -> nn.Module | None:
        """The averaged module; None before training."""
        return self.tail.network if self.tail else None

    @property
    def _tail(self) -> Average:
        assert self.tail is not None, "TailAverage begins with `fit`"
        return self.tail

    def _swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._tail.swap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its weights back, if it was validating the average."""
        if self.tail and self.tail.swapped:
            self.tail.swap()
