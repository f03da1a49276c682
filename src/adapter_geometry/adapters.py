"""TODO docstring."""

import functools
import json
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapter_geometry import storage
from adapter_geometry.updates import Factors

_PREFIX = "base_model.model."
_HUB = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What makes an adapter more than scale B A, by its field in PEFT's configuration, and the values that are harmless. The other ways of
# initialising (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change W0 as well.
_OTHERS = {
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
    """An adapter that cannot be used; the message names the file, what is wrong with it, and the way out."""


# --- reading -------------------------------------------------------------------------------------------------------


def read_config(adapter):
    """PEFT's configuration of an adapter folder, as a dict, checked to be that of a plain LoRA adapter.

    Raises AdapterError (a ValueError) for what is not a folder, holds no or a broken configuration, or another kind of adapter;
    FileNotFoundError where nothing lies.
    """
    folder = Path(adapter)
    if not folder.exists():
        raise FileNotFoundError(
            f"no adapter at {folder}: name a PEFT folder, such as results/tiny/runs/sft/adapter"
        )
    if not folder.is_dir():
        raise AdapterError(
            f"{folder} is not a folder: name the folder that holds {CONFIG}, not a file in it"
        )
    path = _inside(folder, CONFIG)
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter ({CONFIG} is missing): name a PEFT folder, such as results/tiny/runs/sft/adapter"
        )
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} cannot be read as JSON ({error}): save the adapter again with `save_pretrained`"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(
            f"{path}: peft_type is {kind!r}; only LORA adapters have the form dW = scale B A"
        )
    for field, harmless in _OTHERS.items():
        if (value := config.get(field)) not in harmless:
            raise AdapterError(
                f"{folder} is not a plain LoRA adapter: {field} is {value!r} in {CONFIG}, which is not of the form dW = scale B A; "
                "merge it into its base and compare the models, or train without it"
            )
    return config


def load_update(adapter):
    """{module: Factors} of a PEFT LoRA folder, modules named as in the base model.

    Rank and scale are each module's own: `rank_pattern`, `alpha_pattern`, alpha / sqrt(r) with rsLoRA. Only safetensors are read, and the
    factors are mapped from the file, not copied into memory, so that many adapters fit.
    Raises FileNotFoundError for a folder without an adapter and AdapterError for one that is not of the form scale B A, or is damaged:
    a factor missing, of another shape than the configuration says, or not finite.
    """
    config, path = read_config(adapter), _weights_file(Path(adapter))
    try:
        with safe_open(path, "pt") as stored:
            weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path} cannot be read ({error}): it is truncated or not a safetensors file; copy or save it again"
        ) from error
    foreign = [
        key
        for key in weights
        if not (key.startswith(_PREFIX) and key.endswith((".lora_A.weight", ".lora_B.weight")))
    ]
    if foreign:
        raise AdapterError(
            f"{path} holds more than LoRA factors of linear modules, for example {foreign[0]}; only dW = scale B A is covered"
        )
    modules = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in weights})
    if not modules:
        raise AdapterError(
            f"{path} holds no factors at all: save the adapter again after training it"
        )
    return {module: _factors(path, config, module, weights) for module in modules}


def fetch(place, patterns=(CONFIG, WEIGHTS)):
    """The local folder of a path or hub id (`owner/name` or `owner/name/folder`); only files that match are fetched, none of them code.

    Raises FileNotFoundError for what is no folder and can't be had from the hub.
    """
    folder = Path(place)
    if folder.exists() or not _HUB.fullmatch(str(place)) or ".." in folder.parts:
        return folder
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, name, *inside = str(place).split("/")
    try:
        return Path(
            _snapshot(
                f"{owner}/{name}", tuple("/".join([*inside, pattern]) for pattern in patterns)
            ),
            *inside,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{place} is no folder here, and the hub does not give it ({type(error).__name__}): check the name or the network"
        ) from error


@functools.cache
def _snapshot(repository, patterns):
    """Folder of the files of a hub repository that match, asked for once a process."""
    from huggingface_hub import snapshot_download  # half a second that local folders do not need

    return snapshot_download(repository, allow_patterns=list(patterns))


