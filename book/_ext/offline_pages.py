"""Sphinx extension of the book: pages that need no network, are never stale, are drawn before their scripts are read, and hide no end of a line.

Jupyter Book always loads sphinx-thebe, which puts the address of a script on unpkg.com into every page, in some pages twice
(a JavaScript error). The book has no live cells, so these scripts are taken out again.

The introduction shows numbers glued from notebooks; Sphinx does not know that, and would keep the old ones when only a
notebook changed.

Themes put scripts into the head of a page, the icons alone 1.5 MB, for which a browser waits before it draws anything. And they hide
the end of a long line of code behind a scroll bar; here it is broken, and goes on further in than it began.
"""

import re
from pathlib import Path

GLUING = ("book/intro",)


def _is_thebe(script):
    text = f"{getattr(script, 'filename', None) or script} {(getattr(script, 'attributes', None) or {}).get('body') or ''}"
    return "sphinx-thebe" in text or "THEBE_JS_URL" in text


def drop_thebe(app, pagename, templatename, context, doctree):
    """Take sphinx-thebe's scripts and style out of the page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]


def drop_thebe_nodes(app, doctree, docname):
    """Take out the two raw script nodes that sphinx-thebe appends to each document."""
    for node in [node for node in doctree.children if node.tagname == "raw"]:
        if "text/x-thebe-config" in node.astext() or "kernelName = " in node.astext():
            doctree.remove(node)


def reread_gluing_pages(app, env, added, changed, removed):
    """Pages to read again because a notebook that they may glue from has changed."""
    return (
        [page for page in GLUING if page in env.found_docs]
        if any(name.startswith("book/notebooks/") for name in added | changed)
        else []
    )


def finish_pages(app, exception):
    """Let no script hold up a page, but the small one with its options, which lines in the page use as they are read; make each line of code a block.

    Folds are read out by their own words instead of "Toggle hidden content".
    """
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            head, end, body = page.read_text().partition("</head>")
            body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
            head = re.sub(
                r"<script (?=[^>]*\bsrc=)(?![^>]*(?:\bdefer\b|documentation_options))",
                "<script defer ",
                head,
            )
            page.write_text(
                head
                + end
                + re.sub(
                    r"(<div class=\"highlight\"><pre>)((?:(?!<span class=\"line\").)*?)(</pre>)",
                    _by_line,
                    body,
                    flags=re.DOTALL,
                )
            )


def _by_line(block):
    """A block of code with each line in a span that hangs by its own indentation and a little more."""
    start, code, end = block.groups()
    lines = []
    for line in code.removesuffix("\n").split("\n"):  # Pygments closes its spans at the end of each
        text = re.sub(r"<[^>]*>", "", line)
        hang = len(text) - len(text.lstrip(" ")) + 4
        lines.append(
            f'<span class="line" style="padding-left: {hang}ch; text-indent: -{hang}ch">{line}\n</span>'
        )
    return start + "".join(lines) + end


def setup(app):
    app.connect("env-get-outdated", reread_gluing_pages)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("doctree-resolved", drop_thebe_nodes, priority=900)
    app.connect("build-finished", finish_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
