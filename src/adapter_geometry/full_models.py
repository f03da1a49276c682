"""Full fine-tunes and merged models as updates: dW = W1 - W0, matrix by matrix.

Comes after `exact`, whose low-rank factors it uses, and `base_weights`, by which it reads both
models; before `adapters`, which hands it the folders that hold a whole model. One pair of matrices
is in memory at a time: three times the largest one in float32, beside the factors. Writes nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from adapter_geometry import keys
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.exact import NEGLIGIBLE, RANK, TRANSPOSED_EXPERTS, low_rank
from adapter_geometry.sources import AdapterError
from adapter_geometry.updates import Factors, Update

# What rounding Gaussian weights to a dtype changes of a matrix, relative to its norm.
_ROUNDING = {"BF16": 0.0017, "F16": 0.0002}


@dataclass
class _Pair:
    """One weight matrix of two models."""

    new: Callable[[], Tensor]
    old: Callable[[], Tensor]
    is_transposed: bool


@dataclass
class _Pairs:
    """The weight matrices that two models have in common, by their names, and what is no such."""

    common: dict[str, _Pair] = field(default_factory=dict)
    tied: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def difference(
    base: BaseWeights, folder: str | Path, rank: int | None = None
) -> tuple[Update, dict[str, float]]:
    """(update, errors) of a model that was trained or merged from the base.

    Each weight matrix that both have becomes the factors of W1 - W0 of at most `rank`, by default
    64; errors: {module: |dW - B A|_F / |dW|_F} of those that have a higher rank. Modules are named
    as in the base's files; each expert of a fused tensor is one, `...experts.gate_up_proj.3`.
    Matrices that are equal stay, as factors of zeros. What is left out is told by `unread`.
    Raises AdapterError where a matrix has another shape than the base's, or none is in both.
    """
    update, errors = {}, {}
    common = _pairs(base, BaseWeights(folder)).common
    for module, pair in tqdm(common.items(), Path(folder).name, leave=False, disable=None):
        new = pair.new()
        floor = _rounding_of_float32(new) if new.dtype == torch.float32 else 0.0
        change = new.float() - pair.old().float()
        del new
        change = change.T if pair.is_transposed else change
        factors, error = low_rank(change, rank or RANK, floor)
        update[module] = Factors(factors.B, factors.A, 1.0, pair.is_transposed)
        if error > NEGLIGIBLE:
            errors[module] = error
    return update, errors


def unread(base: BaseWeights, folder: str | Path) -> tuple[list[str], list[str]]:
    """(notes, left_out): what is to be known of `difference`, as sentences, and the weights that it
    leaves out, by their names.

    Left out are vectors (norms, biases), whose change together is told relative to their norm;
    embeddings and heads of another vocabulary; heads that share the embedding's weight; what only
    one of the models has.
    """
    model = BaseWeights(folder)
    pairs = _pairs(base, model)
    notes = [note.replace("the base model", "the model") for note in model.notes]
    changed, size, count = 0.0, 0.0, 0
    for new, old in _vectors(base, model):
        if new.shape == old.shape:
            changed += float((new - old).square().sum())
            size, count = size + float(old.square().sum()), count + 1
    if count:
        share = f"by {(changed / size) ** 0.5:.2g} of their norm" if size else "from zero"
        change = f"change {share} together" if changed else "are those of the base"
        notes.append(f"{count} vectors (norms, biases) are left out; they {change}")
    for names, what in (
        (pairs.tied, "shares the embedding's weight and is compared once, as the embedding"),
        (pairs.resized, "has another number of tokens than in the base and is left out"),
        (pairs.added, "is not in the base and is left out"),
        (pairs.missing, "is in the base alone and is left out"),
    ):
        if names:
            others = f" (so are {len(names) - 1} others)" if len(names) > 1 else ""
            notes.append(f"{names[0]} {what}{others}")
    dtypes = {model.stored(name).get_dtype() for name in model.files}
    for dtype in sorted(dtypes & _ROUNDING.keys()):
        notes.append(
            f"weights are stored as {dtype}: rounding alone, as of a merged adapter, changes a "
            f"matrix by about {_ROUNDING[dtype]} of its norm, in no particular direction"
        )
    return notes, sorted([*pairs.tied, *pairs.resized, *pairs.added])


def _pairs(base: BaseWeights, model: BaseWeights) -> _Pairs:
    """The weight matrices of two models side by side; no weights are read.

    Raises AdapterError where one has another shape, or none is common.
    """
    pairs = _Pairs()
    modules = model.modules()
    settings = model.config.get("text_config") or {}
    is_tied = model.config.get("tie_word_embeddings", settings.get("tie_word_embeddings"))
    has_embedding = any(keys.is_embedding(module) for module in modules)
    seen = set()
    for module in modules:
        if is_tied and has_embedding and keys.is_head(module):
            pairs.tied.append(module)
            continue
        found = base.find(module)
        if found is None:
            pairs.added.append(module)
            continue
        seen.add(found)
        old, new = base.shape(module), model.shape(module)
        is_vocabulary = keys.is_embedding(module) or keys.is_head(module)
        if old != new and is_vocabulary and old[1] == new[1]:
            pairs.resized.append(module)
        elif old != new:
            raise AdapterError(
                f"{module} is {' x '.join(map(str, new))} in {model.folder}, but "
                f"{' x '.join(map(str, old))} in the base in {base.folder}: it was trained from "
                "another model"
            )
        else:
            # the base's own name, but for a head that it has none of
            same = found.rsplit(".", 1)[-1] == module.rsplit(".", 1)[-1]
            pairs.common[found if same else module] = _Pair(
                partial(model.weight, module),
                partial(base.weight, module),
                _is_transposed(base, module, new),
            )
    pairs.missing = [module for module in base.modules() if module not in seen]
    for name in model.files:
        if (shape := _experts(model, name)) is None:
            continue
        if _experts(base, name) != shape:
            pairs.added.append(name)
            continue
        is_transposed = base.config.get("model_type") in TRANSPOSED_EXPERTS
        for expert in range(shape[0]):
            pairs.common[f"{name}.{expert}"] = _Pair(
                partial(_expert, model, name, expert),
                partial(_expert, base, name, expert),
                is_transposed,
            )
    if not pairs.common:
        raise AdapterError(
            f"the model in {model.folder} and the base in {base.folder} have no weight matrix in "
            "common: name the model that it was trained from with --base"
        )
    return pairs


def _is_transposed(base: BaseWeights, module: str, shape: list[int]) -> bool:
    """Whether the models store a matrix as (d_in, d_out)."""
    if keys.is_embedding(module):
        return True
    rows, columns = shape
    factors = Factors(torch.empty(rows, 0), torch.empty(0, columns), 1.0)
    return base.oriented({module: factors})[module].is_transposed


def _experts(model: BaseWeights, name: str) -> list[int] | None:
    """Shape (experts, _, _) of a fused tensor of experts; None for any other tensor."""
    if name not in model.files or name.endswith(".weight"):
        return None
    stored = model.stored(name)
    shape: list[int] = list(stored.get_shape())
    return shape if len(shape) == 3 and stored.get_dtype() in ("F32", "F16", "BF16") else None


def _rounding_of_float32(weight: Float[Tensor, "rows columns"]) -> float:
    """Four times the largest singular value of what rounding to float32 changes of a matrix, as of
    a random one (Marchenko & Pastur 1967): a merge rounds more than once. Directions below are
    rounding, and would be most of a merged adapter's. In bfloat16 rounding may be all of what
    training changed, and it stays.
    """
    rows, columns = weight.shape
    per_entry = _ROUNDING["BF16"] * 2**-16 * float(weight.norm()) / float(rows * columns) ** 0.5
    largest: float = 4 * per_entry * (rows**0.5 + columns**0.5)
    return largest


def _expert(model: BaseWeights, name: str, expert: int) -> Float[Tensor, "_ _"]:
    """The matrix of one expert, the only one that is read."""
    weight: Tensor = model.stored(name)[expert]
    if not torch.isfinite(weight).all():
        raise AdapterError(
            f"{model.folder / str(model.files[name])} holds NaN or infinity in {name}: "
            "download the model again"
        )
    return weight


def _vectors(
    base: BaseWeights, model: BaseWeights
) -> Iterator[tuple[Float[Tensor, "..."], Float[Tensor, "..."]]]:
    """The tensors of fewer than two dimensions that both models have, in float64, side by side."""
    matrices = set(model.modules())
    for name in model.files:
        module, _, part = name.rpartition(".")
        if module in matrices and part != "bias":  # the matrix itself, or scales of its storage
            continue
        old = f"{base.find(module)}.{part}"
        if len(model.stored(name).get_shape()) < 2 and old in base.files:
            yield model.tensor(name).double(), base.tensor(old).double()
