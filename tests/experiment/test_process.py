"""What a command's process does before it works."""

import gc
import subprocess
import sys

from experiment.presets import ROOT
from experiment.process import importing


def test_what_is_imported_is_never_looked_through_again_and_later_garbage_is_collected() -> None:
    gc.unfreeze()
    with importing():
        assert not gc.isenabled()
        kept: list[list[int]] = [[] for _ in range(1_000)]
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() > 1_000
        young = {id(thing) for thing in gc.get_objects()}
        assert not any(id(thing) in young for thing in kept)
    finally:
        gc.unfreeze()


def test_an_import_that_fails_leaves_the_collection_on() -> None:
    code = """if True:
        import gc
        from experiment.process import importing
        try:
            with importing():
                import nothing_of_that_name
        except ModuleNotFoundError:
            print(gc.isenabled())
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
