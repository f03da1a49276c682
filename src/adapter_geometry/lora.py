"""Plain LoRA adapters, dW = scale B A for each module, as PEFT or MLX saves them.

Comes after `adapter_files`, `keys` and `base_weights`, before `adapters`, which hands it what is of
this form. Rank, scale and orientation are each module's own. Everything is checked; what is no
factor is refused, or left out by request, or dropped where it is the base's own weight.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from adapter_geometry import adapter_files, keys
from adapter_geometry.adapter_files import Tensors
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.sources import CONFIG, WEIGHTS, AdapterError
from adapter_geometry.updates import Factors, Update
from adapter_geometry.wording import counted

# Parts that are trained beside the factors and change nothing of scale B A.
_BESIDE: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, [], {}),
}
_LEAVE_OUT = "--lora-only (lora_only=True) leaves such parts out and says which"
_MLX_WEIGHTS = "adapters.safetensors"


def check_beside(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise AdapterError where the configuration says that more was trained than the factors."""
    for name, harmless in _BESIDE.items():
        if (value := config.get(name)) not in harmless:
            raise AdapterError(
                f"{folder} holds more than LoRA factors: {name} is {value!r} in {CONFIG}; "
                f"{_LEAVE_OUT}"
            )


def read(
    files: list[Path], config: Mapping[str, Any], base: BaseWeights | None, lora_only: bool
) -> tuple[Update, list[str], list[str]]:
    """(update, notes, left_out) of the files of a plain LoRA adapter, as in `adapters.Loaded`.

    base: if given, decides which weights are copies of its own and how each module is stored.
    Raises AdapterError for a factor that is missing, of another shape than the configuration says,
    or not finite, and, unless lora_only, for parts that are no factors.
    """
    path, weights = files[0], adapter_files.read_tensors(files)
    names = keys.read(weights, str(path))
    notes = list(names.notes)
    frozen = {
        name
        for name, plain in names.others.items()
        if (name in names.copies if base is None else _is_copy(weights[name], plain, base))
    }
    if frozen:
        checked = "unchecked without --base" if base is None else "equal to the base"
        notes.append(
            f"{counted(len(frozen), 'frozen weight')} of the base dropped, for example "
            f"{min(frozen)}, {checked}"
        )
    others = {name: plain for name, plain in names.others.items() if name not in frozen}
    foreign = [
        name for name, plain in others.items() if ".lora_" in plain and not plain.endswith(".bias")
    ]
    if foreign:
        raise AdapterError(
            f"{path} holds {foreign[0]}, which a plain LoRA adapter does not have: "
            f"{CONFIG} and {WEIGHTS} belong to different adapters"
        )
    if not lora_only:
        check_beside(path.parent, config)
        if others:
            raise AdapterError(
                f"{path} holds more than LoRA factors, for example {min(others)}: a head, a bias, "
                f"an embedding with new tokens, or the like; {_LEAVE_OUT}"
            )
    left_out = sorted({plain.removesuffix(".weight") for plain in others.values()})
    if left_out:
        notes.append(note_on(left_out))
    if not names.factors:
        raise AdapterError(
            f"{path} holds no factors at all: save the adapter again after training it"
        )
    update = _factors(path, config, names, weights)
    if base is not None:
        linear = {module: update[module] for module in update if module not in names.embeddings}
        update |= base.oriented(linear)
    return update, notes, left_out


def _factors(path: Path, config: Mapping[str, Any], names: keys.Names, weights: Tensors) -> Update:
    """Each module's factors, checked; `path` is named where something is wrong."""
    try:
        rank_of = keys.by_pattern(config.get("rank_pattern"), config.get("r"))
        alpha_of = keys.by_pattern(config.get("alpha_pattern"), config.get("lora_alpha"))
    except (AttributeError, re.error) as error:
        raise AdapterError(
            f"{path.with_name(CONFIG)}: rank_pattern or alpha_pattern does not map "
            f"regular expressions to numbers ({error})"
        ) from error
    update = {}
    for module, sides in sorted(names.factors.items()):
        B, A = (_factor(path, module, side, sides, weights, rank_of(module)) for side in "BA")
        rank, alpha = rank_of(module), alpha_of(module)
        if A.ndim != B.ndim:
            raise AdapterError(
                f"{path}: {module} has lora_B of shape {tuple(B.shape)} and lora_A of shape "
                f"{tuple(A.shape)}, the factors neither of a linear module nor of a convolution"
            )
        if A.ndim > 2 and B.shape[1] != A.shape[0] == rank:
            raise AdapterError(
                f"{path}: {module} is a convolution in groups (B {tuple(B.shape)}, "
                f"A {tuple(A.shape)}), whose update is no matrix of the kernel's shape; "
                "PEFT itself cannot merge it"
            )
        if not B.shape[1] == A.shape[0] == rank or not rank:
            raise AdapterError(
                f"{path}: {module} has B {tuple(B.shape)} and A {tuple(A.shape)}, but the "
                f"configuration says rank {rank}: {CONFIG} and {WEIGHTS} belong to different "
                "adapters"
            )
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise AdapterError(
                f"{path.with_name(CONFIG)}: lora_alpha is {alpha!r} for {module}; "
                "it must be a number"
            )
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        # An embedding looks rows up: what it computes is W' of a one-hot vector, and PEFT's factors
        # are those of W'. A kernel is a matrix from all that it sees at once to its channels.
        is_transposed = module in names.embeddings or (
            A.ndim == 2 and bool(config.get("fan_in_fan_out"))
        )
        update[module] = Factors(B.flatten(1), A.flatten(1), scale, is_transposed)
    return update


