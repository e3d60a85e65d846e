from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import results
from experiment import options, publish
from experiment.grid import Scale, runs_of
from tests.store import runs

STAGES: dict[str, Any] = dict(publish.STAGES)


@pytest.mark.slow
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
    assert f"| meta | {kept.meta:.3f} |" in table
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
    assert all(isinstance(yaml.safe_load(run.label), str) for run in every if not run.label.isdigit())
    assert all(run.of is None or run.study is not None for run in every)


def test_every_stage_has_its_place_in_the_documents() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in publish.DOCUMENTS)
    assert list(STAGES) == list(options.STAGES)
    assert all(f"<!-- {stage}: begin -->\n" in text for stage in STAGES)
