"""What README and the other documents tell a reader to do can be done: commands, imports, names."""

import ast
import importlib
import re

import pytest

from helpers import store
from helpers.book import pages

NAMES = ("README.md", "CONTRIBUTING.md", "data/README.md", "src/adapter_geometry/README.md")
DOCUMENTS = {name: (store.ROOT / name).read_text() for name in NAMES}
DOCUMENTS |= {
    path.name: path.read_text()
    for path in sorted((store.ROOT / "book").glob("*.md"))
    # The log and the predictions are records of their time.
    if path.name not in (*pages.GENERATED, "log.md", "predictions.md")
}


@pytest.fixture(params=DOCUMENTS)
def text(request):
    return DOCUMENTS[request.param]


def test_targets_of_make_exist(text):
    targets = set(re.findall(r"^([a-z-]+):", (store.ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", text))
    assert named <= targets, f"no such target: {named - targets}"


def test_commands_exist(text):
    commands = set(re.findall(r"python -m helpers ([a-z-]+)", text))
    known = re.findall(r'^    (?:command = )?add\(\s*"([a-z-]+)"', parser_source(), re.MULTILINE)
    assert commands <= set(known), f"no such command: {commands - set(known)}"
    assert set(re.findall(r"adapter-geometry ([a-z]+) ", text)) <= {"compare"}


def parser_source():
    return (store.SOURCE / "helpers" / "__main__.py").read_text()


def test_modules_and_their_names_exist(text):
    for dotted in re.findall(r"`((?:helpers|adapter_geometry)(?:\.\w+)+)[`(]", text):
        resolve(dotted)


def resolve(dotted):
    """The module, or the name in one, that a dotted name is; raises if there is none."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_names_that_examples_import_and_use_exist():
    examples = re.findall(r"```python\n(.*?)```", DOCUMENTS["README.md"], re.DOTALL)
    assert examples
    for example in examples:
        modules = {}
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    modules[alias.name] = resolve(f"{node.module}.{alias.name}")
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                assert module is None or hasattr(module, node.attr), ast.unparse(node)
