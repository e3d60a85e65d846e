"""MLflow's UI in a browser."""

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

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.wait import WebDriverWait

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
# seconds that a page may take
LIMIT = 60
# each chart, by its title, with the runs of which there is a path of more than a point
DRAWN = """
    const drawn = plot => [...plot.querySelectorAll("g.trace")].filter(trace => trace.querySelector(".js-line[d*=L]"));
    const cards = [...document.querySelectorAll("[data-testid=experiment-view-compare-runs-card]")];
    const runs = card => drawn(card).map(trace => trace.__data__[0].trace._input.uuid);
    return cards.map(card => [card.querySelector("h4").title, runs(card)]);
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

    def charts(self) -> list[tuple[str, set[str]]]:
        """Return for each chart, in the order of the page, its title and the runs (ids) of which it has a line."""
        return [(title, set(runs)) for title, runs in self.driver.execute_script(DRAWN)]
