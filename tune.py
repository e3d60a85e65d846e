"""Find an arm's best rate, or rate and weight decay, with Optuna: `python tune.py --optimizer adam --trials 20`."""

import argparse
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import yaml
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances, plot_slice
from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

import train
from options import ARMS, CONFIGS, QUIET, arm_file, arm_or_file, parse_sweep, positive, preset, sweep_parser
from space import EXAMPLES, Space, default_space, described, dimension, extremes, suggest
from store import client, how_to_see, open_experiment, parent_run, without_password
from sweep import alone, open_storage, release, require_shared, sweep_name, work_off
from workers import worker_pool

SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    # a quarter of 20 trials at random: the half that is the default is too much
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=5),
}
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=5),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
}
PLOTS: dict[str, Callable[[optuna.Study], Any]] = {
    "history.png": plot_optimization_history,
    "slice.png": plot_slice,
    "importance.png": plot_param_importances,
}


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of tuning, and the rest, which goes on to every run."""
    parser = sweep_parser("tune.py", __doc__)
    parser.add_argument(
        "--optimizer", required=True, type=arm_or_file, metavar="ARM", help=f"{' '.join(ARMS)}, or a YAML file"
    )
    parser.add_argument("--trials", type=positive, default=20, help="in all, those of an interrupted run included")
    parser.add_argument(
        "--search",
        type=dimension,
        nargs="+",
        metavar="OPTION=VALUES",
        help=f"what to search: {EXAMPLES}; default: model.lr=log:1e-5:1e-1, "
        "with AdamW model.lr=log:1e-4:1e-1 model.optimizer.weight_decay=log:1e-3:1",
    )
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="of Optuna (default: tpe)")
    parser.add_argument("--pruner", choices=PRUNERS, default="none", help="default: none; it changes the compute spent")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler, where one worker proposes (default: 0)")
    parser.add_argument("--workers", type=positive, default=1, help="trials at once (default: 1, which finds most)")
    parser.add_argument("--timeout", type=positive, metavar="SECONDS", help="after which no trial is begun")
    parser.add_argument("--storage", metavar="URL", help="a database that several machines share: docs/scale.md")
    parser.add_argument("--output", type=Path, help="default: configs/tuned/ARM.yaml, if the runs are the arm's own")
    own, rest = parse_sweep(parser, args)
    given = dict(own.search or ())
    if len(given) < len(own.search or ()):
        parser.error("--search names an option twice")
    own.search = given or default_space(own.optimizer)
    file, usual = CONFIGS / "tuned" / f"{own.optimizer}.yaml", not given and not rest and not own.seed
    if (
        own.output is None
        and usual
        and (own.sampler, own.pruner) == ("tpe", "none")
        and reads(own.optimizer, file.name)
    ):
        own.output = file
    if own.output and not own.output.parent.is_dir():
        parser.error(f"--output: there is no folder {own.output.parent} to write {own.output.name} into")
    if own.output and own.output.is_dir():
        parser.error(f"--output: {own.output} is a folder, not a file")
    require_shared(parser, own.storage)
    return own, rest


def reads(arm: str, name: str) -> bool:
    """Whether an arm's file reads the tuned file of this name."""
    return f"tuned/{name}" in arm_file(arm).read_text(encoding="utf-8")


def check(own: argparse.Namespace, arguments: list[str]) -> str:
    """Refuse wrong options, the ends of what is searched included, before anything is kept; return the digest."""
    ends = {option: extremes(values) for option, values in own.search.items()}
    for number in range(max(map(len, ends.values()))):
        values = options({option: end[number % len(end)] for option, end in ends.items()})
        cli = train.main([*arguments, *values, QUIET, "--trainer.fast_dev_run=true"])
    return cli.digest


def open_study(own: argparse.Namespace, digest: str) -> optuna.Study:
    """Return the study of exactly this command: the trials it already has are not run again.

    digest: of the runs' configuration.
    """
    study = optuna.create_study(
        storage=open_storage(own.storage),
        study_name=sweep_name(
            f"tune {Path(own.optimizer).stem}", [digest, str(own.search), own.sampler, own.pruner, str(own.seed)]
        ),
        load_if_exists=True,
    )
    done = len(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED]))
    # another seed after a resume: the same one would propose the same first points again; and where several processes
    # propose, they must differ
    study.sampler = SAMPLERS[own.sampler](None if own.storage or own.workers > 1 else own.seed + done)
    study.pruner = PRUNERS[own.pruner]()
    return study


def options(params: Mapping[str, Any]) -> list[str]:
    """Return the options that set a trial's values."""
    return [f"--{option}={value}" for option, value in params.items()]


