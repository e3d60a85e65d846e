"""A look that leaves no trace."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def no_trace(network: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluate `network` as validation does, then leave it and the random stream as if nothing had happened.

    In evaluation mode BatchNorm reads its statistics without updating them and dropout draws nothing: the
    hypergradient is that of the validation loss as validation measures it. Each submodule's own mode comes back.
    Metrics of torchmetrics among the submodules forget what they were told.

    batch_statistics: let BatchNorm normalise by the batch, and put its buffers back: where it has no statistics yet, or
    none of these weights.
    """
    modes = {module: module.training for module in network.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in network.buffers()} if batch_statistics else {}
    metrics = [module for module in network.modules() if hasattr(module, "_update_count")]  # torchmetrics: no buffers
    counted = [{name: copy.deepcopy(getattr(metric, name)) for name in _states(metric)} for metric in metrics]
    recurrent = any(isinstance(module, nn.RNNBase) for module in modes)  # cuDNN's have no backward in evaluation mode
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_statistics)
    try:
        backend = torch.backends.cudnn
        cudnn = backend.flags(enabled=False, deterministic=backend.deterministic) if recurrent else nullcontext()
        with cudnn, torch.random.fork_rng():  # some networks draw in evaluation mode too (a VAE, functional dropout)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for metric, states in zip(metrics, counted, strict=True):
            vars(metric).update(states)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


def _states(metric: Any) -> list[str]:
    return [*metric._defaults, "_update_count", "_computed"]
