"""What protects an adapted run: it climbs from a low start, does not rise while the losses do, and goes back."""

import math
from typing import Any

from torch import Tensor

from hypergradient.sets import TensorSet
from hypergradient.settings import Settings


class Guard:
    """Watches the losses of an adapted run: their `first` ones, and the `smooth` one of now.

    climb       a given rate below the start is doubled after each look that favours a larger one, until it is there
    no rise     of the rate while both L_val(A) and the smoothed loss are above those at the last move
    rewind      the smoothed loss is a fifth above the first ones, or not finite: back to the last good A, at α / 2

    A given rate above the start is lowered to it: what steps that are far too long do to a network is not undone, and
    not seen from where it leads.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.highest, self.climbing, self.steps, self.rewound = math.inf, False, 0, 0
        self.first, self.smooth, self.at_move = 0.0, 0.0, [math.inf, math.inf]
        self.good: list[list[Tensor]] = []

    def start(self, highest: float, lr: float | None) -> float:
        """Return the rate to start from."""
        rate, self.highest = min(lr or highest, highest), highest
        self.climbing = self.settings.meta_lr > 0 and rate < 0.999 * highest
        return rate

    def climb(self, rate: float, h: float) -> float:
        """Return the next rate of a run that climbs."""
        rate = min(2 * rate, self.highest) if h < 0 else rate
        self.climbing = rate < 0.999 * self.highest
        return rate

    def rises(self, look: float) -> bool:
        """Return whether both losses are above those at the last move, and remember them for the next one."""
        before, self.at_move = self.at_move, [look, self.smooth]
        return self.steps > self.settings.beginning and look > before[0] and self.smooth > before[1]

    def update(self, loss: float) -> None:
        """Follow the loss of a step."""
        self.steps += 1
        if self.steps <= self.settings.beginning:
            self.first += (loss - self.first) / self.steps
            self.smooth = self.first
        else:
            self.smooth += (loss - self.smooth) / self.settings.beginning

    def _above(self, fraction: float) -> bool:
        return not self.smooth <= self.first + fraction * abs(self.first)

    def keep(self, average: TensorSet) -> None:
        """Keep the average, if the losses are good."""
        if not self._above(self.settings.good):
            self.good = [[value.clone() for value in values] for values in (average.weights, average.buffers)]

    @property
    def diverged(self) -> bool:
        """Whether the run is to go back: never at a rate that is held."""
        return bool(self.good) and self.settings.meta_lr > 0 and self._above(self.settings.bad)

    def rewind(self, rate: float) -> float:
        """Return the rate after the run went back."""
        self.smooth, self.rewound, self.highest = self.first, self.rewound + 1, min(self.highest, rate / 2)
        return rate / 2

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to resume."""
        return {name: value for name, value in vars(self).items() if name != "settings"}
