"""Tune an arm's options with an Optuna study, stored in a journal or, for several machines, in a database."""

import math
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import yaml
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from experiment.options import QUIET, arm_options
from experiment.parallel import processes
from experiment.process import end, refusing
from experiment.run import train
from tracking.buffer import whole_lines
from tracking.runs import children, parent_run
from tracking.store import StoreError, artifact_dir, client, hidden, open_experiment, tracking_uri

optuna.logging.set_verbosity(optuna.logging.ERROR)
Space = dict[str, str]
"""Option -> values, as on the command line: `log:1e-5:1e-1`, `32:512`, `1,2,3`."""
RATE: Space = {"model.lr": "log:1e-5:1e-1"}
WITH_DECAY: Space = {"model.lr": "log:1e-4:1e-1", "model.optimizer.weight_decay": "log:1e-3:1.0"}
WITH_HYPER_RATE: Space = RATE | {"model.hyper_lr": "log:1e-8:1e-4"}


@dataclass(frozen=True)
class Tuning:
    """The options of `tune.py`; `arguments` are those of `train.py`, for every run."""

    optimizer: str
    arguments: tuple[str, ...] = ()
    search: Space | None = None
    trials: int = 20
    seed: int = 0
    workers: int = 1
    storage: str | None = None

    @property
    def space(self) -> Space:
        """The search space."""
        default = WITH_DECAY if self.arm.startswith("adamw") else WITH_HYPER_RATE if self.arm == "descent" else RATE
        return self.search or default

    @property
    def arm(self) -> str:
        """The arm's name."""
        return Path(self.optimizer).stem


class Tuned(NamedTuple):
    """A study, its valid trials, the text of the file of best values, its MLflow run, its number of earlier trials."""

    study: optuna.Study
    trials: list[FrozenTrial]
    text: str
    run_id: str
    stored: int


def tune(tuning: Tuning, command: str, retrain: bool = False) -> Tuned:
    """Run the missing trials of a study and store them in MLflow.

    A study belongs to one MLflow run, with one configuration, code and data.

    Args:
        tuning: the options of the study.
        command: the command that is written to the file of best values.
        retrain: whether to start a new study.

    Raises:
        SystemExit: status 2 if an option is invalid, before anything is stored; 1 if every trial diverged.
        StoreError: several machines share the study without a common tracking server.
        Timeout: another process on this machine runs the study.
    """
    if tuning.storage and not tuning.storage.startswith("sqlite") and tracking_uri().startswith("sqlite"):
        raise StoreError("--storage: machines that share a study need one tracking server: set MLFLOW_TRACKING_URI.")
    storage = tuning.storage and _database(tuning.storage)
    # the bounds of every range: if they are accepted, all values are
    ends = {option: _extremes(distribution(option, values)) for option, values in tuning.space.items()}
    for number in range(max(map(len, ends.values()))):
        values = options({option: end[number % len(end)] for option, end in ends.items()})
        fast = "--trainer.fast_dev_run=true"
        run = train([*arm_options(tuning.optimizer), *tuning.arguments, *values, QUIET, fast])
    facts = sha256(f"{run.identity} {tuning.space} {tuning.seed}".encode()).hexdigest()[:12]
    name = f"tune {tuning.arm.replace(chr(39), '')} {facts}"
    open_experiment(run.experiment)
    # of two commands that share a journal, each would restart the running trials of the other
    alone = FileLock(artifact_dir() / f".{name.replace(' ', '-')}.lock", timeout=0)
    about = {"optimizer": tuning.arm, "mlflow.note.content": f"{tuning.trials} trials: `{command}`"}
    again = parent_run(f"tune {tuning.arm}", name, about, run.experiment, retrain)
    with nullcontext() if tuning.storage else alone, again as parent:
        storage = storage or _journal(artifact_dir() / "optuna" / f"{parent}.log")
        # named after the MLflow run: if that is deleted, the study starts again
        study = optuna.create_study(storage=storage, study_name=parent, load_if_exists=True)
        # queue again the trials that a killed process left running
        for trial in study.get_trials(states=[TrialState.RUNNING]) if not tuning.storage else ():
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)
        stored = min(len(_complete(study)), tuning.trials)
        report("trials", tuning.trials, stored)
        _run_trials(study, tuning, parent, run.identity["code"])
        counted = _complete(study)[: tuning.trials]
        best = min(counted, key=loss)
        if loss(best) == math.inf:
            sys.exit("tune.py: error: no trial reached a finite validation loss. Search lower learning rates.")
        text = _describe(best, len(counted), tuning, command)
        client().log_text(parent, text, "best.yaml")
        client().log_metric(parent, "best_val_loss", loss(best))
        for option, value in best.params.items():
            client().set_tag(parent, f"best {option}", value)
    return Tuned(study, counted, text, parent, stored)


def report(kind: str, number: int, stored: int) -> None:
    """Print the numbers of stored and missing runs or trials."""
    print(f"{number} {kind}: {stored} found in the store, {number - stored} to train")


