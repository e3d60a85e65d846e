"""The command line determines the configuration and the name of a run."""

from inspect import signature
from itertools import permutations
from pathlib import Path

import pytest
import yaml

import data
from compare import main as compare_main
from experiment.bounds import POSITIVE
from experiment.command_line import read
from experiment.options import BASE, CONFIGS, DEFAULT_ARM
from experiment.run import Run, train
from tests.store import SHORT, checkpoint_of, runs
from tracking.store import client
from train import main as train_main
from tune import main as tune_main

MODULE = {"model": {"class_path": "lightning_modules.SupervisedModule"}}


def file(folder: Path, name: str, **content: object) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_base_task_arm_and_files_come_first_wherever_they_stand(tmp_path: Path) -> None:
    own = file(tmp_path, "own", model={"init_args": {"lr": 0.5}})
    typed = [["--optimizer=adam"], ["--task", "digits"], ["--config", own], ["--model.lr", "-1"]]
    files = [BASE, CONFIGS / "tasks" / "digits.yaml", CONFIGS / "adam.yaml", own]
    first = [word for name in files for word in ("--config", str(name))]
    for order in permutations(typed):
        line = read([word for option in order for word in option])
        assert line.options == [*first, "--optimizer=adam", "--task=digits", "--model.lr", "-1"]
        assert (line.command, line.arm, line.task, line.checkpoint) == ("fit", "adam", "digits", None)


def test_options_that_are_not_ours_keep_their_order() -> None:
    rest = ["--a", "-1", "--b=1", "--flag", "--e", "1", "2", "--model.lr", "-1e-3"]
    assert read(["fit", *rest[:3], "--optimizer", "adam", *rest[3:]]).options[6:] == rest


