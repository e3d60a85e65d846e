"""A command as a process: an error that its user can fix gives one line and a status, not a traceback."""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

QUIET_LOGGERS = ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed")
# warnings that a user of this project can do nothing about: of Lightning and MLflow about torch and type hints, of
# Optuna about what is experimental, of Lightning about the folders and the few batches of our runs, of joblib about a
# worker that has grown and is replaced
UNHEEDED = (
    ".*LeafSpec.*",
    "The tensor attributes .*_flat_weights",
    ".*Any type hint is inferred as AnyType",
    ".* is experimental .supported from",
    "Argument .* is an experimental feature",
    "The dirpath has changed",
    "Checkpoint directory",
    "The number of training batches",
    "A worker stopped while some jobs",
)


class SweepError(Exception):
    """One of many runs could not be trained. The message says where the reason is."""


def quiet() -> None:
    """Silence what a user of this project can do nothing about."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHEEDED:
        warnings.filterwarnings("ignore", message)


@contextmanager
def importing() -> Iterator[None]:
    """Import late, for the help does not wait; without collecting garbage, which takes a quarter of a start's time.

    Where a package is missing, the command ends with status 2.
    """
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        end(f"error: the package {error.name} is not installed here: run `make train`, or activate .venv.", 2)
    gc.freeze()
    gc.enable()


def script(command: Callable[[], Any]) -> None:
    """Run a command as a process: status 2 if nothing was started, 1 if that failed, 130 at Ctrl-C, 143 at SIGTERM."""
    quiet()
    # where stdout is closed (`>&-`), the next file that is opened, a database, would get what is printed
    while (place := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(place, True)
    os.close(place)
    sys.stdout, sys.stderr = sys.stdout or open(1, "w"), sys.stderr or open(2, "w")  # noqa: SIM115
    try:
        command()
    except KeyboardInterrupt as stop:
        end(f"{str(stop) or 'interrupted'}; finished work is kept.", 143 if str(stop) else 130)
    except Exception as error:
        # late: the help does not wait for these
        from optuna.exceptions import StorageInternalError

        from tracking.store import FAULTS, StoreError, cause

        if isinstance(error, StoreError):
            end(f"error: {error}", 2)
        if isinstance(error, (SweepError, BrokenExecutor, StorageInternalError, *FAULTS)):
            end(f"error: {cause(error)}. Finished work is kept: fix the problem and rerun the command.", 1)
        raise


@contextmanager
def refusing(what: str, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """End with status 2 and one line that begins with `what` if the block raises one of the errors."""
    try:
        yield
    except errors as error:
        # late: the help does not wait for MLflow
        from tracking.store import StoreError

        # jsonargparse wraps what the class that refused a value said
        while isinstance(error, ValueError) and isinstance(error.__cause__, ValueError | StoreError):
            error = error.__cause__
        end(f"error: {what}{' '.join(str(error).split())[:500] or type(error).__name__}", 2)


def end(message: str, status: int) -> NoReturn:
    """Print one line, with the name of the command before it, and exit."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)
