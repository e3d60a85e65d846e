"""Targets of the Makefile, without setting up the environment."""

import socket
import subprocess

import pytest

from experiment.options import ROOT

SET_UP = [".venv/installed", ".tools/pip-licenses", ".tools/pip-audit"]


def make(*words: str) -> "subprocess.CompletedProcess[str]":
    kept = [word for target in SET_UP for word in ("-o", target)]
    return subprocess.run(["make", *kept, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_the_ui_on_a_port_in_use_gives_a_status_and_a_hint() -> None:
    """MLflow alone ends with status 0."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = make("ui", f"PORT={port}")
    assert done.returncode
    assert f"port {port} is in use, perhaps by another UI. Choose another: make ui PORT=5001" in done.stderr
    assert f"mlflow ui --host 127.0.0.1 --port {port}" in make("-n", "ui", f"PORT={port}").stdout
    assert "--port 5000" in make("-n", "ui").stdout


def test_the_published_experiment_is_repeated_outside_of_what_git_tracks() -> None:
    folder = make("-n", "original").stdout.split("--output ")[1].split()[0]
    assert not subprocess.run(["git", "check-ignore", "-q", f"{folder}/x"], cwd=ROOT, check=False).returncode


@pytest.mark.parametrize("option", ["--strict", "--require-hashes"])
def test_the_audit_fails_for_a_package_that_cannot_be_audited(option: str) -> None:
    """Which pip-audit, without the option, only lists."""
    assert option in make("-n", "audit").stdout
