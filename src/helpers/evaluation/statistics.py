"""Statistics of paired accuracies: intervals, exact tests, corrections, and what a test could have seen; and of crossed designs of runs.

Comes after `evaluation`. Works on records with one row a problem, the definitions being those of statsmodels and scipy wherever those
have them, and on inner products with one row a run.
"""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95


def wilson(correct, n):
    """Wilson interval of a share, (low, high)."""
    low, high = proportion_confint(correct, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def mcnemar(b, c):
    """Exact two-sided p-value for two models on the same problems; b and c count problems that only one of them solved."""
    return float(binomtest(int(b), int(b + c)).pvalue) if b + c else 1.0


def holm(p_values):
    """Holm's adjusted p-values, in the order given."""
    return multipletests(p_values, method="holm")[1]


def newcombe_paired(both, b, c, neither):
    """Interval of the difference of two paired shares (Newcombe 1998, method 10): (difference, low, high)."""
    n = both + b + c + neither
    first, second = (both + b) / n, (both + c) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + b, n), wilson(both + c, n)
    margins = float(both + b) * (c + neither) * (both + c) * (b + neither)
    cross = float(both) * neither - float(b) * c
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = cross / np.sqrt(margins) if margins else 0.0
    difference = first - second
    below = np.sqrt(
        max(
            (first - low_1) ** 2
            - 2 * phi * (first - low_1) * (high_2 - second)
            + (high_2 - second) ** 2,
            0,
        )
    )
    above = np.sqrt(
        max(
            (high_1 - first) ** 2
            - 2 * phi * (high_1 - first) * (second - low_2)
            + (second - low_2) ** 2,
            0,
        )
    )
    return difference, difference - below, difference + above


def detectable_difference(n, discordant, power=0.8):
    """Smallest difference of two paired shares that McNemar's test finds with this power (Connor 1987).

    `discordant` is the share of problems on which the two models differ; NaN where even that share is too small.
    """
    z_level, z_power = norm.ppf(1 - (1 - LEVEL) / 2), norm.ppf(power)

    def missing(difference):
        return (
            z_level * np.sqrt(discordant) + z_power * np.sqrt(max(discordant - difference**2, 0))
        ) / np.sqrt(n) - difference

    return (
        float(brentq(missing, 0, discordant))
        if discordant and missing(discordant) < 0
        else float("nan")
    )


def accuracy_table(records):
    """The `accuracy` table from records with columns run, split, correct, status, truncated, tokens."""

    def line(group):
        low, high = wilson(group.correct.sum(), len(group))
        return pd.Series(
            {
                "n": len(group),
                "correct": int(group.correct.sum()),
                "accuracy": group.correct.mean(),
                "low": low,
                "high": high,
                "unparsed": (group.status != "boxed").mean(),
                "truncated": group.truncated.mean(),
                "mean_tokens": group.tokens.mean(),
            }
        )

    return (
        records.groupby(["split", "run"], sort=False)
        .apply(line, include_groups=False)
        .astype({"n": int, "correct": int})
        .reset_index()
    )


def mcnemar_table(records, pairs=None):
    """The `mcnemar` table: pairs of runs on each split; b = only run_a right, c = only run_b right; Holm over the pairs of a split.

    All pairs by default, for which every model must have answered every problem, or ValueError. With `pairs`, a list of (run_a, run_b), each pair
    is tested on the problems that both answered.
    """
    rows = []
    for split, group in records.groupby("split", sort=False):
        wide = group.pivot(index="problem_id", columns="run", values="correct")[
            list(group.run.unique())
        ]
        if pairs is None and wide.isna().any(axis=None):
            run, problem_id = next(
                (run, problem_id)
                for problem_id, row in wide.isna().iterrows()
                for run, missing in row.items()
                if missing
            )
            raise ValueError(
                f"no record of {run!r} for problem {problem_id} of the {split} set: paired tests need every model's answer to every problem"
            )
        for run_a, run_b in combinations(wide.columns, 2) if pairs is None else pairs:
            a, b = wide[[run_a, run_b]].dropna().to_numpy(bool).T
            cells = (
                int((a & b).sum()),
                int((a & ~b).sum()),
                int((~a & b).sum()),
                int((~a & ~b).sum()),
            )
            difference, low, high = newcombe_paired(*cells)
            rows.append(
                {
                    "split": split,
                    "run_a": run_a,
                    "run_b": run_b,
                    "b": cells[1],
                    "c": cells[2],
                    "p": mcnemar(cells[1], cells[2]),
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "detectable": detectable_difference(len(a), (cells[1] + cells[2]) / len(a)),
                }
            )
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("split").p.transform(lambda p: holm(p.to_numpy()))
    return table


