"""The statistics by which the paper's claims are judged: functions that `claims.yaml` names.

Comes after the notebooks that write the tables, and before `verdict`. A statistic takes the tables
of a profile and the arguments of a record, and returns a `Finding`. What several of them take:

of: a statistic of the table `replicas`, or the debiased CKA of a layer (`_CKA_LAYERS`).
runs: one run or a pair of them; pairs: several pairs.
row: a table and the run whose row in it is meant, on the test problems if it has several sets;
    rows: two of them.
ordering: what the claim states of the values at every seed (`Ordering`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from helpers import profiles, store
from helpers.analysis import replication
from helpers.evaluation import statistics

_TOLERANCE = 0.01  # nats by which a curve that lies between its ends may leave their range
_CKA_LAYERS = {"CKA, two thirds": 0, "CKA, last layer": -1}  # which of those of `replicas_cka`
_CHANCE = {  # a statistic's name in the table `chance` by its name in `replicas`
    "first vector left": "first left vectors",
    "first vector right": "first right vectors",
    "smallest angle left": "smallest left angle",
    "largest angle left": "largest left angle",
}

Runs = Sequence[str]
Pairs = Sequence[Runs]
Row = Sequence[str]
Rows = Sequence[Row]
Number = int | float
Limits = Sequence[Number | Runs]
Values = Float[np.ndarray, " seeds"]


class Ordering(TypedDict, total=False):
    """What a claim states of the values of a statistic at every seed.

    above, below: limits, each a number or one or two runs, whose value of the same statistic is the
    limit. above_size: pairs of runs whose values are to be smaller in size.
    """

    above: Limits
    below: Limits
    above_size: Pairs


class Tables(dict[str, pd.DataFrame]):
    """The tables of a profile by name, each read when it is first asked for, and its runs' labels.

    FileNotFoundError for one that no page wrote.
    """

    def __init__(self, profile_name: str) -> None:
        super().__init__()
        self.profile_name = profile_name
        self.labels = profiles.load(profile_name).appearance.labels

    def __missing__(self, name: str) -> pd.DataFrame:
        self[name] = store.read_table(self.profile_name, name)
        return self[name]


@dataclass(frozen=True)
class Finding:
    """What a statistic finds in the tables.

    interval: (value, low, high) in the claim's own unit; low = high for a single run.
    is_true: whether the ordering that the claim states is true, at every seed if there are several.
    values: what the control's text may name in braces; "band" is the control's, (low, high).
    by_construction: whether the initial adapter that the runs share explains it.
    """

    interval: Sequence[Number]
    is_true: bool | np.bool
    values: dict[str, Any] = field(default_factory=dict)
    by_construction: bool = False


Statistic = Callable[..., Finding | None]  # None where the claim is not about the profile
STATISTICS: dict[str, Statistic] = {}
_Function = TypeVar("_Function", bound=Statistic)


def statistic(function: _Function) -> _Function:
    """Enter a function among the statistics that claims can name."""
    STATISTICS[function.__name__] = function
    return function


def _pair(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The rows of a table about two runs, in whichever order it names them."""
    return table[
        ((table.run_a == a) & (table.run_b == b)) | ((table.run_a == b) & (table.run_b == a))
    ]


def _run(tables: Tables, name: str, run: str) -> pd.Series:
    """The row of a run in a table, on the test problems if it has several sets."""
    table = tables[name]
    table = table[table.split == "test"] if "split" in table else table
    return table[table.run == run].iloc[0]


# --- accuracies, in points ------------------------------------------------------------------------


class Difference(NamedTuple):
    """A difference of two accuracies with its interval, and the least and the most at any seed."""

    value: float
    low: float
    high: float
    least: float
    most: float


_FIRST_IS: dict[str, Callable[[Difference], bool]] = {
    "more": lambda difference: difference.least > 0,
    "less": lambda difference: difference.most < 0,
    "not less": lambda difference: difference.high >= 0,
}


def oriented(row: pd.Series, run: str) -> Difference:
    """A row of paired results as `run` minus the other run of the pair."""
    at_seeds = ("least", "most") if "least" in row else ("difference", "difference")
    values = [100 * row[column] for column in ("difference", "low", "high", *at_seeds)]
    if row.run_a != run:
        values = [-values[number] for number in (0, 2, 1, 4, 3)]
    return Difference(*values)


