"""Which optimizers the method is right for: those whose step is proportional to the learning rate."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hypergradient.copies import clear_state, copy_onto, unwrapped

SUPPORTED = "SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon"
WARM_UP = 19  # steps: RAdam is SGD for its first five; what estimates the rate itself takes some to begin
SEEN = 6  # steps after them: some optimizers do something else in each fifth or sixth
FACTORS = {2.0: 1e-3, 100.0: 0.2}  # by which one step is made longer -> how exactly it must be
RUN = 0.1  # how exactly the run must be, all of it at twice the rate; trust ratios and decay see other weights


def check_supported(optimizer: Optimizer) -> None:
    """Refuse, before training, an optimizer whose step is not proportional to its learning rate.

    Measured, not looked up, so optimizers from anywhere are covered. A copy of the optimizer takes steps on small
    slices of the parameters, in float64 and at its own rates; with twice the rate a step must double, and all of them
    together nearly: else what the rate was is in its state, and a later step is not proportional to it.

    Raises:
        ValueError: what was measured, why that matters and what to use instead.
    """
    optimizer = unwrapped(optimizer)
    name = type(optimizer).__name__
    try:
        steps, longer, run, twice = _measured(optimizer)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be adapted: a step with plain gradients and no closure failed ({error}). "
            f"Use one of {SUPPORTED}."
        ) from error
    for (factor, exactly), step in ((pair, number) for pair in FACTORS.items() for number in range(SEEN)):
        if not _near(longer[factor][step], factor * steps[step], exactly):
            times = longer[factor][step].norm() / steps[step].norm()
            raise ValueError(
                f"{name} cannot be adapted: {factor:g} times the lr multiplied its step by {times:.3g}, so the "
                f"hypergradient would be wrong. Use one of {SUPPORTED}."
            )
    if not _near(twice, 2 * run, RUN):
        raise ValueError(
            f"{name} cannot be adapted: at twice the lr {WARM_UP + SEEN} steps went {twice.norm() / run.norm():.3g} "
            f"times as far, not 2: it adapts the rate itself. Use one of {SUPPORTED}."
        )


def _near(found: Tensor, wanted: Tensor, exactly: float) -> bool:
    return bool((found - wanted).norm() <= exactly * wanted.norm() + 1e-12)


def _measured(optimizer: Optimizer) -> tuple[list[Tensor], dict[float, list[Tensor]], Tensor, Tensor]:
    """Return the last SEEN steps, each as it would be if it were longer, and a whole run, at its rate and at twice."""
    probe, double, draw = _probe(optimizer, 1.0), _probe(optimizer, 2.0), torch.Generator().manual_seed(0)
    start = _weights(probe)
    steps: list[Tensor] = []
    longer: dict[float, list[Tensor]] = {factor: [] for factor in FACTORS}
    for number in range(WARM_UP + SEEN):
        # with a common part: what estimates the rate from how steps agree begins to
        gradients = [1 + torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in _parameters(probe)]
        if number >= WARM_UP:
            for factor, seen in longer.items():
                seen.append(_step(_probe(probe, factor, begun=True), gradients))
        steps.append(_step(probe, gradients))
        _step(double, gradients)
    return steps[-SEEN:], longer, _weights(probe) - start, _weights(double) - start


def _probe(optimizer: Optimizer, factor: float, begun: bool = False) -> Optimizer:
    """Return a copy on slices, in float64, at `factor` times its rates; from the first step, where it has not begun."""
    probe = copy_onto(optimizer, {p: _slice(p).requires_grad_() for p in _parameters(optimizer)})
    if not begun:
        clear_state(probe)  # of the whole parameters
    for group in probe.param_groups:
        group["lr"] = factor * _positive(group["lr"])
    return probe


def _step(probe: Optimizer, gradients: list[Tensor]) -> Tensor:
    before = _weights(probe)
    for p, g in zip(_parameters(probe), gradients, strict=True):
        p.grad = g.to(p, copy=True)  # Nesterov's step may add to it
    probe.step()
    return _weights(probe) - before


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _weights(optimizer: Optimizer) -> Tensor:
    return torch.cat([p.detach().flatten().double().cpu() for p in _parameters(optimizer)])


def _positive(lr: Any) -> float:
    """Return the rate, or a usual one where a schedule begins at 0."""
    return float(lr) if 0 < float(lr) < float("inf") else 1e-3


def _slice(tensor: Tensor) -> Tensor:
    part = tensor.detach()[tuple(slice(3) for _ in tensor.shape)].clone()
    return part.double() if part.is_floating_point() else part
