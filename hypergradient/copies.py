"""Copies of an optimizer for other parameters: what it would do can be asked without doing it."""

import copy
from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer


def copy_onto(optimizer: Optimizer, replaced: Mapping[Tensor, Tensor]) -> Optimizer:
    """Return a copy of the optimizer, state included, that moves other parameters in place of its own.

    replaced: each parameter -> the tensor that takes its place.
    """
    memo: dict[int, object] = {id(p): q for p, q in replaced.items()}  # deepcopy takes what its memo already holds
    return copy.deepcopy(optimizer, memo)


def states(optimizer: Optimizer, params: list[Tensor]) -> list[Tensor]:
    """Return the optimizer's averages of what it has seen: the state tensors shaped like their parameter, in order."""
    own = (optimizer.state.get(p, {}) for p in params)
    return [
        value
        for p, state in zip(params, own, strict=True)
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point() and value.dim()
    ]
