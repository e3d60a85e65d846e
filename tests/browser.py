"""MLflow's UI in a browser: `python -m tests.browser OUTPUT.png --store URI` makes the README's picture of it."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.wait import WebDriverWait

from reporting.figures import COLORS
from tracking.store import EXPERIMENT

T = TypeVar("T")
OPTIONS = [
    "--headless=new",
    # Chromium has none for root
    "--no-sandbox",
    "--disable-background-networking",
    # the UI must need no other machine
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # without a mouse the charts' tools lie over the curves
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
]
# by date, the runs of a comparison are folded
BEST_FIRST = "orderByKey=metrics.%60test%2Floss%60&orderByAsc=true"
CHARTS = f"runs?workflowType=machine_learning&compareRunsMode=CHART&{BEST_FIRST}"
# MLflow's search among the charts takes a regular expression
COURSES = "^(val/loss|lr)$"
# seconds that a page may take
LIMIT = 60
# each chart, by its title, with the runs of which there is a path of more than a point
DRAWN = """
    const drawn = plot => [...plot.querySelectorAll("g.trace")].filter(trace => trace.querySelector(".js-line[d*=L]"));
    const cards = [...document.querySelectorAll("[data-testid=experiment-view-compare-runs-card]")];
    return Object.fromEntries(cards.map(card => [
        card.querySelector("h4").title, drawn(card).map(trace => trace.__data__[0].trace._input.uuid),
    ]));
"""
# what a user would click together: two wide charts, the rate on a log scale, no assistant, and the colours of our
# figures (MLflow's own come from the runs' ids, some twice)
ARRANGE = """
    const key = Object.keys(localStorage).find(key => key.includes("ExperimentPage-"));
    const state = JSON.parse(localStorage[key]);
    state.chartsSearchFilter = arguments[0];
    state.compareRunSections.forEach(section => Object.assign(section, {columns: 1, cardHeight: 295}));
    state.compareRunCharts.find(chart => chart.metricKey == "lr").scaleType = "log";
    localStorage[key] = JSON.stringify(state);
    localStorage.experimentRunColors = JSON.stringify(arguments[1]);
    localStorage["mlflow.assistant.panelOpen_v1"] = "false";
"""


@contextmanager
def mlflow_ui(uri: str) -> Iterator[str]:
    """Serve the store on a free port, and yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri", uri, "--port", port]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level=warning"]
    # six processes that no page here needs
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    ui = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(ui.pid, signal.SIGTERM)
        ui.wait(20)


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Yield a headless Chromium, 1600 x 1000, with an empty profile."""
    options = ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for option in [*OPTIONS, f"--user-data-dir={profile}"]:
            options.add_argument(option)
        # named: Selenium would download one
        driver = Chrome(options, Service(shutil.which("chromedriver")))
        # of the page: a window's size has its frame in it
        size = {"width": 1600, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        try:
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            yield driver
        finally:
            driver.quit()


class Page:
    """What the browser shows of the UI at an address."""

    def __init__(self, driver: Chrome, address: str) -> None:
        self.driver, self.address = driver, address
        # refused until the server is up
        self.until(lambda: self.open("health"))

    def open(self, path: str) -> bool:
        """Load a page, not from the one before: after a change behind the `#` alone, that would stay for a while."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{path}")
        return True

    def until(self, look: Callable[[], T]) -> T:
        """Return what `look` sees, once it sees something."""
        # not there, or redrawn
        waiting = WebDriverWait(self.driver, LIMIT, ignored_exceptions=[WebDriverException])
        return waiting.until(lambda _: look())

    def find(self, css: str) -> list[WebElement]:
        """Return the elements that are there now."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        """Click the first such element, once it takes clicks."""
        WebDriverWait(self.driver, LIMIT).until(element_to_be_clickable((By.CSS_SELECTOR, css))).click()

    def charts(self) -> dict[str, set[str]]:
        """Return for each chart, by its title, the runs (ids) of which it has a line."""
        return {title: set(runs) for title, runs in self.driver.execute_script(DRAWN).items()}


def screenshot(path: str, uri: str) -> None:
    """Save a picture of the charts of the experiment: validation loss and rate, a run an arm."""
    client, wanted = MlflowClient(uri), "tags.seed = '1'"
    [experiment] = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    runs = [run.info.run_id for run in client.search_runs([experiment.experiment_id], wanted)]
    charts = f"#/experiments/{experiment.experiment_id}/{CHARTS}&searchFilter={quote(wanted)}"
    with mlflow_ui(uri) as address, chromium() as driver:
        page = Page(driver, address)
        page.open(charts)
        page.until(page.charts)
        # the same origin, and no script that would write its own state back
        page.open("health")
        driver.execute_script(ARRANGE, COURSES, dict(zip(reversed(runs), COLORS, strict=False)))
        page.open(charts)
        page.until(lambda: page.charts() == {"val/loss": set(runs), "lr": set(runs)})
        driver.save_screenshot(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="tests.browser", description=__doc__)
    parser.add_argument("output", help="the PNG")
    parser.add_argument("--store", required=True, help="sqlite:///... of a comparison")
    own = parser.parse_args()
    screenshot(own.output, own.store)
