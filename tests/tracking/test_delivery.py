from pathlib import Path

import pytest

from tracking import delivery
from tracking.delivery import undelivered


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
