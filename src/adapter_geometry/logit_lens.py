"""What the output directions of an update write through the base's unembedding (the logit lens of
nostalgebraist 2020), beside what random directions write.

Comes after `updates` and `base_weights`, before `inspection`. Reads the base model's folder: its
unembedding, the gain of its final norm, and its tokenizer.

A module that adds to the residual stream moves it along its left singular vectors. What such a
direction does to the logits on the direct way, past all later layers, is W_U (gain * u).
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from adapter_geometry import keys, updates
from adapter_geometry.adapters import AdapterError
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.updates import Update

DIRECTIONS, TOKENS = 3, 5  # of a module; at each end of a direction
# With 399 random directions, the chance that another one exceeds the tenth largest is 10 / 400.
_DRAWS, _EXCEEDING = 399, 10
# Last parts of the names of modules whose output is added to the residual stream.
_WRITERS = (
    *("o_proj", "out_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "fc2", "fc_out"),
    *("wo", "o", "w2"),
)
_FINAL_NORM = re.compile(r"(.*\.)?(norm|norm_f|ln_f|final_layer_?norm|final_norm|layer_norm)")
# What does not lead to the unembedding.
_ELSEWHERE = re.compile(r"(^|\.)(encoder|vision\w*|visual|audio\w*|image\w*)\.")
# Models of transformers whose norm multiplies by 1 + weight.
_ONE_MORE = re.compile(
    r"gemma|gemma2|gemma3(_text)?|paligemma|recurrent_gemma|vaultgemma|t5gemma|t5gemma2"
    r"|qwen3_next|qwen3_5(_moe)?(_text)?"
)


@dataclass(frozen=True)
class Unembedding:
    """How a direction of the residual stream becomes logits: the `gain` of the final norm, after
    the mean over the width is taken away if `is_centred`, then `weight`; and the text of each
    token. `norm` is the norm's name, None where none was found and the gain is 1."""

    weight: Float32[Tensor, "vocabulary d"]
    tokens: list[str]
    norm: str | None
    gain: Float32[Tensor, " d"]
    is_centred: bool

    def logits(self, directions: Float[Tensor, "d n"]) -> Float32[Tensor, "n vocabulary"]:
        """Logits of each direction, less their mean over the vocabulary, which no probability
        depends on."""
        directions = directions.float()
        if self.is_centred:
            directions = directions - directions.mean(0)
        logits: Tensor = (self.weight @ (self.gain[:, None] * directions)).T
        return logits - logits.mean(1, keepdim=True)


def read_unembedding(base: BaseWeights) -> Unembedding:
    """The unembedding of a base model's folder; AdapterError that says what of it is missing: head,
    tokenizer, or the library that reads one."""
    head = next((name for name in keys.HEADS if base.find(name)), None)
    if head is None:
        raise AdapterError(f"the base model in {base.folder} has no unembedding")
    tokens = _tokens(base)
    weight = base.weight(head).float()
    if len(tokens) < len(weight) / 2:  # transformers makes a tokenizer of nothing
        raise AdapterError(
            f"{base.folder} has no tokenizer of its {len(weight)} tokens, but one of {len(tokens)}"
        )
    weight = weight[: len(tokens)]  # heads are padded beyond the vocabulary
    return Unembedding(weight, tokens[: len(weight)], *_final_norm(base, weight.shape[1]))


def _tokens(base: BaseWeights) -> list[str]:
    """Text of each token of the base's tokenizer."""
    try:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(
            base.folder, trust_remote_code=False, local_files_only=True
        )
        return [tokenizer.decode([number]) for number in range(len(tokenizer))]
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise AdapterError(
            f"transformers cannot load a tokenizer from {base.folder} ({reason})"
        ) from error


def _final_norm(base: BaseWeights, width: int) -> tuple[str | None, Float32[Tensor, " d"], bool]:
    """(norm, gain, is_centred) of the norm before the unembedding; none, with a gain of 1, where
    the base has none or several could be it."""
    none = None, torch.ones(width), False
    names = [name.removesuffix(".weight") for name in base.files if name.endswith(".weight")]
    found = [name for name in names if _FINAL_NORM.fullmatch(name) and _is_outside(name)]
    if len(found) != 1:
        return none
    name = found[0]
    gain = base.tensor(f"{name}.weight").float()
    if gain.shape != (width,):
        return none
    # a norm with a bias is a LayerNorm, one without takes no mean away (RMSNorm)
    is_one_more = _ONE_MORE.fullmatch(str(base.config.get("model_type")))
    return name, gain + bool(is_one_more), f"{name}.bias" in base.files


def _is_outside(name: str) -> bool:
    """Whether a norm belongs to no layer, and not to a part that leads elsewhere."""
    return updates.layer_and_projection(f"{name}.weight")[0] is None and not _ELSEWHERE.search(name)


def lens_table(update: Update, unembedding: Unembedding, seed: int = 0) -> pd.DataFrame:
    """The `lens` table: what the first output directions of each module that writes to the residual
    stream promote and suppress.

    Columns: module, stack, layer (Int64), projection; index (1 is the direction of the largest
    singular value); share (of the module's squared norm); end ("promoted" has the largest |logit|;
    "suppressed" is the other, whose logits have the other sign: an update's direction has none);
    place, token, logit (of the unit direction, less the mean over the vocabulary); chance_high (of
    random unit directions 97.5 % have no larger |logit|).
    """
    generator = torch.Generator().manual_seed(seed)
    width = unembedding.weight.shape[1]
    drawn = torch.randn(width, _DRAWS, generator=generator)
    largest = torch.cat(
        [
            unembedding.logits(part / part.norm(dim=0)).abs().amax(1)
            for part in torch.split(drawn, 64, dim=1)
        ]
    )
    chance_high = float(largest.sort(descending=True).values[_EXCEEDING - 1])
    rows: list[tuple[Any, ...]] = []
    places = updates.places(list(update))
    for place_of_module, (module, factors) in zip(places, update.items(), strict=True):
        if not _writes(module, factors.B.shape[0], width):
            continue
        Q, R = torch.linalg.qr(factors.scale * factors.B.double())
        U, sigma, _ = torch.linalg.svd(R @ factors.A.double())
        share = np.asarray(sigma**2 / (sigma**2).sum())
        count = min(DIRECTIONS, int((sigma > 1e-10 * sigma[0]).sum()))
        for number, logits in enumerate(unembedding.logits(Q @ U[:, :count])):
            sign = 1.0 if logits.max() >= -logits.min() else -1.0
            for end, turned in (("promoted", sign), ("suppressed", -sign)):
                values, ids = (turned * logits).topk(min(TOKENS, len(logits)))
                for place, (value, token) in enumerate(zip(values, ids, strict=True), start=1):
                    text = unembedding.tokens[int(token)]
                    where = (module, *place_of_module, number + 1, float(share[number]))
                    rows.append((*where, end, place, text, turned * float(value), chance_high))
    columns = ["module", "stack", "layer", "projection", "index", "share", "end", "place", "token"]
    table = pd.DataFrame(rows, columns=[*columns, "logit", "chance_high"])
    return table.astype({"layer": "Int64"})


def _writes(module: str, d_out: int, width: int) -> bool:
    """Whether a module's output is added to the residual stream that the unembedding reads."""
    layer, last = updates.layer_and_projection(module)
    is_inside = layer is not None and not _ELSEWHERE.search(module)
    return is_inside and last in _WRITERS and d_out == width
