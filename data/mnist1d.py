"""mnist1d (Greydanus 2020, arXiv 2011.14439) as a LightningDataModule."""

import os
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from joblib import Memory
from mnist1d.data import get_dataset_args, make_dataset
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from data.tensors import Samples, TensorDataModule, require

# the paper's seed of the generator; data seed k uses 42 + 2 k, and 43 + 2 k for its validation set
PUBLISHED = 42


def arrays(seed: int, generator: str) -> dict[str, Tensor]:
    """Generate the samples, in about a second. generator: its version, which is part of the cache's key."""
    del generator
    args = get_dataset_args()
    args.seed = seed
    with isolate_rng():
        # not `get_dataset`: it downloads a pickle
        made = make_dataset(args)
    x, x_test = torch.tensor(made["x"]).float(), torch.tensor(made["x_test"]).float()
    return {"x": x, "y": torch.tensor(made["y"]), "x_test": x_test, "y_test": torch.tensor(made["y_test"])}


@lru_cache
def generate(seed: int) -> dict[str, Tensor]:
    """Return 5,000 samples: `x` (4000, 40) float32, `y` (4000,) int64, `x_test` and `y_test` (1000, ...).

    Seed 42 gives the arrays that the paper publishes. They are cached in HYPERGRADIENT_CACHE, or in
    ~/.cache/hypergradient; a damaged file, detected by its checksum, is written again. The global random generators are
    not changed.
    """
    folder = Path(os.environ.get("HYPERGRADIENT_CACHE", "~/.cache/hypergradient")).expanduser()
    made: dict[str, Tensor] = Memory(folder, verbose=0, compress=True).cache(arrays)(seed, version("mnist1d"))
    return made


class MNIST1DDataModule(TensorDataModule):
    """4,000 training, 1,000 validation and 1,000 test samples: x (samples, 40) float32, y (samples,) int64.

    `seed` 0 gives the published samples; 1, 2, ... others from the same generator.
    """

    def __init__(self, batch_size: int = 128, val_batch_size: int = 128, seed: int = 0) -> None:
        require("seed", seed, 0, 1_000)
        super().__init__(batch_size, val_batch_size, 4_000, 1_000, seed)

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Generate the samples, or read them from the cache."""
        own, fresh = generate(PUBLISHED + 2 * self.seed), generate(PUBLISHED + 2 * self.seed + 1)
        return (own["x"], own["y"]), (fresh["x_test"], fresh["y_test"]), (own["x_test"], own["y_test"])
