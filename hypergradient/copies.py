"""Copies of an optimizer for other parameters: what it would do can be asked without doing it."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer


def copy_onto(optimizer: Optimizer, replaced: Mapping[Tensor, Tensor]) -> Optimizer:
    """Return a copy of the optimizer, state included, that moves other parameters in place of its own.

    replaced: each parameter -> the tensor that takes its place.
    """
    memo: dict[int, object] = {id(p): q for p, q in replaced.items()}  # deepcopy takes what its memo already holds
    return copy.deepcopy(optimizer, memo)


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
