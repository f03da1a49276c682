"""Sphinx extension of the book: takes back what Jupyter Book and its theme do to a book on disk.

- A page needs no network. Jupyter Book always loads sphinx-thebe, which puts the address of a
  script on unpkg.com into every page, in some pages twice (a JavaScript error). The book has no
  live cells, so these scripts are taken out again.
- No page is stale. The introduction shows numbers glued from notebooks; Sphinx does not know that,
  and would keep the old ones when only a notebook changed.
- Pages are drawn before their scripts are read. Themes put scripts into the head of a page, the
  icons alone 1.5 MB, for which a browser waits before it draws anything.
- No end of a line is hidden. Themes hide the end of a long line of code behind a scroll bar; here
  it is broken, and goes on further in than it began (`book.css`).
"""

import re
from pathlib import Path
from typing import Any

from docutils.nodes import document
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

GLUING = ("book/intro",)  # pages that glue numbers from notebooks

# A script in the head that neither waits already nor has to be read at once: the small one with
# Sphinx's options is used by lines in the page.
_BLOCKING_SCRIPT = re.compile(
    r"<script (?=[^>]*\bsrc=)(?![^>]*(?:\bdefer\b|documentation_options))"
)
# A block of code without spans of lines: its start, its code and its end.
_CODE = re.compile(
    r"(<div class=\"highlight\"><pre>)((?:(?!<span class=\"line\").)*?)(</pre>)", re.DOTALL
)
_HANG = 4  # characters by which a broken line goes on further in than it began


def _is_thebe(script: Any) -> bool:
    attributes = getattr(script, "attributes", None) or {}
    text = f"{getattr(script, 'filename', None) or script} {attributes.get('body') or ''}"
    return "sphinx-thebe" in text or "THEBE_JS_URL" in text


def drop_thebe(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: document | None,
) -> None:
    """Take sphinx-thebe's scripts and style out of the page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]


def drop_thebe_nodes(app: Sphinx, doctree: document, docname: str) -> None:
    """Take out the two raw script nodes that sphinx-thebe appends to each document."""
    for node in [node for node in doctree.children if node.tagname == "raw"]:
        if "text/x-thebe-config" in node.astext() or "kernelName = " in node.astext():
            doctree.remove(node)


def reread_gluing_pages(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Pages to read again because a notebook that they may glue from has changed."""
    if not any(name.startswith("book/notebooks/") for name in added | changed):
        return []
    return [page for page in GLUING if page in env.found_docs]


def finish_pages(app: Sphinx, exception: Exception | None) -> None:
    """Let no script hold up a page, and make each line of code a block.

    Folds are read out by their own words instead of "Toggle hidden content".
    """
    if exception is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        head, end, body = page.read_text().partition("</head>")
        head = _BLOCKING_SCRIPT.sub("<script defer ", head)
        body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        page.write_text(head + end + _CODE.sub(_by_line, body))


def _by_line(block: re.Match[str]) -> str:
    """A block of code with each line in a span, which says by how much the line hangs."""
    start, code, end = block.groups()
    lines = []
    for line in code.removesuffix("\n").split("\n"):  # Pygments closes its spans at the end of each
        text = re.sub(r"<[^>]*>", "", line)
        hang = len(text) - len(text.lstrip(" ")) + _HANG
        lines.append(f'<span class="line" style="--hang: {hang}ch">{line}\n</span>')
    return start + "".join(lines) + end


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the functions above; Sphinx calls this."""
    app.connect("env-get-outdated", reread_gluing_pages)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("doctree-resolved", drop_thebe_nodes, priority=900)
    app.connect("build-finished", finish_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
