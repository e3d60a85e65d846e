"""The MLflow store: by default MLflow's own, `mlflow.db` and `mlruns/`, in the root of the clone."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "mnist1d"
OWN_URI = f"sqlite:///{ROOT / 'mlflow.db'}"
# errors of a store that is unreachable, locked, full or damaged
FAULTS = (MlflowException, SQLAlchemyError, OSError)

# it logs a traceback of each error that it raises
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class StoreError(Exception):
    """The store cannot be used. The message says why and what to do."""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI if it is set, else the URI of the store in the clone."""
    return os.environ.get("MLFLOW_TRACKING_URI") or OWN_URI


def hidden(uri: str) -> str:
    """Return the URI without password and query, which may contain one, for printing."""
    return make_url(uri).set(query={}).render_as_string(hide_password=True) if "@" in uri or "?" in uri else uri


def cause(error: BaseException) -> str:
    """Return the relevant line of a store's error message, without the store's password."""
    # SQLAlchemy may print where an error occurred before its reason
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result")]
    [line, *_] = lines or [type(error).__name__]
    uri = tracking_uri()
    line = line.replace(uri, hidden(uri)).rstrip(".")
    password = "@" in uri and make_url(uri).password
    return line.replace(str(password), "***") if password else line


def client() -> MlflowClient:
    """Return MLflow's client for the store."""
    return MlflowClient(tracking_uri())


def artifact_dir() -> Path:
    """Return `mlruns/` next to the SQLite file, or in the clone for any other store."""
    kind, _, path = tracking_uri().partition(":///")
    return (Path(path).resolve().parent if kind == "sqlite" else ROOT) / "mlruns"


def open_experiment(name: str = EXPERIMENT) -> str:
    """Return the experiment's id; create the store and the experiment if they are missing.

    Raises:
        StoreError: the store cannot be reached or written, or the experiment was deleted in the UI.
    """
    if Path(name).name != name:
        raise StoreError(f"--trainer.logger.experiment_name must be a name without a path, got {name!r}.")
    uri = tracking_uri()
    if uri in ("sqlite://", "sqlite:///:memory:"):
        raise StoreError(f"MLFLOW_TRACKING_URI {uri} is in memory, so runs would be lost. Use a file: sqlite:////path.")
    if odd := {character for character in str(artifact_dir()) if character in "?#%"}:
        raise StoreError(
            f"The folder {artifact_dir().parent} has {' '.join(odd)} in its name, which MLflow cannot handle. "
            "Rename it."
        )
    served = uri.startswith("http")
    try:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        # a new SQLite store is damaged if several processes open it at the same time
        with FileLock(artifact_dir() / ".lock") if uri.startswith("sqlite") else nullcontext():
            if not served:
                # MLflow would retry for minutes before it reports an unreachable database
                create_engine(uri, poolclass=NullPool).connect().close()
            experiment = client().get_experiment_by_name(name)
            # a server chooses its own artifact location
            place = None if served else str(artifact_dir() / name)
            found = experiment.experiment_id if experiment else client().create_experiment(name, place)
    except FAULTS as error:
        raise StoreError(
            f"The MLflow store {hidden(uri)} cannot be used: {cause(error)}. Make it reachable and writable, or set "
            "MLFLOW_TRACKING_URI."
        ) from error
    if experiment and experiment.lifecycle_stage == "deleted":
        raise StoreError(
            f"The MLflow experiment {name!r} was deleted, but its name is still in use. Restore it with `mlflow "
            f"experiments restore -x {found}`, or choose another with --trainer.logger.experiment_name."
        )
    return str(found)
