"""The whole rule inside an optimizer's own `step()`: whatever loop calls it, rate and weight decay are adapted.

before the step    a look, where one is due, moves the rate; the decay shrinks the weights (`hypergradient.adaptation`)
after it           the hypothetical step, on a part of the batches whose gradients made the step; the average

A schedule composes: the rate of a step is the schedule's, times a scale that is learned. Without one, the optimizer's
`lr` is the adapted rate itself, wherever people look for it.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.adaptation import Adaptation
from hypergradient.average import Average
from hypergradient.batches import endless, first, samples
from hypergradient.hooks import StepHooks
from hypergradient.settings import Settings

LEAST = 16  # samples of a hypothetical step
STATE = ("steps", "skipped", "in_a_row", "began", "begun", "scale", "position", "told", "passes", "lowest", "highest")


def _peak(group: dict[str, Any]) -> float:
    """Return the rate that a schedule goes on from, or comes to: OneCycleLR begins at a part of it."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def matrices(p: Tensor) -> bool:
    """Return whether it is a weight matrix, and no bias and no norm's scale."""
    return p.dim() > 1


class RateAdapter(StepHooks):
    """Adapts learning rate and weight decay by the rule of `meta`, whenever `optimizer.step()` is called.

    The training batches are told to it: `adapter.loss(batch).backward()`, or `see`. The rate to start from follows from
    the scale of the weights, unless `lr` is lower. Groups keep the ratios of their rates; more groups, and parameters
    that are released, are taken in. In a process group, means are taken over the processes.

    Args:
        optimizer: any that `check_supported` takes. Its own weight decay stays, and then none is adapted.
        network: what it moves; copied twice, for the hypothetical run and for the average.
        loss: (network or a copy of it, batch) -> the mean loss, 0-d; of training and of validation batches.
        batches: validation batches, taken in turn, again and again.
        length: the steps of the whole run; 0 where it has no end.
        lr: a rate to start from; one that is higher than the method's own start is lowered to it, with a warning.
        settings: the constants.
        window: the part of the run's end that `averaged` averages; 0: `averaged` is the network itself.
        part: of each training batch, for the hypothetical step; at least 16 samples.
        clip: the norm to which the loop clips its gradients; the hypothetical step's are clipped likewise.
        decays: whether the adapted weight decay shrinks a parameter.
        patience: so many steps in a row may be not finite; they are skipped and counted.

    Attributes:
        averaged: the network at the averaged weights, which is what is looked at and what is to be used. BatchNorm's
            statistics are averaged too; `torch.optim.swa_utils.update_bn` takes them anew.
        last: of the last step: `lr`, `decay`, and of the last look `hypergradient` and `lookahead_loss`.

    Raises:
        ValueError: an argument is out of range, or the optimizer cannot be adapted, or moves more than the network.
        RuntimeError: from `optimizer.step()`, where no training batch was told.
        TypeError: from `optimizer.step()`, where the loss is no number that depends on weights.
        NotFiniteError: from `optimizer.step()`, when patience is over.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        network: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Iterable[Any],
        length: int = 0,
        lr: float | None = None,
        settings: Settings | None = None,
        window: float = 0.1,
        part: float = 0.375,
        clip: float | None = None,
        decays: Callable[[Tensor], bool] = matrices,
        patience: int = 10,
    ) -> None:
        super().__init__(optimizer, patience)
        self.require("lr is positive", lr is None or lr > 0, lr)
        self.require("window is 0 to 1", 0 <= window <= 1, window)
        self.require("part is above 0, at most 1", 0 < part <= 1, part)
        own, moved = (
            {id(p) for p in network.parameters()},
            [p for g in self.optimizer.param_groups for p in g["params"]],
        )
        foreign = sum(id(p) not in own for p in moved)
        self.require("the optimizer moves parameters of the network alone", not foreign, f"{foreign} others")
        if any(group.get("weight_decay") for group in self.optimizer.param_groups):
            settings = replace(settings or Settings(), weight_decay=0.0)
        self.network, self.loss_of, self.lr, self.part = network, loss, lr, part
        self.batches: Iterator[Any] = endless(batches)
        self.average = Average(network, window) if window else None
        self.averaged = self.average.network if self.average else network
        self.adaptation = Adaptation(network, self.optimizer, settings, self.averaged, window, length, clip, decays)
        self.seen: list[Any] = []  # parts of the batches whose gradients make the step
        self.losses: list[Tensor] = []
        self.begun, self.live, self.scale, self.position = False, False, 1.0, 0
        self.told, self.size, self.passes = (
            0,
            0,
            0.0,
        )  # training batches; samples of the last; more than the plain passes
        self.lowest, self.highest = float("inf"), 0.0
        self.last: dict[str, float] = {}
        self.left: list[float] | None = None  # the rates, as the last step left them
        self.overwritten = 0  # steps in a row before which they were others
        self.attach()

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a training batch, 0-d, and take note of the batch."""
        loss = self.loss_of(self.network, batch)
        self.see(batch, loss)
        return loss

    def see(self, batch: Any, loss: Tensor) -> None:
        """Take note of a training batch, and of its loss, whose gradients go into the next step."""
        if self.seen and all(p.grad is None for p in self.adaptation.twin.real):
            self._forget()  # of a step that was not taken, as a scaler's that overflowed
        self.told, self.size = self.told + 1, samples(batch)
        count = min(self.size, max(LEAST, int(self.part * self.size)))
        self.seen.append(first(batch, count) if self.size else batch)
        self.losses.append(loss.detach())
        self.passes += count / self.size if self.size else 1.0

    def report(self) -> dict[str, float]:
        """Return what was looked at and what it cost.

        `steps` `looks` `skipped` `rewound`: how many. `lr` `lowest` `highest`: the rate, now and at its extremes.
        `passes`: forward-backward passes for each training batch, the plain one included.
        """
        counts = {"steps": self.steps, "looks": self.adaptation.looks, "skipped": self.skipped}
        rates = {"lr": self.last.get("lr", 0.0), "lowest": self.lowest, "highest": self.highest}
        cost = {"rewound": self.adaptation.rewound, "passes": 1 + self.passes / max(1, self.told)}
        return counts | rates | cost

    def _prepare(self) -> None:
        self.restore()
        self.live = self.drop_unless_finite()
        if not self.live:
            self._rewind()
            return
        self.in_a_row = 0
        self.adaptation.renew()
        moved = any(p.grad is not None for p in self.adaptation.twin.real)
        self.live = moved and any(group["lr"] for group in self.optimizer.param_groups)  # a warm-up may begin at 0
        if self.live:
            if not self.seen:
                raise RuntimeError("RateAdapter: no batch was told for this step: call adapter.loss(batch), or see().")
            self._set_rates()
            self._look()
            self.adaptation.shrink()

    def _set_rates(self) -> None:
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
            warnings.warn(f"RateAdapter: lr {self.lr:g} is lowered to {self.adaptation.rate:.3g}.", stacklevel=2)
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
                "RateAdapter: the optimizer's lr was set from outside before three steps in a row, so nothing is "
                "adapted. Use a scheduler of torch.optim.lr_scheduler: its rate is scaled.",
                stacklevel=2,
            )

    def _rewind(self) -> None:
        """Drop the step, and go back where the run was good, at half the rate."""
        if self.begun and self.adaptation.good and any(group["lr"] for group in self.optimizer.param_groups):
            self._set_rates()
            self.adaptation.rewind()
            self._leave()
        self._forget()

    def _leave(self) -> None:
        """With a schedule, keep the scale and give the optimizer its own rates; else they are the adapted ones."""
        if self.scheduled and self.rates:
            self.scale = self.adaptation.rate / self.own_rate
            self.restore()
        self.scale, self.rates = self.scale if self.scheduled else 1.0, None
        self.left = [float(group["lr"]) for group in self.optimizer.param_groups]

    def _look(self) -> None:
        if self.adaptation.due:
            self.position += 1
            batch = next(self.batches)
            self.last |= self.adaptation.look(lambda network: self._loss(network, batch))
            self.passes += samples(batch) / self.size if self.size else 1.0
        rate = self.adaptation.rate
        self.last |= {"lr": rate, "decay": self.adaptation.decay}
        self.lowest, self.highest = min(rate, self.lowest), max(rate, self.highest)

    def _finish(self) -> None:
        if self.live:
            self.adaptation.step(torch.stack(self.losses).mean(), self._hypothetical_loss)
            if self.average:
                self.average.update(self.adaptation.steps)
            self._leave()
        self._forget()

    def _hypothetical_loss(self, network: nn.Module) -> Tensor:
        return torch.stack([self._loss(network, batch) for batch in self.seen]).mean()

    def _loss(self, network: nn.Module, batch: Any) -> Tensor:
        loss = self.loss_of(network, batch)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
            found = f"{tuple(loss.shape)}, detached or not" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"RateAdapter: loss must return the mean loss, 0-d, that backward() takes, got {found}.")
        return loss

    def _forget(self) -> None:
        self.seen, self.losses = [], []

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: tensors, numbers, lists and dictionaries alone."""
        state = {name: getattr(self, name) for name in STATE} | {"adaptation": self.adaptation.state_dict()}
        return copy.deepcopy(state | ({"average": self.average.state_dict()} if self.average else {}))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, when network and optimizer have their own states again.

        Raises:
            ValueError: it is the state of a run with another `window`.
        """
        self.require("window is that of the state", ("average" in state) == bool(self.average), self.averaged)
        for name in STATE:
            setattr(self, name, state[name])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.adaptation.load_state_dict(state["adaptation"])
        self.batches = islice(self.batches, self.position, None)
