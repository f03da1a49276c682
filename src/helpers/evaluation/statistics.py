"""Statistics of paired accuracies: intervals, exact tests, corrections, and what a test could have
seen; and of crossed designs of runs.

Comes after the records of `answering` and the inner products of updates, before the tables of the
pages; reads and writes no file. The definitions are those of statsmodels and scipy wherever those
have them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations, permutations
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Num, Shaped
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
Count = int | np.int64
Numbers: TypeAlias = Sequence[int | float] | Shaped[np.ndarray, " _"] | pd.Series
ValueAndInterval = tuple[float, float, float]
"""A number, and the ends of its interval, low and high."""


# --- accuracies ----------------------------------------------------------------------------------


def wilson(correct: Count | float, n: Count | float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `correct` of n: (low, high); ValueError for no share.

    Counts, or with an effective number of answers n, which need not be whole, the same share of
    it.
    """
    if not (0 <= correct <= n and n > 0):
        raise ValueError(
            f"{correct} right of {n} is no share: give the number of right answers and that of all "
            "answers, of which there is at least one"
        )
    low, high = proportion_confint(correct, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def mcnemar(b: Count, c: Count) -> float:
    """Exact two-sided p-value for two models on the same problems; b and c count problems that only
    one of them solved."""
    return float(binomtest(int(b), int(b + c)).pvalue) if b + c else 1.0


def holm(p_values: Numbers) -> Float[np.ndarray, " tests"]:
    """Holm's adjusted p-values, in the order given. A NaN, of a test that could not be made, stays
    one, and counts among the tests."""
    return np.asarray(multipletests(p_values, method="holm")[1])


def newcombe_paired(both: Count, b: Count, c: Count, neither: Count) -> ValueAndInterval:
    """95 % interval of the difference of two paired shares (Newcombe 1998, method 10): (difference,
    low, high).

    The arguments count problems: solved by both models, by the first alone, by the second alone,
    and by neither. ValueError without any problem.
    """
    n = both + b + c + neither
    if min(both, b, c, neither) < 0 or n == 0:
        raise ValueError(
            f"{both} problems solved by both, {b} and {c} by one alone, {neither} by neither: "
            "a difference of shares needs counts of at least one problem"
        )
    first, second = (both + b) / n, (both + c) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + b, n), wilson(both + c, n)
    # phi: the correlation of the two models' answers, a positive one corrected for continuity.
    margins = float(both + b) * (c + neither) * (both + c) * (b + neither)
    cross = float(both) * neither - float(b) * c
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = cross / np.sqrt(margins) if margins else 0.0
    # From each share to the end of its own interval on the side that lowers, or raises, the
    # difference.
    first_down, second_up = first - low_1, high_2 - second
    first_up, second_down = high_1 - first, second - low_2
    below = _combined(first_down, second_up, phi)
    above = _combined(first_up, second_down, phi)
    difference = first - second
    return difference, difference - below, difference + above


def _combined(first: float, second: float, phi: float) -> float:
    """Half width of the interval of a difference from those of its two shares, correlated by
    phi."""
    return float(np.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0)))


def detectable_difference(n: int, discordant: float, power: float = 0.8) -> float:
    """Smallest difference of two paired shares that McNemar's test finds with this power (Connor
    1987).

    n: problems. `discordant` is the share of problems on which the two models differ; NaN where
    even that share is too small. ValueError for no problems, for what is no share, and for a power
    that the test has without any difference, or never.
    """
    if n < 1 or not 0 <= discordant <= 1 or not 1 - LEVEL < power < 1:
        raise ValueError(
            f"{n} problems, a share of {discordant} discordant ones and a power of {power}: give "
            f"at least one problem, a share from 0 to 1, and a power between {1 - LEVEL:g} and 1"
        )
    z_level, z_power = norm.ppf(1 - (1 - LEVEL) / 2), norm.ppf(power)

    def missing(difference: float) -> float:
        # What n problems leave to be desired of the difference that the power asks for; decreasing.
        spread = np.sqrt(max(discordant - difference**2, 0))
        needed = (z_level * np.sqrt(discordant) + z_power * spread) / np.sqrt(n)
        return float(needed - difference)

    if discordant and missing(discordant) < 0:
        return float(brentq(missing, 0, discordant))
    return float("nan")


