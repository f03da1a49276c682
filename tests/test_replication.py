"""Replicas over seeds: planted values, and an interval whose coverage is measured."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from helpers import profiles
from helpers.analysis import replication


def test_replicas_hold_every_method_once_per_seed_and_differ_in_their_seeds_only():
    study = profiles.load("tiny")
    replicas = replication.replicas(study)
    assert list(replicas) == [42, 43, 44], "the main runs come first"
    for seed, group in replicas.items():
        assert set(group) == set(study.main_runs), "each method has a replica at each seed"
        for method, name in group.items():
            main, run = study.runs[method], study.runs[name]
            seeds = {"seed": seed, "init_seed": seed}
            expected = main.model_copy(update={"name": name, "snapshots": run.snapshots} | seeds)
            assert run == expected, f"{name} differs from {method} in more than its seeds"


def test_over_seeds_alone_the_interval_is_that_of_student():
    values = np.array([0.3, 0.5, 0.35])
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    interval = replication.interval(values)
    assert interval == pytest.approx((values.mean(), expected.low, expected.high))


def test_the_interval_over_seeds_and_problems_covers_the_truth_about_as_often_as_it_says():
    rng, truth, count = np.random.default_rng(0), 0.1, 400
    inside = 0
    for _ in range(count):
        values = (
            truth
            + 0.05 * rng.standard_normal((3, 1))
            + 0.5 * rng.standard_normal((1, 200))
            + 0.3 * rng.standard_normal((3, 200))
        )
        _, low, high = replication.interval(values)
        inside += low <= truth <= high
    assert 0.93 <= inside / count <= 1, (
        f"{inside / count:.1%} of the intervals hold the truth: two crossed sources of variance, "
        "three seeds"
    )


@pytest.fixture
def table():
    """Two methods at two seeds, one statistic, known values."""
    rows = [
        ("cosine", "sft", "rft", 42, 42, 0.9),
        ("cosine", "sft", "rft", 43, 43, 0.8),
        ("cosine", "sft", "sft", 42, 43, 0.3),
        ("cosine", "rft", "rft", 42, 43, 0.4),
        ("norm", "sft", "sft", 42, 42, 2.0),
        ("norm", "sft", "sft", 43, 43, 3.0),
    ]
    return pd.DataFrame(rows, columns=["statistic", "run_a", "run_b", "seed_a", "seed_b", "value"])


def test_values_at_equal_seeds_and_between_seeds_are_kept_apart(table):
    assert replication.at_seeds(table, "cosine", "sft", "rft").tolist() == [0.9, 0.8]
    assert replication.at_seeds(table, "cosine", "rft", "sft").tolist() == [0.9, 0.8], (
        "a pair has no order"
    )
    assert replication.at_seeds(table, "norm", "sft").tolist() == [2.0, 3.0], (
        "of one method at each seed"
    )
    assert replication.between_seeds(table, "cosine", "sft").tolist() == [0.3]
    row = replication.side_by_side(table, "cosine", [("sft", "rft")]).iloc[0]
    assert (row["over seeds"], row["same loss, another seed"]) == (
        "0.850 (0.800 to 0.900)",
        "0.300 (0.300 to 0.300)",
    )
