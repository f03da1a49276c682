"""Geometry of updates, from their factors alone, and what each number would be by chance.

Comes after `updates` and `frames`, before the tables of the study and of the report; `chance` draws
null updates and measures them with what is here. Reads and writes no file.

Every quantity equals the one of the dense updates and is computed without forming them: each
module's update is written in orthonormal frames, dW_i = Q_i M_i P_i' with Q_i (d_out, r),
P_i (d_in, r) and a core M_i (r, r). All that two updates have to do with each other is then in the
small matrices M_i, Q_i' Q_j and P_i' P_j. Everything is float64.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int, Int64, Shaped
from numpy.typing import ArrayLike
from scipy.special import ndtri
from threadpoolctl import threadpool_limits
from torch import Tensor

from adapter_geometry import updates
from adapter_geometry.frames import SMALL, Frames, angles_of
from adapter_geometry.updates import Adapters, Update

_RANK_TOLERANCE = 1e-10  # singular values below this share of the largest are rounding
_CHUNK = 5e6  # float64 numbers of factors held at once
_PAIRS = 4e7  # float64 numbers of the small matrices of all pairs held at once
_BLOCK = 4e6  # and of those that are multiplied at once
LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))
SIDES = ("left", "right")
PLACE = ["module", "stack", "layer", "projection"]  # columns that say which module
_SCOPE = ["scope", *PLACE]


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
    # One row per module, in the order of the network: module (its full name); stack, layer
    # (nullable Int64) and projection of `updates.places`, the first two missing where the name has
    # no layer; d_out, d_in.
    modules: pd.DataFrame
    rank: Int[np.ndarray, "module run"]  # r of the factors
    # How many of run i's top singular vectors are compared with run j's; 0 where they are not
    # defined. The largest is the width k of `angles`.
    compared: Int[np.ndarray, "module run run"]
    inner: Float64[np.ndarray, "module run run"]  # <dW_i, dW_j>
    cross: Float64[np.ndarray, "module run run"]  # |dW_i dW_j'|_F^2
    # |A_i A_j'|_F^2 / (|A_i|_F^2 |A_j|_F^2), NaN where an A is zero
    overlap: Float64[np.ndarray, "module run run"]
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

    k: size of the compared subspaces, by default `top_k` of the smaller rank of each pair in each
    module. A subspace is defined where its update has rank k and sigma_k > sigma_(k+1); an update
    of lower rank takes part with its whole column space, and the missing angles are NaN, as are all
    angles of a zero update. First vectors need sigma_1 > sigma_2.
    Raises ValueError naming the first module that one of the updates lacks, or whose shapes differ.
    """
    return compare_variants(adapters, k, lambda left, right, modules: [(left, right)], 1)[0]


def compare_variants(
    adapters: Adapters, k: int | None, variants: Variants, count: int
) -> list[Comparison]:
    """`count` Comparisons, one for each pair of frames that `variants` makes of a chunk of modules.

    `adapters`, `k` and the errors are those of `compare`.
    """
    comparisons = [empty(adapters, k) for _ in range(count)]

    def measure_all(chunk: list[int], left: Frames, right: Frames, scales: Tensor) -> None:
        for comparison, pair in zip(comparisons, variants(left, right, chunk), strict=True):
            measure(comparison, chunk, *pair, scales, k)

    in_chunks(adapters, comparisons[0], measure_all)
    return comparisons