def accuracy_table(records: pd.DataFrame) -> pd.DataFrame:
    """The `accuracy` table from records with columns run, split, problem_id, correct, status,
    truncated, tokens: one row per split and run.

    Columns: split, run, n (problems), correct (how many), accuracy, low, high (`wilson`), unparsed
    (share of answers that could not be read, those of any status but "boxed"), truncated (share),
    mean_tokens.

    ValueError without records, with a value missing, and with several answers to a problem.
    """
    _refuse_incomplete(
        records, ["run", "split", "problem_id", "correct", "status", "truncated", "tokens"]
    )

    def line(group: pd.DataFrame) -> pd.Series:
        correct = int(group.correct.sum())
        low, high = wilson(correct, len(group))
        return pd.Series(
            {
                "n": len(group),
                "correct": correct,
                "accuracy": group.correct.mean(),
                "low": low,
                "high": high,
                "unparsed": (group.status != "boxed").mean(),
                "truncated": group.truncated.mean(),
                "mean_tokens": group.tokens.mean(),
            }
        )

    lines = records.groupby(["split", "run"], sort=False).apply(line, include_groups=False)
    return lines.astype({"n": int, "correct": int}).reset_index()


def _refuse_incomplete(records: pd.DataFrame, columns: Sequence[str]) -> None:
    """ValueError unless the records, with these columns, hold one answer, right or wrong, of a run
    to a problem of a split."""
    if records.empty:
        raise ValueError("no records, where a table needs at least one answer of one run")
    for column in columns:
        missing = records[column].isna()
        if missing.any():
            first = records[missing].iloc[0]
            raise ValueError(
                f"{missing.sum()} of {len(records)} records have no {column!r}, the first one of "
                f"run {first['run']!r} in the {first['split']} set: answer its problem again, or "
                "leave it out"
            )
    is_answer = records.correct.isin([0, 1])
    if not is_answer.all():
        first = records[~is_answer].iloc[0]
        raise ValueError(
            f"'correct' is {first['correct']} for problem {first['problem_id']} of run "
            f"{first['run']!r} in the {first['split']} set, neither right nor wrong: give single "
            "answers, not their means"
        )
    number = records.groupby(["split", "run", "problem_id"], sort=False).size()
    if number.max() > 1:
        split, run, problem_id = number.idxmax()
        raise ValueError(
            f"{run!r} has {number.max()} answers to problem {problem_id} of the {split} set, where "
            "one is expected: take the records of one sample_id, or `clustered_mean` of all, whose "
            "interval is over problems"
        )


