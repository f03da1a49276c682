"""Where artefacts live, and how one tells whether they still fit.

Before every module that computes something worth keeping; `adapter_geometry.storage` writes it.
What this build made is served by its *fingerprint*, a hash of its identity (settings, data, the
number of a RECIPE) and of the code: one whose fingerprint differs from today's is moved aside under
its own and found again when the settings return. What came with the repository is served by its
identity alone. A table that a page wrote is served as it is; this build's goes before the shipped
one.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import pyarrow.parquet as pq

from adapter_geometry import storage
from helpers.profiles import Run

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGES = ("adapter_geometry", "helpers")
# Where values lie and how settings are read; the settings themselves are hashed with each artefact.
_VALUELESS = ("adapter_geometry/storage", "helpers/store", "helpers/locks", "helpers/profiles/")
_LIBRARIES = ("torch", "transformers", "peft", "trl", "numpy", "math-verify")
CHECKSUMS = "SHA256SUMS"  # a folder's list of checksums, as `sha256sum` writes and checks it


def results(profile_name: str) -> Path:
    """Folder of everything computed for a profile, made if missing."""
    folder = ROOT / "results" / profile_name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shipped(profile_name: str) -> Path:
    """Folder of the long runs that come with the repository, in the formats of `results`; it may
    not exist.

    With CONTROLS=all in the environment it is one that never exists, so that everything is made
    again.
    """
    folder = "none" if os.environ.get("CONTROLS") == "all" else "prerun"
    return ROOT / "results" / folder / profile_name


def find(profile_name: str, file: str) -> Path:
    """Path of a file of a profile's results: under results/prerun if it came with the book, else
    where this build makes it."""
    path = shipped(profile_name) / file
    return path if path.exists() else results(profile_name) / file


def results_of_run(profile_name: str, run: Run) -> Path:
    """Results folder that holds, or is to hold, a run and what was measured of it: the shipped one
    if it has a run of this spec, else that of this build."""
    record = shipped(profile_name) / "runs" / run.name / "run.json"
    try:
        is_shipped = json.loads(record.read_text())["spec"] == run.model_dump(mode="json")
    except (OSError, ValueError, KeyError):
        is_shipped = False
    return shipped(profile_name) if is_shipped else results(profile_name)


def origin(profile_name: str, runs: Collection[Run]) -> str:
    """A sentence for the page: how many of these runs were trained by this build, and when and with
    what the others were."""
    folders = {run.name: results_of_run(profile_name, run) for run in runs}
    if any(_stored_value(folder / "runs" / name, "published") for name, folder in folders.items()):
        return (
            "The adapters of this page were published by others. "
            "All geometry and all statistics are computed here."
        )
    records = [
        read_json(folder / "runs" / name / "run.json")
        for name, folder in folders.items()
        if folder == shipped(profile_name)
    ]
    if not records:
        return f"These {len(runs)} runs were all trained by this build."
    dates = sorted({record["date"] for record in records})
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    machines = sorted({short_provenance(record["place"]) for record in records})
    return (
        f"Of these {len(runs)} runs, {len(runs) - len(records)} were trained by this build; "
        f"{len(records)} come with the book, trained on {days} ({'; '.join(machines)}). "
        "All geometry and all statistics are computed here."
    )


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock called `name`, so that one process at a time makes what it stands for; a second
    one waits. The lock of a killed process is free."""
    folder = ROOT / "results" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"{name}.lock"):
        yield


def as_json(content: Any) -> str:
    """The text of a record: keys sorted, so that equal contents are equal files."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


# --- damage --------------------------------------------------------------------------------------


def write_checksums(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Write the checksums of a folder's files, or of those of `files`, into its list."""
    checksum_file = folder / CHECKSUMS
    listed = [path for path in (files or folder.rglob("*")) if path != checksum_file]
    _write_checksum_file(
        checksum_file, {path: _checksum(path) for path in listed if path.is_file()}
    )


