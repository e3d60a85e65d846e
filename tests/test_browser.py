import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium.common.exceptions import TimeoutException

from tests.browser import Page, chromium, mlflow_ui
from tracking.links import how_to_see
from tracking.store import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
    ),
]
RUN_NAMES = "[role=row] a[href*='/runs/']"
HEADING = "[data-testid='runs-header']"
SECTION = "[data-testid=experiment-view-compare-runs-section-header]"
# of the runs, the parameters, the tags
TABLES = "table.mlflow-compare-table"
# more than MLflow shows by default
ARMS, SEEDS = ("meta", "adam"), range(1, 7)
RUNS = [f"{arm} seed {seed}" for arm in ARMS for seed in SEEDS]
# the + before a parent
UNFOLD = "[role=row] button[data-component-id*='runnamecell']"


class Store(NamedTuple):
    uri: str
    # by the command
    printed: str
    folder: Path

    def run(self, name: str) -> Run:
        return MlflowClient(self.uri).search_runs(["1"], f"attributes.run_name = '{name}'")[0]

    def artifact(self, run: Run, name: str) -> bytes:
        return Path(MlflowClient(self.uri).download_artifacts(run.info.run_id, name, str(self.folder))).read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What a comparison left."""
    folder = tmp_path_factory.mktemp("made")
    uri = f"sqlite:///{folder}/mlflow.db"
    options = ["--seeds", "6", "--optimizers", *ARMS, "--output", str(folder / "compare"), "--workers", "1"]
    words = [sys.executable, str(ROOT / "compare.py"), *options, "--trainer.max_epochs=3", "--data.batch_size=1000"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(words, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return Store(uri, done.stdout, folder)


@pytest.fixture(scope="module")
def page(made: Store) -> Iterator[Page]:
    with mlflow_ui(made.uri) as address, chromium() as driver:
        yield Page(driver, address)


def texts(page: Page, css: str) -> list[str]:
    return [element.text for element in page.find(css)]


def soon(page: Page, look: Callable[[], Any], expected: Any) -> None:
    with suppress(TimeoutException):
        page.until(lambda: look() == expected)
    assert look() == expected


def test_the_experiment_lists_each_run_under_its_name(page: Page) -> None:
    page.open("#/experiments/1/runs?workflowType=machine_learning")
    soon(page, lambda: texts(page, RUN_NAMES), ["compare"])
    page.find(UNFOLD)[0].click()
    soon(page, lambda: sorted(texts(page, RUN_NAMES)), sorted(["compare", *RUNS]))


def test_the_charts_begin_with_the_curves_of_every_compared_run_grouped_by_arm(page: Page, made: Store) -> None:
    arms = {made.run(run).info.run_id: run.split()[0] for run in RUNS}
    groups = {f"tag.optimizer.{arm}" for arm in ARMS} | {f"tag.optimizer.{arm}.{run}" for run, arm in arms.items()}
    [link] = re.findall(r"charts .* http://127\.0\.0\.1:5000/(\S+)", made.printed)
    page.open(link)
    soon(page, lambda: page.charts()[:2], [("val/loss", set(arms)), ("lr", set(arms))])
    soon(page, lambda: {row.get_attribute("row-id") for row in page.find("[role=row][row-id]")}, groups)
    soon(page, lambda: [text.split()[0] for text in texts(page, SECTION)], ["curves", "train", "val", "test", "Model"])


def test_the_comparison_of_two_arms_shows_exactly_the_parameters_that_differ(page: Page, made: Store) -> None:
    meta, adam = made.run("meta seed 1"), made.run("adam seed 1")
    names = meta.data.params.keys() | adam.data.params.keys()
    rows = [(name, meta.data.params.get(name, ""), adam.data.params.get(name, "")) for name in sorted(names)]
    runs = quote(json.dumps([meta.info.run_id, adam.info.run_id]))
    page.open(f"#/compare-runs?runs={runs}&experiments={quote(json.dumps(['1']))}")
    page.click("[aria-label='Parameters - Show diff only']")
    differ = "\n".join("\t".join(row) for row in rows if row[1] != row[2])
    soon(page, lambda: page.find(TABLES)[1].get_property("innerText"), differ)
    assert "model\tlightning_modules.MetaModule\tlightning_modules.SupervisedModule" in differ


@pytest.mark.parametrize("figure", ["lr_evolution.png", "comparison.png"])
def test_a_link_opens_a_figure_of_the_comparison(figure: str, page: Page, made: Store) -> None:
    run = made.run("compare")
    page.open(how_to_see("1", run.info.run_id, f"/artifacts/{figure}").partition(":5000/")[2])
    # of a PNG
    width = int.from_bytes(made.artifact(run, figure)[16:20])
    soon(page, lambda: [i.get_property("naturalWidth") for i in page.find(f"img[alt='{figure}']")], [width])


def test_the_printed_link_leads_to_the_run(page: Page, made: Store) -> None:
    [link] = re.findall(r"see it .* http://127\.0\.0\.1:5000/(\S+)", made.printed)
    page.open(link)
    soon(page, lambda: texts(page, HEADING), ["compare"])
