"""mnist1d (Greydanus 2020, arXiv 2011.14439) as a LightningDataModule."""

from functools import lru_cache

import torch
from mnist1d.data import get_dataset_args, make_dataset
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from data.loader import TensorLoader

TRAIN, TEST = 4_000, 1_000
PUBLISHED, VALIDATION = 42, 43  # seeds of the generator: the paper's draw, and the one the validation set comes from


@lru_cache
def draw(seed: int) -> dict[str, Tensor]:
    """Return one draw of 5,000 samples: `x` (4000, 40) float32, `y` (4000,) int64, `x_test` and `y_test` (1000, ...).

    Seed 42 gives the arrays that the paper publishes. The global random generators are left as they were.
    """
    args = get_dataset_args()
    args.seed = seed
    with isolate_rng():
        arrays = make_dataset(args)  # not `get_dataset`: it downloads a pickle
    tensors = {key: torch.tensor(arrays[key]) for key in ("x", "y", "x_test", "y_test")}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


class MNIST1DDataModule(LightningDataModule):
    """The published 4,000 training and 1,000 test samples, and a validation set.

    A training batch is a pair {"train": (x, y), "val": (x, y)}: x (batch, 40) float32, y (batch,) int64. Arms that do
    not adapt ignore "val", so all arms see the same batches. An epoch is one pass over the training samples.

    Args:
        batch_size: training samples a step.
        val_batch_size: validation samples a step, for the lookahead. Validation itself takes the whole set.
        held_out: 0 draws 1,000 validation samples from the same generator under another seed. More than 0 takes that
            many from the training samples instead, which are then fewer.

    Raises:
        ValueError: a size that does not fit the data.
    """

    def __init__(self, batch_size: int = 128, val_batch_size: int = 128, held_out: int = 0) -> None:
        super().__init__()
        _require("held_out", held_out, 0, TRAIN - 1)
        _require("batch_size", batch_size, 1, TRAIN - held_out)
        _require("val_batch_size", val_batch_size, 1, held_out or TEST)
        self.batch_size, self.val_batch_size, self.held_out = batch_size, val_batch_size, held_out

    def setup(self, stage: str) -> None:
        """Generate the arrays: about two seconds a draw, once a process."""
        published = draw(PUBLISHED)
        train, self.test = (published["x"], published["y"]), (published["x_test"], published["y_test"])
        if self.held_out:
            kept = TRAIN - self.held_out
            self.train = train[0][:kept], train[1][:kept]
            self.val = train[0][kept:], train[1][kept:]
        else:
            fresh = draw(VALIDATION)
            self.train, self.val = train, (fresh["x_test"], fresh["y_test"])

    def train_dataloader(self) -> CombinedLoader:
        """Pairs of a training and a validation batch; their order follows from `seed_everything`."""
        seed = torch.initial_seed()
        train = TensorLoader(*self.train, batch_size=self.batch_size, shuffle=True, seed=seed)
        size = self.val_batch_size
        samples = len(train) * size  # as many batches as there are of training samples
        val = TensorLoader(*self.val, batch_size=size, shuffle=True, seed=seed + 1, samples=samples)
        return CombinedLoader({"train": train, "val": val}, "min_size")

    def val_dataloader(self) -> TensorLoader:
        """Return the whole validation set as one batch."""
        return TensorLoader(*self.val, batch_size=len(self.val[0]))

    def test_dataloader(self) -> TensorLoader:
        """Return the whole test set as one batch."""
        return TensorLoader(*self.test, batch_size=TEST)

    def predict_dataloader(self) -> TensorLoader:
        """Return the validation inputs: the test set is read once, by `test`."""
        return TensorLoader(self.val[0], batch_size=len(self.val[0]))


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"--data.{name} must lie between {least} and {most} here, got {value}.")
