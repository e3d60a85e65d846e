"""Where runs are kept: MLflow's own default, `mlflow.db` and `mlruns/` beside it, anchored at the root of the clone."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from tracking.secrets import hidden, remember, without_password

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "mnist1d"
OWN_URI = f"sqlite:///{ROOT / 'mlflow.db'}"
FAULTS = (MlflowException, SQLAlchemyError, OSError)  # what a store raises that is away, locked, full or broken

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs the traceback of what it raises


class StoreError(Exception):
    """The tracking store cannot take a run. The message says what is wrong and what to do."""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else the store in the clone."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or OWN_URI
    remember(uri)
    return uri


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
    if Path(name).name != name or name in (".", "..") or not name.isprintable():
        raise StoreError(f"--trainer.logger.experiment_name must be a plain name, without a path, got {name!r}.")
    try:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for the MLflow store {hidden(tracking_uri())}; Ctrl-C ends it"
        with _said(waiting), FileLock(artifact_dir() / ".lock"):
            # locked: processes that open a new SQLite store at once break it
            _reach(tracking_uri())
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


def _reach(uri: str) -> None:
    """Connect once: MLflow tries for two minutes before it says that a database is down.

    Raises:
        StoreError: nothing would be kept there.
    """
    if uri.startswith("http"):
        return
    if uri.startswith("sqlite") and make_url(uri).database in (None, "", ":memory:"):
        raise StoreError(
            f"MLFLOW_TRACKING_URI {uri} is in memory: nothing would be kept. Name a file, sqlite:////path."
        )
    engine = create_engine(uri)
    try:
        with engine.connect():
            pass
    finally:
        engine.dispose()


@contextmanager
def _said(text: str) -> Iterator[None]:
    """Print a line where what is done here takes more than three seconds."""
    timer = threading.Timer(3, lambda: print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


ABOUT = """A run for each training, named by its arm; a comparison or a tuning holds its runs under it.
Best first: order by test/loss, ascending. In the charts: val/loss by step, and lr on a log scale."""


def _create_experiment(name: str) -> Experiment:
    served = tracking_uri().startswith("http")  # a server knows its own place
    try:
        tags = {"mlflow.note.content": ABOUT}
        made = client().create_experiment(name, None if served else str(artifact_dir() / name), tags)
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
