"""Runs matched in rate, rows, norm or divergence: what they reached, and how alike they are.

Comes after `interventions`; the page on DPO at a matched setting shows what is computed here.
Nothing is stored here but answers and divergences, by those who compute them.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from adapter_geometry import geometry, updates
from adapter_geometry.adapters import load_update
from adapter_geometry.geometry import Comparison
from adapter_geometry.updates import Update
from helpers.analysis import interventions
from helpers.data import problems
from helpers.evaluation import answering, statistics
from helpers.models import loading
from helpers.profiles import Profile

Pair = tuple[str, str]

_MATCHED_RATES = (("dpo-matched", "sft"), ("sft-low", "dpo"), ("rft-low", "dpo"))
_MATCHED_ROWS = (("rows", "sft-pairs", "pairs"), ("chosen rows", "rft-chosen", "chosen"))


def settings(profile: Profile, folders: Mapping[str, Path]) -> pd.DataFrame:
    """Settings of trained runs, from their folders, by run.

    Columns: objective, learning_rate, steps, rows (of the table), passes over them.
    """
    rows = {}
    for name, folder in folders.items():
        run, about = profile.runs[name], json.loads((folder / "run.json").read_text())
        rows[name] = (run.objective, run.learning_rate, run.steps, about["rows"], about["passes"])
    columns = ["objective", "learning_rate", "steps", "rows", "passes"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("run")


def divergences(profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """Forward divergence of runs and interventions from their base, in nats per token, by run.

    Columns: kl with its bootstrap interval kl_low to kl_high.
    """
    rows = {}
    for name in names:
        texts = interventions.divergences(profile, name)
        rows[name] = statistics.bootstrap_ratio(texts.nats, texts.tokens)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kl", "kl_low", "kl_high"])


def records(profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """Greedy answers of runs, models and interventions to test problems, named in column run."""
    planned, answers = interventions.planned(profile), []
    for name in names:
        if name in planned:
            answered = interventions.records(profile, name)
        else:
            answered = answering.evaluate(profile, profile.runs.get(name, name))
            answered = answered[answered.split == "test"]
        answers.append(answered.assign(run=name))
    return pd.concat(answers)


def reached(
    about: pd.DataFrame,
    norms: Mapping[str, float],
    kl: pd.Series,
    scaled: Mapping[str, Pair],
    rows_of: Mapping[str, Collection[int]],
) -> pd.DataFrame:
    """How near each match came to its aim, as a ratio: one row per match.

    about: `settings`. kl: forward divergences, by run. scaled: {intervention: (run, the run whose
    norm or divergence it has)}. rows_of: {"pairs" and "chosen": the rows of the table}. Columns:
    match, condition, reached, "factor on the update" (of scaled updates only).
    """
    rate, rows = about.learning_rate, about.rows
    table = [
        {"match": "learning rate", "condition": f"{a}, {b}", "reached": rate[a] / rate[b]}
        for a, b in _MATCHED_RATES
    ]
    table += [
        {"match": match, "condition": f"{name}, dpo", "reached": rows[name] / len(rows_of[which])}
        for match, name, which in _MATCHED_ROWS
    ]
    for name, (run, other) in scaled.items():
        is_by_kl = name.endswith("kl")
        ratio = kl[name] / kl[other] if is_by_kl else norms[name] / norms[other]
        table.append(
            {
                "match": "divergence" if is_by_kl else "norm",
                "condition": name,
                "reached": ratio,
                "factor on the update": norms[name] / norms[run],
            }
        )
    return pd.DataFrame(table)


def likeness(
    compared: Comparison, nulls: Sequence[Comparison], pairs: Sequence[Pair]
) -> pd.DataFrame:
    """How alike pairs of updates are, with chance levels: one row per pair, by (run_a, run_b).

    nulls: `chance.compare_by_chance` of the same runs, first in the same order. Columns: cosine,
    chance_low, chance_high; "first left", mean overlap over modules of the first left vectors;
    "smallest angle", median over modules of the smallest left angle in degrees; of these two also
    ", chance": what unrelated updates stay within in 39 of 40 draws.
    """
    cosine, sd = geometry.stacked_cosine(compared)
    rows = []
    for pair in pairs:
        i, j = (compared.runs.index(name) for name in pair)
        angles = [
            np.degrees(np.median(one.angles["left"][:, i, j, 0])) for one in (compared, *nulls)
        ]
        overlaps = [one.first["left"][:, i, j].mean() for one in (compared, *nulls)]
        rows.append(
            {
                "cosine": cosine[i, j],
                "chance_low": -1.96 * sd[i, j],
                "chance_high": 1.96 * sd[i, j],
                "first left": overlaps[0],
                "first left, chance": np.quantile(overlaps[1:], 0.975),
                "smallest angle": angles[0],
                "smallest angle, chance": np.quantile(angles[1:], 0.025),
            }
        )
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(pairs, names=["run_a", "run_b"]))


def along_training(
    profile: Profile, folders: Mapping[str, Path], reference: Update
) -> pd.DataFrame:
    """Snapshots of runs against one finished update: one row per step, the finished run last.

    folders: of the runs, trained. Columns: run, step, norm, relative (percentage of the
    reference's norm), cosine with the reference, chance_low, chance_high. Steps at which the
    update is still zero are left out.
    """
    rows, length = [], updates.norm(reference)
    for name, folder in folders.items():
        run = profile.runs[name]
        paths = {step: folder / "snapshots" / f"step-{step}" for step in run.snapshots}
        for step, path in (paths | {run.steps: folder / "adapter"}).items():
            update = load_update(path)
            compared = geometry.compare({"reference": reference, "here": update})
            cosine, sd = geometry.stacked_cosine(compared)
            norm, width = updates.norm(update), 1.96 * sd[0, 1]
            rows.append((name, step, norm, 100 * norm / length, cosine[0, 1], -width, width))
    columns = ["run", "step", "norm", "relative", "cosine", "chance_low", "chance_high"]
    return pd.DataFrame(rows, columns=columns).dropna()


def forced_answers(profile: Profile, model: str, opening: str, count: int) -> pd.DataFrame:
    """Greedy answers of a model to the first test problems, each made to begin with `opening`."""
    chosen = problems.problem_sets(profile.problems)["test"][:count]
    return answering.answer(profile, loading.load_model(profile, model), chosen, opening=opening)
