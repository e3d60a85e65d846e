"""Sets of tensors that replace a network's weights and buffers.

A hypothetical run and an average are not copies of modules: to use them, their tensors are exchanged with those in the
user's network and optimizer, and exchanged back. So hooks, layers and attributes are always the current ones.
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
        network: the network whose tensors are exchanged.
        params: the parameters.

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
        """Copy these values into the set."""
        for own, value in zip(self.weights, weights, strict=True):
            own.copy_(value)
        # their number and shapes may have changed
        self.buffers = [value.detach().clone() for value in buffers]

    def exchange(self, buffers: Sequence[Tensor] | None = None) -> None:
        """Exchange the values with those in the network.

        buffers: the network's, if the caller has collected them.
        """
        own = list(self.network.buffers()) if buffers is None else list(buffers)
        if len(own) != len(self.buffers):
            # the network has registered or removed a buffer
            self.buffers = [buffer.detach().clone() for buffer in own]
        in_network = [*self.params, *own]
        values = [tensor.data for tensor in in_network]
        for tensor, value in zip(in_network, [*self.weights, *self.buffers], strict=True):
            tensor.data = value
        self.weights, self.buffers = values[: len(self.params)], values[len(self.params) :]
        self.exchanged = not self.exchanged
        # it holds casts of the previous weights
        torch.clear_autocast_cache()
        for module in self.network.modules() if torch.cuda.is_initialized() else ():
            if isinstance(module, nn.RNNBase):
                # cuDNN needs the weights of a layer in contiguous memory
                module.flatten_parameters()

    @contextmanager
    def in_place(self, keep: bool = True) -> Iterator[None]:
        """Put the values into the network, inside the block.

        keep: whether the set keeps changes made there, as by BatchNorm or Embedding(max_norm=...).
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
                # the forward pass may have replaced a buffer; `unchanged` restores the module's own one
                buffer.data = replaced.data
            if not keep:
                self.weights, self.buffers = kept

    def state_dict(self) -> dict[str, Any]:
        """Return the values, as lists of tensors."""
        return {"weights": list(self.weights), "buffers": list(self.buffers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the values of a state into the set."""
        self.copy_from(state["weights"], state["buffers"])


class Average(TensorSet):
    """The average of the weights over about the last tenth of a run of any length.

        A ← A + (θ - A) / max(1, window · t)       after step t

    A polynomial-decay average (Shamir & Zhang 2013, arXiv 1212.1824). 16-bit weights are averaged in float32.

    Args:
        network: the network to average; the average starts at its weights.
        params: the parameters to average; the others are shared with the network.
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
        """Update the average after step `steps`; counters, such as BatchNorm's, are copied."""
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
                # a mask of -inf cannot be averaged
                average.copy_(torch.where(average == value, value, average.lerp(value, weight)))
            else:
                self.buffers[number] = value.detach().clone()

    def copy_from(self, weights: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Copy these values into the set."""
        super().copy_from(weights, buffers)
        self.exact = [w.float() if w.dtype in HALF else w for w in self.weights]

    def take_exact(self, exact: Sequence[Tensor]) -> None:
        """Copy the float32 averages of 16-bit weights into the set."""
        kept = iter(exact)
        self.exact = [next(kept).to(w.device, copy=True) if w.dtype in HALF else w for w in self.weights]

    def state_dict(self) -> dict[str, Any]:
        """Return the average; while it is in the network, also the weights of the run, as `current`."""
        state: dict[str, Any] = {"exact": [e for e, p in zip(self.exact, self.params, strict=True) if p.dtype in HALF]}
        if self.exchanged:
            in_network = {"weights": self.params, "buffers": self.network.buffers()}
            average = {name: [tensor.detach() for tensor in tensors] for name, tensors in in_network.items()}
            return state | average | {"current": super().state_dict()}
        return state | super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the average of a state; copy its `current` weights into the network."""
        super().load_state_dict(state)
        if current := state.get("current"):
            in_network = [*self.params, *self.network.buffers()]
            for tensor, value in zip(in_network, [*current["weights"], *current["buffers"]], strict=True):
                tensor.copy_(value)
        self.take_exact(state["exact"])
