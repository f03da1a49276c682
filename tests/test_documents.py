"""What README and the other documents tell a reader to do can be done: commands, imports, names."""

import ast
import importlib
import inspect
import re

import pytest

import adapter_geometry
from adapter_geometry import cli
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
    (subparsers,) = (each for each in cli._parser()._actions if each.dest == "command")
    assert set(re.findall(r"adapter-geometry ([a-z]+) ", text)) <= set(subparsers.choices)


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


# --- the page of the tool's interface -------------------------------------------------------------

API = DOCUMENTS["api.md"]


def described():
    """(class or None, name, signature as the page shows it) of everything on the page."""
    pattern = r"\{py:(class|exception|function|method|attribute)\} (\w+)(.*)"
    owner = None
    for kind, name, signature in re.findall(pattern, API):
        owner = owner if kind in ("method", "attribute") else None
        yield owner, name, signature
        owner = name if kind == "class" else owner


def signature_of(thing):
    """The signature of a function, class or method without `self` and types, which the docstrings
    and the source have."""
    signature = inspect.signature(thing)
    kept = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def test_the_page_of_the_interface_has_every_public_name_and_no_other():
    named = [name for owner, name, _ in described() if owner is None]
    assert sorted(named) == sorted(adapter_geometry.__all__), "once each"


def test_what_the_page_of_the_interface_says_exists_with_its_signature_and_a_docstring():
    for owner, name, signature in described():
        thing = getattr(getattr(adapter_geometry, owner) if owner else adapter_geometry, name, None)
        if thing is None:  # a field of a dataclass
            assert name in getattr(adapter_geometry, owner).__dataclass_fields__, f"{owner}.{name}"
            continue
        assert inspect.getdoc(thing), f"{name} has no docstring"
        if signature:
            assert signature == signature_of(thing), f"the page shows another signature of {name}"


def test_the_example_of_the_interface_runs_and_says_what_the_page_says(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", API, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    sentences = names["report"].summary()
    assert "near is nearly first" in sentences, sentences
    assert re.search(r"other is (unrelated|not related) to first", sentences), sentences
    assert (tmp_path / "example-report" / "report.html").exists()
