import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.image import imread

import compare
from experiment.presets import ROOT
from reporting.machine import machine
from reporting.tables import write_between_markers
from tests.store import artifacts, heed, history, runs, wait
from tracking.store import client

ARMS = ["meta", "adam"]
COMMAND = ["--seeds", "2", "--optimizers", *ARMS, "--trainer.max_epochs=2", "--data.batch_size=1000", "--workers", "1"]


def run(folder: Path, *options: str) -> pd.DataFrame:
    return compare.main([*COMMAND, "--output", str(folder), *options])


@pytest.mark.slow
def test_every_arm_is_trained_on_every_seed_and_read_back_from_mlflow(tmp_path: Path) -> None:
    run(tmp_path)
    results = pd.read_csv(tmp_path / "results.csv")
    assert set(zip(results.arm, results.seed, strict=True)) == {(arm, seed) for arm in ARMS for seed in (1, 2)}
    for row in results.itertuples():
        metrics = client().get_run(str(row.run_id)).data.metrics
        assert (row.test_loss, row.test_accuracy) == (metrics["test/loss"], metrics["test/accuracy"])
        assert row.final_lr == history(str(row.run_id), "lr")[-1][1]


@pytest.mark.slow
def test_figures_and_table_are_written_and_kept_with_a_parent_run(tmp_path: Path) -> None:
    run(tmp_path)
    for name in ("comparison.png", "lr_evolution.png"):
        assert imread(tmp_path / name).std() > 0.01  # something is drawn
    [parent] = [run for run in runs() if run.info.run_name == "compare"]
    assert parent.info.status == "FINISHED"
    kept = {"comparison.png", "lr_evolution.png", "results.csv", "courses.csv", "table.md"}
    assert artifacts(parent.info.run_id) >= kept
    for child in (run for run in runs() if run.info.run_id != parent.info.run_id):
        assert "schedule.csv" in artifacts(child.info.run_id)
        assert "trajectory.png" not in artifacts(child.info.run_id)  # which takes longer than many a run's steps


@pytest.mark.slow
def test_only_what_is_missing_is_trained(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path)
    assert list(first.run_id) == list(again.run_id)
    more = run(tmp_path, "--seeds", "3")
    assert set(first.run_id) < set(more.run_id)
    other = run(tmp_path, "--model.lr=0.01")
    assert not set(other.run_id) & set(more.run_id)


@pytest.mark.slow
def test_runs_are_the_same_whether_reused_or_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    for run_id in first.run_id:
        client().delete_run(run_id)
    again = run(tmp_path)
    assert not set(first.run_id) & set(again.run_id)
    assert list(first.test_loss) == list(again.test_loss)
    assert list(first.lrs) == list(again.lrs)


@pytest.mark.slow
def test_four_workers_give_the_same_runs_as_one(tmp_path: Path) -> None:
    first = run(tmp_path)
    for run_id in first.run_id:
        client().delete_run(run_id)
    assert list(run(tmp_path, "--workers", "4").test_loss) == list(first.test_loss)


@pytest.mark.slow
def test_the_search_is_the_same_from_any_starting_rate_and_the_figure_shows_it(tmp_path: Path) -> None:
    results = run(tmp_path, "--initial-lrs", "1e-6", "1", "--optimizers", "meta_search", "adam")
    losses = results.pivot(index=["arm", "seed"], columns="start_lr", values="test_loss")
    assert list(losses[1e-6].loc["meta_search"]) == list(losses[1.0].loc["meta_search"])
    assert list(losses[1e-6].loc["adam"]) != list(losses[1.0].loc["adam"])
    assert imread(tmp_path / "lr_sensitivity.png").std() > 0.01


@pytest.mark.slow
def test_the_table_has_means_intervals_paired_differences_and_the_conditions(tmp_path: Path) -> None:
    results = run(tmp_path, "--seeds", "3")
    table = (tmp_path / "table.md").read_text()
    loss = results.pivot(index="seed", columns="arm", values="test_loss")
    assert f"| `adam` | {loss.adam.mean():.3f} ± " in table
    assert f" | {(loss.adam - loss.meta).mean():+.3f} (" in table
    assert "seeds 1–3, data seed 0, 2 epochs" in table
    assert "python compare.py --seeds 2" in table
    assert f"after the last step. {machine()}; one thread per run; trained at commit" in table
    other = results.run_id[0]
    client().set_tag(other, "trained_on", "another machine")  # as one of a sweep that machines share
    run(tmp_path, "--seeds", "3")
    assert f"{machine()} and another machine; one thread" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_run_that_diverges_stands_in_the_table_as_infinite(tmp_path: Path) -> None:
    results = run(tmp_path, "--model.lr=1e20")
    assert set(results[results.arm == "adam"].test_loss) == {float("inf")}
    assert results[results.arm == "meta"].test_loss.max() < 2.5  # which lowers the rate
    assert (tmp_path / "table.md").read_text().count("| `adam` | 2 of 2 diverged |") == 1
    again = run(tmp_path, "--model.lr=1e20")
    assert list(results.run_id) == list(again.run_id)


