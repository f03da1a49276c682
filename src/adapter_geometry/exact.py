"""PEFT adapters that are no plain LoRA, as updates: DoRA, LoHa, LoKr, AdaLoRA, OFT and others, and
LoRA on fused experts.

Before `adapters`, which hands it the folders that are no plain LoRA. The difference that a module's
weight undergoes is PEFT's own: each module stands alone in an empty model, PEFT puts the adapter in
and merges it, in float64, and what the merge changed is dW. AdaLoRA's B diag(E) A and the factors
of experts have the form scale B A already; all other differences become factors by `low_rank`,
which says what they lose. Reads the folder and, where dW depends on W0, the base's weights.
"""

import inspect
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from adapter_geometry import adapter_files, keys
from adapter_geometry.adapter_files import Tensors
from adapter_geometry.sources import CONFIG, AdapterError
from adapter_geometry.updates import Factors, Update

if TYPE_CHECKING:
    from adapter_geometry.base_weights import BaseWeights

# Rank at which a difference of high rank is cut, and what a singular value must exceed, relative to
# the first, to count at all.
RANK, NEGLIGIBLE = 64, 1e-6
# Randomised SVD (Halko et al. 2011): directions drawn beyond the rank, and power iterations.
_OVERSAMPLING, _ITERATIONS = 16, 3

# PEFT's kinds whose merge changes weight matrices and nothing else: how they are written, by
# `peft_type`. Of those in the second table dW does not depend on W0, and its shape is in the file.
KINDS = {
    "LORA": "LoRA",
    "ADALORA": "AdaLoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "OFT": "OFT",
    "BOFT": "BOFT",
    "C3A": "C3A",
    "DELORA": "DeLoRA",
    "FOURIERFT": "FourierFT",
    "GRALORA": "GraLoRA",
    "HIRA": "HiRA",
    "HRA": "HRA",
    "MISS": "MiSS",
    "RANDLORA": "RandLoRA",
    "SHIRA": "SHiRA",
    "VBLORA": "VB-LoRA",
    "VERA": "VeRA",
}
_SHAPES: dict[str, Callable[[Tensors], tuple[int, int]]] = {
    "LOHA": lambda parts: (parts["hada_w1_a"].shape[0], parts["hada_w1_b"].shape[1]),
    "LOKR": lambda parts: _kronecker_shape(parts),
}
# Of these a part is the same in all modules and stored once.
_SHARED = {"RANDLORA", "VBLORA", "VERA"}
# Fields of a configuration that say where the adapter goes or how it begins: the file says where,
# and what it begins with is replaced.
_ELSEWHERE = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
}
# Models whose fused experts are stored as (experts, d_in, d_out), as transformers tells PEFT
TRANSPOSED_EXPERTS = ("aria", "gpt_oss", "openai_privacy_filter")
# Ways of initialising that take scale B0 A0 out of W0 when training begins, so that the file's
# dW = scale B A is the difference from another base.
_MOVES_BASE = re.compile(r"pissa.*|olora|corda|lora_ga")
# Fields of a LoRA configuration that make it something else again.
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_MERGE = "save the model after `merge_and_unload()` and compare that folder, with --base"


# --- reading --------------------------------------------------------------------------------------


