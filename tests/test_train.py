import re
import shutil
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from experiment.grid import read_run
from experiment.options import ARMS, CONFIGS, ROOT, TASKS
from experiment.run import train
from tests.store import SHORT, artifacts, history, runs, schedule
from tracking.store import client
from train import main


def printed_config(*args: str, capsys: pytest.CaptureFixture[str]) -> Any:
    with pytest.raises(SystemExit, match="0"):
        train([*args, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_trains_is_tested_once_and_keeps_what_it_did(arm: str) -> None:
    typed = ["--optimizer", arm, "--model.lr=0.002", "--seed_everything=7", *SHORT]
    made = train(typed)
    [run] = runs()
    assert run.info.run_id == made.run_id
    assert (run.info.run_name, run.info.status) == (arm, "FINISHED")
    described = f"`python train.py {' '.join(typed)}`"
    tags = {"optimizer": arm, "seed": "7", "mlflow.note.content": described}
    assert tags.items() <= run.data.tags.items()
    assert {"model.lr": "0.002", "seed": "7", "max_epochs": "1"}.items() <= run.data.params.items()
    names = {"train/loss", "val/loss", "val/accuracy", "lr", "test/loss", "test/accuracy"}
    assert names <= run.data.metrics.keys()
    assert len(history(run.info.run_id, "test/loss")) == 1
    assert {"config.yaml", "trajectory.png", "schedule.csv"} <= artifacts(run.info.run_id)


class StatusInTest(Callback):
    """What the store says of the run while it is tested."""

    status: str

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        [run] = runs()
        self.status = run.info.status


def test_a_run_is_not_finished_before_its_test() -> None:
    """Else one that is killed in its test could not resume."""
    seen = StatusInTest()
    train(["--optimizer", "adam", *SHORT], callbacks=[seen])
    assert (seen.status, runs()[0].info.status) == ("RUNNING", "FINISHED")


@pytest.mark.parametrize(
    "status",
    ["RUNNING", pytest.param("KILLED", marks=pytest.mark.slow), pytest.param("FAILED", marks=pytest.mark.slow)],
)
def test_only_a_finished_run_is_reused(status: str) -> None:
    options = ["--optimizer", "adam", *SHORT]
    first = train(options, reuse=True)
    assert train(options, reuse=True).run_id == first.run_id
    client().update_run(str(first.run_id), status)
    again = train(options, reuse=True)
    assert again.run_id != first.run_id
    assert train(options, reuse=True).run_id == again.run_id


def test_a_run_whose_files_were_removed_is_not_reused(store: Path) -> None:
    """Its schedule could not be read."""
    options = ["--optimizer", "adam", *SHORT]
    first = train(options, reuse=True)
    shutil.rmtree(store / "mlruns")
    assert train(options, reuse=True).run_id != first.run_id


class StoreAtCheckpoint(Callback):
    """What the store has when a checkpoint is made."""

    def __init__(self) -> None:
        self.validations: dict[int, int] = {}

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        points = history(str(trainer.logger.run_id), "val/loss")  # type: ignore[union-attr]
        self.validations[trainer.current_epoch + 1] = len(points)


def test_validation_points_are_in_the_store_before_a_checkpoint_that_follows_them() -> None:
    seen = StoreAtCheckpoint()
    train(["--optimizer", "adam", *SHORT, "--trainer.max_epochs=5"], callbacks=[seen])
    assert seen.validations == {epoch: epoch for epoch in seen.validations} | {1: 1, 5: 5}


@pytest.mark.parametrize("metric", ["test/loss", "val/loss"])
def test_a_loss_that_is_not_a_number_is_infinite_where_runs_are_compared(metric: str) -> None:
    """A mean leaves NaN out, and would rank the arm by its other runs."""
    run = train(["--optimizer", "adam", *SHORT])
    client().log_metric(str(run.run_id), metric, float("nan"), step=100)
    assert read_run(str(run.run_id))[metric.replace("/", "_")] == float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_its_file_and_later_options_win(arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = printed_config("--optimizer", arm, capsys=capsys)
    assert printed_config("--config", str(CONFIGS / f"{arm}.yaml"), capsys=capsys) == named
    assert printed_config("--model.lr=0.5", "--optimizer", arm, capsys=capsys)["model"]["init_args"]["lr"] == 0.5
    tuned = CONFIGS / "tuned" / f"{'adam' if arm == 'cosine' else arm}.yaml"
    if tuned.is_file():
        best = yaml.safe_load(tuned.read_text())["model"]["init_args"]
        assert named["model"]["init_args"]["lr"] == best["lr"]
        kept = named["model"]["init_args"]["optimizer"]["init_args"]
        assert best.get("optimizer", {"init_args": {}})["init_args"].items() <= kept.items()


def test_the_default_arm_is_meta(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_config(capsys=capsys) == printed_config("--optimizer", "meta", capsys=capsys)


def own_defaults(class_path: str) -> dict[str, Any]:
    """The keyword arguments of a class, as its signature has them."""
    module, name = class_path.rsplit(".", 1)
    parameters = signature(getattr(import_module(module), name)).parameters.values()
    found = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_does_not_say_is_its_classes_own_default(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Once the GRU had the 100 units of the MLP that it replaced, and the Transformers its one layer."""
    said = yaml.safe_load((CONFIGS / "tasks" / f"{task}.yaml").read_text())
    found = printed_config("--task", task, capsys=capsys)
    for part, given in (
        (found["model"]["init_args"]["network"], said["model"]["network"].get("init_args", {})),
        (found["data"], said.get("data", {}).get("init_args", {})),
    ):
        assert part.get("init_args", {}) == own_defaults(part["class_path"]) | given


def test_the_published_experiment_is_kept_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config("--optimizer", "meta_original", capsys=capsys)
    settings = config["model"]["init_args"]
    assert (settings["lr"], settings["meta_lr"], settings["adapt"]) == (1e-3, 1e-4, "rate")
    assert {settings[name]["class_path"] for name in ("optimizer", "meta_optimizer")} == {"torch.optim.Adam"}
    assert config["trainer"]["max_epochs"] == 50
    assert config["data"]["class_path"] == "data.MNIST1DDataModule"


@pytest.mark.parametrize(
    "option",
    ["--trainer.logger=false", "--trainer.limit_val_batches=0", "--trainer.max_steps=2", "--trainer.fast_dev_run=true"],
)
def test_what_lightning_offers_is_still_there(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--optimizer", "meta", *SHORT, option])
    assert ("test/loss" in capsys.readouterr().out) == ("fast" not in option)


@pytest.mark.slow
def test_the_command_works_from_any_directory_and_says_last_how_to_see_the_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--optimizer", "meta", *SHORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()[-5:]
    [run] = runs()
    assert re.fullmatch(r"val/loss \d\.\d{4}, test/loss \d\.\d{4}, test/accuracy 0\.\d{4}", lines[0])
    assert re.fullmatch(r"the learning rate ended at 0\.\d+", lines[1])
    assert Path(lines[2].removeprefix("checkpoint  ")).is_file()
    assert lines[3] == f"MLflow run  {run.info.run_id}"
    assert f"/runs/{run.info.run_id}/artifacts/trajectory.png?" in lines[4]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["meta", "meta_onestep", "adamw_average"])
def test_two_processes_share_the_batches_and_one_of_them_writes_the_run(arm: str, tmp_path: Path) -> None:
    """The recipe of the README, with gloo: the losses and rates are those of one process."""
    several = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    options = ["--optimizer", arm, "--trainer.max_epochs=2", SHORT[1]]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    done = subprocess.run([*command, *several], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.count("MLflow run") == 1
    [two] = runs()
    one = train(options)
    rates, expected = (schedule(run_id) for run_id in (two.info.run_id, str(one.run_id)))
    assert [step for step, _ in rates] == list(range(1, 65))
    assert [rate for _, rate in rates] == pytest.approx([rate for _, rate in expected], rel=1e-3)
    assert two.data.metrics["test/loss"] == pytest.approx(one.test_metrics["test/loss"], rel=1e-3)


def test_the_help_is_one_screen_and_does_not_wait_for_torch(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) < 40
    for word in ("--optimizer ARM", "--model.lr RATE", "--config FILE", "--seed_everything", *ARMS, *TASKS):
        assert word in screen
    for command in ("train", "tune", "compare", "results"):
        code = f"import sys, {command}; sys.argv[1:] = ['--help']\ntry: {command}.main()\nfinally: print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"torch", "mlflow", "numpy", "optuna", "yaml"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("command", ["train", "tune", "compare", "results"])
def test_without_the_environment_a_command_names_make(command: str) -> None:
    typed = {"tune": ["--optimizer=adam"], "results": ["--redraw"]}.get(command, [])
    # -S: without site-packages
    call = [sys.executable, "-S", f"{command}.py", *typed]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"{command}.py: error: the package \w+ is not installed here: run `make train`.*\n", done.stderr
    )
