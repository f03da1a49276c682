"""Rollouts: K completions per prompt, their rewards, and the one table that every objective trains
on.

Comes after `problems` and the models, before the training. The table is made once and shipped;
training by a table never samples.
"""

import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapter_geometry import storage
from helpers import store
from helpers.data import grading, problems, templates
from helpers.data.problem import Problem
from helpers.models import loading, logprobs, sampling
from helpers.profiles import EndpointSettings, Profile

# What a writer elsewhere wrote, by problem_id: K pairs of a text and whether it was cut.
Texts = dict[str, list[tuple[str, bool]]]

_BATCHES_A_PART = 4  # of sampling, between two checkpoints of a table
_STYLES = {"teacher": "wordy", "base": "terse"}  # of worked solutions in the place of rollouts
_ERROR_RATE = 0.15  # of the equations in those

# --- the table -----------------------------------------------------------------------------------

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


def table_path(profile: Profile, writer: str = "teacher") -> Path:
    """Path of the table of the rollouts of a writer ("teacher", or "base" for the self-generated
    ones): shipped under data/, or made under results/."""
    shipped, file_name = {
        "teacher": (profile.rollouts.table, "rollouts.parquet"),
        "base": (profile.rollouts.base_table, "base-rollouts.parquet"),
    }[writer]
    return store.ROOT / shipped if shipped else store.results(profile.name) / file_name


def settings(profile: Profile, writer: str = "teacher") -> dict[str, Any]:
    """All that determines the table, as written into its metadata."""
    return {
        "profile": profile.name,
        "rollouts": profile.rollouts.model_dump(exclude={"table", "base_table", "batch_size"}),
        "problems": profile.problems.model_dump(mode="json"),
        "models": {name: loading.model_digest(profile.name, name) for name in (writer, "base")},
    }


def sample_rollouts(
    profile: Profile,
    chosen: Sequence[Problem],
    batch_size: int | None = None,
    writer: str = "teacher",
    model: PreTrainedModel | None = None,
    texts: Texts | None = None,
) -> pd.DataFrame:
    """The rows of the table for the chosen problems: K completions each, rewarded.

    The columns are those of the table without `logp_behaviour` and `logp_base`. Problems that a
    server does not answer are left out.

    batch_size: sequences sampled side by side, the profile's unless given. model: the writer, if it
    is loaded already. texts: the writer's `written_elsewhere`, if it was asked already.
    """
    is_elsewhere = profile.is_elsewhere(writer)
    tokenizer = loading.load_tokenizer(profile, "base" if is_elsewhere else writer)
    end_ids = frozenset({tokenizer.eos_token_id})  # what no model has sampled ends with this one
    if is_elsewhere:
        texts = texts or written_elsewhere(profile, chosen)
        chosen = [problem for problem in chosen if problem.problem_id in texts]
        completions = _tokens_of_texts(tokenizer, chosen, texts)
    elif profile.rollouts.source == "solutions":
        completions = _tokens_of_solutions(profile, tokenizer, chosen, writer)
    else:
        model = model or loading.load_model(profile, writer)
        end_ids = sampling.end_ids_of(model, tokenizer)
        size = batch_size or profile.rollouts.batch_size
        completions = _sampled_tokens(profile, tokenizer, chosen, model, end_ids, size)
    return _graded_rows(profile, tokenizer, chosen, completions, end_ids)


def _tokens_of_texts(
    tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem], texts: Texts
) -> list[list[int]]:
    """Token ids of texts written elsewhere; a text that was cut gets no end token."""
    written = [answer for problem in chosen for answer in texts[problem.problem_id]]
    return [
        _token_ids(tokenizer, text) + ([] if is_cut else [tokenizer.eos_token_id])
        for text, is_cut in written
    ]


def _tokens_of_solutions(
    profile: Profile, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem], writer: str
) -> list[list[int]]:
    """Token ids of worked solutions with errors, drawn by the problem so that they do not depend on
    the others."""
    completions = []
    for problem in chosen:
        rng = np.random.default_rng([profile.rollouts.seed, int(problem.problem_id, 16)])
        for _ in range(profile.rollouts.samples):
            text = templates.worked_solution(problem, _STYLES[writer], rng, _ERROR_RATE)
            completions.append([*_token_ids(tokenizer, text), tokenizer.eos_token_id])
    return completions


