"""The base class of the data modules: a LightningDataModule over whole tensors."""

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

    A training batch is a pair {"train": (x, y), "val": (x, y)}. Arms that do not use validation data ignore "val", so
    all arms get the same batches. An epoch is one pass over the training samples.

    Args:
        batch_size: training samples per step, shared by the processes.
        val_batch_size: validation samples per step, for a look. Validation itself uses the whole set.
        train: the number of training samples.
        val: the number of validation samples.
        seed: the seed of the data.

    Raises:
        ValueError: a batch size is out of range.
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
        """Split the samples, in their order, into a training, a validation and a test set."""
        rest = len(y) - sum(self.sizes)
        (a, b, c), (d, e, f) = (tensor.split([*self.sizes, rest]) for tensor in (x, y))
        return (a, d), (b, e), (c, f)

    def setup(self, stage: str) -> None:
        """Create the samples and check them, only once: a run is trained on the samples that its digest covers.

        Raises:
            ValueError: a set cannot be trained or evaluated; the message says which one and why.
        """
        if hasattr(self, "train"):
            return
        self.train, self.val, self.test = self.samples()
        for name in ("train", "val", "test"):
            if found := fault(getattr(self, name), self.train):
                raise ValueError(f"data: {name} {found}")

    def extremes(self) -> Samples:
        """Return the samples with the lowest and the highest inputs and targets, such as labels and tokens.

        A network that accepts them accepts all.
        """
        rows = []
        for x, y in (self.train, self.val, self.test):
            for part in (x.reshape(len(x), -1), y.reshape(len(y), -1)):
                rows += [(x[row], y[row]) for row in (part.amin(1).argmin(), part.amax(1).argmax())]
        inputs, targets = map(torch.stack, zip(*rows, strict=True))
        return inputs, targets

    def digest(self) -> str:
        """Return a digest of the samples, in their order."""
        found = hashlib.sha256()
        for tensor in (*self.train, *self.val, *self.test):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return f"sha256:{found.hexdigest()[:16]}"

    def train_dataloader(self) -> CombinedLoader:
        """Return pairs of a training and a validation batch; their order depends on `seed_everything`."""
        seed = torch.initial_seed()
        train = self._loader(*self.train, batch_size=self.batch_size, shuffle=True, seed=seed)
        size = self.val_batch_size
        # as many validation batches as training batches
        samples = len(train) * size
        val = self._loader(*self.val, batch_size=size, shuffle=True, seed=seed + 1, samples=samples)
        return CombinedLoader({"train": train, "val": val}, "min_size")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Skip a transfer to the CPU: Lightning's traversal of the batch costs as much as a small layer."""
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


def fault(samples: Any, train: Samples) -> str | None:
    """Return why a set cannot be used, or None. train: the training set, whose shapes and types it must have."""
    if not isinstance(samples, tuple | list) or [isinstance(part, Tensor) for part in samples] != [True, True]:
        return "must be a pair of tensors, inputs and targets"
    x, y = samples
    if not len(x) == len(y) >= 2:
        return f"has {len(x)} inputs and {len(y)} targets; give one of each per sample, and at least two samples"
    if y.dtype not in (torch.int64, torch.float32):
        return f"has {y.dtype} targets; classes must be int64, values float32"
    if y.shape[1:] == (1,):
        return f"has targets of shape {tuple(y.shape)}; give {(len(y),)}, as y.squeeze(1) is"
    if [(part.shape[1:], part.dtype) for part in samples] != [(part.shape[1:], part.dtype) for part in train]:
        return "has samples that differ in shape or type from those of train"
    if not x.isfinite().all() or not y.isfinite().all():
        return "holds numbers that are not finite"
    if y.is_floating_point() and (y == y[0]).all():
        return "has equal targets, of which R² is undefined; give values that differ"
    if not y.is_floating_point() and y.min() < 0:
        return f"has the label {y.min()}; classes count from 0. Leave out samples without a label"
    return None


def require(name: str, value: int, least: int, most: int) -> None:
    """Raise a ValueError if a number does not lie between `least` and `most`."""
    if not least <= value <= most:
        raise ValueError(f"--data.{name} must lie between {least} and {most} here, got {value}.")
