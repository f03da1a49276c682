"""PEFT's LoRA folders: fetched from disk or hub, checked, read as updates, restricted to the
modules that several have in common, and written again.

Comes after `updates`, whose factors it reads and writes, and before everything that measures them.
Reads the folders it is given and, for a hub id, the hub and its cache; writes only the folder that
`export_adapter` is given. Whatever is not of the form dW = scale B A is refused, never guessed.
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapter_geometry import storage
from adapter_geometry.updates import Adapters, Factors, Update

_PREFIX = "base_model.model."
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WAY_OUT = f"name a PEFT folder: one that holds {CONFIG}"
# What makes an adapter more than scale B A, by its field in PEFT's configuration, and the values
# that are harmless. The other ways of initialising (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change W0
# as well.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, [], {}),
    "use_qalora": (False, None),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}


class AdapterError(ValueError):
    """An adapter that cannot be used; the message names the file, what is wrong with it, and the
    way out."""


# --- reading --------------------------------------------------------------------------------------


def read_config(adapter: str | Path) -> dict[str, Any]:
    """PEFT's configuration of an adapter folder, checked to be that of a plain LoRA adapter.

    Raises AdapterError (a ValueError) for what is not a folder, holds a broken configuration, or
    another kind of adapter; FileNotFoundError where there is no folder or no configuration.
    """
    folder = Path(adapter)
    if not folder.exists():
        raise FileNotFoundError(f"no adapter at {folder}: {_WAY_OUT}")
    if not folder.is_dir():
        raise AdapterError(
            f"{folder} is not a folder: name the folder that holds {CONFIG}, not a file in it"
        )
    path = _inside(folder, CONFIG)
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no adapter ({CONFIG} is missing): {_WAY_OUT}")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} cannot be read as JSON ({error}): "
            "save the adapter again with `save_pretrained`"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(
            f"{path}: peft_type is {kind!r}; only LORA adapters have the form dW = scale B A"
        )
    for field, harmless in _HARMLESS.items():
        if (value := config.get(field)) not in harmless:
            raise AdapterError(
                f"{folder} is not a plain LoRA adapter: {field} is {value!r} in {CONFIG}, which is "
                "not of the form dW = scale B A; merge it into its base and compare the models, or "
                "train without it"
            )
    return config


def load_update(adapter: str | Path) -> Update:
    """{module: Factors} of a PEFT LoRA folder, modules named as in the base model.

    Rank and scale are each module's own: `rank_pattern`, `alpha_pattern`, alpha / sqrt(r) with
    rsLoRA. Only safetensors are read, and the factors are mapped from the file, not copied into
    memory, so that many adapters fit.
    Raises FileNotFoundError for a folder without an adapter and AdapterError for one that is not of
    the form scale B A, or is damaged: a factor missing, of another shape than the configuration
    says, or not finite.
    """
    config, path = read_config(adapter), _weights_file(Path(adapter))
    try:
        with safe_open(path, "pt") as stored:
            # `stored` is no dict and has no iterator of its own
            weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path} cannot be read ({error}): it is truncated or not a safetensors file; "
            "copy or save it again"
        ) from error
    foreign = [
        key
        for key in weights
        if not (key.startswith(_PREFIX) and key.endswith((".lora_A.weight", ".lora_B.weight")))
    ]
    if foreign:
        raise AdapterError(
            f"{path} holds more than LoRA factors of linear modules, for example {foreign[0]}; "
            "only dW = scale B A is covered"
        )
    modules = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in weights})
    if not modules:
        raise AdapterError(
            f"{path} holds no factors at all: save the adapter again after training it"
        )
    return {module: _factors(path, config, module, weights) for module in modules}


def fetch(path_or_id: str | Path, patterns: Sequence[str] = (CONFIG, WEIGHTS)) -> Path:
    """The local folder of a path or hub id (`owner/name` or `owner/name/folder`); only files that
    match the patterns are fetched, none of them code.

    A path is returned as it is, whether or not it exists, unless it has the form of a hub id.
    Raises FileNotFoundError for such a one that is no folder here and that the hub does not give.
    """
    folder = Path(path_or_id)
    if folder.exists() or not _HUB_ID.fullmatch(str(path_or_id)) or ".." in folder.parts:
        return folder
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, name, *inside = str(path_or_id).split("/")
    allowed = tuple("/".join([*inside, pattern]) for pattern in patterns)
    try:
        return Path(_snapshot(f"{owner}/{name}", allowed), *inside)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{path_or_id} is no folder here, and the hub does not give it "
            f"({type(error).__name__}): check the name or the network"
        ) from error


@functools.cache
def _snapshot(repository: str, patterns: tuple[str, ...]) -> str:
    """Folder of the files of a hub repository that match, asked for once per process."""
    from huggingface_hub import snapshot_download  # half a second that local folders do not need

    return snapshot_download(repository, allow_patterns=list(patterns))


def _factors(
    path: Path, config: dict[str, Any], module: str, weights: Mapping[str, Shaped[Tensor, "..."]]
) -> Factors:
    """One module's factors, checked; `path` is named where something is wrong."""
    B, A = (_factor(path, module, side, weights) for side in "BA")
    try:
        rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
        alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    except (AttributeError, re.error) as error:
        raise AdapterError(
            f"{path.with_name(CONFIG)}: rank_pattern or alpha_pattern does not map "
            f"regular expressions to numbers ({error})"
        ) from error
    if not B.shape[1] == A.shape[0] == rank or not rank:
        raise AdapterError(
            f"{path}: {module} has B {tuple(B.shape)} and A {tuple(A.shape)}, but the "
            f"configuration says rank {rank}: {CONFIG} and {WEIGHTS} belong to different adapters"
        )
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(
            f"{path.with_name(CONFIG)}: lora_alpha is {alpha!r} for {module}; it must be a number"
        )
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return Factors(B, A, scale, bool(config.get("fan_in_fan_out")))


