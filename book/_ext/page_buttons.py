"""Sphinx extension of the book: buttons of the notebook pages that the theme has not.

Every such page can be downloaded as the `.py` file that it is made from. Where BOOK_REPOSITORY
holds the address of the repository on GitHub, as when the book is published, pages can also be
edited there and run on Binder or Colab, from the branch `executed`, to which the workflow that
publishes the book pushes the executed notebooks (for Colab with a cell that fetches the book,
`book/colab.py`); they are not tracked anywhere else.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from docutils.nodes import document
from sphinx.application import Sphinx

PAGES = "book/notebooks/"


def add_buttons(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: document | None,
) -> None:
    """Add the download as `.py` and, where the repository's address is known, the other buttons."""
    if not pagename.startswith(PAGES):
        return
    name = pagename.removeprefix(PAGES)
    downloads = next(
        button["buttons"]
        for button in context["header_buttons"]
        if button.get("label") == "download-buttons"
    )
    source = f"{context['pathto']('_sources', 1)}/notebooks/{name}.py"
    downloads.insert(1, _link(source, ".py", "Download source as Python", "fas fa-file-code"))
    if repository := os.environ.get("BOOK_REPOSITORY", "").rstrip("/"):
        group = {
            "type": "group",
            "tooltip": "Run or edit this page",
            "icon": "fas fa-rocket",
            "buttons": _launch_buttons(repository, pagename, name),
            "label": "launch-buttons",
        }
        context["header_buttons"].insert(0, group)


def _launch_buttons(repository: str, pagename: str, name: str) -> list[dict[str, str]]:
    """Buttons that run or edit a page of a repository on GitHub."""
    path = repository.removeprefix("https://github.com/")
    binder = f"https://mybinder.org/v2/gh/{path}/executed?urlpath=lab/tree/{pagename}.ipynb"
    colab = f"https://colab.research.google.com/github/{path}/blob/executed/{pagename}.ipynb"
    edit = f"{repository}/edit/main/notebooks/{name}.py"
    return [
        _link(binder, "Binder", "Launch on Binder", "fas fa-rocket"),
        _link(colab, "Colab", "Open in Colab", "fas fa-cloud"),
        _link(edit, "Suggest edit", "Edit this page", "fas fa-pencil-alt"),
    ]


def _link(url: str, text: str, tooltip: str, icon: str) -> dict[str, str]:
    return {"type": "link", "url": url, "text": text, "tooltip": tooltip, "icon": icon}


def copy_sources(app: Sphinx, exception: Exception | None) -> None:
    """Copy the notebooks' `.py` files to where the buttons lead."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir) / "_sources" / "notebooks"
        target.mkdir(parents=True, exist_ok=True)
        for source in (Path(app.srcdir) / "notebooks").glob("*.py"):
            shutil.copy2(source, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the functions above; Sphinx calls this."""
    app.connect("html-page-context", add_buttons, priority=950)
    app.connect("build-finished", copy_sources)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
