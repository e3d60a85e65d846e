"""The returned weights are an average over the end of the run."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn


class TailAverage(WeightAveraging):
    """Validate, and return in the end, the average of about the last tenth of the steps, however many they are.

        A ← A + (θ - A) / max(1, window · t)      after step t

    A polynomial-decay average (Shamir & Zhang 2013, arXiv 1212.1824). When training ends, BatchNorm's statistics are
    taken anew at the average, from the training data.

    Args:
        window: the part of the run that is averaged, above 0 and up to 1.

    Raises:
        ValueError: window is out of range.
    """

    def __init__(self, window: float = 0.1) -> None:
        if not 0 < window <= 1:
            raise ValueError(f"TailAverage: window is a part of the run, above 0 and up to 1, got {window}.")
        super().__init__(multi_avg_fn=self._move)
        self.window = window

    @property
    def average(self) -> nn.Module | None:
        """The averaged module; None before training."""
        return None if self._average_model is None else self._average_model.module

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module, without its trainer: that holds what cannot be copied, as the processes of DDP."""
        pl_module.trainer = None
        super().setup(trainer, pl_module, stage)
        pl_module.trainer = trainer

    def _move(self, averages: Any, current: Any, steps: Any) -> None:
        if not torch.is_floating_point(averages[0]):
            torch._foreach_copy_(averages, current)  # counters, of BatchNorm
        else:
            torch._foreach_lerp_(averages, current, 1 / max(1.0, self.window * (int(steps) + 1)))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average up again where training goes on; elsewhere the checkpoint's weights are it already."""
        if self.average is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        super().on_train_end(trainer, pl_module)
        if any(isinstance(module, _BatchNorm) for module in pl_module.modules()):
            loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            update_bn((_inputs(batch) for batch, *_ in loader), pl_module)


def _inputs(batch: Any) -> Tensor:
    inputs: Tensor = batch["train"][0]
    return inputs
