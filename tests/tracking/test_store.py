import os
import re
import socket
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.store import runs
from tracking.links import how_to_see
from tracking.runs import parent_run
from tracking.store import ROOT, StoreError, cause, client, hidden, open_experiment


def test_an_experiment_deleted_in_the_ui_is_refused_with_the_way_back() -> None:
    client().delete_experiment(open_experiment())
    with pytest.raises(StoreError, match=r"mlflow experiments restore -x 1`.*--trainer.logger.experiment_name"):
        open_experiment()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////dev/null/mlflow.db", r"sqlite:////dev/null/mlflow.db cannot be used.*MLFLOW_TRACKING_URI"),
        ("sqlite://", "is in memory"),
        ("nonsense://x", "load plugin"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(uri: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match=message):
        open_experiment()


def test_a_server_that_never_answers_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3hush@127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"http://me:\*\*\*@127.* cannot be used: .*timed out"):
            open_experiment()


@pytest.mark.parametrize("odd", ["?", "#", "%"])
def test_a_folder_whose_name_is_not_one_in_an_address_is_refused(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/a{odd}b/mlflow.db")
    with pytest.raises(StoreError, match=rf"has {re.escape(odd)} in its name, .*Rename it"):
        open_experiment()
    assert not (tmp_path / f"a{odd}b").exists()


# address -> as it is printed
SHOWN = {
    "postgresql://me:s3hush@db/o": "postgresql://me:***@db/o",
    "https://me:s3hush@server/path": "https://me:***@server/path",
    "postgresql://db/o?password=s3hush": "postgresql://db/o",
    "sqlite:////a folder/mlflow.db": "sqlite:////a folder/mlflow.db",
    "http://127.0.0.1:5000": "http://127.0.0.1:5000",
}


@pytest.mark.parametrize("uri", SHOWN)
def test_a_password_is_in_no_command_no_message_and_no_link(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert hidden(uri) == SHOWN[uri]
    told = cause(OSError(f"cannot connect to {uri}: refused.\nmore"))
    assert told == f"cannot connect to {SHOWN[uri]}: refused"
    assert "s3hush" not in how_to_see("1", "r")
    if "@" in uri:
        assert cause(OSError("login s3hush failed")) == "login *** failed"


@pytest.mark.slow
def test_telemetry_is_off() -> None:
    """MLflow reads its environment while it is imported, so `tracking` must be imported before it."""
    code = "import experiment, mlflow; from mlflow.telemetry.client import get_telemetry_client as get; print(get())"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


OPEN = """
import os, sys, time, pathlib
from tracking import store
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
for name in "012":
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/{name}/mlflow.db"
    (folder / f"{name} {number}").touch()
    while len(list(folder.glob(f"{name} *"))) < 4:
        time.sleep(0.001)
    print(store.open_experiment())
"""


@pytest.mark.slow
def test_four_processes_may_open_a_new_store_at_once_three_times_over(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", OPEN, str(tmp_path), str(number)] for number in range(4)]
    opened = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[0].split() for process in opened] == [["1"] * 3] * 4


def test_a_parent_run_ends_as_its_work_ended_and_so_do_the_runs_in_it() -> None:
    with parent_run("good", "1", {}):
        pass
    with pytest.raises(ZeroDivisionError), parent_run("bad", "2", {}):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), parent_run("stopped", "3", {}) as stopped:  # noqa: PT012
        client().create_run(open_experiment(), tags={"mlflow.parentRunId": stopped})
        raise KeyboardInterrupt
    assert [run.info.status for run in runs()] == ["FINISHED", "FAILED", "KILLED", "KILLED"]
    with parent_run("stopped", "3", {}) as again:
        assert again == stopped
    assert [run.info.status for run in runs()] == ["FINISHED", "FAILED", "FINISHED", "KILLED"]


def test_the_link_names_the_command_that_shows_this_store(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_see("1", "r").startswith('mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI" ')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:80")
    assert how_to_see("1", "r") == "http://server:80/#/experiments/1/runs/r?workflowType=machine_learning"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(ROOT)
    assert how_to_see("1", "r").startswith("mlflow ui   and open http://127.0.0.1:5000/#/experiments/1/runs/r?")


@pytest.mark.slow
def test_machines_that_begin_at_the_same_moment_share_a_run_whatever_their_clocks_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All have searched before any of them makes its run; those that are later say that they are earlier."""
    create, searched = MlflowClient.create_run, Barrier(3)

    def skewed(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        order = searched.wait()
        time.sleep(0.1 * order)
        return create(self, *args, **kwargs | {"start_time": 3_600_000 * (3 - order)})

    def machine(_: int) -> str:
        with parent_run("all", "4", {}) as parent:
            return parent

    monkeypatch.setattr(MlflowClient, "create_run", skewed)
    monkeypatch.setattr("tracking.runs.MOMENT", 2.0)
    with ThreadPool(3) as machines:
        [parent] = set(machines.map(machine, range(3)))
    assert [run.info.run_id for run in client().search_runs([open_experiment()], "tags.sweep = '4'")] == [parent]
