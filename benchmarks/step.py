"""What an adapted step costs: four kinds of step over Adam, plain and fused, on two networks.

plain Adam      a step of `torch.optim.Adam`
limit           the same, and one validation gradient, forward and backward: the least that a hypergradient can cost
the plain rule  lookahead, hypergradient, real step
`meta`          `RateAdapter`: the whole rule
"""

import math
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

Batch = tuple[Tensor, Tensor]
LR, META_LR = 1e-3, 1e-2
# widths of the layers, samples in a batch
NETWORKS = {
    "MLP 40-100-10, batch 128": ((40, 100, 10), 128),
    "MLP 784-1024-1024-10, batch 256": ((784, 1024, 1024, 10), 256),
}


def mean_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy, 0-d."""
    return cross_entropy(network(batch[0]), batch[1])


@dataclass
class Problem:
    """What a step needs: a network and its optimizer, a training and a validation batch, the loss of such a batch."""

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
    """Return a plain step that also computes one validation gradient."""
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
    """Return a step under `RateAdapter`: hypothetical step, averaged weights, adapted decay; a look every 16 steps."""
    adapter = RateAdapter(problem.optimizer, problem.network, problem.loss, [problem.look])

    def step() -> None:
        problem.optimizer.zero_grad()
        adapter.loss(problem.train).backward()
        problem.optimizer.step()

    return step


BASE, LIMIT, RULE, META = "plain Adam", "limit: plain + a validation gradient", "the plain rule", "`meta`"
KINDS: dict[str, Callable[[Problem], Step]] = {BASE: plain, LIMIT: limit, RULE: plain_rule, META: meta}


def build(title: str, **options: Any) -> Problem:
    """Return the problem of that title, the same at each call; options: of Adam."""
    torch.manual_seed(0)
    widths, samples = NETWORKS[title]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    train, look = ((torch.randn(samples, widths[0]), torch.randint(10, (samples,))) for _ in range(2))
    return Problem(network, Adam(network.parameters(), lr=LR, **options), train, look)


def steps(quick: bool) -> dict[str, Any]:
    """Measure every kind of step, plain and fused, in one process."""
    # flush subnormals: the gradients of a fixed batch underflow, and such arithmetic is slow on some processors
    torch.set_flush_denormal(True)
    found = {}
    for title in list(NETWORKS)[: 1 if quick else None]:
        plain = {name: partial(_make, step, title) for name, step in KINDS.items()}
        fused = {f"{name}, fused": partial(_make, step, title, fused=True) for name, step in KINDS.items()}
        found[title] = compare(plain | fused, *((0, 2) if quick else (45, 9)))
    torch.set_flush_denormal(False)
    return found


def _make(step: Callable[[Problem], Step], title: str, **options: Any) -> Step:
    return step(build(title, **options))
