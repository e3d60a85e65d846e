"""Train one arm, test it once, keep the run in MLflow: `python train.py --optimizer meta`."""

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers.logger import DummyLogger

from callbacks import DivergenceError, SaveConfigArtifact
from cli import ARMS, CONFIGS, DEFAULT_ARM, DESCRIPTION, SUBCOMMANDS, TASKS, USAGE, HelpFormatter, Parser, Preset
from data.tensors import TensorDataModule
from lightning_modules import Classifier
from tracking import StoreError, Tracker, client, find_run, how_to_see, open_experiment


class TrainCLI(LightningCLI):
    """Lightning's command line, with arms as presets and a test at the end of `fit`.

    `run_id` is the MLflow run, `diverged` the message of a run that did, `test_metrics` what the test found.
    """

    run_id: str | None = None
    diverged: str | None = None
    test_metrics: Mapping[str, float] = MappingProxyType({})

    def __init__(self, args: list[str], tags: dict[str, str], test: bool, reuse: bool) -> None:
        self.given, self.tags, self.reads_test_set, self.reuse = args, tags, test, reuse
        command = {"default_config_files": [str(CONFIGS / "base.yaml")], "usage": USAGE}
        super().__init__(
            Classifier,
            TensorDataModule,
            parser_class=Parser,
            parser_kwargs={name: dict(command) for name in SUBCOMMANDS}
            | {"fit": command | {"description": DESCRIPTION}, "formatter_class": HelpFormatter, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # its own --optimizer takes torch classes, and overrides the module's
            save_config_callback=SaveConfigArtifact,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put ours before the Trainer's, so that the first screen of the help shows them."""
        parser.add_argument("--optimizer", action=Preset, choices=ARMS, help=f"the arm, {DEFAULT_ARM} by default")
        parser.add_argument("--task", action=Preset, choices=TASKS, help="the data and the network, mlp by default")
        parser.add_lightning_class_args(Classifier, "model", subclass_mode=True)
        parser.add_lightning_class_args(TensorDataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was given to `main`; refuse what would fail later or do nothing."""
        Parser.given = self.given
        self.config = parser.parse_args(self.given)
        command = self.config[self.config.subcommand]
        if command.trainer.max_epochs == 0:
            parser.error("--trainer.max_epochs must be 1 or more, got 0: nothing would be trained.")
        keywords = (None, "best", "last", "hpc")  # Lightning's own
        if command.ckpt_path not in keywords and not Path(command.ckpt_path).is_file():
            parser.error(f"--ckpt_path: there is no file {command.ckpt_path}. A run prints where its checkpoint lies.")

    def _parse_ckpt_path(self) -> None:
        """Take the model's configuration from the checkpoint."""
        try:
            super()._parse_ckpt_path()
        except Exception as error:  # a file that is none fails in many ways
            path = self.config[self.config.subcommand].ckpt_path
            self.parser.error(f"--ckpt_path: {path} cannot be read as a checkpoint: {type(error).__name__}.")

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
        self._dump_config()
        self.digest = digest(self.config_dump)
        tags = {
            "optimizer": arm,
            "task": command.task or "mlp",
            "seed": str(command.seed_everything),
            "config": self.digest,
        } | self.tags
        logger = command.trainer.logger
        if isinstance(logger, Namespace) and logger.class_path == "tracking.Tracker":
            logger.init_args.run_name = logger.init_args.run_name or arm
            logger.init_args.tags = (logger.init_args.tags or {}) | tags

    def instantiate_classes(self) -> None:
        """Build everything before a run begins; a value that a class refuses is the user's to mend."""
        try:
            super().instantiate_classes()
            if self.trainer.world_size > 1:
                raise ValueError("--trainer.devices must be 1: hypergradients are not averaged over processes yet.")
        except (ValueError, StoreError, MisconfigurationException) as error:
            self.parser.error(str(innermost(error)))

    def after_instantiate_classes(self) -> None:
        """Put the model's configuration into its checkpoints: `--ckpt_path` alone brings a run back."""
        model = self.config_dump["model"]
        origin = {"_class_path": model["class_path"], "_instantiator": "pytorch_lightning.cli.instantiate_module"}
        self.model.save_hyperparameters(origin | model["init_args"], logger=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Train, unless the same run is there already and may serve again."""
        logger = self.trainer.logger
        self.run_id = find_run(logger.name, self.digest) if self.reuse and isinstance(logger, Tracker) else None
        if self.run_id:
            return
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
            [self.test_metrics] = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    def report(self) -> None:
        """Print what came out, and where it is to be seen."""
        if self.diverged:
            print(self.diverged, file=sys.stderr)
        logger, run_id = self.trainer.logger, self.run_id
        metrics = client().get_run(run_id).data.metrics if run_id else dict(self.test_metrics)
        names = [name for name in ("val/loss", "test/loss", "test/accuracy", "test/r2") if name in metrics]
        if names and not self.diverged:
            print(", ".join(f"{name} {metrics[name]:.4f}" for name in names))
        if "lr" in metrics:
            print(f"the learning rate ended at {metrics['lr']:.3g}")
        if path := getattr(self.trainer.checkpoint_callback, "best_model_path", None):
            print(f"checkpoint  {path}")
        if run_id and isinstance(logger, Tracker):
            print(f"MLflow run  {run_id}\nsee it      {how_to_see(open_experiment(logger.name), run_id)}")


def digest(config: dict[str, Any]) -> str:
    """Identify what a run computes: its configuration less what only shows or stores it."""
    aside = {"logger", "enable_progress_bar", "enable_model_summary", "default_root_dir"}
    trainer = {key: value for key, value in config["trainer"].items() if key not in aside}
    facts = {key: config[key] for key in ("seed_everything", "model", "data")} | {"trainer": trainer}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def innermost(error: BaseException) -> BaseException:
    """Follow `raise ... from` to the class that refused a value: jsonargparse wraps what it said."""
    return innermost(error.__cause__) if isinstance(error.__cause__, ValueError | StoreError) else error


def main(
    args: list[str] | None = None, tags: dict[str, str] | None = None, test: bool = True, reuse: bool = False
) -> TrainCLI:
    """Run the command line `args` (None: the process's own) and return what it built.

    tags: more of them for the MLflow run. test: whether `fit` reads the test set at its end. reuse: whether a finished
    run of the same configuration may stand for this one.

    Raises:
        SystemExit: status 2 where the arguments are wrong, before anything was trained.
    """
    given = list(sys.argv[1:] if args is None else args)
    command = [given.pop(0)] if given and given[0] in SUBCOMMANDS else ["fit"]
    if not any(argument.split("=")[0] in ("--optimizer", "--config", "-c") for argument in given):
        given = ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml"), *given]
    return TrainCLI(command + given, tags or {}, test, reuse)


def quiet() -> None:
    """Silence what a user of this project can do nothing about."""
    for name in ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # of Lightning, about torch
    for message in ("The dirpath has changed", "Checkpoint directory"):  # each run saves in a folder of its own
        warnings.filterwarnings("ignore", message)


def script(command: Callable[[], Any]) -> None:
    """Run a command as a process; what its user can mend gives a line and a status, not a traceback."""
    quiet()
    name = Path(sys.argv[0]).name
    try:
        command()
    except StoreError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was done is kept.", file=sys.stderr)
        sys.exit(130)  # as shells have it


def train_and_report() -> None:
    """Train as the command line says, and print what came out; status 1 where it diverged."""
    cli = main()
    cli.report()
    if cli.diverged:
        sys.exit(1)


if __name__ == "__main__":
    script(train_and_report)
