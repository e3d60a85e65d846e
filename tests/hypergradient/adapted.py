"""A network under a `RateAdapter`, for its tests."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from hypergradient import RateAdapter, Settings
from tests.hypergradient.optimizers import Factory
from tests.hypergradient.problem import network

Batch = tuple[Tensor, Tensor]
HELD = Settings(meta_lr=0.0, weight_decay=0.0)


def batch(number: int, size: int = 32) -> Batch:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(size, 5, generator=draw, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


VALIDATION = [batch(1000 + number) for number in range(3)]


def loss(net: nn.Module, data: Batch) -> Tensor:
    return cross_entropy(net(data[0]), data[1])


def built(factory: Factory, **options: Any) -> tuple[nn.Module, Optimizer, RateAdapter]:
    net = network()
    optimizer = factory([{"params": [p]} for p in net.parameters()])
    optimizer.param_groups[1]["lr"] /= 3
    return net, optimizer, RateAdapter(optimizer, net, loss, VALIDATION, **options)


def train(optimizer: Optimizer, adapter: RateAdapter, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        adapter.loss(batch(step)).backward()
        optimizer.step()


def equal(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def warm_up(optimizer: Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))  # from 0
