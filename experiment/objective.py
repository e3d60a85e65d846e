"""What a trial of tuning does: it trains a run with the values proposed, and returns its validation loss."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from pytorch_lightning import Callback, LightningModule, Trainer

from experiment.presets import QUIET
from experiment.space import Space, suggest
from experiment.training import train
from tracking.store import client


def options(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that set a trial's values."""
    return tuple(f"--{option}={value}" for option, value in params.items())


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

    arguments: tuple[str, ...]
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
        run = train([*self.arguments, *options(values), name, QUIET], tags, test=False, callbacks=[report])
        trial.set_user_attr("run_id", run.run_id)
        if report.pruned:
            client().set_tag(str(run.run_id), "pruned", f"after epoch {run.trainer.current_epoch}")
            raise optuna.TrialPruned
        if run.diverged:
            return math.inf
        if "val/loss" not in run.trainer.callback_metrics:
            sys.exit("tune.py: error: no validation took place, so there is nothing to compare trials by")
        loss = run.trainer.callback_metrics["val/loss"].item()
        return loss if math.isfinite(loss) else math.inf  # a trial whose value is no number would be tried for ever
