"""Bands of chance for angles, first directions and likeness of subspaces: their coverage, measured,
and what they may not depend on."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp
from small_updates import dense, factors_of, orthonormal

from adapter_geometry import bands, frames, geometry
from adapter_geometry.bands import compare_beside_chance, similarity_table
from adapter_geometry.chance import gaussian_null, random_angles
from adapter_geometry.updates import Factors

pytestmark = pytest.mark.filterwarnings("error")
SHAPES = ((24, 16), (40, 20))
BANDS = ("chance", "gaussian")


def unrelated(runs, modules, seed, rank=4, shapes=SHAPES, is_shared=True):
    """Gaussian B on one A for all runs, or on A's of their own, whose rows differ in length; shapes
    take turns."""
    rng, adapters = np.random.default_rng(seed), {f"run{run}": {} for run in range(runs)}
    for layer in range(modules):
        d_out, d_in = shapes[layer % len(shapes)]
        lengths = np.linspace(1, 0.3, rank)[:, None]
        A = rng.standard_normal((rank, d_in)) * lengths
        for update in adapters.values():
            if not is_shared:
                A = rng.standard_normal((rank, d_in)) * lengths
            B = rng.standard_normal((d_out, rank))
            update[f"model.layers.{layer}.mlp.p{layer % len(shapes)}_proj"] = factors_of(B, A)
    return adapters


def inside(rows, band):
    return rows.degrees.between(rows[f"{band}_low"], rows[f"{band}_high"])


# --- coverage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modules", "runs"), [(1, 30), (2, 30), (4, 30), (36, 24), (144, 14)])
def test_95_of_100_unrelated_updates_lie_within_the_band(modules, runs):
    """On each side, for modules and for medians."""
    _, table, _ = compare_beside_chance(unrelated(runs, modules, seed=modules, is_shared=False))
    for (scope, side, index), rows in table.groupby(["scope", "side", "index"]):
        # Angles of different pairs are independent, or all but that: a pair has two random
        # subspaces, and where A is not shared they have no place where they would rather be.
        error = np.sqrt(0.95 * 0.05 / len(rows))
        for band in BANDS:
            share = inside(rows, band).mean()
            assert abs(share - 0.95) < 3.5 * error + 0.004, (
                f"{modules} modules, {scope}, {side} angle {index}: {share:.3f} in the {band} band"
            )
    if modules == 1:
        single, whole = (table[table.scope == scope].degrees for scope in ("module", "global"))
        np.testing.assert_allclose(single, whole, err_msg="the median over one module is its own")


def test_95_of_100_modules_with_one_A_lie_within_the_band():
    _, table, _ = compare_beside_chance(unrelated(12, 40, seed=0))
    for (side, index), rows in table[table.scope == "module"].groupby(["side", "index"]):
        for band in BANDS:
            share = inside(rows, band).mean()
            assert share == pytest.approx(0.95, abs=0.02), f"{side} angle {index}, {band}: {share}"


@pytest.mark.slow
@pytest.mark.parametrize("work", [0, 20_000], ids=["fewest draws", "draws as usual"])
def test_95_of_100_medians_with_one_A_lie_within_the_band(work, monkeypatch):
    """Pairs that have no run in common: of one run all angles are small or all large."""
    monkeypatch.setattr(bands, "_WORK", work)
    tables = [compare_beside_chance(unrelated(2, 36, seed))[1] for seed in range(300)]
    for (side, index), rows in (
        pd.concat(tables).query("scope == 'global'").groupby(["side", "index"])
    ):
        for band in BANDS:
            share = inside(rows, band).mean()
            assert abs(share - 0.95) < 3.5 * np.sqrt(0.95 * 0.05 / 300), f"{side} {index}: {share}"


@pytest.mark.parametrize("modules", [1, 4, 36])
def test_cosines_of_unrelated_updates_lie_within_their_bands(modules):
    cosines = geometry.cosine_table(geometry.compare(unrelated(30, modules, seed=1)))
    for scope in ("global", "module"):
        rows = cosines[cosines.scope == scope]
        for band in BANDS:
            share = rows.cosine.between(rows[f"{band}_low"], rows[f"{band}_high"]).mean()
            assert abs(share - 0.95) < 3.5 * np.sqrt(0.95 * 0.05 / 435), f"{scope}, {band}: {share}"


def test_a_little_that_all_modules_share_is_outside_the_band_of_medians_and_inside_that_of_one():
    """The finding that a band of single modules hides: 36 medians of what is barely seen in one."""
    rng, pair = np.random.default_rng(0), {"a": {}, "b": {}}
    for layer in range(36):
        common = rng.standard_normal((256, 16))
        for update in pair.values():
            B = 0.4 * common + np.sqrt(1 - 0.4**2) * rng.standard_normal((256, 16))
            update[f"model.layers.{layer}.mlp.down_proj"] = factors_of(
                B, rng.standard_normal((16, 256))
            )
    _, table, _ = compare_beside_chance(pair)
    first = table.query("side == 'left' and index == 1")
    median = first.query("scope == 'global'").iloc[0]
    of_modules = first.query("scope == 'module'")
    assert median.degrees == pytest.approx(of_modules.degrees.median()), "side by side: one median"
    assert median.degrees < median.chance_low, "not by chance"
    assert median.degrees > of_modules.chance_low.max(), "where the band of one module says chance"
    assert median.modules == 36
    assert set(of_modules.modules) == {1}


# --- first directions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("modules", "runs"), [(1, 30), (4, 30), (36, 16)])
@pytest.mark.parametrize("is_shared", [True, False], ids=["one A", "own A"])
def test_95_of_100_unrelated_first_directions_lie_below_their_limit(modules, runs, is_shared):
    _, _, table = compare_beside_chance(unrelated(runs, modules, seed=7, is_shared=is_shared))
    assert len(table) == 2 * modules * runs * (runs - 1) / 2
    for side, rows in table.groupby("side"):
        for band in BANDS:
            share = (rows.overlap <= rows[f"{band}_high"]).mean()
            assert share == pytest.approx(0.95, abs=0.03), f"{side}, {band}: {share:.3f}"


def test_limits_of_first_directions_hold_with_the_fewest_draws(monkeypatch):
    monkeypatch.setattr(bands, "_WORK", 0)
    _, _, table = compare_beside_chance(unrelated(8, 60, seed=3))
    rows = table.query("side == 'right'")
    assert (rows.overlap <= rows.gaussian_high).mean() == pytest.approx(0.95, abs=0.03)


def test_an_input_that_two_updates_read_is_beyond_chance_only_if_A_does_not_explain_it():
    """Two updates on one A whose first row is long: with a B that is Gaussian they share that row
    by chance. One row that is long in a pair of A's which are otherwise unrelated is no chance."""
    rng, name = np.random.default_rng(0), "model.layers.0.q_proj"
    lengths = np.array([[5.0], [1], [1], [1]])
    common = orthonormal(rng, 60, 1).T

    def update(rows):
        return {name: factors_of(rng.standard_normal((50, 4)), lengths * rows)}

    A = orthonormal(rng, 60, 4).T
    _, _, table = compare_beside_chance({"a": update(A), "b": update(A)})
    right = table.query("side == 'right'").iloc[0]
    assert 0.8 < right.overlap <= right.gaussian_high
    # B of one length keeps nothing of A's: what it has is in the spectrum, which the null keeps
    own = [np.vstack([common, orthonormal(rng, 60, 3).T]) for _ in "ab"]
    turned = [orthonormal(rng, 50, 4) * [0.1, 1, 1, 1] for _ in "ab"]
    pair = {
        run: {name: factors_of(B, rows)} for run, B, rows in zip("ab", turned, own, strict=True)
    }
    _, _, table = compare_beside_chance(pair)
    assert (table[table.side == "right"].overlap < 0.9).all()
    left = table[table.side == "left"].iloc[0]
    drawn = np.abs(np.random.default_rng(1).standard_normal((20_000, 50)))
    drawn = drawn[:, 0] / np.linalg.norm(drawn, axis=1)
    assert left.chance_high == pytest.approx(np.quantile(drawn, 0.95), rel=0.03)
    assert left.gaussian_high == left.chance_high


