"""Queries of the store and functions for processes, for the tests."""

import csv
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from experiment.options import QUIET
from tracking.store import client

SHORT = ["--trainer.max_epochs=1", QUIET, "--data.batch_size=1000"]


def checkpoint_of(run: Any) -> str:
    """The checkpoint that a run left."""
    return str(run.trainer.checkpoint_callback.best_model_path)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a store, by step."""
    found = folder.glob("mlruns/mnist1d/*/checkpoints/*.ckpt")
    return sorted(found, key=lambda path: int(path.stem.rsplit("step=")[1]))


def runs() -> list[Run]:
    """All runs of the store, oldest first."""
    every = [experiment.experiment_id for experiment in client().search_experiments()]
    return list(client().search_runs(every, order_by=["attributes.start_time"]))


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each point."""
    return [(point.step, point.value) for point in client().get_metric_history(run_id, metric)]


def schedule(run_id: str) -> list[tuple[int, float]]:
    """(step, learning rate) of each step, from the artifact `schedule.csv`; of equal points MLflow has the ends."""
    with Path(client().download_artifacts(run_id, "schedule.csv")).open(newline="") as rows:
        return [(int(row["step"]), float(row["lr"])) for row in csv.DictReader(rows)]


def artifacts(run_id: str) -> set[str]:
    """Names at the root of the run's artifacts."""
    return {artifact.path for artifact in client().list_artifacts(run_id)}


def heed() -> None:
    """Take Ctrl-C and SIGHUP: a suite in the background of a shell, or under nohup, inherits that they are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait(process: subprocess.Popen[Any], condition: Callable[[], object], pause: float = 0.5) -> None:
    """Wait for a state while the process lives, however long: a busy machine takes minutes.

    pause: seconds between questions: to ask is to contend for the store.
    """
    while not condition():
        assert process.poll() is None, "it ended before"
        time.sleep(pause)
