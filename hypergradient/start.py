"""The scale of the learning rate: that of the weights over that of a step, rms(θ) / rms(Δ(1)).

At this rate one step would be as long as the weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from hypergradient.hypothetical import copied_attributes, plain_step, with_attributes

# number of equal gradients after which a step has its final length: with momentum 0.9, ten times the first length
SETTLING = 100


def weights_per_step(optimizer: Optimizer) -> float:
    """Return rms(θ) / rms(Δ(1)) for the current gradients, without side effects.

    Only matrices that are not zero count: biases and zero matrices have no scale. rms(θ) is the geometric mean over the
    matrices, weighted by size. If none of them has a gradient (in low-rank adapters, the factors that start at zero are
    updated first), Δ is the step of the zero matrices. Groups keep the ratios of their rates. Returns 0 if no matrix
    has a scale, or a gradient.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # set by a GradScaler; a fused step divides by it
    scale = getattr(optimizer, "grad_scale", None)
    gradients = (p.grad for p in params if p.grad is not None)
    settled = _settled_step(optimizer, params, tuple(g if scale is None else g / scale for g in gradients))
    matrices = [(p.detach(), d) for p, d in zip(params, settled, strict=True) if p.dim() > 1]
    scaled = [(p, d) for p, d in matrices if p.any()]
    length = _rms([d for _, d in scaled]) or _rms([d for p, d in matrices if not p.any()])
    size = sum(p.numel() for p, _ in scaled)
    if not (size and 0 < length < math.inf):
        return 0.0
    logs = sum(p.numel() * 0.5 * math.log(float(_lengths(p).square().mean())) for p, _ in scaled)
    return math.exp(logs / size) / length


def _rms(tensors: list[Tensor]) -> float:
    size = sum(tensor.numel() for tensor in tensors)
    return math.sqrt(sum(float(_lengths(tensor).square().sum()) for tensor in tensors) / max(1, size))


def _lengths(tensor: Tensor) -> Tensor:
    # squares of 16-bit numbers may underflow
    lengths = tensor.abs()
    return lengths.to(torch.promote_types(lengths.dtype, torch.float32))


@torch.no_grad()
def _settled_step(optimizer: Optimizer, params: list[Tensor], gradient: Sequence[Tensor]) -> list[Tensor]:
    """Return Δ(1) of each parameter, after SETTLING equal gradients."""
    probes = [torch.zeros_like(p) for p in params]
    first = max(float(group["lr"]) for group in optimizer.param_groups) or 1.0
    copied = copied_attributes(optimizer, dict(zip(params, probes, strict=True)))
    # an optimizer may draw random numbers
    with torch.random.fork_rng(), with_attributes(optimizer, copied):
        for group in optimizer.param_groups:
            group.update(lr=group["lr"] / first, weight_decay=0.0)
        for _ in range(SETTLING):
            before = [probe.clone() for probe in probes]
            for probe, g in zip(probes, gradient, strict=True):
                # a copy: Nesterov's step may modify it
                probe.grad = g.clone()
            plain_step(optimizer)
    return [probe - b for probe, b in zip(probes, before, strict=True)]
