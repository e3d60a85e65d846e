"""What a run logs waits in a file until the store has it: the store can neither stop the run nor lose a point."""

import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from tracking.store import cause

# points that MLflow takes in one call
LARGEST = 1_000
# seconds between two sendings, and how long the end of a run waits for a store that takes nothing
PATIENCE = 5.0

Record = tuple[str, Any]
"""A "metric", "pairs" of params and tags, or another method of MLflow's client; and its content, for JSON."""


def read(file: Path) -> list[Record]:
    """Return the records of such a file; none if it does not exist."""
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def send(store: MlflowClient, run_id: str, records: Sequence[Record]) -> int:
    """Send the first record, or as many points as go together, and return how many records that were."""
    if points := [point for _, point in takewhile(lambda record: record[0] == "metric", records[:LARGEST])]:
        store.log_batch(run_id, metrics=[Metric(*point) for point in points])
        return len(points)
    call, content = records[0]
    if call == "pairs":
        params, tags = content
        store.log_batch(run_id, params=[Param(*pair) for pair in params], tags=[RunTag(*pair) for pair in tags])
    else:
        getattr(store, call)(run_id, *content)
    return 1


class BufferedClient(MlflowClient):
    """MLflow's client for a run in progress: what it writes is kept in a file until a thread has sent it.

    So a call neither waits nor fails, and what is left in the end can be sent later.

    Args:
        store: the client that sends.
        run_id: the run.
        file: of the records; those of a process that was killed are sent first.
    """

    def __init__(self, store: MlflowClient, run_id: str, file: Path) -> None:
        super().__init__(store.tracking_uri)
        self.store, self.run_id, self.file, self.records = store, run_id, file, read(file)
        self.error, self.begun, self.thread = "it does not answer", time.monotonic(), threading.Thread()
        self.lock, self.sending = threading.RLock(), False
        file.parent.mkdir(parents=True, exist_ok=True)

    def wait(self) -> bool:
        """Send now, and return whether the store has everything; give up when it takes nothing for seconds."""
        left, until = len(self.records), time.monotonic() + PATIENCE
        while self.records and time.monotonic() < until:
            self._start()
            self.thread.join(0.1)
            if len(self.records) < left:
                left, until = len(self.records), time.monotonic() + PATIENCE
        return not self.records

    def _add(self, *records: Record) -> None:
        with self.lock:
            self.records += records
            # in one piece: a process that is killed leaves no half line
            with self.file.open("ab", buffering=0) as out:
                out.write("".join(json.dumps(record) + "\n" for record in records).encode())
            if time.monotonic() - self.begun > PATIENCE:
                self._start()

    def _start(self) -> None:
        with self.lock:
            if self.records and not self.sending:
                self.sending, self.begun = True, time.monotonic()
                self.thread = threading.Thread(target=self._send, daemon=True)
                self.thread.start()

    def _send(self) -> None:
        try:
            while self.sending:
                sent = send(self.store, self.run_id, self.records)
                with self.lock:
                    del self.records[:sent]
                    self.sending = bool(self.records)
                    if not self.records:
                        self.file.unlink()
        # whatever a store, or a proxy in between, raises: the records stay, for another thread
        except Exception as error:
            self.error = cause(error)
            time.sleep(0.1)
            self.sending = False

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        """Keep points, params and tags."""
        records: list[Record] = [("metric", (m.key, m.value, m.timestamp, m.step)) for m in metrics]
        if params or tags:
            records.append(("pairs", [[(pair.key, pair.value) for pair in pairs] for pairs in (params, tags)]))
        self._add(*records)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Keep a tag."""
        self.log_batch(run_id, tags=[RunTag(key, str(value))])

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Keep a file, in the run's own folder; `log_text`, `log_dict` and `log_figure` come here too."""
        path, own = Path(local_path).resolve(), self.file.parent.resolve()
        if own not in path.parents:
            place = own / (artifact_path or "")
            place.mkdir(parents=True, exist_ok=True)
            path = Path(shutil.copy(path, place))
        self._add(("log_artifact", (str(path), artifact_path)))

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """End the run: wait a few seconds for the store, and print what to do if it has not everything."""
        self._add(("set_terminated", (status or "FINISHED", end_time or int(1000 * time.time()))))
        if not self.wait():
            print(
                f"{Path(sys.argv[0]).name}: the MLflow store did not take everything ({self.error}). The rest is in "
                f"{self.file}. When it is back, run: python -m tracking.deliver {shlex.quote(str(self.file))}",
                file=sys.stderr,
            )
