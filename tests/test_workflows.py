"""The workflows of the hosted repository ask for things that exist."""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import colab
import nbformat
import pytest
import yaml

from helpers import store

WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text())
    for path in sorted((store.ROOT / ".github" / "workflows").glob("*.yml"))
}


@pytest.fixture(params=WORKFLOWS)
def steps(request):
    return [step for job in WORKFLOWS[request.param]["jobs"].values() for step in job["steps"]]


def test_commands_are_targets_and_files_of_the_repository(steps):
    targets = set(re.findall(r"^([a-z-]+):", (store.ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    named = re.findall(r"\bmake ([a-z-]+)", commands)
    assert named or ".ci/run" in commands, "a workflow that runs nothing of ours checks nothing"
    assert set(named) <= targets, f"no such target: {set(named) - targets}"
    assert ".ci/run" not in commands or (store.ROOT / ".ci" / "run").stat().st_mode & 0o100, (
        ".ci/run can be executed"
    )


def test_actions_are_pinned_and_the_python_is_one_that_the_book_supports(steps):
    used = [step["uses"] for step in steps if "uses" in step]
    assert used, "at least the checkout"
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used), used
    project = (store.ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'requires-python = ">=(\d+\.\d+)', project).group(1)
    set_up = [step for step in steps if "setup-python" in step.get("uses", "")]
    assert {step["with"]["python-version"] for step in set_up} == {oldest}


def test_dropping_the_pins_keeps_every_name(tmp_path):
    run = [
        line.strip()
        for step in WORKFLOWS["weekly.yml"]["jobs"]["newest-libraries"]["steps"]
        for line in step.get("run", "").splitlines()
    ]
    (command,) = (line for line in run if line.startswith("sed "))
    shutil.copy2(store.ROOT / "requirements.txt", tmp_path)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    before, after = (
        (folder / "requirements.txt").read_text().splitlines() for folder in (store.ROOT, tmp_path)
    )
    names = [re.match(r"[\w.-]+", line).group() for line in before if line[:1].isalpha()]
    left = [line.split("#")[0].strip() for line in after if line[:1].isalpha()]
    assert [re.match(r"[\w.-]+", line).group() for line in left] == names
    assert [line for line in left if "==" in line] == [
        line for line in left if line.startswith(("jupyter-book", "sphinx-book-theme"))
    ], "all others are free"
    assert len(names) > 20


def test_binder_installs_what_the_notebooks_need():
    folder = store.ROOT / ".binder"
    assert (folder / "requirements.txt").read_text() == "-r ../requirements.txt\n", (
        "the same pins as everywhere"
    )
    assert (folder / "postBuild").stat().st_mode & 0o100, "Binder runs it"
    assert WORKFLOWS["publish.yml"]["permissions"]["contents"] == "write", (
        "the branch that the buttons lead to is pushed"
    )
    assert (
        "urlpath=lab/tree/{pagename}.ipynb"
        in (store.ROOT / "book" / "_ext" / "page_buttons.py").read_text()
    )
    assert "git add --force book/notebooks" in str(WORKFLOWS["publish.yml"]), (
        "and holds the notebooks at that path"
    )


def test_a_notebook_opened_in_colab_fetches_the_book_and_elsewhere_runs_as_it_is(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Page"), nbformat.v4.new_code_cell("print(6 * 7)")]
    )
    nbformat.write(notebook, tmp_path / "page.ipynb")
    colab.main("https://github.com/owner/name", tmp_path)
    first, *rest = nbformat.read(tmp_path / "page.ipynb", as_version=4).cells
    assert [cell.source for cell in rest] == ["# Page", "print(6 * 7)"]
    commands = []
    shell = SimpleNamespace(
        system=commands.append, run_line_magic=lambda *words: commands.append(" ".join(words))
    )
    exec(first.source, {"get_ipython": lambda: shell})
    assert commands == [], "nothing happens where the book lies around the notebook"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "google.colab", None)
        patch.setattr(sys, "path", [*sys.path])
        exec(first.source, {"get_ipython": lambda: shell})
    clone = f"git clone --quiet --depth 1 --branch {colab.BRANCH}"
    assert commands[0] == f"{clone} https://github.com/owner/name book"
    assert commands[-1] == "cd book"
    assert (
        f"/blob/{colab.BRANCH}/{{pagename}}.ipynb"
        in (store.ROOT / "book" / "_ext" / "page_buttons.py").read_text()
    ), "the button leads to that branch"


def test_the_lock_file_has_a_hash_for_each_pinned_version():
    lock = (store.ROOT / "requirements.lock").read_text()
    locked = re.findall(
        r"^([\w.-]+)==([^ ;\\]+)[^\n]*((?:\n {4}--hash=sha256:[0-9a-f]{64}[ \\]*)+)$",
        lock,
        re.MULTILINE,
    )
    pinned = re.findall(
        r"^([\w.-]+)==(\S+)", (store.ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    versions = {(re.sub(r"[._-]+", "-", name).lower(), version) for name, version, _ in locked}
    missing = {
        (re.sub(r"[._-]+", "-", name).lower(), version) for name, version in pinned
    } - versions
    assert missing == set(), "make requirements.lock again, as its first line says"
    lines = [line for line in lock.splitlines() if line[0] not in "# "]
    assert len(lines) == len(locked) > len(pinned), (
        "every line has a hash; other platforms need more"
    )
