"""Input, files, stores, signals and environments that a command cannot work with: one line, a status, no traceback."""

import importlib
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiment.options import ROOT
from experiment.process import script
from experiment.run import train
from tests.faults import BAD_INPUT, FAULTS, document
from tests.servers import ended, free_port, mlflow_server, typed
from tests.store import SHORT, checkpoint_of, checkpoints, history, runs, schedule, wait
from tracking.store import open_experiment

LONG = ["--optimizer", "cosine", "--trainer.max_epochs=400", SHORT[1]]


def answers(file: str, *args: str) -> int:
    """Run a command in this process, and return its status."""
    command = importlib.import_module(file.removesuffix(".py")).main
    # put back by the fixture of every test
    sys.argv = [file, *args]
    with pytest.raises(SystemExit) as stop:
        script(command)
    return int(str(stop.value.code))


@pytest.mark.slow
@pytest.mark.parametrize("words", BAD_INPUT)
def test_bad_input_gives_one_line_status_2_and_no_run(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, *args = shlex.split(words)
    assert answers(file, *args) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file}: error: ")
    assert re.search(BAD_INPUT[words], line), line
    assert runs() == []


FILES = {
    "a YAML file of random bytes": bytes(range(255, 0, -1)),
    "a YAML file that is empty": b"",
    "a YAML file with a brace too few": b"model: {lr: 1",
    "a YAML file that would run code": b"seed_everything: !!python/object/apply:os.system ['touch sprung']",
}
STORES = {
    "the store is in memory": "sqlite://",
    "the store is a folder": "sqlite:////tmp",
    "PostgreSQL is down": "postgresql://me:hush-hush@127.0.0.1:1/o",
    "the address of the store means nothing": "nonsense://me:hush-hush@x",
    "no tracking server at the start": "http://me:hush-hush@127.0.0.1:1",
}
# what is typed to resume a run of `meta`
CHECKPOINTS = {
    "a checkpoint of which one bit is flipped": [],
    "a checkpoint that is text": [],
    "a checkpoint of another shape": ["--model.network.hidden=30"],
    "a checkpoint of another arm": ["--optimizer=adam"],
    "a checkpoint of another optimizer": ["--model.optimizer=torch.optim.SGD"],
    "a checkpoint whose schedule.csv was changed": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FILES, *STORES, *CHECKPOINTS])
def test_a_file_or_a_store_that_cannot_be_used(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "arm.yaml"
    file.write_bytes(FILES.get(fault, b"{}"))
    args = ["--config", str(file)]
    if fault in CHECKPOINTS:
        path = Path(checkpoint_of(train(["--optimizer", "meta", *SHORT])))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= "flipped" in fault
        path.write_bytes(b"text" if "text" in fault else content)
        if "schedule" in fault:
            (path.parents[1] / "schedule.csv").write_text("step,lr,decay,hypergradient\n2,0.1,0.0,\n1,-0.1,0.0,\n")
        args += [*CHECKPOINTS[fault], f"--ckpt_path={path}"]
    before = len(runs())
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", STORES.get(fault, os.environ["MLFLOW_TRACKING_URI"]))
        assert answers("train.py", *args, *SHORT) == FAULTS[fault].status
    # MLflow alone takes 110 seconds
    assert time.monotonic() - begun < 100
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(FAULTS[fault].line, line), line
    assert "hush" not in line
    assert not (tmp_path / "sprung").exists()
    assert len(runs()) == before


@pytest.mark.slow
def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = typed("train.py", *SHORT, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        ended(process, "a tracking server that does not answer")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_a_whole_checkpoint_and_one_that_is_read_only_nothing(small_disk: Path) -> None:
    # its second checkpoint does not fit next to the first
    large = typed("train.py", *LONG, "--model.network.hidden=2000", uri=f"sqlite:///{small_disk}/mlflow.db")
    ended(large, "the disk is full")
    for path in checkpoints(small_disk):
        assert torch.load(path, weights_only=True)["global_step"]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended(typed("train.py", *LONG, uri=f"sqlite:///{small_disk}/other/mlflow.db"), "`mlruns` cannot be written")


@pytest.mark.slow
def test_a_store_that_is_locked_or_whose_folder_is_a_file(store: Path, tmp_path: Path) -> None:
    open_experiment()
    with sqlite3.connect(store / "mlflow.db") as held:
        held.execute("begin exclusive")
        ended(typed("train.py", *LONG), "the store is locked")
    held.close()
    assert runs() == []
    (tmp_path / "mlruns").touch()
    ended(typed("train.py", *LONG, uri=f"sqlite:///{tmp_path}/mlflow.db"), "`mlruns` is a file")


@pytest.mark.slow
def test_a_server_that_stops_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server(f"sqlite:///{tmp_path}/served.db", tmp_path, free_port()) as address:
        process = typed("train.py", *LONG, uri=address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        wait(process, lambda: runs() and history(runs()[0].info.run_id, "val/loss"), 0.5)
    assert "test/loss" in ended(process, "the tracking server stops during a run")


SIGNALS = {"Ctrl-C in a run": signal.SIGINT, "SIGTERM in a run": signal.SIGTERM}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SIGNALS)
def test_a_run_that_was_stopped_by_a_signal_resumes_to_the_bit(fault: str, store: Path) -> None:
    options = ["--optimizer", "meta", SHORT[1], "--trainer.max_epochs=60"]
    process = typed("train.py", *options)
    wait(process, lambda: checkpoints(store), 0.05)
    process.send_signal(SIGNALS[fault])
    ended(process, fault)
    [run] = runs()
    assert run.info.status == "KILLED"
    resumed, whole = train([*options, f"--ckpt_path={checkpoints(store)[-1]}"]), train(options)
    assert resumed.run_id == run.info.run_id
    assert resumed.test_metrics == whole.test_metrics
    assert schedule(str(resumed.run_id)) == schedule(str(whole.run_id))


@pytest.mark.slow
@pytest.mark.parametrize("variables", ["LANG=C LC_ALL=C PYTHONOPTIMIZE=2", "PYTHONWARNINGS=error::UserWarning"])
def test_another_environment(variables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    assert "test/loss" in ended(typed("train.py", *SHORT), "LANG=C, PYTHONOPTIMIZE=2, warnings are errors")


def test_the_tables_of_faults_are_those_that_the_tests_run_over() -> None:
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == document()
    text = Path(__file__).read_text(encoding="utf-8")
    assert [fault for fault in FAULTS if f'"{fault}"' not in text] == []
