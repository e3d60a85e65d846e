"""What cannot be trained or resumed gives one line and status 2 before a run is stored; NaN is not a success."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.run import train
from tests.faults import CHECKPOINTS, UNTRAINABLE
from tests.store import SHORT, checkpoint_of, runs
from tracking.store import client
from train import main


@pytest.mark.slow
@pytest.mark.parametrize("option", UNTRAINABLE)
def test_what_cannot_be_trained_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = [] if option.startswith("--model") else ["--data=tests.broken.Broken"]
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", "adam", *SHORT[:2], *data, option])
    [line] = capsys.readouterr().err.splitlines()
    assert UNTRAINABLE[option] in line
    assert runs() == []


def test_a_network_that_takes_its_shapes_from_the_first_batch_trains() -> None:
    assert "test/loss" in train(["--optimizer", "adam", "--model.network=tests.broken.Lazy", *SHORT]).test_metrics


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_loss_that_is_not_finite_is_not_a_success(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    unseen, message = ["--trainer.limit_val_batches=0"] * (part == "test"), f"{part}/loss is nan"
    with pytest.raises(SystemExit, match="1"):
        main(["--optimizer", "adam", "--model.network=tests.broken.Blind", *unseen, *SHORT])
    assert message in capsys.readouterr().err
    [run] = runs()
    assert (run.info.status, message in run.data.tags["diverged"]) == ("FAILED", True)


@pytest.fixture
def trained() -> str:
    """The checkpoint of `meta`."""
    return checkpoint_of(train(["--optimizer", "meta", *SHORT]))


def spoil(name: str, path: Path) -> None:
    """Give a checkpoint one fault."""
    content: Any = torch.load(path, weights_only=True)
    match name:
        case "one bit is flipped":
            data = bytearray(path.read_bytes())
            # in the middle of the weights
            place = data.index(content["state_dict"]["network.0.weight"].numpy().tobytes()[:64])
            data[place] ^= 1
            path.write_bytes(data)
        case "cut off":
            path.write_bytes(path.read_bytes()[:2000])
        case "text":
            path.write_text("weights")
        case "of another program":
            torch.save({name: content[name] for name in ("state_dict", "hyper_parameters")}, path)
        case "without weights":
            torch.save(content | {"state_dict": {}}, path)
        case "of another shape":
            content["state_dict"]["network.0.weight"] = torch.zeros(7, 40)
            torch.save(content, path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_resumed_is_refused_and_its_run_stays_as_it_was(
    fault: str, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [run] = runs()
    client().set_terminated(run.info.run_id, "KILLED")
    options = CHECKPOINTS[fault].options or f"--optimizer meta {SHORT[2]}"
    spoil(fault, Path(trained))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train([*options.split(), *SHORT[:2], f"--ckpt_path={trained}"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: --ckpt_path: ")
    assert CHECKPOINTS[fault].message in line
    assert [run.info.status for run in runs()] == ["KILLED"]


@pytest.mark.parametrize("word", ["best", "last", "hpc"])
def test_a_word_is_not_a_checkpoint(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", "meta", *SHORT, f"--ckpt_path={word}"])
    assert f"--ckpt_path: no file {word}" in capsys.readouterr().err


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    torch.save({"state_dict": Trap(), "hyper_parameters": Trap()}, tmp_path / "trap.ckpt")
    for command in ("test", "fit"):
        with pytest.raises(SystemExit, match="2"):
            train([command, "--optimizer", "adam", "--ckpt_path", str(tmp_path / "trap.ckpt")])
        assert "UnpicklingError" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    assert runs() == []
