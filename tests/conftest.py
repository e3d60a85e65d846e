"""A separate MLflow store for each test."""

import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from experiment.process import quiet
from tests.servers import end_all

torch.set_num_threads(1)  # of tensors as small as these, a second thread only waits
torch.set_warn_always(True)  # or a warning fails only the test that happens to be the first of its process


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its tables: to make them takes MLflow seconds."""
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def store(fresh_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that holds `mlflow.db` and `mlruns/` of this test."""
    folder = tmp_path / "a store"  # with a blank in its name
    folder.mkdir()
    shutil.copy(fresh_database, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)  # without a logger, Lightning saves where the command was typed
    quiet()
    yield folder
    end_all()
    gc.unfreeze()  # what a command froze when it had imported: pytest's plugins ask for referrers
