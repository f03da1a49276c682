"""From adapters to a new one: weighted sums, approximations of low rank, and updates that another
program saved, written as a PEFT folder.

Comes after `adapters` and `updates`, beside the report; the command calls it. Reads the adapters
and the base model that it is given, and writes the one folder it is told to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from adapter_geometry import adapters, keys, sources, updates
from adapter_geometry.adapters import AdapterError, Loaded
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.exact import RANK
from adapter_geometry.updates import Adapters, Factors, Update
from adapter_geometry.wording import span

# Fields of PEFT's configuration that are not the adapter's but of the model that it is put on.
_OF_THE_MODEL = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")
# Tasks for which PEFT itself adds a head to what an adapter must hold.
_HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote: `folder`; `ranks` of its factors, (least, largest), over `modules`;
    `lost`, the share of the squared norm that is not in it, None where nothing was left out; and
    `notes`, sentences on what was read."""

    folder: Path
    modules: int
    ranks: tuple[int, int]
    lost: float | None
    notes: list[str]

    def lines(self) -> list[str]:
        """The notes, and a sentence on what was written."""
        lost = "" if self.lost is None else f", {self.lost:.3g} of the squared norm is lost"
        return [
            *self.notes,
            f"{self.folder}: {self.modules} modules of rank {span(*self.ranks)}{lost}",
        ]


def convert(
    folder: str | Path,
    named: Sequence[str | Path],
    weights: Sequence[float] = (1.0,),
    rank: int | None = None,
    base: str | Path | None = None,
    lora_only: bool = False,
) -> Conversion:
    """Write weights[0] dW_0 + weights[1] dW_1 + ... of the named adapters as a PEFT folder.

    An adapter without an update of some module counts as zero there. Weights are multiplied in
    float64 and the result is stored in float32.
    named: folders or hub ids. rank: the sum is replaced by its best approximation of this rank,
    module by module; the exact sum, whose rank is the sum of the adapters', by default. base: the
    base model's folder or hub id, for adapters that cannot be read without. lora_only: parts that
    are no update of a weight matrix are left out, and not refused.
    Raises AdapterError (a ValueError) or FileNotFoundError for what cannot be read, added or
    written.
    """
    if len(weights) != len(named):
        raise AdapterError(
            f"{len(named)} adapters and {len(weights)} weights: give one weight for each"
        )
    if not all(map(math.isfinite, weights)):
        raise AdapterError(f"the weights {', '.join(map(str, weights))} are not all finite numbers")
    folders = {Path(each).resolve() for each in named if Path(each).exists()}
    if Path(folder).resolve() in folders:
        raise AdapterError(f"{folder} is what is read: name another folder to write to")
    adapters.require_own(folder)  # before anything is read
    weights_of_base = BaseWeights(sources.fetch(base, sources.MODEL_FILES)) if base else None
    # what is no product of factors is read at the rank that is asked for, if not a higher one
    least = max(rank, RANK) if rank else None
    loaded = [adapters.load(each, weights_of_base, lora_only, least) for each in named]
    if weights_of_base:
        loaded = [_in_memory(one, weights_of_base) for one in loaded]
    names = sources.names_of(named)
    parts, renamed = adapters.aligned(
        {name: one.update for name, one in zip(names, loaded, strict=True)}
    )
    notes = [
        f"{name}: {note}"
        for name, one in zip(names, loaded, strict=True)
        for note in (*one.notes, *renamed[name])
    ]
    total, of_parts = _sum(parts, weights)
    notes += of_parts
    lost = None
    if rank:
        total, lost = updates.compress(total, rank)
    if len(loaded) == 1 and loaded[0].errors:
        lost = _with_residual(lost or 0.0, loaded[0])
    config, of_configs = _shared(loaded)
    name = config.pop("base_model_name_or_path", None) or (str(base) if base else None)
    embeddings, kernels = _layers(loaded)
    adapters.export_adapter(
        total, folder, name, config=config, embeddings=embeddings, kernels=kernels
    )
    ranks = [factors.A.shape[0] for factors in total.values()]
    return Conversion(Path(folder), len(total), (min(ranks), max(ranks)), lost, notes + of_configs)