def clustered_mean(values, clusters):
    """(mean, low, high) of values that are alike within clusters, such as many answers to each of a few problems.

    The standard error is the cluster-robust one, and the interval Student's with one degree of freedom less than there are clusters: more answers to
    30 problems make each problem's rate exact, and leave it 30 problems.
    """
    values = pd.Series(np.asarray(values, float))
    sums = (values - values.mean()).groupby(np.asarray(clusters)).sum()
    count = len(sums)
    error = np.sqrt((sums**2).sum() * count / (count - 1)) / len(values)
    half = t.ppf((1 + LEVEL) / 2, count - 1) * error
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def bootstrap_ratio(numerators, denominators, seed=0, draws=2000):
    """Interval of sum(numerators) / sum(denominators) by resampling problems: (ratio, low, high)."""
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    chosen = np.random.default_rng(seed).integers(len(numerators), size=(draws, len(numerators)))
    ratios = numerators[chosen].sum(1) / denominators[chosen].sum(1)
    return numerators.sum() / denominators.sum(), *_middle(ratios)


def _middle(values):
    """The ends of the middle 95 % of some values."""
    return tuple(float(end) for end in np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))


def rank_correlation(first, second):
    """Spearman's rank correlation of a few numbers with a few others: (value, low, high), with the middle 95 % of its values over all orders of one of them."""
    first, second = rankdata(first), rankdata(second)
    values = [
        np.corrcoef(first[list(order)], second)[0, 1] for order in permutations(range(len(first)))
    ]
    return float(values[0]), *_middle(values)


def mantel(first, second):
    """Mantel's test of two symmetric matrices over the same few objects: (value, low, high).

    value: Spearman's rank correlation of the entries above the diagonals. low, high: the middle 95 % of its values when the objects of one
    matrix are exchanged in every possible way, since entries that share an object are not independent (Mantel 1967).
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    above = np.triu_indices(len(first), 1)
    ranks = rankdata(second[above])
    values = [
        np.corrcoef(rankdata(first[np.ix_(order, order)][above]), ranks)[0, 1]
        for order in permutations(range(len(first)))
    ]
    return float(values[0]), *_middle(values)


def crossed_parts(gram, levels):
    """What each factor of a crossed design explains of its vectors, from their inner products alone: one row a part, a set of factors.

    gram: (n, n) inner products of n vectors. levels: DataFrame with one row a vector, in the same order, and one column a factor; every combination
    of levels occurs once, or ValueError. Columns, each in units of the mean squared norm:
    part: "mean" (no factor), each factor, each combination joined by " x ", up to all of them;
    observed: squared norm of the part in the orthogonal decomposition of the vectors, never below 0, adding up to 1;
    by_chance: the same for vectors of equal length at right angles, which is the part's degrees of freedom over n;
    alike: mean inner product of the pairs that agree in exactly these factors;
    share: `alike` less the shares of all smaller parts. It estimates the part's variance component (Searle et al. 1992), adds up to 1, is 0 on
    average for vectors that share nothing, and may be below 0. NaN where no pair agrees in exactly these factors, as with one level of a factor.
    """
    n, sizes = len(levels), levels.nunique()
    if sizes.prod() != n or levels.duplicated().any():
        raise ValueError(
            f"the design is not crossed: {n} vectors, {len(levels.drop_duplicates())} different combinations, {sizes.prod()} possible; "
            "give each combination of levels once"
        )
    same = {
        factor: np.equal.outer(levels[factor].to_numpy(), levels[factor].to_numpy())
        for factor in levels
    }
    unit, rows, share = np.trace(gram) / n, [], {}
    for part in (part for size in range(len(same) + 1) for part in combinations(same, size)):
        projection = np.prod(
            [
                equal - 1 / sizes[factor] if factor in part else np.full((n, n), 1 / sizes[factor])
                for factor, equal in same.items()
            ],
            0,
        )
        pairs = np.all([equal if factor in part else ~equal for factor, equal in same.items()], 0)
        alike = gram[pairs].mean() / unit if pairs.any() else np.nan
        share[part] = alike - sum(
            value for smaller, value in share.items() if set(smaller) < set(part)
        )
        rows.append(
            {
                "part": " x ".join(part) or "mean",
                "observed": (projection * gram).sum() / (n * unit),
                "by_chance": np.trace(projection) / n,
                "alike": alike,
                "share": share[part],
            }
        )
    return pd.DataFrame(rows)


def jackknife_levels(levels, drawn, statistic):
    """(value, low, high) of statistic(rows) over a crossed design: its 95 % interval over the levels of the factors `drawn`.

    levels: as for `crossed_parts`. statistic: takes the numbers of the rows that take part, returns a number or an array. One level of one
    factor is left out at a time; the factors' variances add up, which counts twice what they do together and so errs on the wide side (Owen 2007),
    and t has the degrees of freedom of the factor with the fewest levels. The interval is NaN where the statistic is, with one level left out.
    """
    variance = 0.0
    for factor in drawn:
        left_out = np.array(
            [
                statistic(np.flatnonzero(levels[factor] != level))
                for level in levels[factor].unique()
            ]
        )
        variance = variance + (len(left_out) - 1) * left_out.var(0)
    value, half = (
        statistic(np.arange(len(levels))),
        t.ppf((1 + LEVEL) / 2, levels[list(drawn)].nunique().min() - 1) * np.sqrt(variance),
    )
    return value, value - half, value + half
