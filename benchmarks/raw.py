"""A reference implementation of the arms `adam`, `cosine`, `meta_onestep` and `meta`, in plain PyTorch.

It is independent of the package, and a test compares the two to the last digit. It is also the lower limit of a run's
time: no Lightning, MLflow or checkpoints, only the arithmetic and the recording of rates and losses.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.mnist1d import PUBLISHED, generate
from hypergradient.start import weights_per_step

Batch = tuple[Tensor, Tensor]
BATCH, EVERY, PER_EPOCH, CLIMB = 128, 16, 32, 4.0


class Arm(Protocol):
    """A training method: it takes steps, and has the rate of the last step and the network to validate."""

    rate: float
    result: nn.Module

    def step(self, train: Batch, look: Batch) -> Tensor:
        """Take a step on a training batch, with a validation batch for the hypergradient; return the training loss."""


Make = Callable[[nn.Module, int], Arm]
"""(network, steps of the run) -> arm."""


@dataclass
class Record:
    """Results of a run: rate and loss of every step, validation loss and accuracy of every epoch, test loss."""

    rates: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    validation: list[tuple[float, float]] = field(default_factory=list)
    test_loss: float = math.nan


def batches(data: Batch, samples: int, seed: int, epoch: int) -> Iterator[Batch]:
    """Return an epoch's batches, in the order of the project's loader."""
    order_seed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64).item()
    draw, (x, y) = torch.Generator().manual_seed(order_seed), data
    rows = torch.cat([torch.randperm(len(x), generator=draw) for _ in range(-(-samples // len(x)))])[:samples]
    return zip(x[rows].split(BATCH), y[rows].split(BATCH), strict=True)


def start(seed: int) -> tuple[nn.Module, dict[str, Batch]]:
    """Return the network and the data."""
    arrays, held_out = generate(PUBLISHED), generate(PUBLISHED + 1)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 10))
    return network, {
        "train": (arrays["x"], arrays["y"]),
        "val": (held_out["x_test"], held_out["y_test"]),
        "test": (arrays["x_test"], arrays["y_test"]),
    }


@torch.no_grad()
def evaluate(network: nn.Module, batch: Batch) -> tuple[float, float]:
    """Return loss and accuracy."""
    logits = network(batch[0])
    return float(cross_entropy(logits, batch[1])), float((logits.argmax(1) == batch[1]).float().mean())


def run(make: Make, epochs: int, seed: int = 0) -> Record:
    """Train, validate after each epoch, and test."""
    network, data = start(seed)
    arm, record = make(network, epochs * PER_EPOCH), Record()
    for epoch in range(epochs):
        train = batches(data["train"], len(data["train"][0]), seed, epoch)
        for batch, look in zip(train, batches(data["val"], PER_EPOCH * BATCH, seed + 1, epoch), strict=True):
            record.losses.append(arm.step(batch, look))
            record.rates.append(arm.rate)
        record.validation.append(evaluate(arm.result, data["val"]))
    record.test_loss = evaluate(arm.result, data["test"])[0]
    return record


class Adam:
    """Adam, at a constant rate or with cosine annealing."""

    def __init__(self, network: nn.Module, steps: int, lr: float, cosine: bool = False) -> None:
        self.result, self.rate = network, lr
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps) if cosine else None

    def step(self, train: Batch, _look: Batch) -> Tensor:
        """Take a step."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.result(train[0]), train[1])
        loss.backward()
        self.rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.schedule:
            self.schedule.step()
        return loss.detach()


class OneStep:
    """Adam with the plain one-step rule."""

    def __init__(self, network: nn.Module, _steps: int, lr: float = 1e-3, meta_lr: float = 0.05) -> None:
        self.result, self.lr = network, lr
        self.params: list[Tensor] = list(network.parameters())
        self.log_scale, self.rate = torch.zeros(()), lr
        self.optimizer = torch.optim.Adam(self.params, lr=lr)
        self.meta_optimizer = torch.optim.Adam([self.log_scale], lr=meta_lr)

    def step(self, train: Batch, look: Batch) -> Tensor:
        """Take a hypothetical step, compute the hypergradient, and correct it to the real step."""
        loss = backward(self.result, self.params, train)
        before, scale = [p.detach().clone() for p in self.params], self.log_scale.exp()
        self.optimizer.param_groups[0]["lr"] = self.lr * float(scale)
        self.optimizer.step()
        gradient = torch.autograd.grad(cross_entropy(self.result(look[0]), look[1]), self.params)
        with torch.no_grad():
            update = torch._foreach_sub(self.params, before)
            products = (torch.dot(g.ravel(), u.ravel()) for g, u in zip(gradient, update, strict=True))
            self.log_scale.grad = sum(products, torch.zeros(()))
            self.meta_optimizer.step()
            torch._foreach_add_(self.params, update, alpha=float(self.log_scale.exp() / scale) - 1)
        self.rate = float(self.lr * self.log_scale.exp())
        return loss


