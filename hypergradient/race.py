"""Two runs compared on the same validation batches: at two rates, and a run with its own past."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from hypergradient.processes import mean_over_processes
from hypergradient.run import AdaptedRun
from hypergradient.sets import TensorSet
from hypergradient.start import weights_per_step
from hypergradient.trace import no_trace

Draw = Callable[[], Callable[[], Tensor]]

# a given rate within this factor of the method's own start is not compared with it
NEAR = 1.25
# the hypothetical run of a race goes at so many times the rate of the run
CLIMB = 4.0
# a given rate above the method's own start that makes the weights grow by this factor within the race is far too high
GROWTH = 2.0
# standard errors: by so many the hypothetical run wins; by so many a run goes back, or has won its races for good
LIKELY, CERTAIN = 2.0, 4.0


class RacedRun(AdaptedRun):
    """A run that finds its first rate by races, and goes back where the validation loss says so.

    race        for 32 steps the hypothetical run goes at another rate: at the method's own start, where another one is
                given; then at four times the rate of the run. It becomes the run if its loss is lower beyond noise, and
                the next race begins, until the run wins one. If that is within noise, there is another race when the
                run is twice as old. A given rate also loses if it is the higher one and the weights have doubled: what
                it does to a network is not undone
    rewind      where both losses rise, the average is compared with the last good one; the run goes back to it, at half
                the rate, if it has lost a fifth of what it had gained
    """

    def begin(self) -> None:
        """Choose the rate of the first step, from its gradients, and begin the first race; later, begin another one."""
        self.next_race = math.inf
        if self.steps:
            self.rival, self.moved_at = CLIMB * self.rate, self.steps
            self.begin_hypothetical_run()
            return
        unit = weights_per_step(self.optimizer)
        if not (unit or self.given):
            raise ValueError(
                "No weight matrix has a scale: all of them, or their gradients, are zero or not finite. Give a "
                "learning rate. In float16 Adam's eps=1e-8 is 0: use eps=1e-4, or bfloat16."
            )
        start, self.size = self.settings.start * unit, self._size()
        self.weight_decay = self.settings.weight_decay / unit if unit else 0.0
        self.rate = self.peak if self.given else start
        if self.settings.meta_lr:
            apart = start and max(self.rate, start) > NEAR * min(self.rate, start)
            self.rival, self.climbing = (start, False) if apart else (CLIMB * self.rate, True)

    @property
    def racing(self) -> bool:
        """Whether the hypothetical run needs whole batches in this step."""
        return self.steps == 0 or self.rival > 0

    @property
    def can_rewind(self) -> bool:
        """Whether there is a good average to go back to: never at a rate that is held."""
        limit = self.settings.rewinds if self.settings.meta_lr else 0
        return bool(self.guard.good) and self.guard.rewound < limit

    @property
    def compares(self) -> bool:
        """Whether this step compares, instead of looking."""
        return self.rival > 0 or self.guard.doubted

    def compare(self, draw: Draw) -> None:
        """Compare the run with the other one on a validation batch, and decide when there are enough of them."""
        if not self.rival:
            self._add(draw(), self.guard.good[0])
            if found := self.guard.compared():
                mean, error = found
                # a loss that is not finite is worse
                if not mean <= max(CERTAIN * error, self.settings.lost * self.guard.gained):
                    self.rewind()
                else:
                    self.guard.keep(self.average)
        elif self.rival < self.rate and not self._size() <= GROWTH * self.size:
            self._end_race(True)
        elif self.steps - self.moved_at > self.settings.race - self.settings.batches:
            self._add(draw(), self.hypothetical_average())
            if found := self.guard.compared():
                mean, error = found
                self._end_race(not mean <= LIKELY * error, clear=mean < -CERTAIN * error)
                if self.settings.rewinds:
                    # the next race, or the first moves, may need a way back
                    self.guard.keep(self.average)
            elif self.steps - self.moved_at > self.settings.race + self.settings.batches:
                self._end_race(False)

    def recover(self) -> None:
        """Leave weights at which steps are not finite, where there are others."""
        if self.rival and self.rival < self.rate:
            self._end_race(True)
            return
        if self.rival:
            # a higher rate is no way out
            self._end_race(False)
            self.rival = 0.0
        if self.can_rewind:
            self.rewind()

    def allowed(self, rate: float, loss: float) -> float:
        """Return a new rate as far as the losses, L_val(A) and the training loss, allow it.

        It does not rise while both do, or where steps are shortened. Unless both do, it does not fall below the rate
        that has won the races: a gradient that looks few steps ahead lowers rates too early.
        """
        rises, shortened = self.guard.rises(loss), self.shortened > self.shortened_before
        self.shortened_before = self.shortened
        if rises and self.can_rewind:
            self.guard.doubted = True
        elif self.settings.meta_lr and self.settings.rewinds:
            self.guard.keep(self.average)
        won = self.peak if self.trusted else self.raced
        lowest = 0.0 if rises else min(self.rate, won)
        highest = self.rate if rises or shortened else math.inf
        return min(max(rate, lowest), highest)

    def _end_race(self, lost: bool, clear: bool = True) -> None:
        climbed = self.climbing
        if lost:
            self.trusted = False
            self.adopt()
            # of the other run
            self.guard.steps, self.guard.smooth = 0, 0.0
        self.climbing, self.raced, self.moved_at, self.guard.differences = True, self.rate, self.steps, []
        self.rival = CLIMB * self.rate if lost or not climbed else 0.0
        self.next_race = math.inf if self.rival or clear else 2 * self.steps
        self.begin_hypothetical_run()

    def losses(self, loss: Callable[[], Tensor], *sets: list[Tensor]) -> list[Tensor]:
        """Return the loss on one validation batch at several sets of weights."""
        found = []
        for weights in sets:
            values = TensorSet(self.network, self.params)
            values.copy_from(weights, self.average.buffers)
            # a loss may need gradients along its inputs
            with torch.enable_grad(), no_trace(self.network, batch_statistics=True), values.in_place():
                found.append(loss().detach())
        return mean_over_processes(found)

    def _add(self, loss: Callable[[], Tensor], others: list[Tensor]) -> None:
        # read together: the processor waits for each
        run, other = torch.stack(self.losses(loss, self.average.weights, others)).tolist()
        if math.isfinite(other):
            # else the batch says nothing; and the list may be that of a state
            self.guard.differences = [*self.guard.differences, run - other]

    def _size(self) -> float:
        return float(get_total_norm([p.detach() for p in self.params if p.dim() > 1]))
