"""One way to draw every figure of the project: lines with a band, legible in grey and to the colour-blind."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

# Okabe & Ito's palette, darkest first; the dashes tell the lines apart in grey print too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: Any = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}

Curve = tuple[Sequence[float], Any]
"""Where, (points,), and what, (runs, points). One run draws a line, several draw their mean and its interval."""


def line_figure(
    curves: Mapping[str, Curve], xlabel: str, ylabel: str, log: bool = False, log_x: bool = False
) -> Figure:
    """Draw a line for each label: the mean over runs (on a log scale the geometric one), its 95 % interval a band."""
    transform, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=150)
        axes = figure.subplots()
        for i, (label, (x, runs)) in enumerate(curves.items()):
            mean, half = mean_and_half_interval(transform(np.atleast_2d(runs)))
            color, dashes = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]
            axes.plot(x, back(mean), label=label, linewidth=1.8, color=color, linestyle=dashes)
            axes.fill_between(x, back(mean - half), back(mean + half), color=color, alpha=0.2, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
        if log_x:
            axes.set_xscale("log")
        if log:  # four decades: a rate annealed to 0 would squeeze the rest
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-4 * axes.get_ylim()[1]))
        if curves:
            axes.legend(frameon=False)
    return figure


def mean_and_half_interval(runs: Any) -> tuple[Any, Any]:
    """Return the mean over runs, (runs, ...) -> (...), and half its 95 % interval (Student's t); 0 for a single run."""
    values = np.asarray(runs, dtype=float)
    if len(values) == 1:
        return values[0], np.zeros_like(values[0])
    return values.mean(0), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
