"""Options that the commands of many runs share, read before anything heavy is imported."""

import argparse
import math
import os
import shlex
import sys
from pathlib import Path

from experiment.presets import ARMS

CORES = os.cpu_count() or 1
SAMPLERS, PRUNERS = ("tpe", "random", "qmc", "gp"), ("none", "median", "halving")  # of Optuna
SEARCHES = "model.lr=log:1e-5:1e-1, model.network.hidden=32:512 or model.network.layers=1,2,3"  # how they are written
DEFAULT_SEARCH = (
    "model.lr=log:1e-5:1e-1; of AdamW model.lr=log:1e-4:1e-1 model.optimizer.weight_decay=log:1e-3:1; of descent "
    "model.hyper_lr=log:1e-8:1e-4 too; between two whole numbers, whole numbers"
)
STAGES = (
    "original",
    "readings",
    "main",
    "starts",
    "ablation",
    "tasks",
    "grid",
    "moving",
    "rivals",
    "budget",
    "settings",
    "paper",
)  # of `results.py`
OF_ONE_RUN = {"--optimizer": "--optimizers", "--seed_everything": "--seeds", "--data.seed": "--data-seeds"}

NOT_FOR_MANY = {  # options of one run, refused by the commands of many
    "--trainer.logger": "the runs are read back from this project's MLflow store",
    "--trainer.fast_dev_run": "it leaves no run in MLflow; a short one: --trainer.max_epochs=1",
    "--ckpt_path": "each run begins at its own first step",
}


def sweep_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for a command of many runs: what it does not know goes on to every run."""
    epilog = "Options not listed here go on to every run: see train.py --help."
    return argparse.ArgumentParser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)


def parse_sweep(parser: argparse.ArgumentParser, args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the parser's own options, and the rest, which goes on to every run."""
    own, rest = parser.parse_known_args(args)
    for argument in rest:
        for option, reason in NOT_FOR_MANY.items():
            if argument.split("=")[0].startswith(option):
                parser.error(f"{option} cannot be given here: {reason}")
    return own, rest


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Read a seed: 0 to 2^32 - 1."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text!r}")
    return int(text)


def arm_or_file(text: str) -> str:
    """Read the name of an arm, or the path of a YAML file that is one."""
    if text not in ARMS and not (text.endswith((".yaml", ".yml")) and Path(text).is_file()):
        from experiment.line import did_you_mean  # late: the help does not wait for YAML

        near = did_you_mean(text, ARMS)
        raise argparse.ArgumentTypeError(f"there is no arm, and no YAML file, {text!r}.{near} Arms: {', '.join(ARMS)}")
    if text not in ARMS:
        from experiment.files import check_yaml  # late, as above

        try:
            check_yaml(Path(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def rate(text: str) -> float:
    """Read a learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive finite number, got {text!r}")
    return value


def make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Make the folder of --output: now, not after the training."""
    if folder.exists() and not folder.is_dir():
        parser.error(f"--output: {folder} is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: {folder} cannot be made: {error.strerror}")


def require_place(parser: argparse.ArgumentParser, file: Path) -> None:
    """Refuse, before the work, a file of --output that could not be written."""
    if not file.parent.is_dir():
        parser.error(f"--output: there is no folder {file.parent} to write {file.name} into")
    if file.is_dir():
        parser.error(f"--output: {file} is a folder, not a file")


def searched(text: str) -> tuple[str, object]:
    """Read what is to be searched: one of SEARCHES."""
    from experiment.space import dimension  # late: the help does not wait for Optuna

    return dimension(text)


def typed(prog: str, args: list[str] | None) -> str:
    """Return the command as a person types it again, without a password."""
    from tracking.secrets import hidden  # late, as above

    words = sys.argv[1:] if args is None else args
    return f"python {prog} {shlex.join(map(hidden, words))}".strip()
