"""The learning rate of every step, in MLflow."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger

from plots import line_figure

LARGEST_BATCH = 1_000  # points that MLflow takes in one call


class Trajectory(Callback):
    """Record what `training_step` returns beside the loss: rate, and hypergradient and lookahead loss where there are.

    A module that returns no `lr` is asked for its optimizer's. One point of each name a step goes to MLflow, in batches
    at the end of an epoch (a call a point would cost more than the step), and when the run ends, however it ends.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, int, dict[str, Any]]] = []
        self.rates: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the optimizer's rate before a schedule moves it."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's scalars as they are: reading them here would wait for the device."""
        seen = {"lr": self._lr} | (outputs if isinstance(outputs, dict) else {})
        seen.pop("loss", None)
        self.points.append((trainer.global_step, int(1000 * time.time()), seen))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the epoch's points."""
        self._flush(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Send what there is."""
        self._flush(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send what there is and draw the rate against the step."""
        self._flush(trainer)
        if isinstance(trainer.logger, MLFlowLogger) and self.rates:
            curve = {"learning rate": (list(self.rates), list(self.rates.values()))}
            figure = line_figure(curve, "step", "learning rate", log=True)
            trainer.logger.experiment.log_figure(trainer.logger.run_id, figure, "trajectory.png")

    def _flush(self, trainer: Trainer) -> None:
        points, self.points = self.points, []
        values = [(step, when, name, float(value)) for step, when, seen in points for name, value in seen.items()]
        self.rates |= {step: value for step, _, name, value in values if name == "lr"}
        if isinstance(trainer.logger, MLFlowLogger):
            from mlflow.entities import Metric  # late: who logs elsewhere need not have it

            metrics = [Metric(name, value, when, step) for step, when, name, value in values]
            for start in range(0, len(metrics), LARGEST_BATCH):
                chunk = metrics[start : start + LARGEST_BATCH]
                trainer.logger.experiment.log_batch(trainer.logger.run_id, metrics=chunk)
