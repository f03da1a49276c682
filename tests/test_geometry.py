"""Geometry from the factors against the dense updates, planted answers and drawn chance levels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.stats import ks_2samp, ortho_group

from adapter_geometry import geometry, updates
from adapter_geometry.chance import (
    compare_by_chance,
    expected_overlap,
    gaussian_null,
    matched_null,
    permuted,
    random_angles,
)
from adapter_geometry.updates import Factors

SIDES = ("left", "right")
SCIPY = 1e-7  # where a small angle comes with a large one, scipy takes the arccos of the small one
Q_PROJ = "model.layers.0.self_attn.q_proj"
pytestmark = pytest.mark.filterwarnings("error")


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def factors_of(B, A, scale=1.0):
    return Factors(torch.as_tensor(np.array(B)), torch.as_tensor(np.array(A)), scale)


def planted(U, sigma, V, scale=1.0):
    """Factors of U diag(sigma) V'."""
    return factors_of(U * np.asarray(sigma, float) / scale, V.T, scale)


def dense(factors):
    return factors.scale * factors.B.double().numpy() @ factors.A.double().numpy()


def compare(k=None, **runs):
    """Compare updates of one module, given as {run: Factors}."""
    return geometry.compare({run: {Q_PROJ: factors} for run, factors in runs.items()}, k)


def random_adapters(seed):
    """Two to four runs on a few modules; shapes differ between modules, ranks between modules and runs and may exceed the shape."""
    rng = np.random.default_rng(seed)
    runs = ["a", "b", "c", "d"][: rng.integers(2, 5)]
    found = {run: {} for run in runs}
    for layer in range(rng.integers(1, 4)):
        for projection in rng.choice(
            ["q_proj", "k_proj", "o_proj"], rng.integers(1, 4), replace=False
        ):
            d_out, d_in = rng.integers(1, 15, 2)
            for run in runs:
                r = rng.integers(1, 7)
                B, A = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
                found[run][f"model.layers.{layer}.self_attn.{projection}"] = factors_of(
                    B, A, float(rng.uniform(-3, 3))
                )
    return found


class Dense:
    """What `compare` measures, by numpy's SVD of the dense updates."""

    def __init__(self, factors, k):
        self.matrix = dense(factors)
        self.U, sigma, Vh = np.linalg.svd(self.matrix)
        self.rank = min(factors.A.shape[0], *self.matrix.shape)  # of random factors
        self.sigma = np.pad(sigma, (0, factors.A.shape[0]))[: factors.A.shape[0]]
        self.top = {"left": self.U[:, : min(k, self.rank)], "right": Vh.T[:, : min(k, self.rank)]}


# --- against the dense computation ---------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_every_measure_is_that_of_the_dense_updates(seed):
    adapters = random_adapters(seed)
    k = int(np.random.default_rng(seed).integers(1, 4))
    found = geometry.compare(adapters, k)
    for place, module in enumerate(found.modules.module):
        solved = [Dense(adapters[run][module], k) for run in found.runs]
        assert (found.modules.d_out[place], found.modules.d_in[place]) == solved[0].matrix.shape, (
            "shape of the dense update"
        )
        size = np.prod([np.linalg.norm(one.matrix) for one in solved[:2]])
        for i, one in enumerate(solved):
            assert found.rank[place, i] == adapters[found.runs[i]][module].A.shape[0], (
                "rank of the factors"
            )
            np.testing.assert_allclose(
                found.singular_values[place, i, : len(one.sigma)],
                one.sigma,
                rtol=1e-9,
                atol=1e-12 * one.sigma[0],
                err_msg="singular values are those of the dense update",
            )
            assert np.isnan(found.singular_values[place, i, len(one.sigma) :]).all(), (
                "NaN beyond the rank"
            )
            for j, two in enumerate(solved):
                product = one.matrix @ two.matrix.T
                np.testing.assert_allclose(
                    found.inner[place, i, j],
                    np.trace(product),
                    rtol=1e-9,
                    atol=1e-12 * size,
                    err_msg="<dW_i, dW_j>",
                )
                np.testing.assert_allclose(
                    found.cross[place, i, j],
                    np.linalg.norm(product) ** 2,
                    rtol=1e-9,
                    err_msg="|dW_i dW_j'|^2",
                )
                captured = np.linalg.norm(one.top["left"].T @ two.matrix) / np.linalg.norm(
                    two.matrix
                )
                np.testing.assert_allclose(
                    found.alignment[place, i, j],
                    captured,
                    rtol=1e-8,
                    atol=1e-10,
                    err_msg="|U_k U_k' dW_j| / |dW_j|",
                )
                for side in SIDES:
                    angles = subspace_angles(one.top[side], two.top[side])[::-1]
                    np.testing.assert_allclose(
                        found.angles[side][place, i, j, : len(angles)],
                        angles,
                        rtol=1e-8,
                        atol=SCIPY,
                        err_msg=f"{side} angles",
                    )
                    assert np.isnan(found.angles[side][place, i, j, len(angles) :]).all(), (
                        "an update of rank below k has fewer angles"
                    )
                    first = abs(one.top[side][:, 0] @ two.top[side][:, 0])
                    np.testing.assert_allclose(
                        found.first[side][place, i, j],
                        first,
                        rtol=1e-8,
                        atol=1e-10,
                        err_msg=f"first {side} vectors",
                    )


