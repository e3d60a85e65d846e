"""The learning rate of every step, in the logger."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger

from reporting.figures import line_figure


class Trajectory(Callback):
    """Record what `training_step` returns beside the loss: rate, and hypergradient and lookahead loss where there are.

    A module that returns no `lr` is asked for its optimizer's. The points of an epoch go to the loggers at its end, and
    when the run ends, however it ends. In the end the whole course is kept in MLflow as `schedule.csv` (step, lr,
    decay), which `replay` reads.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, Any]]] = []
        self.course: dict[int, dict[str, float]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the optimizer's rate before a schedule moves it."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's scalars as they are: reading them here would wait for the device."""
        seen = {"lr": self._lr} | (outputs if isinstance(outputs, dict) else {})
        seen.pop("loss", None)
        self.points.append((trainer.global_step, seen))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the points of the epoch."""
        self._log(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded: the schedule of a run that was killed and went on is whole."""
        return {"points": self.points, "course": self.course}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.points, self.course = state_dict["points"], state_dict["course"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hand over what there is."""
        self._log(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the rate against the step, and keep the schedule."""
        self._log(trainer)
        if trainer.is_global_zero and isinstance(trainer.logger, MLFlowLogger) and self.course:
            client, run_id = trainer.logger.experiment, trainer.logger.run_id
            rates = [seen["lr"] for seen in self.course.values()]
            figure = line_figure({"learning rate": (list(self.course), rates)}, "step", "learning rate", log=True)
            client.log_figure(run_id, figure, "trajectory.png")
            lines = [f"{step},{seen['lr']!r},{seen.get('decay', 0.0)!r}\n" for step, seen in self.course.items()]
            client.log_text(run_id, "step,lr,decay\n" + "".join(lines), "schedule.csv")

    def _log(self, trainer: Trainer) -> None:
        points, self.points = self.points, []
        for step, seen in points:
            self.course[step] = {name: float(value) for name, value in seen.items()}
            for logger in trainer.loggers:
                logger.log_metrics(self.course[step], step)
