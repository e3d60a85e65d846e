"""Find the best learning rate of an arm with Optuna: `python tune.py --optimizer adam --trials 20`."""

import argparse
import hashlib
import math
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_slice
from tqdm import tqdm

import train
from cli import ARMS, CONFIGS, QUIET, parse_sweep, positive, sweep_parser
from tracking import artifact_dir, client, how_to_see, open_experiment, parent_run

LOWEST, HIGHEST = 1e-5, 1e-1


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of tuning, and the rest, which goes on to every run."""
    parser = sweep_parser("tune.py", __doc__)
    parser.add_argument("--optimizer", required=True, choices=ARMS, help="the arm")
    parser.add_argument("--trials", type=positive, default=20, help="in all, those of an interrupted run included")
    parser.add_argument("--seed", type=int, default=0, help="of Optuna's sampler (default: 0)")
    parser.add_argument("--output", type=Path, help="default: configs/tuned/ARM.yaml, if the runs are the arm's own")
    own, rest = parse_sweep(parser, args)
    if own.output is None and not rest:
        own.output = CONFIGS / "tuned" / f"{own.optimizer}.yaml"
    if own.output and not own.output.parent.is_dir():
        parser.error(f"--output: there is no folder {own.output.parent} to write {own.output.name} into")
    return own, rest


def open_study(own: argparse.Namespace, rest: list[str]) -> optuna.Study:
    """Return the study of exactly this command: the trials it already has are not run again."""
    files = [CONFIGS / "base.yaml", CONFIGS / f"{own.optimizer}.yaml"]
    facts = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    backend = JournalFileBackend(str(artifact_dir() / "optuna.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=" ".join([own.optimizer, f"seed={own.seed}", facts, *rest]),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a run that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    # another seed after a resume: the same one would propose the same first points again; half of 20 trials at random,
    # the default, is too much
    study.sampler = optuna.samplers.TPESampler(seed=own.seed + len(study.trials), n_startup_trials=5)
    return study


def run_trial(study: optuna.Study, arm: list[str], parent: str) -> None:
    """Train at one more rate; its value is the validation loss after the last epoch, infinite where it diverged."""
    trial = study.ask()
    try:
        lr = trial.suggest_float("lr", LOWEST, HIGHEST, log=True)
        own = [f"--model.lr={lr}", f"--trainer.logger.run_name={arm[1]} trial {trial.number}", QUIET]
        cli = train.main([*arm, *own], {"mlflow.parentRunId": parent}, test=False)
        trial.set_user_attr("run_id", cli.run_id)
        study.tell(trial, math.inf if cli.diverged else cli.trainer.callback_metrics["val/loss"].item())
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        raise


def describe(study: optuna.Study, command: str) -> str:
    """Return the best rate as the text of a configuration file, with where it comes from."""
    best, trials = study.best_trial, study.get_trials(states=[TrialState.COMPLETE])
    module = client().get_run(best.user_attrs["run_id"]).data.params["model"]
    model = {"class_path": module, "init_args": {"lr": float(f"{best.params['lr']:.4g}")}}
    return (
        f"# Best of {len(trials)} Optuna trials (TPE, log-uniform in {LOWEST:g} ... {HIGHEST:g}) on the validation\n"
        f"# loss after the last epoch: {best.value:.4f}. Made by: {command}\n"
        + yaml.safe_dump({"model": model}, sort_keys=False)
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
        run_missing_trials(study, own.trials, arm, parent)
        text = describe(study, f"python tune.py {shlex.join(sys.argv[1:] if args is None else args)}")
        client().log_text(parent, text, "best.yaml")
        client().log_metric(parent, "val/loss", study.best_value)
        client().log_param(parent, f"best model.lr of {own.trials}", study.best_params["lr"])
        if len(study.get_trials(states=[TrialState.COMPLETE])) > 1:
            axes: Any = plot_slice(study)
            client().log_figure(parent, axes.figure, "trials.png")
    print(text, end="")
    if own.output:
        own.output.write_text(text)
        print(f"written to  {own.output}")
    else:
        print("not written: with options beside the arm's own, name a file (--output)")
    print(f"see it      {how_to_see(experiment, parent)}")
    return study


def run_missing_trials(study: optuna.Study, trials: int, arm: list[str], parent: str) -> None:
    """Run trials until there are as many complete ones, with a bar that shows the best so far."""
    done = len(study.get_trials(states=[TrialState.COMPLETE]))
    with tqdm(total=trials, initial=min(done, trials), desc=f"tune {arm[1]}", unit="trial") as bar:
        for _ in range(done, trials):
            run_trial(study, arm, parent)
            bar.set_postfix(best=f"{study.best_value:.4f}", lr=f"{study.best_params['lr']:.2e}")
            bar.update()


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # the journal, the plot
    train.script(main)
