"""The returned weights are an average over the end of the run."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.optim.swa_utils import update_bn

from callbacks.checkpoint import ends
from callbacks.divergence import DivergenceError
from hypergradient import Average
from hypergradient.lightning import ReturnsAverage
from hypergradient.processes import mean_over_processes
from hypergradient.trace import BATCH_NORMS, unchanged


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
        self.window, self.steps = window, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the module's weights, or at the average of the checkpoint."""
        self.refuse_other_weights(trainer)
        self.steps = trainer.global_step
        restored = self.restored if trainer.ckpt_path else None
        own = getattr(pl_module, "average", None)
        self.updates = own is None
        self.restored = own or Average(pl_module, [p for p in pl_module.parameters() if p.requires_grad], self.window)
        if restored and self.updates:
            self.restored.copy_from(restored.weights, restored.buffers)
            self.restored.take_exact(restored.state_dict()["exact"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, after a step."""
        if self.updates and self.average and trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.average.update(self.steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute BatchNorm's statistics at the average, if it is the last epoch."""
        norms = [module for module in pl_module.modules() if isinstance(module, BATCH_NORMS)]
        if not norms or not self.average or not ends(trainer):
            return
        loader, precision = trainer.datamodule.train_dataloader(), trainer.precision_plugin  # type: ignore[attr-defined]
        inputs = (precision.convert_input(batch["train"][0]) for batch, *_ in loader)
        with unchanged(pl_module), self.average.in_place():
            with precision.forward_context():
                update_bn(inputs, pl_module, device=pl_module.device)
            statistics = [value for norm in norms for value in norm.buffers() if value.is_floating_point()]
            torch._foreach_copy_(statistics, mean_over_processes(statistics))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forget an average that a divergence has spoilt: the module's weights are finite, and saved."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, DivergenceError):
            self.restored = None
