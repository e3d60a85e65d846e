"""The notebook runs from its first cell to its last, in its own kernel, and prints what its text says."""

import re
from pathlib import Path
from typing import Any

import pytest

# of tests/requirements.txt
pytest.importorskip("nbclient")
# the warnings are of Jupyter, about itself
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parents[1]


def printed(book: Any) -> tuple[str, int]:
    """What the cells print, with # for each number and without folders; the number of figures."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    return re.sub(r"\S*/(?=adapter.py)|[-+ ]*\d[\d.e-]*", lambda found: "#" * found[0][-1].isdigit(), text), figures


def test_the_tutorial_runs_in_any_folder_and_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbclient
    import nbformat

    book: Any = nbformat.read(ROOT / "docs" / "tutorial.ipynb", 4)  # type: ignore[no-untyped-call]
    shown = printed(book)
    # as if the package were installed
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert printed(book) == shown
    text = str(book)
    best = float(re.search(r"the best of 6 rates: ([\d.]+)", text)[1])  # type: ignore[index]
    adapted = float(re.search(r"adapted, from Adam's 1e-3: ([\d.]+)", text)[1])  # type: ignore[index]
    assert adapted < 1.1 * best
    assert (shown[1], shown[0].count("Notice: "), shown[0].count("another rate won the race")) == (2, 1, 1)
