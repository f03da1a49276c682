"""Interventions: updates that no run trained, built from those that some did, and how the base behaves with them.

Comes after `geometry` and `statistics`. A part, a swap, a merge or a change of length is a function from updates to an update; `planned` names
those of the book. What is measured with one is stored under `results/<profile>/interventions/`, or shipped, as for a trained run.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from scipy.stats import norm

from adapter_geometry import storage, updates
from adapter_geometry.adapters import export_adapter, load_update
from adapter_geometry.chance import matched_null
from adapter_geometry.updates import Factors
from helpers import store
from helpers.data import problems
from helpers.evaluation import answering, likelihood, statistics
from helpers.models import loading
from helpers.training import trainer

TOLERANCE = 0.02  # relative, of a KL that was asked for
RECIPE = 1  # raised whenever an intervention's numbers change, as `training.RECIPE`
SCALES = {
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


# --- updates from updates ------------------------------------------------------------------------------------------


def scaled(update, t):
    """t dW."""
    return updates.combine([update], [t])


def at_norm(update, other):
    """The update stretched or shrunk to the Frobenius norm of another, all modules stacked."""
    return scaled(update, updates.norm(other) / updates.norm(update))


def along(update, reference):
    """c R, the part of an update along a reference, with one coefficient c = <dW, R> / <R, R> for all modules together."""
    return scaled(reference, _coefficient(update, reference))


def without(update, reference):
    """dW - c R, what is left when the part `along` the reference is taken away: orthogonal to R as a whole, not in each module."""
    return updates.combine([update, reference], [1.0, -_coefficient(update, reference)])


def _coefficient(update, reference):
    return (
        sum(updates.inner(update[module], reference[module]) for module in update)
        / updates.norm(reference) ** 2
    )


def of_layers(update, half):
    """The update in the `half` "early" or "late" of the layers, zero in the other; the middle one of an odd number is late."""
    layers = sorted({updates.layer_and_projection(module)[0] for module in update})
    kept = layers[: len(layers) // 2] if half == "early" else layers[len(layers) // 2 :]
    return {
        module: Factors(
            factors.B,
            factors.A,
            factors.scale * (updates.layer_and_projection(module)[0] in kept),
            factors.is_transposed,
        )
        for module, factors in update.items()
    }


def swapped(left, right, lengths):
    """sum_i sigma_i u_i v_i' in each module: left singular vectors of one update, right ones of another, singular values of a third.

    The i-th vectors are paired by the order of the singular values. A pair (u_i, v_i) is defined up to a common sign only, and so the
    two updates' pairs are first turned to agree: <u_i, u_i'> + <v_i, v_i'> >= 0. There are as many as the smallest of the ranks.
    """
    rank = min(
        factors.A.shape[0] for update in (left, right, lengths) for factors in update.values()
    )
    parts = [updates.compress(update, rank)[0] for update in (left, right, lengths)]
    found = {}
    for module, first in parts[0].items():
        (U, V), (U_other, V_other) = (
            (
                torch.nn.functional.normalize(part[module].B, dim=0),
                torch.nn.functional.normalize(part[module].A, dim=1),
            )
            for part in parts[:2]
        )
        agree = (U * U_other).sum(0) + (V * V_other).sum(1)
        sigma = parts[2][module].B.square().sum(0)
        found[module] = Factors(
            U * sigma * torch.where(agree < 0, -1.0, 1.0), V_other, 1.0, first.is_transposed
        )
    return found


def rotated(update, side, seed=0):
    """The update with its "left" (output) or "right" (input) singular vectors turned by a Haar rotation of each module's own; all else is kept."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module, factors in update.items():
        d = factors.B.shape[0] if side == "left" else factors.A.shape[1]
        Q, R = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
        Q = Q * R.diagonal().sign()
        B, A = (
            (Q @ factors.B.double(), factors.A)
            if side == "left"
            else (factors.B, factors.A.double() @ Q)
        )
        found[module] = Factors(B, A, factors.scale, factors.is_transposed)
    return found


def random_like(update, seed=0):
    """A draw of `geometry.matched_null`, which keeps A and the singular values of B, stretched to the update's norm module by module."""
    drawn = matched_null({"drawn": update}, seed)["drawn"]
    return {
        module: at_norm({module: factors}, {module: update[module]})[module]
        for module, factors in drawn.items()
    }


def mean_of(*parts):
    """(dW_1 + ... + dW_n) / n, exactly."""
    return scaled(sum_of(*parts), 1 / len(parts))


def sum_of(*parts):
    """dW_1 + ... + dW_n, exactly."""
    return updates.combine(parts, [1.0] * len(parts))


