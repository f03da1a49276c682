"""Chromium without a window, driven by selenium: for the book's tests in a browser and its PDF."""

import shutil
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

_BROWSERS = ("/usr/lib/chromium/chromium", "chromium", "google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
)


def start(*arguments: str, **capabilities: Any) -> Chrome:
    """A browser that reads pages from disk.

    arguments: further ones of the command line. Raises FileNotFoundError where Chromium or its
    driver is not installed.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        raise FileNotFoundError(
            "no Chromium with its driver is installed: "
            "on Debian, apt-get install chromium chromium-driver"
        )
    options = ChromeOptions()
    options.binary_location = browser
    for argument in (*_OPTIONS, *arguments):
        options.add_argument(argument)
    for name, value in capabilities.items():
        options.set_capability(name, value)
    return Chrome(options=options, service=ChromeService(driver))
