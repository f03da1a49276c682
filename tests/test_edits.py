"""Updates built from updates, against dense algebra and PEFT's own models."""

import numpy as np
import pytest
import small_updates
import torch
from conftest import fill_adapter
from peft import PeftModel

from adapter_geometry import updates
from adapter_geometry.adapters import load_update
from adapter_geometry.updates import Factors
from helpers.analysis import edits

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def dense(update):
    """{module: scale B A} as float64 arrays."""
    return {module: small_updates.dense(factors) for module, factors in update.items()}


def flat(update):
    return small_updates.stacked(update, update)


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
        adapted = with_adapter(tiny_model(), target_modules=TARGETS)
        fill_adapter(adapted, seed + 5).save_pretrained(tmp_path / name)
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture
def pair(adapters):
    return tuple(load_update(folder) for folder in adapters)


# --- length and parts -----------------------------------------------------------------------------


def test_scaling_to_a_norm_hits_it_and_keeps_the_direction(pair):
    scaled, first, second = map(flat, (edits.at_norm(*pair), *pair))
    assert np.linalg.norm(scaled) == pytest.approx(np.linalg.norm(second), rel=1e-6), (
        "the length of the other, all modules together"
    )
    unit, own = scaled / np.linalg.norm(scaled), first / np.linalg.norm(first)
    np.testing.assert_allclose(unit, own, atol=1e-7, err_msg="the direction of its own")


def test_the_parts_along_and_without_are_those_of_least_squares_and_sum_back_to_the_update(pair):
    along, without = edits.along(*pair), edits.without(*pair)
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
    in_modules = [
        abs((matrix * dense(pair[1])[module]).sum()) for module, matrix in dense(without).items()
    ]
    assert any(inner > 1e-3 for inner in in_modules), "as a whole, and not module by module"


def test_nothing_is_left_of_an_update_without_itself(pair):
    np.testing.assert_allclose(flat(edits.without(pair[0], pair[0])), 0, atol=1e-9)
    assert_equal(edits.along(pair[0], pair[0]), pair[0], "the part along itself is the whole")


@pytest.mark.parametrize("count", [2, 3], ids=["two layers", "three, an odd number"])
def test_early_and_late_layers_are_disjoint_and_make_the_whole(count):
    generator = torch.Generator().manual_seed(0)
    update = {
        f"model.layers.{layer}.self_attn.q_proj": Factors(
            torch.randn(4, 2, generator=generator), torch.randn(2, 5, generator=generator), 2.0
        )
        for layer in range(count)
    }
    early, late = (edits.of_layers(update, half) for half in ("early", "late"))
    assert_equal(updates.combine([early, late], [1, 1]), update, "early + late")
    assert [bool(np.any(matrix)) for matrix in dense(early).values()] == [
        layer < count // 2 for layer in range(count)
    ], "the first half of the layers"
    assert flat(early) @ flat(late) == 0, "no layer is in both"


# --- singular vectors -----------------------------------------------------------------------------


def cosines(first, second):
    """Absolute overlaps of the columns of two matrices of unit columns."""
    return np.abs((first * second).sum(0))


@pytest.mark.parametrize("number", [0, 1], ids=["its own lengths", "the other's lengths"])
def test_a_swap_takes_each_side_and_the_singular_values_from_where_it_says(number, pair):
    (first, second), lengths = pair, pair[number]
    for module, matrix in dense(edits.swapped(first, second, lengths)).items():
        rank = first[module].A.shape[0]
        U, sigma, Vh = np.linalg.svd(matrix)
        left = np.linalg.svd(dense(first)[module])[0]
        right = np.linalg.svd(dense(second)[module])[2]
        values = np.linalg.svd(dense(lengths)[module])[1]
        np.testing.assert_allclose(
            sigma[:rank], values[:rank], rtol=1e-5, err_msg=f"singular values of {module}"
        )
        overlaps = cosines(U[:, :rank], left[:, :rank])
        np.testing.assert_allclose(overlaps, 1, atol=1e-5, err_msg=f"left vectors of {module}")
        overlaps = cosines(Vh[:rank].T, right[:rank].T)
        np.testing.assert_allclose(overlaps, 1, atol=1e-5, err_msg=f"right vectors of {module}")


def test_a_swap_with_itself_changes_nothing(pair):
    swapped = edits.swapped(pair[0], pair[0], pair[0])
    assert_equal(swapped, pair[0], "left, right and lengths of one update")


def test_a_swap_of_nearly_equal_updates_is_near_to_them_whatever_the_signs_of_their_vectors(pair):
    near = updates.combine([pair[0], pair[1]], [1.0, 1e-4])
    swapped, update = flat(edits.swapped(pair[0], near, pair[0])), flat(pair[0])
    distance = np.linalg.norm(swapped - update) / np.linalg.norm(update)
    assert distance < 1e-2, "a pair (u, v) is as good as (-u, -v), and the swap must not mix them"


