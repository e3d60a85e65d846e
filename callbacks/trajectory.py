"""The learning rate of every step, in MLflow."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger

from plots import line_figure

LARGEST_BATCH = 1_000  # points that MLflow takes in one call
PATIENCE = 5.0  # seconds that points may wait: a call costs as much as many steps


class Trajectory(Callback):
    """Record what `training_step` returns beside the loss: rate, and hypergradient and lookahead loss where there are.

    A module that returns no `lr` is asked for its optimizer's. One point of each name a step goes to MLflow, in batches
    at the end of an epoch, every few seconds, and when the run ends, however it ends: a call a point would cost more
    than the step. In the end the whole course is kept as `schedule.csv` (step, lr, shrink), which `replay` reads.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, int, dict[str, Any]]] = []
        self.course: dict[int, dict[str, float]] = {}
        self.sent = time.monotonic()

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
        """Send the points that have waited."""
        if time.monotonic() - self.sent > PATIENCE:
            self._flush(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Send what there is."""
        self._flush(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send what there is and draw the rate against the step."""
        self._flush(trainer)
        if isinstance(trainer.logger, MLFlowLogger) and self.course:
            client, run_id = trainer.logger.experiment, trainer.logger.run_id
            rates = [seen["lr"] for seen in self.course.values()]
            figure = line_figure({"learning rate": (list(self.course), rates)}, "step", "learning rate", log=True)
            client.log_figure(run_id, figure, "trajectory.png")
            lines = [f"{step},{seen['lr']!r},{seen.get('shrink', 0.0)!r}\n" for step, seen in self.course.items()]
            client.log_text(run_id, "step,lr,shrink\n" + "".join(lines), "schedule.csv")

    def _flush(self, trainer: Trainer) -> None:
        points, self.points, self.sent = self.points, [], time.monotonic()
        metrics = []
        for step, when, seen in points:
            values = {name: float(value) for name, value in seen.items()}
            self.course[step] = {name: value for name, value in values.items() if name in ("lr", "shrink")}
            metrics += [(name, value, when, step) for name, value in values.items()]
        if isinstance(trainer.logger, MLFlowLogger):
            from mlflow.entities import Metric  # late: who logs elsewhere need not have it

            for start in range(0, len(metrics), LARGEST_BATCH):
                chunk = [Metric(*point) for point in metrics[start : start + LARGEST_BATCH]]
                trainer.logger.experiment.log_batch(trainer.logger.run_id, metrics=chunk)