def test_one_row_of_A_is_the_first_input_of_all_and_within_chance():
    _, _, table = compare_beside_chance(unrelated(2, 3, seed=0, rank=1))
    right = table[table.side == "right"]
    np.testing.assert_allclose(right.overlap, 1)
    assert (right.overlap <= right.chance_high).all()
    assert (right.overlap <= right.gaussian_high).all()


def test_first_directions_of_an_update_of_zero_have_neither_number_nor_limit():
    adapters = unrelated(3, 2, seed=0)
    adapters["run0"] = {
        name: Factors(torch.zeros_like(part.B), part.A, 1.0)
        for name, part in adapters["run0"].items()
    }
    _, _, table = compare_beside_chance(adapters)
    nothing = table[table.run_a == "run0"]
    assert nothing[["overlap", "chance_high", "gaussian_high"]].isna().all().all()
    rest = table[table.run_a == "run1"]
    assert rest[["overlap", "chance_high", "gaussian_high"]].notna().all().all()


# --- likeness of subspaces of any size ------------------------------------------------------------


def test_similarity_of_all_subspaces_is_that_of_the_dense_updates():
    rng = np.random.default_rng(0)
    ranks, shapes = (5, 3), ((12, 9), (20, 7))
    first, second = (
        {
            f"model.layers.{layer}.q_proj": factors_of(
                rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
            )
            for layer, (d_out, d_in) in enumerate(shapes)
        }
        for rank in ranks
    )
    table = similarity_table({"other": second, "a": first, "b": second}, [("a", "b")])
    assert (table.run_a + table.run_b == "ab").all()
    assert len(table) == 2 * ranks[0] * ranks[1]
    solved = [
        [np.linalg.svd(dense(part)) for part in update.values()] for update in (first, second)
    ]
    for row in table.itertuples():
        of_modules = []
        for one, two in zip(*solved, strict=True):
            U, V = (one[0], two[0]) if row.side == "left" else (one[2].T, two[2].T)
            met = np.linalg.norm(U[:, : row.i].T @ V[:, : row.j]) ** 2
            of_modules.append(met / min(row.i, row.j))
        assert row.similarity == pytest.approx(np.mean(of_modules), rel=1e-8), row
        assert row.modules == 2
    left = table[table.side == "left"]
    np.testing.assert_allclose(left.chance, np.maximum(left.i, left.j) * np.mean([1 / 12, 1 / 20]))


