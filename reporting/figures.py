"""The figures of runs: lines with a band for the interval, legible in grey and to the colour-blind."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.curves import Lines
from reporting.statistics import mean_and_half_interval

# Okabe & Ito's palette, darkest first; dashes distinguish the lines in grey
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: Any = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}
# test losses above it, of runs that have failed, are drawn at it
CEILING = 3.0
# settings of the axes of `evolution`
AXES: dict[str, dict[str, Any]] = {
    "lr": {"ylabel": "learning rate", "yscale": "log"},
    "hypergradient": {"ylabel": "hypergradient"},
    "decay": {"ylabel": "weight decay a step", "yscale": "log"},
}


def draw_courses(lines: Lines, runs: pd.DataFrame, folder: Path, about: str = "") -> None:
    """Draw `comparison.png`, the validation and test losses, and `lr_evolution.png`, the rate by step.

    lines: the result of `courses`, labelled by `runs.arm`. runs: one row per run, with arm, test_loss and seed.
    about: the start of the titles.
    """
    order, title, clipped = list(dict.fromkeys(lines.label)), f"{about}{_averaged(runs)}", runs.test_loss > CEILING
    note = "Runs with the same seed have the same initial weights and batches: arms differ by what they do with them."
    figure, (left, right) = _figure(title, note, columns=2)
    _draw(left, lines[lines.quantity == "val_loss"], order, xlabel="epoch", ylabel="validation loss")
    losses = runs.test_loss.clip(upper=CEILING).groupby(runs.arm).agg(list)
    ranked = sorted(order, key=lambda label: -np.mean(losses[label]))
    for height, label in enumerate(ranked):
        mean, half = mean_and_half_interval(losses[label])
        color, marker = COLORS[order.index(label) % len(COLORS)], ">" if clipped[runs.arm == label].any() else "o"
        right.errorbar(mean, height, xerr=half, fmt=marker, capsize=3, color=color)
    right.set_yticks(range(len(ranked)), ranked)
    label = (
        "test loss after the last epoch" + bool(clipped.any()) * f" (→: with runs above {CEILING:g}, counted as that)"
    )
    right.set(xlabel=label, ylim=(-0.5, len(ranked) - 0.5))
    figure.savefig(folder / "comparison.png")
    evolution(lines, title).savefig(folder / "lr_evolution.png")


def evolution(lines: Lines, title: str = "") -> Figure:
    """Draw the learning rate against the step and, if recorded, hypergradient and weight decay below it."""
    shown = [quantity for quantity in AXES if quantity in set(lines.quantity)]
    note = "On logarithmic axes the mean is geometric, and the interval is that of the logarithm." if title else ""
    figure, places = _figure(title, note, rows=len(shown))
    for axes, quantity in zip(places, shown, strict=True):
        _draw(axes, lines[lines.quantity == quantity], list(dict.fromkeys(lines.label)), **AXES[quantity])
    places[-1].set_xlabel("step")
    return figure


def draw_sensitivity(losses: Lines, rates: Lines, runs: pd.DataFrame, folder: Path, about: str = "") -> None:
    """Draw `lr_sensitivity.png`: test loss against initial rate, and the first arm's rates from each initial rate.

    losses: the result of `by_start`. rates: that of `courses`, with one label per initial rate. runs: all runs.
    """
    clipped = bool(losses.clipped.any()) * f"▲: with runs above {CEILING:g}, counted as that. "
    note = f"{clipped}Right: the mean is geometric, and the interval is that of the logarithm."
    figure, (left, right) = _figure(f"{about}{_averaged(runs)}", note, columns=2)
    order, starts = list(dict.fromkeys(losses.label)), list(dict.fromkeys(rates.label))
    _draw(left, losses, order, marker="o", xlabel="learning rate at the start", ylabel="test loss", xscale="log")
    _draw(right, rates[rates.quantity == "lr"], starts, xlabel="step", **AXES["lr"])
    right.set_title(f"learning rate of {order[0]}")
    figure.savefig(folder / "lr_sensitivity.png")


def _figure(title: str, note: str, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7 if columns == 1 else 11, 1.6 + 2.8 * rows), layout="constrained", dpi=150)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=columns == 1)
    figure.suptitle(title, wrap=True, fontsize=10 if columns == 1 else 12)
    figure.supxlabel(note, fontsize=8)
    return figure, list(axes.flat)


def _draw(axes: Axes, lines: Lines, order: list[str], marker: str = "", **settings: Any) -> None:
    """Draw the lines; colours follow the order of the labels. settings: arguments of `Axes.set`."""
    for label, own in lines.groupby("label", sort=False):
        place = order.index(label)
        color, dashes = COLORS[place % len(COLORS)], DASHES[place % len(DASHES)]
        axes.plot(own.x, own["mean"], marker=marker, label=label, linewidth=1.8, color=color, linestyle=dashes)
        if marker:
            clipped = own[own.clipped]
            axes.plot(clipped.x, clipped["mean"], "^", markersize=11, color=color)
        axes.fill_between(own.x, own.low, own.high, color=color, alpha=0.2, linewidth=0)
    # at most four decades, since a rate annealed to 0 would compress the rest
    if settings.get("yscale") == "log":
        high = lines.high.max()
        axes.set_ylim(max(lines.low.min(), 1e-4 * high) / 1.3, 1.3 * high)
    axes.set(**settings)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _averaged(runs: pd.DataFrame) -> str:
    seeds = runs.seed.nunique()
    return f"{seeds} seeds: mean and 95 % interval" if seeds > 1 else "one seed"
