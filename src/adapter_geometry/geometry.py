"""Geometry of updates, from their factors alone, and what each number would be by chance.

Comes after `updates` and `frames`, before the tables of the study and of the report; `chance` draws
null updates and measures them with what is here. Reads and writes no file.

Every quantity equals the one of the dense updates and is computed without forming them: each
module's update is written in orthonormal frames, dW_i = Q_i M_i P_i' with Q_i (d_out, r),
P_i (d_in, r) and a core M_i (r, r). All that two updates have to do with each other is then in the
small matrices M_i, Q_i' Q_j and P_i' P_j. Everything is float64.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int, Int64
from numpy.typing import ArrayLike
from scipy.special import ndtri
from threadpoolctl import threadpool_limits
from torch import Tensor

from adapter_geometry import updates
from adapter_geometry.frames import SMALL, Frames, angles_of
from adapter_geometry.updates import Adapters, Update

_RANK_TOLERANCE = 1e-10  # singular values below this share of the largest are rounding
_CHUNK = 5e6  # float64 numbers of factors held at once
_LEVEL = 0.95
_Z = float(ndtri((1 + _LEVEL) / 2))
_SIDES = ("left", "right")
_SCOPE_COLUMNS = ("scope", "module", "layer", "projection")


# --- from singular values -------------------------------------------------------------------------


def effective_rank(singular_values: ArrayLike) -> Any:
    """exp(entropy of sigma / sum sigma) along the last axis (Roy & Vetterli 2007).

    NaN for a zero update; NaN entries are padding. A number for one spectrum, an array for several.

    >>> round(float(effective_rank([5, 5, 5, 0])), 6)
    3.0
    """
    sigma = np.nan_to_num(np.asarray(singular_values, float))
    share = _ratio(sigma, sigma.sum(-1, keepdims=True))
    # 0 log 0 = 0, and the NaN of a zero update is kept
    zero = np.where(np.isnan(share), np.nan, 0)
    negative_entropy = np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), zero)
    return np.exp(-negative_entropy.sum(-1))


def stable_rank(singular_values: ArrayLike) -> Any:
    """sum sigma^2 / sigma_1^2 along the last axis; NaN for a zero update.

    >>> float(stable_rank([2, 1, 1]))
    1.5
    """
    squares = np.nan_to_num(np.asarray(singular_values, float)) ** 2
    return _ratio(squares.sum(-1), squares.max(-1))


def participation_ratio(singular_values: ArrayLike) -> Any:
    """(sum sigma^2)^2 / sum sigma^4 along the last axis; NaN for a zero update."""
    squares = np.nan_to_num(np.asarray(singular_values, float)) ** 2
    return _ratio(squares.sum(-1) ** 2, (squares**2).sum(-1))


def top_k(rank: int) -> int:
    """How many singular vectors span the compared subspace.

    A third of the rank, at least 2, below the rank where that has room: with k = r the right
    subspace would be the whole row space of A.

    >>> [top_k(rank) for rank in (1, 4, 16, 32)]
    [1, 2, 5, 11]
    """
    return max(1, min(max(2, round(rank / 3)), rank - 1))


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Any:
    """numerator / denominator, NaN where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    is_defined = np.asarray(denominator) > 0
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=is_defined)


