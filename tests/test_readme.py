import re
from typing import Any

import pytest

from experiment.presets import ROOT
from hypergradient.support import SUPPORTED
from reporting.tables import markdown
from tests.hypergradient.lightning_cases import CASES

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")  # samples in memory need none
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")  # of a Trainer with its default logger
def test_the_recipes_run_as_they_stand_and_the_rate_grows_from_its_small_start() -> None:
    names: dict[str, Any] = {"__name__": "recipe"}
    for recipe in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(recipe, names)
    for log_scale in (names["log_scale"], names["adapter"].log_scale, names["adapt"].adapter.log_scale):
        assert log_scale.item() > 1
    assert 1e-4 < names["rate"] < 1


def test_the_table_of_cases_is_the_list_that_the_tests_run_over() -> None:
    document = ROOT / "docs" / "lightning.md"
    begin, end = "<!-- cases: begin -->\n", "<!-- cases: end -->\n"
    half = -(-len(CASES) // 2)
    names = [*CASES, *[""] * (2 * half - len(CASES))]
    table = markdown(["", ""], [list(pair) for pair in zip(names[:half], names[half:], strict=True)]) + "\n"
    assert document.read_text(encoding="utf-8").split(begin)[1].split(end)[0] == table


def test_the_optimizers_named_are_those_supported() -> None:
    [named] = re.findall(r"Supported: (.*?)\. Refused", README, re.DOTALL)
    assert " ".join(named.split()) == SUPPORTED


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_six_lines_are_those_of_the_code() -> None:
    code = " ".join((ROOT / "hypergradient" / "step.py").read_text(encoding="utf-8").replace("`", "").split())
    for line in re.findall(r"^    (?:update|lookahead|hypergradient|real step)   .*$", README, re.MULTILINE):
        assert " ".join(line.split()) in code
