"""Text that comes with every Python: the sources of its standard library, as bytes."""

import hashlib
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor

from data.tensors import Samples, TensorDataModule

TOKENS = 64
# windows, each of so many tokens and the one that follows
TRAIN, VAL, TEST = 4_096, 512, 1_024
FILES = "argparse ast csv dataclasses difflib doctest enum inspect locale mailbox pickle statistics tarfile typing"
# Python -> SHA-256 of the text that published numbers were measured on
PUBLISHED = {"3.11.7": "9a65de534dc0b801ed39da68f9b67f81da361fddfcbfab4ef351e1180314e36b"}


def corpus() -> bytes:
    """Return the text: some large modules of the standard library, one after the other.

    Warns:
        UserWarning: the text differs from that of the published numbers.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    text = b"".join((folder / f"{name}.py").read_bytes() for name in FILES.split())
    digest = hashlib.sha256(text).hexdigest()
    if digest not in PUBLISHED.values():
        warnings.warn(
            f"The sources of this Python ({digest[:12]}) are not those of the published numbers "
            f"({', '.join(f'Python {version}: {known[:12]}' for version, known in PUBLISHED.items())}): "
            "losses on `text` will differ a little.",
            stacklevel=2,
        )
    return text


class TextDataModule(TensorDataModule):
    """Predict the byte that follows: x and y (samples, 64) int64; `seed` deals the windows out to the three sets."""

    def __init__(self, batch_size: int = 32, val_batch_size: int = 32, seed: int = 0) -> None:
        super().__init__(batch_size, val_batch_size, TRAIN, VAL)
        self.seed = seed

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Cut the text into windows, and deal them out."""
        windows = torch.tensor(list(corpus()), dtype=torch.uint8).unfold(0, TOKENS + 1, TOKENS + 1)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(self.seed))
        train, val, test = windows[order[: TRAIN + VAL + TEST]].long().split([TRAIN, VAL, TEST])
        return _pairs(train), _pairs(val), _pairs(test)


def _pairs(windows: Tensor) -> Samples:
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
