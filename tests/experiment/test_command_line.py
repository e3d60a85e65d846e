"""What is typed is what is trained, and what it is called."""

from itertools import permutations
from pathlib import Path

import pytest
import yaml

from experiment.command_line import read
from experiment.options import BASE, CONFIGS
from experiment.run import train
from tests.store import SHORT, checkpoint_of, runs
from tracking.store import client

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
    assert "are two arms: a run has one. Compare them by compare.py" in capsys.readouterr().err


def test_a_file_without_a_class_is_read_over_an_arm_and_one_with_a_class_is_the_arm(tmp_path: Path) -> None:
    short = file(tmp_path, "short", trainer={"max_epochs": 1}, model={"init_args": {"lr": 0.01}})
    run = train(["--config", short, "--optimizer", "adam", *SHORT])
    assert (run.line.arm, run.model.lr, run.trainer.max_epochs) == ("adam", 0.01, 1)
    run = train(["--config", short, "--config", file(tmp_path, "my arm", **MODULE), *SHORT])
    assert (run.line.arm, run.model.lr) == ("my arm", 0.01)
    assert [run.info.run_name for run in runs()] == ["adam", "my arm"]


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
    assert "cosine and adam are two arms" in capsys.readouterr().err