def merged_by_peft(*parts, base, combination, weight=1.0, density=None, seed=0):
    """What PEFT's `add_weighted_adapter` makes of adapters on the model `base`, each with the same weight; `base` is not fit for other use afterwards.

    combination: its `combination_type`. Those that end in `_svd` work on the products dW and are given as many ranks as the smallest
    side of any module has, so that nothing is cut off at the end; the others work on the factors B and A separately.
    """
    names = [f"part-{number}" for number in range(len(parts))]
    rank = min(min(factors.B.shape[0], factors.A.shape[1]) for factors in parts[0].values())
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        for name, part in zip(names, parts, strict=True):
            export_adapter(part, Path(folder) / name)
        model = PeftModel.from_pretrained(base, Path(folder) / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(Path(folder) / name, adapter_name=name)
        torch.manual_seed(seed)
        model.add_weighted_adapter(
            names, [weight] * len(parts), "merged", combination, svd_rank=rank, density=density
        )
    layers = {module: model.base_model.model.get_submodule(module) for module in parts[0]}
    return {
        module: Factors(
            layer.lora_B["merged"].weight.detach().cpu(),
            layer.lora_A["merged"].weight.detach().cpu(),
            layer.scaling["merged"],
            parts[0][module].is_transposed,
        )
        for module, layer in layers.items()
    }


# --- the interventions of the book ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Intervention:
    """An update to be built: `build` makes it of {run: update} for the `runs`, all of which start from the model `base`."""

    label: str
    base: str
    runs: tuple
    build: Callable


def planned(profile):
    """{name: Intervention}, all those of the book whose runs the profile has."""
    found = {}

    def plan(name, runs, function, **options):
        if set(runs) <= set(profile.runs):
            found[name] = Intervention(
                _label(name),
                profile.runs[runs[0]].base,
                tuple(dict.fromkeys(runs)),
                lambda adapters: function(*(adapters[run] for run in runs), **options),
            )

    for run, factors in SCALES.items():
        for t in factors:
            plan(f"{run} times {t:g}", [run], scaled, t=t)
    for run, other in (
        ("dpo", "sft"),
        ("dpo", "rft"),
        ("dpo-matched", "sft"),
        ("sft", "dpo"),
        ("rft", "dpo"),
    ):
        plan(f"{run} at {other}'s norm", [run, other], at_norm)
    for run, other in (("sft", "dpo"), ("rft", "dpo"), ("sft", "dpo-matched")):
        plan(
            f"{run} at {other}'s kl",
            [run, other],
            lambda update, _, run=run, other=other: _at_kl(
                profile, f"{run} at {other}'s kl", update, other
            ),
        )
    for run in ("offline-grpo", "dft", "dpo"):
        plan(f"{run} along sft", [run, "sft"], along)
        plan(f"{run} without sft", [run, "sft"], without)
    for run in ("offline-grpo", "dft"):
        plan(
            f"{run} as short as its part along sft",
            [run, "sft"],
            lambda update, reference: at_norm(update, along(update, reference)),
        )
        plan(
            f"{run} as short as its part without sft",
            [run, "sft"],
            lambda update, reference: at_norm(update, without(update, reference)),
        )
    for run in ("sft", "offline-grpo"):
        for half in ("early", "late"):
            plan(f"{run} {half} layers", [run], of_layers, half=half)
    for other in ("offline-grpo", "dpo"):
        plan(f"left of sft, right of {other}", ["sft", other, "sft"], swapped)
        plan(f"left of {other}, right of sft", [other, "sft", "sft"], swapped)
    plan("sft turned left", ["sft"], rotated, side="left")
    plan("sft turned right", ["sft"], rotated, side="right")
    plan("random like sft", ["sft"], random_like)
    plan("random like sft, second draw", ["sft"], random_like, seed=1)
    plan(
        "random like sft at sft's kl",
        ["sft"],
        lambda update: _at_kl(profile, "random like sft at sft's kl", random_like(update), "sft"),
    )
    for whom, runs, exact, weight in (
        ("sft and dpo", ["sft", "dpo"], ("sum", sum_of), 1.0),
        ("the six", list(profile.main_runs), ("mean", mean_of), 1 / len(profile.main_runs)),
    ):
        plan(f"{exact[0]} of {whom}", runs, exact[1])
        for kind, options in (
            ("linear mix", {"combination": "linear", "weight": weight}),
            ("ties", {"combination": "ties_svd", "density": DENSITY}),
            ("dare", {"combination": "dare_linear_svd", "density": DENSITY, "weight": weight}),
        ):
            plan(
                f"{kind} of {whom}",
                runs,
                lambda *parts, **how: merged_by_peft(
                    *parts, base=loading.load_model(profile), **how
                ),
                **options,
            )
    return found


def _label(name):
    return re.sub(
        "|".join(rf"\b{word}\b" for word in _WORDS), lambda word: _WORDS[word.group()], name
    )


def update_of(profile, name):
    """{module: Factors} of an intervention or a run by its name. Raises ValueError naming where to look for a name that is neither."""
    if name in profile.runs:
        return load_update(trainer.train(profile, profile.runs[name]) / "adapter")
    chosen = _intervention(profile, name)
    return chosen.build({run: update_of(profile, run) for run in chosen.runs})


def _intervention(profile, name):
    plan = planned(profile)
    if name not in plan:
        raise ValueError(
            f"{name!r} is neither a run of profile {profile.name!r} nor one of its interventions: `interventions.planned` lists those, "
            f"such as {min(plan)!r}"
        )
    return plan[name]


# --- what is measured ----------------------------------------------------------------------------------------------


def records(profile, name):
    """Greedy answers to the first `evaluation.CONTROL_PROBLEMS` test problems, one row each; of a run or model, the same rows of its own evaluation.

    Columns: problem_id, split, correct, status, truncated, tokens. Stored as interventions/<name>.parquet.
    """
    columns = ["problem_id", "split", "correct", "status", "truncated", "tokens"]
    if name in profile.runs or name in profile.models:
        answered = answering.evaluate(profile, profile.runs.get(name, name))
        return (
            answered[answered.split == "test"]
            .head(answering.CONTROL_PROBLEMS)[columns]
            .reset_index(drop=True)
        )

    def compute():
        chosen = problems.problem_sets(profile.problems)["test"][: answering.CONTROL_PROBLEMS]
        return answering.answer(profile, _model_with(profile, name), chosen, name=name)[columns]

    return _stored(profile, name, "", compute)


def divergences(profile, name):
    """KL(base || policy), summed nats along the base's stored samples, one row a validation problem: problem_id, nats, tokens; zero for the base itself.

    The "forward" direction of `evaluation.divergence`, from which the rows of a run come.
    """
    if name in profile.runs:
        measured = likelihood.divergence(profile, profile.runs[name])
        return measured[measured.direction == "forward"][
            ["problem_id", "nats", "tokens"]
        ].reset_index(drop=True)
    if name in profile.models:
        return likelihood.samples(profile, name)[["problem_id", "tokens"]].assign(nats=0.0)

    def compute():
        base = _intervention(profile, name).base
        return _forward(
            profile, base, loading.load_model(profile, base), _model_with(profile, name)
        )

    return _stored(profile, name, "-divergence", compute)


def table(profile, names):
    """One row an intervention, run or model by name: what it is, its length, and what it does, with 95 % intervals.

    Columns: run (the first that it is built of), part (the name), label, norm, n, accuracy, low, high, kl, kl_low, kl_high (nats a token), tokens
    (mean length of an answer).
    """
    plan, rows = planned(profile), []
    needed = {run for name in names for run in (plan[name].runs if name in plan else [name])} - set(
        profile.models
    )
    adapters = {run: update_of(profile, run) for run in sorted(needed)}
    for name in names:
        update = plan[name].build(adapters) if name in plan else adapters.get(name, {})
        answered, apart = records(profile, name), divergences(profile, name)
        low, high = statistics.wilson(answered.correct.sum(), len(answered))
        kl, kl_low, kl_high = statistics.bootstrap_ratio(apart.nats, apart.tokens)
        rows.append(
            {
                "run": plan[name].runs[0] if name in plan else name,
                "part": name,
                "label": _label(name),
                "norm": float(updates.norm(update)),
                "n": len(answered),
                "accuracy": answered.correct.mean(),
                "low": low,
                "high": high,
                "kl": kl,
                "kl_low": kl_low,
                "kl_high": kl_high,
                "tokens": answered.tokens.mean(),
            }
        )
    return pd.DataFrame(rows)


def compared(profile, pairs):
    """Paired tests on the same problems, Holm-corrected over the given pairs (part, against) of names.

    Columns: part, against, difference (of accuracies, the first minus the second), low, high, p (exact McNemar), detectable (with 80 % power), p_holm.
    """
    answered = pd.concat(
        [
            records(profile, name).assign(run=name)
            for name in dict.fromkeys(name for pair in pairs for name in pair)
        ]
    )
    found = statistics.mcnemar_table(answered, pairs).rename(
        columns={"run_a": "part", "run_b": "against"}
    )
    return found[["part", "against", "difference", "low", "high", "p", "detectable", "p_holm"]]


def above_scaling(profile, names, run):
    """How much more the given interventions solve than plain scaling of a run does at the same forward KL, problem by problem.

    The curve goes from the base through t dW for the `SCALES` of the run and through the run itself, straight in sqrt(KL) between neighbours,
    since KL grows with the square of a short update. Its own uncertainty in KL is not part of the interval. Columns: part, kl, on_curve (share
    solved there), difference, low, high, p (paired normal), p_holm (over the names); NaN for what lies beyond the curve's end.
    """
    points = ["base", *(f"{run} times {t:g}" for t in SCALES[run]), run]
    places = {
        name: max(0.0, apart.nats.sum() / apart.tokens.sum()) ** 0.5
        for name in (*points, *names)
        for apart in [divergences(profile, name)]
    }
    points = sorted(points, key=places.get)
    solved = pd.DataFrame(
        {name: records(profile, name).set_index("problem_id").correct for name in (*points, *names)}
    ).astype(float)
    rows = []
    for name in names:
        weights = [
            np.interp(places[name], [places[point] for point in points], one, right=np.nan)
            for one in np.eye(len(points))
        ]
        on_curve = solved[points].to_numpy() @ weights
        excess = solved[name].to_numpy() - on_curve
        error = excess.std(ddof=1) / len(excess) ** 0.5
        p = 2 * norm.sf(abs(excess.mean()) / error) if error else float(excess.mean() == 0)
        rows.append(
            {
                "part": name,
                "kl": places[name] ** 2,
                "on_curve": on_curve.mean(),
                "difference": excess.mean(),
                "low": excess.mean() - _Z * error,
                "high": excess.mean() + _Z * error,
                "p": p,
            }
        )
    found = pd.DataFrame(rows)
    is_on = found.p.notna()
    found.loc[is_on, "p_holm"] = statistics.holm(found.p[is_on]) if is_on.any() else np.nan
    return found


def _at_kl(profile, name, update, target):
    """The update scaled to be as far from the base, by forward KL a token, as the run `target`, within `TOLERANCE`; the scale is stored."""

    def compute():
        aim = divergences(profile, target)
        base_name = profile.runs[target].base
        base, policy = (loading.load_model(profile, base_name).float() for _ in range(2))
        weights = updates.weights_of(policy, update)

        def reached(t):
            updates.put(policy, weights, scaled(update, t))
            apart = _forward(profile, base_name, base, policy)
            return apart.nats.sum() / apart.tokens.sum()

        return pd.DataFrame([bisected(reached, aim.nats.sum() / aim.tokens.sum())])

    return scaled(update, float(_stored(profile, name, "-scale", compute).scale[0]))


def bisected(reached, aim):
    """{"scale", "reached", "aim"}: the scale t > 0 where an increasing function `reached(t)`, zero at 0, comes within `TOLERANCE` of `aim`.

    Raises ValueError if it stays below the aim up to t = 64.

    >>> round(bisected(lambda t: t ** 2, 9.0)["scale"], 1)
    3.0
    """
    low, high = 0.0, 1.0
    while reached(high) < aim:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise ValueError(
                f"even {_LARGEST:g} times the update stays below {aim:.3g} nats a token: choose a nearer target"
            )
    for _ in range(_HALVINGS):
        scale = (low + high) / 2
        found = reached(scale)
        if abs(found - aim) <= TOLERANCE * aim:
            break
        low, high = (scale, high) if found < aim else (low, scale)
    return {"scale": scale, "reached": found, "aim": aim}


def _forward(profile, base_name, base, policy):
    written = likelihood.samples(profile, base_name)
    return pd.DataFrame(
        {
            "problem_id": written.problem_id,
            "nats": likelihood.summed_divergence(base, policy, written),
            "tokens": written.tokens,
        }
    )


def _model_with(profile, name):
    """The base with an intervention's update written into its weights."""
    update = update_of(profile, name)
    model = loading.load_model(profile, _intervention(profile, name).base).float()
    updates.put(model, updates.weights_of(model, update), update)
    return model


def _stored(profile, name, part, compute):
    torch.set_num_threads(profile.evaluation.threads)
    made = {
        run: trainer.identity(profile, profile.runs[run])
        for run in _intervention(profile, name).runs
    }
    identity = storage.digest(
        {
            "name": name,
            "runs": made,
            "part": part,
            "evaluation": profile.evaluation.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "count": answering.CONTROL_PROBLEMS,
            "recipe": RECIPE,
        }
    )
    file_name = re.sub(r"[^a-z0-9]+", "-", name) + part
    return store.record(
        profile.name,
        "interventions",
        file_name,
        identity,
        store.code_digest("helpers.analysis.interventions"),
        compute,
    )
