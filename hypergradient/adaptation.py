"""The learning rate and the weight decay adapted during the run, by looks at a hypothetical run beside it.

start        α = c · rms(θ) / rms(Δ(1))        low, whatever network and optimizer
each step    θ ← (1 - αλ) θ + Δ(α; g)          and the hypothetical step (`hypergradient.twin`)
looks        h = ⟨∇L_val(A), Z⟩                 each 16 steps; their mean moves the rate
moves        log α ← log α - κ · log((t + 20) / (t' + 20)) · h / rms(h)     each time t has grown by a tenth, from t'
             log λ ← log λ - (t - t') / max(t, T/4) · h_λ / rms(h_λ),      h_λ = -αλ ⟨∇L_val(A), θ⟩
no rise      of the rate while both L_val(A) and the smoothed loss are above those of the last move
guard        smoothed loss a fifth above that of the first steps, or not finite: back to the last good A, at α/2

rms is that of about the last ten moves, and h / rms(h) is cut at ±2; the 20 are the steps that the hypothetical run
needs before it means anything. A given rate below the start is doubled after each step whose look says that a larger
one is better, until it is there. A higher one is lowered to it: what steps that are far too long do to a network is not
undone, and not seen from where it leads.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.copies import clear_state, follow_modes, require_keys, unwrapped
from hypergradient.losses import Losses
from hypergradient.processes import mean_over_processes
from hypergradient.settings import Settings
from hypergradient.start import weights_per_step
from hypergradient.support import check_supported
from hypergradient.twin import PARTS, Twin

EVERY = 16  # steps from look to look, where the rate does not move more often
DELAY = 20  # steps, in the clock of the moves
COUNTS = ("steps", "looks", "count", "moves", "moved_at", "clock", "tau", "rewound")
STATE = (*COUNTS, "weight_decay", "highest", "climbing", "sums", "squares", "good")


class Adaptation:
    """Adapts learning rate and weight decay of one run, in the order: `look` where `due`, `shrink`, the step, `step`.

    Args:
        network: of the run.
        optimizer: any that `check_supported` takes; with a weight decay of its own only where `settings` have none.
        settings: the constants.
        average: the network at the averaged weights A, which the caller keeps; None: A is θ.
        window: the part of the run that A averages; 0: A is θ.
        length: T, the steps of the whole run; 0 where it has no end.
        clip: the norm to which the run clips its gradients; the hypothetical step's are clipped likewise.
        decays: whether the weight decay shrinks a parameter; None: all are shrunk.

    Attributes:
        twin: the hypothetical run.
        looks, rewound: how many there were.

    Raises:
        ValueError: the optimizer's step is not proportional to its learning rate, or it has a weight decay of its own.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        settings: Settings | None = None,
        average: nn.Module | None = None,
        window: float = 0.0,
        length: int = 0,
        clip: float | None = None,
        decays: Callable[[Tensor], bool] | None = None,
    ) -> None:
        optimizer = unwrapped(optimizer)
        check_supported(optimizer)
        self.settings = settings or Settings()
        self.settings.check(optimizer)
        self.network, self.optimizer, self.length = network, optimizer, length
        self.average = network if average is None else average
        self.make_twin = functools.partial(
            Twin, network, optimizer, self.settings.factor, self.settings.pull, window, clip, decays
        )
        self.twin = self.make_twin()
        self.steps = self.looks = self.count = self.moves = self.moved_at = self.clock = self.rewound = 0
        self.tau, self.highest, self.climbing, self.weight_decay = 1, math.inf, False, self.settings.weight_decay
        # since the last move, the sums of what looks saw: the loss, the hypergradients of the rate and of the decay
        self.sums, self.squares = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        self.losses = Losses()
        self.schedule = 1.0  # the part of its rate that a schedule leaves; the caller's to say
        self.good: list[Tensor] = []

    def renew(self) -> None:
        """Begin the hypothetical run again where the optimizer moves other parameters since now."""
        moved = {id(p) for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad}
        groups = len(self.optimizer.param_groups)
        if moved != {id(p) for p in self.twin.real} or groups != len(self.twin.optimizer.param_groups):
            self._renew_twin()
            self.good = []
            for a, p in zip(self.average.parameters(), self.network.parameters(), strict=True):
                a.requires_grad_(p.requires_grad)

    def _renew_twin(self) -> None:
        """Let the hypothetical run go on from where the real one stands."""
        steps, self.twin = self.twin.steps, self.make_twin()
        self.twin.steps = steps

    def begin(self, lr: float | None = None) -> bool:
        """Set the starting rate, when the first batch's gradients are there; return whether a given one was lowered."""
        unit = weights_per_step(self.optimizer)
        self.highest, self.weight_decay = self.settings.start * unit, self.settings.weight_decay / unit
        self._set_rate(min(lr or self.highest, self.highest))
        self.climbing = self.settings.meta_lr > 0 and self.rate < 0.999 * self.highest
        return lr is not None and lr > self.highest

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group that has one; the others keep their ratio to it."""
        return float(self.optimizer.param_groups[self.lead]["lr"])

    @property
    def lead(self) -> int:
        """The number of that group."""
        return next((i for i, group in enumerate(self.optimizer.param_groups) if group["lr"]), 0)

    def _set_rate(self, rate: float) -> None:
        factor = rate / self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * factor  # not in place: groups may share a tensor

    @property
    def due(self) -> bool:
        """Whether a look comes before the next step."""
        return self.steps > 0 and (self.climbing or self._moves_now or self.steps % EVERY == 0)

    @property
    def _moves_now(self) -> bool:
        return self.steps - self.moved_at >= max(1.0, 0.1 * (self.steps - self.clock))

    def look(self, validation_loss: Callable[[nn.Module], Tensor]) -> dict[str, float]:
        """Look at A, move the rate and the decay where it is time, and return what was seen.

        validation_loss: of a network, 0-d, on a validation batch.
        """
        follow_modes(self.average, self.network)
        seen = self.twin.hypergradients(validation_loss, self.average)
        self.looks += 1
        if math.isfinite(seen.sum()):  # else a move that is due waits for the next look: A may not be finite
            self.sums += seen * torch.tensor([1.0, 1.0, self.decay], dtype=torch.float64)
            self.count += 1
            if self.climbing:
                self._climb()
            elif self._moves_now:
                self._move()
        elif not all(bool(z.isfinite().all()) for z in self.twin.difference):
            self._renew_twin()  # it overflowed at its higher rate, and would stay so
        return {"hypergradient": float(seen[1]), "lookahead_loss": float(seen[0])}

    def _climb(self) -> None:
        highest = self.highest * self.schedule
        if self.sums[1] < 0:
            self._set_rate(min(2 * self.rate, highest))
        self.climbing = self.rate < 0.999 * highest
        self.clock = self.moved_at = self.steps
        self._forget()

    def _move(self) -> None:
        self.moves += 1
        loss, h = (self.sums / self.count).split([1, 2])
        self.squares += (h.square() - self.squares) / min(self.moves, 10)
        z, z_decay = (h / self.squares.sqrt().clamp(min=1e-60)).clamp(-2, 2).tolist()
        if self.losses.rise(float(loss)):
            z = max(z, 0.0)
        tau, passed = self.steps - self.clock, self.steps - self.moved_at
        self._set_rate(self.rate * math.exp(-self.settings.meta_lr * z * math.log((tau + DELAY) / (self.tau + DELAY))))
        self.weight_decay *= math.exp(-z_decay * passed / max(self.steps, self.length / 4))
        self.tau, self.moved_at = tau, self.steps
        self._forget()
        if not self.losses.above(0.1):
            self.good = [p.detach().clone() for p in self._state(self.average)]

    def _forget(self) -> None:
        self.sums, self.count = torch.zeros_like(self.sums), 0

    @property
    def decay(self) -> float:
        """αλ, the part of each weight that the next step takes away."""
        return self.rate * self.weight_decay

    def shrink(self) -> None:
        """Take it away, before the optimizer's step."""
        self.twin.shrink(self.twin.real, self.decay)

    def step(self, loss: float | Tensor, hypothetical_loss: Callable[[nn.Module], Tensor]) -> None:
        """Take the hypothetical step, after the real one.

        loss: of the real step's batch, before it. hypothetical_loss: of a network, on a part of that batch, 0-d.
        """
        self.twin.step(hypothetical_loss, self.decay)
        self.steps += 1
        [mean] = mean_over_processes([torch.as_tensor(loss)])
        self.losses.update(float(mean))
        if self.good and self.losses.above(0.2):
            self.rewind()

    def _state(self, network: nn.Module) -> list[Tensor]:
        return [*self.twin.trained(network), *network.buffers()]

    @torch.no_grad()
    def rewind(self) -> None:
        """Go back to the last good weights, at half the rate; without any, go on."""
        if not self.good:
            return
        for network in (self.network, self.average):
            torch._foreach_copy_(self._state(network), self.good)
        clear_state(self.optimizer)
        self.twin.reset()
        self._set_rate(self.rate / 2)
        self.highest = min(self.highest, self.rate / self.schedule)
        self.losses.restart()
        self.rewound += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: tensors, numbers, lists and dictionaries alone."""
        own = {name: getattr(self, name) for name in STATE}
        return copy.deepcopy(own | {"losses": self.losses.state_dict(), "twin": self.twin.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the learning rate itself is in the optimizer's state.

        Raises:
            ValueError: another version wrote it; nothing is loaded.
        """
        require_state(state)
        for name in STATE:
            setattr(self, name, copy.deepcopy(state[name]))
        self.losses.load_state_dict(state["losses"])
        self.twin.load_state_dict(state["twin"])


def require_state(state: Mapping[str, Any]) -> None:
    """Raise a ValueError where something is missing in the state of an adaptation."""
    require_keys(state, *STATE, "losses", "twin")
    require_keys(state["losses"], *vars(Losses()))
    require_keys(state["twin"], *PARTS)
