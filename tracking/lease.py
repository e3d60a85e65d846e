"""One writer a run: a lock on this machine, and over a server a heartbeat that other machines see."""

import os
import socket
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from tracking.store import StoreError, client, tracking_uri

GRACE = 60.0  # seconds without a heartbeat after which a writer on another machine is taken for dead
TAG = "writer"


class Lease:
    """The right to write a run, its points and its checkpoints.

    Args:
        run_id: of the run.
        folder: beside the run's checkpoints.
        host: this machine; its name by default.
    """

    def __init__(self, run_id: str, folder: Path, host: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run_id, self.lock = run_id, FileLock(folder / ".writer", timeout=0)
        self.host = host or socket.gethostname()
        self.owner = f"process {os.getpid()} on {self.host}"

    def take(self, new: bool = False) -> None:
        """Take it, where nobody has it: a process that was killed has lost it, one that is suspended has not.

        new: the run was made by this process, so that the store, which may be away by now, need not be asked.

        Raises:
            StoreError: another process writes the run.
        """
        try:
            self.lock.acquire()
        except Timeout:
            raise StoreError(self._says("another process on this machine")) from None
        if new:
            return
        owner, seconds = self._holder()
        if owner and not owner.endswith(f" on {self.host}") and seconds < GRACE:
            self.lock.release()
            raise StoreError(self._says(owner))
        self._mark()

    def beat(self) -> None:
        """Say that this process is alive. One that was taken for dead ends here: what it wrote would spoil the run."""
        if not _shared():
            return
        owner, _ = self._holder()
        if owner not in (None, self.owner):
            print(
                f"{Path(sys.argv[0]).name}: error: {owner} goes on with run {self.run_id}.", file=sys.stderr, flush=True
            )
            os._exit(1)
        self._mark()

    def _holder(self) -> tuple[str | None, float]:
        """Return who wrote last, and how many seconds ago."""
        owner, _, when = client().get_run(self.run_id).data.tags.get(TAG, "").rpartition(" at ")
        return owner or None, time.time() - float(when or 0)

    def _mark(self) -> None:
        client().set_tag(self.run_id, TAG, f"{self.owner} at {time.time():.0f}")

    def _says(self, owner: str) -> str:
        return f"Run {self.run_id} is being written, by {owner}. End that one first, or let it finish."


def _shared() -> bool:
    return not tracking_uri().startswith("sqlite")
