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
from urllib.parse import quote, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium.common.exceptions import TimeoutException

from tests.browser import COURSES, Page, chromium, mlflow_ui
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
CHILDREN = "[data-testid='key-value-Child runs']"
SEARCH = "input[placeholder='Search metric charts']"
TABLES = "table.mlflow-compare-table"  # of the runs, the parameters, the tags
ARMS = [f"{arm} seed {seed}" for arm in ("meta", "adam") for seed in (1, 2)]
UNFOLD = "[role=row] button[data-component-id*='runnamecell']"  # the + before a parent
SHORT = ["--data.batch_size=1000", "--workers", "1"]


class Store(NamedTuple):
    uri: str
    printed: dict[str, str]  # by the commands
    folder: Path

    def runs(self, name: str) -> list[Run]:
        return list(MlflowClient(self.uri).search_runs(["1"], f"attributes.run_name = '{name}'"))

    def artifact(self, run: str, name: str) -> bytes:
        return Path(MlflowClient(self.uri).download_artifacts(run, name, str(self.folder))).read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What a comparison and a tuning left."""
    folder = tmp_path_factory.mktemp("made")
    uri = f"sqlite:///{folder}/mlflow.db"
    compare = ["compare.py", "--seeds", "2", "--optimizers", "meta", "adam", "--output", str(folder / "compare")]
    tune = ["tune.py", "--optimizer", "adam", "--trials", "20"]
    printed = {}
    for command, epochs in ((compare, 3), (tune, 1)):
        words = [sys.executable, str(ROOT / command[0]), *command[1:], f"--trainer.max_epochs={epochs}", *SHORT]
        environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
        done = subprocess.run(words, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        printed[command[0]] = done.stdout
    return Store(uri, printed, folder)


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
    soon(page, lambda: sorted(texts(page, RUN_NAMES)), ["compare", "tune adam"])
    page.find(UNFOLD)[-1].click()  # of the older of the two, the comparison
    soon(page, lambda: sorted(texts(page, RUN_NAMES)), sorted(["compare", "tune adam", *ARMS]))


def test_the_charts_draw_the_validation_loss_and_the_rate_of_each_compared_run(page: Page, made: Store) -> None:
    compared = {made.runs(arm)[0].info.run_id for arm in ARMS}
    [link] = re.findall(r"charts .* http://127\.0\.0\.1:5000/(\S+)", made.printed["compare.py"])
    page.open(link)
    page.until(lambda: page.find(SEARCH))[0].send_keys(COURSES)
    soon(page, page.charts, {"val/loss": compared, "lr": compared})


def test_the_comparison_of_two_arms_shows_exactly_the_parameters_that_differ(page: Page, made: Store) -> None:
    meta, adam = made.runs("meta seed 1")[0], made.runs("adam seed 1")[0]
    names = meta.data.params.keys() | adam.data.params.keys()
    rows = [(name, meta.data.params.get(name, ""), adam.data.params.get(name, "")) for name in sorted(names)]
    runs = quote(json.dumps([meta.info.run_id, adam.info.run_id]))
    page.open(f"#/compare-runs?runs={runs}&experiments={quote(json.dumps(['1']))}")
    page.click("[aria-label='Parameters - Show diff only']")
    differ = "\n".join("\t".join(row) for row in rows if row[1] != row[2])
    soon(page, lambda: page.find(TABLES)[1].get_property("innerText"), differ)
    assert "model\tlightning_modules.MetaModule\tlightning_modules.SupervisedModule" in differ


def test_a_run_shows_its_configuration(page: Page, made: Store) -> None:
    [run, *_] = made.runs("meta seed 1")
    page.open(f"#/experiments/1/runs/{run.info.run_id}/artifacts")
    page.click("[artifact-name='config.yaml']")
    config = made.artifact(run.info.run_id, "config.yaml").decode()
    soon(
        page,
        lambda: [str(e.get_property("textContent")).strip() for e in page.find("code.language-yaml")],
        [config.strip()],
    )


@pytest.mark.parametrize(("name", "figure"), [("compare", "lr_evolution.png"), ("compare", "comparison.png")])
def test_a_run_shows_its_figure(name: str, figure: str, page: Page, made: Store) -> None:
    [run, *_] = made.runs(name)
    page.open(f"#/experiments/1/runs/{run.info.run_id}/artifacts")
    page.click(f"[artifact-name='{figure}']")
    width = int.from_bytes(made.artifact(run.info.run_id, figure)[16:20])  # of a PNG
    soon(page, lambda: [i.get_property("naturalWidth") for i in page.find(f"img[alt='{figure}']")], [width])


def test_a_tuning_lists_its_trials(page: Page, made: Store) -> None:
    [run] = made.runs("tune adam")
    page.open(f"#/experiments/1/runs/{run.info.run_id}")
    page.click(f"{CHILDREN} button")  # "Load more": the first ten are there
    soon(page, lambda: texts(page, f"{CHILDREN} a"), [f"adam trial {number}" for number in reversed(range(20))])


@pytest.mark.parametrize(("command", "name"), [("compare.py", "compare"), ("tune.py", "tune adam")])
def test_the_printed_link_leads_to_the_run(command: str, name: str, page: Page, made: Store) -> None:
    [link] = re.findall(r"see it .* http://127\.0\.0\.1:5000/(\S+)", made.printed[command])
    [run] = made.runs(name)
    page.open(link)
    soon(page, lambda: texts(page, HEADING), [name])
    soon(page, lambda: texts(page, "[data-testid='key-value-Run ID']"), [f"Run ID\n{run.info.run_id}"])


def test_the_pages_ask_this_machine_alone(page: Page) -> None:
    page.open("#/experiments/1/runs?workflowType=machine_learning")
    page.until(lambda: page.find(RUN_NAMES))
    log = page.driver.get_log("performance")  # type: ignore[no-untyped-call]
    events = [json.loads(entry["message"])["message"] for entry in log]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # of all tests before this one too; chrome: and data: leave no machine
    assert {urlsplit(url).netloc for url in asked if url.startswith(("http", "ws"))} == {urlsplit(page.address).netloc}
