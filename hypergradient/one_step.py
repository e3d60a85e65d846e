"""The plain rule inside an optimizer's own `step()`: whatever loop calls it, the rate is adapted.

before the step    θ is kept, the rates are α = lr · scale; gradients that are not finite are dropped
after it           θ' = θ + Δ is the lookahead; h, the new scale, and the real step (`hypergradient.step`)
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from hypergradient.copies import require_keys
from hypergradient.hooks import StepHooks
from hypergradient.processes import mean_over_processes
from hypergradient.step import Update, add_weights, hypergradient, minus_weights, real_step, scale_rates
from hypergradient.support import check_supported
from hypergradient.trace import no_trace

DECAY = 0.9  # of the running mean and square of h, from which its standard error comes
LONG = 100  # looks in a row at a bound, after which that is said
COUNTS = ("steps", "looks", "skipped", "in_a_row", "began")


class OneStepAdapter(StepHooks):
    """Adapts the learning rate by the plain rule, one step ahead, whenever `optimizer.step()` is called.

    With meta_lr 0, training is bit for bit what it is without. In a process group, h is the mean over the processes.
    Parameter groups may be added. What all adapters have in common: `StepHooks`.

    Args:
        optimizer: any that `check_supported` takes.
        network: is put into evaluation mode for the look, and back (`no_trace`).
        validation_loss: the mean loss of a validation batch, 0-d; called at the lookahead.
        meta_lr: the step of the meta-optimizer (Adam) on the logarithm of the rate.
        every: look in every k-th step.
        per_group: learn a factor for each parameter group, not one for all.
        bounds: of the learned factor on the optimizer's own rate.
        max_change: of the logarithm of the rate, at one look.
        patience: so many steps in a row may be not finite; they are skipped and counted.

    Attributes:
        log_scale: what is learned, 0-d or (groups,), float64.
        last: of the last look: `lr` (groups,), `hypergradient` (groups,), its `hypergradient_error`, `lookahead_loss`,
            and `bounded`, whether a bound or `max_change` was active.
        looks: how many there were.

    Raises:
        ValueError: an argument is out of range, or the optimizer cannot be adapted.
        TypeError: from `optimizer.step()`, where the validation loss is no number that depends on weights.

    Warns:
        UserWarning: the first hypergradient is exactly 0, or a bound was active for 100 looks.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        network: nn.Module,
        validation_loss: Callable[[], Tensor],
        meta_lr: float = 0.05,
        every: int = 1,
        per_group: bool = False,
        bounds: tuple[float, float] = (1e-4, 1e4),
        max_change: float = 0.1,
        patience: int = 10,
    ) -> None:
        super().__init__(optimizer, patience)
        optimizer = self.optimizer
        check_supported(optimizer)
        self.require("meta_lr is a finite number, 0 or more", 0 <= meta_lr < math.inf, meta_lr)
        self.require("every is 1 or more", every >= 1, every)
        self.require("bounds are two positive numbers around 1", 0 < bounds[0] <= 1 <= bounds[1] < math.inf, bounds)
        self.require("max_change is positive", max_change > 0, max_change)
        self.network, self.validation_loss = network, validation_loss
        self.every, self.bounds, self.max_change = every, bounds, max_change
        shape = (len(optimizer.param_groups),) if per_group else ()
        self.log_scale = torch.zeros(shape, dtype=torch.float64)
        self.meta_optimizer = torch.optim.Adam([self.log_scale], lr=meta_lr)
        self.moments = torch.zeros(2, len(optimizer.param_groups), dtype=torch.float64)  # running mean and square of h
        self.looks = self.at_bound = 0  # at_bound: looks in a row
        self.last: dict[str, Tensor] = {}
        self.start: Update = []
        self.attach()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: tensors, numbers and dictionaries alone."""
        tensors = {"log_scale": self.log_scale, "moments": self.moments}
        counts = {name: getattr(self, name) for name in COUNTS}
        return copy.deepcopy(tensors | counts | {"meta_optimizer": self.meta_optimizer.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is the state of other parameter groups, of another `per_group` or of another version; nothing
                is loaded.
        """
        require_keys(state, "log_scale", "moments", "meta_optimizer", *COUNTS)
        self._grow(len(self.optimizer.param_groups))
        for name in ("log_scale", "moments"):
            has, wants = tuple(state[name].shape), tuple(getattr(self, name).shape)
            self.require(f"{name} of the state has the shape {wants}", has == wants, has)
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.log_scale.copy_(state["log_scale"])
        self.moments.copy_(state["moments"])
        for name in COUNTS:
            setattr(self, name, state[name])

    def _prepare(self) -> None:
        self.restore()
        self._grow(len(self.optimizer.param_groups))
        finite = self.drop_unless_finite()
        look = finite and (self.steps - 1) % self.every == 0
        self.start = minus_weights(self.optimizer) if look else []
        if finite and not look:
            self.in_a_row = 0  # where there is a look, what it finds decides
        self.rates = scale_rates(self.optimizer, self.log_scale.exp())

    def _grow(self, groups: int) -> None:
        """Make room for parameter groups that were added; they begin at their own rate."""
        added = groups - self.moments.shape[1]
        if not added:
            return
        self.moments = pad(self.moments, (0, added))
        if self.log_scale.dim():
            state = self.meta_optimizer.state_dict()
            self.log_scale = pad(self.log_scale, (0, added))
            for name, value in state["state"].get(0, {}).items():
                state["state"][0][name] = pad(value, (0, added)) if value.dim() else value
            self.meta_optimizer = torch.optim.Adam([self.log_scale])
            self.meta_optimizer.load_state_dict(state)

    def _finish(self) -> None:
        own = list(self.rates or ())
        self.restore()
        if self.start:
            update, self.start = add_weights(self.start), []
            self._adapt(update, own)

    def _adapt(self, update: Update, rates: list[float]) -> None:
        with torch.enable_grad(), no_trace(self.network):
            loss = self.require_loss(self.validation_loss(), "validation_loss")
            [h] = mean_over_processes([hypergradient(loss, update)])
        h = h.to(self.log_scale.device, torch.float64)
        if not h.isfinite().all():
            self.skip("the hypergradient is")
            return
        self.in_a_row = 0
        self.looks += 1
        old = self.log_scale.clone()
        bounded = self._move(h)
        real_step(update, (self.log_scale - old).exp())
        self._warn(bounded, any(rates) and not h.any())
        own = torch.tensor(rates, dtype=torch.float64)
        self.last = {
            "lr": own * self.log_scale.exp(),
            "hypergradient": h,
            "hypergradient_error": self._error(h),
            "lookahead_loss": loss.detach(),
            "bounded": torch.tensor(float(bounded)),
        }

    def _move(self, h: Tensor) -> bool:
        """Move log scale along h, within the bounds; return whether one was active."""
        old = self.log_scale.clone()
        self.log_scale.grad = h if self.log_scale.dim() else h.sum()
        self.meta_optimizer.step()
        wanted = self.log_scale.clone()
        self.log_scale.clamp_(old - self.max_change, old + self.max_change)
        self.log_scale.clamp_(*map(math.log, self.bounds))
        return not torch.equal(self.log_scale, wanted)

    def _warn(self, bounded: bool, zero: bool) -> None:
        self.at_bound = self.at_bound + 1 if bounded else 0
        if self.looks == 1 and zero:
            warnings.warn(
                f"{type(self).__name__}: the hypergradient is exactly 0. Is the validation loss that of this network?",
                stacklevel=2,
            )
        if self.at_bound == LONG:
            warnings.warn(
                f"OneStepAdapter: a bound was active for {LONG} looks; the learned factor is "
                f"{self.log_scale.exp().tolist()}. Give the optimizer another lr, or OneStepAdapter other bounds.",
                stacklevel=2,
            )

    def _error(self, h: Tensor) -> Tensor:
        """Return the standard error of h: how much it varies about its running mean from batch to batch."""
        self.moments.lerp_(torch.stack([h, h**2]), 1 - DECAY)
        mean, square = (self.moments / (1 - DECAY**self.looks)).unbind()
        return (square - mean**2).clamp(min=0).sqrt()
