"""Grading: what answer a completion gives, and whether it is the gold one.

Comes after `verifier`, which compares two answers, and before `rollouts` and the evaluation, which
take a completion's reward from here. Works on texts alone and writes nothing.
"""

import re
from dataclasses import dataclass

from helpers.data import verifier
from helpers.profiles import THOUGHT

Marks = tuple[str, str]
"""What opens and what closes a thought."""

# A box, an escaped letter, which is no brace, or a brace. Some write two backslashes for one.
_BOX_OR_BRACE = re.compile(
    r"(?P<box>\\{1,2}f?box(?:ed)?\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL
)
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3}){1,6}(?<=,\d{3})(?!\d)|\d++)"  # 1,234 and 10,00,000 are numbers
_NUMBER = re.compile(rf"-?[$€£]?(?:{_DIGITS}|(?=\.\d))(?:\.\d+)?")
_OPERATORS = {"×": "*", "·": "*", r"\times": "*", r"\cdot": "*", "÷": "/", r"\div": "/", "−": "-"}
_TERM = rf"\(*\$?{_DIGITS}(?:\.\d+)?\)*"
_OPERATOR = rf"[ \t]*(?:[-+*/]|{'|'.join(map(re.escape, _OPERATORS))})[ \t]*"
# Matches a sum without a result too, so that no text takes more than one pass.
_EQUATION = re.compile(
    rf"{_TERM}(?P<sum>(?:{_OPERATOR}{_TERM})*+)(?P<result>[ \t]*=[ \t]*-?\$?{_DIGITS}(?:\.\d+)?)?"
)


@dataclass(frozen=True)
class Grade:
    """What the verifier says of one completion.

    `status` is "boxed" (its answer was read), "unreadable", "cut box" or "no box", and after
    `grade_by_last_number` "number" or "no number"; `answer` is the text of the answer, None where
    there is none.
    """

    answer: str | None
    correct: bool
    status: str


def grade(completion: str, answer: str, thought: Marks | None = THOUGHT, prompt: str = "") -> Grade:
    r"""Grade a completion by its last box with math-verify.

    The answer is the content of the last `\boxed{}` (or `\fbox{}`) outside a thought; a box in a
    box belongs to the outer one. A last box that is not closed was cut off: then there is no
    answer, and no earlier box takes its place. Neither does one in a thought, whether the thought
    was closed or cut.

    thought: the marks of a thought, None where the whole text is the answer. prompt: the text
    before the completion, where it may open a thought.

    Raises what `verifier.compare` raises.
    """
    if thought:
        is_open = prompt.rfind(thought[0]) > prompt.rfind(thought[1])
        completion = _outside_thoughts(completion, thought, is_open)
    status, boxed = _last_box(completion)
    if boxed is None:
        return Grade(None, False, status)
    readable, correct = verifier.compare(boxed, answer)
    return Grade(boxed, correct, status if readable else "unreadable")


def _outside_thoughts(text: str, thought: Marks, is_open: bool) -> str:
    """What a text says outside its thoughts; is_open: whether it begins in one."""
    opening, closing = thought
    parts: list[str] = []
    while text:
        part, mark, text = text.partition(closing if is_open else opening)
        if not is_open and closing in part:  # it began in a thought, whatever opened that
            parts, part = [], part.rpartition(closing)[2]
        if not is_open:
            parts.append(part)
        is_open = bool(mark) and not is_open
        if not mark:
            break
    return "\n".join(parts)


def _last_box(text: str) -> tuple[str, str | None]:
    """(status, content) of the last box: "boxed" and what stands in it, or "cut box" or "no box"
    and None."""
    open_groups: list[int | None] = []  # where the content of each begins, None for a mere brace
    begin, content = None, None  # of the last box
    for token in _BOX_OR_BRACE.finditer(text):
        if token["box"]:
            begin = token.end()
            content = None
        if token["box"] or token["open"]:
            open_groups.append(token.end() if token["box"] else None)
        elif token["close"] and open_groups:
            closed = open_groups.pop()
            # The last box itself, or one around it, which then takes its place.
            if closed is not None and begin is not None and closed <= begin:
                begin, content = closed, text[closed : token.start()].strip()
    if begin is None:
        return "no box", None
    if content is None:
        return "cut box", None
    return "boxed", _BOX_OR_BRACE.sub(lambda token: "{" if token["box"] else token[0], content)


def grade_by_last_number(completion: str, answer: str) -> Grade:
    """Grade a completion by the last number in it, boxed or not: the flexible rule of
    lm-evaluation-harness, for comparison only.

    Numbers are written as there, 1,234 and $5 and .5; they are compared as numbers and not as
    text."""
    numbers = _NUMBER.findall(completion)
    if not numbers:
        return Grade(None, False, "no number")
    last = re.sub("[,$€£]", "", numbers[-1])
    return Grade(last, verifier.compare(last, answer)[1], "number")


def written_equations(completion: str) -> tuple[str, ...]:
    """The equations that a completion writes, in order: what 2308.01825 compares to tell two
    reasoning paths apart. In one spelling, without spaces, thousands commas and currencies, and
    with * and / for the other signs of the two."""
    found = [one[0] for one in _EQUATION.finditer(completion) if one["sum"] and one["result"]]
    return tuple(map(_in_one_spelling, found))


def _in_one_spelling(equation: str) -> str:
    for sign, operator in _OPERATORS.items():
        equation = equation.replace(sign, operator)
    # Brackets that stand around the equation, or begin before it, are the sentence's.
    unwanted = r"[,$\s]" if equation.count("(") == equation.count(")") else r"[,$\s()]"
    return re.sub(unwanted, "", equation)
