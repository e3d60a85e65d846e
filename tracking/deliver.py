"""Send what the MLflow store did not take of a run: `python -m tracking.deliver FILE`."""

import argparse
import json
import shutil
from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from tracking.store import FAULTS, cause, client

# points that MLflow takes in one call
LARGEST = 1_000
LOCK, COPIES = ".writer", "pending"

Record = tuple[str, Any]
"""The kind of a call to MLflow, and its content as JSON can hold it."""


def send(store: MlflowClient, run_id: str, records: Sequence[Record]) -> int:
    """Send the first record, or as many points as go together, and return how many records that were."""
    if points := [point for _, point in takewhile(lambda record: record[0] == "metric", islice(records, LARGEST))]:
        store.log_batch(run_id, metrics=[Metric(*point) for point in points])
        return len(points)
    match records[0]:
        case "params", content:
            store.log_batch(run_id, params=[Param(*pair) for pair in content.items()])
        case "tags", content:
            store.log_batch(run_id, tags=[RunTag(*pair) for pair in content.items()])
        case "inputs", content:
            inputs = [
                (Dataset(**part["dataset"]), [InputTag(*pair) for pair in part["tags"].items()]) for part in content
            ]
            store.log_inputs(run_id, [DatasetInput(*pair) for pair in inputs])
        case "artifact", (path, folder):
            store.log_artifact(run_id, path, folder)
        case "status", (status, when):
            store.set_terminated(run_id, status, when)
    return 1


def read(file: Path) -> list[Record]:
    """Return the records of such a file; none if it does not exist."""
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def remove(file: Path) -> None:
    """Remove such a file, and the copies of artifacts next to it."""
    file.unlink(missing_ok=True)
    shutil.rmtree(file.with_name(COPIES), ignore_errors=True)


def main() -> None:
    """Send what the MLflow store did not take of a run, and remove the file."""
    parser = argparse.ArgumentParser(prog="python -m tracking.deliver", description=main.__doc__)
    parser.add_argument("file", type=Path, help="mlruns/EXPERIMENT/RUN/undelivered.jsonl")
    file = parser.parse_args().file.resolve()
    if file.name != "undelivered.jsonl" or not file.is_file():
        parser.error(f"{file} is not an existing undelivered.jsonl: was it sent already?")
    try:
        with FileLock(file.with_name(LOCK), timeout=0):
            left = records = read(file)
            while left:
                left = left[send(client(), file.parent.name, left) :]
            remove(file)
    except FAULTS as error:
        parser.error(f"{cause(error)}. What was not sent stays in {file}.")
    print(f"sent {len(records)} records of run {file.parent.name}")


if __name__ == "__main__":
    main()
