"""Means over the processes of a group."""

import torch
from torch import Tensor


def mean_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """Return the mean of each tensor over the processes; with one process, the tensors themselves."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensors
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one call, not one per tensor
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
