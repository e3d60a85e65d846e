"""A command as a process: an error that its user can fix gives one line and a status, not a traceback."""

import errno
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
QUIET_LOGGERS = ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed")
# warnings that a user of this project can do nothing about
UNHEEDED = (
    # of Lightning, about torch; of torch, about an exported GRU; of MLflow, about its own type hints
    ".*LeafSpec.*",
    "The tensor attributes .*_flat_weights",
    ".*Any type hint is inferred as AnyType",
    # of Optuna
    ".* is experimental .supported from",
    "Argument .* is an experimental feature",
    # of Lightning: each run saves in a folder of its own
    "The dirpath has changed",
    "Checkpoint directory",
    # of Lightning: a run of few batches an epoch logs at the ends of epochs
    "The number of training batches",
    # of joblib, which replaces a worker that has grown
    "A worker stopped while some jobs",
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
    """Import here what takes seconds: keep the imported objects out of garbage collection.

    Without it, a short run takes a quarter more CPU time. If everything was imported before, as in a notebook, nothing
    is kept.
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


def worker(parent: int) -> None:
    """Prepare a worker process: leave Ctrl-C to the parent, print nothing, end when the parent ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    os.environ["TQDM_DISABLE"] = "1"
    quiet()
    with importing():
        import experiment.run  # noqa: F401


def script(command: Callable[[], Any]) -> None:
    """Run a command as a process.

    Status 2: nothing was started. 1: what was started failed. 130: Ctrl-C. 143: SIGTERM, or SIGHUP. 141: the reader of
    the output has gone.
    """
    quiet()
    # a process under nohup ignores SIGHUP, and continues to
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        end("interrupted; finished work is kept.", 130)
    except Terminated:
        end("terminated; finished work is kept.", 143)
    except BrokenPipeError:
        # at once: Python would flush at exit, and fail again
        os._exit(141)
    except Exception as error:
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """Exit with one line if the user can do something about the error."""
    from optuna.exceptions import StorageInternalError  # late: the help does not wait for these

    from tracking.store import FAULTS, StoreError, cause

    if isinstance(error, StoreError):
        end(f"error: {error}", 2)
    if isinstance(error, BrokenExecutor):
        end("error: a worker was killed; is the memory full? Finished work is kept: rerun the command.", 1)
    known = isinstance(error, (*FAULTS, StorageInternalError))
    if known and (not isinstance(error, OSError) or error.errno in UNWRITABLE):
        end(f"error: {cause(error)}. Finished work is kept: fix the problem and rerun the command.", 1)


def end(message: str, status: int) -> NoReturn:
    """Print one line, with the name of the command before it, and exit."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)
