"""An arm's best rate, or rate and weight decay, found with Optuna."""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import yaml
from mlflow.exceptions import MlflowException
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances, plot_slice
from tqdm import tqdm

from experiment.objective import Objective, options
from experiment.presets import QUIET, preset
from experiment.space import Space, default_space, extremes
from experiment.sweep import alone, open_storage, release, require_shared, sweep_name, work_off
from experiment.training import train
from experiment.workers import worker_pool
from tracking.runs import parent_run
from tracking.secrets import hidden
from tracking.store import StoreError, artifact_dir, client, open_experiment, tracking_uri

SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    # a quarter of 20 trials at random: the half that is the default is too much
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=5),
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=5),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
}
PLOTS: dict[str, Callable[[optuna.Study], Any]] = {
    "history.png": plot_optimization_history,
    "slice.png": plot_slice,
    "importance.png": plot_param_importances,
}


@dataclass(frozen=True)
class Tuning:
    """What is tuned and how; the options of `tune.py`. `arguments` go on to every run."""

    optimizer: str
    arguments: tuple[str, ...] = ()
    search: Space | None = None
    trials: int = 20
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 0
    workers: int = 1
    timeout: int | None = None
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
    """A study, its trials that came to an end, and how many are missing.

    text: the best values, as a configuration file. run_id: the run in MLflow that holds the trials.
    """

    study: optuna.Study
    trials: list[FrozenTrial]
    missing: int
    text: str
    run_id: str


def tune(tuning: Tuning, command: str) -> Tuned:
    """Run the trials that are missing and keep them in MLflow.

    command: what made the numbers, as their readers are told.

    Raises:
        SystemExit: status 2 where the arguments are wrong, before anything is kept; 1 where every trial diverged.
    """
    require_shared(tuning.storage)
    arguments = (*preset(tuning.optimizer), *tuning.arguments)
    digest = check(tuning, arguments)
    open_experiment()
    study = open_study(tuning, digest)
    tags = {"optimizer": tuning.arm, "mlflow.note.content": f"{tuning.trials} trials: `{command}`"}
    with (
        alone(study.study_name, tuning.storage),
        parent_run(f"tune {tuning.arm}", study.study_name, tags) as parent,
    ):
        run_trials(study, tuning, Objective(arguments, tuning.arm, tuning.space, parent))
        done = ended(study, tuning.trials, [TrialState.COMPLETE])
        if not any(math.isfinite(loss_of(trial)) for trial in done):
            sys.exit("tune.py: error: no trial came to a finite validation loss: search lower rates, or give more time")
        best = min(done, key=loss_of)
        text = describe(study, best, len(done), tuning.space, command)
        keep(study, best, text, parent)
    pruned = ended(study, tuning.trials, [TrialState.PRUNED])
    return Tuned(study, done, tuning.trials - len(done) - len(pruned), text, parent)


def loss_of(trial: FrozenTrial) -> float:
    """Return what the trial came to; infinite where it diverged."""
    return math.inf if trial.value is None else trial.value


def ended(study: optuna.Study, trials: int, states: list[TrialState]) -> list[FrozenTrial]:
    """Return the trials of the first slots that ended so, in the order of the slots: a study may have more of them."""
    found = [trial for trial in study.get_trials(states=states) if trial.user_attrs["slot"] < trials]
    return sorted(found, key=lambda trial: trial.user_attrs["slot"])


def check(tuning: Tuning, arguments: tuple[str, ...]) -> str:
    """Refuse wrong options, the ends of what is searched included; return the digest of the runs' configuration."""
    ends = {option: extremes(values) for option, values in tuning.space.items()}
    for number in range(max(map(len, ends.values()))):
        values = options({option: end[number % len(end)] for option, end in ends.items()})
        run = train([*arguments, *values, QUIET, "--trainer.fast_dev_run=true"])
        if "model.lr" in tuning.space and not run.model.reads_lr:
            print(
                f"tune.py: error: {tuning.arm} does not read model.lr: name what to search with --search.",
                file=sys.stderr,
            )
            sys.exit(2)
    return run.digest


