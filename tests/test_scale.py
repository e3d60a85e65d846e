"""Several machines on one sweep: here three processes, each started for itself, that share nothing but two servers."""

import functools
import os
import signal
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
from optuna.trial import TrialState

from experiment.presets import ROOT
from experiment.sweep import open_storage
from tests.servers import BINARIES, PASSWORD, mlflow_server, postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="needs PostgreSQL (Debian: apt-get install postgresql)"),
]


opened = functools.cache(open_storage)  # PostgreSQL takes a hundred connections


class Site(NamedTuple):
    tracking: str
    storage: str
    folder: Path

    def start(self, number: int, *command: str) -> subprocess.Popen[str]:
        """Type a command on machine `number`."""
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.tracking}
        words = [sys.executable, str(ROOT / command[0]), *command[1:], "--storage", self.storage]
        with (self.folder / f"{number}.log").open("w") as log:
            return subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)

    def study(self, kind: str) -> optuna.Study:
        storage = opened(self.storage)
        [name] = [name for name in optuna.get_all_study_names(storage) if name.startswith(kind)]
        return optuna.load_study(study_name=name, storage=storage)

    def runs(self, query: str) -> list[Run]:
        return list(MlflowClient(self.tracking).search_runs(["1"], query))

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with postgres() as databases, mlflow_server(f"{databases}/mlflow", folder) as tracking:
        yield Site(tracking, f"{databases}/optuna", folder)


def wait(condition: Callable[[], bool], site: Site, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except ValueError:  # there is no study yet
            pass
        time.sleep(0.2)
    raise TimeoutError(site.logs())


def work(site: Site, kind: str, *command: str) -> None:
    """Three machines at once, one of which is killed in the middle of a trial; the others do its work."""
    machines = [site.start(number, *command) for number in range(3)]
    done = (TrialState.COMPLETE,)
    wait(lambda: len(site.study(kind).get_trials(states=done)) >= 3, site)
    machines[0].kill()
    machines[0].wait()
    for machine in machines[1:]:
        assert machine.wait(600) == 0, site.logs()
    assert PASSWORD not in site.logs()


def test_three_machines_share_a_comparison_and_lose_nothing_when_one_is_killed(site: Site, tmp_path: Path) -> None:
    options = ["--seeds", "4", "--optimizers", "meta", "adam", "--trainer.max_epochs=30", "--workers", "1"]
    work(site, "compare", "compare.py", *options, "--output", str(site.folder / "shared"))
    results = pd.read_csv(site.folder / "shared" / "results.csv")
    cells = [(arm, seed) for arm in ("meta", "adam") for seed in range(1, 5)]
    assert sorted(zip(results.arm, results.seed, strict=True)) == sorted(cells)

    finished = site.runs("attributes.status = 'FINISHED' and tags.task = 'mlp'")
    trained = Counter((run.data.tags["optimizer"], int(run.data.tags["seed"])) for run in finished)
    assert trained == Counter(cells)
    assert not site.runs("attributes.status = 'RUNNING'")
    assert len(site.runs("attributes.run_name = 'compare'")) == 1

    alone = [sys.executable, str(ROOT / "compare.py"), *options, "--output", str(tmp_path / "alone")]
    subprocess.run(alone, check=True, stdout=subprocess.DEVNULL)
    numbers = ["arm", "seed", "test_loss", "val_loss", "final_lr", "passes"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "alone" / "results.csv")[numbers], results[numbers])


def test_three_machines_share_a_tuning_and_each_trial_counts_once(site: Site) -> None:
    options = ["--optimizer", "adam", "--trials", "12", "--trainer.max_epochs=20"]
    work(site, "tune", "tune.py", *options)
    complete = site.study("tune").get_trials(states=[TrialState.COMPLETE])
    assert sorted(trial.user_attrs["slot"] for trial in complete) == list(range(12))
    assert len({trial.params["model.lr"] for trial in complete}) == 12
    [parent] = site.runs("attributes.run_name = 'tune adam'")
    children = site.runs(f"tags.mlflow.parentRunId = '{parent.info.run_id}' and attributes.status = 'FINISHED'")
    assert {trial.user_attrs["run_id"] for trial in complete} <= {run.info.run_id for run in children}
    assert not site.runs("attributes.status = 'RUNNING'")


def test_a_machine_that_paused_goes_on_with_the_next_trial_and_nobody_ends_its_runs(site: Site) -> None:
    """SIGSTOP in the middle of a trial, until another machine has given it up, then SIGCONT."""
    options = ["--optimizer", "cosine_tuned", "--trials", "4", "--trainer.max_epochs=100"]

    def trials(state: TrialState) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in site.study("tune cosine_tuned").get_trials(states=[state]) if trial.params]

    paused = site.start(10, "tune.py", *options)
    wait(lambda: bool(trials(TrialState.RUNNING)), site)
    paused.send_signal(signal.SIGSTOP)
    machines = [paused, site.start(11, "tune.py", *options)]
    wait(lambda: bool(trials(TrialState.FAIL)), site)
    paused.send_signal(signal.SIGCONT)
    assert [machine.wait(240) for machine in machines] == [0, 0], site.logs()
    assert "was taken over by another machine" in site.logs()
    assert sorted(trial.user_attrs["slot"] for trial in trials(TrialState.COMPLETE)) == list(range(4))
    assert not site.runs("attributes.status = 'RUNNING'")


def test_no_password_is_kept_anywhere(site: Site) -> None:
    """After the two sweeps: in no tag, parameter or artifact."""
    kept = [str(run.to_dictionary()) for run in site.runs("")]
    files = [path.read_bytes() for path in site.folder.rglob("*") if path.suffix in (".yaml", ".md", ".csv", ".log")]
    assert len(kept) > 20
    assert len(files) > 20
    assert not any(PASSWORD in text for text in kept)
    assert not any(PASSWORD.encode() in content for content in files)
