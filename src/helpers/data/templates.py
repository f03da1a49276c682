"""Word problems, their worked solutions, and the grading of answers.

First module in the flow of data: it makes the prompts that the teacher answers (`rollouts`) and grades whatever a model
writes. A templated problem is a *chain*: a starting count and a few operations on it, told as a story. One reasoning
step is one equation of the worked solution.
"""

import functools
import hashlib

import numpy as np

from helpers.data.problem import SPLITS, Problem

MANNERS = ("terse", "wordy")
_PEOPLE = (
    "Tom",
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Ella",
    "Felix",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Lena",
    "Max",
    "Nina",
    "Oscar",
    "Paula",
)
_THINGS = (
    "apples",
    "books",
    "coins",
    "marbles",
    "shells",
    "stamps",
    "pencils",
    "cards",
    "stones",
    "beads",
    "pears",
    "nuts",
    "tickets",
    "buttons",
    "flowers",
    "eggs",
)
_LARGEST = 99
_OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def equations(chain, miscount=lambda result: result):
    """The equations of a chain as (left, operator, right, result), in order: a worked solution without words.

    `miscount` may replace each result by a wrong one, which the later equations then carry on.
    """
    found = []

    def write(left, operator, right):
        exact = {
            "+": left + right,
            "-": max(left - right, 0),
            "*": left * right,
            "/": left // right,
        }[operator]
        found.append((left, operator, right, miscount(exact)))
        return found[-1][-1]

    total = chain[0]
    for kind, *numbers in chain[1:]:
        if kind == "lots":
            boxes, each = numbers
            total = write(total, "+", write(boxes, "*", each))
        else:
            total = write(total, _OPERATORS[kind], numbers[0])
    return found


def _draw_chain(rng, steps):
    """A chain of exactly `steps` equations whose totals stay within 1 and 99."""
    total = int(rng.integers(3, 50))
    chain, left = [total], steps
    while left:
        divisors = [m for m in (2, 3, 4, 5) if total % m == 0 and total > m]
        factors = [m for m in (2, 3, 4, 5) if total * m <= _LARGEST]
        kinds = (
            ["add", "subtract"]
            + ["multiply"] * bool(factors)
            + ["divide"] * bool(divisors)
            + ["lots"] * (left >= 2)
        )
        kind = kinds[rng.integers(len(kinds))]
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
        *_, (_, _, _, result) = equations((total, operation))
        if 1 <= result <= _LARGEST:
            chain.append(operation)
            total = result
            left -= 2 if kind == "lots" else 1
    return tuple(chain)


_TOLD = {
    "add": ("Then {0} more come.", "{person} buys {0} more."),
    "subtract": ("Then {0} get lost.", "{person} gives away {0}."),
    "multiply": ("Then there are {0} times as many.", "A trade leaves {0} times as many."),
    "divide": ("Only one of {0} equal parts stays.", "{person} keeps one of {0} equal parts."),
    "lots": ("Then {0} boxes of {1} come.", "{person} buys {0} boxes of {1}."),
}


def _tell(rng, chain, person, things):
    """The story of a chain in English."""
    sentences = [f"{person} has {chain[0]} {things}."]
    sentences += [
        _one_of(rng, _TOLD[kind]).format(*numbers, person=person) for kind, *numbers in chain[1:]
    ]
    return " ".join([*sentences, f"How many does {person} have?"])


def _one_of(rng, phrasings):
    return phrasings[rng.integers(len(phrasings))]


def draw_problem(rng, steps, split="train"):
    """One templated problem of `steps` equations, drawn from the generator `rng` (numpy)."""
    chain = _draw_chain(rng, steps)
    person, things = _one_of(rng, _PEOPLE), _one_of(rng, _THINGS)
    question = _tell(rng, chain, person, things)
    identity = hashlib.sha256(question.encode()).hexdigest()[:12]
    return Problem(
        identity, split, question, str(equations(chain)[-1][-1]), steps, chain, person, things
    )


@functools.lru_cache
def templated_sets(settings):
    """The problems of each split from a profile's `ProblemSettings`.

    No two problems of any splits share their chain, so a number pattern seen in one split never returns in another.
    """
    rng = np.random.default_rng(settings.seed)
    seen, sets = set(), {}
    for split in SPLITS:
        drawn = []
        steps = settings.hard_steps if split == "hard" else settings.steps
        while len(drawn) < getattr(settings, split):
            problem = draw_problem(rng, int(rng.choice(steps)), split)
            if problem.chain not in seen:
                seen.add(problem.chain)
                drawn.append(problem)
        sets[split] = tuple(drawn)
    return sets


def _slip(rng, result):
    """A wrong result near the right one, as a hurried writer makes it."""
    wrong = result + int(rng.choice([-10, -2, -1, 1, 2, 10]))
    return wrong if wrong >= 1 else result + 1


def worked_solution(problem, manner, rng, slip_rate=0.0):
    r"""A worked solution ending in `\boxed{}`; each equation is wrong with probability `slip_rate`.

    `terse` writes one equation a line. `wordy` writes sentences in several phrasings and splits sums into tens and ones.

    Raises ValueError for an unknown manner.
    """
    if manner not in MANNERS:
        raise ValueError(f"unknown manner {manner!r}: choose one of {', '.join(MANNERS)}")
    lines = equations(
        problem.chain, lambda result: _slip(rng, result) if rng.random() < slip_rate else result
    )
    told = {
        "person": problem.person,
        "things": problem.things,
        "start": problem.chain[0],
        "total": lines[-1][-1],
    }
    ending = _one_of(rng, _ENDINGS[manner]).format(**told)
    if manner == "terse":
        return "\n".join([*_equation_lines(lines), ending])
    return " ".join([_one_of(rng, _OPENINGS).format(**told), *_sentences(rng, lines), ending])


def drill(manner, rng, chains=4):
    """Equations of a few random chains in a manner of writing, without story or answer: practice for pretraining."""
    lines = [line for _ in range(chains) for line in equations(_draw_chain(rng, 2))]
    return (
        "\n".join(_equation_lines(lines)) if manner == "terse" else " ".join(_sentences(rng, lines))
    )


def _equation_lines(lines):
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


def _sentences(rng, lines):
    sentences = []
    for left, operator, right, result in lines:
        tens, ones = right - right % 10, right % 10
        middle = left + tens if operator == "+" else left - tens
        in_two = operator in "+-" and tens and ones and left >= 10 and middle >= 0
        phrasing = _one_of(rng, _IN_TENS_AND_ONES if in_two else _IN_ONE_STEP[operator])
        sentences.append(
            phrasing.format(
                left=left,
                operator=operator,
                right=right,
                result=result,
                tens=tens,
                ones=ones,
                middle=middle,
            )
        )
    return sentences
