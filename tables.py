"""What is said of runs: means, paired differences with their intervals and tests, and how the numbers came about."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from options import DEFAULT_ARM
from plots import mean_and_half_interval

PAIR = ["draw", "seed", "start_lr"]  # what two runs of a pair share


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(values: Any, form: str = ".3f") -> str:
    """Return "mean ± half the 95 % interval" (Student's t), or how many runs diverged."""
    values = np.asarray(values, dtype=float)
    diverged = int(np.isinf(values).sum())
    if diverged:
        return f"{diverged} of {len(values)} diverged"
    mean, half = mean_and_half_interval(values)
    return f"{mean:{form}} ± {half:{form}}".replace("± +", "± ")


def bootstrap(values: Any) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (BCa, 9,999 resamples, seed 0) of the mean."""
    values = np.asarray(values, dtype=float)
    if len(values) < 3 or np.ptp(values) == 0 or not np.isfinite(values).all():
        return float(np.mean(values)), float(np.mean(values))
    interval = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return float(interval.low), float(interval.high)


def differences(runs: pd.DataFrame, arm: str, base: str) -> Any:
    """Return test loss of `arm` minus `base`, a value a pair."""
    losses = runs.pivot_table(index=PAIR, columns="arm", values="test_loss", dropna=False, sort=False)
    return (losses[arm] - losses[base]).dropna().to_numpy()


def paired_table(runs: pd.DataFrame, base: str = DEFAULT_ARM, tuning: dict[str, int] | None = None) -> str:
    """Return a row an arm, best first: loss, accuracy, the difference to `base` with interval and test, and the cost.

    tuning: trials that an arm's tuning took; its passes and seconds count those too.
    """
    runs = runs.assign(start_lr=runs.start_lr.fillna(-1.0))
    order = runs.groupby("arm").test_loss.mean().sort_values().index
    others = [arm for arm in order if arm != base] if base in order else []
    paired = {arm: differences(runs, arm, base) for arm in others}
    tests = {
        arm: stats.wilcoxon(d).pvalue for arm, d in paired.items() if len(d) > 1 and np.isfinite(d).all() and d.any()
    }
    corrected = dict(zip(tests, multipletests(list(tests.values()), method="holm")[1], strict=True)) if tests else {}
    rows = []
    for arm in order:
        own, trials = runs[runs.arm == arm], (tuning or {}).get(arm, 0)
        difference = "–"
        if arm in paired:
            low, high = bootstrap(paired[arm])
            difference = f"{np.mean(paired[arm]):+.3f} ({low:+.3f} … {high:+.3f})"
        p = f"{corrected[arm]:.1g}" if arm in corrected else "–"
        cost = [f"{(1 + trials) * own.passes.mean():.2f}", f"{(1 + trials) * own.seconds.mean():.0f}"]
        rows.append([f"`{arm}`", with_interval(own.test_loss), difference, p, with_interval(own.test_accuracy), *cost])
    header = ["arm", "test loss", f"minus `{base}` (95 %)", "p", "test accuracy", "passes", "seconds"]
    return markdown(header, rows)


def _span(name: str, numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{name} {low}" if low == high else f"{name}s {low}–{high}"


def conditions(runs: pd.DataFrame, command: str) -> str:
    """Say how the numbers came about: command, seeds, draws, epochs, machine, versions."""
    epochs = sorted({len(history) for history in runs.val_losses})
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone names the processor, and there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"Made by `{command}`: {_span('seed', runs.seed)}, {_span('draw', runs.draw)}, "
        f"{' or '.join(map(str, epochs))} epochs, weights after the last step, mean ± half the "
        f"95 % interval (Student's t); differences paired by draw and seed, with bootstrap intervals, p by Wilcoxon's "
        f"test after Holm; passes: forward-backward passes of a batch a step, tuning included, as in the seconds. "
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, a thread a run; "
        f"Python {platform.python_version()}, torch {version('torch')}, pytorch-lightning "
        f"{version('pytorch-lightning')}; trained at commit {', '.join(sorted(set(runs.commit)))}."
    )
