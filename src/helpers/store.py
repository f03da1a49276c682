"""Where artefacts live, how they are written whole, and how one tells whether they still fit.

Used by every module that computes something worth keeping. An artefact is a folder or file with a *fingerprint*: a hash of
the settings, the data and the code that determine it. One whose fingerprint differs from today's is never served; it is
moved aside under its own fingerprint and found again when the settings return.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import time
from pathlib import Path

import filelock
import pyarrow.parquet as pq

from adapter_geometry import storage

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGES = ("adapter_geometry", "helpers")
# Where values lie and how settings are read; the settings themselves are hashed with each artefact.
_VALUELESS = ("adapter_geometry/storage", "helpers/store", "helpers/locks", "helpers/profiles/")
_LIBRARIES = ("torch", "transformers", "peft", "trl", "numpy", "math-verify")
SUMS = "SHA256SUMS"  # a folder's list of checksums, as `sha256sum` writes and checks it


def results(profile_name):
    """Folder of everything computed for a profile, made if missing."""
    folder = ROOT / "results" / profile_name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shipped(profile_name):
    """Folder of the long runs that come with the repository, in the formats of `results`; it may not exist.

    With CONTROLS=all in the environment it is one that never exists, so that everything is made again.
    """
    return (
        ROOT
        / "results"
        / ("prerun" if os.environ.get("CONTROLS") != "all" else "none")
        / profile_name
    )


def find(profile_name, file):
    """Path of a file of a profile's results: under results/prerun if it came with the book, else where this build makes it."""
    ready = shipped(profile_name) / file
    return ready if ready.exists() else results(profile_name) / file


def home(profile_name, run):
    """Folder under which a run (its spec) and what was measured of it is found or is to be made: the shipped one if it has a run of this spec."""
    try:
        is_shipped = json.loads(
            (shipped(profile_name) / "runs" / run.name / "run.json").read_text()
        )["spec"] == run.model_dump(mode="json")
    except (OSError, ValueError, KeyError):
        is_shipped = False
    return shipped(profile_name) if is_shipped else results(profile_name)


def origin(profile_name, runs):
    """A sentence for the page: how many of these runs (specs) were trained by this build, and when and with what the others were."""
    folders = {run.name: home(profile_name, run) for run in runs}
    if any(_mark(folder / "runs" / name, "published") for name, folder in folders.items()):
        return "The adapters of this page were published by others. All geometry and all statistics are computed here."
    records = [
        read_json(folder / "runs" / name / "run.json")
        for name, folder in folders.items()
        if folder == shipped(profile_name)
    ]
    if not records:
        return f"These {len(runs)} runs were all trained by this build."
    dates = sorted({record["date"] for record in records})
    places = sorted({made_on(record["place"]) for record in records})
    return (
        f"Of these {len(runs)} runs, {len(runs) - len(records)} were trained by this build; {len(records)} come with the book, trained on "
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))} ({'; '.join(places)}). All geometry and all statistics are computed here."
    )


@contextlib.contextmanager
def alone(name):
    """Hold the lock called `name`, so that one process at a time makes what it stands for; a second one waits. The lock of a killed process is free."""
    folder = ROOT / "results" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"{name}.lock"):
        yield


def as_json(content):
    """The text of a record: keys sorted, so that equal contents are equal files."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


# --- damage --------------------------------------------------------------------------------------------------------


def list_sums(folder, files=None):
    """Write the checksums of a folder's files, or of those of `files`, into its list."""
    files = [path for path in (files or folder.rglob("*")) if path != folder / SUMS]
    _write_sums(
        folder / SUMS,
        {path: _sha256(path, path.stat().st_mtime_ns) for path in files if path.is_file()},
    )


def relist(path):
    """Enter a file or folder that was made anew in the list of checksums that covers its place, if there is one."""
    listed = _list_above(path.parent)  # not the folder's own
    if listed:
        kept = {
            listed.parent / name: value
            for name, value in _sums(listed).items()
            if not (listed.parent / name).is_relative_to(path)
        }
        _write_sums(
            listed,
            kept
            | {
                file: _sha256(file, file.stat().st_mtime_ns)
                for file in (path, *path.rglob("*"))
                if file.is_file()
            },
        )


