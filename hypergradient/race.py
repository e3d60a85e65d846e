"""Races and rewinds: compare two runs, or a run and its last good average, on the same validation batches."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from hypergradient.guard import mean_and_error
from hypergradient.processes import mean_over_processes
from hypergradient.run import AdaptedRun
from hypergradient.sets import TensorSet
from hypergradient.start import weights_per_step
from hypergradient.trace import no_trace

Draw = Callable[[], Callable[[], Tensor]]

# a given rate within this factor of the method's own start is not compared with it
NEAR = 1.25
# the rate of the hypothetical run of a race, over the rate of the run
CLIMB = 4.0
# a given rate above the method's own start that makes the weights grow by this factor within the race is far too high
GROWTH = 2.0
# a run is on a plateau if its loss has changed by no more than this fraction in a race
PLATEAU = 0.01
# standard errors by which the hypothetical run wins a race; by which it loses clearly, or the run rewinds
LIKELY, CERTAIN = 2.0, 4.0


class RacedRun(AdaptedRun):
    """A run that finds its first rate by races, and rewinds when it fails.

    race        for 32 steps the hypothetical run trains at another rate: at the method's own start, if another rate is
                given; then at four times the rate of the run, but at none whose steps are longer than half of the
                weights. If it has gained a tenth more than the run, beyond noise, it becomes the run, and the next race
                starts. If it has clearly gained less, races end. Else the race is repeated when the number of steps has
                doubled, and the rate is doubled if the hypothetical run was the better one. On a plateau the rate is
                only doubled. Doubling ends at four times the method's own start, and leaves a given rate as it is. A
                given rate also loses if it is the higher one and has doubled the weights, which no later rate repairs
    rewind      if both losses rise, the average is compared with the last good one; if it has lost a fifth of what the
                run had gained, the run returns to the last good one, at half the rate
    """

    def begin(self) -> None:
        """Choose the first rate, from the gradients, and start the first race; later, start another race."""
        self.next_race = math.inf
        if self.steps == 0:
            self._start()
        elif rival := self._higher():
            self.rival, self.moved_at = rival, self.steps
            self.begin_hypothetical_run()
        if self.rival:
            # what a run gains in the race is measured from here
            self.guard.keep(self.average)

    def _start(self) -> None:
        unit = weights_per_step(self.optimizer)
        if not (unit or self.given):
            raise ValueError(
                "All weight matrices, or their gradients, are zero or not finite, so no learning rate can be derived: "
                "give one. In float16 Adam's eps=1e-8 is 0: use eps=1e-4, or bfloat16."
            )
        self.start, self.size = self.settings.start * unit, self._size()
        self.weight_decay = self.settings.weight_decay / unit if unit else 0.0
        self.rate = self.raced = self.peak if self.given else self.start
        if self.settings.meta_lr:
            apart = self.start and max(self.rate, self.start) > NEAR * min(self.rate, self.start)
            self.rival, self.climbing = (self.start, False) if apart else (self._higher(), True)

    @property
    def racing(self) -> bool:
        """Whether the hypothetical run needs whole batches in this step."""
        return self.steps == 0 or self.rival > 0

    @property
    def can_rewind(self) -> bool:
        """Whether the run can return to a good average; never if the rate is held."""
        limit = self.settings.rewinds if self.settings.meta_lr else 0
        return bool(self.guard.good) and self.guard.rewound < limit

    @property
    def compares(self) -> bool:
        """Whether this step compares two runs instead of looking."""
        return self.rival > 0 or self.guard.doubted

    def compare(self, draw: Draw) -> None:
        """Compare the two runs on one more validation batch; decide when there are enough batches."""
        if not self.rival:
            self._add(draw())
            if losses := self.guard.compared():
                run, good = losses
                lost, error = mean_and_error(run - good)
                # `not <=` is also true if the mean is NaN
                if not lost <= max(CERTAIN * error, self.settings.lost * self.guard.gained):
                    self.rewind()
                else:
                    self.guard.keep(self.average)
        elif self.rival < self.rate and not self._size() <= GROWTH * self.size:
            self._end_race(True)
            self.guard.keep(self.average)
        elif self.steps - self.moved_at > self.settings.race - self.settings.batches:
            self._add(draw(), self.hypothetical_average())
            if losses := self.guard.compared():
                run, before, other = losses
                better, error = mean_and_error(run - other)
                gain, loss = float((before - run).mean()), abs(float(run.mean()))
                # not a plateau if the loss is infinite
                flat, least = abs(gain) <= PLATEAU * loss < math.inf, self.settings.margin * min(gain, loss)
                lost = not better <= max(LIKELY * error, least) and not (flat and self.climbing)
                self._end_race(lost, clear=better < -max(CERTAIN * error, least), double=flat or better > 0)
                # to rewind to during the next race or the first moves
                self.guard.keep(self.average)
            elif self.steps - self.moved_at > self.settings.race + self.settings.batches:
                self._end_race(False)

    def recover(self) -> None:
        """Replace weights at which steps are not finite: end the race, or rewind, if possible."""
        if self.rival and self.rival < self.rate:
            self._end_race(True)
            return
        if self.rival:
            # a higher rate does not help
            self._end_race(False)
            self.rival = 0.0
        if self.can_rewind:
            self.rewind()

    def allowed(self, rate: float, loss: float) -> float:
        """Return a proposed rate within its limits.

        It does not rise if both losses, L_val(A) and the smoothed training loss, rise, or if steps were shortened.
        Unless both losses rise, it does not fall below the rate that won the races: h sees few steps ahead, and lowers
        rates too early.
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

    def _end_race(self, lost: bool, clear: bool = True, double: bool = False) -> None:
        """End a race: adopt the hypothetical run if the run has lost; choose when the next race starts.

        clear: whether a run that has not lost has won clearly; otherwise the race is repeated, and `double` is whether
        the rate is doubled until then.
        """
        climbed = self.climbing
        if lost:
            self.trusted = False
            self.adopt()
            # the smoothed loss is that of the losing run
            self.guard.steps, self.guard.smooth = 0, 0.0
            self.raced = self.rate
        elif climbed and double and not clear and not self.trusted and self.rate < CLIMB * self.start:
            self.rate = self.raced = min(2 * self.rate, CLIMB * self.start)
        self.climbing, self.moved_at, self.guard.losses = True, self.steps, []
        self.rival = self._higher() if lost or not climbed else 0.0
        self.next_race = math.inf if self.rival or (clear and not lost) else 2 * self.steps
        self.begin_hypothetical_run()

    def _higher(self) -> float:
        """Return the rate to which a race climbs; 0 if it is not even twice the present one."""
        rate = min(CLIMB * self.rate, self.settings.highest / self.settings.start * self.start or math.inf)
        return rate if rate >= 2 * self.rate else 0.0

    def losses(self, loss: Callable[[], Tensor], *sets: list[Tensor]) -> list[Tensor]:
        """Return the loss on one validation batch at several sets of weights."""
        found = []
        for weights in sets:
            values = TensorSet(self.network, self.params)
            values.copy_from(weights, self.average.buffers)
            # a loss may need gradients with respect to its inputs
            with torch.enable_grad(), no_trace(self.network, batch_statistics=True), values.in_place():
                found.append(loss().detach())
        return mean_over_processes(found)

    def _add(self, loss: Callable[[], Tensor], *others: list[Tensor]) -> None:
        # read at once: each read waits for the device
        found = torch.stack(self.losses(loss, self.average.weights, self.guard.good[0], *others)).tolist()
        if math.isfinite(found[-1]):
            # a batch without a finite loss does not count; a new list, since the old one may belong to a saved state
            self.guard.losses = [*self.guard.losses, found]

    def _size(self) -> float:
        return float(get_total_norm([p.detach() for p in self.params if p.dim() > 1]))
