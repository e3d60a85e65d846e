"""Cases in which the Lightning callback is tested, shown in docs/support.md, and a function that fits a case."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from data import TensorLoader

Configure = Callable[[nn.Module], Any]
Of = Callable[[nn.Module, Any], Tensor]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
WARNINGS = [
    # the samples are in memory
    pytest.mark.filterwarnings("ignore:The '(train|val|test)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # of the first step, which a scaler skips
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:You are using a CUDA device"),
    # a resumed run saves nothing, or elsewhere
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def classified(network: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(network(batch[0]), batch[1])


class Plain(LightningModule):
    """An ordinary module, as its user wrote it."""

    def __init__(self, network: nn.Module, configure: Configure, of: Of = classified) -> None:
        super().__init__()
        self.network, self.configure, self.of = network, configure, of

    def loss(self, batch: Any) -> Tensor:
        return self.of(self.network, batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self.configure(self.network)


def loss(module: Plain, batch: Any) -> Tensor:
    return module.loss(batch)


class SeveralLosses(Plain):
    """Trained on the sum of two losses, adapted by one of them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        small: Tensor = self.network(batch[0]).square().mean()
        return self.loss(batch) + 0.1 * small


def mlp(*extra: nn.Module, outputs: int = 3, frozen: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Linear(6, 8).requires_grad_(not frozen)
    return nn.Sequential(first, *extra, nn.ReLU(), nn.Linear(8, outputs))


def tied() -> nn.Sequential:
    shared = nn.Linear(6, 6)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 3))


def adam(network: nn.Module) -> Optimizer:
    return torch.optim.Adam(network.parameters(), lr=0.01)


def sgd(network: nn.Module) -> Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)


def two_groups(network: nn.Module) -> Optimizer:
    first, *rest = list(network.parameters())
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.001}, {"params": rest}]
    return torch.optim.AdamW(groups, lr=0.01)


def warm_up(network: nn.Module) -> dict[str, Any]:
    optimizer = adam(network)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def samples(kind: str) -> Any:
    """Six batches of eight samples."""
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(len(kind)))
    y = x[:, :3].argmax(1)
    if kind == "dictionaries":
        rows: Any = [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]
        return DataLoader(rows, batch_size=8)
    tensors = {"values": (x, x.sum(1)), "inputs": (x,), "classes": (x, y)}[kind]
    return TensorLoader(*tensors, batch_size=8)


@dataclass(frozen=True)
class Case:
    """A module, its optimizer, its data, and options of the Trainer."""

    network: Callable[[], nn.Module] = mlp
    configure: Configure = adam
    trainer: Callable[[], dict[str, Any]] = dict
    module: type[Plain] = Plain
    data: str = "classes"
    of: Of = classified

    def build(self) -> Plain:
        return self.module(self.network(), self.configure, self.of)


def scaler() -> dict[str, Any]:
    """A scale so large that the first steps overflow and are skipped."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**20))]}


CASES: dict[str, Case] = {
    "SGD with momentum": Case(configure=sgd),
    "Adam": Case(),
    "AdamW": Case(configure=lambda network: torch.optim.AdamW(network.parameters(), lr=0.01)),
    "RMSprop": Case(configure=lambda network: torch.optim.RMSprop(network.parameters(), lr=0.01)),
    "BatchNorm": Case(network=lambda: mlp(nn.BatchNorm1d(8))),
    "dropout": Case(network=lambda: mlp(nn.Dropout(0.5))),
    "parameter groups with different rates": Case(configure=two_groups),
    "frozen parameters": Case(network=lambda: mlp(frozen=True)),
    "tied parameters": Case(network=tied),
    "gradient clipping by norm": Case(trainer=lambda: {"gradient_clip_val": 0.1}),
    "gradient clipping by value": Case(trainer=lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "accumulation over batches": Case(trainer=lambda: {"accumulate_grad_batches": 3}),
    "precision bf16-mixed": Case(trainer=lambda: {"precision": "bf16-mixed"}),
    "precision 16-mixed, GradScaler": Case(trainer=scaler),
    "precision 64-true": Case(trainer=lambda: {"precision": "64-true"}),
    "deterministic=True": Case(trainer=lambda: {"deterministic": True}),
    "torch.compile": Case(network=lambda: torch.compile(mlp(), backend="aot_eager")),  # type: ignore[arg-type, return-value]
    "LR warm-up": Case(configure=warm_up),
    "regression": Case(
        lambda: mlp(outputs=1), data="values", of=lambda net, batch: mse_loss(net(batch[0]).squeeze(1), batch[1])
    ),
    "autoencoder": Case(lambda: mlp(outputs=6), data="inputs", of=lambda net, batch: mse_loss(net(batch[0]), batch[0])),
    "batches that are dictionaries": Case(
        data="dictionaries", of=lambda net, batch: cross_entropy(net(batch["inputs"]), batch["labels"])
    ),
    "several losses": Case(module=SeveralLosses),
}


def fit(case: Case, folder: Path, *callbacks: Callback, val: Any = None, **options: Any) -> tuple[Plain, Trainer]:
    """Fit a case for six epochs of six batches; return the module and its Trainer."""
    seed_everything(3)
    path = options.pop("ckpt_path", None)
    given = QUIET | {"accelerator": "cpu", "max_epochs": 6, "default_root_dir": folder} | case.trainer() | options
    trainer, module = Trainer(**given | {"callbacks": [*given.get("callbacks", []), *callbacks]}), case.build()
    trainer.fit(module, samples(case.data), val or samples(case.data), ckpt_path=path)
    return module, trainer


class SavesBefore(Callback):
    """Saves in the sanity check, before training starts, as Lightning does where it is interrupted there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_sanity_check_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.path)