def intact(path):
    """`path`, a file or a folder, unless a file there is not the one in the nearest list of checksums above it; ValueError then names it and the way out."""
    path = Path(path)
    listed = _list_above(path)
    for name, wanted in (_sums(listed) if listed else {}).items():
        file = listed.parent / name
        if file.is_relative_to(path) and not (
            file.is_file() and _sha256(file, file.stat().st_mtime_ns) == wanted
        ):
            raise ValueError(
                f"{shown(file)} is missing, damaged or changed: it is not the file that {shown(listed)} lists. "
                f"Put the right one back, or delete {shown(path)} to have it made again"
            )
    return path


def shown(path):
    """A path as messages show it: relative to the repository where it lies in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _list_above(path):
    folders = [folder for folder in (path, *path.parents) if folder.is_relative_to(ROOT)]
    return next((folder / SUMS for folder in folders if (folder / SUMS).is_file()), None)


def _write_sums(listed, sums):
    with storage.whole(listed) as beside:
        beside.write_text(
            "".join(
                f"{value}  {path.relative_to(listed.parent).as_posix()}\n"
                for path, value in sorted(sums.items())
            )
        )


def _sums(listed):
    lines = [line.split("  ", 1) for line in listed.read_text(errors="replace").splitlines()]
    if any(len(line) != 2 for line in lines):
        raise ValueError(
            f"{shown(listed)} is damaged: put the right one back, or delete {shown(listed.parent)} to have it made again"
        )
    return {name: value for value, name in lines}


@functools.cache
def _sha256(path, changed):
    """Checksum of a file, computed once a process for each time at which it was `changed`."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path):
    """The content of a JSON file; ValueError names one that is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error


def read_frame(path):
    """The DataFrame in a Parquet file; ValueError names one that is damaged, by its list of checksums or by those inside it."""
    intact(path)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        found, columns = (
            table.to_pandas(),
            json.loads((table.schema.metadata or {}).get(b"columns", b"null")),
        )
        if columns not in (None, list(found.columns)):
            raise KeyError(
                f"its columns were {', '.join(columns)}"
            )  # the names stand where Parquet has no checksum
        return found
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise _damaged(path, error) from error


def read_metadata(path, key):
    """What stands as JSON in the metadata of a Parquet file; ValueError names one that is damaged."""
    try:
        return json.loads(pq.read_schema(path).metadata[key.encode()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path, error):
    return ValueError(
        f"{shown(path)} is damaged ({type(error).__name__}: {error}): put the right one back, or delete it to have it made again"
    )


def file_digest(path):
    """Hash of a file, or of all files of a folder with their names."""
    path = Path(path)
    files = (
        [path] if path.is_file() else sorted(child for child in path.rglob("*") if child.is_file())
    )
    if not files:
        raise FileNotFoundError(
            f"{path} does not exist or is empty; `make help` lists the commands that make data"
        )
    found = hashlib.sha256()
    for file in files:
        found.update(str(file.relative_to(path)).encode())
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


@functools.cache
def imported_modules(source):
    """Modules of our two packages that a Python file imports, directly or through others, as sorted paths."""
    seen, waiting = set(), [Path(source)]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for path in filter(None, map(_module_file, names)):
                if path not in seen:
                    seen.add(path)
                    waiting.append(path)
    return tuple(sorted(seen))


def _module_file(name):
    """File of the module that a dotted name is, or is a name in; None for what is not of our packages."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1) if parts[0] in PACKAGES else ():
        path = SOURCE.joinpath(*parts[:count])
        if path.with_suffix(".py").exists():
            return path.with_suffix(".py")
        if (path / "__init__.py").exists():
            return path / "__init__.py"
    return None


@functools.cache
def code_digest(*modules):
    """Hash of the named modules ("helpers.training.trainer") and those that they import, and of the library versions.

    Comments, layout and docstrings are left out, and so are the modules that determine no value (`_VALUELESS`).
    """
    paths = {_module_file(module) for module in modules}
    for path in sorted(paths):
        paths.update(imported_modules(path))
    dumps = {path.relative_to(SOURCE).as_posix(): _meaning(path) for path in paths}
    dumps = {name: dump for name, dump in dumps.items() if not name.startswith(_VALUELESS)}
    return storage.digest({"modules": dumps, "libraries": versions()})


def _meaning(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)


def versions():
    """Versions of the libraries that determine numbers."""
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}


def provenance():
    """What a record says of the place it was made in: processor, GPU where one is used, Python and library versions."""
    return storage.provenance(_LIBRARIES)


def made_on(place):
    """The part of a `provenance` that a sentence on a page has room for."""
    return f"torch {place['torch']}, {place['processor']}"


# --- entries -------------------------------------------------------------------------------------------------------


