"""Where runs are kept: MLflow's own default, `mlflow.db` and `mlruns/` beside it, anchored at the root of the clone."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read while mlflow is imported

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only
from sqlalchemy.exc import SQLAlchemyError

from options import ROOT

EXPERIMENT = "mnist1d"
LARGEST_BATCH = 1_000  # points that MLflow takes in one call
PATIENCE = 5.0  # seconds that points may wait
OWN_URI = f"sqlite:///{ROOT / 'mlflow.db'}"


class StoreError(Exception):
    """The tracking store cannot take a run. The message says what is wrong and what to do."""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else the store in the clone."""
    return os.environ.get("MLFLOW_TRACKING_URI") or OWN_URI


def client() -> MlflowClient:
    """Return MLflow's client of that store."""
    return MlflowClient(tracking_uri())


def artifact_dir() -> Path:
    """Return `mlruns/` beside the SQLite file; for any other store, the clone's."""
    kind, _, path = tracking_uri().partition(":///")
    return (Path(path).resolve().parent if kind == "sqlite" else ROOT) / "mlruns"


class Tracker(MLFlowLogger):
    """Lightning's MLFlowLogger on the store of this project; points wait a few seconds, and go together.

    Args:
        experiment_name: made where it does not exist.
        run_name: the arm, where none is given.
        tags: of the run.
        run_id: an existing run, to be continued: the points that it has already are not sent again.
    """

    def __init__(
        self,
        experiment_name: str = EXPERIMENT,
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        open_experiment(experiment_name)
        super().__init__(experiment_name, run_name, tracking_uri(), tags, log_model=True, run_id=run_id)
        self.points: list[Metric] = []
        self.sent = time.monotonic()
        self.kept = last_steps(run_id) if run_id else {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collect the points: to send them costs as much as many steps."""
        when = int(1000 * time.time())
        now = step or 0
        new = {name: value for name, value in metrics.items() if now > self.kept.get(name, -1)}
        self.points += [Metric(name, float(value), when, now) for name, value in new.items()]
        if time.monotonic() - self.sent > PATIENCE:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Send what has waited; not named `save`, which Lightning calls after each epoch."""
        points, self.points, self.sent = self.points, [], time.monotonic()
        for start in range(0, len(points), LARGEST_BATCH):
            self.experiment.log_batch(self.run_id, metrics=points[start : start + LARGEST_BATCH])

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send what has waited, and end the run."""
        self.flush()
        super().finalize(status)

    @property
    def save_dir(self) -> str:
        """Where Lightning puts checkpoints: `mlruns/<experiment>/<run>/checkpoints`, beside the run's artifacts."""
        return str(artifact_dir())

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name


def open_experiment(name: str = EXPERIMENT) -> str:
    """Return the experiment's id; make the store and the experiment where they are missing.

    Raises:
        StoreError: the store cannot be reached or written, or the experiment was deleted in the UI.
    """
    try:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        with FileLock(artifact_dir() / ".lock"):  # processes that open a new SQLite store at once break it
            store = client()
            experiment = store.get_experiment_by_name(name)
            if experiment is None:
                local = tracking_uri().startswith("sqlite")  # a server knows its own place
                return str(store.create_experiment(name, str(artifact_dir() / name) if local else None))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise StoreError(
            f"The MLflow store {tracking_uri()} cannot be used: {cause}. Make it writable, or set MLFLOW_TRACKING_URI."
        ) from error
    if experiment.lifecycle_stage == "deleted":
        raise StoreError(
            f"The MLflow experiment {name!r} was deleted and still holds its name. Restore it with `mlflow experiments "
            f"restore -x {experiment.experiment_id}`, or name another with --trainer.logger.experiment_name."
        )
    return str(experiment.experiment_id)


def find_run(experiment: str, config: str) -> str | None:
    """Return the newest run of this configuration (its digest) that was tested or diverged."""
    runs = client().search_runs([open_experiment(experiment)], f"tags.config = '{config}'")
    done = [run.info.run_id for run in runs if "test/loss" in run.data.metrics or "diverged" in run.data.tags]
    return done[0] if done else None


def run_of(checkpoint: str, config: str) -> str | None:
    """Return the run that wrote the checkpoint and broke off, if it has this configuration (its digest)."""
    try:
        run = client().get_run(Path(checkpoint).resolve().parents[1].name)  # .../<run>/checkpoints/<file>
    except MlflowException:  # from another store, or moved
        return None
    goes_on = run.data.tags.get("config") == config and run.info.status != "FINISHED"
    return str(run.info.run_id) if goes_on else None


def last_steps(run_id: str) -> dict[str, int]:
    """Return the last step of each metric of a run, which goes on."""
    store = client()
    store.update_run(run_id, "RUNNING")
    names = store.get_run(run_id).data.metrics
    return {name: max(point.step for point in store.get_metric_history(run_id, name)) for name in names}


@contextmanager
def parent_run(name: str, tags: dict[str, str], run_id: str | None = None) -> Iterator[str]:
    """Open the run that tuning or a comparison is kept in (again, where `run_id` is given), and end it as it ended."""
    store = client()
    if run_id is None:
        run_id = store.create_run(open_experiment(), run_name=name, tags=tags).info.run_id
    try:
        store.update_run(run_id, "RUNNING")
    except MlflowException as error:
        raise StoreError(f"The store has no run {run_id}, which {name!r} goes on from: {error}") from error
    try:
        yield run_id
    except BaseException as error:
        store.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    store.set_terminated(run_id)


def how_to_see(experiment_id: str, run_id: str) -> str:
    """Say which command and which link show the run in MLflow's UI."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"  # not the UI's agents' view
    uri = tracking_uri()
    if uri.startswith("http"):
        return f"{uri}/{page}"
    command = f"mlflow ui --backend-store-uri '{uri}'"
    if uri == OWN_URI:
        command = "mlflow ui" if Path.cwd() == ROOT else f"(cd '{ROOT}' && mlflow ui)"
    return f"{command}   and open http://127.0.0.1:5000/{page}"
