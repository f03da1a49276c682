"""Evaluation: greedy answers to every held-out problem, and the divergence of a trained model from its base.

Comes after `training`, before `statistics`. Records are one row a problem, stored per run and reused while they fit.
"""

import pandas as pd
import torch
from tqdm.auto import tqdm

from adapter_geometry import storage
from helpers import store
from helpers.data import grading, problems, rollouts
from helpers.data.problem import TRAINED_ON
from helpers.models import loading, sampling
from helpers.training import trainer

CONTROL_PROBLEMS = 600  # the first ones of the test split, for every control; all 1319 would cost as much as training it
RECIPE = 1  # raised whenever the numbers of evaluation change, as `training.RECIPE`


def answering(profile, run):
    """What answers problems as a run, or as one of the profile's models by name: `load_model_of`, or vLLM where it is the profile's engine."""
    if profile.compute.engine == "transformers":
        return load_model_of(profile, run)
    from helpers.models import engine  # needs vLLM, which few machines have

    return (
        engine.Engine(profile, run)
        if isinstance(run, str)
        else engine.Engine(profile, run.base, trainer.train(profile, run) / "adapter")
    )


def load_model_of(profile, run):
    """The model that a run produced, its adapter merged in float32 and else beside the weights; `run` may also be the name of one of the profile's models."""
    if isinstance(run, str):
        return loading.load_model(profile, run)
    adapted = loading.load_adapted(profile, run, trainer.train(profile, run) / "adapter")
    # In bfloat16 a merged update would be rounded to the weights' three digits, and a short one be lost.
    return (
        adapted.merge_and_unload()
        if profile.compute.dtype == "float32"
        else loading.causal_model(adapted)
    )


def identity(profile, run, part):
    """Hash of all that determines a record of a run (or of a model by name), with the recipe's number in place of the code; part: its folder."""
    made = (
        loading.model_digest(profile.name, run)
        if isinstance(run, str)
        else trainer.identity(profile, run)
    )
    compute = profile.compute.model_dump(include={"dtype", "engine"}, exclude_defaults=True)
    return storage.digest(
        {
            "model": made,
            **({"compute": compute} if compute else {}),
            "part": part,
            "evaluation": profile.evaluation.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "control_problems": CONTROL_PROBLEMS,
            "recipe": RECIPE,
        }
    )


def stored(profile, run, part, compute, settings=""):
    name = run if isinstance(run, str) else run.name
    is_ours = isinstance(run, str) or profile.runs.get(run.name) == run
    return store.record(
        profile.name,
        part,
        name,
        identity(profile, run, part + settings),
        store.code_digest("helpers.evaluation.answering", "helpers.evaluation.likelihood"),
        compute,
        is_ours,
    )


