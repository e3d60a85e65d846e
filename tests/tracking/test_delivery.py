import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pandas as pd
import pytest
from mlflow.entities import Dataset, DatasetInput, Param

from tracking import delivery
from tracking.delivery import PatientClient, undelivered


@pytest.mark.parametrize("name", ["p", "undelivered", "undelivered/run"])
def test_a_folder_that_holds_nothing_to_deliver_is_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is removed when it is delivered: somebody's own must not be."""
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "thesis.txt").write_text("x")
    monkeypatch.setattr("sys.argv", ["delivery", str(tmp_path / name)])
    with pytest.raises(SystemExit, match="2"):
        delivery.main()
    assert "holds nothing to deliver: name mlruns/undelivered/RUN" in capsys.readouterr().err
    assert (tmp_path / name / "thesis.txt").exists()


def test_the_folder_of_all_of_them_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("a", "b"):
        delivery.keep(run, "metrics.json", [])
    monkeypatch.setattr("sys.argv", ["delivery", str(undelivered("a").parent)])
    with pytest.raises(SystemExit, match="2"):
        delivery.main()
    assert undelivered("a").exists()
    assert undelivered("b").exists()


def test_runs_that_name_the_same_new_data_at_once_all_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow makes it twice then, and refuses the second."""
    store, width = PatientClient(os.environ["MLFLOW_TRACKING_URI"]), 8
    together = Barrier(width)

    def name(_: int) -> int:
        run = store.create_run("0").info.run_id
        for digest in "abcdef":
            together.wait()
            store.log_inputs(run, [DatasetInput(Dataset("train", digest, "numpy", "{}"), [])])
        inputs = store.get_run(run).inputs
        return len(inputs.dataset_inputs) if inputs else 0

    with ThreadPoolExecutor(width) as pool:
        assert list(pool.map(name, range(width))) == [6] * width
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("back", [True, False], ids=["the store comes back", "the run ends before"])
def test_tags_and_parameters_that_a_store_refused_reach_it(
    back: bool, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a tag that was set again later, the later value; the database itself refuses here."""
    patient = PatientClient(os.environ["MLFLOW_TRACKING_URI"])
    run = patient.create_run("0").info.run_id
    with sqlite3.connect(store / "mlflow.db") as database:
        for table in ("params", "tags"):
            database.execute(
                f"create trigger {table}_refused before insert on {table} begin select raise(abort, 'away'); end"
            )
        database.commit()
        patient.log_batch(run, params=[Param("search/rate", "0.05")])
        patient.set_tag(run, "passes", 1.5)
        patient.log_table(run, pd.DataFrame({"lr": [0.1], "val_loss": [2.0]}), "search.json")
        if not back:
            patient.set_terminated(run)
        for table in ("params", "tags"):
            database.execute(f"drop trigger {table}_refused")
        database.commit()
    database.close()
    if back:
        patient.set_tag(run, "passes", 1.6)
        patient.set_terminated(run)
    else:
        delivery.deliver(undelivered(run))
    found = patient.get_run(run)
    assert found.data.params == {"search/rate": "0.05"}
    assert found.data.tags["passes"] == ("1.6" if back else "1.5")
    kept = Path(patient.download_artifacts(run, "search.json"))  # `load_table` asks a store that another test set
    assert pd.read_json(kept, orient="split").lr.tolist() == [0.1]
    assert found.info.status == "FINISHED"
    assert "the MLflow store is away: " in capsys.readouterr().err
