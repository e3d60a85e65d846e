"""The constants of the method."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The constants of the method; the defaults were chosen on many tasks (docs/method.md).

    Args:
        meta_lr: κ, the meta rate: the change of log α, per e-fold growth of the number of steps and unit of the
            normalized hypergradient; 0 holds the rate.
        start: c, the length of the first step over that of the weights, at the method's own start.
        race: number of steps of a race.
        batches: number of validation batches on which two runs are compared.
        margin: by how much more the higher rate of a race must gain than the run, over what the run gains in the race.
        highest: the length of a step over that of the weights at the highest rate of a race.
        weight_decay: λ at the start, in units of rms(Δ(1)) / rms(θ); 0 for none.
        factor: the hypothetical rate over the real one.
        pull: the fraction of the way to the real run by which the hypothetical run is pulled back after each step.
        window: the fraction of the run, at its end, over which weights and differences are averaged; 0: A is θ.
        part: the fraction of each training batch that a hypothetical step uses.
        least: the smallest number of samples in a hypothetical step.
        every: number of steps between looks, unless the rate moves more often.
        spacing: a move is due when the number of steps has grown by this fraction.
        delay: number of steps added to t in a move: in the first steps races find the rate, and moves are small.
        memory: number of moves whose mean square normalizes a hypergradient.
        cut: the largest normalized hypergradient.
        longest: the largest length of a step over that of the weights; longer steps are shortened.
        smoothing: number of steps over which training losses are averaged.
        lost: the run rewinds when it has lost this fraction of all that it had gained.
        rewinds: the largest number of rewinds.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> hold = Settings(meta_lr=0.0, weight_decay=0.0)  # holds the rate, and adapts no weight decay
        >>> Settings(meta_lr=-1.0)
        Traceback (most recent call last):
        ValueError: meta_lr must be 0 or more and finite, got -1.0.
    """

    meta_lr: float = 2.0
    start: float = 0.03
    race: int = 32
    batches: int = 8
    margin: float = 0.1
    highest: float = 0.5
    weight_decay: float = 0.005
    factor: float = 2.0
    pull: float = 0.1
    window: float = 0.1
    part: float = 0.375
    least: int = 16
    every: int = 16
    spacing: float = 0.1
    delay: int = 100
    memory: int = 10
    cut: float = 2.0
    longest: float = 0.1
    smoothing: int = 10
    lost: float = 0.2
    rewinds: int = 5

    def __post_init__(self) -> None:
        counts, fractions = ("least", "every", "memory", "smoothing", "race", "batches"), ("pull", "window", "part")
        positive = ("start", "highest", "factor", "part", "spacing", "cut", "longest")
        for name, value in vars(self).items():
            # a standard error needs two
            low, high = (
                (2 if name == "batches" else int(name in counts)),
                1 if name in fractions else sys.float_info.max,
            )
            valid = low <= value <= high and (value > 0 or name not in positive)
            if not valid or (name == "factor" and value == 1):
                lowest = f"above {low}" if name in positive else f"{low} or more"
                highest = "at most 1" if name in fractions else "finite, and not 1" if name == "factor" else "finite"
                raise ValueError(f"{name} must be {lowest} and {highest}, got {value}.")
