"""Serve batches as slices of whole tensors: with small networks, collating single samples costs more than a step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class TensorLoader:
    """Serves batches of tensors of equal length: the same ones to all arms, and to a run when it resumes.

    The order of the samples depends only on the seed and the epoch. Lightning calls `set_epoch` of a loader's `sampler`
    before each epoch, also when a run resumes. Without Lightning, each iteration is the next epoch.

    Args:
        tensors: each (samples, ...).
        batch_size: samples per batch; the last one of an epoch may be smaller.
        shuffle: draw a new order in each epoch.
        seed: the seed of the order.
        samples: samples per epoch; if there are fewer, they are served again, reshuffled. Default: all, once.
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
        # Lightning reads both, as for a DataLoader
        self.sampler, self.batch_sampler = self, None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # read at the first batch, since Lightning sets the epoch after it has created the iterator
        epoch, self.epoch = self.epoch, self.epoch + 1
        size = len(self.tensors[0])
        order = torch.arange(self.samples) % size
        if self.shuffle:
            seed = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64).item()
            generator = torch.Generator().manual_seed(seed)
            passes = range(-(-self.samples // size))
            order = torch.cat([torch.randperm(size, generator=generator) for _ in passes])[: self.samples]
        # gathered once per epoch
        parts = [tensor[order].split(self.batch_size) for tensor in self.tensors]
        rank, processes = self.share
        for batch in zip(*parts, strict=True):
            # if a batch has fewer samples than there are processes, some processes get the same sample
            yield tuple(part[rank % len(part) :: processes] for part in batch)