def in_scope(table, scope, layer, projection, **columns):
    rows = table[(table.scope == scope) & (table.layer == layer) & (table.projection == projection)]
    for column, value in columns.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, f"one row for {scope} {layer} {projection} {columns}"
    return rows.iloc[0]


@pytest.fixture(scope="module")
def study():
    """Three runs on 3 layers x 2 projections of different shapes and sizes."""
    rng = np.random.default_rng(3)
    shapes = {"q_proj": (12, 8), "o_proj": (8, 12)}
    return {
        run: {
            f"model.layers.{layer}.self_attn.{projection}": factors_of(
                rng.standard_normal((d_out, r)), (1 + layer) * rng.standard_normal((r, d_in)), 0.5
            )
            for layer in range(3)
            for projection, (d_out, d_in) in shapes.items()
        }
        for run, r in (("a", 3), ("b", 4), ("c", 3))
    }


def scopes_of(study):
    """{(scope, layer, projection): the modules it stacks}."""
    modules = {module: updates.layer_and_projection(module) for module in study["a"]}
    return {
        ("global", -1, "all"): list(modules),
        **{
            ("layer", layer, "all"): [m for m, (own, _) in modules.items() if own == layer]
            for layer in range(3)
        },
        **{
            ("projection", -1, name): [m for m, (_, own) in modules.items() if own == name]
            for name in ("q_proj", "o_proj")
        },
        **{("module", *own): [m] for m, own in modules.items()},
    }


def stacked(update, modules):
    return np.concatenate([dense(update[module]).ravel() for module in modules])


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
    base = {module: 10.0 + place for place, module in enumerate(study["a"])}
    table = geometry.updates_table(geometry.compare(study), base)
    for run, update in study.items():
        own, effective = table[table.run == run], []
        for module, factors in update.items():
            layer, projection = updates.layer_and_projection(module)
            row = own[(own.layer == layer) & (own.projection == projection)].iloc[0]
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
        whole = own[own.layer == -1].iloc[0]
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
    found = geometry.compare({"z": update, "a": dict(reversed(update.items()))})
    assert list(found.modules.module) == [names[3], names[2], names[1], names[0]], (
        "by layer as a number, then projection"
    )
    assert list(found.modules.layer) == [-1, 2, 2, 10]
    assert found.runs == ["z", "a"], "runs are not sorted"
    np.testing.assert_allclose(
        found.angles["left"],
        0,
        atol=1e-12,
        err_msg="the order of an update's modules is no property of it",
    )


def test_measures_do_not_depend_on_how_modules_are_cut_into_chunks(study, monkeypatch):
    whole = geometry.compare(study)
    monkeypatch.setattr(geometry, "_CHUNK", 1)
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
    found, expected = geometry.compare(stored), geometry.compare(exact)
    for field in ("inner", "cross", "singular_values", "alignment"):
        np.testing.assert_array_equal(
            getattr(found, field),
            getattr(expected, field),
            err_msg=f"{field} of the stored numbers, in float64",
        )
    np.testing.assert_array_equal(found.angles["right"], expected.angles["right"])


