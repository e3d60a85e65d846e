"""One way to draw every figure of the project: lines with a band, legible in grey and to the colour-blind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reporting.statistics import mean_and_half_interval

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

CEILING = 3.0  # of a loss in a figure: above it a run has failed, by how much is no matter

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


def draw_courses(runs: pd.DataFrame, folder: Path) -> None:
    """Draw validation loss against epoch and rate against step: mean and 95 % interval over runs, one line an arm."""
    for column, x, y, log, name in [
        ("val_losses", "epoch", "validation loss", False, "comparison.png"),
        ("lrs", "step", "learning rate", True, "lr_evolution.png"),
    ]:
        curves = {}
        for arm, histories in runs.groupby("arm", sort=False)[column]:
            points = min(map(len, histories))  # a run that diverged has fewer
            curves[str(arm)] = (range(1, points + 1), [history[:points] for history in histories])
        line_figure({arm: curve for arm, curve in curves.items() if curve[0]}, x, y, log).savefig(folder / name)


def draw_sensitivity(runs: pd.DataFrame, folder: Path) -> None:
    """Draw the final test loss against the starting rate, one line an arm."""
    curves = {}
    for arm, own in runs.groupby("arm", sort=False):
        losses = own.pivot(index=["data_seed", "seed"], columns="start_lr", values="test_loss").clip(upper=CEILING)
        curves[str(arm)] = (list(losses.columns), losses.to_numpy())
    figure = line_figure(curves, "learning rate at the start", "test loss after the last epoch", log_x=True)
    figure.savefig(folder / "lr_sensitivity.png")
