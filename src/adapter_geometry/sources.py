"""From what a user names, a folder, a file in one or a hub id, to a local folder and what it holds:
an adapter or a whole model.

Before all other modules; it imports nothing of the package. Looks at names
of files only, and for a hub id asks the hub and its cache. A folder that holds something else is
refused with what it is, or with the subfolders that would do.
"""

import functools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What is fetched of an adapter, whose factors may lie in several files, and of a whole model.
ADAPTER_FILES = (CONFIG, "adapter_model*.safetensors", "adapter_model*.safetensors.index.json")
MODEL_FILES = ("config.json", "model*.safetensors", "model*.safetensors.index.json")
# And of a base model, with its tokenizer; no code.
BASE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_PICKLE = "adapter_model.bin"
_WAY_OUT = f"name a PEFT folder: one that holds {CONFIG}"
# owner/name, owner/name@revision, owner/name/folder, owner/name@revision/folder; a revision is a
# branch, a tag, a commit, or a pull request's reference
_HUB_ID = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>refs/pr/\d+|[\w.-]+))?"
    r"(/(?P<folder>[\w./=+ -]+))?"
)
_MIRRORS = {"unsloth", "mlx-community"}  # owners on the hub who pass on the models of others
_QUANTISED = re.compile(r"(-(unsloth|bnb|[48]bit|fp8|awq|gptq|int[48]))+$")
_DEPTH = 3  # how far below a folder its adapters are looked for: run, checkpoint, adapter's name
# Files of others, by the pattern of their names: what the folder is, and the way out.
_OTHERS = {
    WEIGHTS: f"weights of an adapter, but {CONFIG} is missing, which has rank and scale: copy it",
    "adapters.safetensors": f"weights of an MLX adapter, but {CONFIG} is missing: copy it there",
    "pytorch_lora_weights.safetensors": (
        "an adapter of diffusers (pytorch_lora_weights.safetensors): load it into its pipeline and "
        "save the adapter of one model with PEFT, for example pipeline.transformer"
    ),
    "adapter_*.pt": (
        "an adapter in torchtune's own format, a pickle: "
        f"name the folder in which its checkpointer wrote {CONFIG}"
    ),
    _PICKLE: f"{_PICKLE}, but {CONFIG} is missing, which says rank and scale: copy it there",
    "*.gguf": "a model or an adapter of llama.cpp (GGUF): name the one that it was converted from",
    "pytorch_model*.bin": (
        "a model stored as a pickle, which can run code when it is opened: "
        "load it and save it again with `save_pretrained`"
    ),
    "zero_to_fp32.py": (
        "a checkpoint of DeepSpeed, whose weights are in parts: put them together with its "
        "zero_to_fp32.py, or save the adapter with `save_pretrained` from the trained model"
    ),
    "*.safetensors": f"safetensors files but no {CONFIG}: {_WAY_OUT}",
}


class AdapterError(ValueError):
    """An adapter that cannot be used; the message names the file, what is wrong with it, and the
    way out."""


@dataclass(frozen=True)
class Source:
    """A local folder with an adapter or a whole model.

    `origin`: the path or hub id as it was given. `revision`: the commit, of what came from the hub.
    `note`: which subfolder was taken, where it is not the folder that was named.
    """

    folder: Path
    kind: Literal["adapter", "model"]
    origin: str
    revision: str | None = None
    note: str | None = None


# --- finding --------------------------------------------------------------------------------------


def resolve(path_or_id: str | Path) -> Source:
    """The folder that a path or a hub id (`owner/name`, with `@revision` and `/folder` if wanted)
    leads to; a path that exists goes before a hub id.

    A file of an adapter stands for its folder. Where the folder itself holds neither an adapter nor
    a model, its only subfolder with one is taken.
    Raises AdapterError where there are several or the folder holds something else, and
    FileNotFoundError where there is nothing.
    """
    path, origin = Path(path_or_id), str(path_or_id)
    if path.is_file():
        if not any(fnmatch(path.name, pattern) for pattern in ADAPTER_FILES):
            raise AdapterError(
                f"{path} is not a folder: name the folder that holds {CONFIG}, not a file in it"
            )
        path = path.parent
    if path.is_dir():
        inside, kind = _choose(set(_files(path)), str(path_or_id))
        note = f"read from its subfolder {inside}" if inside else None
        return Source(path / inside, kind, origin, _revision(path), note)
    if not _HUB_ID.fullmatch(origin) or ".." in path.parts:
        raise FileNotFoundError(f"no adapter at {path}: {_WAY_OUT}")
    return _on_hub(origin)


