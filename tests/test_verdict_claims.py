"""The records of the claims: each can be judged, and one that cannot says why."""

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers import store
from helpers.analysis import claim_statistics, paper, verdict

CLAIMS = verdict.load_claims()
RECORD = {
    "part": "a",
    "claim": "one",
    "paper": ".9",
    "control": "none",
    "statistic": {"name": "no_barrier", "runs": ["a", "b"]},
}
OVER_SEEDS = {"name": "over_seeds", "of": "cosine", "runs": ["a", "b"]}


@pytest.fixture
def tables(monkeypatch):
    """The tables of the pretrained study, as those of another one, and planted ones of its gaps."""
    read = store.read_table
    monkeypatch.setattr(store, "read_table", lambda _, name: read(verdict.PRETRAINED, name))
    planted = claim_statistics.Tables("tiny")
    rates = [("sft-low", "sft-low-second"), ("sft", "sft-43-43"), ("sft-high", "sft-high-second")]
    seeds = pd.DataFrame(rates, columns=["run_a", "run_b"])
    planted["seeds"] = seeds.assign(cosine=[0.1, 0.2, 0.3])
    replicas = planted["replicas"]
    third = replicas[replicas.seed_a != replicas.seed_b].assign(seed_b=44)
    planted["replicas"] = pd.concat([replicas, third.assign(value=0.9 * third.value)])
    online = {"run": "grpo", "norm": 0.3, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    online |= {"cosine_sft": 0.02, "chance_low": -0.01, "chance_high": 0.01}
    planted["on_policy"] = pd.DataFrame([online])
    return planted


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim)
def test_every_claim_is_judged_and_its_control_is_filled_in(claim, tables):
    row = verdict.row_of(claim, tables)
    assert not set("{}") & set(row["control"]), "a placeholder was left"
    is_number = np.isfinite([row["value"], row["low"], row["high"]]).all()
    assert is_number == (row["verdict"] != verdict.UNTESTED), "an interval for every tested claim"
    assert np.isfinite(row["chance_low"]) == (claim.band is not None), (
        "a band where one is asked for"
    )


def test_no_two_claims_have_one_sentence():
    sentences = [claim.claim for claim in CLAIMS]
    assert len(sentences) == len(set(sentences)), "studies are set side by side by the sentence"


def test_every_statistic_is_one_that_a_claim_names():
    named = {claim.statistic.name for claim in CLAIMS if claim.statistic}
    assert named == set(claim_statistics.STATISTICS), "neither unknown nor unused"


def test_the_paper_s_cosines_are_one_in_both_files():
    pairs = [
        claim
        for claim in CLAIMS
        if claim.part == "direction" and claim.statistic.name == "over_seeds"
    ]
    for claim in pairs:
        assert claim.paper_value == paper.COSINES[tuple(claim.statistic.runs)], claim.claim
    assert len(pairs) == 5, "three of the cluster, two next to it"


def test_the_second_model_is_the_pretrained_study():
    profiles = [claim.statistic.profile for claim in CLAIMS if claim.part == "a second model"]
    assert profiles == [verdict.PRETRAINED]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"papr": ".8"}, ["papr", "'.8'"]),
        ({"paper": None}, ["paper", "None"]),
        ({"band": "chance"}, ["band", "'chance'"]),
        (
            {"statistic": {"name": "no_bariers"}},
            ["statistic", "unknown statistic", "'no_bariers'", "no_barrier"],
        ),
        ({"statistic": {"name": "no_barrier"}}, ["statistic", "no_barrier", "missing", "'runs'"]),
        (
            {"statistic": {"name": "no_barrier", "runs": [], "of": "cka"}},
            ["no_barrier", "unexpected", "'cka'"],
        ),
        (
            {"statistic": OVER_SEEDS | {"ordering": {"abov": [0.5]}}},
            ["statistic", "ordering of over_seeds", "unknown key 'abov'", "above, below", "[0.5]"],
        ),
    ],
)
def test_a_record_that_cannot_be_read_names_file_claim_and_value(tmp_path, change, words):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump([RECORD | change]))
    with pytest.raises(ValueError, match=r"^mine\.yaml: claim 'one': ") as error:
        verdict.load_claims(path)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("change", [{"control": "up to {nois:.3f}"}, {"band": "control"}])
def test_a_control_that_its_statistic_cannot_fill_names_the_claim_and_what_there_is(change, tables):
    statistic = {"name": "no_barrier", "runs": ["sft", "offline-grpo"]}
    claim = verdict.Claim(**RECORD | {"statistic": statistic} | change)
    with pytest.raises(
        ValueError, match=r"claim 'one': its statistic has no value '(nois|band)'; it has noise, "
    ):
        verdict.row_of(claim, tables)