def empty(adapters: Adapters, k: int | None = None) -> Comparison:
    """A Comparison of these adapters whose numbers are still to be filled in, by `measure`.

    `k` and the errors are those of `compare`.
    """
    runs = list(adapters)
    first = adapters[runs[0]]
    for run in runs:
        _require_equal_shapes(first, adapters[run], runs[0], run)
    names = sorted(first, key=lambda module: (*updates.order_key(module), module))
    rank = np.array([[adapters[run][module].A.shape[0] for run in runs] for module in names])
    width = k or max(top_k(smaller) for smaller in np.unique(_smaller_rank(rank)).tolist())
    m, n = rank.shape
    return Comparison(
        runs,
        _modules_table(first, names),
        rank,
        compared=np.zeros((m, n, n), int),
        inner=np.empty((m, n, n)),
        cross=np.empty((m, n, n)),
        overlap=np.full((m, n, n), np.nan),
        singular_values=np.full((m, n, rank.max()), np.nan),
        angles={side: np.full((m, n, n, width), np.nan) for side in SIDES},
        first={side: np.full((m, n, n), np.nan) for side in SIDES},
        alignment=np.full((m, n, n), np.nan),
    )


def in_chunks(
    adapters: Adapters,
    comparison: Comparison,
    work: Callable[[list[int], Frames, Frames, Tensor], None],
) -> None:
    """Call `work` for all modules, some at a time: with their numbers, the frames of B and of A',
    and the scales (module, run). Bounded memory, several threads."""
    runs, names = comparison.runs, comparison.modules.module.tolist()

    def one(chunk: list[int]) -> None:
        factors = [[adapters[run][names[module]] for module in chunk] for run in runs]
        left = Frames([[part.B for part in parts] for parts in factors])
        right = Frames([[part.A.T for part in parts] for parts in factors])
        scales = torch.tensor(
            [[part.scale for part in parts] for parts in factors],
            dtype=torch.float64,
            device=left.R.device,
        ).T  # (module, run)
        work(chunk, left, right, scales)

    # Chunks side by side, each with one BLAS thread: no sum depends on the number of threads. torch
    # counts its threads by thread, and what a new one starts with is what was set last.
    threads = torch.get_num_threads()
    try:
        with (
            threadpool_limits(1),
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            list(pool.map(one, _chunks(comparison.modules, comparison.rank)))
    finally:
        torch.set_num_threads(threads)


def _smaller_rank(rank: Int[np.ndarray, "module run"]) -> Int[np.ndarray, "module run run"]:
    """The smaller rank of each pair of runs in each module."""
    smaller: np.ndarray = np.minimum(rank[:, :, None], rank[:, None])
    return smaller


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
        (name, *place, *_dimensions(update, name))
        for name, place in zip(names, updates.places(names), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["module", "stack", "layer", "projection", "d_out", "d_in"])
    return table.astype({"stack": "str", "layer": "Int64"})


def _dimensions(update: Update, module: str) -> tuple[int, int]:
    """(d_out, d_in) of a module."""
    return update[module].B.shape[0], update[module].A.shape[1]


def _chunks(modules: pd.DataFrame, rank: Int[np.ndarray, "module run"]) -> list[list[int]]:
    """Numbers of modules that are measured together: of one shape, of equal ranks, and few enough
    that the factors of all runs fit into `_CHUNK` numbers, and the overlaps of all pairs on both
    sides into `_PAIRS`."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(modules.itertuples()):
        groups.setdefault((row.d_out, row.d_in, *rank[number]), []).append(number)
    chunks = []
    for (d_out, d_in, *ranks), numbers in groups.items():
        of_pairs = 2 * (len(ranks) * max(ranks)) ** 2
        size = max(1, int(min(_CHUNK // ((d_out + d_in) * sum(ranks)), _PAIRS // of_pairs)))
        chunks += [numbers[begin : begin + size] for begin in range(0, len(numbers), size)]
    return chunks


def separated(
    sigma: Float64[Tensor, "module run r"],
) -> Bool[Tensor, "module run r"]:
    """Whether the singular vectors up to each one span a definite subspace, for descending singular
    values: equal ones have no vectors of their own."""
    floor = _RANK_TOLERANCE * sigma[..., :1]
    return (sigma > floor) & (_gaps(sigma) > floor)


def _gaps(sigma: Float64[Tensor, "module run r"]) -> Float64[Tensor, "module run r"]:
    """sigma_i - sigma_(i+1), with 0 after the last."""
    return sigma - torch.nn.functional.pad(sigma[..., 1:], (0, 1))


def measure(
    comparison: Comparison,
    modules: list[int],
    left: Frames,
    right: Frames,
    scales: Float64[Tensor, "module run"],
    k: int | None,
) -> None:
    """Fill the rows `modules` of a Comparison, from the frames of B and A', from the scales, and
    with the `k` that it was made with.

    Batches have axes (module, run, ...) or (module, pair, ...), with every pair of runs once, each
    run with itself included; r is the largest rank of the runs, and smaller ones are padded with
    zeros.
    """
    device, runs = scales.device, len(comparison.runs)
    # (module, run, r, r): dW = s B A = Q_left (s R_left R_right') Q_right', so that the core has
    # the norm, the singular values and, within the frames, the singular vectors of dW.
    cores = scales[:, :, None, None] * left.R @ right.R.mT
    norms = torch.linalg.matrix_norm(cores)  # (module, run)
    U, sigma, Vh = torch.linalg.svd(cores)  # sigma: (module, run, r)

    # (module, run): numerical rank, and the size below which a difference of sigmas is rounding.
    rank = (sigma > _RANK_TOLERANCE * sigma[..., :1]).sum(-1)
    floor = _RANK_TOLERANCE * sigma[..., 0]
    # (module, run, r). Equal singular values have no vectors of their own, so that the first i span
    # a definite subspace only where this is no 0.
    gaps = _gaps(sigma)
    # (run, run): k of each pair, the same in all modules of a chunk, which have equal ranks
    smaller = _smaller_rank(comparison.rank[modules[:1]])[0]
    ks = torch.tensor([[k or top_k(r) for r in row] for row in smaller.tolist()], device=device)
    ks = ks.clamp(max=sigma.shape[-1])
    width = int(ks.max())
    # (module, run, run): how many top vectors of run i take part beside run j. An update of low
    # rank has its whole space, one with a gap after the last compared vector has them all, any
    # other one has none.
    is_separated = (gaps > floor[..., None])[:, torch.arange(runs, device=device)[:, None], ks - 1]
    count = torch.minimum(rank[:, :, None], ks).where((rank[:, :, None] <= ks) | is_separated, 0)
    comparison.compared[modules] = count.cpu()
    tops = {"left": U[..., :width], "right": Vh.mT[..., :width]}
    has_first = (gaps[..., 0] > floor) & (rank > 0)  # (module, run): u_1 is defined

    # The cores are padded to the largest rank of all runs; what is beyond a run's own is no zero
    # singular value of its factors but none at all.
    factor_rank = torch.as_tensor(comparison.rank[modules], device=device)[..., None]
    is_own = torch.arange(sigma.shape[-1], device=device) < factor_rank
    spectra = sigma.where(is_own, torch.nan).cpu()
    comparison.singular_values[modules, :, : sigma.shape[-1]] = spectra

    # Pairs in blocks that fit into the memory, each pair by itself: no number depends on the size.
    size = max(1, int(_BLOCK // (len(modules) * sigma.shape[-1] ** 2)))
    pairs = torch.triu_indices(runs, runs, device=device)
    for i, j in zip(*(of.split(size) for of in pairs), strict=True):
        _measure_pairs(comparison, modules, left, right, cores, norms, tops, count, has_first, i, j)


def _measure_pairs(
    comparison: Comparison,
    modules: list[int],
    left: Frames,
    right: Frames,
    cores: Float64[Tensor, "module run r r"],
    norms: Float64[Tensor, "module run"],
    tops: dict[str, Float64[Tensor, "module run r width"]],
    count: Int64[Tensor, "module run run"],
    has_first: Bool[Tensor, "module run"],
    i: Int64[Tensor, " pair"],
    j: Int64[Tensor, " pair"],
) -> None:
    """`measure` for the pairs (i, j) of runs: `tops` are the top singular vectors in the frames of
    a side, and `count` says how many of run i's are compared with run j's."""
    width = tops["left"].shape[-1]
    QQ, PP = left.shared(i, j), right.shared(i, j)  # (module, pair, r, r): Q_i' Q_j and P_i' P_j
    # <dW_i, dW_j> = tr(M_i' (Q_i' Q_j) M_j (P_j' P_i)): entries of M_i times those of the rest
    inner = (cores[:, i] * (QQ @ cores[:, j] @ PP.mT)).sum((-2, -1))
    _put(comparison.inner, modules, i, j, inner)
    # dW_i dW_j' = Q_i (M_i (P_i' P_j) M_j') Q_j', and frames change no norm
    cross = (cores[:, i] @ PP @ cores[:, j].mT).square().sum((-2, -1))
    _put(comparison.cross, modules, i, j, cross)
    # A_i A_j' = R_i' (P_i' P_j) R_j
    sizes = torch.linalg.matrix_norm(right.R)
    overlap = torch.linalg.matrix_norm(right.R[:, i].mT @ PP @ right.R[:, j])
    overlap = (overlap / (sizes[:, i] * sizes[:, j])) ** 2
    _put(comparison.overlap, modules, i, j, overlap)
    # (module, pair, width): 1 for vectors that take part. What is projected on the others is put to
    # 0, and their cosines of 0 are the last ones, which become NaN below.
    places = torch.arange(width, device=i.device)
    of_i, of_j = ((places < count[:, a, b, None]).double() for a, b in ((i, j), (j, i)))
    # |U_k U_k' dW_j| = |U_k' Q_i' Q_j M_j| is not symmetric: each pair is measured both ways round.
    for one, other, Q, of_one in ((i, j, QQ, of_i), (j, i, QQ.mT, of_j)):
        # (module, pair, width, r)
        projected = of_one[..., None] * (tops["left"][:, one].mT @ Q @ cores[:, other])
        captured = torch.linalg.matrix_norm(projected) / norms[:, other]  # (module, pair)
        captured = captured.where(count[:, one, other] > 0, torch.nan)
        rows = np.asarray(modules)[:, None]
        comparison.alignment[rows, one.cpu(), other.cpu()] = captured.cpu()
    for side, frames, overlaps in (("left", left, QQ), ("right", right, PP)):
        # (module, pair, width, width): cosines between the top vectors of the two updates. Their
        # singular values are the cosines of the principal angles (Bjorck & Golub 1973).
        cosines = tops[side][:, i].mT @ overlaps @ tops[side][:, j]
        first = cosines[..., 0, 0].abs().where(has_first[:, i] & has_first[:, j], torch.nan)
        _put(comparison.first[side], modules, i, j, first)
        cosines = of_i[..., None] * cosines * of_j[..., None, :]
        angles = torch.arccos(torch.linalg.svdvals(cosines).clamp(max=1))
        angles = angles.where((i != j)[:, None], 0.0)  # with itself: exactly, not up to rounding
        # arccos has lost half the digits of a small angle: those come from the vectors themselves.
        # Frames that were drawn by their overlaps alone have no vectors, and no small angles.
        is_small = (angles[..., 0] < SMALL) & (i != j)  # (module, pair)
        small = torch.nonzero(is_small).tolist() if frames.has_vectors else []
        for module, pair in small:
            vectors = [
                frames.vectors(module, run, tops[side][module, run, :, : count[module, run, other]])
                for run, other in ((i[pair], j[pair]), (j[pair], i[pair]))
            ]
            smaller = min(vector.shape[1] for vector in vectors)
            angles[module, pair, :smaller] = angles_of(*vectors)
        # Two subspaces have as many angles as the smaller one has dimensions.
        both = torch.minimum(count[:, i, j], count[:, j, i])[..., None]
        is_defined = places < both
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
    """(values of `_SCOPE`, module numbers) of all that is stacked.

    All modules, each layer of each stack, each projection, each module; modules without a layer are
    stacked as one layer that has no number.
    """
    modules = compared.modules
    yield ("global", None, None, pd.NA, None), np.arange(len(modules))
    for _, part in modules.groupby(["stack", "layer"], sort=False, dropna=False):
        place = part.iloc[0]
        yield ("layer", None, place["stack"], place["layer"], None), part.index.to_numpy()
    for projection, part in modules.groupby("projection", sort=False):
        yield ("projection", None, None, pd.NA, projection), part.index.to_numpy()
    for number, row in enumerate(modules.itertuples()):
        place = "module", row.module, row.stack, row.layer, row.projection
        yield place, np.array([number])


def _scoped(
    scopes: list[tuple[Any, ...]], names: Mapping[str, Sequence[str]], **numbers: list[np.ndarray]
) -> pd.DataFrame:
    """A table of the same rows in each scope: `names` are the columns that these rows have in every
    scope, `numbers` those of which there is an array per scope."""
    count = len(next(iter(names.values())))
    columns = dict(zip(_SCOPE, zip(*scopes, strict=True), strict=True))
    table = pd.DataFrame(
        {
            **{name: [value for value in of for _ in range(count)] for name, of in columns.items()},
            **{name: [*of] * len(scopes) for name, of in names.items()},
            **{name: np.concatenate(arrays) for name, arrays in numbers.items()},
        }
    )
    return table.astype({"layer": "Int64"})


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


def gaussian_sd(
    compared: Comparison, modules: Sequence[int] | Int[np.ndarray, " chosen"] | None = None
) -> Float64[np.ndarray, "run run"]:
    """Standard deviation of the cosine of the updates stacked over the modules of these numbers, by
    default all, if every B were Gaussian: each module keeps its A and its norm.

    |A_i A_j'|_F / (sqrt(d_out) |A_i| |A_j|) for one module with d_out large beside r. It counts
    only what the A's share, where the null of `stacked_cosine` also keeps how each B weighs them.
    """
    chosen = np.arange(len(compared.modules)) if modules is None else np.asarray(modules)
    squares = np.einsum("mii->mi", compared.inner[chosen])  # (module, run): |dW|^2
    d_out = compared.modules.d_out.to_numpy()[chosen, None, None]
    energy = squares[:, :, None] * squares[:, None] / d_out
    # a zero A is part of a zero update, which adds nothing to a stack
    variance = np.where(energy > 0, energy * np.nan_to_num(compared.overlap[chosen]), 0).sum(0)
    norms = np.sqrt(squares.sum(0))
    sd: np.ndarray = _ratio(np.sqrt(variance), np.outer(norms, norms))
    return sd


def without_shared(
    cosine: Float64[np.ndarray, "*draws run run"],
) -> tuple[Float64[np.ndarray, "*draws run run"], Float64[np.ndarray, "*draws run"]]:
    """(cosines, shares): without the direction that the updates have most in common, and the share
    of each update's squared norm that lay in it.

    The direction is the first principal component of the updates scaled to length 1, not centred:
    of n updates that go one way it is near their mean, and whatever the signs, it is the direction
    that explains most of them. NaN for what is zero or lies in it wholly.
    Of n unrelated updates each loses about 1 / n, and the cosines left are about -1 / (n - 1), not
    0: `chance.shared_tables` sets them beside what chance leaves.
    """
    is_zero = np.isnan(np.diagonal(cosine, axis1=-2, axis2=-1))
    is_undefined = is_zero[..., None] | is_zero[..., None, :]
    values, vectors = np.linalg.eigh(np.where(is_undefined, 0, cosine))
    top = vectors[..., -1] * np.sqrt(np.maximum(values[..., -1:], 0))  # (run,)
    shares = top**2
    left = np.where(is_undefined, np.nan, cosine) - top[..., None] * top[..., None, :]
    # below this what is left is rounding
    energy = np.diagonal(left, axis1=-2, axis2=-1)
    energy = np.where((1 - shares > 1e-12) & (energy > 0), energy, np.nan)
    cosines = left / np.sqrt(energy[..., None] * energy[..., None, :])
    return cosines, np.where(is_zero, np.nan, shares)


def cosine_table(compared: Comparison, references: Sequence[str] | None = None) -> pd.DataFrame:
    """The `cosine` table: every pair in every scope, with the 95 % bands of two nulls.

    Columns: scope ("global", "layer", "projection" or "module"); module (its full name), stack,
    layer (Int64) and projection, each missing where the scope has none; run_a, run_b, cosine;
    chance_low and chance_high, the band of the matched null (`stacked_cosine`); gaussian_low and
    gaussian_high, that of Gaussian B on each update's own A (`gaussian_sd`); harder, the null whose
    band is wider, "matched" or "gaussian". references: names of runs; pairs without one of them
    have a row of the whole updates and no other. By default every pair has all.
    """
    pairs = np.stack(np.triu_indices(len(compared.runs), 1))
    if references is None:
        return _cosines(compared, _scopes(compared), pairs)
    whole, *parts = _scopes(compared)
    chosen = np.isin(compared.runs, references)[pairs].any(0)
    tables = _cosines(compared, [whole], pairs), _cosines(compared, parts, pairs[:, chosen])
    return pd.concat(tables, ignore_index=True).infer_objects()


def _cosines(
    compared: Comparison,
    of_scopes: Iterable[tuple[tuple[Any, ...], Int[np.ndarray, " _"]]],
    pairs: Int[np.ndarray, "2 pair"],
) -> pd.DataFrame:
    """The rows of `cosine_table` of some scopes and pairs."""
    i, j = pairs
    scopes, cosines, matched, gaussian = [], [], [], []
    for scope, modules in of_scopes:
        cosine, sd = stacked_cosine(compared, modules)
        scopes.append(scope)
        cosines.append(cosine[i, j])
        matched.append(Z * sd[i, j])
        gaussian.append(Z * gaussian_sd(compared, modules)[i, j])
    table = _scoped(
        scopes,
        {
            "run_a": [compared.runs[one] for one in i],
            "run_b": [compared.runs[other] for other in j],
        },
        cosine=cosines,
        chance_high=matched,
        gaussian_high=gaussian,
    )
    table["chance_low"], table["gaussian_low"] = -table.chance_high, -table.gaussian_high
    table["harder"] = np.where(table.gaussian_high > table.chance_high, "gaussian", "matched")
    bands = ["chance_low", "chance_high", "gaussian_low", "gaussian_high", "harder"]
    return table[[*_SCOPE, "run_a", "run_b", "cosine", *bands]]


def updates_table(
    compared: Comparison, base_norms: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The `updates` table: one row per run and module, then one per run for its whole update.

    Columns: run; scope ("module" or "global"); module (its full name), stack, layer (Int64) and
    projection, each missing for the whole update; norm, relative_norm, effective_rank,
    effective_rank_share (of the rank of the factors), stable_rank, participation_ratio; modules,
    how many the row is about, and defined, how many of them are not zero. Of a whole update the
    norms are those of all modules stacked, the ranks means over the defined modules.
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
    is_defined, runs, m = norm > 0, compared.runs, len(modules)
    whole = {
        "norm": np.linalg.norm(norm, axis=0),
        "relative_norm": np.linalg.norm(norm, axis=0) / np.linalg.norm(base, axis=0),
        **{name: _mean_of_defined(rank) for name, rank in ranks.items()},
    }
    table = pd.DataFrame(
        {
            "run": [run for run in runs for _ in range(m)] + runs,
            "scope": ["module"] * (m * len(runs)) + ["global"] * len(runs),
            **{name: [*modules[name]] * len(runs) + [None] * len(runs) for name in PLACE},
            **{name: np.r_[each.T.ravel(), whole[name]] for name, each in (norms | ranks).items()},
            "modules": [1] * (m * len(runs)) + [m] * len(runs),
            "defined": np.r_[is_defined.T.ravel(), is_defined.sum(0)].astype(int),
        }
    )
    return table.astype({"layer": "Int64"})


def _mean_of_defined(values: Float64[np.ndarray, "module rest"]) -> Float64[np.ndarray, " rest"]:
    """Mean over the modules in which a number is defined; NaN where it is in none."""
    defined = [column[~np.isnan(column)] for column in values.T]
    return np.array([each.mean() if len(each) else np.nan for each in defined])


def angles_table(compared: Comparison, nulls: Sequence[Comparison]) -> pd.DataFrame:
    """The `angles` table: every pair on every module, with the 95 % band of the matched null.

    Columns: module (its full name), stack and layer (Int64), both missing where it has none,
    projection, side, run_a, run_b, index (1 is the smallest angle), degrees, chance_low,
    chance_high.
    nulls: Comparisons of `chance.matched_null` updates; their angles are pooled over the modules of
    one shape. With few nulls times modules of a shape the band is narrower than it says:
    `bands.compare_beside_chance` draws as many as are needed.
    """
    modules = compared.modules
    i, j = pairs = np.stack(np.triu_indices(len(compared.runs), 1))
    shapes = modules.groupby(["d_out", "d_in"]).ngroup().to_numpy()
    quantiles = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    parts = []
    for side in SIDES:
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
        low, high = (bands[shapes, end] for end in (0, 1))
        numbers = {"degrees": measured, "chance_low": low, "chance_high": high}
        parts.append(angle_rows(modules[PLACE], compared.runs, pairs, side, **numbers))
    return pd.concat(parts, ignore_index=True)


def angle_rows(
    places: pd.DataFrame,
    runs: Sequence[str],
    pairs: Int[np.ndarray, "2 pair"],
    side: str,
    **numbers: Shaped[np.ndarray, "place pair k"],
) -> pd.DataFrame:
    """Rows of the `angles` table: one for each place, pair of runs and angle. `places` are the
    columns that say what of the updates a row is about."""
    place, pair, index = (axis.ravel() for axis in np.indices(next(iter(numbers.values())).shape))
    names = np.array(runs)
    return pd.DataFrame(
        {
            **{name: places[name].array[place] for name in places},
            "side": side,
            "run_a": names[pairs[0][pair]],
            "run_b": names[pairs[1][pair]],
            "index": index + 1,
            **{name: values.ravel() for name, values in numbers.items()},
        }
    )


def orthogonal_table(compared: Comparison, references: Sequence[str] | None = None) -> pd.DataFrame:
    """The `orthogonal` table: what of each run's update is orthogonal to each reference's.

    Columns: those of `cosine_table` that say the scope; run, reference, by_norm, by_energy.
    Within a scope the updates are stacked, and the parallel part uses the reference of that scope:
    a module's own reference for a module, so that the modules' energies do not add up to the global
    one. references: names of runs, by default all.
    """
    pairs = [
        (compared.runs.index(run), compared.runs.index(reference))
        for reference in references or compared.runs
        for run in compared.runs
        if run != reference
    ]
    i, j = np.array(pairs, int).reshape(-1, 2).T
    scopes, energies = [], []
    for scope, modules in _scopes(compared):
        cosine, _ = stacked_cosine(compared, modules)
        scopes.append(scope)
        energies.append(np.maximum(0, 1 - cosine[i, j] ** 2))  # which, unlike max, keeps NaN
    return _scoped(
        scopes,
        {"run": [compared.runs[one] for one in i], "reference": [compared.runs[one] for one in j]},
        by_norm=[np.sqrt(energy) for energy in energies],
        by_energy=energies,
    )