def _sampled_tokens(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Problem],
    model: PreTrainedModel,
    end_ids: Collection[int],
    batch_size: int,
) -> list[list[int]]:
    """Token ids sampled from a model, each with a draw of its own by its row in the whole table, so
    that a part of the table is sampled as within the whole."""
    rollout_settings = profile.rollouts
    samples = rollout_settings.samples
    positions = {
        problem.problem_id: position
        for position, problem in enumerate(problems.problem_sets(profile.problems)["train"])
    }
    indices = [
        positions[problem.problem_id] * samples + sample_id
        for problem in chosen
        for sample_id in range(samples)
    ]
    prompts = [prompt for prompt in _prompts(profile, tokenizer, chosen) for _ in range(samples)]
    with tqdm(total=len(prompts), desc="rollouts", unit="completion") as progress:
        return sampling.sample(
            model,
            prompts,
            max_new_tokens=rollout_settings.max_new_tokens,
            end_ids=end_ids,
            batch_size=batch_size,
            temperature=rollout_settings.temperature,
            seed=rollout_settings.seed,
            indices=indices,
            progress=progress,
        )


def _graded_rows(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Problem],
    completions: Sequence[list[int]],
    end_ids: Collection[int],
) -> pd.DataFrame:
    """Rows of the table from K completions of each problem, one problem after the other."""
    samples = profile.rollouts.samples
    prompts = _prompts(profile, tokenizer, chosen)
    prompt = loading.empty_prompt(tokenizer, profile.problems.instruction)
    rows = []
    for index, ids in enumerate(completions):
        problem = chosen[index // samples]
        text = sampling.text_of(tokenizer, ids, end_ids)
        grade = grading.grade(text, problem.answer, profile.problems.thought, prompt)
        rows.append(
            {
                "problem_id": problem.problem_id,
                "sample_id": index % samples,
                "prompt": problem.question,
                "completion": text,
                "prompt_ids": prompts[index // samples],
                "completion_ids": ids,
                "gold": problem.answer,
                "answer": grade.answer,
                "reward": float(grade.correct),
                "status": grade.status,
                "truncated": sampling.is_truncated(ids, end_ids),
                "tokens": len(ids),
            }
        )
    return pd.DataFrame(rows)


def _prompts(
    profile: Profile, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem]
) -> list[list[int]]:
    instruction = profile.problems.instruction
    return [loading.prompt_ids(tokenizer, problem.question, instruction) for problem in chosen]


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # A control token within a text is read letter by letter.
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoded.input_ids)


# --- texts that are written elsewhere ------------------------------------------------------------


def written_elsewhere(profile: Profile, chosen: Sequence[Problem]) -> Texts:
    """K texts of each problem from the profile's server or its file, as the base reads them;
    without the problems that the server refused to answer.

    Raises what `rollout_files.read` and `servers.complete` raise, and ValueError for a file with
    too few rollouts.
    """
    where = loading.source_of(profile, "teacher")
    if where == "endpoint":
        texts = _written_by_server(profile, chosen)
    else:
        texts = _written_in_file(store.ROOT / where.removeprefix("file:"), profile, chosen)
    return _as_the_base_reads(profile, chosen, texts)


def _written_by_server(profile: Profile, chosen: Sequence[Problem]) -> Texts:
    # Late, since the client takes a second to import and only large studies have a server.
    from helpers.data import servers

    endpoint = cast(EndpointSettings, profile.endpoint)
    instruction = profile.problems.instruction
    completions = servers.complete(
        endpoint,
        [f"{problem.question} {instruction}".strip() for problem in chosen],
        samples=profile.rollouts.samples,
        temperature=profile.rollouts.temperature,
        max_tokens=profile.rollouts.max_new_tokens,
        seed=profile.rollouts.seed,
        # Shared by all profiles that ask the same server the same questions.
        folder=store.ROOT / "results" / "answers",
    )
    texts: Texts = {}
    reasons: Counter[str] = Counter()  # why problems are left out: the first one of each
    cut: Counter[str] = Counter()
    for problem, answers in zip(chosen, completions, strict=True):
        if missing := [one.finish_reason for one in answers if not one.text]:
            reasons[missing[0]] += 1
        else:
            texts[problem.problem_id] = [(one.text, one.is_cut) for one in answers]
            cut.update(one.finish_reason for one in answers if one.is_cut)
    if said := servers.about_cut(cut, f" of {endpoint.model}"):
        warnings.warn(said, stacklevel=3)
    if reasons:
        said = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        left_out = (
            f"{reasons.total()} of {len(chosen)} problems are left out: {endpoint.model} refused "
            f"them or gave too few answers ({said}); the next call asks for what is missing"
        )
        if not texts:
            raise ValueError(left_out)
        warnings.warn(left_out, stacklevel=3)
    return texts


