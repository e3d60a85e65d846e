"""The returned weights are an average over the end of the run."""

import copy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from callbacks.checkpoint import ends
from hypergradient.processes import mean_over_processes


class TailAverage(Callback):
    """Validate, save, and return in the end, the average of about the last tenth of the steps, however many they are.

        A ← A + (θ - A) / max(1, window · t)      after step t

    A polynomial-decay average (Shamir & Zhang 2013, arXiv 1212.1824). With the last epoch, BatchNorm's statistics are
    taken anew at the average, from the training data. A checkpoint's `state_dict` is the average; the weights that
    training goes on with lie beside it.

    Args:
        window: the part of the run that is averaged, above 0 and up to 1.

    Attributes:
        average: the averaged module; None before training.

    Raises:
        ValueError: window is out of range.
    """

    def __init__(self, window: float = 0.1) -> None:
        if not 0 < window <= 1:
            raise ValueError(f"TailAverage: window is a part of the run, above 0 and up to 1, got {window}.")
        self.window, self.steps = window, 0
        self.average: LightningModule | None = None
        self.kept: dict[str, Tensor] | None = None  # the average of a run that goes on

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the module, without its trainer: that holds what cannot be copied, as the processes of DDP."""
        pl_module.trainer = None
        self.average = copy.deepcopy(pl_module)
        pl_module.trainer = trainer
        if self.kept:
            self.average.load_state_dict(self.kept)
            self.kept = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, after a step."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            (averages, counters), (current, counted) = _tensors(self._average), _tensors(pl_module)
            torch._foreach_lerp_(averages, current, 1 / max(1.0, self.window * self.steps))
            for counter, value in zip(counters, counted, strict=True):  # of BatchNorm
                counter.copy_(value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take BatchNorm's statistics at the average, if it is the last epoch."""
        norms = [module for module in self._average.modules() if isinstance(module, _BatchNorm)]
        if norms and ends(trainer):
            loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            update_bn((batch["train"][0] for batch, *_ in loader), self._average, device=pl_module.device)
            statistics = [
                value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None
            ]
            torch._foreach_copy_(statistics, mean_over_processes(statistics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        pl_module.load_state_dict(self._average.state_dict())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._swap(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        self._swap(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the module's state."""
        if self.average is not None:
            checkpoint["current"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = self.average.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average up again where training goes on; elsewhere the checkpoint's weights are it already."""
        if trainer.state.fn == "fit" and "current" in checkpoint:
            self.kept, self.steps = dict(checkpoint["state_dict"]), checkpoint["global_step"]
            pl_module.load_state_dict(checkpoint["current"])

    @property
    def _average(self) -> LightningModule:
        assert self.average is not None, "TailAverage begins with `fit`"
        return self.average

    @torch.no_grad()
    def _swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            for averages, current in zip(_tensors(self._average), _tensors(pl_module), strict=True):
                for average, value in zip(averages, current, strict=True):
                    average.data, value.data = value.data, average.data


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a module computes with: floating point, and counters."""
    every = [*module.parameters(), *module.buffers()]
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
