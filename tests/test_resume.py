"""Runs that are killed for real, and go on."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from experiment.presets import CONFIGS, QUIET, ROOT
from experiment.training import train
from tests.store import history, runs, schedule, wait
from tracking.store import client

KILLS = 20


def arm(folder: Path, name: str) -> Path:
    """The arm's own file, with a checkpoint every few steps: what takes days elsewhere must be seen in seconds."""
    base, own = (yaml.safe_load((CONFIGS / f"{file}.yaml").read_text()) for file in ("base", name))
    callbacks = base["trainer"]["callbacks"] + own.get("trainer", {}).get("callbacks+", [])
    for callback in callbacks:
        if callback["class_path"] == "callbacks.LastCheckpoint":
            callback["init_args"] = {"seconds": 0.02}
    config = {part: own[part] for part in ("model", "data") if part in own} | {"trainer": {"callbacks": callbacks}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def checkpoints(folder: Path) -> list[Path]:
    return sorted(
        folder.glob("mlruns/mnist1d/*/checkpoints/*.ckpt"), key=lambda path: int(path.stem.rsplit("step=")[1])
    )


def live(command: list[str], store: Path, seconds: float) -> bool:
    """Run until a new checkpoint is there and some time has passed, then kill; return whether it ended before."""
    before = checkpoints(store)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and checkpoints(store)[-1:] == before[-1:]:
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    errors = process.communicate()[1]
    assert process.returncode in (0, -9), errors
    return process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("meta", KILLS), ("meta_onestep", 4)])
def test_a_run_killed_at_random_steps_is_the_one_that_was_never_stopped(
    name: str, kills: int, store: Path, tmp_path: Path
) -> None:
    """To the bit: weights, rates, metrics; and one run in MLflow, with each point once."""
    options = ["--config", str(arm(tmp_path, name)), QUIET, "--trainer.max_epochs=150"]
    command, draw, died = [sys.executable, str(ROOT / "train.py"), *options], random.Random(0), 0
    for _ in range(kills):
        resume = [f"--ckpt_path={path}" for path in checkpoints(store)[-1:]]
        died += not live([*command, *resume], store, draw.random() / 10)
    command.append(f"--ckpt_path={checkpoints(store)[-1]}")
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert died == kills
    [killed] = runs()
    assert killed.info.status == "FINISHED"
    final = checkpoints(store)[-1]

    whole = train(options)
    other = client().get_run(str(whole.run_id))
    assert killed.data.metrics == other.data.metrics
    for metric in other.data.metrics.keys() - {"epoch"}:  # which Lightning logs twice a step
        assert history(killed.info.run_id, metric) == history(other.info.run_id, metric), metric
    schedules = [client().download_artifacts(run.info.run_id, "schedule.csv") for run in (killed, other)]
    assert Path(schedules[0]).read_text() == Path(schedules[1]).read_text()
    files = [path for path in checkpoints(store) if path.name == final.name]
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in files)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.slow
def test_a_run_has_one_writer(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is suspended still has it; when it goes on, its run is whole."""
    options = ["--config", str(arm(tmp_path, "meta")), QUIET, "--trainer.max_epochs=150"]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *options], stdout=subprocess.DEVNULL)
    wait(process, lambda: checkpoints(store), 0.05)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(SystemExit, match="2"):
        train([*options, f"--ckpt_path={checkpoints(store)[-1]}"])
    process.send_signal(signal.SIGCONT)
    assert "is being written, by another process on this machine" in capsys.readouterr().err
    assert process.wait() == 0
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert [step for step, _ in schedule(run.info.run_id)] == list(range(1, 4801))


@pytest.mark.slow
def test_a_run_says_where_it_is_and_keeps_one_checkpoint(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(arm(tmp_path, "meta")), "--trainer.max_epochs=2"]
    first = train(options)
    [path] = checkpoints(store)
    assert f"run {first.run_id}, checkpoints in {path.parent}" in capsys.readouterr().out
    client().set_terminated(str(first.run_id), "KILLED")
    kept = tmp_path / "kept.ckpt"
    shutil.copy(path, kept)
    beside = path.with_name("epoch=0-step=1.ckpt")  # of another callback
    shutil.copy(path, beside)
    longer = train([*options, "--ckpt_path", str(path)])
    assert longer.run_id == first.run_id
    assert beside.exists()
    assert len(checkpoints(store)) == 2
    assert train([*options, f"--ckpt_path={kept}"]).run_id != first.run_id
    assert kept.exists()
    own = beside.with_name("my copy.ckpt")
    shutil.copy(kept, own)
    train([*options, "--trainer.max_epochs=3", "--ckpt_path", str(own)])
    assert own.exists()


@pytest.mark.slow
def test_a_checkpoint_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """And the schedule is whole all the same, of the run that goes on in another run too."""
    sizes, options = [], ["--config", str(arm(tmp_path, "meta")), QUIET]
    for epochs in (1, 20):
        run = train([*options, f"--trainer.max_epochs={epochs}"])
        path = Path(run.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
        sizes.append(path.stat().st_size)
    assert sizes[1] <= sizes[0] + 1000
    longer = train([*options, "--trainer.max_epochs=22", f"--ckpt_path={path}"])
    schedule = Path(client().download_artifacts(str(longer.run_id), "schedule.csv")).read_text().splitlines()
    assert [int(line.split(",")[0]) for line in schedule[1:]] == list(range(1, 22 * 32 + 1))


@pytest.mark.slow
def test_a_run_that_broke_off_goes_on_in_its_own_run_and_one_that_ended_does_not(store: Path, tmp_path: Path) -> None:
    options = ["--config", str(arm(tmp_path, "meta")), QUIET, "--trainer.max_epochs=3"]
    first = train(options)
    [path] = checkpoints(store)
    assert train([*options, "--ckpt_path", str(path)]).run_id != first.run_id
    client().set_terminated(str(first.run_id), "KILLED")
    assert train([*options, "--ckpt_path", str(path)]).run_id == first.run_id
    longer = train([*options, "--trainer.max_epochs=4", "--ckpt_path", str(path)])
    assert longer.run_id != first.run_id
    assert [step for step, _ in schedule(str(first.run_id))] == list(range(1, 97))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--optimizer adam", "model lightning_modules.MetaModule, the command line says lightning_modules.Su"),
        (
            "--optimizer meta --model.network.hidden 7",
            "model.network.hidden 100, the command line says 7",
        ),
        ("--optimizer meta --model.optimizer torch.optim.SGD", r"model.optimizer torch.optim.Adam, .* torch.optim.SGD"),
    ],
)
def test_a_checkpoint_of_another_arm_or_network_is_refused(
    typed: str, message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(["--optimizer", "meta", QUIET, "--trainer.max_epochs=1"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train([*typed.split(), QUIET, "--ckpt_path", str(checkpoints(store)[-1])])
    [line] = capsys.readouterr().err.splitlines()
    assert "--ckpt_path: the checkpoint was trained with " in line
    assert re.search(message, line)
    assert len(runs()) == 1
