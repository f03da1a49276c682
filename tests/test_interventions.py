"""Updates built from updates, against dense algebra and PEFT's own models, and what is stored of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_adapter
from peft import PeftModel

from adapter_geometry import updates
from adapter_geometry.adapters import load_update
from adapter_geometry.updates import Factors
from helpers.analysis import interventions
from helpers.evaluation import answering, statistics

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def dense(update):
    """{module: scale B A} as float64 arrays."""
    return {
        module: (factors.scale * factors.B.double() @ factors.A.double()).numpy()
        for module, factors in update.items()
    }


def flat(update):
    return np.concatenate([matrix.ravel() for matrix in dense(update).values()])


def assert_equal(update, expected, message):
    for module, matrix in dense(expected).items():
        np.testing.assert_allclose(
            dense(update)[module], matrix, atol=1e-6, err_msg=f"{message}, in {module}"
        )


@pytest.fixture
def adapters(tiny_model, with_adapter, tmp_path):
    """Folders of two adapters of one small model with grouped keys, whose rows differ."""
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        fill_adapter(with_adapter(tiny_model(), target_modules=TARGETS), seed + 5).save_pretrained(
            tmp_path / name
        )
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture
def pair(adapters):
    return tuple(load_update(folder) for folder in adapters)


# --- length and parts ----------------------------------------------------------------------------------------------


def test_scaling_to_a_norm_hits_it_and_keeps_the_direction(pair):
    first, second = pair
    found = flat(interventions.at_norm(first, second))
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(flat(second)), rel=1e-6), (
        "the length of the other, all modules together"
    )
    np.testing.assert_allclose(
        found / np.linalg.norm(found),
        flat(first) / np.linalg.norm(flat(first)),
        atol=1e-7,
        err_msg="the direction of its own",
    )


def test_the_parts_along_and_without_are_those_of_least_squares_and_sum_back_to_the_update(pair):
    along, without = interventions.along(*pair), interventions.without(*pair)
    (update, reference), (parallel, rest) = map(flat, pair), map(flat, (along, without))
    coefficient = np.linalg.lstsq(reference[:, None], update, rcond=None)[0]
    np.testing.assert_allclose(
        parallel,
        reference * coefficient,
        atol=1e-7,
        err_msg="the multiple of the reference that comes closest, one for all modules",
    )
    np.testing.assert_allclose(parallel + rest, update, atol=1e-6, err_msg="nothing is lost")
    assert abs(rest @ reference) < 1e-7 * np.linalg.norm(rest) * np.linalg.norm(reference), (
        "what is left is at right angles to the reference"
    )
    assert any(
        abs((matrix * dense(pair[1])[module]).sum()) > 1e-3
        for module, matrix in dense(without).items()
    ), "as a whole, and not module by module"


def test_nothing_is_left_of_an_update_without_itself(pair):
    np.testing.assert_allclose(flat(interventions.without(pair[0], pair[0])), 0, atol=1e-9)
    assert_equal(
        interventions.along(pair[0], pair[0]), pair[0], "the part along itself is the whole"
    )


@pytest.mark.parametrize("count", [2, 3], ids=["two layers", "three, an odd number"])
def test_early_and_late_layers_are_disjoint_and_make_the_whole(count):
    generator = torch.Generator().manual_seed(0)
    update = {
        f"model.layers.{layer}.self_attn.q_proj": Factors(
            torch.randn(4, 2, generator=generator), torch.randn(2, 5, generator=generator), 2.0
        )
        for layer in range(count)
    }
    early, late = (interventions.of_layers(update, half) for half in ("early", "late"))
    assert_equal(updates.combine([early, late], [1, 1]), update, "early + late")
    assert [bool(np.any(matrix)) for matrix in dense(early).values()] == [
        layer < count // 2 for layer in range(count)
    ], "the first half of the layers"
    assert flat(early) @ flat(late) == 0, "no layer is in both"


# --- singular vectors ----------------------------------------------------------------------------------------------


def cosines(first, second):
    """Absolute overlaps of the columns of two matrices of unit columns."""
    return np.abs((first * second).sum(0))


def test_a_swap_takes_each_side_and_the_singular_values_from_where_it_says(pair):
    first, second = pair
    for lengths in pair:
        found = interventions.swapped(first, second, lengths)
        for module, matrix in dense(found).items():
            U, sigma, Vh = np.linalg.svd(matrix)
            rank = first[module].A.shape[0]
            of_left, of_right = (
                np.linalg.svd(dense(first)[module])[0],
                np.linalg.svd(dense(second)[module])[2],
            )
            values = np.linalg.svd(dense(lengths)[module])[1]
            np.testing.assert_allclose(
                sigma[:rank], values[:rank], rtol=1e-5, err_msg=f"singular values of {module}"
            )
            np.testing.assert_allclose(
                cosines(U[:, :rank], of_left[:, :rank]),
                1,
                atol=1e-5,
                err_msg=f"left vectors of {module}",
            )
            np.testing.assert_allclose(
                cosines(Vh[:rank].T, of_right[:rank].T),
                1,
                atol=1e-5,
                err_msg=f"right vectors of {module}",
            )


def test_a_swap_with_itself_changes_nothing(pair):
    assert_equal(
        interventions.swapped(pair[0], pair[0], pair[0]),
        pair[0],
        "left, right and lengths of one update",
    )


def test_a_swap_of_nearly_equal_updates_is_near_to_them_whatever_the_signs_of_their_vectors(pair):
    near = updates.combine([pair[0], pair[1]], [1.0, 1e-4])
    found = interventions.swapped(pair[0], near, pair[0])
    distance = np.linalg.norm(flat(found) - flat(pair[0])) / np.linalg.norm(flat(pair[0]))
    assert distance < 1e-2, "a pair (u, v) is as good as (-u, -v), and the swap must not mix them"


def test_a_swap_does_not_depend_on_how_the_factors_are_written(pair):
    generator = torch.Generator().manual_seed(3)
    rewritten = {}
    for module, factors in pair[1].items():
        M = torch.randn(
            factors.A.shape[0], factors.A.shape[0], generator=generator, dtype=torch.float64
        )
        rewritten[module] = Factors(
            factors.B.double() @ M, torch.linalg.inv(M) @ factors.A.double(), factors.scale
        )
    assert_equal(
        interventions.swapped(pair[0], rewritten, pair[0]),
        interventions.swapped(pair[0], pair[1], pair[0]),
        "B M and M^-1 A are the same update",
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_turning_one_side_keeps_the_other_side_and_every_singular_value(side, pair):
    found, before = dense(interventions.rotated(pair[0], side)), dense(pair[0])
    for module, matrix in before.items():
        kept = (lambda X: X.T @ X) if side == "left" else (lambda X: X @ X.T)
        np.testing.assert_allclose(
            kept(found[module]),
            kept(matrix),
            atol=1e-6,
            err_msg=f"{module}: Gram matrix of the side that was not turned",
        )
        assert np.linalg.norm(found[module] - matrix) > 0.5 * np.linalg.norm(matrix), (
            f"{module}: the other side points elsewhere"
        )
    again, other = (interventions.rotated(pair[0], side, seed) for seed in (0, 1))
    assert_equal(again, interventions.rotated(pair[0], side), "a seed draws one rotation")
    assert np.abs(flat(again) - flat(other)).max() > 0.1, "another seed another"


def test_a_random_update_has_each_modules_norm_and_rows_but_not_its_direction(pair):
    found, before = interventions.random_like(pair[0]), pair[0]
    for module, matrix in dense(found).items():
        assert np.linalg.norm(matrix) == pytest.approx(
            np.linalg.norm(dense(before)[module]), rel=1e-6
        ), f"norm of {module}"
        Q = np.linalg.qr(before[module].A.double().numpy().T)[0]
        np.testing.assert_allclose(
            matrix @ Q @ Q.T,
            matrix,
            atol=1e-6,
            err_msg=f"rows of {module} stay in the row space of A",
        )
    assert abs(flat(found) @ flat(before)) < 0.3 * updates.norm(before) ** 2, "direction"


# --- merges --------------------------------------------------------------------------------------------------------


def logits(model):
    return model(input_ids=torch.arange(20)[None]).logits[0]


def with_update(model, update):
    updates.put(model, updates.weights_of(model, update), update)
    return model


MERGES = {
    "cat": {"combination": "cat"},
    "linear": {"combination": "linear", "weight": 0.7},
    "ties": {"combination": "ties_svd", "density": 0.5},
    "dare": {"combination": "dare_linear_svd", "density": 0.5, "weight": 0.5},
}


@pytest.mark.parametrize("case", MERGES)
def test_a_merge_is_the_model_that_peft_makes(case, adapters, pair, tiny_model):
    options = MERGES[case]
    found = with_update(
        tiny_model(), interventions.merged_by_peft(*pair, base=tiny_model(), **options)
    )
    model = PeftModel.from_pretrained(tiny_model(), adapters[0], adapter_name="one")
    model.load_adapter(adapters[1], adapter_name="two")
    torch.manual_seed(0)
    model.add_weighted_adapter(
        ["one", "two"],
        [options.get("weight", 1.0)] * 2,
        "both",
        options["combination"],
        svd_rank=8,
        density=options.get("density"),
    )
    model.set_adapter("both")
    assert (logits(model) - logits(tiny_model())).abs().max() > 0.1, (
        "the merged adapter does something"
    )
    torch.testing.assert_close(
        logits(found),
        logits(model),
        rtol=1e-3,
        atol=1e-3,
        msg=f"{case}: our factors in the base, and PEFT's model",
    )


def test_pefts_cat_is_the_exact_sum_and_its_linear_mix_is_not(pair, tiny_model):
    cat, linear = (
        interventions.merged_by_peft(*pair, base=tiny_model(), combination=kind)
        for kind in ("cat", "linear")
    )
    assert_equal(cat, interventions.sum_of(*pair), "B1 A1 + B2 A2")
    cross = flat(linear) - flat(interventions.sum_of(*pair))
    assert np.linalg.norm(cross) > 0.3 * updates.norm(interventions.sum_of(*pair)), (
        "(B1 + B2)(A1 + A2) has cross terms"
    )


@pytest.mark.filterwarnings("ignore:The density 1.0")
def test_merges_of_an_update_with_itself_are_known(pair, tiny_model):
    same = (pair[0], pair[0])
    assert_equal(interventions.mean_of(*same), pair[0], "the mean")
    assert_equal(
        interventions.merged_by_peft(*same, base=tiny_model(), combination="ties_svd", density=1.0),
        pair[0],
        "TIES without trimming",
    )
    half = interventions.merged_by_peft(*same, base=tiny_model(), combination="linear", weight=0.5)
    assert_equal(
        half,
        interventions.scaled(pair[0], 2.0),
        "the linear mix with weights of one half: (1/sqrt 2 + 1/sqrt 2)^2 = 2 times the update",
    )


def test_dare_keeps_a_share_of_the_entries_and_rescales_them(pair, tiny_model):
    found = interventions.merged_by_peft(
        pair[0], pair[0], base=tiny_model(), combination="dare_linear_svd", density=0.5, weight=0.5
    )
    narrow = [
        module for module, factors in pair[0].items() if factors.B.shape[0] == 8
    ]  # of full rank 8, so that PEFT cuts nothing off
    made, before = (
        np.stack([dense(update)[module] for module in narrow]) for update in (found, pair[0])
    )
    assert np.abs(made - np.multiply.outer([0, 1, 2], before)).min(0).max() < 1e-5, (
        "each entry of each copy is dropped or doubled, and the copies are averaged"
    )
    assert (made * before).sum() / (before**2).sum() == pytest.approx(1, abs=0.15), (
        "on average the update itself"
    )


# --- scales that reach a divergence --------------------------------------------------------------------------------

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
    found = interventions.bisected(curve, curve(t))
    assert found["reached"] == pytest.approx(found["aim"], rel=interventions.TOLERANCE), (
        "the divergence that was reached"
    )
    assert curve(found["scale"]) == found["reached"], "at the scale given"


def test_an_update_that_cannot_reach_the_aim_is_refused():
    with pytest.raises(ValueError, match="64 times the update stays below 2 nats"):
        interventions.bisected(lambda t: t / (1 + t), 2.0)


# --- measured and stored -------------------------------------------------------------------------------------------


@pytest.fixture
def study(smoke, table):
    """The smoke profile with rates so high that KL is far above rounding."""
    faster = {
        name: smoke.runs[name].model_copy(update={"learning_rate": rate})
        for name, rate in (("sft", 0.1), ("dpo", 0.03))
    }
    return smoke.model_copy(update={"runs": {**smoke.runs, **faster}})


def test_a_matched_divergence_is_reached_once_and_then_kept(study, monkeypatch):
    name = "sft at dpo's kl"
    aim, reached = (
        rows.nats.sum() / rows.tokens.sum()
        for rows in (
            interventions.divergences(study, "dpo"),
            interventions.divergences(study, name),
        )
    )
    assert reached == pytest.approx(aim, rel=interventions.TOLERANCE), (
        "nats a token, along the same texts of the base"
    )
    found, whole = (flat(interventions.update_of(study, part)) for part in (name, "sft"))
    np.testing.assert_allclose(
        found,
        whole * (found @ whole) / (whole @ whole),
        atol=1e-7,
        err_msg="SFT's update, times one number",
    )
    monkeypatch.setattr(
        interventions, "bisected", lambda *_: pytest.fail("the scale was searched for again")
    )
    np.testing.assert_array_equal(flat(interventions.update_of(study, name)), found)


def test_the_model_measured_is_the_base_with_both_adapters_merged(study, monkeypatch):
    seen = []
    answer = answering.answer
    monkeypatch.setattr(
        answering,
        "answer",
        lambda profile, model, *rest, **options: (
            seen.append(model) or answer(profile, model, *rest, **options)
        ),
    )
    records = interventions.records(study, "sum of sft and dpo")
    base, sft, dpo = (
        answering.load_model_of(study, run).state_dict()
        for run in ("base", study.runs["sft"], study.runs["dpo"])
    )
    for key, weight in seen[-1].state_dict().items():
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
    count = len(seen)
    pd.testing.assert_frame_equal(interventions.records(study, "sum of sft and dpo"), records)
    assert len(seen) == count, "stored answers are read, not written again"


def test_an_intervention_is_measured_anew_when_one_of_its_runs_changes(study, monkeypatch):
    first = interventions.divergences(study, "sft times 2")
    slower = study.model_copy(
        update={
            "runs": {
                **study.runs,
                "sft": study.runs["sft"].model_copy(update={"learning_rate": 0.01}),
            }
        }
    )
    assert interventions.divergences(slower, "sft times 2").nats.sum() < 0.5 * first.nats.sum(), (
        "a smaller update is nearer to the base"
    )
    pd.testing.assert_frame_equal(interventions.divergences(study, "sft times 2"), first)


def test_the_table_gives_runs_and_the_base_by_the_same_measure(study):
    found = interventions.table(study, ["base", "sft", "sft times 2"]).set_index("part")
    assert found.kl["base"] == found.norm["base"] == 0, "the base is not away from itself"
    assert found.norm["sft times 2"] == pytest.approx(2 * found.norm["sft"]), "norm of the update"
    assert found.kl["sft times 2"] > found.kl["sft"] > 0, (
        "twice the update is further from the base"
    )
    assert set(found.run) == {"base", "sft"}, "the run that gives the colour"
    answered = answering.evaluate(study, study.runs["sft"])
    assert found.accuracy["sft"] == answered[answered.split == "test"].correct.mean(), (
        "a run's row comes from its own evaluation"
    )


def test_only_interventions_of_runs_that_exist_are_planned_and_other_names_are_refused(smoke):
    without_dpo = smoke.model_copy(
        update={"runs": {name: run for name, run in smoke.runs.items() if name != "dpo-matched"}}
    )
    gone = set(interventions.planned(smoke)) - set(interventions.planned(without_dpo))
    assert gone == {"dpo-matched at sft's norm", "sft at dpo-matched's kl"}
    with pytest.raises(
        ValueError,
        match="'sft times 7' is neither a run of profile 'smoke' nor one of its interventions",
    ):
        interventions.records(smoke, "sft times 7")


def planted(monkeypatch, answers, nats):
    """Make `records` and `divergences` give what a test plants: {name: correct} and {name: nats a token}."""
    monkeypatch.setattr(
        interventions,
        "records",
        lambda _, name: pd.DataFrame(
            {"problem_id": range(len(answers[name])), "split": "test", "correct": answers[name]}
        ),
    )
    monkeypatch.setattr(
        interventions,
        "divergences",
        lambda _, name: pd.DataFrame({"nats": [10 * nats[name]], "tokens": [10]}),
    )


def test_paired_tests_are_those_of_the_statistics_on_the_four_cells(smoke, monkeypatch):
    rng = np.random.default_rng(0)
    answers = {name: rng.random(80) < share for name, share in (("a", 0.8), ("b", 0.5), ("c", 0.5))}
    planted(monkeypatch, answers, {})
    found = interventions.compared(smoke, [("a", "b"), ("b", "c")])
    expected = statistics.mcnemar_table(
        pd.concat(
            [
                pd.DataFrame(
                    {"run": name, "split": "test", "problem_id": range(80), "correct": values}
                )
                for name, values in answers.items()
            ]
        )
    ).set_index(["run_a", "run_b"])
    for row in found.itertuples():
        other = expected.loc[row.part, row.against]
        measured, wanted = ((line.difference, line.low, line.high, line.p) for line in (row, other))
        assert measured == pytest.approx(wanted), f"{row.part} against {row.against}"
    np.testing.assert_allclose(
        found.p_holm,
        statistics.holm(found.p),
        err_msg="corrected over the pairs asked for, and no others",
    )


def test_excess_over_scaling_is_zero_on_the_curve_and_the_planted_height_above_it(
    smoke, monkeypatch
):
    scales = {
        "base": 0.0,
        **{f"sft times {t:g}": t for t in interventions.SCALES["sft"]},
        "sft": 1.0,
    }
    nats = {name: 0.2 * t**2 for name, t in scales.items()}
    count = 400
    answers = {name: np.arange(count) < count * (1 - t / 4) for name, t in scales.items()}
    answers |= {
        "same": answers["sft times 0.5"],
        "between": np.arange(count) < 370,
        "better": np.arange(count) < 390,
    }  # 1 - 0.3 / 4 of 400, and 0.05 more
    answers["far"] = answers["sft"]
    nats |= {
        "same": nats["sft times 0.5"],
        "between": 0.2 * 0.3**2,
        "better": 0.2 * 0.3**2,
        "far": 0.2 * 3**2,
    }
    planted(monkeypatch, answers, nats)
    found = interventions.above_scaling(
        smoke, ["same", "between", "better", "far"], "sft"
    ).set_index("part")
    assert found.difference["same"] == pytest.approx(0), "a point of the curve is on it"
    assert found.difference["between"] == pytest.approx(0, abs=1e-9), (
        "accuracy and length fall on a straight line here, and so do the points between"
    )
    assert found.difference["better"] == pytest.approx(0.05), "planted height"
    assert found.p_holm["better"] < 0.01 < 0.9 < found.p_holm["between"], (
        "five points of 400 problems that all differ the same way"
    )
    assert found.loc["better", "low"] < 0.05 < found.loc["better", "high"], (
        "the interval holds the truth"
    )
    assert found.loc["far", ["difference", "p_holm"]].isna().all(), (
        "beyond the curve's end there is nothing to compare with"
    )
