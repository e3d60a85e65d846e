"""Check, name, train and test one run, or reuse or resume a stored one."""

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib import colormaps
from matplotlib.colors import to_hex
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.seed import isolate_rng

from callbacks import DivergenceError, LogInputs, not_finite
from callbacks.trajectory import schedule_until
from data.tensors import TensorDataModule
from experiment import options
from experiment.bounds import SEED, refuse_out_of_range
from experiment.command_line import Line, read
from experiment.identity import identity, uncommitted
from experiment.process import end, refusing
from experiment.resume import differences, rehearse, unfinished
from lightning_modules import SupervisedModule
from reporting.machine import machine
from tracking.logger import Tracker
from tracking.runs import find_run, mark_killed, run_of
from tracking.store import EXPERIMENT, StoreError


def train(
    args: Sequence[str],
    tags: dict[str, str] | None = None,
    test: bool = True,
    reuse: bool = False,
    code: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> "Run":
    """Run the command line `args` of `train.py`.

    Args:
        args: the arguments of the command line.
        tags: additional tags of the MLflow run.
        test: whether `fit` ends with a test.
        reuse: whether a finished run of the same configuration, code and data may be returned instead of training.
        code: the required digest of the code, for one of many runs.
        callbacks: additional callbacks.

    Raises:
        SystemExit: status 2, with one line, if the arguments, the data or the network cannot be used.
    """
    line = read(args)
    described = {"mlflow.note.content": f"`{options.command('train.py', args)}`"} | (tags or {})
    # any error: arguments are refused by the parser, the Trainer, a module or a class of the user
    with refusing(""):
        run = Run(line, described, callbacks)
    with refusing("", (ValueError, StoreError)):
        tracker = run.tracker
        if code and run.identity["code"] != code:
            raise StoreError("The code changed while the command ran, or differs on this machine. Rerun the command.")
        if tracker and reuse and (found := find_run(tracker.name, run.identity)):
            run.run_id = found
            return run
        if tracker and "mlflow.parentRunId" in described:
            mark_killed(tracker.name, run.identity["config"])
        run.check()
    # errors that Lightning raises before training; all others need a traceback
    with refusing("", (StoreError, MisconfigurationException)):
        run.execute(test)
    return run


def look_up(args: Sequence[str], samples: dict[str, str]) -> tuple[dict[str, str], str | None]:
    """Return the tags that identify the run of a command line, and the id of the finished run with these tags, if any.

    samples: configuration of the data -> digest of the samples. A missing entry is computed and added.
    """
    line = read(args)
    with refusing(""):
        run = Run(line, {}, (), build=False)
        data = json.dumps(run.dump["data"], sort_keys=True)
        if data not in samples:
            samples[data] = Run(line, {}, ()).identity["data_digest"]
        tags = run.identity | {"data_digest": samples[data]}
        return tags, find_run(run.config.get("trainer.logger.init_args.experiment_name", EXPERIMENT), tags)


class Run(LightningCLI):
    """The objects of one run and its results; with `build=False`, only its parsed configuration.

    `run_id` is the MLflow run, `identity` the tags that identify it, `diverged` the message of a diverged run,
    `metrics` the results of the last validation and the test, and `test_metrics` those of the test.
    """

    def __init__(self, line: Line, tags: dict[str, str], callbacks: Sequence[Callback], build: bool = True) -> None:
        self.line, self.tags, self.callbacks, self.build = line, tags, callbacks, build
        self.run_id: str | None = None
        self.resumes: str | None = None
        self.diverged: str | None = None
        self.metrics: dict[str, float] = {}
        self.test_metrics: dict[str, float] = {}
        super().__init__(
            SupervisedModule,
            TensorDataModule,
            parser_kwargs={"usage": options.USAGE, "allow_abbrev": False, "exit_on_error": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            # otherwise Lightning adds its own --optimizer, which takes torch's classes and overrides the module's
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=LogInputs,
            run=False,
            args=line.options,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed as a whole number; Lightning would also accept true (a random seed) and false (none)."""
        parser.add_argument("--seed_everything", type=SEED, default=0, help="seed of weights and order of samples")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the names of arm and task, which `read` puts first, and the number of threads."""
        parser.add_argument("--optimizer", help=f"training method (default: meta): {', '.join(options.ARMS)}")
        parser.add_argument("--task", help=f"data and network (default: mlp): {', '.join(options.TASKS)}")
        parser.add_argument("--threads", type=PositiveInt, default=1, help="affects the last digits of results")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments instead of `sys.argv`."""
        self.config = parser.parse_args(args)

    @property
    def experiment(self) -> str:
        """The MLflow experiment: one for all data of this project, one for each data module of the user."""
        package, _, name = self.config.data.class_path.rpartition(".")
        return EXPERIMENT if package.split(".")[0] == "data" else name

    @property
    def tracker(self) -> Tracker | None:
        """The logger, if it is a `Tracker`."""
        logger = self.trainer.logger
        return logger if isinstance(logger, Tracker) else None

    def before_instantiate_classes(self) -> None:
        """Check the configuration, compute its digests and choose the MLflow experiment."""
        config = self.config
        torch.set_num_threads(config.threads)
        refuse_out_of_range(config.trainer)
        # with manual optimization, the module does what the Trainer would refuse
        for option, default in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
            if option in config.model.init_args and config.trainer[option] != default:
                config.model.init_args[option], config.trainer[option] = config.trainer[option], default
        self.dump = yaml.safe_load(self.parser.dump(config, skip_none=False))
        self.save_config_kwargs = {"given": self.dump}
        self.identity = identity(self.dump)
        logger = config.trainer.logger
        if isinstance(logger, Namespace) and logger.class_path == "tracking.logger.Tracker":
            logger.init_args.experiment_name = logger.init_args.experiment_name or self.experiment

    def instantiate_classes(self) -> None:
        """Build model, data and trainer."""
        if self.build:
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Set up the data, name and tag the run, and add the configuration to its checkpoints."""
        if not self.build:
            return
        config, line = self.config, self.line
        self.trainer.callbacks += self.callbacks  # type: ignore[attr-defined]
        self.datamodule.setup("fit")
        self.identity["data_digest"] = self.datamodule.digest()
        name = line.arm
        # `find_run` must not return an evaluation, or a run that starts from the weights of another configuration
        if line.command != "fit":
            name = f"{line.command} {line.arm}"
            self.identity["config"] += f" {line.command}"
        elif line.checkpoint:
            self.resumes = run_of(line.checkpoint, self.identity)
            self.identity["config"] += "" if self.resumes else " from a checkpoint"
        # one colour per arm in MLflow's charts
        place = options.ARMS.index(line.arm) if line.arm in options.ARMS else len(options.ARMS)
        tags = {
            "optimizer": line.arm,
            "task": line.task if self.experiment == EXPERIMENT else self.experiment,
            "seed": str(config.seed_everything),
            "data_seed": str(config.data.init_args.get("seed", 0)),
            "trained_on": machine(),
            "mlflow.source.git.dirty": str(uncommitted()).lower(),
            "mlflow.runColor": to_hex(colormaps["tab20"](place)),
        }
        if self.tracker:
            self.tracker.describe(name, tags | self.identity | self.tags, self.resumes)
        model = self.dump["model"]
        origin = {"_class_path": model["class_path"], "_instantiator": "pytorch_lightning.cli.instantiate_module"}
        self.model.save_hyperparameters(origin | model["init_args"], logger=False)

    def check(self) -> None:
        """Raise ValueError, before a run is stored, if it cannot be trained or resumed."""
        trains = self.line.command == "fit"
        x, y = batch = self.datamodule.extremes()
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        given = f"inputs {tuple(x.shape[1:])} {x.dtype}, targets {tuple(y.shape[1:])} {y.dtype}"
        with isolate_rng(), refusing(f"the network cannot take the samples ({given}): "):
            loss = self.model.loss(batch)
        for module, mode in modes.items():
            module.training = mode
        if any(isinstance(found, Timer) and found.time_remaining() == 0 for found in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("--trainer.max_time must be positive.")
        if trains and (loss.dim() or not loss.requires_grad):
            raise ValueError("the loss must be a scalar that depends on weights. Is it detached, or are they frozen?")
        if saved := self.line.saved:
            path = str(self.line.checkpoint)
            self._check_checkpoint(path, saved)
            if trains:
                schedule_until(path, saved["callbacks"].get("Trajectory", {}))
        if self.tracker and self.resumes:
            self.tracker.hold()

    def _check_checkpoint(self, path: str, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run, or one from which copies of all parts cannot take a step."""
        any_length = not self.model.depends_on_length and self.config.trainer.max_steps == -1
        refused, listed = differences(saved["config"], self.dump, self.line.command, any_length)
        if refused:
            advice = "To resume its run, omit --optimizer, --task and the options that differ"
            raise ValueError(f"--ckpt_path: the checkpoint is of another run. {advice}: {', '.join(refused)}.")
        if listed and self.trainer.is_global_zero:
            print(f"differs from the run of the checkpoint: {', '.join(listed)}")
        alone = {"logger": False, "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}
        with isolate_rng(), refusing(f"--ckpt_path: {path} has a configuration that cannot be used: "):
            config = self.parser.parse_object(saved["config"] | {"trainer": saved["config"]["trainer"] | alone})
            made = self.parser.instantiate_classes(config)
            trainer = self.trainer_class(**made.trainer.as_dict())
        with isolate_rng():
            rehearse(trainer, made.model, made.data, path, saved)

    def execute(self, test: bool) -> None:
        """Fit, and test once with the final weights, or evaluate; store the status of the run in MLflow."""
        tracker, command = self.tracker, self.line.command
        tests = command == "fit" and test and not self.config.trainer.fast_dev_run
        ended = "FAILED"
        if tracker:
            tracker.ended_by_caller = True
        try:
            getattr(self.trainer, command)(self.model, datamodule=self.datamodule, ckpt_path=self.line.checkpoint)
            if command == "fit" and (reason := unfinished(self.trainer)):
                end(f"error: {reason}, so it is not tested", 1)
            self.metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            if tests:
                tested = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
                self.test_metrics = dict(tested[0]) if tested else {}
                self.metrics |= self.test_metrics
            if found := not_finite(self.trainer):
                raise DivergenceError(f"{command}: {found}. Check the weights and the data.")
            ended = "FINISHED"
        except DivergenceError as error:
            self.diverged = str(error)
            if tracker:
                tracker.experiment.set_tag(tracker.run_id, "diverged", self.diverged)
        except SystemExit as stop:
            if not self.trainer.interrupted:
                raise
            ended = "KILLED"
            # Lightning turns Ctrl-C into SystemExit, which callers could not distinguish from others
            raise KeyboardInterrupt(*["terminated"] * isinstance(stop, SIGTERMException)) from None
        finally:
            # here, since a callback may raise an exception within Lightning's own handling of exceptions
            if tracker:
                tracker.end(ended)
                path, alone = tracker.checkpoint, "mlflow.parentRunId" not in self.tags
                if alone and ended != "FINISHED" and not self.diverged and path and path.is_file():
                    print(f"train.py: to resume, add --ckpt_path {shlex.quote(str(path))}", file=sys.stderr)
        self.run_id = tracker.run_id if tracker else None