@pytest.mark.parametrize("modules", [1, 6])
def test_95_of_100_unrelated_subspaces_are_less_alike_than_the_limit(modules):
    """Of unequal ranks on rows of one A."""
    tables = []
    for seed in range(60):
        pair = unrelated(2, modules, seed, shapes=((30, 20),))
        pair["run1"] = {
            name: Factors(part.B[:, :2], part.A[:2], 1.0) for name, part in pair["run1"].items()
        }
        tables.append(similarity_table(pair, [("run0", "run1")], seed=seed))
    table = pd.concat(tables)
    for (side, i, j), rows in table.groupby(["side", "i", "j"]):
        share = (rows.similarity <= rows.chance_high).mean()
        what = f"{side}, {i} in {j}: {share}"
        if side == "right" and i == 4:  # all of A's rows hold those of the other
            assert rows.similarity.min() == pytest.approx(1), what
        assert share >= 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 60), what
        error = 4 * rows.similarity.std() / np.sqrt(60) + 1e-9
        assert rows.similarity.mean() == pytest.approx(rows.chance.mean(), abs=error), what


def test_modules_without_a_subspace_are_no_part_of_the_mean():
    pair = unrelated(2, 3, seed=0)
    names = list(pair["run0"])
    dead = pair["run0"][names[0]]
    whole = similarity_table(
        {run: {n: u[n] for n in names[1:]} for run, u in pair.items()}, [("run0", "run1")]
    )
    pair["run0"][names[0]] = Factors(torch.zeros_like(dead.B), dead.A, dead.scale)
    table = similarity_table(pair, [("run0", "run1")])
    assert (table.modules == 2).all()
    np.testing.assert_allclose(table.similarity, whole.similarity)


# --- memory ---------------------------------------------------------------------------------------


def test_pairs_and_rows_in_small_blocks_change_no_number(monkeypatch):
    adapters = unrelated(5, 2, seed=0)
    # one whose B needs Householder's QR
    poor = adapters["run4"]
    adapters["run4"] = {
        name: Factors(part.B * torch.tensor([1, 1e-7, 1, 1]), part.A, 1.0)
        for name, part in poor.items()
    }
    compared, angles, directions = compare_beside_chance(adapters)
    for module, size in ((frames, "_ROWS"), (bands, "_BLOCK"), (geometry, "_BLOCK")):
        monkeypatch.setattr(module, size, 3)
    again, angles_again, directions_again = compare_beside_chance(adapters)
    for field in ("inner", "cross", "singular_values", "alignment", "compared"):
        np.testing.assert_allclose(
            getattr(again, field), getattr(compared, field), rtol=1e-12, atol=1e-12
        )
    for side in geometry.SIDES:
        np.testing.assert_allclose(again.angles[side], compared.angles[side], atol=1e-12)
    for one, other in ((angles_again, angles), (directions_again, directions)):
        # an arccos loses digits, and draws are kept in float32
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-6)


