"""mnist1d (Greydanus 2020, arXiv 2011.14439) as a LightningDataModule."""

import os
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from joblib import Memory
from mnist1d.data import get_dataset_args, make_dataset
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from data.tensors import Samples, TensorDataModule, require

TRAIN, TEST = 4_000, 1_000
# seed of the generator: the paper's; data seed k is 42 + 2 k, and its validation set 43 + 2 k
PUBLISHED = 42


def cache() -> Path:
    """Return the folder that keeps generated data: HYPERGRADIENT_CACHE, or hypergradient in ~/.cache."""
    own = os.environ.get("HYPERGRADIENT_CACHE")
    # a user may have no home
    home = Path(os.environ.get("HOME") or tempfile.gettempdir())
    return Path(own) if own else home / ".cache" / "hypergradient"


def arrays(seed: int, generator: str) -> dict[str, Any]:
    """Generate the arrays, which takes about a second.

    generator: its version, a part of the cache's key.
    """
    del generator
    args = get_dataset_args()
    args.seed = seed
    with isolate_rng():
        # not `get_dataset`: it downloads a pickle
        made: dict[str, Any] = make_dataset(args)
    return {key: made[key] for key in ("x", "y", "x_test", "y_test")}


@lru_cache
def generate(seed: int) -> dict[str, Tensor]:
    """Return 5,000 samples: `x` (4000, 40) float32, `y` (4000,) int64, `x_test` and `y_test` (1000, ...).

    Seed 42 gives the arrays that the paper publishes. They are cached on disk where possible; a damaged file (it is
    compressed, with a checksum) is written again. The global random generators are left as they were.
    """
    asked = seed, f"mnist1d {version('mnist1d')}"
    try:
        made = Memory(cache(), verbose=0, compress=True).cache(arrays)(*asked)
    except OSError:
        # the folder cannot be created
        made = arrays(*asked)
    tensors = {key: torch.tensor(array) for key, array in made.items()}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


class MNIST1DDataModule(TensorDataModule):
    """4,000 training, 1,000 validation and 1,000 test samples: x (samples, 40) float32, y (samples,) int64.

    Args:
        batch_size: training samples a step.
        val_batch_size: validation samples a step, for a look. Validation itself takes the whole set.
        seed: of the data; 0 for the published samples, 1, 2, ... for others from the same generator.

    Raises:
        ValueError: a size that does not fit the data.
    """

    def __init__(self, batch_size: int = 128, val_batch_size: int = 128, seed: int = 0) -> None:
        require("seed", seed, 0, 1_000)
        super().__init__(batch_size, val_batch_size, TRAIN, TEST)
        self.seed = seed

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Generate the arrays, or read them from the cache."""
        own, fresh = generate(PUBLISHED + 2 * self.seed), generate(PUBLISHED + 2 * self.seed + 1)
        train, test = (own["x"], own["y"]), (own["x_test"], own["y_test"])
        return train, (fresh["x_test"], fresh["y_test"]), test
