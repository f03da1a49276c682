"""Interventions: edited updates put into the base, and how the base behaves with them.

After `edits`, which builds an update from others, and `evaluation`; before the notebooks on matched
DPO, on-policy training and interventions. `planned` names the interventions of the book. What is
measured with one is stored under `results/<profile>/interventions/`, or shipped, as for a trained
run.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from adapter_geometry import storage, updates
from adapter_geometry.language_models import CausalModel
from adapter_geometry.updates import Adapters, Update
from helpers import store
from helpers.analysis import base_weights, edits
from helpers.data import problems
from helpers.evaluation import answering, likelihood, statistics
from helpers.models import loading
from helpers.profiles import Profile
from helpers.training import trainer

TOLERANCE = 0.02  # relative, of a KL that was asked for
RECIPE = 1  # raised whenever an intervention's numbers change, as `trainer.RECIPE`
SCALES: dict[str, tuple[float, ...]] = {  # of a run's update
    "sft": (0.1, 0.2, 0.35, 0.5, 0.75, 1.25, 1.5, 2),
    "offline-grpo": (0.1, 0.2, 0.35, 0.5, 0.75, 1.25, 1.5, 2),
    "dpo": (2, 5, 10),
}
DENSITY = 0.5  # share of entries that TIES and DARE keep
_LARGEST = 64.0  # scale at which the search for a KL gives up
_HALVINGS = 20
_Z = float(norm.ppf((1 + statistics.LEVEL) / 2))
_WORDS = {
    "offline-grpo": "Offline GRPO",
    "dpo-matched": "matched DPO",
    **{word: word.upper() for word in ("sft", "rft", "dft", "rift", "dpo", "kl", "ties", "dare")},
}


# --- the interventions of the book ----------------------------------------------------------------


@dataclass(frozen=True)
class Intervention:
    """An update to be built: `build` makes it of {run: update} for the `runs`.

    All of these start from the model `base`.
    """

    label: str
    base: str
    runs: tuple[str, ...]
    build: Callable[[Adapters], Update]


def planned(profile: Profile) -> dict[str, Intervention]:
    """All interventions of the book whose runs the profile has, by name."""
    interventions: dict[str, Intervention] = {}

    def plan(
        name: str, runs: Sequence[str], function: Callable[..., Update], **options: Any
    ) -> None:
        if set(runs) <= set(profile.runs):
            interventions[name] = Intervention(
                _label(name),
                profile.runs[runs[0]].base,
                tuple(dict.fromkeys(runs)),
                lambda adapters: function(*(adapters[run] for run in runs), **options),
            )

    def at_kl_of(name: str, target: str) -> Callable[..., Update]:
        """Scales its first update to the KL of the run `target`; the scale is stored by name."""
        return lambda update, *_: _at_kl(profile, name, update, target)

    def as_long_as(part: Callable[[Update, Update], Update]) -> Callable[[Update, Update], Update]:
        """Scales an update to the norm of its part along a reference, or without it."""
        return lambda update, reference: edits.at_norm(update, part(update, reference))

    def merged(*parts: Update, **options: Any) -> Update:
        return edits.merged_by_peft(*parts, base=loading.load_model(profile), **options)

    for run, factors in SCALES.items():
        for t in factors:
            plan(f"{run} times {t:g}", [run], edits.scaled, t=t)
    for run, other in (
        ("dpo", "sft"),
        ("dpo", "rft"),
        ("dpo-matched", "sft"),
        ("sft", "dpo"),
        ("rft", "dpo"),
    ):
        plan(f"{run} at {other}'s norm", [run, other], edits.at_norm)
    for run, other in (("sft", "dpo"), ("rft", "dpo"), ("sft", "dpo-matched")):
        name = f"{run} at {other}'s kl"
        plan(name, [run, other], at_kl_of(name, other))
    for run in ("offline-grpo", "dft", "dpo"):
        plan(f"{run} along sft", [run, "sft"], edits.along)
        plan(f"{run} without sft", [run, "sft"], edits.without)
    for run in ("offline-grpo", "dft"):
        plan(f"{run} as short as its part along sft", [run, "sft"], as_long_as(edits.along))
        plan(f"{run} as short as its part without sft", [run, "sft"], as_long_as(edits.without))
    for run in ("sft", "offline-grpo"):
        for half in ("early", "late"):
            plan(f"{run} {half} layers", [run], edits.of_layers, half=half)
    for other in ("offline-grpo", "dpo"):
        plan(f"left of sft, right of {other}", ["sft", other, "sft"], edits.swapped)
        plan(f"left of {other}, right of sft", [other, "sft", "sft"], edits.swapped)
    plan("sft rotated left", ["sft"], edits.rotated, side="left")
    plan("sft rotated right", ["sft"], edits.rotated, side="right")
    plan("random like sft", ["sft"], edits.random_like)
    plan("random like sft, second draw", ["sft"], edits.random_like, seed=1)
    name = "random like sft at sft's kl"
    at_kl_of_sft = at_kl_of(name, "sft")
    plan(name, ["sft"], lambda update: at_kl_of_sft(edits.random_like(update)))
    main_runs = list(profile.main_runs)
    for whom, runs, exact, merge, weight in (
        ("sft and dpo", ["sft", "dpo"], "sum", edits.sum_of, 1.0),
        ("the six", main_runs, "mean", edits.mean_of, 1 / len(main_runs)),
    ):
        plan(f"{exact} of {whom}", runs, merge)
        mix = {"combination": "linear", "weight": weight}
        ties = {"combination": "ties_svd", "density": DENSITY}
        dare = {"combination": "dare_linear_svd", "density": DENSITY, "weight": weight}
        plan(f"linear mix of {whom}", runs, merged, **mix)
        plan(f"ties of {whom}", runs, merged, **ties)
        plan(f"dare of {whom}", runs, merged, **dare)
    return interventions


def _label(name: str) -> str:
    """An intervention's name with the names of methods as they are written in text."""
    return re.sub(
        "|".join(rf"\b{word}\b" for word in _WORDS), lambda word: _WORDS[word.group()], name
    )


