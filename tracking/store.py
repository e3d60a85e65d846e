"""Where runs are kept: MLflow's own default, `mlflow.db` and `mlruns/` beside it, anchored at the root of the clone."""

import logging
import os
import threading
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "mnist1d"
OWN_URI = f"sqlite:///{ROOT / 'mlflow.db'}"
# what a store raises that is unreachable, locked, full or broken
FAULTS = (MlflowException, SQLAlchemyError, OSError)
# seconds that an unreachable server may take at the start
REACH = 15

# it logs the traceback of what it raises
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class StoreError(Exception):
    """The tracking store cannot take a run. The message says what is wrong and what to do."""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else the store in the clone."""
    return os.environ.get("MLFLOW_TRACKING_URI") or OWN_URI


def hidden(uri: str) -> str:
    """Return the URI as it may be printed: without a password, and without a query, which may contain one."""
    return make_url(uri).set(query={}).render_as_string(hide_password=True) if "@" in uri or "?" in uri else uri


def cause(error: BaseException) -> str:
    """Return the line of a store's error that says what is wrong, without the store's password."""
    [line, *_] = str(error).splitlines() or [type(error).__name__]
    uri = tracking_uri()
    line = line.replace(uri, hidden(uri)).rstrip(".")
    password = "@" in uri and make_url(uri).password
    return line.replace(str(password), "***") if password else line


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
    uri = tracking_uri()
    try:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        # processes that open a new SQLite store at once break it
        with FileLock(artifact_dir() / ".lock") if uri.startswith("sqlite") else nullcontext():
            _reach(uri)
            experiment = client().get_experiment_by_name(name) or _create_experiment(name)
    except FAULTS as error:
        raise StoreError(
            f"The MLflow store {hidden(uri)} cannot be used: {cause(error)}. Make it reachable and writable, or set "
            "MLFLOW_TRACKING_URI."
        ) from error
    if experiment.lifecycle_stage == "deleted":
        raise StoreError(
            f"The MLflow experiment {name!r} was deleted and still holds its name. Restore it with `mlflow experiments "
            f"restore -x {experiment.experiment_id}`, or name another with --trainer.logger.experiment_name."
        )
    return str(experiment.experiment_id)


def _reach(uri: str) -> None:
    """Connect once, within seconds: MLflow tries for minutes before it reports that a server is down.

    Raises:
        StoreError: the store is in memory, where nothing would be kept.
    """
    if uri.startswith("http"):
        answer: Future[object] = Future()

        def ask() -> None:
            try:
                answer.set_result(client().search_experiments(max_results=1))
            except FAULTS as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer.result(REACH)
        except TimeoutError:
            raise TimeoutError(f"no answer within {REACH} seconds") from None
    elif uri.startswith("sqlite") and make_url(uri).database in (None, "", ":memory:"):
        raise StoreError(
            f"MLFLOW_TRACKING_URI {uri} is in memory: nothing would be kept. Name a file: sqlite:////path."
        )
    else:
        engine = create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


ABOUT = """A run for each training, named by its arm; a comparison or a tuning holds its runs under it.
Best first: order by test/loss, ascending. In the charts: val/loss by step, and lr on a log scale."""


def _create_experiment(name: str) -> Experiment:
    # a server has a place of its own for artifacts
    place = None if tracking_uri().startswith("http") else str(artifact_dir() / name)
    made = client().create_experiment(name, place, {"mlflow.note.content": ABOUT})
    return client().get_experiment(made)
