"""What one adapted step costs, beside a plain step, the limit and the peers: `python -m benchmarks steps`."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import others, peers
from benchmarks.measure import Step, cpu_seconds, peak_bytes, ratio
from benchmarks.workloads import LR, META_LR, WORKLOADS, Batch, Workload, loss
from hypergradient import OneStepAdapter, RateAdapter, hypergradient, lookahead, no_trace, real_step, scaled

Make = Callable[[Workload, torch.dtype], Step]
Loss = Callable[[nn.Module, Batch], Tensor]


def plain_step(network: nn.Module, optimizer: Optimizer, train: Batch, _look: Batch, loss: Loss = loss) -> Step:
    """Return a plain step."""

    def step() -> None:
        optimizer.zero_grad()
        loss(network, train).backward()
        optimizer.step()

    return step


def adapted(
    network: nn.Module, optimizer: Optimizer, train: Batch, look: Batch, every: int = 1, loss: Loss = loss
) -> Step:
    """Return the adapted step of `OneStepModule`, in every k-th step; a plain one between."""
    log_scale, count = 0.0, 0

    def step() -> float | None:
        nonlocal log_scale, count
        count += 1
        loss(network, train).backward()
        scale = math.exp(log_scale)
        if (count - 1) % every:
            with scaled(optimizer, scale):
                optimizer.step()
            optimizer.zero_grad()
            return None
        update = lookahead(optimizer, scale)
        optimizer.zero_grad()
        with no_trace(network):
            h = float(hypergradient(loss(network, look), update).sum())
        log_scale -= META_LR * h
        real_step(update, math.exp(log_scale) / scale)
        return h

    return step


def whole_rule(network: nn.Module, optimizer: Optimizer, train: Batch, look: Batch, loss: Loss = loss) -> Step:
    """Return a step under `RateAdapter`: hypothetical step, averaged weights, adapted decay; a look each 16 steps."""
    adapter = RateAdapter(optimizer, network, loss, [look])

    def step() -> None:
        optimizer.zero_grad()
        adapter.loss(train).backward()
        optimizer.step()

    return step


def whole(workload: Workload, dtype: torch.dtype) -> Step:
    """A step of the whole rule over Adam."""
    network, train, look = workload.build(dtype)
    return whole_rule(network, torch.optim.Adam(network.parameters(), lr=LR), train, look)


def one_step_adapter(workload: Workload, dtype: torch.dtype) -> Step:
    """A plain step of Adam with a `OneStepAdapter`: its meta-optimizer, bounds and error estimates included."""
    network, train, look = workload.build(dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    OneStepAdapter(optimizer, network, lambda: loss(network, look))
    return plain_step(network, optimizer, train, look)


def plain(workload: Workload, dtype: torch.dtype, **options: Any) -> Step:
    """A step of torch.optim.Adam."""
    network, train, look = workload.build(dtype)
    return plain_step(network, torch.optim.Adam(network.parameters(), lr=LR, **options), train, look)


def limit(workload: Workload, dtype: torch.dtype, **options: Any) -> Step:
    """The same, and one validation gradient: less no exact hypergradient can do."""
    network, train, look = workload.build(dtype)
    optimizer, params = torch.optim.Adam(network.parameters(), lr=LR, **options), list(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(network, train).backward()
        optimizer.step()
        torch.autograd.grad(loss(network, look), params)

    return step


def arithmetic(workload: Workload, dtype: torch.dtype) -> Step:
    """The arithmetic of `ours` alone: one parameter group, no check, neither modes nor random stream kept."""
    network, train, look = workload.build(dtype)
    params: list[Tensor] = list(network.parameters())
    optimizer, log_scale = torch.optim.Adam(params, lr=LR), 0.0

    def step() -> None:
        nonlocal log_scale
        optimizer.zero_grad()
        loss(network, train).backward()
        with torch.no_grad():
            update = list(torch._foreach_neg(params))
        optimizer.param_groups[0]["lr"] = LR * math.exp(log_scale)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_add_(update, params)
        gradients = torch.autograd.grad(loss(network, look), params)
        move = -META_LR * sum(float(torch.vdot(g.ravel(), d.ravel())) for g, d in zip(gradients, update, strict=True))
        log_scale += move
        with torch.no_grad():
            torch._foreach_add_(params, update, alpha=math.expm1(move))

    return step


def ours(workload: Workload, dtype: torch.dtype, every: int = 1, name: str = "Adam", **options: Any) -> Step:
    """An adapted step over an optimizer of torch."""
    network, train, look = workload.build(dtype)
    optimizer = getattr(torch.optim, name)(network.parameters(), lr=LR, **options)
    return adapted(network, optimizer, train, look, every)


LIMIT = "limit: plain + a validation gradient"
CANDIDATES: dict[str, Make] = {
    "plain Adam": plain,
    "plain Adam, fused": partial(plain, fused=True),
    LIMIT: limit,
    "limit, fused": partial(limit, fused=True),
    "the arithmetic of ours alone": arithmetic,
    "ours": ours,
    "ours, fused": partial(ours, fused=True),
    "ours, every 4th step": partial(ours, every=4),
    "ours, every 16th step": partial(ours, every=16),
    "ours, OneStepAdapter": one_step_adapter,
    "ours, RateAdapter: the whole rule": whole,
    **peers.EXACT,
    **others.OTHERS,
}
BASE = "plain Adam"


def check() -> dict[str, float]:
    """Return the greatest relative difference of each peer's hypergradient from ours, over five steps in float64.

    Raises:
        AssertionError: one is above 1e-8, so that something else would be timed.
    """
    torch.set_default_dtype(torch.float64)  # else some count their steps in float32
    workload, found = WORKLOADS["MLP 40-100-10, batch 128"], {}
    for name, make in peers.EXACT.items():
        options: dict[str, Any] = {"name": "SGD"} if name.startswith("higher") else {}  # its Adam puts eps elsewhere
        steps = make(workload, torch.float64, **options), ours(workload, torch.float64, **options)
        pairs = [(float(theirs()), float(our())) for theirs, our in [steps] * 5]
        found[name] = max(abs(theirs / our - 1) for theirs, our in pairs)
    torch.set_default_dtype(torch.float32)
    if max(found.values()) > 1e-8:
        raise AssertionError(f"Not the same hypergradient: {found}")
    return found


def run(budget: float = 45.0) -> dict[str, Any]:
    """Measure time and memory of every candidate on every workload, as ratios to the plain step.

    budget: seconds a workload.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(
        True
    )  # as losses go to 0 gradients underflow: on Intel one peer then takes 8 times as long
    warnings.filterwarnings("ignore", module="higher|torchopt|GeN")
    results: dict[str, Any] = {"agreement": check()}
    for title, workload in WORKLOADS.items():
        steps = {name: _made(f"{name}, {title}", make, workload) for name, make in CANDIDATES.items()}
        able = {name: step for name, step in steps.items() if step}
        seconds = cpu_seconds(able, budget)
        base = peak_bytes(partial(plain, workload, torch.float32))
        results[title] = {
            name: {
                "time": ratio(seconds, name, BASE),
                "memory": peak_bytes(partial(CANDIDATES[name], workload, torch.float32)) / base,
                "milliseconds": 1000 * min(seconds[name]),
            }
            for name in able
        }
    return results


def _made(name: str, make: Make, workload: Workload) -> Step | None:
    """Return the step; None, and say why, where the peer cannot do it."""
    try:
        step = make(workload, torch.float32)
        step()
    except Exception as error:  # whatever a package from elsewhere raises on a network that it does not take
        print(f"{name}: left out, {type(error).__name__}: {error}")
        return None
    return step
