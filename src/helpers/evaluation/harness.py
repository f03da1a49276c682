"""The rules of lm-evaluation-harness for GSM8K, applied to answers that were stored: for comparison with numbers that others publish.

Comes after `evaluation`. The rules are those of its task gsm8k, version 3.
"""

import re

from helpers.data import problems
from helpers.evaluation import answering

_FILTERS = {
    "strict": (re.compile(r"#### (\-?[0-9\.\,]+)"), 0),
    "flexible": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}
_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))


def grade(completion, answer):
    """{"strict": right or not, "flexible": ...}: the first number behind ####, and the last number of all, compared as text without commas and dollars."""
    found = {}
    for rule, (pattern, which) in _FILTERS.items():
        matches = list(pattern.finditer(completion))
        found[rule] = bool(matches) and _plain(
            next(filter(None, matches[which].groups()))
        ) == _plain(answer)
    return found


def _plain(text):
    for ignored in _IGNORED:
        text = ignored.sub("", text)
    return text.lower()


def regraded(profile, run):
    """The stored greedy records of a run (or of a model by name) with columns `strict` and `flexible`; strict is never right where answers stand in a box."""
    answers = {
        problem.problem_id: problem.answer
        for drawn in problems.problem_sets(profile.problems).values()
        for problem in drawn
    }
    records = answering.evaluate(profile, run)
    grades = [
        grade(completion, answers[problem_id])
        for completion, problem_id in zip(records.completion, records.problem_id, strict=True)
    ]
    return records.assign(**{rule: [one[rule] for one in grades] for rule in _FILTERS})