def fetch(path_or_id: str | Path, patterns: Sequence[str] = ADAPTER_FILES) -> Path:
    """The local folder of a path or hub id (see `resolve`); only files that match the patterns are
    fetched, none of them code.

    A path is returned as it is, whether or not it exists, unless it has the form of a hub id.
    Raises FileNotFoundError for such a one that is no folder here and that the hub does not give.
    """
    folder = Path(path_or_id)
    named = _HUB_ID.fullmatch(str(path_or_id))
    if folder.exists() or not named or ".." in folder.parts:
        return folder
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    inside = [part for part in (named["folder"] or "").split("/") if part]
    allowed = tuple("/".join([*inside, pattern]) for pattern in patterns)
    try:
        return Path(_snapshot(named["repository"], named["revision"], allowed), *inside)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _not_given(path_or_id, error) from error


@functools.cache
def _snapshot(repository: str, revision: str | None, patterns: tuple[str, ...]) -> str:
    """Folder of the files of a hub repository that match, asked for once per process."""
    from huggingface_hub import snapshot_download  # half a second that local folders do not need

    return snapshot_download(repository, revision=revision, allow_patterns=list(patterns))


def _on_hub(origin: str) -> Source:
    """The fetched adapter or model of a hub id; the repository's files are listed only where those
    of an adapter do not lie where they were looked for."""
    folder = fetch(origin)
    if (folder / CONFIG).exists() and any(folder.glob("adapter_model*.safetensors")):
        return Source(folder, "adapter", origin, _revision(folder))
    named = _HUB_ID.fullmatch(origin)
    assert named is not None, "it has the form of a hub id"
    prefix = f"{named['folder'].strip('/')}/" if named["folder"] else ""
    files = {
        name.removeprefix(prefix)
        for name in _listed(origin, named["repository"], named["revision"])
        if name.startswith(prefix)
    }
    inside, kind = _choose(files, origin)
    here = {PurePosixPath(name).name for name in files if _parent(name) == inside}
    if kind == "adapter" and _PICKLE in here and not any(map(_is_weights, here)):
        revision = f" --revision {named['revision']}" if named["revision"] else ""
        download = f"hf download {named['repository']}{revision} --local-dir FOLDER"
        raise pickled(f"{origin}/{inside}".rstrip("/"), f"download it ({download})")
    whole = ADAPTER_FILES if kind == "adapter" else MODEL_FILES
    folder = fetch(f"{origin.rstrip('/')}/{inside}".rstrip("/"), whole)
    note = f"read from its subfolder {inside}" if inside else None
    return Source(folder, kind, origin, _revision(folder), note)


def _listed(origin: str, repository: str, revision: str | None) -> list[str]:
    """Names of all files of a hub repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().list_repo_files(repository, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise _not_given(origin, error) from error


def _not_given(origin: str | Path, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"{origin} is no folder here, and the hub does not give it ({type(error).__name__}): "
        "check the name, the revision, or the network"
    )


def pickled(where: str, first: str = "") -> AdapterError:
    """The refusal of an adapter that is stored as a pickle, with the command that converts it;
    `first`: what has to be done before."""
    steps = f"{first} and convert it there: " if first else "convert it there: "
    return AdapterError(
        f"{where} holds {_PICKLE}, a pickle, which can run code when it is opened. If you trust it,"
        f' {steps}python -c "import torch; from safetensors.torch import save_file; '
        f"save_file(torch.load('{_PICKLE}', weights_only=True), '{WEIGHTS}')\""
    )


def _choose(files: Collection[str], where: str) -> tuple[str, Literal["adapter", "model"]]:
    """(subfolder, kind) of the adapter or model among files, whose names are relative to what the
    user named (`where`); the subfolder is "" where it is the named folder itself."""
    adapters = {_parent(name) for name in files if PurePosixPath(name).name == CONFIG}
    models = {_parent(name) for name in files if _is_model(PurePosixPath(name).name)}
    if "" in adapters:
        return "", "adapter"
    if "" in models:
        return "", "model"
    for folders, kind in ((adapters, "adapter"), (models, "model")):
        found = sorted(folders, key=_by_number)
        if len(found) == 1:
            return found[0], "adapter" if kind == "adapter" else "model"
        if found:
            names = ", ".join(f"{where.rstrip('/')}/{folder}" for folder in found[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise AdapterError(
                f"{where} holds {len(found)} {kind}s in its subfolders, none itself: "
                f"name the one to read, {names}{more}"
            )
    here = [name for name in files if "/" not in name]
    for pattern, what in _OTHERS.items():
        if any(fnmatch(name, pattern) for name in here):
            raise AdapterError(f"{where} holds {what}")
    raise FileNotFoundError(f"{where} holds no adapter ({CONFIG} is missing): {_WAY_OUT}")


def _files(folder: Path) -> Iterator[str]:
    """Names of the files in a folder and its subfolders, relative and with slashes; hidden folders
    and what lies deeper than adapters do are passed over."""
    for parent, folders, names in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        if len(inside.parts) == _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((inside / name).as_posix() for name in names)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _by_number(name: str) -> list[tuple[str, int]]:
    """Sorts checkpoint-500 before checkpoint-1000."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _is_model(name: str) -> bool:
    return fnmatch(name, "model*.safetensors")


