"""What a command's process does before it works."""

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiment.process import importing


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_imported_is_never_looked_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large_module.py").write_text("kept = [[] for _ in range(1_000)]")
    monkeypatch.syspath_prepend(tmp_path)
    with importing():
        assert not gc.isenabled()
        kept = importlib.import_module("large_module").kept
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1_000
    watched = {id(thing) for thing in gc.get_objects()}
    assert not any(id(thing) in watched for thing in kept)


def test_where_nothing_is_imported_nothing_is_kept_from_collection() -> None:
    """Else each command typed into a notebook would keep the garbage of the one before."""
    with importing():
        pass
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("collects", [True, False])
def test_collection_is_left_as_it_was_when_an_import_fails_too(collects: bool) -> None:
    if not collects:
        gc.disable()
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("nothing_of_that_name")
    assert gc.isenabled() == collects
