"""Names, help and options that the commands share. Imports neither torch nor YAML: `--help` prints at once."""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from experiment.process import end

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "results"
BASE = CONFIGS / "base.yaml"
ARMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path != BASE)
TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
# the files of best options that arms read
TUNED = {path.stem: path for path in (CONFIGS / "tuned").glob("*.yaml")}
DEFAULT_ARM, DEFAULT_TASK = "meta", "mlp"
HEADLINE = ["meta", "meta_onestep", "meta_original", "adam", "cosine"]
STAGES = re.findall(r"^(\w+):", Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8"), re.MULTILINE)
SUBCOMMANDS = ("fit", "validate", "test")
CORES = os.cpu_count() or 1
QUIET = "--trainer.enable_progress_bar=false"
REFUSED = {
    "--trainer.logger": "the runs are read back from this project's MLflow store",
    "--trainer.fast_dev_run": "it leaves no run in MLflow; for a short run use --trainer.max_epochs=1",
    "--ckpt_path": "each run starts at its own first step",
}
"""Options of one run that the commands of many runs do not take, and why."""
MEANT = {
    "lr": "--model.lr",
    "learning_rate": "--model.lr",
    "epochs": "--trainer.max_epochs",
    "max_epochs": "--trainer.max_epochs",
    "batch_size": "--data.batch_size",
    "seed": "--seed_everything",
}
"""Options of other programs, and what they are called here."""
WORDS = ["none", "null", "nan", "na", "inf", "infinity", "true", "false", "yes", "no", "on", "off", "y", "n"]
"""Names that YAML, pandas or MLflow would take for a value."""
EVERY_RUN = "Options not listed here apply to every run: see train.py --help."
RETRAIN = "train all again: by default, runs of the same configuration, code and data are taken from the store"
USAGE = "python train.py [fit | validate | test] [options]"
EXAMPLES = """
  python train.py                                      the same as --optimizer meta
  python train.py --optimizer adam --model.lr 0.01     another arm, at another rate
  python train.py --optimizer meta --print_config      what an arm is made of
  python train.py --ckpt_path CHECKPOINT               continue a run that was stopped
  python train.py test --ckpt_path CHECKPOINT          test a run again
  python train.py fit --help                           every option, of Lightning's Trainer too
  python train.py --model.help MetaModule              the options of a module

  --trainer.max_epochs EPOCHS, --seed_everything SEED, --model.lr RATE, from which the arm starts; `meta` needs none"""


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        end(f"error: {message}", 2)


def one_run() -> Parser:
    """Return the parser of what `train.py` reads itself; the rest is Lightning's."""
    parser = Parser(
        prog="train.py",
        usage=USAGE,
        description="Train one arm on mnist1d, test it once, keep the run in MLflow. Later options win.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("--optimizer", type=arm, action="append", default=[], metavar="ARM", help=" ".join(ARMS))
    add("--task", type=task, action="append", default=[], metavar="TASK", help=" ".join(TASKS))
    add("-c", "--config", action="append", default=[], metavar="FILE", help="YAML: an arm of your own, or options")
    add("--ckpt_path", metavar="CHECKPOINT", help="to resume, validate or test")
    return parser


def label(name: str) -> str:
    """Return the name of an arm if store, tables and figures show it as it is; else raise ArgumentTypeError."""
    if re.fullmatch(r"[^\W\d_][\w .+-]*", name) and name.lower() not in WORDS:
        return name
    raise argparse.ArgumentTypeError(
        f"{name!r} cannot be the name of an arm: rename the file. A name begins with a letter, has letters, digits, "
        "blanks and _ . + - alone, and is not a word like None or true."
    )


def better(before: str, word: str) -> str | None:
    """Return what was meant by a word that is not an option here, or None. before: the word before it."""
    if word.startswith("--"):
        return MEANT.get(word[2:].split("=")[0].replace("-", "_"))
    value_of_an_option = before.startswith("--") and "=" not in before
    return f"--config {word}" if word.endswith((".yaml", ".yml")) and not value_of_an_option else None


def one_of(names: Sequence[str], kind: str) -> Callable[[str], str]:
    """Return a reader of one of the names, or of an existing YAML file if `kind` says so; an error has the nearest."""

    def read(text: str) -> str:
        file = text.endswith((".yaml", ".yml"))
        if text in names or ("file" in kind and file and Path(text).is_file() and label(Path(text).stem)):
            return text
        near = "".join(f" Did you mean {name}?" for name in get_close_matches(text, names, 1))
        near = f" A file is given as --config {text}." if file and "file" not in kind else near
        raise argparse.ArgumentTypeError(f"unknown {kind} {text!r}.{near} Choose from: {', '.join(names)}.")

    return read


def number(kind: type[int] | type[float], valid: Callable[[Any], bool], words: str) -> Callable[[str], Any]:
    """Return a reader of a number that is valid; `words` say what it must be."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not valid(value):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
        return value

    return read


arm, task, arm_or_file = one_of(ARMS, "arm"), one_of(TASKS, "task"), one_of(ARMS, "arm or file")
positive = number(int, lambda value: value >= 1, "a whole number of 1 or more")
seed = number(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1")
rate = number(float, lambda value: 0 < value < math.inf, "a positive finite number")


def arm_options(name: str) -> list[str]:
    """Return the options of `train.py` for the name of an arm or a file."""
    return ["--optimizer", name] if name in ARMS else ["--config", name]


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