# --- all pairs of adapters, module by module ------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured of m modules and n runs, with the top k singular vectors per side.

    NaN marks what is not defined.
    """

    runs: list[str]
    # One row per module, in the order of the network: module (its full name), layer (nullable
    # Int64, NA where the name has none), projection, d_out, d_in.
    modules: pd.DataFrame
    rank: Int[np.ndarray, "module run"]  # r of the factors
    inner: Float64[np.ndarray, "module run run"]  # <dW_i, dW_j>
    cross: Float64[np.ndarray, "module run run"]  # |dW_i dW_j'|_F^2
    singular_values: Float64[np.ndarray, "module run largest_rank"]  # descending, NaN beyond r
    # By side: principal angles in radians, ascending.
    angles: dict[str, Float64[np.ndarray, "module run run k"]]
    first: dict[str, Float64[np.ndarray, "module run run"]]  # by side: |<u_1, u_1'>|
    # |U_k U_k' dW_j| / |dW_j|, U_k of run i
    alignment: Float64[np.ndarray, "module run run"]


# From the frames of a chunk of modules, given by their numbers, one pair of frames per Comparison.
Variants = Callable[[Frames, Frames, list[int]], Sequence[tuple[Frames, Frames]]]


def compare(adapters: Adapters, k: int | None = None) -> Comparison:
    """Measure every pair of updates {run: {module: Factors}} on every module.

    k: size of the compared subspaces, `top_k` of the smallest rank by default. A subspace is
    defined where its update has rank k and sigma_k > sigma_(k+1); an update of lower rank takes
    part with its whole column space, and the missing angles are NaN, as are all angles of a zero
    update. First vectors need sigma_1 > sigma_2.
    Raises ValueError naming the first module that one of the updates lacks, or whose shapes differ.
    """
    return compare_variants(adapters, k, lambda left, right, modules: [(left, right)], 1)[0]


def compare_variants(
    adapters: Adapters, k: int | None, variants: Variants, count: int
) -> list[Comparison]:
    """`count` Comparisons, one for each pair of frames that `variants` makes of a chunk of modules.

    `adapters`, `k` and the errors are those of `compare`.
    """
    runs = list(adapters)
    first = adapters[runs[0]]
    for run in runs:
        _require_equal_shapes(first, adapters[run], runs[0], run)
    names = sorted(first, key=lambda module: (*updates.order_key(module), module))
    modules = _modules_table(first, names)
    rank = np.array([[adapters[run][module].A.shape[0] for run in runs] for module in names])
    k = k or top_k(int(rank.min()))
    comparisons = [_empty(runs, modules, rank, k) for _ in range(count)]

    def measure(chunk: list[int]) -> None:
        factors = [[adapters[run][names[module]] for module in chunk] for run in runs]
        left = Frames([[part.B for part in parts] for parts in factors])
        right = Frames([[part.A.T for part in parts] for parts in factors])
        scales = torch.tensor(
            [[part.scale for part in parts] for parts in factors],
            dtype=torch.float64,
            device=left.R.device,
        ).T  # (module, run)
        for comparison, pair in zip(comparisons, variants(left, right, chunk), strict=True):
            _measure(comparison, chunk, *pair, scales, k)

    # Chunks side by side, each with one BLAS thread: no sum depends on the number of threads.
    with threadpool_limits(1), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(measure, _chunks(modules, rank)))
    return comparisons


def _require_equal_shapes(first: Update, other: Update, first_run: str, other_run: str) -> None:
    """Raise ValueError unless both updates have the same modules, each in the same shape."""
    if different := first.keys() ^ other.keys():
        example = sorted(different)[0]
        raise ValueError(
            f"{other_run} and {first_run} have different modules, for example {example}"
        )
    for module, factors in other.items():
        shape = factors.B.shape[0], factors.A.shape[1]
        wanted = first[module].B.shape[0], first[module].A.shape[1]
        if shape != wanted:
            raise ValueError(
                f"{module} is {shape[0]} x {shape[1]} in {other_run} and {wanted[0]} x "
                f"{wanted[1]} in {first_run}: adapters of different base models cannot be compared"
            )


def _modules_table(update: Update, names: list[str]) -> pd.DataFrame:
    """`Comparison.modules` for the modules of these names, in this order."""
    rows = [
        (name, *updates.layer_and_projection(name), *_dimensions(update, name)) for name in names
    ]
    table = pd.DataFrame(rows, columns=["module", "layer", "projection", "d_out", "d_in"])
    return table.astype({"layer": "Int64"})


def _dimensions(update: Update, module: str) -> tuple[int, int]:
    """(d_out, d_in) of a module."""
    return update[module].B.shape[0], update[module].A.shape[1]


def _chunks(modules: pd.DataFrame, rank: Int[np.ndarray, "module run"]) -> list[list[int]]:
    """Numbers of modules that are measured together: of one shape, of equal ranks, and few enough
    that the factors of all runs fit into `_CHUNK` numbers."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(modules.itertuples()):
        groups.setdefault((row.d_out, row.d_in, *rank[number]), []).append(number)
    chunks = []
    for (d_out, d_in, *ranks), numbers in groups.items():
        size = max(1, int(_CHUNK // ((d_out + d_in) * sum(ranks))))
        chunks += [numbers[begin : begin + size] for begin in range(0, len(numbers), size)]
    return chunks


def _empty(
    runs: list[str], modules: pd.DataFrame, rank: Int[np.ndarray, "module run"], k: int
) -> Comparison:
    """A Comparison whose numbers are still to be filled in, by `_measure`."""
    m, n = rank.shape
    return Comparison(
        runs,
        modules,
        rank,
        inner=np.empty((m, n, n)),
        cross=np.empty((m, n, n)),
        singular_values=np.full((m, n, rank.max()), np.nan),
        angles={side: np.full((m, n, n, k), np.nan) for side in _SIDES},
        first={side: np.full((m, n, n), np.nan) for side in _SIDES},
        alignment=np.full((m, n, n), np.nan),
    )


def _measure(
    comparison: Comparison,
    modules: list[int],
    left: Frames,
    right: Frames,
    scales: Float64[Tensor, "module run"],
    k: int,
) -> None:
    """Fill the rows `modules` of a Comparison, from the frames of B and A' and from the scales.

    Batches have axes (module, run, ...) or (module, pair, ...), with every pair of runs once, each
    run with itself included; r is the largest rank of the runs, and smaller ones are padded with
    zeros.
    """
    device = scales.device
    # (module, run, r, r): dW = s B A = Q_left (s R_left R_right') Q_right', so that the core has
    # the norm, the singular values and, within the frames, the singular vectors of dW.
    cores = scales[:, :, None, None] * left.R @ right.R.mT
    norms = torch.linalg.matrix_norm(cores)  # (module, run)
    U, sigma, Vh = torch.linalg.svd(cores)  # sigma: (module, run, r)

    # (module, run): numerical rank, and the size below which a difference of sigmas is rounding.
    rank = (sigma > _RANK_TOLERANCE * sigma[..., :1]).sum(-1)
    floor = _RANK_TOLERANCE * sigma[..., 0]
    # (module, run, r): sigma_i - sigma_(i+1), with 0 after the last. Equal singular values have no
    # vectors of their own, so that the first i span a definite subspace only where this is no 0.
    gaps = sigma - torch.nn.functional.pad(sigma[..., 1:], (0, 1))
    width = min(k, sigma.shape[-1])
    # (module, run): how many top vectors take part. An update of low rank has its whole space, one
    # with a gap after the last compared vector has them all, any other one has none.
    is_separated = gaps[..., width - 1] > floor
    count = torch.where(rank <= width, rank, torch.where(is_separated, width, 0))
    # (module, run, 1, width): 1 for vectors that take part. Columns of zeros add nothing to what is
    # projected on them, and their cosines of 0 are the last ones, which become NaN below.
    participates = torch.arange(width, device=device) < count[..., None]
    mask = participates[:, :, None].double()
    tops = {"left": U[..., :width] * mask, "right": Vh.mT[..., :width] * mask}
    has_first = (gaps[..., 0] > floor) & (rank > 0)  # (module, run): u_1 is defined

    # The cores are padded to the largest rank of all runs; what is beyond a run's own is no zero
    # singular value of its factors but none at all.
    factor_rank = torch.as_tensor(comparison.rank[modules], device=device)[..., None]
    is_own = torch.arange(sigma.shape[-1], device=device) < factor_rank
    spectra = sigma.where(is_own, torch.nan).cpu()
    comparison.singular_values[modules, :, : sigma.shape[-1]] = spectra

    runs = len(comparison.runs)
    i, j = torch.triu_indices(runs, runs, device=device)  # (pair,) each
    QQ, PP = left.shared(i, j), right.shared(i, j)  # (module, pair, r, r): Q_i' Q_j and P_i' P_j
    # <dW_i, dW_j> = tr(M_i' (Q_i' Q_j) M_j (P_j' P_i)): entries of M_i times those of the rest
    inner = (cores[:, i] * (QQ @ cores[:, j] @ PP.mT)).sum((-2, -1))
    _put(comparison.inner, modules, i, j, inner)
    # dW_i dW_j' = Q_i (M_i (P_i' P_j) M_j') Q_j', and frames change no norm
    cross = (cores[:, i] @ PP @ cores[:, j].mT).square().sum((-2, -1))
    _put(comparison.cross, modules, i, j, cross)
    # |U_k U_k' dW_j| = |U_k' Q_i' Q_j M_j| is not symmetric: each pair is measured both ways round.
    for one, other, Q in ((i, j, QQ), (j, i, QQ.mT)):
        projected = tops["left"][:, one].mT @ Q @ cores[:, other]  # (module, pair, width, r)
        captured = torch.linalg.matrix_norm(projected) / norms[:, other]  # (module, pair)
        captured = captured.where(count[:, one] > 0, torch.nan)
        rows = np.asarray(modules)[:, None]
        comparison.alignment[rows, one.cpu(), other.cpu()] = captured.cpu()
    for side, frames, overlaps in (("left", left, QQ), ("right", right, PP)):
        # (module, pair, width, width): cosines between the top vectors of the two updates. Their
        # singular values are the cosines of the principal angles (Bjorck & Golub 1973).
        cosines = tops[side][:, i].mT @ overlaps @ tops[side][:, j]
        first = cosines[..., 0, 0].abs().where(has_first[:, i] & has_first[:, j], torch.nan)
        _put(comparison.first[side], modules, i, j, first)
        angles = torch.arccos(torch.linalg.svdvals(cosines).clamp(max=1))
        angles = angles.where((i != j)[:, None], 0.0)  # with itself: exactly, not up to rounding
        # arccos has lost half the digits of a small angle: those come from the vectors themselves.
        # Frames that were drawn by their overlaps alone have no vectors, and no small angles.
        is_small = (angles[..., 0] < SMALL) & (i != j)  # (module, pair)
        small = torch.nonzero(is_small).tolist() if frames.joined is not None else []
        for module, pair in small:
            vectors = [
                frames.vectors(module, run, tops[side][module, run, :, : count[module, run]])
                for run in (i[pair], j[pair])
            ]
            smaller = min(vector.shape[1] for vector in vectors)
            angles[module, pair, :smaller] = angles_of(*vectors)
        # Two subspaces have as many angles as the smaller one has dimensions.
        both = torch.minimum(count[:, i], count[:, j])[..., None]
        is_defined = torch.arange(width, device=device) < both
        angles = angles.where(is_defined, torch.nan)
        _put(comparison.angles[side][..., :width], modules, i, j, angles)


def _put(
    array: Float64[np.ndarray, "all_modules run run *rest"],
    modules: list[int],
    i: Int64[Tensor, " pair"],
    j: Int64[Tensor, " pair"],
    values: Float64[Tensor, "module pair *rest"],
) -> None:
    """Write the values of every pair (i, j) of runs into rows `modules`, both ways round."""
    rows, i_numpy, j_numpy = np.asarray(modules)[:, None], i.cpu().numpy(), j.cpu().numpy()
    array[rows, i_numpy, j_numpy] = array[rows, j_numpy, i_numpy] = values.cpu().numpy()


# --- tables ---------------------------------------------------------------------------------------


def _scopes(compared: Comparison) -> Iterator[tuple[tuple[Any, ...], Int[np.ndarray, " chosen"]]]:
    """(values of `_SCOPE_COLUMNS`, module numbers) of all that is stacked.

    All modules, each layer, each projection, each module; modules without a layer are stacked as
    one layer that has no number.
    """
    modules = compared.modules
    yield ("global", None, pd.NA, None), np.arange(len(modules))
    for _, part in modules.groupby("layer", sort=False, dropna=False):
        yield ("layer", None, part.layer.iloc[0], None), part.index.to_numpy()
    for projection, part in modules.groupby("projection", sort=False):
        yield ("projection", None, pd.NA, projection), part.index.to_numpy()
    for number, row in enumerate(modules.itertuples()):
        yield ("module", row.module, row.layer, row.projection), np.array([number])


def stacked_cosine(
    compared: Comparison, modules: Sequence[int] | Int[np.ndarray, " chosen"] | None = None
) -> tuple[Float64[np.ndarray, "run run"], Float64[np.ndarray, "run run"]]:
    """(cosine, sd) of the updates stacked over the modules of these numbers, by default all.

    NaN for a zero update. sd: standard deviation of the cosine when one of the two is multiplied by
    a Haar-random rotation of each module's output space, its spectrum and right vectors kept:
    |dW_i dW_j'|_F / (sqrt(d_out) |dW_i| |dW_j|) for one module, variances added for several.
    """
    chosen = np.arange(len(compared.modules)) if modules is None else np.asarray(modules)
    gram = compared.inner[chosen].sum(0)
    norms = np.sqrt(np.diag(gram))
    d_out = compared.modules.d_out.to_numpy()[chosen, None, None]
    variance = (compared.cross[chosen] / d_out).sum(0)
    scale = np.outer(norms, norms)
    return _ratio(gram, scale), _ratio(np.sqrt(variance), scale)


def cosine_table(compared: Comparison) -> pd.DataFrame:
    """The `cosine` table: every pair in every scope, with the 95 % band of `stacked_cosine`'s null.

    Columns: scope ("global", "layer", "projection" or "module"); module (its full name), layer
    (Int64) and projection, each missing where the scope has none; run_a, run_b, cosine, chance_low,
    chance_high.
    """
    rows: list[tuple[Any, ...]] = []
    for scope, modules in _scopes(compared):
        cosine, sd = stacked_cosine(compared, modules)
        for i, j in combinations(range(len(compared.runs)), 2):
            band = -_Z * sd[i, j], _Z * sd[i, j]
            rows.append((*scope, compared.runs[i], compared.runs[j], cosine[i, j], *band))
    columns = [*_SCOPE_COLUMNS, "run_a", "run_b", "cosine", "chance_low", "chance_high"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})


def updates_table(
    compared: Comparison, base_norms: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The `updates` table: one row per run and module, then one per run for its whole update.

    Columns: run; scope ("module" or "global"); module (its full name), layer (Int64) and
    projection, each missing for the whole update; norm, relative_norm, effective_rank,
    effective_rank_share (of the rank of the factors), stable_rank, participation_ratio. Of a whole
    update the norms are those of all modules stacked, the ranks means over modules.
    base_norms: {module: norm of W0} for the relative norms, which are NaN without.
    """
    modules = compared.modules
    sigma = compared.singular_values
    norm = np.sqrt(np.einsum("mii->mi", compared.inner))  # (module, run)
    of_W0 = [base_norms[module] if base_norms else np.nan for module in modules.module]
    base = np.array(of_W0)[:, None] * np.ones(len(compared.runs))
    effective = effective_rank(sigma)
    norms = {"norm": norm, "relative_norm": norm / base}
    ranks = {
        "effective_rank": effective,
        "effective_rank_share": effective / compared.rank,
        "stable_rank": stable_rank(sigma),
        "participation_ratio": participation_ratio(sigma),
    }
    numbers = [*norms.values(), *ranks.values()]
    rows: list[tuple[Any, ...]] = [
        (run, "module", row.module, row.layer, row.projection, *(of[number, i] for of in numbers))
        for i, run in enumerate(compared.runs)
        for number, row in enumerate(modules.itertuples())
    ]
    for i, run in enumerate(compared.runs):
        total = float(np.linalg.norm(norm[:, i]))
        relative = total / float(np.linalg.norm(base[:, i]))
        means = [rank[:, i].mean() for rank in ranks.values()]
        rows.append((run, "global", None, pd.NA, None, total, relative, *means))
    columns = ["run", *_SCOPE_COLUMNS, *norms, *ranks]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})


def angles_table(compared: Comparison, nulls: Sequence[Comparison]) -> pd.DataFrame:
    """The `angles` table: every pair on every module, with the 95 % band of the matched null.

    Columns: module (its full name), layer (Int64, missing where it has none), projection, side,
    run_a, run_b, index (1 is the smallest angle), degrees, chance_low, chance_high.
    nulls: Comparisons of `chance.matched_null` updates; their angles are pooled over the modules of
    one shape.
    """
    modules, (i, j) = compared.modules, np.triu_indices(len(compared.runs), 1)
    runs = np.array(compared.runs)
    shapes = modules.groupby(["d_out", "d_in"]).ngroup().to_numpy()
    quantiles = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    parts = []
    for side in _SIDES:
        # (null, module, pair, k)
        drawn = np.degrees(np.stack([null.angles[side][:, i, j] for null in nulls]))
        with warnings.catch_warnings():
            # A zero update has no angles, drawn or measured.
            warnings.filterwarnings("ignore", "All-NaN slice")
            # (shape, low and high, pair, k)
            bands = np.stack(
                [
                    np.nanquantile(drawn[:, shapes == shape], quantiles, axis=(0, 1))
                    for shape in range(shapes.max() + 1)
                ]
            )
        measured = np.degrees(compared.angles[side][:, i, j])  # (module, pair, k)
        module, pair, index = (axis.ravel() for axis in np.indices(measured.shape))
        columns = {
            "module": modules.module.to_numpy()[module],
            "layer": modules.layer.array[module],
            "projection": modules.projection.to_numpy()[module],
            "side": side,
            "run_a": runs[i[pair]],
            "run_b": runs[j[pair]],
            "index": index + 1,
            "degrees": measured.ravel(),
            "chance_low": bands[shapes[module], 0, pair, index],
            "chance_high": bands[shapes[module], 1, pair, index],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def orthogonal_table(compared: Comparison, references: Sequence[str] | None = None) -> pd.DataFrame:
    """The `orthogonal` table: what of each run's update is orthogonal to each reference's.

    Columns: those of `cosine_table` that say the scope; run, reference, by_norm, by_energy.
    Within a scope the updates are stacked, and the parallel part uses the reference of that scope:
    a module's own reference for a module, so that the modules' energies do not add up to the global
    one. references: names of runs, by default all.
    """
    rows: list[tuple[Any, ...]] = []
    for scope, modules in _scopes(compared):
        cosine, _ = stacked_cosine(compared, modules)
        for reference in references or compared.runs:
            j = compared.runs.index(reference)
            for i, run in enumerate(compared.runs):
                if i != j:
                    energy = np.maximum(0, 1 - cosine[i, j] ** 2)  # which, unlike max, keeps NaN
                    rows.append((*scope, run, reference, np.sqrt(energy), energy))
    columns = [*_SCOPE_COLUMNS, "run", "reference", "by_norm", "by_energy"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
