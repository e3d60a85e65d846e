"""The whole experiment, 20 tuning trials and four arms, beside a plain script that does the same."""

import math
import tempfile
import time
from functools import partial
from typing import Any

import optuna
import torch

import tune
from benchmarks import raw
from benchmarks.run import cpu_seconds
from experiment.jobs import Job, run_all
from experiment.options import CORES
from experiment.workers import worker_pool

TRIALS, EPOCHS, SEED = 20, 50, 1


def plain() -> list[float]:
    """Tune Adam and train the four arms by raw loops, all in memory; return the test losses."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    for _ in range(TRIALS):
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        loss = raw.run(partial(raw.Adam, lr=lr), EPOCHS).validation[-1][0]
        study.tell(trial, loss if math.isfinite(loss) else math.inf)
    best = study.best_params["lr"]
    arms: list[raw.Make] = [raw.Meta, raw.OneStep, partial(raw.Adam, lr=best), partial(raw.Adam, lr=best, cosine=True)]
    return [raw.run(arm, EPOCHS, SEED).test_loss for arm in arms]


def ours(workers: int, seed: int) -> list[float]:
    """Do the same by `tune.py` and the runs of `compare.py`; return the test losses."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        options = ["--trials", str(TRIALS), "--seed", str(seed), "--workers", str(workers), "--output", file.name]
        best = tune.main(["--optimizer", "adam", *options]).best_params["model.lr"]
    jobs = [Job(arm, arm, SEED) for arm in ("meta", "meta_onestep")]
    jobs += [Job(arm, arm, SEED, lr=best + 1e-12 * seed) for arm in ("adam", "cosine")]  # a rate not yet trained
    with worker_pool(workers) as pool:
        return list(run_all(jobs, pool).test_loss)


def whole() -> dict[str, Any]:
    """Measure CPU seconds of both in one process, and the wall time of ours on all cores.

    Raises:
        AssertionError: the arms that no tuning touches end elsewhere, so that something else would be timed.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    their_seconds, their_losses = cpu_seconds(plain)
    our_seconds, our_losses = cpu_seconds(lambda: ours(1, 0))
    if max(abs(a - b) for a, b in zip(our_losses[:2], their_losses[:2], strict=True)) > 1e-4:
        raise AssertionError(f"Not the same experiment: {our_losses}, {their_losses}")
    began = time.monotonic()
    ours(CORES, 1)
    return {
        "plain script, CPU seconds": their_seconds,
        "ours, one core, CPU seconds": our_seconds,
        "ratio": our_seconds / their_seconds,
        f"ours, {CORES} cores, wall seconds": time.monotonic() - began,
    }
