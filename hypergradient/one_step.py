"""The plain rule, one step ahead, as functions.

update           Δ(α)               what `optimizer.step()` adds to θ at learning rate α; proportional to α
lookahead        θ' = θ + Δ(α)      the hypothetical step
hypergradient    h = dL_val(θ')/d log α = ⟨∇L_val(θ'), Δ⟩
learning rate    log α ← one step of the meta-optimizer along h
real step        θ ← θ' + (α_new / α - 1) Δ

The rate is α = lr · scale. `lr` is the optimizer's, including its schedule. `log scale` is learned and starts at 0, so
that the run starts exactly as the plain one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

Update = list[tuple[Tensor, Tensor]]
"""Each parameter that has a gradient, and its Δ."""


@contextmanager
def scaled(optimizer: Optimizer, scale: float | Tensor) -> Iterator[None]:
    """Multiply the learning rate of every group by `scale`, and restore it at the end.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1)
        >>> with scaled(optimizer, 2.0):
        ...     optimizer.param_groups[0]["lr"]
        0.2
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * float(scale)
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@torch.no_grad()
def lookahead(optimizer: Optimizer, scale: float | Tensor) -> Update:
    """Step to θ' = θ + Δ, each group at `lr * scale`, and return Δ.

    The optimizer takes the step, so θ' is, bit for bit, the result of plain training.

    Raises:
        ValueError: no parameter has a gradient.

    Example:
        >>> theta = torch.ones(2, requires_grad=True)
        >>> theta.sum().backward()
        >>> [(theta, delta)] = lookahead(torch.optim.SGD([theta], lr=0.1), 1.0)
        >>> delta
        tensor([-0.1000, -0.1000])
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not params:
        raise ValueError("No parameter has a gradient, so no step can be taken: call backward() first.")
    # -θ becomes Δ = θ' - θ in place: one kernel per parameter
    update = torch._foreach_neg(params)
    with scaled(optimizer, scale):
        optimizer.step()
    torch._foreach_add_(update, params)
    return list(zip(params, update, strict=True))


def hypergradient(lookahead_loss: Tensor, update: Update) -> Tensor:
    """Return dL_val/d log α at the lookahead, a scalar in units of the loss.

    Equals ⟨∇L_val(θ'), Δ⟩ (Baydin et al. 2018, arXiv 1703.04782, with the validation loss in place of the training
    loss). `.grad` is not changed.

    Example:
        >>> theta = torch.ones(2, requires_grad=True)
        >>> delta = torch.tensor([-0.1, -0.1])
        >>> hypergradient(theta.sum(), [(theta, delta)])
        tensor(-0.2000)
    """
    params, steps = zip(*((p, d) for p, d in update if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(lookahead_loss, params, materialize_grads=True)
    first, *rest = (torch.vdot(g.ravel(), d.ravel()) for g, d in zip(gradients, steps, strict=True))
    return sum(rest, first).real


@torch.no_grad()
def real_step(update: Update, ratio: float | Tensor) -> None:
    """Move from the lookahead to the step at the new rate: θ ← θ' + (α_new/α - 1) Δ.

    ratio: α_new/α. At 1 the parameters stay the same, bit for bit.

    Example:
        >>> theta, delta = torch.tensor([0.9]), torch.tensor([-0.1])
        >>> real_step([(theta, delta)], 2.0)
        >>> theta
        tensor([0.8000])
    """
    params, steps = zip(*update, strict=True)
    torch._foreach_add_(params, steps, alpha=float(ratio) - 1)
