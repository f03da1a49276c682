"""Geometry from the factors against the dense updates, planted answers and bands of chance."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.stats import ortho_group
from small_updates import Q_PROJ, dense, factors_of, orthonormal, planted, stacked, three_runs

from adapter_geometry import geometry, updates
from adapter_geometry.chance import gaussian_null, matched_null
from adapter_geometry.updates import Factors

SIDES = ("left", "right")
SCIPY = 1e-7  # where a small angle comes with a large one, scipy takes the arccos of the small one
pytestmark = pytest.mark.filterwarnings("error")


def compare(k=None, **runs):
    """Compare updates of one module, given as {run: Factors}."""
    return geometry.compare({run: {Q_PROJ: factors} for run, factors in runs.items()}, k)


def random_adapters(seed):
    """Two to four runs on a few modules.

    Shapes differ between modules, ranks between modules and runs, and may exceed the shape.
    """
    rng = np.random.default_rng(seed)
    runs = ["a", "b", "c", "d"][: rng.integers(2, 5)]
    adapters = {run: {} for run in runs}
    for layer in range(rng.integers(1, 4)):
        for projection in rng.choice(
            ["q_proj", "k_proj", "o_proj"], rng.integers(1, 4), replace=False
        ):
            d_out, d_in = rng.integers(1, 15, 2)
            for run in runs:
                r = rng.integers(1, 7)
                B, A = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
                adapters[run][f"model.layers.{layer}.self_attn.{projection}"] = factors_of(
                    B, A, float(rng.uniform(-3, 3))
                )
    return adapters


class Dense:
    """What `compare` measures, by numpy's SVD of the dense updates."""

    def __init__(self, factors, k):
        self.matrix = dense(factors)
        self.U, sigma, Vh = np.linalg.svd(self.matrix)
        self.rank = min(factors.A.shape[0], *self.matrix.shape)  # of random factors
        self.sigma = np.pad(sigma, (0, factors.A.shape[0]))[: factors.A.shape[0]]
        self.top = {"left": self.U[:, : min(k, self.rank)], "right": Vh.T[:, : min(k, self.rank)]}


# --- against the dense computation ----------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_every_measure_is_that_of_the_dense_updates(seed):
    adapters = random_adapters(seed)
    k = int(np.random.default_rng(seed).integers(1, 4))
    compared = geometry.compare(adapters, k)
    for number, module in enumerate(compared.modules.module):
        solved = [Dense(adapters[run][module], k) for run in compared.runs]
        matrices = np.stack([one.matrix for one in solved])  # (run, d_out, d_in)
        norms = np.linalg.norm(matrices, axis=(1, 2))
        shape = compared.modules.d_out[number], compared.modules.d_in[number]
        assert shape == matrices.shape[1:], "shape of the dense update"
        ranks = [adapters[run][module].A.shape[0] for run in compared.runs]
        assert compared.rank[number].tolist() == ranks, "rank of the factors"
        for i, one in enumerate(solved):
            np.testing.assert_allclose(
                compared.singular_values[number, i, : len(one.sigma)],
                one.sigma,
                rtol=1e-9,
                atol=1e-12 * one.sigma[0],
                err_msg="singular values are those of the dense update",
            )
            assert np.isnan(compared.singular_values[number, i, len(one.sigma) :]).all(), (
                "NaN beyond the rank"
            )
        products = matrices[:, None] @ matrices.mT  # (run, run, d_out, d_out)
        np.testing.assert_allclose(
            compared.inner[number],
            np.trace(products, axis1=2, axis2=3),
            rtol=1e-9,
            atol=1e-12 * np.prod(norms[:2]),
            err_msg="<dW_i, dW_j>",
        )
        np.testing.assert_allclose(
            compared.cross[number],
            np.linalg.norm(products, axis=(2, 3)) ** 2,
            rtol=1e-9,
            err_msg="|dW_i dW_j'|^2",
        )
        captured = [np.linalg.norm(one.top["left"].T @ matrices, axis=(1, 2)) for one in solved]
        np.testing.assert_allclose(
            compared.alignment[number],
            np.array(captured) / norms,
            rtol=1e-8,
            atol=1e-10,
            err_msg="|U_k U_k' dW_j| / |dW_j|",
        )
        for side in SIDES:
            angles = np.full(compared.angles[side][number].shape, np.nan)
            for i, j in np.ndindex(angles.shape[:2]):
                pair = subspace_angles(solved[i].top[side], solved[j].top[side])[::-1]
                angles[i, j, : len(pair)] = pair
            np.testing.assert_allclose(
                compared.angles[side][number],
                angles,
                rtol=1e-8,
                atol=SCIPY,
                err_msg=f"{side} angles, fewer and then NaN with an update of rank below k",
            )
            first = np.stack([one.top[side][:, 0] for one in solved])
            np.testing.assert_allclose(
                compared.first[side][number],
                abs(first @ first.T),
                rtol=1e-8,
                atol=1e-10,
                err_msg=f"first {side} vectors",
            )


