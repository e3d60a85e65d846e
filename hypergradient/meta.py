"""The learning rate and the weight decay adapted during the run: the whole rule.

start       α = c · rms(θ) / rms(Δ(1))           low, whatever the network and the optimizer
each step   θ  ← (1 - αλ) θ + Δ(α; g)             the optimizer's own step
            θ' ← (1 - αλ) θ' + Δ'(2α; g')         the hypothetical run; g': at θ', of a part of the same batch
            θ' ← θ' + .1 (θ - θ')                 and the state of its optimizer likewise
            A  ← A + (θ - A) / max(1, .1 t)       Z ← Z + (θ' - θ - Z) / max(1, .1 t)
look        h = ⟨∇L_val(A), Z⟩                    in every 16th step, and before each move
            h_λ = -αλ ⟨∇L_val(A), θ⟩
move        log α ← log α - κ log((t + 20) / (t' + 20)) h / rms(h)      when t has grown by a tenth since t'
            log λ ← log λ - (t - t') / max(t, T/4) h_λ / rms(h_λ)

Without the pull and for a factor near 1 instead of 2, (θ' - θ) / log(factor) is dθ/d log α of the whole run so far, by
forward-mode differentiation; the pull discounts what lies more than about ten steps back. One step ahead is blind to
what a rate does later (Wu et al. 2018, arXiv 1803.02021). A is what validation measures: its noise is averaged away, so
h does not mistake noise for curvature. The constants are in `Settings`; `guard.py` protects the run.
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hypergradient.hypothetical import gradients_of, shrink
from hypergradient.processes import mean_over_processes
from hypergradient.run import AdaptedRun
from hypergradient.start import weights_per_step
from hypergradient.trace import no_trace


class Meta(AdaptedRun):
    """Adapts one run: call `before_step`, the optimizer's step, `after_step`, while the parameters have gradients."""

    def before_step(self, validation_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Look and move where it is time, set the step's rates, shrink the weights; return what was seen.

        validation_loss: of the network on a validation batch, a scalar; called where a look is due.
        """
        self.prepare()
        self.read_schedule()
        if self.steps == 0:
            self._begin()
        seen = {}
        if self._due:
            loss, h, h_decay = self._look(validation_loss)
            seen = {"hypergradient": h, "lookahead_loss": loss}
            if math.isfinite(loss + h + h_decay):
                self.sums += torch.tensor([loss, h, self.decay * h_decay], dtype=torch.float64)
                self.count += 1
                if self.guard.climbing:
                    self._climb()
                elif self._moves_now:
                    self._move()
        self.set_rates()
        shrink(self.params, self.shrinks, self.decay)
        return seen | {"lr": self.used_rate, "decay": self.decay}

    def after_step(self, loss: float | Tensor, hypothetical_loss: Callable[[], Tensor]) -> None:
        """Take the hypothetical step, average, and rewind where the run diverges.

        loss: of the real step's batch, before it. hypothetical_loss: of the network on a part of that batch, a scalar.
        """
        steps = self.hypothetical.step(hypothetical_loss, self.settings, self.decay, self.clip)
        self.restore_rates()
        self.steps += 1
        self.average.update(self.steps)
        with torch.no_grad():
            moved = [step.to(z.dtype) for step, z in zip(steps, self.difference, strict=True)]
            torch._foreach_lerp_(self.difference, moved, 1 / max(1.0, self.settings.window * self.steps))
        [mean] = mean_over_processes([torch.as_tensor(loss)])
        self.guard.update(float(mean))
        if self.guard.diverged:
            self.rewind()

    def _begin(self) -> None:
        unit = weights_per_step(self.optimizer)
        self.rate = self.guard.start(self.settings.start * unit, self.lr)
        self.weight_decay = self.settings.weight_decay / unit
        if self.lr and self.lr > self.rate:
            warnings.warn(f"lr {self.lr:g} is lowered to {self.rate:.3g}, where this method starts.", stacklevel=2)

    @property
    def _due(self) -> bool:
        return self.steps > 0 and (self.guard.climbing or self._moves_now or self.steps % self.settings.every == 0)

    @property
    def _moves_now(self) -> bool:
        return self.steps - self.moved_at >= max(1.0, self.settings.spacing * (self.steps - self.clock))

    def _look(self, validation_loss: Callable[[], Tensor]) -> list[float]:
        """Return L_val(A), ⟨∇L_val(A), Z⟩ and -⟨∇L_val(A), θ⟩."""
        up, weights = math.copysign(1.0, math.log(self.settings.factor)), [p.detach() for p in self.params]
        with torch.enable_grad(), no_trace(self.network, batch_statistics=True), self.average.in_place(keep=False):
            loss = validation_loss()
            gradients = gradients_of(loss, self.params)
        with torch.no_grad():
            products = [
                torch.stack([up * torch.sum((g.conj() * z).real), -shrinks * torch.sum((g.conj() * p).real)])
                for g, z, p, shrinks in zip(gradients, self.difference, weights, self.shrinks, strict=True)
            ]
            h = torch.stack(products).sum(0)
            [seen] = mean_over_processes([torch.cat([loss.detach().reshape(1).to(h), h])])
        self.looks += 1
        found: list[float] = seen.tolist()
        if not math.isfinite(sum(found)) and not all(bool(z.isfinite().all()) for z in self.difference):
            # the hypothetical run overflowed at its higher rate, and would stay so
            self.begin_hypothetical_run()
        return found

    def _climb(self) -> None:
        self.rate = self.guard.climb(self.rate, float(self.sums[1]))
        self.clock = self.moved_at = self.steps
        self.sums, self.count = torch.zeros_like(self.sums), 0

    def _move(self) -> None:
        options, self.moves = self.settings, self.moves + 1
        loss, h = (self.sums / self.count).split([1, 2])
        self.squares += (h.square() - self.squares) / min(self.moves, options.memory)
        z, z_decay = (h / self.squares.sqrt().clamp(min=1e-60)).clamp(-options.cut, options.cut).tolist()
        if self.guard.rises(float(loss)):
            z = max(z, 0.0)
        t, passed = self.steps - self.clock, self.steps - self.moved_at
        self.rate *= math.exp(-options.meta_lr * z * math.log((t + options.delay) / (self.before + options.delay)))
        self.weight_decay *= math.exp(-z_decay * passed / max(self.steps, self.length / 4))
        self.before, self.moved_at = t, self.steps
        self.sums, self.count = torch.zeros_like(self.sums), 0
        self.guard.keep(self.average)
