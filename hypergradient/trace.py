"""Evaluate a network without side effects."""

import copy
import operator
import pickle
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# types of a module's attributes that a forward pass may change in place
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
# attributes that every module has
MODULE = frozenset(vars(nn.Module()))
# packages with a random stream, and the functions that read and set it
STREAMS = {"random": ("getstate", "setstate"), "numpy.random": ("get_state", "set_state")}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Restore, after the block, the attributes and modes of a network's modules, and torch's random streams.

    Tensors changed in place, such as BatchNorm's statistics, are left to the caller: see `hypergradient.sets`.
    """
    modules = list(network.modules())
    modes = [module.training for module in modules]
    attributes = [dict(vars(module)) for module in modules]
    own_names = [(own, own.keys() - MODULE) for own in attributes]
    mutable = [own[name] for own, names in own_names for name in names if type(own[name]) in CONTAINERS]
    # `mutable` grows in this loop: containers may contain others
    known = {id(value) for value in mutable}
    for container in mutable:
        for value in container.values() if isinstance(container, dict) else container:
            if type(value) in CONTAINERS and id(value) not in known:
                known.add(id(value))
                mutable.append(value)
    # a scripted module does not have its buffers in a dictionary
    mutable += [own["_buffers"] for own in attributes if own["_buffers"] and isinstance(own["_buffers"], dict)]
    containers = [(value, copy.copy(value)) for value in mutable]
    # metrics of torchmetrics change their states in place
    metrics = [own for own in attributes if "_update_count" in own]
    states = [
        {name: own[name].clone() for name in own["_defaults"] if isinstance(own[name], Tensor)} for own in metrics
    ]
    generators = [torch.default_generator, *(torch.cuda.default_generators[number] for number in gpus(network))]
    streams = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, stream in zip(generators, streams, strict=True):
            generator.set_state(stream)
        for own, state in zip(metrics, states, strict=True):
            own |= state
        for value, kept in containers:
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(kept)
        for module, own, mode in zip(modules, attributes, modes, strict=True):
            now = vars(module)
            # by identity: tensors have no truth value
            if len(now) != len(own) or not all(map(operator.is_, now.values(), own.values())):
                now.clear()
                now.update(own)
            # the mode of a scripted module is not in its dictionary
            if module.training != mode:
                module.training = mode


class Streams:
    """Random streams other than torch's default ones: those of Python and NumPy, and given generators.

    Each `own()` block continues the generators from the previous block. Reading NumPy's stream costs a tenth of a small
    step, so the streams of packages from which none of the first ten blocks draws are ignored afterwards.
    """

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self.states = {generator: generator.get_state() for generator in generators}
        self.calls: dict[Any, list[Any]] = {g: [g.get_state, g.set_state] for g in self.states}
        for name in STREAMS.keys() & sys.modules.keys():
            self.calls[name] = [getattr(sys.modules[name], call) for call in STREAMS[name]]
        self.times, self.drawn = 0, set(self.calls) - STREAMS.keys()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Restore the streams after the block."""
        outer = {key: get() for key, (get, _) in self.calls.items()}
        for generator, state in self.states.items():
            generator.set_state(state)
        try:
            yield
        finally:
            self.times, self.states = self.times + 1, {generator: generator.get_state() for generator in self.states}
            for key, (get, put) in self.calls.items():
                if key not in self.drawn and pickle.dumps(get()) != pickle.dumps(outer[key]):
                    self.drawn.add(key)
                put(outer[key])
            if self.times == 10:
                self.calls = {key: self.calls[key] for key in self.drawn}


@contextmanager
def no_trace(network: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Put a network into evaluation mode inside the block; then restore it and the random streams.

    BatchNorm does not update its statistics and dropout is off, so losses are as in validation.

    Args:
        network: the network.
        batch_statistics: let BatchNorm normalize by the batch, for weights of which it has no statistics. This updates
            its buffers. Layers that were in evaluation mode before use their statistics, and so do batches with one
            value per channel, which have no variance.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with no_trace(network):
        ...     loss = network(torch.randn(8, 2)).sum()
        >>> network.training, network[0].running_mean
        (True, tensor([0., 0.]))
    """
    # cuDNN's recurrent layers have no backward pass in evaluation mode
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    backend = torch.backends.cudnn
    cudnn = backend.flags(enabled=False, deterministic=backend.deterministic) if recurrent else nullcontext()
    hooks = []
    with unchanged(network), cudnn:
        for module in network.modules():
            if batch_statistics and module.training and isinstance(module, BATCH_NORMS):
                hooks.append(module.register_forward_pre_hook(_normalize_by_the_batch, with_kwargs=True))
            if module.training:
                module.training = False
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def gpus(network: nn.Module) -> list[int]:
    """Return the CUDA devices of the network's parameters, whose random streams it may use."""
    if not torch.cuda.is_initialized():
        return []
    return list({p.device.index for p in network.parameters() if p.is_cuda})


def _normalize_by_the_batch(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = args[0] if args else kwargs["input"]
    norm.training = x.numel() > x.shape[1]