def paired_difference(tables: Tables, a: str, b: str, split: str | None = None) -> Difference:
    """`a` minus `b` over seeds, or on one of the sets of problems at the main seed."""
    table = tables["mcnemar" if split else "accuracy_seeds"]
    return oriented(_pair(table[table.split == split] if split else table, a, b).iloc[0], a)


def independent_difference(first: pd.Series, second: pd.Series) -> Difference:
    """The difference of two independent accuracies with intervals; errors add as squares."""
    value = first.accuracy - second.accuracy
    below = np.hypot(first.accuracy - first.low, second.high - second.accuracy)
    above = np.hypot(first.high - first.accuracy, second.accuracy - second.low)
    return Difference(*(100 * end for end in (value, value - below, value + above, value, value)))


@statistic
def largest_accuracy_difference(tables: Tables, runs: Runs) -> Finding:
    """The largest difference of any two runs, over seeds; true if none is seen.

    Values, of the pairs at the main seed: p_holm, the smallest adjusted p; detectable, the points
    that would have been seen in any of them.
    """
    differences = {pair: paired_difference(tables, *pair) for pair in combinations(runs, 2)}
    a, b = max(differences, key=lambda pair: abs(differences[pair].value))
    largest = differences[a, b]
    if largest.value < 0:
        largest = paired_difference(tables, b, a)
    tests = tables["mcnemar"].query("split == 'test' and run_a in @runs and run_b in @runs")
    is_unseen = all(each.low <= 0 <= each.high for each in differences.values())
    values = {"p_holm": tests.p_holm.min(), "detectable": 100 * tests.detectable.max()}
    return Finding(largest[:3], is_unseen and (tests.p_holm >= 0.05).all(), values)


@statistic
def accuracy_difference(
    tables: Tables, pairs: Pairs, first_is: str, split: str | None = None
) -> Finding:
    """First minus second run of the pair that speaks least for the claim, over seeds or on a split.

    first_is: "more" (at every seed), "less" or "not less" accurate than the second in all pairs.
    Values: labels of the pair; style, the base made to open like the teacher minus the base.
    """
    differences = {(a, b): paired_difference(tables, a, b, split) for a, b in pairs}
    sign = -1 if first_is == "less" else 1
    least = min(differences, key=lambda pair: sign * differences[pair].value)
    is_true = all(_FIRST_IS[first_is](difference) for difference in differences.values())
    forced, base = (_run(tables, "style", run).accuracy for run in ("forced base", "base"))
    values = {"labels": [tables.labels[run] for run in least], "style": 100 * (forced - base)}
    return Finding(differences[least][:3], is_true, values)


@statistic
def independent_accuracy_difference(tables: Tables, rows: Rows, first_is: str) -> Finding:
    """First minus second of two runs at one seed; `first_is` as in `accuracy_difference`."""
    difference = independent_difference(*(_run(tables, *row) for row in rows))
    return Finding(difference[:3], _FIRST_IS[first_is](difference))


# --- statistics over seeds ------------------------------------------------------------------------


def _at_seeds(tables: Tables, of: str, runs: Runs) -> Values:
    """Values of a statistic of one or two runs at each seed."""
    if of not in _CKA_LAYERS:
        return replication.at_seeds(tables["replicas"], of, *runs)
    table = tables["replicas_cka"]
    layer = sorted(table.layer.unique())[_CKA_LAYERS[of]]
    rows = _pair(table[(table.layer == layer) & (table.seed_a == table.seed_b)], *runs)
    values: Values = rows.debiased.to_numpy()
    return values


def _band(tables: Tables, of: str, runs: Runs) -> tuple[float, float]:
    """Where a statistic of two runs lies by chance, (low, high)."""
    if of == "cosine":
        row = _pair(tables["cosine"], *runs).query("scope == 'global'").iloc[0]
        return row.chance_low, row.chance_high
    rows = _pair(tables["chance"], *runs)
    row = rows[(rows.statistic == _CHANCE[of]) & (rows.null == "matched")].iloc[0]
    return row.low, row.high


