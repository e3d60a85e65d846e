"""A hypothetical run at another learning rate, inside the network and the optimizer of the real one."""

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.processes import mean_over_processes
from hypergradient.sets import TensorSet
from hypergradient.trace import unchanged

# values of a parameter group that schedules change: taken from the real run
SCHEDULED = ("momentum", "betas", "weight_decay")
# attributes of an optimizer that a scheduler patches, or a GradScaler sets during a step
TEMPORARY = ("step", "grad_scale", "found_inf")
# types of the attributes that are copied
PLAIN = (Tensor, int, float, complex, list, tuple, dict, set, deque)


class HypotheticalRun(TensorSet):
    """The run at another learning rate: weights, buffers and optimizer state.

    Args:
        network: the network of the real run.
        optimizer: the optimizer of the real run, which also takes the hypothetical steps.
        params: the parameters that the optimizer updates.
        decays: whether the weight decay applies, for each parameter.
    """

    def __init__(
        self, network: nn.Module, optimizer: Optimizer, params: Sequence[Tensor], decays: Sequence[bool]
    ) -> None:
        super().__init__(network, params)
        self.optimizer, self.decays = optimizer, decays
        self.attributes = copied_attributes(optimizer)

    @contextmanager
    def in_place(self, keep: bool = True) -> Iterator[None]:
        """Put weights, buffers and optimizer state into the network and the optimizer, inside the block."""
        with super().in_place(keep), with_attributes(self.optimizer, self.attributes):
            yield

    def step(
        self,
        loss: Callable[[], Tensor],
        factor: float,
        pull: float,
        longest: float,
        decay: float,
        clip: float | None,
    ) -> list[Tensor]:
        """Take the hypothetical step after the real one, pull the run back, and return θ' - θ.

            θ' ← (1 - αλ) θ' + Δ(2α; g')       θ' ← θ' + .1 (θ - θ')

        Args:
            loss: computes the loss on a part of the real step's batch, a scalar; called while the network has θ'.
            factor: the rate over that of the real step.
            pull: the fraction of the way to the real run by which weights and optimizer state are pulled back.
            longest: the largest length of the step over that of the weights.
            decay: αλ, the fraction of each weight that the real step removed.
            clip: the norm to which gradients are clipped; None or 0 for none.
        """
        real = self.optimizer.param_groups
        with unchanged(self.network), self.in_place():
            with torch.enable_grad():
                gradients = mean_over_processes(gradients_of(loss(), self.params))
            with torch.no_grad():
                hypothetical = dict(zip(self.params, gradients, strict=True))
                everything = [p for group in real for p in group["params"]]
                with _gradients_kept(everything):
                    for p in everything:
                        # parameters without a gradient in the real step, or here, are not updated
                        p.grad = None if p.grad is None else hypothetical.get(p)
                    if clip:
                        nn.utils.clip_grad_norm_(self.params, clip)
                    for group, own in zip(real, self.optimizer.param_groups, strict=True):
                        scheduled = {name: group[name] for name in SCHEDULED if name in group}
                        own.update(scheduled, lr=factor * group["lr"])
                    before = copies(self.params)
                    shrink(self.params, self.decays, decay)
                    plain_step(self.optimizer)
                    shorten(self.params, before, longest)
        return self._pulled(pull)

    @torch.no_grad()
    def _pulled(self, share: float) -> list[Tensor]:
        """Pull weights, and optimizer state of their shape (such as Adam's moments), by `share`; return θ' - θ."""
        torch._foreach_lerp_(self.weights, self.params, share)
        own_moments, moments, state = [], [], self.attributes["state"]
        for p in self.params:
            real_state = self.optimizer.state.get(p, {})
            for name, value in state.get(p, {}).items():
                like = isinstance(value, Tensor) and value.dim() and value.shape == p.shape and name in real_state
                if like and (value.is_floating_point() or value.is_complex()):
                    own_moments.append(value)
                    moments.append(real_state[name])
        if moments:
            torch._foreach_lerp_(own_moments, moments, share)
        return list(torch._foreach_sub(self.weights, self.params))

    def give_state(self) -> None:
        """Transfer this run's optimizer state to the real run, which keeps its rates and hyperparameters."""
        own = self.attributes
        kept = {"params", "lr", "initial_lr", "max_lr", "used_lr", *SCHEDULED}
        for group, values in zip(self.optimizer.param_groups, own["param_groups"], strict=True):
            group.update({name: value for name, value in values.items() if name not in kept})
        shared = {name for name in own if name == "param_groups" or name.endswith("_hooks")}
        vars(self.optimizer).update({name: value for name, value in own.items() if name not in shared})

    def state_dict(self) -> dict[str, Any]:
        """Return the values, and the state of the optimizer."""
        with self.in_place():
            optimizer = self.optimizer.state_dict()
        return super().state_dict() | {"optimizer": optimizer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the values and the state of the optimizer."""
        super().load_state_dict(state)
        with self.in_place():
            self.optimizer.load_state_dict(state["optimizer"])


def copied_attributes(optimizer: Optimizer, replaced: Mapping[Tensor, Tensor] | None = None) -> dict[str, Any]:
    """Return copies of an optimizer's attributes, including its state and parameter groups, but without its hooks.

    Attributes that are not plain data, such as a lock or a process group, are shared.

    replaced: parameter -> the tensor that replaces it in the copies; other parameters are kept.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    memo: dict[int, Any] = {id(p): (replaced or {}).get(p, p) for p in params}
    copied: dict[str, Any] = {}
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            copied[name] = OrderedDict()
        elif name not in TEMPORARY:
            copied[name] = copy.deepcopy(value, memo) if isinstance(value, PLAIN) else value
    return copied


@contextmanager
def with_attributes(optimizer: Optimizer, attributes: dict[str, Any]) -> Iterator[None]:
    """Replace an optimizer's attributes inside the block; `attributes` keeps the changes made there."""
    own, now = dict(vars(optimizer)), vars(optimizer)
    now.clear()
    now.update(attributes)
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(now)
        now.clear()
        now.update(own)


def plain_step(optimizer: Optimizer) -> None:
    """Call the `step` of the optimizer's class, since schedulers count the calls of the instance's `step`."""
    with torch.no_grad():
        type(optimizer).step(optimizer)


def trained(network: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of the network that the optimizer updates."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [p for p in network.parameters() if p.requires_grad and id(p) in moved]


@torch.no_grad()
def shrink(params: Sequence[Tensor], decays: Sequence[bool], decay: float) -> None:
    """Shrink each parameter that decays by the fraction `decay`."""
    if shrunk := [p for p, decays_ in zip(params, decays, strict=True) if decays_]:
        torch._foreach_mul_(shrunk, 1 - decay)


def copies(params: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the parameters' values."""
    return [p.detach().clone() for p in params]


@torch.no_grad()
def shorten(params: Sequence[Tensor], before: Sequence[Tensor], longest: float) -> bool:
    """Shorten a step to at most `longest` times the length of the weights; return whether it was longer.

    Lengths are norms over all matrices. Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171) does the same
    with gradients.
    """
    matrices = [(p, b) for p, b in zip(params, before, strict=True) if p.dim() > 1]
    if not matrices:
        return False
    now, start = (list(tensors) for tensors in zip(*matrices, strict=True))
    norms = torch._foreach_norm([*torch._foreach_sub(now, start), *start])
    # read at once: each read waits for the device
    together = torch.stack([norm.to(norms[0].device) for norm in norms]).view(2, -1)
    length, size = torch.linalg.vector_norm(
        together.to(torch.promote_types(together.dtype, torch.float32)), dim=1
    ).tolist()
    if not length > longest * size:
        return False
    torch._foreach_lerp_(list(params), list(before), 1 - longest * size / length)
    return True


def clear_state(optimizer: Optimizer) -> None:
    """Delete the optimizer's state of each parameter, but not its other state."""
    for key in [key for key in optimizer.state if isinstance(key, Tensor)]:
        del optimizer.state[key]


def gradients_of(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a loss with respect to the parameters; zeros where it does not depend on one.

    Raises:
        ValueError: it depends on none of them.
    """
    if _checkpointed(loss):
        with _gradients_kept(params):
            for p in params:
                p.grad = None
            loss.backward()
            gradients = [p.grad for p in params]
    else:
        gradients = list(torch.autograd.grad(loss, list(params), allow_unused=True))
    if params and all(g is None for g in gradients):
        raise ValueError(
            "The loss does not depend on the weights that the optimizer updates: compute it with the given network."
        )
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, params, strict=True)]


@contextmanager
def _gradients_kept(params: Sequence[Tensor]) -> Iterator[None]:
    kept = [p.grad for p in params]
    try:
        yield
    finally:
        for p, grad in zip(params, kept, strict=True):
            p.grad = grad


def _checkpointed(loss: Tensor) -> bool:
    """Return whether the graph has a checkpoint with use_reentrant=True, where `torch.autograd.grad` fails."""
    nodes, new = {loss.grad_fn}, [loss.grad_fn]
    while new:
        for node, _ in new.pop().next_functions:  # type: ignore[union-attr]
            if node is not None and node not in nodes:
                nodes.add(node)
                new.append(node)
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes)  # type: ignore[union-attr]
