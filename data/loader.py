"""Batches as slices of whole tensors: at this size a loader that collects single samples costs more than the step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class TensorLoader:
    """Batches of tensors of equal length; the order of an epoch follows from `seed` and its number alone.

    So two arms see the same batches, and a run resumed in mid-epoch goes on with the batch it would have had: the
    data module keeps `state_dict()` in the checkpoint.

    Args:
        tensors: each (samples, ...).
        batch_size: samples a batch; the last one of an epoch may be smaller.
        shuffle: draw a new order each epoch.
        seed: of the order.
        samples: an epoch's; beyond what there is another pass begins, reshuffled. Default: one pass.
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
        self.tensors, self.batch_size, self.shuffle, self.seed = tensors, batch_size, shuffle, seed
        self.samples = samples or len(tensors[0])
        self.epoch, self.position, (self.rank, self.processes) = -1, 0, share
        self._resume_at = 0

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if not self._resume_at:
            self.epoch += 1
        self.position, self._resume_at = self._resume_at, 0
        order = self._order()
        parts = [tensor[order].split(self.batch_size) for tensor in self.tensors]  # gathered once an epoch
        for batch in list(zip(*parts, strict=True))[self.position :]:
            self.position += 1
            yield tuple(part[self.rank % len(part) :: self.processes] for part in batch)  # of a small one too, some

    def _order(self) -> Tensor:
        size = len(self.tensors[0])
        if not self.shuffle:
            return torch.arange(self.samples) % size
        seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64).item()
        draw = torch.Generator().manual_seed(seed)
        passes = range(-(-self.samples // size))
        return torch.cat([torch.randperm(size, generator=draw) for _ in passes])[: self.samples]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were served."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there at the next `iter()`: after a whole epoch that is the next one."""
        self.epoch, self._resume_at = state["epoch"], state["position"] % len(self)
