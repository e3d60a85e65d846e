"""The state of an adapted run: sets of tensors, rates and counts, and how they are saved."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.guard import Guard
from hypergradient.hypothetical import HypotheticalRun, clear_state, trained
from hypergradient.sets import Average
from hypergradient.settings import Settings
from hypergradient.support import check_supported

COUNTS = ("steps", "looks", "moves", "moved_at", "next_race", "count", "shortened", "shortened_before")
RATES = ("rate", "rival", "raced", "start", "peak", "weight_decay", "trusted", "climbing", "size")
MOVES = ("began", "pushes", "push_squares")
TENSORS = ("sums", "squares", "difference")
PARTS = ("guard", "average", "hypothetical")


class AdaptedRun:
    """The network, the optimizer and the sets of tensors of one run.

    `lr` in the optimizer's parameter groups is the user's. During a step it is α, times the user's `lr` over its
    highest value so far; then it is restored, and `used_lr`, next to it, keeps the rate of the step.

    Args:
        network: the network to train.
        optimizer: any that `check_supported` accepts; with a weight decay only if that of `settings` is 0.
        settings: the constants of the method.
        given: whether the run starts from the optimizer's `lr`; otherwise it starts from the method's own start.
        length: T, the number of steps of the whole run; 0 if unknown.
        clip: the norm to which the run clips its gradients; gradients of hypothetical steps are clipped likewise.
        decays: parameter -> whether the weight decay applies to it; None: it applies to all.

    Attributes:
        rate: α; 0 before the first step. rival: the rate of the hypothetical run in a race; otherwise 0.
        raced: the rate that won the races so far. start: m, the method's own start; 0 if unknown.
        next_race: the step at which the next race starts.
        weight_decay: λ.
        average: A. hypothetical: the run at θ'. difference: Z, a tensor for each parameter.
        steps, looks, moves, shortened: counts.

    Raises:
        ValueError: the optimizer's step is not proportional to its learning rate, or it has a weight decay of its own.
    """

    # numbers that are saved; a subclass adds its own: saved = (*Meta.saved, "name")
    saved: tuple[str, ...] = (*COUNTS, *RATES, *MOVES)
    average: Average
    hypothetical: HypotheticalRun
    difference: list[Tensor]

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        settings: Settings | None = None,
        given: bool = True,
        length: int = 0,
        clip: float | None = None,
        decays: Callable[[Tensor], bool] | None = None,
    ) -> None:
        self.network, self.optimizer, self.settings = network, optimizer, settings or Settings()
        if self.settings.weight_decay and any(group.get("weight_decay") for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has a weight decay of its own, and the method adapts one. Set "
                "weight_decay=0 in the optimizer or in the method's settings."
            )
        check_supported(optimizer)
        self.given, self.length, self.clip, self.decays = given, length, clip, decays
        self.rates: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Reset to the state before the first step."""
        self.guard, self.loaded = Guard(self.settings), dict[str, Any]()
        self.params, self.groups, self.started_at = list[Tensor](), list[list[int]](), list[Tensor]()
        self.steps = self.looks = self.moves = self.count = self.shortened = self.shortened_before = 0
        # the step of the last move, or of the end of the last race
        self.moved_at, self.schedule = 0, 1.0
        self.next_race = 0.0
        self.rate = self.rival = self.raced = self.start = self.peak = self.size = self.weight_decay = 0.0
        # whether a rate was given and has lost no race so far; whether races are now against higher rates
        self.trusted, self.climbing = self.given, False
        # the rate before the first move; sums of all normalized hypergradients, and of their squares
        self.began = self.pushes = self.push_squares = 0.0
        # sums over the looks since the last move: the loss, the hypergradients of rate and decay; mean squares of both
        self.sums, self.squares = (torch.zeros(count, dtype=torch.float64, device="cpu") for count in (3, 2))

    def prepare(self) -> None:
        """Create the sets of tensors; create them again if the optimizer's parameters have changed."""
        groups = [[id(p) for p in group["params"] if p.requires_grad] for group in self.optimizer.param_groups]
        if groups != self.groups:
            params = trained(self.network, self.optimizer)
            exchanged = bool(self.params) and self.average.exchanged
            if exchanged:
                self.average.exchange()
            averages = dict(zip(self.params, self.average.weights, strict=True)) if self.params else {}
            buffers = self.average.buffers if self.params else list(self.network.buffers())
            self.params, self.groups = params, groups
            # comparisons need the same parameters
            self.guard.good, self.guard.doubted, self.guard.losses = [], False, []
            if self.rival:
                self.rival, self.moved_at = 0.0, self.steps
            self.shrinks = [self.decays is None or self.decays(p) for p in params]
            self.average = Average(self.network, params, self.settings.window)
            self.average.copy_from([averages.get(p, p) for p in params], buffers)
            self.begin_hypothetical_run()
            if exchanged:
                self.average.exchange()
        if self.loaded:
            self._load()

    def begin_hypothetical_run(self) -> None:
        """Start the hypothetical run at the real one."""
        self.hypothetical = HypotheticalRun(self.network, self.optimizer, self.params, self.shrinks)
        # in 16 bits the update of a step would be rounded away
        self.difference = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in self.params]

    def hypothetical_average(self) -> list[Tensor]:
        """Return A + Z, the average of the hypothetical run."""
        return [a + z.to(a.dtype) for a, z in zip(self.average.weights, self.difference, strict=True)]

    def adopt(self) -> None:
        """Replace the run by the hypothetical one, at its rate."""
        average = self.hypothetical_average()
        self._put(self.hypothetical.weights, self.hypothetical.buffers)
        self.average.copy_from(average, self.hypothetical.buffers)
        self.hypothetical.give_state()
        self.rate = self.rival

    def rewind(self) -> None:
        """Return to the last good average, at half the rate."""
        weights, buffers = self.guard.good
        self.average.copy_from(weights, buffers)
        self._put(weights, buffers)
        clear_state(self.optimizer)
        self.begin_hypothetical_run()
        self.rate /= 2
        self.guard.rewound, self.guard.doubted = self.guard.rewound + 1, False
        last = self.guard.rewound == self.settings.rewinds
        warnings.warn(
            f"Step {self.steps}: a value is not finite, or the validation loss has risen: the run goes back to "
            "the last good average of its weights, at half the learning rate, "
            f"{self.rate:.3g}{', for the last time' if last else ''}.",
            stacklevel=2,
        )

    @torch.no_grad()
    def _put(self, weights: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Set the network to these values; delete the gradients at the old ones, so that the step does nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        for tensor, value in zip([*self.params, *self.network.buffers()], [*weights, *buffers], strict=True):
            tensor.copy_(value)

    def read_schedule(self) -> None:
        """Set `schedule`, the user's `lr` over its highest value so far.

        If `lr` exceeds that value, as in a warm-up, α rises in proportion, at most to `lr`; an α above `lr` is kept.
        """
        # the other groups keep their ratio to the largest rate
        lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        if lr > self.peak:
            self.rate = max(self.rate, min(1.0, self.rate / self.peak) * lr) if self.rate else 0.0
            self.peak = lr
        self.schedule = lr / self.peak

    def set_rates(self) -> None:
        """Set the optimizer's rates for this step."""
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            # not in place: groups may share a tensor
            group["lr"] = group["lr"] * (self.rate / self.peak)
            group["used_lr"] = float(group["lr"])

    def restore_rates(self) -> None:
        """Restore the user's rates, from which a schedule continues."""
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=False):
            group["lr"] = lr
        self.rates = []

    @property
    def used_rate(self) -> float:
        """The rate of this step, α times the schedule."""
        return self.rate * self.schedule

    @property
    def decay(self) -> float:
        """αλ, the fraction of each weight that this step removes."""
        return self.used_rate * self.weight_decay

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from: tensors, numbers, lists and dictionaries; empty before the first step."""
        if self.loaded or not self.params:
            return self.loaded
        values = {name: getattr(self, name) for name in (*self.saved, *TENSORS)}
        return values | {name: getattr(self, name).state_dict() for name in PARTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state; it takes effect at the next step, after network and optimizer have loaded theirs.

        Raises:
            ValueError: the state was written by another version.
        """
        if not state:
            self.clear()
            return
        require_keys(state, *self.saved, *TENSORS, *PARTS)
        require_keys(state["guard"], *self.guard.state_dict())
        require_keys(state["average"], "exact", "weights", "buffers")
        require_keys(state["hypothetical"], "weights", "buffers", "optimizer")
        self.loaded = dict(state)

    def _load(self) -> None:
        state = self.loaded
        shapes = [[tuple(p.shape) for p in params] for params in (state["average"]["weights"], self.params)]
        if shapes[0] != shapes[1]:
            raise ValueError("the state is of a run whose optimizer has other parameters: unfreeze or add them first")
        self.loaded, self.average.exchanged = {}, False
        for name in (*self.saved, "sums", "squares"):
            setattr(self, name, copy.deepcopy(state[name]))
        vars(self.guard).update(copy.copy(state["guard"]))
        self.average.load_state_dict(state["average"])
        self.hypothetical.load_state_dict(state["hypothetical"])
        for z, value in zip(self.difference, state["difference"], strict=True):
            z.copy_(value)


