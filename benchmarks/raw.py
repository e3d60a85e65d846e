"""The runs of `train.py --optimizer adam` and `meta` as plain PyTorch scripts, to the same numbers: the limit of a run.

No Lightning, no MLflow, no checkpoint; what stays is the arithmetic, and the record of rate and loss of every step.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.mnist1d import PUBLISHED, generate

Batch = tuple[Tensor, Tensor]
BATCH, LOOK, EVERY, PER_EPOCH = 128, 128, 16, 32


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


def meta(epochs: int, seed: int = 0, kappa: float = 2.0, c: float = 0.03, decay: float = 0.005) -> Record:
    """Train with Adam at a rate that a hypothetical run beside it moves, and averaged weights."""
    network, data = start(seed)
    twin, averaged = copy.deepcopy(network), copy.deepcopy(network)
    params, others, average, record = tensors(network), tensors(twin), tensors(averaged), Record()
    difference = [torch.zeros_like(p) for p in params]
    optimizer, other = torch.optim.Adam(params, lr=1.0), torch.optim.Adam(others, lr=1.0)
    step = moved = moves = looks = 0
    alpha, weight_decay, tau, length = 0.0, 0.0, 1, epochs * PER_EPOCH
    sums, squares = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for epoch in range(epochs):
        for (x, y), look in pairs(data, seed, epoch):
            loss = backward(network, params, x, y)
            if step == 0:
                unit = _unit(params)
                alpha, weight_decay = c * unit, decay / unit
            moves_now = step and step - moved >= max(1.0, 0.1 * step)
            if moves_now or (step and step % EVERY == 0):
                gradient = torch.autograd.grad(cross_entropy(averaged(look[0]), look[1]), average)
                rate = sum(torch.sum(g * z) for g, z in zip(gradient, difference, strict=True))
                shrunk = -sum(torch.sum(g * p.detach()) for g, p in zip(gradient, params, strict=True))
                sums += torch.tensor([float(rate), alpha * weight_decay * float(shrunk)], dtype=torch.float64)
                looks += 1
            if moves_now:
                moves, h = moves + 1, sums / looks
                squares += (h**2 - squares) / min(moves, 10)
                z, z_decay = (h / squares.sqrt()).clamp(-2, 2).tolist()
                alpha *= math.exp(-kappa * z * math.log((step + 20) / (tau + 20)))
                weight_decay *= math.exp(-z_decay * (step - moved) / max(step, length / 4))
                moved = tau = step
                sums, looks = torch.zeros(2, dtype=torch.float64), 0
            _step(optimizer, params, alpha, alpha * weight_decay)
            part = min(len(y), max(16, int(0.375 * len(y))))
            backward(twin, others, x[:part], y[:part])
            _step(other, others, 2 * alpha, alpha * weight_decay)
            step += 1
            with torch.no_grad():
                torch._foreach_lerp_([*others, *_moments(other)], [*params, *_moments(optimizer)], 0.1)
                weight = 1 / max(1.0, 0.1 * step)
                torch._foreach_lerp_([*average, *difference], [*params, *torch._foreach_sub(others, params)], weight)
            record.rates.append(alpha)
            record.losses.append(loss)
        record.validation.append(evaluate(averaged, data["val"]))
    record.test_loss = evaluate(averaged, data["test"])[0]
    return record


def backward(network: nn.Module, params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Give the parameters the gradients of a batch; return its loss."""
    loss = cross_entropy(network(x), y)
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    return loss.detach()


def _step(optimizer: torch.optim.Optimizer, params: list[Tensor], rate: float, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_mul_(params, 1 - decay)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def _unit(params: list[Tensor]) -> float:
    """Return rms(θ) / rms(Δ(1)) of Adam, whose hundredth equal step is g / (|g| + ε)."""
    pairs = [(p.detach(), p.grad / (p.grad.abs() + 1e-8)) for p in params if p.grad is not None and p.dim() > 1]
    size = sum(p.numel() for p, _ in pairs)
    step = math.sqrt(sum(float((d**2).sum()) for _, d in pairs) / size)
    return math.exp(sum(p.numel() * 0.5 * math.log(float((p**2).mean())) for p, _ in pairs) / size) / step
