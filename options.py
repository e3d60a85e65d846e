"""What every command knows before torch is imported: the arms, the tasks, and the text of the help."""

import argparse
import math
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONFIGS = ROOT / "configs"
ARMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")
HEADLINE = ["meta", "meta_onestep", "meta_seed", "adam", "cosine"]  # what is compared where nothing else is named
TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
DEFAULT_ARM = "meta"
SUBCOMMANDS = ("fit", "validate", "test", "predict")
QUIET = "--trainer.enable_progress_bar=false"  # of a run among many: there is one bar for all
USAGE = "python train.py [fit | validate | test | predict] [options]"


def _choices(option: str, names: list[str]) -> str:
    start = f"  {option:<22}"
    return textwrap.fill(" ".join(names), 110, initial_indent=start, subsequent_indent=" " * len(start))


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
  --model.lr RATE       the learning rate that the arm starts from, or keeps; `meta` reads none
  --model.help NAME     the options of a module: Classifier, MetaClassifier, OneStepClassifier, DescentClassifier
  --trainer.max_epochs EPOCHS, --seed_everything SEED, and all that Lightning's Trainer takes

Later options win. Two arms on one line are refused."""


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


def arm_or_file(text: str) -> str:
    """Read the name of an arm, or the path of a YAML file that is one."""
    if text not in ARMS and not (text.endswith((".yaml", ".yml")) and Path(text).is_file()):
        raise argparse.ArgumentTypeError(f"there is no arm, and no YAML file, {text!r}. Choose from {', '.join(ARMS)}")
    return text


def arm_file(arm: str) -> Path:
    """Return the configuration file of an arm."""
    return CONFIGS / f"{arm}.yaml" if arm in ARMS else Path(arm)


def preset(arm: str) -> list[str]:
    """Return the options of `train.py` that take an arm."""
    return ["--optimizer", arm] if arm in ARMS else ["--config", arm]


def rate(text: str) -> float:
    """Read a learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive finite number, got {text!r}")
    return value
