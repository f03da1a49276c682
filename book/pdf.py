"""The built book as one PDF file, `_build/book.pdf`: every page of the contents printed by a browser, in their order. `make pdf` runs this after `make book`.

Needs what `make test-browser` needs: selenium, and Chromium with its driver.
"""

import base64
import io
import re
from pathlib import Path

import chromium
from pypdf import PdfWriter

HTML = Path(__file__).parents[1] / "_build" / "html"


def pages():
    """The pages of the book in the order of its contents."""
    links = re.findall(
        r'<a class="reference internal" href="([^"#]+\.html)"',
        (HTML / "book" / "intro.html").read_text(),
    )
    return [
        HTML / "book" / "intro.html",
        *dict.fromkeys((HTML / "book" / link).resolve() for link in links),
    ]


def main():
    browser, book = chromium.start(), PdfWriter()
    for page in pages():
        browser.get(f"file://{page}")
        browser.execute_script(
            "document.querySelectorAll('details').forEach(each => each.open = true)"
        )
        printed = browser.execute_cdp_cmd(
            "Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True}
        )
        book.append(
            io.BytesIO(base64.b64decode(printed["data"])),
            outline_item=browser.title.split(" — ")[0],
        )
    browser.quit()
    book.write(HTML.parent / "book.pdf")
    print(f"{len(book.pages)} pages in {HTML.parent / 'book.pdf'}")


if __name__ == "__main__":
    main()
