"""Problems of public collections in the place of templated ones.

Like `templates` after `problem` and before `problems`: reads a profile's
`CollectionSettings` and gives the same `Problem`s, without chain and story. Public collections
repeat themselves and each other, so what is trained on here is free of what is tested on: training
prompts that overlap with a test set are left out, and `report` says how many and which.
"""

import dataclasses
import functools
import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from helpers import store
from helpers.data import grading, texts, verifier
from helpers.data.problem import SPLITS, TRAINED_ON, Problem, ProblemSets
from helpers.profiles import CollectionSettings, Source

Words = tuple[str, ...]

# Between thousands, and in the Indian way between hundreds of thousands too: 10,00,000.
_COMMA = re.compile(r"(?<=\d),(?=(?:\d\d,)*\d{3}\b)")
_WORD = re.compile(r"[^\W_]+")


def problem_sets(settings: CollectionSettings) -> ProblemSets:
    """The problems of each split: those of `problem.SPLITS`, then the further ones.

    Of questions that differ in white space only the first is kept, and training prompts that
    overlap with a test set are left out. The validation problems are drawn by identity from what is
    left, so that they depend neither on the order of the rows nor, but for what overlaps, on the
    test sets.

    Rows without a question or an answer that can be read are left out, with a warning.

    Raises FileNotFoundError for a collection that is no folder and can't be had from the hub, and
    ValueError for one without the split or column asked for or without any row that can be read,
    for a further set with the name of a split, and where validation would leave nothing to train
    on.
    """
    # As text, since the settings hold a dict and so have no hash of their own.
    return _problem_sets(settings.model_dump_json())


@functools.lru_cache
def _problem_sets(fields: str) -> ProblemSets:
    settings = CollectionSettings.model_validate_json(fields)
    raw, *_ = _raw_sets(fields)
    overlapping = set(overlaps(raw).train_id)
    prompts = {problem.problem_id: problem for problem in raw["train"]}
    # Every prompt is drawn, and those that overlap are passed over, so that another test set moves
    # only the validation problems that overlap with it.
    order = np.random.default_rng(settings.seed).permutation(sorted(prompts))
    usable = [identity for identity in order if identity not in overlapping]
    if len(usable) <= settings.validation:
        raise ValueError(
            f"{settings.train.path}: {len(usable)} problems are left to train on, too few to set "
            f"{settings.validation} aside for validation: "
            "lower problems.validation or raise problems.train.limit"
        )
    drawn = usable[: settings.validation]
    excluded = overlapping.union(drawn)
    return {
        "train": tuple(problem for problem in raw["train"] if problem.problem_id not in excluded),
        "validation": tuple(
            dataclasses.replace(prompts[identity], split="validation") for identity in drawn
        ),
        **{split: chosen for split, chosen in raw.items() if split != "train"},
    }


