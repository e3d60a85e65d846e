"""A small problem in float64, and the meta and the plain step on it."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from hypergradient import hypergradient, lookahead, no_trace, real_step
from tests.hypergradient.optimizers import Factory

TRAIN, VAL = 0, 1


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)  # no bias: Muon takes matrices alone
    return nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()


def loss(net: nn.Module, part: int, step: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(100 * step + part)
    x = torch.randn(32, 5, generator=draw, dtype=torch.float64).to(next(net.parameters()))
    return cross_entropy(net(x), x[:, :3].argmax(1))


def groups(net: nn.Sequential, factory: Factory) -> Optimizer:
    """Two parameter groups; the second at a third of the first one's rate."""
    optimizer = factory([{"params": [p]} for p in net.parameters()])
    optimizer.param_groups[1]["lr"] /= 3
    return optimizer


def backward(net: nn.Module, optimizer: Optimizer, step: int = 0) -> None:
    optimizer.zero_grad()
    loss(net, TRAIN, step).backward()


def warm_up(net: nn.Module, optimizer: Optimizer, steps: int = 7) -> None:
    for step in range(1, steps + 1):
        backward(net, optimizer, step)
        optimizer.step()
    backward(net, optimizer)


def meta_step(net: nn.Module, optimizer: Optimizer, log_scale: Tensor, meta: Optimizer, step: int) -> Tensor:
    backward(net, optimizer, step)
    scale = log_scale.detach().exp()
    update = lookahead(optimizer, scale)
    with no_trace(net):
        h = hypergradient(loss(net, VAL, step), update)
    log_scale.grad = (h if log_scale.dim() else h.sum()).to(log_scale)
    meta.step()
    real_step(update, log_scale.detach().exp() / scale)
    return h


def twin(net: nn.Sequential, optimizer: Optimizer) -> tuple[nn.Sequential, Optimizer]:
    """An independent copy of both, gradients included."""
    pair = copy.deepcopy((net, optimizer))
    for p, q in zip(net.parameters(), pair[0].parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    return pair
