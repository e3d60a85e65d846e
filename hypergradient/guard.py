"""What an adapted run is judged by: its losses, its last good average, and comparisons with another one."""

import math
from typing import Any

import torch
from torch import Tensor

from hypergradient.sets import TensorSet
from hypergradient.settings import Settings


class Guard:
    """Follows the losses of an adapted run, keeps its last good average, and judges comparisons."""

    # validation batches of a comparison
    BATCHES = 4

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.steps, self.smooth, self.at_move = 0, 0.0, [math.inf, math.inf]
        # L_val(A) at the first move, and the lowest one since
        self.first, self.lowest = math.nan, math.inf
        self.good: list[list[Tensor]] = []
        self.doubted, self.rewound = False, 0
        # of a comparison: by how much the loss of the run is above the other's, for each batch
        self.differences: list[float] = []

    def update(self, loss: float) -> None:
        """Follow the training loss of a step."""
        self.steps += 1
        self.smooth += (loss - self.smooth) / min(self.steps, self.settings.smoothing)

    def rises(self, look: float) -> bool:
        """Return whether both losses, that of the look and the training loss, are above those at the last move."""
        if math.isnan(self.first):
            self.first = look
        before, self.at_move, self.lowest = self.at_move, [look, self.smooth], min(look, self.lowest)
        return look > before[0] and self.smooth > before[1]

    def keep(self, average: TensorSet) -> None:
        """Keep the average as the last good one."""
        self.doubted = False
        self.good = [[value.clone() for value in values] for values in (average.weights, average.buffers)]

    def worse(self, errors: float, lost: float = 0.0) -> bool | None:
        """Return whether the run is the worse one of two; None where too few batches are compared yet.

        errors: standard errors by which its loss must be higher. lost: and this fraction of all that it had gained.
        """
        if len(self.differences) < self.BATCHES:
            return None
        found, self.differences = torch.tensor(self.differences, dtype=torch.float64, device="cpu"), []
        error = float(found.std()) / math.sqrt(self.BATCHES)
        # a loss that is not finite is worse
        return not float(found.mean()) <= max(errors * error, lost * (self.first - self.lowest) if lost else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to resume."""
        return {name: value for name, value in vars(self).items() if name != "settings"}
