import re
from typing import Any

from hypergradient.support import SUPPORTED
from options import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_recipes_run_as_they_stand_and_the_rate_grows_from_its_small_start() -> None:
    names: dict[str, Any] = {}
    for recipe in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(recipe, names)
    assert names["log_scale"].item() > 1
    assert 1e-4 < names["rate"] < 1


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