def _written_in_file(file: Path, profile: Profile, chosen: Sequence[Problem]) -> Texts:
    # Late as above: what a file says of cut answers is a server's word.
    from helpers.data import rollout_files

    by_question = rollout_files.read(file)
    samples = profile.rollouts.samples
    texts = {}
    for problem in chosen:
        completions = by_question.get(" ".join(problem.question.split()), [])
        if len(completions) < samples:
            raise ValueError(
                f"{file}: {len(completions)} rollouts of the problem {problem.question[:60]!r}, "
                f"the profile asks for {samples}: lower rollouts.samples, "
                "or take the problems that the file answers as the training ones"
            )
        texts[problem.problem_id] = [(one.text, one.is_cut) for one in completions[:samples]]
    return texts


def _as_the_base_reads(profile: Profile, chosen: Sequence[Problem], texts: Texts) -> Texts:
    """The texts without what the base's tokens say already: an end token behind the text, and the
    mark that opens a thought where the base's prompts end with it.

    Warns of other control tokens in a text, which are read letter by letter: none of them may end a
    completion in its middle.
    """
    tokenizer = loading.load_tokenizer(profile)
    end, thought = cast(str, tokenizer.eos_token), profile.problems.thought
    prompt = loading.empty_prompt(tokenizer, profile.problems.instruction)
    _, opening, behind = prompt.rpartition(thought[0]) if thought else ("", "", "")
    is_open = opening and not behind.strip()

    def as_read(text: str) -> str:
        if text.rstrip().endswith(end):
            text = text.rstrip().removesuffix(end)
        if is_open and text.lstrip().startswith(opening):
            text = text.lstrip().removeprefix(opening)
            # Either the prompt has the line break that follows the mark, or the text.
            text = text.lstrip("\n") if behind else text
        return text

    texts = {
        problem_id: [(as_read(text), is_cut) for text, is_cut in written]
        for problem_id, written in texts.items()
    }
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    control = re.compile("|".join(map(re.escape, special)))
    found = [
        f"{match.group()!r} in completion {number} (the first is 0) of {problem.question[:60]!r}"
        for problem in chosen
        for number, (text, _) in enumerate(texts.get(problem.problem_id, ()))
        if (match := control.search(text))
    ]
    if found:
        warnings.warn(
            f"{len(found)} completions hold control tokens of the base, first {found[0]}: they are "
            "read as plain text, so that none ends a completion in its middle",
            stacklevel=3,
        )
    return texts


# --- making and reading --------------------------------------------------------------------------


