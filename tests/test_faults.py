"""What goes wrong, tried for real: each has a message of one line and an exit status, and loses nothing."""

import importlib
import re
import shlex
import sys

import pytest

import train
from tests.faults import BAD_INPUT
from tests.store import runs


@pytest.mark.parametrize("typed", BAD_INPUT)
def test_bad_input_gives_one_clear_line_status_2_and_no_run(
    typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, *args = shlex.split(typed)
    command = importlib.import_module(script.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [script, *args])
    with pytest.raises(SystemExit) as stop:
        train.script(command.main)
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]  # argparse shows the usage before
    assert line.startswith((f"{script}: error: ", "train.py: error: "))  # the latter for what goes on to every run
    assert re.search(BAD_INPUT[typed], line), line
    assert runs() == []
