"""The distribution `adapter-geometry`: what it asks for, that it asks for all it imports, and that
its wheel does its work in an environment of its own, away from this repository."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adapter_geometry.adapters import export_adapter
from adapter_geometry.updates import Factors
from helpers import store

PROJECT = tomllib.loads((store.ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [Requirement(each) for each in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(each) for extra in PROJECT["optional-dependencies"].values() for each in extra
]
PACKAGE = store.SOURCE / "adapter_geometry"
MODULES = sorted(PACKAGE.rglob("*.py"))
POSIX_MODULES = {
    *("curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog"),
    *("termios", "tty"),
}
POSIX_NAMES = {
    "os": {
        *("chown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getuid"),
        *("killpg", "mkfifo", "nice", "setsid", "uname", "wait", "wait3", "wait4", "WNOHANG"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1"),
        *("SIGUSR2", "alarm", "pause", "setitimer", "sigwait"),
    },
}


def names(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pinned():
    """{canonical name: version} of everything that this repository installs."""
    versions = {}
    for file in ("requirements.txt", "constraints.txt"):
        for line in (store.ROOT / file).read_text().splitlines():
            requirement = line.split("#")[0].strip()
            if "==" in requirement:
                name, _, version = requirement.partition("==")
                versions[canonicalize_name(name)] = version
    return versions


def imports(tree):
    """Top-level names of the modules that are imported anywhere in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def distributions(modules):
    """Canonical names of the distributions of all that is not the standard library's or ours."""
    provided = importlib.metadata.packages_distributions()
    foreign = modules - set(sys.stdlib_module_names) - {"adapter_geometry"}
    return {canonicalize_name(provided[module][0]) for module in foreign}


def test_what_the_distribution_asks_for_is_what_is_tested_here():
    versions = pinned()
    for requirement in [*DEPENDENCIES, *EXTRAS]:
        version = versions[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement}, and {version} is installed here"


def test_the_distribution_asks_for_all_that_it_imports_and_for_nothing_else():
    at_once, late = set(), set()
    for path in MODULES:
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            late |= set(imports(function))
            function.body = []
        at_once |= set(imports(tree))
    assert distributions(at_once) <= names(DEPENDENCIES), "imported with the package"
    assert distributions(late) <= names(DEPENDENCIES) | names(EXTRAS), "imported when needed"
    assert distributions(at_once | late) == names(DEPENDENCIES) | names(EXTRAS)


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_nothing_is_used_that_only_posix_has(path):
    tree = ast.parse(path.read_text())
    assert not set(imports(tree)) & POSIX_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = {node.value.id: {node.attr}}
        elif isinstance(node, ast.ImportFrom):
            used = {node.module: {alias.name for alias in node.names}}
        else:
            continue
        for module, attributes in used.items():
            assert not attributes & POSIX_NAMES.get(module, set()), ast.unparse(node)


# --- the wheel ------------------------------------------------------------------------------------


def run(*command, folder, **environment):
    """Run a command in a folder, without the paths of this checkout; returns its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    completed = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(store.ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(store.SOURCE, source / "src", ignore=ignored)
    options = ("--wheel", "--no-isolation", "--outdir", built)
    run(sys.executable, "-m", "build", *options, source, folder=source)
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(folder of the scripts, folder of the packages) of an environment that holds the wheel alone.

    Its dependencies are those of the running interpreter, by a .pth file: folders that are added so
    have no .pth files of their own read, and the editable installation is one.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, folder=folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, folder=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(scripts / "python", "-c", where, folder=folder).strip())
    dependencies = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return scripts, packages


@pytest.mark.slow
def test_the_wheel_holds_the_tool_and_nothing_of_the_study(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    templates = sorted((PACKAGE / "report" / "templates").iterdir())
    assert {path.suffix for path in templates} == {".html", ".css", ".js"}
    # the README is the distribution's description, which setuptools packs wherever it is
    schema = PACKAGE / "report" / "schema.json"
    data = (PACKAGE / "py.typed", PACKAGE / "README.md", schema, *templates)
    expected = {path.relative_to(store.SOURCE).as_posix() for path in (*MODULES, *data)}
    information = {name for name in files if name.partition("/")[0].endswith(".dist-info")}
    assert files - information == expected, "all modules, what they need beside them, no `helpers`"
    assert any(name.endswith("LICENSE") for name in information)


@pytest.mark.slow
def test_an_installation_knows_no_checkout(installed, tmp_path):
    scripts, packages = installed
    where = "import adapter_geometry; print(adapter_geometry.__file__)"
    module = Path(run(scripts / "python", "-c", where, folder=tmp_path).strip())
    assert module.is_relative_to(packages), "the one of the wheel"
    search = "import importlib.util; print(importlib.util.find_spec('helpers'))"
    assert run(scripts / "python", "-c", search, folder=tmp_path).strip() == "None"


@pytest.mark.slow
def test_the_installed_command_writes_its_report_and_nothing_else(installed, tmp_path):
    scripts, _ = installed
    generator = torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        update = {
            f"model.layers.{layer}.self_attn.q_proj": Factors(
                torch.randn(16, 2, generator=generator),
                torch.randn(2, 16, generator=generator),
                1.0,
            )
            for layer in (0, 1)
        }
        export_adapter(update, tmp_path / name)
    for name in ("home", "cache", "work"):
        (tmp_path / name).mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    output = run(
        scripts / "adapter-geometry",
        "compare",
        tmp_path / "one",
        tmp_path / "two",
        "--out",
        "report",
        folder=tmp_path / "work",
        HOME=str(tmp_path / "home"),
        USERPROFILE=str(tmp_path / "home"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        XDG_CONFIG_HOME=str(tmp_path / "home"),
    )
    assert "cosine of every pair:" in output
    tables = {
        f"{name}.{form}"
        for name in ("angles", "cosine", "directions", "orthogonal", "updates")
        for form in ("csv", "parquet")
    }
    written = {
        path.relative_to(tmp_path)
        for path in tmp_path.rglob("*")
        if path.is_file() and path.stat().st_mtime_ns != before.get(path)
    }
    assert written == {
        Path("work/report", name) for name in ("report.html", "report.json", *tables)
    }
