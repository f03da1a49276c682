"""Why completions fail: planted errors of each class in worked solutions of both styles."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from helpers.data import diagnosis, templates
from helpers.data.diagnosis import BOX, MISCOPIED, OTHER, WRONG_EQUATION, diagnose

CHAIN = (14, ("add", 32), ("lots", 3, 6), ("divide", 4))  # 46, 18, 64, 16
PROBLEM = dataclasses.replace(
    templates.draw_problem(np.random.default_rng(0), 4),
    chain=CHAIN, answer="16", person="Tom", things="apples",
)  # fmt: skip
RIGHT = "14+32=46\n3*6=18\n46+18=64\n64/4=16\n\\boxed{16}"
WORDY = (
    "Let us follow Tom. First 14+30=44, then 44+2=46. That makes 3*6=18. "
    "46+10=56 and 56+8=64. One part: 64/4=16. The answer is \\boxed{16}"
)


@pytest.mark.parametrize("style", templates.STYLES)
def test_worked_solutions_have_no_error_and_their_own_style(style):
    rng = np.random.default_rng(1)
    for _ in range(300):
        problem = templates.draw_problem(rng, int(rng.integers(1, 7)))
        found = diagnose(problem, templates.worked_solution(problem, style, rng))
        assert (found.error, found.wrong_name, found.style) == (None, False, style), problem


@pytest.mark.parametrize("style", templates.STYLES)
def test_a_wrong_result_is_found_at_its_step_and_the_later_steps_follow_from_it(style):
    rng = np.random.default_rng(2)
    for _ in range(300):
        problem = templates.draw_problem(rng, int(rng.integers(1, 5)))
        found = diagnose(problem, templates.worked_solution(problem, style, rng, error_rate=1.0))
        # A wrong count that no longer divides is told as a wrong equation too, at that step.
        assert (found.error, found.step) == (WRONG_EQUATION, 1), problem


@pytest.mark.parametrize(
    ("old", "new", "error", "step"),
    [
        ("14+32=46", "14+32=47", WRONG_EQUATION, 1),
        ("64/4=16", "64/4=14", WRONG_EQUATION, 4),
        ("14+32=46", "14+3=17", MISCOPIED, 1),
        ("14+32=46", "41+32=73", MISCOPIED, 1),
        ("3*6=18", "3*5=15", MISCOPIED, 2),
        ("46+18=64", "45+18=63", MISCOPIED, 3),
        ("64/4=16", "64/2=32", MISCOPIED, 4),
        ("14+32=46", "14-32=46", OTHER, 1),
        ("3*6=18\n", "", OTHER, 2),
        ("64/4=16\n", "", OTHER, 4),
        ("64/4=16\n", "64/4=16\n16+1=17\n", OTHER, 4),
        ("\\boxed{16}", "\\boxed{64}", BOX, 5),
        ("\\boxed{16}", "\\boxed{", BOX, 5),
        ("\\boxed{16}", "So it is 16", BOX, 5),
        (RIGHT, "0000000", OTHER, 1),
        (RIGHT, "", OTHER, 1),
        ("14+32=46", "32+14=46", None, 5),
        ("3*6=18", "6*3=18", None, 5),
        ("64/4=16", "4/64=16", MISCOPIED, 4),
    ],
)
def test_each_class_is_found_at_its_step(old, new, error, step):
    assert old in RIGHT
    found = diagnose(PROBLEM, RIGHT.replace(old, new))
    assert (found.error, found.step) == (error, step)


@pytest.mark.parametrize(
    ("old", "new", "error", "step"),
    [
        ("14+30=44, then 44+2=46", "14+30=45, then 45+2=47", WRONG_EQUATION, 1),
        ("44+2=46", "44+2=47", WRONG_EQUATION, 1),
        ("14+30=44, then 44+2=46", "14+20=34, then 34+2=36", MISCOPIED, 1),
        ("14+30=44, then 44+2=46", "14+30=44, then 44+3=47", MISCOPIED, 1),
        ("56+8=64", "56+8=65", WRONG_EQUATION, 3),
        ("46+10=56 and 56+8=64", "46+18=64", None, 5),
    ],
)
def test_a_sum_by_way_of_the_tens_is_one_step(old, new, error, step):
    assert diagnose(PROBLEM, WORDY).error is None
    found = diagnose(PROBLEM, WORDY.replace(old, new))
    assert (found.error, found.step) == (error, step)


def test_names_and_styles_are_told():
    assert diagnose(PROBLEM, WORDY.replace("Tom", "Nina")).wrong_name
    assert diagnose(PROBLEM, WORDY + " apples").wrong_name is False
    assert diagnose(PROBLEM, WORDY + " pears").wrong_name
    assert [diagnose(PROBLEM, text).style for text in (RIGHT, WORDY)] == ["terse", "wordy"]
    assert diagnose(PROBLEM, RIGHT.replace("\\boxed", "So \\boxed")).style == "terse"
    assert diagnose(PROBLEM, RIGHT + " apples").style == "wordy"


def test_the_table_has_shares_of_a_runs_answers():
    texts = [RIGHT, RIGHT.replace("14+32=46", "14+32=47"), WORDY, WORDY.replace("Tom", "Nina"), ""]
    answered = pd.DataFrame(
        {"run": ["b", "b", "a", "a", "a"], "problem_id": PROBLEM.problem_id, "completion": texts}
    )
    answered.loc[4, "problem_id"] = "another"
    table = diagnosis.error_table([PROBLEM], answered).set_index("run")
    assert table.index.tolist() == ["b", "a"]
    assert table.loc["b"].to_dict() == {
        WRONG_EQUATION: 0.5, MISCOPIED: 0, BOX: 0, OTHER: 0, "wrong name": 0, "wordy": 0,
    }  # fmt: skip
    assert table.loc["a"].to_dict() == {
        WRONG_EQUATION: 0, MISCOPIED: 0, BOX: 0, OTHER: 0, "wrong name": 0.5, "wordy": 1,
    }  # fmt: skip


def test_classes_are_those_that_are_given():
    assert set(diagnosis.CLASSES) == {WRONG_EQUATION, MISCOPIED, BOX, OTHER}


def test_a_problem_without_a_chain_is_refused():
    with pytest.raises(ValueError, match=re.escape(f"problem {PROBLEM.problem_id} has no chain")):
        diagnose(dataclasses.replace(PROBLEM, chain=()), RIGHT)