def read(
    folder: str | Path,
    config: Mapping[str, Any],
    base: "BaseWeights | None" = None,
    rank: int | None = None,
    lora_only: bool = False,
) -> tuple[Update, dict[str, float], list[str]]:
    """(update, errors, left_out) of a PEFT folder of any kind in `KINDS`, `config` being what its
    adapter_config.json says.

    errors: {module: |dW - scale B A|_F / |dW|_F} of the modules whose factors are no exact ones,
    since dW has a higher rank than `rank`, by default 64. A fused tensor of experts is one module
    per expert, named by its number: `model.layers.0.mlp.experts.gate_up_proj.3`. left_out: with
    `lora_only`, what else is in the file (heads, biases, tokens).
    Raises AdapterError where the kind changes more than weight matrices, where it needs W0 and no
    base is given, where the file does not fit its configuration or its base, and where PEFT is
    missing.
    """
    folder = Path(folder)
    kind = str(config.get("peft_type"))
    if kind not in KINDS:
        raise AdapterError(
            f"{folder}: adapters of PEFT's kind {kind} change more than weight matrices, or none; "
            f"where PEFT can merge it, {_MERGE}"
        )
    _check_config(folder, config)
    tensors = adapter_files.read_tensors(adapter_files.weights_files(folder))
    parts, shared, left_out = _by_module(folder, kind, tensors, lora_only)
    try:
        if kind == "LORA" and config.get("target_parameters"):
            return _experts(folder, config, parts, base), {}, left_out
        if kind == "ADALORA":
            return _adalora(config, parts, base), {}, left_out
        if kind not in _SHAPES and base is None:
            raise AdapterError(
                f"{folder}: the difference that {'DoRA' if kind == 'LORA' else KINDS[kind]} makes "
                "depends on the base's weights: name the base model with --base"
            )
        return *_cut(folder, config, parts, shared, base, rank or RANK), left_out
    except AdapterError:
        raise
    # PEFT's own checks, and what stands in a configuration that nobody checks
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, re.error) as error:
        raise AdapterError(
            f"{folder}: this {KINDS[kind]} adapter cannot be put together ({error}): {CONFIG} and "
            "the weights belong to different adapters, or the base to another model"
        ) from error


def _cut(
    folder: Path,
    config: Mapping[str, Any],
    parts: dict[str, Tensors],
    shared: Tensors,
    base: "BaseWeights | None",
    rank: int,
) -> tuple[Update, dict[str, float]]:
    """(update, errors) of differences that are no product of thin factors."""
    update = {}
    errors: dict[str, float] = {}
    differences = _differences(config, parts, shared, base)
    for module, difference, is_transposed in tqdm(
        differences, folder.name, len(parts), leave=False, disable=None
    ):
        if not torch.isfinite(difference).all():
            raise AdapterError(
                f"{folder}: the difference of {module} holds NaN or infinity: training diverged or "
                "the file is damaged; use an earlier checkpoint"
            )
        factors, error = low_rank(difference, rank)
        update[module] = Factors(factors.B.float(), factors.A.float(), 1.0, is_transposed)
        if error > NEGLIGIBLE:
            errors[module] = error
    return update, errors


