"""Names, help texts and options shared by the commands. Imports neither torch nor YAML, so `--help` is fast."""

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
# files written by tuning and read by arms
TUNED = {path.stem: path for path in (CONFIGS / "tuned").glob("*.yaml")}
DEFAULT_ARM, DEFAULT_TASK = "meta", "mlp"
HEADLINE = ["meta", "meta_onestep", "meta_original", "adam", "cosine"]
STAGES = re.findall(r"^(\w+):", Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8"), re.MULTILINE)
SUBCOMMANDS = ("fit", "validate", "test")
CORES = os.cpu_count() or 1
QUIET = "--trainer.enable_progress_bar=false"
REFUSED = {
    "--trainer.logger": "the runs are read back from this project's MLflow store",
    "--trainer.fast_dev_run": "it stores no run in MLflow; for a short run use --trainer.max_epochs=1",
    "--ckpt_path": "each run starts from its first step",
}
"""Options of `train.py` that commands with many runs refuse -> the reason."""
MEANT = {
    "lr": "--model.lr",
    "learning_rate": "--model.lr",
    "epochs": "--trainer.max_epochs",
    "max_epochs": "--trainer.max_epochs",
    "batch_size": "--data.batch_size",
    "seed": "--seed_everything",
}
"""Common names of options -> their names here."""
WORDS = ["none", "null", "nan", "na", "inf", "infinity", "true", "false", "yes", "no", "on", "off", "y", "n"]
"""Names that YAML, pandas or MLflow would read as a value."""
EVERY_RUN = "Options not listed here apply to every run: see train.py --help."
RETRAIN = "train all runs again (default: reuse stored runs with the same configuration, code and data)"
USAGE = "python train.py [fit | validate | test] [options]"
EXAMPLES = """
  python train.py                                      the same as --optimizer meta
  python train.py --optimizer adam --model.lr 0.01     another arm, another learning rate
  python train.py --optimizer meta --print_config      print the configuration of an arm
  python train.py --ckpt_path CHECKPOINT               resume an interrupted run
  python train.py test --ckpt_path CHECKPOINT          test a run again
  python train.py fit --help                           all options, including Lightning's
  python train.py --model.help MetaModule              the options of a module

Common options: --trainer.max_epochs EPOCHS, --seed_everything SEED, --model.lr RATE (`meta` needs none)"""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        end(f"error: {message}", 2)


def one_run() -> Parser:
    """Return the parser of the options that `train.py` reads itself; Lightning parses the others."""
    parser = Parser(
        prog="train.py",
        usage=USAGE,
        description="Train one arm, test it once, store the run in MLflow. Later options override earlier ones.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("--optimizer", type=arm, action="append", default=[], metavar="ARM", help=f"training method: {' '.join(ARMS)}")
    add("--task", type=task, action="append", default=[], metavar="TASK", help=f"data and network: {' '.join(TASKS)}")
    add("-c", "--config", action="append", default=[], metavar="FILE", help="YAML file: an arm of your own, or options")
    add("--ckpt_path", metavar="CHECKPOINT", help="checkpoint to resume, validate or test")
    return parser


def label(name: str) -> str:
    """Return the name of an arm, or raise ArgumentTypeError if MLflow, tables or figures would alter it."""
    if re.fullmatch(r"[^\W\d_][\w .+-]*", name) and name.lower() not in WORDS:
        return name
    raise argparse.ArgumentTypeError(
        f"{name!r} cannot be the name of an arm: rename the file. A name starts with a letter, contains only "
        "letters, digits, blanks and _ . + -, and is not a word like None or true."
    )


def better(before: str, word: str) -> str | None:
    """Return the option that an unknown word probably stands for, or None. before: the preceding word."""
    if word.startswith("--"):
        return MEANT.get(word[2:].split("=")[0].replace("-", "_"))
    value_of_an_option = before.startswith("--") and "=" not in before
    return f"--config {word}" if word.endswith((".yaml", ".yml")) and not value_of_an_option else None


def one_of(names: Sequence[str], kind: str) -> Callable[[str], str]:
    """Return a parser of one of the names or, if `kind` contains "file", of the path of an existing YAML file."""

    def read(text: str) -> str:
        file = text.endswith((".yaml", ".yml"))
        if text in names or ("file" in kind and file and Path(text).is_file() and label(Path(text).stem)):
            return text
        near = "".join(f" Did you mean {name}?" for name in get_close_matches(text, names, 1))
        near = f" A file is given as --config {text}." if file and "file" not in kind else near
        raise argparse.ArgumentTypeError(f"unknown {kind} {text!r}.{near} Choose from: {', '.join(names)}.")

    return read


def number(kind: type[int] | type[float], valid: Callable[[Any], bool], words: str) -> Callable[[str], Any]:
    """Return a parser of a valid number; `words` describe it in the error message."""

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
    """Return the options of `train.py` that select an arm by its name or file."""
    return ["--optimizer", name] if name in ARMS else ["--config", name]


def parse_many(
    parser: Parser, args: Sequence[str] | None, refused: Mapping[str, str]
) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's own options and those for every run; refuse the keys of REFUSED and `refused`."""
    own, rest = parser.parse_known_args(args)
    for option, reason in (REFUSED | dict(refused)).items():
        if any(word.split("=")[0].startswith(option) for word in rest):
            parser.error(f"{option} cannot be given here: {reason}")
    return own, rest


def command(prog: str, args: Sequence[str] | None) -> str:
    """Return the command line, without passwords."""
    # imported here: `--help` must not wait for MLflow
    from tracking.store import hidden

    return f"python {prog} {shlex.join(map(hidden, sys.argv[1:] if args is None else args))}".strip()