def require_keys(state: Mapping[str, Any], *names: str) -> None:
    """Raise a ValueError if a state lacks one of the names."""
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"the state has no {', no '.join(missing)}: another version wrote it")


def keep_state(optimizer: Optimizer, name: str, owner: Any, run: AdaptedRun, required: bool = False) -> list[Any]:
    """Save and load the owner's state with the optimizer's `state_dict()`, under `name`; return the hooks.

    A plain optimizer can load such a state, and ignores `name`.

    run: the run, of which the user's rates are saved instead of those of a step.
    required: whether to raise a ValueError for a state without `name`.
    """

    def save(_: Optimizer, state: dict[str, Any]) -> None:
        state[name] = owner.state_dict()
        for group, lr in zip(state["param_groups"], run.rates, strict=False):
            group["lr"] = lr

    def load(_: Optimizer, state: dict[str, Any]) -> None:
        if required and name not in state:
            raise ValueError(f"the optimizer's state has no {name!r}: another method wrote it")
        if name not in state:
            warnings.warn(f"The loaded state has no {name!r}: the adaptation starts here.", stacklevel=4)
        owner.load_state_dict(state.pop(name, {}))

    return [optimizer.register_state_dict_post_hook(save), optimizer.register_load_state_dict_pre_hook(load)]
