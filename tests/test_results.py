from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import results
from experiment import options, publish
from experiment.command_line import read
from experiment.grid import Run, Scale, runs_of
from experiment.run import Run as OneRun
from tests.store import artifacts, runs

STAGES: dict[str, Any] = dict(publish.STAGES)


@pytest.mark.slow
# `meta` may: the last digits of a processor decide
@pytest.mark.filterwarnings("ignore:.*the run goes back")
def test_a_stage_tunes_trains_and_writes_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, on one data seed and one seed; the stage is the one that decides the claim."""
    rows = {arm: STAGES["main"]["rows"][arm] for arm in ("meta", "meta_onestep", "adam", "cosine", "adam_average")}
    monkeypatch.setitem(publish.STAGES, "main", STAGES["main"] | {"rows": rows})
    typed = ["--stages", "main", "--seeds", "1", "--data-seeds", "1", "--trials", "1", "--workers", "1"]
    results.main([*typed, "--output", str(tmp_path)])
    table = (tmp_path / "main" / "table.md").read_text()
    kept = pd.read_csv(tmp_path / "main" / "results.csv").set_index("arm").test_loss
    assert set(kept.index) == set(rows)
    assert f"| `meta` | {kept.meta:.3f} |" in table
    assert {"comparison.png", "lr_evolution.png"} <= {path.name for path in (tmp_path / "main").glob("*.png")}
    trained = {run.info.run_id for run in runs()}
    results.main([*typed, "--output", str(tmp_path)])
    assert {run.info.run_id for run in runs()} == trained
    tuned = {run.info.run_name for run in runs() if "best_val_loss" in run.data.metrics}
    assert tuned == {"tune adam", "tune adamw_average"}


def test_a_table_goes_into_every_document_that_has_its_place(tmp_path: Path) -> None:
    with_place, without = tmp_path / "a.md", tmp_path / "b.md"
    with_place.write_text("x\n<!-- main: begin -->\nold\n<!-- main: end -->\ny\n")
    without.write_text("z\n")
    publish.publish("main", "new\n", [with_place, without])
    assert with_place.read_text() == "x\n<!-- main: begin -->\nnew\n<!-- main: end -->\ny\n"
    assert without.read_text() == "z\n"


@pytest.mark.parametrize("stage", STAGES)
def test_the_runs_of_a_stage_have_arms_that_exist_and_names_that_the_command_line_takes(stage: str) -> None:
    every = runs_of(STAGES[stage], Scale(10, 3))
    assert {run.arm for run in every} <= set(options.ARMS)
    assert len({(run.label, run.data_seed, run.seed) for run in every}) == len(every)
    assert all(isinstance(yaml.safe_load(run.label), str) for run in every)


def test_the_options_of_a_row_come_before_those_of_its_column() -> None:
    grid = {"rows": {"a": {"options": ["--row"]}}, "columns": {"b": {"options": ["--column"]}, "c": {}}}
    assert [run.options for run in runs_of(grid, Scale(1, 1))] == [("--row", "--column"), ("--row",)]


def test_a_ladder_is_a_column_a_rate_and_a_row_trained_by_sgd_takes_ten_times_the_rate() -> None:
    grid = {
        "rows": {"plain": {"options": ["--task=a"]}, "conv": {"options": ["--task=b"], "sgd": True}},
        "columns": {"meta": {}},
        "ladders": {"cosine": {"arm": "adam", "options": ["--ladder"]}},
        "rates": [3e-4, 1e-2],
        "sgd": ["--sgd"],
    }
    found = {run.label: (run.arm, run.method, run.rate, run.lr, run.options) for run in runs_of(grid, Scale(1, 1))}
    assert found == {
        "plain, meta": ("plain", "meta", None, None, ("--task=a",)),
        "plain, cosine 0.0003": ("adam", "cosine", 3e-4, 3e-4, ("--task=a", "--ladder")),
        "plain, cosine 0.01": ("adam", "cosine", 1e-2, 1e-2, ("--task=a", "--ladder")),
        "conv, meta": ("conv", "meta", None, None, ("--task=b",)),
        "conv, cosine 0.0003": ("adam", "cosine", 3e-4, 3e-3, ("--task=b", "--ladder", "--sgd")),
        "conv, cosine 0.01": ("adam", "cosine", 1e-2, 1e-1, ("--task=b", "--ladder", "--sgd")),
    }


SUITE = [run for run in runs_of(STAGES["suite"], Scale(1, 1)) if run.rate in (None, 1e-3)]
PARSED = [run for run in SUITE if run.method == "cosine" or run.row in ("mlp", "conv")]


@pytest.mark.parametrize("run", PARSED, ids=lambda run: run.label)
@pytest.mark.slow
def test_a_run_of_the_suite_has_options_that_its_arm_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneRun, "instantiate_classes", lambda _: None)
    monkeypatch.setattr(OneRun, "after_instantiate_classes", lambda _: None)
    lr = [f"--model.lr={run.lr}"] if run.lr else []
    trained = OneRun(read([*options.arm_options(run.arm), *run.options, *lr]), {}, [])
    model = trained.dump["model"]["init_args"]
    assert (trained.line.arm, trained.line.task) == (run.arm, run.row)
    if run.rate:
        by_sgd = bool(STAGES["suite"]["rows"][run.row].get("sgd"))
        assert model["optimizer"]["class_path"] == f"torch.optim.{'SGD' if by_sgd else 'AdamW'}"
        assert model["optimizer"]["init_args"].get("momentum") == (0.9 if by_sgd else None)
        assert model["lr"] == (0.01 if by_sgd else 0.001)


@pytest.mark.slow
def test_the_stage_suite_keeps_numbers_tables_and_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pd.DataFrame(vars(run) for run in runs_of(STAGES["suite"], Scale(1, 1)))
    found = found.assign(test_loss=1.0, val_loss=1.0, passes=1.0, val_losses=[[1.0]] * len(found), start_lr=found.lr)
    made = found.assign(arm=found.label, trained_on="a machine", commit="abc")
    monkeypatch.setattr(publish, "run_grid", lambda *_: made)
    table = publish.publish_stage("suite", Scale(1, 1, output=tmp_path), "a command")
    assert "| meta | 1.00 (1.00 … 1.00) | 1.00 (mlp) | 15 of 15 |" in table
    [parent] = runs()
    kept = {"results.csv", "table.md", "suite.png", "suite_profile.png", "suite_cost.png"}
    assert artifacts(parent.info.run_id) == kept == {file.name for file in (tmp_path / "suite").iterdir()}
    (tmp_path / "suite" / "suite.png").unlink()
    results.main(["--stages", "suite", "--redraw", "--output", str(tmp_path)])
    assert (tmp_path / "suite" / "suite.png").exists()


def test_every_stage_has_its_place_in_the_documents() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in publish.DOCUMENTS)
    assert list(STAGES) == list(options.STAGES)
    assert all(f"<!-- {stage}: begin -->\n" in text for stage in STAGES)
