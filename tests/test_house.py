"""Two packages whose imports run one way, in rooms, with types on all that is public."""

import ast
import graphlib
from pathlib import Path

import pytest

from helpers import store

# Rooms of the study in the order of the flow of data; a module imports from its own room and those
# before it. The tool comes before all of them.
ROOMS = (
    "profiles",
    "locks",
    "store",
    "models",
    "data",
    "training",
    "evaluation",
    "analysis",
    "cluster",
    "book",
    "__main__",
)
MODULES = {
    path: ".".join(path.relative_to(store.SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for package in store.PACKAGES
    for path in sorted((store.SOURCE / package).rglob("*.py"))
}
NAMES = set(MODULES.values())


def imported(path):
    """Our modules that a module imports, anywhere in it; not what only a type checker reads."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in NAMES else node.module)
    return names & NAMES


IMPORTS = {name: imported(path) - {name} for path, name in MODULES.items()}


def room(name):
    """Place of a module's room in the flow of data; -1 for the tool."""
    package, _, rest = name.partition(".")
    return -1 if package == "adapter_geometry" else ROOMS.index(rest.partition(".")[0])


def test_the_tool_knows_nothing_of_the_study():
    for name, names in IMPORTS.items():
        if name.startswith("adapter_geometry"):
            assert not {each for each in names if each.startswith("helpers")}, name


@pytest.mark.parametrize("name", [name for name in IMPORTS if name.startswith("helpers.")])
def test_no_import_runs_backwards(name):
    for other in IMPORTS[name] - {"helpers"}:
        assert room(other) <= room(name), f"{name} imports {other}, which comes after it"


def test_no_imports_run_in_a_circle():
    list(graphlib.TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names them


def public_functions(path):
    """(name, function) of all functions and methods of a module that do not begin with "_"."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    not method.name.startswith("_") or method.name == "__init__"
                ):
                    yield f"{node.name}.{method.name}", method


@pytest.mark.parametrize("path", MODULES, ids=MODULES.values())
def test_all_that_is_public_is_typed(path):
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module), "a module says what it holds"
    for name, function in public_functions(path):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [each for each in (arguments.vararg, arguments.kwarg) if each]
        named = [each for each in named if each.arg not in ("self", "cls")]
        bare = [each.arg for each in named if not each.annotation]
        assert not bare, f"{name}: {', '.join(bare)} have no types"
        assert function.returns or name.endswith("__init__"), f"{name}: its result has no type"


def test_the_lines_of_code_fit_the_screen():
    for folder in ("src", "tests", "book"):
        for path in sorted((store.ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                where = f"{Path(path).relative_to(store.ROOT)}:{number}"
                assert len(line) <= 100, f"{where} has {len(line)} columns"