def in_scope(table, scope, module, layer, projection, **columns):
    """The one row of a table with these values; None stands for a value that is missing."""
    named = {"scope": scope, "module": module, "layer": layer, "projection": projection}
    rows = table
    for column, value in (named | columns).items():
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    assert len(rows) == 1, f"one row for {named} {columns}"
    return rows.iloc[0]


@pytest.fixture(scope="module")
def study():
    return three_runs()


def scopes_of(study):
    """{(scope, module, layer, projection): the modules it stacks}."""
    modules = {module: updates.layer_and_projection(module) for module in study["a"]}
    of_layers = {
        ("layer", None, wanted, None): [
            module for module, (layer, _) in modules.items() if layer == wanted
        ]
        for wanted in range(3)
    }
    of_projections = {
        ("projection", None, None, wanted): [
            module for module, (_, projection) in modules.items() if projection == wanted
        ]
        for wanted in ("q_proj", "o_proj")
    }
    of_modules = {("module", module, *named): [module] for module, named in modules.items()}
    return {("global", None, None, None): list(modules)} | of_layers | of_projections | of_modules


def test_cosines_of_every_scope_are_those_of_the_stacked_dense_updates(study):
    table = geometry.cosine_table(geometry.compare(study))
    assert len(table) == 3 * len(scopes_of(study)), "every pair in every scope, and nothing else"
    for scope, modules in scopes_of(study).items():
        for one, two in (("a", "b"), ("a", "c"), ("b", "c")):
            x, y = stacked(study[one], modules), stacked(study[two], modules)
            row = in_scope(table, *scope, run_a=one, run_b=two)
            assert row.cosine == pytest.approx(
                x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-10
            ), f"cosine of {scope}"
            variance = sum(
                np.linalg.norm(dense(study[one][m]) @ dense(study[two][m]).T) ** 2
                / len(dense(study[one][m]))
                for m in modules
            )
            high = 1.959964 * np.sqrt(variance) / np.linalg.norm(x) / np.linalg.norm(y)
            assert (row.chance_low, row.chance_high) == pytest.approx((-high, high), rel=1e-6), (
                f"95 % band of {scope} from the dense updates"
            )


def test_orthogonal_parts_of_every_scope_are_those_of_the_dense_projection(study):
    compared = geometry.compare(study)
    table = geometry.orthogonal_table(compared)
    assert len(table) == 6 * len(scopes_of(study)), "every ordered pair in every scope"
    for scope, modules in scopes_of(study).items():
        for run, reference in (("a", "b"), ("c", "a")):
            x, R = stacked(study[run], modules), stacked(study[reference], modules)
            orthogonal = np.linalg.norm(x - (x @ R) / (R @ R) * R) / np.linalg.norm(x)
            row = in_scope(table, *scope, run=run, reference=reference)
            assert (row.by_norm, row.by_energy) == pytest.approx(
                (orthogonal, orthogonal**2), rel=1e-9
            ), f"what is left of {run} without {reference}, {scope}"
    assert set(geometry.orthogonal_table(compared, ["c"]).reference) == {"c"}, (
        "only the references asked for"
    )


def test_norms_and_ranks_are_those_of_the_dense_updates(study):
    base = {module: 10.0 + number for number, module in enumerate(study["a"])}
    table = geometry.updates_table(geometry.compare(study), base)
    for run, update in study.items():
        own, effective = table[table.run == run], []
        for module, factors in update.items():
            row = in_scope(own, "module", module, *updates.layer_and_projection(module))
            sigma = np.linalg.svd(dense(factors), compute_uv=False)[: factors.A.shape[0]]
            share = sigma / sigma.sum()
            effective.append(np.exp(-(share * np.log(share)).sum()))
            expected = {
                "norm": np.linalg.norm(sigma),
                "relative_norm": np.linalg.norm(sigma) / base[module],
                "effective_rank": effective[-1],
                "effective_rank_share": effective[-1] / len(sigma),
                "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
                "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
            }
            assert dict(row[list(expected)]) == pytest.approx(expected, rel=1e-9), f"{run} {module}"
        whole = in_scope(own, "global", None, None, None)
        total = np.linalg.norm(stacked(update, update))
        assert (whole.norm, whole.relative_norm) == pytest.approx(
            (total, total / np.linalg.norm(list(base.values())))
        ), "norms of everything stacked"
        assert whole.effective_rank == pytest.approx(np.mean(effective)), (
            "ranks are averaged over modules"
        )
    assert geometry.updates_table(geometry.compare(study)).relative_norm.isna().all(), (
        "no relative norm without the base"
    )


def test_modules_stand_in_the_order_of_the_network_and_runs_in_that_given():
    rng = np.random.default_rng(0)
    names = [
        "model.layers.10.self_attn.q_proj",
        "model.layers.2.self_attn.v_proj",
        "model.layers.2.self_attn.k_proj",
        "lm_head",
    ]
    update = {
        name: factors_of(rng.standard_normal((4, 2)), rng.standard_normal((2, 4))) for name in names
    }
    compared = geometry.compare({"z": update, "a": dict(reversed(update.items()))})
    assert list(compared.modules.module) == [names[3], names[2], names[1], names[0]], (
        "by layer as a number, then projection"
    )
    assert list(compared.modules.layer) == [pd.NA, 2, 2, 10], "one without a layer first"
    assert compared.runs == ["z", "a"], "runs are not sorted"
    np.testing.assert_allclose(
        compared.angles["left"],
        0,
        atol=1e-12,
        err_msg="the order of an update's modules is no property of it",
    )


