"""Measure the cost of an adapted step: four kinds of step on two networks, and on a large one on a CUDA device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer

from benchmarks.measure import Step, compare
from hypergradient import RateAdapter, hypergradient, lookahead, no_trace, real_step
from lightning_modules import ByteTransformer

Batch = tuple[Tensor, Tensor]
LR, META_LR = 1e-3, 1e-2
# widths of the layers, samples in a batch
MLPS = {
    "MLP 40-100-10, batch 128": ((40, 100, 10), 128),
    "MLP 784-1024-1024-10, batch 256": ((784, 1024, 1024, 10), 256),
}


def mean_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy, 0-d."""
    return cross_entropy(network(batch[0]), batch[1])


@dataclass
class Problem:
    """A network and its optimizer, a training and a validation batch, and the loss of a batch."""

    network: nn.Module
    optimizer: Optimizer
    train: Batch
    look: Batch
    loss: Callable[[nn.Module, Batch], Tensor] = mean_loss


def plain(problem: Problem) -> Step:
    """Return a plain step."""

    def step() -> None:
        problem.optimizer.zero_grad()
        problem.loss(problem.network, problem.train).backward()
        problem.optimizer.step()

    return step


def limit(problem: Problem) -> Step:
    """Return a plain step with one validation gradient, the least that a hypergradient costs."""
    plain_step, params = plain(problem), list(problem.network.parameters())

    def step() -> None:
        plain_step()
        torch.autograd.grad(problem.loss(problem.network, problem.look), params)

    return step


def plain_rule(problem: Problem, meta_lr: float = META_LR) -> Step:
    """Return a step of the plain rule; log α ← log α - meta_lr · h, the cheapest meta-optimizer."""
    log_scale = 0.0

    def step() -> None:
        nonlocal log_scale
        problem.optimizer.zero_grad()
        problem.loss(problem.network, problem.train).backward()
        scale = math.exp(log_scale)
        update = lookahead(problem.optimizer, scale)
        with no_trace(problem.network):
            h = float(hypergradient(problem.loss(problem.network, problem.look), update).sum())
        log_scale -= meta_lr * h
        real_step(update, math.exp(log_scale) / scale)

    return step


def meta(problem: Problem) -> Step:
    """Return a step with `RateAdapter` after its races: hypothetical step, averages, decay; a look every 16 steps."""
    adapter = RateAdapter(problem.optimizer, problem.network, problem.loss, [problem.look], length=None)

    def step() -> None:
        problem.optimizer.zero_grad()
        adapter.loss(problem.train).backward()
        problem.optimizer.step()

    while adapter.meta.racing:
        step()
    return step


LIMIT, RULE, META = "limit: plain + a validation gradient", "the plain rule", "`meta`"
KINDS: dict[str, Callable[[Problem], Step]] = {"plain Adam": plain, LIMIT: limit, RULE: plain_rule, META: meta}


def each_kind(build: Callable[..., Problem], suffix: str = "", **options: Any) -> dict[str, Callable[[], Step]]:
    """Return functions, by name, that build a step of each kind. options: arguments of Adam."""
    return {name + suffix: partial(lambda kind: kind(build(**options)), kind) for name, kind in KINDS.items()}


def mlp(title: str, **options: Any) -> Problem:
    """Return an MLP with ReLU and random batches, the same in each call."""
    torch.manual_seed(0)
    widths, samples = MLPS[title]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    train, look = ((torch.randn(samples, widths[0]), torch.randint(10, (samples,))) for _ in range(2))
    return Problem(network, Adam(network.parameters(), lr=LR, **options), train, look)


def steps(quick: bool) -> dict[str, Any]:
    """Measure CPU time and memory of each kind of step, plain and fused, in one process."""
    # the gradients of a fixed batch underflow, and arithmetic with subnormal numbers is slow on some processors
    torch.set_flush_denormal(True)
    found = {}
    for title in list(MLPS)[: 1 if quick else None]:
        build = partial(mlp, title)
        makes = each_kind(build) | each_kind(build, ", fused", fused=True)
        found[title] = compare(makes, *((0, 2) if quick else (45, 9)))
    torch.set_flush_denormal(False)
    return found


# tokens, width, layers, heads, samples in a batch; the first has 114 million weights
LARGE, SMALL = (256, 768, 16, 12, 16), (16, 32, 1, 2, 4)
OPTIONS: dict[str, dict[str, Any]] = {"Adam": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}


def language_model(size: tuple[int, ...], device: str, bf16: bool, **options: Any) -> Problem:
    """Return a Transformer on random bytes, its batches (batch, tokens) int64."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return cross_entropy(network(batch[0]).flatten(0, 1), batch[1].flatten())

    torch.manual_seed(0)
    tokens, width, layers, heads, samples = size
    network = ByteTransformer(tokens, width, layers, heads).to(device)
    train, look = ((x[:, :-1], x[:, 1:]) for x in torch.randint(256, (2, samples, tokens + 1), device=device))
    return Problem(network, Adam(network.parameters(), lr=LR, **options), train, look, loss)


def accelerator(quick: bool) -> dict[str, Any]:
    """Measure wall time and memory on a CUDA device; with `quick`, a small network, on the CPU if necessary."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    found = {}
    for precision in ("fp32", "bf16"):
        for name, options in list(OPTIONS.items())[: 1 if quick else None]:
            build = partial(language_model, SMALL if quick else LARGE, device, precision == "bf16")
            makes = each_kind(build, **options)
            found[f"{precision}, {name}"] = compare(makes, *((0, 2) if quick else (20, 5)), clock=clock)
    return found
