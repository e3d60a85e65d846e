import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from optuna.trial import TrialState

import tune
from experiment.presets import ROOT
from experiment.training import train
from experiment.tuning import Tuning
from experiment.tuning import tune as run_study
from tests.store import artifacts, heed, history, runs, wait
from tracking.store import StoreError, artifact_dir, tracking_uri

SHORT = ["--trainer.max_epochs=1", "--data.batch_size=1000"]
COMMAND = ["--optimizer", "adam", *SHORT, "--workers", "1"]


@pytest.mark.slow
def test_trials_are_children_of_one_run_and_never_read_the_test_set() -> None:
    study = tune.main([*COMMAND, "--trials", "3"])
    parent, *children = runs()
    assert (parent.info.run_name, parent.info.status) == ("tune adam", "FINISHED")
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert [child.info.run_name for child in children] == [f"adam trial {i}" for i in range(3)]
    assert not any("test/loss" in child.data.metrics for child in children)
    assert {"best.yaml", "history.png", "slice.png", "importance.png"} <= artifacts(parent.info.run_id)
    assert parent.data.metrics.keys() == {"best_val_loss"}  # a slash would make a group of charts
    values = [history(child.info.run_id, "val/loss")[-1][1] for child in children]
    assert [trial.value for trial in study.trials] == pytest.approx(values)
    assert all(1e-5 <= trial.params["model.lr"] <= 1e-1 for trial in study.trials)


@pytest.mark.slow
def test_the_best_rate_is_written_as_a_configuration_that_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    study = tune.main([*COMMAND, "--trials", "3", "--output", str(file)])
    text = file.read_text()
    assert yaml.safe_load(text)["model"]["init_args"]["lr"] == pytest.approx(study.best_params["model.lr"], rel=1e-3)
    assert "Best of 3 Optuna trials" in text
    assert f"python tune.py {' '.join(COMMAND)} --trials 3" in text


def test_the_reviewed_file_is_not_overwritten_by_runs_of_another_kind() -> None:
    reviewed = (ROOT / "configs" / "tuned" / "adam.yaml").read_text()
    tune.main([*COMMAND, "--trials", "1"])
    assert (ROOT / "configs" / "tuned" / "adam.yaml").read_text() == reviewed


@pytest.mark.slow
def test_the_same_seed_proposes_the_same_rates_and_another_one_others() -> None:
    def proposed(*options: str) -> list[float]:
        return [trial.params["model.lr"] for trial in tune.main([*COMMAND, "--trials", "2", *options]).trials]

    first = proposed()
    (artifact_dir() / "optuna.log").unlink()
    assert proposed() == first
    assert not set(proposed("--seed", "1")) & set(first)


@pytest.mark.slow
def test_tuning_goes_on_where_it_was_and_the_number_of_trials_is_in_all() -> None:
    tune.main([*COMMAND, "--trials", "2"])
    study = tune.main([*COMMAND, "--trials", "3"])
    assert len(study.trials) == 3
    assert len(runs()) == 4
    assert len({trial.params["model.lr"] for trial in study.trials}) == 3
    tune.main([*COMMAND, "--trials", "3"])
    assert len(runs()) == 4


