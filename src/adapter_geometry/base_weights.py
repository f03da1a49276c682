"""The weight matrices W0 of a base model's folder, as the model computes with them.

Comes after `keys`, `quantised` and `updates`, before `spectra` and the report. Reads a model's
folder and writes nothing but the decompositions of its weights, into the cache folder that it is
given or the user's. A module is asked for by its name in memory, which is that of an adapter; the
files may know it by another one, as those of most vision-language models do.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import torch
from jaxtyping import Float, Num
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapter_geometry import keys, quantised, storage
from adapter_geometry.sources import AdapterError
from adapter_geometry.updates import Factors, Update
from adapter_geometry.wording import counted

# (U, sigma, V) of a weight matrix W0 = U diag(sigma) V' (rows, columns), size = min(rows, columns)
Decomposition = tuple[
    Float[Tensor, "rows size"], Float[Tensor, " size"], Float[Tensor, "columns size"]
]
_Content = TypeVar("_Content")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Parts of a name that tell stacks of one model apart; "model", "language_model" and the like do not
_TOWERS = ("encoder", "decoder", "vis", "image", "video", "audio", "speech")
# Models whose linear layers store W0', by transformers' Conv1D, and the names of these layers
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
# Experts that are fused in memory, and the modules, side by side, of one that is kept by itself
_EXPERT = re.compile(r"(.+)\.(\w+)\.(\d+)")
_PIECES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
_SAMPLE = 2**20  # bytes of each file that `digest` reads


class BaseWeights:
    """The weight matrices of a base model's folder, read one by one from its safetensors files;
    AdapterError (a ValueError) where they cannot be.

    name: of the model, from the folder of the hub's cache or its config.json; revision: that of the
    hub's cache; None where they are not known.
    """

    def __init__(self, folder: str | Path, cache: str | Path | None = None) -> None:
        """cache: folder in which decompositions are stored; the user's cache folder by default.

        Raises FileNotFoundError where the folder holds no safetensors file.
        """
        self.folder = Path(folder)
        self.cache = Path(cache or platformdirs.user_cache_path("adapter-geometry"))
        self.config: dict[str, Any] = {}
        if (self.folder / "config.json").exists():
            self.config = self._json("config.json")
        self._opened: dict[str, Any] = {}  # {file: its handle}: a file is opened once
        self.files: dict[str, str]  # {name of a tensor: file that holds it}
        if (self.folder / INDEX).exists():
            self.files = self._index()
        elif (self.folder / SINGLE).exists():
            names = self._read(SINGLE, lambda stored: list(stored.keys()))
            self.files = dict.fromkeys(names, SINGLE)
        else:
            raise FileNotFoundError(
                f"no base model in {self.folder}: {SINGLE} is missing; {self._way_out()}"
            )
        # {module on disk: {end of a tensor's name: the name}}
        self._parts: dict[str, dict[str, str]] = {}
        for name in self.files:
            module, part = _split(name)
            self._parts.setdefault(module, {})[part] = name
        self._found: dict[str, str | None] = {}  # {module in memory: on disk}
        self._storages: dict[str, str] = {}  # {module on disk: format}
        self._suffixes: dict[str, list[str]] = {}
        self._in_memory: dict[str, str] | None = None  # asked for where nothing else helps
        self._prefix = ""  # of the model's body in memory, in front of which a head is
        self._shapes: dict[str, list[int]] = {}
        self._fused: dict[str, tuple[str, int]] = {}  # {expert: (name of the fused tensor, number)}
        self._pieces: dict[str, list[str]] = {}  # {expert: modules whose rows make up its weight}
        self.name, self.revision = self._identity()

    # --- names ------------------------------------------------------------------------------------

    def modules(self) -> list[str]:
        """Names, on disk, of the modules that have a weight matrix, or one in a quantised form; in
        the order of the files."""
        return [
            module
            for module, parts in self._parts.items()
            if (len(self._tensor_shape(parts["weight"])) > 1 if "weight" in parts else False)
            or not {"weight_packed", "qweight"}.isdisjoint(parts)
        ]

    def find(self, module: str) -> str | None:
        """The name on disk of a module by its name in memory; None where the model has none.

        The same name; else the longest end of it that one module on disk has, if what stands before
        leads into the same part of the model (encoder, decoder, vision, ...); else the name by
        which transformers loads it; else, for the layer that writes logits, the embedding that it
        shares its weight with. A name is never shortened beyond what leads to its layer's number.
        `...experts.gate_up_proj.3` is expert 3 of a fused tensor, or what transformers makes it of.
        """
        if module not in self._found:
            self._found[module] = (
                self._by_name(module)
                or self._expert(module)
                or self._tied(module, default=False)
                or self._by_transformers(module)
                # a configuration that is silent means "tied" for most models
                or (None if self._in_memory else self._tied(module, default=True))
            )
        return self._found[module]

    def in_memory(self, found: str) -> str | None:
        """The name in memory of a module on disk, in the class of transformers that config.json
        names: the same where transformers cannot say, None for what it fuses on loading."""
        if self._in_memory is None:
            self._in_memory = self._names_in_memory()
        if not self._in_memory:
            return found
        return next((name for name, disk in self._in_memory.items() if disk == found), None)

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the modules that were asked for so far: names that differ on
        disk, and storage in 8 or 4 bits."""
        notes = []
        renamed = {
            module: found for module, found in self._found.items() if found not in (module, None)
        }
        if renamed:
            module, found = next(iter(renamed.items()))
            modules = (
                "1 module has another name"
                if len(renamed) == 1
                else (f"{len(renamed)} modules have other names")
            )
            notes.append(f"{modules} in the base model's files, for example {module}: {found}")
        stored: dict[str, list[str]] = {}
        for module, kind in self._storages.items():
            stored.setdefault(kind, []).append(module)
        for kind, names in stored.items():
            if kind != quantised.PLAIN:
                notes.append(
                    f"{counted(len(names), 'module')} of the base model stored as {kind}, for "
                    f"example {names[0]}: dequantised to float32"
                )
        return notes

    def digest(self) -> str:
        """Hash of config.json, the index, and the first megabyte of each file: tells models apart
        in an instant, and is no proof that their weights are equal."""
        content = hashlib.sha256()
        names = [name for name in ("config.json", INDEX) if (self.folder / name).exists()]
        for name in [*names, *sorted(set(self.files.values()))]:
            with open(self.folder / name, "rb") as file:
                content.update(file.read() if name.endswith(".json") else file.read(_SAMPLE))
        return content.hexdigest()

    # --- weights ----------------------------------------------------------------------------------

    def weight(self, module: str) -> Num[Tensor, "rows columns"]:
        """W0 of a module as stored, or in float32 where it is stored in 8 or 4 bits; kernels of
        convolutions as (out, in * kernel).

        Raises AdapterError if the model has no such module, it is stored in a format that cannot be
        dequantised, or its weights are not finite.
        """
        found = self._require(module)
        pieces = [self._matrix(piece) for piece in self._pieces.get(found, [found])]
        weight = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if not torch.isfinite(weight.float()).all():
            raise AdapterError(
                f"{self.folder} holds NaN or infinity in {found}: download the model again"
            )
        return weight if weight.ndim == 2 else weight.reshape(len(weight), -1)

    def check_shapes(self, update: Update) -> None:
        """Raise AdapterError naming the first module of an update that the model lacks, holds in
        another shape or in a format that cannot be dequantised; reads no weights."""
        for module, factors in update.items():
            shape, wanted = self.shape(module), [factors.B.shape[0], factors.A.shape[1]]
            if shape != (wanted[::-1] if self._is_transposed(module, factors) else wanted):
                raise AdapterError(
                    f"{module} is {' x '.join(map(str, shape))} in the base model in {self.folder},"
                    f" but the update is {wanted[0]} x {wanted[1]}: name the model that the "
                    "adapters were trained on"
                )

    def oriented(self, update: Update) -> Update:
        """The update with `is_transposed` as the base stores each module: PEFT's `fan_in_fan_out`
        is one flag for all, but in GPT-2 only some modules store W0'."""
        return {
            module: replace(factors, is_transposed=self._is_transposed(module, factors))
            for module, factors in update.items()
        }

    def norms(self, modules: Iterable[str]) -> dict[str, float]:
        """{module: Frobenius norm of W0}, with one matrix in memory at a time."""
        return {module: float(self.weight(module).double().norm()) for module in modules}

    def decomposition(self, module: str) -> Decomposition:
        """(U, sigma, V) of W0 in float32, thin; stored in the cache by a hash of the weights."""
        weight = self.weight(module).float()
        content = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
        path = self.cache / f"{storage.digest([list(weight.shape), content])}.safetensors"
        if not path.exists():
            U, sigma, Vh = torch.linalg.svd(weight, full_matrices=False)
            parts = {"U": U.contiguous(), "sigma": sigma, "V": Vh.T.contiguous()}
            with storage.whole(path) as temporary:
                save_file(parts, temporary)
        stored = load_file(path)
        return stored["U"], stored["sigma"], stored["V"]

    # --- how a module is stored -------------------------------------------------------------------

    def _quantisation(self) -> dict[str, Any]:
        """`quantization_config`, which vision-language models may have for their text part."""
        text = self.config.get("text_config") or {}
        return self.config.get("quantization_config") or text.get("quantization_config") or {}

    def _storage(self, found: str) -> str:
        """The format of a module on disk; AdapterError where it is not one that can be read."""
        if found not in self._storages:
            with self._refusing(found):
                self._storages[found] = quantised.storage_of(
                    self._described(found), self._quantisation()
                )
        return self._storages[found]

    def _described(self, found: str) -> dict[str, tuple[str, list[int]]]:
        """{end of a tensor's name: (dtype, shape)} of a module on disk."""
        return {
            part: (self.stored(name).get_dtype(), self._tensor_shape(name))
            for part, name in self._parts[found].items()
        }

    def shape(self, module: str) -> list[int]:
        """Shape of W0 as `weight` gives it."""
        found = self._require(module)
        if found not in self._shapes:
            shapes = [self._shape_of(piece) for piece in self._pieces.get(found, [found])]
            rows, others = sum(shape[0] for shape in shapes), shapes[0][1:]
            self._shapes[found] = [rows, *([torch.Size(others).numel()] if others else [])]
        return self._shapes[found]

    def _matrix(self, found: str) -> Num[Tensor, "..."]:
        """The weight of a module on disk."""
        if found in self._fused:
            name, number = self._fused[found]
            expert: Tensor = self.stored(name)[number]
            return expert
        kind = self._storage(found)
        if kind == quantised.PLAIN:
            return self.tensor(self._parts[found]["weight"])
        with self._refusing(found):
            return quantised.dequantised(
                kind, self._described(found), self._reader(found), self._quantisation()
            )

    def _shape_of(self, found: str) -> list[int]:
        """Shape of the weight of a module on disk."""
        if found in self._fused:
            return self._tensor_shape(self._fused[found][0])[1:]
        kind = self._storage(found)
        with self._refusing(found):
            return quantised.shape_of(kind, self._described(found), self._reader(found))

    def _is_transposed(self, module: str, factors: Factors) -> bool:
        """Whether the base stores W0' of a module."""
        found = self._require(module)
        if self.config.get("model_type") in _CONV1D_MODELS and keys.ends_with(found, _CONV1D):
            # bitsandbytes turns a Conv1D round before it quantises it
            return self._storage(found) == quantised.PLAIN
        rows, columns = factors.B.shape[0], factors.A.shape[1]
        return factors.is_transposed and not (rows != columns and self.shape(module)[0] == rows)

    @contextlib.contextmanager
    def _refusing(self, found: str) -> Iterator[None]:
        """Turns a format that is not known, and parts of a known one that do not fit together, into
        an error that names the way out."""
        try:
            yield
        except AdapterError:
            raise
        except quantised.UnknownStorageError as error:
            original = self._original()
            raise AdapterError(
                f"the base model in {self.folder} stores {found} as {error}, which cannot be "
                "dequantised here: name the unquantised model that it was made from"
                + (f" (its files name {original})" if original else "")
            ) from error
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise AdapterError(
                f"the base model in {self.folder} stores {found} in parts that do not fit together "
                f"({type(error).__name__}: {error}): download the model again"
            ) from error

    def _original(self) -> str | None:
        """The model that a quantised one was made from, as its config.json or model card says."""
        named = self.config.get("_name_or_path")
        card = self.folder / "README.md"
        if not named and card.exists():
            match = re.search(
                r"^base_model:\s*(?:-\s*)?(\S+)", card.read_text("utf-8", "replace"), re.M
            )
            named = match and match.group(1)
        return str(named) if named else None

    # --- names on disk and in memory --------------------------------------------------------------

    def _require(self, module: str) -> str:
        """The name of a module on disk; AdapterError saying what was looked for."""
        found = self.find(module)
        if found is None:
            last = module.rsplit(".", 1)[-1]
            similar = [name for name in self._parts if name.rsplit(".", 1)[-1] == last]
            names = ", ".join((similar or list(self._parts))[:3]) or "nothing"
            raise AdapterError(
                f"the base model in {self.folder} has no module {module}: neither under this name, "
                "nor under one with the same end"
                + (", nor by transformers' names for this model" if self._in_memory else "")
                + f"; its files hold {names}. Is this the model that the adapter was trained on?"
            )
        return found

    def _expert(self, module: str) -> str | None:
        """One expert of a tensor that fuses them in memory, and on disk or not."""
        match = _EXPERT.fullmatch(module)
        if not match:
            return None
        owner, name, number = match.groups()
        found = self._by_name(owner)
        if found and name in self._parts[found]:
            fused = self._parts[found][name]
            count, *matrix = self._tensor_shape(fused)
            if int(number) >= count or len(matrix) != 2:
                return None
            if self.stored(fused).get_dtype() not in quantised.FLOATS:
                return found  # whose format is refused by its name
            self._fused[f"{fused}.{number}"] = fused, int(number)
            return f"{fused}.{number}"
        for owned in (owner, owner.replace(".mlp.", ".block_sparse_moe.")):
            for names in _PIECES.get(name, ()):
                pieces = [self._by_name(f"{owned}.{number}.{piece}") for piece in names]
                stored = [piece for piece in pieces if piece]
                if len(stored) == len(names):
                    self._pieces[" + ".join(stored)] = stored
                    return " + ".join(stored)
        return None

    def _by_name(self, module: str) -> str | None:
        """The module on disk of this name, or else the one with the longest end of it."""
        if module in self._parts:
            return module
        if not self._suffixes:
            for name in self._parts:
                pieces = name.split(".")
                for start in range(len(pieces)):
                    self._suffixes.setdefault(".".join(pieces[start:]), []).append(name)
        pieces = module.split(".")
        number = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
        # what leads to the layer's number stays, or two pieces of a name without one
        last = max(len(pieces) - 2, 0) if number is None else max(number - 1, 0)
        for start in range(last + 1):
            suffix = ".".join(pieces[start:])
            fitting = [
                name
                for name in self._suffixes.get(suffix, [])
                if _towers(name.removesuffix(suffix)) == _towers(".".join(pieces[:start]))
            ]
            if fitting:
                return fitting[0] if len(fitting) == 1 else None
        return None

    def _by_transformers(self, module: str) -> str | None:
        """The name on disk from which transformers, where it is installed and knows the model,
        loads a module; a head in front of the model, or none, makes no difference."""
        if self._in_memory is None:
            self._in_memory = self._names_in_memory()
        return next(
            (
                self._in_memory[name]
                for name in (
                    module,
                    f"{self._prefix}.{module}",
                    module.removeprefix(f"{self._prefix}."),
                )
                if name in self._in_memory
            ),
            None,
        )

    def _names_in_memory(self) -> dict[str, str]:
        """{module in memory: on disk} as transformers loads the model; empty where it cannot."""
        try:
            import transformers
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import (
                WeightConverter,
                WeightRenaming,
                rename_source_key,
            )

            config = transformers.AutoConfig.from_pretrained(
                self.folder, trust_remote_code=False, local_files_only=True
            )
            with torch.device("meta"):  # shapes alone, no weights
                model = getattr(transformers, config.architectures[0])(config)
            changes = get_model_conversion_mapping(model)
        except Exception:  # not installed, an older release, a model of others, a broken config
            return {}
        converters = [change for change in changes if isinstance(change, WeightConverter)]
        renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self._prefix, state, names = model.base_model_prefix, model.state_dict(), {}
        for found in self._parts:
            name, converted = rename_source_key(
                f"{found}.weight", renamings, converters, self._prefix, state
            )
            if converted is None:  # what is fused or split on loading is no matrix of the files
                names[name.removesuffix(".weight")] = found
        for name, source in model.all_tied_weights_keys.items():
            if (source := source.removesuffix(".weight")) in names:
                names.setdefault(name.removesuffix(".weight"), names[source])
        return names

    def _tied(self, module: str, default: bool) -> str | None:
        """The layer that writes logits under another name, or the embedding that it shares its
        weight with; default: whether it does where config.json does not say."""
        if not keys.is_head(module):
            return None
        text = self.config.get("text_config") or {}
        said = text.get("tie_word_embeddings", default)
        tied = self.config.get("tie_word_embeddings", said)
        for ends in (keys.HEADS, keys.TOKEN_EMBEDDINGS) if tied else (keys.HEADS,):
            named = [name for name in self._parts if keys.ends_with(name, ends)]
            if named:
                return named[0] if len(named) == 1 else None
        return None

    # --- files ------------------------------------------------------------------------------------

    def _identity(self) -> tuple[str | None, str | None]:
        """(name, revision): from .../models--owner--name/snapshots/revision, else config.json."""
        folder = self.folder.resolve()
        if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
            name = folder.parents[1].name.removeprefix("models--").replace("--", "/")
            return name, folder.name
        return self.config.get("_name_or_path") or None, None

    def _way_out(self) -> str:
        """What to do about a folder that holds no model in safetensors."""
        if (self.folder / "adapter_config.json").exists():
            named = self._json("adapter_config.json").get("base_model_name_or_path")
            return f"the folder holds an adapter; name its base model ({named})"
        if list(self.folder.glob("pytorch_model*.bin")):
            return (
                "pytorch_model.bin is a pickle, which can run code when it is opened; if you trust "
                "it, load it with transformers and save it again with `save_pretrained`"
            )
        if list(self.folder.glob("*.gguf")):
            return "GGUF files are not read; name the model that they were made from"
        return "name a folder that `save_pretrained` wrote"

    def _index(self) -> dict[str, str]:
        """{name of a tensor: file} of a model in several files, all of which are there."""
        files = self._json(INDEX).get("weight_map")
        if not isinstance(files, dict):
            raise AdapterError(
                f"{self.folder / INDEX} cannot be read (it has no weight_map): "
                "download the model again"
            )
        for file in files.values():  # which may be anything that JSON holds
            if not isinstance(file, str) or Path(file).name != file:
                raise AdapterError(
                    f"{INDEX} in {self.folder} names {file!r}, which leads out of the folder"
                )
        for file in sorted(set(files.values())):
            if not (self.folder / file).exists():
                raise AdapterError(
                    f"{self.folder / file} cannot be read (it is missing, and {INDEX} names it): "
                    "download the model again"
                )
        return files

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text("utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(
                f"{path} cannot be read ({type(error).__name__}): download the model again"
            ) from error
        if not isinstance(content, dict):
            raise AdapterError(
                f"{path} cannot be read (it holds no JSON object): download the model again"
            )
        return content

    def _reader(self, found: str) -> quantised.Read:
        return lambda part: self.tensor(self._parts[found][part])

    def tensor(self, name: str) -> Tensor:
        """A tensor of the files by its name, as stored."""
        tensor: Tensor = self._read(self.files[name], lambda stored: stored.get_tensor(name))
        return tensor

    def stored(self, name: str) -> Any:
        """A tensor of the files by its name, unread: its shape, its dtype, and slices of it."""
        return self._read(self.files[name], lambda stored: stored.get_slice(name))

    def _tensor_shape(self, name: str) -> list[int]:
        return list(self.stored(name).get_shape())

    def _read(self, file: str, read: Callable[[Any], _Content]) -> _Content:
        """What `read` takes out of a safetensors file of the folder."""
        path = self.folder / file
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(path, "pt")
            return read(self._opened[file])
        except (OSError, SafetensorError) as error:
            raise AdapterError(
                f"{path} cannot be read ({error}): it is truncated or not a safetensors file; "
                "download it again"
            ) from error


def _split(name: str) -> tuple[str, str]:
    """(module, end) of a tensor's name.

    >>> _split("model.norm.weight"), _split("q_proj.weight.absmax")
    (('model.norm', 'weight'), ('q_proj', 'weight.absmax'))
    """
    module, inner, end = name.partition(".weight.")
    if inner:
        return module, f"weight.{end}"
    module, _, end = name.rpartition(".")
    return module, end


def _towers(prefix: str) -> frozenset[str]:
    """The parts of a model that a prefix leads into."""
    return frozenset(tower for tower in _TOWERS if tower in prefix)
