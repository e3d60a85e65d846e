"""The constants of the adapted learning rate."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer

LEAST = 16  # samples of a hypothetical step


@dataclass(frozen=True)
class Settings:
    """The constants of the method; the defaults were chosen over many tasks (docs/method.md).

    Raises:
        ValueError: one is out of range.
    """

    meta_lr: float = 2.0  # κ; 0 holds the rate
    start: float = 0.03  # c
    weight_decay: float = 0.005  # λ at first, in units of rms(Δ(1)) / rms(θ); 0 for none
    factor: float = 2.0  # of the hypothetical rate over the real one
    pull: float = 0.1  # the part of the way back to the real run, after each hypothetical step

    def __post_init__(self) -> None:
        for name, what, true in (
            ("meta_lr", "0 or more, and finite", 0 <= self.meta_lr < math.inf),
            ("start", "positive and finite", 0 < self.start < math.inf),
            ("weight_decay", "0 or more, and finite", 0 <= self.weight_decay < math.inf),
            ("factor", "positive, finite, and not 1", 0 < self.factor < math.inf and self.factor != 1),
            ("pull", "between 0 and 1", 0 <= self.pull <= 1),
        ):
            if not true:
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)}.")

    def check(self, optimizer: Optimizer) -> None:
        """Refuse a second weight decay.

        Raises:
            ValueError: the optimizer has one of its own.
        """
        if self.weight_decay and any(group.get("weight_decay") for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has a weight decay of its own, beside the one that is adapted. Give it "
                "weight_decay=0, or the method weight_decay 0."
            )
