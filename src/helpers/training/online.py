"""Online training: GRPO and DAPO on rollouts that the policy generates itself, with TRL's trainer.

Beside the losses of `objectives` in the flow of data: `trainer` calls it for the runs that need no
table of rollouts. Writes no file itself.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

from helpers.data import grading, problems
from helpers.models import loading, sampling
from helpers.profiles import Profile, Run

warnings.filterwarnings("ignore", message=".*'rollout_func', which is an experimental feature.*")
ROLLOUTS_PER_PROMPT = 8
_OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "epsilon": 0.2},
    "dapo": {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "mask_truncated_completions": True,
    },
}


def trainer(
    profile: Profile,
    run: Run,
    model: PeftModel,
    settings: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> GRPOTrainer:
    """TRL's `GRPOTrainer` for a run: eight rollouts per prompt, reward as for the table, no penalty
    on the divergence from the base.

    A step samples `run.batch_size` completions from the policy of that moment, as the table's are
    sampled (temperature 1, nothing cut off), for prompts in the order in which a first pass of the
    other methods meets them, and updates once on all of them.
    settings: arguments that all runs share, as for transformers' `TrainingArguments`.

    `grpo` (2402.03300, without its divergence term) averages over tokens of a completion and then
    over completions. `dapo` (2503.14476) averages over all tokens, clips the ratio at .8 and 1.28
    and leaves truncated completions out; its dynamic sampling, which draws until each group is
    mixed, and its soft punishment of length are not in TRL's loss and not here. With one update per
    batch the ratio is 1, and no clip ever acts.

    Started in several processes, each samples and learns from its part of a step's completions; a
    group may lie in two parts. Prompts, draws, advantages and update are those of one process.

    Raises ValueError for a step that needs more problems than there are to train on, and, from TRL,
    for a batch that holds no whole number of groups.
    """
    tokenizer = loading.load_tokenizer(profile, run.base)
    end_ids = sampling.end_ids_of(model, tokenizer)
    # TRL takes a completion for a whole one too if its last token is the one for padding.
    tokenizer.pad_token = tokenizer.eos_token
    training_problems = problems.problem_sets(profile.problems)["train"]
    group = min(ROLLOUTS_PER_PROMPT, run.batch_size)
    if run.batch_size // group > len(training_problems):
        # TRL would stop before the first step.
        raise ValueError(
            f"run {run.name!r}: batch_size {run.batch_size} asks for {run.batch_size // group} "
            f"problems in a step, and profile {profile.name!r} has {len(training_problems)} to "
            "train on: lower batch_size or raise problems.train"
        )
    order = np.random.default_rng([run.seed, 0]).permutation(len(training_problems))
    dataset = Dataset.from_list(
        [
            {"prompt": training_problems[i].question, "answer": training_problems[i].answer}
            for i in order
        ]
    )

    prompt = loading.empty_prompt(tokenizer, profile.problems.instruction)

    def reward(
        completion_ids: Sequence[list[int]], answer: Sequence[str], **_: Any
    ) -> list[float | None]:
        texts = [sampling.text_of(tokenizer, ids, end_ids) for ids in completion_ids]
        return [
            float(grading.grade(text, gold, profile.problems.thought, prompt).correct)
            for text, gold in zip(texts, answer, strict=True)
        ]

    def rollout(questions: Sequence[str], trainer: Any) -> dict[str, Any]:
        instruction = profile.problems.instruction
        prompts = [loading.prompt_ids(tokenizer, question, instruction) for question in questions]
        # The processes sample consecutive parts of a step's completions.
        processes = trainer.accelerator
        part = trainer.state.global_step * processes.num_processes + processes.process_index
        first = part * len(prompts)
        completions = sampling.sample(
            trainer.model,
            prompts,
            max_new_tokens=profile.rollouts.max_new_tokens,
            end_ids=end_ids,
            batch_size=len(prompts),
            temperature=1.0,
            seed=run.seed,
            indices=range(first, first + len(prompts)),
        )
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}

    arguments = GRPOConfig(
        **settings,
        **_OPTIONS[run.objective],
        beta=0.0,
        num_iterations=1,
        num_generations=group,
        max_completion_length=profile.rollouts.max_new_tokens,
        temperature=1.0,
        shuffle_dataset=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # as in `trainer`
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
        rollout_func=rollout,
    )
