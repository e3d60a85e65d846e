"""The method: one adapted step, in the letters used everywhere.

update           Δ(α)               what `optimizer.step()` adds to θ at learning rate α; proportional to α
lookahead        θ' = θ + Δ(α)      the hypothetical step
hypergradient    h = dL_val(θ')/d log α = ⟨∇L_val(θ'), Δ⟩
learning rate    log α ← one step of the meta-optimizer along h
real step        θ ← θ' + (α_new / α - 1) Δ
per group        h_g                the same dot product, cut by parameter group

The rate of group g is α_g = lr_g · scale_g. `lr_g` is the optimizer's own (its schedule included), `log scale` is
learned and starts at 0: at first the run is exactly the plain one, and d/d log scale = d/d log α.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

Update = list[tuple[list[Tensor], list[Tensor]]]
"""Of each group the parameters that have a gradient, and Δ of each: the others do not move."""


def scale_rates(optimizer: Optimizer, scale: float | Tensor) -> list[float]:
    """Set every group's rate to `lr * scale` and return the rates before.

    scale: a number or 0-d for one factor on all groups, or (groups,).
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, _per_group(scale, len(optimizer.param_groups)), strict=True):
        group["lr"] = group["lr"] * factor
    return rates


@contextmanager
def scaled(optimizer: Optimizer, scale: float | Tensor) -> Iterator[None]:
    """Let every group step at `lr * scale` here: an LR schedule goes on from its own value."""
    rates = scale_rates(optimizer, scale)
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@torch.no_grad()
def minus_weights(optimizer: Optimizer) -> Update:
    """Return -θ, of the parameters that have a gradient: the others do not move. Empty where none has."""
    moved = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    return [(params, list(torch._foreach_neg(params)) if params else []) for params in moved] if any(moved) else []


@torch.no_grad()
def add_weights(start: Update) -> Update:
    """Turn -θ into Δ = θ' - θ, in place: one kernel a parameter, and Δ takes no memory of its own."""
    for params, minus in start:
        if params:  # a group may be frozen whole
            torch._foreach_add_(minus, params)
    return start


def lookahead(optimizer: Optimizer, scale: float | Tensor) -> Update:
    """Step to θ' = θ + Δ, every group at `lr * scale`, and return Δ.

    The step is the optimizer's own, so θ' is bit for bit what plain training would reach.

    Raises:
        ValueError: no parameter has a gradient.
    """
    start = minus_weights(optimizer)
    if not start:
        raise ValueError("No parameter has a gradient, so there is no step to look ahead to: call backward() first.")
    with scaled(optimizer, scale):
        optimizer.step()
    return add_weights(start)


def hypergradient(lookahead_loss: Tensor, update: Update) -> Tensor:
    """Return dL_val/d log α at the lookahead, by group: (groups,), in units of the loss.

    Equals ⟨∇L_val(θ'), Δ⟩ (Baydin et al. 2018, arXiv 1703.04782, with the validation loss in place of the training
    loss). Its sum is the derivative for one rate that scales all groups. `.grad` of no parameter is touched.
    """
    pairs = [[(p, d) for p, d in zip(*group, strict=True) if p.requires_grad] for group in update]
    params = [p for group in pairs for p, _ in group]
    gradients = iter(torch.autograd.grad(lookahead_loss, params, materialize_grads=True))
    products = [[torch.vdot(next(gradients).ravel(), d.ravel()) for _, d in group] for group in pairs]
    sums = [sum(rest, first).real for first, *rest in (group or [lookahead_loss.new_zeros(())] for group in products)]
    return torch.stack(sums)  # 0 of a group that is frozen whole


@torch.no_grad()
def real_step(update: Update, ratio: float | Tensor) -> None:
    """Move from the lookahead to the step at the new rate: θ ← θ' + (α_new/α - 1) Δ.

    ratio: α_new/α, a number, 0-d or (groups,). At 1 the parameters keep every bit.
    """
    for (params, steps), factor in zip(update, _per_group(ratio, len(update)), strict=True):
        if params:
            torch._foreach_add_(params, steps, alpha=factor - 1)


def _per_group(factor: float | Tensor, groups: int) -> list[float]:
    return factor.expand(groups).tolist() if isinstance(factor, Tensor) else [factor] * groups
