"""The rules of lm-evaluation-harness for GSM8K, applied to answers that were stored: for comparison
with numbers that others publish.

Comes after `answering`. The rules are those of its task gsm8k, version 3.
"""

import re

import pandas as pd

from helpers.data import problems
from helpers.evaluation import answering
from helpers.evaluation.answering import RunOrModel
from helpers.profiles import Profile

_FILTERS = {
    "strict": (re.compile(r"#### (\-?[0-9\.\,]+)"), 0),
    "flexible": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}
_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))


def grade(completion: str, answer: str) -> dict[str, bool]:
    """{"strict": right or not, "flexible": ...}: the first number behind ####, and the last number
    of all, compared as text without commas and dollars."""
    grades = {}
    for rule, (pattern, which) in _FILTERS.items():
        numbers = [next(filter(None, match.groups())) for match in pattern.finditer(completion)]
        grades[rule] = bool(numbers) and _plain(numbers[which]) == _plain(answer)
    return grades


def _plain(text: str) -> str:
    for ignored in _IGNORED:
        text = ignored.sub("", text)
    return text.lower()


def regraded(profile: Profile, run: RunOrModel) -> pd.DataFrame:
    """The stored greedy records of a run or a model with columns `strict` and `flexible`; strict is
    never right where answers are in a box."""
    answers = {
        problem.problem_id: problem.answer
        for split_problems in problems.problem_sets(profile.problems).values()
        for problem in split_problems
    }
    records = answering.evaluate(profile, run)
    grades = [
        grade(completion, answers[problem_id])
        for completion, problem_id in zip(records.completion, records.problem_id, strict=True)
    ]
    return records.assign(**{rule: [one[rule] for one in grades] for rule in _FILTERS})
