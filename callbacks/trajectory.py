"""The learning rate of every step, in the logger."""

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger

from reporting.curves import courses, read_schedule
from reporting.figures import evolution

MOST = 100  # points that wait to be handed over
COLUMNS = ["step", "lr", "decay", "hypergradient"]
Point = tuple[int, dict[str, float]]
"""A step, and what was seen there, by name."""


class Trajectory(Callback):
    """Record what `training_step` returns beside the loss: rate, and hypergradient and lookahead loss where there are.

    A module that returns no `lr` is asked for its optimizer's. The points go to the loggers every hundred steps, at the
    end of an epoch, and when the run ends, however it ends; those between two equal ones stay out, as a line through
    the others runs through them. With MLflow, `schedule.csv` (a row a step) grows beside the run's checkpoints, and is
    kept as its artifact in the end, as is a figure of it, where the run is not one of many.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, Any]]] = []
        self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the schedule, or go on after the steps that the run has, or the one whose checkpoint it was."""
        self.steps = trainer.global_step
        if file := _schedule(trainer):
            waiting = self.points[0][0] if self.points else self.steps + 1
            source = file if file.exists() or not trainer.ckpt_path else Path(trainer.ckpt_path).parents[1] / file.name
            rows = [row for row in _read(source) if int(row[0]) < waiting]
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", newline="") as out:
                csv.writer(out).writerows([COLUMNS, *rows])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the optimizer's rate before a schedule moves it."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's scalars as they are: reading them here would wait for the device."""
        if trainer.global_step == self.steps:  # gradients are accumulated
            return
        self.steps = trainer.global_step
        seen = {"lr": self._lr} | (outputs if isinstance(outputs, dict) else {})
        seen.pop("loss", None)
        self.points.append((self.steps, seen))
        if len(self.points) == MOST:
            self._hand_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the points of the epoch."""
        self._hand_over(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the points that wait."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.points = state_dict["points"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hand over what there is."""
        self._keep(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the rest, and draw the rate against the step."""
        file = self._keep(trainer, pl_module)
        if file and "mlflow.parentRunId" not in getattr(trainer.logger, "tags", {}):
            figure = evolution(courses(pd.DataFrame([{"arm": "", "val_losses": []} | read_schedule(file)])))
            trainer.logger.experiment.log_figure(trainer.logger.run_id, figure, "trajectory.png")  # type: ignore[union-attr]

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> Path | None:
        """Keep the schedule, and the cost as the tag `passes`: of a batch, a step."""
        self._hand_over(trainer)
        file = _schedule(trainer) if trainer.global_step else None  # before a step MLflow has no run
        if not file or not _read(file):
            return None
        client, run_id = trainer.logger.experiment, trainer.logger.run_id  # type: ignore[union-attr]
        client.set_tag(run_id, "passes", 1 + getattr(pl_module, "passes", 0.0) / trainer.global_step)
        client.log_artifact(run_id, str(file))
        return file

    def _hand_over(self, trainer: Trainer) -> None:
        points, self.points = [(step, {k: float(v) for k, v in seen.items()}) for step, seen in self.points], []
        for step, seen in needed(points):
            for logger in trainer.loggers:
                logger.log_metrics(seen, step)
        if points and (file := _schedule(trainer)):
            with file.open("a", newline="") as out:
                csv.writer(out).writerows(
                    [step, repr(seen["lr"]), repr(seen.get("decay", 0.0)), seen.get("hypergradient", "")]
                    for step, seen in points
                )


def needed(points: list[Point]) -> Iterator[Point]:
    """Yield the points without the values that equal the one before and the one after, of the same name."""
    kept: list[dict[str, float]] = [{} for _ in points]
    for name in dict.fromkeys(name for _, seen in points for name in seen):
        values = {index: seen[name] for index, (_, seen) in enumerate(points) if name in seen}
        for _, equal in groupby(values, values.__getitem__):
            first, *rest = equal
            for index in (first, *rest[-1:]):
                kept[index][name] = values[index]
    return ((step, seen) for (step, _), seen in zip(points, kept, strict=True) if seen)


def _schedule(trainer: Trainer) -> Path | None:
    """Return the file, beside the run's checkpoints; None without MLflow, and in other processes than the first."""
    logger = trainer.logger
    if not trainer.is_global_zero or not isinstance(logger, MLFlowLogger):
        return None
    return Path(str(logger.save_dir), str(logger.name), str(logger.run_id), "schedule.csv")


def _read(file: Path) -> list[list[str]]:
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.reader(lines))[1:]