def _is_ordered(
    tables: Tables,
    of: str,
    values: Number | Values,
    above: Limits = (),
    below: Limits = (),
    above_size: Pairs = (),
) -> bool:
    """Whether values, or a single one, have an `Ordering`."""

    def value_of(limit: Number | Runs) -> Num[np.ndarray, "..."]:
        if isinstance(limit, int | float):
            return np.asarray(limit)
        return _at_seeds(tables, of, limit)

    at_seeds = np.asarray(values)
    return (
        all(np.all(at_seeds > value_of(limit)) for limit in above)
        and all(np.all(at_seeds < value_of(limit)) for limit in below)
        and all(np.all(at_seeds > abs(value_of(pair))) for pair in above_size)
    )


@statistic
def over_seeds(tables: Tables, of: str, runs: Runs, ordering: Ordering) -> Finding:
    """A statistic of two runs.

    Values: band; other_seed, the "mean", "least" and "most" of SFT with SFT of another seed.
    """
    values = _at_seeds(tables, of, runs)
    other = replication.between_seeds(tables["replicas"], of, "sft")
    other_seed = {"mean": other.mean(), "least": other.min(), "most": other.max()}
    named = {"band": _band(tables, of, runs), "other_seed": other_seed}
    return Finding(replication.interval(values), _is_ordered(tables, of, values, **ordering), named)


@statistic
def shared_at_one_seed(tables: Tables, of: str, runs: Runs, ordering: Ordering) -> Finding:
    """`over_seeds`, by construction if SFT of another seed has less than half of it."""
    finding = over_seeds(tables, of, runs, ordering)
    other_seed = finding.values["other_seed"]["mean"]
    return replace(finding, by_construction=bool(other_seed < 0.5 * finding.interval[0]))


@statistic
def largest_over_seeds(tables: Tables, of: str, pairs: Pairs, ordering: Ordering) -> Finding:
    """A statistic of the pair with the largest mean size; the sizes of all pairs are ordered.

    Values: band; labels of the pair.
    """
    values_of = {tuple(pair): _at_seeds(tables, of, pair) for pair in pairs}
    largest = max(values_of, key=lambda pair: abs(values_of[pair]).mean())
    sizes = np.max([abs(values) for values in values_of.values()], axis=0)
    named = {"band": _band(tables, of, largest), "labels": [tables.labels[run] for run in largest]}
    interval = replication.interval(values_of[largest])
    return Finding(interval, _is_ordered(tables, of, sizes, **ordering), named)


@statistic
def increasing_over_seeds(tables: Tables, of: str, pairs: Pairs) -> Finding:
    """A statistic of the last pair; true if it grows from each pair to the next.

    Values: band; means of all pairs.
    """
    values = [_at_seeds(tables, of, pair) for pair in pairs]
    means = [at_seeds.mean() for at_seeds in values]
    named = {"band": _band(tables, of, pairs[-1]), "means": means}
    return Finding(replication.interval(values[-1]), (np.diff(values, axis=0) > 0).all(), named)


@statistic
def difference_over_seeds(
    tables: Tables, of: str, runs: Runs, minus: Pairs, ordering: Ordering, minus_of: str = ""
) -> Finding:
    """A statistic minus the highest of others, or of another statistic (`minus_of`) of others.

    Values: means, of the first and of what is subtracted.
    """
    first = _at_seeds(tables, of, runs)
    second = np.max([_at_seeds(tables, minus_of or of, pair) for pair in minus], axis=0)
    is_true = _is_ordered(tables, of, first - second, **ordering)
    named = {"means": [first.mean(), second.mean()]}
    return Finding(replication.interval(first - second), is_true, named)


@statistic
def ratio_over_seeds(
    tables: Tables, of: str, runs: Runs, over: Runs, ordering: Ordering, other_rows: Rows = ()
) -> Finding:
    """The highest of some runs over the lowest of others.

    Values: other_ratio, of the norms of `other_rows`.
    """
    highest = np.max([_at_seeds(tables, of, [run]) for run in runs], axis=0)
    ratio = highest / np.min([_at_seeds(tables, of, [run]) for run in over], axis=0)
    named = {"other_ratio": _ratio_of_norms(tables, other_rows)} if other_rows else {}
    return Finding(replication.interval(ratio), _is_ordered(tables, of, ratio, **ordering), named)