@pytest.mark.parametrize("limit", ["_CHUNK", "_PAIRS", "_BLOCK"])
def test_measures_do_not_depend_on_how_modules_and_pairs_are_cut(limit, study, monkeypatch):
    whole = geometry.compare(study)
    monkeypatch.setattr(geometry, limit, 1)
    single = geometry.compare(study)
    for field in ("inner", "cross", "singular_values", "alignment"):
        np.testing.assert_allclose(
            getattr(single, field), getattr(whole, field), rtol=1e-10, atol=1e-12, err_msg=field
        )
    np.testing.assert_allclose(single.angles["left"], whole.angles["left"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stored_precision_is_no_precision_of_the_geometry(dtype, study):
    def as_stored(dtype):
        return {
            run: {m: Factors(f.B.to(dtype), f.A.to(dtype), f.scale) for m, f in update.items()}
            for run, update in study.items()
        }

    stored = as_stored(dtype)
    exact = {
        run: {m: Factors(f.B.double(), f.A.double(), f.scale) for m, f in update.items()}
        for run, update in stored.items()
    }
    compared, expected = geometry.compare(stored), geometry.compare(exact)
    for field in ("inner", "cross", "singular_values", "alignment"):
        np.testing.assert_array_equal(
            getattr(compared, field),
            getattr(expected, field),
            err_msg=f"{field} of the stored numbers, in float64",
        )
    np.testing.assert_array_equal(compared.angles["right"], expected.angles["right"])


def test_the_number_of_threads_changes_nothing(study, monkeypatch):
    # every module by itself, so that threads have something to share out
    monkeypatch.setattr(geometry, "_CHUNK", 1)
    comparisons = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        comparisons.append(geometry.compare(study))
        assert torch.get_num_threads() == threads, "the number of threads is left as it was"
    torch.set_num_threads(1)
    for field in ("inner", "cross", "singular_values", "alignment"):
        np.testing.assert_array_equal(
            getattr(comparisons[1], field),
            getattr(comparisons[0], field),
            err_msg=f"{field} with 1 and 2 threads",
        )
    for side in SIDES:
        np.testing.assert_array_equal(
            comparisons[1].angles[side],
            comparisons[0].angles[side],
            err_msg=f"{side} angles with 1 and 2 threads",
        )


# --- planted answers ------------------------------------------------------------------------------


def pair_at(rng, angles, d, r):
    """Two orthonormal (d, r) frames whose first k columns have these k principal angles.

    The other columns are shared.
    """
    E, k = orthonormal(rng, d, r + len(angles)), len(angles)
    rotated = E[:, :r].copy()
    rotated[:, :k] = np.cos(angles) * E[:, :k] + np.sin(angles) * E[:, r:]
    return E[:, :r], rotated


@pytest.mark.parametrize(
    "angles",
    [
        (1e-9, 1e-7, 1e-5),
        (1e-7, 1e-3, 1.5),
        (0.002, 0.02, 0.2),
        (0.0, 0.7, np.pi / 2),
        (0.3, 0.3, 0.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("condition", [1, 1e3])
def test_planted_angles_are_found_small_ones_to_their_own_size(angles, condition):
    rng, sigma = np.random.default_rng(0), [5, 4, 3, 1, 0.5, 0.2]
    other = np.array(angles)[::-1] / 2  # on the right
    (U1, U2), (V1, V2) = pair_at(rng, angles, 80, 6), pair_at(rng, other, 60, 6)
    # the basis in which the factors are given says nothing of the singular vectors
    mix = orthonormal(rng, 6, 6) * np.geomspace(1, condition, 6)
    one, two = (
        {"B": U * sigma @ mix, "A": np.linalg.inv(mix) @ V.T} for U, V in ((U1, V1), (U2, V2))
    )
    compared = compare(a=factors_of(**one), b=factors_of(**two), k=3)
    floor = 1e-15 * condition
    for side, expected in (("left", np.array(angles)), ("right", np.sort(other))):
        measured = compared.angles[side][0, 0, 1]
        np.testing.assert_allclose(
            measured,
            expected,
            rtol=1e-6,
            atol=20 * floor,
            err_msg=f"{side} angles; arccos alone would see nothing below 1e-8",
        )
        np.testing.assert_array_equal(
            measured, compared.angles[side][0, 1, 0], err_msg="an angle has no direction"
        )
    assert compared.first["left"][0, 0, 1] == pytest.approx(np.cos(angles[0]), abs=1e-9), (
        "the first vectors are the pair at the first angle"
    )


@pytest.mark.parametrize("side", SIDES)
def test_an_angle_on_one_side_is_none_on_the_other(side):
    rng, sigma = np.random.default_rng(1), [3, 2, 1]
    rotated, shared = pair_at(rng, [0.1, 0.4], 40, 3), orthonormal(rng, 30, 3)
    one, two = ((T, shared) if side == "left" else (shared, T) for T in rotated)
    compared = compare(a=planted(one[0], sigma, one[1]), b=planted(two[0], sigma, two[1]), k=2)
    other = SIDES[1 - SIDES.index(side)]
    np.testing.assert_allclose(
        compared.angles[side][0, 0, 1],
        [0.1, 0.4],
        rtol=1e-9,
        err_msg="left vectors are outputs, right ones inputs",
    )
    np.testing.assert_allclose(
        compared.angles[other][0, 0, 1], 0, atol=1e-13, err_msg="the other side is shared"
    )


def test_a_planted_spectrum_is_found_over_many_orders_of_magnitude():
    rng, sigma = np.random.default_rng(0), 10.0 ** -np.arange(0, 12, 2)
    compared = compare(
        a=planted(orthonormal(rng, 50, 6), sigma, orthonormal(rng, 40, 6), scale=0.25)
    )
    np.testing.assert_allclose(
        compared.singular_values[0, 0],
        sigma,
        rtol=1e-5,
        atol=1e-15,
        err_msg="singular values, to rounding of the largest",
    )


def test_measures_do_not_depend_on_the_unit_of_the_update():
    rng, sigma = np.random.default_rng(2), [3, 2, 1]
    U, V = pair_at(rng, [0.1, 0.4], 40, 3), pair_at(rng, [0.2, 0.3], 30, 3)
    plain = compare(a=planted(U[0], sigma, V[0]), b=planted(U[1], sigma, V[1]))
    small = compare(
        a=planted(U[0], sigma, V[0], scale=-2.0), b=factors_of(1e-30 * U[1] * sigma, V[1].T, 1e-5)
    )
    for side in SIDES:
        np.testing.assert_allclose(
            small.angles[side],
            plain.angles[side],
            rtol=1e-9,
            atol=1e-12,
            err_msg=f"{side} angles know directions only",
        )
        np.testing.assert_allclose(
            small.first[side], plain.first[side], rtol=1e-9, err_msg="first vectors have no sign"
        )
    np.testing.assert_allclose(
        np.abs(geometry.stacked_cosine(small)[0]),
        np.abs(geometry.stacked_cosine(plain)[0]),
        rtol=1e-9,
    )


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_measures_do_not_depend_on_the_gauge(condition):
    rng, r = np.random.default_rng(4), 8
    one, two = (
        factors_of(rng.standard_normal((60, r)), rng.standard_normal((r, 50))) for _ in range(2)
    )
    mix = (orthonormal(rng, r, r) * np.geomspace(1, condition, r)) @ orthonormal(rng, r, r)
    other_gauge = factors_of(one.B.numpy() @ mix, np.linalg.solve(mix, one.A.numpy()))
    assert np.linalg.cond(other_gauge.B.numpy()) > condition / 10, (
        "the factors are as ill-conditioned as the gauge"
    )
    compared = compare(a=one, other_gauge=other_gauge, b=two)
    tolerance = {"rtol": 1e-8, "atol": 1e-8}
    for field in ("inner", "cross", "alignment"):
        value = getattr(compared, field)[0] / abs(getattr(compared, field)[0]).max()
        np.testing.assert_allclose(
            value[1], value[0], **tolerance, err_msg=f"(B M, M^-1 A) is the same update: {field}"
        )
    np.testing.assert_allclose(
        compared.singular_values[0, 1],
        compared.singular_values[0, 0],
        **tolerance,
        err_msg="the same singular values",
    )
    for side in SIDES:
        np.testing.assert_allclose(
            compared.angles[side][0, 0, 1],
            0,
            atol=1e-8,
            err_msg=f"no {side} angle between an update and itself",
        )
        np.testing.assert_allclose(
            compared.angles[side][0, 1, 2],
            compared.angles[side][0, 0, 2],
            **tolerance,
            err_msg=f"the same {side} angles with others",
        )
        assert compared.first[side][0, 0, 1] == pytest.approx(1, abs=1e-9), (
            f"the same first {side} vector"
        )
    assert geometry.stacked_cosine(compared)[0][0, 1] == pytest.approx(1, abs=1e-9), (
        "the cosine of an update with itself"
    )


def test_an_update_has_no_angle_with_its_copy():
    one = random_adapters(5)["a"]
    compared = geometry.compare({"a": one, "copy": dict(one)}, k=2)
    for side in SIDES:
        defined = compared.angles[side][~np.isnan(compared.angles[side])]
        np.testing.assert_allclose(
            defined, 0, atol=1e-13, err_msg=f"{side} angles are 0, not the 1e-8 of arccos"
        )
    np.testing.assert_allclose(geometry.stacked_cosine(compared)[0], 1, rtol=1e-12)


# --- what is not defined --------------------------------------------------------------------------


def test_a_zero_update_has_length_zero_and_no_direction():
    rng = np.random.default_rng(0)
    one, zero = (
        factors_of(size * rng.standard_normal((9, 4)), rng.standard_normal((4, 7)))
        for size in (1, 0)
    )
    compared = compare(a=one, zero=zero)
    np.testing.assert_array_equal(
        compared.singular_values[0, 1], 0, err_msg="all singular values are 0"
    )
    np.testing.assert_array_equal(compared.inner[0, 1], 0)
    for side in SIDES:
        assert np.isnan(compared.angles[side][0, 1]).all(), (
            f"no {side} angles, not even with itself"
        )
        assert np.isnan(compared.first[side][0, :, 1]).all(), f"no first {side} vector"
        assert not np.isnan(compared.angles[side][0, 0, 0]).any(), "the others keep theirs"
    assert np.isnan(compared.alignment[0, :, 1]).all(), "no share of nothing lies in a subspace"
    assert np.isnan(compared.alignment[0, 1]).all(), "and nothing spans none"
    cosine, sd = geometry.stacked_cosine(compared)
    assert np.isnan([cosine[0, 1], cosine[1, 1], sd[0, 1]]).all(), (
        "the cosine is not 0 but undefined"
    )
    table = geometry.updates_table(compared)
    ranks = table[table.run == "zero"][["effective_rank", "stable_rank", "participation_ratio"]]
    assert ranks.isna().all().all(), "no rank of a zero update"
    assert geometry.orthogonal_table(compared).by_norm.isna().all(), (
        "neither parallel nor orthogonal"
    )
    assert (table[table.run == "zero"].norm == 0).all()


def test_angles_beyond_the_rank_of_an_update_are_not_defined_and_the_others_right():
    rng = np.random.default_rng(0)
    full = factors_of(rng.standard_normal((20, 6)), rng.standard_normal((6, 15)))
    B = rng.standard_normal((20, 6))
    B[:, 2:] = B[:, :2] @ rng.standard_normal((2, 4))  # six columns, rank 2
    deficient = factors_of(B, rng.standard_normal((6, 15)))
    compared = compare(a=full, b=deficient, k=4)
    U, _, Vh = np.linalg.svd(dense(full))
    U2, sigma, Vh2 = np.linalg.svd(dense(deficient))
    np.testing.assert_allclose(compared.singular_values[0, 1, :2], sigma[:2], rtol=1e-10)
    np.testing.assert_allclose(
        compared.singular_values[0, 1, 2:],
        0,
        atol=1e-12 * sigma[0],
        err_msg="singular values beyond the rank are 0",
    )
    for side, one, two in (("left", U[:, :4], U2[:, :2]), ("right", Vh[:4].T, Vh2[:2].T)):
        np.testing.assert_allclose(
            compared.angles[side][0, 0, 1, :2],
            subspace_angles(one, two)[::-1],
            rtol=1e-8,
            err_msg=f"{side}: with the whole column space",
        )
        assert np.isnan(compared.angles[side][0, 0, 1, 2:]).all(), (
            "a plane has two angles with anything"
        )
    np.testing.assert_allclose(
        geometry.effective_rank(compared.singular_values[0, 1]),
        geometry.effective_rank(sigma[:2]),
        rtol=1e-8,
    )


def test_equal_singular_values_leave_no_first_vector_and_no_top_k():
    rng = np.random.default_rng(0)
    U, V = orthonormal(rng, 30, 4), orthonormal(rng, 25, 4)
    other = factors_of(rng.standard_normal((30, 4)), rng.standard_normal((4, 25)))
    led = compare(a=planted(U, [2, 2, 1, 0.5], V), b=other, k=2)
    flat = compare(a=planted(U, [3, 2, 2, 1], V), b=other, k=2)
    for side in SIDES:
        assert np.isnan(led.first[side][0, 0]).all(), (
            "sigma_1 = sigma_2: the first vector may be any of a plane"
        )
        assert not np.isnan(led.angles[side]).any(), "the plane itself is defined"
        assert np.isnan(flat.angles[side][0, 0]).all(), (
            "sigma_k = sigma_(k+1): the subspace may be any of many"
        )
        assert np.isnan(flat.angles[side][0, 1, 0]).all()
        assert not np.isnan(flat.first[side]).any(), "its first vector is defined"
    assert np.isnan(flat.alignment[0, 0]).all(), "nothing can lie in a subspace that is not defined"
    assert not np.isnan(flat.alignment[0, 1]).any(), "in that of the other run everything can"


def test_updates_of_rank_one_have_the_angle_of_two_lines():
    rng = np.random.default_rng(0)
    compared = compare(
        **{
            run: factors_of(rng.standard_normal((6, 1)), rng.standard_normal((1, 5)))
            for run in "ab"
        }
    )
    np.testing.assert_allclose(
        np.cos(compared.angles["left"][0, 0, 1]), compared.first["left"][0, 0, 1], rtol=1e-12
    )


def test_updates_of_different_modules_are_refused_naming_one(study):
    short = {
        module: factors for module, factors in study["b"].items() if ".1.self_attn.o" not in module
    }
    with pytest.raises(
        ValueError,
        match=r"b and a have different modules, for example model\.layers\.1\.self_attn\.o_proj",
    ):
        geometry.compare({"a": study["a"], "b": short})


def test_updates_of_different_base_models_are_refused_naming_module_and_shapes(study):
    name = "model.layers.1.self_attn.o_proj"
    other = {**study["b"], name: factors_of(np.ones((8, 2)), np.ones((2, 13)))}
    with pytest.raises(
        ValueError,
        match=rf"{name} is 8 x 13 in b and 8 x 12 in a: "
        "adapters of different base models cannot be compared",
    ):
        geometry.compare({"a": study["a"], "b": other})


def test_a_first_vector_is_measured_where_the_compared_subspace_is_not_defined():
    rng = np.random.default_rng(0)
    U, V = orthonormal(rng, 30, 4), orthonormal(rng, 25, 4)
    other = planted(U, [4, 3, 2, 1], V)
    flat = compare(a=planted(U, [3, 2, 2, 1], V), b=other, k=2)
    for side in SIDES:
        assert flat.first[side][0, 0, 1] == pytest.approx(1), "the first vectors are one"
    assert flat.compared[0].tolist() == [[0, 0], [2, 2]], "of the first none takes part, of b two"


def test_each_pair_is_compared_by_the_top_k_of_its_smaller_rank_in_each_module():
    rng = np.random.default_rng(0)

    def update(**ranks):
        return {
            f"model.layers.0.self_attn.{name}": factors_of(
                rng.standard_normal((30, rank)), rng.standard_normal((rank, 20))
            )
            for name, rank in ranks.items()
        }

    adapters = {
        "a": update(q_proj=16, v_proj=7),
        "b": update(q_proj=16, v_proj=1),
        "c": update(q_proj=2, v_proj=7),
    }
    compared = geometry.compare(adapters)
    assert compared.compared[0].tolist() == [[5, 5, 1], [5, 5, 1], [1, 1, 1]]
    assert compared.compared[1].tolist() == [[2, 1, 2], [1, 1, 1], [2, 1, 2]]
    assert compared.angles["left"].shape[-1] == 5, "as many as the widest pair has"
    for number, module in enumerate(compared.modules.module):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            pair = {
                compared.runs[at]: {module: adapters[compared.runs[at]][module]} for at in (i, j)
            }
            alone = geometry.compare(pair)
            k = alone.angles["left"].shape[-1]
            for side in SIDES:
                np.testing.assert_allclose(
                    compared.angles[side][number, i, j, :k], alone.angles[side][0, 0, 1]
                )
                assert np.isnan(compared.angles[side][number, i, j, k:]).all()
            np.testing.assert_allclose(compared.alignment[number, i, j], alone.alignment[0, 0, 1])


# --- names of modules -----------------------------------------------------------------------------

LLAMA = [
    f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "o_proj")
]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (
            LLAMA,
            [("model.layers", layer, name) for layer in (0, 1) for name in ("q_proj", "o_proj")],
        ),
        (
            [
                "encoder.block.0.layer.0.SelfAttention.q",
                "decoder.block.0.layer.1.EncDecAttention.q",
            ],
            [("encoder.block", 0, "SelfAttention.q"), ("decoder.block", 0, "EncDecAttention.q")],
        ),
        (
            [
                "bert.encoder.layer.3.attention.output.dense",
                "bert.encoder.layer.3.output.dense",
                "bert.encoder.layer.3.intermediate.dense",
                "bert.pooler.dense",
            ],
            [
                ("bert.encoder.layer", 3, "attention.output.dense"),
                ("bert.encoder.layer", 3, "output.dense"),
                ("bert.encoder.layer", 3, "intermediate.dense"),
                (None, None, "pooler.dense"),
            ],
        ),
        (
            ["model.layers.0.mlp.experts.0.up_proj", "model.layers.0.mlp.experts.7.up_proj"],
            [("model.layers", 0, "up_proj")] * 2,
        ),
        (
            ["visual.merger.mlp.0", "visual.merger.mlp.2", "lm_head"],
            [(None, None, "mlp.0"), (None, None, "mlp.2"), (None, None, "lm_head")],
        ),
    ],
    ids=["one stack", "encoder and decoder", "three called dense", "experts", "no layer"],
)
def test_modules_are_named_so_that_kinds_and_stacks_stay_apart(modules, expected):
    assert updates.places(modules) == expected


def test_layers_of_two_stacks_and_modules_of_one_name_keep_rows_of_their_own():
    rng = np.random.default_rng(0)
    names = [
        f"{part}.block.{layer}.layer.0.SelfAttention.q"
        for part in ("encoder", "decoder")
        for layer in (0, 1)
    ]
    names += [f"model.layers.0.mlp.experts.{expert}.up_proj" for expert in (0, 1)] + ["lm_head"]
    adapters = {
        run: {
            name: factors_of(rng.standard_normal((6, 2)), rng.standard_normal((2, 5)))
            for name in names
        }
        for run in "ab"
    }
    compared = geometry.compare(adapters)
    cosines, norms = geometry.cosine_table(compared), geometry.updates_table(compared)
    orthogonal = geometry.orthogonal_table(compared, ["a"])
    for table in (cosines, norms[norms.run == "a"], orthogonal):
        assert sorted(table.query("scope == 'module'").module) == sorted(names), "one row each"
    layers = cosines.query("scope == 'layer'")
    assert set(zip(layers["stack"].fillna("none"), layers.layer.fillna(99), strict=True)) == {
        ("encoder.block", 0),
        ("encoder.block", 1),
        ("decoder.block", 0),
        ("decoder.block", 1),
        ("model.layers", 0),
        ("none", 99),
    }, "a layer is one of its stack"
    row = layers.query("stack == 'decoder.block' and layer == 1").iloc[0]
    x, y = (dense(adapters[run]["decoder.block.1.layer.0.SelfAttention.q"]).ravel() for run in "ab")
    assert row.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_means_are_over_the_modules_that_are_not_zero_and_say_how_many_those_are(study):
    dead = "model.layers.1.self_attn.q_proj"
    part = study["a"][dead]
    zero = Factors(torch.zeros_like(part.B), part.A, part.scale)
    nothing = {m: Factors(torch.zeros_like(f.B), f.A, f.scale) for m, f in study["a"].items()}
    adapters = {"whole": study["a"], "partly": study["a"] | {dead: zero}, "nothing": nothing}
    table = geometry.updates_table(geometry.compare(adapters))
    whole = table.query("scope == 'global'").set_index("run")
    assert whole.modules.to_dict() == {"whole": 6, "partly": 6, "nothing": 6}
    assert whole.defined.to_dict() == {"whole": 6, "partly": 5, "nothing": 0}
    others = table.query("run == 'whole' and scope == 'module' and module != @dead")
    for rank in ("effective_rank", "effective_rank_share", "stable_rank", "participation_ratio"):
        assert whole[rank]["partly"] == pytest.approx(others[rank].mean())
        assert np.isnan(whole[rank]["nothing"]), "no module, no mean"
    assert whole.norm["nothing"] == 0


# --- ranks from singular values -------------------------------------------------------------------

RANKS = (geometry.effective_rank, geometry.stable_rank, geometry.participation_ratio)


@pytest.mark.parametrize("measure", RANKS, ids=lambda measure: measure.__name__)
def test_r_equal_singular_values_have_rank_r(measure):
    for r in (1, 2, 7, 32):
        assert measure(np.full(r, 0.3)) == pytest.approx(r), f"{r} directions of equal strength"
        assert measure(np.r_[np.full(r, 0.3), np.zeros(3), np.nan]) == pytest.approx(r), (
            "zeros and padding add nothing"
        )
    assert np.isnan(measure(np.zeros(4))), "a zero update has no rank"
    np.testing.assert_allclose(
        measure(np.array([[1.0, 1.0], [2.0, 0.0]])), [2, 1], err_msg="along the last axis"
    )


@pytest.mark.parametrize(
    ("measure", "sigma", "expected"),
    [
        (geometry.effective_rank, [4, 2, 2], 2**1.5),
        (geometry.stable_rank, [2, 1, 1], 1.5),
        (geometry.participation_ratio, np.sqrt([3, 1, 1, 1]), 3),
    ],
    ids=["shares 1/2, 1/4, 1/4 have 3/2 bits", "6 / 4", "36 / 12"],
)
def test_ranks_in_closed_form(measure, sigma, expected):
    assert measure(np.asarray(sigma, float)) == pytest.approx(expected)


def test_ranks_are_ordered_and_do_not_depend_on_the_unit():
    sigma = np.sort(np.random.default_rng(0).exponential(size=(50, 9)))[:, ::-1]
    effective, stable, participation = (measure(sigma) for measure in RANKS)
    assert (effective <= 9 + 1e-9).all(), "never above the number of singular values"
    assert ((stable <= participation + 1e-9) & (participation <= effective + 1e-9)).all(), (
        "the larger values count more in each next one"
    )
    for measure, value in zip(RANKS, (effective, stable, participation), strict=True):
        np.testing.assert_allclose(
            measure(1e-20 * sigma), value, rtol=1e-9, err_msg="a rank has no unit"
        )


def test_the_compared_subspace_is_a_third_of_the_rank_and_smaller_than_it():
    assert [geometry.top_k(rank) for rank in (1, 2, 3, 4, 16, 32, 64)] == [1, 1, 2, 2, 5, 11, 21]


# --- bands of chance ------------------------------------------------------------------------------


def test_the_chance_level_of_the_cosine_is_that_of_drawn_rotations(study):
    pair = {run: {m: study[run][m] for m in list(study[run])[:2]} for run in "ab"}
    _, sd = geometry.stacked_cosine(geometry.compare(pair))
    rng, drawn = np.random.default_rng(0), []
    one = stacked(pair["a"], pair["a"])
    rotations = [ortho_group(len(factors.B), seed=rng).rvs(2000) for factors in pair["b"].values()]
    for draw in range(2000):
        rotated = np.concatenate(
            [
                (rotation[draw] @ dense(f)).ravel()
                for rotation, f in zip(rotations, pair["b"].values(), strict=True)
            ]
        )
        drawn.append(one @ rotated / np.linalg.norm(one) / np.linalg.norm(rotated))
    assert np.mean(drawn) == pytest.approx(0, abs=4 * sd[0, 1] / np.sqrt(2000)), (
        "a rotated update is on average orthogonal to the other"
    )
    assert np.std(drawn) == pytest.approx(sd[0, 1], rel=0.06), (
        "spread of the cosine with Q dW, Q Haar-random for each module"
    )


def test_the_band_of_an_angle_is_that_of_the_nulls_of_its_projection(study):
    compared = geometry.compare(study)
    nulls = [geometry.compare(matched_null(study, seed)) for seed in range(20)]
    table = geometry.angles_table(compared, nulls)
    k = compared.angles["left"].shape[-1]
    assert len(table) == 2 * 3 * 6 * k, "sides x pairs x modules x angles"
    number, (i, j) = list(compared.modules.module).index("model.layers.1.self_attn.o_proj"), (0, 2)
    same = [p for p, name in enumerate(compared.modules.projection) if name == "o_proj"]
    for side in SIDES:
        rows = table.query(
            "module == 'model.layers.1.self_attn.o_proj' and side == @side "
            "and run_a == 'a' and run_b == 'c'"
        ).sort_values("index")
        assert list(rows["index"]) == list(range(1, k + 1)), "1 is the smallest"
        np.testing.assert_allclose(rows.degrees, np.degrees(compared.angles[side][number, i, j]))
        for index in range(k):
            drawn = np.degrees([null.angles[side][p, i, j, index] for null in nulls for p in same])
            assert (rows.chance_low.iloc[index], rows.chance_high.iloc[index]) == pytest.approx(
                tuple(np.quantile(drawn, [0.025, 0.975]))
            )


def test_the_band_of_gaussian_B_is_that_of_drawn_updates_and_its_norms(study):
    """Each module keeps its norm, which the draws do not have and are given."""
    compared = geometry.compare(study)
    sd, norms = geometry.gaussian_sd(compared), np.sqrt(np.einsum("mii->mi", compared.inner))
    drawn = []
    for seed in range(150):
        null = geometry.compare(gaussian_null(study, seed, keeps_A=True))
        own = np.sqrt(np.einsum("mii->mi", null.inner))
        cosines = null.inner / (own[:, :, None] * own[:, None])
        total = (cosines * norms[:, :, None] * norms[:, None]).sum(0)
        drawn.append(total / np.outer(*[np.sqrt((norms**2).sum(0))] * 2))
    spread = np.std(drawn, axis=0)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        # up to what the norms of so few rows vary, and 1 / sqrt(300)
        assert spread[i, j] == pytest.approx(sd[i, j], rel=0.15)
    row = in_scope(
        geometry.cosine_table(compared), "global", None, None, None, run_a="a", run_b="c"
    )
    assert (row.gaussian_low, row.gaussian_high) == pytest.approx(
        (-1.959964 * sd[0, 2], 1.959964 * sd[0, 2]), rel=1e-6
    )
    wider = row.gaussian_high > row.chance_high
    assert row.harder == ("gaussian" if wider else "matched")


# --- many ----------------------------------------------------------------------


def test_what_updates_share_is_taken_out_and_what_they_have_of_their_own_stays():
    """n updates a s + b y_i of either sign, with all of s, y_1, ... perpendicular: nothing is left
    in common but the 1 / (n - 1) by which what is taken out leans to each of them."""
    n, signs = 8, np.array([1, 1, 1, -1, 1, 1, -1, 1])
    cosine = 0.9 * np.outer(signs, signs) + 0.1 * np.eye(n)
    with_zero = np.pad(cosine, (0, 1), constant_values=np.nan)
    left, shares = geometry.without_shared(with_zero)
    assert np.isnan(left[-1]).all(), "a zero update has no cosine"
    assert np.isnan(shares[-1]), "and no share of nothing"
    np.testing.assert_allclose(shares[:n], 0.9 + 0.1 / n)
    expected = np.where(np.eye(n, dtype=bool), 1, -np.outer(signs, signs) / (n - 1))
    np.testing.assert_allclose(left[:n, :n], expected, atol=1e-12)
    # two that are one but for s stay one
    cosine[0, 1] = cosine[1, 0] = 1
    assert geometry.without_shared(cosine)[0][0, 1] == pytest.approx(1)
    # and what lies in s alone has nothing left
    alone = geometry.without_shared(np.ones((3, 3)))
    assert np.isnan(alone[0]).all()
    np.testing.assert_allclose(alone[1], 1)


def test_two_thirds_orthogonal_is_a_cosine_of_three_quarters():
    rng = np.random.default_rng(0)
    U, V = orthonormal(rng, 20, 2), orthonormal(rng, 15, 2)
    reference, run = planted(U[:, :1], [2], V[:, :1]), planted(U, [0.74, np.sqrt(1 - 0.74**2)], V)
    row = geometry.orthogonal_table(compare(reference=reference, run=run), ["reference"]).iloc[0]
    assert round(row.by_norm, 2) == 0.67, (
        "the orthogonal part of the paper says what its cosine says"
    )
    assert round(row.by_energy, 2) == 0.45, "as energy it is less than half"
