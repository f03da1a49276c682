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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd

from helpers import store
from helpers.data import grading
from helpers.data.problem import SPLITS, TRAINED_ON, Problem, ProblemSets
from helpers.profiles import CollectionSettings, Source

Words = tuple[str, ...]

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_WORD = re.compile(r"[^\W_]+")


def problem_sets(settings: CollectionSettings) -> ProblemSets:
    """The problems of each split: those of `problem.SPLITS`, then the further ones.

    Of questions that differ in white space only the first is kept, and training prompts that
    overlap with a test set are left out. The validation problems are drawn by identity from what is
    left, so that they depend neither on the order of the rows nor, but for what overlaps, on the
    test sets.

    Raises FileNotFoundError for a collection that is no folder and can't be had from the hub, and
    ValueError for one without the split, column, question or answer asked for, for a further set
    with the name of a split, and where validation would leave nothing to train on.
    """
    # As text, since the settings hold a dict and so have no hash of their own.
    return _problem_sets(settings.model_dump_json())


@functools.lru_cache
def _problem_sets(fields: str) -> ProblemSets:
    settings = CollectionSettings.model_validate_json(fields)
    raw, _ = _raw_sets(fields)
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

    `counts` has one row per split with the numbers of rows `read`, of `duplicates` and `overlaps`
    left out, of problems `kept`, and of those kept that are `ungradable`. Validation problems are
    read and cleaned as training ones: their row says only how many were set aside. `overlaps` is
    that function's table for the sets without duplicates, before what overlaps was left out.
    """
    raw, read = _raw_sets(settings.model_dump_json())
    overlapping, sets = overlaps(raw), problem_sets(settings)
    unreadable = Counter(ungradable(sets).split)
    rows = [
        {
            "split": split,
            "read": read.get(split, 0),
            "duplicates": read.get(split, 0) - len(raw.get(split, ())),
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
    r"""Problems whose own gold answer in a `\boxed{}` is not graded as correct, so that no
    completion could earn the reward.

    A DataFrame with columns split, problem_id and answer, from {split: problems}. Takes some
    milliseconds for each answer that differs from all others.
    """
    rows = [
        (split, problem.problem_id, problem.answer)
        for split, chosen in sets.items()
        for problem in chosen
        if not grading.grade(f"\\boxed{{{problem.answer}}}", problem.answer).correct
    ]
    return pd.DataFrame(rows, columns=["split", "problem_id", "answer"])


def _words(question: str) -> Words:
    return tuple(_WORD.findall(question.lower()))


def _grams(words: Words, n: int) -> set[Words]:
    return {words[start : start + n] for start in range(len(words) - n + 1)}


# --- reading -------------------------------------------------------------------------------------


@functools.lru_cache
def _raw_sets(fields: str) -> tuple[ProblemSets, dict[str, int]]:
    """({split: problems without duplicates}, {split: rows read}); `train` still holds the
    validation problems and what overlaps with a test set."""
    settings = CollectionSettings.model_validate_json(fields)
    doubled = sorted(settings.further.keys() & set(SPLITS))
    if doubled:
        raise ValueError(
            f"problems.further names a set {doubled[0]!r}, which is a split of every study: "
            "give it another name"
        )
    named = {"train": settings.train, "test": settings.test, "hard": settings.hard}
    sets, read = {}, {}
    for split, source in (named | settings.further).items():
        rows = _read(source, split)
        first: dict[str, Problem] = {}  # of each question, white space apart
        for problem in rows:
            first.setdefault(" ".join(problem.question.split()), problem)
        sets[split], read[split] = tuple(first.values()), len(rows)
    return sets, read


def _read(source: Source, split: str) -> list[Problem]:
    """The problems of a source, one per row and in the order of the rows."""
    table = _load(source)
    for column in (source.question, source.answer):
        if column not in table.column_names:
            raise ValueError(
                f"{source.path}, split {source.split!r}: no column {column!r}, "
                f"choose among {', '.join(table.column_names)}"
            )
    questions = table[source.question][: source.limit]
    answers = table[source.answer][: source.limit]
    problems = []
    for row, (raw_question, raw_answer) in enumerate(zip(questions, answers, strict=True)):
        question, gold = _text(raw_question), _gold(_text(raw_answer), source.reads)
        if not question or not gold:
            answer_name = "answer behind ####" if source.reads == "after ####" else "answer"
            missing = answer_name if question else "question"
            raise ValueError(
                f"{source.path}, split {source.split!r}, row {row} (the first is 0): no {missing}; "
                f"question {question[:60]!r}, column {source.answer!r} {str(raw_answer)[-60:]!r}"
            )
        identity = hashlib.sha256(question.encode()).hexdigest()[:12]
        problems.append(
            Problem(identity, split, question, gold, steps=0, chain=(), person="", things="")
        )
    return problems


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _gold(text: str, reads: str) -> str:
    """The gold answer in the text of an answer's column; "" where it has none."""
    if reads == "answer":
        return text
    _, mark, ending = text.rpartition("####")
    return _THOUSANDS.sub("", ending.strip()) if mark else ""


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
