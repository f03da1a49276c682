"""Names of an adapter's tensors, as PEFT and other savers write them, to names of the base model's
modules.

After `sources`, whose AdapterError it raises, before `base_weights` and `adapters`, which read
tensors. Names only: no file is opened. What PEFT writes is
`base_model.model.<module>.lora_A.weight`; wrappers of a model (torch.compile, DDP, FSDP, activation
checkpoints) leave segments of their own in such names, and some savers keep the adapter's name or
leave out the prefix.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from adapter_geometry.sources import AdapterError

PREFIX = "base_model.model."
# Ends of the names of layers that write logits, and of those that read tokens and may share their
# weight with them.
HEADS = ("lm_head", "embed_out", "proj_out", "unembed_tokens", "predictions.decoder")
TOKEN_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "shared")
# Other layers whose rows are looked up: places, types of segments, and tokens under other names.
_EMBEDDING = re.compile(r"embed|wpe|tok_emb|\w*(embeddings?|positions)")
# Segments that wrappers put into the names of the modules that they wrap: torch.compile, FSDP, its
# activation checkpoints, fairscale, Lightning and DeepSpeed.
_WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_fpw_module",
    "_forward_module",
)
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(\.(?P<adapter>(?!weight$|bias$)[^.]+))?(\.weight)?"
)
# A frozen tensor of the base beside what an adapter put there: not trained, and saved all the same.
_COPY = re.compile(r"(?P<module>.+)\.(base_layer|original_module)\.weight")
# A module that was trained as a whole, with its name and that of the adapter.
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.[^.]+\.(?P<tensor>[^.]+)")


def ends_with(module: str, ends: Collection[str]) -> bool:
    """Whether a name ends with one of these names, whole pieces of it."""
    return f".{module}".endswith(tuple(f".{end}" for end in ends))


def is_head(module: str) -> bool:
    """Whether a module writes logits, by its name.

    >>> is_head("lm_head"), is_head("cls.predictions.decoder"), is_head("model.decoder")
    (True, True, False)
    """
    return ends_with(module, HEADS)


def is_embedding(module: str) -> bool:
    """Whether rows of a module are looked up, by its name: a linear map from tokens or places,
    stored as (d_in, d_out).

    >>> is_embedding("transformer.wte"), is_embedding("embeddings.position_embeddings")
    (True, True)
    >>> is_embedding("embed_out"), is_embedding("patch_embed.proj")
    (False, False)
    """
    last = module.rpartition(".")[2]
    return ends_with(module, TOKEN_EMBEDDINGS) or bool(_EMBEDDING.fullmatch(last))


@dataclass
class Names:
    """What the tensors of an adapter's file are, by their names in it.

    - factors: {module: {"A": name, "B": name}} of linear modules, convolutions and embeddings.
    - embeddings: the modules among them whose factors are those of an embedding.
    - others: {name: name in the base model} of everything else: whole modules, biases, tokens.
    - copies: the names among them that are those of frozen weights of the base.
    - notes: sentences on what was taken out of the names.
    """

    factors: dict[str, dict[Literal["A", "B"], str]] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    others: dict[str, str] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read(names: Collection[str], where: str) -> Names:
    """What the tensors of these names are; `where` is the file that errors name.

    Raises AdapterError where two tensors are the same factor of one module, as in a file with
    several adapters.
    """
    found, adapters = Names(), set()
    taken_out: dict[str, int] = {}
    for name in names:
        plain, removed = plain_name(name)
        for what in removed:
            taken_out[what] = taken_out.get(what, 0) + 1
        if factor := _FACTOR.fullmatch(plain):
            module = factor["module"].replace(".base_layer", "")
            sides = found.factors.setdefault(module, {})
            if factor["adapter"]:
                adapters.add(factor["adapter"])
            side: Literal["A", "B"] = "A" if factor["side"] == "A" else "B"
            if side in sides:
                raise AdapterError(
                    f"{where}: {sides[side]} and {name} are both lora_{side} of {module}: "
                    "save each adapter into a file of its own"
                )
            sides[side] = name
            if factor["embedding"]:
                found.embeddings.add(module)
        elif copy := _COPY.fullmatch(plain):
            found.copies.add(name)
            found.others[name] = f"{copy['module']}.weight"
        elif saved := _SAVED.fullmatch(plain):
            found.others[name] = f"{saved['module']}.{saved['tensor']}"
        else:
            found.others[name] = plain
    if len(adapters) > 1:
        raise AdapterError(
            f"{where} holds the factors of several adapters ({', '.join(sorted(adapters))}): "
            "save each into a folder of its own, with `save_pretrained`"
        )
    if adapters:
        found.notes.append(
            f"its tensors keep the adapter's name, {min(adapters)}, which PEFT drops"
        )
    found.notes += [
        f"{'the prefix' if what == PREFIX else 'the wrapper'} {what} "
        f"{'is missing in' if what == PREFIX else 'is taken out of'} the names of {count} tensors"
        for what, count in taken_out.items()
    ]
    return found


def plain_name(name: str) -> tuple[str, list[str]]:
    """(name without what savers and wrappers put into it, what was unusual in it): a wrapper that
    was taken out, or the prefix where it is missing."""
    segments = name.split(".")
    removed = [f"{wrapper}." for wrapper in _WRAPPERS if wrapper in segments]
    plain = ".".join(segment for segment in segments if segment not in _WRAPPERS)
    prefixes = 0
    while True:
        if plain.startswith(PREFIX):
            plain, prefixes = plain.removeprefix(PREFIX), prefixes + 1
        elif plain.startswith("module."):
            plain = plain.removeprefix("module.")
            removed.append("module.")
        else:
            break
    if prefixes > 1:
        removed.append(PREFIX * (prefixes - 1))
    return plain, removed if prefixes else [*removed, PREFIX]


# --- patterns -------------------------------------------------------------------------------------

# What PEFT and its users mostly write: the (end of the) name of one module, in which a dot stands
# for any character unless it is escaped.
_PLAIN = re.compile(r"\^?(?:[\w-]|\.|\\[.-])+\$?")


def by_pattern(pattern: Any, default: Any) -> Callable[[str], Any]:
    r"""The function from a module's name to its value in PEFT's `rank_pattern` or `alpha_pattern`,
    whose keys are regular expressions for the end of the name, the first that fits.

    As PEFT's `get_pattern_key`, but patterns that name one module are looked up and not tried one
    after the other, since there may be as many as modules. The pattern comes from a file and may be
    anything: AttributeError or re.error where it maps no regular expressions.

    >>> value = by_pattern({r"layers\.0\.q_proj": 4, "proj": 2, "q_.*": 3}, 8)
    >>> [value(name) for name in ("layers.0.q_proj", "layers.1.q_proj", "layers.1.proj", "lm_head")]
    [4, 3, 2, 8]
    """
    # {(length, places of dots that stand for any character, from the start): {text: (rank, value)}}
    Plain = dict[tuple[int, tuple[int, ...], bool], dict[str, tuple[int, Any]]]
    plain: Plain = {}
    others: list[tuple[int, re.Pattern[str], Any]] = []
    for place, (key, value) in enumerate((pattern or {}).items()):
        if _PLAIN.fullmatch(key):
            pieces = re.findall(r"\\?.", key.removeprefix("^").removesuffix("$"))
            dots = tuple(number for number, piece in enumerate(pieces) if piece == ".")
            group = plain.setdefault((len(pieces), dots, key.startswith("^")), {})
            group.setdefault("".join(piece[-1] for piece in pieces), (place, value))
        else:
            others.append((place, re.compile(rf"(.*\.)?({key})$"), value))

    def value_of(module: str) -> Any:
        fitting = []
        for (length, dots, whole), values in plain.items():
            start = len(module) - length
            if start == 0 or (start > 0 and not whole and module[start - 1] == "."):
                end = list(module[start:])
                for dot in dots:
                    end[dot] = "."
                fitting += [values[text] for text in ["".join(end)] if text in values]
        first = min(fitting, key=lambda hit: hit[0], default=(len(pattern or {}), default))
        for place, expression, value in others:
            if place > first[0]:
                break
            if expression.match(module):
                return value
        return first[1]

    return value_of


# --- several adapters -----------------------------------------------------------------------------

# Parts of a name before the number of the layer that differ between versions of a library and
# between a model with and without its head: `language_model.model.layers` and
# `model.language_model.layers`, `model.layers` and `layers`, `transformer.h` and `h`.
_HOLDERS = {"model", "language_model", "transformer", "base_model"}


def same_modules(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """{name: the other name of the same module} of those names that `others` lacks; a name that
    might be that of two modules is left as it is.

    >>> same_modules(["language_model.model.layers.0.mlp"], ["model.language_model.layers.0.mlp"])
    {'language_model.model.layers.0.mlp': 'model.language_model.layers.0.mlp'}
    >>> same_modules(["encoder.layer.0.dense"], ["bert.encoder.layer.0.dense"])
    {'encoder.layer.0.dense': 'bert.encoder.layer.0.dense'}
    """
    mine, theirs = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    by_core: dict[str, tuple[list[str], list[str]]] = {}
    for side, modules in enumerate((mine, theirs)):
        for module in modules:
            by_core.setdefault(_core(module), ([], []))[side].append(module)
    same = {
        first[0]: second[0]
        for first, second in by_core.values()
        if (len(first), len(second)) == (1, 1)
    }
    if same or not mine:
        return same
    # no part of the names is known: one prefix that makes names of one side names of the other
    for long, short, is_mine in ((theirs, mine, False), (mine, theirs, True)):
        prefixes = {
            name.removesuffix(end) for end in short[:1] for name in long if name.endswith(f".{end}")
        }
        if len(prefixes) == 1:
            prefix = prefixes.pop()
            pairs = [(end, prefix + end) for end in short if prefix + end in long]
            return {name: end for end, name in pairs} if is_mine else dict(pairs)
    return {}


def _core(module: str) -> str:
    """A module's name without the parts in which spellings of one module differ."""
    segments = module.split(".")
    numbers = [place for place, segment in enumerate(segments) if segment.isdigit()]
    before = numbers[0] if numbers else len(segments) - 1
    return ".".join(
        segment
        for place, segment in enumerate(segments)
        if place >= before or segment not in _HOLDERS
    )
