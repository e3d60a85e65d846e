"""The runs of a comparison: trained where they are missing, read back from MLflow."""

import math
import shlex
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState
from tqdm import tqdm

from experiment.presets import QUIET, preset
from experiment.sweep import open_storage, work_off
from experiment.training import train
from experiment.workers import each, worker_pool
from reporting.curves import read_schedule
from tracking.delivery import undelivered
from tracking.store import StoreError, client


@dataclass(frozen=True)
class Job:
    """One run: what it is called in the results, its arm or a file, its seed, its data seed, its other options.

    parent: the run in MLflow under which it is kept.
    """

    label: str
    arm: str
    seed: int
    data_seed: int = 0
    lr: float | None = None
    options: tuple[str, ...] = ()
    parent: str | None = None

    def args(self) -> list[str]:
        """Return the command line of `train.py`."""
        data_seed = [f"--data.seed={self.data_seed}"] if self.data_seed else []
        lr = [] if self.lr is None else [f"--model.lr={self.lr}"]
        name = f"--trainer.logger.run_name={self.label} seed {self.seed}"
        return [*preset(self.arm), *self.options, *data_seed, *lr, f"--seed_everything={self.seed}", name, QUIET]


def run(job: Job) -> str:
    """Train, unless MLflow has the run, and return its id."""
    tags = {"mlflow.parentRunId": job.parent} if job.parent else {}
    run_id = train(job.args(), tags, reuse=True).run_id
    if run_id is None:
        raise StoreError(f"{job.label}, seed {job.seed}, left no run: does a file say fast_dev_run, or another logger?")
    return run_id


def run_all(
    jobs: Sequence[Job], pool: Executor | None = None, name: str = "compare", courses: bool = True
) -> pd.DataFrame:
    """Train what MLflow does not have yet and return a row a run, in the order of the jobs, with what MLflow holds.

    courses: read what happened in each step too, which takes five times as long.
    """
    ids: dict[int, str] = {}
    with tqdm(total=len(jobs), desc=name, unit="run") as bar:
        for number, run_id in each(run, jobs, pool):
            ids[number] = run_id
            bar.set_postfix_str(f"{jobs[number].label}, seed {jobs[number].seed}")
            bar.update()
    facts = [{"arm": job.label, "seed": job.seed, "data_seed": job.data_seed, "start_lr": job.lr} for job in jobs]
    return pd.DataFrame(
        [facts[number] | {"run_id": ids[number]} | read_run(ids[number], courses) for number in sorted(ids)]
    )


def read_run(run_id: str, courses: bool = True) -> dict[str, Any]:
    """Return a run's figures; a run that diverged has an infinite loss and no accuracy.

    courses: with its rate of every step, and what else its `schedule.csv` holds.

    Raises:
        StoreError: MLflow was away when the run ended, and has not all of it.
    """
    run = client().get_run(run_id)
    metrics, info = run.data.metrics, run.info
    try:
        if "lr" not in metrics:
            raise KeyError("lr")
        seen = read_courses(run_id) if courses else {}
    except (KeyError, OSError, MlflowException) as error:
        missed = f"python -m tracking.delivery {shlex.quote(str(undelivered(run_id)))}"
        raise StoreError(f"MLflow has no curves of run {run_id}. If it missed them, deliver them: {missed}") from error
    return {
        "test_loss": _finite(metrics.get("test/loss")),
        "test_accuracy": metrics.get("test/accuracy", metrics.get("test/r2", math.nan)),
        "val_loss": _finite(metrics.get("val/loss")),
        "final_lr": metrics["lr"],
        "passes": float(run.data.tags.get("passes", math.nan)),
        "seconds": (info.end_time - info.start_time) / 1000,
        "trained_on": run.data.tags.get("trained_on", "a machine that was not noted"),
        "commit": run.data.tags.get("mlflow.source.git.commit", "")[:7],
        "val_losses": [point.value for point in client().get_metric_history(run_id, "val/loss")],
    } | seen


def _finite(loss: float | None) -> float:
    """Return the loss; infinite where there is none, or it is no number, which every mean would leave out."""
    return loss if loss is not None and math.isfinite(loss) else math.inf


def read_courses(run_id: str) -> dict[str, list[float]]:
    """Return what the run's `schedule.csv` holds."""
    with tempfile.TemporaryDirectory() as folder:
        return read_schedule(Path(client().download_artifacts(run_id, "schedule.csv", folder)))


@dataclass(frozen=True)
class Shared:
    """Does the job that a trial stands for; its value is of no use."""

    jobs: tuple[Job, ...]

    def __call__(self, trial: optuna.Trial) -> float:
        """Train, unless MLflow has the run."""
        run(self.jobs[trial.user_attrs["slot"]])
        return 0.0


def share(storage: str, sweep: str, jobs: Sequence[Job], workers: int) -> None:
    """Train the jobs together with all machines that typed the same command; a bar shows how far they are."""
    study = optuna.create_study(storage=open_storage(storage), study_name=sweep, load_if_exists=True)
    with worker_pool(workers) as pool, tqdm(total=len(jobs), desc="all machines", unit="run") as bar:
        for _ in work_off(study, len(jobs), Shared(tuple(jobs)), pool):
            bar.n = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
            bar.refresh()
