"""Start real processes: commands, and PostgreSQL and `mlflow server` on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from experiment.options import ROOT
from tests.store import heed

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "s3cret"
STARTED: list["subprocess.Popen[str]"] = []
"""What this test started as its user does: after the test, nothing of it runs (`end_all`)."""
OWN = ("MLFLOW_TRACKING_URI", "MLFLOW_SQLALCHEMYSTORE_POOLCLASS")  # of this process, not of a server


def typed(
    *words: str, uri: str = "", prepare: Callable[[], object] = heed, **environment: str
) -> "subprocess.Popen[str]":
    """Start a command of the project as its user does, in a shell of her own; `uri` is of the store."""
    environment |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    command, pipe = [sys.executable, str(ROOT / words[0]), *words[1:]], subprocess.PIPE
    STARTED.append(
        subprocess.Popen(command, env=os.environ | environment, text=True, preexec_fn=prepare, stdout=pipe, stderr=pipe)
    )
    return STARTED[-1]


def end_all() -> None:
    """End what a test that failed left running, which would fail tests after it."""
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Cluster(str):
    """The address of a cluster's databases, up to their names."""

    start: Callable[[], None]
    stop: Callable[[], None]


@contextmanager
def postgres() -> Iterator[Cluster]:
    """Run a new cluster, and yield the address of its databases `mlflow` and `optuna`."""
    port, user = free_port(), "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to be run by root
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # not pytest's own: that user could not read it

    def call(program: str, *options: str) -> None:
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        command = [str(BINARIES[-1] / program), *options]
        subprocess.run(command, user=user, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    (folder / "password").write_text(PASSWORD)
    if user:
        shutil.chown(folder, user)
        shutil.chown(folder / "password", user)
    secret = f"--pwfile={folder / 'password'}"
    call("initdb", "-D", "data", "-U", "researcher", "--auth=scram-sha-256", secret, "--no-sync")
    listen = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    cluster = Cluster(f"postgresql://researcher:{PASSWORD}@127.0.0.1:{port}")
    cluster.start = partial(call, "pg_ctl", "-D", "data", "-w", "-l", "log", "-o", listen, "start")
    cluster.stop = partial(call, "pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")
    cluster.start()
    try:
        for database in ("mlflow", "optuna"):
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "researcher", database)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(backend: str, folder: Path, port: int = 0) -> Iterator[str]:
    """Run a tracking server, which keeps artifacts in the folder, and yield its address."""
    port = port or free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--backend-store-uri", backend]
    command += ["--artifacts-destination", str(folder), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {key: value for key, value in os.environ.items() if key not in OWN}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # six processes more
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            time.sleep(0.5)
        else:
            raise TimeoutError((folder / "server.log").read_text())
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
