"""Helpers that fit the modules in tests."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from data import MNIST1DDataModule


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    usual = quiet | {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, "default_root_dir": folder}
    return Trainer(**usual | options)


def fit(
    model: LightningModule, folder: Path, ckpt_path: str | Path | None = None, batch_size: int = 500, **options: Any
) -> Trainer:
    """Fit on mnist1d, by default for two epochs of eight steps, each with a look at 300 samples at most."""
    seed_everything(3)
    fitting = trainer(folder, **options)
    fitting.fit(model, MNIST1DDataModule(batch_size=batch_size, val_batch_size=300), ckpt_path=ckpt_path)
    return fitting


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 10))


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have the same bits."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


class Rates(Callback):
    """Keeps the rate of each step, as `training_step` returns it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        if "lr" in outputs:
            self.seen.append(float(outputs["lr"]))