def _in_memory(one: Loaded, base: BaseWeights) -> Loaded:
    """What was read, with the modules of a whole model named as in memory, where PEFT looks for
    them, and not as in its files."""
    if one.config:
        return one
    update, errors = {}, {}
    for module, factors in one.update.items():
        name = module if adapters.EXPERT.fullmatch(module) else base.in_memory(module)
        if name is None:
            raise AdapterError(
                f"{module} of {one.origin} is fused with others when transformers loads the model, "
                "so that there is no such module that an adapter could be put on"
            )
        update[name] = factors
        if module in one.errors:
            errors[name] = one.errors[module]
    return replace(one, update=update, errors=errors)


def _sum(named: Adapters, weights: Sequence[float]) -> tuple[Update, list[str]]:
    """(sum, notes): the weighted sum over all modules that any of the adapters has."""
    total: Update = {}
    for module in dict.fromkeys(module for update in named.values() for module in update):
        parts = {name: update[module] for name, update in named.items() if module in update}
        shapes = {
            (part.B.shape[0], part.A.shape[1]): name for name, part in reversed(parts.items())
        }
        if len(shapes) > 1:
            sizes = (f"{rows} x {columns} in {name}" for (rows, columns), name in shapes.items())
            raise AdapterError(
                f"{module} is {' and '.join(sizes)}: adapters of different base models cannot be "
                "added"
            )
        # B takes the weight, and a file's bfloat16 would lose it; A is left as it is
        exact = [
            {module: Factors(part.B.double(), part.A, part.scale, part.is_transposed)}
            for part in parts.values()
        ]
        of_parts = [weight for name, weight in zip(named, weights, strict=True) if name in parts]
        total |= updates.combine(exact, of_parts)
    missing = {name: len(total) - len(update) for name, update in named.items()}
    return total, [
        f"{name}: {count} of {len(total)} modules have no update here and count as zero"
        for name, count in missing.items()
        if count
    ]


def _with_residual(lost: float, one: Loaded) -> float:
    """The share of the squared norm that compression lost, with what the factors had already lost
    when they were read: low-rank parts of a matrix are orthogonal to the rest of it."""
    squares = {module: updates.norm({module: part}) ** 2 for module, part in one.update.items()}
    rest = sum(
        square * one.errors.get(module, 0.0) ** 2 / (1 - one.errors.get(module, 0.0) ** 2)
        for module, square in squares.items()
    )
    of_factors = sum(squares.values())
    return (lost * of_factors + rest) / (of_factors + rest) if of_factors + rest else 0.0


def _layers(loaded: Sequence[Loaded]) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """(embeddings, kernels): which modules are embeddings, and the shapes of the kernels of those
    that are convolutions; an update has them as matrices."""
    embeddings: set[str] = set()
    kernels = {}
    for one in loaded:
        if not one.config.get("peft_type"):
            embeddings |= {
                module
                for module, factors in one.update.items()
                if factors.is_transposed and keys.is_embedding(module)
            }
            continue
        if one.config.get("target_parameters"):  # of experts, whose names nest
            continue
        folder = sources.resolve(one.origin).folder
        for file in one.files:
            if not file.endswith(".safetensors"):
                continue
            with safe_open(folder / file, "pt") as stored:
                names = keys.read(stored.keys(), file)
                embeddings |= names.embeddings
                for module, factors in names.factors.items():
                    shape = stored.get_slice(factors["A"]).get_shape() if "A" in factors else []
                    if len(shape) > 2:
                        kernels[module] = tuple(shape[1:])
    return embeddings, kernels


def _shared(loaded: Sequence[Loaded]) -> tuple[dict[str, Any], list[str]]:
    """(fields, notes): the fields of PEFT's configuration that say what model an adapter is for,
    where the adapters agree on them."""
    fields, notes = {}, []
    for field in _OF_THE_MODEL:
        values = [one.config.get(field) for one in loaded if one.config]
        headed = [value for value in values if field == "task_type" and value in _HEADED]
        if headed:
            notes.append(
                f"task_type {headed[0]} is not written: PEFT would look for the head of the task, "
                "which is no update of a weight matrix"
            )
        elif values and all(value == values[0] for value in values):
            fields[field] = values[0]
        elif values and field != "auto_mapping":  # which PEFT writes where there is no task
            different = ", ".join(sorted({str(value) for value in values}))
            notes.append(f"the adapters differ in {field} ({different}): none is written")
    return fields, notes
