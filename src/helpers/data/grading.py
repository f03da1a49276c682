"""Grading: what answer a completion gives, and whether it is the gold one.

Comes after `verifier`, which compares two answers, and before `rollouts` and the evaluation, which
take a completion's reward from here. Works on texts alone and writes nothing.
"""

import re
from dataclasses import dataclass

from helpers.data import verifier

_EQUATION = re.compile(r"\d+[-+*/]\d+=\d+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Grade:
    """What the verifier says of one completion.

    `status` is "boxed", "no box" or "unreadable", and after `grade_by_last_number` "number" or
    "no number"; `answer` is the text of the answer, None where there is none.
    """

    answer: str | None
    correct: bool
    status: str


def grade(completion: str, answer: str) -> Grade:
    r"""Grade a completion by its last `\boxed{}` with math-verify."""
    boxed = _last_box(completion)
    if boxed is None:
        return Grade(None, False, "no box")
    readable, correct = verifier.compare(boxed, answer)
    return Grade(boxed, correct, "boxed" if readable else "unreadable")


def _last_box(text: str) -> str | None:
    """Content of the last closed box, or None."""
    before, mark, after = text.rpartition("\\boxed{")
    if not mark:
        return None
    depth = 1
    for position, letter in enumerate(after):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return after[:position].strip()
    return _last_box(before)  # the last one is not closed


def grade_by_last_number(completion: str, answer: str) -> Grade:
    """Grade a completion by the last number in it, boxed or not: the flexible rule, for comparison
    only."""
    numbers = _NUMBER.findall(completion)
    if not numbers:
        return Grade(None, False, "no number")
    return Grade(numbers[-1], verifier.compare(numbers[-1], answer)[1], "number")


def written_equations(completion: str) -> tuple[str, ...]:
    """The equations that a completion writes, in order: what 2308.01825 compares to tell two
    reasoning paths apart."""
    return tuple(_EQUATION.findall(completion))
