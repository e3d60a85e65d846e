"""Warnings about what the adapter changes in a training run, and about problems that it finds."""

import math
import warnings

import torch

from hypergradient.race import Draw, RacedRun


class Notice(UserWarning):
    """A warning about what the adapter changes in a training run, or about a problem that it finds; once per run.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=Notice)  # silences all notices
    """


class Notices:
    """The notices of one run."""

    # thresholds: used rate over the user's rate; rate over that at the first move; number of moves before the latter
    FAR, MOVED, MOVES = 2.0, 1.25, 8
    # number of looks without a finite loss
    BLIND = 10

    def __init__(self) -> None:
        self.said = set[str]()

    def say(self, text: str, name: str = "") -> None:
        """Give a notice, once per name."""
        if (name or text) not in self.said:
            self.said.add(name or text)
            warnings.warn(f"RateAdapter: {text}", Notice, stacklevel=3)

    def follow(self, run: RacedRun, seen: dict[str, float]) -> None:
        """Give the notices that are due after a step."""
        used, lr = seen["lr"], run.peak * run.schedule
        if used and not lr / self.FAR <= used <= lr * self.FAR:
            why = "the validation loss moved it this far" if run.trusted else "another rate won the race"
            self.say(
                f"at step {run.steps} the learning rate is {used:.3g}, {used / lr:.3g} times the optimizer's lr: {why}."
                " It is group['used_lr'], and adapter.last['lr'].",
                "far",
            )
        if run.looks >= self.BLIND and run.moves == run.count == 0:
            self.say("the validation loss was not finite in any look so far, so the rate cannot move.", "blind")
        if run.moves >= self.MOVES and run.settings.meta_lr and run.steps == run.length // 3:
            times = run.rate / run.began
            if max(times, 1 / times) < self.MOVED or run.pushes**2 <= 4 * run.push_squares:
                self.say(
                    f"after a third of the run, {run.moves} moves within noise have multiplied the learning rate by "
                    f"{times:.2f}. Nothing to do: the rate is good, and adapting it changes little here."
                )

    def conclude(self, run: RacedRun, draw: Draw) -> None:
        """At the end of a run, compare the loss of the average with that of the last weights and of the first move."""
        sets = [[p.detach() for p in run.params], run.average.weights]
        found = [torch.stack(run.losses(draw(), *sets)) for _ in range(run.settings.batches)]
        last, average = torch.stack(found).double().unbind(1)
        more = average - last
        error = float(more.std()) / math.sqrt(len(more))
        if float(more.mean()) > 2 * error:
            self.say(
                f"on {len(more)} validation batches the loss of the averaged weights is {float(more.mean()):.3g} above "
                "that of the last ones. Use average=False to keep the last weights.",
                "average",
            )
        if not float(torch.minimum(last.mean(), average.mean())) < run.guard.first:
            self.say(
                f"the validation loss is {float(average.mean()):.3g}, no lower than at the first move, "
                f"{run.guard.first:.3g}: the training has not improved it.",
                "nothing",
            )
