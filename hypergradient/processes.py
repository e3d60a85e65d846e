"""Means over the processes of a group."""

import gc
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def mean_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """Return the mean of each tensor over the processes; of one process, the tensors themselves."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensors
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one call, not one a tensor
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def wrappers(network: nn.Module) -> list[Any]:
    """Return the DDP modules around a network, which know it, and not the other way round."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    found = [own for own in gc.get_objects() if issubclass(type(own), DistributedDataParallel)]
    return [own for own in found if network in (own, own.module)]


def refuse_join(wrappers: list[Any]) -> None:
    """Refuse DDP's `join`: a process whose batches have ended would not answer the others' means."""
    if any(wrapper._join_config.enable for wrapper in wrappers):
        raise RuntimeError(
            "RateAdapter takes means over all processes in each step, which join() does not answer for a process that "
            "has ended: give each the same number of batches, as DistributedSampler(drop_last=True) does."
        )
