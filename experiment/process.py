"""Run a command as a process. Errors that the user can fix give one line and an exit status, not a traceback."""

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

QUIET_LOGGERS = ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed")
# warnings that the user cannot act on: of Lightning and MLflow about torch and type hints, of Optuna about experimental
# features, of Lightning about folders and short epochs, of joblib about replacing a worker whose memory has grown
IGNORED = (
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
    """One of many runs could not be trained. The message says where to find the reason."""


def quiet() -> None:
    """Silence messages and warnings that the user cannot act on."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IGNORED:
        warnings.filterwarnings("ignore", message)


@contextmanager
def importing() -> Iterator[None]:
    """Import without garbage collection, which takes a quarter of the start-up time.

    Commands import after parsing, so that `--help` is fast. A missing package ends them with status 2.
    """
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        end(f"error: the package {error.name} is not installed here: run `make train` or activate .venv.", 2)
    gc.freeze()
    gc.enable()


def script(command: Callable[[], Any]) -> None:
    """Run a command. Exit status 2: nothing was started; 1: a started run failed; 130: Ctrl-C; 143: SIGTERM."""
    quiet()
    # if stdout is closed (`>&-`), output would go to the next file that is opened, a database
    while (place := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(place, True)
    os.close(place)
    sys.stdout, sys.stderr = sys.stdout or open(1, "w"), sys.stderr or open(2, "w")  # noqa: SIM115
    try:
        command()
    except KeyboardInterrupt as stop:
        end(f"{str(stop) or 'interrupted'}; finished work is saved.", 143 if str(stop) else 130)
    except Exception as error:
        # imported here: `--help` must not wait for it
        from optuna.exceptions import StorageInternalError

        from tracking.store import FAULTS, StoreError, cause

        if isinstance(error, StoreError):
            end(f"error: {error}", 2)
        if isinstance(error, (SweepError, BrokenExecutor, StorageInternalError, *FAULTS)):
            end(f"error: {cause(error)}. Finished work is saved. Fix the problem and rerun the command.", 1)
        raise


@contextmanager
def refusing(what: str, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Exit with status 2 and one line that starts with `what` if the block raises one of the errors."""
    try:
        yield
    except errors as error:
        # imported here: `--help` must not wait for MLflow
        from tracking.store import StoreError

        # jsonargparse wraps the error of the class that refused the value
        while isinstance(error, ValueError) and isinstance(error.__cause__, ValueError | StoreError):
            error = error.__cause__
        # jsonargparse buries this in all that it tried
        if missing := re.search(r"No module named '\w+'", str(error)):
            end(f"error: {what}{missing[0]}: its folder must be in PYTHONPATH, or the package installed.", 2)
        end(f"error: {what}{' '.join(str(error).split())[:500] or type(error).__name__}", 2)


def end(message: str, status: int) -> NoReturn:
    """Print one line, prefixed by the name of the command, and exit."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)
