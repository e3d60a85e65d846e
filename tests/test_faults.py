"""Invalid input, damaged files, failing stores and signals: each gives one line and a status, not a traceback."""

import importlib
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import FunctionType, UnionType

import pytest
import torch
from mlflow.entities import Run

import tune
from experiment.options import ROOT
from experiment.process import script
from experiment.run import train
from tests.faults import BAD_INPUT, FAULTS, STATE, document
from tests.injections import nothing, small_disk
from tests.servers import typed
from tests.store import SHORT, artifacts, checkpoint_of, checkpoints, history, runs, schedule, wait
from tracking import deliver
from tracking.store import artifact_dir, open_experiment

EPOCHS = 200
LONG = ["--optimizer", "cosine", f"--trainer.max_epochs={EPOCHS}", SHORT[1]]


def names(kind: type | UnionType) -> list[str]:
    """The faults whose injection has a type."""
    return [name for name, fault in FAULTS.items() if isinstance(fault.inject, kind)]


def answers(file: str, *args: str) -> int:
    """Run a command in this process and return its exit status."""
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


def ended(process: "subprocess.Popen[str]", fault: str) -> tuple[str, str]:
    """Compare exit status and last line of a command with the table of faults; return its output."""
    out, errors = process.communicate(timeout=240)
    assert "Traceback" not in errors, errors
    [line] = [line for line in errors.splitlines() if line.strip()][-1:] or [""]
    assert (process.returncode, bool(re.search(FAULTS[fault].line, line))) == (FAULTS[fault].status, True), errors
    return out, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [name for name, fault in FAULTS.items() if isinstance(fault.inject, bytes | str | list)]
)
def test_a_file_or_a_store_that_cannot_be_used(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, inject = tmp_path / "arm.yaml", FAULTS[fault].inject
    file.write_bytes(inject if isinstance(inject, bytes) else b"{}")
    args = ["--config", str(file)]
    if isinstance(inject, list):
        path = Path(checkpoint_of(train(["--optimizer", "meta", *SHORT])))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= "flipped" in fault
        path.write_bytes(b"text" if "text" in fault else content)
        if "schedule" in fault:
            (path.parents[1] / "schedule.csv").write_text("step,lr,decay,hypergradient\n2,0.1,0.0,\n1,-0.1,0.0,\n")
        args += [*inject, f"--ckpt_path={path}"]
    before = len(runs())
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", inject if isinstance(inject, str) else os.environ["MLFLOW_TRACKING_URI"])
        assert answers("train.py", *args, *SHORT) == FAULTS[fault].status
    # MLflow alone takes 110 seconds
    assert time.monotonic() - begun < 100
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(FAULTS[fault].line, line), line
    assert "hush" not in line
    assert not (tmp_path / "sprung").exists()
    assert len(runs()) == before


@pytest.mark.slow
def test_a_server_and_a_database_that_do_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        server, database = (typed("train.py", *SHORT, uri=f"{kind}://{address}") for kind in ("http", "postgresql"))
        ended(server, "the tracking server does not answer")
        ended(database, "PostgreSQL does not answer")


def saved(run: Run) -> list[Path]:
    """The checkpoints of a run."""
    return list(artifact_dir().glob(f"mnist1d/{run.info.run_id}/checkpoints/*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", names(FunctionType))
def test_what_happens_during_a_run_is_said_and_its_status_in_mlflow_is_true(
    fault: str, tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(fresh_database, tmp_path)
    inject = FAULTS[fault].inject
    assert callable(inject)
    with inject(tmp_path) as struck:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", struck.uri)
        words = struck.words if "--workers=1" in struck.words else ("train.py", *LONG, *struck.words)
        process = typed(*words, uri=struck.uri, prepare=struck.prepare, **struck.environment)
        if struck.strike is not nothing:
            # the store has a validation loss by then: points are sent before a checkpoint is written
            wait(process, lambda: [run for run in runs() if saved(run)], 0.2)
            process.send_signal(signal.SIGSTOP)
            struck.strike(process)
            process.send_signal(signal.SIGCONT)
        out, errors = ended(process, fault)
        struck.lift()
        for file in re.findall("python -m tracking.deliver (.*)", errors):
            monkeypatch.setattr("sys.argv", ["deliver", *shlex.split(file)])
            deliver.main()
        first, *others = runs()
        assert first.info.status == FAULTS[fault].run
        assert "RUNNING" not in {run.info.status for run in others}
        if FAULTS[fault].run == "FINISHED":
            # no point is missing
            assert len(history(first.info.run_id, "val/loss")) == EPOCHS
            assert {"schedule.csv", "trajectory.png"} <= artifacts(first.info.run_id)
            assert "test/loss" in out or "stdout" in fault
        paths = re.findall("--ckpt_path (.*)", errors)
        assert len(paths) == (FAULTS[fault].kept == STATE)
        for path in paths:
            assert torch.load(*shlex.split(path), weights_only=True)["global_step"]


@pytest.mark.slow
def test_a_folder_of_the_store_that_cannot_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        ended(typed("train.py", *LONG, uri=f"sqlite:///{disk}/other/mlflow.db"), "`mlruns` cannot be written")


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
def test_half_a_line_at_the_end_of_a_journal_is_dropped_and_no_other_study_has_the_journal(
    store: Path,
) -> None:
    """A killed process may leave one, which the next line would continue."""
    assert FAULTS["Optuna's journal ends in an incomplete line"].status == 0
    command = ["--optimizer", "adam", *SHORT, "--trials"]
    tune.main([*command, "1"])
    [journal] = store.glob("mlruns/optuna/*")
    with journal.open("a") as torn:
        torn.write('{"op_code":6,"worker_')
    for trials in ("2", "3"):
        assert len(tune.main([*command, trials]).trials) == int(trials)
    tune.main([*command, "1", "--seed", "1"])
    assert len(list(store.glob("mlruns/optuna/*"))) == 2


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
    assert "test/loss" in ended(typed("train.py", *SHORT), "LANG=C, PYTHONOPTIMIZE=2, warnings are errors")[0]


def test_the_tables_of_faults_are_those_that_the_tests_run_over() -> None:
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == document()
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name, fault in FAULTS.items() if fault.inject is None and f'"{name}"' not in text] == []
    assert len(document().splitlines()) <= 90