def _factor(
    path: Path,
    module: str,
    side: str,
    sides: Mapping[Any, str],
    weights: Tensors,
    rank: Any,
) -> Shaped[Tensor, "..."]:
    """A factor of a module, `side` "B" or "A", checked to be a finite matrix of floating point
    numbers, or a kernel of a convolution."""
    if side not in sides:
        raise AdapterError(
            f"{path}: {module} has no lora_{side}: the file is incomplete; save the adapter again"
        )
    factor = weights[sides[side]]
    if factor.ndim < 2 or (0 in factor.shape and rank != 0):
        raise AdapterError(
            f"{path}: lora_{side} of {module} has shape {tuple(factor.shape)}: it was saved from "
            "one part of a model that DeepSpeed ZeRO-3 or FSDP had divided; gather it first "
            "(stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py on the checkpoint)"
        )
    kernel = tuple(factor.shape[2:])
    if side == "B" and any(size != 1 for size in kernel):
        raise AdapterError(
            f"{path}: lora_B of {module} has shape {tuple(factor.shape)}, "
            "which is that of no factor of a linear module or a convolution"
        )
    if not factor.is_floating_point():
        raise AdapterError(
            f"{path}: lora_{side} of {module} is stored as {factor.dtype}; "
            "only floating point numbers are read"
        )
    if not torch.isfinite(factor.float()).all():
        raise AdapterError(
            f"{path}: lora_{side} of {module} holds NaN or infinity: training diverged or the file "
            "is damaged; use an earlier checkpoint"
        )
    return factor


def _is_copy(weight: Shaped[Tensor, "..."], name: str, base: BaseWeights) -> bool:
    """Whether a tensor is the base's own weight of this name, to the precision of the tensor."""
    if not name.endswith(".weight"):
        return False
    try:
        own = base.weight(name.removesuffix(".weight"))
    except AdapterError:  # the base has no such module
        return False
    flat = weight.flatten(1) if weight.ndim > 2 else weight
    return flat.shape == own.shape and torch.equal(own.to(flat), flat)


def note_on(names: list[str]) -> str:
    """The note on parts that are left out."""
    return (
        f"{counted(len(names), 'part')} left out, no update of a weight matrix: "
        + ", ".join(names[:4])
        + (", ..." if len(names) > 4 else "")
    )


# --- MLX ------------------------------------------------------------------------------------------


def mlx_file(folder: Path, config: Mapping[str, Any]) -> Path:
    """The weights of an adapter that MLX saved."""
    if config["fine_tune_type"] != "lora":
        raise AdapterError(
            f"{folder} is an MLX adapter with fine_tune_type {config['fine_tune_type']!r}: only "
            "'lora' is read; fuse it (mlx_lm.fuse) and compare the models, with --base"
        )
    path = adapter_files.inside(folder, _MLX_WEIGHTS)
    if not path.exists():
        raise FileNotFoundError(f"{folder} is an MLX adapter, and {_MLX_WEIGHTS} is missing")
    return path


def read_mlx(path: Path, config: Mapping[str, Any]) -> Update:
    """The update of an adapter that MLX saved, dW = scale lora_b' lora_a' (`fuse` of `mlx_lm`)."""
    scale = (config.get("lora_parameters") or {}).get("scale")
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise AdapterError(f"{path.with_name(CONFIG)}: scale is {scale!r}; it must be a number")
    weights = adapter_files.read_tensors([path])
    sides: dict[str, dict[str, str]] = {}
    for name in weights:
        module, _, side = name.rpartition(".lora_")
        if side not in ("a", "b") or weights[name].ndim != 2:
            raise AdapterError(
                f"{path} holds {name} of shape {tuple(weights[name].shape)}, which is no factor of "
                "a linear module: fuse it (mlx_lm.fuse) and compare the models, with --base"
            )
        sides.setdefault(module, {})[side.upper()] = name
    update = {}
    for module, names in sorted(sides.items()):
        B, A = (_factor(path, module, side, names, weights, None).T for side in "BA")
        if B.shape[1] != A.shape[0]:
            raise AdapterError(
                f"{path}: {module} has factors of ranks {B.shape[1]} and {A.shape[0]}"
            )
        update[module] = Factors(B, A, float(scale), keys.is_embedding(module))
    return update
