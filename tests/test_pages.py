"""Pages: what is laid into the book, and the command that builds it."""

import ast
import os
import subprocess
from types import SimpleNamespace

import pytest

from helpers import store
from helpers.book import pages

INDEX = "_build/html/index.html"
WRITES_PAGES = f"mkdir -p _build/html; echo whole > {INDEX}"


def command_of_the_book():
    """The shell command of the Snakefile's rule `book`, for any profile."""
    rule = (store.ROOT / "Snakefile").read_text().partition("\nrule book:")[2]
    strings = [line.strip() for line in rule.partition("shell:")[2].splitlines()]
    template = ast.literal_eval("(" + "\n".join(strings) + ")")
    return template.format(
        PROFILE="smoke", params=SimpleNamespace(strict="-W"), output=INDEX, log="book.log"
    )


@pytest.fixture
def build(tmp_path):
    """Runs the command in an empty folder, with a script in the place of jupyter-book."""

    def run(script):
        for program, text in (("python", "true"), ("jupyter-book", script)):
            path = tmp_path / "bin" / program
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", command_of_the_book()]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def test_a_build_of_the_book_leaves_its_first_page_and_says_that_it_is_whole(build, tmp_path):
    assert build(WRITES_PAGES).returncode == 0
    assert (tmp_path / INDEX).read_text() == "whole\n"
    assert (tmp_path / "_build" / "whole").exists()


def test_a_jupyter_book_that_writes_nothing_is_an_error_even_where_an_old_page_lies(
    build, tmp_path
):
    build(WRITES_PAGES)
    built = build("exit 0")
    assert built.returncode != 0, "a book of yesterday is no book of today"
    assert f"written no {INDEX}" in built.stdout, "the message names what is missing"
    assert "requirements.txt" in built.stdout, "and where to look"
    assert not (tmp_path / "_build" / "whole").exists()


def test_a_build_that_fails_shows_its_warnings_and_the_next_one_starts_anew(build, tmp_path):
    built = build(f"{WRITES_PAGES}; echo 'WARNING: of Sphinx'; exit 1")
    assert built.returncode != 0
    assert "WARNING: of Sphinx" in built.stdout
    again = build(f"[ ! -e _build ] && {WRITES_PAGES}")
    assert again.returncode == 0, "what the failed build left is gone"


def test_bars_and_parameters_are_left_out_and_computed_sentences_folded():
    sentence = "mean = 1\nMarkdown(f'The mean is {mean}.')"
    widget = {"data": {pages._WIDGET: {}, "text/plain": "bar"}}
    shown = {"data": {"text/plain": "1"}}
    notebook = {
        "metadata": {"widgets": {}},
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]},
            {
                "cell_type": "code",
                "metadata": {"tags": ["injected-parameters"]},
                "source": ["profile = 'tiny'"],
                "outputs": [],
            },
            {
                "cell_type": "code",
                "metadata": {},
                "source": sentence.splitlines(keepends=True),
                "outputs": [widget, shown],
            },
            {"cell_type": "code", "metadata": {}, "source": ["%matplotlib inline"], "outputs": []},
        ],
    }
    pages._prepare_cells(notebook)
    _, parameters, computed, magic = notebook["cells"]
    assert "remove-cell" in parameters["metadata"]["tags"]
    assert computed["outputs"] == [shown], "no progress bar"
    assert computed["metadata"]["tags"] == ["hide-input"]
    assert magic["metadata"] == {}, "a line of IPython is no sentence"
    assert "widgets" not in notebook["metadata"]
