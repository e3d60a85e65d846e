"""Evaluate a network without side effects."""

import copy
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

# of a module's attributes, those that a forward pass may change in place
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Leave the network's modules and torch's random stream as they were: attributes, modes, replaced buffers.

    Values that are changed in place, as BatchNorm's statistics, are the caller's: see `hypergradient.sets`.
    """
    modules = list(network.modules())
    modes = [module.training for module in modules]
    attributes = [dict(vars(module)) for module in modules]
    mutable = [
        value for own in attributes for name, value in own.items() if name[0] != "_" and type(value) in CONTAINERS
    ]
    # those of a scripted module are in no dictionary
    mutable += [own["_buffers"] for own in attributes if own["_buffers"] and isinstance(own["_buffers"], dict)]
    containers = [(value, copy.copy(value)) for value in mutable]
    # a metric of torchmetrics adds to its states in place
    metrics = [own for own in attributes if "_update_count" in own]
    states = [copy.deepcopy({name: own[name] for name in own["_defaults"]}) for own in metrics]
    try:
        with torch.random.fork_rng(devices=gpus(network)):
            yield
    finally:
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
