"""How methods do over many tasks: the score of each run, a summary of each method, a heat map and a profile."""

import textwrap
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.stats import gmean

from reporting.figures import COLORS, STYLE
from reporting.statistics import mean_and_half_interval
from reporting.tables import markdown, with_interval

# a constant prediction has a loss of about 1 to 2.3 in every task: below a thousandth of that, all are equal
FLOOR = 1e-3
# what a run counts that diverged, or did worse than this
WORST = 10.0
# above it, a table shows a score in bold
FAILED = 1.1
NAMES = {"adam 1e-3": "Adam, 1e-3", "schedule_free": "Schedule-Free AdamW", "prodigy_cosine": "Prodigy + cosine"}
LADDERS = {"cosine": "cosine", "constant": "constant + average"}
TUNED = ", best of 5"
BASE = f"cosine{TUNED}"
CASE = ["row", "data_seed", "seed"]
LEGEND = (
    f"A score is the test loss, at least {FLOOR:g}, relative to the geometric mean of `{BASE}` in that row; a run that "
    f"diverged, or is worse than {WORST:g}, counts as {WORST:g}. Means over seeds and rows are geometric; 95 % "
    "intervals by Student's t over rows, of the logarithm. Best of 5: of five rates, the one with the lowest "
    "validation loss, in each run; calibrated: the rate that is best in all other rows. "
    f"**Bold**: above {FAILED:g}; ≥: a run counts as {WORST:g}."
)
Scored: TypeAlias = pd.DataFrame
"""A row a run: row, method, data_seed, seed, test_loss (infinite if it diverged), passes a step, and the score."""


def scored(runs: pd.DataFrame) -> Scored:
    """Return the runs of each method, tuned and calibrated ones among them, with their scores.

    runs: row, method (or ladder), rate (NaN off a ladder), data_seed, seed, test_loss, val_loss, passes.
    """
    runs = runs.reset_index(drop=True)
    base = (
        best(runs[runs.method == "cosine"]).groupby("row").test_loss.agg(lambda losses: gmean(losses.clip(FLOOR, 1e9)))
    )
    runs["score"] = (runs.test_loss.clip(lower=FLOOR) / runs.row.map(base)).clip(upper=WORST)
    parts = {NAMES.get(method, method): own for method, own in runs[runs.rate.isna()].groupby("method", sort=False)}
    for ladder, name in LADDERS.items():
        own = runs[runs.method == ladder]
        parts |= {f"{name}, calibrated": calibrated(own), f"{name}{TUNED}": best(own)}
    return pd.concat([own.assign(method=name) for name, own in parts.items()], ignore_index=True)


def best(ladder: pd.DataFrame) -> pd.DataFrame:
    """Return of each case the run with the lowest validation loss, which costs the passes of all its rates."""
    # the last validation of a run that diverged may be finite
    seen = ladder.val_loss.where(np.isfinite(ladder.test_loss), np.inf)
    passes = ladder.groupby(CASE).passes.transform("sum")
    return ladder.assign(passes=passes).loc[seen.groupby([ladder[name] for name in CASE]).idxmin()]


def calibrated(ladder: Scored) -> Scored:
    """Return of each row the runs at the one rate whose geometric mean score is the lowest in all other rows."""
    logs = np.log(scores(ladder.assign(method=ladder.rate)).sort_index(axis=1))
    rates = {row: logs.drop(index=row).mean().idxmin() for row in logs.index}
    return ladder[ladder.rate == ladder.row.map(rates)]


def scores(runs: Scored) -> pd.DataFrame:
    """Return row × method: the geometric mean score over seeds; the methods by their mean over rows, best first."""
    logs = runs.assign(score=np.log(runs.score)).pivot_table("score", "row", "method", sort=False)
    return np.exp(logs[logs.mean().sort_values(kind="stable").index])


def profile(shown: pd.DataFrame) -> pd.DataFrame:
    """Return factor × method: the fraction of rows with a score within the factor of the row's best; WORST never is.

    shown: of `scores`. The factors go from 1 to WORST.
    """
    ratios = shown.where(shown < WORST - 1e-6).div(shown.min(axis=1), axis=0)
    factors = np.geomspace(1, WORST, 200)
    return pd.DataFrame([(ratios <= factor).mean() for factor in factors], index=factors)


def suite_table(runs: pd.DataFrame) -> str:
    """Return a row a method over all tasks, then a row a task with the score of each method. runs: as in `scored`."""
    found = scored(runs)
    shown, words = scores(found), _words(found)
    losses = found[found.method == BASE].groupby("row").test_loss
    bold = words.mask(shown > FAILED, "**" + words + "**")
    rows = [[row, with_interval(losses.get_group(row)), *bold.loc[row]] for row in shown.index]
    tables = headline(runs), markdown(["", f"test loss of {BASE}", *shown.columns], rows)
    return "\n\n".join([*tables, f"{LEGEND} Cost: forward-backward passes per step."])


def headline(runs: pd.DataFrame) -> str:
    """Return a row a method over all tasks. runs: as in `scored`."""
    found = scored(runs)
    shown, passes, summary = scores(found), found.groupby("method").passes.mean(), []
    for method, own in shown.items():
        lower = "–" if method == "meta" else f"{(shown.meta < own).sum()} of {len(own)}"
        ratio = "–" if method == "meta" else _geometric(shown.meta / own)
        worst, few = f"{_number(own.max())} ({own.idxmax()})", f"{(own <= 1 + 1e-9).sum()} of {len(own)}"
        summary.append([str(method), _geometric(own), worst, few, lower, ratio, f"{passes[method]:.2f}"])
    header = ["", "geometric mean, 95 %", "worst", "rows ≤ 1", "`meta` lower in", "`meta` / method, 95 %", "cost"]
    return markdown(header, summary)


