"""Text as bytes: the sources of Python's standard library."""

import sysconfig
from pathlib import Path

import torch

from data.tensors import Samples, TensorDataModule

TOKENS = 32
# numbers of windows, each of TOKENS tokens and the next one
TRAIN, VAL, TEST = 8_192, 512, 1_024
# published numbers were measured on the files of Python 3.11.7; with other versions, losses differ slightly
FILES = "argparse ast csv dataclasses difflib doctest enum inspect locale mailbox pickle statistics tarfile typing"


class TextDataModule(TensorDataModule):
    """Predict the next byte: x and y (samples, 32) int64. `seed` distributes the windows over the three sets."""

    def __init__(self, batch_size: int = 32, val_batch_size: int = 32, seed: int = 0) -> None:
        super().__init__(batch_size, val_batch_size, TRAIN, VAL, seed)

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Cut the text into windows, and distribute them."""
        folder = Path(sysconfig.get_path("stdlib"))
        text = b"".join((folder / f"{name}.py").read_bytes() for name in FILES.split())
        windows = torch.tensor(list(text), dtype=torch.uint8).unfold(0, TOKENS + 1, TOKENS + 1)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(self.seed))
        dealt = windows[order[: TRAIN + VAL + TEST]].long()
        return self.cut(dealt[:, :-1].contiguous(), dealt[:, 1:].contiguous())