PEAK = """
import resource, torch
from adapter_geometry.bands import compare_beside_chance
from adapter_geometry.updates import Factors

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
adapters = {
    f"run{number}": {
        "model.layers.0.mlp.down_proj": Factors(
            torch.randn(8192, 16, generator=generator),
            torch.randn(16, 28672, generator=generator),
            1.0,
        )
    }
    for number in range(100)
}
compare_beside_chance(adapters)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
def test_a_hundred_adapters_of_a_model_of_70_billion_are_compared_in_bounded_memory():
    """The largest module: its factors alone are 0.24 GB, and a copy in float64 would be 0.47."""
    said = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(said.stdout) < 1.5e6, "kB, torch and the factors included"


# --- what a band may not depend on ----------------------------------------------------------------


def keyed(table):
    """Rows by what they are about, whatever the order of the two runs."""
    pair = [" ".join(sorted(names)) for names in zip(table.run_a, table.run_b, strict=True)]
    table = table.assign(pair=pair).drop(columns=["run_a", "run_b"])
    return table.sort_values(["scope", "module", "side", "pair", "index"], ignore_index=True)


def test_bands_depend_neither_on_the_order_of_the_adapters_nor_on_further_ones():
    # so few modules that all of the 2,000 draws are made
    adapters = unrelated(4, 2, seed=0)
    _, table, _ = compare_beside_chance(adapters)
    _, turned, _ = compare_beside_chance(dict(reversed(adapters.items())))
    pd.testing.assert_frame_equal(keyed(turned), keyed(table), rtol=1e-5, check_exact=False)
    pair = {name: adapters[name] for name in ("run0", "run2")}
    _, alone, _ = compare_beside_chance(pair)
    among = table[(table.run_a == "run0") & (table.run_b == "run2")]
    pd.testing.assert_frame_equal(keyed(alone), keyed(among), rtol=1e-5, check_exact=False)


def test_a_copy_is_no_draw_of_its_original():
    one = unrelated(1, 2, seed=0)["run0"]
    _, table, _ = compare_beside_chance({"a": one, "copy": dict(one)})
    assert (table.degrees < 1e-6).all(), "the same update"
    assert (table.chance_low > 0.1).all(), "and two draws that do not know of each other"
    assert (table.degrees < table.chance_low).all()


def test_references_leave_out_pairs_and_change_no_number():
    adapters = unrelated(5, 2, seed=0)
    _, table, _ = compare_beside_chance(adapters)
    _, chosen, _ = compare_beside_chance(adapters, references=["run2"])
    expected = table[(table.run_a == "run2") | (table.run_b == "run2")]
    pd.testing.assert_frame_equal(chosen, expected.reset_index(drop=True))
    assert len(chosen) == 4 * (2 + 1) * 2 * 2, "pairs x (modules and their median) x sides x angles"


def test_it_measures_what_compare_measures():
    adapters = unrelated(3, 4, seed=0)
    compared, expected = compare_beside_chance(adapters)[0], geometry.compare(adapters)
    for field in ("inner", "cross", "singular_values", "alignment", "compared"):
        np.testing.assert_array_equal(getattr(compared, field), getattr(expected, field))
    for side in geometry.SIDES:
        np.testing.assert_array_equal(compared.angles[side], expected.angles[side])


# --- the nulls ------------------------------------------------------------------------------------


def test_left_bands_are_those_of_random_subspaces_of_the_same_dimensions():
    _, table, _ = compare_beside_chance(unrelated(2, 2, seed=0, shapes=((50, 10),)))
    for index in (1, 2):
        rows = table.query("scope == 'module' and side == 'left' and index == @index")
        drawn = np.degrees(random_angles(50, 2, 20_000, seed=1)[:, index - 1])
        for band in BANDS:
            ends = rows[[f"{band}_low", f"{band}_high"]].iloc[0]
            np.testing.assert_allclose(ends, np.quantile(drawn, [0.025, 0.975]), rtol=0.02)
    assert (table.query("side == 'left'").harder == "matched").all(), "both nulls are one"


def test_subspaces_of_unequal_dimensions_are_drawn_as_such():
    rng = np.random.default_rng(0)
    drawn = [np.linalg.svd(orthonormal(rng, 9, 4)[:2], compute_uv=False) for _ in range(1500)]
    angles = random_angles(9, 4, 1500, seed=1, smaller=2)
    assert angles.shape == (1500, 2)
    for index in range(2):
        expected = np.arccos(np.array(drawn)[:, index])
        assert ks_2samp(angles[:, index], expected).pvalue > 1e-3, f"angle {index + 1}"
    line = random_angles(6, 5, 50, smaller=3)  # in R^6 they share at least two dimensions
    np.testing.assert_allclose(line[:, :2], 0, atol=1e-6)


def test_right_bands_of_gaussian_B_are_those_of_drawn_updates():
    adapters = unrelated(2, 1, seed=3, shapes=((60, 30),))
    _, table, _ = compare_beside_chance(adapters)
    many = {f"{number}": adapters["run0"] for number in range(80)}
    drawn = geometry.compare(gaussian_null(many, 0, keeps_A=True)).angles["right"]
    rows = table.query("scope == 'module' and side == 'right'")
    for index in range(2):
        of_pairs = drawn[0][np.triu_indices(80, 1)][:, index]
        low, high = np.degrees(np.quantile(of_pairs, [0.025, 0.975]))
        row = rows[rows["index"] == index + 1].iloc[0]
        assert (row.gaussian_low, row.gaussian_high) == pytest.approx((low, high), rel=0.15)


def test_the_null_that_reaches_lower_is_named():
    """Rows of A of very different length, and a B that turns all of them: with its spectrum kept,
    no direction of A leads, with a Gaussian one A's longest row does."""
    rng, A = (
        np.random.default_rng(0),
        np.diag([30.0, 1, 1, 1]) @ orthonormal(np.random.default_rng(1), 20, 4).T,
    )
    B = [orthonormal(rng, 40, 4) * [1, 1e-3, 1e-4, 1e-5] for _ in "ab"]
    turned = {
        name: {"model.layers.0.q_proj": factors_of(b @ orthonormal(rng, 4, 4), A)}
        for name, b in zip("ab", B, strict=True)
    }
    _, table, _ = compare_beside_chance(turned, k=1)
    right = table.query("side == 'right' and scope == 'module'").iloc[0]
    assert right.harder == "gaussian"
    assert right.gaussian_low < right.chance_low
    cosine = geometry.cosine_table(geometry.compare(turned)).iloc[0]
    assert cosine.harder == ("gaussian" if cosine.gaussian_high > cosine.chance_high else "matched")


