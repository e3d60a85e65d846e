"""The losses of an adapted run: whether it diverges, and whether it has become worse since the rate last moved."""

import math
from typing import Any

BEGINNING = 10  # steps


class Losses:
    """Those of the steps, smoothed, and those of the looks.

    Attributes:
        steps: how many there were.
        first: the mean of the first ten.
        smooth: at first that, then a running mean over about ten.
        at_move: of the looks before the last move, and the smoothed one there.
    """

    def __init__(self) -> None:
        self.steps, self.first, self.smooth = 0, 0.0, 0.0
        self.at_move = [math.inf, math.inf]

    def update(self, loss: float) -> None:
        """Take in the loss of a step."""
        self.steps += 1
        if self.steps <= BEGINNING:
            self.first += (loss - self.first) / self.steps
            self.smooth = self.first
        else:
            self.smooth += 0.1 * (loss - self.smooth)

    def above(self, part: float) -> bool:
        """Return whether the smoothed loss is above the first ones by that part of their size, of whatever sign."""
        return not self.smooth <= self.first + part * abs(self.first)

    def rise(self, look: float) -> bool:
        """Return whether both are above those of the last move, and remember them for the next one.

        look: the mean loss of the looks since the last move.
        """
        before, self.at_move = self.at_move, [look, self.smooth]
        return self.steps > BEGINNING and look > before[0] and self.smooth > before[1]

    def restart(self) -> None:
        """Go on as at the beginning, after a rewind."""
        self.smooth = self.first

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: numbers and a list."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)
