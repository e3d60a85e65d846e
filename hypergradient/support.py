"""Which optimizers the method is right for: those whose step is proportional to the learning rate."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hypergradient.copies import copy_onto, unwrapped

SUPPORTED = "SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon"
WARM_UP = 20  # steps: RAdam is SGD for its first five; what estimates the rate itself takes some to begin
FACTORS = {2.0: 1e-3, 100.0: 0.2}  # by which the last step is longer -> how exactly
RUN = 0.1  # how exactly the run is, all of it at twice the rate; trust ratios and decay see other weights


def check_supported(optimizer: Optimizer) -> None:
    """Refuse, before training, an optimizer whose step is not proportional to its learning rate.

    Measured, not looked up, so optimizers from anywhere are covered. A copy of the optimizer takes steps on small
    slices of the parameters, in float64 and at its own rates; with twice the rate the last step must double, and all of
    them together nearly: else what the rate was is in its state, and a later step is not proportional to it.

    Raises:
        ValueError: what was measured, why that matters and what to use instead.
    """
    optimizer = unwrapped(optimizer)
    name = type(optimizer).__name__
    try:
        steps, last = _probe(optimizer, 1.0, 1.0)
        longer = {factor: _probe(optimizer, 1.0, factor)[1] for factor in FACTORS}
        twice, _ = _probe(optimizer, 2.0, 2.0)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be adapted: a step with plain gradients and no closure failed ({error}). "
            f"Use one of {SUPPORTED}."
        ) from error
    for factor, exactly in FACTORS.items():
        if not _near(longer[factor], factor * last, exactly):
            raise ValueError(
                f"{name} cannot be adapted: {factor:g} times the lr multiplied its step by "
                f"{longer[factor].norm() / last.norm():.3g}, so the hypergradient would be wrong. "
                f"Use one of {SUPPORTED}."
            )
    if not _near(twice, 2 * steps, RUN):
        times = twice.norm() / steps.norm()
        raise ValueError(
            f"{name} cannot be adapted: at twice the lr {WARM_UP} steps went {times:.3g} times as far, not 2: it "
            f"adapts the rate itself. Use one of {SUPPORTED}."
        )


def _near(found: Tensor, wanted: Tensor, exactly: float) -> bool:
    return bool((found - wanted).norm() <= exactly * wanted.norm() + 1e-12)


def _probe(optimizer: Optimizer, factor: float, last_factor: float) -> tuple[Tensor, Tensor]:
    """Return all steps together, and the last one, at `factor` times the optimizer's rates, the last at another."""
    small = {p: _slice(p).requires_grad_() for group in optimizer.param_groups for p in group["params"]}
    probe = copy_onto(optimizer, small, _sliced_state(optimizer))
    rates = [_positive(group["lr"]) for group in optimizer.param_groups]
    draw = torch.Generator().manual_seed(0)
    start = [p.detach().clone() for p in small.values()]
    for step in range(WARM_UP):
        before = [p.detach().clone() for p in small.values()]
        for group, rate in zip(probe.param_groups, rates, strict=True):
            group["lr"] = rate * (last_factor if step == WARM_UP - 1 else factor)
        for p in small.values():
            p.grad = 1 + torch.randn(p.shape, generator=draw, dtype=torch.float64).to(
                p
            )  # they agree: a run that goes on
        probe.step()
    now = [p.detach() for p in small.values()]
    return _flat(now, start), _flat(now, before)


def _sliced_state(optimizer: Optimizer) -> dict[int, Tensor]:
    """Return, by id, what takes the place of the state of the parameters' own shapes."""
    pairs: Any = [
        (p, value) for p, state in optimizer.state.items() if isinstance(state, dict) for value in state.values()
    ]
    return {
        id(value): _slice(value)
        for p, value in pairs
        if isinstance(p, Tensor) and isinstance(value, Tensor) and value.shape == p.shape
    }


def _positive(lr: Any) -> float:
    """Return the rate, or a usual one where a schedule begins at 0."""
    return float(lr) if 0 < float(lr) < float("inf") else 1e-3


def _flat(ends: list[Tensor], starts: list[Tensor]) -> Tensor:
    return torch.cat([(end - start).flatten().double().cpu() for end, start in zip(ends, starts, strict=True)])


def _slice(tensor: Tensor) -> Tensor:
    part = tensor.detach()[tuple(slice(3) for _ in tensor.shape)].clone()
    return part.double() if part.is_floating_point() else part
