"""Tasks whose samples are drawn from a formula."""

import math

import torch

from data.tensors import Samples, TensorDataModule, require

# number of half waves of the solution
WAVES = 3


class AddingDataModule(TensorDataModule):
    """The adding problem (Hochreiter & Schmidhuber 1997): 4,000 training, 1,000 validation and 1,000 test samples.

    x (samples, points, 2) float32: numbers between 0 and 1, and marks, 1 at one point of either half. y (samples,)
    float32: the sum of the two marked numbers, standardised.

    Args:
        batch_size: training samples per step.
        val_batch_size: validation samples per step, for a look.
        seed: the seed of the samples.
        points: the length of a sequence.
    """

    def __init__(self, batch_size: int = 64, val_batch_size: int = 128, seed: int = 0, points: int = 24) -> None:
        require("points", points, 2, 10_000)
        super().__init__(batch_size, val_batch_size, 4_000, 1_000, seed)
        self.points = points

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Draw the samples."""
        generator, size = torch.Generator().manual_seed(self.seed), sum(self.sizes) + 1_000
        numbers = torch.rand(size, self.points, generator=generator)
        halves = torch.randint(self.points // 2, (2, size), generator=generator)
        marks = torch.zeros(size, self.points)
        for place in (halves[0], halves[1] + self.points // 2):
            marks[torch.arange(size), place] = 1.0
        # the variance of the sum of two numbers is a sixth
        return self.cut(torch.stack([numbers, marks], 2), ((numbers * marks).sum(1) - 1) * math.sqrt(6))


class PoissonDataModule(TensorDataModule):
    """Points of Poisson's equation -u'' = k² sin(k x) on 0 ... 1, with u = 0 at both ends; k = 3 π.

    x (samples, 1) float32, y (samples,) float32: sin(k x), which `PoissonNetwork` returns if it solves the equation.
    2,048 training, 512 validation and 1,000 test points; `seed` draws them.
    """

    def __init__(self, batch_size: int = 64, val_batch_size: int = 128, seed: int = 0) -> None:
        super().__init__(batch_size, val_batch_size, 2_048, 512, seed)

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Draw the samples."""
        x = torch.rand(sum(self.sizes) + 1_000, 1, generator=torch.Generator().manual_seed(self.seed))
        return self.cut(x, torch.sin(math.pi * WAVES * x[:, 0]))
