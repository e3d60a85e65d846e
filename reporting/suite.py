"""Scores of methods over many tasks, per run, per method and by cost, and their tables."""

from itertools import combinations
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import gmean

from reporting.statistics import mean_and_half_interval
from reporting.tables import markdown, with_interval

# a constant prediction has a loss of about 1 to 2.3 in every task: below a thousandth of that, all are equal
FLOOR = 1e-3
# the score of a run that diverged, and the largest score
WORST = 10.0
# scores above it are bold in tables
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
"""One row per run: row, method, data_seed, seed, test_loss (infinite if it diverged), passes per step, and score."""


def scored(runs: pd.DataFrame) -> Scored:
    """Return the runs of each method, including the tuned and the calibrated ones, with their scores.

    runs: row, method (or ladder), rate (NaN off a ladder), data_seed, seed, test_loss, val_loss, passes.
    """
    runs = _with_scores(runs)
    parts = {NAMES.get(method, method): own for method, own in runs[runs.rate.isna()].groupby("method", sort=False)}
    for ladder, name in LADDERS.items():
        own = runs[runs.method == ladder]
        parts |= {f"{name}, calibrated": calibrated(own), f"{name}{TUNED}": best(own)}
    return pd.concat([own.assign(method=name) for name, own in parts.items()], ignore_index=True)


def _with_scores(runs: pd.DataFrame) -> pd.DataFrame:
    losses = best(runs[runs.method == "cosine"]).groupby("row").test_loss
    base = losses.agg(lambda own: gmean(own.clip(FLOOR, 1e9)))
    return runs.assign(score=(runs.test_loss.clip(lower=FLOOR) / runs.row.map(base)).clip(upper=WORST))


def best(ladder: pd.DataFrame) -> pd.DataFrame:
    """Return, for each case, the run with the lowest validation loss; its cost is that of the runs at all rates."""
    # a run that diverged may have a finite last validation loss
    seen = ladder.val_loss.where(np.isfinite(ladder.test_loss), np.inf)
    passes = ladder.groupby(CASE).passes.transform("sum")
    return ladder.assign(passes=passes).loc[seen.groupby([ladder[name] for name in CASE]).idxmin()]


def calibrated(ladder: Scored) -> Scored:
    """Return, for each row, the runs at the rate with the lowest geometric mean score over all other rows."""
    logs = np.log(scores(ladder.assign(method=ladder.rate)).sort_index(axis=1))
    rates = {row: logs.drop(index=row).mean().idxmin() for row in logs.index}
    return ladder[ladder.rate == ladder.row.map(rates)]


def scores(runs: Scored) -> pd.DataFrame:
    """Return row × method: the geometric mean score over seeds; methods sorted by their mean over rows, best first."""
    logs = runs.assign(score=np.log(runs.score)).pivot_table("score", "row", "method", sort=False)
    return np.exp(logs[logs.mean().sort_values(kind="stable").index])


def profile(shown: pd.DataFrame) -> pd.DataFrame:
    """Return factor × method: the fraction of rows in which the score is within the factor of the best one.

    shown: the result of `scores`; a score of WORST is within no factor. The factors range from 1 to WORST.
    """
    ratios = shown.where(shown < WORST - 1e-6).div(shown.min(axis=1), axis=0)
    factors = np.geomspace(1, WORST, 200)
    return pd.DataFrame([(ratios <= factor).mean() for factor in factors], index=factors)


def costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return each method's passes per step, and its mean score with interval over rows. runs: as in `scored`.

    A ladder has one row for each number n of rates: the mean over all choices of n of its rates.
    """
    found, ladders = scored(runs), _with_scores(runs)
    cases = [(name, [own]) for name, own in found.groupby("method", sort=False) if TUNED not in name]
    for ladder, name in LADDERS.items():
        own = ladders[ladders.method == ladder]
        rates = own.rate.unique()
        for count in range(1, 1 + len(rates)):
            cases += [(name, [best(own[own.rate.isin(few)]) for few in combinations(rates, count)])]
    lines = []
    for name, choices in cases:
        own = pd.concat(choices)
        mean, half = mean_and_half_interval(np.log(own.score).groupby(own.row).mean())
        lines.append([name, own.passes.mean(), *np.exp([mean, mean - half, mean + half])])
    return pd.DataFrame(lines, columns=["method", "passes", "score", "low", "high"])


def suite_table(runs: pd.DataFrame) -> str:
    """Return a table with one row per method, and one with the scores of each task. runs: as in `scored`."""
    found = scored(runs)
    shown, text = scores(found), cells(found)
    losses = found[found.method == BASE].groupby("row").test_loss
    bold = text.mask(shown > FAILED, "**" + text + "**")
    rows = [[row, with_interval(losses.get_group(row)), *bold.loc[row]] for row in shown.index]
    tables = headline(runs), markdown(["", f"test loss of {BASE}", *shown.columns], rows)
    return "\n\n".join([*tables, f"{LEGEND} Cost: forward-backward passes per step."])


def headline(runs: pd.DataFrame, methods: int | None = None) -> str:
    """Return a table with one row per method over all tasks, or only the best methods. runs: as in `scored`."""
    found = scored(runs)
    shown, passes, summary = scores(found), found.groupby("method").passes.mean(), []
    for method, own in list(shown.items())[:methods]:
        lower = "–" if method == "meta" else f"{(shown.meta < own).sum()} of {len(own)}"
        ratio = "–" if method == "meta" else _geometric(shown.meta / own)
        worst, few = f"{cell(own.max())} ({own.idxmax()})", f"{(own <= 1 + 1e-9).sum()} of {len(own)}"
        summary.append([str(method), _geometric(own), worst, few, lower, ratio, f"{passes[method]:.2f}"])
    header = ["", "geometric mean, 95 %", "worst", "rows ≤ 1", "`meta` lower in", "`meta` / method, 95 %", "cost"]
    return markdown(header, summary)


def _geometric(values: pd.Series) -> str:
    mean, half = mean_and_half_interval(np.log(values))
    low, high = np.exp([mean - half, mean + half])
    return f"{cell(np.exp(mean))} ({cell(low)} … {cell(high)})"


def cell(score: float) -> str:
    """Return a score as text, with two or three digits."""
    return f"{score:.2f}" if 0.1 <= score < WORST - 0.005 else f"{score:.2g}"


def cells(found: Scored) -> pd.DataFrame:
    """Return the scores as text, with "≥" if a run counts as WORST, and the number of runs that diverged."""
    text = scores(found).map(cell)
    for (row, method), own in found.groupby(["row", "method"]):
        if diverged := int((~np.isfinite(own.test_loss)).sum()):
            text.loc[row, method] += f" ({diverged} of {len(own)} diverged)"
        elif (own.score >= WORST).any():
            text.loc[row, method] = f"≥ {text.loc[row, method]}"
    return text
