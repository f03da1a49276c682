"""Tables that the page on mode connectivity shows.

Comes after `connectivity`, whose losses and answers it summarises, and `replication`. Nothing is
stored here; what trains or runs a model says so.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float

from adapter_geometry import mode_connectivity, updates
from adapter_geometry.updates import Update
from helpers.analysis import base_weights, connectivity, replication
from helpers.data.problem import Problem
from helpers.evaluation import answering, statistics
from helpers.models import loading, logprobs
from helpers.profiles import Profile
from helpers.training import trainer

Ends = tuple[str, str]  # the two runs of a path

_POINTS = 7  # of a path between runs of other seeds


def shape(loss: Float[np.ndarray, " points"]) -> str:
    """Whether a curve is monotone, and if not, whether it rises above both of its ends."""
    steps = np.diff(loss)
    if (steps >= 0).all() or (steps <= 0).all():
        return "monotone"
    return "below the worse end" if loss.max() <= max(loss[0], loss[-1]) else "above both ends"


def bare_answer_parts(profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """Loss of the bare answers of the held-out texts, part by part: one row per model.

    The last row, "format only", is a model that opens the box with certainty and gives the ten
    digits and the closing brace the same probability each. Columns: run; opening, digits and
    closing, mean nats per text; "nats per token" of all three.
    """
    texts = answering.held_out(profile, profile.connectivity.texts)
    tokenizer = loading.load_tokenizer(profile)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    opening = len(ids("\\boxed{"))
    boxes = [ids(f"\\boxed{{{answer}}}") for answer in texts.answer]
    spans = {
        "opening": slice(0, opening),
        "digits": slice(opening, -1),
        "closing": slice(-1, None),
    }
    rows = []
    for name in names:
        model = answering.load_model_of(profile, profile.runs.get(name, name))
        scores = logprobs.score(model, list(texts.prompt_ids), boxes)
        nats = {
            part: -np.mean([values[span].sum() for values in scores])
            for part, span in spans.items()
        }
        rows.append({"run": name, **nats})
    after_opening = np.mean([len(box) - opening for box in boxes])
    format_only = {
        "run": "format only",
        "opening": 0.0,
        "digits": (after_opening - 1) * np.log(11),
        "closing": np.log(11),
    }
    table = pd.DataFrame([*rows, format_only])
    table["nats per token"] = table[list(spans)].sum(axis=1) / np.mean([len(box) for box in boxes])
    return table


def accuracy(answers: Mapping[Ends, pd.DataFrame]) -> pd.DataFrame:
    """Share of problems solved along answered paths, as rows of the `connectivity` table.

    Columns: t, metric ("accuracy"), value with its 95 % Wilson interval low to high, run_a, run_b.
    """
    rows = []
    for (first, second), answered in answers.items():
        for t, group in answered.groupby("t"):
            low, high = statistics.wilson(group.correct.sum(), len(group))
            rows.append(
                {
                    "t": round(t, 6),
                    "metric": "accuracy",
                    "value": group.correct.mean(),
                    "low": low,
                    "high": high,
                    "run_a": first,
                    "run_b": second,
                }
            )
    return pd.DataFrame(rows)


def best_between(answered: pd.DataFrame) -> tuple[float, float]:
    """(share solved at the best point inside a path, p of the exact test against its better end).

    The best point is picked before it is tested, so that p is on the small side.
    """
    graded = answered.pivot(index="problem_id", columns="t", values="correct").to_numpy(bool)
    inside, end = (
        points[:, points.mean(0).argmax()] for points in (graded[:, 1:-1], graded[:, [0, -1]])
    )
    p = statistics.mcnemar((inside & ~end).sum(), (~inside & end).sum())
    return float(inside.mean()), p


def examples(answers: Mapping[Ends, pd.DataFrame], problems: Mapping[str, Problem]) -> pd.DataFrame:
    """For each answered path the answers to the first problem whose grade changes along it.

    Where no grade changes it is the first problem. problems: by their problem_id. Columns: those of
    the answers, run_a, run_b, question, answer.
    """
    rows = []
    for (first, second), answered in answers.items():
        grades = answered.groupby("problem_id", sort=False).correct.nunique()
        problem = problems[grades.idxmax()]
        rows.append(
            answered[answered.problem_id == problem.problem_id].assign(
                run_a=first, run_b=second, question=problem.question, answer=problem.answer
            )
        )
    return pd.concat(rows)


def as_walked(curves: pd.DataFrame, barriers: pd.DataFrame, paths: Sequence[Ends]) -> pd.DataFrame:
    """Losses and barriers of some paths, each walked in the direction given.

    curves, barriers: those of `mode_connectivity` with columns run_a and run_b, in either
    direction. Columns: run_a, run_b, metric, start, middle, end, shape, "above chord", chance.
    """
    keys = ["run_a", "run_b", "metric"]
    losses, heights = curves.set_index(keys).sort_index(), barriers.set_index(keys)
    rows = []
    for (first, second), metric in product(paths, mode_connectivity.METRICS):
        is_forward = (first, second, metric) in heights.index
        key = (first, second, metric) if is_forward else (second, first, metric)
        value = losses.loc[[key]].sort_values("t").value.to_numpy()[:: 1 if is_forward else -1]
        rows.append(
            {
                "run_a": first,
                "run_b": second,
                "metric": metric,
                "start": value[0],
                "middle": value[len(value) // 2],
                "end": value[-1],
                "shape": shape(value),
                "above chord": heights.above_chord[key],
                "chance": heights.noise[key],
            }
        )
    return pd.DataFrame(rows)


def walked(
    profile: Profile, adapters: Mapping[str, Update], paths: Sequence[Ends], points: int
) -> dict[Ends, pd.DataFrame]:
    """`mode_connectivity.losses_along` on straight paths between updates, by their ends."""
    model = base_weights.float32_model(profile, "base")
    texts = connectivity.held_out_texts(profile, model.device)
    weights = updates.weights_of(model, adapters[paths[0][0]])
    return {
        (first, second): mode_connectivity.losses_along(
            model,
            weights,
            texts,
            adapters[first],
            adapters[second],
            np.linspace(0, 1, points),
            f"{first} to {second}",
        )
        for first, second in paths
    }


def over_seeds(profile: Profile, paths: Sequence[Ends]) -> pd.DataFrame:
    """Loss of the bare answer along paths between methods, walked again between the runs of each
    seed; runs that are missing are trained.

    paths: (method, method or "base"). Columns: run_a, run_b (methods), seed, start, middle, end,
    shape, above_chord, noise.
    """

    model = base_weights.float32_model(profile, "base")
    texts = connectivity.held_out_texts(profile, model.device)
    weights = updates.weights_of(model, trainer.update_of(profile, "sft"))
    rows = []
    for (seed, names), (first, second) in product(replication.replicas(profile).items(), paths):
        start = trainer.update_of(profile, names[first])
        is_to_base = second == "base"
        end = start if is_to_base else trainer.update_of(profile, names[second])
        goal = updates.combine([end], [0.0 if is_to_base else 1.0])
        measured = mode_connectivity.losses_along(
            model,
            weights,
            texts,
            start,
            goal,
            np.linspace(0, 1, _POINTS),
            f"{first} to {second}, seed {seed}",
        )
        losses = mode_connectivity.curve(measured).query("metric == 'boxed answer'")
        height = mode_connectivity.barrier(measured).set_index("metric").loc["boxed answer"]
        loss = losses.value.to_numpy()
        rows.append(
            {
                "run_a": first,
                "run_b": second,
                "seed": seed,
                "start": loss[0],
                "middle": loss[_POINTS // 2],
                "end": loss[-1],
                "shape": shape(loss),
                "above_chord": height.above_chord,
                "noise": height.noise,
            }
        )
    return pd.DataFrame(rows)
