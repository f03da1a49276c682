"""The built book in a browser: no request leaves a page, nothing is wider than a phone, mathematics is drawn, axe finds nothing. Run after `make book`."""

import re
import time
from pathlib import Path

import pytest

from helpers import store

selenium = pytest.importorskip(
    "selenium", reason="`make test-browser` installs what these tests need"
)
axe_core_python = pytest.importorskip("axe_core_python")

import chromium  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.browser
HTML = store.ROOT / "_build" / "html"
PAGES = sorted(str(path.relative_to(HTML)) for path in HTML.glob("book/**/*.html"))
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
# Those of sphinx-book-theme, and the roles that docutils gives to a bibliography; the content is ours.
OF_THE_THEME = [
    "label-content-name-mismatch",
    "region",
    "aria-allowed-role",
    "aria-roles",
    "aria-required-children",
]
PHONE = 360


@pytest.fixture(scope="module")
def browser():
    started = chromium.start(
        "--host-resolver-rules=MAP * ~NOTFOUND",
        **{"goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}},
    )
    yield started
    started.quit()


@pytest.fixture(params=PAGES)
def page(request, browser):
    """A page of the book, drawn, without network; its requests and what the console said are kept beside it."""
    show(browser, 1280)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"file://{HTML / request.param}")
    browser.execute_async_script("""
        const done = arguments[0], ready = window.MathJax && MathJax.startup && MathJax.startup.promise;
        Promise.resolve(ready).then(() => done())""")
    return browser


def show(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def test_no_request_leaves_the_page_and_the_console_is_silent(page):
    asked = re.findall(
        r'"Network.requestWillBeSent".*?"url":"([^"]+)"',
        " ".join(line["message"] for line in page.get_log("performance")),
    )
    assert asked, "the page itself was asked for"
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [], (
        "readable offline"
    )
    said = [
        line["message"]
        for line in page.get_log("browser")
        if line["level"] == "SEVERE" and "Got invalid theme mode" not in line["message"]
    ]
    assert said == [], (
        "errors in the console, but for the theme's on a first visit, when no mode was chosen yet"
    )


def test_nothing_is_wider_than_a_phone(page):
    show(page, PHONE)
    wide = page.execute_script("""
        const width = document.documentElement.clientWidth, found = [];
        if (document.documentElement.scrollWidth > width)
          for (const each of document.querySelectorAll("main *"))
            if (each.getBoundingClientRect().right > width + 1 && found.length < 5) found.push(each.outerHTML.slice(0, 120));
        return [document.documentElement.scrollWidth, width, found]""")
    assert wide[0] <= wide[1], f"the page is {wide[0]} wide where {wide[1]} are seen: {wide[2]}"


def test_mathematics_is_drawn_and_every_figure_is_there(page):
    left = page.execute_script("""return [...document.querySelectorAll(".math, mjx-merror, [data-mjx-error]")]
        .filter(each => each.matches("mjx-merror, [data-mjx-error]") || !each.querySelector("mjx-container")).map(each => each.textContent.slice(0, 80))""")
    assert left == [], "mathematics that is shown as it was written"
    blank = page.execute_script(
        "return [...document.querySelectorAll('main img')].filter(each => !each.naturalWidth).map(each => each.src.slice(-60))"
    )
    assert blank == [], "figures without a picture"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_of_ours(page, theme):
    page.execute_script(
        "document.documentElement.dataset.theme = document.documentElement.dataset.mode = arguments[0]",
        theme,
    )
    time.sleep(0.6)  # the theme answers to a change after a third of a second
    page.execute_script(AXE)
    found = page.execute_async_script(
        """
        const done = arguments[1], rules = Object.fromEntries(arguments[0].map(name => [name, {enabled: false}]));
        axe.run("main", {rules, resultTypes: ["violations"]}).then(result => done(result.violations.map(each =>
          [each.id, each.nodes.length, each.nodes[0].html.slice(0, 200), each.nodes[0].failureSummary.slice(0, 300)])))""",
        OF_THE_THEME,
    )
    assert found == [], "\n".join(map(str, found))


def test_explorers_answer_to_the_keyboard(browser):
    moved = 0
    for name in PAGES:
        if 'class="explorer' not in (HTML / name).read_text():
            continue
        show(browser, 1280)
        browser.get(f"file://{HTML / name}")
        for card in browser.find_elements(By.CLASS_NAME, "explorer"):
            for control in card.find_elements(
                By.CSS_SELECTOR, "[data-part=live] :is(select, input)"
            ):
                before = card.get_attribute("innerHTML"), control.get_attribute("value")
                control.send_keys(
                    Keys.ARROW_RIGHT if control.tag_name == "input" else Keys.ARROW_DOWN
                )
                assert control.get_attribute("value") != before[1], (
                    f"{name}: a key moves {control.get_attribute('id')}"
                )
                assert card.get_attribute("innerHTML") != before[0], f"{name}: and the card follows"
                moved += 1
    assert moved >= 8, "all explorers were tried"
