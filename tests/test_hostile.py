"""Files, places and addresses that a command cannot work with, and signals: a line and a status, never a traceback."""

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from experiment.presets import QUIET, ROOT
from experiment.process import script
from experiment.training import train
from tests.faults import FAULTS
from tests.store import heed, runs, schedule, wait
from tests.test_faults import ended, matches, typed
from tests.test_resume import arm, checkpoints
from train import main

SHORT = [QUIET, "--trainer.max_epochs=1"]
LEVELS = "abcdefgh"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join(9 * [f'*{a}'])}]\n" for a, b in pairwise(LEVELS))
FILES = {
    "a YAML file of random bytes": bytes(range(255, 0, -1)),
    "a YAML file that is empty": b"",
    "a YAML file that is a list": b"- 1\n- 2\n",
    "a YAML file with a brace too few": b"model: {lr: 1",
    "a YAML file whose aliases stand for 43 million values": BOMB.encode(),
    "a YAML file that holds itself": b"a: &a [*a]\n",
}


def answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str]:
    """Status and last line of `train.py`, in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *args, *SHORT])
    with pytest.raises(SystemExit) as stop:
        script(main)
    return int(str(stop.value.code)), capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_configuration(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "arm.yaml"
    path.write_bytes(FILES[fault])
    matches(fault, *answer(capsys, monkeypatch, "--config", str(path)))
    assert runs() == []


STORES = {
    "the store is in memory": "sqlite://",
    "the store is in memory, by name": "sqlite:///:memory:",
    "the store is a folder": "sqlite:////tmp",
    "PostgreSQL is down": "postgresql://me:hush-hush@127.0.0.1:1/o",
    "the address of the store means nothing": "nonsense://me:hush-hush@x",
}


@pytest.mark.parametrize("fault", STORES)
def test_a_store_that_cannot_be_used(
    fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORES[fault])
    begun = time.monotonic()
    status, line = answer(capsys, monkeypatch)
    matches(fault, status, line)
    assert "hush" not in line
    assert time.monotonic() - begun < 100  # MLflow alone takes 110 seconds


@pytest.mark.slow
def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = typed("train.py", *SHORT, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        out, errors = process.communicate(timeout=240)
    matches("a tracking server that does not answer", process.returncode, " ".join(errors.splitlines()))
    assert out == ""


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "..", "a/b", "a\nb"])
def test_an_experiment_stays_in_mlruns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, line = answer(capsys, monkeypatch, f"--trainer.logger.experiment_name={name}")
    matches("the name of an experiment is a path", status, line)


def test_the_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = [
        "sh",
        "-c",
        'cd "$0" && rmdir "$0" && "$1" "$2"',
        str(tmp_path / "gone"),
        sys.executable,
        f"{ROOT}/train.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    matches("the folder that a command is typed in is gone", done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], SHORT], ids=["help", "run"])
def test_nobody_reads_what_is_printed(words: list[str]) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == FAULTS["nobody reads what is printed (a pipe to `head`)"].status


SIGNALS = {"Ctrl-C in a run": signal.SIGINT, "SIGTERM in a run": signal.SIGTERM, "SIGHUP in a run": signal.SIGHUP}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SIGNALS)
def test_a_run_that_was_stopped_by_a_signal_goes_on_to_the_bit(fault: str, store: Path, tmp_path: Path) -> None:
    options = ["--config", str(arm(tmp_path, "meta")), QUIET, "--trainer.max_epochs=60"]
    process = typed("train.py", *options)
    wait(process, lambda: checkpoints(store), 0.05)
    process.send_signal(SIGNALS[fault])
    status, line, _ = ended(process)
    matches(fault, status, line)
    [run] = runs()
    assert run.info.status == "KILLED"
    resumed, whole = train([*options, f"--ckpt_path={checkpoints(store)[-1]}"]), train(options)
    assert resumed.run_id == run.info.run_id
    assert resumed.test_metrics == whole.test_metrics
    assert schedule(str(resumed.run_id)) == schedule(str(whole.run_id))


SEARCHED = {
    "--trainer.max_time in the search of a rate": None,
    "SIGTERM in the search of a rate": signal.SIGTERM,
    "Ctrl-C in the search of a rate": signal.SIGINT,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SEARCHED)
def test_the_search_of_a_rate_ends(fault: str) -> None:
    """Of a run so long that its search takes minutes."""
    options = ["--optimizer", "meta_search", QUIET, "--trainer.max_epochs=20000"]
    number = SEARCHED[fault]
    process = typed("train.py", *options, *([] if number else ["--trainer.max_time=00:00:00:03"]))
    if number:
        # the last that is told before training starts
        wait(process, lambda: any(run.inputs and run.inputs.dataset_inputs for run in runs()), 0.1)
        time.sleep(1)
        process.send_signal(number)
    status, line, _ = ended(process)
    matches(fault, status, line)


ENVIRONMENTS = {
    "LANG=C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "PYTHONOPTIMIZE=2": {"PYTHONOPTIMIZE": "2"},
    "warnings are errors": {"PYTHONWARNINGS": "error::UserWarning"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ENVIRONMENTS)
def test_other_environments(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENTS[fault].items():
        monkeypatch.setenv(name, value)
    status, line, out = ended(typed("train.py", *SHORT))
    matches(fault, status, line)
    assert "test/loss" in out


@pytest.mark.slow
def test_a_mask_that_lets_nobody_else_read(store: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *SHORT]
    process = subprocess.Popen(
        command, text=True, umask=0o077, preexec_fn=heed, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    status, line, _ = ended(process)
    matches("umask 077", status, line)
    [path] = checkpoints(store)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_user_who_is_not_root_and_a_clone_that_is_read_only(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may become another user")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    # she may read what is root's alone, as the interpreter may be, and write nothing of it
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search"
    command = [*nobody.split(), "--ambient-caps=+dac_read_search", sys.executable, "-B", str(ROOT / "train.py"), *SHORT]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/elsewhere.db", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    matches("another user, with a read-only clone", done.returncode, done.stderr)
    assert "test/loss" in done.stdout
