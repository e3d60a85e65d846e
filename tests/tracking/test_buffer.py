import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.store import history
from tracking import buffer, deliver
from tracking.logger import Tracker
from tracking.store import ROOT, StoreError, artifact_dir, client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "PATIENCE", 0.3)


@contextmanager
def refusing(store: Path) -> Iterator[None]:
    """The database itself refuses what a run writes."""
    tables = ("runs", "metrics", "params", "tags")
    with closing(sqlite3.connect(store / "mlflow.db", isolation_level=None)) as database:
        for name in tables:
            database.execute(f"create trigger {name}_no before insert on {name} begin select raise(abort, 'no'); end")
        yield
        for name in tables:
            database.execute(f"drop trigger {name}_no")


def file_of(run_id: str) -> Path:
    return artifact_dir() / "mnist1d" / run_id / "undelivered.jsonl"


@pytest.mark.parametrize("back", [True, False], ids=["the store comes back", "the run ends before"])
def test_a_store_that_refuses_for_a_while_loses_nothing(
    back: bool, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker()
    run_id, experiment = str(tracker.run_id), tracker.experiment
    with refusing(store):
        tracker.log_hyperparams({"rate": 0.05})
        experiment.set_tag(run_id, "passes", 1.5)
        experiment.log_text(run_id, "x", "a/b.txt")
        for step in range(2_500):
            tracker.log_metrics({"lr": step / 7}, step)
        assert not experiment.wait()
        if not back:
            tracker.finalize()
    if back:
        tracker.finalize()
        assert capsys.readouterr().err == ""
    else:
        words = shlex.split(capsys.readouterr().err.partition("python -m ")[2])
        assert words == ["tracking.deliver", str(file_of(run_id))]
        monkeypatch.setattr("sys.argv", words)
        deliver.main()
    found = client().get_run(run_id)
    assert (found.info.status, found.data.params) == ("FINISHED", {"rate": "0.05"})
    assert history(run_id, "lr") == [(step, step / 7) for step in range(2_500)]
    assert found.data.tags["passes"] == "1.5"
    assert [file.path for file in client().list_artifacts(run_id, "a")] == ["a/b.txt"]
    assert not file_of(run_id).exists()


def test_a_store_that_accepts_and_never_answers_costs_the_run_seconds(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = MlflowClient(f"http://127.0.0.1:{silent.getsockname()[1]}")
        waiting = buffer.BufferedClient(store, "run", tmp_path / "undelivered.jsonl")
        waiting.set_tag("run", "a", 1)
        begun = time.monotonic()
        assert not waiting.wait()
        assert time.monotonic() - begun < 3
    assert buffer.read(waiting.file) == [("pairs", [[], [["a", "1"]]])]


def test_what_a_killed_process_left_is_sent_when_its_run_resumes_and_no_step_is_logged_twice() -> None:
    run_id = str(client().create_run("0").info.run_id)
    client().log_metric(run_id, "loss", 3.0, step=1)
    file = file_of(run_id)
    file.parent.mkdir(parents=True)
    # and half a line
    file.write_text('["metric", ["loss", 2.0, 0, 2]]\n["metric", ["lo')
    tracker = Tracker(run_id=run_id)
    tracker.hold()
    assert client().get_run(run_id).info.status == "RUNNING"
    for step in (1, 2, 3, 3):
        tracker.log_metrics({"loss": 1.0, "other": 1.0}, step)
    tracker.finalize()
    assert sorted(history(run_id, "loss")) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [step for step, _ in history(run_id, "other")] == [1, 2, 3]


def test_what_neither_the_store_nor_the_disk_takes_is_counted(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The store alone may refuse, or the disk: nothing is lost then, and nothing is said of it."""
    for refuses in (False, True):
        tracker = Tracker()
        run_id = str(tracker.run_id)
        shutil.rmtree(artifact_dir())
        with refusing(store) if refuses else nullcontext():
            tracker.log_metrics({"lr": 0.1}, 1)
            tracker.finalize()
        assert history(run_id, "lr") == [(1, 0.1)] * (not refuses)
        assert client().get_run(run_id).info.status == ("FAILED" if refuses else "FINISHED")
        told = capsys.readouterr().err
        assert ("2 records are lost ([Errno 2] No such file" in told) == refuses
        assert "python -m" not in told


def test_a_store_that_goes_away_before_the_run_is_made_ends_it(store: Path) -> None:
    tracker = Tracker()
    with refusing(store), pytest.raises(StoreError, match=r"cannot be written: .*no"):
        tracker.hold()
    tracker.finalize("failed")


HOLD = """
import sys, tracking
from tracking.logger import Tracker
tracker = Tracker(run_id=sys.argv[1])
tracker.hold()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_never_write_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what is undelivered sent meanwhile. A process that was killed does not hold its run."""
    run_id, pipe = str(client().create_run("0").info.run_id), subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, run_id]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"Run {run_id} cannot be written: another process"):
            Tracker(run_id=run_id).hold()
        file_of(run_id).touch()
        monkeypatch.setattr("sys.argv", ["deliver", str(file_of(run_id))])
        with pytest.raises(SystemExit, match="2"):
            deliver.main()
        other.kill()
    Tracker(run_id=run_id).hold()
