"""Training loops that others wrote, each with the lines that adapt its rate: one list, shown in docs/lightning.md.

A client trains a `LanguageModel` on `rows()` for 40 steps of 8 rows, and returns it and the adapter. With `adapt` None
it trains as its users do, at the rate `lr`.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hypergradient import RateAdapter

STEPS, SIZE = 40, 8
Result = tuple[nn.Module, Any]
Options = dict[str, Any]
Make = Callable[[nn.Module, float], torch.optim.Optimizer]


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


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**batch)["loss"]
    return found


def endless() -> Iterator[Any]:
    while True:
        yield from DataLoader(rows(), batch_size=SIZE)  # type: ignore[arg-type]


def validation() -> list[Any]:
    return list(DataLoader(rows(), batch_size=16))  # type: ignore[arg-type]


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)


def plain_loop(adapt: Options | None, lr: float, make: Make = adam) -> Result:
    model, data = LanguageModel(), endless()
    optimizer = make(model, lr)
    adapter = None if adapt is None else RateAdapter(optimizer, model, loss, validation(), **adapt)
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = next(data)
        (adapter.loss(batch) if adapter else loss(model, batch)).backward()
        optimizer.step()
    return model, adapter


def compiled(adapt: Options | None, lr: float) -> Result:
    model, data = LanguageModel(), endless()
    optimizer = adam(model, lr)
    adapter = None if adapt is None else RateAdapter(optimizer, model, loss, validation(), **adapt)
    forward = torch.compile(model, backend="aot_eager")
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = next(data)
        now: Any = loss(forward, batch)  # type: ignore[arg-type]
        if adapter:
            adapter.see(batch, now)
        now.backward()
        optimizer.step()
    return model, adapter


def grad_scaler(adapt: Options | None, lr: float) -> Result:
    model, data, scaler = LanguageModel(), endless(), torch.amp.GradScaler("cpu")
    optimizer = adam(model, lr)
    adapter = None if adapt is None else RateAdapter(optimizer, model, loss, validation(), **adapt)
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = next(data)
        scaler.scale(adapter.loss(batch) if adapter else loss(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    return model, adapter


def accelerate(adapt: Options | None, lr: float) -> Result:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = LanguageModel()
    prepared, optimizer, data = accelerator.prepare(model, adam(model, lr), DataLoader(rows(), batch_size=SIZE))  # type: ignore[arg-type]
    adapter = None if adapt is None else RateAdapter(optimizer, model, loss, validation(), **adapt)
    for step in range(STEPS):
        if step % 8 == 0:
            batches = iter(data)
        optimizer.zero_grad()
        batch = next(batches)
        accelerator.backward(adapter.loss(batch) if adapter else loss(prepared, batch))
        optimizer.step()
    return model, adapter


def fabric(adapt: Options | None, lr: float) -> Result:
    from lightning_fabric import Fabric

    launched = Fabric(accelerator="cpu", devices=1)
    model = LanguageModel()
    prepared, optimizer = launched.setup(model, adam(model, lr))
    adapter = None if adapt is None else RateAdapter(optimizer, model, loss, validation(), **adapt)
    data = endless()
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = next(data)
        now = loss(prepared, batch)
        if adapter:
            adapter.see(batch, now)
        launched.backward(now)
        optimizer.step()
    return model, adapter


def huggingface(adapt: Options | None, lr: float) -> Result:
    from transformers import Trainer, TrainingArguments

    from hypergradient.huggingface import AdaptLearningRate

    options: dict[str, Any] = {"max_steps": STEPS, "per_device_train_batch_size": SIZE, "learning_rate": lr}
    quiet: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            save_strategy="no",
            **options,
            **quiet,
        )
        trainer = Trainer(LanguageModel(), arguments, train_dataset=rows(), eval_dataset=rows())
        callback = None if adapt is None else AdaptLearningRate(trainer, **adapt)
        trainer.train()
    model: Any = trainer.model
    return model, callback.adapter if callback else None


def pytorch_optimizer(adapt: Options | None, lr: float) -> Result:
    from pytorch_optimizer import AdaBelief

    return plain_loop(adapt, lr, lambda model, lr: AdaBelief(model.parameters(), lr=lr))


@dataclass(frozen=True)
class Client:
    """A package, how many lines its user adds, and how it is used."""

    package: str
    lines: int
    run: Callable[[Options | None, float], Result]

    @property
    def version(self) -> str:
        return version(self.package)


CLIENTS: dict[str, Client] = {
    "a plain loop": Client("torch", 2, plain_loop),
    "`torch.compile`": Client("torch", 2, compiled),
    "`GradScaler`": Client("torch", 2, grad_scaler),
    "Accelerate": Client("accelerate", 2, accelerate),
    "Fabric": Client("lightning", 2, fabric),
    "Hugging Face `Trainer`": Client("transformers", 1, huggingface),
    "an optimizer of pytorch_optimizer": Client("pytorch_optimizer", 2, pytorch_optimizer),
}
