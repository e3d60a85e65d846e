"""The command line of one run: an arm and a task become the first --config files of Lightning's CLI."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse.typing import PositiveInt
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from callbacks import LogInputs
from data.tensors import TensorDataModule
from experiment import options
from experiment.options import BASE, CONFIGS, DEFAULT_ARM, DEFAULT_TASK, SUBCOMMANDS
from experiment.process import end
from lightning_modules import SupervisedModule
from tracking.runs import config_of


@dataclass(frozen=True)
class Line:
    """A command line: Lightning's command, the names of arm and task, and the options for Lightning's CLI."""

    command: str
    arm: str
    task: str
    checkpoint: str | None
    options: list[str]


def read(args: Sequence[str]) -> Line:
    """Put base, arm, task and the user's files before all other options, in any order they were typed.

    An arm is `--optimizer NAME`, or a YAML file that names the module's class; there is one. `validate`, `test` and
    `predict` take the arm and the data of the run that wrote the checkpoint.

    Raises:
        SystemExit: status 2, with one line, where the arguments are wrong.
    """
    words = list(args)
    command = words.pop(0) if words and words[0] in SUBCOMMANDS else "fit"
    parser = options.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--optimizer", type=options.arm, action="append", default=[])
    parser.add_argument("--task", type=options.task, action="append", default=[])
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    own, rest = parser.parse_known_args(words)
    if own.ckpt_path and not Path(own.ckpt_path).is_file():
        parser.error(f"--ckpt_path: no file {own.ckpt_path}. A run prints the path of its checkpoint.")
    files = {file: _mapping(parser, file) for file in own.config}
    named = {name: ["--config", str(CONFIGS / f"{name}.yaml")] for name in own.optimizer}
    arms = {file: said for file, said in files.items() if _is_arm(said)}
    named |= {said.get("optimizer") or Path(file).stem: ["--config", file] for file, said in arms.items()}
    trained = config_of(own.ckpt_path) if own.ckpt_path and command != "fit" else {}
    if trained:
        parts = ("seed_everything", "model", "data")
        # not as JSON, whose Infinity is a word to YAML
        named[trained["arm"]] = [f"--{part}={yaml.safe_dump(trained[part], default_flow_style=True)}" for part in parts]
    elif command != "fit" and not named:
        parser.error(f"{command} needs --ckpt_path of a run in MLflow, or an arm (--optimizer) and --ckpt_path.")
    named = named or {DEFAULT_ARM: ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml")]}
    if len(named) > 1:
        parser.error(f"{' and '.join(named)} are two arms: a run has one. Compare them by compare.py.")
    if len(own.task) > 1:
        parser.error(f"{' and '.join(own.task)} are two tasks: a run has one.")
    [(name, arm)] = named.items()
    tasks = own.task or [said["task"] for said in (trained, *files.values()) if said.get("task")] or [DEFAULT_TASK]
    task = ["--config", str(CONFIGS / "tasks" / f"{tasks[0]}.yaml")] if own.task else []
    over = [word for file in files if file not in arms for word in ("--config", file)]
    labels = [f"--optimizer={name}", f"--task={tasks[0]}"]
    ordered = ["--config", str(BASE), *arm, *task, *over, *labels, *rest]
    return Line(command, name, tasks[0], own.ckpt_path, ordered)


def _mapping(parser: options.Parser, file: str) -> dict[str, Any]:
    try:
        said = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config: {file} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(said, dict):
        parser.error(f"--config: {file} is not a mapping with `model:`, `data:` or `trainer:`")
    return said


def _is_arm(said: dict[str, Any]) -> bool:
    return isinstance(said.get("model"), dict) and "class_path" in said["model"]


class Parser(LightningArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2."""
        end(f"error: {' '.join(message.split())}", 2)


class CommandLine(LightningCLI):
    """Lightning's CLI without subcommands: it parses, and builds the module, the data module and the Trainer."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            SupervisedModule,
            TensorDataModule,
            parser_class=Parser,
            parser_kwargs={"usage": options.USAGE, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            # Lightning's own --optimizer takes torch's classes, and overrides the module's
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=LogInputs,
            run=False,
            args=args,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put our options before the Trainer's, so that the first screen of the help shows them."""
        parser.add_argument("--optimizer", help=f"the arm, {DEFAULT_ARM} by default: {', '.join(options.ARMS)}")
        parser.add_argument("--task", help=f"data and network, {DEFAULT_TASK} by default: {', '.join(options.TASKS)}")
        parser.add_argument("--threads", type=PositiveInt, default=1, help="another number gives other last digits")
        parser.add_lightning_class_args(SupervisedModule, "model", subclass_mode=True)
        parser.add_lightning_class_args(TensorDataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments, whatever stands in `sys.argv`."""
        self.config = parser.parse_args(args)
