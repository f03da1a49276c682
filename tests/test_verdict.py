"""Verdicts: the rule itself, and claims on tables whose truth is planted."""

import numpy as np
import pandas as pd
import pytest

from helpers import verdict


@pytest.mark.parametrize(("is_true", "low", "high", "band", "expected"), [
    (True, 0.3, 0.4, (-0.1, 0.1), verdict.HOLDS), (True, -0.4, -0.3, (-0.1, 0.1), verdict.HOLDS), (True, 0.05, 0.4, (-0.1, 0.1), verdict.CHANCE),
    (True, -0.3, 0.3, (-0.1, 0.1), verdict.CHANCE), (False, 0.3, 0.4, (-0.1, 0.1), verdict.FAILS), (True, -1, 1, None, verdict.HOLDS)])
def test_a_claim_holds_when_it_is_true_and_its_interval_leaves_the_band(is_true, low, high, band, expected):
    assert verdict.judge(is_true, low, high, band) == expected


def test_what_arithmetic_makes_true_is_no_finding():
    assert verdict.judge(True, 0.9, 1.0, (0, 0.1), by_construction=True) == verdict.CONSTRUCTION
    assert verdict.judge(False, 0.9, 1.0, (0, 0.1), by_construction=True) == verdict.FAILS


def planted(cosine, norms=(1.0, 2.0, 3.0), chance=0.05):
    """Tables of two runs whose modules all have this cosine."""
    modules = [(layer, projection) for layer in range(3) for projection in ("q_proj", "v_proj")]
    pair = {"run_a": "sft", "run_b": "rft", "cosine": cosine}
    rows = [{"scope": "module", "layer": layer, "projection": projection, **pair, "chance_low": -1.0, "chance_high": 1.0} for layer, projection in modules]
    rows.append({"scope": "global", "layer": -1, "projection": "all", **pair, "chance_low": -chance, "chance_high": chance})
    sizes = [{"run": run, "layer": layer, "projection": projection, "norm": norms[layer]} for run in ("sft", "rft") for layer, projection in modules]
    return {"cosine": pd.DataFrame(rows), "updates": pd.DataFrame(sizes)}


@pytest.mark.parametrize("pair", [("sft", "rft"), ("rft", "sft")])
def test_the_stacked_cosine_is_put_together_from_the_modules(pair):
    interval, band = verdict._cosine(planted(0.8), *pair)
    assert interval == pytest.approx((0.8, 0.8, 0.8)), "equal modules: no scatter, and lengths do not matter"
    assert band == pytest.approx((-0.05, 0.05)), "the band of all modules stacked"


def test_intervals_over_modules_grow_with_their_scatter():
    rng = np.random.default_rng(0)
    narrow, wide = (verdict._over_modules(np.mean, size * rng.standard_normal(200)) for size in (1, 10))
    for (value, low, high), size in ((narrow, 1), (wide, 10)):
        assert low < value < high
        assert high - low == pytest.approx(2 * 1.96 * size / np.sqrt(200), rel=0.2), "the standard error of a mean"


def test_differences_to_a_run_do_not_depend_on_the_order_of_the_pair():
    tests = pd.DataFrame([{"run_a": "dpo", "run_b": "sft", "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01},
                          {"run_a": "base", "run_b": "dpo", "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01}])
    found = verdict._pair_differences(tests, "dpo").set_index("other")
    assert tuple(found.loc["sft", ["difference", "low", "high"]]) == (0.2, 0.1, 0.3)
    assert tuple(found.loc["base", ["difference", "low", "high"]]) == (-0.2, -0.3, -0.1), "a turned pair turns its interval"
