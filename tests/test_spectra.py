"""Intruder dimensions and spectral shift from thin matrices, against dense SVDs of W0 + dW and
planted answers."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

from adapter_geometry import spectra
from adapter_geometry.adapters import AdapterError
from adapter_geometry.spectra import THRESHOLD, TOP, BaseWeights
from adapter_geometry.updates import Factors

pytestmark = pytest.mark.filterwarnings("error")
SHAPES = [(60, 60), (90, 40), (40, 90), (9, 9), (8, 30), (30, 8), (12, 14), (1, 5)]
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices: several threads would wait for each other."""
    with threadpool_limits(1):
        yield


def base_weights(shape, seed=0):
    """A random matrix whose singular values fall by a fifth each."""
    rng = np.random.default_rng(seed)
    U, _, Vh = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return U * 3 * 0.8 ** np.arange(min(shape)) @ Vh


def random_factors(shape, rank, norm, seed=1):
    rng = np.random.default_rng(seed)
    B, A = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    return factors_of(B, A, norm / np.linalg.norm(B @ A))


def factors_of(B, A, scale=1.0):
    return Factors(torch.as_tensor(np.array(B)), torch.as_tensor(np.array(A)), scale)


def decomposition_of(weight, dtype=torch.float64):
    U, sigma, Vh = torch.linalg.svd(torch.as_tensor(weight), full_matrices=False)
    return U.to(dtype), sigma.to(dtype), Vh.T.to(dtype)


def dense_change(weight, factors):
    """(intruder dimensions, spectral shift) by numpy's SVDs of W0 and of W0 + dW."""
    old, new = (
        np.linalg.svd(matrix, full_matrices=False)
        for matrix in (weight, weight + factors.scale * factors.B.numpy() @ factors.A.numpy())
    )
    overlaps = np.abs(old.U.T @ new.U[:, :TOP]).max(0)
    return int((overlaps < THRESHOLD).sum()), np.linalg.norm(new.S - old.S) / np.linalg.norm(old.S)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_intruders_are_counted_and_the_shift_is_within_its_bound_for_updates_of_all_sizes(
    shape, rank
):
    weight = base_weights(shape)
    for norm in (1e-6, 0.01, 0.3, 3, 100):
        for seed in range(3):
            factors = random_factors(shape, rank, norm, seed)
            change = spectra.change_of_spectrum(factors, decomposition_of(weight))
            intruders, shift = dense_change(weight, factors)
            assert change["intruders"] == intruders, f"|dW| = {norm}: intruder dimensions, dense"
            assert abs(change["spectral_shift"] - shift) <= change["shift_error"] + 1e-12, (
                f"|dW| = {norm}: the true shift is within the bound"
            )
            if min(shape) <= TOP + rank:
                assert change["shift_error"] == pytest.approx(0, abs=1e-12), (
                    "all values are leading ones"
                )


@pytest.mark.parametrize("norm", [0.001, 1.0], ids=["a thousandth of W0", "as large as W0"])
def test_the_shift_by_small_and_by_large_updates_is_known_to_two_percent(norm):
    weight = np.random.default_rng(0).standard_normal((150, 120))
    for rank in (4, 16):
        factors = random_factors(weight.shape, rank, norm * np.linalg.norm(weight))
        change = spectra.change_of_spectrum(factors, decomposition_of(weight))
        _, shift = dense_change(weight, factors)
        assert change["spectral_shift"] == pytest.approx(shift, rel=0.02), (
            f"rank {rank}; between these sizes only the bound holds"
        )


def test_a_decomposition_stored_in_float32_is_good_to_six_digits():
    weight = base_weights((90, 40))
    for norm in (0.01, 0.3, 3):
        factors = random_factors(weight.shape, 4, norm)
        rounded, exact = (
            spectra.change_of_spectrum(factors, decomposition_of(weight, dtype))
            for dtype in (torch.float32, torch.float64)
        )
        assert rounded["intruders"] == exact["intruders"]
        assert rounded["spectral_shift"] == pytest.approx(exact["spectral_shift"], abs=1e-6)


