"""The returned weights are an average over the end of the run."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from callbacks.checkpoint import ends
from hypergradient import Average
from hypergradient.lightning import ReturnsAverage
from hypergradient.processes import mean_over_processes
from hypergradient.trace import unchanged


class TailAverage(ReturnsAverage):
    """Validates, saves, and returns in the end, the average of about the last tenth of the steps.

    The average is `hypergradient.Average`, or that of a module which keeps its own, as `MetaModule`. With the last
    epoch, BatchNorm's statistics are computed again at it, from the training data. Lightning's WeightAveraging copies
    the module, averages masks of -inf, and leaves BatchNorm's statistics as they are.

    Args:
        window: the fraction of the run that is averaged, above 0 and up to 1.

    Raises:
        ValueError: window is out of range; in `fit`, checkpoints hold weights alone.
    """

    def __init__(self, window: float = 0.1) -> None:
        if not 0 < window <= 1:
            raise ValueError(f"TailAverage: window is a fraction of the run, above 0 and up to 1, got {window}.")
        self.window, self.steps, self.normalized, self.updates = window, 0, -1, True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the module's weights, or at the average of the checkpoint."""
        self.require_whole_checkpoints(trainer)
        self.module, self.steps = pl_module, trainer.global_step
        restored = self.restored if trainer.ckpt_path else None
        self.updates = not hasattr(pl_module, "average")
        if self.updates:
            self.restored = Average(pl_module, [p for p in pl_module.parameters() if p.requires_grad], self.window)
            if restored:
                self.restored.copy_from(restored.weights, restored.buffers)
                self.restored.take_exact(restored.state_dict()["exact"])
        else:
            self.restored = pl_module.average  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, after a step."""
        if trainer.global_step > self.steps and self.average and self.updates:
            self.average.update(trainer.global_step)
        self.steps = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute BatchNorm's statistics at the average, if it is the last epoch."""
        if ends(trainer):
            self._normalize(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so where the run was stopped early, which may be decided after the epoch's end."""
        if self.normalized != self.steps:
            self._normalize(trainer, pl_module)

    def _normalize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.normalized = self.steps
        norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm)]
        if not norms or not self.average:
            return
        loader, precision = trainer.datamodule.train_dataloader(), trainer.precision_plugin  # type: ignore[attr-defined]
        inputs = (precision.convert_input(batch["train"][0]) for batch, *_ in loader)
        with unchanged(pl_module), self.average.in_place():
            with precision.forward_context():
                update_bn(inputs, pl_module, device=pl_module.device)
            statistics = [
                value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None
            ]
            torch._foreach_copy_(statistics, mean_over_processes(statistics))

    def reset(self, state: Mapping[str, Tensor]) -> None:
        """Let the module's averaged weights be these, as after a divergence."""
        if self.average:
            with self.average.in_place():
                self.module.load_state_dict(state)
            self.average.copy_from(self.average.weights, self.average.buffers)