def options(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that set a trial's values."""
    return tuple(f"--{option}={value}" for option, value in params.items())


def loss(trial: FrozenTrial) -> float:
    """Return the validation loss after the last epoch; infinite if the run diverged."""
    return math.inf if trial.value is None else trial.value


def distribution(option: str, values: str) -> BaseDistribution:
    """Return the distribution of an option: log-uniform, uniform (of integers if both bounds are), or categorical.

    Raises:
        SystemExit: status 2 if the values cannot be parsed, or the option cannot be tuned.
    """
    with refusing(f"--search: {option}={values} must read like model.lr=log:1e-5:1e-1 or data.batch_size=64,128: "):
        if not option.startswith(("model.", "data.", "trainer.")) or option.startswith("trainer.logger"):
            raise ValueError("an option of model, data or trainer")
        if "," in values:
            return CategoricalDistribution([yaml.safe_load(text) for text in values.split(",")])
        log = values.startswith("log:")
        low, high = values.removeprefix("log:").split(":")
        if low.isdecimal() and high.isdecimal():
            return IntDistribution(int(low), int(high), log=log)
        return FloatDistribution(float(low), float(high), log=log)


def _extremes(values: BaseDistribution) -> list[Any]:
    return list(getattr(values, "choices", None) or [getattr(values, name) for name in ("low", "high")])


def _journal(file: Path) -> BaseStorage:
    """Return the storage of one study. Each has its own file, so that a damaged one affects no other study."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole_lines(file)
    return JournalStorage(JournalFileBackend(str(file)))


def _database(url: str) -> BaseStorage:
    # seconds between heartbeats of a worker, and without one until its trial is restarted
    beats: dict[str, Any] = {
        "heartbeat_interval": 5,
        "grace_period": 20,
        "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(),
    }
    # the first attempt fails if another machine creates the tables at the same time
    with suppress(SQLAlchemyError):
        return RDBStorage(url, **beats)
    time.sleep(1)
    with refusing(
        f"--storage {hidden(url)} cannot be used (the address of a database, like postgresql://HOST/optuna): "
    ):
        return RDBStorage(url, **beats)


def _run_trials(study: optuna.Study, tuning: Tuning, parent: str, code: str) -> None:
    """Run trials until `tuning.trials` are complete, on all machines together."""
    done = len(_complete(study))
    several = tuning.workers > 1 or tuning.storage
    # with the same seed, a resumed study would propose its first points again; Optuna's default of 10 random trials is
    # too many out of 20
    seed = None if several else tuning.seed + len(study.get_trials(deepcopy=False))
    study.sampler = TPESampler(seed=seed, n_startup_trials=5)
    tasks = [(study, tuning, parent, code)] * (tuning.trials - done)
    with tqdm(total=tuning.trials, initial=done, desc=f"tune {tuning.arm}", unit="trial") as bar:
        for _ in processes(_next_trial, tasks, tuning.workers):
            bar.update(len(_complete(study)) - bar.n)


def _next_trial(task: tuple[optuna.Study, Tuning, str, str]) -> None:
    study, tuning, parent, code = task
    if len(_complete(study)) >= tuning.trials:
        return

    def objective(trial: optuna.Trial) -> float:
        values = {option: suggest(trial, option, searched) for option, searched in tuning.space.items()}
        name = f"--trainer.logger.run_name={tuning.arm} trial {trial.number}"
        args = [*arm_options(tuning.optimizer), *tuning.arguments, *options(values), name, QUIET]
        run = train(args, {"mlflow.parentRunId": parent}, test=False, code=code)
        if run.run_id is None:
            end("error: a trial stored no run in MLflow: does a file set fast_dev_run or another logger?", 2)
        trial.set_user_attr("run_id", run.run_id)
        if "val/loss" not in run.metrics and not run.diverged:
            end("error: the trials cannot be compared without a validation loss. Enable validation.", 2)
        found = math.nan if run.diverged else run.metrics["val/loss"]
        return found if math.isfinite(found) else math.inf

    study.optimize(objective, n_trials=1)


def suggest(trial: optuna.Trial, option: str, values: str) -> Any:
    """Return the sampler's proposal for an option."""
    match distribution(option, values):
        case object(choices=choices):
            return trial.suggest_categorical(option, choices)
        case object(low=int(low), high=high, log=log):
            return trial.suggest_int(option, low, high, log=log)
        case object(low=low, high=high, log=log):
            return trial.suggest_float(option, low, high, log=log)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials whose MLflow runs were not deleted, ordered by number."""
    complete, runs = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]), children(study.study_name)
    return [trial for trial in complete if trial.user_attrs.get("run_id") in runs]


def _describe(best: FrozenTrial, count: int, tuning: Tuning, command: str) -> str:
    """Return the best values as the text of a configuration file that overrides an arm's."""
    params = client().get_run(best.user_attrs["run_id"]).data.params
    config: dict[str, Any] = {}
    for option, value in best.params.items():
        place, path = config, option.split(".")
        for depth, name in enumerate(path[:-1], 1):
            place = place.setdefault(name, {})
            # values that are classes in MLflow's params are classes in the file too
            if ".".join(path[:depth]) in params:
                place = place.setdefault("init_args", {})
        place[path[-1]] = float(f"{value:.4g}") if isinstance(value, float) else value
    return (
        f"# Best of {count} Optuna trials on the validation loss after the last epoch: {best.value:.4f}.\n"
        f"# TPESampler, in {', '.join(f'{option}={values}' for option, values in tuning.space.items())}.\n"
        f"# Made by: {command}\n{yaml.safe_dump(config, sort_keys=False)}"
    )