@pytest.mark.slow
def test_tuning_that_was_killed_goes_on_with_the_trials_that_were_broken_off() -> None:
    """Real processes, killed for real in the middle of a trial; the workers end with their parent."""
    command = [sys.executable, str(ROOT / "tune.py"), *COMMAND[:-2], "--trials", "10", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(process, lambda: len(runs()) >= 4)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    study = tune.main([*COMMAND, "--trials", "10"])
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 10
    assert not study.get_trials(states=[TrialState.RUNNING])
    assert len([run for run in runs() if run.info.run_name == "tune adam"]) == 1
    assert not [run for run in runs() if run.info.status == "RUNNING"]
    broken_off = {trial.params["model.lr"] for trial in study.get_trials(states=[TrialState.FAIL])}
    assert 1 <= len(broken_off) <= 2
    assert broken_off <= {trial.params["model.lr"] for trial in study.get_trials(states=[TrialState.COMPLETE])}


@pytest.mark.slow
def test_ctrl_c_ends_tuning_cleanly_and_it_goes_on() -> None:
    command = [sys.executable, str(ROOT / "tune.py"), "--optimizer", "adam", "--trials", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    wait(process, lambda: len(runs()) >= 2)
    try:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.send_signal(signal.SIGINT)  # once more, as a person would: Python drops one that meets a finalizer
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "tune.py: interrupted; what was done is kept."
    assert "Traceback" not in errors
    assert {run.info.status for run in runs()} <= {"KILLED", "FINISHED"}


@pytest.mark.slow
def test_rate_and_weight_decay_are_searched_together_and_the_file_written_sets_both(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    study = tune.main(["--optimizer", "adamw", *SHORT, "--trials", "2", "--output", str(file)])
    assert set(study.best_params) == {"model.lr", "model.optimizer.weight_decay"}
    cli = train(["--optimizer", "adamw", "--config", str(file), "--trainer.fast_dev_run=true"])
    [group] = cli.trainer.optimizers[0].param_groups
    found = [group["lr"], group["weight_decay"]]
    assert found == pytest.approx(list(study.best_params.values()), rel=1e-3)


def test_rates_that_all_diverge_are_no_result(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    options = ["--trials", "1", "--search", "model.lr=1e20:1e21", "--output", str(file)]
    for _ in range(2):  # the trial counts, and is not tried again
        with pytest.raises(SystemExit, match="no trial came to a finite validation loss"):
            tune.main([*COMMAND, *options])
        assert [run.info.run_name for run in runs()] == ["tune adam", "adam trial 0"]
    assert not file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "qmc", "gp"])
def test_another_sampler_searches_whole_numbers_and_choices_too(sampler: str, tmp_path: Path) -> None:
    space = ["model.lr=log:1e-4:1e-2", "model.network.hidden=8:64", "model.network.layers=1,2"]
    file = tmp_path / "best.yaml"
    options = ["--sampler", sampler, "--trials", "2", "--search", *space, "--output", str(file)]
    study = tune.main([*COMMAND, *options])
    assert sampler in type(study.sampler).__name__.lower()
    network = yaml.safe_load(file.read_text())["model"]["init_args"]["network"]["init_args"]
    assert network == {name: study.best_params[f"model.network.{name}"] for name in ("hidden", "layers")}
    assert isinstance(network["hidden"], int)


@pytest.mark.slow
def test_a_pruned_trial_ends_early_says_so_and_counts() -> None:
    pruned = ["--pruner", "halving", "--trials", "8", "--search", "model.lr=log:1e-6:1e-1", "--trainer.max_epochs=6"]
    study = tune.main(["--optimizer", "adam", "--data.batch_size=1000", *pruned])
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) + states.count(TrialState.COMPLETE) == 8
    assert states.count(TrialState.PRUNED) >= 1
    told = [run for run in runs() if "pruned" in run.data.tags]
    assert len(told) == states.count(TrialState.PRUNED)
    for run in told:
        assert len(history(run.info.run_id, "val/loss")) < 6


@pytest.mark.slow
def test_the_time_given_ends_tuning_and_more_time_goes_on() -> None:
    first = tune.main([*COMMAND, "--trials", "30", "--timeout", "1"])
    done = len(first.get_trials(states=[TrialState.COMPLETE]))
    assert 1 <= done < 30
    again = tune.main([*COMMAND, "--trials", "30", "--timeout", "1"])
    assert done < len(again.get_trials(states=[TrialState.COMPLETE])) < 30


def test_a_yaml_file_of_ones_own_is_tuned_under_its_name(tmp_path: Path) -> None:
    arm = {
        "model": {"class_path": "lightning_modules.SupervisedModule", "init_args": {"optimizer": "torch.optim.RAdam"}}
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(arm))
    tune.main(["--optimizer", str(tmp_path / "mine.yaml"), *SHORT, "--trials", "1"])
    assert [run.info.run_name for run in runs()] == ["tune mine", "mine trial 0"]


@pytest.mark.slow
def test_of_a_study_with_more_trials_the_first_ones_count() -> None:
    """A tuned baseline is the best of as many trials as it is said to have had."""
    tuning = Tuning("adam", tuple(SHORT), trials=4)
    four = run_study(tuning, "four")
    two = run_study(replace(tuning, trials=2), "two")
    assert [trial.params for trial in two.trials] == [trial.params for trial in four.trials][:2]
    assert "Best of 2 Optuna trials" in two.text
    assert f"{min(trial.value or 0 for trial in two.trials):.4f}" in two.text


@pytest.mark.slow
def test_a_study_whose_runs_are_in_another_store_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune.main([*COMMAND, "--trials", "1"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri().replace("mlflow.db", "other.db"))
    with pytest.raises(StoreError, match=r"was kept in another MLflow store .* Set MLFLOW_TRACKING_URI to that one"):
        tune.main([*COMMAND, "--trials", "1"])
