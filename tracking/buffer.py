"""Buffer what a run logs in a file until the store has it, so that a failing store neither stops it nor loses data."""

import errno
import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from tracking.store import cause

# MLflow's limit of points per call
LARGEST = 1_000
# seconds between two attempts to send, and until the end of a run gives up on a store that takes nothing
PATIENCE = 5.0
# bytes: SQLite needs 16 kB to change the status of a run
RESERVED = 65_536

Record = tuple[str, Any]
"""Kind and content: "metric", "pairs" (params and tags) or a method of MLflow's client; its arguments, for JSON."""


def whole_lines(file: Path) -> list[str]:
    """Return the lines of a file that only this process writes, after removing an incomplete last line.

    A killed process may leave one, which the next line would continue.
    """
    file.touch()
    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    return file.read_text().splitlines()


def read(file: Path) -> list[Record]:
    """Return the records in a buffer file; none if it does not exist."""
    return [tuple(json.loads(line)) for line in whole_lines(file)] if file.exists() else []


def send(store: MlflowClient, run_id: str, records: Sequence[Record]) -> int:
    """Send the first record, or a batch of points if it is one, and return the number of records sent."""
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
    """MLflow's client for a run in progress: records are buffered in a file until a thread has sent them.

    Calls neither wait nor fail, and records that remain at the end can be sent later. Records that cannot be written to
    the file are buffered in memory, and are lost if the store has not taken them when the run ends.

    Args:
        store: the client that sends the records.
        run_id: the run.
        file: the buffer file. If a killed process left records in it, they are sent first.
    """

    def __init__(self, store: MlflowClient, run_id: str, file: Path) -> None:
        super().__init__(store.tracking_uri)
        self.store, self.run_id, self.file, self.records = store, run_id, file, read(file)
        self.up, self.error, self.started, self.thread = True, "", time.monotonic(), threading.Thread()
        self.lock, self.sending = threading.RLock(), False
        # records that are not in the file
        self.unwritten: list[Record] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        # space for the final status on a disk that becomes full
        self.reserve = file.with_name(".reserve")
        with suppress(OSError):
            self.reserve.write_bytes(os.urandom(RESERVED))

    def wait(self) -> bool:
        """Send now, and return whether the store has everything; give up when it takes nothing for PATIENCE seconds."""
        left, until = len(self.records), time.monotonic() + PATIENCE
        while self.records and time.monotonic() < until:
            self._start()
            self.thread.join(0.1)
            if len(self.records) < left:
                left, until = len(self.records), time.monotonic() + PATIENCE
        return not self.records

    @property
    def reason(self) -> str:
        """The reason why records remain."""
        silent = self.sending and time.monotonic() - self.started > PATIENCE / 2
        return "it does not answer" if silent or not self.error else self.error

    def flush(self) -> None:
        """Send now and wait until the store has everything, unless the last attempt failed."""
        self.up = self.up and self.wait()

    def _add(self, *records: Record) -> None:
        with self.lock:
            self.records += records
            self.unwritten += records
            # on failure, they stay in memory
            with suppress(OSError):
                self._write()
            if time.monotonic() - self.started > PATIENCE:
                self._start()

    def _write(self) -> None:
        """Append the unwritten records to the file: all of them or none."""
        if not self.unwritten:
            return
        lines = "".join(json.dumps(record) + "\n" for record in self.unwritten).encode()
        # in one call, so that a killed process does not leave half a line
        with self.file.open("ab", buffering=0) as out:
            before = out.tell()
            if out.write(lines) < len(lines):
                out.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.unwritten.clear()

    def _start(self) -> None:
        with self.lock:
            if self.records and not self.sending:
                self.sending, self.started = True, time.monotonic()
                self.thread = threading.Thread(target=self._send, daemon=True)
                self.thread.start()

    def _send(self) -> None:
        try:
            while self.sending:
                sent = send(self.store, self.run_id, self.records)
                with self.lock:
                    del self.records[:sent]
                    self.up, self.sending = True, bool(self.records)
                    if not self.records:
                        self.unwritten.clear()
                        self.file.unlink(missing_ok=True)
        # any error of the store or of a proxy: the records stay, and a later thread sends them
        except Exception as error:
            self.up, self.error = False, cause(error)
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
        """Buffer points, params and tags."""
        records: list[Record] = [("metric", (m.key, m.value, m.timestamp, m.step)) for m in metrics]
        if params or tags:
            records.append(("pairs", [[(pair.key, pair.value) for pair in pairs] for pairs in (params, tags)]))
        self._add(*records)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Buffer a tag."""
        self.log_batch(run_id, tags=[RunTag(key, str(value))])

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Copy a file to the run's folder and buffer it; `log_text`, `log_dict` and `log_figure` call this too."""
        path, own = Path(local_path).resolve(), self.file.parent.resolve()
        if own not in path.parents:
            place = own / (artifact_path or "")
            place.mkdir(parents=True, exist_ok=True)
            path = Path(shutil.copy(path, place))
        self._add(("log_artifact", (str(path), artifact_path)))

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """End the run, after waiting a few seconds for the store.

        If records remain, mark the run as FAILED until they are sent, and print how to send them.
        """
        status = status or "FINISHED"
        self._add(("set_terminated", (status, end_time or int(1000 * time.time()))))
        done = self.wait()
        with suppress(OSError):
            self.reserve.unlink(missing_ok=True)
        if done:
            return
        reason = self.reason
        # the run has ended in any case
        if reason == self.error:
            last = threading.Thread(target=self._fail, args=[status], daemon=True)
            last.start()
            last.join(PATIENCE)
        rest = f"The rest is in {self.file}. When the store works again, run: python -m tracking.deliver "
        rest += shlex.quote(str(self.file))
        try:
            self._write()
        except OSError as error:
            rest = f"{len(self.unwritten)} records are lost ({cause(error)}). Rerun the command."
        command = Path(sys.argv[0]).name
        print(f"{command}: the MLflow store did not take everything ({reason}). {rest}", file=sys.stderr)

    def _fail(self, status: str) -> None:
        """Mark the run as ended but incomplete."""
        with suppress(Exception):
            self.store.set_terminated(self.run_id, "FAILED" if status == "FINISHED" else status)
