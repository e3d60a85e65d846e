"""A LightningDataModule over whole tensors: what is alike for every task."""

from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor

from data.loader import TensorLoader

Samples = tuple[Tensor, Tensor]
"""Inputs, (samples, ...), and targets: classes, (samples,) int64, or values, (samples,) float32."""


class TensorDataModule(LightningDataModule):
    """Training, validation and test samples that fit into memory; a subclass says which, in `samples`.

    A training batch is a pair {"train": (x, y), "val": (x, y)}. Arms that do not look at validation data ignore "val",
    so all arms see the same batches. An epoch is one pass over the training samples.

    Args:
        batch_size: training samples a step; several processes share them.
        val_batch_size: validation samples a step, for a look. Validation itself takes the whole set.
        train_on_validation: train on the validation samples too. The validation loss then says nothing.
        train: how many training samples there are.
        val: how many validation samples.

    Raises:
        ValueError: a size that does not fit the data.
    """

    def __init__(self, batch_size: int, val_batch_size: int, train_on_validation: bool, train: int, val: int) -> None:
        super().__init__()
        require("batch_size", batch_size, 1, train + val * train_on_validation)
        require("val_batch_size", val_batch_size, 1, val)
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.train_on_validation = train_on_validation
        self.place: dict[str, dict[str, int]] = {}  # in the training batches, where a run goes on

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Return the training, the validation and the test samples."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Make the samples: generated, or read from a package; nothing is downloaded.

        Raises:
            ValueError: a set is empty, or its inputs and targets do not fit.
        """
        self.train, self.val, self.test = self.samples()
        for name in ("train", "val", "test"):
            _check(name, *getattr(self, name))
        if self.train_on_validation:
            self.train = torch.cat([self.train[0], self.val[0]]), torch.cat([self.train[1], self.val[1]])

    def train_dataloader(self) -> CombinedLoader:
        """Pairs of a training and a validation batch; their order follows from `seed_everything`."""
        seed = torch.initial_seed()
        train = self._loader(*self.train, batch_size=self.batch_size, shuffle=True, seed=seed)
        size = self.val_batch_size
        samples = len(train) * size  # as many batches as there are of training samples
        val = self._loader(*self.val, batch_size=size, shuffle=True, seed=seed + 1, samples=samples)
        loaders = {"train": train, "val": val}
        for name, place in self.place.items():
            loaders[name].load_state_dict(place)
        self.place = {}
        return CombinedLoader(loaders, "min_size")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch on the CPU, if it is to be there: Lightning's walk through it costs what a small layer does."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training batches. Lightning's own is lost where a schedule asked for the steps."""
        loaders = self.trainer.train_dataloader if self.trainer else None
        return {name: loader.state_dict() for name, loader in (loaders or {}).items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, with the next training loader."""
        self.place = state_dict

    def _loader(self, *tensors: Tensor, **options: Any) -> TensorLoader:
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return TensorLoader(*tensors, share=share, **options)

    def val_dataloader(self) -> TensorLoader:
        """Return the whole validation set as one batch."""
        return self._loader(*self.val, batch_size=len(self.val[0]))

    def test_dataloader(self) -> TensorLoader:
        """Return the whole test set as one batch."""
        return self._loader(*self.test, batch_size=len(self.test[0]))

    def predict_dataloader(self) -> TensorLoader:
        """Return the validation inputs: the test set is read once, by `test`."""
        return self._loader(self.val[0], batch_size=len(self.val[0]))


def _check(name: str, x: Tensor, y: Tensor) -> None:
    if not len(x) == len(y) > 0:
        raise ValueError(f"data: {name} has {len(x)} inputs and {len(y)} targets; as many of each, and one at least.")
    if y.dtype not in (torch.int64, torch.float32):
        raise ValueError(f"data: targets of {name} are {y.dtype}; classes must be int64, values float32.")
    if not x.isfinite().all() or not y.isfinite().all():
        raise ValueError(f"data: {name} holds numbers that are not finite.")


def require(name: str, value: int, least: int, most: int) -> None:
    """Refuse a number that does not lie between `least` and `most`.

    Raises:
        ValueError: it does not.
    """
    if not least <= value <= most:
        raise ValueError(f"--data.{name} must lie between {least} and {most} here, got {value}.")