def report(settings: CollectionSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What was read and what was left out, as (counts, overlaps); raises what `problem_sets`
    raises.

    `counts` has one row per split with the numbers of rows `read`, of `incomplete` ones (without a
    question or an answer that can be read), `duplicates` and `overlaps` left out, of problems
    `kept`, and of those kept that are `ungradable`. Validation problems are read and cleaned as
    training ones: their row says only how many were set aside. `overlaps` is that function's table
    for the sets without duplicates, before what overlaps was left out.
    """
    raw, read, complete = _raw_sets(settings.model_dump_json())
    overlapping, sets = overlaps(raw), problem_sets(settings)
    unreadable = Counter(ungradable(sets).split)
    rows = [
        {
            "split": split,
            "read": read.get(split, 0),
            "incomplete": read.get(split, 0) - complete.get(split, 0),
            "duplicates": complete.get(split, 0) - len(raw.get(split, ())),
            "overlaps": overlapping.train_id.nunique() if split == "train" else 0,
            "kept": len(chosen),
            "ungradable": unreadable[split],
        }
        for split, chosen in sets.items()
    ]
    return pd.DataFrame(rows), overlapping


def overlaps(sets: Mapping[str, Sequence[Problem]], n: int = 13, common: int = 10) -> pd.DataFrame:
    """Training prompts that share text with a test problem: a DataFrame with columns split,
    problem_id, train_id and kind, one row per pair.

    `sets` is {split: problems}; `train` and `validation` are compared with every other split. Texts
    are compared as words of letters and digits in lower case. kind is "same text" where all words
    are equal, which for formulas ignores their signs, else "shared n-gram" where `n` consecutive
    words are. An n-gram found in more than `common` training prompts is a phrase of the trade
    ("where m and n are relatively prime positive integers") and tells of no overlap. 13 words and
    10 prompts are those of 2005.14165, appendix C. Questions of fewer than `n` words are compared
    as a whole only.
    """
    # Where in the test sets each whole text and each n-gram occurs, as (split, problem_id).
    tests_by_text: dict[Words, list[tuple[str, str]]] = defaultdict(list)
    tests_by_gram: dict[Words, list[tuple[str, str]]] = defaultdict(list)
    for split in sets.keys() - set(TRAINED_ON):
        for problem in sets[split]:
            words = _words(problem.question)
            tests_by_text[words].append((split, problem.problem_id))
            for gram in _grams(words, n):
                tests_by_gram[gram].append((split, problem.problem_id))
    prompts = []  # (train_id, words, n-grams that occur in a test set)
    for problem in (problem for split in TRAINED_ON for problem in sets.get(split, ())):
        words = _words(problem.question)
        prompts.append((problem.problem_id, words, _grams(words, n) & tests_by_gram.keys()))
    frequency = Counter(gram for *_, grams in prompts for gram in grams)
    kinds: dict[tuple[str, str, str], str] = {}  # (split, problem_id, train_id) -> kind
    for train_id, words, grams in prompts:
        rare = [gram for gram in grams if frequency[gram] <= common]
        for split, problem_id in (test for gram in rare for test in tests_by_gram[gram]):
            kinds[split, problem_id, train_id] = "shared n-gram"
        for split, problem_id in tests_by_text.get(words, ()):  # equal texts share n-grams too
            kinds[split, problem_id, train_id] = "same text"
    return pd.DataFrame(
        [(*pair, kinds[pair]) for pair in sorted(kinds)],
        columns=["split", "problem_id", "train_id", "kind"],
    )


def ungradable(sets: Mapping[str, Sequence[Problem]]) -> pd.DataFrame:
    r"""Problems whose gold answers the verifier can't read as mathematics: a DataFrame with columns
    split, problem_id, answer and reason, from {split: problems}.

    reason: "never right" where even the gold answer itself in a `\boxed{}` is not graded as
    correct, so that no completion could earn the reward; else "as text", where only the same words
    are right. Takes some milliseconds for each answer that differs from all others.
    """
    rows = [
        (split, problem.problem_id, problem.answer, reason)
        for split, chosen in sets.items()
        for problem in chosen
        if (reason := _why_ungradable(problem.answer))
    ]
    return pd.DataFrame(rows, columns=["split", "problem_id", "answer", "reason"])


def _why_ungradable(answer: str) -> str | None:
    if not grading.grade(f"\\boxed{{{answer}}}", answer).correct:
        return "never right"
    return None if verifier.is_mathematics(answer) else "as text"


def _words(question: str) -> Words:
    return tuple(_WORD.findall(question.lower()))


def _grams(words: Words, n: int) -> set[Words]:
    return {words[start : start + n] for start in range(len(words) - n + 1)}


# --- reading -------------------------------------------------------------------------------------


@functools.lru_cache
def _raw_sets(fields: str) -> tuple[ProblemSets, dict[str, int], dict[str, int]]:
    """({split: problems without duplicates}, {split: rows read}, {split: problems in them});
    `train` still holds the validation problems and what overlaps with a test set."""
    settings = CollectionSettings.model_validate_json(fields)
    doubled = sorted(settings.further.keys() & set(SPLITS))
    if doubled:
        raise ValueError(
            f"problems.further names a set {doubled[0]!r}, which is a split of every study: "
            "give it another name"
        )
    named = {"train": settings.train, "test": settings.test, "hard": settings.hard}
    sets, read, complete = {}, {}, {}
    for split, source in (named | settings.further).items():
        chosen, read[split] = _read(source, split)
        first: dict[str, Problem] = {}  # of each question, white space apart
        for problem in chosen:
            first.setdefault(" ".join(problem.question.split()), problem)
        sets[split], complete[split] = tuple(first.values()), len(chosen)
    return sets, read, complete


def _read(source: Source, split: str) -> tuple[list[Problem], int]:
    """The problems of a source, one per row that has a question and an answer and in the order of
    the rows, and the number of all rows."""
    table = _load(source)
    for column in (source.question, source.answer):
        if column not in table.column_names:
            raise ValueError(
                f"{source.path}, split {source.split!r}: no column {column!r}, "
                f"choose among {', '.join(table.column_names)}"
            )
    questions = table[source.question][: source.limit]
    answers = table[source.answer][: source.limit]
    problems, faults = [], []
    for row, (raw_question, raw_answer) in enumerate(zip(questions, answers, strict=True)):
        try:
            question, gold = _question(raw_question), _gold(raw_answer, source.reads)
        except ValueError as fault:
            faults.append(
                f"row {row} (the first is 0): {fault}; column {source.question!r} "
                f"{str(raw_question)[:60]!r}, column {source.answer!r} {str(raw_answer)[-60:]!r}"
            )
            continue
        identity = hashlib.sha256(question.encode()).hexdigest()[:12]
        problems.append(
            Problem(identity, split, question, gold, steps=0, chain=(), person="", things="")
        )
    where = f"{source.path}, split {source.split!r}"
    if not problems:
        reason = f"no row can be read, {faults[0]}" if faults else "there are no rows"
        raise ValueError(f"{where}: {reason}")
    if faults:
        warnings.warn(
            f"{where}: {len(faults)} of {len(questions)} rows are left out, {faults[0]}",
            stacklevel=2,
        )
    return problems, len(questions)


def _question(value: Any) -> str:
    """The text of a question; raises ValueError for what is none."""
    try:
        text = texts.text_in(value, "user").strip()
    except ValueError as fault:
        raise ValueError(f"the question {fault}") from None
    if not text:
        raise ValueError("the question is missing")
    return text


def _gold(value: Any, reads: str) -> str:
    """The gold answer in the value of an answer's column; raises ValueError where it has none."""
    if isinstance(value, list) and len(value) == 1 and not texts.is_chat(value):
        (value,) = value
    if isinstance(value, list) and len(value) > 1 and not texts.is_chat(value):
        raise ValueError(
            f"the answer is a list of {len(value)}, which does not say whether one is enough"
        )
    if isinstance(value, float):
        if not np.isfinite(value):
            raise ValueError("the answer is missing")
        # 25 and not 25.0: a column of integers is one of floats where one of them is missing.
        value = np.format_float_positional(value, trim="-")
    elif isinstance(value, int):  # True and False too
        value = str(value)
    try:
        text = texts.text_in(value, "assistant").strip()
    except ValueError as fault:
        raise ValueError(f"the answer {fault}") from None
    if reads == "after ####":
        _, mark, ending = text.rpartition("####")
        text = _COMMA.sub("", ending.strip())
        if not mark or not text:
            raise ValueError("no answer behind ####")
    if not text:
        raise ValueError("the answer is missing")
    return text


def _load(source: Source) -> datasets.Dataset:
    """The split of a source, from its folder if there is one, else from the hub or the library's
    own cache of it."""
    folder = store.ROOT / source.path
    path, configuration = source.path, source.name
    try:
        if folder.is_dir():
            path = str(folder)
            # Without the hub's card the library knows nothing of configurations, which are then
            # folders.
            if (
                source.name
                and (folder / source.name).is_dir()
                and source.name not in datasets.get_dataset_config_names(path)
            ):
                path, configuration = str(folder / source.name), None
        if Path(path, datasets.config.DATASET_STATE_JSON_FILENAME).exists():
            return _saved(path, source)
        return datasets.load_dataset(path, configuration, split=source.split)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"no data set {source.path!r}: there is no such folder with data under {store.ROOT}, "
            f"and the hub gave none ({error}). On a machine with network run "
            f"`hf download --repo-type dataset {source.path} --local-dir FOLDER`, "
            "and put the folder into the profile as this source's path"
        ) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{source.path}, split {source.split!r}: {error}") from error


def _saved(path: str, source: Source) -> datasets.Dataset:
    """The data set in a folder that `save_to_disk` made of a single split."""
    saved = datasets.load_from_disk(path)
    if saved.split is not None and str(saved.split) != source.split:
        raise ValueError(f"the folder was saved of the split {str(saved.split)!r} alone")
    return saved