def _geometric(values: pd.Series) -> str:
    mean, half = mean_and_half_interval(np.log(values))
    low, high = np.exp([mean - half, mean + half])
    return f"{_number(np.exp(mean))} ({_number(low)} … {_number(high)})"


def _number(score: float) -> str:
    return f"{score:.2f}" if 0.1 <= score < WORST - 0.005 else f"{score:.2g}"


def _words(found: Scored) -> pd.DataFrame:
    """Return what is said of each score, in the order of `scores`: a lower bound, or how many runs diverged."""
    words = scores(found).map(_number)
    for (row, method), own in found.groupby(["row", "method"]):
        if diverged := int((~np.isfinite(own.test_loss)).sum()):
            words.loc[row, method] += f" ({diverged} of {len(own)} diverged)"
        elif (own.score >= WORST).any():
            words.loc[row, method] = f"≥ {words.loc[row, method]}"
    return words


def draw_suite(runs: pd.DataFrame, folder: Path) -> list[str]:
    """Draw `suite.png`, the scores, and `suite_profile.png`, and return their names. runs: as in `scored`."""
    found = scored(runs)
    heat_map(found).savefig(folder / "suite.png")
    draw_profile(profile(scores(found))).savefig(folder / "suite_profile.png")
    return ["suite.png", "suite_profile.png"]


def heat_map(found: Scored) -> Figure:
    """Draw row × method, tuned methods apart, and the geometric means over rows as a last row; blue is better."""
    shown = scores(found)
    order = sorted(shown, key=lambda method: TUNED in method)
    one = sum(TUNED not in method for method in order)
    means = np.exp(np.log(shown).mean()).rename("all").to_frame().T
    values, words = pd.concat([shown, means])[order], pd.concat([_words(found), means.map(_number)])[order]
    figure = Figure(figsize=(11, 2.1 + 0.36 * len(values)), layout="constrained", dpi=150)
    figure.suptitle("test loss relative to AdamW + warm-up + cosine, best of five rates; below 1 is better")
    axes = figure.subplots()
    # where the cells begin: with a gap before the tuned methods, and before the last row
    x, y = np.arange(len(order)) + 0.25 * (np.arange(len(order)) >= one), np.r_[: len(shown), len(shown) + 0.25]
    _draw_cells(axes, x, y, values, words)
    for places, label in ((x[:one], "one run, not tuned on the task"), (x[one:], "tuned, five runs")):
        axes.plot([places[0] + 0.05, places[-1] + 0.95], [y[-1] + 1.15] * 2, "k", linewidth=1, clip_on=False)
        axes.text((places[0] + places[-1] + 1) / 2, y[-1] + 1.25, label, ha="center", va="top")
    cells, ticks = axes.collections[0], [0.5, 0.7, 1, 1.4, 2]
    figure.colorbar(cells, extend="both", shrink=0.6, aspect=30, ticks=ticks, format="%g").minorticks_off()
    return figure


def _draw_cells(axes: Axes, x: Any, y: Any, values: pd.DataFrame, words: pd.DataFrame) -> None:
    """Draw cells of width and height 1 that begin at x (columns) and y (rows); colours end at half and at double."""
    norm = LogNorm(0.5, 2)
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        text = words.iloc[row, column].replace(" (", "\n").rstrip(")")
        size, color = 7 if "\n" in text else 9, "white" if abs(np.log2(value)) > 0.6 else "black"
        edges = [x[column], x[column] + 1], [y[row], y[row] + 1]
        axes.pcolormesh(*edges, [[value]], cmap="RdBu_r", norm=norm, edgecolors="white", linewidth=1)
        axes.text(x[column] + 0.5, y[row] + 0.5, text, ha="center", va="center", color=color, size=size)
    axes.set_xticks(x + 0.5, ["\n".join(textwrap.fill(part, 13) for part in name.split(", ")) for name in values])
    axes.set_yticks(y + 0.5, values.index)
    axes.set(ylim=(y[-1] + 1, 0), frame_on=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)


def draw_profile(lines: pd.DataFrame) -> Figure:
    """Draw the fraction of rows within each factor of the best; a family of methods has a colour. lines: `profile`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=150)
        axes = figure.subplots()
    families = list(dict.fromkeys(method.split(",")[0] for method in lines))
    for method, own in lines.items():
        color, dashes = COLORS[families.index(method.split(",")[0]) % len(COLORS)], "--" if TUNED in method else "-"
        # wide and on top: the method that the others are compared with
        width, order = (3, 3) if method == "meta" else (1.6, 2)
        axes.step(own.index, own, dashes, where="post", label=method, color=color, linewidth=width, zorder=order)
    axes.set(xscale="log", xlim=(1, 5), ylim=(0, 1.02), xlabel="factor τ", ylabel="fraction of tasks")
    axes.set_xticks(ticks := [1, 1.2, 1.5, 2, 3, 5], [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.suptitle("tasks on which the test loss is within the factor τ of the lowest; dashed: tuned, five runs")
    figure.legend(loc="outside right center", frameon=False)
    return figure
