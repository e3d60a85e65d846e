"""Find an arm's best rate, or rate and weight decay, with Optuna: `python tune.py --optimizer adam --trials 20`."""

import argparse
import hashlib
import math
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_slice
from tqdm import tqdm

import train
from options import ARMS, CONFIGS, QUIET, parse_sweep, positive, sweep_parser
from tracking import artifact_dir, client, how_to_see, open_experiment, parent_run
from workers import each, worker_pool

RATE = {"model.lr": (1e-5, 1e-1)}
WITH_DECAY = {"model.lr": (1e-4, 1e-1), "model.optimizer.weight_decay": (1e-3, 1.0)}
WITH_HYPER_RATE = RATE | {"model.hyper_lr": (1e-8, 1e-4)}
Space = dict[str, tuple[float, float]]
"""Option -> its lowest and its highest value; searched log-uniformly."""


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of tuning, and the rest, which goes on to every run."""
    parser = sweep_parser("tune.py", __doc__)
    parser.add_argument("--optimizer", required=True, choices=ARMS, help="the arm")
    parser.add_argument("--trials", type=positive, default=20, help="in all, those of an interrupted run included")
    parser.add_argument("--seed", type=int, default=0, help="of Optuna's sampler (default: 0)")
    parser.add_argument("--workers", type=positive, default=1, help="trials at once (default: 1, which finds most)")
    parser.add_argument(
        "--search",
        type=interval,
        nargs="+",
        metavar="OPTION=LOW:HIGH",
        help="what to search, log-uniformly; default: model.lr=1e-5:1e-1, with AdamW model.lr=1e-4:1e-1 "
        "model.optimizer.weight_decay=1e-3:1",
    )
    parser.add_argument("--output", type=Path, help="default: configs/tuned/ARM.yaml, if the runs are the arm's own")
    own, rest = parse_sweep(parser, args)
    own.search = dict(own.search) if own.search else space(own.optimizer)
    if own.output is None and not rest:
        own.output = CONFIGS / "tuned" / f"{own.optimizer}.yaml"
    if own.output and not own.output.parent.is_dir():
        parser.error(f"--output: there is no folder {own.output.parent} to write {own.output.name} into")
    return own, rest


def interval(text: str) -> tuple[str, tuple[float, float]]:
    """Read `model.lr=1e-5:1e-1`."""
    option, _, bounds = text.partition("=")
    try:
        low, high = (float(bound) for bound in bounds.split(":"))
    except ValueError:
        low = high = 0.0
    if not (option.startswith(("model.", "data.")) and 0 < low < high):
        raise argparse.ArgumentTypeError(f"must read like model.lr=1e-5:1e-1, got {text!r}")
    return option, (low, high)


def space(arm: str) -> Space:
    """Return what is searched of an arm by default."""
    if arm.startswith("adamw"):
        return WITH_DECAY
    return WITH_HYPER_RATE if arm == "descent" else RATE


def open_study(own: argparse.Namespace, rest: list[str]) -> optuna.Study:
    """Return the study of exactly this command: the trials it already has are not run again."""
    files = [CONFIGS / "base.yaml", CONFIGS / f"{own.optimizer}.yaml"]
    facts = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    backend = JournalFileBackend(str(artifact_dir() / "optuna.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=" ".join([own.optimizer, f"seed={own.seed}", facts, str(own.search), *rest]),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a run that was stopped: the same again
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    # another seed after a resume: the same one would propose the same first points again; half of 20 trials at random,
    # the default, is too much
    study.sampler = optuna.samplers.TPESampler(seed=own.seed + len(study.trials), n_startup_trials=5)
    return study


def options(params: dict[str, float]) -> list[str]:
    """Return the options that set a trial's values."""
    return [f"--{option}={value}" for option, value in params.items()]


def ask(study: optuna.Study, own: argparse.Namespace, done: int) -> list[optuna.Trial]:
    """Return the trials that come after the `done` complete ones: as many as there are workers."""
    trials = [study.ask() for _ in range(min(own.workers, own.trials - done))]
    for trial in trials:
        for option, (low, high) in own.search.items():
            trial.suggest_float(option, low, high, log=True)
    return trials


