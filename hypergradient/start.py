"""Where to start: the scale of the weights over that of a step, and the bracket of the first step.

unit        rms(θ) / rms(Δ(1))      the rate at which one step would be as long as the weights
bracket     s                       the rate at which ⟨∇L_val(θ + s Δ(1)), Δ(1)⟩ turns from negative to positive

Below s a longer first step lowers the validation loss, above it a shorter one would: s is the line search of that loss.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from hypergradient.hypothetical import copied_attributes, plain_step, with_attributes

LOWEST, HIGHEST = 1e-7, 1e3
# equal gradients after which an optimizer's step has its final length; 10 times the first for a momentum of 0.9
SETTLING = 100


def starting_rate(validation_loss: Callable[[], Tensor], optimizer: Optimizer) -> float:
    """Return the rate at which the hypergradient of one step from here changes sign.

    Doubled from 1e-7 and interpolated in the logarithm, in about 20 evaluations. Parameters, gradients and the
    optimizer's state are left as they were; what `validation_loss` changes itself (buffers, the random stream) is the
    caller's: see `no_trace`.

    Raises:
        ValueError: the validation loss does not depend on the parameters, or falls however far the step reaches.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    start = [p.detach().clone() for p in params]

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(validation_loss(), params, materialize_grads=True)

    @torch.no_grad()
    def place(rate: float) -> None:
        for p, s, d in zip(params, start, direction, strict=True):
            # back to every bit, where the direction is not finite too
            p.copy_(s + rate * d if rate else s)

    def slope(rate: float) -> float:
        place(rate)
        return sum(float(torch.sum((g.conj() * d).real)) for g, d in zip(gradient(), direction, strict=True))

    direction = _settled_step(optimizer, params, gradient())
    try:
        rate, before = LOWEST, slope(0.0)
        if not before < 0:
            raise ValueError("The validation loss does not fall along its own gradient: no rate can be started from.")
        while (after := slope(rate)) < 0:
            rate, before = 2 * rate, after
            if rate > HIGHEST:
                raise ValueError(f"The validation loss still falls at a rate of {HIGHEST:g}: is it bounded?")
    finally:
        place(0.0)
    fraction = before / (before - after) if math.isfinite(after) else 0.5
    return rate / 2 * 2**fraction


def weights_per_step(optimizer: Optimizer) -> float:
    """Return rms(θ) / rms(Δ(1)), from the gradients that the parameters have; nothing is changed.

    Of matrices that are not zero: biases, and what begins at zero, have no scale. rms(θ) is the geometric mean over the
    matrices, by size. Where none of them has a gradient (of low-rank adapters, the factors that begin at zero move
    first), Δ is that of the matrices that do begin at zero. Groups keep the ratios of their rates.
    0 where no matrix has a scale, or a gradient.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # of a GradScaler, which a fused step takes away within itself
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
    # squares of 16-bit numbers may be below the smallest one
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
                # a copy: Nesterov's step may add to it
                probe.grad = g.clone()
            plain_step(optimizer)
    return [probe - b for probe, b in zip(probes, before, strict=True)]
