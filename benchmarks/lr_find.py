"""What Lightning's own learning rate finder suggests for a task."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.clients import SIZE, Batch, Task


class Module(LightningModule):
    """The task as a Lightning user writes it."""

    def __init__(self, task: Task, seed: int, optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.network, self.task, self.optimizer, self.lr = task.network(seed), task, optimizer, 1e-3

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.task.loss(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer, at the rate that the finder sets."""
        return self.optimizer(self.network, self.lr)


def suggestion(task: Task, seed: int, optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]) -> float:
    """Return the rate that 100 steps of growing rates suggest; 1e-3, the usual one, where they suggest none."""
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(accelerator="cpu", max_epochs=5, default_root_dir=folder, enable_model_summary=False, **off)
        loader = DataLoader(TensorDataset(*task.data()["train"]), SIZE, shuffle=True)
        finder = Tuner(trainer).lr_find(Module(task, seed, optimizer), loader)
    return float((finder and finder.suggestion()) or 1e-3)
