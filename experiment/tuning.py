"""An arm's best options, found by one Optuna study: on one machine in a journal, on many in a database."""

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances, plot_slice
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from experiment.options import QUIET, arm_options
from experiment.parallel import processes
from experiment.process import end
from experiment.run import train
from experiment.space import Space, default_space, extremes, suggest
from tracking.runs import parent_run
from tracking.store import StoreError, artifact_dir, cause, client, hidden, open_experiment, tracking_uri

optuna.logging.set_verbosity(optuna.logging.ERROR)
HEARTBEAT, GRACE = 5, 20
"""Seconds between a worker's signs of life in a database, and after which it is taken for dead."""
PLOTS: dict[str, Callable[..., Any]] = {
    "history.png": plot_optimization_history,
    "slice.png": plot_slice,
    "importance.png": plot_param_importances,
}


@dataclass(frozen=True)
class Tuning:
    """What is tuned and how: the options of `tune.py`; `arguments` apply to every run."""

    optimizer: str
    arguments: tuple[str, ...] = ()
    search: Space | None = None
    trials: int = 20
    seed: int = 0
    workers: int = 1
    storage: str | None = None

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.search or default_space(self.optimizer)

    @property
    def arm(self) -> str:
        """The arm's name."""
        return Path(self.optimizer).stem


@dataclass(frozen=True)
class Tuned:
    """The study; its trials that count; the best values as a configuration file; the MLflow run that holds it."""

    study: optuna.Study
    trials: list[FrozenTrial]
    text: str
    run_id: str


def tune(tuning: Tuning, command: str) -> Tuned:
    """Run the missing trials and keep them in MLflow; `command` is what the file says that it was made by.

    Raises:
        SystemExit: status 2 where an option is wrong, before anything is kept; 1 where every trial diverged.
        StoreError: a storage cannot be used, or another process on this machine runs the study.
    """
    if tuning.storage and not tuning.storage.startswith("sqlite") and tracking_uri().startswith("sqlite"):
        raise StoreError("--storage: machines that share a study need one tracking server: set MLFLOW_TRACKING_URI.")
    storage = _storage(tuning.storage)
    facts = f"{_check(tuning)} {tuning.space} {tuning.seed}"
    name = f"tune {tuning.arm.replace(chr(39), '')} {sha256(facts.encode()).hexdigest()[:12]}"
    open_experiment()
    tags = {"optimizer": tuning.arm, "mlflow.note.content": f"{tuning.trials} trials: `{command}`"}
    with nullcontext() if tuning.storage else _alone(name), parent_run(f"tune {tuning.arm}", name, tags) as parent:
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        if not tuning.storage:
            _retry_broken_off(study)
        _run_trials(study, tuning, parent)
        counted = _complete(study)[: tuning.trials]
        best = min(counted, key=_loss)
        if _loss(best) == math.inf:
            sys.exit("tune.py: error: no trial reached a finite validation loss: search lower rates.")
        text = _describe(best, len(counted), tuning, command)
        _keep(study, best, text, parent)
    return Tuned(study, counted, text, parent)


def options(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that set a trial's values."""
    return tuple(f"--{option}={value}" for option, value in params.items())


def _check(tuning: Tuning) -> str:
    """Try the ends of what is searched; return the digest of the runs' configuration."""
    ends = {option: extremes(values) for option, values in tuning.space.items()}
    for number in range(max(map(len, ends.values()))):
        values = options({option: end[number % len(end)] for option, end in ends.items()})
        fast = "--trainer.fast_dev_run=true"
        run = train([*arm_options(tuning.optimizer), *tuning.arguments, *values, QUIET, fast])
    return run.digest


def _storage(url: str | None) -> BaseStorage:
    if url is None:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(artifact_dir() / "optuna.log")))
    retry = RetryHeartbeatStaleTrialCallback()
    beats: dict[str, Any] = {
        "heartbeat_interval": HEARTBEAT,
        "grace_period": GRACE,
        "heartbeat_stale_trial_callback": retry,
    }
    # the first attempt fails where another machine makes the tables at the same moment
    for last in (False, True):
        try:
            return RDBStorage(url, **beats)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            reason = f"--storage {hidden(url)} cannot be used: {cause(error)}."
            if last:
                raise StoreError(f"{reason} Give the address of a database, like postgresql://HOST/optuna.") from error
        time.sleep(1)
    raise AssertionError


