"""Chromium without a screen, as Debian packages it, driven through its own driver."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root, there is no other way
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",  # 3-D graphics without a graphics card
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",  # or the page still scrolls when something is clicked
    "--window-size=1200,3000",
)
SECONDS = 30.0  # until a page is ready, on a busy machine


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; a test without one is skipped, with the reason."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    browser = webdriver.Chrome(options=options, service=service)
    try:
        yield browser
    finally:
        browser.quit()


def open_report(browser: Any, file: Path) -> None:
    """Opens a report and waits until its viewer is ready."""
    browser.get(file.resolve().as_uri())
    ready = "return document.documentElement.dataset.ready === 'true'"
    fault = "return document.getElementById('viewer-fault').textContent"
    wait_for(lambda: browser.execute_script(ready) or browser.execute_script(fault))
    assert browser.execute_script(fault) == ""


def wait_for(holds: Callable[[], Any]) -> None:
    """Waits until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "the page did not get that far"
        time.sleep(0.05)
