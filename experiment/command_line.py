"""The command line of one run: what Lightning's and jsonargparse's parsers need to be talked into.

Arms and tasks as presets, our options before the Trainer's, one line an error, a checkpoint checked against the line.
"""

import argparse
import re
import sys
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse._actions import ActionConfigFile
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from callbacks import LogInputs
from callbacks.config import flat
from data.tensors import TensorDataModule
from experiment.line import did_you_mean, option_value, presets_first, require_one_arm
from experiment.presets import ARMS, BASE, CONFIGS, DEFAULT_ARM, TASKS, USAGE
from lightning_modules import MLP, MetaModule, OneStepModule, SearchDecayModule, SupervisedModule


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
        command = Path(sys.argv[0]).name
        print(f"{command}: error: {self._name_option(one_line(message))} See: python {command} --help", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Leave out the hundreds of torch's classes that a network or an optimizer could be."""
        text: str = super().format_help(formatter)
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", text)

    def _name_option(self, message: str) -> str:
        """Put the option in front where the message has the last part of its name alone."""
        key = re.search(r"""(?:Parser key|Option) ['"](\w+)['"]""", message)
        options = [argument.split("=")[0] for argument in self.given if argument.startswith("--")]
        named = [option for option in options if key and option.endswith(f".{key[1]}")]
        unknown = re.search(r"unrecognized arguments: \S*?(\w+)(?:=|\s|\.?$)|Option '(\w+)' is not accepted", message)
        hint = did_you_mean(unknown[1] or unknown[2], self.names()) if unknown else ""
        return f"{named[0]}: {message}{hint}" if named else message + hint

    @staticmethod
    def names() -> list[str]:
        """Return the options that a typed one is most often meant to be: the parts of names in the arms' files."""
        text = "\n".join(file.read_text(encoding="utf-8") for file in CONFIGS.rglob("*.yaml"))
        modules = (MetaModule, OneStepModule, SearchDecayModule, Trainer, MLP)
        return [*re.findall(r"(\w+):", text), *(name for module in modules for name in signature(module).parameters)]


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
        super().__init__(
            SupervisedModule,
            TensorDataModule,
            parser_class=Parser,
            parser_kwargs={args[0]: {"usage": USAGE}, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # its own --optimizer takes torch classes, and overrides the module's
            save_config_callback=LogInputs,
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
        command, *options = Parser.given
        try:
            require_one_arm(options)
        except ValueError as error:
            parser.error(str(error))
        # no default_config_files: of those, another class would take over the defaults of the class that is replaced
        self.config = parser.parse_args([command, "--config", str(BASE), *presets_first(options)])
        self.command.config = self.command.config[1:]
        self._require_training(parser)
        path = self.command.ckpt_path  # not Lightning's words `best`, `last`, `hpc` either: they may begin anew, unsaid
        if path and not Path(path).is_file():
            parser.error(f"--ckpt_path: there is no file {path}. A run prints where its checkpoint lies.")
        if not path and self.config.subcommand != "fit":
            parser.error(f"{self.config.subcommand} needs --ckpt_path: an untrained network says nothing.")

    def _require_training(self, parser: LightningArgumentParser) -> None:
        """Refuse options under which nothing would be trained, or for ever."""
        trainer = self.command.trainer
        for option, least in {
            "max_epochs": "1 or more",
            "max_steps": "1 or more",
            "limit_train_batches": "above 0",
        }.items():
            if trainer.get(option) == 0:
                parser.error(f"--trainer.{option} must be {least}, got 0: nothing would be trained.")
        if trainer.max_epochs == -1 and trainer.get("max_steps", -1) == -1 and not trainer.get("max_time"):
            parser.error("--trainer.max_epochs -1 has no end: give --trainer.max_steps or --trainer.max_time too.")

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
        named = option_value(Parser.given, "--optimizer") is not None or self.config.subcommand == "fit"
        training = ["model", "model.optimizer", "model.schedule"] if named else []
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