def entry(folder, name, fingerprint, is_ours=True):
    """Path of the entry `name` with this fingerprint under `folder`; it may not exist yet.

    An existing entry of the same name with another fingerprint is moved aside to `<name>-<its fingerprint>`, never deleted,
    and comes back when its settings do. With `is_ours=False` (a spec that no profile names) the entry lives at
    `<name>-<fingerprint>` and leaves `<name>` alone. Names of files end in `.parquet`.
    """
    named, aside = folder / name, _aside(folder, name, fingerprint)
    if not is_ours:
        return aside
    if named.is_dir() and not any(named.iterdir()):
        named.rmdir()  # Snakemake makes the folders of a step's outputs before it starts
    found = _fingerprint_of(named)
    if named.exists() and found != fingerprint:
        _move_aside(named, _aside(folder, name, found or f"broken{time.time_ns():x}"[-8:]), found)
    if not named.exists() and _fingerprint_of(aside) == fingerprint:
        os.replace(aside, named)
    return named


def _move_aside(named, aside, fingerprint):
    if fingerprint and _fingerprint_of(aside) == fingerprint:
        storage.remove(named)  # the same entry was kept before
    else:
        storage.remove(aside)
        os.replace(named, aside)


def _aside(folder, name, fingerprint):
    stem, dot, ending = name.partition(".")
    return folder / f"{stem}-{fingerprint[:8]}{dot}{ending}"


def _fingerprint_of(path):
    return _mark(path, "fingerprint")


def identity_of(path):
    """What a stored entry says that determines it, its recipe's number in place of the code; None if nothing readable lies there."""
    return _mark(path, "identity")


def _mark(path, kind):
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).metadata[kind.encode()].decode()
        return json.loads((path / "run.json").read_text())[kind]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_finished(path, fingerprint):
    """Whether a finished entry with this fingerprint lies at `path`."""
    return _fingerprint_of(path) == fingerprint


def frame(folder, name, fingerprint, compute, is_ours=True, **about):
    """The DataFrame stored as `<name>.parquet` under `folder` if its fingerprint fits, else `compute()`, stored whole; `about` goes into its metadata."""
    path = entry(folder, f"{name}.parquet", fingerprint, is_ours)
    if not is_finished(path, fingerprint):
        storage.write_frame(path, compute(), {"fingerprint": fingerprint, **about})
    return read_frame(path)


def record(profile_name, folder, name, identity, code, compute, is_ours=True):
    """`frame` under the profile's results, or the shipped record of the same identity; a record's fingerprint is its identity and its code."""
    fingerprint, made, ready = (
        storage.digest({"identity": identity, "code": code}),
        results(profile_name) / folder,
        shipped(profile_name) / folder / f"{name}.parquet",
    )
    if (
        not is_finished(entry(made, f"{name}.parquet", fingerprint, is_ours), fingerprint)
        and identity_of(ready) == identity
    ):
        return read_frame(ready)
    return frame(made, name, fingerprint, compute, is_ours, identity=identity)


def write_table(profile_name, name, frame_):
    """Write a tidy table of results, `results/<profile>/tables/<name>.parquet`, one value a row; returns it unchanged."""
    storage.write_frame(
        results(profile_name) / "tables" / f"{name}.parquet",
        frame_,
        {"date": time.strftime("%Y-%m-%d"), "place": as_json(provenance())},
    )
    return frame_


def table_path(profile_name, name):
    """Where a table lies that a notebook wrote, in this build or, for a study that comes with the repository, before; it may not exist."""
    made = results(profile_name) / "tables" / f"{name}.parquet"
    ready = shipped(profile_name) / "tables" / f"{name}.parquet"
    return ready if ready.exists() and not made.exists() else made


def read_table(profile_name, name):
    """A tidy table that a notebook wrote; FileNotFoundError says which notebooks to run."""
    path = table_path(profile_name, name)
    if not path.exists():
        raise FileNotFoundError(
            f"no table {path.relative_to(ROOT)} yet: `make book` runs the notebooks that write it"
        )
    return read_frame(path)


def table_origin(profile_name, name):
    """A sentence for the page: whether this build computed a table, or when and with what it was."""
    path = table_path(profile_name, name)
    if not path.is_relative_to(shipped(profile_name)):
        return f"The table `{name}` of `{profile_name}` was computed by this build."
    made = pq.read_schema(path).metadata
    return f"The table `{name}` of `{profile_name}` comes with the book, computed on {made[b'date'].decode()} ({made_on(read_metadata(path, 'place'))})."
