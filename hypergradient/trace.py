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

# of a module's attributes, those that a forward pass may change in place
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
# and those that are torch's own
MODULE = frozenset(vars(nn.Module()))
# modules that have a random stream, and how it is read and set
STREAMS = {"random": ("getstate", "setstate"), "numpy.random": ("get_state", "set_state")}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Leave the network's modules and torch's random stream as they were: attributes, modes, replaced buffers.

    Values that are changed in place, as BatchNorm's statistics, are the caller's: see `hypergradient.sets`.
    """
    modules = list(network.modules())
    modes = [module.training for module in modules]
    attributes = [dict(vars(module)) for module in modules]
    own_names = [(own, own.keys() - MODULE) for own in attributes]
    mutable = [own[name] for own, names in own_names for name in names if type(own[name]) in CONTAINERS]
    # which grows while it is read: containers may have others in them
    known = {id(value) for value in mutable}
    for container in mutable:
        for value in container.values() if isinstance(container, dict) else container:
            if type(value) in CONTAINERS and id(value) not in known:
                known.add(id(value))
                mutable.append(value)
    # those of a scripted module are in no dictionary
    mutable += [own["_buffers"] for own in attributes if own["_buffers"] and isinstance(own["_buffers"], dict)]
    containers = [(value, copy.copy(value)) for value in mutable]
    # a metric of torchmetrics adds to its states in place
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
    """Random streams outside of torch's default ones; generators continue in `own()` where they were in the last one.

    To read NumPy's costs a tenth of a small step: a module's stream that ten evaluations do not draw from is left out.
    """

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self.states = {generator: generator.get_state() for generator in generators}
        self.calls: dict[Any, list[Any]] = {g: [g.get_state, g.set_state] for g in self.states}
        for name in STREAMS.keys() & sys.modules.keys():
            self.calls[name] = [getattr(sys.modules[name], call) for call in STREAMS[name]]
        self.times, self.drawn = 0, set(self.calls) - STREAMS.keys()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Leave the streams as they were."""
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
    """Evaluate `network` as validation does, then leave it and the random stream as they were.

    In evaluation mode BatchNorm reads its statistics without updating them and dropout draws nothing: the
    hypergradient is that of the validation loss as validation measures it.

    Args:
        network: whose modules are put into evaluation mode here.
        batch_statistics: let BatchNorm normalize by the batch, where it has no statistics of these weights. This
            updates its buffers. Layers that were in evaluation mode before stay frozen, and a batch of one value per
            channel, which has no variance, is normalized by the statistics.

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
    """Return the CUDA devices of the network's parameters, whose random streams it may draw from."""
    if not torch.cuda.is_initialized():
        return []
    return list({p.device.index for p in network.parameters() if p.is_cuda})


def _normalize_by_the_batch(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = args[0] if args else kwargs["input"]
    norm.training = x.numel() > x.shape[1]
