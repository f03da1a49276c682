"""The files of an adapter's folder: its configuration, its tensors, and what stands in their place.

Comes after `sources`, before all that reads adapters. Only safetensors are read, and only files of
the folder itself or of the hub's cache that it is in; a pickle is refused with the command that
converts it. Writes nothing.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapter_geometry import sources
from adapter_geometry.sources import CONFIG, WEIGHTS, AdapterError

Tensors = dict[str, Shaped[Tensor, "..."]]  # {name in the file: tensor}
_LFS = b"version https://git-lfs.github.com/spec/"


def read_config(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says, whatever kind of adapter it is; FileNotFoundError where it is
    missing, AdapterError where it cannot be read."""
    path = inside(folder, CONFIG)
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter ({CONFIG} is missing): name a folder that holds it"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows may begin with a mark
    except (OSError, ValueError, RecursionError) as error:
        if _is_pointer(path):
            raise _pointer(path) from error
        raise AdapterError(
            f"{path} cannot be read as JSON ({error}): "
            "save the adapter again with `save_pretrained`"
        ) from error
    if not isinstance(config, dict) or not {"peft_type", "fine_tune_type"} & config.keys():
        raise AdapterError(f"{path} has no peft_type: it is no configuration of an adapter of PEFT")
    return config


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of an adapter folder: one, or all that it was divided into.

    Raises AdapterError where some are missing or it is a pickle, FileNotFoundError where there is
    none.
    """
    whole = inside(folder, WEIGHTS)
    if whole.exists():
        return [whole]
    parts = sorted(folder.glob("adapter_model-*-of-*.safetensors"))
    if parts:
        count = int(parts[0].stem.rpartition("-")[2])
        wanted = [
            f"adapter_model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)
        ]
        missing = sorted(set(wanted) - {part.name for part in parts})
        if missing:
            raise AdapterError(
                f"{folder} holds {len(parts)} of the {count} parts of an adapter: "
                f"{missing[0]} is missing; copy it there"
            )
        return [inside(folder, name) for name in wanted]
    if (folder / "adapter_model.bin").exists():
        raise sources.pickled(str(folder))
    raise FileNotFoundError(
        f"{folder} holds no adapter ({WEIGHTS} is missing): save it with `save_pretrained`"
    )


def read_tensors(files: list[Path]) -> Tensors:
    """All tensors of safetensors files, mapped from them and not copied into memory; AdapterError
    for a file that is none."""
    tensors: Tensors = {}
    for path in files:
        try:
            with safe_open(path, "pt") as stored:
                # `stored` is no dict and has no iterator of its own
                tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            if _is_pointer(path):
                raise _pointer(path) from error
            raise AdapterError(
                f"{path} cannot be read ({error}): it is truncated or not a safetensors file; "
                "copy or save it again"
            ) from error
    return tensors


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """The file of a folder; AdapterError if it is a link that leads elsewhere (the blobs of a hub
    cache excepted)."""
    path = folder / name
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()) and not _is_cached(folder, target):
        raise AdapterError(
            f"{path} leads out of its folder, to {target}: copy the file into the folder"
        )
    return path


def _is_pointer(path: Path) -> bool:
    """Whether a file is what git stands in the place of a large one."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _pointer(path: Path) -> AdapterError:
    return AdapterError(
        f"{path} is a pointer of git-lfs and not the file itself: run `git lfs pull` in its folder"
    )


def _is_cached(folder: Path, target: Path) -> bool:
    """Whether a file is one of the blobs of the hub cache, models--x/snapshots/revision/, that a
    folder is in."""
    return target.parent in [
        parent.with_name("blobs")
        for parent in folder.resolve().parents
        if parent.name == "snapshots"
    ]
