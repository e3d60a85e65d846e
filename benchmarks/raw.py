"""The runs of `train.py --optimizer adam` and `meta` as plain PyTorch scripts, to the same numbers: the limit of a run.

No Lightning, no MLflow, no checkpoint; what stays is the arithmetic, and the record of rate and loss of every step.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.mnist1d import PUBLISHED, generate
from hypergradient import search_rate, starting_rate

Batch = tuple[Tensor, Tensor]
BATCH, LOOK, EVERY, PER_EPOCH = 128, 128, 4096, 32


@dataclass
class Record:
    """What a run leaves: rate and loss of every step, validation loss and accuracy of every epoch, test loss."""

    rates: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    validation: list[tuple[float, float]] = field(default_factory=list)
    test_loss: float = math.nan


def batches(data: Batch, size: int, samples: int, seed: int, epoch: int) -> Iterator[Batch]:
    """Yield an epoch's batches, in the order that the project's loader has."""
    order_seed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64).item()
    draw, (x, y) = torch.Generator().manual_seed(order_seed), data
    orders = [torch.randperm(len(x), generator=draw) for _ in range(-(-samples // len(x)))]
    for rows in torch.cat(orders)[:samples].split(size):
        yield x[rows], y[rows]


def pairs(data: dict[str, Batch], seed: int, epoch: int) -> Iterator[tuple[Batch, Batch]]:
    """Yield an epoch's pairs of a training and a validation batch."""
    train = batches(data["train"], BATCH, len(data["train"][0]), seed, epoch)
    return zip(train, batches(data["val"], LOOK, PER_EPOCH * LOOK, seed + 1, epoch), strict=True)


def start(seed: int) -> tuple[nn.Module, dict[str, Batch]]:
    """Return the network and the data."""
    arrays, held_out = generate(PUBLISHED), generate(PUBLISHED + 1)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 10))
    return network, {
        "train": (arrays["x"], arrays["y"]),
        "val": (held_out["x_test"], held_out["y_test"]),
        "test": (arrays["x_test"], arrays["y_test"]),
    }


def tensors(network: nn.Module) -> list[Tensor]:
    """Return the parameters."""
    return list(network.parameters())


@torch.no_grad()
def evaluate(network: nn.Module, batch: Batch) -> tuple[float, float]:
    """Return loss and accuracy."""
    logits = network(batch[0])
    return float(cross_entropy(logits, batch[1])), float((logits.argmax(1) == batch[1]).float().mean())


def adam(epochs: int, lr: float, seed: int = 0, cosine: bool = False) -> Record:
    """Train with Adam, the rate annealed or not."""
    network, data = start(seed)
    optimizer, record = torch.optim.Adam(network.parameters(), lr=lr), Record()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * PER_EPOCH) if cosine else None
    for epoch in range(epochs):
        for x, y in batches(data["train"], BATCH, len(data["train"][0]), seed, epoch):
            optimizer.zero_grad()
            loss = cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            record.rates.append(optimizer.param_groups[0]["lr"])
            record.losses.append(loss.detach())
            if schedule:
                schedule.step()
        record.validation.append(evaluate(network, data["val"]))
    record.test_loss = evaluate(network, data["test"])[0]
    return record


def onestep(epochs: int, lr: float = 1e-3, meta_lr: float = 0.05, seed: int = 0) -> Record:
    """Train with Adam at a rate that follows the hypergradient step by step."""
    network, data = start(seed)
    params, record = tensors(network), Record()
    log_scale = torch.zeros(())
    optimizer, meta_optimizer = torch.optim.Adam(params, lr=lr), torch.optim.Adam([log_scale], lr=meta_lr)
    for epoch in range(epochs):
        for (x, y), look in pairs(data, seed, epoch):
            optimizer.zero_grad()
            loss = cross_entropy(network(x), y)
            loss.backward()
            before, scale = [p.detach().clone() for p in params], log_scale.exp()
            optimizer.param_groups[0]["lr"] = lr * float(scale)
            optimizer.step()
            gradient = torch.autograd.grad(cross_entropy(network(look[0]), look[1]), params)
            with torch.no_grad():
                update = torch._foreach_sub(params, before)
                log_scale.grad = sum(torch.sum(g * u) for g, u in zip(gradient, update, strict=True))  # type: ignore[assignment]
                meta_optimizer.step()
                torch._foreach_add_(params, update, alpha=float(log_scale.exp() / scale) - 1)
            record.rates.append(lr * float(log_scale.exp()))
            record.losses.append(loss.detach())
        record.validation.append(evaluate(network, data["val"]))
    record.test_loss = evaluate(network, data["test"])[0]
    return record


