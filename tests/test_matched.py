"""Each condition that the book calls matched differs from its reference in what it says and in
nothing else."""

import numpy as np
import pytest
import torch

from adapter_geometry import geometry, updates
from adapter_geometry.updates import Factors
from helpers import profiles
from helpers.analysis import interventions
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood
from helpers.training import batches, trainer

PREFERENCE = ("ipo", "simpo", "kto", "dpo-length-normalised")


@pytest.fixture(params=["tiny", "smoke"])
def study(request):
    return profiles.load(request.param)


def differing(study, run, reference):
    """Names of the settings in which two runs differ, apart from their names and snapshots."""
    first, second = (
        study.runs[name].model_dump(exclude={"name", "snapshots"}) for name in (run, reference)
    )
    return {key for key in first if first[key] != second[key]}


@pytest.mark.parametrize(
    ("run", "reference", "expected"),
    [
        ("dpo-matched", "dpo", {"learning_rate"}),
        ("dpo-matched", "sft", {"objective"}),
        ("sft-low", "sft", {"learning_rate"}),
        ("sft-low", "dpo", {"objective"}),
        ("rft-low", "dpo", {"objective"}),
        ("sft-mid", "dpo-mid", {"objective"}),
        ("sft-high", "dpo-high", {"objective"}),
        ("dpo-one-pass", "dpo", {"steps"}),
        ("dpo-matched-one-pass", "dpo-matched", {"steps"}),
        ("sft-pairs", "sft", {"rows"}),
        ("rft-chosen", "rft", {"rows"}),
        ("strong-sft", "sft", {"base"}),
        ("strong-rft", "rft", {"base"}),
        ("strong-dpo", "dpo", {"base"}),
        ("strong-dpo-matched", "dpo-matched", {"base"}),
        *((name, "dpo-matched", {"objective"}) for name in PREFERENCE),
    ],
)
def test_a_control_differs_from_its_reference_in_one_setting_only(study, run, reference, expected):
    assert differing(study, run, reference) == expected, (
        f"{run} is not {reference} but for {expected}"
    )


def test_sft_and_rft_on_pairs_see_the_rows_that_dpo_raises_and_lowers(table):
    pairs, chosen = (rollouts.select(table, rows) for rows in ("pairs", "chosen"))
    numbers = {number for pair in pairs.values() for number in pair}
    raised = {number for rows in chosen.values() for number in rows}
    assert pairs.keys() == chosen.keys(), "one pair per mixed group, one chosen row per pair"
    assert (
        raised
        == {pair[0] for pair in pairs.values()}
        == {number for number in numbers if table.reward.iloc[number] == 1}
    )
    assert {table.reward.iloc[number] for number in numbers - raised} == {0}, (
        "the other halves are the rejected ones"
    )


def test_the_one_pass_runs_see_no_pair_twice():
    study = profiles.load("tiny")
    table = rollouts.load_table(study)
    pairs = rollouts.select(table, "pairs")
    for name in ("dpo-one-pass", "dpo-matched-one-pass"):
        run = study.runs[name]
        order = batches.run_order(table, pairs, run, run.steps)
        assert len(order) == 2 * run.steps * run.batch_size
        assert len(set(order)) == len(order), (
            f"{name} goes over some of its {len(pairs)} pairs again"
        )


@pytest.fixture
def trained():
    """(smoke profile, {run: update}): random adapters on the real base, so that nothing has to be
    trained."""
    study = profiles.load("smoke")
    generator = torch.Generator().manual_seed(0)
    model = answering.load_model_of(study, "base")
    modules = [name for name, _ in model.named_modules() if name.endswith(study.lora.modules)]

    def update(size):
        return {
            name: Factors(
                size * torch.randn(model.get_submodule(name).out_features, 4, generator=generator),
                torch.randn(4, model.get_submodule(name).in_features, generator=generator),
                2.0,
            )
            for name in modules
        }

    sizes = {"sft": 0.02, "rft": 0.03, "dpo": 0.002, "dpo-matched": 0.01}
    return study, {run: update(size) for run, size in sizes.items()}


@pytest.mark.parametrize(
    ("run", "other"), [("dpo", "sft"), ("dpo", "rft"), ("dpo-matched", "sft"), ("sft", "dpo")]
)
def test_a_norm_matched_update_has_the_other_norm_and_its_own_direction(trained, run, other):
    study, adapters = trained
    built = interventions.planned(study)[f"{run} at {other}'s norm"].build(adapters)
    assert updates.norm(built) == pytest.approx(updates.norm(adapters[other]), rel=1e-6)
    compared = geometry.compare({"matched": built, **adapters})
    cosine, _ = geometry.stacked_cosine(compared)
    index = compared.runs.index(run)
    assert cosine[0, index] == pytest.approx(1, abs=1e-8), "scaling rotates nothing"
    np.testing.assert_allclose(
        cosine[0, 1:], cosine[index, 1:], atol=1e-8, err_msg="a cosine that changed under scaling"
    )


@pytest.mark.parametrize(("run", "other"), [("sft", "dpo"), ("rft", "dpo"), ("sft", "dpo-matched")])
def test_a_divergence_matched_update_is_as_far_from_the_base_within_five_per_cent(
    trained, workplace, monkeypatch, run, other
):
    study, adapters = trained
    base, policy = (answering.load_model_of(study, "base") for _ in range(2))
    samples, weights = likelihood.samples(study, "base"), updates.weights_of(policy, adapters[run])

    def divergence(update):
        updates.put(policy, weights, update)
        return likelihood.summed_divergence(base, policy, samples).sum() / samples.tokens.sum()

    wanted = divergence(adapters[other])
    planted = samples[["problem_id", "tokens"]].assign(nats=wanted * samples.tokens)
    monkeypatch.setattr(interventions, "divergences", lambda *_: planted)
    monkeypatch.setattr(trainer, "identity", lambda *_: "random adapters")
    built = interventions.planned(study)[f"{run} at {other}'s kl"].build(adapters)
    assert divergence(built) == pytest.approx(wanted, rel=0.05)
