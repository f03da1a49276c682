"""Adapters and fine-tuned models, from disk or hub, checked and read as updates, restricted to the
modules that several have in common, and written again.

Comes after `updates`, whose factors it reads and writes, and before everything that measures them.
`sources` says which folder is meant; plain LoRA is read by `lora`, PEFT's other kinds by `exact`,
whole models by `full_models`. Reads the folders it is given and, for a hub id, the hub and its
cache; writes only the folder that `export_adapter` is given. Whatever is no update of weight
matrices is refused or left out by request, never guessed.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapter_geometry import adapter_files, keys, lora, sources, storage
from adapter_geometry.adapter_files import Tensors
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.keys import PREFIX
from adapter_geometry.sources import CONFIG as CONFIG
from adapter_geometry.sources import WEIGHTS as WEIGHTS
from adapter_geometry.sources import AdapterError as AdapterError
from adapter_geometry.updates import Adapters, Factors, Update
from adapter_geometry.wording import counted

# What makes an adapter more than scale B A, by its field in PEFT's configuration, and the values
# that are harmless. The other ways of initialising (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change W0
# as well.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
# What `exact` cannot read either: the update depends on the token, or on which layer it is put in.
_NO_MATRIX = ("alora_invocation_tokens", "layer_replication", "arrow_config")


@dataclass(frozen=True)
class Loaded:
    """An adapter or a fine-tuned model, read.

    - update: {module: factors}; modules are named as in the base model.
    - kind: "LoRA", "DoRA", ..., "full model".
    - config: what its adapter_config.json says; {} for a full model.
    - notes: sentences on how it was read, without its name.
    - left_out: parts of the file that are no update of a weight matrix, such as a trained head.
    - errors: {module: relative Frobenius error of its factors}, of modules that are not exact.
    - files: {name of a file that was read: its SHA-256}.
    - origin: the path or hub id as it was given; revision: the commit of what came from the hub.
    """

    update: Update
    kind: str
    config: dict[str, Any]
    notes: list[str]
    left_out: list[str]
    errors: dict[str, float]
    files: dict[str, str]
    origin: str
    revision: str | None


# --- reading --------------------------------------------------------------------------------------


def load(
    path_or_id: str | Path,
    base: BaseWeights | None = None,
    lora_only: bool = False,
    rank: int | None = None,
) -> Loaded:
    """Read an adapter or a fine-tuned model from a folder or the hub (see `sources.resolve`).

    base: the base model, which adapters whose update depends on W0 and whole models need, and by
    which it is known how each module is stored. lora_only: parts that are no update of a weight
    matrix (heads, biases, tokens) are left out instead of refused. rank: at which differences of
    high rank are cut.
    Raises AdapterError for what cannot be read or is damaged, FileNotFoundError for what is not
    there.
    """
    source = sources.resolve(path_or_id)
    folder, notes = source.folder, [source.note] if source.note else []
    left_out: list[str] = []
    errors: dict[str, float] = {}
    config: dict[str, Any] = {}
    if source.kind == "model":
        if base is None:
            raise AdapterError(
                f"{path_or_id} is a whole model, whose update is its difference from the base it "
                "was trained from: name that with --base"
            )
        from adapter_geometry import full_models

        kind, files = "full model", sorted(folder.glob("model*.safetensors"))
        update, errors = full_models.difference(base, folder, rank)
        more, left_out = full_models.unread(base, folder)
        notes += more
    else:
        config = adapter_files.read_config(folder)
        if "fine_tune_type" in config:
            kind, files = "LoRA", [lora.mlx_file(folder, config)]
            update = lora.read_mlx(files[0], config)
            notes.append("an adapter of MLX, whose scale is taken as it is in its configuration")
        elif reason := _not_plain(config):
            if reason in _NO_MATRIX:
                raise AdapterError(
                    f"{folder}: {reason} is {config[reason]!r} in {CONFIG}, so that its update is "
                    "not one matrix for each module of the base: train without it"
                )
            from adapter_geometry import exact

            kind = exact.KINDS.get(str(config.get("peft_type")), str(config.get("peft_type")))
            kind = "DoRA" if reason == "use_dora" else kind
            files = adapter_files.weights_files(folder)
            if not lora_only:
                lora.check_beside(folder, config)
            update, errors, left_out = exact.read(folder, config, base, rank, lora_only)
            if left_out:
                notes.append(lora.note_on(left_out))
        else:
            kind, files = "LoRA", adapter_files.weights_files(folder)
            update, more, left_out = lora.read(files, config, base, lora_only)
            notes += more
        files = [folder / CONFIG, *files]
    if errors:
        worst = max(errors, key=lambda module: errors[module])
        notes.append(
            f"{counted(len(errors), 'module')} of higher rank than their factors, which are "
            f"off by up to {errors[worst]:.2g} of the update's norm, in {worst}"
        )
    return Loaded(
        update=update,
        kind=kind,
        config=config,
        notes=notes,
        left_out=left_out,
        errors=errors,
        files={path.name: adapter_files.sha256(path) for path in files},
        origin=source.origin,
        revision=source.revision,
    )


def load_update(adapter: str | Path) -> Update:
    """{module: Factors} of the folder of a plain LoRA adapter with the names that PEFT gives and
    nothing beside it, modules named as in the base model; `load` reads others too.

    Rank and scale are each module's own: `rank_pattern`, `alpha_pattern`, alpha / sqrt(r) with
    rsLoRA. Only safetensors are read, and the factors are mapped from the file, not copied into
    memory, so that many adapters fit.
    Raises FileNotFoundError for a folder without an adapter and AdapterError for one that is not of
    the form scale B A, or is damaged: a factor missing, of another shape than the configuration
    says, or not finite.
    """
    folder = Path(adapter)
    if not folder.exists():
        raise FileNotFoundError(f"no adapter at {folder}: name a folder that holds {CONFIG}")
    if not folder.is_dir():
        raise AdapterError(
            f"{folder} is not a folder: name the folder that holds {CONFIG}, not a file in it"
        )
    config = adapter_files.read_config(folder)
    if reason := _not_plain(config):
        raise AdapterError(
            f"{folder} is not a plain LoRA adapter: {reason} is {config.get(reason)!r} in {CONFIG};"
            " only dW = scale B A is read here, other kinds by `adapter_geometry.adapters.load`"
        )
    update, notes, _ = lora.read(adapter_files.weights_files(folder), config, None, lora_only=False)
    if notes:
        raise AdapterError(
            f"{folder} is no adapter as PEFT names its tensors ({'; '.join(notes)}): "
            "`adapter_geometry.adapters.load` reads it, and says so"
        )
    return update


def _not_plain(config: Mapping[str, Any]) -> str | None:
    """The field that makes an adapter more than scale B A; None for a plain one."""
    if config.get("peft_type") != "LORA":
        return "peft_type"
    fields = (field for field, harmless in _HARMLESS.items() if config.get(field) not in harmless)
    return next(fields, None)


# --- several adapters ----------------------------------------------------------------------------


def aligned(adapters: Adapters) -> tuple[dict[str, Update], dict[str, list[str]]]:
    """(adapters, notes): updates {run: update} with each module called as in the first of them, and
    {run: notes} on what was renamed.

    Names of one module differ between a model with and without its head and between versions of
    transformers (`keys.same_modules`); only modules of equal shapes are taken for one.
    """
    (first, reference), *others = adapters.items()
    renamed = {first: dict(reference)}
    notes: dict[str, list[str]] = {first: []}
    for run, update in others:
        same = {
            module: other
            for module, other in keys.same_modules(update, reference).items()
            if _shape(update[module]) == _shape(reference[other])
        }
        renamed[run] = {same.get(module, module): each for module, each in update.items()}
        notes[run] = (
            [
                f"{counted(len(same), 'module')} called otherwise than in {first} and taken "
                f"for the same, for example {min(same)} and {same[min(same)]}"
            ]
            if same
            else []
        )
    return renamed, notes


def _shape(factors: Factors) -> tuple[int, int]:
    return factors.B.shape[0], factors.A.shape[1]


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


# A fused tensor of experts is one module per expert, `...experts.gate_up_proj.3` (see `exact`).
EXPERT = re.compile(r"(?P<parameter>(?P<owner>.+\.experts)\.\w+)\.(?P<number>\d+)")
# Parameters of one module in the order in which PEFT nests their factors, the innermost first.
_NESTED = ("gate_up_proj", "down_proj")


def require_own(folder: str | Path) -> Path:
    """The path of a folder that an exported adapter may take the place of: there is none, or it is
    empty or holds an exported adapter and nothing else; AdapterError otherwise."""
    return storage.require_replaceable(folder, {CONFIG, WEIGHTS}, "an exported adapter")


def export_adapter(
    update: Update,
    folder: str | Path,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
    embeddings: Collection[str] = (),
    kernels: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write an update as a PEFT folder that `PeftModel.from_pretrained` loads; returns the folder.

    Scales are multiplied into B, so that alpha = r everywhere. Experts of one fused tensor are
    written together, all at their largest rank.
    base: the base model's name or path, for the configuration. config: further fields of PEFT's
    configuration, such as `task_type`; without one the folder loads on a model of any kind, as a
    plain `PeftModel`. embeddings: the modules that are embeddings. kernels: of the modules that are
    convolutions, the shape of the kernel, (channels in, height, width).
    An adapter that is in the folder is replaced as a whole; AdapterError if the folder holds
    anything else, or for experts that PEFT cannot hold.
    """
    from peft import LoraConfig  # a second that reading does not have to wait for

    path = require_own(folder)
    experts = _fused(update)
    modules = {module: part for module, part in update.items() if not EXPERT.fullmatch(module)}
    ranks = {module: part.A.shape[0] for module, part in modules.items()}
    ranks |= {parameter: _rank(parts) for parameter, parts in experts.items()}
    largest = max(ranks.values())
    # PEFT looks for a key at the end of a name: from its start on it is that of one module alone
    smaller = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != largest}
    settings = LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        lora_dropout=0.0,
        fan_in_fan_out=any(
            part.is_transposed for module, part in modules.items() if module not in embeddings
        ),
        target_parameters=sorted(experts) or None,
        base_model_name_or_path=base,
        inference_mode=True,
        **(config or {}),
    )
    # PEFT makes a set of it, which it saves in any order
    settings.target_modules = sorted(modules) or None
    weights: Tensors = {}
    for module, part in modules.items():
        kernel = (kernels or {}).get(module, ())
        weights |= _stored(module, part, module in embeddings, kernel)
    for parameter, parts in experts.items():
        weights |= _stored_experts(parameter, parts, experts)
    with storage.whole(path) as temporary:
        settings.save_pretrained(str(temporary))
        contiguous = {
            f"{PREFIX}{name}": factor.to(dtype).contiguous().cpu()
            for name, factor in weights.items()
        }
        save_file(contiguous, temporary / WEIGHTS, metadata={"format": "pt"})
    return Path(folder)