def low_rank(
    difference: Float[Tensor, "d_out d_in"], rank: int, floor: float = 0.0
) -> tuple[Factors, float]:
    """(factors, error): the best approximation of a matrix of at most this rank, and
    |dW - B A|_F / |dW|_F, measured and not estimated. The matrix is used up.

    The singular values are shared evenly by B and A; those below 1e-6 of the first, or below
    `floor`, are left out, but for the first. By an SVD where the matrix is small, else by subspace
    iteration from a seeded Gaussian start (Halko et al. 2011), in the dtype of the matrix. A matrix
    of zeros has factors of zeros, of rank 1.

    >>> factors, error = low_rank(torch.diag(torch.tensor([4.0, 3.0, 0.0])), 1)
    >>> round(error, 6), factors.B.shape
    (0.6, torch.Size([3, 1]))
    """
    size = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    if not size:
        d_out, d_in = difference.shape
        return Factors(difference.new_zeros(d_out, 1), difference.new_zeros(1, d_in), 1.0), 0.0
    if min(difference.shape) <= 4 * (rank + _OVERSAMPLING):
        U, sigma, Vh = torch.linalg.svd(difference, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(
            difference.shape[1], rank + _OVERSAMPLING, generator=generator, dtype=difference.dtype
        )
        frame = torch.linalg.qr(difference @ start).Q
        for _ in range(_ITERATIONS):
            frame = torch.linalg.qr(difference.T @ frame).Q
            frame = torch.linalg.qr(difference @ frame).Q
        inside, sigma, Vh = torch.linalg.svd(frame.T @ difference, full_matrices=False)
        U = frame @ inside
    counting = int((sigma > max(NEGLIGIBLE * float(sigma[0]), floor)).sum())
    kept = min(rank, max(counting, 1))
    roots = sigma[:kept].sqrt()
    # clones: a view would keep all of U and V in memory
    B, A = (U[:, :kept] * roots).clone(), (roots[:, None] * Vh[:kept]).clone()
    difference.addmm_(B, A, alpha=-1)
    return Factors(B, A, 1.0), float(
        torch.linalg.vector_norm(difference, dtype=torch.float64)
    ) / size


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise AdapterError for a LoRA adapter whose factors alone do not say what changes."""
    start = config.get("init_lora_weights")
    if isinstance(start, str) and _MOVES_BASE.fullmatch(start):
        raise AdapterError(
            f"{folder}: init_lora_weights is {start!r} in {CONFIG}, which takes scale B0 A0 out of "
            "the base's weights before training, so that dW = scale B A is no difference from the "
            "base; save it from the trained model with "
            "`save_pretrained(folder, path_initial_model_for_weight_conversion=INITIAL)`, INITIAL "
            "being the folder of the adapter as it was initialised, or merge it and compare the "
            "models, with --base"
        )
    plain = config.get("use_dora") or config.get("target_parameters")
    unread = [field for field in _VARIANTS if config.get(field)]
    if config["peft_type"] == "LORA" and (unread or not plain or start == "loftq"):
        named = unread[0] if unread else "init_lora_weights"
        raise AdapterError(
            f"{folder}: {named} is {config.get(named)!r} in {CONFIG}, which is not of the form "
            f"dW = scale B A; {_MERGE}"
        )


def _by_module(
    folder: Path, kind: str, tensors: Tensors, lora_only: bool
) -> tuple[dict[str, Tensors], Tensors, list[str]]:
    """({module: {name of a part: tensor}}, what all modules share, what is left out)."""
    prefix = _peft().mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind].prefix
    parts: dict[str, Tensors] = defaultdict(dict)
    shared, left_out = {}, []
    for key, tensor in tensors.items():
        name, _ = keys.plain_name(key)
        if kind in _SHARED and name.startswith(f"base_model.{kind.lower()}_"):
            shared[name] = tensor
        elif (match := re.fullmatch(rf"(.+?)\.({prefix}.+)", name)) and match[2] != "lora_B.bias":
            part = match[2].replace(".default", "")
            if tensor.ndim > 2 and kind == "LORA":  # a convolution, which the base flattens too
                tensor = tensor.flatten() if "magnitude" in part else tensor.flatten(1)
            parts[match[1]][part] = tensor
        elif lora_only:
            left_out.append(name.removesuffix(".weight"))
        elif not name.endswith((".base_layer.weight", ".original_module.weight")):  # frozen copies
            raise AdapterError(
                f"{folder} holds more than a {KINDS[kind]} adapter, for example {key}: a head, a "
                "bias, an embedding with new tokens, or the like; --lora-only (lora_only=True) "
                "leaves such parts out and says which"
            )
    if not parts:
        raise AdapterError(f"{folder} holds no adapter at all: save it again after training it")
    return dict(sorted(parts.items())), shared, sorted(left_out)


# --- exact factors --------------------------------------------------------------------------------


def _adalora(
    config: Mapping[str, Any], parts: dict[str, Tensors], base: "BaseWeights | None"
) -> Update:
    """B diag(E) A alpha / rank, the rank being the one that training began with, as PEFT has it
    (Zhang et al. 2023); what the budget has pruned is not in the file, or has E = 0."""
    rank, alpha = config["init_r"], config["lora_alpha"]
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)  # PEFT's own guard against rank 0
    update = {}
    for module, tensors in parts.items():
        B, A, E = (tensors[f"lora_{side}"] for side in "BAE")
        _check_finite(module, B, A, E)
        update[module] = Factors(B, A * E.to(A), scale, bool(config.get("fan_in_fan_out")))
    return base.oriented(update) if base else update


def _experts(
    folder: Path,
    config: Mapping[str, Any],
    parts: dict[str, Tensors],
    base: "BaseWeights | None",
) -> Update:
    """The update of LoRA on fused experts (`target_parameters`) and on the linear modules beside
    them.

    PEFT keeps the factors of all experts in one A (experts x rank, d_in) and one B (d_out, rank x
    experts), the experts being the slower index of A and the faster one of B, and nests the
    parameters of one module: the first is innermost, `experts.base_layer.base_layer...`.
    """
    ranks, alphas = (
        keys.by_pattern(config.get(f"{field}_pattern"), config.get(default))
        for field, default in (("rank", "r"), ("alpha", "lora_alpha"))
    )
    is_transposed = base is not None and base.config.get("model_type") in TRANSPOSED_EXPERTS
    nested: dict[str, list[Tensors]] = defaultdict(list)
    for name, tensors in sorted(parts.items(), key=lambda item: -item[0].count(".base_layer")):
        nested[name.replace(".base_layer", "")].append(tensors)
    update = {}
    for module, layers in sorted(nested.items()):
        names = _parameters(folder, config, module, layers)
        for name, tensors in zip(names, layers, strict=True):
            A, B = tensors["lora_A.weight"], tensors["lora_B.weight"]
            _check_finite(name, A, B)
            rank, alpha = ranks(name), alphas(name)
            if not rank or A.shape[0] % rank or A.shape[0] != B.shape[1]:
                raise ValueError(
                    f"{name} has B {tuple(B.shape)} and A {tuple(A.shape)}, and rank {rank}"
                )
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            count = A.shape[0] // rank
            each_A, each_B = A.view(count, rank, -1), B.view(B.shape[0], rank, count)
            if name == module:
                update[name] = Factors(B, A, scale, bool(config.get("fan_in_fan_out")))
                continue
            for expert in range(count):
                # contiguous: B's columns of one expert lie apart in the file
                one = each_B[:, :, expert].contiguous()
                update[f"{name}.{expert}"] = Factors(one, each_A[expert], scale, is_transposed)
    return update


def _parameters(
    folder: Path, config: Mapping[str, Any], module: str, layers: list[Tensors]
) -> list[str]:
    """Full names of the parameters of a module that its nested adapters change, innermost first;
    the module itself where it is a linear one."""
    targets = (str(target).rpartition(".") for target in config["target_parameters"])
    names = [
        name for owner, _, name in targets if not owner or f".{module}".endswith(f".{owner}")
    ] or ["weight"]
    if len(names) == 2 and set(names) == {"gate_up_proj", "down_proj"}:
        # the innermost is the one that a model registers first: in all of transformers' experts
        # that is the wider one
        names = ["gate_up_proj", "down_proj"]
        sizes = [sum(each.shape[0] + each.shape[1] for each in layer.values()) for layer in layers]
        if sizes != sorted(sizes, reverse=True):
            names = names[::-1]
    elif len(names) > 1:
        names = []  # no order is known
    if len(names) != len(layers):
        raise AdapterError(
            f"{folder}: the file has {len(layers)} pairs of factors for {module}, and which of "
            f"target_parameters they belong to only the model knows; {_MERGE}"
        )
    return [module if name == "weight" else f"{module}.{name}" for name in names]


def _check_finite(module: str, *factors: Tensor) -> None:
    if not all(torch.isfinite(factor).all() for factor in factors):
        raise ValueError(f"{module} holds NaN or infinity")


# --- PEFT's own difference ------------------------------------------------------------------------


def _differences(
    config: Mapping[str, Any],
    parts: dict[str, Tensors],
    shared: Tensors,
    base: "BaseWeights | None",
) -> Iterator[tuple[str, Float[Tensor, "d_out d_in"], bool]]:
    """(module, dW, whether the base stores its transpose), one after the other, in float64."""
    kind = config["peft_type"]

    def weight_of(module: str) -> Float[Tensor, "_ _"]:
        if base is None:
            return torch.zeros(_SHAPES[kind](parts[module]), dtype=torch.float64)
        return base.weight(module).double()

    if kind in _SHARED:
        # What modules share is sized by the largest of them, so that PEFT must see them all; their
        # weights are expanded zeros, which need no memory, until a module's turn comes.
        zero = torch.zeros(1, 1, dtype=torch.float64)
        empty = {module: zero.expand(weight_of(module).shape) for module in parts}
        model = _adapted(config, parts, shared, empty)
        for module, weight in empty.items():
            yield module, _change(model, module, weight.clone()), False
        return
    for module, tensors in parts.items():
        weight = weight_of(module)
        is_transposed = _is_transposed(config, module, tensors, base)
        model = _adapted(config, {module: tensors}, {}, {module: weight}, is_transposed)
        difference = _change(model, module, weight)
        yield module, difference.T if is_transposed else difference, is_transposed


def _is_transposed(
    config: Mapping[str, Any], module: str, tensors: Tensors, base: "BaseWeights | None"
) -> bool:
    """Whether the base stores a module's weight as (d_in, d_out)."""
    if "lora_embedding_A" in tensors:
        return True
    if base is None:
        return False
    rows, columns = base.shape(module)
    B = tensors.get("lora_B.weight", torch.empty(rows, 0))
    A = tensors.get("lora_A.weight", torch.empty(0, columns))
    factors = Factors(B, A, 1.0, bool(config.get("fan_in_fan_out")))
    return base.oriented({module: factors})[module].is_transposed


def _adapted(
    config: Mapping[str, Any],
    parts: Mapping[str, Tensors],
    shared: Tensors,
    weights: Mapping[str, Float[Tensor, "_ _"]],
    is_transposed: bool = False,
) -> nn.Module:
    """A model of nothing but the given modules with the adapter in them, put in by PEFT.

    Raises ValueError where tensors are missing, superfluous or of another shape than the
    configuration says.
    """
    peft = _peft()
    model = nn.Module()
    for module, weight in weights.items():
        *owners, name = module.split(".")
        owner = model
        for each in owners:
            if each not in owner._modules:
                owner.add_module(each, nn.Module())
            owner = owner.get_submodule(each)
        owner.add_module(name, _layer(parts[module], weight, is_transposed))
    kind = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    known = inspect.signature(kind).parameters.keys() - _ELSEWHERE
    # PEFT draws where an adapter begins, and warns of a model without a configuration
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        settings = kind(**{field: config[field] for field in config if field in known})
        settings.target_modules = list(weights)
        adapted = peft.PeftModel(model, settings)
        named = {
            f"{keys.PREFIX}{module}.{part}": tensor
            for module, tensors in parts.items()
            for part, tensor in tensors.items()
        }
        try:
            loaded = peft.set_peft_model_state_dict(adapted, {**named, **shared})
        except RuntimeError as error:  # which lists the shapes, one a line
            raise ValueError(" ".join(str(error).split())) from error
    prefix = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[config["peft_type"]].prefix
    missing = [key for key in loaded.missing_keys if prefix in key and not shared]
    if different := [*loaded.unexpected_keys, *missing]:
        raise ValueError(f"{different[0]} is missing or does not belong there")
    whole: nn.Module = adapted.double()
    return whole


def _layer(tensors: Tensors, weight: Float[Tensor, "_ _"], is_transposed: bool) -> nn.Module:
    """The kind of layer that holds a weight, around the weight itself."""
    rows, columns = weight.shape
    layer: Any
    with torch.device("meta"):
        if "lora_embedding_A" in tensors:
            layer = nn.Embedding(rows, columns)
        elif is_transposed:
            from transformers.pytorch_utils import Conv1D

            layer = Conv1D(columns, rows)  # type: ignore[no-untyped-call]
        else:
            layer = nn.Linear(columns, rows, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    made: nn.Module = layer
    return made


@torch.no_grad()
def _change(model: nn.Module, module: str, weight: Float[Tensor, "_ _"]) -> Float[Tensor, "_ _"]:
    """What PEFT's merge adds to a module whose weight is `weight`."""
    layer: Any = model.get_submodule(f"{keys.PREFIX}{module}")
    holder = layer.get_base_layer()
    holder.weight.data = weight.clone()
    layer.merge(adapter_names=["default"])
    difference: Tensor = holder.weight.data.sub_(weight)
    holder.weight.data = weight.new_empty(0)  # or the model would keep the matrices of all modules
    return difference


def _kronecker_shape(parts: Tensors) -> tuple[int, int]:
    """Shape of the product W1 x W2 (Kronecker) of LoKr, each of which is whole or a product."""
    rows, columns = 1, 1
    for name in ("lokr_w1", "lokr_w2"):
        whole = parts.get(name)
        left, right = (parts[f"{name}{end}"] if whole is None else whole for end in ("_a", "_b"))
        rows, columns = rows * left.shape[0], columns * right.shape[1]
    return rows, columns


def _peft() -> Any:
    """PEFT, imported late: a second that plain LoRA does not wait for."""
    try:
        import peft
    except ImportError as error:
        raise AdapterError(
            "adapters other than plain LoRA are read by PEFT, which is not installed: "
            "pip install peft"
        ) from error
    return peft
