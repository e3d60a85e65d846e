"""The parts of training batches that a hypothetical step uses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypergradient.batches import copied, samples
from hypergradient.notices import Notices
from hypergradient.settings import Settings

Cut = Callable[[Any, float], Any]


class Part(NamedTuple):
    """A copy of a part of a training batch, and which fraction of it that is."""

    batch: Any
    fraction: float


class Parts:
    """The parts, and the losses, of the batches whose gradients make the present step.

    Args:
        settings: which fraction a part is.
        cut: (batch, fraction) -> part; default: the first samples of all its tensors.
        notices: where a loss that is a sum is told, and a batch that cannot be cut.

    Attributes:
        seen, losses: of each batch. size: the samples of the last one; 0 where it cannot be cut.
    """

    # parts whose losses are compared with those of their batches
    COMPARED = 16

    def __init__(self, settings: Settings, cut: Cut | None, notices: Notices) -> None:
        self.settings, self.cut, self.notices = settings, cut, notices
        self.seen, self.losses, self.size = list[Part](), list[Tensor](), 0
        # of the first parts, whether the loss looks like that of a sum
        self.sums = list[bool]()

    def part(self, batch: Any, whole: bool = False) -> Part:
        """Return a copy of a part of a batch."""
        options, self.size = self.settings, samples(batch)
        if self.cut and not whole:
            return Part(copied(self.cut(batch, options.part)), options.part)
        if not self.size and not self.cut:
            self.notices.say(
                "hypothetical steps take whole batches, as the tensors of a batch share no first dimension: give "
                "cut=(batch, fraction) -> part, for cheaper steps."
            )
        count = self.size if whole else min(self.size, max(options.least, int(options.part * self.size)))
        return Part(copied(batch, self.size, count), count / self.size if self.size else 1.0)

    def add(self, part: Part, loss: Tensor) -> None:
        """Add the part, and the loss, of a batch."""
        self.seen.append(part)
        self.losses.append(loss)

    def clear(self) -> None:
        """Forget the batches of a step."""
        self.seen, self.losses = [], []

    @property
    def loss(self) -> Tensor:
        """The mean loss of the batches."""
        return torch.stack(self.losses).mean()

    def loss_of(self, scalar: Callable[[Any], Tensor]) -> Tensor:
        """Return the mean loss of the parts, by the function that computes that of one."""
        try:
            losses = [scalar(part) for part, _ in self.seen]
        except Exception as error:
            error.add_note(
                "RateAdapter: this was the loss of a part of a training batch, cut along the first dimension: if it is "
                "not that of the samples, give cut=(batch, fraction) -> part."
            )
            raise
        for (_, fraction), part, whole in zip(self.seen, losses, self.losses, strict=True):
            if fraction < 1 and len(self.sums) < self.COMPARED:
                # nearer to that fraction of the whole than to the whole
                low, high = sorted(float(fraction**power * whole) for power in (1.5, 0.5))
                self.sums.append(low < float(part.detach()) < high)
                if len(self.sums) == self.COMPARED and sum(self.sums) > 0.8 * self.COMPARED:
                    self.notices.say(
                        "the loss seems to be a sum over samples, as it is smaller for parts of batches, and "
                        "hypothetical steps take parts: return the mean."
                    )
        return torch.stack(losses).mean()
