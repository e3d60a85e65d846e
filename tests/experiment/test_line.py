"""Never train or label something else than was typed."""

import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml

from experiment.jobs import read_run
from experiment.line import did_you_mean, module_of, presets_first, require_one_arm
from experiment.presets import CONFIGS
from experiment.training import train
from tests.store import artifacts, runs
from tracking.store import client

SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--data.batch_size=1000"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["--model.lr", "0.05", "--optimizer", "adam"],
        ["--optimizer", "adam", "--model.lr", "0.05"],
        ["--model.lr=0.05", "--config", str(CONFIGS / "adam.yaml")],
        ["--model.lr=0.05", "--task", "conv", "--optimizer=adam"],
    ],
)
def test_an_arm_is_read_first_wherever_it_stands(args: list[str]) -> None:
    assert train([*args, *SHORT]).model.lr == 0.05


def test_arm_task_and_files_come_first_and_the_order_of_others_is_kept() -> None:
    line = ["--a", "-1", "--task", "t", "--b=1", "--config", "c", "--optimizer=o", "--flag", "--e", "1", "2"]
    assert presets_first(line) == [
        *["--optimizer=o", "--task", "t", "--config", "c"],
        *["--a", "-1", "--b=1", "--flag", "--e", "1", "2"],
    ]


ADAM, META = str(CONFIGS / "adam.yaml"), str(CONFIGS / "meta.yaml")


@pytest.mark.parametrize(
    "args",
    [
        ["--optimizer", "adam", "--optimizer", "meta"],
        ["--optimizer=adam", f"--config={META}"],
        ["--config", ADAM, "--config", META],
        ["-c", ADAM, "--optimizer", "meta"],
    ],
)
def test_two_arms_by_any_spelling_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train([*args, *SHORT])
    assert "are two arms: a run has one. Compare them by compare.py" in capsys.readouterr().err
    assert runs() == []


def test_a_file_without_a_module_is_read_over_an_arm(tmp_path: Path) -> None:
    short, own = tmp_path / "short.yaml", tmp_path / "own.yaml"
    short.write_text("trainer:\n  max_epochs: 1\n")
    own.write_text("model:\n  class_path: lightning_modules.SupervisedModule\n")
    assert (module_of(short), module_of(own)) == (None, "lightning_modules.SupervisedModule")
    run = train(["--config", str(short), "--optimizer", "adam", *SHORT[1:]])
    assert (run.trainer.max_epochs, runs()[0].data.tags["optimizer"]) == (1, "adam")
    require_one_arm(["--config", str(own), "--config", str(short)])
    require_one_arm(["--optimizer", "adam", "--config", str(own)])  # as `tune.py` writes them
    with pytest.raises(ValueError, match="meta and own are two arms"):
        require_one_arm(["--optimizer", "meta", "--config", str(own)])


def test_what_a_file_says_is_read_over_the_arm_and_the_task_wherever_it_stands(tmp_path: Path) -> None:
    """All orders of an arm, a task, a file that contradicts both, and an option that contradicts the file."""
    own = tmp_path / "own.yaml"
    own.write_text("model:\n  init_args:\n    lr: 0.5\ndata:\n  init_args:\n    batch_size: 100\n")
    options = [["--optimizer=adam"], ["--task", "digits"], ["--config", str(own)], ["--data.batch_size", "300"]]
    found = {tuple(presets_first([word for option in order for word in option])) for order in permutations(options)}
    assert found == {("--optimizer=adam", "--task", "digits", "--config", str(own), "--data.batch_size", "300")}
    arm = ["-c", str(CONFIGS / "adam.yaml")]
    assert presets_first(["--config", str(own), *arm]) == [*arm, "--config", str(own)]


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_a_run_that_broke_off_when_it_had_been_tested_stands_for_no_training(status: str) -> None:
    """Its last artifacts are missing; of a sweep's child that was killed, the next call makes KILLED of RUNNING."""
    options = ["--optimizer", "adam", *SHORT]
    broken = train(options, reuse=True)
    client().update_run(str(broken.run_id), status)
    again = train(options, reuse=True)
    assert again.run_id != broken.run_id
    assert train(options, reuse=True).run_id == again.run_id


@pytest.mark.parametrize("metric", ["test/loss", "val/loss"])
def test_a_loss_that_is_no_number_is_infinite_where_runs_are_compared(metric: str) -> None:
    """A mean leaves NaN out, and would rank the arm by its other runs."""
    run = train(["--optimizer", "adam", *SHORT])
    client().log_metric(str(run.run_id), metric, math.nan, step=100)
    assert read_run(str(run.run_id))[metric.replace("/", "_")] == math.inf


