"""A look that leaves no trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def no_trace(network: nn.Module) -> Iterator[None]:
    """Evaluate `network` as validation does, then leave it and the random stream as if nothing had happened.

    In evaluation mode BatchNorm reads its statistics without updating them and dropout draws nothing: the
    hypergradient is that of the validation loss as validation measures it. Each submodule's own mode comes back.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng():  # some networks draw in evaluation mode too (a VAE, functional dropout)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
