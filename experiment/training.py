"""One run, from its options to its test: its name, its tags, how it goes on, how it ends, what is said of it."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import yaml
from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from callbacks import DivergenceError, LogModel, LogSearch, not_finite
from experiment.command_line import CommandLine, Parser
from experiment.digest import digest
from experiment.line import module_of, option_value
from experiment.options import typed
from experiment.presets import CONFIGS, DEFAULT_ARM, SUBCOMMANDS, color
from experiment.process import Terminated
from experiment.rehearsal import check_checkpoint, note_other_data, rehearse
from lightning_modules import SearchModule
from reporting.machine import machine
from tracking.logger import Tracker
from tracking.runs import close_broken_off, config_of, find_run, machine_tag, run_of
from tracking.store import StoreError, client


def train(
    args: Sequence[str],
    tags: dict[str, str] | None = None,
    test: bool = True,
    reuse: bool = False,
    callbacks: Sequence[Callback] = (),
) -> "Run":
    """Run the command line `args` of `train.py` and return what it built.

    tags: more of them for the MLflow run. test: whether `fit` reads the test set at its end. reuse: whether a finished
    run of the same configuration may stand for this one. callbacks: more of them.

    Raises:
        SystemExit: status 2 where the arguments are wrong, before anything was trained.
    """
    given = list(args)
    command = [given.pop(0)] if given and given[0] in SUBCOMMANDS else ["fit"]
    with tempfile.TemporaryDirectory() as folder:
        if not any(argument.split("=")[0] in ("--optimizer", "--config", "-c") for argument in given):
            given = ["--config", str(_untold(command, given, Path(folder))), *given]
        described = {"mlflow.note.content": f"`{typed('train.py', list(args))}`"} | (tags or {})
        return Run(command + given, described, test, reuse, callbacks)


def _untold(command: list[str], given: list[str], folder: Path) -> Path:
    """Return the file of the arm that nothing was said of: to train, the default; else that of the checkpoint's run.

    Its data too: a test reads the samples that belong to the training.
    """
    path = option_value(given, "--ckpt_path")
    config = config_of(path) if path and command != ["fit"] else {}
    if not config:
        return CONFIGS / f"{DEFAULT_ARM}.yaml"
    file = folder / f"{config['arm']}.yaml"
    parts = ("optimizer", "task", "seed_everything", "model", "data")
    file.write_text(yaml.safe_dump({name: config[name] for name in parts if name in config}), encoding="utf-8")
    return file


class Run(CommandLine):
    """A run as its command line says, with a test at the end of `fit`, kept in MLflow.

    `run_id` is the MLflow run, `goes_on` the one that broke off and is continued, `diverged` the message of a run that
    did, `test_metrics` what the test found.
    """

    run_id: str | None = None
    goes_on: str | None = None
    diverged: str | None = None
    test_metrics: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self, args: list[str], tags: dict[str, str], test: bool, reuse: bool, callbacks: Sequence[Callback]
    ) -> None:
        self.tags, self.reads_test_set, self.reuse, self.callbacks = tags, test, reuse, callbacks
        super().__init__(args)

    @property
    def tracker(self) -> Tracker | None:
        """The logger, where it is MLflow's."""
        logger = self.trainer.logger
        return logger if isinstance(logger, Tracker) else None

    def before_instantiate_classes(self) -> None:
        """Name the run after its arm and tag it."""
        command = self.command
        files = [Path(str(file)) for file in command.config or []]
        arm = command.optimizer or next((file.stem for file in files if module_of(file)), files[0].stem)
        torch.set_num_threads(command.threads)
        self._hand_over("gradient_clip_val", None)
        self._hand_over("accumulate_grad_batches", 1)
        self._dump_config()
        self.digest = digest(self.config_dump)
        named = arm
        if self.subcommand != "fit":  # no training that `find_run` may take for one
            self.digest, named = f"{self.digest} {self.subcommand}", f"{self.subcommand} {arm}"
        elif command.ckpt_path:
            self.goes_on = run_of(str(command.ckpt_path), self.digest)
            if not self.goes_on:  # it begins with weights of another configuration: no run for `find_run`
                self.digest += " from a checkpoint"
        tags = (
            {
                "optimizer": arm,
                "task": command.task or "mlp",
                "seed": str(command.seed_everything),
                "data_seed": str(command.data.init_args.get("seed", 0)),
                "config": self.digest,
                "trained_on": machine(),
            }
            | self.tags
            | machine_tag()
        )
        logger = command.trainer.logger
        if isinstance(logger, Namespace) and logger.class_path == "tracking.logger.Tracker":
            logger.init_args.run_name = logger.init_args.run_name or named
            logger.init_args.tags = (logger.init_args.tags or {}) | tags
            if logger.init_args.run_id:
                self.parser.error("--trainer.logger.run_id: a run goes on by --ckpt_path, a checkpoint of its own")
            logger.init_args.run_id = self.goes_on

    def _hand_over(self, option: str, default: Any) -> None:
        """Give a module that optimizes by hand what the Trainer would refuse to do for it."""
        own, trainer = self.command.model.init_args, self.command.trainer
        if option in own and trainer[option] != default:
            own[option], trainer[option] = trainer[option], default

    def instantiate_classes(self) -> None:
        """Build everything before a run begins; a value that a class refuses is the user's to mend."""
        try:
            super().instantiate_classes()
            if isinstance(self.model, SearchModule):
                self.model.require_one_process(self.trainer.world_size)
            if self.model.reads_validation and self.command.data.init_args.get("train_on_validation"):
                raise ValueError("--data.train_on_validation: this arm judges by the validation samples: use adam_all.")
        except (ValueError, StoreError, MisconfigurationException) as error:
            self.parser.error(str(innermost(error)))

    def after_instantiate_classes(self) -> None:
        """Put the model's configuration into its checkpoints: `--ckpt_path` alone brings a run back."""
        logs: list[Callback] = [LogModel()] if self.command.log_model else []
        logs += [LogSearch()] if isinstance(self.model, SearchModule) else []
        self.trainer.callbacks += [*logs, *self.callbacks]  # type: ignore[attr-defined]
        model = self.config_dump["model"]
        origin = {"_class_path": model["class_path"], "_instantiator": "pytorch_lightning.cli.instantiate_module"}
        if self.tracker and self.tracker.tags is not None:  # not among the options: YAML takes #0072b2 for a comment
            self.tracker.tags["mlflow.runColor"] = color(self.tracker.tags["optimizer"])
        typed = any(argument.split("=")[0] == "--model.lr" for argument in Parser.given)
        if typed and not self.model.reads_lr and "mlflow.parentRunId" not in self.tags:
            print("--model.lr is not read: this arm finds its rate before the first step", file=sys.stderr)
        self.model.save_hyperparameters(origin | model["init_args"], logger=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Train, unless the same run is there already and may serve again."""
        tracker = self.tracker
        if tracker and self.reuse and (found := find_run(tracker.name, self.digest)):
            self.run_id = found
            return
        if tracker and "mlflow.parentRunId" in self.tags:
            close_broken_off(tracker.name, self.digest)
        try:
            rehearse(self.model, self.datamodule, subcommand == "fit")
            if path := self.command.ckpt_path:
                check_checkpoint(Path(path), self.model, subcommand == "fit")
                note_other_data(config_of(str(path)), self.config_dump)
            if self.goes_on and tracker:
                tracker.hold()
            if tracker:
                tracker.test_follows = subcommand == "fit" and self.reads_test_set
        except (ValueError, StoreError) as error:
            self.parser.error(str(error))
        try:
            super()._run_subcommand(subcommand)
            if found := not_finite(self.trainer):
                raise DivergenceError(f"{subcommand}: {found}. The weights, or the data, are at fault.")
        except MisconfigurationException as error:  # Lightning's, before anything ran
            self.parser.error(str(error))
        except DivergenceError as error:
            self.diverged = str(error)
            if tracker:
                tracker.experiment.set_tag(tracker.run_id, "diverged", self.diverged)
                tracker.experiment.set_terminated(tracker.run_id, "FAILED")
        except SystemExit as stop:
            if not self.trainer.interrupted:
                raise
            if tracker:
                tracker.experiment.set_terminated(tracker.run_id, "KILLED")
            if isinstance(stop, SIGTERMException):
                raise Terminated from None
            raise KeyboardInterrupt from None  # Lightning makes an exit of Ctrl-C, which callers could not tell apart
        self.run_id = tracker.run_id if tracker else None

    def after_fit(self) -> None:
        """Read the test set, once, with the weights of the last step."""
        if self.reads_test_set and not isinstance(self.trainer.logger, DummyLogger):  # Lightning's, in fast_dev_run
            if self.tracker:
                self.tracker.test_follows = False
            tested = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            self.test_metrics = tested[0] if tested else {}  # none with --trainer.limit_test_batches=0

    def after_predict(self) -> None:
        """Keep the predictions with the run, a line a sample."""
        batches = cast(list[torch.Tensor], self.trainer.predict_loop.predictions)
        values = torch.cat(batches).tolist() if batches else []  # none with --trainer.limit_predict_batches=0
        text = "".join(f"{value}\n" for value in values)
        if self.tracker:
            client().log_text(str(self.tracker.run_id), text, "predictions.txt")
        print(f"{len(values)} predictions{', in predictions.txt of the run' if self.tracker else ': ' + text}")


def innermost(error: BaseException) -> BaseException:
    """Follow `raise ... from` to the class that refused a value: jsonargparse wraps what it said."""
    return innermost(error.__cause__) if isinstance(error.__cause__, ValueError | StoreError) else error
