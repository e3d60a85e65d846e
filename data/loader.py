"""Batches as slices of whole tensors: at this size a loader that collects single samples costs more than the step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class TensorLoader:
    """Serve batches of tensors of equal length, so that two arms, or a run and its resumption, see the same ones.

    The order of the samples follows from the seed and the epoch alone. Lightning calls `set_epoch` of a loader's
    `sampler` before each epoch, also where a run is resumed. Elsewhere each iteration is the next epoch's.

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
        self.tensors, self.batch_size, self.shuffle, self.seed, self.share = tensors, batch_size, shuffle, seed, share
        self.samples, self.epoch = samples or len(tensors[0]), 0
        # Lightning reads both, as of a DataLoader
        self.sampler, self.batch_sampler = self, None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # with the first batch: Lightning sets the epoch after it has made the iterator
        epoch, self.epoch = self.epoch, self.epoch + 1
        size = len(self.tensors[0])
        order = torch.arange(self.samples) % size
        if self.shuffle:
            seed = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64).item()
            generator = torch.Generator().manual_seed(seed)
            passes = range(-(-self.samples // size))
            order = torch.cat([torch.randperm(size, generator=generator) for _ in passes])[: self.samples]
        # gathered once an epoch
        parts = [tensor[order].split(self.batch_size) for tensor in self.tensors]
        rank, processes = self.share
        for batch in zip(*parts, strict=True):
            # a batch smaller than the number of processes is shared by some of them
            yield tuple(part[rank % len(part) :: processes] for part in batch)
