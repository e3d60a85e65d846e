"""Figures of methods over many tasks: a heat map of scores, a performance profile, and score against cost."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from reporting.figures import COLORS, STYLE
from reporting.suite import BASE, TUNED, Scored, cell, cells, costs, profile, scored, scores


def draw_suite(runs: pd.DataFrame, folder: Path) -> list[str]:
    """Draw `suite.png`, `suite_profile.png` and `suite_cost.png`, and return these names. runs: as in `scored`."""
    found = scored(runs)
    figures = {
        "suite.png": heat_map(found),
        "suite_profile.png": draw_profile(profile(scores(found))),
        "suite_cost.png": draw_costs(costs(runs)),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return list(figures)


def heat_map(found: Scored) -> Figure:
    """Draw the scores, row × method, with tuned methods set apart and the geometric mean over rows as the last row."""
    shown = scores(found)
    order = sorted(shown, key=lambda method: TUNED in method)
    one = sum(TUNED not in method for method in order)
    means = np.exp(np.log(shown).mean()).rename("all").to_frame().T
    values, text = pd.concat([shown, means])[order], pd.concat([cells(found), means.map(cell)])[order]
    figure = Figure(figsize=(11, 2.1 + 0.36 * len(values)), layout="constrained", dpi=150)
    figure.suptitle(
        "test loss relative to AdamW + warm-up + cosine, best of five rates (1 by construction): blue is better"
    )
    axes = figure.subplots()
    # left and upper edges of the cells, with a gap before the tuned methods and before the last row
    x, y = np.arange(len(order)) + 0.25 * (np.arange(len(order)) >= one), np.r_[: len(shown), len(shown) + 0.25]
    _draw_cells(axes, x, y, values, text)
    for places, label in ((x[:one], "one run, not tuned on the task"), (x[one:], "tuned, five runs")):
        axes.plot([places[0] + 0.05, places[-1] + 0.95], [y[-1] + 1.15] * 2, "k", linewidth=1, clip_on=False)
        axes.text((places[0] + places[-1] + 1) / 2, y[-1] + 1.25, label, ha="center", va="top")
    mesh, ticks = axes.collections[0], [0.5, 0.7, 1, 1.4, 2]
    figure.colorbar(mesh, extend="both", shrink=0.6, aspect=30, ticks=ticks, format="%g").minorticks_off()
    return figure


def _draw_cells(axes: Axes, x: Any, y: Any, values: pd.DataFrame, texts: pd.DataFrame) -> None:
    """Draw unit cells with left edges x and upper edges y; colours saturate at half and at double."""
    norm = LogNorm(0.5, 2)
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        text = texts.iloc[row, column].replace(" (", "\n").rstrip(")")
        size, color = 7 if "\n" in text else 9, "white" if abs(np.log2(value)) > 0.6 else "black"
        edges = [x[column], x[column] + 1], [y[row], y[row] + 1]
        axes.pcolormesh(*edges, [[value]], cmap="RdBu_r", norm=norm, edgecolors="white", linewidth=1)
        axes.text(x[column] + 0.5, y[row] + 0.5, text, ha="center", va="center", color=color, size=size)
    axes.set_xticks(x + 0.5, ["\n".join(textwrap.fill(part, 13) for part in name.split(", ")) for name in values])
    axes.set_yticks(y + 0.5, values.index)
    axes.set(ylim=(y[-1] + 1, 0), frame_on=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)


def draw_profile(lines: pd.DataFrame) -> Figure:
    """Draw the result of `profile`; methods of one family share a colour."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=150)
        axes = figure.subplots()
    families = list(dict.fromkeys(method.split(",")[0] for method in lines))
    for method, own in lines.items():
        color, dashes = COLORS[families.index(method.split(",")[0]) % len(COLORS)], "--" if TUNED in method else "-"
        # wide and on top: the method that is compared with the others
        width, order = (3, 3) if method == "meta" else (1.6, 2)
        axes.step(own.index, own, dashes, where="post", label=method, color=color, linewidth=width, zorder=order)
    axes.set(xscale="log", xlim=(1, 5), ylim=(0, 1.02), xlabel="factor τ", ylabel="fraction of tasks")
    axes.set_xticks(ticks := [1, 1.2, 1.5, 2, 3, 5], [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.suptitle("tasks on which the test loss is within the factor τ of the lowest; dashed: tuned, five runs")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def draw_costs(lines: pd.DataFrame) -> Figure:
    """Draw the result of `costs`: the mean score over tasks against passes per step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=150)
        axes = figure.subplots()
    # shift methods of equal cost apart
    equal = lines.groupby(lines.passes.round(1))
    lines = lines.assign(x=lines.passes * 1.025 ** (equal.cumcount() - (equal.passes.transform("size") - 1) / 2))
    families = list(dict.fromkeys(method.split(",")[0] for method in lines.method))
    for name, own in lines.groupby("method", sort=False):
        method, calibrated, _ = str(name).partition(", calibrated")
        color = COLORS[families.index(method.split(",")[0]) % len(COLORS)]
        marker, size = {"meta": ("*", 15)}.get(method, ("s" if calibrated else "o", 6))
        label = f"{method}, best of 1 to {len(own)} rates" if len(own) > 1 else str(name)
        bars = [own.score - own.low, own.high - own.score]
        axes.errorbar(own.x, own.score, bars, fmt=f"{marker}--", label=label, color=color, ms=size, elinewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="forward-backward passes per step, of all runs that a method takes")
    axes.set(ylabel=f"test loss, relative to {BASE}")
    for axis, ticks in ((axes.xaxis, [1, 1.5, 2, 3, 4, 5]), (axes.yaxis, [0.7, 1, 1.4, 2, 3, 4, 6])):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.suptitle("test loss against cost: geometric mean over tasks, 95 % interval of its logarithm")
    figure.legend(loc="outside right center", frameon=False)
    return figure
