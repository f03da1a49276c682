"""Greedy answers of every model to every held-out problem, and sampled ones to a few.

Comes after `training`, before `likelihood` and `statistics`. Records have one row per problem,
stored per run under `results/<profile>/` and reused while they fit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from adapter_geometry import storage
from helpers import store
from helpers.data import grading, problems, rollouts
from helpers.data.problem import TRAINED_ON, Problem
from helpers.models import loading, sampling
from helpers.models.loading import LanguageModel
from helpers.models.sampling import SamplingEngine
from helpers.profiles import Profile, Run
from helpers.training import trainer

RunOrModel = Run | str
"""A run, or one of the profile's models by its name."""

# The first ones of the test split, for every control; all 1319 would cost as much as training it.
CONTROL_PROBLEMS = 600
RECIPE = 2  # raised whenever the numbers of evaluation change, as `trainer.RECIPE`


def name_of(run: RunOrModel) -> str:
    """The name of a run, or of a model."""
    return run if isinstance(run, str) else run.name


def load_writer(profile: Profile, run: RunOrModel) -> LanguageModel | SamplingEngine:
    """What answers problems as a run or a model: `load_model_of`, or vLLM where it is the profile's
    engine."""
    if profile.compute.engine == "transformers":
        return load_model_of(profile, run)
    from helpers.models import engine  # needs vLLM, which few machines have

    if isinstance(run, str):
        return engine.Engine(profile, run)
    return engine.Engine(profile, run.base, trainer.train(profile, run) / "adapter")


def load_model_of(profile: Profile, run: RunOrModel) -> PreTrainedModel:
    """The model that a run produced, or one of the profile's models. The adapter is merged in
    float32; in other dtypes it stays beside the weights."""
    if isinstance(run, str):
        return loading.load_model(profile, run)
    adapted = loading.load_adapted(profile, run, trainer.train(profile, run) / "adapter")
    if profile.compute.dtype == "float32":
        return cast(PreTrainedModel, adapted.merge_and_unload())
    # In bfloat16 a merged update would be rounded to the weights' three digits, and a short one be
    # lost.
    return loading.causal_model(adapted)


def identity(profile: Profile, run: RunOrModel, part: str) -> str:
    """Hash of all that determines a record of a run or a model, with the recipe's number in place
    of the code; part: the record's folder."""
    compute = profile.compute.model_dump(include={"dtype", "engine"}, exclude_defaults=True)
    return storage.digest(
        {
            "model": (
                loading.model_digest(profile.name, run)
                if isinstance(run, str)
                else trainer.identity(profile, run)
            ),
            # Not named where it is the default: identities are older than the choice.
            **({"compute": compute} if compute else {}),
            "part": part,
            "evaluation": profile.evaluation.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "control_problems": CONTROL_PROBLEMS,
            "recipe": RECIPE,
        }
    )


def load_or_compute(
    profile: Profile,
    run: RunOrModel,
    part: str,
    compute: Callable[[], pd.DataFrame],
    settings: str = "",
) -> pd.DataFrame:
    """The stored record of a run or a model in the folder `part`, or `compute()`, which is then
    stored; settings: what determines the record besides its `identity`, as text."""
    is_in_profile = isinstance(run, str) or profile.runs.get(run.name) == run
    return store.load_or_compute_record(
        profile.name,
        part,
        name_of(run),
        identity(profile, run, part + settings),
        store.code_digest("helpers.evaluation.answering", "helpers.evaluation.likelihood"),
        compute,
        is_in_profile,
    )


