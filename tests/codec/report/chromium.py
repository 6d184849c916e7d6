"""Chromium for tests of the report, driven through its DevTools; where there is none, why not."""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Debian's name, Ubuntu's, and Google's own builds.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Set by `make report-check`: a check that was asked for may not be skipped.
REQUIRED = "LIC_CHROMIUM_REQUIRED"


def missing() -> str:
    """Return what is not there, and how to get it; empty where all is."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (pip install '.[dev]')"
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium is installed (apt-get install chromium)"
    if not shutil.which("chromedriver"):
        return "no chromedriver is installed (apt-get install chromium-driver)"
    return ""


@contextmanager
def chromium() -> Iterator["Chrome"]:
    """Give a headless Chromium that logs its console and its requests."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Chromium's sandbox refuses to be the administrator's.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: "Chrome", page: Path, *, width: int = 1440, theme: str = "light") -> None:
    """Open a page as a window of this width and a system of this theme show it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    # A page that scrolls gently moves away below a click.
    media = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.as_uri())
    assert driver.execute_script("return document.documentElement.dataset.ready") == "true"


def log_of(driver: "Chrome", kind: str) -> list[dict[str, Any]]:
    """Return what was logged since the last call, in the "browser" or for its "performance"."""
    entries: list[dict[str, Any]] = driver.execute("getLog", {"type": kind})["value"]
    return entries


def requests(driver: "Chrome") -> list[str]:
    """Return the addresses that were asked for since the last call, without what was blocked."""
    found: dict[str, str] = {}
    for entry in log_of(driver, "performance"):
        message = json.loads(entry["message"])["message"]
        values = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            found[values["requestId"]] = values["request"]["url"]
        # The log tells what a page wanted, too, before its policy is asked.
        if message["method"] == "Network.loadingFailed" and values.get("blockedReason") == "csp":
            found.pop(values["requestId"], None)
    return list(found.values())
