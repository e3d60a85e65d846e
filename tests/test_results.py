from pathlib import Path

import pandas as pd
import pytest
import yaml

import results
from experiment import options, publication, stages
from experiment.presets import ROOT
from experiment.workers import each, worker_pool
from tests.store import runs


@pytest.mark.slow
def test_a_stage_tunes_trains_and_writes_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, on one data seed and one seed; the stage is the one that decides the claim."""
    rows = {arm: stages.STAGES["main"]["rows"][arm] for arm in ("meta", "meta_onestep", "adam", "cosine")}
    monkeypatch.setitem(stages.STAGES, "main", stages.STAGES["main"] | {"rows": rows})
    typed = ["--stages", "main", "--seeds", "1", "--data-seeds", "1", "--trials", "1", "--workers", "1"]
    results.main([*typed, "--output", str(tmp_path)])
    table = (tmp_path / "main" / "table.md").read_text()
    kept = pd.read_csv(tmp_path / "main" / "results.csv").set_index("arm").test_loss
    assert set(kept.index) == {"meta", "meta_onestep", "adam", "cosine"}
    assert f"`meta` / `adam` = {kept.meta / kept.adam:.3f}" in table
    assert {"comparison.png", "lr_evolution.png"} <= {path.name for path in (tmp_path / "main").glob("*.png")}
    trained = {run.info.run_id for run in runs()}
    results.main([*typed, "--output", str(tmp_path)])
    assert {run.info.run_id for run in runs()} == trained


def test_a_table_goes_into_every_document_that_has_its_place(tmp_path: Path) -> None:
    with_place, without = tmp_path / "a.md", tmp_path / "b.md"
    with_place.write_text("x\n<!-- main: begin -->\nold\n<!-- main: end -->\ny\n")
    without.write_text("z\n")
    publication.publish("main", "new\n", [with_place, without])
    assert with_place.read_text() == "x\n<!-- main: begin -->\nnew\n<!-- main: end -->\ny\n"
    assert without.read_text() == "z\n"


@pytest.mark.parametrize("stage", stages.STAGES)
def test_the_runs_of_a_stage_have_names_of_their_own_that_the_command_line_takes(stage: str, tmp_path: Path) -> None:
    cells = stages.cells(stages.STAGES[stage], stages.Scale(10, 3, 20, tmp_path))
    names = [(cell.label, cell.data_seed, cell.options) for cell in cells]
    assert len({(name, data_seed) for name, data_seed, _ in names}) == len(names)
    assert all(isinstance(yaml.safe_load(name), str) for name, _, _ in names if not name.isdigit())


def test_every_stage_has_its_place_in_the_document() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("results.md", "original.md"))
    assert list(stages.STAGES) == list(options.STAGES)
    for stage in stages.STAGES:
        assert f"<!-- {stage}: begin -->\n" in text


def test_a_goal_that_is_never_reached_takes_for_ever() -> None:
    assert publication.first_below([3.0, 2.0, 1.0], 2.0) == 2
    assert publication.first_below([3.0, 2.0, 1.0], 0.5) == float("inf")


def test_work_is_done_once_each_and_numbered_in_one_process_and_in_two() -> None:
    for workers in (1, 2):
        with worker_pool(workers) as pool:
            assert dict(each(str.upper, ["a", "b", "c"], pool)) == {0: "A", 1: "B", 2: "C"}


@pytest.mark.parametrize("typed", ["--stages nothing", "--seeds 0", "--data-seed 3"])
def test_bad_input_gives_status_2(typed: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        results.main(typed.split())
    assert runs() == []
