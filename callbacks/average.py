"""The returned weights are an average over the end of the run."""

from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from callbacks.checkpoint import ends
from hypergradient.average import Average
from hypergradient.processes import mean_over_processes
from hypergradient.validated import ValidatesAverage


class TailAverage(ValidatesAverage, Callback):
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
        self.window, self.steps, self.normalised = window, 0, -1
        self.tail: Average | None = None
        self.exact: list[Tensor] = []  # of the checkpoint that the run goes on from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a copy of the module, where it is trained."""
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise MisconfigurationException(
                "TailAverage needs whole checkpoints: with save_weights_only Lightning saves no average."
            )
        self.tail, self.steps = Average(pl_module, self.window), trainer.global_step
        if self.loaded:
            self.tail.load_state_dict({"network": self.loaded, "exact": self.exact})
        self.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, after a step."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self._tail.update(self.steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take BatchNorm's statistics at the average, if it is the last epoch."""
        if ends(trainer):
            self._normalise(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module, with statistics of its own."""
        if self.normalised != self.steps:  # stopped early: that is decided after the epoch's end
            self._normalise(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def _normalise(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.normalised = self.steps
        norms = [module for module in self._tail.network.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            return
        loader, precision = trainer.datamodule.train_dataloader(), trainer.precision_plugin  # type: ignore[attr-defined]
        inputs = (precision.convert_input(batch["train"][0]) for batch, *_ in loader)
        with precision.forward_context():
            update_bn(inputs, self._tail.network, device=pl_module.device)
        statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        torch._foreach_copy_(statistics, mean_over_processes(statistics))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what is averaged of 16-bit weights too."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.loaded or self.tail:
            checkpoint["average"] = self.exact if self.loaded else self._tail.state_dict()["exact"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self.exact = checkpoint.get("average", [])

    @property
    def running(self) -> Average | None:
        """The average; None before training."""
        return self.tail

    @property
    def average(self) -> nn.Module | None:
        """The averaged module; None before training."""
        return self.tail.network if self.tail else None

    @property
    def _tail(self) -> Average:
        assert self.tail is not None, "TailAverage begins with `fit`"
        return self.tail
