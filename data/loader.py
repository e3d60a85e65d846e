"""Batches as slices of whole tensors: at this size a loader that collects single samples costs more than the step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class Order:
    """Draw the order of the samples, which follows from the seed and the epoch alone.

    Lightning calls `set_epoch` on a loader's `sampler` before each epoch, also where a run is resumed. Elsewhere each
    draw is the next epoch's.
    """

    def __init__(self, size: int, samples: int, shuffle: bool, seed: int) -> None:
        self.size, self.samples, self.shuffle, self.seed = size, samples, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next draw, counted from 0."""
        self.epoch = epoch

    def draw(self) -> Tensor:
        """Return the indices of an epoch, (samples,) int64: several passes where there are more than `size`."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if not self.shuffle:
            return torch.arange(self.samples) % self.size
        seed = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64).item()
        generator = torch.Generator().manual_seed(seed)
        passes = range(-(-self.samples // self.size))
        return torch.cat([torch.randperm(self.size, generator=generator) for _ in passes])[: self.samples]


class TensorLoader:
    """Serve batches of tensors of equal length, so that two arms, or a run and its resumption, see the same ones.

    Args:
        tensors: each (samples, ...).
        batch_size: samples a batch; the last one of an epoch may be smaller.
        shuffle: draw a new order each epoch.
        seed: of the order.
        samples: an epoch's; beyond what the tensors hold another pass begins, reshuffled. Default: one pass.
        share: (rank, processes): this process gets its part of every batch.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        samples: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.tensors, self.batch_size, (self.rank, self.processes) = tensors, batch_size, share
        self.samples = samples or len(tensors[0])
        self.sampler = Order(len(tensors[0]), self.samples, shuffle, seed)
        # Lightning reads both, as of a DataLoader
        self.batch_sampler = None

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # drawn with the first batch: Lightning sets the epoch after it has made the iterator
        order = self.sampler.draw()
        # gathered once an epoch
        parts = [tensor[order].split(self.batch_size) for tensor in self.tensors]
        for batch in zip(*parts, strict=True):
            # a batch smaller than the number of processes is shared by some of them
            yield tuple(part[self.rank % len(part) :: self.processes] for part in batch)
