"""Mode connectivity: loss and answers along straight paths between updates, and barriers on them.

Comes after `geometry`. A path is theta(t) = W0 + (1 - t) dW1 + t dW2, exactly: the factors of both updates side by side. What is
measured on it is stored per path under `results/<profile>/connectivity/` and goes on there after an interruption.
"""

import numpy as np
import pandas as pd
import torch

from adapter_geometry import mode_connectivity, storage, updates
from adapter_geometry.adapters import load_update
from adapter_geometry.mode_connectivity import Texts
from helpers import profiles, store
from helpers.data import problems
from helpers.evaluation import answering
from helpers.models import loading
from helpers.training import trainer

RECIPE = 1  # raised whenever the numbers of this module change, as `training.RECIPE`


def held_out_texts(profile, device="cpu"):
    """The profile's `Texts`: correct rollouts of the teacher to problems that no run trained on."""
    written, tokenizer = (
        answering.held_out(profile, profile.connectivity.texts),
        loading.load_tokenizer(profile),
    )
    answers = [
        tokenizer(f"\\boxed{{{answer}}}", add_special_tokens=False).input_ids
        for answer in written.answer
    ]
    return Texts(list(written.prompt_ids), list(written.completion_ids), answers, device)


# --- paths ---------------------------------------------------------------------------------------------------------


def ends(profile, first, second):
    """The two updates of a path, {module: Factors} each; `base` is the update times 0, `scaled-<run>` has the other end's norm."""
    first_update = _update(profile, first)
    if second == "base":
        return first_update, updates.combine([first_update], [0.0])
    second_update = _update(profile, second.removeprefix(profiles.SCALED))
    if second.startswith(profiles.SCALED):
        second_update = updates.combine(
            [second_update], [updates.norm(first_update) / updates.norm(second_update)]
        )
    return first_update, second_update


def _update(profile, name):
    return load_update(trainer.train(profile, profile.runs[name]) / "adapter")


def losses(profile, first, second):
    """Losses along the path from one run to another, stored: one row a (t, metric, text) with columns nats and tokens.

    t runs over the profile's points from 0 to 1; on a path to the base also from -1 to 0 in steps of an eighth, which is the update
    stretched to twice its length.
    """

    def compute():
        model = loading.load_model(profile, profile.runs[first].base).float()
        texts, start, goal = held_out_texts(profile, model.device), *ends(profile, first, second)
        points = list(np.linspace(0, 1, profile.connectivity.points))
        if second == "base":
            points = [*np.arange(-8, 0) / 8, *points]
        return mode_connectivity.along(
            model,
            updates.weights_of(model, start),
            texts,
            start,
            goal,
            points,
            f"{first} to {second}",
        )

    return _stored(profile, first, second, "losses", compute)


def answers(profile, first, second):
    """Greedy answers to the profile's fixed test problems along a path, stored: one row a (t, problem) with completion and correct."""

    def compute():
        model = loading.load_model(profile, profile.runs[first].base).float()
        start, goal = ends(profile, first, second)
        weights = updates.weights_of(model, start)
        chosen = problems.problem_sets(profile.problems)["test"][: profile.connectivity.problems]
        rows = []
        for t in np.linspace(0, 1, profile.connectivity.answered_points):
            if t in (0, 1):
                end = (first, second)[int(t)]
                found = answering.evaluate(profile, end if end == "base" else profile.runs[end])
                found = found[found.split == "test"].head(len(chosen))
            else:
                updates.put(model, weights, updates.combine([start, goal], [1 - t, t]))
                found = answering.answer(
                    profile, model, chosen, name=f"{first} to {second} at {t:.2f}"
                )
            rows.append(found[["problem_id", "completion", "correct"]].assign(t=t))
        return pd.concat(rows)

    return _stored(profile, first, second, "answers", compute)


def measure(profile, run):
    """Compute and store everything on the paths that start at `run`."""
    for first, second in profile.paths:
        if first == run:
            losses(profile, first, second)
            if (first, second) in profile.connectivity.answered_paths:
                answers(profile, first, second)


def _stored(profile, first, second, part, compute):
    torch.set_num_threads(profile.evaluation.threads)
    made = [
        trainer.identity(profile, profile.runs[end.removeprefix(profiles.SCALED)])
        for end in (first, second)
        if end != "base"
    ]
    identity = storage.digest(
        {
            "runs": made,
            "ends": [first, second],
            "part": part,
            "settings": profile.connectivity.model_dump(exclude={"answered_paths"}),
            "evaluation": profile.evaluation.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "teacher": loading.model_digest(profile.name, "teacher"),
            "recipe": [RECIPE, answering.RECIPE],
        }
    )
    return store.record(
        profile.name,
        "connectivity",
        f"{part}-{first}-{second}",
        identity,
        store.code_digest("helpers.analysis.connectivity"),
        compute,
    )
