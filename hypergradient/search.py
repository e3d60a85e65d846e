"""The rate by hypothetical stretches: train a little at several rates, look at the validation loss, keep the best rate.

One step ahead is blind to what a rate does later (Wu et al. 2018, arXiv 1803.02021). A stretch of a twelfth of the
run, judged at averaged weights, nearly is not: averaging takes away most of the noise that makes short looks prefer
small rates; what is left of that preference, `trust` outweighs.
"""

import math
from collections.abc import Callable

FACTOR = 3.0  # between neighbouring rates
MOST = 30  # stretches, should the loss fall for ever


def search_rate(
    stretch: Callable[[float], float], start: float, trust: float = 0.1, untrained: float = math.inf
) -> float:
    """Return the best learning rate, from hypothetical stretches of training at `start` times powers of 3.

    Upwards while the loss falls, else down. Short stretches prefer small rates: one below `start` must be better by
    the fraction `trust`, and `start` itself stays where it is the best. Elsewhere, and with trust 0, the rate is the
    vertex of the parabola through the best rate and its neighbours, in log rate.

    Args:
        stretch: rate -> validation loss after the stretch; not finite where it diverged.
        start: the rate to begin with.
        trust: in `start` against smaller rates, 0 ... 1.
        untrained: the loss before training; a stretch that ends above it has diverged too.

    Raises:
        ValueError: every stretch diverged.
    """
    loss: dict[int, float] = {}
    rung: int | None = 0
    while rung is not None and len(loss) < MOST:
        value = stretch(start * FACTOR**rung)
        loss[rung] = value if value < untrained else math.inf
        rung = _next(loss)
    best = min(loss, key=lambda k: (loss[k], k))
    if math.isinf(loss[best]):
        lowest = start * FACTOR ** min(loss)
        raise ValueError(
            f"Training lowers the validation loss at no rate from {start:g} down to {lowest:g}. Check the "
            "data, or give the rate yourself (bracket false, stretch 0)."
        )
    if trust and best <= 0 and (1 - trust) * loss[0] <= loss[best]:
        return start
    return float(start * FACTOR ** (best + _vertex(*(loss.get(k, math.inf) for k in (best - 1, best, best + 1)))))


def _next(loss: dict[int, float]) -> int | None:
    low, high = min(loss), max(loss)
    best = min(loss, key=lambda k: (loss[k], k))
    if math.isinf(loss[best]):
        return low - 1
    if best == high:
        return high + 1
    return low - 1 if best == low else None


def _vertex(below: float, best: float, above: float) -> float:
    """Return where, in -1/2 ... 1/2, the parabola through three neighbours is lowest; 0 beside a rate that diverged."""
    curvature = below - 2 * best + above
    return 0.5 * (below - above) / curvature if 0 < curvature < math.inf else 0.0
