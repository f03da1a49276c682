"""Mode connectivity: loss and answers along straight paths between the updates of runs.

After `training` and `evaluation.answering`, before the notebooks on mode connectivity and seeds. A
path is theta(t) = W0 + (1 - t) dW1 + t dW2, exactly: the factors of both updates side by side. What
is measured on it is stored per path under `results/<profile>/connectivity/` and goes on there after
an interruption; barriers and intervals follow from it in `adapter_geometry.mode_connectivity`.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from adapter_geometry import mode_connectivity, storage, updates
from adapter_geometry.mode_connectivity import Texts
from adapter_geometry.updates import Update
from helpers import profiles, store
from helpers.analysis import base_weights
from helpers.data import problems
from helpers.evaluation import answering
from helpers.models import loading
from helpers.profiles import Profile
from helpers.training import trainer

RECIPE = 1  # raised whenever the numbers of this module change, as `trainer.RECIPE`


def held_out_texts(profile: Profile, device: str | torch.device = "cpu") -> Texts:
    """The profile's `Texts`: correct rollouts of the teacher to problems that no run trained on.

    Each has its bare boxed answer.
    """
    rows = answering.held_out(profile, profile.connectivity.texts)
    tokenizer = loading.load_tokenizer(profile)
    bare_answers = [
        tokenizer(f"\\boxed{{{answer}}}", add_special_tokens=False).input_ids
        for answer in rows.answer
    ]
    return Texts(list(rows.prompt_ids), list(rows.completion_ids), bare_answers, device)


# --- paths ----------------------------------------------------------------------------------------


def ends(profile: Profile, first: str, second: str) -> tuple[Update, Update]:
    """The two updates of a path from the run `first` to `second`.

    The second is a run's, for "base" the first update times 0, and for `scaled-<run>` that run's
    update at the norm of the first.
    """
    first_update = trainer.update_of(profile, first)
    if second == "base":
        return first_update, updates.combine([first_update], [0.0])
    second_update = trainer.update_of(profile, second.removeprefix(profiles.SCALED))
    if second.startswith(profiles.SCALED):
        ratio = updates.norm(first_update) / updates.norm(second_update)
        second_update = updates.combine([second_update], [ratio])
    return first_update, second_update


def losses(profile: Profile, first: str, second: str) -> pd.DataFrame:
    """Losses along the path from one run to another, stored: one row per (t, metric, text).

    Columns t, metric, text, nats and tokens. t runs over the profile's points from 0 to 1; on a
    path to the base also from -1 to 0 in steps of an eighth, which is the update stretched to twice
    its length.
    """

    def compute() -> pd.DataFrame:
        model = base_weights.float32_model(profile, profile.runs[first].base)
        texts = held_out_texts(profile, model.device)
        start, goal = ends(profile, first, second)
        weights = updates.weights_of(model, start)
        points = list(np.linspace(0, 1, profile.connectivity.points))
        if second == "base":
            points = [*np.arange(-8, 0) / 8, *points]
        name = f"{first} to {second}"
        return mode_connectivity.losses_along(model, weights, texts, start, goal, points, name)

    return _stored(profile, first, second, "losses", compute)


def answers(profile: Profile, first: str, second: str) -> pd.DataFrame:
    """Greedy answers to the profile's fixed test problems along a path, stored.

    One row per (t, problem) with columns problem_id, completion, correct and t.
    """

    def compute() -> pd.DataFrame:
        model = base_weights.float32_model(profile, profile.runs[first].base)
        start, goal = ends(profile, first, second)
        weights = updates.weights_of(model, start)
        test = problems.problem_sets(profile.problems)["test"][: profile.connectivity.problems]
        parts = []
        for t in np.linspace(0, 1, profile.connectivity.answered_points):
            if t in (0, 1):
                end = (first, second)[int(t)]
                rows = answering.evaluate(profile, end if end == "base" else profile.runs[end])
                rows = rows[rows.split == "test"].head(len(test))
            else:
                updates.put(model, weights, updates.combine([start, goal], [1 - t, t]))
                name = f"{first} to {second} at {t:.2f}"
                rows = answering.answer(profile, model, test, name=name)
            parts.append(rows[["problem_id", "completion", "correct"]].assign(t=t))
        return pd.concat(parts)

    return _stored(profile, first, second, "answers", compute)


def measure(profile: Profile, run: str) -> None:
    """Compute and store everything on the paths that start at `run`."""
    for first, second in profile.paths:
        if first == run:
            losses(profile, first, second)
            if (first, second) in profile.connectivity.answered_paths:
                answers(profile, first, second)


def _stored(
    profile: Profile, first: str, second: str, part: str, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """The stored table of a path, or `compute()` if what determines it has changed."""
    torch.set_num_threads(profile.evaluation.threads)
    runs = [
        trainer.identity(profile, profile.runs[end.removeprefix(profiles.SCALED)])
        for end in (first, second)
        if end != "base"
    ]
    identity = storage.digest(
        {
            "runs": runs,
            "ends": [first, second],
            "part": part,
            "settings": profile.connectivity.model_dump(exclude={"answered_paths"}),
            "evaluation": profile.evaluation.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "teacher": loading.model_digest(profile.name, "teacher"),
            "recipe": [RECIPE, answering.RECIPE],
        }
    )
    code = store.code_digest("helpers.analysis.connectivity")
    name = f"{part}-{first}-{second}"
    return store.load_or_compute_record(profile.name, "connectivity", name, identity, code, compute)
