"""The average of about the last tenth of a run's weights, however many steps it has.

A ← A + (θ - A) / max(1, window · t)       after step t

A polynomial-decay average (Shamir & Zhang 2013, arXiv 1212.1824).
"""

from typing import Any

import torch
from torch import Tensor, nn

from hypergradient.copies import copy_network, load_state

HALF = (torch.float16, torch.bfloat16)


class Average:
    """A copy of a network, at the averaged weights. Of 16-bit weights, what is averaged is kept in float32.

    Args:
        network: copied; the average begins where it stands.
        window: the part of the run that is averaged.

    Attributes:
        network: the copy.
        swapped: whether the two networks' weights are exchanged at present.
    """

    def __init__(self, network: nn.Module, window: float = 0.1) -> None:
        self.source, self.network, self.window, self.swapped = network, copy_network(network), window, False
        self.own, self.current = list(self.network.parameters()), list(network.parameters())
        self.exact = [p.detach().float() if p.dtype in HALF else p for p in self.own]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after that many steps; counters, as BatchNorm's, are copied."""
        weight = 1 / max(1.0, self.window * steps)
        for (
            own,
            exact,
        ) in self._rounded():  # somebody may have put other weights there, as the guard of `Adaptation` does
            exact.copy_(torch.where(own == exact.to(own.dtype), exact, own.to(exact.dtype)))
        pairs = list(zip(self.exact, self.current, strict=True))
        if moving := [(a, p.to(a.dtype)) for a, p in pairs if p.requires_grad]:
            torch._foreach_lerp_(*map(list, zip(*moving, strict=True)), weight)  # type: ignore[call-overload]
        for a, p in pairs:
            if not p.requires_grad:
                a.copy_(p)
        for own, exact in self._rounded():
            own.copy_(exact)
        for average, value in zip(self.network.buffers(), self.source.buffers(), strict=True):
            if value.is_floating_point():  # a mask of -inf has no mean
                average.copy_(torch.where(average == value, value, average.lerp(value, weight)))
            else:
                average.copy_(value)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the two networks' weights and buffers."""
        own, current = ([*net.parameters(), *net.buffers()] for net in (self.network, self.source))
        for average, value in zip(own, current, strict=True):
            average.data, value.data = value.data, average.data
        self.swapped = not self.swapped

    @torch.no_grad()
    def put(self) -> None:
        """Put the average into the network that is averaged."""
        own, current = ([*net.parameters(), *net.buffers()] for net in (self.network, self.source))
        for average, value in zip(own, current, strict=True):
            value.copy_(average)

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state of the average and that of the current weights, exchanged or not."""
        own, current = self.network.state_dict(), self.source.state_dict()
        return (current, own) if self.swapped else (own, current)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {"network": self.states()[0], "exact": [exact for _, exact in self._rounded()]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        load_state(self.network, state["network"])
        for (_, exact), value in zip(self._rounded(), state["exact"], strict=True):
            exact.copy_(value)

    def _rounded(self) -> list[tuple[Tensor, Tensor]]:
        """Return the 16-bit weights, each with what is averaged."""
        return [(own, exact) for own, exact in zip(self.own, self.exact, strict=True) if own is not exact]
