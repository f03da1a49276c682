"""Figures and tables of the pages: the parts that a reader would not see to be wrong."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import profiles
from helpers.book import figures

STUDY = profiles.load("tiny")


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        figures.use_style(STUDY)
        yield
    plt.close("all")


def cells(frame):
    """The texts of a table's cells, row by row."""
    lines = figures.table(frame).to_string(delimiter="|").splitlines()
    return [line.split("|") for line in lines[1:]]


def test_values_that_are_missing_are_shown_as_a_dash():
    frame = pd.DataFrame(
        {
            "run": ["sft", None],
            "run_a": pd.array(["dpo", pd.NA], dtype="string"),
            "p": [0.0123, np.nan],
            "difference": [0.5, None],
            "learning_rate": pd.array([1e-4, pd.NA], dtype="Float64"),
            "accuracy": [0.25, np.nan],
            "n": pd.array([3, pd.NA], dtype="Int64"),
            "made": [pd.Timestamp("2026-11-24"), pd.NaT],
            "note": ["text", None],
        }
    )
    given, missing = cells(frame)
    assert missing == ["–"] * frame.shape[1]
    assert given[:7] == ["SFT", "DPO", "0.012", "+0.500", "1e-04", "0.250", "3"]
    assert given[-1] == "text"


def test_a_row_of_a_figure_is_named_by_its_run_and_the_first_one_is_on_top():
    table = pd.DataFrame({"run": ["base", "sft"], "accuracy": [0.8, 0.6]}).assign(low=0.5, high=0.9)
    (axis,) = figures.intervals(
        table, "accuracy", "low", "high", "share solved", reference="base"
    ).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["base", "SFT"]
    assert axis.yaxis_inverted()
    assert axis.get_xlabel() == "share solved"


def test_barriers_above_the_chord_and_above_the_mean_have_each_their_mark():
    table = pd.DataFrame({"run_a": ["sft", "sft"], "run_b": ["rft", "dpo"], "metric": "rollout"})
    heights = {"above_chord": 0.2, "low": 0.1, "high": 0.3, "noise": 0.05}
    heights |= {"above_mean": 0.4, "mean_low": 0.3, "mean_high": 0.5}
    figure = figures.barriers(table.assign(**heights), "nats", {"rollout": "rollouts"})
    (legend,) = figure.legends
    marks = {
        text.get_text(): handle.get_marker()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert marks == {"above the chord": "o", "above the mean of the ends": "D"}


def test_all_token_weights_share_one_scale_in_which_zero_is_white():
    weights = [np.array([1.0, -2.0]), np.array([0.0])]
    figure = figures.token_weights([["a", "b"], ["c"]], weights, ["right", "wrong"])
    first, second = figure.axes[:2]
    white = np.array([plt.get_cmap("PuOr")(0.5)])
    assert np.allclose([box.get_facecolor() for box in second.patches], white)
    assert first.patches[1].get_facecolor() == plt.get_cmap("PuOr")(0.0), "the largest, negative"