def _alone(name: str) -> FileLock:
    """Lock a study of this machine: two commands that share a journal would take each other's trials for dead."""
    lock = FileLock(artifact_dir() / f".{name.replace(' ', '-')}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            "Another process on this machine runs this study. Wait for it, or share it: --storage."
        ) from None
    return lock


def _retry_broken_off(study: optuna.Study) -> None:
    """Fail the trials that a killed process left running, and queue their values again."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _run_trials(study: optuna.Study, tuning: Tuning, parent: str) -> None:
    """Run trials until so many are complete, on all machines together."""
    done = len(_complete(study))
    several = tuning.workers > 1 or tuning.storage
    # after a resume another seed: the same one would propose the first points again. A quarter of 20 trials at random:
    # the half that is the default is too much
    study.sampler = TPESampler(seed=None if several else tuning.seed + done, n_startup_trials=5)
    tasks = [(study, tuning, parent)] * (tuning.trials - done)
    with tqdm(total=tuning.trials, initial=done, desc=f"tune {tuning.arm}", unit="trial") as bar:
        for _ in processes(_next_trial, tasks, tuning.workers):
            complete = _complete(study)
            bar.set_postfix(best=f"{min(map(_loss, complete)):.4f}", refresh=False)
            bar.update(len(complete) - bar.n)


def _next_trial(task: tuple[optuna.Study, Tuning, str]) -> None:
    study, tuning, parent = task
    if len(_complete(study)) >= tuning.trials:
        return

    def objective(trial: optuna.Trial) -> float:
        """Return the validation loss after the last epoch; infinite if the run diverged."""
        values = {option: suggest(trial, option, values) for option, values in tuning.space.items()}
        name = f"--trainer.logger.run_name={tuning.arm} trial {trial.number}"
        args = [*arm_options(tuning.optimizer), *tuning.arguments, *options(values), name, QUIET]
        run = train(args, {"mlflow.parentRunId": parent}, test=False)
        trial.set_user_attr("run_id", run.run_id)
        if "val/loss" not in run.trainer.callback_metrics and not run.diverged:
            end("error: no validation took place, so the trials cannot be compared", 2)
        loss = math.nan if run.diverged else run.trainer.callback_metrics["val/loss"].item()
        return loss if math.isfinite(loss) else math.inf

    study.optimize(objective, n_trials=1)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _loss(trial: FrozenTrial) -> float:
    return math.inf if trial.value is None else trial.value


def _describe(best: FrozenTrial, count: int, tuning: Tuning, command: str) -> str:
    """Return the best values as the text of a configuration file that is read over an arm."""
    params = client().get_run(best.user_attrs["run_id"]).data.params
    config: dict[str, Any] = {}
    for option, value in best.params.items():
        place, path = config, option.split(".")
        for depth, name in enumerate(path[:-1], 1):
            place = place.setdefault(name, {})
            # what MLflow has a class of is a class in the file too
            if ".".join(path[:depth]) in params:
                place = place.setdefault("init_args", {})
        place[path[-1]] = float(f"{value:.4g}") if isinstance(value, float) else value
    return (
        f"# Best of {count} Optuna trials on the validation loss after the last epoch: {best.value:.4f}.\n"
        f"# TPESampler, in {', '.join(f'{option}={values}' for option, values in tuning.space.items())}.\n"
        f"# Made by: {command}\n{yaml.safe_dump(config, sort_keys=False)}"
    )


def _keep(study: optuna.Study, best: FrozenTrial, text: str, parent: str) -> None:
    """Keep the best values and Optuna's own figures with the parent run."""
    client().log_text(parent, text, "best.yaml")
    client().log_metric(parent, "best_val_loss", _loss(best))
    for option, value in best.params.items():
        client().set_tag(parent, f"best {option}", value)
    finite = {_loss(trial) for trial in _complete(study)} - {math.inf}
    for name, plot in PLOTS.items() if len(finite) > 1 else ():
        # of matplotlib, where values are alike
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            axes = np.ravel(np.asarray(plot(study)))
        client().log_figure(parent, axes[0].figure, name)
        # pyplot, which Optuna draws with, keeps every figure
        plt.close(axes[0].figure)
