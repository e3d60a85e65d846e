"""Input, files and stores that a command cannot work with: one line, a status, and no run."""

import importlib
import re
import shlex
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
from tests.faults import BAD_INPUT, CHECKPOINTS, FAULTS, UNTRAINABLE, document
from tests.servers import ended, free_port, mlflow_server, typed
from tests.store import SHORT, checkpoints, history, runs, wait
from tracking.store import open_experiment
from train import main

LONG = ["--optimizer", "cosine", "--trainer.max_epochs=400", SHORT[1]]


@pytest.mark.slow
@pytest.mark.parametrize("words", BAD_INPUT)
def test_bad_input_gives_one_line_status_2_and_no_run(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, *args = shlex.split(words)
    command = importlib.import_module(file.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [file, *args])
    with pytest.raises(SystemExit) as stop:
        script(command.main)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file}: error: ")
    assert re.search(BAD_INPUT[words], line), line
    assert runs() == []


def answers(fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    """The last line of `train.py` in this process, if it is the one expected."""
    monkeypatch.setattr(sys, "argv", ["train.py", *args, *SHORT])
    with pytest.raises(SystemExit) as stop:
        script(main)
    line = capsys.readouterr().err.splitlines()[-1]
    assert (stop.value.code, bool(re.search(FAULTS[fault].line, line))) == (FAULTS[fault].status, True), line
    return line


FILES = {
    "a YAML file of random bytes": bytes(range(255, 0, -1)),
    "a YAML file that is empty": b"",
    "a YAML file with a brace too few": b"model: {lr: 1",
    "a YAML file that would run code": b"seed_everything: !!python/object/apply:os.system ['touch sprung']",
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_not_a_configuration(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "arm.yaml"
    path.write_bytes(FILES[fault])
    answers(fault, capsys, monkeypatch, "--config", str(path))
    assert not (tmp_path / "sprung").exists()
    assert runs() == []


STORES = {
    "the store is in memory": "sqlite://",
    "the store is a folder": "sqlite:////tmp",
    "PostgreSQL is down": "postgresql://me:hush-hush@127.0.0.1:1/o",
    "the address of the store means nothing": "nonsense://me:hush-hush@x",
    "no tracking server at the start": "http://me:hush-hush@127.0.0.1:1",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", STORES)
def test_a_store_that_cannot_be_used(
    fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORES[fault])
    begun = time.monotonic()
    assert "hush" not in answers(fault, capsys, monkeypatch)
    # MLflow alone takes 110 seconds
    assert time.monotonic() - begun < 100


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
def test_a_full_disk_leaves_a_whole_checkpoint(small_disk: Path) -> None:
    ended(typed("train.py", *LONG, uri=f"sqlite:///{small_disk}/mlflow.db"), "the disk is full")
    for path in checkpoints(small_disk):
        assert torch.load(path, weights_only=True)["global_step"]


@pytest.mark.slow
def test_a_disk_that_cannot_be_written(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended(typed("train.py", *LONG, uri=f"sqlite:///{small_disk}/mlflow.db"), "`mlruns` cannot be written")


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


def test_the_tables_of_faults_are_those_that_the_tests_run_over() -> None:
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == document()
    text = "".join((ROOT / "tests" / f"test_{name}.py").read_text(encoding="utf-8") for name in ("faults", "hostile"))
    assert [fault for fault in FAULTS if f'"{fault}"' not in text] == []
    assert len(BAD_INPUT) <= 60
    assert len(FAULTS) + len(UNTRAINABLE) + len(CHECKPOINTS) <= 40
