"""Sphinx extension of the book: buttons of the notebook pages that the theme has not.

Every such page can be downloaded as the `.py` file that it is made from. Where BOOK_REPOSITORY holds the address of the repository on
GitHub, as when the book is published, pages can also be edited there and run on Binder or Colab, from the branch `executed`, to which the
workflow that publishes the book pushes the executed notebooks (for Colab with a cell that fetches the book, `book/colab.py`); they are not
tracked anywhere else.
"""

import os
import shutil
from pathlib import Path

PAGES = "book/notebooks/"


def add_buttons(app, pagename, templatename, context, doctree):
    if not pagename.startswith(PAGES):
        return
    name, repository = (
        pagename.removeprefix(PAGES),
        os.environ.get("BOOK_REPOSITORY", "").rstrip("/"),
    )
    downloads = next(
        button["buttons"]
        for button in context["header_buttons"]
        if button.get("label") == "download-buttons"
    )
    downloads.insert(
        1,
        _link(
            f"{context['pathto']('_sources', 1)}/notebooks/{name}.py",
            ".py",
            "Download source as Python",
            "fas fa-file-code",
        ),
    )
    if repository:
        place = repository.removeprefix("https://github.com/")
        links = [
            _link(
                f"https://mybinder.org/v2/gh/{place}/executed?urlpath=lab/tree/{pagename}.ipynb",
                "Binder",
                "Launch on Binder",
                "fas fa-rocket",
            ),
            _link(
                f"https://colab.research.google.com/github/{place}/blob/executed/{pagename}.ipynb",
                "Colab",
                "Open in Colab",
                "fas fa-cloud",
            ),
            _link(
                f"{repository}/edit/main/notebooks/{name}.py",
                "Suggest edit",
                "Edit this page",
                "fas fa-pencil-alt",
            ),
        ]
        group = {
            "type": "group",
            "tooltip": "Run or edit this page",
            "icon": "fas fa-rocket",
            "buttons": links,
            "label": "launch-buttons",
        }
        context["header_buttons"].insert(0, group)


def _link(url, text, tooltip, icon):
    return {"type": "link", "url": url, "text": text, "tooltip": tooltip, "icon": icon}


def copy_sources(app, exception):
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir) / "_sources" / "notebooks"
        target.mkdir(parents=True, exist_ok=True)
        for source in (Path(app.srcdir) / "notebooks").glob("*.py"):
            shutil.copy2(source, target)


def setup(app):
    app.connect("html-page-context", add_buttons, priority=950)
    app.connect("build-finished", copy_sources)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
