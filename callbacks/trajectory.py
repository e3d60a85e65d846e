"""Record the learning rate of every step, in a file and in the loggers."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger

from callbacks.checkpoint import ends
from reporting.curves import courses, read_schedule
from reporting.figures import evolution

HEADER = b"step,lr,decay,hypergradient\n"


class Trajectory(Callback):
    """Records what `training_step` returns besides the loss: the rate, and hypergradient and lookahead loss if present.

    The newest values are logged every `log_every_n_steps` steps and at the last one. With MLflow, every step is a row
    of `schedule.csv`, next to the run's checkpoints. At the end this file is logged as an artifact, and so is a figure
    of it, unless the run is part of a sweep.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, Any]]] = []
        self.newest: dict[str, float] = {}
        self.steps = 0
        # size and digest of the file so far; `saved`: those in the checkpoint from which the run resumes
        self.size, self.digest, self.saved = 0, sha256(), dict[str, Any]()

    def state_dict(self) -> dict[str, Any]:
        """Return the size of the file and its digest."""
        return {"size": self.size, "sha256": self.digest.hexdigest()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the size of the file and its digest: a resumed run continues from that part of the file."""
        self.saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the file, or continue that of the checkpoint's run."""
        self.points.clear()
        self.newest.clear()
        self.steps = trainer.global_step
        self.size, self.digest = 0, sha256()
        if file := schedule_file(trainer):
            begun = schedule_until(trainer.ckpt_path, self.saved) if trainer.ckpt_path else HEADER
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
            self._write(file, begun)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the outputs of a step; reading them here would wait for the device."""
        # false while gradients are accumulated
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.points.append((self.steps, outputs))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log and write the points of the epoch, before a checkpoint is written."""
        every, last = max(1, trainer.log_every_n_steps), trainer.global_step if ends(trainer) else -1  # type: ignore[attr-defined]
        rows = ""
        for step, outputs in self.points:
            seen = {name: float(value) for name, value in outputs.items() if name != "loss"}
            rows += f"{step},{seen['lr']},{seen.get('decay', 0.0)},{seen.get('hypergradient', '')}\n"
            self.newest |= seen
            if step % every == 0 or step == last:
                for logger in trainer.loggers:
                    logger.log_metrics(self.newest, step)
                self.newest = {}
        self.points.clear()
        if file := schedule_file(trainer):
            self._write(file, rows.encode())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the schedule so far."""
        self._keep(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the schedule and a figure of it."""
        file = self._keep(trainer, pl_module)
        if file and "mlflow.parentRunId" not in getattr(trainer.logger, "tags", {}):
            figure = evolution(courses(pd.DataFrame([{"arm": "", "val_losses": []} | read_schedule(file)])))
            picture = file.with_name("trajectory.png")
            figure.savefig(picture)
            trainer.logger.experiment.log_artifact(trainer.logger.run_id, str(picture))  # type: ignore[union-attr]

    def _write(self, file: Path, rows: bytes) -> None:
        with file.open("ab") as out:
            out.write(rows)
        self.size += len(rows)
        self.digest.update(rows)

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> Path | None:
        """Log the schedule, and the cost as the tag `passes`: 1 is that of plain training."""
        # before the first step MLflow has no run
        if not trainer.global_step or not (file := schedule_file(trainer)):
            return None
        if not file.exists():
            # the run had already finished when it was resumed
            self.on_train_start(trainer, pl_module)
        self.on_train_epoch_end(trainer, pl_module)
        client, run_id = trainer.logger.experiment, trainer.logger.run_id  # type: ignore[union-attr]
        client.set_tag(run_id, "passes", 1 + getattr(pl_module, "passes", 0.0) / trainer.global_step)
        client.log_artifact(run_id, str(file))
        return file


def schedule_until(checkpoint: str | Path, state: Mapping[str, Any]) -> bytes:
    """Return the schedule up to a checkpoint, from the file in its run's folder; without the file, the header alone.

    state: the state of `Trajectory` in the checkpoint.

    Raises:
        ValueError: the file was changed.
    """
    file = Path(checkpoint).resolve().parents[1] / "schedule.csv"
    if not state or not file.exists():
        return HEADER
    begun = file.read_bytes()[: state["size"]]
    if sha256(begun).hexdigest() != state["sha256"]:
        raise ValueError(
            f"{file} was changed after its run wrote it. Restore it, or remove it: its steps are then left out."
        )
    return begun


def schedule_file(trainer: Trainer) -> Path | None:
    """Return the path of the file; None without MLflow, and in processes other than the first."""
    logger = trainer.logger
    if not trainer.is_global_zero or not isinstance(logger, MLFlowLogger):
        return None
    return Path(str(logger.save_dir), str(logger.name), str(logger.run_id), "schedule.csv")
