"""Lightning's MLflow logger on this project's store: points go together, and a store that is away ends no run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from tracking.delivery import LARGEST_BATCH, PatientClient, keep, send
from tracking.lease import Lease
from tracking.store import EXPERIMENT, artifact_dir, client, open_experiment, tracking_uri

PATIENCE = 5.0, 60.0  # seconds that points may wait; and at most, while the store is away


class Tracker(MLFlowLogger):
    """Lightning's MLFlowLogger on the store of this project; points wait a few seconds, and go together.

    Args:
        experiment_name: made where it does not exist.
        run_name: the arm, where none is given.
        tags: of the run.
        run_id: an existing run, to be continued: the points that it has already are not sent again.
    """

    def __init__(
        self,
        experiment_name: str = EXPERIMENT,
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        open_experiment(experiment_name)
        words = {name: str(value) for name, value in (tags or {}).items()}  # jsonargparse made a number of "0"
        super().__init__(experiment_name, run_name, tracking_uri(), words, log_model=True, run_id=run_id)
        self._mlflow_client = self.patient = PatientClient(tracking_uri())  # what `experiment` returns
        self.points: list[Metric] = []
        self.sent, self.patience = time.monotonic(), PATIENCE[0]
        self.kept = last_steps(run_id) if run_id else {}
        self.lease: Lease | None = None
        self.begun = run_id is None  # here, not elsewhere
        self.test_follows = False  # then the end of `fit` is not the end of the run

    @rank_zero_only
    def hold(self) -> None:
        """Become the one writer of the run.

        Raises:
            StoreError: there is one.
        """
        if self.lease is None:
            lease = Lease(str(self.run_id), Path(self.save_dir, self.name, str(self.run_id)))
            lease.take(new=self.begun)
            self.lease = lease
            if not self.begun:  # now: what was refused before leaves the run as it was
                client().update_run(str(self.run_id), "RUNNING")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collect the points: to send them costs as much as many steps."""
        when = int(1000 * time.time())
        now = step or 0
        new = {name: value for name, value in metrics.items() if now > self.kept.get(name, -1)}
        self.points += [Metric(name, float(value), when, now) for name, value in new.items()]
        if time.monotonic() - self.sent > self.patience:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Send what has waited; not named `save`, which Lightning calls after each epoch."""
        store, run_id = self.patient, str(self.run_id)
        if self.lease:
            store.attempt(self.lease.beat)
        while self.points and store.attempt(send, store, run_id, self.points[:LARGEST_BATCH]):
            del self.points[:LARGEST_BATCH]
        self.sent = time.monotonic()
        self.patience = min(2 * self.patience, PATIENCE[1]) if store.away else PATIENCE[0]

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send what has waited, or keep it in a file, and end the run, unless its test follows."""
        if not self._initialized:
            return
        self.flush()
        if self.test_follows and status == "success":
            return
        if self.points:
            keep(str(self.run_id), "metrics.json", [dict(point) for point in self.points])
        if self._checkpoint_callback:
            self._scan_and_log_checkpoints(self._checkpoint_callback)
        self.experiment.set_terminated(str(self.run_id), "FAILED" if status == "failed" else "FINISHED")
        if self.lease:
            self.lease.lock.release()
            self.lease = None

    @property
    def save_dir(self) -> str:
        """Where Lightning puts checkpoints: `mlruns/<experiment>/<run>/checkpoints`, beside the run's artifacts."""
        return str(artifact_dir())

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name


def last_steps(run_id: str) -> dict[str, int]:
    """Return the last step of each metric of a run, which goes on."""
    store = client()
    names = store.get_run(run_id).data.metrics
    return {name: max(point.step for point in store.get_metric_history(run_id, name)) for name in names}
