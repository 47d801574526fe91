"""A page of ours in headless Chromium, through its driver."""

import base64
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.left_behind import none_left_behind
from tests.ports import number_of, reserved_port

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
DESKTOP, PHONE = (1440, 900), (390, 844)
# Long, as a busy machine may take long.
_PATIENCE_SECONDS = 100.0
# Chromium has no sandbox for root, and is to ask nothing of a network.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None or importlib.util.find_spec("selenium") is None,
    reason="Chromium, its driver or selenium is not installed: apt-get install chromium chromium-driver",
)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a driver of selenium.

    Raises:
        AssertionError: Chromium or its driver does not end with it.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with none_left_behind(), reserved_port() as port:
        service = webdriver.ChromeService(DRIVER, port=number_of(port))
        driver = webdriver.Chrome(options=options, service=service)
        driver.set_script_timeout(_PATIENCE_SECONDS)
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: Any, path: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
    """Open a file at a size of the window, light or dark."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(path.absolute().as_uri())


def comes_true(condition: Callable[[], bool]) -> bool:
    """Wait until something is so, and return whether it is.

    What a key or a click asks for may come some time after it: Chromium closes a dialog, moves the focus and
    submits a form when it gets to it.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while not (is_so := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return is_so


def load_everything(driver: Any) -> None:
    """Open what is closed, and wait until every image is loaded or has failed."""
    driver.execute_async_script(
        """
        const done = arguments[0];
        for (const details of document.querySelectorAll("details")) details.open = true;
        const images = [...document.querySelectorAll("img[src]")];
        for (const image of images) image.loading = "eager";
        const loaded = (image) => image.complete || new Promise((end) => {
          image.addEventListener("load", end);
          image.addEventListener("error", end);
        });
        Promise.all(images.map(loaded)).then(() => done());
        """
    )


def screenshot(driver: Any, path: Path) -> None:
    """Write a picture of the whole page."""
    load_everything(driver)
    width, height = driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 8000), "scale": 1}
    taken = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
    )
    path.write_bytes(base64.b64decode(taken["data"]))


def errors(driver: Any) -> list[str]:
    """Return what the console has told since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def faults(driver: Any) -> list[str]:
    """Return what axe-core finds wrong: serious and critical violations, with the places."""
    from axe_core_python.selenium import Axe

    found = Axe().run(driver)["violations"]
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]