def _factor(
    path: Path, module: str, side: str, weights: Mapping[str, Shaped[Tensor, "..."]]
) -> Shaped[Tensor, "_ _"]:
    """A factor of a module, `side` "B" or "A", checked to be a finite matrix of floating point
    numbers."""
    factor = weights.get(f"{_PREFIX}{module}.lora_{side}.weight")
    if factor is None:
        raise AdapterError(
            f"{path}: {module} has no lora_{side}: the file is incomplete; save the adapter again"
        )
    if factor.ndim != 2:
        raise AdapterError(
            f"{path}: lora_{side} of {module} has shape {tuple(factor.shape)}, "
            "and only linear modules are covered"
        )
    if not factor.is_floating_point():
        raise AdapterError(
            f"{path}: lora_{side} of {module} is stored as {factor.dtype}; "
            "only bfloat16, float16, float32 and float64 are read"
        )
    if not torch.isfinite(factor.float()).all():
        raise AdapterError(
            f"{path}: lora_{side} of {module} holds NaN or infinity: training diverged or the file "
            "is damaged; use an earlier checkpoint"
        )
    return factor


def _weights_file(folder: Path) -> Path:
    """The safetensors file of an adapter folder."""
    path = _inside(folder, WEIGHTS)
    if not path.exists():
        if (folder / "adapter_model.bin").exists():
            raise AdapterError(
                f"{folder} holds adapter_model.bin, a pickle, which can run code when it is opened."
                " If you trust it, convert it there: "
                'python -c "import torch; from safetensors.torch import save_file; '
                f"save_file(torch.load('adapter_model.bin', weights_only=True), '{WEIGHTS}')\""
            )
        raise FileNotFoundError(
            f"{folder} holds no adapter ({WEIGHTS} is missing): save it with `save_pretrained`"
        )
    return path


def _inside(folder: Path, name: str) -> Path:
    """The file of a folder; AdapterError if it is a link that leads elsewhere (the blobs of a hub
    cache excepted)."""
    path = folder / name
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()) and not _is_cached(folder, target):
        raise AdapterError(
            f"{path} leads out of its folder, to {target}: copy the file into the folder"
        )
    return path


def _is_cached(folder: Path, target: Path) -> bool:
    """Whether a file is one of the blobs of the hub cache, models--x/snapshots/revision/, that a
    folder is in."""
    return target.parent in [
        parent.with_name("blobs")
        for parent in folder.resolve().parents
        if parent.name == "snapshots"
    ]


def _by_pattern(pattern: Any, module: str, default: Any) -> Any:
    """A module's value in PEFT's `rank_pattern` or `alpha_pattern`, whose keys are regular
    expressions for the end of the name.

    All three come from a file and may be anything: AttributeError or re.error where the pattern
    maps no regular expressions.
    """
    return next(
        (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
        default,
    )


def common_modules(adapters: Adapters) -> tuple[dict[str, Update], dict[str, list[str]]]:
    """(adapters, left_out): updates {run: update} restricted to the modules that all have, and
    {run: modules} left out.

    Raises AdapterError when no module is common to all.
    """
    shared = set.intersection(*(set(update) for update in adapters.values()))
    if not shared:
        first = {run: next(iter(update)) for run, update in adapters.items()}
        raise AdapterError(
            "no module is common to all adapters: "
            + ", ".join(f"{run} has {module}" for run, module in first.items())
            + "; compare adapters of one base model"
        )
    restricted = {
        run: {module: factors for module, factors in update.items() if module in shared}
        for run, update in adapters.items()
    }
    return restricted, {run: sorted(set(update) - shared) for run, update in adapters.items()}


# --- writing --------------------------------------------------------------------------------------


def export_adapter(
    update: Update,
    folder: str | Path,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write an update as a PEFT folder that `PeftModel.from_pretrained` loads; returns the folder.

    base: the base model's name or path, for the configuration. Scales are multiplied into B, so
    that alpha = r everywhere. An adapter that is in the folder is replaced as a whole; AdapterError
    if the folder holds anything else.
    """
    from peft import LoraConfig  # a second that reading does not have to wait for

    folder = Path(folder)
    if folder.exists() and (
        foreign := {child.name for child in folder.iterdir()} - {CONFIG, WEIGHTS}
    ):
        raise AdapterError(
            f"{folder} holds more than an exported adapter, for example {min(foreign)}: "
            "name a new folder"
        )
    ranks = {module: factors.A.shape[0] for module, factors in update.items()}
    largest = max(ranks.values())
    smaller = {re.escape(module): rank for module, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        target_modules=sorted(update),
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        lora_dropout=0.0,
        fan_in_fan_out=any(factors.is_transposed for factors in update.values()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    weights = {}
    for module, factors in update.items():
        for side, factor in (("A", factors.A), ("B", factors.scale * factors.B.double())):
            weights[f"{_PREFIX}{module}.lora_{side}.weight"] = factor.to(dtype).contiguous().cpu()
    with storage.whole(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
    return folder
