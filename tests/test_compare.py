import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from matplotlib.image import imread

import compare
from experiment.options import ROOT
from reporting.machine import machine
from tests.store import artifacts, heed, history, runs, wait
from tracking.store import client

ARMS = ["meta", "adam"]
COMMAND = ["--seeds", "2", "--optimizers", *ARMS, "--trainer.max_epochs=2", "--data.batch_size=1000", "--workers", "1"]


def run(folder: Path, *options: str) -> pd.DataFrame:
    compare.main([*COMMAND, "--output", str(folder), *options])
    return pd.read_csv(folder / "results.csv")


def finished() -> set[str]:
    """The runs that ended and were tested; one that was killed between the two is trained again."""
    return {run.info.run_id for run in runs() if run.info.status == "FINISHED" and "test/loss" in run.data.metrics}


@pytest.mark.slow
def test_every_arm_is_trained_on_every_seed_and_kept_with_table_and_figures(tmp_path: Path) -> None:
    (tmp_path / "private.csv").write_text("mine")
    results = run(tmp_path)
    assert set(zip(results.arm, results.seed, strict=True)) == {(arm, seed) for arm in ARMS for seed in (1, 2)}
    for row in results.itertuples():
        metrics = client().get_run(str(row.run_id)).data.metrics
        assert (row.test_loss, row.test_accuracy) == (metrics["test/loss"], metrics["test/accuracy"])
        assert row.final_lr == history(str(row.run_id), "lr")[-1][1]
        # its own figure takes longer than many a run's steps
        assert "schedule.csv" in artifacts(str(row.run_id))
        assert "trajectory.png" not in artifacts(str(row.run_id))
    for name in ("comparison.png", "lr_evolution.png"):
        assert imread(tmp_path / name).std() > 0.01
    [parent] = [run for run in runs() if run.info.run_name == "compare"]
    assert parent.info.status == "FINISHED"
    kept = {"comparison.png", "lr_evolution.png", "results.csv", "courses.csv", "table.md"}
    assert artifacts(parent.info.run_id) == kept
    table = (tmp_path / "table.md").read_text()
    means = results.groupby("arm").test_loss.mean()
    assert f"| `adam` | {means.adam:.3f} ± " in table
    assert f" | {means.adam - means.meta:+.3f} (" in table
    assert "| passes, without tuning | seconds, without tuning |" in table
    assert f"seeds 1–2, data seed 0, 2 epochs, weights after the last step. {machine()}; one thread" in table
    assert f"python compare.py {' '.join(COMMAND)}" in table


@pytest.mark.slow
def test_only_what_is_missing_is_trained_and_two_processes_give_the_runs_of_one(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert list(run(tmp_path).run_id) == list(first.run_id)
    more = run(tmp_path, "--seeds", "3")
    assert set(first.run_id) < set(more.run_id)
    # those of the first comparison too, whose parent is another run
    views = client().get_experiment("1").tags.values()
    assert any(all(run_id in view for run_id in more.run_id) for view in views)
    assert not set(run(tmp_path, "--data.batch_size=900").run_id) & set(more.run_id)
    for run_id in first.run_id:
        client().delete_run(run_id)
    again = run(tmp_path, "--workers", "2")
    assert not set(first.run_id) & set(again.run_id)
    assert list(first.test_loss) == list(again.test_loss)
    assert list(first.final_lr) == list(again.final_lr)


@pytest.mark.slow
def test_several_starting_rates_are_columns_of_the_comparison_and_have_a_figure(tmp_path: Path) -> None:
    results = run(tmp_path, "--initial-lrs", "1e-6", "1", "--optimizers", "adam", "cosine")
    assert set(results.start_lr) == {1e-6, 1.0}
    assert len(results) == results.test_loss.nunique() == 8
    assert imread(tmp_path / "lr_sensitivity.png").std() > 0.01
    assert "minus `adam, from 1e-06`" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
# of `meta`, which lowers the rate
@pytest.mark.filterwarnings("ignore:lr .* is lowered to")
def test_a_run_that_diverges_stands_in_the_table_as_infinite(tmp_path: Path) -> None:
    results = run(tmp_path, "--model.lr=1e20")
    assert set(results[results.arm == "adam"].test_loss) == {float("inf")}
    assert results[results.arm == "meta"].test_loss.max() < 2.5
    assert (tmp_path / "table.md").read_text().count("| `adam` | 2 of 2 diverged |") == 1
    assert list(run(tmp_path, "--model.lr=1e20").run_id) == list(results.run_id)


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGINT", "a worker is killed"])
def test_a_comparison_that_was_stopped_continues(sent: str, tmp_path: Path) -> None:
    """And leaves no process behind."""
    options = ["--seeds", "6", "--optimizers", *ARMS, "--trainer.max_epochs=20", "--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "compare.py"), *options, "--workers", "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True, preexec_fn=heed) as process:
        wait(process, lambda: len(finished()) >= 2)
        children = psutil.Process(process.pid).children(recursive=True)
        [first, *_] = [child for child in children if "LokyProcess-1" in child.cmdline()]
        target = first if sent == "a worker is killed" else process
        target.send_signal(signal.SIGINT if sent == "SIGINT" else signal.SIGKILL)
        errors = process.communicate()[1]
    status, last = {
        "SIGKILL": (-signal.SIGKILL, ""),
        "SIGINT": (130, "compare.py: interrupted; finished work is saved."),
        "a worker is killed": (1, "Finished work is saved. Fix the problem and rerun"),
    }[sent]
    assert (process.returncode, last in errors.splitlines()[-1]) == (status, True), errors
    assert not psutil.wait_procs(children, timeout=60)[1]
    done = finished()
    assert 2 <= len(done) < 12
    compare.main([*options, "--workers", "1"])
    results = pd.read_csv(tmp_path / "results.csv")
    assert done < set(results.run_id) == finished()
    assert len(results) == 12
    assert not [run for run in runs() if run.info.status == "RUNNING"]
    assert [run.info.run_name for run in runs()].count("compare") == 1


@pytest.mark.slow
def test_a_yaml_file_of_ones_own_is_compared_with_the_first_arm(tmp_path: Path) -> None:
    module = {"class_path": "lightning_modules.SupervisedModule", "init_args": {"optimizer": "torch.optim.RAdam"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": module}))
    results = run(tmp_path, "--optimizers", "adam", str(tmp_path / "mine.yaml"))
    assert set(results.arm) == {"adam", "mine"}
    assert "minus `adam` (95 %)" in (tmp_path / "table.md").read_text()


def test_a_data_seed_in_a_file_is_refused_as_the_option_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table would call it data seed 0."""
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"seed": 2}}}))
    for given in (["--config", str(tmp_path / "d.yaml")], ["--data.init_args.seed=2"]):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path, *given)
        assert "a file or an option sets data.seed. Use --data-seeds instead" in capsys.readouterr().err
    assert runs() == []
