"""Problems of public collections in the place of templated ones.

Stands beside `problems` in the flow of data, before `rollouts`: it reads a profile's `CollectionSettings` and gives the same
`Problem`s, without chain and story. Public collections repeat themselves and each other, so what is trained on here is free of
what is tested on: training prompts that overlap with a test set are left out, and `report` says how many and which.
"""

import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict

import datasets
import numpy as np
import pandas as pd

from helpers import store
from helpers.data import grading
from helpers.data.problem import SPLITS, TRAINED_ON, Problem
from helpers.profiles import CollectionSettings

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_WORD = re.compile(r"[^\W_]+")


def problem_sets(settings):
    """The problems of each split, {split: tuple of Problem}, from a profile's `CollectionSettings`: those of `problems.SPLITS`, then the further ones.

    Of questions that differ in white space only the first is kept, and training prompts that overlap with a test set are left out. The validation
    problems are drawn by identity from what is left, so that they depend neither on the order of the rows nor, but for what overlaps, on the test sets.

    Raises FileNotFoundError for a collection that is no folder and can't be had from the hub, and ValueError for one without the split, column, question
    or answer asked for, for a further set with the name of a split, and where validation would leave nothing to train on.
    """
    return _problem_sets(
        settings.model_dump_json()
    )  # the settings hold a dict and so have no hash of their own


@functools.lru_cache
def _problem_sets(fields):
    settings = CollectionSettings.model_validate_json(fields)
    raw, _ = _raw_sets(fields)
    left_out = set(overlaps(raw).train_id)
    prompts = {problem.problem_id: problem for problem in raw["train"]}
    order = np.random.default_rng(settings.seed).permutation(sorted(prompts))
    usable = [identity for identity in order if identity not in left_out]
    if len(usable) <= settings.validation:
        raise ValueError(
            f"{settings.train.path}: {len(usable)} problems are left to train on, too few to set {settings.validation} aside for validation: "
            "lower problems.validation or raise problems.train.limit"
        )
    drawn = usable[: settings.validation]
    gone = left_out.union(drawn)
    return {
        "train": tuple(problem for problem in raw["train"] if problem.problem_id not in gone),
        "validation": tuple(
            dataclasses.replace(prompts[identity], split="validation") for identity in drawn
        ),
        **{split: chosen for split, chosen in raw.items() if split != "train"},
    }


def report(settings):
    """What reading the collections found, as (counts, overlaps); raises what `problem_sets` raises.

    `counts` has one row a split with the numbers of rows `read`, of `duplicates` and `overlaps` left out, of problems `kept`, and of those kept that are
    `ungradable`. Validation problems are read and cleaned as training ones: their row says only how many were set aside. `overlaps` is that function's
    table for the sets without duplicates, before what overlaps was left out.
    """
    raw, read = _raw_sets(settings.model_dump_json())
    found, sets = overlaps(raw), problem_sets(settings)
    unreadable = Counter(ungradable(sets).split)
    counts = pd.DataFrame(
        [
            {
                "split": split,
                "read": read.get(split, 0),
                "duplicates": read.get(split, 0) - len(raw.get(split, ())),
                "overlaps": found.train_id.nunique() if split == "train" else 0,
                "kept": len(chosen),
                "ungradable": unreadable[split],
            }
            for split, chosen in sets.items()
        ]
    )
    return counts, found


def overlaps(sets, n=13, common=10):
    """Training prompts that share text with a test problem: a DataFrame with columns split, problem_id, train_id and kind, one row a pair.

    `sets` is {split: problems}; `train` and `validation` are compared with every other split. Texts are compared as words of letters and digits in lower case.
    kind is "same text" where all words are equal, which for formulas ignores their signs, else "shared n-gram" where `n` consecutive words are. An n-gram
    found in more than `common` training prompts is a phrase of the trade ("where m and n are relatively prime positive integers") and tells of no
    overlap. 13 words and 10 prompts are those of 2005.14165, appendix C. Questions of fewer than `n` words are compared as a whole only.
    """
    texts, grams = defaultdict(list), defaultdict(list)
    for split in sets.keys() - set(TRAINED_ON):
        for problem in sets[split]:
            words = _words(problem.question)
            texts[words].append((split, problem.problem_id))
            for gram in _grams(words, n):
                grams[gram].append((split, problem.problem_id))
    shared = []
    for problem in (problem for split in TRAINED_ON for problem in sets.get(split, ())):
        words = _words(problem.question)
        shared.append((problem.problem_id, words, _grams(words, n) & grams.keys()))
    frequency = Counter(gram for *_, found in shared for gram in found)
    kinds = {}
    for train_id, words, found in shared:
        tested = {test for gram in found if frequency[gram] <= common for test in grams[gram]}
        kinds |= {(*test, train_id): "shared n-gram" for test in tested}
        kinds |= {(*test, train_id): "same text" for test in texts.get(words, ())}
    return pd.DataFrame(
        [(*pair, kinds[pair]) for pair in sorted(kinds)],
        columns=["split", "problem_id", "train_id", "kind"],
    )