def _stored(module: str, part: Factors, is_embedding: bool, kernel: tuple[int, ...]) -> Tensors:
    """{name after PEFT's prefix: factor} of a module, the scale in B."""
    B, A = part.scale * part.B.double(), part.A
    if is_embedding:  # PEFT's factors are those of W'
        B, A = (B, A) if part.is_transposed else (A.T, B.T)
        return {f"{module}.lora_embedding_A": A, f"{module}.lora_embedding_B": B}
    if kernel:
        A, B = A.reshape(len(A), *kernel), B.reshape(*B.shape, *(1 for _ in kernel[1:]))
    return {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}


def _fused(update: Update) -> dict[str, list[Factors]]:
    """{name of a fused tensor of experts: the factors of each of them}."""
    found: dict[str, dict[int, Factors]] = {}
    for module, part in update.items():
        if match := EXPERT.fullmatch(module):
            found.setdefault(match["parameter"], {})[int(match["number"])] = part
    for parameter, parts in found.items():
        if missing := set(range(max(parts) + 1)) - parts.keys():
            raise AdapterError(
                f"{parameter} has no update of expert {min(missing)}, and PEFT holds those of all"
            )
    return {name: [parts[number] for number in sorted(parts)] for name, parts in found.items()}


def _rank(parts: Sequence[Factors]) -> int:
    """The largest rank of experts of one tensor."""
    return max(part.A.shape[0] for part in parts)


def _stored_experts(parameter: str, parts: list[Factors], all_names: Collection[str]) -> Tensors:
    """{name after PEFT's prefix: factor} of a fused tensor: one A (experts x rank, d_in), the
    experts slower, and one B (d_out, rank x experts), the experts faster."""
    owner, _, last = parameter.rpartition(".")
    beside = {name.rpartition(".")[2] for name in all_names if name.rpartition(".")[0] == owner}
    if len(beside) > 1 and beside != set(_NESTED):
        raise AdapterError(
            f"{owner} has updates of {', '.join(sorted(beside))}, which PEFT nests in an order "
            "that only the model knows"
        )
    inner = ".base_layer" if len(beside) > 1 and last == _NESTED[0] else ""
    rank = _rank(parts)
    pad = torch.nn.functional.pad
    A = [pad(part.A, (0, 0, 0, rank - len(part.A))) for part in parts]
    B = [pad(part.scale * part.B.double(), (0, rank - len(part.A))) for part in parts]
    return {
        f"{owner}{inner}.lora_A.weight": torch.cat(A),
        f"{owner}{inner}.lora_B.weight": torch.stack(B, 2).flatten(1),
    }