def mcnemar_table(
    records: pd.DataFrame, pairs: Sequence[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """The `mcnemar` table from records with columns run, split, problem_id, correct: one row per
    split and pair of runs.

    Columns: split, run_a, run_b, b = only run_a right, c = only run_b right, p, difference, low,
    high (`newcombe_paired`), detectable (`detectable_difference`), p_holm over the pairs of a
    split.

    All pairs by default, for which every model must have answered every problem, or ValueError.
    With `pairs`, a list of (run_a, run_b), each pair is tested on the problems that both answered.
    ValueError also for what leaves a test without a meaning: fewer than two runs, no pairs, a run
    without a record in one of the splits, a pair without a common problem, a value missing, and
    several answers to a problem.
    """
    _refuse_incomplete(records, ["run", "split", "problem_id", "correct"])
    runs = records.run.unique()
    wanted = list(combinations(runs, 2)) if pairs is None else pairs
    if not wanted:
        raise ValueError(
            f"no pair of runs to test: the records are of {', '.join(runs)}; give those of two "
            "runs, and no empty list of pairs"
        )
    rows = []
    for split, group in records.groupby("split", sort=False):
        by_run = group.pivot(index="problem_id", columns="run", values="correct")
        by_run = by_run[list(group.run.unique())]  # in the order of the records
        for run in chain.from_iterable(wanted):
            if run not in by_run:
                raise ValueError(
                    f"no record of {run!r} in the {split} set, only of {', '.join(by_run)}: let it "
                    "answer these problems, or leave out its pairs or the set"
                )
        if pairs is None and by_run.isna().any(axis=None):
            run, problem_id = next(
                (run, problem_id)
                for problem_id, row in by_run.isna().iterrows()
                for run, is_missing in row.items()
                if is_missing
            )
            raise ValueError(
                f"no record of {run!r} for problem {problem_id} of the {split} set: "
                "paired tests need every model's answer to every problem"
            )
        for run_a, run_b in combinations(by_run.columns, 2) if pairs is None else pairs:
            first, second = by_run[[run_a, run_b]].dropna().to_numpy(bool).T
            if not len(first):
                raise ValueError(
                    f"{run_a!r} and {run_b!r} have no problem of the {split} set in common: paired "
                    "tests need answers of both to the same problems"
                )
            paired = _paired_line(first, second)
            rows.append({"split": split, "run_a": run_a, "run_b": run_b, **paired})
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("split").p.transform(lambda p: holm(p.to_numpy()))
    return table


def _paired_line(
    first: Bool[np.ndarray, " problems"], second: Bool[np.ndarray, " problems"]
) -> dict[str, int | float]:
    """The numbers of `mcnemar_table` for two models, from what each has right."""
    n, both = len(first), int((first & second).sum())
    b, c, neither = (
        int(which.sum()) for which in (first & ~second, ~first & second, ~first & ~second)
    )
    difference, low, high = newcombe_paired(both, b, c, neither)
    return {
        "b": b,
        "c": c,
        "p": mcnemar(b, c),
        "difference": difference,
        "low": low,
        "high": high,
        "detectable": detectable_difference(n, (b + c) / n),
    }


# --- means, ratios and correlations --------------------------------------------------------------


def clustered_mean(answers: Numbers, clusters: Numbers | Sequence[str]) -> ValueAndInterval:
    """(share, low, high) of answers that are right, 1, or wrong, 0, and alike within clusters, such
    as many answers to each of a few problems; clusters: which one each answer belongs to.

    The 95 % interval is `wilson`'s at the effective number of answers: so many independent ones
    would have the cluster-robust standard error that is found, widened by Student's t (Korn and
    Graubard 1998, with the exact interval in place of Wilson's). It is at least the number of
    clusters, for unequal ones (sum of sizes)^2 / sum of sizes^2 (Kish 1965), and at most that of
    the answers. More answers to 30 problems make each problem's rate exact, and leave it 30
    problems.

    Where nearly all answers are wrong, a share that came out too low comes with a standard error
    that is too small, and the interval would miss the truth in up to one of seven cases instead of
    one of twenty; likewise where nearly all are right. The variance is therefore that with one more
    cluster, which is all right or all wrong with equal chance. It makes the effective number that
    of the clusters where all answers are right or all are wrong, and matters little where many
    clusters differ.

    ValueError for anything but 0 and 1, such as a missing value or a mean of answers, and for a
    single cluster, which says nothing about others.
    """
    right, groups = np.asarray(answers, float), np.asarray(clusters)
    if len(right) != len(groups) or pd.isna(groups).any():
        raise ValueError(
            f"{len(right)} answers and {len(groups)} clusters, {pd.isna(groups).sum()} of them "
            "missing: name the cluster of each answer"
        )
    if np.isnan(right).any():
        raise ValueError(
            f"{np.isnan(right).sum()} of {len(right)} answers are missing: leave them out, or "
            "grade them"
        )
    if not np.isin(right, [0, 1]).all():
        raise ValueError(
            f"{right[~np.isin(right, [0, 1])][0]:g} is neither a right answer, 1, nor a wrong one, "
            "0: give single answers, not their means"
        )
    codes, names = pd.factorize(groups)
    if len(names) < 2:
        raise ValueError(
            f"{len(right)} answers, and clusters {list(names)}: an interval over clusters needs at "
            "least two of them"
        )
    n, share = len(right), float(right.mean())
    # variance: the squared cluster-robust standard error.
    sums, sizes = np.bincount(codes, right), np.bincount(codes)
    variance = len(names) / (len(names) - 1) * ((sums - share * sizes) ** 2).sum() / n**2
    count = n**2 / (sizes**2).sum()
    # The variance as a part of what it is where each cluster is all right or all wrong; the one
    # cluster more adds its own, 1/4, to both.
    alike = (count * variance + 1 / (4 * count)) / (share * (1 - share) + 1 / (4 * count))
    quantile = (1 + LEVEL) / 2
    penalty = (norm.ppf(quantile) / t.ppf(quantile, count - 1)) ** 2
    effective = float(np.clip(count / alike * penalty, count, n))
    return share, *wilson(share * effective, effective)


def bootstrap_ratio(
    numerators: Numbers, denominators: Numbers, seed: int = 0, draws: int = 2000
) -> ValueAndInterval:
    """95 % interval of sum(numerators) / sum(denominators), one of each per problem, by resampling
    problems: (ratio, low, high).

    ValueError for fewer than two problems, of which all resamples are the same, for a value
    missing, and where denominators add up to 0.
    """
    upper, lower = np.asarray(numerators, float), np.asarray(denominators, float)
    if len(upper) != len(lower) or len(upper) < 2:
        raise ValueError(
            f"{len(upper)} numerators and {len(lower)} denominators: give one of each per problem, "
            "of at least two problems"
        )
    missing = int((np.isnan(upper) | np.isnan(lower)).sum())
    if missing:
        raise ValueError(f"{missing} of {len(upper)} problems have no value: leave them out")
    # (draws, problems): which problems each draw takes.
    chosen = np.random.default_rng(seed).integers(len(upper), size=(draws, len(upper)))
    totals = lower[chosen].sum(1)
    if lower.sum() == 0 or (totals == 0).any():
        raise ValueError(
            f"the denominators add up to {lower.sum():g}, and to 0 in {(totals == 0).sum()} of "
            f"{draws} resamples of {len(lower)} problems: a ratio needs more that are not 0"
        )
    ratios = upper[chosen].sum(1) / totals
    return upper.sum() / lower.sum(), *_middle_interval(ratios)


def _middle_interval(values: Numbers) -> tuple[float, float]:
    """The ends of the middle 95 % of some values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def rank_correlation(first: Numbers, second: Numbers) -> ValueAndInterval:
    """Spearman's rank correlation of a few numbers with a few others: (value, low, high), with the
    middle 95 % of its values over all orders of one of them. NaN where a value is missing, or all
    of one are equal."""
    ranks, other_ranks = rankdata(first), rankdata(second)
    # permutations begins with the order as it is, so the first value is the correlation itself.
    values = [
        np.corrcoef(ranks[list(order)], other_ranks)[0, 1]
        for order in permutations(range(len(ranks)))
    ]
    return float(values[0]), *_middle_interval(values)


def mantel(
    first: Num[np.ndarray, "objects objects"] | pd.DataFrame,
    second: Num[np.ndarray, "objects objects"] | pd.DataFrame,
) -> ValueAndInterval:
    """Mantel's test of two symmetric matrices over the same few objects: (value, low, high).

    value: Spearman's rank correlation of the entries above the diagonals. low, high: the middle
    95 % of its values when the objects of one matrix are exchanged in every possible way, since
    entries that share an object are not independent (Mantel 1967). NaN where an entry is missing,
    or all of one matrix are equal.

    ValueError for matrices of different sizes, and for one that is not symmetric.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or not all(
        np.allclose(matrix, matrix.T, equal_nan=True) for matrix in (first, second)
    ):
        raise ValueError(
            f"matrices of {first.shape} and {second.shape} entries: Mantel's test needs two "
            "symmetric ones over the same objects"
        )
    above = np.triu_indices(len(first), 1)
    ranks = rankdata(second[above])
    values = [
        np.corrcoef(rankdata(first[np.ix_(order, order)][above]), ranks)[0, 1]
        for order in permutations(range(len(first)))  # the first one exchanges nothing
    ]
    return float(values[0]), *_middle_interval(values)


# --- crossed designs -----------------------------------------------------------------------------


def crossed_parts(gram: Num[np.ndarray, "n n"], levels: pd.DataFrame) -> pd.DataFrame:
    """What each factor of a crossed design explains of its vectors, from their inner products
    alone: one row per part, a set of factors.

    gram: inner products of n vectors. levels: one row per vector, in the same order, and one column
    per factor; every combination of levels occurs once, or ValueError.

    Columns, the last four in units of the mean squared norm:
    part: "mean" (no factor), each factor, each combination joined by " x ", up to all of them;
    observed: squared norm of the part in the orthogonal decomposition of the vectors, never below
    0, adding up to 1;
    by_chance: the same for vectors of equal length at right angles, which is the part's degrees of
    freedom over n;
    alike: mean inner product of the pairs that agree in exactly these factors;
    share: `alike` less the shares of all smaller parts. It estimates the part's variance component
    (Searle et al. 1992), adds up to 1, is 0 on average for vectors that share nothing, and may be
    below 0. NaN where no pair agrees in exactly these factors, as with one level of a factor.
    """
    n, sizes = len(levels), levels.nunique()
    if sizes.prod() != n or levels.duplicated().any():
        raise ValueError(
            f"the design is not crossed: {n} vectors, {len(levels.drop_duplicates())} different "
            f"combinations, {sizes.prod()} possible; give each combination of levels once"
        )
    # (n, n) per factor: whether two vectors agree in it.
    agree = {
        factor: np.equal.outer(levels[factor].to_numpy(), levels[factor].to_numpy())
        for factor in levels
    }
    unit = np.trace(gram) / n  # the mean squared norm
    rows = []
    shares: dict[tuple[str, ...], float] = {}
    for part in _subsets(list(agree)):
        # (n, n): onto what varies with each factor of the part and is averaged over the others,
        # which along one factor is "equal" less its mean, or the mean.
        projection = np.prod(
            [
                equal - 1 / sizes[factor] if factor in part else np.full((n, n), 1 / sizes[factor])
                for factor, equal in agree.items()
            ],
            0,
        )
        # (n, n): the pairs that agree in exactly these factors.
        pairs = np.all([equal if factor in part else ~equal for factor, equal in agree.items()], 0)
        alike = gram[pairs].mean() / unit if pairs.any() else np.nan
        # Such pairs also share whatever belongs to fewer of these factors.
        shares[part] = alike - sum(
            share for smaller, share in shares.items() if set(smaller) < set(part)
        )
        rows.append(
            {
                "part": " x ".join(part) or "mean",
                "observed": (projection * gram).sum() / (n * unit),
                "by_chance": np.trace(projection) / n,
                "alike": alike,
                "share": shares[part],
            }
        )
    return pd.DataFrame(rows)


def _subsets(factors: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All sets of factors, smaller ones first."""
    return chain.from_iterable(combinations(factors, size) for size in range(len(factors) + 1))


def jackknife_levels(
    levels: pd.DataFrame,
    drawn: Sequence[str],
    statistic: Callable[[np.ndarray], Any],
) -> tuple[Any, Any, Any]:
    """(value, low, high) of statistic(rows) over a crossed design: its 95 % interval over the
    levels of the factors `drawn`.

    levels: as for `crossed_parts`. statistic: takes the numbers of the rows that take part, returns
    a number or an array, and so are the three results. One level of one factor is left out at a
    time; the factors' variances add up, which counts twice what they do together and so errs on the
    wide side (Owen 2007), and t has the degrees of freedom of the factor with the fewest levels.
    The interval is NaN where the statistic is, with one level left out.
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
    value = statistic(np.arange(len(levels)))
    degrees = levels[list(drawn)].nunique().min() - 1
    half = t.ppf((1 + LEVEL) / 2, degrees) * np.sqrt(variance)
    return value, value - half, value + half