class Meta:
    """Adam with a rate adapted by a hypothetical run, and averaged weights."""

    def __init__(
        self, network: nn.Module, steps: int, kappa: float = 2.0, c: float = 0.03, decay: float = 0.005
    ) -> None:
        self.network, self.hypothetical, self.result = network, copy.deepcopy(network), copy.deepcopy(network)
        self.params: list[Tensor] = list(network.parameters())
        self.others: list[Tensor] = list(self.hypothetical.parameters())
        self.average: list[Tensor] = list(self.result.parameters())
        self.difference = [torch.zeros_like(p) for p in self.params]
        self.optimizer, self.other = (torch.optim.Adam(params, lr=1.0) for params in (self.params, self.others))
        self.length, self.kappa, self.c = steps, kappa, c
        self.rate, self.decay = 0.0, decay
        self.steps = self.moves = self.looks = self.compared = self.shortened = self.followed = 0
        self.moved, self.smooth, self.rival, self.raced, self.next_race = 0, 0.0, 0.0, 0.0, math.inf
        self.seen: list[tuple[float, float, float]] = []
        self.sums, self.squares = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        self.last = (math.inf, math.inf)

    def step(self, train: Batch, look: Batch) -> Tensor:
        """Evaluate the hypergradient and update the rate, when due; take a real and a hypothetical step; average."""
        loss, (x, y), won = backward(self.network, self.params, train), train, False
        if self.steps == 0:
            unit = weights_per_step(self.optimizer)  # the package's: a different last digit would change the whole run
            self.rate, self.decay = self.c * unit, self.decay / unit
            self.raced = self.own = self.rate
            self.rival, self.start = self._higher(), [p.detach().clone() for p in self.average]
        elif self.steps >= self.next_race and not self.compared:
            self.next_race, self.rival = math.inf, self._higher()
            if self.rival:
                self.moved, self.start = self.steps, [p.detach().clone() for p in self.average]
                self._restart()
        part = len(y) if self.rival else min(len(y), max(16, int(0.375 * len(y))))
        moves_now = self.steps - self.moved >= max(1.0, 0.1 * self.steps)
        if self.rival:
            won = self._race(look)
        elif self.compared:
            # here the package compares the run with the last good average, which matters only for a run that fails
            self.compared -= 1
        elif self.steps > 1 and (moves_now or self.steps % EVERY == 0):
            self._look(look)
            if moves_now:
                self._move()
        shrunk = self.rate * self.decay
        factor = self.rival / self.rate if self.rival else 2.0
        if won:
            # the gradients belong to the replaced weights: neither run takes a step
            with torch.no_grad():
                torch._foreach_mul_([*self.params, *self.others], 1 - shrunk)
        else:
            longest = math.inf if self.rival else 0.1
            self.shortened += _step(self.optimizer, self.params, self.rate, shrunk, longest)
            backward(self.hypothetical, self.others, (x[:part], y[:part]))
            _step(self.other, self.others, factor * self.rate, shrunk, 0.1 * factor)
        self.steps += 1
        self._average(0.0 if self.rival else 0.1)
        if won:
            self.followed, self.smooth = 0, 0.0
        else:
            self.followed += 1
            self.smooth += (float(loss) - self.smooth) / min(self.followed, 10)
        return loss

    def _race(self, look: Batch) -> bool:
        """Compare both runs on the last batches of a race; return whether the hypothetical run has replaced the run."""
        if self.steps - self.moved <= 32 - 8:
            return False
        with torch.no_grad():
            run = float(cross_entropy(self.result(look[0]), look[1]))
            here = [p.clone() for p in self.average]
            torch._foreach_copy_(self.average, self.start)
            at_start = float(cross_entropy(self.result(look[0]), look[1]))
            torch._foreach_copy_(self.average, here)
            torch._foreach_add_(self.average, self.difference)
            self.seen.append((run, at_start, float(cross_entropy(self.result(look[0]), look[1]))))
            if len(self.seen) < 8:
                torch._foreach_copy_(self.average, here)
                return False
            losses, before, other = torch.tensor(self.seen, dtype=torch.float64).unbind(1)
            self.seen, self.moved = [], self.steps
            gain, loss = float((before - losses).mean()), float(losses.mean())
            better, error = float((losses - other).mean()), float((losses - other).std()) / math.sqrt(8)
            flat, least = abs(gain) <= 0.01 * loss, 0.1 * min(gain, loss)
            won, clear = not flat and better > max(2 * error, least), better < -max(4 * error, least)
            if won:
                torch._foreach_copy_(self.params, self.others)
                self.optimizer.load_state_dict(copy.deepcopy(self.other.state_dict()))
                self.rate = self.raced = self.rival
            else:
                torch._foreach_copy_(self.average, here)
                if not clear and (flat or better > 0) and self.rate < CLIMB * self.own:
                    self.rate = self.raced = min(2 * self.rate, CLIMB * self.own)
            self._restart()
            self.rival, self.start = self._higher() if won else 0.0, [p.clone() for p in self.average]
            if not (self.rival or clear):
                self.next_race = 2 * self.steps
            return won

    def _higher(self) -> float:
        rate = min(CLIMB * self.rate, 0.5 / self.c * self.own)
        return rate if rate >= 2 * self.rate else 0.0

    @torch.no_grad()
    def _restart(self) -> None:
        torch._foreach_copy_(self.others, self.params)
        self.other.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        torch._foreach_zero_(self.difference)

    def _look(self, look: Batch) -> None:
        loss = cross_entropy(self.result(look[0]), look[1])
        gradient = torch.autograd.grad(loss, self.average)
        rate = sum(torch.sum(g * z) for g, z in zip(gradient, self.difference, strict=True))
        shrunk = -sum(torch.sum(g * p.detach()) for g, p in zip(gradient, self.params, strict=True))
        seen = [float(loss.detach()), float(rate), self.rate * self.decay * float(shrunk)]
        self.sums += torch.tensor(seen, dtype=torch.float64)
        self.looks += 1

    def _move(self) -> None:
        self.moves, (loss, h) = self.moves + 1, (self.sums / self.looks).split([1, 2])
        self.squares += (h**2 - self.squares) / min(self.moves, 10)
        z, z_decay = (h / self.squares.sqrt()).clamp(-2, 2).tolist()
        now = float(loss), self.smooth
        rises = now[0] > self.last[0] and now[1] > self.last[1]
        self.compared = 8 if rises else 0
        if rises or self.shortened:
            z = max(z, 0.0)
        self.last, self.shortened, before = now, 0, self.rate
        self.rate *= math.exp(-self.kappa * z * math.log((self.steps + 100) / (self.moved + 100)))
        if not rises:
            self.rate = max(self.rate, min(before, self.raced))
        self.decay *= math.exp(-z_decay * (self.steps - self.moved) / max(self.steps, self.length / 4))
        self.moved = self.steps
        self.sums, self.looks = torch.zeros(3, dtype=torch.float64), 0

    @torch.no_grad()
    def _average(self, pull: float) -> None:
        """Pull the hypothetical run towards the real one, and update both averages."""
        pulled, real = ([*p, *_moments(o)] for p, o in ((self.others, self.other), (self.params, self.optimizer)))
        torch._foreach_lerp_(pulled, real, pull)
        now = [*self.params, *torch._foreach_sub(self.others, self.params)]
        torch._foreach_lerp_([*self.average, *self.difference], now, 1 / max(1.0, 0.1 * self.steps))


def backward(network: nn.Module, params: list[Tensor], batch: Batch) -> Tensor:
    """Set the gradients of a batch and return its loss."""
    loss = cross_entropy(network(batch[0]), batch[1])
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    return loss.detach()


def _step(optimizer: torch.optim.Optimizer, params: list[Tensor], rate: float, decay: float, longest: float) -> bool:
    """Take a step of at most `longest` times the norm of the matrices; return whether it was shortened."""
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        torch._foreach_mul_(params, 1 - decay)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        pairs = [(p, b) for p, b in zip(params, before, strict=True) if p.dim() > 1]
        length = torch.stack([(p - b).norm() for p, b in pairs]).norm().item()
        size = torch.stack([b.norm() for _, b in pairs]).norm().item()
        shortened = bool(length > longest * size)
        if shortened:
            torch._foreach_lerp_(params, before, 1 - longest * size / length)
    return shortened


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
