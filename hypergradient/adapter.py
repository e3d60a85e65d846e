"""The whole rule inside an optimizer's own `step()`: whatever loop calls it, rate and weight decay are adapted.

before the step    a look, where one is due, moves the rate; the decay shrinks the weights (`hypergradient.adaptation`)
after it           the hypothetical step, on a part of the batches whose gradients made the step; the average

A schedule composes (`hypergradient.rates`): a step's rate is the schedule's, times a scale that is learned.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.adaptation import Adaptation, require_state
from hypergradient.average import Average
from hypergradient.batches import endless, first, samples
from hypergradient.copies import require_keys
from hypergradient.rates import ScaledRates
from hypergradient.settings import LEAST, Settings

STATE = ("steps", "skipped", "in_a_row", "began", "begun", "scale", "position", "told", "passes", "lowest", "highest")


def matrices(p: Tensor) -> bool:
    """Return whether it is a weight matrix, and no bias and no norm's scale."""
    return p.dim() > 1


class RateAdapter(ScaledRates):
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
        super().__init__(optimizer, lr, patience)
        self.require("window is 0 to 1", 0 <= window <= 1, window)
        self.require("part is above 0, at most 1", 0 < part <= 1, part)
        own = {id(p) for p in network.parameters()}
        foreign = sum(id(p) not in own for group in self.optimizer.param_groups for p in group["params"])
        self.require("the optimizer moves parameters of the network alone", not foreign, f"{foreign} others")
        if any(group.get("weight_decay") for group in self.optimizer.param_groups):
            settings = replace(settings or Settings(), weight_decay=0.0)
        self.network, self.loss_of, self.part = network, loss, part
        self.validation, self.batches = batches, endless(batches)
        self.average = Average(network, window) if window else None
        self.averaged = self.average.network if self.average else network
        self.adaptation = Adaptation(network, self.optimizer, settings, self.averaged, window, length, clip, decays)
        self.seen: list[Any] = []  # parts of the batches whose gradients make the step
        self.losses: list[Tensor] = []
        self.live, self.position = False, 0  # whether this step is adapted; validation batches that were taken
        self.told = self.size = 0  # training batches; samples of the last
        self.passes = 0.0  # beside the plain ones
        self.lowest, self.highest = float("inf"), 0.0
        self.last: dict[str, float] = {}
        self.attach()

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a training batch, 0-d, and take note of the batch.

        Of accumulated batches, call `backward()` on each loss before the next: a batch whose gradients are not there
        when the next is told is taken for one of a step that a scaler dropped.
        """
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
            # one such step may be a bad batch, two in a row are bad weights; a scaler tries a smaller scale itself
            if self.in_a_row > 1 and getattr(self.optimizer, "found_inf", None) is None:
                self._rewind()
            self._forget()
            return
        self.in_a_row = 0
        self.adaptation.renew()
        moved = any(p.grad is not None for p in self.adaptation.twin.real)
        self.live = moved and any(group["lr"] for group in self.optimizer.param_groups)  # a warm-up may begin at 0
        if self.live:
            if not self.seen:
                raise RuntimeError("RateAdapter: no batch was told for this step: call adapter.loss(batch), or see().")
            self.set_rates()
            self._look()
            self.adaptation.shrink()

    def _rewind(self) -> None:
        """Go back where the run was good, at half the rate."""
        if self.begun and self.adaptation.good and any(group["lr"] for group in self.optimizer.param_groups):
            self.set_rates()
            self.adaptation.rewind()
            self.leave_rates()

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
            self.leave_rates()
        self._forget()

    def _hypothetical_loss(self, network: nn.Module) -> Tensor:
        return torch.stack([self._loss(network, batch) for batch in self.seen]).mean()

    def _loss(self, network: nn.Module, batch: Any) -> Tensor:
        return self.require_loss(self.loss_of(network, batch), "loss")

    def _forget(self) -> None:
        self.seen, self.losses = [], []

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: tensors, numbers, lists and dictionaries alone."""
        state = {name: getattr(self, name) for name in STATE} | {"adaptation": self.adaptation.state_dict()}
        return copy.deepcopy(state | ({"average": self.average.state_dict()} if self.average else {}))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, when network and optimizer have their own states again.

        Raises:
            ValueError: it is the state of a run with an average, and this one has none, or the other way round; or
                another version wrote it. Nothing is loaded.
        """
        require_keys(state, *STATE, "adaptation")
        require_state(state["adaptation"])
        of = {True: "a window", False: "window=0"}
        ours, theirs = of[bool(self.average)], of["average" in state]
        self.require(f"the state is of a run with {ours}", ours == theirs, theirs)
        self.adaptation.renew()  # groups may have been added
        for name in STATE:
            setattr(self, name, state[name])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.adaptation.load_state_dict(state["adaptation"])
        self.batches = endless(self.validation, self.position)
