"""Train any network with any `torch.optim` optimizer and schedule: the baselines."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_modules.metrics import R2

Batch = tuple[Tensor, Tensor]
Pair = dict[str, Batch]
OptimizerFactory = Callable[[Iterable[nn.Parameter], float], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]


class SupervisedModule(LightningModule):
    """Minimizes cross-entropy, or squared error if targets are floats, at a fixed or scheduled learning rate.

    Args:
        network: (batch, ...) inputs -> (batch, ..., classes) logits, or as many values as targets.
        lr: the initial learning rate.
        optimizer: creates the optimizer from the parameters and the rate; Adam by default.
        schedule: creates an LR scheduler from the optimizer and the number of steps in the run; stepped every batch
            (ReduceLROnPlateau: every epoch, on the validation loss).

    Raises:
        ValueError: lr is not a positive finite number.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__()
        if not 0 < lr < math.inf:
            raise ValueError(f"--model.lr must be a positive finite number, got {lr}. 0.001 is a usual start.")
        self.network, self.losses, self.r2 = network, list[Tensor](), R2()
        # forward-backward passes over a training batch, beyond those of plain training
        self.passes = 0.0
        # random streams of the checkpoint from which the run resumes
        self.random: tuple[Tensor, list[Tensor]] | None = None
        self.lr, self.make_optimizer, self.make_schedule = lr, optimizer or Adam, schedule
        # built here once, so that wrong options fail before a run starts
        trial = self.inner_optimizer()
        if schedule is not None:
            schedule(trial, 1)

    def setup(self, stage: str) -> None:
        """Discard, before a fit, what was loaded from an earlier checkpoint."""
        if stage == "fit":
            self.losses, self.passes, self.random = [], 0.0, None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and the schedule if one is given."""
        optimizer = self.inner_optimizer()
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        if isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def depends_on_length(self) -> bool:
        """Whether a step depends on the length of the run, so that the run cannot be made longer."""
        return self.make_schedule is not None

    def inner_optimizer(self) -> Optimizer:
        """Build the optimizer of the network."""
        return self.make_optimizer(self.network.parameters(), self.lr)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, classes)."""
        logits: Tensor = self.network(x)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, 0-d."""
        x, y = batch
        return objective(self(x), y)

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Return the loss to be minimized and the rate of this step."""
        loss = self.loss(batch["train"])
        self.losses.append(loss.detach())
        seen = {"loss": loss, "lr": self.trainer.optimizers[0].param_groups[0]["lr"], "decay": self.decay()}
        return {name: value for name, value in seen.items() if name != "decay" or value}

    def decay(self) -> float:
        """Return the decay of a step, lr · weight_decay, if it is decoupled from the gradient, as in AdamW; else 0."""
        group = self.trainer.optimizers[0].param_groups[0]
        decoupled = group.get("decoupled_weight_decay", False)
        return float(group["lr"] * group["weight_decay"]) if decoupled else 0.0

    def on_train_epoch_end(self) -> None:
        """Log train/loss, the mean over the steps of the epoch: `self.log` at each step would cost half a step."""
        self.log("train/loss", torch.stack(self.losses).mean(), sync_dist=True)
        self.losses.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the cost and the random streams."""
        checkpoint["passes"] = self.passes
        checkpoint["random"] = torch.get_rng_state(), torch.cuda.get_rng_state_all()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load cost and random streams; set the precision of the weights, which would otherwise be float32."""
        self.passes, self.random = checkpoint["passes"], checkpoint["random"]
        self.to(next(value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()))

    def on_train_start(self) -> None:
        """Continue the random streams of the checkpoint."""
        if self.random:
            cpu, gpus = self.random
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(gpus[: torch.cuda.device_count()])
            self.random = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss, and val/accuracy or val/r2."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log test/loss, and test/accuracy or test/r2."""
        self._evaluate("test", batch)

    def _evaluate(self, part: str, batch: Batch) -> None:
        x, y = batch
        outputs = self(x)
        quality: dict[str, Metric | Tensor] = {"r2": self.r2}
        if y.is_floating_point():
            self.r2.update(outputs, y)
        else:
            classes = outputs.shape[-1]
            accuracy = multiclass_accuracy(outputs.reshape(-1, classes), y.flatten(), classes, average="micro")
            quality = {"accuracy": accuracy}
        metrics = {f"{part}/{name}": value for name, value in ({"loss": objective(outputs, y)} | quality).items()}
        self.log_dict(metrics, prog_bar=part == "val", batch_size=len(y), sync_dist=True)


def objective(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error where the targets are floats, else the mean cross-entropy, 0-d.

    outputs: as many values as targets, or (batch, ..., classes). targets: (batch, ...) float, or int64.
    """
    if not isinstance(outputs, Tensor):
        raise TypeError(f"its output must be one tensor, not a {type(outputs).__name__}")
    if targets.is_floating_point():
        return mse_loss(outputs.reshape(targets.shape), targets)
    return cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.flatten())
