r"""Why a completion fails: the first step of a templated problem that it does not carry out.

After `templates`, whose chains say what a right solution computes, and `grading`, which finds the
answer; the page on evaluation counts what is found here. Works on texts alone and writes nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from helpers.data import grading, templates
from helpers.data.problem import Problem

MISCOPIED = "number miscopied"
WRONG_EQUATION = "wrong equation"
BOX = "wrong or missing box"
OTHER = "other"
CLASSES = (WRONG_EQUATION, MISCOPIED, BOX, OTHER)

_BINARY = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
_TERSE_LINE = re.compile(r"[-+*/=\d\s]*|(?:So )?\\boxed\{[^{}]*\}\.?")


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a completion.

    error: one of `CLASSES`, None where every step and the box are right. A *wrong equation* has the
    right operation on the right numbers, and another result. A *number miscopied* is neither the
    question's nor the completion's own earlier result, where one of these belongs. *Other* is
    another operation, a step too few or too many, or text that is no solution.
    step: the equation of the right chain, from 1, at which that is; one more than there are for the
    box.
    wrong_name: whether it names another person or other things than the question.
    style: "terse" where it writes equations alone, line by line, else "wordy".
    """

    error: str | None
    step: int
    wrong_name: bool
    style: str


def diagnose(problem: Problem, completion: str) -> Diagnosis:
    """Compare a completion with the chain of its problem, step by step, on the completion's own
    numbers: after an error the later steps are those that follow from it.

    A sum or difference may be written in two equations, tens first (34+25: 34+20=54, 54+5=59).
    Raises ValueError for a problem without a chain.
    """
    if not problem.chain:
        raise ValueError(f"problem {problem.problem_id} has no chain: only templated problems have")
    error, step = _first_error(problem, completion)
    named = set(re.findall(r"[A-Za-z]+", completion))
    strangers = (set(templates.PEOPLE) - {problem.person}) | (
        set(templates.THINGS) - {problem.things}
    )
    is_terse = all(map(_TERSE_LINE.fullmatch, completion.splitlines()))
    return Diagnosis(error, step, bool(named & strangers), "terse" if is_terse else "wordy")


def error_table(chosen: Sequence[Problem], answered: pd.DataFrame) -> pd.DataFrame:
    """How often each run fails in which way: one row per run, in the order of the records.

    answered: columns run, problem_id and completion; answers to other problems than the chosen ones
    are left out. Columns: run, one for each of `CLASSES`, "wrong name" and "wordy", all shares of a
    run's answers.
    """
    by_id = {problem.problem_id: problem for problem in chosen}
    answered = answered[answered.problem_id.isin(list(by_id))]
    found = [
        diagnose(by_id[row.problem_id], row.completion) for row in answered.itertuples(index=False)
    ]
    columns = {
        **{error: [one.error == error for one in found] for error in CLASSES},
        "wrong name": [one.wrong_name for one in found],
        "wordy": [one.style == "wordy" for one in found],
    }
    shares = pd.DataFrame(columns).groupby(answered.run.to_numpy(), sort=False).mean()
    return shares.rename_axis("run").reset_index()


def _first_error(problem: Problem, completion: str) -> tuple[str | None, int]:
    matches = (_BINARY.fullmatch(one) for one in grading.written_equations(completion))
    written = [match and _equation(*match.groups()) for match in matches]
    results: list[int] = []  # the completion's own, one for each step
    steps = _steps(problem)
    for number, (left, operator, right) in enumerate(steps, start=1):
        wanted = [results[value] if is_result else value for value, is_result in (left, right)]
        equation, *written = written or [None]
        if equation is None:
            return OTHER, number
        first, sign, second, result = equation
        if sign != operator:
            return OTHER, number
        following = written[0] if written else None
        goes_on = following is not None and following[:2] == (result, operator)
        if following and goes_on and second % 10 == 0 and second != wanted[1] and following[2] < 10:
            # tens first
            if result != _calculated(first, operator, second):
                return WRONG_EQUATION, number
            second, result = second + following[2], following[3]
            written = written[1:]
        is_swapped = operator in "+*" and [second, first] == wanted
        if [first, second] != wanted and not is_swapped:
            return MISCOPIED, number
        if result != _calculated(first, operator, second):
            return WRONG_EQUATION, number
        results.append(result)
    if written:
        return OTHER, len(steps)
    graded = grading.grade(completion, str(results[-1]))
    return (None if graded.correct else BOX), len(steps) + 1


# A number of the question, or the place of an earlier step whose result it is: (value, is_result).
_Operand = tuple[int, bool]


def _steps(problem: Problem) -> list[tuple[_Operand, str, _Operand]]:
    """The steps of a problem's chain, with what each operand is."""
    steps: list[tuple[_Operand, str, _Operand]] = []
    total: _Operand = (problem.chain[0], False)
    for kind, *numbers in problem.chain[1:]:
        operand: _Operand = (numbers[0], False)
        if kind == "lots":
            steps.append(((numbers[0], False), "*", (numbers[1], False)))
            operand = (len(steps) - 1, True)
        steps.append((total, templates.OPERATORS[kind], operand))
        total = (len(steps) - 1, True)
    return steps


def _equation(left: str, operator: str, right: str, result: str) -> templates.Equation:
    return int(left), operator, int(right), int(result)


def _calculated(left: int, operator: str, right: int) -> int | None:
    """The result of an operation; None where it is no count."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right}[operator]
