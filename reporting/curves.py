"""What a figure draws of many runs: a line a label, its mean and its interval; small enough to keep beside a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from reporting.statistics import mean_and_half_interval

POINTS = 200  # of a line, at most
PARTS = 50  # of a run, in each of which hypergradient and decay have one mean
GEOMETRIC = {"lr", "decay"}  # which are drawn on a logarithmic scale
COURSES = {"val_losses": "val_loss", "lrs": "lr", "hypergradients": "hypergradient", "decays": "decay"}
Lines: TypeAlias = pd.DataFrame  # label, quantity, x, and mean, low and high there, of the 95 % interval


def line(label: str, quantity: str, x: Sequence[float], runs: Any) -> Lines:
    """Return the line of some runs, (runs, points) or (points,); over a logarithmic scale the mean is geometric."""
    values = np.atleast_2d(np.asarray(runs, dtype=float))
    values = np.log(np.maximum(values, 1e-12)) if quantity in GEOMETRIC else values
    mean, half = mean_and_half_interval(values)
    courses = {"mean": mean, "low": mean - half, "high": mean + half}
    shown = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
    made = pd.DataFrame({name: (np.exp(of) if quantity in GEOMETRIC else of)[shown] for name, of in courses.items()})
    made.insert(0, "x", np.asarray(x)[shown])
    return made.assign(label=label, quantity=quantity)


def courses(runs: pd.DataFrame) -> Lines:
    """Return validation loss by epoch, and rate, hypergradient and decay by step, of each arm, where it has them.

    runs: a row a run; columns as in `COURSES`, each a list. A line ends where its first run does that diverged.
    """
    lines = [pd.DataFrame(columns=["label", "quantity", "x", "mean", "low", "high"])]
    for label, own in runs.groupby("arm", sort=False):
        steps = min(map(len, own.lrs))
        for column, quantity in COURSES.items():
            points = min(map(len, own[column]))
            apart = steps / max(1, points) if quantity in ("hypergradient", "decay") else 1
            x = [apart * (i + 1) for i in range(points)]
            if points and any(map(any, own[column])):
                lines.append(line(str(label), quantity, x, [course[:points] for course in own[column]]))
    return pd.concat([made for made in lines if len(made)] or lines, ignore_index=True)


def by_start(runs: pd.DataFrame, ceiling: float) -> Lines:
    """Return the test loss against the starting rate, at most the ceiling, of each arm."""
    lines = []
    for label, own in runs.groupby("arm", sort=False):
        losses = own.pivot(index=["data_seed", "seed"], columns="start_lr", values="test_loss").clip(upper=ceiling)
        lines.append(line(str(label), "test_loss", list(losses.columns), losses.to_numpy()))
    return pd.concat(lines, ignore_index=True)


def read_schedule(file: Path) -> dict[str, list[float]]:
    """Return what a run's `schedule.csv` holds: the rate of each step, and of each part of the run the mean rest."""
    steps = pd.read_csv(file)
    parts = steps.groupby(np.arange(len(steps)) * PARTS // max(1, len(steps))).mean()
    looks = parts.hypergradient.ffill().bfill().dropna() if "hypergradient" in parts else []
    return {"lrs": list(steps.lr), "hypergradients": list(looks), "decays": list(parts.decay)}
