"""Paths of the study: trained models and answers at their ends, and which paths there are."""

import numpy as np
import pandas as pd
import pytest

from adapter_geometry import updates
from adapter_geometry.mode_connectivity import METRICS
from helpers import profiles
from helpers.analysis import connectivity
from helpers.evaluation import answering
from helpers.models import loading


@pytest.fixture
def counted(monkeypatch):
    """Counts how often texts are packed for measuring: once per path that is computed."""
    calls, held_out_texts = [], connectivity.held_out_texts

    def count(*arguments):
        calls.append(1)
        return held_out_texts(*arguments)

    monkeypatch.setattr(connectivity, "held_out_texts", count)
    return calls


def nats_at(losses, t, metric):
    """Nats of each text at one point of a path, by the number of the text."""
    rows = losses[(losses.t == t) & (losses.metric == metric)].sort_values("text")
    assert len(rows), f"the path has a point t = {t}"
    return rows.nats.to_numpy()


def test_measured_paths_end_at_the_trained_models_and_are_kept_until_a_run_changes(
    smoke, table, counted
):
    losses = connectivity.losses(smoke, "sft", "rft")
    texts = connectivity.held_out_texts(smoke)
    assert sorted(losses.t.unique()) == [0, 0.5, 1], "the profile's points"
    assert set(losses.groupby(["t", "metric"]).size()) == {smoke.connectivity.texts}, (
        "each text once at each point, by each metric"
    )
    for t, run in ((0, "sft"), (1, "rft")):
        own = texts.nats(answering.load_model_of(smoke, smoke.runs[run]))
        for metric in METRICS:
            np.testing.assert_allclose(
                nats_at(losses, t, metric),
                own[metric],
                rtol=1e-5,
                err_msg=f"{metric}: t = {t} is {run} itself",
            )
    del counted[:]
    again = connectivity.losses(smoke, "sft", "rft")
    assert not counted, "a stored path is read, not measured"
    pd.testing.assert_frame_equal(again.reset_index(drop=True), losses.reset_index(drop=True))
    quicker = smoke.runs["rft"].model_copy(update={"steps": 1})
    changed = connectivity.losses(
        smoke.model_copy(update={"runs": {**smoke.runs, "rft": quicker}}), "sft", "rft"
    )
    assert counted, "a path to a run that changed is measured anew"
    np.testing.assert_array_equal(
        nats_at(changed, 0, "rollout"),
        nats_at(losses, 0, "rollout"),
        err_msg="the end that did not change stays",
    )
    assert (nats_at(changed, 1, "rollout") != nats_at(losses, 1, "rollout")).all(), (
        "the other moves"
    )
    del counted[:]
    connectivity.losses(smoke, "sft", "rft")
    assert not counted, "and the first path is read again when its settings return"


def test_a_path_to_the_base_begins_at_twice_the_update_and_ends_at_the_base(smoke, table):
    losses = connectivity.losses(smoke, "sft", "base")
    assert losses.t.nunique() == 8 + smoke.connectivity.points
    texts, model = connectivity.held_out_texts(smoke), loading.load_model(smoke)
    base = texts.nats(model)
    update, _ = connectivity.ends(smoke, "sft", "base")
    updates.put(model, updates.weights_of(model, update), updates.combine([update], [2.0]))
    for t, own in (
        (1, base),
        (-1, texts.nats(model)),
        (0, texts.nats(answering.load_model_of(smoke, smoke.runs["sft"]))),
    ):
        for metric in METRICS:
            np.testing.assert_allclose(
                nats_at(losses, t, metric), own[metric], rtol=1e-5, err_msg=f"{metric} at t = {t}"
            )


def test_the_scaled_end_has_the_length_of_the_other_end_and_its_own_direction(smoke, table):
    sft, scaled = connectivity.ends(smoke, "sft", "scaled-dpo")
    dpo, _ = connectivity.ends(smoke, "dpo", "base")
    assert updates.norm(scaled) == pytest.approx(updates.norm(sft), rel=1e-6), (
        "as long as the other end"
    )
    assert updates.norm(dpo) < 0.9 * updates.norm(sft), "unlike DPO's own"
    inner = sum(updates.inner(scaled[module], dpo[module]) for module in dpo)
    assert inner / updates.norm(scaled) / updates.norm(dpo) == pytest.approx(1, rel=1e-6), (
        "in the direction of DPO"
    )
    assert updates.norm(connectivity.ends(smoke, "sft", "base")[1]) == 0, (
        "the base is no update at all"
    )


def test_answers_at_the_ends_are_those_of_the_evaluation(smoke, table):
    answers = connectivity.answers(smoke, "sft", "base")
    count = smoke.connectivity.problems
    assert answers.groupby("t").size().to_dict() == {0.0: count, 0.5: count, 1.0: count}, (
        "the same problems at every point"
    )
    assert len({tuple(part.problem_id) for _, part in answers.groupby("t")}) == 1
    for t, run in ((0, smoke.runs["sft"]), (1, "base")):
        own = answering.evaluate(smoke, run).set_index("problem_id").completion
        rows = answers[answers.t == t]
        assert rows.completion.tolist() == own[rows.problem_id].tolist(), (
            "one greedy answer per problem and model"
        )


@pytest.mark.parametrize("name", ["smoke", "tiny"])
def test_paths_join_every_pair_of_main_runs_each_run_to_the_base_and_to_dpo_at_its_own_length(name):
    profile = profiles.load(name)
    n, paths = len(profile.main_runs), profile.paths
    assert len(paths) == len(set(map(frozenset, paths))) == n * (n - 1) // 2 + n + n - 1, (
        "each path once, in one direction"
    )
    assert {
        frozenset(path) for path in paths if not {"base"} & set(path) and "scaled" not in path[1]
    } == {
        frozenset((one, two))
        for one in profile.main_runs
        for two in profile.main_runs
        if one != two
    }
    assert set(profile.connectivity.answered_paths) <= set(paths), (
        "answers are taken along paths that exist"
    )