def test_a_document_takes_a_table_between_its_markers(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("above\n<begin>\nold\n<end>\nbelow\n")
    write_between_markers("new\n", file, "<begin>\n", "<end>\n")
    assert file.read_text() == "above\n<begin>\nnew\n<end>\nbelow\n"


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_comparison_that_was_stopped_goes_on_where_it_was(sent: signal.Signals, status: int, tmp_path: Path) -> None:
    options = ["--seeds", "12", "--optimizers", *ARMS, "--trainer.max_epochs=10", "--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "compare.py"), *options, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed)
    wait(process, lambda: len(finished()) >= 3)
    process.send_signal(sent)
    process.wait()
    assert process.returncode == status
    done = finished()
    assert 3 <= len(done) < 24
    results = compare.main([*options, "--workers", "1"])
    assert done < set(results.run_id)
    assert [run for run in runs() if run.info.status == "RUNNING"] == []
    assert len(finished()) == 24
    assert len([run for run in runs() if run.info.run_name == "compare"]) == 1


def finished() -> set[str]:
    """Return the runs that ended and were tested; one that was killed between the two is trained again."""
    return {run.info.run_id for run in runs() if run.info.status == "FINISHED" and "test/loss" in run.data.metrics}


@pytest.mark.slow
def test_a_comparison_that_is_killed_twenty_times_loses_nothing(tmp_path: Path) -> None:
    """At random moments of its work; what was done is not done again, and in the end each run is there once."""
    options = ["--seeds", "20", "--optimizers", *ARMS, "--trainer.max_epochs=8", "--output", str(tmp_path)]
    options += ["--workers", "1"]  # with several it is killed above
    command = [sys.executable, str(ROOT / "compare.py"), *options]
    draw, done = random.Random(0), set[str]()
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = len(runs())
        while len(runs()) <= begun and process.poll() is None:  # until it trains again
            time.sleep(0.1)
        time.sleep(draw.uniform(0, 1))
        process.kill()
        process.wait()
        now = finished()
        assert done <= now
        done = now
    results = compare.main(options)
    assert done <= set(results.run_id) == finished()
    assert len(results) == len(finished()) == 40
    assert [run for run in runs() if run.info.status == "RUNNING"] == []
    assert len([run for run in runs() if run.info.run_name == "compare"]) == 1


@pytest.mark.slow
def test_a_yaml_file_of_ones_own_is_compared_under_its_name_and_the_plan_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = {
        "model": {"class_path": "lightning_modules.SupervisedModule", "init_args": {"optimizer": "torch.optim.RAdam"}}
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(arm))
    options = ["--seeds", "2", "--trainer.max_epochs=2", "--workers", "1", "--output", str(tmp_path)]
    results = compare.main(["--optimizers", "meta", str(tmp_path / "mine.yaml"), *options])
    assert set(results.arm) == {"meta", "mine"}
    shown = capsys.readouterr()
    plan = shown.out.splitlines()[0]
    assert re.fullmatch(r"4 runs of meta, mine; about \d\.\d minutes, less for what MLflow has already", plan)
    assert "4/4" in shown.err
    assert "Downloading" not in shown.err  # MLflow's own bar, for each file of a table


def test_a_data_seed_in_a_file_is_refused_as_the_option_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table would call it data seed 0."""
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"seed": 2}}}))
    for given in (["--config", str(tmp_path / "d.yaml")], ["--data.init_args.seed=2"]):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path, *given)
        assert (
            "the data seed is 2 by the options or the files given; here it is --data-seeds" in capsys.readouterr().err
        )
    assert runs() == []


@pytest.mark.slow
def test_without_meta_the_first_arm_is_the_one_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "private.csv").write_text("mine")
    runs_of = compare.main([*COMMAND, "--optimizers", "adam", "cosine", "--output", str(tmp_path)])
    assert set(runs_of.arm) == {"adam", "cosine"}
    assert "minus `adam` (95 %)" in (tmp_path / "table.md").read_text()
    [parent] = [run for run in runs() if run.info.run_name == "compare"]
    assert "private.csv" not in artifacts(parent.info.run_id)


@pytest.mark.slow
def test_a_schedule_that_was_overwritten_is_replayed_anew(tmp_path: Path) -> None:
    found = []
    for lr in (0.002, 0.05, 0.002):
        Path("schedule.csv").write_text(f"step,lr,decay\n1,{lr},0\n")
        command = [*COMMAND, "--optimizers", "replay", "--seeds", "1", "--output", str(tmp_path)]
        found.append(compare.main(command).run_id.tolist())
    assert found[0] == found[2] != found[1]