@statistic
def between_seeds(tables: Tables, of: str, runs: Runs, ordering: Ordering) -> Finding:
    """A statistic of the first run with itself at another seed.

    Values, of the two runs: band; one_seed, the mean at equal seeds.
    """
    values = replication.between_seeds(tables["replicas"], of, runs[0])
    named = {"band": _band(tables, of, runs), "one_seed": _at_seeds(tables, of, runs).mean()}
    return Finding(replication.interval(values), _is_ordered(tables, of, values, **ordering), named)


@statistic
def between_seeds_by_rate(tables: Tables, of: str, runs: Runs, by_rate: Pairs) -> Finding:
    """`between_seeds`, true if the cosines of the pairs `by_rate` are in ascending order."""
    cosines = [_pair(tables["seeds"], *pair).cosine.iloc[0] for pair in by_rate]
    finding = between_seeds(tables, of, runs, ordering={})
    named = finding.values | {"by_rate": cosines}
    return replace(finding, is_true=cosines == sorted(cosines), values=named)


# --- single runs ----------------------------------------------------------------------------------


def _ratio_of_norms(tables: Tables, rows: Rows) -> float:
    """The norm of the first over that of the second; NaN if that is 0."""

    def norm(table: str, run: str) -> float:
        if table == "replicas":
            return float(_at_seeds(tables, "norm", [run])[0])
        return float(_run(tables, table, run).norm)

    first, second = (norm(*row) for row in rows)
    return first / second if second else np.nan


@statistic
def ratio_of_norms(
    tables: Tables, rows: Rows, ordering: Ordering, other_rows: Rows = ()
) -> Finding:
    """The norm of one run over that of another. Values: other_ratio, the same of `other_rows`."""
    ratio = _ratio_of_norms(tables, rows)
    named = {"other_ratio": _ratio_of_norms(tables, other_rows)} if other_rows else {}
    return Finding([ratio] * 3, _is_ordered(tables, "norm", ratio, **ordering), named)


@statistic
def cosine_with_sft(tables: Tables, row: Row, size_below: Number, of: Row | None = None) -> Finding:
    """Cosine of a run with SFT, ± its chance band; its size is to lie below a number.

    of: the run whose cosine with SFT is that number's unit. Values: half_width of the band;
    reference, the cosine of `of`.
    """
    measured = _run(tables, *row)
    cosine, unit = measured.cosine_sft, _run(tables, *of).cosine_sft if of else 1
    half_width = (measured.chance_high - measured.chance_low) / 2
    named = {"half_width": half_width, "reference": unit}
    is_small = abs(cosine) < size_below * unit
    return Finding((cosine, cosine - half_width, cosine + half_width), is_small, named)


def _orthogonal(cosine: Number) -> float:
    """Norm of the part of an update that is orthogonal to another, as a share of its own norm."""
    return float(np.sqrt(max(0, 1 - cosine**2)))


@statistic
def orthogonal_part(tables: Tables, runs: Runs) -> Finding:
    """Share of a run's norm that is orthogonal to another run, from their cosine over seeds.

    Values: energy, the share of the squared norm; limit, above which unrelated updates lie.
    """
    cosine, low, high = replication.interval(_at_seeds(tables, "cosine", runs))
    shares = [_orthogonal(value) for value in (cosine, high, low)]
    limit = np.sqrt(1 - max(np.abs(_band(tables, "cosine", runs))) ** 2)
    return Finding(shares, 0 < shares[0] < 1, {"energy": shares[0] ** 2, "limit": limit})


@statistic
def orthogonal_part_of_run(tables: Tables, row: Row, above: Number) -> Finding:
    """Share of a run's norm that is orthogonal to SFT, at its cosine and over the chance band."""
    interval = cosine_with_sft(tables, row, size_below=1).interval
    shares = [_orthogonal(value) for value in (interval[0], max(map(abs, interval)), 0)]
    return Finding(shares, shares[0] > above)


# --- paths and representations --------------------------------------------------------------------


def _path(tables: Tables, name: str, a: str, b: str) -> pd.DataFrame:
    """The rows of a table about a path, by the loss of the bare boxed answer."""
    return tables[name].query("run_a == @a and run_b == @b and metric == 'boxed answer'")


