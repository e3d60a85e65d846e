"""The rates of a step under a schedule and without one.

A scheduler sets `lr` before each step, so what can be adapted is that times a scale, and the optimizer's own `lr` is
put back for the scheduler. Without one, the optimizer's `lr` is the adapted rate itself, wherever people look for it.
"""

import warnings
from typing import Any

from torch.optim import Optimizer

from hypergradient.adaptation import Adaptation
from hypergradient.hooks import StepHooks


def _peak(group: dict[str, Any]) -> float:
    """Return the rate that a schedule goes on from, or comes to: OneCycleLR begins at a part of it."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


class ScaledRates(StepHooks):
    """Base of an adapter that steps at the rates of an `Adaptation`.

    Args:
        optimizer, patience: of `StepHooks`.
        lr: a rate to start from, where it is lower than the method's own start.

    Attributes:
        scale: of a step's rate over the schedule's; 1 without a schedule.
    """

    adaptation: Adaptation

    def __init__(self, optimizer: Optimizer, lr: float | None, patience: int) -> None:
        super().__init__(optimizer, patience)
        self.require("lr is positive", lr is None or lr > 0, lr)
        self.lr, self.begun, self.scale = lr, False, 1.0
        self.left: list[float] | None = None  # the rates, as the last step left them
        self.overwritten = 0  # steps in a row before which they were others

    def set_rates(self) -> None:
        """Turn the optimizer's own rates into those of this step."""
        groups = self.optimizer.param_groups
        self.rates = [float(group["lr"]) for group in groups]
        self._watch(self.rates)
        if not self.begun:
            self._begin()
        self.adaptation.schedule = self.own_rate / _peak(groups[self.adaptation.lead])
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = self.scale * rate

    def _begin(self) -> None:
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = _peak(group)  # a schedule may begin with a warm-up
        base = self.adaptation.rate
        if self.adaptation.begin(self.lr):
            warnings.warn(
                f"{type(self).__name__}: lr {self.lr:g} is lowered to {self.adaptation.rate:.3g}.", stacklevel=2
            )
        self.begun, self.scale = True, self.adaptation.rate / base
        for group, rate in zip(groups, self.rates or (), strict=True):
            group["lr"] = rate

    @property
    def own_rate(self) -> float:
        """The optimizer's own rate, while it steps at another."""
        return float((self.rates or [0.0])[self.adaptation.lead])

    @property
    def scheduled(self) -> bool:
        """Whether there is a schedule: torch's put `initial_lr` there."""
        return "initial_lr" in self.optimizer.param_groups[0]

    def _watch(self, rates: list[float]) -> None:
        """Tell of a schedule that is written by hand: it sets over and again what is adapted."""
        changed = self.left is not None and not self.scheduled and len(self.left) == len(rates) and self.left != rates
        self.overwritten = self.overwritten + 1 if changed else 0
        if self.overwritten == 3:
            warnings.warn(
                f"{type(self).__name__}: the optimizer's lr was set from outside before three steps in a row, so "
                "nothing is adapted. Use a scheduler of torch.optim.lr_scheduler: its rate is scaled.",
                stacklevel=2,
            )

    def leave_rates(self) -> None:
        """With a schedule, keep the scale and give the optimizer its own rates; else they are the adapted ones."""
        if self.scheduled and self.rates:
            self.scale = self.adaptation.rate / self.own_rate
            self.restore()
        self.scale, self.rates = self.scale if self.scheduled else 1.0, None
        self.left = [float(group["lr"]) for group in self.optimizer.param_groups]
