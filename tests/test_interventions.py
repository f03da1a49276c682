"""Interventions: scales that reach a divergence, and what is measured and stored of an update."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from small_updates import stacked

from helpers import profiles, store
from helpers.analysis import interventions
from helpers.data import rollouts
from helpers.evaluation import answering, statistics

# --- scales that reach a divergence ---------------------------------------------------------------

CURVES = {
    "square": lambda t: t**2,
    "exponential": np.expm1,
    "small": lambda t: 1e-6 * t**3,
    "bounded": lambda t: t / (1 + t),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("t", [0.013, 0.4, 1.0, 17.0])
def test_bisection_reaches_what_was_asked_for_within_the_tolerance(name, t):
    curve = CURVES[name]
    bisected = interventions.bisected(curve, curve(t))
    assert bisected["reached"] == pytest.approx(bisected["aim"], rel=interventions.TOLERANCE), (
        "the divergence that was reached"
    )
    assert curve(bisected["scale"]) == bisected["reached"], "at the scale given"


def test_an_update_that_cannot_reach_the_aim_is_refused():
    with pytest.raises(ValueError, match="64 times the update stays below 2 nats"):
        interventions.bisected(lambda t: t / (1 + t), 2.0)


# --- measured and stored --------------------------------------------------------------------------


def with_rates(profile, **rates):
    """The profile with other learning rates of some runs."""
    faster = {
        name: profile.runs[name].model_copy(update={"learning_rate": rate})
        for name, rate in rates.items()
    }
    return profile.model_copy(update={"runs": {**profile.runs, **faster}})


# With rates so high that KL is far above rounding.
STUDY = with_rates(profiles.load("smoke"), sft=0.1, dpo=0.03)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A repository root in which SFT and DPO of the study are trained and their KL is measured."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        (root / "data").symlink_to(store.ROOT / "data")
        patch.setattr(store, "ROOT", root)
        rollouts.make_table(STUDY)
        for run in ("sft", "dpo"):
            interventions.divergences(STUDY, run)
    return root


@pytest.fixture
def study(trained, tmp_path, monkeypatch):
    """The study in a copy of that root."""
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    monkeypatch.setattr(store, "ROOT", tmp_path / "copy")
    return STUDY


def kl(profile, name):
    divergence = interventions.divergences(profile, name)
    return divergence.nats.sum() / divergence.tokens.sum()


def flat(profile, name):
    """An update as one vector."""
    update = interventions.update_of(profile, name)
    return stacked(update, update)


def test_a_matched_divergence_is_reached_once_and_then_kept(study, monkeypatch):
    name = "sft at dpo's kl"
    assert kl(study, name) == pytest.approx(kl(study, "dpo"), rel=interventions.TOLERANCE), (
        "nats per token, along the same texts of the base"
    )
    scaled, whole = flat(study, name), flat(study, "sft")
    np.testing.assert_allclose(
        scaled,
        whole * (scaled @ whole) / (whole @ whole),
        atol=1e-7,
        err_msg="SFT's update, times one number",
    )

    def refuse(*_):
        pytest.fail("the scale was searched for again")

    monkeypatch.setattr(interventions, "bisected", refuse)
    np.testing.assert_array_equal(flat(study, name), scaled)


def test_the_model_measured_is_the_base_with_both_adapters_merged(study, monkeypatch):
    models, answer = [], answering.answer

    def recorded(profile, model, *rest, **options):
        models.append(model)
        return answer(profile, model, *rest, **options)

    monkeypatch.setattr(answering, "answer", recorded)
    records = interventions.records(study, "sum of sft and dpo")
    base, sft, dpo = (
        answering.load_model_of(study, run).state_dict()
        for run in ("base", study.runs["sft"], study.runs["dpo"])
    )
    for key, weight in models[-1].state_dict().items():
        torch.testing.assert_close(
            weight,
            sft[key] + dpo[key] - base[key],
            rtol=1e-4,
            atol=1e-5,
            msg=f"W0 + dW1 + dW2 in {key}",
        )
    assert len(records) == study.problems.test, (
        "every test problem, since there are fewer than the first 600"
    )
    count = len(models)
    pd.testing.assert_frame_equal(interventions.records(study, "sum of sft and dpo"), records)
    assert len(models) == count, "stored answers are read, not written again"


def test_an_intervention_is_measured_anew_when_one_of_its_runs_changes(study):
    first = interventions.divergences(study, "sft times 2")
    slower = with_rates(study, sft=0.01)
    assert interventions.divergences(slower, "sft times 2").nats.sum() < 0.5 * first.nats.sum(), (
        "a smaller update is nearer to the base"
    )
    pd.testing.assert_frame_equal(interventions.divergences(study, "sft times 2"), first)


def test_the_table_gives_runs_and_the_base_by_the_same_measure(study):
    table = interventions.table(study, ["base", "sft", "sft times 2"]).set_index("part")
    assert table.kl["base"] == table.norm["base"] == 0, "the base is not away from itself"
    assert table.norm["sft times 2"] == pytest.approx(2 * table.norm["sft"]), "norm of the update"
    assert table.kl["sft times 2"] > table.kl["sft"] > 0, (
        "twice the update is further from the base"
    )
    assert set(table.run) == {"base", "sft"}, "the run that gives the colour"
    answers = answering.evaluate(study, study.runs["sft"])
    assert table.accuracy["sft"] == answers[answers.split == "test"].correct.mean(), (
        "a run's row comes from its own evaluation"
    )


def test_only_interventions_of_runs_that_exist_are_planned_and_other_names_are_refused(smoke):
    runs = {name: run for name, run in smoke.runs.items() if name != "dpo-matched"}
    without_it = smoke.model_copy(update={"runs": runs})
    missing = set(interventions.planned(smoke)) - set(interventions.planned(without_it))
    assert missing == {"dpo-matched at sft's norm", "sft at dpo-matched's kl"}
    message = "'sft times 7' is neither a run of profile 'smoke' nor one of its interventions"
    with pytest.raises(ValueError, match=message):
        interventions.records(smoke, "sft times 7")


def planted(monkeypatch, answers, nats):
    """Make `records` and `divergences` return what a test plants.

    answers: {name: correct}. nats: {name: nats per token}.
    """

    def records(_, name):
        correct = answers[name]
        return pd.DataFrame(
            {"problem_id": range(len(correct)), "split": "test", "correct": correct}
        )

    def divergences(_, name):
        return pd.DataFrame({"nats": [10 * nats[name]], "tokens": [10]})

    monkeypatch.setattr(interventions, "records", records)
    monkeypatch.setattr(interventions, "divergences", divergences)


def test_paired_tests_are_those_of_the_statistics_on_the_four_cells(smoke, monkeypatch):
    rng = np.random.default_rng(0)
    answers = {name: rng.random(80) < share for name, share in (("a", 0.8), ("b", 0.5), ("c", 0.5))}
    planted(monkeypatch, answers, {})
    tests = interventions.compared(smoke, [("a", "b"), ("b", "c")])
    records = [interventions.records(smoke, name).assign(run=name) for name in answers]
    expected = statistics.mcnemar_table(pd.concat(records)).set_index(["run_a", "run_b"])
    for row in tests.itertuples():
        other = expected.loc[row.part, row.against]
        measured, wanted = ((line.difference, line.low, line.high, line.p) for line in (row, other))
        assert measured == pytest.approx(wanted), f"{row.part} against {row.against}"
    np.testing.assert_allclose(
        tests.p_holm,
        statistics.holm(tests.p),
        err_msg="corrected over the pairs asked for, and no others",
    )


def test_excess_over_scaling_is_zero_on_the_curve_and_the_planted_height_above_it(
    smoke, monkeypatch
):
    scales = {f"sft times {t:g}": t for t in interventions.SCALES["sft"]}
    scales |= {"base": 0.0, "sft": 1.0}
    count = 400
    nats = {name: 0.2 * t**2 for name, t in scales.items()}
    answers = {name: np.arange(count) < count * (1 - t / 4) for name, t in scales.items()}
    # On the curve at 0.3 times the update are 1 - 0.3 / 4 of 400, which is 370; 390 are 0.05 more.
    names = ["same", "between", "better", "far"]
    correct = (answers["sft times 0.5"], np.arange(count) < 370, np.arange(count) < 390)
    answers |= dict(zip(names, (*correct, answers["sft"]), strict=True))
    nats |= {name: 0.2 * t**2 for name, t in zip(names, (0.5, 0.3, 0.3, 3), strict=True)}
    planted(monkeypatch, answers, nats)
    excess = interventions.above_scaling(smoke, names, "sft").set_index("part")
    assert excess.difference["same"] == pytest.approx(0), "a point of the curve is on it"
    assert excess.difference["between"] == pytest.approx(0, abs=1e-9), (
        "accuracy and length fall on a straight line here, and so do the points between"
    )
    assert excess.difference["better"] == pytest.approx(0.05), "planted height"
    assert excess.p_holm["better"] < 0.01 < 0.9 < excess.p_holm["between"], (
        "five points of 400 problems that all differ the same way"
    )
    assert excess.loc["better", "low"] < 0.05 < excess.loc["better", "high"], (
        "the interval holds the truth"
    )
    assert excess.loc["far", ["difference", "p_holm"]].isna().all(), (
        "beyond the curve's end there is nothing to compare with"
    )
