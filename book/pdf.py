"""The built book as one PDF file, `_build/book.pdf`: every page of the contents, in their order.

The pages are printed by a browser. `make pdf` runs this after `make book`; it needs what `make
test-browser` needs: selenium, and Chromium with its driver.
"""

import base64
import io
import re
from pathlib import Path

import chromium
from pypdf import PdfWriter

HTML = Path(__file__).parents[1] / "_build" / "html"
_OPEN_ALL_FOLDS = "document.querySelectorAll('details').forEach(each => each.open = true)"


def pages() -> list[Path]:
    """The pages of the book in the order of its contents."""
    first = HTML / "book" / "intro.html"
    links = re.findall(
        r'<a class="reference internal" href="([^"#]+\.html)"',
        first.read_text(),
    )
    return [first, *dict.fromkeys((first.parent / link).resolve() for link in links)]


def main() -> None:
    """Print all pages and write the PDF file beside the built book."""
    browser, book = chromium.start(), PdfWriter()
    for page in pages():
        browser.get(f"file://{page}")
        browser.execute_script(_OPEN_ALL_FOLDS)
        options = {"printBackground": True, "preferCSSPageSize": True}
        printed = browser.execute_cdp_cmd("Page.printToPDF", options)
        content = io.BytesIO(base64.b64decode(printed["data"]))
        book.append(content, outline_item=browser.title.split(" — ")[0])
    browser.quit()
    path = HTML.parent / "book.pdf"
    book.write(path)
    print(f"{len(book.pages)} pages in {path}")


if __name__ == "__main__":
    main()
