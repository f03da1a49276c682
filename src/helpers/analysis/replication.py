"""Replication: the six methods trained again from other seeds.

What that says of a number of the main runs: its value at every seed, and its interval. After
`geometry` and `training`, before the notebooks that show a number with its spread over seeds and
before `claim_statistics`. A *replica* of a method differs from the main run in its seed only, which
draws both the initial adapter and the order of the prompts. Nothing is stored here; the notebook on
seeds stores the `replicas` table.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Num
from numpy.typing import ArrayLike
from scipy.stats import t as student

from adapter_geometry import geometry
from adapter_geometry.geometry import Comparison
from helpers.profiles import Profile
from helpers.training import trainer

_SIDES = ("left", "right")
_COLUMNS = ["statistic", "run_a", "run_b", "seed_a", "seed_b", "value"]


def replicas(profile: Profile) -> dict[int, dict[str, str]]:
    """{seed: {method: name of its run}}, the main runs first.

    The others are the runs that differ from them in both seeds alike.
    """
    main = {method: profile.runs[method] for method in profile.main_runs}
    names = {main["sft"].seed: {method: method for method in main}}
    for name in profile.controls["seeds"].runs:
        run = profile.runs[name]
        names.setdefault(run.seed, {})[run.objective] = name
    return names


def middle_and_last(layers: pd.Series) -> dict[str, Bool[np.ndarray, " modules"]]:
    """The two groups of layers that the paper compares, as masks of the modules' layers.

    "middle" is the middle third, "last" the last seventh. Modules without a layer are in neither.
    """
    count = layers.nunique()
    masks = {
        "middle": layers.between(count // 3, count - 1 - count // 3),
        "last": layers >= count - max(1, round(count / 7)),
    }
    return {name: mask.to_numpy(bool, na_value=False) for name, mask in masks.items()}


def replicas_table(profile: Profile) -> pd.DataFrame:
    """The `replicas` table: every statistic of two methods at one seed, or of one at two seeds.

    Columns statistic, run_a, run_b (methods), seed_a, seed_b, value. Of pairs: "cosine"; the
    orthogonal part "by norm, middle" and "by norm, last" (`middle_and_last`); for the sides "left"
    and "right" the "smallest angle ..." and "largest angle ..." in degrees, medians over modules,
    and "first vector ...", means over modules. "norm" and "effective rank" are those of run_a, with
    run_b = run_a.
    """
    runs = [
        (seed, method, name)
        for seed, group in replicas(profile).items()
        for method, name in group.items()
    ]
    compared = geometry.compare({name: trainer.update_of(profile, name) for _, _, name in runs})
    of_pairs = _statistics_of_pairs(compared)
    whole = geometry.updates_table(compared).query("scope == 'global'").set_index("run")
    rows = []
    for i, (seed_a, a, name) in enumerate(runs):
        for statistic, column in (("norm", "norm"), ("effective rank", "effective_rank")):
            rows.append((statistic, a, a, seed_a, seed_a, whole[column][name]))
        for j, (seed_b, b, _) in enumerate(runs):
            if i < j and (seed_a == seed_b) != (a == b):
                rows += [
                    (statistic, a, b, seed_a, seed_b, values[i, j])
                    for statistic, values in of_pairs.items()
                ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _statistics_of_pairs(compared: Comparison) -> dict[str, Float[np.ndarray, "runs runs"]]:
    """Every statistic of two runs that `replicas_table` lists, of all pairs."""
    statistics = {"cosine": geometry.stacked_cosine(compared)[0]}
    for name, is_inside in middle_and_last(compared.modules.layer).items():
        cosine = geometry.stacked_cosine(compared, np.flatnonzero(is_inside))[0]
        statistics[f"by norm, {name}"] = np.sqrt(np.maximum(0, 1 - cosine**2))
    for side in _SIDES:
        angles = compared.angles[side]  # (modules, runs, runs, k), radians, ascending
        smallest, largest = np.median(angles[..., 0], axis=0), np.median(angles[..., -1], axis=0)
        statistics[f"smallest angle {side}"] = np.degrees(smallest)
        statistics[f"largest angle {side}"] = np.degrees(largest)
        statistics[f"first vector {side}"] = compared.first[side].mean(0)
    return statistics


def at_seeds(
    table: pd.DataFrame, statistic: str, a: str, b: str | None = None
) -> Float[np.ndarray, " seeds"]:
    """Values of a statistic of two methods, or of one (`b` = None), the main seed first."""
    rows = table[(table.statistic == statistic) & (table.seed_a == table.seed_b)]
    pair = {a, b or a}
    is_pair = [{x, y} == pair for x, y in zip(rows.run_a, rows.run_b, strict=True)]
    values: Float[np.ndarray, " seeds"] = rows[is_pair].value.to_numpy()
    return values


def between_seeds(
    table: pd.DataFrame, statistic: str, method: str
) -> Float[np.ndarray, " seed_pairs"]:
    """Values of a statistic between the replicas of one method."""
    is_method = (table.run_a == method) & (table.run_b == method)
    rows = table[(table.statistic == statistic) & is_method & (table.seed_a != table.seed_b)]
    values: Float[np.ndarray, " seed_pairs"] = rows.value.to_numpy()
    return values


def interval(values: ArrayLike) -> tuple[float, float, float]:
    """(mean, low, high): 95 % interval over seeds by Student's t, from values (seeds,).

    From values (seeds, problems), over both. The half-widths over seeds and over problems add as
    squares: seeds and problems are crossed, since each run answers all problems.
    """
    numbers = np.asarray(values, float)
    of_seeds = numbers if numbers.ndim == 1 else numbers.mean(1)
    count = len(of_seeds)
    half = student.ppf(0.975, count - 1) * of_seeds.std(ddof=1) / np.sqrt(count)
    if numbers.ndim == 2:
        half = np.hypot(half, 1.96 * numbers.mean(0).std(ddof=1) / np.sqrt(numbers.shape[1]))
    return float(of_seeds.mean()), float(of_seeds.mean() - half), float(of_seeds.mean() + half)


def side_by_side(
    table: pd.DataFrame, statistic: str, pairs: Iterable[tuple[str, str]], form: str = "{:.3f}"
) -> pd.DataFrame:
    """For the page, one row per pair of methods: the statistic over seeds and between replicas.

    The latter is that of the first method with its own replicas. Columns run_a, run_b, "over seeds"
    (mean and range), "same loss, another seed" (mean and range).
    """

    def text(values: Num[np.ndarray, " values"]) -> str:
        if not len(values):
            return "–"
        mean, low, high = map(form.format, (values.mean(), values.min(), values.max()))
        return f"{mean} ({low} to {high})"

    return pd.DataFrame(
        [
            {
                "run_a": a,
                "run_b": b,
                "over seeds": text(at_seeds(table, statistic, a, b)),
                "same loss, another seed": text(between_seeds(table, statistic, a)),
            }
            for a, b in pairs
        ]
    )
