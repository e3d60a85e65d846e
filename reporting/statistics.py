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


def p_value(values: Any) -> float:
    """Return the two-sided p-value of a zero mean (Student's t); below 0.05 exactly if the 95 % interval excludes 0."""
    return float(2 * stats.t.sf(abs(np.mean(values)) / stats.sem(values), len(values) - 1))


def differences(runs: pd.DataFrame, arm: str, base: str) -> Any:
    """Return the test loss of `arm` minus that of `base`, one value per pair; NaN where both diverged."""
    losses = runs.pivot_table(index=["data_seed", "seed"], columns="arm", values="test_loss", dropna=False, sort=False)
    both = losses[[arm, base]].dropna()
    return (both[arm] - both[base]).to_numpy()
