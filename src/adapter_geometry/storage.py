"""Files and folders that are written whole or not at all, and hashes of what is in them.

After `sources`, for its AdapterError, and before all other modules: whatever the package writes
goes through `whole`, to the path that the caller names.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from adapter_geometry.sources import AdapterError

_SYNCED = "rb+" if os.name == "nt" else "rb"  # Windows syncs only what is open for writing


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; it takes the place of `path`, synced to
    disk, only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    remove(temporary)
    try:
        yield temporary
        files = [temporary] if temporary.is_file() else temporary.rglob("*")
        for file in files:
            if file.is_file():
                with open(file, _SYNCED) as written:
                    os.fsync(written.fileno())
        if path.is_dir():
            old = path.with_name(f".{path.name}.old")
            remove(old)
            os.replace(path, old)
            os.replace(temporary, path)
            remove(old)
        else:
            os.replace(temporary, path)
    finally:
        remove(temporary)


def require_replaceable(folder: str | os.PathLike[str], own: Collection[str], what: str) -> Path:
    """The path of a folder that something may take the place of, which is replaced as a whole:
    there is none, or it is empty or holds files of these names and nothing else.

    what: such as "a report", for the message. Raises AdapterError that names what the folder holds
    otherwise, and for a file and the folder that the process runs in.
    """
    path = Path(folder).resolve()
    if not path.exists():
        return path
    if not path.is_dir():
        raise AdapterError(f"{folder} is a file: name a folder for {what}")
    if path == Path.cwd():
        raise AdapterError(
            f"{folder} is the folder that the command runs in, and would be replaced as a whole: "
            "name a folder in it"
        )
    if foreign := {child.name for child in path.iterdir()} - set(own):
        raise AdapterError(
            f"{folder} holds more than {what}, for example {min(foreign)}, and would be replaced "
            "as a whole: name a new folder"
        )
    return path


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is neither."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_frame(
    path: Path,
    frame: pd.DataFrame,
    metadata: Mapping[str, str] | None = None,
    schema: pa.Schema | None = None,
) -> None:
    """Write a DataFrame as Parquet, whole or not at all, with text metadata and checksums.

    Its columns get the types in `schema` if one is given.
    """
    table = pa.Table.from_pandas(frame, schema, preserve_index=False)
    about = {
        **(table.schema.metadata or {}),
        "columns": json.dumps(table.column_names),
        **(metadata or {}),
    }
    with whole(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(about),
            temporary,
            compression="zstd",
            write_page_checksum=True,
        )


def digest(content: Any) -> str:
    """Hash of anything JSON can hold, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def provenance(libraries: Iterable[str]) -> dict[str, str]:
    """Where something is computed: processor, GPU where one is used, versions of Python and of the
    named libraries."""
    torch = sys.modules.get("torch")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch and torch.cuda.is_available() else {}
    versions = {library: importlib.metadata.version(library) for library in libraries}
    return {
        "processor": platform.machine(),
        **gpu,
        "python": platform.python_version(),
        **versions,
    }
