"""Where runs are kept: MLflow's own default, `mlflow.db` and `mlruns/` beside it, anchored at the root of the clone."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read while mlflow is imported, as is the next
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # each run's; a command prints its own
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7, the default, takes minutes to say that it is down
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # seconds

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from sqlalchemy.exc import SQLAlchemyError

from options import ROOT

EXPERIMENT = "mnist1d"
OWN_URI = f"sqlite:///{ROOT / 'mlflow.db'}"
GOES_ON = "attributes.status = 'RUNNING'"
VIEW = "workflowType=machine_learning"  # not the UI's agents' view
FAULTS = (MlflowException, SQLAlchemyError, OSError)  # what a store raises that is away, locked, full or broken


logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs the traceback of what it raises


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


def open_experiment(name: str = EXPERIMENT) -> str:
    """Return the experiment's id; make the store and the experiment where they are missing.

    Raises:
        StoreError: the store cannot be reached or written, or the experiment was deleted in the UI.
    """
    try:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        with FileLock(artifact_dir() / ".lock"):  # processes that open a new SQLite store at once break it
            experiment = client().get_experiment_by_name(name) or _create_experiment(name)
    except FAULTS as error:
        raise StoreError(
            f"The MLflow store {without_password(tracking_uri())} cannot be used: {cause(error)}. Make it reachable "
            "and writable, or set MLFLOW_TRACKING_URI."
        ) from error
    if experiment.lifecycle_stage == "deleted":
        raise StoreError(
            f"The MLflow experiment {name!r} was deleted and still holds its name. Restore it with `mlflow experiments "
            f"restore -x {experiment.experiment_id}`, or name another with --trainer.logger.experiment_name."
        )
    return str(experiment.experiment_id)


def _create_experiment(name: str) -> Experiment:
    served = tracking_uri().startswith("http")  # a server knows its own place
    try:
        made = client().create_experiment(name, None if served else str(artifact_dir() / name))
    except MlflowException as error:
        found = client().get_experiment_by_name(name)  # made by another machine in this moment
        if found is None:
            raise error
        return found
    return client().get_experiment(made)


def cause(error: BaseException) -> str:
    """Return the line of a store's error that says what is wrong, without a password."""
    [first, *_] = str(error).splitlines() or [type(error).__name__]
    return without_password(first).rstrip(".")


def without_password(text: str) -> str:
    """Hide who logs in, and with what, in every address of the text."""
    named = re.sub(r"(?<=[?&]password=)[^&\s'\"`]+", "***", text)
    return re.sub(r"(?<=://)[^\s'\"`]+@", "***@", named)


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
    goes_on = run.data.tags.get("config", "").startswith(config) and run.info.status != "FINISHED"
    return str(run.info.run_id) if goes_on else None


def close_broken_off(experiment: str, config: str) -> None:
    """Mark the runs of this configuration that were killed: they cannot say so themselves, and seem to be running.

    One that does run, somewhere else, says FINISHED when it ends.
    """
    store = client()
    query = f"tags.config = '{config}' and {GOES_ON}"
    for run in store.search_runs([open_experiment(experiment)], query):
        store.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def parent_run(name: str, sweep: str, tags: dict[str, str]) -> Iterator[str]:
    """Open the run that holds a sweep (the one that is there, where it goes on), and end it as the work ended.

    sweep: what identifies the sweep, on every machine.
    """
    store, run_id = client(), _parent(name, tags | {"sweep": sweep})
    store.update_run(run_id, "RUNNING")
    try:
        yield run_id
    except BaseException as error:
        for child in store.search_runs([open_experiment()], f"tags.mlflow.parentRunId = '{run_id}' and {GOES_ON}"):
            store.set_terminated(child.info.run_id, "KILLED")
        store.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    store.set_terminated(run_id)


def _parent(name: str, tags: dict[str, str]) -> str:
    """Return the oldest run of the sweep: several machines may each have made one in the same moment."""
    store, experiment = client(), open_experiment()
    query, oldest = f"tags.sweep = '{tags['sweep']}'", ["attributes.start_time", "attributes.run_id"]
    found = store.search_runs([experiment], query, order_by=oldest)
    if found:
        return str(found[0].info.run_id)
    own = store.create_run(experiment, run_name=name, tags=resolve_tags(tags)).info.run_id
    first = store.search_runs([experiment], query, order_by=oldest)[0].info.run_id
    if first != own:
        store.delete_run(own)
    return str(first)


def how_to_see(experiment_id: str, run_id: str) -> str:
    """Say which command and which link show the run in MLflow's UI."""
    return _command(f"#/experiments/{experiment_id}/runs/{run_id}?{VIEW}")


def how_to_compare(experiment_id: str, parent: str) -> str:
    """Say which command and which link show the charts of the runs that a comparison trained, side by side."""
    own = quote(f"tags.mlflow.parentRunId = '{parent}'", safe="")
    best_first = f"orderByKey={quote('metrics.`test/loss`', safe='')}&orderByAsc=true"  # by date they would be folded
    return _command(f"#/experiments/{experiment_id}/runs?{VIEW}&compareRunsMode=CHART&{best_first}&searchFilter={own}")


def _command(page: str) -> str:
    uri = tracking_uri()
    if uri.startswith("http"):
        return f"{without_password(uri)}/{page}"
    command = f"mlflow ui --backend-store-uri '{uri}'"
    if without_password(uri) != uri:
        command = 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    elif uri == OWN_URI:
        command = "mlflow ui" if Path.cwd() == ROOT else f"(cd '{ROOT}' && mlflow ui)"
    return f"{command}   and open http://127.0.0.1:5000/{page}"
