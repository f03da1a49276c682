"""Chance: random subspaces and updates that share nothing but what a null leaves them.

Comes after `geometry`, which measures what is drawn here as it measures trained updates, and before
the tables that set a number beside its chance level. Reads and writes no file; all that is drawn
follows from the given seed.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.special import betaincinv, gammaln
from torch import Tensor

from adapter_geometry import geometry, updates
from adapter_geometry.frames import Frames, bartlett
from adapter_geometry.geometry import Comparison
from adapter_geometry.updates import Adapters, Factors, Update


def compare_by_chance(
    adapters: Adapters, draws: int, seed: int = 0, k: int | None = None
) -> list[Comparison]:
    """`draws` Comparisons, distributed as those of independent draws of the matched null.

    As `compare(matched_null(...), k)` would give, but faster: all that the random frames O of the
    runs have to do with each other is their Gram matrix, which is drawn itself (Wishart). No vector
    of length d_out is.
    """

    def drawn(left: Frames, right: Frames, modules: list[int]) -> list[tuple[Frames, Frames]]:
        return [
            (left.by_chance(np.random.default_rng([seed, draw, modules[0]])), right)
            for draw in range(draws)
        ]

    return geometry.compare_variants(adapters, k, drawn, draws)


# --- subspaces and directions ---------------------------------------------------------------------


def random_angles(
    d: int, k: int, draws: int = 2000, seed: int = 0, smaller: int | None = None
) -> Float64[np.ndarray, "{draws} _"]:
    """Principal angles in radians, ascending, between two random subspaces of R^d of dimensions k
    and `smaller`, which is k by default: as many as the smaller one has dimensions.

    One of them may be fixed to the first axes; the other is spanned by a Gaussian (d, k) matrix,
    of which only the first `smaller` rows X and the Wishart matrix W of the others are needed: the
    cosines are the singular values of X (X'X + W)^(-1/2).
    """
    rng = np.random.default_rng(seed)
    fixed = k if smaller is None else smaller
    X = rng.standard_normal((draws, fixed, k))
    # A matrix with the Gram matrix W of the other Gaussian rows: the rows themselves where they are
    # fewer than k, and W singular.
    rest = (
        rng.standard_normal((draws, max(d - fixed, 0), k))
        if d < fixed + k
        else bartlett(rng, draws, k, d - fixed)
    )
    # (draws, k, k): L L' = X'X + W. L^-1 X' has the singular values of X (X'X + W)^(-1/2).
    lower = np.linalg.cholesky(X.mT @ X + rest.mT @ rest)
    cosines = np.linalg.svd(np.linalg.solve(lower, X.mT), compute_uv=False)
    angles: np.ndarray = np.arccos(np.clip(cosines, 0, 1))
    return angles


def expected_overlap(d: int) -> float:
    """E |<u, u'>| of two random unit vectors of R^d, about sqrt(2 / (pi d)).

    >>> round(expected_overlap(2560), 4)
    0.0158
    """
    return float(np.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / np.sqrt(np.pi))


def projected_moments(
    d: ArrayLike, k: ArrayLike, trace: ArrayLike = 1.0, square: ArrayLike = 1.0
) -> tuple[Any, Any]:
    """(mean, variance) of tr(P C) with the projection P on a random subspace of R^d of dimension k,
    for a symmetric C with the trace `trace`, whose square has the trace `square`.

    With C = u u' of a unit vector it is the squared length of u's projection, with a projection C
    the sum of the squared cosines of two subspaces. Exact, from the moments E[P_ab P_cd] that
    rotations leave unchanged.

    >>> projected_moments(4, 1)
    (0.25, 0.0625)
    """
    d, k, trace, square = (np.asarray(each, float) for each in (d, k, trace, square))
    mean = k * trace / d
    # (d - k) is 0 wherever d - 1 is
    of_projection = k * (d - k) / (d * np.maximum(d - 1, 1) * (d + 2))
    return mean, 2 * of_projection * np.maximum(square - trace**2 / d, 0)


def largest_by_chance(mean: ArrayLike, variance: ArrayLike) -> Any:
    """Below which 95 % of the numbers from 0 to 1 with this mean and variance lie, if they have a
    Beta distribution, as the squared length of a projected unit vector has."""
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    spreads = (variance > 0) & (mean > 0) & (mean < 1)
    inside = np.where(spreads, mean, 0.5)
    weight = inside * (1 - inside) / np.where(spreads, variance, 0.01) - 1
    limit = betaincinv(inside * weight, (1 - inside) * weight, geometry.LEVEL)
    return np.where(spreads, limit, mean)


# --- updates --------------------------------------------------------------------------------------


def matched_null(adapters: Adapters, seed: int) -> dict[str, Update]:
    """Updates that share nothing but their row spaces: each keeps its A and B's singular values.

    B becomes O Sigma W with a random orthonormal frame O (d_out, r) and a Haar-random rotation
    W (r, r), independently for each run and module. Left subspaces are then random ones of R^d_out;
    right ones are random within the row space of A, which is what runs from one initialisation have
    in common.
    """
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    nulls = {}
    for run, update in adapters.items():
        # All modules whose B has one shape are drawn together, as one batch.
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for module, factors in update.items():
            by_shape.setdefault(tuple(factors.B.shape), []).append(module)
        drawn: dict[str, Tensor] = {}
        for (d_out, rank), modules in by_shape.items():
            B = torch.stack([update[module].B for module in modules]).double()
            # (module, r), ascending: roots of the eigenvalues of B'B, which rounding may have put
            # below 0. Their order does not matter, since W mixes them at random.
            sigma = torch.linalg.eigvalsh(B.mT @ B).clamp(min=0).sqrt()
            G = gaussian(len(modules), d_out, rank)
            # Q of a Gaussian matrix's QR is Haar-random once the signs of R's diagonal are moved
            # into it; before, it depends on the routine's choice of signs (Mezzadri 2007).
            Q, R = torch.linalg.qr(gaussian(len(modules), rank, rank))
            W = Q * R.diagonal(dim1=1, dim2=2).sign()[:, None]  # (module, r, r)
            # (module, r, r): C with C C' = (G'G)^-1, so that O = G C is orthonormal, a frame of the
            # uniformly random subspace that G spans. C goes with the small matrices: the only
            # product of length d_out is the last one.
            C = torch.linalg.cholesky(torch.linalg.inv(G.mT @ G))
            O_sigma_W = G @ (C * sigma[:, None] @ W)  # (module, d_out, r)
            drawn.update(zip(modules, O_sigma_W, strict=True))
        nulls[run] = {
            module: Factors(drawn[module], factors.A, factors.scale, factors.is_transposed)
            for module, factors in update.items()
        }
    return nulls


def gaussian_null(adapters: Adapters, seed: int, keeps_A: bool) -> dict[str, Update]:
    """Updates of standard normal factors, independent for each run and module.

    Shapes and ranks are those given, and, if `keeps_A`, each A. With d_out large beside r, the
    cosine of two of them in one module has the standard deviation 1 / sqrt(d_out d_in), or, on kept
    A's, |A_1 A_2'|_F / (sqrt(d_out) |A_1| |A_2|), which is 1 / sqrt(d_out r) for one A with
    perpendicular rows of equal length.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(factor: Tensor) -> Tensor:
        return torch.randn(factor.shape, generator=generator, dtype=torch.float64)

    def null_of(part: Factors) -> Factors:
        B = drawn(part.B)
        A = part.A if keeps_A else drawn(part.A)
        return Factors(B, A, part.scale, part.is_transposed)

    return {
        run: {module: null_of(part) for module, part in update.items()}
        for run, update in adapters.items()
    }


def outputs_turned(update: Update, seed: int = 0) -> Update:
    """The update with the output space of every module turned at random: norms, singular values and
    right singular vectors stay, and the left ones are random."""
    generator = torch.Generator().manual_seed(seed)
    turned = {}
    for module, factors in update.items():
        # dW = Q R A with a frame Q, in the place of which a random one is put: R keeps the rest.
        R = torch.linalg.qr(factors.B.double()).R
        G = torch.randn(len(factors.B), len(R), generator=generator, dtype=torch.float64)
        # A Gaussian's Q is Haar-random once the signs of R's diagonal are moved into it.
        Q, triangle = torch.linalg.qr(G)
        B = Q * triangle.diagonal().sign() @ R
        turned[module] = Factors(B, factors.A, factors.scale, factors.is_transposed)
    return turned


def permuted(adapters: Adapters, seed: int) -> dict[str, Update]:
    """The updates with every module exchanged for another, the same one in all runs.

    Only what is tied to a module's own position in the network is lost. The modules of one
    projection and shape are moved round, in the order of the layers, by a random number of
    positions that is not 0. Compared with the updates themselves, as further runs, they tell what
    two updates have in common wherever one looks.
    Raises ValueError for a projection of which there is a single module.
    """
    rng = np.random.default_rng(seed)
    first = next(iter(adapters.values()))
    groups: dict[tuple[str, int, int], list[str]] = {}
    for module in sorted(first, key=updates.order_key):
        _, projection = updates.layer_and_projection(module)
        kind = projection, first[module].B.shape[0], first[module].A.shape[1]
        groups.setdefault(kind, []).append(module)
    source: dict[str, str] = {}  # {module: the one whose factors it gets}
    for (projection, d_out, d_in), modules in groups.items():
        if len(modules) == 1:
            raise ValueError(
                f"{modules[0]} is the only {projection} of shape {d_out} x {d_in}: it can change "
                "places with no other; leave it out"
            )
        moved = np.roll(modules, rng.integers(1, len(modules))).tolist()
        source.update(zip(modules, moved, strict=True))
    return {
        run: {module: update[source[module]] for module in update}
        for run, update in adapters.items()
    }


# --- groups ---------------------------------------------------------------------------------------


def groups_table(
    adapters: Adapters, compared: Comparison, groups: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """The `groups` table: mean cosines of the whole updates of one group, such as the seeds of a
    method, with those of another, and of the updates of each group with one another.

    Columns: group_a, group_b, equal for one group with itself; cosine, the mean over pairs; pairs,
    their number; chance_low and chance_high, the 95 % band of the mean: for two groups when all of
    the second are multiplied by one Haar-random rotation of each module's output space, so that
    what they have in common with each other stays; within a group when each is rotated by its own.
    Rotated one by one, two groups would share nothing and their mean would spread less. Updates of
    zero have no part; groups: {name: names of runs}, each with one that is not zero.
    """
    cosine, sd = geometry.stacked_cosine(compared)
    lengths = dict(zip(compared.runs, np.sqrt(np.diag(compared.inner.sum(0))), strict=True))
    trained = {name: [run for run in runs if lengths[run] > 0] for name, runs in groups.items()}
    # the mean over pairs is the inner product of the means of the updates scaled to length 1
    means = {
        name: updates.combine(
            [adapters[run] for run in runs], [1 / (lengths[run] * len(runs)) for run in runs]
        )
        for name, runs in trained.items()
    }
    of_means = geometry.compare(means)
    sizes = np.sqrt(np.diag(of_means.inner.sum(0)))
    between, spread = (np.outer(sizes, sizes) * of for of in geometry.stacked_cosine(of_means))
    rows = []
    for a, b in itertools.combinations_with_replacement(range(len(groups)), 2):
        first, second = list(trained)[a], list(trained)[b]
        pairs = len(trained[first]) * len(trained[second])
        mean, deviation = between[a, b], spread[a, b]
        if a == b:
            runs = [compared.runs.index(run) for run in trained[first]]
            i, j = (np.array(runs)[of] for of in np.triu_indices(len(runs), 1))
            pairs = len(i)
            if not pairs:
                continue
            # rotated independently, the cosines of two pairs are uncorrelated
            mean, deviation = cosine[i, j].mean(), np.sqrt((sd[i, j] ** 2).sum()) / pairs
        rows.append(
            (first, second, mean, pairs, *(sign * geometry.Z * deviation for sign in (-1, 1)))
        )
    columns = ["group_a", "group_b", "cosine", "pairs", "chance_low", "chance_high"]
    return pd.DataFrame(rows, columns=columns)


# --- what all share -------------------------------------------------------------------------------

_SHARED = 4  # updates of which one direction does not explain any cosines whatever
_DRAWS, _NUMBERS = 1000, 2e7  # drawn matrices of cosines; fewer where they hold more numbers


def shared_tables(compared: Comparison, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The tables `shared` and `without_shared`: how much of each update lies in the direction that
    all have most in common, and the cosines of what is left of them (`geometry.without_shared`).

    Columns of `shared`: scope ("run", or "global" for the mean over runs, which has no run), run,
    share (of the squared norm), chance_high, below which 95 % of the shares, or of their means, of
    unrelated updates lie. Of `without_shared`: run_a, run_b, cosine, chance_low and
    chance_high: the 95 % band of updates that share one direction, as strongly as these do, and
    nothing else. Both are drawn as cosines, which spread as the wider of the nulls of the `cosine`
    table lets them. A cosine outside its band is of something that some of the updates share and
    the others do not.
    No tables for fewer than four updates that are not zero: one direction can explain the cosines
    of any three.
    """
    cosine, sd = geometry.stacked_cosine(compared)
    runs = np.flatnonzero(~np.isnan(np.diag(cosine)))
    if len(runs) < _SHARED:
        return {}
    chosen = np.ix_(runs, runs)
    left, shares = geometry.without_shared(cosine)
    spread = np.fmax(sd, geometry.gaussian_sd(compared))[chosen]
    count, rng = int(np.clip(_NUMBERS // len(runs) ** 2, 100, _DRAWS)), np.random.default_rng(seed)
    unrelated = _drawn_cosines(np.zeros(len(runs)), spread, count, rng)
    alike = _drawn_cosines(_loadings(cosine[chosen]), spread, count, rng)
    by_chance = geometry.without_shared(unrelated)[1]  # (draw, run)
    limits = np.full(len(cosine), np.nan)
    limits[runs], of_mean = (
        _quantiles(of, [geometry.LEVEL])[0] for of in (by_chance, by_chance.mean(1))
    )
    shared = {
        "scope": ["global"] + ["run"] * len(cosine),
        "run": [None, *compared.runs],
        "share": np.r_[np.nanmean(shares), shares],
        "chance_high": np.r_[of_mean, limits],
    }
    band = np.full((2, *cosine.shape), np.nan)
    ends = [(1 - geometry.LEVEL) / 2, (1 + geometry.LEVEL) / 2]
    for end, limit in zip(band, _quantiles(geometry.without_shared(alike)[0], ends), strict=True):
        end[chosen] = limit
    i, j = np.triu_indices(len(cosine), 1)
    names = np.array(compared.runs)
    pairs = {
        "run_a": names[i],
        "run_b": names[j],
        "cosine": left[i, j],
        "chance_low": np.where(np.isnan(left[i, j]), np.nan, band[0, i, j]),
        "chance_high": np.where(np.isnan(left[i, j]), np.nan, band[1, i, j]),
    }
    return {
        "shared": pd.DataFrame(shared),
        "without_shared": pd.DataFrame(pairs),
    }


def _loadings(cosine: Float64[np.ndarray, "run run"]) -> Float64[np.ndarray, " run"]:
    """The cosines t of updates with one direction that explain their cosines with each other best:
    t_i t_j is nearest to them by least squares, the diagonal left out (Harman & Jones 1966)."""
    values, vectors = np.linalg.eigh(cosine)
    t: np.ndarray = np.clip(vectors[:, -1] * np.sqrt(max(values[-1] - 1, 0)), -1, 1)
    others = cosine - np.diag(np.diag(cosine))
    for _ in range(200):
        before = t.copy()
        for run in range(len(t)):
            size = (t**2).sum() - t[run] ** 2
            t[run] = np.clip(others[run] @ t / size, -1, 1) if size > 0 else 0
        if np.abs(t - before).max() < 1e-9:
            break
    return t


def _drawn_cosines(
    loadings: Float64[np.ndarray, " run"],
    sd: Float64[np.ndarray, "run run"],
    draws: int,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "draw run run"]:
    """Cosines of updates that have these cosines with one direction and are unrelated in what is
    left, where their cosines have the standard deviations `sd`."""
    i, j = np.triu_indices(len(loadings), 1)
    rest = np.sqrt(1 - loadings**2)
    values = loadings[i] * loadings[j] + rest[i] * rest[j] * sd[i, j] * rng.standard_normal(
        (draws, len(i))
    )
    cosines = np.tile(np.eye(len(loadings)), (draws, 1, 1))
    cosines[:, i, j] = cosines[:, j, i] = values
    return cosines


def _quantiles(draws: Float64[np.ndarray, "draw ..."], at: list[float]) -> np.ndarray:
    """Quantiles of the draws that are defined."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        found: np.ndarray = np.nanquantile(draws, at, axis=0, method="weibull")
    return found