@statistic
def no_barrier(tables: Tables, runs: Runs) -> Finding:
    """Height of a path above its chord, nats; true if the loss lies between its ends at every seed.

    Values: noise, the height by chance; ends and range of the loss; monotone, at how many of seeds.
    """
    at_seeds = _pair(tables["replicas_paths"], *runs)
    row = _path(tables, "barriers", *runs).iloc[0]
    points = _path(tables, "connectivity", *runs).query("0 <= t <= 1").sort_values("t")
    curve = points.value.to_numpy()
    (start, end), (least, most) = (curve[0], curve[-1]), (curve.min(), curve.max())
    is_between = most <= max(start, end) + _TOLERANCE and least >= min(start, end) - _TOLERANCE
    named = {"noise": row.noise, "ends": (start, end), "range": (least, most)}
    named |= {"monotone": (at_seeds["shape"] == "monotone").sum(), "seeds": len(at_seeds)}
    is_true = is_between and (at_seeds["shape"] != "above both ends").all()
    return Finding((row.above_chord, row.low, row.high), is_true, named)


@statistic
def barrier(tables: Tables, runs: Runs, shrunk: Runs) -> Finding:
    """Height of a path above its chord, nats; true if it is above chance at every seed.

    Values: noise, the height by chance; above_noise, at how many of seeds; of the path on which an
    update only shrinks: shrunk, its height, band, its interval, and shrunk_above_noise.
    """
    at_seeds, of_shrunk = (_pair(tables["replicas_paths"], *pair) for pair in (runs, shrunk))
    row, control = (_path(tables, "barriers", *pair).iloc[0] for pair in (runs, shrunk))
    is_above = at_seeds.above_chord > at_seeds.noise
    named = {
        "noise": row.noise,
        "above_noise": is_above.sum(),
        "seeds": len(at_seeds),
        "shrunk": control.above_chord,
        "band": (control.low, control.high),
        "shrunk_above_noise": (of_shrunk.above_chord > of_shrunk.noise).sum(),
    }
    is_true = row.above_chord > row.noise and is_above.all()
    return Finding((row.above_chord, row.low, row.high), is_true, named)


@statistic
def cka_above_least_alike(tables: Tables, runs: Runs) -> Finding:
    """Debiased CKA of two runs after the last layer; true if above that of the least alike pair.

    Values: least, that of this pair; other_seed, the mean of a method with itself at two seeds.
    """
    replicas, cka = tables["replicas_cka"], tables["cka"]
    last = replicas.layer.max()
    one_method = replicas[(replicas.layer == last) & (replicas.run_a == replicas.run_b)]
    trained = cka[(cka.layer == last) & (cka.run_a != "base") & (cka.run_b != "base")]
    least = trained.debiased.min()
    values = _at_seeds(tables, "CKA, last layer", runs)
    named = {"least": least, "other_seed": one_method.debiased.mean()}
    return Finding(replication.interval(values), (values > least).all(), named)


@statistic
def largest_depth_difference(tables: Tables) -> Finding:
    """The largest difference of a run to the base in decision depth, layers; true if none is seen.

    Values: label of the run; p_holm, the smallest adjusted p.
    """
    depth = tables["depth"]
    row = depth.loc[depth.difference.abs().idxmax()]
    named = {"label": tables.labels[row.run], "p_holm": depth.p_holm.min()}
    return Finding((row.difference, row.low, row.high), (depth.p_holm >= 0.05).all(), named)


@statistic
def correlation_with_profile(tables: Tables, profile: str, runs: Runs) -> Finding | None:
    """Rank correlation of the cosines of all pairs with those of another profile, to be positive.

    Values: profile; band, if the methods are exchanged at random (`statistics.mantel`). None for
    that profile itself.
    """
    if tables.profile_name == profile:
        return None

    def cosines(table: pd.DataFrame) -> np.ndarray:
        rows = table.query("scope == 'global'")
        return np.array(
            [[1.0 if a == b else _pair(rows, a, b).cosine.item() for b in runs] for a in runs]
        )

    other = store.read_table(profile, "cosine")
    value, low, high = statistics.mantel(cosines(tables["cosine"]), cosines(other))
    return Finding([value] * 3, value > 0, {"band": (low, high), "profile": profile})
