"""What the store did not take of a run is kept in a folder; `python -m tracking.delivery FOLDER` delivers it."""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tracking.store import FAULTS, artifact_dir, cause, client

LARGEST_BATCH = 1_000  # points that MLflow takes in one call

Facts = dict[str, dict[str, str]]
"""Of a run: {"params": {name: value}, "tags": {name: value}}."""


class PatientClient(MlflowClient):
    """MLflow's client for a run in progress: what the store does not take is kept in a folder, to be delivered.

    `away`: the store refused the last call; `told`: it was said where the folder is; `facts`: parameters and tags that
    it refused, which are sent again at the end.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.away = self.told = False
        self.facts: Facts = {"params": {}, "tags": {}}

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
        """Set a tag, or remember it."""
        self.facts["tags"].pop(key, None)
        if not self.attempt(super().set_tag, run_id, key, value, synchronous):
            self.facts["tags"][key] = str(value)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        """Send parameters and tags, or remember them; points are the `Tracker`'s to send again."""
        if metrics:
            super().log_batch(run_id, metrics, params, tags, synchronous)
        elif not self.attempt(super().log_batch, run_id, (), params, tags, synchronous):
            self.facts["params"] |= {param.key: param.value for param in params}
            self.facts["tags"] |= {tag.key: tag.value for tag in tags}

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        """Name the data, if the store takes it."""
        log = super().log_inputs

        def log_or_again() -> None:
            try:
                log(run_id, datasets, models)
            except MlflowException as error:  # another process named the same data in the same moment: now it is there
                if "constraint" not in str(error).lower():
                    raise
                log(run_id, datasets, models)

        self.attempt(log_or_again)

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

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        """Send a data frame, or keep it as the file that MLflow would make of it."""
        if not self.attempt(super().log_table, run_id, data, artifact_file):
            folder = undelivered(run_id) / "artifacts"
            folder.mkdir(parents=True, exist_ok=True)
            data.to_json(folder / artifact_file, orient="split", index=False)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """End the run; where that fails, say where what it did is kept, and how it gets into the store."""
        if any(self.facts.values()) and not self.attempt(send_facts, self, run_id, self.facts):
            keep(run_id, "facts.json", self.facts)
        if not self.attempt(super().set_terminated, run_id, status, end_time):
            keep(run_id, "status.json", status or "FINISHED")
        folder = undelivered(run_id)
        if folder.is_dir() and not self.told:
            self.told = True
            command = f"python -m tracking.delivery {shlex.quote(str(folder))}"
            _say(f"what the store did not take lies in {folder}. To deliver it: {command}")


def _say(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)


def send(store: MlflowClient, run_id: str, points: Sequence[Metric]) -> None:
    """Send points, as many as MLflow takes in one call."""
    store.log_batch(run_id, metrics=points)


def send_facts(store: MlflowClient, run_id: str, facts: Facts) -> None:
    """Send parameters and tags."""
    params = [Param(key, value) for key, value in facts["params"].items()]
    tags = [RunTag(key, value) for key, value in facts["tags"].items()]
    MlflowClient.log_batch(store, run_id, params=params, tags=tags)


def undelivered(run_id: str) -> Path:
    """Return the folder that holds what the store did not take of a run."""
    return artifact_dir() / "undelivered" / run_id


def keep(run_id: str, name: str, content: Any) -> None:
    """Write into that folder."""
    undelivered(run_id).mkdir(parents=True, exist_ok=True)
    (undelivered(run_id) / name).write_text(json.dumps(content))


def is_undelivered(folder: Path) -> bool:
    """Return whether the folder is one of those: no other is to be removed."""
    holds = any((folder / name).exists() for name in ("metrics.json", "facts.json", "status.json", "artifacts"))
    return holds and folder.resolve().parent.name == "undelivered"


def deliver(folder: Path) -> None:
    """Send what such a folder holds, and remove it."""
    store, run_id = client(), folder.resolve().name
    metrics, facts, status = (folder / f"{name}.json" for name in ("metrics", "facts", "status"))
    points = [Metric(**point) for point in json.loads(metrics.read_text())] if metrics.is_file() else []
    for start in range(0, len(points), LARGEST_BATCH):
        send(store, run_id, points[start : start + LARGEST_BATCH])
    if facts.is_file():
        send_facts(store, run_id, json.loads(facts.read_text()))
    if (folder / "artifacts").is_dir():
        store.log_artifacts(run_id, str(folder / "artifacts"))
    if status.is_file():
        store.set_terminated(run_id, json.loads(status.read_text()))
    shutil.rmtree(folder)
    print(f"delivered {len(points)} points of run {run_id}")


def main() -> None:
    """Deliver the folders named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tracking.delivery", description=deliver.__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="mlruns/undelivered/RUN")
    for folder in parser.parse_args().folder:
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
        if not is_undelivered(folder):
            parser.error(
                f"{folder} holds nothing to deliver: name mlruns/undelivered/RUN, as the message of the run did"
            )
        try:
            deliver(folder)
        except FAULTS as error:
            parser.error(f"{cause(error)}. What is not delivered stays in {folder}.")


if __name__ == "__main__":
    main()
