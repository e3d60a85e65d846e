"""Lightning's command line with arms as presets: one test at the end, errors of one line, a run in MLflow."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse._actions import ActionConfigFile
from jsonargparse.typing import PositiveInt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from mlflow.exceptions import MlflowException
from pytorch_lightning import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers.logger import DummyLogger

from callbacks import DivergenceError, LogDataset, LogModel, SaveConfigArtifact
from callbacks.config import flat
from data.tensors import TensorDataModule
from lightning_modules import Classifier, SearchClassifier
from options import ARMS, CONFIGS, DEFAULT_ARM, TASKS, USAGE
from store import StoreError, client, close_broken_off, find_run, how_to_see, run_of
from tracking import Tracker


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


class TrainCLI(LightningCLI):
    """Lightning's command line, with arms as presets and a test at the end of `fit`.

    `run_id` is the MLflow run, `diverged` the message of a run that did, `test_metrics` what the test found.
    """

    run_id: str | None = None
    diverged: str | None = None
    test_metrics: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self, args: list[str], tags: dict[str, str], test: bool, reuse: bool, callbacks: Sequence[Callback]
    ) -> None:
        Parser.given, self.tags, self.reads_test_set, self.reuse, self.callbacks = args, tags, test, reuse, callbacks
        command = {"default_config_files": [str(CONFIGS / "base.yaml")], "usage": USAGE}
        super().__init__(
            Classifier,
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

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put ours before the Trainer's, so that the first screen of the help shows them."""
        parser.add_argument("--optimizer", action=Preset, choices=ARMS, help=f"the arm, {DEFAULT_ARM} by default")
        parser.add_argument("--task", action=Preset, choices=TASKS, help="the data and the network, mlp by default")
        parser.add_argument("--threads", type=PositiveInt, default=1, help="another count gives other last digits")
        parser.add_argument("--log-model", action="store_true", help="keep the network as an MLflow model too")
        parser.add_lightning_class_args(Classifier, "model", subclass_mode=True)
        parser.add_lightning_class_args(TensorDataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was given to `main`; refuse what would fail later or do nothing."""
        self.config = parser.parse_args(Parser.given)
        command = self.config[self.config.subcommand]
        if command.trainer.max_epochs == 0:
            parser.error("--trainer.max_epochs must be 1 or more, got 0: nothing would be trained.")
        keywords = (None, "best", "last", "hpc")  # Lightning's own
        if command.ckpt_path not in keywords and not Path(command.ckpt_path).is_file():
            parser.error(f"--ckpt_path: there is no file {command.ckpt_path}. A run prints where its checkpoint lies.")

    def _parse_ckpt_path(self) -> None:
        """Take the model's configuration from the checkpoint; refuse one of another arm than the command line's."""
        command = self.config[self.config.subcommand]
        if not command.ckpt_path or not Path(command.ckpt_path).is_file():
            return
        said = self._model_params()
        try:
            super()._parse_ckpt_path()
        except Exception as error:  # a file that is none fails in many ways
            self.parser.error(
                f"--ckpt_path: {command.ckpt_path} cannot be read as a checkpoint: {type(error).__name__}."
            )
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

    def before_instantiate_classes(self) -> None:
        """Name the run after its arm and tag it."""
        command = self.config[self.subcommand]
        files = [Path(str(file)) for file in command.config or []]
        arm = command.optimizer or next(file.stem for file in reversed(files) if file.parent.name != "tasks")
        torch.set_num_threads(command.threads)
        self._dump_config()
        self.digest = digest(self.config_dump)
        goes_on = None
        if self.subcommand == "fit" and command.ckpt_path:
            goes_on = run_of(str(command.ckpt_path), self.digest)
            if not goes_on:  # it begins with weights of another configuration: no run for `find_run`
                self.digest += " from a checkpoint"
        tags = {
            "optimizer": arm,
            "task": command.task or "mlp",
            "seed": str(command.seed_everything),
            "draw": str(command.data.init_args.get("draw", 0)),
            "config": self.digest,
        } | self.tags
        logger = command.trainer.logger
        if isinstance(logger, Namespace) and logger.class_path == "tracking.Tracker":
            logger.init_args.run_name = logger.init_args.run_name or arm
            logger.init_args.tags = (logger.init_args.tags or {}) | tags
            logger.init_args.run_id = logger.init_args.run_id or goes_on

    def instantiate_classes(self) -> None:
        """Build everything before a run begins; a value that a class refuses is the user's to mend."""
        try:
            super().instantiate_classes()
            if isinstance(self.model, SearchClassifier):
                self.model.require_one_process(self.trainer.world_size)
        except (ValueError, StoreError, MisconfigurationException) as error:
            self.parser.error(str(innermost(error)))

    def after_instantiate_classes(self) -> None:
        """Put the model's configuration into its checkpoints: `--ckpt_path` alone brings a run back."""
        model = [LogModel()] if self.config[self.subcommand].log_model else []
        self.trainer.callbacks += [LogDataset(), *model, *self.callbacks]  # type: ignore[attr-defined]
        model = self.config_dump["model"]
        origin = {"_class_path": model["class_path"], "_instantiator": "pytorch_lightning.cli.instantiate_module"}
        self.model.save_hyperparameters(origin | model["init_args"], logger=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Train, unless the same run is there already and may serve again."""
        logger = self.trainer.logger
        self.run_id = find_run(logger.name, self.digest) if self.reuse and isinstance(logger, Tracker) else None
        if self.run_id:
            return
        if "mlflow.parentRunId" in self.tags and isinstance(logger, Tracker):
            close_broken_off(logger.name, self.digest)
        try:
            super()._run_subcommand(subcommand)
        except MisconfigurationException as error:  # Lightning's, before anything ran
            self.parser.error(str(error))
        except DivergenceError as error:
            self.diverged = str(error)
            if isinstance(logger, Tracker):
                logger.experiment.set_tag(logger.run_id, "diverged", self.diverged)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            if isinstance(logger, Tracker):
                logger.experiment.set_terminated(logger.run_id, "KILLED")
            raise KeyboardInterrupt from None  # Lightning makes an exit of Ctrl-C, which callers could not tell apart
        if isinstance(logger, Tracker):
            self.run_id = logger.run_id

    def after_fit(self) -> None:
        """Read the test set, once, with the weights of the last step."""
        if self.reads_test_set and not isinstance(self.trainer.logger, DummyLogger):  # Lightning's, in fast_dev_run
            tested = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            self.test_metrics = tested[0] if tested else {}  # none with --trainer.limit_test_batches=0

    def report(self) -> None:
        """Print what came out, and where it is to be seen; of several processes, the first one does."""
        if not self.trainer.is_global_zero:
            return
        if self.diverged:
            print(self.diverged, file=sys.stderr)
        logger, run_id = self.trainer.logger, self.run_id
        metrics = dict(self.test_metrics)
        with suppress(MlflowException):  # a server that has gone away; the rest is printed all the same
            metrics = client().get_run(run_id).data.metrics if run_id else metrics
        names = [name for name in ("val/loss", "test/loss", "test/accuracy", "test/r2") if name in metrics]
        if names and not self.diverged:
            print(", ".join(f"{name} {metrics[name]:.4f}" for name in names))
        if "lr" in metrics:
            print(f"the learning rate ended at {metrics['lr']:.3g}")
        if path := getattr(self.trainer.checkpoint_callback, "best_model_path", None):
            print(f"checkpoint  {path}")
        if run_id and isinstance(logger, Tracker):
            print(f"MLflow run  {run_id}\nsee it      {how_to_see(str(logger.experiment_id), run_id)}")


def digest(config: dict[str, Any]) -> str:
    """Identify what a run computes: its configuration less what only shows or stores it."""
    aside = {"logger", "enable_progress_bar", "enable_model_summary", "default_root_dir"}
    trainer = {key: value for key, value in config["trainer"].items() if key not in aside}
    facts = {key: config[key] for key in ("seed_everything", "threads", "model", "data")} | {"trainer": trainer}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def innermost(error: BaseException) -> BaseException:
    """Follow `raise ... from` to the class that refused a value: jsonargparse wraps what it said."""
    return innermost(error.__cause__) if isinstance(error.__cause__, ValueError | StoreError) else error
