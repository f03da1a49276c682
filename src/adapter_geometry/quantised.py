"""Weights that are stored in 8 or 4 bits: which format a module is stored in, and its matrix.

Comes before `base_weights`, which reads the tensors. Only formats whose arithmetic is certain are
dequantised, to the last bit of float32; every other one is refused by its name. What decides is the
tensors that stand beside the weight, and `quantization_config` where they leave something open.
Reads and writes nothing.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# {end of a tensor's name: (dtype as safetensors names it, shape)} of one module
Parts = Mapping[str, tuple[str, list[int]]]
Read = Callable[[str], Shaped[Tensor, "..."]]  # a part's tensor by the end of its name
PLAIN, FP8 = "plain", "FP8 with scales"
INT8 = "compressed-tensors 8-bit"
PACKED = "compressed-tensors packed into int32"
LLM_INT8, BITS_AND_BYTES = "LLM.int8", "bitsandbytes 4-bit"
FLOATS = ("F64", "F32", "F16", "BF16")
# fp8 releases scale blocks of this size, also where config.json does not say so
_FP8_BLOCK = (128, 128)
_OF_THE_WEIGHT = ("weight", "qweight", "qzeros", "scale", "g_idx", "SCB")
_LLM_INT8_UNIT = 7.874015718698502e-3  # bitsandbytes' 1 / 127
_NAMES = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
}


class UnknownStorageError(ValueError):
    """A module is stored in a format that is not dequantised; the message is the format's name and
    the parts that show it."""


def storage_of(parts: Parts, settings: Mapping[str, Any]) -> str:
    """The format, PLAIN to BITS_AND_BYTES, that a module is stored in.

    settings: the model's `quantization_config`, empty if it has none.
    Raises UnknownStorageError for every other format.
    """
    # a bias, or scales of activations, says nothing of the weight
    beside = {part for part in parts if part.startswith(_OF_THE_WEIGHT)} - {"weight"}
    dtype = parts["weight"][0] if "weight" in parts else None
    if dtype in FLOATS and not beside:
        return PLAIN
    # the weight's own dtype is that of `bnb_4bit_quant_storage`, which may be a float
    if "weight.absmax" in beside and "weight.quant_map" in beside and _quant_state(parts):
        return BITS_AND_BYTES
    if dtype == "I8" and "SCB" in beside and beside <= {"SCB", "weight_format"}:
        return LLM_INT8
    if _is_rotated(settings):
        raise UnknownStorageError(_described(parts, settings))
    if dtype in ("F8_E4M3", "F8_E5M2") and _is_scaled(parts, beside):
        return FP8
    # the same names stand for packed FP4 in releases of other makers
    if settings.get("quant_method") == "compressed-tensors":
        scales = beside - {"weight_zero_point"}
        if dtype == "I8" and scales == {"weight_scale"}:
            return INT8
        packed = {"weight_packed", "weight_scale", "weight_shape"}
        if dtype is None and scales == packed and parts["weight_packed"][0] == "I32":
            return PACKED
    raise UnknownStorageError(_described(parts, settings))


def shape_of(storage: str, parts: Parts, read: Read) -> list[int]:
    """Shape of the matrix that a module's parts stand for."""
    if storage == PACKED:
        return [int(size) for size in read("weight_shape").tolist()]
    if storage == BITS_AND_BYTES:
        return [int(size) for size in _state(parts, read)["shape"]]
    return parts["weight"][1]


def dequantised(
    storage: str, parts: Parts, read: Read, settings: Mapping[str, Any]
) -> Float[Tensor, "..."]:
    """The weight that a module computes with, in float32.

    A product of code and scale is rounded once, to float32; the model rounds it further, to the
    dtype that it runs in. Raises UnknownStorageError where the scales do not fit the weight.
    """
    if storage == BITS_AND_BYTES:
        return _four_bits(_state(parts, read), read)
    if storage == LLM_INT8:
        if "weight_format" in parts and int(read("weight_format")) != 0:
            raise UnknownStorageError("LLM.int8 in the order of a graphics card (weight_format)")
        return read("weight").float() * read("SCB").float().view(-1, 1) * _LLM_INT8_UNIT
    if storage == PACKED:
        return _packed(parts, read, settings)
    codes = read("weight").float()
    name = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    scale = read(name).float()
    if "weight_zero_point" in parts:
        codes = codes - _spread(read("weight_zero_point").float(), codes.shape, settings)
    return codes * _spread(scale, codes.shape, settings)


# --- which format ---------------------------------------------------------------------------------


def _is_scaled(parts: Parts, beside: set[str]) -> bool:
    """Whether an FP8 weight has one scale tensor of plain numbers or powers of two, and no more."""
    return len(beside) == 1 and (
        parts[(name := next(iter(beside)))][0] in (*FLOATS, "F8_E8M0")
        and name in ("weight_scale_inv", "weight_scale")
    )


def _is_rotated(settings: Mapping[str, Any]) -> bool:
    """Whether activations are rotated before they meet the weight, or the weight is sparse."""
    transforms = (settings.get("transform_config") or {}).get("config_groups")
    sparse = (settings.get("sparsity_config") or {}).get("format", "dense")
    return bool(transforms) or sparse != "dense"