@pytest.mark.parametrize(
    "shape", [(200, 200), (300, 150), (150, 300)], ids=["square", "tall", "wide"]
)
@pytest.mark.parametrize("planted", [0, 1, 3])
def test_each_planted_new_direction_is_an_intruder(planted, shape):
    weight, rng = base_weights(shape, 4), np.random.default_rng(5)
    new, _ = np.linalg.qr(rng.standard_normal((shape[0], 4)))
    inputs, _ = np.linalg.qr(rng.standard_normal((shape[1], 4)))
    # three times the largest singular value, or next to nothing
    sizes = np.where(np.arange(4) < planted, 9.0, 1e-4)
    factors = factors_of(new * sizes, inputs.T)
    change = spectra.change_of_spectrum(factors, decomposition_of(weight))
    assert change["intruders"] == planted, (
        "a random direction has an overlap of about 1/4 with the nearest of the old ones"
    )


def test_stretching_a_direction_of_the_base_makes_no_intruder_and_shifts_one_value():
    weight = base_weights((80, 50))
    U, sigma, Vh = np.linalg.svd(weight, full_matrices=False)
    for index, stretch in ((0, 2.0), (3, 50.0), (45, 7.0)):
        factors = factors_of(stretch * U[:, [index]], Vh[[index]])
        change = spectra.change_of_spectrum(factors, decomposition_of(weight))
        assert change["intruders"] == 0, f"u_{index + 1} is a direction of W0"
        moved = np.sort(np.r_[np.delete(sigma, index), sigma[index] + stretch])[::-1]
        assert change["spectral_shift"] == pytest.approx(
            np.linalg.norm(moved - sigma) / np.linalg.norm(sigma), rel=1e-8
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_zero_update_changes_nothing(shape):
    factors = factors_of(np.zeros((shape[0], 2)), np.ones((2, shape[1])))
    change = spectra.change_of_spectrum(factors, decomposition_of(base_weights(shape)))
    assert change["intruders"] == 0
    assert change["spectral_shift"] == pytest.approx(0, abs=1e-12)
    assert change["shift_error"] == pytest.approx(0, abs=1e-12)


def test_a_weight_stored_transposed_gives_the_same_numbers():
    weight, factors = base_weights((60, 35)), random_factors((60, 35), 3, 2.0)
    plain = spectra.change_of_spectrum(factors, decomposition_of(weight))
    transposed = spectra.change_of_spectrum(
        Factors(factors.B, factors.A, factors.scale, True), decomposition_of(weight.T)
    )
    assert transposed == pytest.approx(plain, rel=1e-8), (
        "GPT-2's Conv1D stores W0' where others store W0"
    )


def test_the_gauge_of_the_factors_does_not_matter():
    weight, factors = base_weights((60, 35)), random_factors((60, 35), 3, 2.0)
    M = torch.tensor([[2.0, 1, 0], [0, 1, 3], [1, 0, 1]], dtype=torch.float64)
    other = Factors(factors.B @ M, torch.linalg.inv(M) @ factors.A, factors.scale)
    plain, in_another_gauge = (
        spectra.change_of_spectrum(one, decomposition_of(weight)) for one in (factors, other)
    )
    assert in_another_gauge == pytest.approx(plain, rel=1e-8), "(B M, M^-1 A) is the same update"


def test_bases_without_gaps_or_without_weights_have_a_defined_answer():
    factors = random_factors((50, 50), 2, 1.0)
    change = spectra.change_of_spectrum(factors, decomposition_of(np.eye(50)))
    _, shift = dense_change(np.eye(50), factors)
    assert abs(change["spectral_shift"] - shift) <= change["shift_error"] + 1e-12, (
        "fifty equal singular values"
    )
    change = spectra.change_of_spectrum(factors, decomposition_of(np.zeros((50, 50))))
    assert np.isnan(change["spectral_shift"]), "no share of nothing"


# --- the base model's folder ----------------------------------------------------------------------


@pytest.fixture
def base(tmp_path, workplace):
    """A folder with a base model of two modules, in two files with an index."""
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {
        f"model.layers.{layer}.self_attn.q_proj.weight": torch.tensor(
            base_weights((24, 20), layer)
        ).float()
        for layer in (0, 1)
    }
    for number, (name, weight) in enumerate(weights.items()):
        save_file(
            {name: weight, f"other.{number}.weight": torch.ones(2)},
            folder / f"part-{number}.safetensors",
        )
    files = {name: f"part-{number}.safetensors" for number, name in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def test_weights_are_read_from_the_file_that_the_index_names(base):
    weights = BaseWeights(base)
    for layer in (0, 1):
        expected = torch.tensor(base_weights((24, 20), layer)).float()
        assert torch.equal(weights.weight(f"model.layers.{layer}.self_attn.q_proj"), expected), (
            f"W0 of layer {layer}"
        )


def test_a_decomposition_is_computed_once_and_never_taken_for_other_weights(
    base, cache, monkeypatch
):
    solved, svd = [], torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *args, **options: solved.append(args) or svd(*args, **options)
    )
    first = BaseWeights(base).decomposition(Q_PROJ)
    U, sigma, V = first
    torch.testing.assert_close(
        U * sigma @ V.T, BaseWeights(base).weight(Q_PROJ), rtol=1e-5, atol=1e-6, msg="W0 = U S V'"
    )
    again = BaseWeights(base).decomposition(Q_PROJ)
    assert len(solved) == 1, "the second time it is read"
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True)), (
        "to the last bit"
    )
    save_file(
        {f"{Q_PROJ}.weight": torch.tensor(base_weights((24, 20), 9)).float()},
        base / "part-1.safetensors",
    )
    other = BaseWeights(base).decomposition(Q_PROJ)
    assert len(solved) == 2, "other weights in the same file are decomposed again"
    assert not torch.equal(other[0], U)
    transposed = torch.tensor(base_weights((24, 20), 9)).float().reshape(20, 24)
    save_file({f"{Q_PROJ}.weight": transposed}, base / "part-1.safetensors")
    assert BaseWeights(base).decomposition(Q_PROJ)[0].shape[0] == 20, (
        "the same bytes in another shape are another matrix"
    )
    files = [path.name for path in (cache / "adapter-geometry").iterdir()]
    assert len(files) == 3, f"one file per matrix, and nothing half-written: {files}"


