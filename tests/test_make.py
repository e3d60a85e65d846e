"""Targets of the Makefile, without the set-up of the environment."""

import os
import socket
import subprocess
from pathlib import Path

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


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_make_uses_the_supported_python_that_is_there_or_says_what_is_missing(version: str, tmp_path: Path) -> None:
    """Names that fail, as pyenv's shims of versions that are not active, are skipped."""
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        supported = name == f"python{version}" and version != "3.10"
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(not supported)}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "-n", "-W", "requirements.lock", ".venv/installed"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if version == "3.10":
        assert done.returncode
        assert "Python 3.11 or later with venv was not found on PATH. Install it" in done.stderr
    else:
        assert f"python{version} -m venv .venv" in done.stdout
