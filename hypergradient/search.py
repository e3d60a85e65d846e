"""The rate by hypothetical stretches: train a little at several rates, look at the validation loss, keep the best rate.

One step ahead is blind to what a rate does later (Wu et al. 2018, arXiv 1803.02021). A stretch of a twelfth of the
run, judged at averaged weights, nearly is not: averaging takes away most of the noise that makes short looks prefer
small rates; what is left of that preference, `trust` outweighs. Where a plateau hides what a rate does, a longer
stretch tells.
"""

import math
from collections.abc import Callable

FACTOR = 3.0  # between neighbouring rates
MOST = 30  # rates, should the loss fall for ever
LONGEST = 4  # times the first stretch


def search_rate(
    stretch: Callable[[float, int], float],
    start: float,
    trust: float = 0.1,
    tie: float = 0.06,
    untrained: float = math.inf,
) -> float:
    """Return the best learning rate, from hypothetical stretches of training at `start` times powers of 3.

    Upwards while the loss falls, else down. Short stretches prefer small rates: one below `start` must be better by the
    fraction `trust`, and while larger rates end within the fraction `tie` of the best, these and the best alone are
    trained twice as long. Where the next larger rate diverged, the one half-way to it (k + 1/2) takes part too, at four
    times the length. `start` itself stays where it is the best. Elsewhere, and with trust 0, the rate is the vertex of
    the parabola through the best rate and its neighbours, in log rate.

    Args:
        stretch: (rate, times) -> validation loss after a stretch `times` as long; not finite where it diverged.
        start: the rate to begin with.
        trust: in `start` against smaller rates, 0 ... 1.
        tie: what a stretch does not tell apart, as a fraction of the loss.
        untrained: the loss before training; a stretch that ends above it has diverged too.

    Raises:
        ValueError: every stretch diverged.
    """

    def judged(k: float, times: int = 1) -> float:
        loss = stretch(start * FACTOR**k, times)
        return loss if loss < untrained else math.inf

    # exponent k, of the rate start · 3^k -> the validation loss after its stretch
    loss: dict[float, float] = {0: judged(0)}
    while len(loss) < MOST:
        low, high, best = min(loss), max(loss), _best(loss)
        if math.isinf(loss[best]) or (best == low != high):
            loss[low - 1] = judged(low - 1)
        elif best == high:
            loss[high + 1] = judged(high + 1)
        else:
            break
    best = _best(loss)
    if math.isinf(loss[best]):
        raise ValueError(
            f"Training lowers the validation loss at no rate from {start:g} down to {start * FACTOR ** min(loss):g}. "
            "Check the data."
        )
    if trust and best <= 0 and (1 - trust) * loss[0] <= loss[best]:
        best = 0
    raced = _race(judged, loss, best, tie)
    if raced != best or (trust and best == 0):
        return float(start * FACTOR**raced)
    below, above = (loss.get(k, math.inf) for k in (best - 1, best + 1))
    curvature = below - 2 * loss[best] + above
    # next to a rate that diverged there is no parabola
    vertex = 0.5 * (below - above) / curvature if 0 < curvature < math.inf else 0.0
    return float(start * FACTOR ** (best + vertex))


def _race(judged: Callable[[float, int], float], loss: dict[float, float], best: float, tie: float) -> float:
    """Return the best exponent when larger ones that tie with it, and it, were trained twice and four times as long.

    Where none of them lasts so long, the largest of the smaller ones that does.
    """
    exponents, times = [k for k in loss if k >= best and loss[k] <= (1 + tie) * loss[best]], 1
    if tie and math.isinf(loss.get(best + 1, 0.0)):
        # the next one diverged: what is near it must last
        exponents, times = [*exponents, best + 0.5], LONGEST // 2
    while times < LONGEST and len(exponents) > 1:
        times *= 2
        longer = {k: judged(k, times) for k in exponents}
        smaller = sorted(k for k in loss if k < min(exponents))
        while smaller and math.isinf(min(longer.values())):
            k = smaller.pop()
            longer[k] = judged(k, times)
        if math.isinf(min(longer.values())):
            # --trainer.max_time was over
            return best
        best = _best(longer)
        exponents = [k for k in longer if longer[k] <= (1 + tie) * longer[best]]
    return best


def _best(loss: dict[float, float]) -> float:
    return min(loss, key=lambda k: (loss[k], k))
