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
from experiment.options import ROOT
from experiment.run import train
from experiment.tuning import Tuning
from experiment.tuning import tune as run_study
from tests.store import artifacts, heed, history, runs, wait

SHORT = ["--trainer.max_epochs=1", "--data.batch_size=1000"]
COMMAND = ["--optimizer", "adam", *SHORT]


@pytest.mark.slow
def test_trials_are_children_of_one_run_and_the_best_is_written_as_a_file_over_the_arm(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    options = ["--optimizer", "adamw", *SHORT, "--trials", "3", "--output", str(file)]
    study = tune.main(options)
    parent, *children = runs()
    assert (parent.info.run_name, parent.info.status) == ("tune adamw", "FINISHED")
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert [child.info.run_name for child in children] == [f"adamw trial {number}" for number in range(3)]
    # the test set is not read
    assert not any("test/loss" in child.data.metrics for child in children)
    assert {"best.yaml"} <= artifacts(parent.info.run_id)
    # a slash would make a group of charts
    assert parent.data.metrics.keys() == {"best_val_loss"}
    values = [history(child.info.run_id, "val/loss")[-1][1] for child in children]
    assert [trial.value for trial in study.trials] == pytest.approx(values)

    assert "Best of 3 Optuna trials" in file.read_text()
    assert f"python tune.py {' '.join(options)}" in file.read_text()
    run = train(["--optimizer", "adamw", "--config", str(file), "--trainer.fast_dev_run=true"])
    [group] = run.trainer.optimizers[0].param_groups
    assert [group["lr"], group["weight_decay"]] == pytest.approx(list(study.best_params.values()), rel=1e-3)


def test_the_reviewed_file_is_not_overwritten_by_runs_of_another_kind() -> None:
    reviewed = (ROOT / "configs" / "tuned" / "adam.yaml").read_text()
    tune.main([*COMMAND, "--trials", "1"])
    assert (ROOT / "configs" / "tuned" / "adam.yaml").read_text() == reviewed


@pytest.mark.slow
def test_a_seed_proposes_the_same_and_the_number_of_trials_is_in_all() -> None:
    first = tune.main([*COMMAND, "--trials", "2"])
    rates = [trial.params["model.lr"] for trial in first.trials]
    # NumPy's first number of seed 0, as in every published study
    assert rates[0] == pytest.approx(1e-5 * 1e4**0.5488135039273248)
    for _ in range(2):
        study = tune.main([*COMMAND, "--trials", "4"])
        assert len(study.trials) == len({trial.params["model.lr"] for trial in study.trials}) == 4
        assert len(runs()) == 5
    other = tune.main([*COMMAND, "--trials", "1", "--seed", "1"])
    assert other.trials[0].params["model.lr"] not in rates


@pytest.mark.slow
def test_of_a_study_with_more_trials_the_first_ones_count() -> None:
    """A tuned baseline is the best of as many trials as it is said to have had."""
    tuning = Tuning("adam", tuple(SHORT), trials=4)
    four = run_study(tuning, "four").trials
    _, two, text, _, kept = run_study(replace(tuning, trials=2), "two")
    assert kept == 2
    assert [trial.params for trial in two] == [trial.params for trial in four][:2]
    best = min(trial.value or 9 for trial in two)
    assert f"Best of 2 Optuna trials on the validation loss after the last epoch: {best:.4f}" in text


@pytest.mark.slow
def test_tuning_that_was_killed_continues_with_the_trials_that_were_broken_off() -> None:
    """Real processes, killed in the middle of a trial; the workers end with their parent."""
    command = [sys.executable, str(ROOT / "tune.py"), *COMMAND, "--trials", "8", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(process, lambda: len(runs()) >= 4)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    study = tune.main([*COMMAND, "--trials", "8"])
    complete, failed = (study.get_trials(states=[state]) for state in (TrialState.COMPLETE, TrialState.FAIL))
    assert len(complete) == 8
    assert not study.get_trials(states=[TrialState.RUNNING, TrialState.WAITING])
    assert [run.info.run_name for run in runs()].count("tune adam") == 1
    assert 0 <= len(failed) <= 2
    broken_off = {trial.params["model.lr"] for trial in failed if trial.params}
    assert broken_off <= {trial.params["model.lr"] for trial in complete}


@pytest.mark.slow
def test_ctrl_c_ends_tuning_with_one_line_and_a_second_command_on_the_study_is_refused() -> None:
    command = [sys.executable, str(ROOT / "tune.py"), "--optimizer", "adam", "--trials", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        wait(process, lambda: len(runs()) >= 2)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "could not be acquired" in second.stderr
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        # once more, as a person would: Python drops one that meets a finalizer
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "tune.py: interrupted; finished work is saved."
    assert "Traceback" not in errors


@pytest.mark.slow
def test_rates_that_all_diverge_are_not_a_result(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    # the trial counts, and is not tried again
    for _ in range(2):
        with pytest.raises(SystemExit, match="no trial reached a finite validation loss"):
            tune.main([*COMMAND, "--trials", "1", "--search", "model.lr=1e20:1e21", "--output", str(file)])
        assert [run.info.run_name for run in runs()] == ["tune adam", "adam trial 0"]
    assert not file.exists()


@pytest.mark.slow
def test_whole_numbers_and_choices_of_a_file_of_ones_own_are_searched(tmp_path: Path) -> None:
    arm, best = tmp_path / "mine.yaml", tmp_path / "best.yaml"
    module = {"class_path": "lightning_modules.SupervisedModule", "init_args": {"optimizer": "torch.optim.RAdam"}}
    arm.write_text(yaml.safe_dump({"model": module}))
    space = ["model.lr=log:1e-4:1e-2", "model.network.hidden=8:64", "model.network.layers=1,2"]
    study = tune.main(["--optimizer", str(arm), *SHORT, "--trials", "2", "--search", *space, "--output", str(best)])
    assert [run.info.run_name for run in runs()] == ["tune mine", "mine trial 0", "mine trial 1"]
    network = yaml.safe_load(best.read_text())["model"]["init_args"]["network"]["init_args"]
    assert network == {name: study.best_params[f"model.network.{name}"] for name in ("hidden", "layers")}
    assert isinstance(network["hidden"], int)