def test_a_swap_does_not_depend_on_how_the_factors_are_written(pair):
    generator = torch.Generator().manual_seed(3)
    rewritten = {}
    for module, factors in pair[1].items():
        rank = factors.A.shape[0]
        M = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
        B, A = factors.B.double() @ M, torch.linalg.inv(M) @ factors.A.double()
        rewritten[module] = Factors(B, A, factors.scale)
    assert_equal(
        edits.swapped(pair[0], rewritten, pair[0]),
        edits.swapped(pair[0], pair[1], pair[0]),
        "B M and M^-1 A are the same update",
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_rotating_one_side_keeps_the_other_side_and_every_singular_value(side, pair):
    rotated, before = dense(edits.rotated(pair[0], side)), dense(pair[0])
    for module, matrix in before.items():
        gram = (lambda X: X.T @ X) if side == "left" else (lambda X: X @ X.T)
        np.testing.assert_allclose(
            gram(rotated[module]),
            gram(matrix),
            atol=1e-6,
            err_msg=f"{module}: Gram matrix of the side that was not rotated",
        )
        assert np.linalg.norm(rotated[module] - matrix) > 0.5 * np.linalg.norm(matrix), (
            f"{module}: the other side points elsewhere"
        )
    again, other = (edits.rotated(pair[0], side, seed) for seed in (0, 1))
    assert_equal(again, edits.rotated(pair[0], side), "a seed draws one rotation")
    assert np.abs(flat(again) - flat(other)).max() > 0.1, "another seed another"


def test_a_random_update_has_each_modules_norm_and_rows_but_not_its_direction(pair):
    drawn, before = edits.random_like(pair[0]), pair[0]
    for module, matrix in dense(drawn).items():
        norm = np.linalg.norm(dense(before)[module])
        assert np.linalg.norm(matrix) == pytest.approx(norm, rel=1e-6), f"norm of {module}"
        Q = np.linalg.qr(before[module].A.double().numpy().T)[0]
        np.testing.assert_allclose(
            matrix @ Q @ Q.T,
            matrix,
            atol=1e-6,
            err_msg=f"rows of {module} stay in the row space of A",
        )
    assert abs(flat(drawn) @ flat(before)) < 0.3 * updates.norm(before) ** 2, "direction"


# --- merges ---------------------------------------------------------------------------------------


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
    merged = edits.merged_by_peft(*pair, base=tiny_model(), **options)
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
        logits(with_update(tiny_model(), merged)),
        logits(model),
        rtol=1e-3,
        atol=1e-3,
        msg=f"{case}: our factors in the base, and PEFT's model",
    )


def test_pefts_cat_is_the_exact_sum_and_its_linear_mix_is_not(pair, tiny_model):
    cat, linear = (
        edits.merged_by_peft(*pair, base=tiny_model(), combination=kind)
        for kind in ("cat", "linear")
    )
    assert_equal(cat, edits.sum_of(*pair), "B1 A1 + B2 A2")
    cross = flat(linear) - flat(edits.sum_of(*pair))
    assert np.linalg.norm(cross) > 0.3 * updates.norm(edits.sum_of(*pair)), (
        "(B1 + B2)(A1 + A2) has cross terms"
    )


@pytest.mark.filterwarnings("ignore:The density 1.0")
def test_merges_of_an_update_with_itself_are_known(pair, tiny_model):
    same = (pair[0], pair[0])
    assert_equal(edits.mean_of(*same), pair[0], "the mean")
    assert_equal(
        edits.merged_by_peft(*same, base=tiny_model(), combination="ties_svd", density=1.0),
        pair[0],
        "TIES without trimming",
    )
    half = edits.merged_by_peft(*same, base=tiny_model(), combination="linear", weight=0.5)
    assert_equal(
        half,
        edits.scaled(pair[0], 2.0),
        "the linear mix with weights of one half: (1/sqrt 2 + 1/sqrt 2)^2 = 2 times the update",
    )


def test_dare_keeps_a_share_of_the_entries_and_rescales_them(pair, tiny_model):
    merged = edits.merged_by_peft(
        pair[0], pair[0], base=tiny_model(), combination="dare_linear_svd", density=0.5, weight=0.5
    )
    # Of full rank 8, so that PEFT cuts nothing off.
    narrow = [module for module, factors in pair[0].items() if factors.B.shape[0] == 8]
    entries, before = (
        np.stack([dense(update)[module] for module in narrow]) for update in (merged, pair[0])
    )
    assert np.abs(entries - np.multiply.outer([0, 1, 2], before)).min(0).max() < 1e-5, (
        "each entry of each copy is dropped or doubled, and the copies are averaged"
    )
    assert (entries * before).sum() / (before**2).sum() == pytest.approx(1, abs=0.15), (
        "on average the update itself"
    )
