"""Speed as ratios measured in one run, printed by `make benchmark`.

Training: tokens per second of the Trainer against a bare PyTorch loop on the same batches.
Sampling: completions per second of `sampling.sample` against transformers' `generate` at its best
batch size. Geometry: all pairs of six adapters from their factors against dense matrices, of which
a few are measured and the rest extrapolated; what the tool measures of six, 28 and 100 large
adapters, and what it reads, in seconds and memory.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from adapter_geometry import adapters as reading
from adapter_geometry import geometry
from adapter_geometry.bands import compare_beside_chance
from adapter_geometry.chance import compare_by_chance
from adapter_geometry.report import findings
from adapter_geometry.updates import Factors
from helpers import profiles
from helpers.data import problems, rollouts
from helpers.models import loading, sampling
from helpers.training import objectives
from helpers.training.batches import RunRows, collate, rows_of, run_order
from helpers.training.trainer import ObjectiveTrainer

# Steps of training, and prompts of which K completions each are sampled.
SIZES = {"tiny": (12, 128), "smollm2-135m": (2, 16)}
BATCH_SIZES = (32, 64, 128, 256, 512)
QWEN = {
    "q_proj": (4096, 2560),
    "k_proj": (1024, 2560),
    "v_proj": (1024, 2560),
    "o_proj": (2560, 4096),
}
QWEN_LAYERS, QWEN_RANK = 36, 32
# Llama 3 70B: 80 layers of these seven
LARGE = {
    "k_proj": (1024, 8192),
    "v_proj": (1024, 8192),
    "q_proj": (8192, 8192),
    "o_proj": (8192, 8192),
    "gate_proj": (28672, 8192),
    "up_proj": (28672, 8192),
    "down_proj": (8192, 28672),
}
LARGE_LAYERS, LARGE_RANK = 80, 64
PATTERNS = 2000  # modules of the adapter that is read, each with a rank of its own


def best_of(repeats, work):
    """Shortest of a few timings, in seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def benchmark_training(study, steps):
    table = rollouts.with_group_columns(rollouts.load_table(study))
    run = study.runs["sft"]
    order = run_order(table, rows_of(table, run), run, steps)
    batches = [
        collate(table, order[first : first + run.batch_size])
        for first in range(0, len(order), run.batch_size)
    ]
    tokens = sum(int(batch["input_ids"].numel()) for batch in batches)

    def bare():
        model = loading.attach_adapter(loading.load_model(study), study.lora, run.init_seed)
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=run.learning_rate)
        for batch in batches:
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
            targets = batch["input_ids"][:, 1:, None]
            logp = torch.log_softmax(logits, -1).gather(-1, targets).squeeze(-1)
            logp = logp * batch["rows"].mask
            loss, weight = objectives.sft(logp, batch["rows"])
            (loss / weight).backward()
            torch.nn.utils.clip_grad_norm_(trained, run.clip)
            optimizer.step()
            optimizer.zero_grad()

    def ours():
        with_trainer(study, run, table, order, steps)

    bare_seconds, our_seconds = best_of(2, bare), best_of(2, ours)
    print(
        f"training {study.name}: bare loop {tokens / bare_seconds:,.0f} tokens/s, "
        f"ours {tokens / our_seconds:,.0f} tokens/s, "
        f"ratio {bare_seconds / our_seconds:.2f} (wanted: 0.85 or more)"
    )


def with_trainer(study, run, table, order, steps):
    model = loading.attach_adapter(loading.load_model(study), study.lora, run.init_seed)
    arguments = TrainingArguments(
        output_dir="results/benchmark",
        max_steps=steps,
        per_device_train_batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
    )
    trainer = ObjectiveTrainer(
        model=model,
        args=arguments,
        train_dataset=RunRows(order, 1),
        loss=objectives.sft,
        data_collator=lambda items: collate(table, [number for item in items for number in item]),
    )
    trainer.callback_handler.callbacks.clear()
    Trainer.train(trainer)