def update_of(profile: Profile, name: str) -> Update:
    """The update of an intervention or a run by its name; a run without an adapter is trained.

    Raises ValueError naming where to look for a name that is neither.
    """
    if name in profile.runs:
        return trainer.update_of(profile, name)
    intervention = _intervention(profile, name)
    return intervention.build({run: update_of(profile, run) for run in intervention.runs})


def _intervention(profile: Profile, name: str) -> Intervention:
    """The intervention called `name`; ValueError as for `update_of`."""
    plan = planned(profile)
    if name not in plan:
        raise ValueError(
            f"{name!r} is neither a run of profile {profile.name!r} nor one of its interventions: "
            f"`interventions.planned` lists those, such as {min(plan)!r}"
        )
    return plan[name]


# --- what is measured -----------------------------------------------------------------------------


def records(profile: Profile, name: str) -> pd.DataFrame:
    """Greedy answers to the first `answering.CONTROL_PROBLEMS` test problems, one row each.

    Of a run or model, the same rows of its own evaluation. Columns: problem_id, split, correct,
    status, truncated, tokens. Stored as interventions/<name>.parquet. Raises ValueError as
    `update_of`.
    """
    columns = ["problem_id", "split", "correct", "status", "truncated", "tokens"]
    if name in profile.runs or name in profile.models:
        evaluated = answering.evaluate(profile, profile.runs.get(name, name))
        tested = evaluated[evaluated.split == "test"].head(answering.CONTROL_PROBLEMS)
        return tested[columns].reset_index(drop=True)

    def compute() -> pd.DataFrame:
        test = problems.problem_sets(profile.problems)["test"][: answering.CONTROL_PROBLEMS]
        return answering.answer(profile, _model_with(profile, name), test, name=name)[columns]

    return _stored(profile, name, "", compute)


