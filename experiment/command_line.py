"""The command line of one run: an arm and a task become the first --config files of Lightning's CLI."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import PositiveInt
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from callbacks import LogInputs
from data.tensors import TensorDataModule
from experiment import options
from experiment.options import BASE, CONFIGS, DEFAULT_ARM, DEFAULT_TASK
from experiment.process import refusing
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

    An arm is `--optimizer NAME`, or a YAML file that names the module's class; there is one. `validate` and `test` take
    the arm and the data of the run that wrote the checkpoint.

    Raises:
        SystemExit: status 2, with one line, where the arguments are wrong.
    """
    words = list(args)
    command = words.pop(0) if words and words[0] in options.SUBCOMMANDS else "fit"
    parser = options.one_run()
    own, rest = parser.parse_known_args(words)
    if own.ckpt_path and not Path(own.ckpt_path).is_file():
        parser.error(f"--ckpt_path: no file {own.ckpt_path}. A run prints the path of its checkpoint.")
    # name -> the options that are the arm; the other files are read over it
    arms = {name: ["--config", str(CONFIGS / f"{name}.yaml")] for name in own.optimizer}
    tasks, over = list(own.task), []
    for file in own.config:
        with refusing(f"--config: {file} cannot be read: "):
            said = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            parser.error(f"--config: {file} is not a mapping with `model:`, `data:` or `trainer:`")
        if isinstance(said.get("model"), dict) and "class_path" in said["model"]:
            arms[said.get("optimizer") or Path(file).stem] = ["--config", file]
        else:
            over += ["--config", file]
        tasks += [said["task"]] if said.get("task") and not own.task else []
    if command != "fit" and own.ckpt_path and (trained := config_of(own.ckpt_path)):
        parts = ("seed_everything", "model", "data")
        # not as JSON, whose Infinity is a word to YAML
        arms[trained["arm"]] = [f"--{part}={yaml.safe_dump(trained[part], default_flow_style=True)}" for part in parts]
        tasks.append(trained["task"])
    elif command != "fit" and not arms:
        parser.error(f"{command} needs --ckpt_path of a run in MLflow, or an arm (--optimizer) and --ckpt_path.")
    arms = arms or {DEFAULT_ARM: ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml")]}
    for kind, found in (("arms", arms), ("tasks", own.task)):
        if len(found) > 1:
            parser.error(f"{' and '.join(found)} are two {kind}: a run has one. Compare them by compare.py.")
    [(name, arm)], task = arms.items(), (tasks or [DEFAULT_TASK])[0]
    chosen = ["--config", str(CONFIGS / "tasks" / f"{task}.yaml")] if own.task else []
    labels = [f"--optimizer={name}", f"--task={task}"]
    return Line(command, name, task, own.ckpt_path, ["--config", str(BASE), *arm, *chosen, *over, *labels, *rest])


class CommandLine(LightningCLI):
    """Lightning's CLI without subcommands: it parses, and builds the module, the data module and the Trainer."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            SupervisedModule,
            TensorDataModule,
            parser_kwargs={"usage": options.USAGE, "allow_abbrev": False, "exit_on_error": False},
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