def answer(
    profile: Profile,
    model: LanguageModel | SamplingEngine,
    chosen: Sequence[Problem],
    temperature: float = 0.0,
    seed: int = 0,
    name: str = "",
    opening: str = "",
) -> pd.DataFrame:
    """Completions of the given problems by `model`, graded: one row per problem, in the order
    given.

    temperature: 0 is greedy. name: on the progress bar. `opening` puts the first words into the
    model's mouth; the completion is what follows them.

    Columns: problem_id, split, steps, completion, answer, status, correct, correct_flexible (by the
    last number, boxed or not), tokens, truncated, prompt_ids, completion_ids.
    """
    torch.set_num_threads(profile.evaluation.threads)
    tokenizer = loading.load_tokenizer(profile)
    end_ids = sampling.end_ids_of(model, tokenizer)
    opening_ids = tokenizer(opening, add_special_tokens=False).input_ids if opening else []
    instruction = profile.problems.instruction
    prompts = [
        loading.prompt_ids(tokenizer, problem.question, instruction) + opening_ids
        for problem in chosen
    ]
    before = loading.empty_prompt(tokenizer, instruction) + opening
    with tqdm(total=len(prompts), desc=f"answering {name}", unit="problem") as progress:
        completions = sampling.sample(
            model,
            prompts,
            max_new_tokens=profile.evaluation.max_new_tokens,
            end_ids=end_ids,
            batch_size=profile.evaluation.batch_size,
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
    rows = []
    for problem, prompt, ids in zip(chosen, prompts, completions, strict=True):
        text = sampling.text_of(tokenizer, ids, end_ids)
        grade = grading.grade(text, problem.answer, profile.problems.thought, before)
        rows.append(
            {
                "problem_id": problem.problem_id,
                "split": problem.split,
                "steps": problem.steps,
                "completion": text,
                "answer": grade.answer,
                "status": grade.status,
                "correct": grade.correct,
                "correct_flexible": grading.grade_by_last_number(text, problem.answer).correct,
                "tokens": len(ids),
                "truncated": sampling.is_truncated(ids, end_ids),
                "prompt_ids": prompt,
                "completion_ids": ids,
            }
        )
    return pd.DataFrame(rows)


def evaluate(profile: Profile, run: RunOrModel) -> pd.DataFrame:
    """Greedy records of a run or a model on all sets that are not trained on, of a control on
    `CONTROL_PROBLEMS` test problems; stored. Columns as `answer`'s without the token ids."""
    is_control = not isinstance(run, str) and run.name not in profile.main_runs

    def compute() -> pd.DataFrame:
        sets = problems.problem_sets(profile.problems)
        if is_control:
            chosen = list(sets["test"][:CONTROL_PROBLEMS])
        else:
            measured = [split for split in sets if split not in TRAINED_ON]
            chosen = [problem for split in measured for problem in sets[split]]
        answers = answer(profile, load_writer(profile, run), chosen, name=name_of(run))
        return answers.drop(columns=["prompt_ids", "completion_ids"])

    return load_or_compute(profile, run, "evaluation", compute)


def sampled_records(profile: Profile, run: RunOrModel) -> pd.DataFrame:
    """Records of a run or a model on the problems that the profile answers many times; stored.
    Columns as `evaluate`'s and sample_id."""
    settings = profile.sampled
    assert settings is not None, f"profile {profile.name!r} answers no problems many times"

    def compute() -> pd.DataFrame:
        chosen = problems.problem_sets(profile.problems)[settings.split]
        writer = load_writer(profile, run)
        parts = []
        for sample_id in range(settings.samples):
            name = f"sample {sample_id}"
            answers = answer(profile, writer, chosen, settings.temperature, sample_id, name)
            parts.append(answers.assign(sample_id=sample_id))
        return pd.concat(parts).drop(columns=["prompt_ids", "completion_ids"])

    return load_or_compute(profile, run, "sampled", compute, settings.model_dump_json())


def records(profile: Profile, runs: Iterable[RunOrModel]) -> pd.DataFrame:
    """The greedy records of several runs or models below one another, with a column `run`."""
    return pd.concat([evaluate(profile, run).assign(run=name_of(run)) for run in runs])


def answers_side_by_side(profile: Profile, answered: pd.DataFrame) -> str:
    """The first problem of the records and what each model wrote to it, as text.

    answered: columns problem_id, run and completion.
    """
    problem_id = answered.problem_id.iloc[0]
    question = next(
        problem.question
        for split_problems in problems.problem_sets(profile.problems).values()
        for problem in split_problems
        if problem.problem_id == problem_id
    )
    rows = answered[answered.problem_id == problem_id]
    texts = [f"[{run}] {text}" for run, text in zip(rows.run, rows.completion, strict=True)]
    return "\n\n".join([question, *texts])


def teacher_rollouts(profile: Profile) -> pd.DataFrame:
    """One rollout of the teacher to each validation problem, on which no run trains; stored.

    Columns: problem_id, answer (the problem's), correct, tokens, prompt_ids, completion_ids.
    """

    def compute() -> pd.DataFrame:
        chosen = problems.problem_sets(profile.problems)["validation"]
        if profile.rollouts.source == "solutions" or profile.is_elsewhere("teacher"):
            table = rollouts.sample_rollouts(profile, chosen).drop_duplicates("problem_id")
            written = table.assign(correct=table.reward > 0)
        else:
            teacher = loading.load_model(profile, "teacher")
            written = answer(profile, teacher, chosen, temperature=1.0, seed=2, name="teacher")
        # By problem, not by position: a server may have left some problems out.
        gold = {problem.problem_id: problem.answer for problem in chosen}
        columns = ["problem_id", "answer", "correct", "tokens", "prompt_ids", "completion_ids"]
        return written.assign(answer=written.problem_id.map(gold))[columns]

    return load_or_compute(profile, "teacher", "held-out", compute)


def held_out(profile: Profile, n: int) -> pd.DataFrame:
    """The first n correct rollouts among `teacher_rollouts`."""
    written = teacher_rollouts(profile)
    return written[written.correct].head(n).reset_index(drop=True)
