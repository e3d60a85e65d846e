"""A command as a process: what its user can mend gives a line and a status, not a traceback."""

import errno
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # there is no room, or no right, to write
QUIET_LOGGERS = ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed")
UNHEEDED = (  # warnings that a user of this project can do nothing about
    ".*LeafSpec.*",  # of Lightning, about torch
    "The tensor attributes .*_flat_weights",  # of torch, while a GRU is exported
    ".*Any type hint is inferred as AnyType",  # of MLflow, about its own
    ".* is experimental .supported from",  # of Optuna, as is the next
    "Argument .* is an experimental feature",
    "The dirpath has changed",  # of Lightning: each run saves in a folder of its own
    "Checkpoint directory",
)


class Terminated(BaseException):
    """SIGTERM came, and the run was kept."""


def quiet() -> None:
    """Silence what a user of this project can do nothing about."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHEEDED:
        warnings.filterwarnings("ignore", message)


@contextmanager
def importing() -> Iterator[None]:
    """Import here what takes seconds: none of it is garbage, yet each collection would look through all of it again.

    Without it a short run takes a quarter more CPU time. Where all was imported before, as in a notebook, what was done
    since can still be collected.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if collects:
            gc.enable()


def script(command: Callable[[], Any]) -> None:
    """Run a command as a process.

    Status 2: nothing was begun. 1: what was begun could not go on. 130: Ctrl-C. 143: SIGTERM, or SIGHUP. 141: nobody
    reads what is printed.
    """
    quiet()
    try:
        os.getcwd()
    except FileNotFoundError:
        end("error: the folder that this was typed in is gone. Change to another.", 2)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else `nohup` has a say
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        end("interrupted; what was done is kept.", 130)  # the status that shells give it
    except Terminated:
        end("terminated; what was done is kept.", 143)
    except BrokenExecutor:
        end("error: a worker was killed; is the memory full? What was done is kept; type the same again.", 1)
    except BrokenPipeError:
        os._exit(141)  # at once: Python would write what is left at the exit, and fail again
    except Exception as error:
        from optuna.exceptions import StorageInternalError  # late: the help does not wait for these

        from tracking.store import FAULTS, StoreError, cause

        if isinstance(error, StoreError):
            end(f"error: {error}", 2)
        known = isinstance(error, (*FAULTS, StorageInternalError))
        if not known or (isinstance(error, OSError) and error.errno not in PLACE):
            raise
        end(f"error: {cause(error)}. What was done is kept; mend it, and type the same again.", 1)


def end(message: str, status: int) -> None:
    """Print one line, with the name of the command before it, and exit."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)
