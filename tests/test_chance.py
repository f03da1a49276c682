"""Drawn chance levels against subspaces and updates drawn outright, and against closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import beta, ks_2samp, ortho_group
from small_updates import Q_PROJ, dense, factors_of, orthonormal, three_runs

from adapter_geometry import geometry, updates
from adapter_geometry.chance import (
    compare_by_chance,
    expected_overlap,
    gaussian_null,
    groups_table,
    largest_by_chance,
    matched_null,
    permuted,
    projected_moments,
    random_angles,
    shared_tables,
)

SIDES = ("left", "right")
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def study():
    return three_runs()


# --- subspaces and directions ---------------------------------------------------------------------


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
    angles, drawn = random_angles(d, k, draws=3000), drawn_angles(d, k, 500, 1)
    for index in range(k):
        assert ks_2samp(angles[:, index], drawn[:, index]).pvalue > 1e-3, (
            f"angle {index + 1} of {k} in R^{d}: one distribution"
        )


@pytest.mark.parametrize(("d", "k"), [(6, 2), (20, 1), (5, 5)])
def test_moments_of_projections_are_those_of_drawn_subspaces(d, k):
    rng = np.random.default_rng(0)
    weights = np.array([0.6, 0.3, 0.1])
    bases = [orthonormal(rng, d, k) for _ in range(4000)]
    drawn = np.array([(weights * (Q[:3] ** 2).sum(1)).sum() for Q in bases])
    mean, variance = projected_moments(d, k, 1.0, (weights**2).sum())
    assert drawn.mean() == pytest.approx(mean, rel=0.05)
    assert drawn.var() == pytest.approx(variance, rel=0.1, abs=1e-12)
    below = (drawn <= largest_by_chance(mean, variance) + 1e-12).mean()
    assert below == pytest.approx(1.0 if k == d else 0.95, abs=0.015)


@pytest.mark.parametrize(("d", "k"), [(2, 1), (50, 1), (50, 7)])
def test_a_projected_unit_vector_has_a_beta_distribution(d, k):
    limit = largest_by_chance(*projected_moments(d, k))
    assert limit == pytest.approx(beta.ppf(0.95, k / 2, (d - k) / 2), rel=1e-9)


def test_subspaces_that_must_meet_have_angles_of_zero():
    angles = random_angles(5, 3, draws=50)
    np.testing.assert_allclose(
        angles[:, 0], 0, atol=1e-6, err_msg="two 3-dimensional subspaces of R^5 share a line"
    )
    assert (angles[:, 1] > 1e-4).all(), "and in general no plane"


@pytest.mark.parametrize(("d", "smallest"), [(1024, 79.9), (2560, 83.6), (4096, 85.0)])
def test_random_subspaces_at_the_sizes_of_qwen3_4b(d, smallest):
    degrees = np.degrees(random_angles(d, 10))
    assert degrees[:, 0].mean() == pytest.approx(smallest, abs=0.1), (
        "mean of the smallest of ten angles in degrees"
    )
    assert 89.55 < degrees[:, -1].mean() < 89.85, "the largest is always almost 90 degrees"
    np.testing.assert_array_equal(
        random_angles(d, 10, 3, seed=1),
        random_angles(d, 10, 3, seed=1),
        err_msg="drawn from the seed",
    )
    assert (np.diff(degrees) >= 0).all(), "ascending"


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


# --- updates --------------------------------------------------------------------------------------


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


def test_chance_drawn_in_small_matrices_is_that_of_the_null_updates_themselves():
    """Frames drawn by their Gram matrix (Wishart) against updates with explicit random frames.

    With n runs of rank r, where n r is below and where it is above d.
    """
    rng = np.random.default_rng(3)
    A = rng.standard_normal((4, 30))
    modules = [f"model.layers.{layer}.q_proj" for layer in range(100)]  # as many draws at a time
    for d, count in ((40, 3), (10, 3)):

        def near_A(size, d=d):
            return factors_of(
                rng.standard_normal((d, 4)), A + 0.1 * rng.standard_normal((4, 30)), size
            )

        runs = {f"run{i}": dict.fromkeys(modules, near_A(i + 1)) for i in range(count)}
        slow = [geometry.compare(matched_null(runs, seed)) for seed in range(4)]
        fast = compare_by_chance(runs, 4)
        for name, of in {
            "left angle": lambda compared: compared.angles["left"][:, 0, 1, 0],
            "right angle": lambda compared: compared.angles["right"][:, 0, 1, 1],
            "inner": lambda compared: compared.inner[:, 1, 2],
            "cross": lambda compared: compared.cross[:, 0, 2],
            "sigma": lambda compared: compared.singular_values[:, 2, 1],
            "alignment": lambda compared: compared.alignment[:, 2, 0],
        }.items():
            p = ks_2samp(*(np.concatenate([*map(of, draws)]) for draws in (slow, fast))).pvalue
            assert p > 1e-3, (
                f"{name} at d = {d}: the two ways draw from different distributions (p = {p:.1e})"
            )


def test_chance_is_drawn_from_its_seed(study):
    one, same, other = (compare_by_chance(study, 2, seed)[1].inner for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same, err_msg="equal seeds, equal draws")
    assert not np.array_equal(one, other), "another seed, other draws"


def shared_A(rng, d_out, r, d_in, count):
    """Two runs of `count` modules whose A differ from module to module and hardly between runs."""
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


def test_a_mean_over_seeds_spreads_as_one_rotation_of_all_of_them_lets_it():
    """Seeds of a method that have much in common, turned together, and turned one by one."""
    rng, (d, r) = np.random.default_rng(0), (30, 3)
    A = rng.standard_normal((r, 20))
    common = [rng.standard_normal((d, r)) for _ in range(2)]
    adapters = {
        f"{method}{seed}": {Q_PROJ: factors_of(B + 0.2 * rng.standard_normal((d, r)), A)}
        for method, B in zip("xy", common, strict=True)
        for seed in range(4)
    }
    adapters["nothing"] = {Q_PROJ: factors_of(np.zeros((d, r)), A)}
    groups = {method: [f"{method}{seed}" for seed in range(4)] for method in "xy"}
    groups["alone"] = ["y0", "nothing"]
    table = groups_table(adapters, geometry.compare(adapters), groups)
    rows = {(row.group_a, row.group_b): row for row in table.itertuples()}
    assert set(rows) == {("x", "x"), ("x", "y"), ("x", "alone"), ("y", "y"), ("y", "alone")}, (
        "one adapter that is not zero has no pair with itself"
    )
    x, y = (np.array([dense(adapters[run][Q_PROJ]) for run in groups[method]]) for method in "xy")
    x, y = (group / np.linalg.norm(group, axis=(1, 2))[:, None, None] for group in (x, y))
    between, within = rows["x", "y"], rows["x", "x"]
    assert between.cosine == pytest.approx(np.einsum("iab,jab->ij", x, y).mean(), rel=1e-9)
    gram = np.einsum("iab,jab->ij", x, x)
    assert within.cosine == pytest.approx(gram[np.triu_indices(4, 1)].mean(), rel=1e-9)
    assert [row.pairs for row in (between, within, rows["x", "alone"])] == [16, 6, 4]
    turns = ortho_group(d, seed=rng).rvs(1500)
    together = np.einsum("iab,tac,jcb->t", x, turns, y) / 16
    sd = between.chance_high / geometry.Z
    assert between.chance_low == -between.chance_high
    assert np.std(together) == pytest.approx(sd, rel=0.08), "one rotation for all seeds"
    one_by_one = np.einsum("iab,tiac,jcb->t", x, turns[: 375 * 4].reshape(375, 4, d, d), y) / 16
    assert np.std(one_by_one) < 0.7 * sd, "which turning them one by one would understate"
    turned = np.einsum("tiac,icb->tiab", turns.reshape(375, 4, d, d), x)
    grams = np.einsum("tiab,tjab->tij", turned, turned)[:, *np.triu_indices(4, 1)].mean(1)
    assert np.std(grams) == pytest.approx(within.chance_high / geometry.Z, rel=0.12)
    assert within.cosine > within.chance_high, "seeds that have something in common"


# --- what all share -------------------------------------------------------------------------------


def sharing(loadings, seed, d=40, extra=0.0):
    """Updates of one module whose cosines with one direction are about these; the last two have a
    part of their own in common, of this share of what is left of them."""
    rng, A = np.random.default_rng(seed), orthonormal(np.random.default_rng(99), 60, 12).T
    common, both = (rng.standard_normal((d, 12)) / np.sqrt(12 * d) for _ in range(2))
    adapters = {}
    for number, t in enumerate(loadings):
        own = rng.standard_normal((d, 12)) / np.sqrt(12 * d)
        if number >= len(loadings) - 2:
            own = np.sqrt(1 - extra) * own + np.sqrt(extra) * both
        adapters[f"run{number}"] = {Q_PROJ: factors_of(t * common + np.sqrt(1 - t**2) * own, A)}
    return adapters


@pytest.mark.parametrize(
    "loadings",
    [[0.0] * 5, [0.6] * 5, [0.9, -0.5, 0.7, 0.3, 0.0, 0.8]],
    ids=["unrelated", "one direction", "with different weights"],
)
def test_what_one_direction_leaves_of_unrelated_updates_lies_within_the_band(loadings):
    inside, shares = [], []
    for seed in range(40):
        tables = shared_tables(geometry.compare(sharing(loadings, seed)), seed)
        left, shared = tables["without_shared"], tables["shared"]
        inside.append(left.cosine.between(left.chance_low, left.chance_high).mean())
        whole, *rest = (shared.share <= shared.chance_high).tolist()
        shares.append((whole, np.mean(rest)))
    assert 0.92 <= np.mean(inside) <= 0.995
    whole, each = np.mean(shares, axis=0)
    if any(loadings):
        assert whole == 0, "what they share is more than unrelated ones do"
    else:
        assert whole == pytest.approx(0.95, abs=0.08)
        assert each == pytest.approx(0.95, abs=0.03)


def test_what_two_of_many_share_beside_the_common_direction_is_found():
    adapters = sharing([0.7] * 8, 0, d=200, extra=0.5)
    left = shared_tables(geometry.compare(adapters))["without_shared"]
    nearest = left.loc[left.cosine.idxmax()]
    assert [nearest.run_a, nearest.run_b] == ["run6", "run7"]
    assert nearest.cosine > 3 * nearest.chance_high


def test_three_updates_have_no_direction_that_says_anything_and_zero_has_no_share():
    adapters = sharing([0.5] * 4, 0)
    adapters["nothing"] = {Q_PROJ: factors_of(np.zeros((40, 12)), np.ones((12, 60)))}
    tables = shared_tables(geometry.compare(adapters))
    assert tables["shared"].set_index("run").loc["nothing", ["share", "chance_high"]].isna().all()
    of_nothing = tables["without_shared"].query("run_b == 'nothing'")
    assert of_nothing[["cosine", "chance_low", "chance_high"]].isna().all().all()
    del adapters["run0"]
    assert shared_tables(geometry.compare(adapters)) == {}


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