def answer(profile, model, chosen, temperature=0.0, seed=0, name="", opening=""):
    """Completions of the given problems by `model`, graded: a DataFrame with one row a problem, in the order given.

    `opening` puts the first words into the model's mouth; the completion is what follows them.

    Columns: problem_id, split, steps, completion, answer, status, correct, correct_flexible (by the last number, boxed or
    not), tokens, truncated, prompt_ids, completion_ids.
    """
    torch.set_num_threads(profile.evaluation.threads)
    tokenizer = loading.load_tokenizer(profile)
    begun = tokenizer(opening, add_special_tokens=False).input_ids if opening else []
    prompts = [
        loading.prompt_ids(tokenizer, problem.question, profile.problems.instruction) + begun
        for problem in chosen
    ]
    with tqdm(total=len(prompts), desc=f"answering {name}", unit="problem") as progress:
        completions = sampling.sample(
            model,
            prompts,
            max_new_tokens=profile.evaluation.max_new_tokens,
            end_id=tokenizer.eos_token_id,
            batch_size=profile.evaluation.batch_size,
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
    rows = []
    for problem, prompt, ids in zip(chosen, prompts, completions, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        graded = grading.grade(text, problem.answer)
        rows.append(
            {
                "problem_id": problem.problem_id,
                "split": problem.split,
                "steps": problem.steps,
                "completion": text,
                "answer": graded.answer,
                "status": graded.status,
                "correct": graded.correct,
                "correct_flexible": grading.grade_by_last_number(text, problem.answer).correct,
                "tokens": len(ids),
                "truncated": ids[-1:] != [tokenizer.eos_token_id],
                "prompt_ids": prompt,
                "completion_ids": ids,
            }
        )
    return pd.DataFrame(rows)


def evaluate(profile, run):
    """Greedy records of a run (or of a model by name) on all sets that are not trained on, of a control on `CONTROL_PROBLEMS` test problems; stored."""
    is_control = not isinstance(run, str) and run.name not in profile.main_runs

    def compute():
        sets = problems.problem_sets(profile.problems)
        held_out = [
            problem for split, drawn in sets.items() if split not in TRAINED_ON for problem in drawn
        ]
        chosen = sets["test"][:CONTROL_PROBLEMS] if is_control else held_out
        name = run if isinstance(run, str) else run.name
        return answer(profile, answering(profile, run), chosen, name=name).drop(
            columns=["prompt_ids", "completion_ids"]
        )

    return stored(profile, run, "evaluation", compute)


def sampled(profile, run):
    """Records of a run (or of a model by name) on the problems that the profile answers many times; stored. Columns as `answer`'s and `sample_id`."""
    how = profile.sampled

    def compute():
        chosen, writer = problems.problem_sets(profile.problems)[how.split], answering(profile, run)
        parts = [
            answer(profile, writer, chosen, how.temperature, number, f"sample {number}").assign(
                sample_id=number
            )
            for number in range(how.samples)
        ]
        return pd.concat(parts).drop(columns=["prompt_ids", "completion_ids"])

    return stored(profile, run, "sampled", compute, how.model_dump_json())


def records(profile, runs):
    """The greedy records of several runs (or models by name) below one another, with a column `run`."""
    return pd.concat(
        [
            evaluate(profile, run).assign(run=run if isinstance(run, str) else run.name)
            for run in runs
        ]
    )


def answers_side_by_side(profile, answered):
    """The first problem of the records and what each model wrote to it, as text."""
    problem_id = answered.problem_id.iloc[0]
    question = next(
        p.question
        for drawn in problems.problem_sets(profile.problems).values()
        for p in drawn
        if p.problem_id == problem_id
    )
    rows = answered[answered.problem_id == problem_id]
    return "\n\n".join(
        [
            question,
            *(f"[{run}] {text}" for run, text in zip(rows.run, rows.completion, strict=True)),
        ]
    )


def teacher_rollouts(profile):
    """One rollout of the teacher to each validation problem, on which no run trains; stored.

    Columns: problem_id, answer (the problem's), correct, tokens, prompt_ids, completion_ids.
    """

    def compute():
        chosen = problems.problem_sets(profile.problems)["validation"]
        if profile.rollouts.source == "solutions" or profile.is_elsewhere("teacher"):
            written = (
                rollouts.sample_rollouts(profile, chosen)
                .drop_duplicates("problem_id")
                .assign(correct=lambda table: table.reward > 0)
            )
        else:
            written = answer(
                profile,
                loading.load_model(profile, "teacher"),
                chosen,
                temperature=1.0,
                seed=2,
                name="teacher",
            )
        gold = {
            problem.problem_id: problem.answer for problem in chosen
        }  # a server may have left some problems out
        return written.assign(answer=written.problem_id.map(gold))[
            ["problem_id", "answer", "correct", "tokens", "prompt_ids", "completion_ids"]
        ]

    return stored(profile, "teacher", "held-out", compute)


def held_out(profile, n):
    """The first n correct rollouts among `teacher_rollouts`."""
    written = teacher_rollouts(profile)
    return written[written.correct].head(n).reset_index(drop=True)