def ungradable(sets):
    r"""Problems whose own gold answer in a `\boxed{}` is not graded as correct, so that no completion could earn the reward.

    A DataFrame with columns split, problem_id and answer, from {split: problems}. Takes some milliseconds for each answer that differs from all others.
    """
    rows = [
        (split, problem.problem_id, problem.answer)
        for split, chosen in sets.items()
        for problem in chosen
        if not grading.grade(f"\\boxed{{{problem.answer}}}", problem.answer).correct
    ]
    return pd.DataFrame(rows, columns=["split", "problem_id", "answer"])


def _words(question):
    return tuple(_WORD.findall(question.lower()))


def _grams(words, n):
    return {words[start : start + n] for start in range(len(words) - n + 1)}


# --- reading -------------------------------------------------------------------------------------------------------


@functools.lru_cache
def _raw_sets(fields):
    """({split: problems without duplicates}, {split: rows read}); `train` still holds the validation problems and what overlaps with a test set."""
    settings = CollectionSettings.model_validate_json(fields)
    taken = sorted(settings.further.keys() & set(SPLITS))
    if taken:
        raise ValueError(
            f"problems.further names a set {taken[0]!r}, which is a split of every study: give it another name"
        )
    sets, read = {}, {}
    for split, source in {
        "train": settings.train,
        "test": settings.test,
        "hard": settings.hard,
        **settings.further,
    }.items():
        drawn, first = _read(source, split), {}
        for problem in drawn:
            first.setdefault(" ".join(problem.question.split()), problem)
        sets[split], read[split] = tuple(first.values()), len(drawn)
    return sets, read


def _read(source, split):
    """The problems of a source, one a row and in the order of the rows."""
    table = _load(source)
    for column in (source.question, source.answer):
        if column not in table.column_names:
            raise ValueError(
                f"{source.path}, split {source.split!r}: no column {column!r}, choose among {', '.join(table.column_names)}"
            )
    drawn = []
    for row, (question, answer) in enumerate(
        zip(
            table[source.question][: source.limit],
            table[source.answer][: source.limit],
            strict=True,
        )
    ):
        question, gold = _text(question), _gold(_text(answer), source.reads)
        if not question or not gold:
            missing = (
                "question"
                if not question
                else "answer behind ####"
                if source.reads == "after ####"
                else "answer"
            )
            raise ValueError(
                f"{source.path}, split {source.split!r}, row {row} (the first is 0): no {missing}; question {question[:60]!r}, "
                f"column {source.answer!r} {str(answer)[-60:]!r}"
            )
        identity = hashlib.sha256(question.encode()).hexdigest()[:12]
        drawn.append(
            Problem(identity, split, question, gold, steps=0, chain=(), person="", things="")
        )
    return drawn


def _text(value):
    return "" if value is None else str(value).strip()


def _gold(text, reads):
    if reads == "answer":
        return text
    _, mark, ending = text.rpartition("####")
    return _THOUSANDS.sub("", ending.strip()) if mark else ""


def _load(source):
    """The split of a source as a `datasets.Dataset`, from its folder if there is one, else from the hub or the library's own cache of it."""
    folder, place, configuration = store.ROOT / source.path, source.path, source.name
    try:
        if folder.is_dir():
            place = str(folder)
            # Without the hub's card the library knows nothing of configurations, which are then folders.
            if (
                source.name
                and (folder / source.name).is_dir()
                and source.name not in datasets.get_dataset_config_names(place)
            ):
                place, configuration = str(folder / source.name), None
        return datasets.load_dataset(place, configuration, split=source.split)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"no data set {source.path!r}: there is no such folder with data under {store.ROOT}, and the hub gave none ({error}). On a machine with network "
            f"run `hf download --repo-type dataset {source.path} --local-dir FOLDER`, and put the folder into the profile as this source's path"
        ) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{source.path}, split {source.split!r}: {error}") from error
