"""What a run logs waits in a file until the store has it: the store can neither stop the run nor lose a point."""

import json
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, RunTag

from tracking.deliver import COPIES, LARGEST, Record, read, remove, send
from tracking.store import cause

# seconds between two sendings, and how long the training waits for a store that takes nothing
PATIENCE = 5.0


class Buffer:
    """Records of a run, in order: kept in a file until a thread has sent them.

    `failing`: the store took nothing for too long, so nobody waits for it until it takes something again.
    """

    def __init__(self, store: MlflowClient, run_id: str, file: Path) -> None:
        self.store, self.run_id, self.file = store, run_id, file
        # of a process that was killed
        self.records = read(file)
        self.error, self.failing, self.due, self.sending = "it does not answer", False, False, False
        self.changed = threading.Condition()
        file.parent.mkdir(parents=True, exist_ok=True)

    def add(self, *records: Record) -> None:
        """Keep the records; they are sent within seconds."""
        with self.changed:
            self.records += records
            # in one piece: a process that is killed leaves no half line
            with self.file.open("ab", buffering=0) as out:
                out.write("".join(json.dumps(record) + "\n" for record in records).encode())
            self._start()

    def add_file(self, path: Path, folder: str | None) -> None:
        """Keep an artifact: a copy, unless it is in the run's own folder."""
        path = path.resolve()
        with self.changed:
            if self.file.parent.resolve() not in path.parents:
                copies = self.file.with_name(COPIES)
                copies.mkdir(exist_ok=True)
                path = Path(shutil.copy(path, tempfile.mkdtemp(dir=copies))).resolve()
            self.add(("artifact", (str(path), folder)))

    def wait(self) -> bool:
        """Send now, and return whether the store has everything; give up when it takes nothing for seconds."""
        with self.changed:
            self.due = True
            self._start()
            self.changed.notify_all()
            # notified whenever the store has taken something
            while self.records and self.changed.wait(PATIENCE):
                continue
            self.failing, self.due = bool(self.records), False
            return not self.records

    def _start(self) -> None:
        if self.records and not self.sending:
            self.sending = True
            threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        sent, more = 0, True
        while more:
            with self.changed:
                if not sent:
                    self.changed.wait_for(lambda: self.due, PATIENCE)
                first = self.records[:LARGEST]
            try:
                sent = send(self.store, self.run_id, first)
            # whatever a store, or a proxy in between, raises: the records stay
            except Exception as error:
                sent, self.error = 0, cause(error)
                time.sleep(1)
                continue
            with self.changed:
                del self.records[:sent]
                self.failing = False
                self.sending = more = bool(self.records)
                if not more:
                    remove(self.file)
                self.changed.notify_all()


class BufferedClient(MlflowClient):
    """MLflow's client for a run in progress: what writes goes through the buffer, and neither waits nor fails."""

    def __init__(self, buffer: Buffer, uri: str) -> None:
        super().__init__(uri)
        self.buffer, self.told = buffer, False

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
        kinds = (("params", params), ("tags", tags))
        records += [(kind, {pair.key: pair.value for pair in pairs}) for kind, pairs in kinds if pairs]
        self.buffer.add(*records)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Keep a tag."""
        self.buffer.add(("tags", {key: str(value)}))

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInput] | None = None, models: Any = None) -> None:
        """Keep the names and digests of the data."""
        self.buffer.add(("inputs", [given.to_dictionary() for given in datasets or ()]))

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Keep a file; `log_text`, `log_dict` and `log_figure` come here too."""
        self.buffer.add_file(Path(local_path), artifact_path)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """End the run: wait a few seconds for the store, and print what to do if it has not everything."""
        buffer = self.buffer
        buffer.add(("status", (status or "FINISHED", end_time or int(1000 * time.time()))))
        if not self.told and not buffer.wait():
            self.told = True
            print(
                f"{Path(sys.argv[0]).name}: the MLflow store did not take everything ({buffer.error}). The rest is in "
                f"{buffer.file}. When it is back, run: python -m tracking.deliver {shlex.quote(str(buffer.file))}",
                file=sys.stderr,
            )