def _is_weights(name: str) -> bool:
    return fnmatch(name, "adapter_model*.safetensors")


def _revision(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds (models--x/snapshots/commit/); None
    elsewhere."""
    for part in (folder, *folder.parents):
        if part.parent.name == "snapshots" and part.parent.parent.name.startswith("models--"):
            return part.name
    return None


# --- names ----------------------------------------------------------------------------------------


def name_of(path_or_id: str | Path) -> str:
    """Name of an adapter: that of its folder as it was given, whether or not it is a link
    (`run/adapter` is named by `run`).

    >>> name_of("runs/dpo/adapter"), name_of("owner/name@v1"), name_of("owner/name/seed-1")
    ('dpo', 'name@v1', 'seed-1')
    """
    return _parts(path_or_id)[-1]


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each adapter, no two equal: `name_of`, and before it, where that is that of
    another too, the part of the path in which they differ.

    >>> names_of(["sweep/low/checkpoint-500", "sweep/high/checkpoint-500", "other"])
    ['low/checkpoint-500', 'high/checkpoint-500', 'other']
    """
    names: list[str] = []
    for name in _distinguished([_parts(path) for path in paths]):
        copies, free = 1, name
        while free in names:  # one adapter given twice
            copies += 1
            free = f"{name} ({copies})"
        names.append(free)
    return names


def _distinguished(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The last part of each path, with what tells it from equal ones before it; equal paths keep
    equal names."""
    names = [path[-1] for path in paths]
    for last in set(names):
        places = [place for place, name in enumerate(names) if name == last]
        above = [paths[place][:-1] for place in places]
        while len(set(above)) > 1 and all(above) and len({path[-1] for path in above}) == 1:
            above = [path[:-1] for path in above]  # a part that all share tells nothing apart
        if len(set(above)) > 1 and all(above):
            for place, name in zip(places, _distinguished(above), strict=True):
                names[place] = f"{name}/{last}"
        elif len(set(above)) > 1:  # one path ends where another goes on
            for place in places:
                names[place] = "/".join(paths[place])
    return names


def _parts(path_or_id: str | Path) -> tuple[str, ...]:
    """Parts of a path that may serve as a name, the last one first to: without a file of an adapter
    and a last folder `adapter`."""
    path = Path(path_or_id)
    if path.exists():
        # "." has no name before it is made absolute, and a link is called as it was given
        path = Path(os.path.abspath(path.parent if path.is_file() else path))
    parts = path.parts
    return parts[:-1] if parts[-1] == "adapter" and len(parts) > 1 else parts


def is_one_model(first: str, second: str) -> bool:
    """Whether two names are of one model, as far as names tell: equal after the owner, without what
    says how it is quantised, and of one owner unless one is a local path or passes on others'."""
    (owner, name), (other_owner, other_name) = _owner_and_name(first), _owner_and_name(second)
    if name != other_name:
        return False
    owners = {owner, other_owner}
    return len(owners) == 1 or None in owners or bool(owners & _MIRRORS)


def _owner_and_name(model: str) -> tuple[str | None, str]:
    """(owner, or None for a local path; name) of a model, in lower case."""
    parts = [part for part in model.rstrip("/").split("/") if part]
    for part in parts:
        if part.startswith("models--"):  # in the hub's cache
            _, owner, *rest = part.split("--")
            parts, model = [owner, "--".join(rest)], f"{owner}/{rest}"
    name = _QUANTISED.sub("", parts[-1].partition("@")[0].lower()) if parts else model
    is_id = len(parts) == 2 and not model.startswith(("/", ".", "~")) and not Path(model).exists()
    return parts[0].lower() if is_id else None, name
