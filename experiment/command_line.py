"""The command line of one run: what Lightning's and jsonargparse's parsers need to be talked into.

Arms and tasks as presets, our options before the Trainer's, one line an error, a checkpoint checked against the line.
"""

import argparse
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse._actions import ActionConfigFile
from jsonargparse.typing import PositiveInt
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from callbacks import SaveConfigArtifact
from callbacks.config import flat
from data.tensors import TensorDataModule
from experiment.files import check_yaml
from experiment.presets import ARMS, CONFIGS, DEFAULT_ARM, TASKS, USAGE
from lightning_modules import SupervisedModule


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


class CommandLine(LightningCLI):
    """Lightning's command line with arms as presets; `args` begins with the subcommand."""

    def __init__(self, args: list[str]) -> None:
        Parser.given = args
        command = {"default_config_files": [str(CONFIGS / "base.yaml")], "usage": USAGE}
        super().__init__(
            SupervisedModule,
            TensorDataModule,
            parser_class=Parser,
            parser_kwargs={args[0]: command, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # its own --optimizer takes torch classes, and overrides the module's
            save_config_callback=SaveConfigArtifact,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the one that was given: parsers for all four cost more than the parsing."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == Parser.given[0]}

    @property
    def command(self) -> Any:
        """The options of the subcommand."""
        return self.config[self.config.subcommand]

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put ours before the Trainer's, so that the first screen of the help shows them."""
        parser.add_argument("--optimizer", action=Preset, choices=ARMS, help=f"the arm, {DEFAULT_ARM} by default")
        parser.add_argument("--task", action=Preset, choices=TASKS, help="the data and the network, mlp by default")
        parser.add_argument("--threads", type=PositiveInt, default=1, help="another count gives other last digits")
        parser.add_argument("--log-model", action="store_true", help="keep the network as an MLflow model too")
        parser.add_lightning_class_args(SupervisedModule, "model", subclass_mode=True)
        parser.add_lightning_class_args(TensorDataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was given; refuse what would fail later or do nothing."""
        for option, value in pairwise(["", *Parser.given, ""]):
            name, _, written = option.partition("=")
            if name in ("--config", "-c") and (path := Path(written or value)).is_file():
                try:
                    check_yaml(path)
                except ValueError as error:
                    parser.error(f"--config: {error}.")
        self.config = parser.parse_args(Parser.given)
        if self.command.trainer.max_epochs == 0:
            parser.error("--trainer.max_epochs must be 1 or more, got 0: nothing would be trained.")
        if self.command.trainer.get("limit_train_batches") == 0:
            parser.error("--trainer.limit_train_batches must be above 0: nothing would be trained.")
        path = self.command.ckpt_path  # not Lightning's words `best`, `last`, `hpc` either: they may begin anew, unsaid
        if path and not Path(path).is_file():
            parser.error(f"--ckpt_path: there is no file {path}. A run prints where its checkpoint lies.")
        if not path and self.config.subcommand != "fit":
            parser.error(f"{self.config.subcommand} needs --ckpt_path: an untrained network says nothing.")

    def _parse_ckpt_path(self) -> None:
        """Take the model's configuration from the checkpoint; refuse one of another arm than the command line's."""
        path = self.command.ckpt_path
        if not path or not Path(path).is_file():
            return
        said = self._model_params()
        try:
            super()._parse_ckpt_path()
        except Exception as error:  # a file that is none fails in many ways
            self.parser.error(f"--ckpt_path: {path} cannot be read as a checkpoint: {type(error).__name__}.")
        has = self._model_params()
        typed = [argument.split("=")[0][2:] for argument in Parser.given if argument.startswith("--model")]
        training = ["model", "model.optimizer", "model.schedule"] if self.config.subcommand == "fit" else []
        for name in training + typed:
            if said.get(name) != has.get(name):
                self.parser.error(
                    f"--ckpt_path: the checkpoint was trained with {name} {has.get(name)}, the command line says "
                    f"{said.get(name)}. Name the arm and the options of the run that wrote it."
                )

    def _model_params(self) -> dict[str, Any]:
        text = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        return flat("model", yaml.safe_load(text)[self.config.subcommand]["model"])

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            self.parser.error(f"--seed_everything: {error}")
