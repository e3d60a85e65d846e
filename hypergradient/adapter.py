"""Adapt learning rate and weight decay inside `optimizer.step()`, in any training loop.

before the step    a look and a move of the rate, if due; weight decay (`hypergradient.meta`)
after the step     the hypothetical step, on a part of the training batch; the average
"""

import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.around import AroundStep
from hypergradient.batches import copied, endless, samples
from hypergradient.finite import FiniteSteps
from hypergradient.meta import Meta
from hypergradient.notices import Notices
from hypergradient.parts import Part, Parts
from hypergradient.run import keep_state, require_keys
from hypergradient.settings import Settings
from hypergradient.support import unwrapped
from hypergradient.trace import Streams

COUNTS = ("position", "told", "passes", "lowest", "highest")
# attribute of the optimizer, and key in its state
NAME = "rate_adapter"


def matrices(p: Tensor) -> bool:
    """Return whether a parameter is a weight matrix, not a bias or the scale of a norm."""
    return p.dim() > 1


class RateAdapter:
    """Adapts learning rate and weight decay in each `optimizer.step()`, by the rule of `Meta`.

    Register each training batch by `adapter.loss(batch).backward()` or `adapter.see(batch, loss)`. `lr` in the
    parameter groups remains the user's, so schedules continue from it; `used_lr`, next to it, is the rate of the last
    step. The ratios between the groups' rates are kept. The state is part of the optimizer's `state_dict()`. In a
    process group, the losses and gradients of looks and hypothetical steps are averaged. Steps with non-finite
    gradients are skipped.

    The run starts at the optimizer's `lr`. The rate moves after a race of 32 steps against the method's own start.
    Changes to the training are reported as warnings, each a `Notice`, once per run.

    Args:
        optimizer: any that `check_supported` accepts. A weight decay of its own is kept, and then none is adapted.
        network: the module whose parameters the optimizer updates.
        loss: (network, batch) -> the mean loss, a scalar; for training and validation batches.
        batches: validation batches, used cyclically.
        length: number of steps of the whole run; None if unknown.
        hold: leave the training unchanged, for comparison: equivalent to rate=False, decay=False, guard=False.
        rate: adapt the learning rate.
        decay: adapt a weight decay.
        average: average the weights: `eval` puts the average into the network.
        guard: shorten steps longer than a tenth of the weights, and rewind to the last good average if the run fails.
        settings: the constants of the method.
        clip: the norm to which the loop clips its gradients; gradients of hypothetical steps are clipped likewise.
        decays: parameter -> whether the adapted weight decay applies to it; default: to matrices.
        patience: number of consecutive steps with non-finite gradients after which NotFiniteError is raised.
        cut: (batch, fraction) -> the part of a training batch for a hypothetical step; default: the first samples of
            all its tensors.

    Attributes:
        last: `lr` and `decay` of the last step, `hypergradient` and `lookahead_loss` of the last look.
        meta: the rule, with its sets of tensors.

    Raises:
        ValueError: an argument is out of range, or the optimizer is not supported or has parameters of other networks.
        RuntimeError: in `optimizer.step()`: no training batch is registered, or the network has the averaged weights.
        TypeError: in `optimizer.step()`: the loss is not a scalar that depends on weights.
        NotFiniteError: in `optimizer.step()`: too many steps had non-finite gradients.

    Example:
        >>> import torch
        >>> network = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
        >>> loss = lambda network, batch: (network(batch) - 1).square().mean()
        >>> adapter = RateAdapter(optimizer, network, loss, [torch.ones(32, 2)], length=100)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     adapter.loss(torch.ones(32, 2)).backward()
        ...     optimizer.step()
        >>> adapter.eval()
        >>> adapter.report()["lr"] > 1e-4
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        network: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Iterable[Any],
        length: int | None,
        *,
        hold: bool = False,
        rate: bool = True,
        decay: bool = True,
        average: bool = True,
        guard: bool = True,
        settings: Settings | None = None,
        clip: float | None = None,
        decays: Callable[[Tensor], bool] = matrices,
        patience: int = 10,
        cut: Callable[[Any, float], Any] | None = None,
    ) -> None:
        optimizer = unwrapped(optimizer)
        if length is not None and not (isinstance(length, int) and length > 0):
            raise ValueError(
                f"RateAdapter: length must be the number of steps of the run, or None if unknown, got {length}."
            )
        own = {id(p) for p in network.parameters()}
        if foreign := sum(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(f"RateAdapter: the optimizer has {foreign} parameters that are not the network's.")
        self.notices, settings = Notices(), settings or Settings()
        own_decay = max(float(group.get("weight_decay") or 0.0) for group in optimizer.param_groups)
        if own_decay and decay and not hold and settings.weight_decay:
            self.notices.say(
                f"{type(optimizer).__name__} has a weight decay of its own, {own_decay:g}, which stays, so none is "
                "adapted. Set weight_decay=0 to have one adapted, or decay=False to silence this notice."
            )
        if hold or not rate:
            settings = replace(settings, meta_lr=0.0)
        if hold or not decay or own_decay:
            settings = replace(settings, weight_decay=0.0)
        if not guard:
            settings = replace(settings, longest=sys.float_info.max, rewinds=0)
        if older := getattr(optimizer, NAME, None):
            warnings.warn("RateAdapter: replacing the adapter that this optimizer already has.", stacklevel=2)
            older.train()
            older.remove()
        self.optimizer, self.network, self.loss_of, self.averages = optimizer, network, loss, average
        self.validation = batches
        self._draw_from(0)
        self.meta = Meta(network, optimizer, settings, True, length or 0, clip, decays)
        self.finite = FiniteSteps(optimizer, patience)
        self.streams, self.parts = Streams(), Parts(self.meta.settings, cut, self.notices)
        # whether the current step is adapted
        self.adapted = False
        # numbers of validation batches, of training batches and of additional passes; lowest and highest rate
        self.position, self.told, self.passes, self.lowest, self.highest = 0, 0, 0.0, math.inf, 0.0
        self.last: dict[str, float] = {}
        self._around = AroundStep(optimizer, self._prepare, self._finish, self.meta.restore_rates)
        self._hooks = [*self._around.hooks, *keep_state(optimizer, NAME, self, self.meta)]
        setattr(optimizer, NAME, self)

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a training batch, a scalar, and register the batch.

        With accumulation, call `backward()` before the next batch: if there are no gradients, earlier batches are
        discarded, like those of a step that a scaler skipped.
        """
        part = self.part(batch)
        loss = self.loss_of(self.network, batch)
        self.see(part, loss)
        return loss

    def part(self, batch: Any) -> Part:
        """Return a copy of a part of a training batch, to pass to `see` if the loss modifies its batch."""
        if self.meta.loaded:
            # a state saved in evaluation mode has the weights of the run, but the network has the average
            self.meta.prepare()
        return self.parts.part(batch, self.meta.racing)

    def see(self, batch: Any, loss: Tensor) -> None:
        """Register a training batch, or its `part`, and its mean loss for the next step."""
        self._around.between_steps()
        if self.parts.seen and all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            self.parts.clear()
        part = batch if isinstance(batch, Part) else self.part(batch)
        self.parts.add(part, loss.detach())
        self.told, self.passes = self.told + 1, self.passes + part.fraction

    def eval(self) -> None:
        """Put the averaged weights into the network, and set it to evaluation mode."""
        self.meta.prepare()
        if self.averages and not self.meta.average.exchanged:
            self.meta.average.exchange()
        self.network.eval()

    def train(self) -> None:
        """Put the weights of the run into the network, and set it to training mode."""
        self.meta.prepare()
        if self.meta.average.exchanged:
            self.meta.average.exchange()
        self.network.train()

    def report(self) -> dict[str, float]:
        """Return counts, rates and cost so far.

        `steps` `looks` `skipped` `rewound` `shortened`: counts. `lr` `lowest` `highest`: the last rate, its extremes.
        `passes`: forward-backward passes per training batch; 1 for plain training.
        """
        meta = self.meta
        counts = {"steps": self.finite.steps, "looks": meta.looks, "skipped": self.finite.skipped}
        guarded = {"rewound": meta.guard.rewound, "shortened": meta.shortened}
        rates = {"lr": self.last.get("lr", 0.0), "lowest": self.lowest, "highest": self.highest}
        return counts | rates | guarded | {"passes": 1 + self.passes / max(1, self.told)}

    def remove(self) -> None:
        """Detach the adapter from the optimizer, and restore the user's rates."""
        self.meta.restore_rates()
        for hook in self._hooks:
            hook.remove()
        if getattr(self.optimizer, NAME, None) is self:
            delattr(self.optimizer, NAME)

    def _prepare(self) -> None:
        """Skip a step with non-finite gradients; otherwise adapt it, if it updates any weight."""
        self.adapted = False
        if not self.finite.check():
            # one such step may be due to its batch, two in a row are due to the weights
            if self.finite.in_a_row == 2:
                self.meta.recover()
            self.parts.clear()
            self._note_plain_step()
            return
        # a warm-up may start at 0
        moves = any(group["lr"] for group in self.optimizer.param_groups)
        self.meta.prepare()
        gradients = [p.grad for p in self.meta.params if p.grad is not None]
        # the first batch may be masked completely: zero gradients give no scale for the start
        started = self.meta.steps > 0 or any(bool(g.any()) for g in gradients)
        if not moves or not gradients or not started:
            self._note_plain_step()
            return
        if not self.parts.seen:
            raise RuntimeError(
                "RateAdapter: no training batch is registered: call adapter.loss(batch), or see(), first."
            )
        if self.meta.average.exchanged:
            raise RuntimeError("RateAdapter: the averaged weights are in the network: call adapter.train() first.")
        self.last |= self.meta.before_step(self._draw)
        self.lowest, self.highest = min(self.last["lr"], self.lowest), max(self.last["lr"], self.highest)
        self.adapted = True
        self.notices.follow(self.meta, self.last)

    def _note_plain_step(self) -> None:
        """Record the user's rates for a step that is not adapted; 0 for groups without gradients."""
        groups = self.optimizer.param_groups
        for group in groups:
            moves = any(p.grad is not None for p in group["params"])
            group["used_lr"] = float(group["lr"]) if moves else 0.0
        self.last |= {"lr": max(group["used_lr"] for group in groups), "decay": 0.0}

    def _finish(self) -> None:
        if self.adapted:
            self.meta.after_step(self.parts.loss, lambda: self.parts.loss_of(self._scalar))
            if self.meta.moves and self.meta.steps == self.meta.length:
                # here, because every process reaches this line
                self.notices.conclude(self.meta, self._draw)
        self.parts.clear()

    def _draw_from(self, position: int) -> None:
        self.batches = endless(self.validation, position)
        # a loader that is collected together with the adapter waits five seconds for each of its workers
        weakref.finalize(self, self.batches.close)

    def _draw(self) -> Callable[[], Tensor]:
        """Draw a validation batch, and return a function that computes the loss on it."""
        self.position += 1
        batch = next(self.batches)

        def loss() -> Tensor:
            self.passes += samples(batch) / self.parts.size if self.parts.size else 1.0
            # a copy: batches of a list are used again
            return self._scalar(copied(batch))

        return loss

    def _scalar(self, batch: Any) -> Tensor:
        with self.streams.own():
            loss = self.loss_of(self.network, batch)
        if isinstance(loss, Tensor) and not loss.dim() and loss.requires_grad:
            return loss
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        detached = ", detached" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise TypeError(
            f"RateAdapter: loss must return the mean loss, a scalar with requires_grad, got {got}{detached}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from; the optimizer's `state_dict()` contains it."""
        parts = {"meta": self.meta.state_dict(), "finite": self.finite.state_dict()}
        return {name: getattr(self, name) for name in COUNTS} | parts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state; network and optimizer must load theirs too.

        Raises:
            ValueError: the state was written by another version; nothing is loaded.
        """
        if not state:
            self.meta.clear()
            self.finite.steps = self.finite.skipped = self.finite.in_a_row = 0
            return
        require_keys(state, *COUNTS, "meta", "finite")
        require_keys(state["finite"], *self.finite.state_dict())
        self.meta.load_state_dict(state["meta"])
        vars(self.finite).update(state["finite"])
        for name in COUNTS:
            setattr(self, name, state[name])
        self._draw_from(self.position)
