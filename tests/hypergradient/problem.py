"""A small training problem in float64, with and without a `RateAdapter`."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from hypergradient import RateAdapter, Settings
from tests.hypergradient.optimizers import SUPPORTED, Factory

Batch = tuple[Tensor, Tensor]
HELD = Settings(meta_lr=0.0, weight_decay=0.0, race=1)
# runs of few steps: each race has four
SHORT = Settings(race=4, batches=4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # no bias: Muon takes matrices alone
    return nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()


def batch(number: int, size: int = 32, dtype: torch.dtype = torch.float64) -> Batch:
    x = torch.randn(size, 5, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return x.to(dtype), x[:, :3].argmax(1)


VALIDATION = [batch(1000 + number) for number in range(3)]
SINGLE = [batch(1000 + number, dtype=torch.float32) for number in range(3)]


def loss(net: Callable[[Tensor], Tensor], data: Batch) -> Tensor:
    return cross_entropy(net(data[0]), data[1])


def groups(net: nn.Module, factory: Factory) -> Optimizer:
    """Two parameter groups; the second at a third of the first one's rate."""
    first, *rest = net.parameters()
    optimizer = factory([{"params": [first]}, {"params": rest}])
    optimizer.param_groups[1]["lr"] /= 3
    return optimizer


def backward(net: nn.Module, optimizer: Optimizer, step: int = 0) -> None:
    optimizer.zero_grad()
    loss(net, batch(step, dtype=next(net.parameters()).dtype)).backward()


def warm_up(net: nn.Module, optimizer: Optimizer, steps: int = 7) -> None:
    for step in range(1, steps + 1):
        backward(net, optimizer, step)
        optimizer.step()
    backward(net, optimizer)


def copied(net: nn.Sequential, optimizer: Optimizer) -> tuple[nn.Sequential, Optimizer]:
    """An independent copy of both, gradients included."""
    pair = copy.deepcopy((net, optimizer))
    for p, q in zip(net.parameters(), pair[0].parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    return pair


def adapted(factory: Factory = SUPPORTED["Adam"], **options: Any) -> tuple[nn.Sequential, Optimizer, RateAdapter]:
    net, given = network(), dict[str, Any](loss=loss, batches=VALIDATION, length=None, settings=SHORT) | options
    optimizer = groups(net, factory)
    return net, optimizer, RateAdapter(optimizer, net, **given)


def train(optimizer: Optimizer, adapter: RateAdapter, steps: range, factor: float = 1.0) -> None:
    """Train at losses multiplied by `factor`."""
    for step in steps:
        optimizer.zero_grad()
        (factor * adapter.loss(batch(step))).backward()
        optimizer.step()


def equal(one: Any, other: Any) -> bool:
    """Whether two structures, or the states of two networks, have the same bits."""
    if isinstance(one, nn.Module):
        one, other = one.state_dict(), other.state_dict()
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    # a number that no step has seen yet is nan
    return bool(one == other) or (one != one and other != other)
