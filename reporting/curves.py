"""What a figure draws of many runs: a line a label, its mean and its interval; small enough to keep next to a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from reporting.statistics import mean_and_half_interval

# of a line, at most
POINTS = 200
# of a run, in each of which hypergradient and decay have one mean
PARTS = 50
# drawn on a logarithmic scale
GEOMETRIC = {"lr", "decay"}
COURSES = {"val_losses": "val_loss", "lrs": "lr", "hypergradients": "hypergradient", "decays": "decay"}
Lines: TypeAlias = pd.DataFrame
"""label, quantity, x, and mean, low and high there, of the 95 % interval."""


def line(label: str, quantity: str, x: Sequence[float], runs: Any) -> Lines:
    """Return the line of some runs, (runs, points) or (points,); over a logarithmic scale the mean is geometric."""
    values = np.atleast_2d(np.asarray(runs, dtype=float))
    values = np.log(np.maximum(values, 1e-12)) if quantity in GEOMETRIC else values
    mean, half = mean_and_half_interval(values)
    bands = np.stack([mean, mean - half, mean + half], axis=1)
    shown = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
    made = pd.DataFrame((np.exp(bands) if quantity in GEOMETRIC else bands)[shown], columns=["mean", "low", "high"])
    return made.assign(x=np.asarray(x)[shown], label=label, quantity=quantity)


def courses(runs: pd.DataFrame) -> Lines:
    """Return validation loss by epoch, and rate, hypergradient and decay by step, of each arm, where it has them.

    runs: a row a run; columns as in `COURSES`, each a list. A line ends where its first run does that diverged.
    """
    lines = []
    for label, own in runs.groupby("arm", sort=False):
        steps = min(map(len, own.lrs))
        for column, quantity in COURSES.items():
            points = min(map(len, own[column]))
            apart = steps / max(1, points) if quantity in ("hypergradient", "decay") else 1
            x = [apart * (i + 1) for i in range(points)]
            if points and any(map(any, own[column])):
                lines.append(line(str(label), quantity, x, [course[:points] for course in own[column]]))
    return pd.concat(lines, ignore_index=True)


def by_start(runs: pd.DataFrame, ceiling: float) -> Lines:
    """Return the test loss against the starting rate, at most the ceiling, of each arm; `clipped`: of some run."""
    lines = []
    for label, own in runs.groupby("arm", sort=False):
        losses = own.pivot(index=["data_seed", "seed"], columns="start_lr", values="test_loss")
        drawn = line(str(label), "test_loss", list(losses.columns), losses.clip(upper=ceiling).to_numpy())
        lines.append(drawn.assign(clipped=(losses > ceiling).any().to_numpy()))
    return pd.concat(lines, ignore_index=True)


def read_schedule(file: Path) -> dict[str, list[float]]:
    """Return what a run's `schedule.csv` holds: the rate of each step, and of each part of the run the mean rest."""
    steps = pd.read_csv(file)
    parts = steps.groupby(np.arange(len(steps)) * PARTS // max(1, len(steps))).mean()
    # NaN before the first look, where nothing is drawn
    looks = parts.hypergradient.ffill() if parts.hypergradient.notna().any() else []
    return {"lrs": list(steps.lr), "hypergradients": list(looks), "decays": list(parts.decay)}
