"""Statistics against statsmodels, published values, symmetry, and simulation of what they
promise."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as draw
from scipy.stats import binomtest, spearmanr, ttest_1samp
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels

from helpers.evaluation import statistics

COUNTS = draw.integers(0, 40)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_reproduces_the_table_of_newcombe_1998(correct, n, low, high):
    assert statistics.wilson(correct, n) == pytest.approx((low, high), abs=6e-5), (
        "Newcombe, Statistics in Medicine 17:857, table I, method 3"
    )


@given(draw.integers(0, 60), draw.integers(1, 60))
def test_wilson_agrees_with_scipy(correct, n):
    correct = min(correct, n)
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    assert statistics.wilson(correct, n) == pytest.approx(
        (interval.low, interval.high), abs=1e-9
    ), "scipy's Wilson score interval"


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 4), (np.nan, 4)])
def test_wilson_refuses_what_is_no_share(correct, n):
    with pytest.raises(ValueError, match=f"{correct} right of {n} is no share"):
        statistics.wilson(correct, n)


def test_mcnemar_of_seven_against_one():
    assert statistics.mcnemar(7, 1) == pytest.approx(2 * (1 + 8) / 2**8), (
        "2 P(X <= 1) for X ~ Bin(8, 1/2) = 18/256 = 0.0703125"
    )


@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_test_of_statsmodels_and_symmetric(b, c):
    expected = mcnemar_of_statsmodels([[3, b], [c, 5]], exact=True).pvalue if b + c else 1.0
    assert statistics.mcnemar(b, c) == pytest.approx(min(expected, 1.0)), (
        "exact McNemar is a two-sided binomial test of the discordant pairs"
    )
    assert statistics.mcnemar(b, c) == statistics.mcnemar(c, b), (
        "exchanging the models must not change the p-value"
    )


def test_holm_multiplies_the_smallest_by_all_and_never_decreases():
    p = [0.01, 0.04, 0.03, 0.005]
    assert statistics.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02]), (
        "sorted: .005 x 4, .01 x 3, .03 x 2, then max(.04 x 1, .06)"
    )
    assert statistics.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0]), "adjusted p-values stop at 1"


def test_holm_counts_a_test_without_a_p_value_and_leaves_it_without_one():
    adjusted = statistics.holm([np.nan, 0.01, 0.03])
    assert adjusted == pytest.approx([np.nan, 0.03, 0.06], nan_ok=True), "three tests were meant"
    assert len(statistics.holm([])) == 0, "no test, no p-value"


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_newcombe_is_antisymmetric_and_contains_the_difference(both, b, c, neither):
    if both + b + c + neither == 0:
        return
    difference, low, high = statistics.newcombe_paired(both, b, c, neither)
    assert difference == pytest.approx((b - c) / (both + b + c + neither)), (
        "the difference of paired shares is (b - c) / n"
    )
    assert -1 - 1e-9 <= low <= difference + 1e-12, (
        "the lower end is below the difference, within -1 and 1"
    )
    assert difference - 1e-12 <= high <= 1 + 1e-9, (
        "the upper end is above the difference, within -1 and 1"
    )
    swapped = statistics.newcombe_paired(both, c, b, neither)
    assert (-swapped[0], -swapped[2], -swapped[1]) == pytest.approx(
        (difference, low, high), abs=1e-12
    ), "exchanging the models mirrors the interval"


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (3, -1, 0, 2)])
def test_newcombe_refuses_counts_of_no_problems(counts):
    with pytest.raises(ValueError, match="counts of at least one problem"):
        statistics.newcombe_paired(*counts)


def test_newcombe_reproduces_a_published_example():
    interval = statistics.newcombe_paired(36, 12, 2, 0)
    assert interval == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4), (
        "Newcombe 1998b (17:2635), table IV, method 10"
    )


def test_newcombe_corrects_a_positive_correlation_for_continuity():
    z, n = 1.959964, 100
    phi = (40 * 40 - 10 * 10 - n / 2) / 50**2
    margin = z / (2 * np.sqrt(n + z**2)) * np.sqrt(2 * (1 - phi))
    interval = statistics.newcombe_paired(40, 10, 10, 40)
    assert interval == pytest.approx((0, -margin, margin), abs=1e-6), (
        "both shares 1/2: Wilson's half width z / (2 sqrt(n + z^2)) times sqrt(2 (1 - phi))"
    )


def test_newcombe_narrows_with_n_and_with_agreement():
    width = {
        cells: statistics.newcombe_paired(*cells)[2] - statistics.newcombe_paired(*cells)[1]
        for cells in ((40, 10, 10, 40), (4000, 1000, 1000, 4000), (25, 25, 25, 25))
    }
    assert width[40, 10, 10, 40] / width[4000, 1000, 1000, 4000] == pytest.approx(10, rel=0.1), (
        "a hundred times the problems, a tenth of the width"
    )
    assert width[40, 10, 10, 40] < width[25, 25, 25, 25], (
        "models that agree more are compared more sharply"
    )


def simulate(n, cells, draws, seed):
    return np.random.default_rng(seed).multinomial(n, cells, size=draws)


@pytest.mark.parametrize(
    ("n", "cells"), [(100, (0.6, 0.1, 0.15, 0.15)), (300, (0.85, 0.03, 0.05, 0.07))]
)
def test_newcombe_covers_the_truth_in_95_percent_of_studies(n, cells):
    truth = cells[1] - cells[2]
    intervals = [
        statistics.newcombe_paired(*counts.tolist()) for counts in simulate(n, cells, 1500, 3)
    ]
    coverage = np.mean([low <= truth <= high for _, low, high in intervals])
    assert 0.935 < coverage < 0.975, f"coverage {coverage:.3f}, expected .95 (standard error .006)"


@pytest.mark.parametrize(("n", "discordant"), [(1319, 0.1), (1319, 0.3), (300, 0.4)])
def test_detectable_difference_is_found_in_four_of_five_studies(n, discordant):
    difference = statistics.detectable_difference(n, discordant)
    b, c = (discordant + difference) / 2, (discordant - difference) / 2
    counts = simulate(n, (0.5, b, c, 0.5 - discordant), 4000, 5)
    statistic = (counts[:, 1] - counts[:, 2]) / np.sqrt(counts[:, 1] + counts[:, 2])
    power = np.mean(np.abs(statistic) > 1.959964)
    assert power == pytest.approx(0.8, abs=0.025), (
        f"McNemar's test should find {difference:.4f} of difference with power .8, not {power:.3f}"
    )


@pytest.mark.parametrize(("n", "discordant"), [(1319, 0.1), (300, 0.1), (60, 0.2), (30, 0.5)])
def test_detectable_difference_inverts_the_sample_size_of_connor(n, discordant):
    delta = statistics.detectable_difference(n, discordant)
    needed = (
        (1.959964 * np.sqrt(discordant) + 0.841621 * np.sqrt(discordant - delta**2)) / delta
    ) ** 2
    assert needed == pytest.approx(n, rel=1e-5), (
        "n = (z_level sqrt(psi) + z_power sqrt(psi - delta^2))^2 / delta^2"
    )


def test_detectable_difference_is_undefined_where_no_difference_could_be_seen():
    assert np.isnan(statistics.detectable_difference(30, 0.1)), (
        "three discordant problems of thirty cannot reach significance"
    )
    assert np.isnan(statistics.detectable_difference(30, 0.0)), "models that never differ"
    assert statistics.detectable_difference(10_000, 0.2) < statistics.detectable_difference(
        1000, 0.2
    ), "more problems see smaller differences"


@pytest.mark.parametrize(
    "arguments", [(0, 0.1), (30, 1.2), (30, -0.1), (30, np.nan), (30, 0.5, 0.0), (30, 0.5, 1.0)]
)
def test_detectable_difference_refuses_what_no_test_has(arguments):
    with pytest.raises(ValueError, match="give at least one problem, a share from 0 to 1"):
        statistics.detectable_difference(*arguments)


def test_bootstrap_of_a_mean_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(3, 1, 400)
    ratio, low, high = statistics.bootstrap_ratio(values, np.ones(400))
    assert ratio == pytest.approx(values.mean()), "with denominators of 1 the ratio is the mean"
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08), (
        "the interval spans 2 x 1.96 standard errors"
    )


def test_bootstrap_keeps_numerator_and_denominator_of_a_problem_together():
    tokens = np.random.default_rng(1).integers(1, 50, 60)
    assert statistics.bootstrap_ratio(0.3 * tokens, tokens) == pytest.approx((0.3, 0.3, 0.3)), (
        "a constant rate has no spread, whatever is resampled"
    )


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [
        ([1, 2], [1, 2, 3], "2 numerators and 3 denominators"),
        ([1], [2], "at least two problems"),
        ([], [], "0 numerators"),
        ([1, np.nan, 3], [1, 1, 1], "1 of 3 problems have no value"),
        ([1, 2, 3], [0, 0, 0], "add up to 0"),
        ([1, 2, 3], [0, 0, 5], "resamples of 3 problems"),
    ],
)
def test_bootstrap_refuses_ratios_without_a_value(numerators, denominators, message):
    with pytest.raises(ValueError, match=message):
        statistics.bootstrap_ratio(numerators, denominators)


@pytest.fixture
def records():
    """Three runs on the same ten problems of one split and four of another, in other orders."""
    right = {"base": "1111100000", "sft": "1111111000", "dpo": "1111111111"}
    test = [
        (run, "test", f"p{i}", mark == "1", "no box" if i == 9 else "boxed", i == 8, i)
        for run, marks in right.items()
        for i, mark in enumerate(marks)
    ]
    hard = [
        (run, "hard", f"h{i}", run == "dpo", "boxed", False, 7) for run in right for i in range(4)
    ]
    rows = pd.DataFrame(
        test + hard,
        columns=["run", "split", "problem_id", "correct", "status", "truncated", "tokens"],
    )
    return pd.concat(
        [
            group.sample(frac=1, random_state=number)
            for number, (_, group) in enumerate(rows.groupby("run", sort=False))
        ]
    )


def test_accuracy_table_counts_each_run_and_split(records):
    table = statistics.accuracy_table(records)
    columns = {"split", "run", "n", "correct", "accuracy", "low", "high", "unparsed", "truncated"}
    assert set(table.columns) == columns | {"mean_tokens"}, "the columns of the docstring"
    row = table[(table.run == "sft") & (table.split == "test")].iloc[0]
    assert (row.n, row.correct, row.accuracy) == (10, 7, 0.7), "seven of ten"
    assert (row.unparsed, row.truncated, row.mean_tokens) == (0.1, 0.1, 4.5), (
        "one without a box, one cut, tokens 0 to 9"
    )
    assert (row.low, row.high) == statistics.wilson(7, 10), "Wilson's interval"


def test_accuracy_table_counts_as_unparsed_whatever_could_not_be_read(records):
    status = dict(zip(range(4), ["unreadable", "no box", "cut box", "boxed"], strict=True))
    hard = records[records.split == "hard"]
    hard = hard.assign(status=hard.problem_id.str[1:].astype(int).map(status))
    assert statistics.accuracy_table(hard).unparsed.tolist() == [0.75] * 3, (
        "all but the answers with status boxed"
    )


def test_accuracy_table_holds_whole_numbers_as_integers(records):
    table = statistics.accuracy_table(records)
    assert table[["n", "correct"]].dtypes.map(lambda kind: kind.kind).tolist() == ["i", "i"], (
        "counts are integers"
    )


def test_mcnemar_table_pairs_problems_by_their_name(records):
    table = statistics.mcnemar_table(records)
    columns = {"split", "run_a", "run_b", "b", "c", "p", "p_holm", "difference", "low", "high"}
    assert columns <= set(table.columns), "the columns of the docstring"
    assert list(
        table[table.split == "test"][["run_a", "run_b"]].itertuples(index=False, name=None)
    ) == [("base", "sft"), ("base", "dpo"), ("sft", "dpo")]
    row = table[(table.split == "test") & (table.run_a == "base") & (table.run_b == "dpo")].iloc[0]
    assert (row.b, row.c, row.difference) == (0, 5, -0.5), "DPO alone solved five of ten problems"
    assert row.p == pytest.approx(2 / 2**5), "two-sided: 2 x 2^-5"
    assert row.p_holm == pytest.approx(3 * row.p), "Holm over the three pairs of its split"


def test_mcnemar_table_of_given_pairs_tests_each_on_what_both_answered_and_corrects_for_those_pairs(
    records,
):
    one = statistics.mcnemar_table(records, [("dpo", "base")])
    row = one[one.split == "test"].iloc[0]
    assert (row.run_a, row.b, row.c, row.difference) == ("dpo", 5, 0, 0.5), (
        "the pair in the order given"
    )
    assert row.p_holm == pytest.approx(row.p), "Holm over one pair corrects nothing"
    fewer = records[~((records.run == "sft") & (records.problem_id == "p0"))]
    pd.testing.assert_frame_equal(
        statistics.mcnemar_table(fewer, [("dpo", "base")]),
        one,
        obj="what a third run did not answer changes nothing",
    )
    left = records[records.problem_id != "p0"]
    pair = [("sft", "base")]
    pd.testing.assert_frame_equal(
        statistics.mcnemar_table(fewer, pair),
        statistics.mcnemar_table(left, pair),
        obj="the problems that both answered",
    )


def test_mcnemar_table_refuses_runs_on_different_problems(records):
    with pytest.raises(ValueError, match="problem"):
        statistics.mcnemar_table(records[~((records.run == "sft") & (records.problem_id == "p0"))])


BOTH_TABLES = pytest.mark.parametrize(
    "table", [statistics.accuracy_table, statistics.mcnemar_table], ids=["accuracy", "mcnemar"]
)


@BOTH_TABLES
def test_tables_refuse_several_answers_to_a_problem(table, records):
    sampled = pd.concat([records.assign(sample_id=number) for number in range(4)])
    with pytest.raises(ValueError, match=r"4 answers to problem .* set.*one sample_id.*clustered"):
        table(sampled)
    one = table(sampled[sampled.sample_id == 0])
    pd.testing.assert_frame_equal(one, table(records), obj="the way out that the message names")


@BOTH_TABLES
@pytest.mark.parametrize("column", ["correct", "split", "run", "problem_id"])
def test_tables_refuse_a_missing_value(table, column, records):
    records = records.astype(object).reset_index(drop=True)
    records.loc[[3, 8], column] = np.nan
    with pytest.raises(ValueError, match=f"2 of 42 records have no '{column}', the first one of"):
        table(records)


@BOTH_TABLES
def test_tables_refuse_shares_in_the_place_of_answers(table, records):
    shares = records.astype({"correct": float}).reset_index(drop=True)
    shares.loc[5, "correct"] = 0.25
    with pytest.raises(ValueError, match=r"'correct' is 0.25 for problem \w+ of run .* set"):
        table(shares)


@BOTH_TABLES
def test_tables_refuse_to_be_empty(table, records):
    with pytest.raises(ValueError, match="no records"):
        table(records.iloc[:0])


def test_mcnemar_table_refuses_records_without_a_pair(records):
    with pytest.raises(ValueError, match="no pair of runs to test: the records are of sft"):
        statistics.mcnemar_table(records[records.run == "sft"])
    with pytest.raises(ValueError, match=r"no pair of runs to test: .*no empty list"):
        statistics.mcnemar_table(records, [])


def test_mcnemar_table_refuses_a_run_without_records(records):
    with pytest.raises(ValueError, match="no record of 'rft' in the test set, only of base, sft,"):
        statistics.mcnemar_table(records, [("base", "rft")])
    one_set = records[(records.run != "sft") | (records.split == "test")]
    for pairs in (None, [("base", "sft")]):
        with pytest.raises(ValueError, match="no record of 'sft' in the hard set, only of base, d"):
            statistics.mcnemar_table(one_set, pairs)
    rows = statistics.mcnemar_table(one_set, [("base", "dpo")])
    assert rows.split.tolist() == ["test", "hard"], "a run that no pair names may lack a set"


def test_mcnemar_table_refuses_a_pair_without_a_common_problem(records):
    number = records.problem_id.str[1:].astype(int)
    apart = records[(records.run == "base") == (number < 2)]
    with pytest.raises(ValueError, match=r"'base' and 'dpo' have no problem of the \w+ set"):
        statistics.mcnemar_table(apart, [("base", "dpo")])


# --- crossed designs -----------------------------------------------------------------------------


def crossed(**sizes):
    return pd.DataFrame(
        list(product(*(range(size) for size in sizes.values()))), columns=list(sizes)
    )


def vectors(levels, d, components, rng):
    """Random-effects vectors (n, d): an independent Gaussian of mean squared norm
    `components[part]` for each level of each part."""
    total = np.zeros((len(levels), d))
    for part, size in components.items():
        keys = levels[list(part)].apply(tuple, axis=1) if part else pd.Series([()] * len(levels))
        drawn = {key: rng.standard_normal(d) * np.sqrt(size / d) for key in keys.unique()}
        total += np.stack([drawn[key] for key in keys])
    return total


@pytest.mark.filterwarnings("ignore:divide by zero")  # statsmodels has no residual to divide by
def test_observed_parts_are_the_sums_of_squares_of_an_analysis_of_variance():
    levels = crossed(loss=3, init=2, order=4)
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((len(levels), 5)) + 3
    parts = statistics.crossed_parts(columns @ columns.T, levels).set_index("part")
    sums = 0
    for y in columns.T:
        fitted = ols("y ~ C(loss) * C(init) * C(order)", levels.assign(y=y)).fit()
        sums = sums + anova_lm(fitted).sum_sq.iloc[:-1]  # the last one is the residual's
    expected = {
        name.replace("C(", "").replace(")", "").replace(":", " x "): value
        for name, value in sums.items()
    }
    expected["mean"] = len(levels) * (columns.mean(0) ** 2).sum()
    for part, value in expected.items():
        assert parts.observed[part] == pytest.approx(value / (columns**2).sum()), (
            f"{part}: sum of squares by statsmodels, over all columns"
        )
    assert parts.observed.sum() == pytest.approx(1), "the parts are orthogonal"
    assert (parts.by_chance * len(levels)).round(9).tolist() == [1, 2, 1, 3, 2, 6, 3, 6], (
        "degrees of freedom"
    )


def test_shares_solve_the_expected_mean_squares_of_the_random_effects_model():
    levels = crossed(init=3, order=4)
    X = np.random.default_rng(1).standard_normal((12, 7))
    parts = statistics.crossed_parts(X @ X.T, levels).set_index("part")
    total, squares = (X**2).sum(), parts.observed / parts.by_chance / 12
    rest = squares["init x order"]
    expected = {
        "init x order": rest,
        "init": (squares["init"] - rest) / 4,
        "order": (squares["order"] - rest) / 3,
        "mean": (squares["mean"] - squares["init"] - squares["order"] + rest) / 12,
    }
    for part, value in expected.items():
        assert parts.share[part] == pytest.approx(12 * value, abs=1e-9), (
            f"{part}: from E MS(init) = 4 s_init + s_rest and so on, over {total / 12:.2f}"
        )
    assert parts.share.sum() == pytest.approx(1), "shares of the mean squared norm"


def test_shares_find_planted_components_and_observed_ones_do_not():
    levels, rng = crossed(init=3, order=3), np.random.default_rng(2)
    planted = {(): 0.2, ("init",): 0.5, ("order",): 0.0, ("init", "order"): 0.3}
    X = vectors(levels, 4000, planted, rng)
    parts = statistics.crossed_parts(X @ X.T, levels)
    assert parts.share.to_numpy() == pytest.approx(list(planted.values()), abs=0.03), (
        "four thousand dimensions average for themselves"
    )
    assert parts.observed[2] > 0.05, (
        "the noise of nine vectors alone puts two ninths of its square into the order"
    )


def test_vectors_at_right_angles_have_only_the_last_share():
    parts = statistics.crossed_parts(np.eye(8), crossed(loss=2, init=2, order=2))
    assert parts.share.tolist() == pytest.approx([0] * 7 + [1]), "nothing is shared"
    assert parts.observed.tolist() == pytest.approx(parts.by_chance.tolist()), (
        "what unrelated vectors give"
    )
    same = statistics.crossed_parts(np.ones((8, 8)), crossed(loss=2, init=2, order=2))
    assert same.share.tolist() == pytest.approx([1] + [0] * 7), "one vector eight times is all mean"


def test_crossed_parts_do_not_depend_on_the_order_of_the_rows_or_on_units():
    levels, rng = crossed(init=3, order=3), np.random.default_rng(3)
    X = rng.standard_normal((9, 5))
    order = rng.permutation(9)
    plain = statistics.crossed_parts(X @ X.T, levels)
    moved = statistics.crossed_parts(100 * (X @ X.T)[np.ix_(order, order)], levels.iloc[order])
    pd.testing.assert_frame_equal(plain, moved)


def test_a_design_with_a_gap_is_refused():
    with pytest.raises(ValueError, match="8 vectors, 8 different combinations, 9 possible"):
        statistics.crossed_parts(np.eye(8), crossed(init=3, order=3).iloc[:8])


def test_one_level_leaves_undefined_what_it_would_tell():
    parts = statistics.crossed_parts(np.eye(3), crossed(init=1, order=3)).set_index("part")
    assert np.isnan(parts.share["mean"]), "no pair has another initialisation"
    assert parts.alike["init x order"] == 1


def test_jackknife_over_levels_of_one_factor_is_the_t_interval_of_the_mean():
    levels, values = crossed(init=5), np.array([1.0, 4, 2, 8, 5])
    value, low, high = statistics.jackknife_levels(
        levels, ["init"], lambda rows: values[rows].mean()
    )
    expected = ttest_1samp(values, 0).confidence_interval()
    assert (value, low, high) == pytest.approx((4, expected.low, expected.high)), (
        "the jackknife of a mean is its standard error"
    )


def test_jackknife_over_levels_covers_the_planted_shares():
    levels, rng = crossed(init=3, order=3), np.random.default_rng(4)
    planted = {(): 0.3, ("init",): 0.5, ("order",): 0.05, ("init", "order"): 0.15}
    covered = np.zeros(4)
    for _ in range(24):
        gram = (X := vectors(levels, 50, planted, rng)) @ X.T
        _, low, high = statistics.jackknife_levels(
            levels,
            ["init", "order"],
            lambda rows, gram=gram: statistics.crossed_parts(
                gram[np.ix_(rows, rows)], levels.iloc[rows]
            ).share.to_numpy(),
        )
        covered += (low <= list(planted.values())) & (list(planted.values()) <= high)
    assert (covered >= 20).all(), f"the 95 % intervals cover the truth in {covered} of 24 designs"


def test_jackknife_of_two_levels_has_no_interval_where_one_level_says_nothing():
    levels = crossed(init=2, order=2)
    value, *interval = statistics.jackknife_levels(
        levels,
        ["init", "order"],
        lambda rows: statistics.crossed_parts(
            np.eye(4)[np.ix_(rows, rows)], levels.iloc[rows]
        ).share.to_numpy(),
    )
    assert np.isfinite(value).all(), "the shares themselves are defined"
    assert np.isnan(interval).all(), "but not what they would be with other levels"


def beta_binomial(rate, likeness, sizes, draws, seed):
    """Answers (draws, all) to problems in clusters of these sizes, where two answers to one problem
    have the intra-class correlation `likeness`; and the clusters."""
    rng, total = np.random.default_rng(seed), 1 / likeness - 1
    rates = rng.beta(rate * total, (1 - rate) * total, (draws, len(sizes)))
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    return rng.random((draws, len(clusters))) < rates[:, clusters], clusters


def width(interval):
    return interval[2] - interval[1]


@pytest.mark.parametrize("likeness", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("rate", [0.03, 0.1, 0.5, 0.97])
def test_clustered_mean_covers_the_truth_in_95_percent_of_studies(rate, likeness):
    draws = 400
    studies, clusters = beta_binomial(rate, likeness, [16] * 30, draws, 7)
    intervals = [statistics.clustered_mean(answers, clusters) for answers in studies]
    coverage = np.mean([low <= rate <= high for _, low, high in intervals])
    error = np.sqrt(0.95 * 0.05 / draws)
    assert coverage >= 0.95 - 2 * error, f"coverage {coverage:.3f}, its standard error {error:.3f}"
    independent = 480 / (1 + 15 * likeness)  # as many would have the variance of the truth
    low, high = statistics.wilson(rate * independent, independent)
    assert np.mean([width(interval) for interval in intervals]) < 2 * (high - low), (
        "at most twice as wide as if the correlation were known"
    )


def test_clustered_mean_covers_the_truth_where_two_problems_have_most_of_the_answers():
    studies, clusters = beta_binomial(0.3, 0.6, [4] * 20 + [64] * 2, 400, 8)
    intervals = [statistics.clustered_mean(answers, clusters) for answers in studies]
    coverage = np.mean([low <= 0.3 <= high for _, low, high in intervals])
    assert coverage > 0.928, f"coverage {coverage:.3f}, two standard errors below .95 at most"


@pytest.mark.parametrize("right", [0, 1, 2, 15, 29, 30])
def test_clustered_mean_of_problems_always_or_never_solved_is_wilson_over_problems(right):
    answers, problems = np.repeat(np.arange(30) < right, 16), np.repeat(np.arange(30), 16)
    expected = (right / 30, *statistics.wilson(right, 30))
    assert statistics.clustered_mean(answers, problems) == pytest.approx(expected), (
        "sixteen equal answers to a problem are one"
    )
    once = statistics.clustered_mean(np.arange(30) < right, list(map(str, range(30))))
    assert once == pytest.approx(expected), "one answer to a problem needs no clusters"


@given(draw.lists(draw.tuples(draw.integers(0, 9), draw.integers(0, 9)), min_size=2, max_size=12))
def test_clustered_mean_stays_between_0_and_1_and_mirrors(counts):
    answers = np.concatenate([[1] * right + [0] * wrong + [0, 1] for right, wrong in counts])
    clusters = np.repeat(np.arange(len(counts)), [sum(pair) + 2 for pair in counts])
    share, low, high = statistics.clustered_mean(answers, clusters)
    assert 0 <= low < share < high <= 1, "a proper interval"
    assert statistics.clustered_mean(1 - answers, clusters) == pytest.approx(
        (1 - share, 1 - high, 1 - low)
    ), "wrong answers in the place of right ones"
    effective = len(answers) ** 2 / (np.bincount(clusters) ** 2).sum()
    widest = statistics.wilson(share * effective, effective)
    assert widest[0] - 1e-9 <= low, "never wider than one answer to each problem would be"
    assert high <= widest[1] + 1e-9, "on neither side"


def test_clustered_mean_of_right_answers_alone_counts_clusters_as_kish_does():
    sizes = [1, 2, 3, 10]
    _, low, high = statistics.clustered_mean([1] * 16, np.repeat(list("abcd"), sizes))
    effective = 16**2 / (1 + 4 + 9 + 100)
    assert (low, high) == pytest.approx((effective / (effective + 1.959964**2), 1)), (
        "Wilson's lower end at n of n is n / (n + z^2)"
    )


def test_clustered_mean_of_many_unequal_clusters_has_the_standard_error_of_statsmodels():
    sizes = np.random.default_rng(0).integers(1, 12, 5000)
    (right,), clusters = beta_binomial(0.4, 0.3, sizes, 1, 9)
    fitted = sm.OLS(right.astype(float), np.ones(len(right))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}
    )
    interval = statistics.clustered_mean(right, clusters)
    assert interval == pytest.approx((fitted.params[0], *fitted.conf_int()[0]), abs=1e-4), (
        "cluster-robust, where the normal approximation holds"
    )
    assert width(interval) == pytest.approx(2 * 1.959964 * fitted.bse[0], rel=5e-3), "its error"


@pytest.mark.parametrize(
    ("answers", "clusters", "message"),
    [
        ([0, 1, np.nan], [0, 1, 2], "1 of 3 answers are missing"),
        ([0, 0.25, 1], [0, 1, 2], "0.25 is neither a right answer"),
        ([0, 1, -1], [0, 1, 2], "-1 is neither a right answer"),
        ([0, 1, 1], ["a", "a", "a"], "clusters .*'a'.*at least two"),
        ([], [], "0 answers, and clusters"),
        ([0, 1, 1], [0, 1], "3 answers and 2 clusters"),
        ([0, 1, 1], [0, 1, np.nan], "1 of them missing"),
    ],
)
def test_clustered_mean_refuses_what_has_no_interval(answers, clusters, message):
    with pytest.raises(ValueError, match=message):
        statistics.clustered_mean(answers, clusters)


def test_more_answers_to_the_same_problems_do_not_make_more_problems():
    rates, rng = np.linspace(0.1, 0.9, 30), np.random.default_rng(0)
    widths = []
    for samples in (1, 16, 256):
        values = rng.random((30, samples)) < rates[:, None]
        _, low, high = statistics.clustered_mean(values.ravel(), np.repeat(np.arange(30), samples))
        widths.append(high - low)
    floor = 2 * 2.045 * rates.std(ddof=1) / np.sqrt(30)
    assert widths[0] > widths[1] > floor * 0.9, "many answers help"
    assert widths[2] == pytest.approx(floor, rel=0.1), (
        "down to what 30 problems know of all problems"
    )


def test_a_rank_correlation_is_scipy_s_and_its_band_that_of_all_orders():
    first, second = [0.3, 0.1, 0.9, 0.4, 0.2], [5, 1, 9, 2, 2]
    value, low, high = statistics.rank_correlation(first, second)
    assert value == pytest.approx(spearmanr(first, second).statistic)
    assert -low == pytest.approx(high, abs=0.06), "a random order is as often reversed"
    assert statistics.rank_correlation(range(4), range(4))[2] < 1, (
        "of 24 orders one is the same, more than a fortieth"
    )
    assert 0.8 < statistics.rank_correlation(range(5), range(5))[2] < 1, (
        "with five objects nothing short of nearly the same order is evidence"
    )


def test_mantel_has_the_rank_correlation_and_the_band_of_exchanged_objects():
    rng = np.random.default_rng(0)
    first, second = (part + part.T for part in rng.standard_normal((2, 6, 6)))
    value, low, high = statistics.mantel(first, second)
    above = np.triu_indices(6, 1)
    assert value == pytest.approx(spearmanr(first[above], second[above]).statistic), (
        "scipy's, on the entries above the diagonal"
    )
    order = rng.permutation(6)
    assert statistics.mantel(
        first[np.ix_(order, order)], second[np.ix_(order, order)]
    ) == pytest.approx((value, low, high)), "names of objects do not matter"
    assert low < 0 < high, "unrelated matrices lie on both sides of zero"


def test_mantel_refuses_matrices_that_do_not_belong_together():
    for second in (pd.DataFrame(np.eye(5)), np.triu(np.ones((4, 4)))):
        with pytest.raises(ValueError, match="two symmetric ones over the same objects"):
            statistics.mantel(np.eye(4), second)


def test_mantel_s_band_is_wider_than_that_of_independent_pairs_where_one_object_is_apart():
    apart = np.ones((6, 6))
    # One object unlike all others: the pairs fall together or not at all.
    apart[5], apart[:, 5] = 0, 0
    value, _, high = statistics.mantel(apart, apart)
    assert (value, high) == pytest.approx((1, 1)), (
        "one exchange in six leaves the odd one where it is, so that 1 is no surprise"
    )
