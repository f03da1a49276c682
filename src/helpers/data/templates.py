"""Word problems from templates, and their worked solutions.

After `problem`, before `problems`: makes the problems that `problems` hands out and the solutions
on which the study's own models are pretrained. A problem is a *chain*: a starting count and a few
operations on it, told as a story. One reasoning step is one equation of the worked solution.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from helpers.data.problem import SPLITS, Chain, Problem, ProblemSets
from helpers.profiles import ProblemSettings

Equation = tuple[int, str, int, int]  # left, operator, right, result

STYLES = ("terse", "wordy")
# fmt: off
PEOPLE = (
    "Tom", "Anna", "Ben", "Clara", "David", "Ella", "Felix", "Grace",
    "Hugo", "Iris", "Jonas", "Lena", "Max", "Nina", "Oscar", "Paula",
)
THINGS = (
    "apples", "books", "coins", "marbles", "shells", "stamps", "pencils", "cards",
    "stones", "beads", "pears", "nuts", "tickets", "buttons", "flowers", "eggs",
)
# fmt: on
_LARGEST = 99
OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "lots": "+"}


def equations(
    chain: Chain, miscount: Callable[[int], int] = lambda result: result
) -> list[Equation]:
    """The equations of a chain as (left, operator, right, result), in order: a worked solution
    without words.

    `miscount` may replace each result by a wrong one, which the later equations then carry on.
    """
    written: list[Equation] = []
    total = chain[0]
    for kind, *numbers in chain[1:]:
        operator, operand = OPERATORS[kind], numbers[0]
        if kind == "lots":  # what is in all boxes is counted first, then added
            boxes, each = numbers
            operand = miscount(boxes * each)
            written.append((boxes, "*", each, operand))
        result = miscount(_calculate(total, operator, operand))
        written.append((total, operator, operand, result))
        total = result
    return written


def _calculate(left: int, operator: str, right: int) -> int:
    """A count: a difference is at least 0, which a solution with errors may reach, and a quotient
    loses its remainder."""
    return {
        "+": left + right,
        "-": max(left - right, 0),
        "*": left * right,
        "/": left // right,
    }[operator]


def _draw_chain(rng: np.random.Generator, steps: int) -> Chain:
    """A chain of exactly `steps` equations whose totals stay within 1 and 99."""
    total = int(rng.integers(3, 50))
    chain: list[Any] = [total]
    left = steps
    while left:
        # Only the kinds that can be carried out from here: a division without remainder that leaves
        # more than one, a product within the limit, and boxes, which take two equations.
        divisors = [m for m in (2, 3, 4, 5) if total % m == 0 and total > m]
        factors = [m for m in (2, 3, 4, 5) if total * m <= _LARGEST]
        kinds = ["add", "subtract"]
        kinds += ["multiply"] * bool(factors) + ["divide"] * bool(divisors) + ["lots"] * (left >= 2)
        kind = kinds[rng.integers(len(kinds))]
        operation: tuple[Any, ...]
        if kind == "add":
            operation = ("add", int(rng.integers(2, 40)))
        elif kind == "subtract":
            operation = ("subtract", int(rng.integers(1, max(2, min(40, total)))))
        elif kind == "multiply":
            operation = ("multiply", int(rng.choice(factors)))
        elif kind == "divide":
            operation = ("divide", int(rng.choice(divisors)))
        else:
            operation = ("lots", int(rng.integers(2, 6)), int(rng.integers(2, 10)))
        # An operation whose total leaves the range is drawn again, its kind included.
        *_, (_, _, _, result) = equations((total, operation))
        if 1 <= result <= _LARGEST:
            chain.append(operation)
            total = result
            left -= 2 if kind == "lots" else 1
    return tuple(chain)


_SENTENCES = {
    "add": ("Then {0} more come.", "{person} buys {0} more."),
    "subtract": ("Then {0} get lost.", "{person} gives away {0}."),
    "multiply": ("Then there are {0} times as many.", "A trade leaves {0} times as many."),
    "divide": ("Only one of {0} equal parts stays.", "{person} keeps one of {0} equal parts."),
    "lots": ("Then {0} boxes of {1} come.", "{person} buys {0} boxes of {1}."),
}


def _story(rng: np.random.Generator, chain: Chain, person: str, things: str) -> str:
    """The question that tells a chain in English."""
    sentences = [f"{person} has {chain[0]} {things}."]
    sentences += [
        _one_of(rng, _SENTENCES[kind]).format(*numbers, person=person)
        for kind, *numbers in chain[1:]
    ]
    return " ".join([*sentences, f"How many does {person} have?"])


def _one_of(rng: np.random.Generator, phrasings: Sequence[str]) -> str:
    return phrasings[int(rng.integers(len(phrasings)))]


def draw_problem(rng: np.random.Generator, steps: int, split: str = "train") -> Problem:
    """One templated problem of `steps` equations."""
    chain = _draw_chain(rng, steps)
    person, things = _one_of(rng, PEOPLE), _one_of(rng, THINGS)
    question = _story(rng, chain, person, things)
    identity = hashlib.sha256(question.encode()).hexdigest()[:12]
    answer = str(equations(chain)[-1][-1])
    return Problem(identity, split, question, answer, steps, chain, person, things)


@functools.lru_cache
def templated_sets(settings: ProblemSettings) -> ProblemSets:
    """The problems of each split.

    No two problems of any splits share their chain, so a number pattern seen in one split never
    returns in another.
    """
    # One generator for all splits in their order, so that the seed determines every problem.
    rng = np.random.default_rng(settings.seed)
    seen: set[Chain] = set()
    sets = {}
    for split in SPLITS:
        drawn: list[Problem] = []
        steps = settings.hard_steps if split == "hard" else settings.steps
        while len(drawn) < getattr(settings, split):
            problem = draw_problem(rng, int(rng.choice(steps)), split)
            if problem.chain not in seen:
                seen.add(problem.chain)
                drawn.append(problem)
        sets[split] = tuple(drawn)
    return sets


def _wrong_result(rng: np.random.Generator, result: int) -> int:
    """A wrong result near the right one, as a hurried writer makes it."""
    wrong = result + int(rng.choice([-10, -2, -1, 1, 2, 10]))
    return wrong if wrong >= 1 else result + 1


def worked_solution(
    problem: Problem, style: str, rng: np.random.Generator, error_rate: float = 0.0
) -> str:
    r"""A worked solution ending in `\boxed{}`; each equation is wrong with probability
    `error_rate`.

    `terse` writes one equation per line. `wordy` writes sentences in several phrasings and splits
    sums into tens and ones.

    Raises ValueError for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose one of {', '.join(STYLES)}")
    lines = equations(
        problem.chain,
        lambda result: _wrong_result(rng, result) if rng.random() < error_rate else result,
    )
    story = {
        "person": problem.person,
        "things": problem.things,
        "start": problem.chain[0],
        "total": lines[-1][-1],
    }
    ending = _one_of(rng, _ENDINGS[style]).format(**story)
    if style == "terse":
        return "\n".join([*_equation_lines(lines), ending])
    opening = _one_of(rng, _OPENINGS).format(**story)
    return " ".join([opening, *_sentences(rng, lines), ending])


