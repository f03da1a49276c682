"""Tables of the page on mode connectivity, on paths made by hand."""

import numpy as np
import pandas as pd
import pytest

from helpers.analysis import path_tables


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        ([1, 2, 2, 3], "monotone"),
        ([3, 2, 1], "monotone"),
        ([1, 0, 2], "below the worse end"),
        ([1, 3, 2], "above both ends"),
    ],
)
def test_shape_of_a_curve(loss, shape):
    assert path_tables.shape(np.array(loss, float)) == shape


def answers(grades):
    """Answers along a path from {t: whether each problem was solved}."""
    return pd.concat(
        [
            pd.DataFrame({"t": t, "problem_id": range(len(row)), "correct": row})
            for t, row in grades.items()
        ]
    )


def test_best_point_inside_is_tested_against_the_better_end():
    share, p = path_tables.best_between(
        answers({0.0: [True] * 6 + [False] * 2, 0.5: [True] * 2 + [False] * 6, 1.0: [False] * 8})
    )
    assert share == 0.25
    assert p == pytest.approx(2 * 0.5**4), "four problems that only the first end solves"


def test_accuracy_has_the_columns_of_a_curve():
    table = path_tables.accuracy({("sft", "dpo"): answers({0.0: [True, False], 1.0: [True, True]})})
    assert table.value.tolist() == [0.5, 1.0]
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert set(table.run_a) == {"sft"}
    assert set(table.run_b) == {"dpo"}


def test_a_path_can_be_walked_backwards():
    curves = pd.DataFrame(
        {"run_a": "sft", "run_b": "dpo", "t": [0.0, 0.5, 1.0], "value": [1.0, 4.0, 2.0]}
    )
    curves = pd.concat([curves.assign(metric=metric) for metric in ("rollout", "boxed answer")])
    barriers = curves.drop_duplicates("metric").assign(above_chord=2.5, noise=0.1)
    walked = path_tables.as_walked(curves, barriers, [("dpo", "sft")])
    assert walked[["start", "middle", "end"]].to_numpy().tolist() == [[2.0, 4.0, 1.0]] * 2
    assert set(walked["shape"]) == {"above both ends"}