def benchmark_sampling(study, count):
    model = loading.load_model(study, "teacher")
    tokenizer = loading.load_tokenizer(study, "teacher")
    chosen = problems.problem_sets(study.problems)["train"][:count]
    prompts = [
        loading.prompt_ids(tokenizer, problem.question, study.problems.instruction)
        for problem in chosen
        for _ in range(study.rollouts.samples)
    ]
    limit, end_ids = study.rollouts.max_new_tokens, sampling.end_ids_of(model, tokenizer)

    def plain(batch_size):
        for first in range(0, len(prompts), batch_size):
            inputs = tokenizer.pad(
                {"input_ids": prompts[first : first + batch_size]},
                padding_side="left",
                return_tensors="pt",
            )
            model.generate(
                **inputs,
                max_new_tokens=limit,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                eos_token_id=sorted(end_ids),
                pad_token_id=tokenizer.pad_token_id,
            )

    def ours(batch_size):
        sampling.sample(
            model,
            prompts,
            max_new_tokens=limit,
            end_ids=end_ids,
            batch_size=batch_size,
            temperature=1.0,
        )

    plain_seconds = {
        size: best_of(1, lambda size=size: plain(size))
        for size in BATCH_SIZES
        if size <= len(prompts)
    }
    our_seconds = best_of(2, lambda: ours(study.rollouts.batch_size))
    best = min(plain_seconds, key=plain_seconds.get)
    print(
        f"sampling {study.name}: generate {len(prompts) / plain_seconds[best]:.1f} completions/s "
        f"at its best batch size {best}, ours {len(prompts) / our_seconds:.1f}, "
        f"ratio {plain_seconds[best] / our_seconds:.2f} (wanted: 1.5 or more)"
    )


def random_adapters(shapes, layers, rank, count=6):
    """Adapters of the given shapes with independent Gaussian factors; the time does not depend on
    their values."""
    return {
        f"run{run}": {
            f"model.layers.{layer}.self_attn.{projection}": Factors(
                torch.randn(d_out, rank), torch.randn(rank, d_in), 2.0
            )
            for layer in range(layers)
            for projection, (d_out, d_in) in shapes.items()
        }
        for run in range(count)
    }


def whole_geometry(adapters, nulls=0):
    """Everything of the chapters on norms, angles and decomposition; with `nulls`, the chance
    levels of the angles too."""
    compared = geometry.compare(adapters)
    for table in (geometry.updates_table, geometry.cosine_table, geometry.orthogonal_table):
        table(compared)
    geometry.angles_table(compared, compare_by_chance(adapters, nulls) if nulls else [compared])


def dense_seconds(shapes, layers, rank, count=6):
    """The dense way, extrapolated: each module's updates formed, decomposed and multiplied, one of
    each shape and kind measured."""
    total = 0.0
    for d_out, d_in in shapes.values():
        B, A = torch.randn(d_out, rank), torch.randn(rank, d_in)
        dense = B @ A
        decomposed = best_of(1, lambda dense=dense: torch.linalg.svd(dense, full_matrices=False))
        product = best_of(2, lambda dense=dense, B=B, A=A: ((B @ A) * dense).sum())
        total += layers * (count * decomposed + count * (count + 1) / 2 * product)
    return total