def run_trial(job: tuple[list[str], str]) -> tuple[str | None, float]:
    """Train, and return the run and its last validation loss, infinite where it diverged."""
    args, parent = job
    cli = train.main(args, {"mlflow.parentRunId": parent}, test=False)
    return cli.run_id, math.inf if cli.diverged else cli.trainer.callback_metrics["val/loss"].item()


def describe(study: optuna.Study, space: Space, command: str) -> str:
    """Return the best values as the text of a configuration file, with where they come from."""
    best, trials = study.best_trial, study.get_trials(states=[TrialState.COMPLETE])
    params = client().get_run(best.user_attrs["run_id"]).data.params
    config: dict[str, Any] = {}
    for option, value in best.params.items():
        place, path = config, option.split(".")
        for depth, name in enumerate(path[:-1], 1):
            class_path = params.get(".".join(path[:depth]))  # of a module, where there is one
            place = place.setdefault(name, {"class_path": class_path, "init_args": {}} if class_path else {})
            place = place.get("init_args", place)
        place[path[-1]] = float(f"{value:.4g}")
    searched = ", ".join(f"{option} {low:g} ... {high:g}" for option, (low, high) in space.items())
    return (
        f"# Best of {len(trials)} Optuna trials on the validation loss after the last epoch: {best.value:.4f}.\n"
        f"# TPE, log-uniform in {searched}.\n# Made by: {command}\n" + yaml.safe_dump(config, sort_keys=False)
    )


def main(args: list[str] | None = None) -> optuna.Study:
    """Run the trials that are missing, keep them in MLflow, and write the best rate.

    Raises:
        SystemExit: status 2 where the arguments are wrong.
    """
    own, rest = parse(args)
    arm = ["--optimizer", own.optimizer, *rest]
    train.main([*arm, QUIET, "--trainer.fast_dev_run=true"])  # refuses wrong options before anything is kept
    experiment = open_experiment()
    study = open_study(own, rest)
    tags = {"optimizer": own.optimizer, "mlflow.note.content": f"{own.trials} trials of `{' '.join(arm)}`"}
    with parent_run(f"tune {own.optimizer}", tags, study.user_attrs.get("parent")) as parent:
        study.set_user_attr("parent", parent)
        run_missing_trials(study, own, arm, parent)
        text = describe(study, own.search, f"python tune.py {shlex.join(sys.argv[1:] if args is None else args)}")
        client().log_text(parent, text, "best.yaml")
        client().log_metric(parent, "val/loss", study.best_value)
        for option, value in study.best_params.items():
            client().log_param(parent, f"best {option} of {own.trials}", value)
        if len(study.get_trials(states=[TrialState.COMPLETE])) > 1:
            axes = np.ravel(np.asarray(plot_slice(study)))
            client().log_figure(parent, axes[0].figure, "trials.png")
    print(text, end="")
    if own.output:
        own.output.write_text(text)
        print(f"written to  {own.output}")
    else:
        print("not written: with options beside the arm's own, name a file (--output)")
    print(f"see it      {how_to_see(experiment, parent)}")
    return study


def run_missing_trials(study: optuna.Study, own: argparse.Namespace, arm: list[str], parent: str) -> None:
    """Run trials until there are as many complete ones, with a bar that shows the best so far."""
    done = len(study.get_trials(states=[TrialState.COMPLETE]))
    bar = tqdm(total=own.trials, initial=min(done, own.trials), desc=f"tune {arm[1]}", unit="trial")
    with bar, worker_pool(own.workers) as pool:
        while done < own.trials:
            trials = ask(study, own, done)
            names = [f"--trainer.logger.run_name={arm[1]} trial {trial.number}" for trial in trials]
            jobs = [
                ([*arm, *options(trial.params), name, QUIET], parent) for trial, name in zip(trials, names, strict=True)
            ]
            for number, (run_id, loss) in each(run_trial, jobs, pool):
                trials[number].set_user_attr("run_id", run_id)
                study.tell(trials[number], loss)
                best = {option.split(".")[-1]: f"{value:.2e}" for option, value in study.best_params.items()}
                bar.set_postfix(best=f"{study.best_value:.4f}", **best)
                bar.update()
            done += len(trials)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # the journal, the plot
    train.script(main)
