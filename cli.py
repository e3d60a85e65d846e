"""The command line: arms as presets, errors of one line, a help whose first screen is ours."""

import argparse
import re
import sys
from typing import Any, ClassVar

from jsonargparse._actions import ActionConfigFile
from jsonargparse._formatters import DefaultHelpFormatter
from pytorch_lightning.cli import LightningArgumentParser

from tracking import ROOT

CONFIGS = ROOT / "configs"
ARMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")
HEADLINE = ["meta", "meta_onestep", "meta_seed", "adam", "cosine"]  # what is compared where nothing else is named
TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
DEFAULT_ARM = "meta"
SUBCOMMANDS = ("fit", "validate", "test", "predict")
QUIET = "--trainer.enable_progress_bar=false"  # of a run among many: there is one bar for all
USAGE = "python train.py [fit | validate | test | predict] [options]"
DESCRIPTION = """Train one arm on mnist1d, test it once, keep the run in MLflow.

  python train.py                                      the same as --optimizer meta
  python train.py --optimizer adam --model.lr 0.01     another arm, at another rate
  python train.py --config my_arm.yaml                 an arm of your own, over configs/base.yaml
  python train.py --optimizer meta --print_config      what an arm is made of
  python train.py test --ckpt_path CHECKPOINT          Lightning's own: fit (the default), validate, test, predict

  --model.lr RATE       the learning rate that the arm starts from, or keeps; `meta` reads none
  --model.help NAME     the options of a module: Classifier, MetaClassifier, OneStepClassifier, DescentClassifier
  --trainer.max_epochs EPOCHS, --seed_everything SEED, and all that Lightning's Trainer takes

Later options win. Two arms on one line are refused."""


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description."""


def one_line(message: str) -> str:
    """Fold jsonargparse's message to its facts: it repeats the types that it tried, and the value."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value type")
    facts = [line.strip() for line in message.splitlines() if line.strip() and not line.strip().startswith(noise)]
    return " ".join(facts).rstrip(".") + "."


class Parser(LightningArgumentParser):
    """One line an error, and the help that shows more."""

    given: ClassVar[list[str]] = []

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print what is wrong and exit with status 2."""
        print(f"train.py: error: {self._name_option(one_line(message))} See: python train.py --help", file=sys.stderr)
        raise SystemExit(2)

    def _name_option(self, message: str) -> str:
        """Put the option in front where the message has the last part of its name alone."""
        key = re.search(r"""(?:Parser key|Option) ['"](\w+)['"]""", message)
        options = [argument.split("=")[0] for argument in self.given if argument.startswith("--")]
        named = [option for option in options if key and option.endswith(f".{key[1]}")]
        return f"{named[0]}: {message}" if named else message


class Preset(argparse.Action):
    """`--optimizer NAME` reads `configs/NAME.yaml`, `--task NAME` `configs/tasks/NAME.yaml`, as `--config` would."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Apply the file, once."""
        if namespace.get(self.dest):
            kind = "arm" if self.dest == "optimizer" else self.dest
            parser.error(f"--{self.dest} was given twice ({namespace[self.dest]}, {value}): name one {kind}.")
        namespace[self.dest] = value
        folder = CONFIGS / "tasks" if self.dest == "task" else CONFIGS
        ActionConfigFile.apply_config(parser, namespace, "config", str(folder / f"{value}.yaml"))


def sweep_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for a command of many runs: what it does not know goes on to every run."""
    epilog = "Options not listed here go on to every run: see train.py --help."
    return argparse.ArgumentParser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)


def parse_sweep(parser: argparse.ArgumentParser, args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the parser's own options, and the rest, which goes on to every run."""
    own, rest = parser.parse_known_args(args)
    if any(argument.startswith("--trainer.logger") for argument in rest):
        parser.error("--trainer.logger cannot be given here: the runs are read back from this project's MLflow store")
    return own, rest


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)