def _factors(path, config, module, weights):
    """One module's `Factors`, checked."""
    pair = [weights.get(f"{_PREFIX}{module}.lora_{side}.weight") for side in "BA"]
    for side, factor in zip("BA", pair, strict=True):
        if factor is None:
            raise AdapterError(
                f"{path}: {module} has no lora_{side}: the file is incomplete; save the adapter again"
            )
        if factor.ndim != 2:
            raise AdapterError(
                f"{path}: lora_{side} of {module} has shape {tuple(factor.shape)}, and only linear modules are covered"
            )
        if not factor.is_floating_point():
            raise AdapterError(
                f"{path}: lora_{side} of {module} is stored as {factor.dtype}; only bfloat16, float16, float32 and float64 are read"
            )
        if not torch.isfinite(factor.float()).all():
            raise AdapterError(
                f"{path}: lora_{side} of {module} holds NaN or infinity: training diverged or the file is damaged; use an earlier checkpoint"
            )
    B, A = pair
    try:
        rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
        alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    except (AttributeError, re.error) as error:
        raise AdapterError(
            f"{path.with_name(CONFIG)}: rank_pattern or alpha_pattern does not map regular expressions to numbers ({error})"
        ) from error
    if not B.shape[1] == A.shape[0] == rank or not rank:
        raise AdapterError(
            f"{path}: {module} has B {tuple(B.shape)} and A {tuple(A.shape)}, but the configuration says rank {rank}: "
            f"{CONFIG} and {WEIGHTS} belong to different adapters"
        )
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(
            f"{path.with_name(CONFIG)}: lora_alpha is {alpha!r} for {module}; it must be a number"
        )
    return Factors(
        B,
        A,
        alpha / (rank**0.5 if config.get("use_rslora") else rank),
        bool(config.get("fan_in_fan_out")),
    )


def _weights_file(folder):
    path = _inside(folder, WEIGHTS)
    if not path.exists():
        if (folder / "adapter_model.bin").exists():
            raise AdapterError(
                f"{folder} holds adapter_model.bin, a pickle, which can run code when it is opened. If you trust it, convert it there: "
                'python -c "import torch; from safetensors.torch import save_file; '
                f"save_file(torch.load('adapter_model.bin', weights_only=True), '{WEIGHTS}')\""
            )
        raise FileNotFoundError(
            f"{folder} holds no adapter ({WEIGHTS} is missing): save it with `save_pretrained`"
        )
    return path


def _inside(folder, name):
    """The file of a folder; AdapterError if it is a link that leads elsewhere (the blobs of a hub cache excepted)."""
    path = folder / name
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()) and not _is_cached(folder, target):
        raise AdapterError(
            f"{path} leads out of its folder, to {target}: copy the file into the folder"
        )
    return path


def _is_cached(folder, target):
    """Whether a file is one of the blobs of the hub cache, models--x/snapshots/revision/, that a folder lies in."""
    return target.parent in [
        parent.with_name("blobs")
        for parent in folder.resolve().parents
        if parent.name == "snapshots"
    ]


def _by_pattern(pattern, module, default):
    """A module's value in PEFT's `rank_pattern` or `alpha_pattern`, whose keys are regular expressions for the end of the name."""
    return next(
        (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
        default,
    )


def common_modules(adapters):
    """(adapters, left_out): updates {run: update} restricted to the modules that all have, and {run: modules} left out.

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
    kept = {
        run: {module: factors for module, factors in update.items() if module in shared}
        for run, update in adapters.items()
    }
    return kept, {run: sorted(set(update) - shared) for run, update in adapters.items()}


def export_adapter(update, folder, base=None, dtype=torch.float32):
    """Write an update as a PEFT folder that `PeftModel.from_pretrained` loads; returns the folder.

    base: the base model's name or path, for the configuration. Scales are multiplied into B, so that alpha = r everywhere. An adapter that
    lies there is replaced as a whole; AdapterError if the folder holds anything else.
    """
    from peft import LoraConfig  # a second that reading does not have to wait for

    folder = Path(folder)
    if folder.exists() and (
        others := {child.name for child in folder.iterdir()} - {CONFIG, WEIGHTS}
    ):
        raise AdapterError(
            f"{folder} holds more than an exported adapter, for example {min(others)}: name a new folder"
        )
    ranks = {module: factors.A.shape[0] for module, factors in update.items()}
    usual = max(ranks.values())
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        target_modules=sorted(update),
        rank_pattern=others,
        alpha_pattern=dict(others),
        lora_dropout=0.0,
        fan_in_fan_out=any(factors.is_transposed for factors in update.values()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    weights = {}
    for module, factors in update.items():
        weights[f"{_PREFIX}{module}.lora_A.weight"] = factors.A.to(dtype).contiguous().cpu()
        weights[f"{_PREFIX}{module}.lora_B.weight"] = (
            (factors.scale * factors.B.double()).to(dtype).contiguous().cpu()
        )
    with storage.whole(folder) as beside:
        config.save_pretrained(beside)
        save_file(weights, beside / WEIGHTS, metadata={"format": "pt"})
    return folder
