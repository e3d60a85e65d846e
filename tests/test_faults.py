"""What goes wrong, tried for real: each has a message of one line and an exit status, and loses nothing."""

import importlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.presets import QUIET, ROOT
from experiment.process import script
from tests.faults import BAD_INPUT, FAULTS, document
from tests.servers import free_port, mlflow_server
from tests.store import artifacts, heed, history, runs, wait
from tracking.store import open_experiment


@pytest.mark.slow
@pytest.mark.parametrize("words", BAD_INPUT)
def test_bad_input_gives_one_clear_line_status_2_and_no_run(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, *args = shlex.split(words)
    command = importlib.import_module(file.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [file, *args])
    with pytest.raises(SystemExit) as stop:
        script(command.main)
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]  # argparse shows the usage before
    assert line.startswith(f"{file}: error: ")
    assert re.search(BAD_INPUT[words], line), line
    assert runs() == []


def typed(*words: str, place: Path | None = None, uri: str | None = None) -> "subprocess.Popen[str]":
    """Start a command of the project as its user does, in a shell of her own; `uri` is of the store, "" for its own."""
    environment = os.environ | ({} if uri is None else {"MLFLOW_TRACKING_URI": uri})
    command = [*words] if words[0] == "unshare" else [sys.executable, str((place or ROOT) / words[0]), *words[1:]]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, preexec_fn=heed, stdout=pipe, stderr=pipe)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Return the exit status, the last line of the errors, and what was printed."""
    out, errors = process.communicate(timeout=240)
    assert "Traceback" not in errors, errors
    return process.returncode, (errors.splitlines() or [""])[-1], out


def matches(fault: str, status: int, line: str) -> None:
    """Hold the answer against the table."""
    expected = FAULTS[fault]
    assert (status, bool(re.search(expected.line, line))) == (expected.status, True), (status, line)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


LONG = ["--optimizer", "cosine", "--trainer.max_epochs=400", QUIET]


def whole(checkpoint: Path) -> bool:
    """Whether the file can be gone on from."""
    try:
        return bool(torch.load(checkpoint, weights_only=True)["global_step"])
    except (RuntimeError, EOFError, OSError):
        return False


@pytest.mark.slow
def test_a_full_disk(small_disk: Path) -> None:
    uri = f"sqlite:///{small_disk}/mlflow.db"
    status, line, _ = ended(typed("train.py", *LONG, uri=uri))
    matches("the disk is full", status, line)
    checkpoints = list(small_disk.glob("mlruns/mnist1d/*/checkpoints/*.ckpt"))
    assert any(whole(path) for path in checkpoints)


@pytest.mark.slow
def test_a_disk_that_cannot_be_written(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, line, _ = ended(typed("train.py", *LONG, uri=f"sqlite:///{small_disk}/mlflow.db"))
    matches("`mlruns` cannot be written", status, line)


@pytest.mark.slow
def test_mlruns_is_a_file(store: Path) -> None:
    (store / "mlruns").touch()
    status, line, _ = ended(typed("train.py", *LONG))
    matches("`mlruns` is a file", status, line)


@pytest.mark.slow
def test_a_store_that_another_program_holds(store: Path) -> None:
    open_experiment()
    with sqlite3.connect(store / "mlflow.db") as held:
        held.execute("begin exclusive")
        status, line, _ = ended(typed("train.py", *LONG))
    held.close()
    matches("the store is locked", status, line)
    assert runs() == []


@pytest.mark.slow
def test_no_tracking_server_at_the_start() -> None:
    status, line, _ = ended(typed("train.py", *LONG, uri=f"http://someone:secret@127.0.0.1:{free_port()}"))
    matches("no tracking server at the start", status, line)
    assert "secret" not in line


@pytest.mark.slow
def test_the_tracking_server_goes_away_and_what_it_missed_is_delivered(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is then the one of a server that stayed: each point, each artifact, once."""
    backend, port = f"sqlite:///{tmp_path}/served.db", free_port()
    shutil.copy(store / "mlflow.db", tmp_path / "served.db")
    with mlflow_server(backend, tmp_path, port) as address:
        process = typed("train.py", *LONG, uri=address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        wait(process, lambda: runs() and runs()[0].data.params, 0.1)
        time.sleep(1)
    out, errors = process.communicate(timeout=240)
    matches("the tracking server goes away during a run", process.returncode, " ".join(errors.splitlines()))
    assert "Traceback" not in errors
    [words] = re.findall(r"python -m tracking.delivery (.+)", errors)
    [folder] = shlex.split(words)
    with mlflow_server(backend, tmp_path, port):
        subprocess.run(
            [sys.executable, "-m", "tracking.delivery", folder], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        [run] = runs()
        assert run.info.status == "FINISHED"
        assert [step for step, _ in history(run.info.run_id, "lr")] == list(range(1, 12_801))
        assert len(history(run.info.run_id, "val/loss")) == 400
        assert float(run.data.tags["passes"]) == 1
        assert f"test/loss {run.data.metrics['test/loss']:.4f}" in out
        assert {"config.yaml", "schedule.csv", "trajectory.png", "epoch=399-step=12800"} <= artifacts(run.info.run_id)
    assert not Path(folder).exists()


@pytest.mark.slow
def test_the_tracking_server_comes_back_during_the_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, port = f"sqlite:///{tmp_path}/served.db", free_port()
    shutil.copy(store / "mlflow.db", tmp_path / "served.db")
    with mlflow_server(backend, tmp_path, port) as address:
        process = typed("train.py", *LONG, "--trainer.max_epochs=1500", uri=address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        wait(process, lambda: runs() and runs()[0].data.params, 0.1)
    time.sleep(8)  # it is missed meanwhile
    with mlflow_server(backend, tmp_path, port):
        _, errors = process.communicate(timeout=240)
        matches("the tracking server goes away and comes back", process.returncode, " ".join(errors.splitlines()))
        [run] = runs()
        assert run.info.status == "FINISHED"
        assert [step for step, _ in history(run.info.run_id, "lr")][-1] == 48_000
        assert len(history(run.info.run_id, "val/loss")) == 1500


@pytest.mark.slow
def test_the_store_is_deleted_in_mid_run_and_comes_back_from_its_copy(store: Path, tmp_path: Path) -> None:
    """What the run did in between is kept, and delivered by the command that it prints."""
    process = typed("train.py", *LONG)
    wait(process, lambda: runs() and history(runs()[0].info.run_id, "lr"), 0.1)
    process.send_signal(signal.SIGSTOP)
    shutil.move(store / "mlflow.db", tmp_path / "copy.db")
    process.send_signal(signal.SIGCONT)
    out, errors = process.communicate(timeout=240)
    matches("the store is deleted during a run", process.returncode, " ".join(errors.splitlines()))
    assert "Traceback" not in errors
    shutil.copy(tmp_path / "copy.db", store / "mlflow.db")
    [words] = re.findall(r"python -m tracking.delivery (.+)", errors)
    deliver = [sys.executable, "-m", "tracking.delivery", *shlex.split(words)]
    subprocess.run(deliver, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(run.info.run_id, "lr")] == list(range(1, 12_801))
    assert f"test/loss {run.data.metrics['test/loss']:.4f}" in out


@pytest.mark.slow
def test_a_checkpoint_that_would_run_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/sprung",)

    torch.save({"state_dict": Trap(), "hyper_parameters": Trap()}, tmp_path / "trap.ckpt")
    for words in (["test"], ["--optimizer", "adam"]):
        status, line, _ = ended(typed("train.py", *words, "--ckpt_path", str(tmp_path / "trap.ckpt")))
        matches("a checkpoint that would run code", status, line)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_a_yaml_file_that_would_run_code(tmp_path: Path) -> None:
    (tmp_path / "trap.yaml").write_text(f"seed_everything: !!python/object/apply:os.system ['touch {tmp_path}/sprung']")
    status, line, _ = ended(typed("train.py", "--config", str(tmp_path / "trap.yaml")))
    matches("a YAML file that would run code", status, line)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_a_clone_in_a_folder_with_blanks_and_other_letters(tmp_path: Path) -> None:
    clone = tmp_path / "Zwölf Größen – 学習率"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "mlruns", "mlflow.db*", "__pycache__"))
    status, _, out = ended(typed("train.py", "--trainer.max_epochs=1", QUIET, place=clone, uri=""))
    assert status == FAULTS["a clone in a folder with blanks and other letters"].status
    assert (clone / "mlflow.db").is_file()
    assert str(clone) in out


@pytest.mark.slow
def test_no_network_at_all() -> None:
    if subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("namespaces are not for this user")
    command = ["unshare", "-rn", sys.executable, str(ROOT / "train.py"), "--trainer.max_epochs=1", QUIET]
    status, line, out = ended(typed(*command))
    matches("no network at all", status, line)
    assert "test/loss" in out


def test_the_tables_of_faults_are_those_that_the_tests_run_over() -> None:
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == document()
    tried = set(re.findall(r"(?:matches\(|FAULTS\[)\"(.*?)\"", Path(__file__).read_text(encoding="utf-8")))
    elsewhere = {name for name, fault in FAULTS.items() if fault.test}
    assert tried | elsewhere == set(FAULTS)
    for name in elsewhere:
        file, test = FAULTS[name].test.split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
