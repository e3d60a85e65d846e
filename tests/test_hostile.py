"""Signals, environments and users: a line and a status, never a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.options import ROOT
from experiment.run import train
from tests.faults import FAULTS
from tests.servers import ended, typed
from tests.store import SHORT, checkpoints, runs, schedule, wait

SIGNALS = {"Ctrl-C in a run": signal.SIGINT, "SIGTERM in a run": signal.SIGTERM, "SIGHUP in a run": signal.SIGHUP}


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
@pytest.mark.parametrize("words", [["--help"], SHORT], ids=["help", "run"])
def test_nobody_reads_what_is_printed(words: list[str]) -> None:
    with typed("train.py", *words) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == FAULTS["the reader of the output has gone (a pipe to `head`)"].status


ENVIRONMENTS = [
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"},
    {"PYTHONWARNINGS": "error::UserWarning"},
]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=["C", "strict"])
def test_another_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert "test/loss" in ended(typed("train.py", *SHORT), "LANG=C, PYTHONOPTIMIZE=2, warnings are errors")


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
    assert done.returncode == FAULTS["another user, with a read-only clone"].status, done.stderr
    assert "test/loss" in done.stdout
