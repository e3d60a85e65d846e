"""Check that the step of an optimizer is proportional to its learning rate."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hypergradient.hypothetical import copied_attributes, plain_step, with_attributes

SUPPORTED = "SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon"
# steps before the measurement: RAdam is SGD for its first five, and optimizers that estimate the rate need a few
WARM_UP = 19
# measured steps: some optimizers act differently in each fifth or sixth
MEASURED = 6
# factor by which the rate of one step is multiplied -> relative tolerance of the step
FACTORS = {2.0: 1e-3, 100.0: 0.2}
# relative tolerance of a whole run at twice the rate: trust ratios and weight decay depend on the weights
RUN = 0.1


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer inside the wrappers of Accelerate, Fabric or Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer  # type: ignore[no-any-return]


def check_supported(optimizer: Optimizer) -> None:
    """Raise a ValueError if the step of an optimizer is not proportional to its learning rate.

    This is measured, so it works for any optimizer. The optimizer takes steps on copies of small slices of the
    parameters, in float64 and at its own rates, and is left unchanged. At twice the rate, a step must double, and all
    steps together nearly so: otherwise the state depends on the rate, and later steps are not proportional to it.

    Raises:
        ValueError: with what was measured, why that matters and what to use instead.

    Example:
        >>> theta = torch.ones(2, requires_grad=True)
        >>> check_supported(torch.optim.Adam([theta]))
        >>> check_supported(torch.optim.Rprop([theta]))
        Traceback (most recent call last):
        ValueError: Rprop cannot be adapted: 2 times the lr multiplied its step by ...
    """
    optimizer = unwrapped(optimizer)
    name = type(optimizer).__name__
    try:
        steps, longer, run, twice, climbs = _measure(optimizer)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be adapted: a step with plain gradients and no closure failed ({error}). "
            f"Use one of {SUPPORTED}."
        ) from error
    if climbs:
        raise ValueError(
            f"{name} cannot be adapted: it moves weights along their gradient, but the rate is adapted to lower the "
            f"loss. Use maximize=False, and negate the loss. Use one of {SUPPORTED}."
        )
    for factor, exactly in FACTORS.items():
        for step, longer_step in zip(steps, longer[factor], strict=True):
            if not _near(longer_step, factor * step, exactly):
                times = longer_step.norm() / step.norm()
                raise ValueError(
                    f"{name} cannot be adapted: {factor:g} times the lr multiplied its step by {times:.3g}, so the "
                    f"hypergradient would be wrong. Use one of {SUPPORTED}."
                )
    if not _near(twice, 2 * run, RUN):
        raise ValueError(
            f"{name} cannot be adapted: at twice the lr {WARM_UP + MEASURED} steps went "
            f"{twice.norm() / run.norm():.3g} times as far, not 2: it adapts the rate itself. Use one of {SUPPORTED}."
        )


def _near(found: Tensor, wanted: Tensor, exactly: float) -> bool:
    return bool((found - wanted).norm() <= exactly * wanted.norm() + 1e-12)


class _Probe:
    """The optimizer on slices of some parameters, in float64, at `factor` times its rates, from its first step."""

    def __init__(self, optimizer: Optimizer, factor: float) -> None:
        self.optimizer = optimizer
        groups = [group | {"params": _kinds(group["params"])} for group in optimizer.param_groups]
        params = [p for group in groups for p in group["params"]]
        self.values = [_slice(p) for p in params]
        # without the state of the parameters, which has their full shapes
        state = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
        some = vars(optimizer) | {"param_groups": groups, "state": defaultdict(dict, state)}
        with with_attributes(optimizer, some):
            self.attributes = copied_attributes(optimizer, dict(zip(params, self.values, strict=True)))
        with with_attributes(optimizer, self.attributes):
            for group in optimizer.param_groups:
                # a schedule may start at 0
                group["lr"] = factor * (float(group["lr"]) if 0 < float(group["lr"]) < float("inf") else 1e-3)

    def step(self, gradients: list[Tensor], factor: float = 1.0, keep: bool = True) -> Tensor:
        """Take a step at `factor` times the rates, and return it; without `keep`, on copies."""
        before, attributes, values = _flat(self.values), self.attributes, self.values
        if not keep:
            values = [value.detach().clone().requires_grad_() for value in self.values]
            with with_attributes(self.optimizer, self.attributes):
                attributes = copied_attributes(self.optimizer, dict(zip(self.values, values, strict=True)))
        with with_attributes(self.optimizer, attributes):
            for group in self.optimizer.param_groups:
                group["lr"] = factor * group["lr"]
            for value, g in zip(values, gradients, strict=True):
                # a copy: Nesterov's step may modify it
                value.grad = g.to(value, copy=True)
            plain_step(self.optimizer)
        return _flat(values) - before


def _measure(optimizer: Optimizer) -> tuple[list[Tensor], dict[float, list[Tensor]], Tensor, Tensor, bool]:
    """Return the last steps, the same steps at each of FACTORS, the run, the run at twice the rate, and `climbs`.

    `climbs`: whether any weight moves along its gradients instead of against them.
    """
    probe, double, draw = _Probe(optimizer, 1.0), _Probe(optimizer, 2.0), torch.Generator("cpu").manual_seed(0)
    start, steps, along = _flat(probe.values), list[Tensor](), torch.zeros(1, device="cpu")
    longer: dict[float, list[Tensor]] = {factor: [] for factor in FACTORS}
    for number in range(WARM_UP + MEASURED):
        # with a common part, since some optimizers estimate the rate only from similar steps
        gradients = [1 + torch.randn(v.shape, generator=draw, dtype=torch.float64, device="cpu") for v in probe.values]
        if number >= WARM_UP:
            for factor, found in longer.items():
                found.append(probe.step(gradients, factor, keep=False))
        steps.append(probe.step(gradients))
        along = along + _flat([g.to(value) for g, value in zip(gradients, probe.values, strict=True)])
        double.step(gradients)
    run, sizes = _flat(probe.values) - start, [_flat([value]).numel() for value in probe.values]
    climbs = any(float(product.sum()) > 0 for product in (run * along).split(sizes))
    return steps[-MEASURED:], longer, run, _flat(double.values) - start, climbs


def _kinds(params: Iterable[Tensor]) -> list[Tensor]:
    """Return a parameter of each kind that an optimizer may treat differently, by dimensions, type and device."""
    return list({(p.dim(), p.dtype, p.device, p.requires_grad, min(p.numel(), 2)): p for p in params}.values())


def _flat(values: list[Tensor]) -> Tensor:
    """Return the values as one vector on the CPU, in float64, including imaginary parts."""
    real = [torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value for value in values]
    return torch.cat([value.detach().flatten().double().cpu() for value in real])


def _slice(tensor: Tensor) -> Tensor:
    part = tensor.detach()[tuple(slice(3) for _ in tensor.shape)].clone()
    numbers = part.is_floating_point() or part.is_complex()
    return (part.to(torch.promote_types(part.dtype, torch.float64)) if numbers else part).requires_grad_(numbers)
