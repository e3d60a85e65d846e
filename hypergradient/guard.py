"""Detect failures of an adapted run: its losses, its last good average, and comparisons of two runs."""

import math
from typing import Any

import torch
from torch import Tensor

from hypergradient.sets import TensorSet
from hypergradient.settings import Settings


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of the values and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


class Guard:
    """Tracks the losses of an adapted run, stores its last good average, and evaluates comparisons."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.steps, self.smooth, self.at_move = 0, 0.0, [math.inf, math.inf]
        # L_val(A) at the first move, and the lowest one since
        self.first, self.lowest = math.nan, math.inf
        self.good: list[list[Tensor]] = []
        self.doubted, self.rewound = False, 0
        # of the current comparison, for each batch: the losses of the run, of the good average and, in a race, of the
        # hypothetical run
        self.losses: list[list[float]] = []

    def update(self, loss: float) -> None:
        """Update the smoothed training loss."""
        self.steps += 1
        self.smooth += (loss - self.smooth) / min(self.steps, self.settings.smoothing)

    def rises(self, look: float) -> bool:
        """Return whether L_val(A), `look`, and the smoothed training loss are both above those at the last move."""
        if math.isnan(self.first):
            self.first = look
        before, self.at_move, self.lowest = self.at_move, [look, self.smooth], min(look, self.lowest)
        return look > before[0] and self.smooth > before[1]

    def keep(self, average: TensorSet) -> None:
        """Keep the average as the last good one."""
        self.doubted = False
        self.good = [[value.clone() for value in values] for values in (average.weights, average.buffers)]

    def compared(self) -> tuple[Tensor, ...]:
        """Return the losses of each compared run, in float64; nothing until there are enough batches."""
        if len(self.losses) < self.settings.batches:
            return ()
        found, self.losses = torch.tensor(self.losses, dtype=torch.float64, device="cpu"), []
        return found.unbind(1)

    @property
    def gained(self) -> float:
        """The decrease of L_val(A) since the first move."""
        return self.first - self.lowest

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {name: value for name, value in vars(self).items() if name != "settings"}
