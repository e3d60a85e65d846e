"""Train one arm, test it once, keep the run in MLflow: `python train.py --optimizer meta`."""

import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import CONFIGS, DEFAULT_ARM, HELP, SUBCOMMANDS

PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # there is no room, or no right, to write

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from cli import TrainCLI


def main(
    args: list[str] | None = None,
    tags: dict[str, str] | None = None,
    test: bool = True,
    reuse: bool = False,
    callbacks: Sequence["Callback"] = (),
) -> "TrainCLI":
    """Run the command line `args` (None: the process's own) and return what it built.

    tags: more of them for the MLflow run. test: whether `fit` reads the test set at its end. reuse: whether a finished
    run of the same configuration may stand for this one. callbacks: more of them.

    Raises:
        SystemExit: status 2 where the arguments are wrong, before anything was trained.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] in (["--help"], ["-h"]):
        print(HELP)
        raise SystemExit(0)
    from cli import TrainCLI  # late: the help does not wait for torch

    command = [given.pop(0)] if given and given[0] in SUBCOMMANDS else ["fit"]
    if not any(argument.split("=")[0] in ("--optimizer", "--config", "-c") for argument in given):
        given = ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml"), *given]
    return TrainCLI(command + given, tags or {}, test, reuse, callbacks)


def quiet() -> None:
    """Silence what a user of this project can do nothing about."""
    for name in ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # of Lightning, about torch
    warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")  # of torch, while a GRU is exported
    warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType")  # of MLflow, about its own
    for message in (".* is experimental .supported from", "Argument .* is an experimental feature"):  # of Optuna
        warnings.filterwarnings("ignore", message)
    for message in ("The dirpath has changed", "Checkpoint directory"):  # each run saves in a folder of its own
        warnings.filterwarnings("ignore", message)


def script(command: Callable[[], Any]) -> None:
    """Run a command as a process; what its user can mend gives a line and a status, not a traceback.

    Status 2: nothing was begun. 1: what was begun could not go on. 130: Ctrl-C.
    """
    quiet()
    name = Path(sys.argv[0]).name
    try:
        command()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was done is kept.", file=sys.stderr)
        sys.exit(130)  # as shells have it
    except Exception as error:
        from optuna.exceptions import StorageInternalError  # late: the help does not wait for these

        from store import FAULTS, StoreError, cause

        if isinstance(error, StoreError):
            print(f"{name}: error: {error}", file=sys.stderr)
            sys.exit(2)
        known = isinstance(error, (*FAULTS, StorageInternalError))
        if not known or (isinstance(error, OSError) and error.errno not in PLACE):
            raise
        print(
            f"{name}: error: {cause(error)}. What was done is kept; mend it, and type the same again.", file=sys.stderr
        )
        sys.exit(1)


def train_and_report() -> None:
    """Train as the command line says, and print what came out; status 1 where it diverged."""
    cli = main()
    cli.report()
    if cli.diverged:
        sys.exit(1)


if __name__ == "__main__":
    script(train_and_report)