def test_the_table_has_a_row_for_each_run_and_module(base):
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    adapters = {
        run: {
            module: random_factors((24, 20), 3, size, seed) for seed, module in enumerate(modules)
        }
        for run, size in (("a", 0.3), ("b", 9.0))
    }
    table = spectra.intruders_table(adapters, BaseWeights(base))
    assert [tuple(row) for row in table[["run", "layer", "projection"]].to_numpy()] == [
        (run, layer, "q_proj") for run in "ab" for layer in (0, 1)
    ]
    for row in table.itertuples():
        intruders, shift = dense_change(
            base_weights((24, 20), row.layer), adapters[row.run][modules[row.layer]]
        )
        assert row.count == intruders, f"{row.run}, layer {row.layer}: dense count"
        assert abs(row.spectral_shift - shift) <= row.shift_error + 1e-6, (
            f"{row.run}, layer {row.layer}: dense shift"
        )


def test_an_update_of_another_shape_is_refused_before_anything_is_decomposed(base, workplace):
    adapters = {"a": {Q_PROJ: random_factors((20, 24), 2, 1.0)}}
    with pytest.raises(
        AdapterError, match=rf"{Q_PROJ} is 24 x 20 in the base model .*, but the update is 20 x 24"
    ):
        spectra.intruders_table(adapters, BaseWeights(base))
    assert not (workplace / "results").exists(), "nothing was computed"
    one = random_factors((20, 24), 2, 1.0)
    transposed = Factors(one.B, one.A, one.scale, True)
    BaseWeights(base).check_shapes({Q_PROJ: transposed})  # which fits


def test_half_precision_weights_are_decomposed_in_float32(base):
    stored = torch.tensor(base_weights((24, 20), 1)).bfloat16()
    save_file({f"{Q_PROJ}.weight": stored}, base / "part-1.safetensors")
    weights = BaseWeights(base)
    U, sigma, V = weights.decomposition(Q_PROJ)
    assert weights.weight(Q_PROJ).dtype == torch.bfloat16, "as stored"
    torch.testing.assert_close(U * sigma @ V.T, stored.float(), rtol=1e-5, atol=1e-6)
