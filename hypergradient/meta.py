"""The rule that adapts the learning rate α and the weight decay λ during a run.

start       α = lr of the optimizer; where none is given, α = m = c · rms(θ) / rms(Δ(1; g))
each step   θ  ← (1 - αλ) θ + Δ(α; g)             shortened to a tenth of the length of θ, if longer
            θ' ← (1 - αλ) θ' + Δ(2α; g')          g': at θ', of the first 3/8 of the same batch
            θ' ← θ' + .1 (θ - θ')                 the pull; the state of its optimizer is pulled likewise
            A  ← A + (θ - A) / max(1, .1 t)       Z ← Z + (θ' - θ - Z) / max(1, .1 t)
look        h = ⟨∇L_val(A), Z⟩                    on one validation batch, in every 16th step and before each move
            h_λ = -αλ ⟨∇L_val(A), θ⟩
move        log α ← log α - κ log((t + 100) / (t' + 100)) h / rms(h)   when t - t' ≥ .1 t; h: mean of the looks since t'
            log λ ← log λ - (t - t') / max(t, T/4) h_λ / rms(h_λ)      h / rms(h), at most 2 in size, likewise for h_λ

In the code: α `rate`, λ `weight_decay`, κ `meta_lr`, t `steps`, t' `moved_at`, T `length`, A `average`, Z `difference`;
θ' is `hypothetical`. The constants are in `Settings`; races, limits of a move and rewinds in `race.py`.

Z is a finite difference: without the pull, and at a factor near 1 instead of 2, (θ' - θ) / log(factor) is dθ/d log α of
the whole run. The pull limits it to about the last ten steps; a single step would not show what a rate does later (Wu
et al. 2018, arXiv 1803.02021). h is evaluated at A, since the noise of θ would act like curvature.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hypergradient.hypothetical import copies, gradients_of, shorten, shrink
from hypergradient.processes import mean_over_processes
from hypergradient.race import Draw, RacedRun
from hypergradient.trace import no_trace


class Meta(RacedRun):
    """Adapts one run: call `before_step`, the optimizer's step, `after_step`, while the parameters have gradients.

    Example:
        >>> network = torch.nn.Linear(2, 1)
        >>> loss = lambda: (network(torch.ones(8, 2)) - 1).square().mean()
        >>> meta = Meta(network, torch.optim.SGD(network.parameters(), lr=0.1))
        >>> (now := loss()).backward()
        >>> meta.before_step(draw=lambda: loss)
        {'lr': 0.1, 'decay': ...}
        >>> meta.optimizer.step()
        >>> meta.after_step(now.detach(), hypothetical_loss=loss)
    """

    def before_step(self, draw: Draw) -> dict[str, float]:
        """Look and move if due, set the step's rates, shrink the weights; return the rates and the results of a look.

        draw: draws a validation batch, and returns a function that computes the network's loss on it, a scalar.
        """
        self.prepare()
        self.read_schedule()
        if self.steps >= self.next_race and not self.guard.doubted:
            # the first step, or another race
            self.begin()
        seen = {}
        if self.compares:
            self.compare(draw)
        elif self._due:
            loss, h, h_decay = self._look(draw)
            seen = {"hypergradient": h, "lookahead_loss": loss}
            if math.isfinite(loss + h + h_decay):
                self.sums += torch.tensor([loss, h, self.decay * h_decay], dtype=torch.float64, device="cpu")
                self.count += 1
                if self._moves_now:
                    self._move()
        # θ ← (1 - αλ) θ; then the optimizer adds Δ(α; g)
        self.set_rates()
        self.started_at = copies(self.params) if self.settings.meta_lr else []
        shrink(self.params, self.shrinks, self.decay)
        return seen | {"lr": self.used_rate, "decay": self.decay}

    def after_step(self, loss: float | Tensor, hypothetical_loss: Callable[[], Tensor]) -> None:
        """Shorten a step that is too long, take the hypothetical step, and update A and Z.

        loss: on the batch of the real step, before it. hypothetical_loss: computes the network's loss on a part of that
        batch, a scalar; on the whole batch while `racing`.
        """
        options = self.settings
        # zero weights have no length to compare with
        longest = options.longest if self.size else math.inf
        if self.started_at and not self.rival:
            self.shortened += shorten(self.params, self.started_at, longest)
        # freed before the hypothetical step, which needs a copy itself
        self.started_at = []
        factor, pull = (self.rival / self.rate, 0.0) if self.rival else (options.factor, options.pull)
        longest *= max(1.0, factor)
        steps = self.hypothetical.step(hypothetical_loss, factor, pull, longest, self.decay, self.clip)
        self.restore_rates()
        self.steps += 1
        self.average.update(self.steps)
        with torch.no_grad():
            moved = [step.to(z.dtype) for step, z in zip(steps, self.difference, strict=True)]
            torch._foreach_lerp_(self.difference, moved, 1 / max(1.0, options.window * self.steps))
        [mean] = mean_over_processes([torch.as_tensor(loss, device=self.params[0].device)])
        if any(p.grad is not None for p in self.params):
            # else the run was replaced in this step, and the loss is that of its old weights
            self.guard.update(float(mean))

    @property
    def _due(self) -> bool:
        return self.steps > 1 and (self._moves_now or self.steps % self.settings.every == 0)

    @property
    def _moves_now(self) -> bool:
        return self.steps - self.moved_at >= max(1.0, self.settings.spacing * self.steps)

    def _look(self, draw: Draw) -> list[float]:
        """Return L_val(A), ⟨∇L_val(A), Z⟩ and -⟨∇L_val(A), θ⟩."""
        # Z points towards lower rates if the factor is below 1
        up, weights = math.copysign(1.0, math.log(self.settings.factor)), [p.detach() for p in self.params]
        with torch.enable_grad(), no_trace(self.network, batch_statistics=True), self.average.in_place(keep=False):
            loss = draw()()
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
            # the hypothetical run has overflowed at its higher rate: restart it
            self.begin_hypothetical_run()
        return found

    def _move(self) -> None:
        options, self.moves = self.settings, self.moves + 1
        loss, h = (self.sums / self.count).split([1, 2])
        # z = h / rms(h), over about the last ten moves
        self.squares += (h.square() - self.squares) / min(self.moves, options.memory)
        z, z_decay = (h / self.squares.sqrt().clamp(min=1e-60)).clamp(-options.cut, options.cut).tolist()
        self.began, self.pushes, self.push_squares = self.began or self.rate, self.pushes + z, self.push_squares + z * z
        t, before = self.steps, self.moved_at
        # a given rate that has lost no race moves half as far
        rise = -options.meta_lr * z * math.log((t + options.delay) / (before + options.delay)) / (1 + self.trusted)
        self.rate = self.allowed(self.rate * math.exp(rise), float(loss))
        self.weight_decay *= math.exp(-z_decay * (t - before) / max(t, self.length / 4))
        self.moved_at = t
        self.sums, self.count = torch.zeros_like(self.sums), 0
