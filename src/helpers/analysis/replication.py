"""Controls: the six methods trained again from other seeds, and what that says of a number of the main runs.

Comes after `geometry`. A *replica* of a method differs from the main run in its seed only, which draws both the initial adapter and
the order of the prompts.
"""

import numpy as np
import pandas as pd
from scipy.stats import t as student

from adapter_geometry import geometry
from adapter_geometry.adapters import load_update
from helpers.training import trainer

_SIDES = ("left", "right")


def replicas(profile):
    """{seed: {method: name of its run}}, the main runs first: the runs that differ from them in both seeds alike."""
    main = {method: profile.runs[method] for method in profile.main_runs}
    found = {main["sft"].seed: {method: method for method in main}}
    for name in profile.controls["seeds"].runs:
        run = profile.runs[name]
        found.setdefault(run.seed, {})[run.objective] = name
    return found


def thirds(layers):
    """The two groups of layers that the paper sets against each other, as masks of the modules' layers: the middle third and the last seventh."""
    count = layers.nunique()
    return {
        "middle": layers.between(count // 3, count - 1 - count // 3),
        "last": layers >= count - max(1, round(count / 7)),
    }


def replicas_table(profile):
    """The `replicas` table: every statistic of two methods at one seed, and of one method at two seeds.

    Columns statistic, run_a, run_b (methods), seed_a, seed_b, value. Of pairs: "cosine"; the orthogonal part "by norm, middle" and "by norm,
    last" (`thirds`); for the sides "left" and "right" the "smallest angle ..." and "largest angle ..." in degrees, medians over modules, and
    "first vector ...", means over modules. "norm" and "effective rank" are those of run_a, with run_b = run_a.
    """
    runs = [
        (seed, method, name)
        for seed, group in replicas(profile).items()
        for method, name in group.items()
    ]
    compared = geometry.compare(
        {
            name: load_update(trainer.train(profile, profile.runs[name]) / "adapter")
            for _, _, name in runs
        }
    )
    values = _values(compared)
    whole = geometry.updates_table(compared).query("layer == -1").set_index("run")
    rows = []
    for i, (seed_a, a, name) in enumerate(runs):
        for statistic, column in (("norm", "norm"), ("effective rank", "effective_rank")):
            rows.append((statistic, a, a, seed_a, seed_a, whole[column][name]))
        for j, (seed_b, b, _) in enumerate(runs):
            if i < j and (seed_a == seed_b) != (a == b):
                rows += [
                    (statistic, a, b, seed_a, seed_b, value[i, j])
                    for statistic, value in values.items()
                ]
    return pd.DataFrame(rows, columns=["statistic", "run_a", "run_b", "seed_a", "seed_b", "value"])


def _values(compared):
    """{statistic: (runs, runs)}."""
    found = {"cosine": geometry.stacked_cosine(compared)[0]}
    for name, chosen in thirds(compared.modules.layer).items():
        found[f"by norm, {name}"] = np.sqrt(
            np.maximum(0, 1 - geometry.stacked_cosine(compared, np.flatnonzero(chosen))[0] ** 2)
        )
    for side in _SIDES:
        found[f"smallest angle {side}"] = np.degrees(
            np.median(compared.angles[side][..., 0], axis=0)
        )
        found[f"largest angle {side}"] = np.degrees(
            np.median(compared.angles[side][..., -1], axis=0)
        )
        found[f"first vector {side}"] = compared.first[side].mean(0)
    return found


def at_seeds(table, statistic, a, b=None):
    """Values of a statistic of two methods (or of one, `b` = None) at each seed, the main run's first."""
    rows = table[(table.statistic == statistic) & (table.seed_a == table.seed_b)]
    pair = {a, b or a}
    return rows[
        [{x, y} == pair for x, y in zip(rows.run_a, rows.run_b, strict=True)]
    ].value.to_numpy()


def between_seeds(table, statistic, method):
    """Values of a statistic between the replicas of one method."""
    return table[
        (table.statistic == statistic)
        & (table.run_a == method)
        & (table.run_b == method)
        & (table.seed_a != table.seed_b)
    ].value.to_numpy()


def interval(values):
    """(mean, low, high): 95 % interval over seeds from values (seeds,), by Student's t; with (seeds, problems), over both.

    The half-widths over seeds and over problems add as squares: seeds and problems are crossed, since each run answers all problems.
    """
    values = np.asarray(values, float)
    of_seeds = values if values.ndim == 1 else values.mean(1)
    count = len(of_seeds)
    half = student.ppf(0.975, count - 1) * of_seeds.std(ddof=1) / np.sqrt(count)
    if values.ndim == 2:
        half = np.hypot(half, 1.96 * values.mean(0).std(ddof=1) / np.sqrt(values.shape[1]))
    return float(of_seeds.mean()), float(of_seeds.mean() - half), float(of_seeds.mean() + half)


def side_by_side(table, statistic, pairs, form="{:.3f}"):
    """For the page, one row a pair of methods: the statistic over seeds, and that of the first method with its own replicas.

    Columns run_a, run_b, "over seeds" (mean and range), "same loss, another seed" (mean and range).
    """

    def text(values):
        return (
            "–"
            if not len(values)
            else f"{form.format(values.mean())} ({form.format(values.min())} to {form.format(values.max())})"
        )

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