@pytest.mark.parametrize("first", [["--optimizer=adam"], ["--config", str(CONFIGS / "adam.yaml")], ["mine"]])
@pytest.mark.parametrize("second", [["--optimizer", "meta"], ["-c", str(CONFIGS / "meta.yaml")], ["mine"]])
def test_two_arms_by_any_spelling_are_refused(
    first: list[str], second: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    for number, option in enumerate((first, second)):
        words += ["--config", file(tmp_path, f"mine{number}", **MODULE)] if option == ["mine"] else option
    with pytest.raises(SystemExit, match="2"):
        read(words)
    assert "are two arms: a run has one. Use compare.py to compare arms" in capsys.readouterr().err


def test_a_file_without_a_class_is_read_over_an_arm_and_one_with_a_class_is_the_arm(tmp_path: Path) -> None:
    short = file(tmp_path, "short", trainer={"max_epochs": 1}, model={"init_args": {"lr": 0.01}})
    run = train(["--config", short, "--optimizer", "adam", *SHORT])
    assert (run.line.arm, run.model.lr, run.trainer.max_epochs) == ("adam", 0.01, 1)
    run = train(["--config", short, "--config", file(tmp_path, "my arm", **MODULE), *SHORT])
    assert (run.line.arm, run.model.lr) == ("my arm", 0.01)
    assert [run.info.run_name for run in runs()] == ["adam", "my arm"]


def test_a_file_that_names_an_arm_and_another_class_is_that_arm_with_this_class_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "variant.py").write_text("from lightning_modules import MetaModule\nclass Mine(MetaModule): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for model in ("variant.Mine", {"class_path": "variant.Mine", "init_args": {"pull": 0.2}}):
        run = train(["--config", file(tmp_path, "mine", optimizer="meta", model=model), "--trainer.fast_dev_run=true"])
        base = train(["--optimizer", "meta", "--trainer.fast_dev_run=true"])
        assert (run.line.arm, type(run.model).__name__, run.model.given) == ("mine", "Mine", False)
        assert run.model.settings.pull == (0.1 if model == "variant.Mine" else 0.2)
        callbacks = [[*map(type, each.trainer.callbacks)] for each in (run, base)]  # type: ignore[attr-defined]
        assert callbacks[0] == callbacks[1]


def test_a_run_repeats_from_the_configuration_it_kept_under_its_name() -> None:
    first = train(["--optimizer", "meta", "--task", "digits", *SHORT])
    config = Path(runs()[0].info.artifact_uri) / "config.yaml"
    again = train(["--config", str(config), *SHORT])
    assert (first.identity, first.test_metrics) == (again.identity, again.test_metrics)
    assert [(run.info.run_name, run.data.tags["task"]) for run in runs()] == [("meta", "digits")] * 2


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_checkpoint_alone_is_tested_as_the_arm_on_the_data_that_it_was_trained_on(command: str) -> None:
    trained = train(["--optimizer", "adam", "--task", "digits", "--data.seed=2", *SHORT])
    tested = train([command, "--ckpt_path", checkpoint_of(trained), SHORT[1]])
    run = client().get_run(str(tested.run_id))
    tags = {"optimizer": "adam", "task": "digits", "data_seed": "2"}
    assert (run.info.run_name, tags.items() <= run.data.tags.items()) == (f"{command} adam", True)
    if command == "test":
        assert tested.test_metrics == {}
        assert tested.trainer.callback_metrics["test/loss"].item() == trained.test_metrics["test/loss"]


def test_a_checkpoint_is_not_tested_under_the_name_of_another_arm(capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint_of(train(["--optimizer", "adam", *SHORT]))
    with pytest.raises(SystemExit, match="2"):
        train(["test", "--optimizer", "cosine", "--ckpt_path", path, *SHORT])
    assert "model.schedule None → torch.optim.lr_scheduler.CosineAnnealingLR" in capsys.readouterr().err


OUT_OF_RANGE = [
    *[f"--trainer.{name}={value}" for name in POSITIVE for value in ("0", "-2", ".nan", ".inf", "[1]")],
    *[f"--seed_everything={value}" for value in ("-1", "4294967296", "true", "false", "[1]", "1.5")],
    *["--trainer.max_time=00:00:00:00", "--trainer.precision=16-true", "--trainer.callbacks=null"],
    *["--trainer.callbacks+=null", "--trainer.callbacks+=[{}]", "--model.lr=.nan", "--model.lr=0", "--model.lr=[1]"],
    *["--data.batch_size=0", "--data.val_batch_size=-1", "--model.network.hidden=0", "--model.network.dropout=1"],
]


@pytest.mark.parametrize(
    "option",
    [pytest.param(one, marks=[pytest.mark.slow] * (place % 5 > 0)) for place, one in enumerate(OUT_OF_RANGE)],
)
def test_a_value_out_of_range_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer=adam", *SHORT[1:], option])
    assert option.split("=")[0].rsplit(".", 1)[-1].strip("-+") in capsys.readouterr().err
    assert runs() == []


@pytest.mark.parametrize("arm", ["meta", "adam"])
def test_accumulation_that_would_climb_the_loss_is_refused(arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer", arm, "--trainer.accumulate_grad_batches=-1", *SHORT])
    assert "--trainer.accumulate_grad_batches must be a positive finite number, got -1" in capsys.readouterr().err


def test_a_file_without_a_model_is_read_over_the_arm_and_the_task_that_it_names(tmp_path: Path) -> None:
    short = {"max_epochs": 3}
    run = train(["--config", file(tmp_path, "short", trainer=short), "--trainer.fast_dev_run=true"])
    assert (run.line.arm, type(run.model).__name__, run.config.trainer.max_epochs) == (DEFAULT_ARM, "MetaModule", 3)
    named = file(tmp_path, "named", optimizer="adamw", task="digits", trainer=short)
    run = train(["--config", named, "--trainer.fast_dev_run=true"])
    # under its own name: compare.py shows it next to the arm
    assert (run.line.arm, run.line.task, run.config.trainer.max_epochs) == ("named", "digits", 3)
    assert run.model.lr == read_lr("adamw")
    assert (run.config.data.class_path, run.model.lr) == ("data.DigitsDataModule", read_lr("adamw"))
    for word in ({"optimizer": "adamm"}, {"task": "digit"}):
        with pytest.raises(SystemExit, match="2"):
            read(["--config", file(tmp_path, "wrong", **word)])


def read_lr(arm: str) -> float:
    return float(yaml.safe_load((CONFIGS / "tuned" / f"{arm}.yaml").read_text())["model"]["init_args"]["lr"])


@pytest.mark.parametrize("name", [name for name in data.__all__ if name.endswith("Module")])
def test_a_data_module_keeps_its_own_defaults(name: str) -> None:
    kind = getattr(data, name)
    parameters = signature(kind).parameters.values()
    config = Run(read([f"--data=data.{name}", "--trainer.logger=false"]), {}, ()).config
    assert config.data.init_args.as_dict() == {parameter.name: parameter.default for parameter in parameters}


@pytest.mark.parametrize(
    "text",
    ["trainer:\n  max_epochs: 1\ntrainer: {}", "model: {lr: 1, lr: 2}", "trainer: {callbacks: [{a: 1, a: 2}]}"],
)
def test_a_key_that_stands_twice_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    nested = file(tmp_path, "outer", config="twice.yaml", **MODULE)
    for words in (["--config", str(tmp_path / "twice.yaml")], ["--config", nested]):
        with pytest.raises(SystemExit, match="2"):
            train([*words, *SHORT])
        assert "duplicate key" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["1e5", "None", "true", "nan", "_x", "a$b$c", "a|b", "a,b", "-a", "a'b", " a", "a\nb"])
def test_a_name_that_store_table_or_figure_would_change_is_refused_by_every_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path, name, **MODULE)
    calls = (train_main, ["--config", path]), (tune_main, ["--optimizer", path]), (compare_main, ["--optimizers", path])
    for command, words in calls:
        with pytest.raises(SystemExit, match="2"):
            command(words)
        assert "cannot be the name of an arm: rename the file" in capsys.readouterr().err


def test_own_data_have_an_experiment_of_their_own_name() -> None:
    own = ["--data=tests.broken.Broken", "--data.fault=none", "--trainer.max_epochs=1", SHORT[1]]
    trained = train(["--optimizer=adam", *own])
    found = client().get_run(str(trained.run_id))
    assert client().get_experiment(found.info.experiment_id).name == "Broken"
    assert found.data.tags["task"] == "Broken"
    # its own default
    assert trained.datamodule.batch_size == 10
    resumed = train(["test", "--ckpt_path", checkpoint_of(trained)])
    assert resumed.tracker is not None
    assert resumed.tracker.name == "Broken"
    assert train(["--optimizer=adam", *own], reuse=True).run_id == trained.run_id
    assert {run.info.experiment_id for run in runs()} == {found.info.experiment_id}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr=0.1", "--model.lr"),
        ("--lr 0.1", "--model.lr"),
        ("--learning-rate 0.1", "--model.lr"),
        ("--epochs 3", "--trainer.max_epochs"),
        ("--max_epochs=3", "--trainer.max_epochs"),
        ("--batch_size 3", "--data.batch_size"),
        ("--batch-size 3", "--data.batch_size"),
        ("--seed 3", "--seed_everything"),
        ("adam.yaml", "--config adam.yaml"),
        ("--optimizer adam.yaml", "--config adam.yaml"),
        ("--optimizer adam adam.yaml", "--config adam.yaml"),
    ],
)
def test_an_option_of_another_program_is_refused_with_what_it_is_called_here(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(typed.split())
    assert meant in capsys.readouterr().err
