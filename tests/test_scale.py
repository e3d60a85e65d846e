"""Several machines: processes that share a tracking server, a database and a Dask scheduler on loopback."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from experiment.options import ROOT
from tests.servers import BINARIES, PASSWORD, free_port, mlflow_server, postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="needs PostgreSQL (Debian: apt-get install postgresql)"),
]


class Site(NamedTuple):
    tracking: str
    storage: str
    folder: Path

    def start(self, name: str, *command: str, **variables: str) -> "subprocess.Popen[str]":
        """Start a process in the clone; what it trains belongs to the user of this name."""
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.tracking, "LOGNAME": name} | variables
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def runs(self, query: str) -> list[Run]:
        return list(MlflowClient(self.tracking).search_runs(["1"], query))

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def wait(self, condition: Callable[[], object], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with postgres() as databases, mlflow_server(f"{databases}/mlflow", folder) as tracking:
        MlflowClient(tracking).create_experiment("mnist1d")
        yield Site(tracking, f"{databases}/optuna", folder)


@pytest.fixture(scope="module")
def cluster(site: Site) -> Iterator[tuple[str, "list[subprocess.Popen[str]]"]]:
    """The address of a Dask scheduler, and its two workers."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    bare = ["--no-dashboard", "--nthreads", "1", "--no-nanny"]
    scheduler = site.start("scheduler", "-m", "distributed.cli.dask_scheduler", "--port", str(port), "--no-dashboard")
    workers = [site.start(name, "-m", "distributed.cli.dask_worker", address, *bare) for name in ("first", "second")]
    yield address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


def test_two_dask_workers_share_a_comparison_and_the_run_of_a_killed_one_is_repeated(
    site: Site, cluster: "tuple[str, list[subprocess.Popen[str]]]", tmp_path: Path
) -> None:
    address, workers = cluster
    options = ["--seeds", "4", "--optimizers", "meta", "adam", "--trainer.max_epochs=40"]
    own = [*options, "--cluster", address, "--output", str(site.folder / "shared")]
    driver = site.start("driver", "compare.py", *own)
    shared = ("first", "second")
    finished = "attributes.status = 'FINISHED' and tags.task = 'mlp'"
    site.wait(lambda: {run.data.tags["mlflow.user"] for run in site.runs(finished)} == set(shared))
    running = "attributes.status = 'RUNNING' and tags.mlflow.user = 'first' and tags.task = 'mlp'"
    site.wait(lambda: site.runs(running))
    workers[0].kill()
    assert driver.wait(600) == 0, site.logs()

    results = pd.read_csv(site.folder / "shared" / "results.csv")
    cells = [(arm, seed) for arm in ("meta", "adam") for seed in range(1, 5)]
    assert sorted(zip(results.arm, results.seed, strict=True)) == sorted(cells)
    trained = Counter((run.data.tags["optimizer"], int(run.data.tags["seed"])) for run in site.runs(finished))
    assert trained == Counter(cells)
    assert len(site.runs("attributes.status = 'KILLED' and tags.mlflow.user = 'first'")) == 1
    assert not site.runs("attributes.status = 'RUNNING'")

    alone = [sys.executable, str(ROOT / "compare.py"), *options, "--workers", "1", "--output", str(tmp_path / "alone")]
    subprocess.run(alone, check=True, stdout=subprocess.DEVNULL)
    numbers = ["arm", "seed", "test_loss", "val_loss", "final_lr", "passes"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "alone" / "results.csv")[numbers], results[numbers])


def test_two_machines_share_a_tuning_and_the_trials_are_so_many_in_all(site: Site) -> None:
    """One of three, in three time zones, is killed in a trial; the others do its work."""
    command = ["tune.py", "--optimizer", "adam", "--trials", "10", "--trainer.max_epochs=20", "--storage", site.storage]
    machines = [site.start(f"tune{number}", *command, PGTZ=f"Etc/GMT+{number}") for number in range(3)]
    site.wait(lambda: site.runs("attributes.status = 'RUNNING' and tags.mlflow.user = 'tune0' and params.seed = '0'"))
    machines[0].kill()
    machines[0].wait()
    assert [machine.wait(600) for machine in machines[1:]] == [0, 0], site.logs()

    # kept, and closed: a warning about an open connection is an error
    storage = RDBStorage(site.storage)
    [name] = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert 10 <= len(complete) <= 11
    assert len({trial.params["model.lr"] for trial in complete[:10]}) == 10
    runs = {run.info.run_id: run for run in site.runs("tags.task = 'mlp'")}
    shared = {runs[trial.user_attrs["run_id"]].data.tags["mlflow.user"] for trial in complete}
    assert {"tune1", "tune2"} <= shared
    [parent] = site.runs("attributes.run_name = 'tune adam'")
    assert parent.data.metrics["best_val_loss"] == min(trial.value or 9 for trial in complete[:10])

    again = site.start("again", *command)
    assert again.wait(600) == 0, site.logs()
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == len(complete)
    storage.engine.dispose()


def test_no_password_is_kept_anywhere(site: Site) -> None:
    """After both: in no tag, parameter, artifact or log."""
    kept = [str(run.to_dictionary()) for run in site.runs("")]
    files = [path.read_bytes() for path in site.folder.rglob("*") if path.suffix in (".yaml", ".md", ".csv", ".log")]
    assert min(len(kept), len(files)) > 15
    assert not any(PASSWORD in text for text in kept)
    assert not any(PASSWORD.encode() in content for content in files)
