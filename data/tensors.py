"""A LightningDataModule over whole tensors: what all tasks have in common."""

import hashlib
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor

from data.loader import TensorLoader

Samples = tuple[Tensor, Tensor]
"""Inputs, (samples, ...), and targets: classes, (samples, ...) int64, or values, (samples,) float32."""


class TensorDataModule(LightningDataModule):
    """Training, validation and test samples that fit into memory; a subclass returns them from `samples`.

    A training batch is a pair {"train": (x, y), "val": (x, y)}. Arms that do not look at validation data ignore "val",
    so all arms see the same batches. An epoch is one pass over the training samples.

    Args:
        batch_size: training samples a step; several processes share them.
        val_batch_size: validation samples a step, for a look. Validation itself takes the whole set.
        train: the number of training samples.
        val: the number of validation samples.
        seed: of the data.

    Raises:
        ValueError: a size that does not fit the data.
    """

    def __init__(self, batch_size: int, val_batch_size: int, train: int, val: int, seed: int = 0) -> None:
        super().__init__()
        require("batch_size", batch_size, 1, train)
        require("val_batch_size", val_batch_size, 1, val)
        self.batch_size, self.val_batch_size, self.sizes, self.seed = batch_size, val_batch_size, (train, val), seed

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Return the training, the validation and the test samples."""
        raise NotImplementedError

    def cut(self, x: Tensor, y: Tensor) -> tuple[Samples, Samples, Samples]:
        """Return the first samples to train on, those after them to validate, and the rest to test."""
        rest = len(y) - sum(self.sizes)
        (a, b, c), (d, e, f) = (tensor.split([*self.sizes, rest]) for tensor in (x, y))
        return (a, d), (b, e), (c, f)

    def setup(self, stage: str) -> None:
        """Make the samples, once, so that those that identify a run are those that are trained; check all of them.

        Raises:
            ValueError: a set cannot be trained or evaluated; the message says which one and why.
        """
        if hasattr(self, "train"):
            return
        self.train, self.val, self.test = self.samples()
        for name in ("train", "val", "test"):
            x, y = getattr(self, name)
            if not len(x) == len(y) > 0:
                raise ValueError(f"data: {name} has {len(x)} inputs and {len(y)} targets; give one of each a sample")
            if y.dtype not in (torch.int64, torch.float32):
                raise ValueError(f"data: targets of {name} are {y.dtype}; classes must be int64, values float32")
            if not x.isfinite().all() or not y.isfinite().all():
                raise ValueError(f"data: {name} holds numbers that are not finite")
            kinds = [[(part.shape[1:], part.dtype) for part in parts] for parts in ((x, y), self.train)]
            if kinds[0] != kinds[1]:
                raise ValueError(f"data: samples of {name} differ in shape or type from those of train")

    def digest(self) -> str:
        """Identify the samples that were set up, in their order."""
        found = hashlib.sha256()
        for tensor in (*self.train, *self.val, *self.test):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return f"sha256:{found.hexdigest()[:16]}"

    def train_dataloader(self) -> CombinedLoader:
        """Return pairs of a training and a validation batch; their order follows from `seed_everything`."""
        seed = torch.initial_seed()
        train = self._loader(*self.train, batch_size=self.batch_size, shuffle=True, seed=seed)
        size = self.val_batch_size
        # as many batches as there are of training samples
        samples = len(train) * size
        val = self._loader(*self.val, batch_size=size, shuffle=True, seed=seed + 1, samples=samples)
        return CombinedLoader({"train": train, "val": val}, "min_size")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch on the CPU if it belongs there: Lightning's walk through it costs as much as a small layer."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(self, *tensors: Tensor, **options: Any) -> TensorLoader:
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return TensorLoader(*tensors, share=share, **options)

    def val_dataloader(self) -> TensorLoader:
        """Return the whole validation set as one batch."""
        return self._loader(*self.val, batch_size=len(self.val[0]))

    def test_dataloader(self) -> TensorLoader:
        """Return the whole test set as one batch."""
        return self._loader(*self.test, batch_size=len(self.test[0]))


def require(name: str, value: int, least: int, most: int) -> None:
    """Raise ValueError for a number that does not lie between `least` and `most`."""
    if not least <= value <= most:
        raise ValueError(f"--data.{name} must lie between {least} and {most} here, got {value}.")
