"""Chromium without a window, driven by selenium: for the book's tests in a browser and for its PDF."""

import shutil

from selenium.webdriver import Chrome, ChromeOptions, ChromeService


def start(*arguments, **capabilities):
    """A browser that reads pages from disk; FileNotFoundError where Chromium or its driver is not installed."""
    binary, driver = (
        next((found for name in names if (found := shutil.which(name))), None)
        for names in (
            ("/usr/lib/chromium/chromium", "chromium", "google-chrome"),
            ("chromedriver",),
        )
    )
    if not (binary and driver):
        raise FileNotFoundError(
            "no Chromium with its driver is installed: on Debian, apt-get install chromium chromium-driver"
        )
    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
        *arguments,
    ):
        options.add_argument(argument)
    for name, value in capabilities.items():
        options.set_capability(name, value)
    return Chrome(options=options, service=ChromeService(driver))