def make_table(profile: Profile, writer: str = "teacher") -> Path:
    """Sample, reward and score the rollouts of a writer and write them whole; returns the table's
    path.

    Works through the prompts part by part; an interrupted call goes on after its last finished
    part, to the same table.

    Raises ValueError if writer and base have different tokenizers.
    """
    chosen: Sequence[Problem] = problems.problem_sets(profile.problems)["train"]
    table_settings = settings(profile, writer)
    texts, models = None, {}
    if profile.is_elsewhere(writer):
        # For all problems at once, so that a server always has work.
        texts = written_elsewhere(profile, chosen)
        chosen = [problem for problem in chosen if problem.problem_id in texts]
    else:
        _check_tokenizers(profile, writer)
        models[writer] = loading.load_model(profile, writer)
    if "base" not in models:
        models["base"] = loading.load_model(profile, "base")

    code = store.code_digest("helpers.data.rollouts")
    # With the texts, since a server may answer more problems today than when a part was made.
    parts_of = {"settings": table_settings, "code": code} | ({"texts": texts} if texts else {})
    fingerprint = storage.digest(parts_of)

    def make_part(part: Sequence[Problem]) -> pd.DataFrame:
        rows = sample_rollouts(profile, part, writer=writer, model=models.get(writer), texts=texts)
        scores = {
            name: logprobs.score(model, list(rows.prompt_ids), list(rows.completion_ids))
            for name, model in models.items()
        }
        unknown = [np.full(tokens, np.nan, np.float32) for tokens in rows.tokens]
        return rows.assign(logp_behaviour=scores.get(writer, unknown), logp_base=scores["base"])

    work = store.results(profile.name) / "checkpoints" / f"rollouts-{fingerprint}"
    size = max(1, _BATCHES_A_PART * profile.rollouts.batch_size // profile.rollouts.samples)
    starts = tqdm(range(0, len(chosen), size), desc="table of rollouts", unit="part")
    parts = [
        store.load_or_compute(
            work,
            f"{start:06d}",
            fingerprint,
            functools.partial(make_part, chosen[start : start + size]),
        )
        for start in starts
    ]
    path = table_path(profile, writer)
    metadata = {
        "settings": json.dumps(table_settings, sort_keys=True),
        "versions": json.dumps(store.provenance()),
    }
    storage.write_frame(path, pd.concat(parts, ignore_index=True), metadata, _SCHEMA)
    store.update_checksums(path)
    storage.remove(work)
    return path


def _check_tokenizers(profile: Profile, writer: str) -> None:
    tokenizers = {
        loading.load_tokenizer(profile, name).backend_tokenizer.to_str()
        for name in (writer, "base")
    }
    if len(tokenizers) > 1:
        raise ValueError(
            f"the {writer} and the base of profile {profile.name!r} have different tokenizers: "
            "tokens of one mean nothing to the other; let the teacher write elsewhere "
            "(an endpoint, or a file), so that its texts are read with the base's tokenizer"
        )


def require_table(profile: Profile, writer: str = "teacher") -> Path:
    """Path of a writer's table; FileNotFoundError says how to make it, ValueError that it is not
    the one that came with the book."""
    path = table_path(profile, writer)
    if not path.exists():
        raise FileNotFoundError(
            f"no table of rollouts at {path.relative_to(store.ROOT)}: "
            f"make it with `python -m helpers rollouts {profile.name} {writer}`"
        )
    return store.verify_checksums(path)


def load_table(profile: Profile, writer: str = "teacher") -> pd.DataFrame:
    """The table of a writer's rollouts, one row per rollout, with the columns of `_SCHEMA`.

    Raises FileNotFoundError when it was not made yet, ValueError when it was made with other
    settings or models, naming what differs.
    """
    path = require_table(profile, writer)
    table = store.read_frame(path)
    stored_settings = store.read_metadata(path, "settings")
    # Through JSON as the stored ones, so that tuples are lists.
    wanted_settings = json.loads(json.dumps(settings(profile, writer)))
    for part, value in wanted_settings.items():
        if stored_settings[part] != value:
            raise ValueError(
                f"{path.relative_to(store.ROOT)} was made with other {part}: "
                f"{stored_settings[part]}, the profile says {value}; "
                f"make it again with `python -m helpers rollouts {profile.name} {writer}`"
            )
    return table


def group_statistics(table: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt: problem_id, n (rollouts), correct (those that are), pass_rate, and
    distinct_correct (different texts among the correct ones)."""
    groups = table.groupby("problem_id", sort=False)
    distinct = table[table.reward > 0].groupby("problem_id").completion.nunique()
    statistics = groups.reward.agg(n="size", correct="sum", pass_rate="mean")
    # A prompt without a correct completion is missing from `distinct`.
    statistics = statistics.assign(distinct_correct=distinct).fillna({"distinct_correct": 0})
    return statistics.astype({"correct": int, "distinct_correct": int}).reset_index()


def with_group_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with two more columns: each row's advantage (reward minus group mean) and spread
    (standard deviation of the group's rewards, n in the denominator)."""
    rewards = table.groupby("problem_id").reward
    return table.assign(
        advantage=table.reward - rewards.transform("mean"), spread=rewards.transform("std", ddof=0)
    )


# --- which rows an objective trains on -----------------------------------------------------------


def select(table: pd.DataFrame, rows: str) -> dict[str, list[int]]:
    """For each prompt, in the table's order, the table rows that training takes: {problem_id: list
    of row numbers}. Prompts of which it takes none are left out.

    `rows` is one of

    - "all";
    - "correct";
    - "correct-one": the first correct one;
    - "correct-distinct": one per list of equations (2308.01825; of those with equal equations the
      one with the largest summed edit distance to those selected so far);
    - "pairs": first correct and first wrong one of each mixed group, as [chosen, rejected];
    - "chosen": the correct ones of those;
    - "random": as many as there are correct ones, drawn from all without looking at rewards;
    - "random-2": another such draw.

    Raises ValueError for any other choice, and where no prompt has a row of the kind.
    """
    if rows in ("random", "random-2"):
        return _random(table, seed=int(rows == "random-2"))
    if rows not in _SELECTIONS:
        raise ValueError(
            f"unknown choice of rows {rows!r}: "
            f"choose one of {', '.join([*_SELECTIONS, 'random', 'random-2'])}"
        )
    selected = {}
    # A column of row numbers, since a group forgets where in the table its rows are.
    numbered = table.assign(number=np.arange(len(table)))
    for problem_id, group in numbered.groupby("problem_id", sort=False):
        if numbers := _SELECTIONS[rows](group):
            selected[problem_id] = numbers
    if not selected:
        raise ValueError(
            f"the table of rollouts has no rows of the kind {rows!r}: "
            "sample more prompts or completions"
        )
    return selected


def _random(table: pd.DataFrame, seed: int) -> dict[str, list[int]]:
    """As many rows of the whole table as are correct, back in the groups of their prompts."""
    count = int((table.reward > 0).sum())
    drawn = set(np.random.default_rng(seed).permutation(len(table))[:count].tolist())
    selected = {
        problem_id: [number for number in numbers if number in drawn]
        for problem_id, numbers in select(table, "all").items()
    }
    return {problem_id: numbers for problem_id, numbers in selected.items() if numbers}


# Each selection takes the rows of one prompt, with their numbers in the table as a column `number`,
# and returns the numbers of those to train on.


def _all(group: pd.DataFrame) -> list[int]:
    return list(group.number)


def _correct(group: pd.DataFrame) -> list[int]:
    return list(group.number[group.reward > 0])


def _first_correct(group: pd.DataFrame) -> list[int]:
    return _correct(group)[:1]


def _pair(group: pd.DataFrame) -> list[int]:
    correct, wrong = _correct(group), list(group.number[group.reward == 0])
    return [correct[0], wrong[0]] if correct and wrong else []


def _chosen_of_pair(group: pd.DataFrame) -> list[int]:
    return _pair(group)[:1]


def _distinct(group: pd.DataFrame) -> list[int]:
    """One correct row per list of equations, that is per reasoning path (2308.01825)."""
    correct = group[group.reward > 0]
    by_path: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for number, text in zip(correct.number, correct.completion, strict=True):
        by_path.setdefault(grading.written_equations(text), []).append((number, text))
    # Paths with a single row come first, so that the choice within the others is made by the
    # distance to all of them.
    selected = [rows[0] for rows in by_path.values() if len(rows) == 1]
    for rows in by_path.values():
        if len(rows) > 1:
            others = [text for _, text in selected]
            distances = [sum(_edit_distance(text, other) for other in others) for _, text in rows]
            selected.append(rows[distances.index(max(distances))])  # the first of equally far ones
    return sorted(number for number, _ in selected)


def _edit_distance(first: str, second: str) -> int:
    """Levenshtein distance of two texts.

    Goes down the table of distances between beginnings of the two, one row for each letter of
    `first`, with all columns at once.
    """
    columns = np.arange(len(second) + 1)
    letters = np.frombuffer(second.encode("utf-32-le"), dtype=np.uint32)
    row = columns  # from the empty text: one insertion per letter of `second`
    for index, letter in enumerate(first, start=1):
        # (len(second),) the cheaper of deleting `letter` and of putting each letter in its place
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        # Insertions go along the row: row[j] = min(best[j], row[j - 1] + 1). Less its column, each
        # entry is the smallest of those up to it, a running minimum.
        row = np.minimum.accumulate(np.concatenate([[index], best]) - columns) + columns
    return int(row[-1])


_SELECTIONS: dict[str, Callable[[pd.DataFrame], list[int]]] = {
    "all": _all,
    "correct": _correct,
    "correct-one": _first_correct,
    "correct-distinct": _distinct,
    "pairs": _pair,
    "chosen": _chosen_of_pair,
}