def open_study(tuning: Tuning, digest: str) -> optuna.Study:
    """Return the study of exactly this command: the trials it already has are not run again."""
    facts = [digest, str(tuning.space), tuning.sampler, tuning.pruner, str(tuning.seed)]
    study = optuna.create_study(
        storage=open_storage(tuning.storage), study_name=sweep_name(f"tune {tuning.arm}", facts), load_if_exists=True
    )
    trials = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    require_runs(trials)
    done = len(trials)
    # another seed after a resume: the same one would propose the same first points again; and where several processes
    # propose, they must differ
    several = tuning.storage or tuning.workers > 1
    study.sampler = SAMPLERS[tuning.sampler](None if several else tuning.seed + done)
    study.pruner = PRUNERS[tuning.pruner]()
    return study


def require_runs(trials: list[FrozenTrial]) -> None:
    """Refuse to go on with a study whose runs are in another store.

    Raises:
        StoreError: the run of a trial is not in this one.
    """
    for trial in trials:
        try:
            client().get_run(trial.user_attrs["run_id"])
        except MlflowException as error:
            raise StoreError(
                f"trial {trial.number} of this study was kept in another MLflow store than {hidden(tracking_uri())}. "
                f"Set MLFLOW_TRACKING_URI to that one; or, to begin anew, remove {artifact_dir() / 'optuna.log'}."
            ) from error


def run_trials(study: optuna.Study, tuning: Tuning, objective: Objective) -> None:
    """Run the trials that are missing, with a bar that shows the best so far."""
    if tuning.storage is None:
        release(study)
    bar = tqdm(total=tuning.trials, desc=f"tune {tuning.arm}", unit="trial")
    with bar, worker_pool(tuning.workers) as pool:
        show(study, bar)
        for _ in work_off(study, tuning.trials, objective, pool, tuning.timeout):
            show(study, bar)


def show(study: optuna.Study, bar: tqdm) -> None:
    """Show how many trials are done, on all machines, and the best of them."""
    done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
    if any(trial.state == TrialState.COMPLETE for trial in done):
        best = {option.split(".")[-1]: value for option, value in study.best_params.items()}
        shown = {name: f"{value:.2e}" if isinstance(value, float) else value for name, value in best.items()}
        bar.set_postfix(best=f"{study.best_value:.4f}", **shown, refresh=False)
    bar.n, bar.total = len(done), max(bar.total, len(done))
    bar.refresh()


def describe(study: optuna.Study, best: FrozenTrial, count: int, space: Space, command: str) -> str:
    """Return the best values, of so many trials, as the text of a configuration file, with where they come from."""
    params = client().get_run(best.user_attrs["run_id"]).data.params
    config: dict[str, Any] = {}
    for option, value in best.params.items():
        place, path = config, option.split(".")
        for depth, name in enumerate(path[:-1], 1):
            class_path = params.get(".".join(path[:depth]))  # of a module, where there is one
            place = place.setdefault(name, {"class_path": class_path, "init_args": {}} if class_path else {})
            place = place.get("init_args", place)
        place[path[-1]] = float(f"{value:.4g}") if isinstance(value, float) else value
    return (
        f"# Best of {count} Optuna trials on the validation loss after the last epoch: {best.value:.4f}.\n"
        f"# {type(study.sampler).__name__}, in {', '.join(f'{option}={values}' for option, values in space.items())}.\n"
        f"# Made by: {command}\n{yaml.safe_dump(config, sort_keys=False)}"
    )


def keep(study: optuna.Study, best: FrozenTrial, text: str, parent: str) -> None:
    """Keep the best values and Optuna's own figures with the parent run."""
    client().log_text(parent, text, "best.yaml")
    client().log_metric(parent, "best_val_loss", loss_of(best))
    for option, value in best.params.items():
        client().set_tag(parent, f"best {option}", value)
    finite = {trial.value for trial in study.trials if trial.value is not None and math.isfinite(trial.value)}
    for name, plot in PLOTS.items() if len(finite) > 1 else ():
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of matplotlib, where values are alike
            axes = np.ravel(np.asarray(plot(study)))
        client().log_figure(parent, axes[0].figure, name)
        plt.close(axes[0].figure)  # pyplot, which Optuna draws with, holds every figure
