"""A look that leaves no trace."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hypergradient.copies import set_mode


@contextmanager
def no_trace(network: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluate `network` as validation does, then leave it and the random stream as if nothing had happened.

    In evaluation mode BatchNorm reads its statistics without updating them and dropout draws nothing: the
    hypergradient is that of the validation loss as validation measures it. Each submodule's own mode comes back.
    Metrics of torchmetrics among the submodules forget what they were told.

    batch_statistics: let BatchNorm normalise by the batch, and put its buffers back: where it has no statistics yet, or
    none of these weights. What is frozen, in evaluation mode before, stays so; one value is no batch.
    """
    modules = list(network.modules())
    modes = [module.training for module in modules]
    buffers = {buffer: buffer.detach().clone() for buffer in network.buffers()} if batch_statistics else {}
    metrics = [module for module in modules if "_update_count" in vars(module)]  # torchmetrics: no buffers
    counted = [{name: copy.deepcopy(getattr(metric, name)) for name in _states(metric)} for metric in metrics]
    recurrent = any(isinstance(module, nn.RNNBase) for module in modules)  # cuDNN's have no backward in evaluation mode
    hooks = []
    for module, mode in zip(modules, modes, strict=True):
        set_mode(module, False)
        if batch_statistics and mode and isinstance(module, nn.modules.batchnorm._BatchNorm):  # else it is frozen
            hooks.append(module.register_forward_pre_hook(_normalise_by_the_batch))
    try:
        backend = torch.backends.cudnn
        cudnn = backend.flags(enabled=False, deterministic=backend.deterministic) if recurrent else nullcontext()
        # some networks draw in evaluation mode too (a VAE, functional dropout)
        with cudnn, torch.random.fork_rng(devices=gpus(network)):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in zip(modules, modes, strict=True):
            set_mode(module, mode)
        for metric, states in zip(metrics, counted, strict=True):
            vars(metric).update(states)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


def gpus(network: nn.Module) -> list[int]:
    """Return the CUDA devices that the network lies on, whose random streams it may draw from."""
    if not torch.cuda.is_initialized():
        return []
    return list({p.device.index for p in network.parameters() if p.is_cuda})


def _normalise_by_the_batch(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    norm.training = inputs[0].numel() > inputs[0].shape[1]


def _states(metric: Any) -> list[str]:
    return [*metric._defaults, "_update_count", "_computed"]
