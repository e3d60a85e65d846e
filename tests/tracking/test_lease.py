import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiment.presets import ROOT
from tests.servers import free_port, mlflow_server
from tracking import lease
from tracking.lease import Lease
from tracking.store import StoreError, client, open_experiment


def run() -> str:
    return str(client().create_run(open_experiment()).info.run_id)


@pytest.mark.slow
def test_a_process_that_was_killed_has_lost_it_and_one_that_lives_has_not(tmp_path: Path) -> None:
    run_id = run()
    code = f"""
import os, pathlib, sys, tracking
from tracking.lease import Lease
lease = Lease({run_id!r}, pathlib.Path({str(tmp_path)!r}))
lease.take()
print("held", flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match="is being written, by another process on this machine"):
        Lease(run_id, tmp_path).take()
    other.kill()
    other.communicate()
    Lease(run_id, tmp_path).take()


@pytest.fixture
def served(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mlflow_server(f"sqlite:///{store / 'mlflow.db'}", tmp_path, free_port()) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_over_a_server_the_heartbeat_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines, so two folders; one that was silent too long is taken for dead, and ends at its next heartbeat."""
    run_id, ended = run(), list[int]()
    first, second = (Lease(run_id, tmp_path / host, host) for host in ("here", "there"))
    first.take()
    with pytest.raises(StoreError, match=r"is being written, by process [0-9]+ on here"):
        second.take()
    monkeypatch.setattr(lease, "GRACE", -1.0)
    second.take()
    monkeypatch.setattr(os, "_exit", ended.append)
    second.beat()
    assert ended == []
    first.beat()
    assert ended == [1]
