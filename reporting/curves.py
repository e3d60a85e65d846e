"""The lines of a figure: one per label, with mean and interval over runs, small enough to store next to a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from reporting.statistics import mean_and_half_interval

# the largest number of points in a line
POINTS = 200
# number of parts of a run; hypergradient and decay are averaged over each
PARTS = 50
# quantities drawn on a logarithmic scale
GEOMETRIC = {"lr", "decay"}
COURSES = {"val_losses": "val_loss", "lrs": "lr", "hypergradients": "hypergradient", "decays": "decay"}
Lines: TypeAlias = pd.DataFrame
"""Columns: label, quantity, x, the mean at x, and the ends of its 95 % interval, low and high."""


def line(label: str, quantity: str, x: Sequence[float], runs: Any) -> Lines:
    """Return the line of `runs`, (runs, points) or (points,); on a logarithmic scale the mean is geometric."""
    values = np.atleast_2d(np.asarray(runs, dtype=float))
    values = np.log(np.maximum(values, 1e-12)) if quantity in GEOMETRIC else values
    mean, half = mean_and_half_interval(values)
    bands = np.stack([mean, mean - half, mean + half], axis=1)
    shown = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
    made = pd.DataFrame((np.exp(bands) if quantity in GEOMETRIC else bands)[shown], columns=["mean", "low", "high"])
    return made.assign(x=np.asarray(x)[shown], label=label, quantity=quantity)


def courses(runs: pd.DataFrame) -> Lines:
    """Return the lines of each arm: validation loss by epoch; rate, hypergradient and decay by step, if recorded.

    runs: one row per run, with lists in the columns of `COURSES`. A line is as long as the shortest of its runs.
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
    """Return each arm's test loss, clipped at `ceiling`, against the initial rate; `clipped`: whether a run was."""
    lines = []
    for label, own in runs.groupby("arm", sort=False):
        losses = own.pivot(index=["data_seed", "seed"], columns="start_lr", values="test_loss")
        drawn = line(str(label), "test_loss", list(losses.columns), losses.clip(upper=ceiling).to_numpy())
        lines.append(drawn.assign(clipped=(losses > ceiling).any().to_numpy()))
    return pd.concat(lines, ignore_index=True)


def read_schedule(file: Path) -> dict[str, list[float]]:
    """Return a run's `schedule.csv`: the rate of every step; hypergradient and decay as means over parts of the run."""
    steps = pd.read_csv(file)
    parts = steps.groupby(np.arange(len(steps)) * PARTS // max(1, len(steps))).mean()
    # NaN before the first look, where nothing is drawn
    looks = parts.hypergradient.ffill() if parts.hypergradient.notna().any() else []
    return {"lrs": list(steps.lr), "hypergradients": list(looks), "decays": list(parts.decay)}