def drill(style: str, rng: np.random.Generator, chains: int = 4) -> str:
    """Equations of a few random chains in a style of writing, without story or answer: practice for
    pretraining."""
    lines = [line for _ in range(chains) for line in equations(_draw_chain(rng, 2))]
    if style == "terse":
        return "\n".join(_equation_lines(lines))
    return " ".join(_sentences(rng, lines))


def _equation_lines(lines: Sequence[Equation]) -> list[str]:
    return [f"{left}{operator}{right}={result}" for left, operator, right, result in lines]


_OPENINGS = ("{person} starts with {start}.", "We count step by step.", "Let us follow {person}.")
_IN_TENS_AND_ONES = (
    "First {left}{operator}{tens}={middle}, then {middle}{operator}{ones}={result}.",
    "{left}{operator}{tens}={middle} and {middle}{operator}{ones}={result}.",
)
_IN_ONE_STEP = {
    "+": ("More come: {left}+{right}={result}.", "Now there are {left}+{right}={result}."),
    "-": ("Some go: {left}-{right}={result}.", "Now there are {left}-{right}={result}."),
    "*": ("Many times over: {left}*{right}={result}.", "That makes {left}*{right}={result}."),
    "/": ("One part: {left}/{right}={result}.", "Equal parts of {left}/{right}={result}."),
}
_ENDINGS = {
    "terse": ("\\boxed{{{total}}}", "So \\boxed{{{total}}}"),
    "wordy": (
        "So {person} has \\boxed{{{total}}}",
        "The answer is \\boxed{{{total}}}",
        "That is \\boxed{{{total}}} {things}.",
    ),
}


def _sentences(rng: np.random.Generator, lines: Sequence[Equation]) -> list[str]:
    """Each equation as a sentence."""
    sentences = []
    for left, operator, right, result in lines:
        # A sum or difference of two-digit numbers goes by way of the tens: 34+20=54, 54+5=59.
        tens, ones = right - right % 10, right % 10
        middle = left + tens if operator == "+" else left - tens
        in_two = operator in "+-" and tens and ones and left >= 10 and middle >= 0
        phrasing = _one_of(rng, _IN_TENS_AND_ONES if in_two else _IN_ONE_STEP[operator])
        numbers = {"left": left, "right": right, "tens": tens, "ones": ones, "middle": middle}
        sentences.append(phrasing.format(operator=operator, result=result, **numbers))
    return sentences
