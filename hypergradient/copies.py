"""Copies of an optimizer for other parameters: what it would do can be asked without doing it."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# what a scheduler puts over the method; ours; what a GradScaler puts there for one step. Nor are hooks
NOT_COPIED = ("step", "rate_adapter", "grad_scale", "found_inf")
COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def unwrapped(optimizer: Any) -> Optimizer:
    """Return torch's optimizer inside of what Accelerate, Fabric or Lightning wrap around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer  # type: ignore[no-any-return]


def copy_network(network: nn.Module) -> nn.Module:
    """Return a copy; of a Lightning module, one with the same trainer, which cannot be copied, and not compiled."""
    trainers = [value for name, value in vars(network).items() if name in ("_trainer", "_fabric")]
    copied = copy.deepcopy(network, {id(trainer): trainer for trainer in trainers if trainer is not None})
    if vars(copied).get("_compiler_ctx"):  # Lightning's: compiled methods of the original, over the class's own
        for name in (*COMPILED, "_compiler_ctx"):
            vars(copied).pop(name, None)
    return copied


def load_state(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the state into the network, or a copy of it; a Lightning module may leave out what others save."""
    network.load_state_dict(state, strict=getattr(network, "strict_loading", True))


def require_keys(state: Mapping[str, Any], *names: str) -> None:
    """Raise a ValueError where a state that is to be loaded lacks one of the names."""
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"the state has no {', no '.join(missing)}: another version wrote it")


def copy_onto(optimizer: Optimizer, replaced: Mapping[Tensor, Tensor]) -> Optimizer:
    """Return a copy of the optimizer, state and attributes included, that moves other parameters in place of its own.

    Attribute by attribute: `copy.deepcopy` takes what `Optimizer.__getstate__` returns, and loses the attributes that
    an optimizer from elsewhere has of its own.

    replaced: each parameter -> the tensor that takes its place.
    """
    memo: dict[int, Any] = {id(p): q for p, q in replaced.items()}  # what deepcopy takes as it is
    twin: Optimizer = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            vars(twin)[name] = OrderedDict()
        if name.endswith("_hooks") or name in NOT_COPIED:
            continue
        try:
            vars(twin)[name] = copy.deepcopy(value, memo)
        except (TypeError, RuntimeError):  # a lock, a stream, a generator: the copy shares it
            vars(twin)[name] = value
    return twin


def clear_state(optimizer: Optimizer) -> None:
    """Forget what is kept for each parameter; what an optimizer from elsewhere keeps there for itself stays."""
    for key in [key for key in optimizer.state if isinstance(key, Tensor)]:
        del optimizer.state[key]


def follow_modes(copied: nn.Module, source: nn.Module) -> None:
    """Put each submodule of a copy into training or evaluation mode, as that of its source is now."""
    for own, original in zip(copied.modules(), source.modules(), strict=False):
        if own.training != original.training:
            set_mode(own, original.training)


def set_mode(module: nn.Module, training: bool) -> None:
    """Put a module, without its submodules, into training or evaluation mode."""
    if isinstance(module, torch.jit.ScriptModule):  # its mode is not in Python
        module.training = training
    else:
        vars(module)["training"] = training  # a tenth of the time of nn.Module's own setter


def paired_states(
    first: Optimizer, params: Sequence[Tensor], second: Optimizer, others: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what two optimizers have averaged of the same parameters: the state tensors of a parameter's shape.

    Of a parameter that only one of them has moved so far, there is nothing to pair.
    """
    pairs = [
        (value, second.state[q][name])
        for p, q in zip(params, others, strict=True)
        for name, value in first.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.dim() and value.shape == p.shape and name in second.state.get(q, {})
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]
