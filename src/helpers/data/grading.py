"""TODO docstring."""

import re
from dataclasses import dataclass

from helpers.data import verifier

# --- grading -------------------------------------------------------------------------------------------------------

_EQUATION = re.compile(r"\d+[-+*/]\d+=\d+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Grade:
    """What the verifier says of one completion. `status` is "boxed", "no box" or "unreadable"; `answer` the text found."""

    answer: str | None
    correct: bool
    status: str


def grade(completion, answer):
    r"""Grade a completion by its last `\boxed{}` with math-verify."""
    found = _last_box(completion)
    if found is None:
        return Grade(None, False, "no box")
    readable, correct = verifier.compare(found, answer)
    return Grade(found, correct, "boxed" if readable else "unreadable")


def _last_box(text):
    """Content of the last closed box, or None."""
    before, mark, after = text.rpartition("\\boxed{")
    depth = 1
    for place, letter in enumerate(after if mark else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return after[:place].strip()
    return _last_box(before) if mark else None


def grade_by_last_number(completion, answer):
    """Grade a completion by the last number in it, boxed or not: the flexible rule, for comparison only."""
    numbers = _NUMBER.findall(completion)
    if not numbers:
        return Grade(None, False, "no number")
    return Grade(numbers[-1], verifier.compare(numbers[-1], answer)[1], "number")


def written_equations(completion):
    """The equations that a completion writes, in order: what 2308.01825 compares to tell two reasoning paths apart."""
    return tuple(_EQUATION.findall(completion))
