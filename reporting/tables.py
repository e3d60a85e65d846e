"""Tables of runs: means, paired differences with intervals and tests, and the conditions of the measurement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import gmean
from statsmodels.stats.multitest import multipletests

from reporting.statistics import differences, mean_and_half_interval, p_value


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(values: Any) -> str:
    """Return "mean ± half the 95 % interval" (Student's t), or how many runs diverged."""
    values = np.asarray(values, dtype=float)
    if diverged := int((~np.isfinite(values)).sum()):
        return f"{diverged} of {len(values)} diverged"
    mean, half = mean_and_half_interval(values)
    return f"{mean:.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:.3f}"


def difference(values: Any) -> str:
    """Return "mean (low … high)" of paired differences, with the 95 % interval; "–" where a run diverged."""
    if not np.isfinite(values).all():
        return "–"
    mean, half = mean_and_half_interval(values)
    return f"{mean:+.3f} ({mean - half:+.3f} … {mean + half:+.3f})" if len(values) > 1 else f"{mean:+.3f}"


def grid(runs: pd.DataFrame, show: Sequence[str] = ("test_loss",), base: str | None = None) -> str:
    """Return a table of `row` × `column` with means over runs.

    show: the columns of `runs` to be shown; "rates" is the learning rate at the start, after a quarter, after half of
    the run, and at its end.
    base: a column, to add the ratio of each other column's mean test loss to it; or a row, to add the paired difference
    of each row's last column to it.
    """
    columns = list(dict.fromkeys(runs.column))
    others = [column for column in columns if column != base] if base in columns else []
    lines = []
    for row, own in runs.groupby("row", sort=False):
        of = dict(iter(own.groupby("column")))
        line = [str(row)]
        for column in columns:
            figures = [_figure(of[column], name) for name in show] if column in of else ["–"]
            line += [" / ".join(figures)] if column else figures
        line += [f"{of[column].test_loss.mean() / of[str(base)].test_loss.mean():.2f}" for column in others]
        if base and not others:
            label, to = own.arm.iloc[-1], runs[runs.row == base].arm.iloc[-1]
            line.append("–" if label == to else difference(differences(runs, label, to)))
        lines.append(line)
    added = [f"{column}: ratio" for column in others] or ([f"minus {base} (95 %)"] if base else [])
    titles = [name.replace("_", " ") for name in show] if columns == [""] else columns
    return markdown(["", *titles, *added], lines)


def _figure(runs: pd.DataFrame, name: str) -> str:
    if name != "rates":
        return with_interval(runs[name])
    steps = min(map(len, runs.lrs))
    rates = gmean([run[:steps] for run in runs.lrs], axis=0)
    return " … ".join(f"{rates[int(part * (len(rates) - 1))]:.2g}" for part in (0, 0.25, 0.5, 1))


def paired_table(runs: pd.DataFrame, base: str = "meta", tuning: dict[str, int] | None = None) -> str:
    """Return a table with one row per arm, best first: loss, paired difference to `base`, p, accuracy and cost.

    tuning: arm -> number of tuning trials, whose cost is included; None for the cost of one run.
    """
    order = runs.groupby("arm").test_loss.mean().sort_values().index
    paired = {arm: differences(runs, arm, base) for arm in order if arm != base} if base in order else {}
    tests = {arm: p_value(d) for arm, d in paired.items() if len(d) > 1 and np.isfinite(d).all() and np.ptp(d) > 0}
    corrected = dict(zip(tests, multipletests(list(tests.values()), method="holm")[1], strict=True)) if tests else {}
    rows = []
    for arm in order:
        own, times = runs[runs.arm == arm], 1 + (tuning or {}).get(arm, 0)
        against = [
            difference(paired[arm]) if arm in paired else "–",
            f"{corrected[arm]:.1g}" if arm in corrected else "–",
        ]
        cost = [f"{times * own.passes.mean():.2f}", f"{times * own.seconds.mean():.0f}"]
        rows.append([f"`{arm}`", with_interval(own.test_loss), *against, with_interval(own.test_accuracy), *cost])
    costs = [f"{name}, {'without' if tuning is None else 'with'} tuning" for name in ("passes", "seconds")]
    p = f"p, Holm-corrected for {len(tests)}" if tests else "p"
    return markdown(["arm", "test loss", f"minus `{base}` (95 %)", p, "test accuracy", *costs], rows)


def legend(table: str) -> str:
    """Explain the columns of a table."""
    words = {
        " ± ": "Mean ± half the 95 % interval (Student's t)",
        "(95 %)": "differences paired by data seed and seed, with the same interval, which is for these data seeds and "
        "not corrected for several comparisons",
        "Holm": "p: paired t-tests, with Holm's correction for all comparisons of the column",
        "| passes": "passes: forward-backward passes per step",
        "| rates |": "rates: the geometric mean at the start, after a quarter, after half of the run, and at its end",
    }
    text = "; ".join(text for sign, text in words.items() if sign in table)
    return f" {text}." if text else ""


def conditions(runs: pd.DataFrame, command: str) -> str:
    """Describe how the numbers were made: command, seeds, epochs, machines, versions and commits."""
    spans = []
    for name, values in (("seed", runs.seed), ("data seed", runs.data_seed)):
        low, high = values.min(), values.max()
        spans.append(f"{name} {low}" if low == high else f"{name}s {low}–{high}")
    epochs = "–".join(map(str, sorted({*runs.val_losses.map(len)})))
    spans.append(f"{epochs} epoch{'s' * (epochs != '1')}")
    machines, commits = (" and ".join(sorted(set(found))) for found in (runs.trained_on, runs.commit))
    threads = "" if "--threads" in command else "; one thread per run"
    made = f"Made by `{command}`: {', '.join(spans)}, weights after the last step."
    return f"{made} {machines}{threads}; trained at commit {commits}."


def write_between_markers(text: str, path: Path, begin: str, end: str) -> None:
    """Replace the text between two markers of a file."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(before + begin + text + end + rest.split(end)[1], encoding="utf-8")
