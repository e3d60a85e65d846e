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
    """A copy of a part of a training batch, and its fraction of the batch."""

    batch: Any
    fraction: float


class Parts:
    """Parts and losses of the training batches of the current step.

    Args:
        settings: the constants; `part` and `least` define the size of a part.
        cut: (batch, fraction) -> part; default: the first samples of all its tensors.
        notices: reports losses that are sums, and batches that cannot be cut.

    Attributes:
        seen, losses: a part and a loss for each batch. size: samples in the last batch; 0 if it cannot be cut.
    """

    # number of parts whose loss is compared with that of their batch
    COMPARED = 16

    def __init__(self, settings: Settings, cut: Cut | None, notices: Notices) -> None:
        self.settings, self.cut, self.notices = settings, cut, notices
        self.seen, self.losses, self.size = list[Part](), list[Tensor](), 0
        # for each of these parts, whether the loss seems to be a sum
        self.sums = list[bool]()

    def part(self, batch: Any, whole: bool = False) -> Part:
        """Return a copy of a part of a batch, or of the whole."""
        options, self.size = self.settings, samples(batch)
        if self.cut and not whole:
            return Part(copied(self.cut(batch, options.part)), options.part)
        if not self.size and not self.cut:
            self.notices.say(
                "hypothetical steps take whole batches, since the tensors of a batch differ in their first dimension. "
                "For cheaper steps, give cut=(batch, fraction) -> part."
            )
        count = self.size if whole else min(self.size, max(options.least, int(options.part * self.size)))
        return Part(copied(batch, self.size, count), count / self.size if self.size else 1.0)

    def add(self, part: Part, loss: Tensor) -> None:
        """Add the part and the loss of a batch."""
        self.seen.append(part)
        self.losses.append(loss)

    def clear(self) -> None:
        """Discard the batches of a step."""
        self.seen, self.losses = [], []

    @property
    def loss(self) -> Tensor:
        """The mean loss of the batches."""
        return torch.stack(self.losses).mean()

    def loss_of(self, scalar: Callable[[Any], Tensor]) -> Tensor:
        """Return the mean over the parts of their loss, which `scalar` computes."""
        try:
            losses = [scalar(part) for part, _ in self.seen]
        except Exception as error:
            error.add_note(
                "RateAdapter: this was the loss of a part of a training batch, cut along the first dimension. If that "
                "is not the samples' dimension, give cut=(batch, fraction) -> part."
            )
            raise
        for (_, fraction), part, whole in zip(self.seen, losses, self.losses, strict=True):
            if fraction < 1 and len(self.sums) < self.COMPARED:
                # a sum is closer to that fraction of the batch's loss than to the loss itself
                low, high = sorted(float(fraction**power * whole) for power in (1.5, 0.5))
                self.sums.append(low < float(part.detach()) < high)
                if len(self.sums) == self.COMPARED and sum(self.sums) > 0.8 * self.COMPARED:
                    self.notices.say(
                        "the loss seems to be a sum over samples, since it is smaller for parts of batches, which "
                        "hypothetical steps use: return the mean."
                    )
        return torch.stack(losses).mean()
