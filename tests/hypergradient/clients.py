"""Trainers of other packages, each with the lines that adapt its learning rate: one list, shown in docs/support.md.

A client trains a `LanguageModel` on `rows()` for 40 steps with 8 rows each, and returns it and the adapter. If `adapt`
is None, it trains at the constant rate `lr`.
"""

import tempfile
from collections.abc import Callable
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hypergradient import RateAdapter

STEPS, SIZE = 40, 8
Result = tuple[nn.Module, Any]
Options = dict[str, Any]


class LanguageModel(nn.Module):
    """Predicts the next of 16 bytes; returns the loss as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm, self.head = nn.Embedding(32, 16), nn.LayerNorm(16), nn.Linear(16, 32)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.norm(self.embedding(input_ids)).tanh())
        return {"loss": cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


def rows() -> list[dict[str, Tensor]]:
    x = torch.arange(64 * 16).reshape(64, 16) * 7 % 31
    return [{"input_ids": row, "labels": row} for row in x]


def loader(size: int = SIZE) -> DataLoader[Any]:
    return DataLoader(rows(), batch_size=size)  # type: ignore[arg-type]


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**batch)["loss"]
    return found


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)


class Loop:
    """A training loop, and where one differs from the next: the optimizer, the forward pass, how a step is taken."""

    def __init__(
        self,
        adapt: Options | None,
        lr: float,
        change: Callable[[Any], Any] = lambda _: None,
        make: Callable[..., Any] = adam,
    ) -> None:
        self.model, self.data = LanguageModel(), loader()
        self.forward: Any = self.model
        self.optimizer = make(self.model, lr)
        self.backward: Callable[[Tensor], object] = lambda loss: loss.backward()
        self.step: Callable[[], object] = lambda: self.optimizer.step()
        self.launched = change(self)
        self.adapter: Any = None
        if adapt is not None:
            given: Options = {"length": None} | adapt
            self.adapter = RateAdapter(self.optimizer, self.model, loss, list(loader(16)), **given)

    def run(self, steps: int = STEPS) -> Result:
        for batch in islice(chain.from_iterable(repeat(self.data)), steps):
            self.optimizer.zero_grad()
            if self.adapter and self.forward is self.model:
                now = self.adapter.loss(batch)
            else:
                now = loss(self.forward, batch)
                if self.adapter:
                    # a wrapped network computed the loss
                    self.adapter.see(batch, now)
            self.backward(now)
            self.step()
        return self.model, self.adapter


def compiled(loop: Loop) -> None:
    loop.forward = torch.compile(loop.model, backend="aot_eager")


def scaled(loop: Loop) -> None:
    scaler = torch.amp.GradScaler("cpu")

    def step() -> None:
        scaler.step(loop.optimizer)
        scaler.update()

    loop.backward, loop.step = lambda loss: scaler.scale(loss).backward(), step


def accelerated(loop: Loop) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loop.forward, loop.optimizer, loop.data = accelerator.prepare(loop.model, loop.optimizer, loop.data)
    loop.backward = accelerator.backward
    return accelerator


def fabric(loop: Loop) -> None:
    from lightning_fabric import Fabric

    launched = Fabric(accelerator="cpu", devices=1)
    loop.forward, loop.optimizer = launched.setup(loop.model, loop.optimizer)
    loop.backward = launched.backward


def trainer(folder: Path, model: type[nn.Module] = LanguageModel, evaluated: Any = None, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    quiet: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), max_steps=STEPS, **quiet | options)
    made_in_train: Any = model
    return Trainer(model_init=made_in_train, args=arguments, train_dataset=rows(), eval_dataset=evaluated)


def huggingface(adapt: Options | None, lr: float) -> Result:
    from hypergradient.huggingface import AdaptLearningRate

    options: dict[str, Any] = {"per_device_train_batch_size": SIZE, "learning_rate": lr, "logging_strategy": "no"}
    options |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(Path(folder), evaluated=rows(), **options)
        callback = None if adapt is None else AdaptLearningRate(made, **adapt)
        made.train()
    return made.model, callback.adapter if callback else None


def ada_belief(model: nn.Module, lr: float) -> Any:
    from pytorch_optimizer import AdaBelief

    return AdaBelief(model.parameters(), lr=lr)


class Client(NamedTuple):
    """A package, how many lines its user adds, and how it is used."""

    package: str
    lines: int
    run: Callable[[Options | None, float], Result]


CLIENTS: dict[str, Client] = {
    "a plain loop": Client("torch", 2, lambda adapt, lr: Loop(adapt, lr).run()),
    "`torch.compile`": Client("torch", 2, lambda adapt, lr: Loop(adapt, lr, compiled).run()),
    "`GradScaler`": Client("torch", 2, lambda adapt, lr: Loop(adapt, lr, scaled).run()),
    "Accelerate": Client("accelerate", 2, lambda adapt, lr: Loop(adapt, lr, accelerated).run()),
    "Fabric": Client("lightning", 2, lambda adapt, lr: Loop(adapt, lr, fabric).run()),
    "Hugging Face `Trainer`": Client("transformers", 1, huggingface),
    "an optimizer of pytorch_optimizer": Client(
        "pytorch_optimizer", 2, lambda adapt, lr: Loop(adapt, lr, make=ada_belief).run()
    ),
}
