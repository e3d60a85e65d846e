import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiment.presets import ROOT
from experiment.training import train
from tests.store import runs
from tracking.links import how_to_see
from tracking.runs import parent_run
from tracking.store import client, open_experiment

SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--data.batch_size=1000"]


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="2"):
        train(SHORT)
    [line] = capsys.readouterr().err.splitlines()
    return str(line)


def test_an_experiment_deleted_in_the_ui_is_refused_with_the_way_back(capsys: pytest.CaptureFixture[str]) -> None:
    client().delete_experiment(open_experiment())
    line = refusal(capsys)
    assert "mlflow experiments restore -x 1" in line
    assert "--trainer.logger.experiment_name" in line


@pytest.mark.parametrize("place", ["/proc/mlflow.db", "/dev/null/mlflow.db"])
def test_a_store_that_cannot_be_written_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    line = refusal(capsys)
    assert place in line
    assert "MLFLOW_TRACKING_URI" in line


def test_a_file_that_is_no_database_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "mlflow.db").write_text("not a database, and long enough to look like one" * 30)
    assert "file is not a database" in refusal(capsys)


@pytest.mark.slow
def test_telemetry_is_off() -> None:
    """MLflow reads its environment while it is imported, so `tracking` must be imported before it."""
    code = "import experiment.training; from mlflow.telemetry.client import get_telemetry_client as get; print(get())"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


OPEN = """
import os, sys, time, pathlib
from tracking import store
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
for name in "0123456789":
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/{name}/mlflow.db"
    (folder / f"{name} {number}").touch()
    while len(list(folder.glob(f"{name} *"))) < 4:
        time.sleep(0.001)
    print(store.open_experiment())
"""


@pytest.mark.slow
def test_four_processes_may_open_a_new_store_at_once_ten_times_over(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", OPEN, str(tmp_path), str(number)] for number in range(4)]
    opened = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[0].split() for process in opened] == [["1"] * 10] * 4


def test_a_parent_run_ends_as_its_work_ended() -> None:
    with parent_run("good", "1", {}):
        pass
    with pytest.raises(ZeroDivisionError), parent_run("bad", "2", {}):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), parent_run("stopped", "3", {}) as stopped:
        raise KeyboardInterrupt
    assert [run.info.status for run in runs()] == ["FINISHED", "FAILED", "KILLED"]
    with parent_run("stopped", "3", {}) as again:
        assert again == stopped
    assert [run.info.status for run in runs()] == ["FINISHED", "FAILED", "FINISHED"]


def test_the_link_names_the_command_that_shows_this_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_see("1", "r").startswith(f"mlflow ui --backend-store-uri 'sqlite:///{store}/mlflow.db'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:80")
    assert how_to_see("1", "r") == "http://server:80/#/experiments/1/runs/r?workflowType=machine_learning"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(ROOT)
    assert how_to_see("1", "r").startswith("mlflow ui   and open http://127.0.0.1:5000/#/experiments/1/runs/r?")


def answer(url: str, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as reply:
        return json.load(reply)


@pytest.mark.slow
def test_a_bare_mlflow_ui_beside_the_store_shows_the_runs(store: Path, tmp_path: Path) -> None:
    cli = train(["--optimizer", "meta", *SHORT])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--port", str(port), "--workers", "1"]
    with (tmp_path / "ui.log").open("w") as log:
        ui = subprocess.Popen(command, cwd=store, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        found = None
        for _ in range(120):
            try:
                found = answer(f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]})
                break
            except OSError:
                time.sleep(0.5)
        assert found, (tmp_path / "ui.log").read_text()
        [run] = found["runs"]
        assert (run["info"]["run_id"], run["info"]["run_name"]) == (cli.run_id, "meta")
        family = [psutil.Process(ui.pid), *psutil.Process(ui.pid).children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
        assert set(listening) == {"127.0.0.1"}
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
        assert b"MLflow" in page
    finally:
        os.killpg(ui.pid, 15)
        ui.wait(20)