def alone(work, *arguments):
    """What a function returns in a process of its own, whose peak of memory is no other's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def tool_seconds(shapes, layers, rank, count, threads, has_bands, references=None):
    """(seconds, GB beyond the factors) of what `adapter-geometry compare` measures of adapters that
    were read."""
    torch.set_num_threads(threads)
    adapters = random_adapters(shapes, layers, rank, count)

    def measure():
        compared = (
            compare_beside_chance(adapters, references=references)[0]
            if has_bands
            else geometry.compare(adapters)
        )
        geometry.updates_table(compared)
        geometry.cosine_table(compared, references)
        geometry.orthogonal_table(compared, ["run0"])
        findings.tree(compared)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = best_of(3 if count == 6 else 1, measure)
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6


def reading_seconds(count):
    """Seconds to read an adapter of so many modules, each with a pattern for its rank."""
    modules = [
        f"model.layers.{number // 50}.mlp.experts.{number % 50}.up_proj" for number in range(count)
    ]
    ranks = {module: 1 + number % 4 for number, module in enumerate(modules)}
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": ranks}
    factors = {}
    for module, rank in ranks.items():
        factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, 64)
        factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(64, rank)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / reading.CONFIG).write_text(json.dumps(config))
        save_file(factors, Path(folder) / reading.WEIGHTS)
        return best_of(2, lambda: reading.load(folder))


def benchmark_geometry(study):
    configuration = loading.load_model(study).config
    shapes = {projection: 2 * (configuration.hidden_size,) for projection in study.lora.modules}
    adapters = random_adapters(shapes, configuration.num_hidden_layers, study.lora.rank)
    print(
        "geometry, six adapters at the tiny size: "
        f"{best_of(3, lambda: whole_geometry(adapters)):.2f} s, with chance levels "
        f"{best_of(2, lambda: whole_geometry(adapters, 8)):.2f} s (wanted: 2 or less)"
    )
    threads = torch.get_num_threads()
    plain, memory = alone(tool_seconds, QWEN, QWEN_LAYERS, QWEN_RANK, 6, threads, False)
    banded, more = alone(tool_seconds, QWEN, QWEN_LAYERS, QWEN_RANK, 6, threads, True)
    dense = dense_seconds(QWEN, QWEN_LAYERS, QWEN_RANK)
    print(
        f"geometry, six adapters of rank {QWEN_RANK} at Qwen3-4B's shapes "
        f"({QWEN_LAYERS * len(QWEN)} modules), {threads} threads, beyond reading: "
        f"{plain:.2f} s (wanted: 1.5 or less) and {memory:.2f} GB beyond the factors "
        f"(wanted: 1 or less), with chance levels {banded:.1f} s (wanted: 5 or less) and "
        f"{more:.2f} GB; dense, extrapolated from one module of each shape: {dense / 60:.0f} min; "
        f"ratio {dense / plain:,.0f} (wanted: 500 or more)"
    )
    seconds, memory = alone(tool_seconds, QWEN, QWEN_LAYERS, QWEN_RANK, 28, 1, True)
    print(
        f"geometry, 28 such adapters, 1 thread, with chance levels: {seconds:.0f} s (wanted: 40 or "
        f"less) and {memory:.2f} GB beyond the factors"
    )
    benchmark_large_model()
    seconds = alone(reading_seconds, PATTERNS)
    print(
        f"reading, {PATTERNS:,} modules with a rank of its own each: {seconds:.2f} s (wanted: 1 or "
        "less)"
    )
    for varied, options in {
        "adapters": [{"count": count} for count in (3, 6, 12)],
        "layers": [{"layers": layers} for layers in (9, 18, 36)],
        "rank": [{"rank": rank} for rank in (8, 16, 32)],
    }.items():
        seconds = []
        for option in options:
            grown = random_adapters(QWEN, **{"layers": 12, "rank": QWEN_RANK, **option})
            seconds.append(best_of(2, lambda grown=grown: geometry.compare(grown)))
        sizes = ", ".join(str(*option.values()) for option in options)
        print(f"  with {varied} {sizes}: {', '.join(f'{each:.2f}' for each in seconds)} s")


def benchmark_large_model():
    """100 adapters on a model of 70 billion: two modules are measured, and all of them estimated by
    a part that grows with the module's size and one that doesn't."""
    large, sizes = {}, [sum(LARGE[name]) for name in ("k_proj", "q_proj")]
    for name in ("k_proj", "q_proj"):
        shape = {name: LARGE[name]}
        large[name], _ = alone(tool_seconds, shape, 1, LARGE_RANK, 100, 1, False)
    shape = {"k_proj": LARGE["k_proj"]}
    banded, memory = alone(tool_seconds, shape, 1, LARGE_RANK, 100, 1, True, ["run0"])
    slope = (large["q_proj"] - large["k_proj"]) / (sizes[1] - sizes[0])
    at_zero = large["k_proj"] - slope * sizes[0]
    whole = LARGE_LAYERS * (len(LARGE) * at_zero + slope * sum(map(sum, LARGE.values())))
    print(
        f"geometry, 100 adapters of rank {LARGE_RANK}, 1 thread, one module of 1024 x 8192: "
        f"{large['k_proj']:.0f} s, with chance levels beside one of them {banded:.0f} s and "
        f"{memory:.2f} GB beyond the factors; of 8192 x 8192: {large['q_proj']:.0f} s. All "
        f"{LARGE_LAYERS * len(LARGE)} modules of a model of 70 billion, by their sizes and not "
        f"measured, without chance levels: about {whole / 3600:.1f} h"
    )


if __name__ == "__main__":
    benchmark_geometry(profiles.load("tiny"))
    torch.set_num_threads(1)
    for name, (steps, prompts) in SIZES.items():
        benchmark_training(profiles.load(name), steps)
        benchmark_sampling(profiles.load(name), prompts)
