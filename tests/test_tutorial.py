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


def test_the_tutorial_runs_and_the_adapted_rate_does_as_well_as_the_best_of_its_grid() -> None:
    import nbclient
    import nbformat

    file = ROOT / "docs" / "tutorial.ipynb"
    book: Any = nbformat.read(file, 4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in book.cells), "kept small: it is saved without its outputs"
    environment = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(book, timeout=300, resources=environment).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 2
    best = float(re.search(r"the best of 6 rates: ([\d.]+)", text)[1])  # type: ignore[index]
    adapted = float(re.search(r"adapted, from Adam's 1e-3: ([\d.]+)", text)[1])  # type: ignore[index]
    assert adapted < 1.1 * best
    # what the text announces, and nothing else
    [told] = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert told.count("Warning") == 0
    assert told.count("Notice: ") == told.count("times the optimizer's lr: another rate won the race") == 1