def test_an_arm_in_a_file_with_a_blank_in_its_name_has_that_name(tmp_path: Path) -> None:
    file = tmp_path / "my arm.yaml"
    file.write_text("model:\n  class_path: lightning_modules.SupervisedModule\n")
    run = train(["--config", str(file), *SHORT])
    path = str(run.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    train(["test", "--ckpt_path", path])
    assert {(made.info.run_name, made.data.tags["optimizer"]) for made in runs()} == {
        ("my arm", "my arm"),
        ("test my arm", "my arm"),
    }


def test_a_test_is_named_so_and_stands_for_no_training() -> None:
    options = ["--optimizer", "adam", *SHORT]
    trained = train(options)
    path = str(trained.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    client().delete_run(str(trained.run_id))
    train(["test", *options, "--ckpt_path", path])
    [run] = runs()
    assert (run.info.run_name, run.data.tags["optimizer"]) == ("test adam", "adam")
    assert train(options, reuse=True).run_id != run.info.run_id


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mlp", "regression"])
def test_predictions_are_kept_with_the_run(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--optimizer", "adam", "--task", task, *SHORT]
    path = str(train(options).trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    predicted = train(["predict", *options, "--ckpt_path", path])
    assert "predictions, in predictions.txt of the run" in capsys.readouterr().out
    assert "predictions.txt" in artifacts(str(predicted.run_id))
    file = client().download_artifacts(str(predicted.run_id), "predictions.txt")
    values = torch.tensor([float(line) for line in Path(file).read_text().splitlines()])
    assert len(values) == len(predicted.datamodule.val[0])
    assert (values % 1 == 0).all() == (task == "mlp")
    assert values.unique().numel() > 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optimizer", "adm"], "there is no arm 'adm'. Did you mean adam?"),
        (["--model.lrr=1"], "Did you mean lr?"),
        (["--trainer.max_epoch=1"], "Did you mean max_epochs?"),
        (["--model.network.hidden=0"], "--model.network.hidden must be 1 or more, got 0"),
        (["--trainer.max_steps=0"], "--trainer.max_steps must be 1 or more, got 0: nothing would be trained"),
        (["--trainer.limit_train_batches=0"], "--trainer.limit_train_batches must be above 0"),
        (["--trainer.max_epochs=-1"], "has no end: give --trainer.max_steps or --trainer.max_time too"),
        (["--data.train_on_validation=true"], "this arm judges by the validation samples: use adam_all"),
    ],
)
def test_what_would_train_nothing_or_something_else_is_refused(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(args)
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("train.py: error: ")
    assert err.count("\n") == 1
    assert runs() == []


def test_an_option_that_an_arm_does_not_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    train(["--optimizer", "meta_search", "--model.lr=0.1", *SHORT])
    assert "--model.lr is not read: this arm finds its rate before the first step" in capsys.readouterr().err


def test_only_near_names_are_suggested() -> None:
    assert did_you_mean("zzz", ["adam", "meta"]) == ""
    assert did_you_mean("adma", ["adam", "meta"]) == " Did you mean adam?"


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_checkpoint_alone_is_tested_as_the_arm_on_the_data_that_it_was_trained_on(command: str) -> None:
    trained = train(["--optimizer", "adam", "--task", "digits", "--data.seed=2", *SHORT[:2]])
    path = str(trained.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    tested = train([command, "--ckpt_path", path, SHORT[1]])
    run = client().get_run(str(tested.run_id))
    tags = {name: run.data.tags[name] for name in ("optimizer", "task", "data_seed")}
    assert (run.info.run_name, tags) == (
        f"{command} adam",
        {"optimizer": "adam", "task": "digits", "data_seed": "2"},
    )
    if command == "test":
        assert tested.trainer.callback_metrics["test/loss"].item() == trained.test_metrics["test/loss"]


def test_a_checkpoint_that_is_tested_on_other_data_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    """An arm that is named reads its own data, not those of the checkpoint's run."""
    trained = train(["--optimizer", "adam", "--task", "digits", "--data.seed=2", *SHORT[:2]])
    command = ["test", "--optimizer", "adam", "--task", "digits", SHORT[1]]
    command += ["--ckpt_path", str(trained.trainer.checkpoint_callback.best_model_path)]  # type: ignore[union-attr]
    train([*command, "--data.seed=2"])
    assert "note" not in capsys.readouterr().err
    train(command)
    digits = "data.DigitsDataModule, data seed"
    assert f"note: the checkpoint was trained on {digits} 2; this reads {digits} 0\n" in capsys.readouterr().err


def test_a_checkpoint_of_another_arm_is_not_tested_under_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    trained = train(["--optimizer", "adam", *SHORT])
    path = str(trained.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    for arm in ("cosine", "meta"):
        with pytest.raises(SystemExit, match="2"):
            train(["test", "--optimizer", arm, "--ckpt_path", path, *SHORT])
        assert "the checkpoint was trained with model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train(["test", "--optimizer", "adam", "--task", "digits", "--ckpt_path", path, *SHORT])
    assert "the network cannot take the samples" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["optimizer: adam", "task: gru", "optimizer: adam\ntrainer:\n  max_epochs: 1"])
def test_a_name_in_a_file_that_does_not_hold_the_arm_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o.yaml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        train(["--config", str(tmp_path / "o.yaml"), *SHORT])
    assert "would be a label alone: type --" in capsys.readouterr().err


def test_a_file_with_a_module_is_read_over_a_named_arm_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    module = {"class_path": "lightning_modules.SupervisedModule", "init_args": {"lr": 0.04}}
    file.write_text(yaml.safe_dump({"model": module}))
    for line in permutations([["--optimizer", "adam"], ["--config", str(file)]]):
        assert train([word for option in line for word in option] + SHORT).model.lr == 0.04


def test_an_arm_named_twice_is_one() -> None:
    require_one_arm(["--optimizer", "adam", "--config", ADAM])


def test_an_arm_file_with_its_module_is_the_arm(tmp_path: Path) -> None:
    first, second = tmp_path / "mine.yaml", tmp_path / "over.yaml"
    first.write_text(yaml.safe_dump({"model": {"class_path": "lightning_modules.SupervisedModule"}}))
    second.write_text(yaml.safe_dump({"model": {"init_args": {"lr": 0.01}}}))
    train(["--config", str(first), "--config", str(second), *SHORT])
    assert runs()[0].info.run_name == "mine"
