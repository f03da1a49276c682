"""Rollouts: sampling K completions a prompt, rewarding them, and the one table that every objective trains on.

Comes after `problems` and `models`, before `objectives`. The table is made once and shipped; training never samples.
"""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from adapter_geometry import storage
from helpers import store
from helpers.data import grading, problems, templates
from helpers.models import loading, logprobs, sampling

_BATCHES_A_PART = 4  # of sampling, between two checkpoints of a table
# --- the table -----------------------------------------------------------------------------------------------------

_SCHEMA = pa.schema(
    {
        "problem_id": pa.string(),
        "sample_id": pa.int32(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "completion_ids": pa.list_(pa.int32()),
        "gold": pa.string(),
        "answer": pa.string(),
        "reward": pa.float32(),
        "status": pa.string(),
        "truncated": pa.bool_(),
        "tokens": pa.int32(),
        "logp_behaviour": pa.list_(pa.float32()),
        "logp_base": pa.list_(pa.float32()),
    }
)


def table_path(profile, writer="teacher"):
    """Where the table of the rollouts of a writer ("teacher", or "base" for its own) lies: shipped under data/, or made under results/."""
    shipped, made = {
        "teacher": (profile.rollouts.table, "rollouts.parquet"),
        "base": (profile.rollouts.own_table, "own-rollouts.parquet"),
    }[writer]
    return store.ROOT / shipped if shipped else store.results(profile.name) / made


def settings(profile, writer="teacher"):
    """All that determines the table, as written into its metadata."""
    kept = profile.rollouts.model_dump(exclude={"table", "own_table", "batch_size"})
    return {
        "profile": profile.name,
        "rollouts": kept,
        "problems": profile.problems.model_dump(mode="json"),
        "models": {name: loading.model_digest(profile.name, name) for name in (writer, "base")},
    }


def sample_rollouts(profile, chosen, batch_size=None, writer="teacher", model=None, told=None):
    """The rows of the table for the given problems, as a DataFrame: K completions each, rewarded, without log-probabilities.

    Problems that a server does not answer are left out. model: the writer, if it is loaded already; told: its `written_elsewhere`, if it was asked already.
    """
    tokenizer, how = (
        loading.load_tokenizer(profile, "base" if profile.is_elsewhere(writer) else writer),
        profile.rollouts,
    )
    end = [tokenizer.eos_token_id]
    if profile.is_elsewhere(writer):
        told = told or written_elsewhere(profile, chosen)
        chosen = [problem for problem in chosen if problem.problem_id in told]
    prompts = [
        loading.prompt_ids(tokenizer, problem.question, profile.problems.instruction)
        for problem in chosen
        for _ in range(how.samples)
    ]
    if profile.is_elsewhere(writer):
        texts = [answer for problem in chosen for answer in told[problem.problem_id]]
        completions = [
            tokenizer(text, add_special_tokens=False).input_ids + ([] if is_cut else end)
            for text, is_cut in texts
        ]
    elif how.source == "solutions":
        manner = {"teacher": "wordy", "base": "terse"}[writer]
        draws = [
            np.random.default_rng([how.seed, int(problem.problem_id, 16)]) for problem in chosen
        ]
        texts = [
            templates.worked_solution(problem, manner, rng, slip_rate=0.15)
            for problem, rng in zip(chosen, draws, strict=True)
            for _ in range(how.samples)
        ]
        completions = [tokenizer(text, add_special_tokens=False).input_ids + end for text in texts]
    else:
        position = {
            problem.problem_id: number
            for number, problem in enumerate(problems.problem_sets(profile.problems)["train"])
        }
        indices = [
            position[problem.problem_id] * how.samples + sample_id
            for problem in chosen
            for sample_id in range(how.samples)
        ]
        with tqdm(total=len(prompts), desc="rollouts", unit="completion") as progress:
            completions = sampling.sample(
                model or loading.load_model(profile, writer),
                prompts,
                max_new_tokens=how.max_new_tokens,
                end_id=tokenizer.eos_token_id,
                batch_size=batch_size or how.batch_size,
                temperature=how.temperature,
                seed=how.seed,
                indices=indices,
                progress=progress,
            )
    rows = []
    for number, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
        problem = chosen[number // how.samples]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        graded = grading.grade(text, problem.answer)
        rows.append(
            {
                "problem_id": problem.problem_id,
                "sample_id": number % how.samples,
                "prompt": problem.question,
                "completion": text,
                "prompt_ids": prompt,
                "completion_ids": ids,
                "gold": problem.answer,
                "answer": graded.answer,
                "reward": float(graded.correct),
                "status": graded.status,
                "truncated": ids[-1:] != end,
                "tokens": len(ids),
            }
        )
    return pd.DataFrame(rows)


def written_elsewhere(profile, chosen):
    """{problem_id: K pairs of text and whether it was cut} from the profile's server or its file; without problems that the server refused to answer."""
    how, where = profile.rollouts, loading.source(profile, "teacher")
    questions = [f"{problem.question} {profile.problems.instruction}".strip() for problem in chosen]
    if where == "endpoint":
        from helpers.data import (
            servers,  # the client takes a second to import, and only large studies have a server
        )

        folder = (
            store.ROOT / "results" / "answers"
        )  # shared by all profiles that ask the same server the same questions
        told = servers.complete(
            profile.endpoint,
            questions,
            samples=how.samples,
            temperature=how.temperature,
            max_tokens=how.max_new_tokens,
            seed=how.seed,
            folder=folder,
        )
        whole = {
            problem.problem_id: answers
            for problem, answers in zip(chosen, told, strict=True)
            if all(one.text for one in answers)
        }
        if len(whole) < len(chosen):
            warnings.warn(
                f"{len(chosen) - len(whole)} of {len(chosen)} problems are left out: {profile.endpoint.model} refused them, or gave an empty answer",
                stacklevel=2,
            )
        return {
            problem_id: [(one.text, one.finish_reason == "length") for one in answers]
            for problem_id, answers in whole.items()
        }
    file = store.ROOT / where.removeprefix("file:")
    try:
        given = (
            pd.read_parquet(file)
            if file.suffix == ".parquet"
            else pd.read_json(file, lines=True, dtype=False)
        )
    except ValueError as error:
        raise ValueError(
            f"{file} can't be read as {'Parquet' if file.suffix == '.parquet' else 'JSON lines'}: {error}"
        ) from error
    if missing := {"question", "completion"} - set(given.columns):
        raise ValueError(
            f"{file}: rollouts need a column {sorted(missing)[0]!r}; it has {', '.join(given.columns)}"
        )
    by_question = {
        " ".join(question.split()): list(group.completion)
        for question, group in given.groupby("question", sort=False)
    }
    found = {}
    for problem in chosen:
        texts = by_question.get(" ".join(problem.question.split()), [])
        if len(texts) < how.samples:
            raise ValueError(
                f"{file}: {len(texts)} rollouts of the problem {problem.question[:60]!r}, the profile asks for {how.samples}: "
                "lower rollouts.samples, or take the problems that the file answers as the training ones"
            )
        found[problem.problem_id] = [(text, False) for text in texts[: how.samples]]
    return found


def make_table(profile, writer="teacher"):
    """Sample, reward and score the rollouts of a writer and write them whole; returns the table's path.

    Works through the prompts part by part; an interrupted call goes on after its last finished part, to the same table.
    """
    chosen, how = problems.problem_sets(profile.problems)["train"], profile.rollouts
    made_with = settings(profile, writer)
    mark = storage.digest(
        {"settings": made_with, "code": store.code_digest("helpers.data.rollouts")}
    )
    work = store.results(profile.name) / "checkpoints" / f"rollouts-{mark}"
    size = max(1, _BATCHES_A_PART * how.batch_size // how.samples)
    is_elsewhere = profile.is_elsewhere(writer)
    told = (
        written_elsewhere(profile, chosen) if is_elsewhere else None
    )  # for all problems at once, so that a server always has work
    if is_elsewhere:
        chosen = [problem for problem in chosen if problem.problem_id in told]
    if (
        not is_elsewhere
        and len(
            {
                loading.load_tokenizer(profile, name).backend_tokenizer.to_str()
                for name in (writer, "base")
            }
        )
        > 1
    ):
        raise ValueError(
            f"the {writer} and the base of profile {profile.name!r} have different tokenizers: tokens of one mean nothing to the other; "
            "let the teacher write elsewhere (an endpoint, or a file), so that its texts are read with the base's tokenizer"
        )
    models_of = {
        name: loading.load_model(profile, name)
        for name in dict.fromkeys(("base",) if is_elsewhere else (writer, "base"))
    }

    def part(first):
        rows = sample_rollouts(
            profile,
            chosen[first : first + size],
            writer=writer,
            model=models_of.get(writer),
            told=told,
        )
        scores = {
            name: logprobs.score(model, list(rows.prompt_ids), list(rows.completion_ids))
            for name, model in models_of.items()
        }
        unknown = [np.full(tokens, np.nan, np.float32) for tokens in rows.tokens]
        return rows.assign(logp_behaviour=scores.get(writer, unknown), logp_base=scores["base"])

    starts = tqdm(range(0, len(chosen), size), desc="table of rollouts", unit="part")
    table = pd.concat(
        [
            store.frame(work, f"{first:06d}", mark, lambda first=first: part(first))
            for first in starts
        ],
        ignore_index=True,
    )
    metadata, path = (
        {
            "settings": json.dumps(made_with, sort_keys=True),
            "versions": json.dumps(store.provenance()),
        },
        table_path(profile, writer),
    )
    storage.write_frame(path, table, metadata, _SCHEMA)
    store.relist(path)
    storage.remove(work)
    return path


def require_table(profile, writer="teacher"):
    """Path of a writer's table; FileNotFoundError says how to make it, ValueError that it is not the one that came with the book."""
    path = table_path(profile, writer)
    if not path.exists():
        raise FileNotFoundError(
            f"no table of rollouts at {path.relative_to(store.ROOT)}: make it with `python -m helpers rollouts {profile.name} {writer}`"
        )
    return store.intact(path)


def load_table(profile, writer="teacher"):
    """The table of a writer's rollouts as a DataFrame, one row a rollout.

    Raises FileNotFoundError when it was not made yet, ValueError when it was made with other settings or models, naming what differs.
    """
    path = require_table(profile, writer)
    table, made_with, wanted = (
        store.read_frame(path),
        store.read_metadata(path, "settings"),
        json.loads(json.dumps(settings(profile, writer))),
    )
    for part, value in wanted.items():
        if made_with[part] != value:
            raise ValueError(
                f"{path.relative_to(store.ROOT)} was made with other {part}: {made_with[part]}, the profile says {value}; "
                f"make it again with `python -m helpers rollouts {profile.name} {writer}`"
            )
    return table


def group_statistics(table):
    """One row a prompt: n rollouts, correct ones, pass rate, and the number of distinct correct completions."""
    groups = table.groupby("problem_id", sort=False)
    distinct = table[table.reward > 0].groupby("problem_id").completion.nunique()
    found = groups.reward.agg(n="size", correct="sum", pass_rate="mean").assign(
        distinct_correct=distinct
    )
    return (
        found.fillna({"distinct_correct": 0})
        .astype({"correct": int, "distinct_correct": int})
        .reset_index()
    )


def with_group_columns(table):
    """The table with each row's advantage (reward minus group mean) and spread (standard deviation, n in the denominator)."""
    rewards = table.groupby("problem_id").reward
    return table.assign(
        advantage=table.reward - rewards.transform("mean"), spread=rewards.transform("std", ddof=0)
    )


# --- which rows an objective trains on -----------------------------------------------------------------------------


def select(table, rows):
    """For each prompt, in the table's order, the table rows that training takes: {problem_id: list of row numbers}.

    `rows`: "all"; "correct"; "correct-one" = the first correct one; "correct-distinct" = one a list of equations (2308.01825;
    of those with equal equations the one with the largest summed edit distance to those kept); "pairs" = first correct and
    first wrong one of each mixed group, as [chosen, rejected]; "chosen" = the correct ones of those; "random" = as many as there are
    correct ones, drawn from all without looking at rewards ("random-2": another draw).
    """
    if rows in ("random", "random-2"):
        return _random(table, int(rows == "random-2"))
    if rows not in _SELECTIONS:
        raise ValueError(
            f"unknown choice of rows {rows!r}: choose one of {', '.join([*_SELECTIONS, 'random', 'random-2'])}"
        )
    taken = {}
    numbered = table.assign(number=np.arange(len(table)))
    for problem_id, group in numbered.groupby("problem_id", sort=False):
        if chosen := _SELECTIONS[rows](group):
            taken[problem_id] = [int(number) for number in chosen]
    if not taken:
        raise ValueError(
            f"the table of rollouts has no rows of the kind {rows!r}: sample more prompts or completions"
        )
    return taken


def _random(table, seed):
    drawn = set(
        np.random.default_rng(seed)
        .permutation(len(table))[: int((table.reward > 0).sum())]
        .tolist()
    )
    taken = {
        problem_id: [number for number in numbers if number in drawn]
        for problem_id, numbers in select(table, "all").items()
    }
    return {problem_id: numbers for problem_id, numbers in taken.items() if numbers}


def _correct(group):
    return list(group.number[group.reward > 0])


def _pair(group):
    right, wrong = group.number[group.reward > 0], group.number[group.reward == 0]
    return [right.iloc[0], wrong.iloc[0]] if len(right) and len(wrong) else []


def _distinct(group):
    kept = {}
    for number, text in zip(
        group.number[group.reward > 0], group.completion[group.reward > 0], strict=True
    ):
        kept.setdefault(grading.written_equations(text), []).append((number, text))
    singles = [texts[0] for texts in kept.values() if len(texts) == 1]
    for texts in kept.values():
        if len(texts) > 1:
            others = [text for _, text in singles]
            singles.append(
                max(
                    texts,
                    key=lambda candidate: sum(
                        _edit_distance(candidate[1], other) for other in others
                    ),
                )
            )
    return sorted(number for number, _ in singles)


def _edit_distance(a, b):
    """Levenshtein distance of two texts."""
    row = np.arange(len(b) + 1)
    letters = np.frombuffer(b.encode("utf-32-le"), dtype=np.uint32)
    for i, letter in enumerate(a, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        row = np.minimum.accumulate(
            np.concatenate([[i], best]) - np.arange(len(b) + 1)
        ) + np.arange(len(b) + 1)
    return int(row[-1])


_SELECTIONS = {
    "all": lambda group: list(group.number),
    "correct": _correct,
    "correct-one": lambda group: _correct(group)[:1],
    "correct-distinct": _distinct,
    "pairs": _pair,
    "chosen": lambda group: _pair(group)[:1],
}
