"""Average the weights over the end of a run."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.optim.swa_utils import update_bn

from callbacks.checkpoint import ends
from callbacks.divergence import DivergenceError
from hypergradient import Average
from hypergradient.lightning_average import ReturnsAverage
from hypergradient.processes import mean_over_processes
from hypergradient.trace import BATCH_NORMS, unchanged


class TailAverage(ReturnsAverage):
    """Validates, saves and returns the average of the weights over about the last tenth of the steps.

    The average is a `hypergradient.Average`, or the module's own one, as in `MetaModule`. After the last epoch,
    BatchNorm's statistics are recomputed at the average, from the training data. Lightning's WeightAveraging, in
    contrast, copies the module, averages masks of -inf, and does not recompute the statistics.

    Args:
        window: the fraction of the run that is averaged, above 0 and up to 1.

    Raises:
        ValueError: window is out of range; in `fit`: checkpoints of weights alone.
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
        """Update the average after a step."""
        if self.updates and self.average and trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.average.update(self.steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recompute BatchNorm's statistics at the average, after the last epoch."""
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
        """Discard the average if the run diverged: the module's weights, which are finite, are saved instead."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, DivergenceError):
            self.restored = None
