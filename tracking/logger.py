"""Lightning's MLflow logger, writing to this project's store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning_fabric.loggers.logger import rank_zero_experiment
from mlflow import MlflowClient
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from tracking.buffer import BufferedClient
from tracking.store import EXPERIMENT, FAULTS, StoreError, artifact_dir, cause, open_experiment, tracking_uri


class Tracker(MLFlowLogger):
    """Lightning's MLFlowLogger, writing to this project's store through a buffer (`tracking.buffer`).

    Args:
        experiment_name: the experiment, created if it does not exist (default: that of this project's tasks).
        run_name: name of the run.
        tags: tags of the run.
        run_id: an existing run to resume. Points that it already has are not logged again.

    Raises:
        StoreError: the store cannot be used.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        experiment_name = experiment_name or EXPERIMENT
        open_experiment(experiment_name)
        super().__init__(experiment_name, run_name, tracking_uri(), run_id=run_id)
        # jsonargparse reads "0" as a number
        self.tags: dict[str, str] = {name: str(value) for name, value in (tags or {}).items()}
        self.buffered: BufferedClient | None = None
        # the last one written: ModelCheckpoint sets its path before it writes
        self.checkpoint: Path | None = None
        # metric -> last step that the run has a point of
        self.logged: dict[str, int] = {}
        # whether the caller ends the run, not Lightning at the end of `fit`
        self.ended_by_caller = False

    def describe(self, name: str, tags: dict[str, str], run_id: str | None) -> None:
        """Name and tag the run before it is created, or resume an existing one. A name given by the user stays."""
        self._run_name, self._run_id = self._run_name or name, run_id
        self.tags |= tags

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The buffered MLflow client. The first use creates or resumes the run.

        Raises:
            StoreError: the store does not accept the run, or another process writes to it.
        """
        if self.buffered is None:
            resumes = self._run_id is not None
            try:
                store = super().experiment
                run_id = str(self._run_id)
                folder = artifact_dir() / self.name / run_id
                self.lock = FileLock(folder / ".writer", timeout=0)
                self.lock.acquire()
                buffered = BufferedClient(store, run_id, folder / "undelivered.jsonl")
                if resumes and not buffered.wait():
                    raise OSError(f"the store does not accept {buffered.file}: {buffered.reason}")
                for name in store.get_run(run_id).data.metrics if resumes else ():
                    self.logged[name] = max(point.step for point in store.get_metric_history(run_id, name))
                store.update_run(run_id, "RUNNING")
            except FAULTS as error:
                another = "another process writes to it. Stop that process, or wait until it ends"
                reason = another if isinstance(error, Timeout) else cause(error)
                raise StoreError(f"Run {self._run_id or self._run_name} cannot be written: {reason}.") from error
            self.buffered = buffered
        return self.buffered

    @rank_zero_only
    def hold(self) -> None:
        """Lock the run for this process, or raise StoreError."""
        _ = self.experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the points that the run does not have yet."""
        now = step or 0
        new = {name: value for name, value in metrics.items() if now > self.logged.get(name, -1)}
        self.logged |= dict.fromkeys(new, now)
        super().log_metrics(new, now)

    @rank_zero_only
    def flush(self) -> None:
        """Send everything logged so far, before a later checkpoint is written."""
        self.experiment.flush()

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember the checkpoint: the last one becomes an artifact."""
        self.checkpoint = Path(checkpoint_callback.best_model_path)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run, unless its caller does."""
        if not self.ended_by_caller:
            self.end("FAILED" if status == "failed" else "FINISHED")

    @rank_zero_only
    def end(self, status: str) -> None:
        """Log the last checkpoint and the status, if there is a run."""
        if self.buffered is None:
            return
        if self.checkpoint and self.checkpoint.is_file():
            self.buffered.log_artifact(str(self.run_id), str(self.checkpoint), self.checkpoint.stem)
        self.buffered.set_terminated(str(self.run_id), status)
        self.lock.release()

    @property
    def save_dir(self) -> str:
        """The root of the checkpoints, which Lightning writes to `mlruns/EXPERIMENT/RUN/checkpoints`."""
        return str(artifact_dir())

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name