def update_checksums(path: Path) -> None:
    """Enter a file or folder that was made anew in the list of checksums that covers it, if there
    is one."""
    checksum_file = _checksum_file_above(path.parent)  # not the folder's own
    if checksum_file is None:
        return
    listed = {
        checksum_file.parent / name: checksum
        for name, checksum in _read_checksum_file(checksum_file).items()
    }
    others = {file: value for file, value in listed.items() if not file.is_relative_to(path)}
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    _write_checksum_file(checksum_file, others | {file: _checksum(file) for file in files})


def verify_checksums(path: str | os.PathLike[str]) -> Path:
    """`path`, a file or a folder, if every file there is the one in the nearest list of checksums
    above it; else ValueError names the file and the way out."""
    path = Path(path)
    checksum_file = _checksum_file_above(path)
    if checksum_file is None:
        return path
    for name, checksum in _read_checksum_file(checksum_file).items():
        file = checksum_file.parent / name
        if file.is_relative_to(path) and not (file.is_file() and _checksum(file) == checksum):
            raise ValueError(
                f"{relative_path(file)} is missing, damaged or changed: "
                f"it is not the file that {relative_path(checksum_file)} lists. "
                f"Put the right one back, or delete {relative_path(path)} to have it made again"
            )
    return path


def relative_path(path: Path) -> Path:
    """A path as messages show it: relative to the repository if it lies in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _checksum_file_above(path: Path) -> Path | None:
    """The nearest list of checksums in a folder or one that holds it, within the repository."""
    folders = [folder for folder in (path, *path.parents) if folder.is_relative_to(ROOT)]
    return next((folder / CHECKSUMS for folder in folders if (folder / CHECKSUMS).is_file()), None)


def _write_checksum_file(checksum_file: Path, checksums: Mapping[Path, str]) -> None:
    folder = checksum_file.parent
    lines = [
        f"{checksum}  {path.relative_to(folder).as_posix()}\n"
        for path, checksum in sorted(checksums.items())
    ]
    with storage.whole(checksum_file) as temporary_path:
        temporary_path.write_text("".join(lines))


def _read_checksum_file(checksum_file: Path) -> dict[str, str]:
    """{name of a file, relative to the folder of the list: its checksum}."""
    text = checksum_file.read_text(errors="replace")
    lines = [line.split("  ", 1) for line in text.splitlines()]
    if any(len(line) != 2 for line in lines):
        raise ValueError(
            f"{relative_path(checksum_file)} is damaged: put the right one back, "
            f"or delete {relative_path(checksum_file.parent)} to have it made again"
        )
    return {name: checksum for checksum, name in lines}


def _checksum(path: Path) -> str:
    return _sha256(path, path.stat().st_mtime_ns)


@functools.cache
def _sha256(path: Path, changed: int) -> str:
    """Checksum of a file, computed once per process for each time `changed` (ns) of its content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError names one that is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error


def read_frame(path: Path) -> pd.DataFrame:
    """The DataFrame in a Parquet file.

    Raises ValueError that names a file which is damaged, by its list of checksums or by those
    inside it.
    """
    verify_checksums(path)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        stored_frame: pd.DataFrame = table.to_pandas()
        columns = json.loads((table.schema.metadata or {}).get(b"columns", b"null"))
        # The names of the columns lie where Parquet has no checksum.
        if columns not in (None, list(stored_frame.columns)):
            raise KeyError(f"its columns were {', '.join(columns)}")
        return stored_frame
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise _damaged(path, error) from error


