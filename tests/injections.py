"""Faults of disks, stores and servers, as context managers that yield how to start a command and inject the fault."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.servers import BINARIES, free_port, mlflow_server, postgres
from tests.store import heed

Process = subprocess.Popen[str]


def nothing(_: Process) -> None:
    """Inject no fault."""


@dataclass
class Struck:
    """How to start a command, inject a fault once there is a checkpoint (`strike`), and remove it (`lift`).

    The process is stopped meanwhile, so that it neither writes nor ends.
    """

    uri: str
    words: tuple[str, ...] = ()
    prepare: Callable[[], object] = heed
    environment: dict[str, str] = field(default_factory=dict)
    strike: Callable[[Process], object] = nothing
    lift: Callable[[], object] = lambda: None


def sqlite(folder: Path) -> str:
    """The address of the store in a folder."""
    return f"sqlite:///{folder}/mlflow.db"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of a few megabytes."""
    disk = folder / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> None:
    """Fill a disk to the last byte."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (65_536, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue


@contextmanager
def full_disk(folder: Path) -> Iterator[Struck]:
    with small_disk(folder, 16) as disk:
        shutil.copy(folder / "mlflow.db", disk)
        yield Struck(sqlite(disk), strike=lambda _: fill(disk), lift=(disk / "filler").unlink)


@contextmanager
def full_tmpdir(folder: Path) -> Iterator[Struck]:
    with small_disk(folder, 1) as disk:
        yield Struck(sqlite(folder), environment={"TMPDIR": str(disk)}, strike=lambda _: fill(disk))


@contextmanager
def file_limit(folder: Path) -> Iterator[Struck]:
    """Limit the size of files below that of checkpoints."""

    def strike(process: Process) -> None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**21, 2**21))

    yield Struck(sqlite(folder), ("--model.network.hidden=6000",), strike=strike)


@contextmanager
def removed(folder: Path) -> Iterator[Struck]:
    yield Struck(sqlite(folder), strike=lambda _: shutil.rmtree(folder / "mlruns"))


@contextmanager
def no_stdout(folder: Path) -> Iterator[Struck]:
    def prepare() -> None:
        heed()
        os.close(1)

    yield Struck(sqlite(folder), prepare=prepare)


@contextmanager
def read_only(folder: Path) -> Iterator[Struck]:
    """As root, make the file immutable: permissions do not stop root."""
    changes = [["chattr", sign] for sign in ("+i", "-i")] if os.getuid() == 0 else [["chmod", "a-w"], ["chmod", "u+w"]]

    def change(command: list[str]) -> None:
        if subprocess.run([*command, folder / "mlflow.db"], check=False, capture_output=True).returncode:
            pytest.skip("this file system has no immutable files")

    try:
        yield Struck(sqlite(folder), strike=lambda _: change(changes[0]), lift=lambda: change(changes[1]))
    finally:
        subprocess.run([*changes[1], folder / "mlflow.db"], check=False)


class Server:
    """An `mlflow server`, which can be stopped and started again at its address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.running = folder, free_port(), ExitStack()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.running.enter_context(mlflow_server(sqlite(self.folder), self.folder, self.port))

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the server."""
        [server] = [child for child in psutil.Process().children() if str(self.port) in child.cmdline()]
        os.killpg(server.pid, number)


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    with server.running:
        server.start()
        yield server


@contextmanager
def server_silent(folder: Path) -> Iterator[Struck]:
    """Stop the process: the kernel still accepts connections for it."""
    with running(folder) as server:
        lift = partial(server.signal, signal.SIGCONT)
        yield Struck(server.uri, strike=lambda _: server.signal(signal.SIGSTOP), lift=lift)


@contextmanager
def server_stops(folder: Path) -> Iterator[Struck]:
    with running(folder) as server:
        yield Struck(server.uri, strike=lambda _: server.running.close(), lift=server.start)


@contextmanager
def server_restarts(folder: Path) -> Iterator[Struck]:
    with running(folder) as server:

        def strike(_: Process) -> None:
            server.running.close()
            server.start()

        yield Struck(server.uri, strike=strike)


@contextmanager
def database_stops(folder: Path) -> Iterator[Struck]:
    if not BINARIES:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    sweep = ("compare.py", "--optimizers=adam", "--seeds=3", "--workers=1", f"--output={folder}")
    with postgres() as cluster:
        yield Struck(f"{cluster}/mlflow", sweep, strike=lambda _: cluster.stop(), lift=cluster.start)
