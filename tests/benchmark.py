"""Speed as ratios measured in one run, printed by `make benchmark`.

Training: tokens per second of the Trainer against a bare PyTorch loop on the same batches. Sampling: completions per second
of `rollouts.sample` against transformers' `generate` at its best batch size.
"""

import time

import torch
from transformers import Trainer, TrainingArguments

from helpers import models, objectives, problems, profiles, rollouts, training

STEPS = 12
PROMPTS = 512
BATCH_SIZES = (64, 128, 256, 512)


def best_of(repeats, work):
    """Shortest of a few timings, in seconds."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def benchmark_training(study):
    table = rollouts.with_group_columns(rollouts.load_table(study))
    run = study.runs["sft"]
    order = training.row_order(rollouts.select(table, "all"), list(table.problem_id.unique()), run.seed, STEPS * run.batch_size)
    batches = [training.collate(table, order[first:first + run.batch_size]) for first in range(0, len(order), run.batch_size)]
    tokens = sum(int(batch["input_ids"].numel()) for batch in batches)

    def bare():
        model = models.attach_adapter(models.load_model(study), study, run.init_seed)
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=run.learning_rate)
        for batch in batches:
            logp = models.token_logprobs(model, batch["input_ids"], batch["completion_mask"])
            loss, weight = objectives.sft(logp, batch["rows"])
            (loss / weight).backward()
            torch.nn.utils.clip_grad_norm_(trained, run.clip)
            optimizer.step()
            optimizer.zero_grad()

    def ours():
        with_trainer(study, run, table, order)

    bare_seconds, our_seconds = best_of(2, bare), best_of(2, ours)
    print(f"training: bare loop {tokens / bare_seconds:,.0f} tokens/s, ours {tokens / our_seconds:,.0f} tokens/s, "
          f"ratio {bare_seconds / our_seconds:.2f} (wanted: 0.85 or more)")


def with_trainer(study, run, table, order):
    model = models.attach_adapter(models.load_model(study), study, run.init_seed)
    arguments = TrainingArguments(output_dir="results/benchmark", max_steps=STEPS, per_device_train_batch_size=run.batch_size,
                                  learning_rate=run.learning_rate, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
                                  remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=1)
    trainer = training.ObjectiveTrainer(model=model, args=arguments, train_dataset=training.RunRows(order, 1), loss=objectives.sft,
                                        data_collator=lambda items: training.collate(table, [number for item in items for number in item]))
    trainer.callback_handler.callbacks.clear()
    Trainer.train(trainer)


def benchmark_sampling(study):
    model, tokenizer = models.load_model(study, "teacher"), models.load_tokenizer(study, "teacher")
    chosen = problems.problem_sets(study.problems)["train"][:PROMPTS]
    prompts = [models.prompt_ids(tokenizer, problem.question, study.problems.instruction) for problem in chosen]
    limit = study.rollouts.max_new_tokens

    def plain(batch_size):
        for first in range(0, len(prompts), batch_size):
            inputs = tokenizer.pad({"input_ids": prompts[first:first + batch_size]}, padding_side="left", return_tensors="pt")
            model.generate(**inputs, max_new_tokens=limit, do_sample=True, top_k=0, top_p=1.0, eos_token_id=tokenizer.eos_token_id,
                           pad_token_id=tokenizer.pad_token_id)

    def ours(batch_size):
        rollouts.sample(model, prompts, max_new_tokens=limit, end_id=tokenizer.eos_token_id, batch_size=batch_size, temperature=1.0)

    plain_seconds = {size: best_of(1, lambda size=size: plain(size)) for size in BATCH_SIZES}
    our_seconds = best_of(2, lambda: ours(study.rollouts.batch_size))
    best = min(plain_seconds, key=plain_seconds.get)
    print(f"sampling: generate {len(prompts) / plain_seconds[best]:.1f} completions/s at its best batch size {best}, ours {len(prompts) / our_seconds:.1f}, "
          f"ratio {plain_seconds[best] / our_seconds:.2f} (wanted: 1.5 or more)")


if __name__ == "__main__":
    torch.set_num_threads(1)
    benchmark_training(profiles.load("tiny"))
    benchmark_sampling(profiles.load("tiny"))
