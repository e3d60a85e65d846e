"""Which optimizers the method is right for: those whose step is proportional to the learning rate."""

import copy

import torch
from torch import Tensor
from torch.optim import Optimizer

SUPPORTED = "SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon"
WARM_UP = 7  # RAdam is SGD with momentum for its first five steps; its adaptive branch is to be seen too


def check_supported(optimizer: Optimizer) -> None:
    """Refuse, before training, an optimizer whose step is not proportional to its learning rate.

    Measured, not looked up, so optimizers from anywhere are covered: a copy of the optimizer takes steps on small
    slices of the parameters, the last at rate 1 or 2, and that last step must double.

    Raises:
        ValueError: what was measured, why that matters and what to use instead.
    """
    name = type(optimizer).__name__
    try:
        single, double = (_last_step(optimizer, lr) for lr in (1.0, 2.0))
    except Exception as error:
        raise ValueError(
            f"{name} cannot be adapted: a step with plain gradients and no closure failed ({error}). "
            f"Use one of {SUPPORTED}."
        ) from error
    if not torch.allclose(double, 2 * single, rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"{name} cannot be adapted: doubling lr multiplied its step by {double.norm() / single.norm():.3g}, not 2, "
            f"so the hypergradient would be wrong. Use one of {SUPPORTED}."
        )


def _last_step(optimizer: Optimizer, lr: float) -> Tensor:
    small = {p: _slice(p).requires_grad_() for group in optimizer.param_groups for p in group["params"]}
    probe = _copy_over(optimizer, small)
    draw = torch.Generator().manual_seed(0)
    for step in range(WARM_UP):
        before = [p.detach().clone() for p in small.values()]
        for group in probe.param_groups:
            group["lr"] = lr if step == WARM_UP - 1 else 0.01
        for p in small.values():
            p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p)
        probe.step()
    moved = [p.detach() - start for p, start in zip(small.values(), before, strict=True)]
    return torch.cat([change.flatten().double().cpu() for change in moved])


def _copy_over(optimizer: Optimizer, small: dict[Tensor, Tensor]) -> Optimizer:
    """Copy the optimizer with each parameter replaced: deepcopy takes what its memo already holds."""
    memo: dict[int, object] = {id(p): replacement for p, replacement in small.items()}
    for p, state in optimizer.state.items():
        memo |= {id(v): _slice(v) for v in state.values() if isinstance(v, Tensor) and v.shape == p.shape}
    return copy.deepcopy(optimizer, memo)


def _slice(tensor: Tensor) -> Tensor:
    return tensor.detach()[tuple(slice(3) for _ in tensor.shape)].clone()
