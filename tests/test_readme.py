"""The pages: examples run, equations agree with the code, tables are current, links have targets."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import optimizers
from experiment.options import QUIET
from experiment.run import train
from reporting.tables import markdown
from tests.hypergradient.lightning_cases import CASES
from tests.store import checkpoint_of

ROOT = Path(__file__).resolve().parents[1]
README, YOUR_OWN, SUPPORTED, METHOD = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/lightning.md", "docs/support.md", "docs/method.md")
)


# samples in memory need no workers; the other two are of a Trainer with its defaults
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.parametrize("page", [README, YOUR_OWN], ids=["README", "docs/lightning.md"])
def test_the_recipes_run_as_they_stand_and_the_rate_grows_from_its_start(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a Trainer with its defaults writes into the current folder
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "recipe"}
    recipes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert recipes
    for recipe in recipes:
        exec(recipe, names)
    adapters = [names["adapter"], *([names["adapt"].adapter] if page == YOUR_OWN else [])]
    for adapter in adapters:
        report = adapter.report()
        assert report["highest"] > 2 * report["lowest"]
    assert not names["network"].training


@pytest.mark.parametrize("options", [["--data=mine.MyData", "--model.network=mine.MyNet"], ["--config=radam.yaml"]])
def test_the_files_of_the_page_on_configuration_train_as_they_stand(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "configure.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run = train([*options, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    assert math.isfinite(run.test_metrics["test/loss"])
    assert "RAdam" in str(run.trainer.optimizers) or type(run.datamodule).__name__ == "MyData"


@pytest.mark.slow
def test_the_variants_of_the_page_train_with_moves_and_a_learned_schedule_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"```\w+\n(?=# ~/mine/([\w.]+))(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, options in (("slower", []), ("unlimited", ["--model.meta_lr=1.5"])):
        run = train(["--config", f"{name}.yaml", *options, "--trainer.max_epochs=5", QUIET])
        assert run.model.meta.moves > 3
        assert run.model.settings.meta_lr == (1.5 if options else 1.0)
    assert (type(run.model.meta).__name__, run.line.arm) == ("Unlimited", "unlimited")
    shutil.copy(Path(checkpoint_of(run)).parents[1] / "schedule.csv", tmp_path)
    [replay] = [recipe for recipe in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "schedule.csv" in recipe]
    names: dict[str, Any] = {}
    exec(replay.replace("...", "network(torch.ones(1, 40)).sum().backward()"), names)
    assert names["optimizer"].param_groups[0]["lr"] == names["learned"]["lr"].iloc[-1]


def test_the_table_of_cases_is_the_list_that_the_tests_run_over() -> None:
    half = -(-len(CASES) // 2)
    names = [*CASES, *[""] * (2 * half - len(CASES))]
    table = markdown(["", ""], [list(pair) for pair in zip(names[:half], names[half:], strict=True)]) + "\n"
    assert SUPPORTED.split("<!-- cases: begin -->\n")[1].split("<!-- cases: end -->\n")[0] == table


def test_the_page_of_optimizers_is_written_from_the_published_numbers() -> None:
    page, rows = optimizers.PAGE.read_text(encoding="utf-8"), optimizers.read()
    [packages] = re.findall(r"with (torch \S+ and pytorch_optimizer \S+),", page)
    assert page == optimizers.document(rows, packages)
    adapted = sum(row.adapted == "yes" for row in rows)
    assert f"{adapted} of the {len(rows)} in torch" in " ".join(README.split())


@pytest.mark.slow
# of the optimizers, about themselves
@pytest.mark.filterwarnings("ignore")
def test_the_published_numbers_of_optimizers_are_what_is_measured() -> None:
    """Decisions, not errors in their last digits; every one is on the page; the hypergradient of each is right."""
    published, now = optimizers.read(), optimizers.measure()
    assert [row[:3] for row in published] == [row[:3] for row in now]
    names = re.findall(r"[\w.]+", optimizers.document(now, "").split("## Supported")[1])
    assert all(row.name in names or f"{row.name}." in names for row in now)
    errors = [float(row.found) for row in now if row.adapted == "yes"]
    assert all(error < 1e-3 for error in errors), "or NaN"


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target, place in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
            found = page.parent / target if target else page
            assert found.exists(), (page, target)
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE) if place else []
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not place or place in anchors, (page, target, place)


@pytest.mark.parametrize(
    ("module", "names", "count"),
    [
        ("one_step", "lookahead|hypergradient|learning rate|real step", 4),
        ("meta", "start|each step|look|move", 4),
    ],
)
def test_the_equations_of_the_page_are_those_of_the_code(module: str, names: str, count: int) -> None:
    code = (ROOT / "hypergradient" / f"{module}.py").read_text(encoding="utf-8")
    lines = [" ".join(line.split()) for line in code.splitlines() if re.match(rf" *(?:{names})   ", line)]
    assert len(lines) == count
    assert set(lines) <= {" ".join(line.split()) for line in METHOD.splitlines()}
