"""The average of about the last tenth of a run's weights, however many steps it has.

A ← A + (θ - A) / max(1, window · t)       after step t

A polynomial-decay average (Shamir & Zhang 2013, arXiv 1212.1824).
"""

import torch
from torch import Tensor, nn

from hypergradient.copies import copy_network

Tensors = tuple[list[Tensor], list[Tensor]]


class Average:
    """A copy of a network, at the averaged weights.

    Args:
        network: copied; the average begins where it stands.
        window: the part of the run that is averaged.
    """

    def __init__(self, network: nn.Module, window: float = 0.1) -> None:
        self.network, self.window = copy_network(network), window
        self.pairs: tuple[Tensors, Tensors] | None = None  # to walk through the modules costs as much as to average

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the weights after that many steps, of the same network each time; counters are copied."""
        self.pairs = self.pairs or (_tensors(self.network), _tensors(network))
        (averages, counters), (current, counted) = self.pairs
        torch._foreach_lerp_(averages, current, 1 / max(1.0, self.window * steps))
        for counter, value in zip(counters, counted, strict=True):
            counter.copy_(value)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange the two networks' weights and buffers."""
        for averages, current in zip(_tensors(self.network), _tensors(network), strict=True):
            for average, value in zip(averages, current, strict=True):
                average.data, value.data = value.data, average.data


def _tensors(module: nn.Module) -> Tensors:
    """Return what a module computes with: floating point, and counters."""
    every = [*module.parameters(), *module.buffers()]
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
