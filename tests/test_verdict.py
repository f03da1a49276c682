"""Verdicts: the rule itself, and claims on tables whose truth is planted."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from helpers import store
from helpers.analysis import claim_statistics, verdict

METHODS = ("sft", "rft", "dft", "rift", "offline-grpo", "dpo")
SEEDS = (42, 43, 44)


@pytest.mark.parametrize(
    ("is_true", "low", "high", "band", "expected"),
    [
        (True, 0.3, 0.4, (-0.1, 0.1), verdict.HOLDS),
        (True, -0.4, -0.3, (-0.1, 0.1), verdict.HOLDS),
        (True, 0.05, 0.4, (-0.1, 0.1), verdict.CHANCE),
        (True, -0.3, 0.3, (-0.1, 0.1), verdict.CHANCE),
        (False, 0.3, 0.4, (-0.1, 0.1), verdict.FAILS),
        (True, -1, 1, None, verdict.HOLDS),
    ],
)
def test_a_claim_holds_when_it_is_true_and_its_interval_leaves_the_band(
    is_true, low, high, band, expected
):
    assert verdict.judge(is_true, low, high, band) == expected


def test_what_arithmetic_makes_true_is_no_finding():
    assert verdict.judge(True, 0.9, 1.0, (0, 0.1), by_construction=True) == verdict.CONSTRUCTION
    assert verdict.judge(False, 0.9, 1.0, (0, 0.1), by_construction=True) == verdict.FAILS


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1, 2, verdict.HOLDS), (-17, 32, verdict.CHANCE), (-1, 6, verdict.CHANCE)],
)
def test_an_equality_holds_only_if_larger_differences_are_left_out(low, high, expected):
    assert verdict.judge(True, low, high, margin=5) == expected
    assert verdict.judge(False, low, high, margin=5) == verdict.FAILS, "a difference that was seen"


def planted(cosine_of, chance=0.05):
    """Tables of directions: `cosine_of(a, b, seed)` at each seed, .3 between seeds of one method.

    Offline GRPO is as orthogonal to SFT in all layers.
    """
    rows = []
    for a, b in combinations(METHODS, 2):
        for seed in SEEDS:
            rows.append(("cosine", a, b, seed, seed, cosine_of(a, b, seed)))
            rows += [(f"by norm, {where}", a, b, seed, seed, 0.7) for where in ("middle", "last")]
    rows += [
        ("cosine", method, method, a, b, 0.3)
        for method, (a, b) in product(METHODS, combinations(SEEDS, 2))
    ]
    bands = [
        ("global", a, b, cosine_of(a, b, SEEDS[0]), -chance, chance)
        for a, b in combinations(METHODS, 2)
    ]
    of_seeds = ["statistic", "run_a", "run_b", "seed_a", "seed_b", "value"]
    of_bands = ["scope", "run_a", "run_b", "cosine", "chance_low", "chance_high"]
    return {
        "replicas": pd.DataFrame(rows, columns=of_seeds),
        "cosine": pd.DataFrame(bands, columns=of_bands),
    }


def as_in_the_paper(a, b, seed):
    if "dpo" in (a, b):
        return 0.06 + 0.001 * (seed - 43)
    if "dft" in (a, b):
        return 0.57
    return 0.74 if "offline-grpo" in (a, b) else 0.97


def verdicts(tables):
    of_study = claim_statistics.Tables("tiny")
    of_study.update(tables)
    return {row["claim"]: row for row in rows_of("direction", of_study)}


def rows_of(part, tables):
    rows = [verdict.row_of(claim, tables) for claim in verdict.load_claims() if claim.part == part]
    return [row for row in rows if row is not None]


def test_the_paper_s_own_cosines_would_confirm_its_claims():
    rows = verdicts(planted(as_in_the_paper))
    for claim in (
        "SFT and RFT are nearly one direction",
        "Offline GRPO is near the cluster, but not in it",
        "DFT is further from SFT than Offline GRPO is",
    ):
        assert rows[claim]["verdict"] == verdict.HOLDS, f"{claim}: the ordering is planted"
    orthogonal = rows["Two thirds of Offline GRPO are orthogonal to SFT"]
    assert orthogonal["verdict"] == verdict.CONSTRUCTION, "it is the cosine again"
    assert orthogonal["value"] == pytest.approx(np.sqrt(1 - 0.74**2))
    assert rows["It is most orthogonal in the last layers"]["verdict"] == verdict.FAILS, (
        "planted as equal"
    )


def test_parts_without_their_controls_are_left_out(monkeypatch):
    tables = planted(as_in_the_paper)

    def read(_, name):
        if name not in tables:
            raise FileNotFoundError(name)
        return tables[name]

    monkeypatch.setattr(store, "read_table", read)
    not_planted = ("vectors", "size", "angles", "seeds")
    claims = [claim for claim in verdict.load_claims() if claim.part not in not_planted]
    monkeypatch.setattr(verdict, "load_claims", lambda: claims)
    parts = list(verdict.verdict_table("tiny").part.unique())
    assert parts == ["direction", "a second model", "untested"], (
        "tables of directions alone were written"
    )


def test_a_claim_that_fails_at_one_seed_does_not_hold():
    def broken(a, b, seed):
        return 0.5 if {a, b} == {"sft", "rft"} and seed == 44 else as_in_the_paper(a, b, seed)

    row = verdicts(planted(broken))["SFT and RFT are nearly one direction"]
    assert row["verdict"] == verdict.FAILS, "true in every seed is what the rule says"


def test_a_true_ordering_inside_the_band_is_at_chance():
    row = verdicts(planted(as_in_the_paper, chance=0.2))["DPO is nearly orthogonal to all others"]
    assert row["verdict"] == verdict.CHANCE, "a cosine that unrelated updates reach as well"


def test_differences_of_accuracy_do_not_depend_on_the_order_of_the_pair():
    row = {"run_a": "sft", "run_b": "dpo", "difference": -0.2, "low": -0.3, "high": -0.1}
    tables = claim_statistics.Tables("tiny")
    tables["accuracy_seeds"] = pd.DataFrame([row | {"least": -0.25, "most": -0.15}])
    difference = claim_statistics.paired_difference(tables, "sft", "dpo")
    assert difference == pytest.approx([-20, -30, -10, -25, -15])
    difference = claim_statistics.paired_difference(tables, "dpo", "sft")
    assert difference == pytest.approx([20, 10, 30, 15, 25]), "a reversed pair, reversed interval"


def test_the_difference_of_independent_shares_adds_their_errors_as_squares():
    first, second = (
        pd.Series({"accuracy": value, "low": value - 0.03, "high": value + 0.03})
        for value in (0.6, 0.5)
    )
    difference = claim_statistics.independent_difference(first, second)
    assert difference[:3] == pytest.approx((10, 10 - 3 * 2**0.5, 10 + 3 * 2**0.5))


def test_profiles_are_set_side_by_side_by_claim(workplace):
    for name, text in (("tiny", "first"), ("smoke", "second")):
        row = {"claim": "one", "paper": ".9", "ours": text, "verdict": verdict.HOLDS}
        store.write_table(name, "verdict", pd.DataFrame([row]))
    row = verdict.side_by_side(["tiny", "smoke"]).loc["one"]
    assert [row[("tiny", "ours")], row[("smoke", "ours")]] == ["first", "second"], (
        "one pair of columns per profile"
    )


def unrelated(seed):
    rng = np.random.default_rng(seed)
    return lambda *_: rng.uniform(-1, 1)


@pytest.mark.parametrize(
    ("cosine_of", "expected"),
    [(as_in_the_paper, {verdict.HOLDS}), (unrelated(1), {verdict.CHANCE, verdict.FAILS})],
)
def test_a_second_model_confirms_the_geometry_if_its_cosines_are_in_the_same_order(
    monkeypatch, cosine_of, expected
):
    tables = {"tiny": planted(as_in_the_paper), verdict.PRETRAINED: planted(cosine_of)}
    monkeypatch.setattr(store, "read_table", lambda name, table: tables[name][table])
    row = rows_of("a second model", claim_statistics.Tables("tiny"))[0]
    assert row["verdict"] in expected, f"{row['ours']}, {row['control']}"
    itself = claim_statistics.Tables(verdict.PRETRAINED)
    assert not rows_of("a second model", itself), "a model is no second model to itself"


def test_agreement_sorts_the_claims_of_two_studies(workplace):
    for name, states in (("tiny", "hhff-"), ("smoke", "hfhf-")):
        known = [
            {"h": verdict.HOLDS, "f": verdict.FAILS, "-": verdict.UNTESTED}[state]
            for state in states
        ]
        store.write_table(name, "verdict", pd.DataFrame({"claim": [*"abcde"], "verdict": known}))
    assert list(verdict.agreement("tiny", "smoke").values()) == [["a"], ["b"], ["c"], ["d"]], (
        "both, the first only, the second only, neither; untested in none"
    )
