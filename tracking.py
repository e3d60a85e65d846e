"""Lightning's MLflow logger on this project's store: points go together, and a store that is away ends no run."""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

import train
from store import EXPERIMENT, FAULTS, artifact_dir, cause, client, open_experiment, tracking_uri

LARGEST_BATCH = 1_000  # points that MLflow takes in one call
PATIENCE = 5.0, 60.0  # seconds that points may wait; and at most, while the store is away


class PatientClient(MlflowClient):
    """MLflow's client for a run in progress: what the store does not take is kept in a folder, to be delivered.

    `away`: the store refused the last call; `told`: it was said where the folder is.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.away = self.told = False

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Return whether the store took the call; say so when it begins to refuse, and when it is back."""
        try:
            call(*args, **kwargs)
        except FAULTS as error:
            if not self.away:
                _say(f"the MLflow store is away: {cause(error)}. Training goes on; what it did not take is kept.")
            self.away = True
        else:
            if self.away:
                _say("the MLflow store is back.")
            self.away = False
        return not self.away

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Set a tag, if the store takes it."""
        self.attempt(super().set_tag, run_id, key, value, synchronous)

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        """Name the data, if the store takes it."""
        self.attempt(super().log_inputs, run_id, datasets, models)

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Send a file (`log_text` and `log_figure` come here too), or keep it."""
        if not self.attempt(super().log_artifact, run_id, local_path, artifact_path):
            folder = undelivered(run_id) / "artifacts" / (artifact_path or "")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(local_path, folder)

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """Send the files of a folder, or keep them."""
        for file in sorted(Path(local_dir).iterdir()):
            self.log_artifact(run_id, str(file), artifact_path)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """End the run; where that fails, say where what it did is kept, and how it gets into the store."""
        if not self.attempt(super().set_terminated, run_id, status, end_time):
            keep(run_id, "status.json", status or "FINISHED")
        folder = undelivered(run_id)
        if folder.is_dir() and not self.told:
            self.told = True
            command = f"python tracking.py {shlex.quote(str(folder))}"
            _say(f"what the store did not take lies in {folder}. To deliver it: {command}")


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
        while self.points and store.attempt(send, store, run_id, self.points[:LARGEST_BATCH]):
            del self.points[:LARGEST_BATCH]
        self.sent = time.monotonic()
        self.patience = min(2 * self.patience, PATIENCE[1]) if store.away else PATIENCE[0]

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send what has waited, or keep it in a file, and end the run."""
        if not self._initialized:
            return
        self.flush()
        if self.points:
            keep(str(self.run_id), "metrics.json", [dict(point) for point in self.points])
        if self._checkpoint_callback:
            self._scan_and_log_checkpoints(self._checkpoint_callback)
        self.experiment.set_terminated(str(self.run_id), "FAILED" if status == "failed" else "FINISHED")

    @property
    def save_dir(self) -> str:
        """Where Lightning puts checkpoints: `mlruns/<experiment>/<run>/checkpoints`, beside the run's artifacts."""
        return str(artifact_dir())

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name


def _say(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)


def send(store: MlflowClient, run_id: str, points: Sequence[Metric]) -> None:
    """Send points, as many as MLflow takes in one call."""
    store.log_batch(run_id, metrics=points)


def undelivered(run_id: str) -> Path:
    """Return the folder that holds what the store did not take of a run."""
    return artifact_dir() / "undelivered" / run_id


def keep(run_id: str, name: str, content: Any) -> None:
    """Write into that folder."""
    undelivered(run_id).mkdir(parents=True, exist_ok=True)
    (undelivered(run_id) / name).write_text(json.dumps(content))


def deliver(folder: Path) -> None:
    """Send what such a folder holds, and remove it."""
    store, run_id = client(), folder.resolve().name
    metrics, status = folder / "metrics.json", folder / "status.json"
    points = [Metric(**point) for point in json.loads(metrics.read_text())] if metrics.is_file() else []
    for start in range(0, len(points), LARGEST_BATCH):
        send(store, run_id, points[start : start + LARGEST_BATCH])
    if (folder / "artifacts").is_dir():
        store.log_artifacts(run_id, str(folder / "artifacts"))
    if status.is_file():
        store.set_terminated(run_id, json.loads(status.read_text()))
    shutil.rmtree(folder)
    print(f"delivered {len(points)} points of run {run_id}")


def last_steps(run_id: str) -> dict[str, int]:
    """Return the last step of each metric of a run, which goes on."""
    store = client()
    store.update_run(run_id, "RUNNING")
    names = store.get_run(run_id).data.metrics
    return {name: max(point.step for point in store.get_metric_history(run_id, name)) for name in names}


def main() -> None:
    """Deliver the folders named on the command line."""
    parser = argparse.ArgumentParser(prog="tracking.py", description=deliver.__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="mlruns/undelivered/RUN")
    for folder in parser.parse_args().folder:
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
        deliver(folder)


if __name__ == "__main__":
    train.script(main)
