"""Problems against a reader that knows only the English, worked solutions against arithmetic,
grading against cases."""

import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from helpers import profiles
from helpers.data import grading, problems, templates
from helpers.data.problem import SPLITS

READER = (
    (r"Then (\d+) more come|buys (\d+) more", lambda total, n: total + n),
    (r"Then (\d+) get lost|gives away (\d+)", lambda total, n: total - n),
    (
        r"Then there are (\d+) times as many|A trade leaves (\d+) times as many",
        lambda total, n: total * n,
    ),
    (
        r"Only one of (\d+) equal parts stays|keeps one of (\d+) equal parts",
        lambda total, n: Fraction(total, n),
    ),
    (
        r"Then (\d+) boxes of (\d+) come|buys (\d+) boxes of (\d+)",
        lambda total, boxes, each: total + boxes * each,
    ),
)


def read(question):
    """(totals after each sentence, number of equations) of a question, by regular expressions on
    the English alone."""
    first, *sentences = question.split(". ")
    totals, steps = [int(re.search(r" has (\d+) ", first)[1])], 0
    for sentence in sentences[:-1]:
        for pattern, operation in READER:
            if match := re.search(pattern, sentence):
                numbers = [int(number) for number in match.groups() if number]
                totals.append(operation(totals[-1], *numbers))
                steps += len(numbers)
                break
        else:
            raise AssertionError(f"the reader understands no operation in {sentence!r}")
    return totals, steps


def draw(count, steps=(1, 2, 3, 4, 5, 6), seed=0):
    rng = np.random.default_rng(seed)
    return [templates.draw_problem(rng, steps[i % len(steps)]) for i in range(count)]


def is_true(equation):
    left, operator, right, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", equation).groups()
    exact = {
        "+": int(left) + int(right),
        "-": int(left) - int(right),
        "*": int(left) * int(right),
        "/": Fraction(int(left), int(right)),
    }[operator]
    return exact == int(result)


def test_an_independent_reader_of_the_english_finds_the_gold_answer():
    for problem in draw(3000):
        totals, steps = read(problem.question)
        assert totals[-1] == int(problem.answer), (
            f"{problem.question} gives {totals[-1]}, the generator says {problem.answer}"
        )
        assert steps == problem.steps, (
            f"{problem.question} takes {steps} equations, the generator says {problem.steps}"
        )
        assert all(1 <= total <= 99 and Fraction(total).denominator == 1 for total in totals), (
            f"totals of {problem.question} leave 1..99: {totals}"
        )


def test_every_phrasing_is_drawn_and_understood():
    text = " ".join(problem.question for problem in draw(500))
    phrasings = [option for pattern, _ in READER for option in pattern.split("|")]
    assert all(re.search(option, text) for option in phrasings), (
        "the generator must use all of its phrasings"
    )


@pytest.mark.parametrize("name", ["smoke", "tiny"])
def test_splits_share_no_chain_and_have_the_sizes_and_steps_asked_for(name):
    settings = profiles.load(name).problems
    sets = problems.problem_sets(settings)
    assert {split: len(chosen) for split, chosen in sets.items()} == {
        split: getattr(settings, split) for split in SPLITS
    }, "sizes of the splits"
    chains = Counter(problem.chain for chosen in sets.values() for problem in chosen)
    assert max(chains.values()) == 1, "a pattern of numbers may appear once in the whole study"
    assert set(chains) == problems.held_out_chains(settings), (
        "pretraining must be told of every chain"
    )
    for split, chosen in sets.items():
        assert {problem.steps for problem in chosen} <= set(
            settings.hard_steps if split == "hard" else settings.steps
        ), f"steps in {split}"
        assert {problem.split for problem in chosen} == {split}, "each problem knows its split"


def test_problem_names_differ():
    names = [
        problem.problem_id
        for chosen in problems.problem_sets(profiles.load("tiny").problems).values()
        for problem in chosen
    ]
    assert len(set(names)) == len(names), "a problem_id names one problem"


def test_the_generator_is_a_function_of_its_seed():
    settings = profiles.load("smoke").problems
    again = templates.templated_sets.__wrapped__(settings)
    assert again == problems.problem_sets(settings), "same seed, same problems"
    other = templates.templated_sets.__wrapped__(
        settings.model_copy(update={"seed": settings.seed + 1})
    )
    assert other["train"] != again["train"], "another seed, other problems"


@pytest.mark.parametrize("style", templates.STYLES)
def test_worked_solutions_without_errors_are_correct_and_their_equations_true(style):
    rng = np.random.default_rng(1)
    for problem in draw(400, seed=2):
        text = templates.worked_solution(problem, style, rng)
        graded = grading.grade(text, problem.answer)
        assert graded.correct, f"{text!r} must be graded correct for {problem.answer}"
        assert graded.status == "boxed", "a worked solution boxes its answer"
        written = grading.written_equations(text)
        assert all(is_true(equation) for equation in written), f"a false equation in {text!r}"
        if style == "terse":
            assert len(written) == problem.steps, "terse writes one line per equation"
        else:
            assert len(written) >= problem.steps, "wordy writes each equation in one or two"


def test_each_equation_is_wrong_at_the_rate_asked_for():
    rng = np.random.default_rng(3)
    drawn = draw(2000, seed=4)
    wrong = sum(
        not is_true(
            grading.written_equations(
                templates.worked_solution(problem, "terse", rng, error_rate=0.15)
            )[0]
        )
        for problem in drawn
    )
    test = binomtest(wrong, len(drawn), 0.15)
    assert test.pvalue > 0.001, (
        f"{wrong / len(drawn):.3f} of first equations are wrong, asked for .15 "
        f"(p = {test.pvalue:.1g})"
    )


def test_an_error_carries_on_and_its_box_is_the_last_result():
    rng = np.random.default_rng(5)
    for problem in draw(100, steps=(3,), seed=6):
        text = templates.worked_solution(problem, "terse", rng, error_rate=1.0)
        written = grading.written_equations(text)
        assert not any(is_true(equation) for equation in written[:1]), (
            "at rate 1 the first equation must be wrong"
        )
        assert grading.grade(text, problem.answer).answer == written[-1].split("=")[1], (
            "the answer is the last equation's result, right or wrong"
        )


def test_every_wrong_result_is_positive_and_differs_from_the_right_one():
    rng = np.random.default_rng(7)
    for result in range(1, 100):
        results = {templates._wrong_result(rng, result) for _ in range(30)}
        assert result not in results, "a wrong result is wrong"
        assert min(results) >= 1, "counts stay positive"


def test_unknown_style_is_refused_naming_those_that_exist():
    with pytest.raises(ValueError, match="unknown style 'verbose': choose one of terse, wordy"):
        templates.worked_solution(draw(1)[0], "verbose", np.random.default_rng(0))