def meta(
    epochs: int, seed: int = 0, stretch: float = 0.08, time_constant: float = 12.0, meta_lr: float = 0.6
) -> Record:
    """Find the rate, then train with Adam, an adapted decay and averaged weights."""
    network, data = start(seed)
    params, record = tensors(network), Record()
    optimizer = torch.optim.Adam(params, lr=1e-3)

    def shrunk_step(x: Tensor, y: Tensor, eta: float) -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(network(x), y)
        loss.backward()
        with torch.no_grad():
            torch._foreach_mul_(params, 1 - eta)
        optimizer.step()
        return loss.detach()

    eta = 1 / (time_constant * PER_EPOCH)

    def first(times: int) -> list[tuple[Batch, Batch]]:
        length = times * math.ceil(stretch * epochs * PER_EPOCH)
        return list(islice(chain.from_iterable(pairs(data, seed, epoch) for epoch in count()), length))

    rate = _search(network, optimizer, first, lambda batch: shrunk_step(batch[0], batch[1], eta))
    optimizer.param_groups[0]["lr"] = rate
    average = [p.detach().clone() for p in params]
    averaged = copy.deepcopy(network)
    for p, a in zip(averaged.parameters(), average, strict=True):
        p.data = a
    log_scale = square = k = torch.zeros(())
    step = 0
    for epoch in range(epochs):
        for (x, y), look in pairs(data, seed, epoch):
            now = float(log_scale.exp()) * eta
            record.losses.append(shrunk_step(x, y, now))
            record.rates.append(rate)
            step += 1
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1 / max(1.0, 0.1 * step))
            if (step * len(x)) % EVERY < len(x):
                k = k + 1
                gradient = torch.autograd.grad(cross_entropy(averaged(look[0]), look[1]), list(averaged.parameters()))
                h = -now * sum(torch.sum(g * p.detach()) for g, p in zip(gradient, params, strict=True))
                square = square + 0.1 * (h**2 - square)
                log_scale = log_scale - meta_lr / k.sqrt() * h / (square / (1 - 0.9**k)).sqrt()
        record.validation.append(evaluate(averaged, data["val"]))
    record.test_loss = evaluate(averaged, data["test"])[0]
    return record


def _search(
    network: nn.Module, optimizer: torch.optim.Optimizer, first: Callable[[int], list[Any]], step: Any
) -> float:
    judges, params = [look for _, look in first(1)[:8]], tensors(network)
    look = judges[0]
    bracket = starting_rate(lambda: cross_entropy(network(look[0]), look[1]), optimizer) * math.sqrt(BATCH / 64)
    state, fresh = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())

    def judged() -> float:
        with torch.no_grad():
            return float(sum(cross_entropy(network(x), y) for x, y in judges) / 8)

    def stretch(rate: float, times: int) -> float:
        network.load_state_dict(state)
        optimizer.load_state_dict(copy.deepcopy(fresh))
        optimizer.param_groups[0]["lr"] = rate
        average = [p.detach().clone() for p in params]
        for number, (batch, _) in enumerate(first(times), 1):
            if not step(batch).isfinite():
                return math.inf
            torch._foreach_lerp_(average, [p.detach() for p in params], 1 / max(1, number / 2))
        with torch.no_grad():
            torch._foreach_copy_(params, average)
        return judged()

    found = search_rate(stretch, bracket, untrained=judged())
    network.load_state_dict(state)
    optimizer.load_state_dict(fresh)
    return found