def read_metadata(path: Path, key: str) -> Any:
    """The JSON under `key` in the metadata of a Parquet file; ValueError names one that is
    damaged."""
    try:
        return json.loads(pq.read_schema(path).metadata[key.encode()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{relative_path(path)} is damaged ({type(error).__name__}: {error}): "
        "put the right one back, or delete it to have it made again"
    )


# --- hashes of files and of code -----------------------------------------------------------------


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hash of a file, or of all files of a folder with their names.

    Raises FileNotFoundError for a path without files.
    """
    path = Path(path)
    files = (
        [path] if path.is_file() else sorted(child for child in path.rglob("*") if child.is_file())
    )
    if not files:
        raise FileNotFoundError(
            f"{path} does not exist or is empty; `make help` lists the commands that make data"
        )
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(path)).encode())
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


@functools.cache
def imported_modules(source: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Modules of our two packages that a Python file imports, directly or through others, as sorted
    paths."""
    modules: set[Path] = set()
    unread = [Path(source)]
    while unread:
        for node in ast.walk(ast.parse(unread.pop().read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for path in filter(None, map(_module_file, names)):
                if path not in modules:
                    modules.add(path)
                    unread.append(path)
    return tuple(sorted(modules))


def _module_file(name: str) -> Path | None:
    """File of the module that a dotted name is, or is a name in; None for what is not of our
    packages."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return None
    for count in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[:count])
        if path.with_suffix(".py").exists():
            return path.with_suffix(".py")
        if (path / "__init__.py").exists():
            return path / "__init__.py"
    return None


@functools.cache
def code_digest(*modules: str) -> str:
    """Hash of the named modules ("helpers.training.trainer") and those that they import, and of the
    library versions.

    Comments, layout and docstrings are left out, and so are the modules that determine no value
    (`_VALUELESS`).
    """
    paths = {path for path in map(_module_file, modules) if path}
    for path in sorted(paths):
        paths.update(imported_modules(path))
    dumps = {path.relative_to(SOURCE).as_posix(): _syntax_tree(path) for path in paths}
    dumps = {name: dump for name, dump in dumps.items() if not name.startswith(_VALUELESS)}
    return storage.digest({"modules": dumps, "libraries": versions()})


def _syntax_tree(path: Path) -> str:
    """The syntax tree of a module without its docstrings, as text."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def versions() -> dict[str, str]:
    """Versions of the libraries that determine numbers."""
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}


def provenance() -> dict[str, str]:
    """What a record says of the machine it was made on: processor, GPU where one is used, Python
    and library versions."""
    return storage.provenance(_LIBRARIES)


def short_provenance(provenance: Mapping[str, str]) -> str:
    """The part of a `provenance` that a sentence on a page has room for."""
    return f"torch {provenance['torch']}, {provenance['processor']}"


# --- entries -------------------------------------------------------------------------------------


def entry(folder: Path, name: str, fingerprint: str, in_profile: bool = True) -> Path:
    """Path of the entry `name` with this fingerprint under `folder`; it may not exist yet.

    An existing entry of the same name with another fingerprint is moved aside to
    `<name>-<its fingerprint>`, never deleted, and comes back when its settings do. With
    `in_profile=False` (a spec that no profile names) the entry lives at `<name>-<fingerprint>` and
    leaves `<name>` alone. Names of files end in `.parquet`.
    """
    path, path_aside = folder / name, _path_aside(folder, name, fingerprint)
    if not in_profile:
        return path_aside
    # Snakemake makes the folders of a step's outputs before it starts: an empty one is no entry.
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    stored_fingerprint = _fingerprint_of(path)
    if path.exists() and stored_fingerprint != fingerprint:
        # An entry that can't be read has no fingerprint; the time names it, so that two such
        # entries are both kept.
        ending = stored_fingerprint or f"broken{time.time_ns():x}"[-8:]
        _move_aside(path, _path_aside(folder, name, ending), stored_fingerprint)
    # Either nothing was at `path` or it was just moved: what waited under this fingerprint returns.
    if not path.exists() and _fingerprint_of(path_aside) == fingerprint:
        os.replace(path_aside, path)
    return path


def _move_aside(path: Path, path_aside: Path, fingerprint: str | None) -> None:
    if fingerprint and _fingerprint_of(path_aside) == fingerprint:
        storage.remove(path)  # the same entry lies there already
    else:
        storage.remove(path_aside)
        os.replace(path, path_aside)


def _path_aside(folder: Path, name: str, fingerprint: str) -> Path:
    stem, dot, ending = name.partition(".")
    return folder / f"{stem}-{fingerprint[:8]}{dot}{ending}"


def _fingerprint_of(path: Path) -> str | None:
    fingerprint: str | None = _stored_value(path, "fingerprint")
    return fingerprint


def identity_of(path: Path) -> str | None:
    """What a stored entry says that determines it, its recipe's number in place of the code; None
    if nothing readable lies there."""
    identity: str | None = _stored_value(path, "identity")
    return identity


def _stored_value(path: Path, key: str) -> Any:
    """What an entry holds under `key`: a table in its metadata, a run in its run.json; None if
    nothing readable lies there."""
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).metadata[key.encode()].decode()
        return json.loads((path / "run.json").read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_finished(path: Path, fingerprint: str) -> bool:
    """Whether a finished entry with this fingerprint lies at `path`."""
    return _fingerprint_of(path) == fingerprint


def load_or_compute(
    folder: Path,
    name: str,
    fingerprint: str,
    compute: Callable[[], pd.DataFrame],
    in_profile: bool = True,
    **metadata: str,
) -> pd.DataFrame:
    """The DataFrame stored as `<name>.parquet` under `folder` if its fingerprint fits, else
    `compute()`, stored whole with `metadata`."""
    path = entry(folder, f"{name}.parquet", fingerprint, in_profile)
    if not is_finished(path, fingerprint):
        storage.write_frame(path, compute(), {"fingerprint": fingerprint, **metadata})
    return read_frame(path)


def load_or_compute_record(
    profile_name: str,
    folder: str,
    name: str,
    identity: str,
    code: str,
    compute: Callable[[], pd.DataFrame],
    in_profile: bool = True,
) -> pd.DataFrame:
    """`load_or_compute` under the profile's results, or the shipped record of the same identity.

    A record's fingerprint is its identity and its code. One that this build made goes before the
    shipped one.
    """
    fingerprint = storage.digest({"identity": identity, "code": code})
    computed_folder = results(profile_name) / folder
    computed = entry(computed_folder, f"{name}.parquet", fingerprint, in_profile)
    ready = shipped(profile_name) / folder / f"{name}.parquet"
    if not is_finished(computed, fingerprint) and identity_of(ready) == identity:
        return read_frame(ready)
    return load_or_compute(
        computed_folder, name, fingerprint, compute, in_profile, identity=identity
    )


# --- tables of results ---------------------------------------------------------------------------


def write_table(profile_name: str, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write a tidy table of results, `results/<profile>/tables/<name>.parquet`, one value per row;
    returns it unchanged."""
    storage.write_frame(
        results(profile_name) / "tables" / f"{name}.parquet",
        frame,
        {"date": time.strftime("%Y-%m-%d"), "place": as_json(provenance())},
    )
    return frame


def table_path(profile_name: str, name: str) -> Path:
    """Path of a table that a notebook wrote, in this build or, for a study that comes with the
    repository, before; it may not exist."""
    computed = results(profile_name) / "tables" / f"{name}.parquet"
    ready = shipped(profile_name) / "tables" / f"{name}.parquet"
    return ready if ready.exists() and not computed.exists() else computed


def read_table(profile_name: str, name: str) -> pd.DataFrame:
    """A tidy table that a notebook wrote; FileNotFoundError says which notebooks to run."""
    path = table_path(profile_name, name)
    if not path.exists():
        raise FileNotFoundError(
            f"no table {path.relative_to(ROOT)} yet: `make book` runs the notebooks that write it"
        )
    return read_frame(path)


def table_origin(profile_name: str, name: str) -> str:
    """A sentence for the page: whether this build computed a table, or when and with what it
    was."""
    path = table_path(profile_name, name)
    if not path.is_relative_to(shipped(profile_name)):
        return f"The table `{name}` of `{profile_name}` was computed by this build."
    date = pq.read_schema(path).metadata[b"date"].decode()
    machine = short_provenance(read_metadata(path, "place"))
    return (
        f"The table `{name}` of `{profile_name}` comes with the book, computed on {date} "
        f"({machine})."
    )
