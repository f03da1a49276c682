"""Anatomy of the notebook sources; the numbers are the rules of CONTRIBUTING.md."""

import json
import re
import statistics
import subprocess

import jupytext
import pytest

from helpers import profiles, store
from helpers.book import figures, pipeline

SOURCES = sorted((store.ROOT / "notebooks").glob("*.py"))
NOTEBOOKS = {path.stem: jupytext.read(path) for path in SOURCES}


@pytest.fixture(params=NOTEBOOKS)
def name(request):
    return request.param


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == kind]


def lines_of(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def prose(name):
    return "\n".join(cell.source for cell in cells(name, "markdown"))


FIGURES = set(figures.__all__) - {"COLOURS", "LABELS", "MARKERS", "table", "use_style"}


def draws(cell):
    if "explorers." in cell.source:  # a card with pictures of its own, each with its alt text
        return False
    return "subplots(" in cell.source or any(f"figures.{name}(" in cell.source for name in FIGURES)


def test_the_pipeline_knows_what_every_notebook_reads_and_leaves_out_what_a_profile_cannot_show():
    tiny = profiles.load("tiny")
    assert pipeline.notebooks(tiny) == list(NOTEBOOKS), (
        "the default study fills the whole book, in its order"
    )
    controls = {name: group for name, group in tiny.controls.items() if name != "self-generated"}
    without = tiny.model_copy(update={"controls": controls})
    assert set(NOTEBOOKS) - set(pipeline.notebooks(without)) == {"20_on_policy", "22_pretrained"}, (
        "the two pages that read the base's own rollouts"
    )
    assert not any("20_on_policy" in file for file in pipeline.artefacts(without, "23_verdict")), (
        "the verdict does without them"
    )


def test_one_parameters_cell_and_a_kernel(name):
    tagged = [
        cell for cell in NOTEBOOKS[name].cells if "parameters" in cell.metadata.get("tags", [])
    ]
    assert len(tagged) == 1, "papermill needs one cell to replace"
    assert tagged[0].source.startswith("profile = "), "the profile is the one dial"
    assert NOTEBOOKS[name].metadata["kernelspec"]["name"] == "python3", (
        "launch buttons vanish without a kernel"
    )


def test_every_figure_has_caption_alt_text_name_and_discussion(name):
    text = "".join(cell.source for cell in NOTEBOOKS[name].cells)
    for cell in cells(name, "code"):
        if draws(cell):
            about = cell.metadata.get("mystnb", {})
            assert len(about["image"]["alt"].split()) >= 6, (
                f"alt text must say what is seen: {cell.source[:60]}"
            )
            assert about["figure"]["caption"].endswith("."), "a caption is a sentence"
            assert f"`{about['figure']['name']}`" in text, (
                f"{about['figure']['name']} is not discussed in the prose"
            )


def test_figure_names_and_equation_labels_are_unique_in_the_book():
    figures = [
        cell.metadata["mystnb"]["figure"]["name"]
        for name in NOTEBOOKS
        for cell in cells(name, "code")
        if "mystnb" in cell.metadata
    ]
    equations = [label for name in NOTEBOOKS for label in re.findall(r":label: (\S+)", prose(name))]
    assert len(figures) == len(set(figures)), "labels of figures are global to the book"
    assert len(equations) == len(set(equations)), "labels of equations are global to the book"


def test_every_equation_is_referred_to(name):
    everything = "".join(
        cell.source + json.dumps(cell.metadata)
        for other in NOTEBOOKS
        for cell in NOTEBOOKS[other].cells
    )
    for label in re.findall(r":label: (\S+)", prose(name)):
        assert f"`{label}`" in everything, f"equation {label} is never used"


def test_cells_are_short_and_prose_outweighs_code(name):
    lengths = [len(lines_of(cell)) for cell in cells(name, "code")]
    words = len(prose(name).split())
    assert max(lengths) <= 35, "the helper package carries the plumbing"
    for line in (line for cell in cells(name, "code") for line in cell.source.splitlines()):
        assert len(line) <= 88, f"a page shows 88 columns, this line has {len(line)}: {line}"
    assert statistics.median(lengths) <= 8, "one idea a cell"
    assert words >= 5 * sum(lengths), f"{words} words for {sum(lengths)} lines of code"
    assert 25 <= len(NOTEBOOKS[name].cells) <= 60, f"{len(NOTEBOOKS[name].cells)} cells"


def test_page_has_its_parts(name):
    text = prose(name)
    for part in ("**Key takeaways**", "Time to run", "## Try it", "## Summary"):
        assert part in text, f"the page lacks {part}"
    exercises = text.split("## Try it")[1].split("## Summary")[0]
    assert exercises.count("{dropdown}") >= 3, "three exercises with folded answers"


def test_no_executed_notebook_is_tracked():
    if not (store.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "*.ipynb"], cwd=store.ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not tracked, "the .py files are the source"


def test_pipeline_and_contents_know_every_notebook():
    contents = (store.ROOT / "_toc.yml").read_text()
    for name in NOTEBOOKS:
        assert f"book/notebooks/{name}" in contents, f"{name} is missing in _toc.yml"
        assert any(pipeline.reads(name)), f"{name} does not say what it reads"


def test_notebooks_name_no_machine(name):
    code = "\n".join(cell.source for cell in cells(name, "code"))
    assert not re.search(r"[\"'](/[a-z]|~/|results/|data/)", code), (
        "paths are the helper package's business"
    )
