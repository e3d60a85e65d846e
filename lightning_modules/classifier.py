"""Any network under any `torch.optim` optimizer and schedule: the baselines."""

import math
from collections.abc import Callable, Iterable

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.functional.classification import multiclass_accuracy

Batch = tuple[Tensor, Tensor]
Pair = dict[str, Batch]
OptimizerFactory = Callable[[Iterable[nn.Parameter], float], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]


class Classifier(LightningModule):
    """Cross-entropy training at a fixed or a scheduled learning rate.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        lr: the learning rate that the arm starts from, or keeps.
        optimizer: makes the optimizer from the parameters and the rate.
        schedule: makes an LR scheduler from the optimizer and the number of steps in the run; stepped every batch.

    Raises:
        ValueError: lr is not a positive finite number.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        optimizer: OptimizerFactory = torch.optim.Adam,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__()
        if not 0 < lr < math.inf:
            raise ValueError(f"--model.lr must be a positive finite number, got {lr}. 0.001 is a usual start.")
        self.network = network
        self.lr, self.make_optimizer, self.make_schedule = lr, optimizer, schedule
        self.inner_optimizer()  # what it refuses, it refuses now, before a run begins

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and the schedule where there is one."""
        optimizer = self.inner_optimizer()
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def inner_optimizer(self) -> Optimizer:
        """Build the optimizer that moves the network."""
        return self.make_optimizer(self.network.parameters(), self.lr)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, classes)."""
        logits: Tensor = self.network(x)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch, 0-d."""
        x, y = batch
        return cross_entropy(self(x), y)

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Return the loss to be minimised and the rate of this step."""
        loss = self.loss(batch["train"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["train"][1]))
        return {"loss": loss, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss and val/accuracy."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log test/loss and test/accuracy."""
        self._evaluate("test", batch)

    def predict_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        """Return the class of each sample, (batch,) int64."""
        return self(batch[0]).argmax(1)  # type: ignore[no-any-return]

    def _evaluate(self, part: str, batch: Batch) -> None:
        x, y = batch
        logits = self(x)
        accuracy = multiclass_accuracy(logits, y, num_classes=logits.shape[1], average="micro")
        metrics = {f"{part}/loss": cross_entropy(logits, y), f"{part}/accuracy": accuracy}
        self.log_dict(metrics, prog_bar=part == "val", batch_size=len(y))
