import json
import math
from dataclasses import replace

import pytest

from benchmarks.clients import TASKS
from benchmarks.usefulness import COLUMNS, PAGE, RESULTS, SEEDS, document, run


def test_the_page_is_what_was_measured() -> None:
    made = json.loads(RESULTS.read_text())
    assert list(made["tasks"]) == list(TASKS)
    assert {len(runs) for runs in made["tasks"].values()} == {len(SEEDS)}
    assert PAGE.read_text(encoding="utf-8") == document(made)


@pytest.mark.parametrize("rule", ["plain", "meta", "onestep", "prodigy", "schedule_free"])
def test_each_rule_runs(rule: str) -> None:
    task = replace(TASKS["MLP, tabular"], steps=20)
    ended = run(task, 0, rule, 1e-3)
    assert all(math.isfinite(value) for value in vars(ended).values())
    assert rule not in ("meta", "onestep") or ended.rate != 1e-3


def test_what_diverged_is_said() -> None:
    made = json.loads(RESULTS.read_text())
    [first, *_] = made["tasks"]
    made["tasks"][first][0]["prodigy"]["test"] = math.inf
    assert "| Prodigy | diverged |" in document(made)
    assert all(f"| {name} |" in document(made) for name in COLUMNS)
