"""What cannot be trained, or gone on with, gives a line and status 2 before a run is made; not finite is no success."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.presets import QUIET
from experiment.process import script
from experiment.training import train
from lightning_modules import MLP, MetaModule
from tests.store import runs, schedule
from tracking.store import client
from train import main

SHORT = [QUIET, "--trainer.max_epochs=1"]
BROKEN = {
    "--data.fault=empty": "train has 0 inputs and 0 targets",
    "--data.fault=no-test": "test has 0 inputs and 0 targets",
    "--data.fault=mismatch": "train has 200 inputs and 199 targets",
    "--data.fault=float64-targets": "targets of train are torch.float64; classes must be int64, values float32",
    "--data.fault=nan": "train holds numbers that are not finite",
    "--data.fault=integer-inputs": "the network cannot take the samples (inputs (40,) torch.int64",
    "--data.fault=classes": "the network cannot take the samples",
    "--data.fault=wide": "the network cannot take the samples (inputs (80,) torch.float32",
    "--model.network=tests.broken.Frozen": "no weight to train: all are frozen",
    "--model.network=tests.broken.Detached": "the loss must be a number that depends on the weights",
    "--model=tests.broken.Unreduced": "the loss must be a number that depends on the weights",
}


@pytest.mark.slow
@pytest.mark.parametrize("option", BROKEN)
def test_what_cannot_be_trained_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = [] if option.startswith("--model") else ["--data=tests.broken.Broken"]
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", "adam", *data, option, *SHORT])
    [line] = capsys.readouterr().err.splitlines()
    assert BROKEN[option] in line
    assert runs() == []


def test_a_network_that_takes_its_shapes_from_the_first_batch_trains() -> None:
    assert "test/loss" in train(["--optimizer", "adam", "--model.network=tests.broken.Lazy", *SHORT]).test_metrics


def test_a_validation_loss_that_is_not_finite_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["--optimizer", "adam", "--model.network=tests.broken.Blind", *SHORT])
    assert "Training diverged at step 32: val/loss is nan" in capsys.readouterr().err
    [run] = runs()
    assert run.info.status == "FAILED"
    assert "val/loss is nan" in run.data.tags["diverged"]


def test_a_test_loss_that_is_not_finite_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    unseen = "--trainer.limit_val_batches=0"
    with pytest.raises(SystemExit, match="1"):
        main(["--optimizer", "adam", "--model.network=tests.broken.Blind", unseen, *SHORT])
    assert "fit: test/loss is nan" in capsys.readouterr().err
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_looks_that_are_not_finite_leave_the_rate() -> None:
    unseen = "--trainer.limit_val_batches=0"
    run = train(["--optimizer", "meta_onestep", "--model.network=tests.broken.Blind", unseen, *SHORT])
    assert "test/loss is nan" in str(run.diverged)
    assert [rate for _, rate in schedule(str(run.run_id))] == pytest.approx([0.001] * 32)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["Unused", "HalfFrozen"])
def test_hypergradient_descent_takes_weights_that_do_not_move(network: str) -> None:
    run = train(["--optimizer", "descent", f"--model.network=tests.broken.{network}", *SHORT])
    assert run.test_metrics["test/loss"] < 2.4


@pytest.fixture
def checkpoint(store: Path) -> Path:
    """Of `meta`."""
    train(["--optimizer", "meta", *SHORT])
    [path] = store.glob("mlruns/mnist1d/*/checkpoints/*.ckpt")
    return path


def spoilt(name: str, good: Path, folder: Path) -> Path:
    """Return a checkpoint with one fault."""
    path = folder / "spoilt.ckpt"
    shutil.copy(good, path)
    content: Any = torch.load(path, weights_only=True)
    match name:
        case "flipped":  # one bit, in the middle of the weights
            data = bytearray(path.read_bytes())
            place = data.index(content["state_dict"]["network.0.weight"].numpy().tobytes()[:64])
            data[place] ^= 1
            path.write_bytes(data)
        case "cut":
            path.write_bytes(path.read_bytes()[:2000])
        case "text":
            path.write_text("weights")
        case "foreign":
            torch.save({"state_dict": content["state_dict"], "hyper_parameters": content["hyper_parameters"]}, path)
        case "no-weights":
            torch.save(content | {"state_dict": {}}, path)
        case "shape":
            content["state_dict"]["network.0.weight"] = torch.zeros(7, 40)
            torch.save(content, path)
        case "no-adaptation":
            del content["adaptation"]
            torch.save(content, path)
        case "older":
            del content["adaptation"]["losses"]["at_move"]
            torch.save(content, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("flipped", "is damaged"),
        ("cut", "cannot be read as a checkpoint"),
        ("text", "cannot be read as a checkpoint"),
        ("foreign", "has no optimizer_states"),
        ("no-weights", "is nothing there, and ("),
        ("shape", "network.0.weight is (7, 40) there, and (100, 40) here"),
        ("no-adaptation", "has no 'adaptation'"),
        ("older", "the state has no at_move: another version wrote it"),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_with_is_refused(
    fault: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoilt(fault, checkpoint, tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", "meta", *SHORT, "--trainer.max_epochs=2", f"--ckpt_path={path}"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line
    assert len(runs()) == 1


def test_what_another_version_wrote_is_still_tested(checkpoint: Path, tmp_path: Path) -> None:
    """Its weights are there: to test, to predict and to load them needs no more."""
    path = spoilt("older", checkpoint, tmp_path)
    tested = [train(["test", f"--ckpt_path={file}", QUIET]).trainer.callback_metrics for file in (path, checkpoint)]
    assert tested[0]["test/loss"] == tested[1]["test/loss"]
    assert MetaModule.load_from_checkpoint(path, network=MLP(), optimizer=None)


def test_a_run_whose_checkpoint_is_refused_stays_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    [run] = runs()
    client().set_terminated(run.info.run_id, "KILLED")
    shutil.copy(spoilt("flipped", checkpoint, tmp_path), checkpoint)
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", "meta", *SHORT, f"--ckpt_path={checkpoint}"])
    assert [run.info.status for run in runs()] == ["KILLED"]


@pytest.mark.parametrize("word", ["best", "last", "hpc"])
def test_a_word_is_no_checkpoint(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", "meta", *SHORT, f"--ckpt_path={word}"])
    assert f"--ckpt_path: there is no file {word}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_an_untrained_network_is_not_evaluated(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train([command, "--optimizer", "adam", QUIET])
    assert f"{command} needs --ckpt_path" in capsys.readouterr().err
    assert runs() == []


def test_a_network_that_does_not_fit_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--model.network.classes=3", *SHORT])
    with pytest.raises(SystemExit, match="2"):
        script(main)
    assert "the network cannot take the samples" in capsys.readouterr().err
