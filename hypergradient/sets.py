"""Sets of tensors that take the place of a network's weights and buffers.

A hypothetical run and an average are not copies of objects: to use them, their tensors are exchanged with those in the
user's own network and optimizer, and exchanged back. So they have its trainer, hooks, layers and attributes of now.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class TensorSet:
    """Values for some parameters and all buffers of a network.

    Args:
        network: whose tensors it can take the place of.
        params: the parameters; each (...).

    Attributes:
        weights: a value for each parameter. buffers: one for each buffer.
        exchanged: whether the network holds them, and this set holds the network's.
    """

    def __init__(self, network: nn.Module, params: Sequence[Tensor]) -> None:
        self.network, self.params, self.exchanged = network, list(params), False
        self.weights: list[Tensor] = [p.detach().clone() for p in self.params]
        self.buffers: list[Tensor] = [buffer.detach().clone() for buffer in network.buffers()]

    @torch.no_grad()
    def copy_from(self, weights: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Take over these values."""
        for own, value in zip(self.weights, weights, strict=True):
            own.copy_(value)
        # which may have changed in number and shape
        self.buffers = [value.detach().clone() for value in buffers]

    def exchange(self, buffers: Sequence[Tensor] | None = None) -> None:
        """Exchange the values with those in the network.

        buffers: of the network, where the caller has collected them.
        """
        own = list(self.network.buffers()) if buffers is None else list(buffers)
        if len(own) != len(self.buffers):
            # one was registered since
            self.buffers = [buffer.detach().clone() for buffer in own]
        live = [*self.params, *own]
        values = [tensor.data for tensor in live]
        for tensor, value in zip(live, [*self.weights, *self.buffers], strict=True):
            tensor.data = value
        self.weights, self.buffers = values[: len(self.params)], values[len(self.params) :]
        self.exchanged = not self.exchanged
        # which holds casts of the weights that were there
        torch.clear_autocast_cache()
        for module in self.network.modules() if torch.cuda.is_initialized() else ():
            if isinstance(module, nn.RNNBase):
                # cuDNN wants all weights of a layer in one piece
                module.flatten_parameters()

    @contextmanager
    def in_place(self, keep: bool = True) -> Iterator[None]:
        """Have the values in the network here.

        keep: whether what is done to them stays in the set: to BatchNorm's statistics, or by Embedding(max_norm=...).
        """
        before, kept = list(self.network.buffers()), (self.weights, self.buffers)
        if not keep:
            self.weights, self.buffers = ([value.clone() for value in values] for values in kept)
        self.exchange(before)
        try:
            yield
        finally:
            now = list(self.network.buffers())
            self.exchange(now)
            for buffer, replaced in zip(before, now, strict=False):
                # where the forward pass replaced a buffer; `unchanged` puts the module's own one back
                buffer.data = replaced.data
            if not keep:
                self.weights, self.buffers = kept

    def state_dict(self) -> dict[str, Any]:
        """Return the values, as lists of tensors."""
        return {"weights": list(self.weights), "buffers": list(self.buffers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of a state."""
        self.copy_from(state["weights"], state["buffers"])


class Average(TensorSet):
    """The average of about the last tenth of a run's weights, however many steps the run has.

        A ← A + (θ - A) / max(1, window · t)       after step t

    A polynomial-decay average (Shamir & Zhang 2013, arXiv 1212.1824). 16-bit weights are averaged in float32.

    Args:
        network: whose weights are averaged; the average begins where they are.
        params: the parameters that are averaged; the others are shared with the network.
        window: the fraction of the run that is averaged.

    Example:
        >>> network = torch.nn.Linear(1, 1, bias=False)
        >>> average = Average(network, list(network.parameters()), window=1.0)
        >>> for step in (1, 2, 3):
        ...     _ = torch.nn.init.constant_(network.weight, step)
        ...     average.update(step)
        >>> with average.in_place():
        ...     network.weight.item()
        2.0
    """

    def __init__(self, network: nn.Module, params: Sequence[Tensor], window: float = 0.1) -> None:
        super().__init__(network, params)
        self.window = window
        self.exact = [w.float() if w.dtype in HALF else w for w in self.weights]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Average the weights after that many steps; counters, as BatchNorm's, are copied."""
        weight = 1 / max(1.0, self.window * steps)
        if self.params:
            torch._foreach_lerp_(
                self.exact, [p.to(a.dtype) for a, p in zip(self.exact, self.params, strict=True)], weight
            )
        for own, exact in zip(self.weights, self.exact, strict=True):
            if own is not exact:
                own.copy_(exact)
        for number, (average, value) in enumerate(zip(self.buffers, self.network.buffers(), strict=False)):
            if value.is_floating_point() and value.shape == average.shape:
                # a mask of -inf has no mean
                average.copy_(torch.where(average == value, value, average.lerp(value, weight)))
            else:
                self.buffers[number] = value.detach().clone()

    def copy_from(self, weights: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Take over these values."""
        super().copy_from(weights, buffers)
        self.exact = [w.float() if w.dtype in HALF else w for w in self.weights]

    def take_exact(self, exact: Sequence[Tensor]) -> None:
        """Take over what is averaged of 16-bit weights."""
        kept = iter(exact)
        self.exact = [next(kept).to(w.device, copy=True) if w.dtype in HALF else w for w in self.weights]

    def state_dict(self) -> dict[str, Any]:
        """Return the average; where it is in the network at present, `current` holds the weights of the run."""
        state: dict[str, Any] = {"exact": [e for e, p in zip(self.exact, self.params, strict=True) if p.dtype in HALF]}
        if self.exchanged:
            live = {"weights": self.params, "buffers": self.network.buffers()}
            average = {name: [tensor.detach() for tensor in tensors] for name, tensors in live.items()}
            return state | average | {"current": super().state_dict()}
        return state | super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the average of a state; weights that it has as `current` go into the network."""
        super().load_state_dict(state)
        if current := state.get("current"):
            live = [*self.params, *self.network.buffers()]
            for tensor, value in zip(live, [*current["weights"], *current["buffers"]], strict=True):
                tensor.copy_(value)
        self.take_exact(state["exact"])