class Report(Callback):
    """Tell Optuna the validation loss of each epoch, and end the run where the pruner says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self.pruned = trial, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask."""
        if not trainer.sanity_checking:
            self.trial.report(trainer.callback_metrics["val/loss"].item(), trainer.current_epoch)
            self.pruned = self.trial.should_prune()
            trainer.should_stop = trainer.should_stop or self.pruned


@dataclass(frozen=True)
class Objective:
    """The last validation loss of a run with a trial's values, infinite where it diverged; kept under `parent`."""

    arguments: list[str]
    name: str
    search: Space
    parent: str

    def __call__(self, trial: optuna.Trial) -> float:
        """Train.

        Raises:
            TrialPruned: the pruner ended it.
        """
        values = {option: suggest(trial, option, values) for option, values in self.search.items()}
        name = f"--trainer.logger.run_name={self.name} trial {trial.user_attrs['slot']}"
        report = Report(trial)
        tags = {"mlflow.parentRunId": self.parent}
        cli = train.main([*self.arguments, *options(values), name, QUIET], tags, test=False, callbacks=[report])
        trial.set_user_attr("run_id", cli.run_id)
        if report.pruned:
            client().set_tag(str(cli.run_id), "pruned", f"after epoch {cli.trainer.current_epoch}")
            raise optuna.TrialPruned
        if cli.diverged:
            return math.inf
        if "val/loss" not in cli.trainer.callback_metrics:
            sys.exit("tune.py: error: no validation took place, so there is nothing to compare trials by")
        loss = cli.trainer.callback_metrics["val/loss"].item()
        return loss if math.isfinite(loss) else math.inf  # a trial whose value is no number would be tried for ever


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
        place[path[-1]] = float(f"{value:.4g}") if isinstance(value, float) else value
    return (
        f"# Best of {len(trials)} Optuna trials on the validation loss after the last epoch: {best.value:.4f}.\n"
        f"# {type(study.sampler).__name__}, in {described(space)}.\n"
        f"# Made by: {command}\n{yaml.safe_dump(config, sort_keys=False)}"
    )


def keep(study: optuna.Study, text: str, parent: str) -> None:
    """Keep the best values and Optuna's own figures with the parent run."""
    client().log_text(parent, text, "best.yaml")
    client().log_metric(parent, "best/val_loss", study.best_value)
    for option, value in study.best_params.items():
        client().set_tag(parent, f"best {option}", value)
    finite = [trial for trial in study.trials if trial.value is not None and math.isfinite(trial.value)]
    for name, plot in PLOTS.items() if len({trial.value for trial in finite}) > 1 else ():
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of matplotlib, where values are alike
            axes = np.ravel(np.asarray(plot(study)))
        client().log_figure(parent, axes[0].figure, name)
        plt.close(axes[0].figure)  # pyplot, which Optuna draws with, holds every figure


def main(args: list[str] | None = None) -> optuna.Study:
    """Run the trials that are missing, keep them in MLflow, and write the best rate.

    Raises:
        SystemExit: status 2 where the arguments are wrong.
    """
    own, rest = parse(args)
    arguments = [*preset(own.optimizer), *rest]
    digest = check(own, arguments)
    experiment, study = open_experiment(), open_study(own, digest)
    command = without_password(f"python tune.py {shlex.join(sys.argv[1:] if args is None else args)}")
    tags = {"optimizer": Path(own.optimizer).stem, "mlflow.note.content": f"{own.trials} trials: `{command}`"}
    with (
        alone(study.study_name, own.storage),
        parent_run(f"tune {tags['optimizer']}", study.study_name, tags) as parent,
    ):
        run_trials(study, own, Objective(arguments, tags["optimizer"], own.search, parent))
        losses = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
        if not any(loss is not None and math.isfinite(loss) for loss in losses):
            sys.exit("tune.py: error: no trial came to a finite validation loss: search lower rates, or give more time")
        text = describe(study, own.search, command)
        keep(study, text, parent)
    print(text, end="")
    if len(losses) < own.trials and own.pruner == "none":
        print(f"{len(losses)} of {own.trials} trials: type the same again for the rest; not written")
    elif own.output:
        own.output.write_text(text)
        print(f"written to  {own.output}")
    else:
        print("not written: with options beside the arm's own, name a file (--output)")
    print(f"see it      {how_to_see(experiment, parent)}")
    return study


def run_trials(study: optuna.Study, own: argparse.Namespace, objective: Objective) -> None:
    """Run the trials that are missing, with a bar that shows the best so far."""
    if own.storage is None:
        release(study)
    bar = tqdm(total=own.trials, desc=study.study_name.rsplit(" ", 1)[0], unit="trial")
    with bar, worker_pool(own.workers) as pool:
        show(study, bar)
        for _ in work_off(study, own.trials, objective, pool, own.timeout):
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


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    train.script(main)