def test_what_chance_leaves_no_room_is_neither_nearer_nor_farther_than_chance():
    """Rank 1 on one A: the right angle is 0 whatever B is."""
    _, table, _ = compare_beside_chance(unrelated(2, 3, seed=0, rank=1))
    right = table[table.side == "right"]
    assert (right.degrees < 1e-6).all()
    assert inside(right, "chance").all()
    assert inside(right, "gaussian").all()


# --- what is not defined --------------------------------------------------------------------------


def test_medians_are_over_the_modules_in_which_the_angle_is_defined():
    adapters = unrelated(3, 5, seed=0)
    names = list(adapters["run0"])
    dead = adapters["run0"][names[1]]
    adapters["run0"][names[1]] = Factors(torch.zeros_like(dead.B), dead.A, dead.scale)
    adapters["nothing"] = {
        name: Factors(torch.zeros_like(part.B), part.A, 1.0)
        for name, part in adapters["run1"].items()
    }
    _, table, _ = compare_beside_chance(adapters)
    rows = table.query("run_a == 'run0' and run_b == 'run1'")
    whole = rows[rows.scope == "global"]
    assert set(whole.modules) == {4}
    assert inside(whole, "chance").all(), "a band there is, and of four modules"
    single = rows[(rows.module == names[1])]
    assert set(single.modules) == {0}
    assert single[["degrees", "chance_low", "chance_high", "gaussian_low"]].isna().all().all()
    nothing = table[table.run_b == "nothing"]
    assert (nothing.modules == 0).all()
    assert nothing[["degrees", "chance_low", "chance_high"]].isna().all().all()


def test_ranks_that_differ_are_compared_pair_by_pair_with_bands_of_their_own():
    rng, shape = np.random.default_rng(0), (40, 30)

    def update(rank):
        return {
            f"model.layers.{layer}.q_proj": factors_of(
                rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
            )
            for layer in range(30)
        }

    adapters = {"small": update(1), "a": update(16), "b": update(16), "c": update(7)}
    compared, table, _ = compare_beside_chance(adapters)
    sizes = table.dropna(subset="degrees").groupby(["run_a", "run_b"])["index"].max()
    assert sizes.to_dict() == {
        ("small", "a"): 1,
        ("small", "b"): 1,
        ("small", "c"): 1,
        ("a", "b"): 5,
        ("a", "c"): 2,
        ("b", "c"): 2,
    }, "the top k of the smaller rank of each pair"
    pair = geometry.compare({name: adapters[name] for name in "ab"})
    np.testing.assert_allclose(
        compared.angles["left"][:, 1, 2],
        pair.angles["left"][:, 0, 1],
        rtol=1e-12,
        err_msg="as if alone",
    )
    modules = table.query("scope == 'module'").dropna(subset="degrees")
    assert inside(modules, "chance").mean() == pytest.approx(0.95, abs=0.03)
