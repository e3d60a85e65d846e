"""One adapted step as each exact peer does it: Adam, the rate by the gradient of the validation loss at the lookahead.

Each maker returns a step, and the step returns h = dL_val/d log α: `benchmarks/step.py` first checks that all agree.
A peer's package is imported in its maker: who has not installed it can run the rest.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad

from benchmarks.workloads import LR, META_LR, Workload, loss

Step = Callable[[], Any]
EPS, BETAS = 1e-8, (0.9, 0.999)


def log_lr(dtype: torch.dtype) -> Tensor:
    """Return log α to begin with, 0-d."""
    return torch.tensor(LR, dtype=torch.float64).log().to(dtype).requires_grad_()


@torch.no_grad()
def meta_step(rate: Tensor, h: Tensor) -> Tensor:
    """Move log α down its gradient and return α_new/α."""
    rate -= META_LR * h
    return (-META_LR * h).exp()


def torch_differentiable(workload: Workload, dtype: torch.dtype) -> Step:
    """torch.optim.Adam(differentiable=True) on copies, its rate a tensor."""
    network, train, look = workload.build(dtype)
    names, params = zip(*network.named_parameters(), strict=True)
    rate = log_lr(dtype)
    states: list[dict[str, Tensor]] = [{} for _ in params]
    optimizer = torch.optim.Adam(params, lr=LR, differentiable=True, foreach=False)

    def step() -> Tensor:
        copies = [p.detach().clone() for p in params]
        for copy, gradient in zip(copies, torch.autograd.grad(loss(network, train), params), strict=True):
            copy.grad = gradient
        optimizer.param_groups[0].update(params=copies, lr=rate.exp())
        optimizer.state.clear()
        optimizer.state.update({copy: state for copy, state in zip(copies, states, strict=True) if state})
        optimizer.step()
        copied = partial(functional_call, network, dict(zip(names, copies, strict=True)))
        (h,) = torch.autograd.grad(loss(copied, look), rate)
        ratio = meta_step(rate, h)
        with torch.no_grad():
            for i, (p, copy) in enumerate(zip(params, copies, strict=True)):
                states[i] = {name: value.detach() for name, value in optimizer.state[copy].items()}
                p.lerp_(copy, ratio)
        return h

    return step


def torch_func(workload: Workload, dtype: torch.dtype) -> Step:
    """torch.func.grad through a step of Adam that is written out."""
    network, train, look = workload.build(dtype)
    names, params = zip(*network.named_parameters(), strict=True)
    rate, count = log_lr(dtype), 0
    first, second = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]

    def lookahead_loss(log_rate: Tensor, start: list[Tensor], direction: list[Tensor]) -> Tensor:
        moved = [p - log_rate.exp() * d for p, d in zip(start, direction, strict=True)]
        return loss(partial(functional_call, network, dict(zip(names, moved, strict=True))), look)

    def step() -> Tensor:
        nonlocal count
        count += 1
        gradient = torch.autograd.grad(loss(network, train), params)
        with torch.no_grad():
            torch._foreach_lerp_(first, gradient, 1 - BETAS[0])
            torch._foreach_mul_(second, BETAS[1])
            torch._foreach_addcmul_(second, gradient, gradient, 1 - BETAS[1])
            bias = [1 - beta**count for beta in BETAS]
            direction = [m / bias[0] / ((v / bias[1]).sqrt() + EPS) for m, v in zip(first, second, strict=True)]
        h: Tensor = grad(lookahead_loss)(rate.detach(), [p.detach() for p in params], direction)
        meta_step(rate, h)
        with torch.no_grad():
            torch._foreach_add_(list(params), direction, alpha=-float(rate.exp()))
        return h

    return step


def higher(workload: Workload, dtype: torch.dtype, name: str = "Adam") -> Step:
    """A step of higher 0.2.1, whose Adam puts eps elsewhere."""
    from higher import innerloop_ctx

    network, train, look = workload.build(dtype)
    optimizer, rate = getattr(torch.optim, name)(network.parameters(), lr=LR), log_lr(dtype)
    if name == "Adam":
        for p in network.parameters():  # higher begins with a copy of the state
            optimizer.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def step() -> Tensor:
        with innerloop_ctx(network, optimizer, override={"lr": [rate.exp()]}, copy_initial_weights=False) as (
            copy,
            inner,
        ):
            inner.step(loss(copy, train))
            (h,) = torch.autograd.grad(loss(copy, look), rate)
        ratio = meta_step(rate, h)
        with torch.no_grad():
            for i, (p, moved) in enumerate(zip(network.parameters(), copy.parameters(), strict=True)):
                p.lerp_(moved, ratio)
                state = inner.state[0][i]
                optimizer.state[p] = {k: v.detach() if isinstance(v, Tensor) else v for k, v in state.items()}
        return h

    return step


def torchopt(workload: Workload, dtype: torch.dtype) -> Step:
    """A step of torchopt's MetaAdam, its rate a schedule that reads log α."""
    from torchopt import MetaAdam, stop_gradient

    network, train, look = workload.build(dtype)
    rate = log_lr(dtype)
    optimizer = MetaAdam(network, lr=lambda _: rate.exp(), moment_requires_grad=False)

    def step() -> Tensor:
        before = [p.detach() for p in network.parameters()]
        optimizer.step(loss(network, train))
        (h,) = torch.autograd.grad(loss(network, look), rate)
        stop_gradient(network)
        stop_gradient(optimizer)
        ratio = meta_step(rate, h)
        with torch.no_grad():
            for p, start in zip(network.parameters(), before, strict=True):
                p.lerp_(start, 1 - ratio)
        return h

    return step


EXACT = {
    "torch.func.grad": torch_func,
    "torch differentiable=True": torch_differentiable,
    "torchopt 0.7": torchopt,
    "higher 0.2": higher,
}
