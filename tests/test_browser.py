"""The built book in a browser.

No request leaves a page, nothing is wider than a phone, mathematics is drawn, axe finds nothing.
Run after `make book`.
"""

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
# Those of sphinx-book-theme, and the roles that docutils gives to a bibliography; the content is
# ours.
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
    """A page of the book, drawn, without network; the browser's logs hold what it did."""
    show(browser, 1280)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"file://{HTML / request.param}")
    browser.execute_async_script("""
        const done = arguments[0];
        const ready = window.MathJax && MathJax.startup && MathJax.startup.promise;
        Promise.resolve(ready).then(() => done())""")
    return browser


def show(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def test_no_request_leaves_the_page_and_the_console_is_silent(page):
    requests = re.findall(
        r'"Network.requestWillBeSent".*?"url":"([^"]+)"',
        " ".join(line["message"] for line in page.get_log("performance")),
    )
    assert requests, "the page itself was requested"
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == [], (
        "readable offline"
    )
    errors = [
        line["message"]
        for line in page.get_log("browser")
        if line["level"] == "SEVERE" and "Got invalid theme mode" not in line["message"]
    ]
    assert errors == [], (
        "errors in the console, but for the theme's on a first visit, when no mode was chosen yet"
    )


def test_nothing_is_wider_than_a_phone(page):
    show(page, PHONE)
    width, seen, elements = page.execute_script("""
        const {clientWidth, scrollWidth} = document.documentElement;
        const isWide = each => each.getBoundingClientRect().right > clientWidth + 1;
        const wide = scrollWidth > clientWidth
          ? [...document.querySelectorAll("main *")].filter(isWide).slice(0, 5) : [];
        return [scrollWidth, clientWidth, wide.map(each => each.outerHTML.slice(0, 120))]""")
    assert width <= seen, f"the page is {width} wide where {seen} are seen: {elements}"


def test_mathematics_is_drawn_and_every_figure_is_there(page):
    unread = page.execute_script("""
        const errors = "mjx-merror, [data-mjx-error]";
        return [...document.querySelectorAll(`.math, ${errors}`)]
          .filter(each => each.matches(errors) || !each.querySelector("mjx-container"))
          .map(each => each.textContent.slice(0, 80))""")
    assert unread == [], "mathematics that is shown as it was written"
    blank = page.execute_script("""
        return [...document.querySelectorAll('main img')]
          .filter(each => !each.naturalWidth).map(each => each.src.slice(-60))""")
    assert blank == [], "figures without a picture"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_of_ours(page, theme):
    page.execute_script(
        "const {dataset} = document.documentElement; dataset.theme = dataset.mode = arguments[0]",
        theme,
    )
    time.sleep(0.6)  # the theme answers to a change after a third of a second
    page.execute_script(AXE)
    violations = page.execute_async_script(
        """
        const [names, done] = arguments;
        const rules = Object.fromEntries(names.map(name => [name, {enabled: false}]));
        const about = ({id, nodes}) =>
          [id, nodes.length, nodes[0].html.slice(0, 200), nodes[0].failureSummary.slice(0, 300)];
        axe.run("main", {rules, resultTypes: ["violations"]})
          .then(result => done(result.violations.map(about)))""",
        OF_THE_THEME,
    )
    assert violations == [], "\n".join(map(str, violations))


def test_explorers_answer_to_the_keyboard(browser):
    moved = 0
    for name in PAGES:
        if 'class="explorer' not in (HTML / name).read_text():
            continue
        show(browser, 1280)
        browser.get(f"file://{HTML / name}")
        controls = "[data-part=live] :is(select, input)"
        for card in browser.find_elements(By.CLASS_NAME, "explorer"):
            for control in card.find_elements(By.CSS_SELECTOR, controls):
                html, value = card.get_attribute("innerHTML"), control.get_attribute("value")
                is_slider = control.tag_name == "input"
                control.send_keys(Keys.ARROW_RIGHT if is_slider else Keys.ARROW_DOWN)
                assert control.get_attribute("value") != value, (
                    f"{name}: a key moves {control.get_attribute('id')}"
                )
                assert card.get_attribute("innerHTML") != html, f"{name}: and the card follows"
                moved += 1
    assert moved >= 8, "all explorers were tried"