def divergences(profile: Profile, name: str) -> pd.DataFrame:
    """KL(base || policy) along the base's stored samples, one row per validation problem.

    Columns: problem_id, nats (summed over the sample), tokens; zero for the base itself. The
    "forward" direction of `likelihood.divergence`, from which the rows of a run come. Raises
    ValueError as `update_of`.
    """
    if name in profile.runs:
        measured = likelihood.divergence(profile, profile.runs[name])
        forward = measured[measured.direction == "forward"]
        return forward[["problem_id", "nats", "tokens"]].reset_index(drop=True)
    if name in profile.models:
        return likelihood.samples(profile, name)[["problem_id", "tokens"]].assign(nats=0.0)

    def compute() -> pd.DataFrame:
        base = _intervention(profile, name).base
        return _forward(
            profile, base, loading.load_model(profile, base), _model_with(profile, name)
        )

    return _stored(profile, name, "-divergence", compute)


def table(profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """One row per intervention, run or model by name: what it is, its length, and what it does.

    Intervals are those of 95 %. Columns: run (the first that it is built of), part (the name),
    label, norm, n, accuracy, low, high, kl, kl_low, kl_high (nats per token), tokens (mean length
    of an answer).
    """
    plan, rows = planned(profile), []
    needed = {run for name in names for run in (plan[name].runs if name in plan else [name])}
    adapters = {run: update_of(profile, run) for run in sorted(needed - set(profile.models))}
    for name in names:
        update = plan[name].build(adapters) if name in plan else adapters.get(name, {})
        answers, divergence = records(profile, name), divergences(profile, name)
        low, high = statistics.wilson(answers.correct.sum(), len(answers))
        kl, kl_low, kl_high = statistics.bootstrap_ratio(divergence.nats, divergence.tokens)
        rows.append(
            {
                "run": plan[name].runs[0] if name in plan else name,
                "part": name,
                "label": _label(name),
                "norm": float(updates.norm(update)),
                "n": len(answers),
                "accuracy": answers.correct.mean(),
                "low": low,
                "high": high,
                "kl": kl,
                "kl_low": kl_low,
                "kl_high": kl_high,
                "tokens": answers.tokens.mean(),
            }
        )
    return pd.DataFrame(rows)


def compared(profile: Profile, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired tests on the same problems, Holm-corrected over the given pairs (part, against).

    Columns: part, against, difference (of accuracies, the first minus the second), low, high, p
    (exact McNemar), detectable (with 80 % power), p_holm.
    """
    answers = pd.concat(
        [
            records(profile, name).assign(run=name)
            for name in dict.fromkeys(name for pair in pairs for name in pair)
        ]
    )
    tests = statistics.mcnemar_table(answers, pairs)
    return tests.rename(columns={"run_a": "part", "run_b": "against"})[
        ["part", "against", "difference", "low", "high", "p", "detectable", "p_holm"]
    ]


def above_scaling(profile: Profile, names: Sequence[str], run: str) -> pd.DataFrame:
    """How much more the given interventions solve than plain scaling of a run at the same KL does.

    Compared problem by problem, at the same forward KL. The curve goes from the base through t dW
    for the `SCALES` of the run and through the run itself, straight in sqrt(KL) between neighbours,
    since KL grows with the square of a short update. Its own uncertainty in KL is not part of the
    interval. Columns: part, kl, on_curve (share solved
    there), difference, low, high, p (paired normal), p_holm (over the names); NaN for what lies
    beyond the curve's end.
    """
    curve = ["base", *(f"{run} times {t:g}" for t in SCALES[run]), run]
    root_kl = {name: max(0.0, _kl(divergences(profile, name))) ** 0.5 for name in (*curve, *names)}
    curve = sorted(curve, key=lambda point: root_kl[point])
    at_curve = [root_kl[point] for point in curve]
    solved = pd.DataFrame(
        {name: records(profile, name).set_index("problem_id").correct for name in (*curve, *names)}
    ).astype(float)
    rows = []
    for name in names:
        # The points of the curve, as weights that interpolate between the two next to the name:
        # problem by problem, so that the difference below is paired.
        weights = [
            np.interp(root_kl[name], at_curve, unit, right=np.nan) for unit in np.eye(len(curve))
        ]
        on_curve = solved[curve].to_numpy() @ weights
        excess = solved[name].to_numpy() - on_curve
        error = excess.std(ddof=1) / len(excess) ** 0.5
        p = 2 * norm.sf(abs(excess.mean()) / error) if error else float(excess.mean() == 0)
        rows.append(
            {
                "part": name,
                "kl": root_kl[name] ** 2,
                "on_curve": on_curve.mean(),
                "difference": excess.mean(),
                "low": excess.mean() - _Z * error,
                "high": excess.mean() + _Z * error,
                "p": p,
            }
        )
    comparison = pd.DataFrame(rows)
    is_on = comparison.p.notna()
    p_holm = statistics.holm(comparison.p[is_on]) if is_on.any() else np.nan
    comparison.loc[is_on, "p_holm"] = p_holm
    return comparison


def _kl(divergence: pd.DataFrame) -> float:
    """Nats per token of a table of `divergences`."""
    return float(divergence.nats.sum() / divergence.tokens.sum())


# --- an update at a given divergence --------------------------------------------------------------


def _at_kl(profile: Profile, name: str, update: Update, target: str) -> Update:
    """The update scaled to be as far from the base as the run `target`; the scale is stored.

    By forward KL per token, within `TOLERANCE`.
    """

    def compute() -> pd.DataFrame:
        aim = _kl(divergences(profile, target))
        base_name = profile.runs[target].base
        base, policy = (base_weights.float32_model(profile, base_name) for _ in range(2))
        weights = updates.weights_of(policy, update)

        def kl_at(t: float) -> float:
            updates.put(policy, weights, edits.scaled(update, t))
            return _kl(_forward(profile, base_name, base, policy))

        return pd.DataFrame([bisected(kl_at, aim)])

    return edits.scaled(update, float(_stored(profile, name, "-scale", compute).scale[0]))


def bisected(function: Callable[[float], float], aim: float) -> dict[str, float]:
    """The scale t > 0 where an increasing function of t, zero at 0, is within `TOLERANCE` of `aim`.

    Returns {"scale", "reached", "aim"}, `reached` being the function's value at the scale. Raises
    ValueError if it stays below the aim up to t = 64.

    >>> round(bisected(lambda t: t ** 2, 9.0)["scale"], 1)
    3.0
    """
    # First double the upper end until the aim lies between the ends, then halve what is between.
    low, high = 0.0, 1.0
    while function(high) < aim:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise ValueError(
                f"even {_LARGEST:g} times the update stays below {aim:.3g} nats per token: choose "
                "a nearer target"
            )
    for _ in range(_HALVINGS):
        scale = (low + high) / 2
        reached = function(scale)
        if abs(reached - aim) <= TOLERANCE * aim:
            break
        low, high = (scale, high) if reached < aim else (low, scale)
    return {"scale": scale, "reached": reached, "aim": aim}


def _forward(
    profile: Profile, base_name: str, base: CausalModel, policy: CausalModel
) -> pd.DataFrame:
    """KL(base || policy) along the base's samples: problem_id, nats, tokens."""
    samples = likelihood.samples(profile, base_name)
    nats = likelihood.summed_divergence(base, policy, samples)
    return pd.DataFrame({"problem_id": samples.problem_id, "nats": nats, "tokens": samples.tokens})


def _model_with(profile: Profile, name: str) -> CausalModel:
    """The base with an intervention's update written into its weights."""
    update = update_of(profile, name)
    model = base_weights.float32_model(profile, _intervention(profile, name).base)
    updates.put(model, updates.weights_of(model, update), update)
    return model


def _stored(
    profile: Profile, name: str, part: str, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """The stored table of an intervention, or `compute()` if what determines it has changed."""
    torch.set_num_threads(profile.evaluation.threads)
    runs = {
        run: trainer.identity(profile, profile.runs[run])
        for run in _intervention(profile, name).runs
    }
    identity = storage.digest(
        {
            "name": name,
            "runs": runs,
            "part": part,
            "evaluation": profile.evaluation.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "count": answering.CONTROL_PROBLEMS,
            "recipe": [RECIPE, answering.RECIPE],
        }
    )
    file_name = re.sub(r"[^a-z0-9]+", "-", name) + part
    code = store.code_digest("helpers.analysis.interventions")
    return store.load_or_compute_record(
        profile.name, "interventions", file_name, identity, code, compute
    )
