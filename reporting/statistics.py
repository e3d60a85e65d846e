"""Means, intervals and paired differences of runs."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats


def mean_and_half_interval(runs: Any) -> tuple[Any, Any]:
    """Return the mean over runs, (runs, ...) -> (...), and half its 95 % interval (Student's t); 0 for a single run."""
    values = np.asarray(runs, dtype=float)
    if len(values) == 1:
        return values[0], np.zeros_like(values[0])
    return values.mean(0), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)


def bootstrap(values: Any) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (BCa, 9,999 resamples, seed 0) of the mean."""
    values = np.asarray(values, dtype=float)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return float(interval.low), float(interval.high)


def differences(runs: pd.DataFrame, arm: str, base: str) -> Any:
    """Return test loss of `arm` minus `base`, a value a pair; NaN where both diverged."""
    losses = runs.pivot_table(index=["data_seed", "seed"], columns="arm", values="test_loss", dropna=False, sort=False)
    both = losses[[arm, base]].dropna()
    return (both[arm] - both[base]).to_numpy()