def test_the_number_of_threads_changes_nothing(study, monkeypatch):
    monkeypatch.setattr(
        geometry, "_CHUNK", 1
    )  # every module by itself, so that threads have something to share out
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(geometry.compare(study))
        assert torch.get_num_threads() == threads, "the number of threads is left as it was"
    torch.set_num_threads(1)
    for field in ("inner", "cross", "singular_values", "alignment"):
        np.testing.assert_array_equal(
            getattr(found[1], field),
            getattr(found[0], field),
            err_msg=f"{field} with 1 and 2 threads",
        )
    for side in SIDES:
        np.testing.assert_array_equal(
            found[1].angles[side],
            found[0].angles[side],
            err_msg=f"{side} angles with 1 and 2 threads",
        )


# --- planted answers -----------------------------------------------------------------------------------------------


def pair_at(rng, angles, d, r):
    """Two orthonormal (d, r) frames whose first k columns have these principal angles; the other columns are shared."""
    E, k = orthonormal(rng, d, r + len(angles)), len(angles)
    turned = E[:, :r].copy()
    turned[:, :k] = np.cos(angles) * E[:, :k] + np.sin(angles) * E[:, r:]
    return E[:, :r], turned


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
    mix = orthonormal(rng, 6, 6) * np.geomspace(
        1, condition, 6
    )  # the factors' own basis says nothing of the singular vectors
    one, two = (
        {"B": U * sigma @ mix, "A": np.linalg.inv(mix) @ V.T} for U, V in ((U1, V1), (U2, V2))
    )
    found = compare(a=factors_of(**one), b=factors_of(**two), k=3)
    floor = 1e-15 * condition
    for side, expected in (("left", np.array(angles)), ("right", np.sort(other))):
        measured = found.angles[side][0, 0, 1]
        np.testing.assert_allclose(
            measured,
            expected,
            rtol=1e-6,
            atol=20 * floor,
            err_msg=f"{side} angles; arccos alone would see nothing below 1e-8",
        )
        np.testing.assert_array_equal(
            measured, found.angles[side][0, 1, 0], err_msg="an angle has no direction"
        )
    assert found.first["left"][0, 0, 1] == pytest.approx(np.cos(angles[0]), abs=1e-9), (
        "the first vectors are the pair at the first angle"
    )


@pytest.mark.parametrize("side", SIDES)
def test_an_angle_on_one_side_is_none_on_the_other(side):
    rng, sigma = np.random.default_rng(1), [3, 2, 1]
    turned, shared = pair_at(rng, [0.1, 0.4], 40, 3), orthonormal(rng, 30, 3)
    one, two = ((T, shared) if side == "left" else (shared, T) for T in turned)
    found = compare(a=planted(one[0], sigma, one[1]), b=planted(two[0], sigma, two[1]), k=2)
    other = SIDES[1 - SIDES.index(side)]
    np.testing.assert_allclose(
        found.angles[side][0, 0, 1],
        [0.1, 0.4],
        rtol=1e-9,
        err_msg="left vectors are outputs, right ones inputs",
    )
    np.testing.assert_allclose(
        found.angles[other][0, 0, 1], 0, atol=1e-13, err_msg="the other side is shared"
    )


