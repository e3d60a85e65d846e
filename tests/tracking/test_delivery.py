import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from mlflow.entities import Dataset, DatasetInput

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
