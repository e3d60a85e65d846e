"""Names, help and options that the commands share. Imports neither torch nor YAML: `--help` prints at once."""

import argparse
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from experiment.process import end

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "results"
BASE = CONFIGS / "base.yaml"
ARMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path != BASE)
TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
DEFAULT_ARM, DEFAULT_TASK = "meta", "mlp"
HEADLINE = ["meta", "meta_onestep", "meta_original", "adam", "cosine"]
STAGES = [
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
]
SUBCOMMANDS = ("fit", "validate", "test", "predict")
CORES = os.cpu_count() or 1
QUIET = "--trainer.enable_progress_bar=false"
REFUSED = {
    "--trainer.logger": "the runs are read back from this project's MLflow store",
    "--trainer.fast_dev_run": "it leaves no run in MLflow; for a short run use --trainer.max_epochs=1",
    "--ckpt_path": "each run starts at its own first step",
}
"""Options of one run that the commands of many runs do not take, and why."""


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        end(f"error: {message}", 2)


def _choices(option: str, names: list[str]) -> str:
    start = f"  {option:<22}"
    return textwrap.fill(" ".join(names), 110, initial_indent=start, subsequent_indent=" " * len(start))


USAGE = "python train.py [fit | validate | test | predict] [options]"
HELP = f"""usage: {USAGE}

Train one arm on mnist1d, test it once, keep the run in MLflow.

  python train.py                                      the same as --optimizer meta
  python train.py --optimizer adam --model.lr 0.01     another arm, at another rate
  python train.py --config my_arm.yaml                 an arm of your own, over configs/base.yaml
  python train.py --optimizer meta --print_config      what an arm is made of
  python train.py test --ckpt_path CHECKPOINT          Lightning's own: fit (the default), validate, test, predict
  python train.py fit --help                           every option

{_choices("--optimizer ARM", ARMS)}
{_choices("--task TASK", TASKS)}
  --model.lr RATE       the learning rate that the arm starts from, or keeps; `meta` needs none
  --model.help NAME     the options of a module: SupervisedModule, MetaModule, OneStepModule, SearchModule
  --trainer.max_epochs EPOCHS, --seed_everything SEED, and every option of Lightning's Trainer

Later options win. A command line names one arm."""


def one_of(kind: str, names: Sequence[str], text: str) -> str:
    """Return the text if it is one of the names.

    Raises:
        ArgumentTypeError: it is not; the message has the nearest name and the list.
    """
    if text in names:
        return text
    near = "".join(f" Did you mean {name}?" for name in get_close_matches(text, names, 1))
    raise argparse.ArgumentTypeError(f"unknown {kind} {text!r}.{near} Choose from: {', '.join(names)}.")


def arm(text: str) -> str:
    """Read the name of an arm."""
    return one_of("arm", ARMS, text)


def task(text: str) -> str:
    """Read the name of a task."""
    return one_of("task", TASKS, text)


def arm_or_file(text: str) -> str:
    """Read the name of an arm, or the path of a YAML file that defines one."""
    return text if text.endswith((".yaml", ".yml")) and Path(text).is_file() else one_of("arm or file", ARMS, text)


def arm_options(name: str) -> list[str]:
    """Return the options of `train.py` for the name of an arm or a file."""
    return ["--optimizer", name] if name in ARMS else ["--config", name]


def tuned_file(arm: str) -> Path | None:
    """Return the file of `configs/tuned/` that the arm reads; None if it has none."""
    path = CONFIGS / "tuned" / f"{arm}.yaml"
    return path if path.is_file() else None


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


def rate(text: str) -> float:
    """Read a learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive finite number, got {text!r}")
    return value


def folder(text: str) -> Path:
    """Make the folder of --output: before the training, not after it."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"the folder {text} cannot be made: {error.strerror}") from error
    return Path(text).resolve()


def file(text: str) -> Path:
    """Read the file of --output, which must be writable: before the training, not after it."""
    if Path(text).is_dir() or not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, or its folder does not exist")
    return Path(text)


def many_runs(prog: str, description: str | None) -> Parser:
    """Return a parser for a command of many runs, which passes unknown options on to each run."""
    epilog = "Options not listed here apply to every run: see train.py --help."
    return Parser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)


def parse_many(
    parser: Parser, args: Sequence[str] | None, refused: Mapping[str, str]
) -> tuple[argparse.Namespace, list[str]]:
    """Return the parser's own options, and the other ones, for every run; refuse those that `refused` explains."""
    own, rest = parser.parse_known_args(args)
    for option, reason in (REFUSED | dict(refused)).items():
        if any(word.split("=")[0].startswith(option) for word in rest):
            parser.error(f"{option} cannot be given here: {reason}")
    return own, rest


def typed(prog: str, args: Sequence[str] | None) -> str:
    """Return the command as a person types it again, without passwords."""
    from tracking.store import hidden  # late: the help does not wait for MLflow

    return f"python {prog} {shlex.join(map(hidden, sys.argv[1:] if args is None else args))}".strip()
