"""LR schedules that torch's classes do not give from an optimizer and the number of steps alone."""

import csv
import math
from pathlib import Path

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau


def linear(optimizer: Optimizer, steps: int) -> LambdaLR:
    """From the rate to 0 over the run."""
    return LambdaLR(optimizer, lambda step: 1 - step / steps)


def plateau(optimizer: Optimizer, _steps: int) -> ReduceLROnPlateau:
    """A tenth of the rate where the validation loss has not fallen for 10 epochs: torch's defaults."""
    return ReduceLROnPlateau(optimizer)


def warmup_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Up to the rate over a twentieth of the run, then down to 0 along a cosine."""
    warm_up = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, steps: int) -> OneCycleLR:
    """Up to the rate and down again (Smith & Topin 2018, arXiv 1708.07120): torch's defaults."""
    return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=max(4, steps))


class Replay(LambdaLR):
    """The rates and the decay of a run that adapted them, from its artifact `schedule.csv`, over a run of any length.

    The optimizer must have a decoupled weight decay (AdamW): the decay η becomes weight_decay = η / α.

    Raises:
        ValueError: the file is not there, is no schedule, or the optimizer cannot decay weights as it says.
    """

    def __init__(self, optimizer: Optimizer, steps: int, path: str) -> None:
        self.rates, self.decays = _read(Path(path))
        decoupled = optimizer.defaults.get("decoupled_weight_decay", False)
        if any(self.decays) and not decoupled:
            raise ValueError(f"{type(optimizer).__name__} cannot replay {path}, which decays weights: take AdamW.")
        self.stretch = len(self.rates) / steps  # the same course, whatever the number of steps
        for group in optimizer.param_groups:
            group["lr"] = 1.0
        super().__init__(optimizer, lambda step: self.rates[self._at(step)])
        self._decay()

    def step(self, epoch: int | None = None) -> None:
        """Move on to the next rate, and its decay."""
        super().step(epoch)
        if hasattr(self, "base_lrs"):
            self._decay()

    def _at(self, step: int) -> int:
        return min(int(step * self.stretch), len(self.rates) - 1)

    def _decay(self) -> None:
        now = self._at(self.last_epoch)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.decays[now] * self.stretch / self.rates[now]


def _read(path: Path) -> tuple[list[float], list[float]]:
    try:
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        rates, decays = [float(row["lr"]) for row in rows], [float(row["decay"]) for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"--model.schedule.path: {path} is no schedule ({error!r}). A run of `meta` keeps one: schedule.csv."
        ) from error
    if not rates:
        raise ValueError(f"--model.schedule.path: {path} holds no step.")
    return rates, decays
