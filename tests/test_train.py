import re
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks import LogInputs
from experiment.presets import ARMS, BASE, CONFIGS, ROOT, TASKS, color
from experiment.report import report
from experiment.training import train
from tests.store import artifacts, history, runs, schedule
from train import main

SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--data.batch_size=1000"]


def printed_config(*args: str, capsys: pytest.CaptureFixture[str]) -> Any:
    with pytest.raises(SystemExit, match="0"):
        train([*args, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_trains_is_tested_once_and_keeps_what_it_did(arm: str) -> None:
    Path("schedule.csv").write_text("step,lr,decay\n1,0.002,0.01\n")  # what `replay` needs
    cli = train(["--optimizer", arm, "--model.lr=0.002", "--seed_everything=7", *SHORT])
    [run] = runs()
    assert run.info.run_id == cli.run_id
    assert (run.info.run_name, run.info.status) == (arm, "FINISHED")
    described = f"`python train.py --optimizer {arm} --model.lr=0.002 --seed_everything=7 {' '.join(SHORT)}`"
    tags = {"optimizer": arm, "seed": "7", "mlflow.runColor": color(arm), "mlflow.note.content": described}
    assert tags.items() <= run.data.tags.items()
    assert {"model.lr": "0.002", "seed": "7", "max_epochs": "1"}.items() <= run.data.params.items()
    names = {"train/loss", "val/loss", "val/accuracy", "lr", "test/loss", "test/accuracy"}
    assert names <= run.data.metrics.keys()
    assert len(history(run.info.run_id, "test/loss")) == 1
    assert {"config.yaml", "trajectory.png", "schedule.csv"} <= artifacts(run.info.run_id)
    assert not any(isinstance(callback, LogInputs) for callback in cli.trainer.callbacks)  # type: ignore[attr-defined]


class StatusInTest(Callback):
    """What the store says of the run while it is tested."""

    status: str

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        [run] = runs()
        self.status = run.info.status


@pytest.mark.parametrize("options", [[], pytest.param(["--log-model"], marks=pytest.mark.slow)])
def test_a_run_is_not_finished_before_its_test(options: list[str]) -> None:
    """Else one that is killed in its test could not go on."""
    seen = StatusInTest()
    train(["--optimizer", "adam", *options, *SHORT], callbacks=[seen])
    assert (seen.status, runs()[0].info.status) == ("RUNNING", "FINISHED")


def test_a_run_that_skips_its_test_is_finished() -> None:
    train(["--optimizer", "adam", "--trainer.limit_test_batches=0", *SHORT])
    assert runs()[0].info.status == "FINISHED"


def test_no_two_arms_have_one_colour() -> None:
    assert len({color(arm) for arm in ARMS}) == len(ARMS)


def test_the_default_arm_is_meta(capsys: pytest.CaptureFixture[str]) -> None:
    default = printed_config(capsys=capsys)
    named = printed_config("--optimizer", "meta", capsys=capsys)
    assert default | {"optimizer": "meta"} == named


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_its_file(arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Over `base.yaml` and, where a file begins an own arm, over nothing else."""
    named = printed_config("--optimizer", arm, capsys=capsys)
    read = printed_config("--config", str(ROOT / "configs" / f"{arm}.yaml"), capsys=capsys)
    assert read | {"optimizer": arm} == named


def own_defaults(class_path: str) -> dict[str, Any]:
    """Return the keyword arguments of a class, as its signature has them."""
    module, name = class_path.rsplit(".", 1)
    parameters = signature(getattr(import_module(module), name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_does_not_say_is_its_classes_own_default(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Once the GRU had the 100 units of the MLP that it replaced, and the Transformers its one layer."""
    said = yaml.safe_load((CONFIGS / "tasks" / f"{task}.yaml").read_text())
    found = printed_config("--task", task, capsys=capsys)
    base = yaml.safe_load(BASE.read_text())["data"]
    for part, given in (
        (found["model"]["init_args"]["network"], said["model"]["network"].get("init_args", {})),
        (found["data"], base["init_args"] | said.get("data", {}).get("init_args", {})),
    ):
        assert part["init_args"] == own_defaults(part["class_path"]) | given


@pytest.mark.parametrize(
    ("option", "class_path"),
    [
        ("network", "lightning_modules.GRU"),
        ("network", "lightning_modules.VisionTransformer"),
        ("optimizer", "torch.optim.AdamW"),
        ("optimizer", "torch.optim.SGD"),
    ],
)
@pytest.mark.parametrize("arm", ["adam", "meta_search"])
def test_a_class_that_is_typed_has_its_own_defaults(
    arm: str, option: str, class_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = printed_config("--optimizer", arm, f"--model.{option}", class_path, capsys=capsys)
    kept = typed["model"]["init_args"][option]["init_args"]
    defaults = {
        name: list(value) if isinstance(value, tuple) else value for name, value in own_defaults(class_path).items()
    }
    assert kept == {name: value for name, value in defaults.items() if name in kept}


def test_adam_and_cosine_start_from_the_tuned_rate(capsys: pytest.CaptureFixture[str]) -> None:
    tuned = yaml.safe_load((ROOT / "configs" / "tuned" / "adam.yaml").read_text())["model"]["init_args"]["lr"]
    for arm in ("adam", "cosine"):
        assert printed_config("--optimizer", arm, capsys=capsys)["model"]["init_args"]["lr"] == tuned


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_later_options_win_over_the_preset(arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_config("--optimizer", arm, "--model.lr=0.5", capsys=capsys)["model"]["init_args"]["lr"] == 0.5


def test_the_published_experiment_is_kept_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config("--optimizer", "meta_original", capsys=capsys)
    settings = config["model"]["init_args"]
    assert (settings["lr"], settings["meta_lr"], settings["adapt"]) == (1e-3, 1e-4, "rate")
    assert {settings[name]["class_path"] for name in ("optimizer", "meta_optimizer")} == {"torch.optim.Adam"}
    assert config["trainer"]["max_epochs"] == 50
    assert config["data"]["class_path"] == "data.MNIST1DDataModule"
    assert not config["data"]["init_args"]["train_on_validation"]  # 4,000 samples


def test_a_run_repeats_from_the_configuration_it_kept() -> None:
    first = train(["--optimizer", "meta", *SHORT])
    [run] = runs()
    config = Path(run.info.artifact_uri) / "config.yaml"
    again = train(["--config", str(config), "--trainer.enable_progress_bar=false"])
    assert first.digest == again.digest
    assert first.test_metrics == again.test_metrics
    assert [run.info.run_name for run in runs()] == ["meta", "meta"]


@pytest.mark.slow
def test_a_checkpoint_alone_brings_its_arm_back() -> None:
    cli = train(["--optimizer", "meta_original", "--model.network.hidden=30", *SHORT])
    path = str(cli.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    tested = train(["test", "--ckpt_path", path, "--trainer.enable_progress_bar=false"])
    assert tested.model.network[0].out_features == 30
    assert tested.trainer.callback_metrics["test/loss"].item() == cli.test_metrics["test/loss"]
    for command in ("validate", "predict"):
        train([command, "--ckpt_path", path, "--trainer.enable_progress_bar=false"])
    resumed = train(["--optimizer", "meta_original", "--ckpt_path", path, *SHORT[1:], "--trainer.max_epochs=2"])
    assert resumed.trainer.global_step == 8
    assert isinstance(resumed.trainer.optimizers[0], torch.optim.Adam)


@pytest.mark.parametrize("option", ["--trainer.logger=false", "--trainer.limit_val_batches=0", "--trainer.max_steps=2"])
def test_what_lightning_offers_is_still_there(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli = train(["--optimizer", "meta", *SHORT, option])
    report(cli)
    assert f"test/loss {cli.test_metrics['test/loss']:.4f}" in capsys.readouterr().out


def test_somebodys_own_arm_is_a_file(tmp_path: Path) -> None:
    arm = {
        "model": {"class_path": "lightning_modules.SupervisedModule", "init_args": {"optimizer": "torch.optim.AdamW"}}
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(arm))
    train(["--config", str(tmp_path / "mine.yaml"), *SHORT])
    [run] = runs()
    assert run.info.run_name == run.data.tags["optimizer"] == "mine"
    assert run.data.params["model.optimizer"] == "torch.optim.AdamW"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_whole_checkpoint_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        train(["test", "--ckpt_path", str(path)])
    [line] = capsys.readouterr().err.splitlines()
    assert f"--ckpt_path: {path} cannot be read as a checkpoint" in line
    assert runs() == []


def test_a_typo_in_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "typo.yaml").write_text("trainer: {max_epoch: 3}")
    with pytest.raises(SystemExit, match="2"):
        train(["--config", str(tmp_path / "typo.yaml")])
    assert "max_epoch" in capsys.readouterr().err
    assert runs() == []


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
    assert f"/runs/{run.info.run_id}?" in lines[4]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["meta", "meta_onestep", "adamw_average"])
def test_two_processes_share_the_batches_and_one_of_them_writes_the_run(arm: str, tmp_path: Path) -> None:
    """The recipe of the README, with gloo: the losses and rates are those of one process."""
    several = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    options = ["--optimizer", arm, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    done = subprocess.run([*command, *several], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.count("MLflow run") == 1
    [two] = runs()
    one = train(options)
    rates, expected = (schedule(run_id) for run_id in (two.info.run_id, str(one.run_id)))
    assert [step for step, _ in rates] == list(range(1, 65))
    assert [rate for _, rate in rates] == pytest.approx([rate for _, rate in expected], rel=1e-3)
    assert two.data.metrics["test/loss"] == pytest.approx(one.test_metrics["test/loss"], rel=1e-3)


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_a_message_and_status_1(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--optimizer", "adam", "--model.lr=1e6", *SHORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert re.match(r"Training diverged at step 2: the training loss is \S+ and was 2\.\d+ at first", line)


def test_the_help_is_one_screen_and_does_not_wait_for_torch(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) < 40
    for word in ("--optimizer ARM", "--model.lr RATE", "--config", "--seed_everything", *ARMS, *TASKS):
        assert word in screen
    code = "import sys, train; train.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "mlflow", "numpy"}.isdisjoint(done.stdout.split())


def test_the_whole_help_lists_ours_before_the_trainers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        train(["fit", "--help"])
    text = capsys.readouterr().out
    assert text.index("--optimizer {adam,") < text.index("--model CONFIG") < text.index("--trainer.max_epochs")


def test_the_help_of_a_module_is_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("MetaModule", "lightning_modules.OneStepModule"):
        with pytest.raises(SystemExit, match="0"):
            train([f"--model.help={name}"])
        text = capsys.readouterr().out
        assert len(text.splitlines()) < 60
        assert "--model.meta_lr" in text
        assert "known subclasses" not in text


def test_a_digest_that_reads_like_a_number_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hash:
        def hexdigest(self) -> str:
            return "885e201949542093"

    monkeypatch.setattr("experiment.digest.hashlib.sha256", lambda _: Hash())
    first = train(["--optimizer", "adam", *SHORT])
    assert train(["--optimizer", "adam", *SHORT], reuse=True).run_id == first.run_id