def test_a_planted_spectrum_is_found_over_many_orders_of_magnitude():
    rng, sigma = np.random.default_rng(0), 10.0 ** -np.arange(0, 12, 2)
    found = compare(a=planted(orthonormal(rng, 50, 6), sigma, orthonormal(rng, 40, 6), scale=0.25))
    np.testing.assert_allclose(
        found.singular_values[0, 0],
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
    turned = factors_of(one.B.numpy() @ mix, np.linalg.solve(mix, one.A.numpy()))
    assert np.linalg.cond(turned.B.numpy()) > condition / 10, (
        "the factors are as ill-conditioned as the gauge"
    )
    found = compare(a=one, turned=turned, b=two)
    tolerance = {"rtol": 1e-8, "atol": 1e-8}
    for field in ("inner", "cross", "alignment"):
        value = getattr(found, field)[0] / abs(getattr(found, field)[0]).max()
        np.testing.assert_allclose(
            value[1], value[0], **tolerance, err_msg=f"(B M, M^-1 A) is the same update: {field}"
        )
    np.testing.assert_allclose(
        found.singular_values[0, 1],
        found.singular_values[0, 0],
        **tolerance,
        err_msg="the same singular values",
    )
    for side in SIDES:
        np.testing.assert_allclose(
            found.angles[side][0, 0, 1],
            0,
            atol=1e-8,
            err_msg=f"no {side} angle between an update and itself",
        )
        np.testing.assert_allclose(
            found.angles[side][0, 1, 2],
            found.angles[side][0, 0, 2],
            **tolerance,
            err_msg=f"the same {side} angles with others",
        )
        assert found.first[side][0, 0, 1] == pytest.approx(1, abs=1e-9), (
            f"the same first {side} vector"
        )
    assert geometry.stacked_cosine(found)[0][0, 1] == pytest.approx(1, abs=1e-9), (
        "the cosine of an update with itself"
    )


def test_an_update_has_no_angle_with_its_copy():
    one = random_adapters(5)["a"]
    found = geometry.compare({"a": one, "copy": dict(one)}, k=2)
    for side in SIDES:
        defined = found.angles[side][~np.isnan(found.angles[side])]
        np.testing.assert_allclose(
            defined, 0, atol=1e-13, err_msg=f"{side} angles are 0, not the 1e-8 of arccos"
        )
    np.testing.assert_allclose(geometry.stacked_cosine(found)[0], 1, rtol=1e-12)


# --- what is not defined -------------------------------------------------------------------------------------------


def test_a_zero_update_has_length_zero_and_no_direction():
    rng = np.random.default_rng(0)
    one, zero = (
        factors_of(size * rng.standard_normal((9, 4)), rng.standard_normal((4, 7)))
        for size in (1, 0)
    )
    found = compare(a=one, zero=zero)
    np.testing.assert_array_equal(
        found.singular_values[0, 1], 0, err_msg="all singular values are 0"
    )
    np.testing.assert_array_equal(found.inner[0, 1], 0)
    for side in SIDES:
        assert np.isnan(found.angles[side][0, 1]).all(), f"no {side} angles, not even with itself"
        assert np.isnan(found.first[side][0, :, 1]).all(), f"no first {side} vector"
        assert not np.isnan(found.angles[side][0, 0, 0]).any(), "the others keep theirs"
    assert np.isnan(found.alignment[0, :, 1]).all(), "no share of nothing lies in a subspace"
    assert np.isnan(found.alignment[0, 1]).all(), "and nothing spans none"
    cosine, sd = geometry.stacked_cosine(found)
    assert np.isnan([cosine[0, 1], cosine[1, 1], sd[0, 1]]).all(), (
        "the cosine is not 0 but undefined"
    )
    table = geometry.updates_table(found)
    ranks = table[table.run == "zero"][["effective_rank", "stable_rank", "participation_ratio"]]
    assert ranks.isna().all().all(), "no rank of a zero update"
    assert geometry.orthogonal_table(found).by_norm.isna().all(), "neither parallel nor orthogonal"
    assert (table[table.run == "zero"].norm == 0).all()


def test_angles_beyond_the_rank_of_an_update_are_not_defined_and_the_others_right():
    rng = np.random.default_rng(0)
    full = factors_of(rng.standard_normal((20, 6)), rng.standard_normal((6, 15)))
    B = rng.standard_normal((20, 6))
    B[:, 2:] = B[:, :2] @ rng.standard_normal((2, 4))  # six columns, rank 2
    deficient = factors_of(B, rng.standard_normal((6, 15)))
    found = compare(a=full, b=deficient, k=4)
    U, _, Vh = np.linalg.svd(dense(full))
    U2, sigma, Vh2 = np.linalg.svd(dense(deficient))
    np.testing.assert_allclose(found.singular_values[0, 1, :2], sigma[:2], rtol=1e-10)
    np.testing.assert_allclose(
        found.singular_values[0, 1, 2:],
        0,
        atol=1e-12 * sigma[0],
        err_msg="singular values beyond the rank are 0",
    )
    for side, one, two in (("left", U[:, :4], U2[:, :2]), ("right", Vh[:4].T, Vh2[:2].T)):
        np.testing.assert_allclose(
            found.angles[side][0, 0, 1, :2],
            subspace_angles(one, two)[::-1],
            rtol=1e-8,
            err_msg=f"{side}: with the whole column space",
        )
        assert np.isnan(found.angles[side][0, 0, 1, 2:]).all(), (
            "a plane has two angles with anything"
        )
    np.testing.assert_allclose(
        geometry.effective_rank(found.singular_values[0, 1]),
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
    found = compare(
        **{
            run: factors_of(rng.standard_normal((6, 1)), rng.standard_normal((1, 5)))
            for run in "ab"
        }
    )
    np.testing.assert_allclose(
        np.cos(found.angles["left"][0, 0, 1]), found.first["left"][0, 0, 1], rtol=1e-12
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
        match=rf"{name} is 8 x 13 in b and 8 x 12 in a: adapters of different base models cannot be compared",
    ):
        geometry.compare({"a": study["a"], "b": other})


# --- ranks from singular values ------------------------------------------------------------------------------------

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


# --- chance --------------------------------------------------------------------------------------------------------


def drawn_angles(d, k, draws, seed):
    rng = np.random.default_rng(seed)
    return np.array(
        [
            np.sort(subspace_angles(orthonormal(rng, d, k), orthonormal(rng, d, k)))
            for _ in range(draws)
        ]
    )


@pytest.mark.parametrize(("d", "k"), [(30, 3), (8, 4), (200, 5)])
def test_random_angles_are_those_of_drawn_subspaces(d, k):
    found, drawn = random_angles(d, k, draws=3000), drawn_angles(d, k, 500, 1)
    for index in range(k):
        assert ks_2samp(found[:, index], drawn[:, index]).pvalue > 1e-3, (
            f"angle {index + 1} of {k} in R^{d}: one distribution"
        )


def test_subspaces_that_must_meet_have_angles_of_zero():
    found = random_angles(5, 3, draws=50)
    np.testing.assert_allclose(
        found[:, 0], 0, atol=1e-6, err_msg="two 3-dimensional subspaces of R^5 share a line"
    )
    assert (found[:, 1] > 1e-4).all(), "and in general no plane"


@pytest.mark.parametrize(("d", "smallest"), [(1024, 79.9), (2560, 83.6), (4096, 85.0)])
def test_random_subspaces_at_the_sizes_of_qwen3_4b(d, smallest):
    found = np.degrees(random_angles(d, 10))
    assert found[:, 0].mean() == pytest.approx(smallest, abs=0.1), (
        "mean of the smallest of ten angles in degrees"
    )
    assert 89.55 < found[:, -1].mean() < 89.85, "the largest is always almost 90 degrees"
    np.testing.assert_array_equal(
        random_angles(d, 10, 3, seed=1),
        random_angles(d, 10, 3, seed=1),
        err_msg="drawn from the seed",
    )
    assert (np.diff(found) >= 0).all(), "ascending"


@pytest.mark.parametrize(("d", "expected"), [(1024, 0.025), (2560, 0.016), (4096, 0.0125)])
def test_expected_overlap_at_the_sizes_of_qwen3_4b(d, expected):
    assert expected_overlap(d) == pytest.approx(expected, rel=0.02)
    assert expected_overlap(d) == pytest.approx(np.sqrt(2 / np.pi / d), rel=1 / d), (
        "sqrt(2 / (pi d)) for large d"
    )


@pytest.mark.parametrize(("d", "expected"), [(1, 1), (2, 2 / np.pi), (3, 0.5)])
def test_expected_overlap_in_closed_form(d, expected):
    assert expected_overlap(d) == pytest.approx(expected), (
        "1 on a line, 2/pi on the circle, 1/2 on the sphere (Archimedes)"
    )
    drawn = np.random.default_rng(0).standard_normal((20000, d))
    assert abs(drawn[:, 0] / np.linalg.norm(drawn, axis=1)).mean() == pytest.approx(
        expected, rel=0.02
    ), "a random direction against a fixed one"


def test_the_chance_level_of_the_cosine_is_that_of_drawn_rotations(study):
    pair = {run: {m: study[run][m] for m in list(study[run])[:2]} for run in "ab"}
    _, sd = geometry.stacked_cosine(geometry.compare(pair))
    rng, drawn = np.random.default_rng(0), []
    one = stacked(pair["a"], pair["a"])
    rotations = [ortho_group(len(factors.B), seed=rng).rvs(2000) for factors in pair["b"].values()]
    for place in range(2000):
        turned = np.concatenate(
            [
                (rotation[place] @ dense(f)).ravel()
                for rotation, f in zip(rotations, pair["b"].values(), strict=True)
            ]
        )
        drawn.append(one @ turned / np.linalg.norm(one) / np.linalg.norm(turned))
    assert np.mean(drawn) == pytest.approx(0, abs=4 * sd[0, 1] / np.sqrt(2000)), (
        "a rotated update is on average orthogonal to the other"
    )
    assert np.std(drawn) == pytest.approx(sd[0, 1], rel=0.06), (
        "spread of the cosine with Q dW, Q Haar-random for each module"
    )


def test_the_matched_null_keeps_what_runs_share_by_construction():
    rng, names = (
        np.random.default_rng(0),
        [f"model.layers.{layer}.self_attn.q_proj" for layer in range(30)],
    )
    inputs = {name: orthonormal(rng, 24, 6).T for name in names}  # one initialisation
    adapters = {
        run: {
            name: factors_of(
                rng.standard_normal((40, 6)) * [9, 5, 3, 1, 0.5, 0.1], inputs[name], 2.0
            )
            for name in names
        }
        for run in "ab"
    }
    left, right = [], []
    for seed in range(10):
        null = matched_null(adapters, seed)
        compared = geometry.compare(null, k=2)
        for run in "ab":
            for name in names[:5]:
                assert torch.equal(null[run][name].A, adapters[run][name].A), "A is kept"
                np.testing.assert_allclose(
                    *(torch.linalg.svdvals(update[run][name].B) for update in (null, adapters)),
                    rtol=1e-6,
                    err_msg="B keeps its singular values",
                )
                V = np.linalg.svd(dense(null[run][name]))[2][:6].T
                np.testing.assert_allclose(
                    inputs[name].T @ (inputs[name] @ V),
                    V,
                    atol=1e-9,
                    err_msg="right vectors stay in the row space of A",
                )
        left.append(compared.angles["left"][:, 0, 1])
        right.append(compared.angles["right"][:, 0, 1])
    for side, measured, d in (("left", left, 40), ("right", right, 6)):
        expected, measured = random_angles(d, 2, 4000), np.concatenate(measured)
        for index in range(2):
            assert ks_2samp(measured[:, index], expected[:, index]).pvalue > 1e-3, (
                f"{side} subspaces are random ones of {d} dimensions"
            )


def test_the_matched_null_is_drawn_from_its_seed(study):
    one, same, other = (matched_null(study, seed) for seed in (0, 0, 1))
    module = next(iter(study["a"]))
    assert torch.equal(one["a"][module].B, same["a"][module].B), "one seed, one draw"
    assert not torch.allclose(one["a"][module].B, other["a"][module].B), (
        "another seed, another draw"
    )
    alike = geometry.compare(matched_null({"a": study["a"], "b": dict(study["a"])}, 0))
    assert abs(geometry.stacked_cosine(alike)[0][0, 1]) < 0.5, (
        "two runs are drawn independently, even with equal updates"
    )


def test_the_band_of_an_angle_is_that_of_the_nulls_of_its_projection(study):
    compared = geometry.compare(study)
    nulls = [geometry.compare(matched_null(study, seed)) for seed in range(20)]
    table = geometry.angles_table(compared, nulls)
    k = compared.angles["left"].shape[-1]
    assert len(table) == 2 * 3 * 6 * k, "sides x pairs x modules x angles"
    place, (i, j) = list(compared.modules.module).index("model.layers.1.self_attn.o_proj"), (0, 2)
    same = [p for p, name in enumerate(compared.modules.projection) if name == "o_proj"]
    for side in SIDES:
        rows = table.query(
            "layer == 1 and projection == 'o_proj' and side == @side and run_a == 'a' and run_b == 'c'"
        ).sort_values("index")
        assert list(rows["index"]) == list(range(1, k + 1)), "1 is the smallest"
        np.testing.assert_allclose(rows.degrees, np.degrees(compared.angles[side][place, i, j]))
        for index in range(k):
            drawn = np.degrees([null.angles[side][p, i, j, index] for null in nulls for p in same])
            assert (rows.chance_low.iloc[index], rows.chance_high.iloc[index]) == pytest.approx(
                tuple(np.quantile(drawn, [0.025, 0.975]))
            )


def test_two_thirds_orthogonal_is_a_cosine_of_three_quarters():
    rng = np.random.default_rng(0)
    U, V = orthonormal(rng, 20, 2), orthonormal(rng, 15, 2)
    reference, run = planted(U[:, :1], [2], V[:, :1]), planted(U, [0.74, np.sqrt(1 - 0.74**2)], V)
    row = geometry.orthogonal_table(compare(reference=reference, run=run), ["reference"]).iloc[0]
    assert round(row.by_norm, 2) == 0.67, (
        "the orthogonal part of the paper says what its cosine says"
    )
    assert round(row.by_energy, 2) == 0.45, "as energy it is less than half"


def test_chance_drawn_in_small_matrices_is_that_of_the_null_updates_themselves():
    """Frames drawn by their Gram matrix (Wishart) against updates with explicit random frames, where n r is below and above d."""
    rng = np.random.default_rng(3)
    A = rng.standard_normal((4, 30))
    for d, count in ((40, 3), (10, 3)):

        def near_A(size, d=d):
            return factors_of(
                rng.standard_normal((d, 4)), A + 0.1 * rng.standard_normal((4, 30)), size
            )

        runs = {f"run{i}": {"model.layers.0.q_proj": near_A(i + 1)} for i in range(count)}
        slow = [geometry.compare(matched_null(runs, seed)) for seed in range(400)]
        fast = compare_by_chance(runs, 400)
        for name, of in {
            "left angle": lambda found: found.angles["left"][0, 0, 1, 0],
            "right angle": lambda found: found.angles["right"][0, 0, 1, 1],
            "inner": lambda found: found.inner[0, 1, 2],
            "cross": lambda found: found.cross[0, 0, 2],
            "sigma": lambda found: found.singular_values[0, 2, 1],
            "alignment": lambda found: found.alignment[0, 2, 0],
        }.items():
            p = ks_2samp([of(found) for found in slow], [of(found) for found in fast]).pvalue
            assert p > 1e-3, (
                f"{name} at d = {d}: the two ways draw from different distributions (p = {p:.1e})"
            )


def test_chance_is_drawn_from_its_seed(study):
    one, same, other = (compare_by_chance(study, 2, seed)[1].inner for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same, err_msg="equal seeds, equal draws")
    assert not np.array_equal(one, other), "another seed, other draws"


def shared_A(rng, d_out, r, d_in, count):
    """Two runs of `count` modules whose A differ from module to module, and are nearly the same in both runs."""
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(count)]
    start = {
        name: rng.standard_normal((r, d_in)) * np.geomspace(1, 0.2, r)[:, None] for name in names
    }
    return {
        run: {
            name: factors_of(
                np.ones((d_out, r)), start[name] + 0.1 * rng.standard_normal((r, d_in)), 2.0
            )
            for name in names
        }
        for run in "ab"
    }


@pytest.mark.parametrize("keeps_A", [True, False])
def test_the_spread_of_the_cosine_of_gaussian_updates_has_a_closed_form(keeps_A):
    adapters = shared_A(np.random.default_rng(0), 60, 3, 40, 200)
    cosines, expected = [], []
    for seed in range(5):
        null = gaussian_null(adapters, seed, keeps_A)
        for name, part in adapters["a"].items():
            x, y = (dense(null[run][name]).ravel() for run in "ab")
            cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            A, A_other = part.A.numpy(), adapters["b"][name].A.numpy()
            on_A = (
                np.linalg.norm(A @ A_other.T)
                / np.linalg.norm(A)
                / np.linalg.norm(A_other)
                / np.sqrt(60)
            )
            expected.append(on_A if keeps_A else 1 / np.sqrt(60 * 40))
    assert np.mean(cosines) == pytest.approx(
        0, abs=4 * np.mean(expected) / np.sqrt(len(cosines))
    ), "unrelated on average"
    assert np.sqrt(np.mean(np.square(cosines))) == pytest.approx(
        np.sqrt(np.mean(np.square(expected))), rel=0.1
    ), "spread of the cosine"


def test_gaussian_updates_keep_what_they_say_and_nothing_else():
    adapters = shared_A(np.random.default_rng(0), 50, 4, 30, 3)
    one, same, other = (gaussian_null(adapters, seed, True) for seed in (0, 0, 1))
    all_new = gaussian_null(adapters, 0, False)
    entries = torch.cat([part.B.flatten() for update in one.values() for part in update.values()])
    assert (entries.mean().item(), entries.std().item()) == pytest.approx((0, 1), abs=0.1), (
        "B is standard normal"
    )
    for run, update in adapters.items():
        for name, part in update.items():
            assert torch.equal(one[run][name].A, part.A), "A is kept where it is said to be"
            assert not torch.allclose(all_new[run][name].A, part.A), "and drawn anew where not"
            assert (one[run][name].B.shape, all_new[run][name].A.shape) == (
                part.B.shape,
                part.A.shape,
            ), "shapes and ranks stay"
            assert torch.equal(one[run][name].B, same[run][name].B), "one seed, one draw"
            assert not torch.allclose(one[run][name].B, other[run][name].B), (
                "another seed, another draw"
            )
    blocks = torch.stack([part.B for update in one.values() for part in update.values()]).flatten(1)
    overlaps = torch.corrcoef(blocks) - torch.eye(len(blocks))
    assert overlaps.abs().max() < 0.35, "runs and modules are drawn independently"


def test_permuted_modules_come_from_another_layer_of_their_projection(study):
    met = set()
    for seed in range(20):
        moved, moves = permuted(study, seed), set()
        for run, update in study.items():
            for name in update:
                source = next(other for other in update if moved[run][name] is update[other])
                (layer, projection), (layer_of_source, projection_of_source) = map(
                    updates.layer_and_projection, (name, source)
                )
                assert projection == projection_of_source, "a projection stays one"
                assert layer != layer_of_source, "no module stays in its place"
                moves.add((name, source))
        assert len(moves) == len(study["a"]), (
            "all runs are moved alike, and every module has one source"
        )
        met |= moves
    assert len(met) == 2 * 3 * 2, (
        "over many draws each pair of different layers meets, in both projections"
    )


def test_permuting_changes_no_update_but_only_who_meets_whom():
    """A direction common to all layers survives, one that belongs to a layer does not."""
    rng, layers = np.random.default_rng(0), range(8)
    common, own = orthonormal(rng, 40, 1), [orthonormal(rng, 40, 1) for _ in layers]
    adapters = {
        run: {
            f"model.layers.{layer}.self_attn.o_proj": factors_of(
                np.c_[common, own[layer]] * sizes, rng.standard_normal((2, 30))
            )
            for layer in layers
        }
        for run, sizes in {"a": [3, 1], "b": [2, 1]}.items()
    }
    moved = {f"{run}, moved": update for run, update in permuted(adapters, 0).items()}
    compared = geometry.compare({**adapters, **moved}, k=2)
    cosines, _ = geometry.stacked_cosine(compared)
    norms = np.sqrt(np.diag(compared.inner.sum(0)))
    assert norms[2:] == pytest.approx(norms[:2]), "the same updates"
    in_place, elsewhere = compared.angles["left"][:, 0, 1], compared.angles["left"][:, 0, 3]
    np.testing.assert_allclose(
        in_place, 0, atol=1e-6, err_msg="in its place each module shares both directions"
    )
    assert elsewhere[:, 0].max() < 1e-6, "the common direction is met everywhere"
    assert elsewhere[:, 1].min() > np.radians(45), "the layer's own one is not"
    assert abs(cosines[0, 3]) < 0.35, "A differs from layer to layer"


def test_a_single_module_cannot_be_permuted():
    adapters = {"a": {Q_PROJ: factors_of(np.ones((3, 2)), np.ones((2, 4)))}}
    with pytest.raises(ValueError, match=rf"{Q_PROJ} is the only q_proj of shape 3 x 4"):
        permuted(adapters, 0)