def _quant_state(parts: Parts) -> str | None:
    """The part that holds bitsandbytes' state of a 4-bit weight."""
    return next((part for part in parts if part.startswith("weight.quant_state.")), None)


def _described(parts: Parts, settings: Mapping[str, Any]) -> str:
    """Name of a format, as its users know it, with the parts that show it."""
    method = str(settings.get("quant_method") or "")
    if not method and "qweight" in parts:
        method = "gptq" if "g_idx" in parts else "awq"
    bits = settings.get("bits") or settings.get("w_bit")
    named = " ".join(filter(None, [_NAMES.get(method, method), f"{bits}-bit" if bits else ""]))
    stored = ", ".join(f"{part} {dtype}" for part, (dtype, _) in sorted(parts.items())[:4])
    detail = f", {settings['format']}" if "format" in settings else ""
    return f"{named or 'a format that is not known here'}{detail} ({stored})"


# --- the arithmetic -------------------------------------------------------------------------------


def _blocks(settings: Mapping[str, Any]) -> list[tuple[int | None, int | None]]:
    """(rows, columns) of the blocks that share a scale, in each scheme of the configuration; None
    for the whole side."""
    groups = (settings.get("config_groups") or {}).values()
    schemes = [group.get("weights") or {} for group in groups]
    blocks: list[tuple[int | None, int | None]] = [
        (None, None),  # one scale
        (1, None),  # one a row
        *((1, int(scheme["group_size"])) for scheme in schemes if scheme.get("group_size")),
    ]
    structures = [scheme.get("block_structure") for scheme in schemes]
    structures.append(settings.get("weight_block_size") or (None if schemes else _FP8_BLOCK))
    return blocks + [(int(rows), int(columns)) for rows, columns in filter(None, structures)]


def _spread(
    scale: Float[Tensor, "..."], shape: torch.Size, settings: Mapping[str, Any]
) -> Float[Tensor, "rows columns"]:
    """Scales of blocks as a matrix that broadcasts with the weight; blocks at the edges may be
    ragged."""
    rows, columns = shape
    grid = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    for height, width in _blocks(settings):
        high, wide = height or rows, width or columns
        if list(grid.shape) == [math.ceil(rows / high), math.ceil(columns / wide)]:
            return grid.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    raise UnknownStorageError(
        f"{list(shape)} codes with scales {list(scale.shape)}, which fit no block size of "
        "quantization_config"
    )


def _unpacked(words: Shaped[Tensor, "rows words"], bits: int) -> Shaped[Tensor, "rows columns"]:
    """Unsigned codes of `bits` bits out of int32 words, lowest bits first; bits divides 32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes: Tensor = (words[:, :, None] >> shifts) & (2**bits - 1)
    return codes.flatten(1)


def _packed(parts: Parts, read: Read, settings: Mapping[str, Any]) -> Float[Tensor, "rows columns"]:
    """compressed-tensors' pack-quantized: codes less half their range, less a zero point, times the
    scale."""
    shape = torch.Size(shape_of(PACKED, parts, read))
    groups = (settings.get("config_groups") or {}).values()
    schemes = [group.get("weights") or {} for group in groups]
    words = read("weight_packed")
    named = {scheme.get("num_bits") for scheme in schemes}
    fitting = [
        bits
        for bits in (4, 8)
        if bits in named and words.shape[-1] == math.ceil(shape[1] * bits / 32)
    ]
    if len(fitting) != 1:
        raise UnknownStorageError(
            f"compressed-tensors, {shape[0]} x {shape[1]} packed into {list(words.shape)}, which "
            "is neither 4 nor 8 bits in quantization_config"
        )
    bits = fitting[0]
    codes = _unpacked(words, bits)[:, : shape[1]].float() - 2 ** (bits - 1)
    scale = read("weight_scale").float()
    if "weight_zero_point" in parts:
        zeros = read("weight_zero_point")
        if zeros.dtype == torch.int32:  # packed as well, along the rows
            zeros = _unpacked(zeros.T, bits)[:, : shape[0]].T - 2 ** (bits - 1)
        codes = codes - _spread(zeros.float(), shape, settings)
    weight: Tensor = codes * _spread(scale, shape, settings)
    return weight


def _state(parts: Parts, read: Read) -> dict[str, Any]:
    """bitsandbytes' state of a 4-bit weight, JSON in bytes."""
    name = _quant_state(parts)
    assert name is not None, "the format was found by it"
    state: dict[str, Any] = json.loads(bytes(read(name).tolist()))
    return state


def _four_bits(state: Mapping[str, Any], read: Read) -> Float[Tensor, "..."]:
    """bitsandbytes' NF4 and FP4: codes, high half of each byte first, looked up and multiplied by
    their block's largest entry, which may be stored in 8 bits itself."""
    count = math.prod(state["shape"])
    packed = read("weight").contiguous().view(torch.uint8).flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:count]
    largest = read("weight.absmax")
    if "nested_blocksize" in state:
        outer = read("weight.nested_absmax").repeat_interleave(state["nested_blocksize"])
        largest = read("weight.nested_quant_map")[largest.int()] * outer[: len(largest)]
        largest = largest + state["nested_offset"]
    blocks = largest.float().repeat_interleave(state["blocksize"])[:count]
    weight: Tensor = read("weight.quant_map").float()[codes.int()] * blocks
    return weight.reshape(state["shape"])
