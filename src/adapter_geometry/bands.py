"""Principal angles, first directions and likeness of subspaces beside what chance gives: bands of
single modules, and of medians and means over modules.

Comes after `chance`, before the report. Reads and writes no file. Two nulls are drawn. The
*matched* one keeps each update's A and the singular values of its B (`chance.matched_null`), the
*Gaussian* one keeps A alone (`chance.gaussian_null`). On the left both give uniformly random
subspaces, which are drawn from their dimensions. On the right they differ: a Gaussian B leaves A's
top directions where they are, which two updates of one A share, so that its angles are smaller.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from adapter_geometry import geometry
from adapter_geometry.chance import largest_by_chance, projected_moments, random_angles
from adapter_geometry.frames import Frames, bartlett
from adapter_geometry.geometry import LEVEL, SIDES, Comparison
from adapter_geometry.updates import Adapters, Factors

_NULLS = ("matched", "gaussian")
_DRAWS = 2000  # of the band of one module
_MEDIANS = 1000  # and of the band of medians
_WORK = 20_000  # drawn updates of single modules, about; beyond it, bands have fewer draws
_FEWEST = 9  # draws of each module,
_FEWEST_POOLED = 120  # and of all modules of a shape, whose outer 2.5 % lie between draws
_OVERLAPS = 2000  # of first directions of a pair, in all modules of a shape
_SIMILARITIES = 1000  # drawn updates of an adapter, in all modules, for the likeness of subspaces
_PER_MODULE = 50  # draws of left angles for each module that takes its part of a median from them
_BLOCK = 4e6  # float64 numbers of the small matrices multiplied at once
_ROUNDING = 1e-5  # degrees: of an arccos near 1, and of draws, which are kept in float32

Draws = Float[np.ndarray, "draw k"]  # angles of one pair in one module, degrees
Band = Float64[np.ndarray, "low_and_high k"]


def compare_beside_chance(
    adapters: Adapters,
    k: int | None = None,
    references: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Comparison, pd.DataFrame, pd.DataFrame]:
    """(`geometry.compare(adapters, k)`, the tables `angles` and `directions` with what chance
    gives) of all pairs, or of those that hold one of the `references`.

    Columns of `angles`: scope ("module", or "global" for the median over modules); module (its full
    name), stack, layer (Int64) and projection, missing where there is none; side, run_a, run_b,
    index (1 is the smallest angle), degrees; chance_low, chance_high, the band of the matched null;
    gaussian_low, gaussian_high, that of Gaussian B; harder, the null that reaches lower, "matched"
    or "gaussian"; modules, how many the number is from. A median is over the modules in which the
    angle is defined, and its band is one of medians. 95 % of the unrelated updates of a null lie
    within its band, for any number of modules and any order of the adapters. Right angles are drawn
    for each pair and module; for the band of one module those of a shape and its ranks are pooled.

    Columns of `directions`: module, stack, layer and projection; side, run_a, run_b; overlap,
    |<u_1, u_1'>| of the first singular vectors of the side; chance_high, below which 95 % of the
    updates of the matched null lie, gaussian_high, that of Gaussian B; harder, the null that
    reaches higher. On the left both are those of a random unit vector, whose squared overlap is
    Beta(1/2, (d_out - 1) / 2); on the right they are drawn, 1,000 to 2,000 times or more for the
    modules of a shape and its ranks together, since updates that share an A share directions by
    chance.
    """
    comparison = geometry.empty(adapters, k)
    pairs = _pairs(comparison.runs, references)
    counts, names = _draws_per_module(comparison), comparison.modules.module.tolist()
    width = comparison.angles["right"].shape[-1]
    drawn = {null: [np.empty((0, 0, 0), np.float32)] * len(names) for null in _NULLS}
    overlaps = {null: [np.empty((0, 0), np.float32)] * len(names) for null in _NULLS}
    shifts = np.ceil(_OVERLAPS / (_alike(comparison) * counts)).astype(int)

    def work(chunk: list[int], left: Frames, right: Frames, scales: Tensor) -> None:
        geometry.measure(comparison, chunk, left, right, scales, k)
        sigma = torch.linalg.svdvals(left.R)  # (module, run, r): B's own
        for position, module in enumerate(chunk):
            factors = [adapters[run][names[module]] for run in comparison.runs]
            compared = torch.as_tensor(comparison.compared[module], device=scales.device)
            rngs = _generators(names[module], factors, seed)
            for null in _NULLS:
                vectors = _directions(
                    null,
                    right.R[position],
                    sigma[position],
                    factors,
                    int(counts[module]),
                    rngs,
                    width,
                )
                drawn[null][module] = _angles(vectors, right, position, pairs, compared)
                overlaps[null][module] = _overlaps(
                    vectors[..., 0], right, position, pairs, int(shifts[module])
                )

    geometry.in_chunks(adapters, comparison, work)
    left = _left_bands(comparison, pairs, seed)
    right = {null: _right_bands(comparison, pairs, drawn[null], seed) for null in _NULLS}
    sides = {"left": dict.fromkeys(_NULLS, left), "right": right}
    angles = [_table(comparison, pairs, side, sides[side]) for side in SIDES]
    directions = _directions_table(comparison, pairs, overlaps)
    return comparison, pd.concat(angles, ignore_index=True), directions


def _pairs(runs: list[str], references: Sequence[str] | None) -> Int[np.ndarray, "2 pair"]:
    """Numbers of the two runs of each pair, the first given before the second."""
    i, j = np.triu_indices(len(runs), 1)
    if references is not None:
        chosen = np.isin(runs, references)
        i, j = i[chosen[i] | chosen[j]], j[chosen[i] | chosen[j]]
    return np.stack([i, j])


def _draws_per_module(comparison: Comparison) -> Int[np.ndarray, " module"]:
    """How often right angles are drawn in each module: `_DRAWS` times for all modules of one shape
    and its ranks together, and less often where that is too much work."""
    alike = _alike(comparison)
    affordable = _WORK // comparison.rank.size
    fewest = np.maximum(_FEWEST, np.ceil(_FEWEST_POOLED / alike))
    draws: np.ndarray = np.clip(np.ceil(_DRAWS / alike), fewest, np.maximum(fewest, affordable))
    return draws.astype(int)


def _alike(comparison: Comparison) -> Int[np.ndarray, " module"]:
    """How many modules have the shape and the ranks of each, itself included."""
    ranks = pd.DataFrame(np.sort(comparison.rank, axis=1)).assign(
        d_out=comparison.modules.d_out, d_in=comparison.modules.d_in
    )
    alike: np.ndarray = ranks.groupby(list(ranks)).d_out.transform("size").to_numpy()
    return alike


# --- draws of right directions --------------------------------------------------------------------


def _generators(module: str, factors: Sequence[Factors], seed: int) -> list[np.random.Generator]:
    """One for each run, from a sample of what its B holds: neither the order of the runs nor the
    presence of others changes what is drawn for it. Equal ones are told apart by their number."""
    keys: list[tuple[int, int]] = []
    for part in factors:
        sample = part.B.flatten()[:: max(1, part.B.numel() // 512)].double().cpu().numpy()
        key = zlib.crc32(sample.tobytes())
        keys.append((key, sum(key == other for other, _ in keys)))
    place = zlib.crc32(module.encode())
    return [np.random.default_rng([seed, place, *key]) for key in keys]


def _directions(
    null: str,
    R: Float64[Tensor, "run r r"],
    sigma: Float64[Tensor, "run r"],
    factors: Sequence[Factors],
    draws: int,
    rngs: Sequence[np.random.Generator],
    width: int,
) -> Float64[Tensor, "run draw r width"]:
    """The first right singular vectors of `draws` null updates of one module, in the frame of A',
    descending: `width` of them, or as many as there are.

    With A' = P R they are those of C R', where C is Sigma W with B's singular values and a
    Haar-random rotation W, or, for Gaussian B, a matrix with B's Gram matrix, which is Wishart.
    """
    widest = R.shape[-1]
    vectors = R.new_empty(len(factors), draws, widest, min(width, widest))
    # run by run, so that all draws of one are in memory at once and not those of all
    for run, (part, rng) in enumerate(zip(factors, rngs, strict=True)):
        d_out, rank = part.B.shape
        if null == "matched":
            Q, triangle = np.linalg.qr(rng.standard_normal((draws, rank, rank)))
            W = Q * np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None]
            drawn = sigma[run, :rank, None].cpu().numpy() * W
        elif d_out < rank:
            drawn = rng.standard_normal((draws, d_out, rank))
        else:
            drawn = bartlett(rng, draws, rank, d_out)
        C = R.new_zeros(draws, widest, widest)
        C[:, : drawn.shape[1], :rank] = torch.from_numpy(drawn)
        cores = C @ R[run].mT
        # eigenvectors of the Gram matrix take half the time of singular vectors
        ascending = torch.linalg.eigh(cores.mT @ cores).eigenvectors
        vectors[run] = ascending.flip(-1)[..., :width]
    return vectors


def _angles(
    tops: Float64[Tensor, "run draw r k"],
    right: Frames,
    position: int,
    pairs: Int[np.ndarray, "2 pair"],
    compared: Int[Tensor, "run run"],
) -> Float[np.ndarray, "pair draw k"]:
    """Angles in degrees, ascending, between the first of the drawn directions of the two runs of
    each pair, on the module at this position of the frames; NaN beyond those that are `compared`.
    """
    _, draws, r, k = tops.shape
    i, j = torch.as_tensor(pairs, device=tops.device)
    angles = np.full((len(i), draws, k), np.nan, np.float32)
    size = max(1, int(_BLOCK // (draws * r * max(k, 1))))
    places = torch.arange(k, device=tops.device)
    for begin in range(0, len(i), size):
        a, b = i[begin : begin + size], j[begin : begin + size]
        overlaps = right.shared(a, b, slice(position, position + 1))[0]  # (pair, r, r)
        of_a, of_b = (
            tops[one] * (places < compared[one, other, None])[:, None, None]
            for one, other in ((a, b), (b, a))
        )  # (pair, draw, r, k), zeros for vectors that take no part
        # all draws of a pair in one product
        met = overlaps @ of_b.transpose(1, 2).flatten(2)
        met = met.reshape(*met.shape[:2], draws, k).transpose(1, 2)
        cosines = torch.linalg.svdvals(of_a.mT @ met).clamp(max=1)
        smaller = torch.minimum(compared[a, b], compared[b, a])[:, None, None]
        degrees = torch.rad2deg(torch.arccos(cosines)).where(places < smaller, torch.nan)
        angles[begin : begin + size] = degrees.cpu()
    return angles


def _overlaps(
    firsts: Float64[Tensor, "run draw r"],
    right: Frames,
    position: int,
    pairs: Int[np.ndarray, "2 pair"],
    shifts: int,
) -> Float[np.ndarray, "pair draws_and_shifts"]:
    """Overlaps of the first of the drawn directions of the two runs of each pair: of each draw of
    the one with the draw of that number of the other, and with `shifts` - 1 that come after it."""
    _, draws, r = firsts.shape
    shifts = min(shifts, draws)
    i, j = torch.as_tensor(pairs, device=firsts.device)
    overlaps = np.empty((len(i), draws * shifts), np.float32)
    size = max(1, int(_BLOCK // (draws * r)))
    for begin in range(0, len(i), size):
        a, b = i[begin : begin + size], j[begin : begin + size]
        met = firsts[b] @ right.shared(a, b, slice(position, position + 1))[0].mT  # (pair, draw, r)
        for shift in range(shifts):
            of_shift = (firsts[a] * met.roll(shift, 1)).sum(-1).abs()
            columns = slice(shift * draws, (shift + 1) * draws)
            overlaps[begin : begin + size, columns] = of_shift.cpu()
    return overlaps


# --- bands ----------------------------------------------------------------------------------------


def _quantiles(draws: Float[np.ndarray, "draw ..."]) -> Float64[np.ndarray, "low_and_high ..."]:
    """Ends of the band. The q-th quantile is draw number q (N + 1), so that another draw lies
    within with the stated probability, however few they are."""
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    quantiles: np.ndarray = np.quantile(draws.astype(float), ends, axis=0, method="weibull")
    return quantiles


def _taken(
    begins: Int[np.ndarray, " module"], counts: Int[np.ndarray, " module"], seed: int
) -> Int[np.ndarray, "draw module"]:
    """For each drawn median, places of the draws that the modules take: `counts` are the draws that
    a module has, `begins` the place of its first one."""
    rng = np.random.default_rng(seed)
    taken: np.ndarray = begins + rng.integers(counts, size=(_MEDIANS, len(counts)))
    return taken


def _of_medians(
    draws: Draws,
    taken: Int[np.ndarray, "median module"],
    smaller: Int[np.ndarray, " module"],
    count: float,
) -> Band:
    """The band of the median over modules.

    smaller: how many angles are defined in each module. count: of draws of a module. Few draws
    have a mean that errs by 1 / count of their variance, which is too small by as much: the band is
    widened by both.
    """
    widening = math.sqrt((count + 1) / (count - 1))
    band = np.full((2, draws.shape[1]), np.nan)
    for index in range(smaller.max()):
        values = np.ascontiguousarray(draws[:, index])[taken[:, smaller > index]]
        middle = values.shape[1] // 2
        values.partition(middle, axis=1)  # in place: what is left of the middle is not above it
        medians = values[:, middle]
        if values.shape[1] % 2 == 0:
            medians = (medians + values[:, :middle].max(1)) / 2
        centre = np.median(medians)
        band[:, index] = centre + (_quantiles(medians) - centre) * widening
    return band


def _left_bands(
    comparison: Comparison, pairs: Int[np.ndarray, "2 pair"], seed: int
) -> tuple[Float64[np.ndarray, "module pair 2 k"], Float64[np.ndarray, "pair 2 k"]]:
    """Bands of single modules and of medians, from random subspaces of the same dimensions.

    What is drawn depends on dimensions alone, so that most pairs have one band in common.
    """
    k, d_out = comparison.angles["left"].shape[-1], comparison.modules.d_out.to_numpy()
    compared = comparison.compared[:, *pairs], comparison.compared[:, *pairs[::-1]]
    smaller, larger = np.minimum(*compared), np.maximum(*compared)  # (module, pair)
    d = np.broadcast_to(d_out[:, None], smaller.shape)
    kinds, of_kind = np.unique(
        np.stack([d, smaller, larger], -1).reshape(-1, 3), axis=0, return_inverse=True
    )
    of_kind = of_kind.reshape(smaller.shape)
    m, count = len(d_out), max(_DRAWS, _PER_MODULE * len(d_out))
    draws = np.full((len(kinds), count, k), np.nan)
    for kind, (dimension, low, high) in enumerate(kinds.tolist()):
        if low:
            draws[kind, :, :low] = np.degrees(random_angles(dimension, high, count, seed, low))
    single = np.stack([_quantiles(of) for of in draws])[of_kind]
    medians = np.empty((pairs.shape[1], 2, k))
    patterns, of_pattern = np.unique(of_kind.T, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        taken = _taken(pattern * count, np.full(m, count), seed)
        band = _of_medians(draws.reshape(-1, k), taken, kinds[pattern, 1], count / m)
        medians[of_pattern.ravel() == number] = band
    return single, medians


def _right_bands(
    comparison: Comparison,
    pairs: Int[np.ndarray, "2 pair"],
    drawn: Sequence[Float[np.ndarray, "pair _ k"]],
    seed: int,
) -> tuple[Float64[np.ndarray, "module pair 2 k"], Float64[np.ndarray, "pair 2 k"]]:
    """Bands of single modules, pooled over those of a shape and its ranks, and of medians."""
    m, k = len(drawn), comparison.angles["right"].shape[-1]
    shapes = comparison.modules[["d_out", "d_in"]].to_numpy()
    counts = np.array([of_module.shape[1] for of_module in drawn])
    taken = _taken(np.cumsum(counts) - counts, counts, seed)
    single, medians = np.full((m, pairs.shape[1], 2, k), np.nan), np.empty((pairs.shape[1], 2, k))
    for pair, both in enumerate(pairs.T):
        draws = np.concatenate([of_module[pair] for of_module in drawn])
        compared = comparison.compared[:, *both], comparison.compared[:, *both[::-1]]
        kinds = np.column_stack([shapes, comparison.rank[:, both], *compared])
        _, of_kind = np.unique(kinds, axis=0, return_inverse=True)
        of_draw = np.repeat(of_kind.ravel(), counts)
        for kind in range(of_kind.max() + 1):
            single[of_kind.ravel() == kind, pair] = _quantiles(draws[of_draw == kind])
        medians[pair] = _of_medians(draws, taken, np.minimum(*compared), int(counts.min()))
    return single, medians


# --- the tables -----------------------------------------------------------------------------------


def _table(
    comparison: Comparison,
    pairs: Int[np.ndarray, "2 pair"],
    side: str,
    bands: dict[
        str, tuple[Float64[np.ndarray, "module pair 2 k"], Float64[np.ndarray, "pair 2 k"]]
    ],
) -> pd.DataFrame:
    """The rows of one side: medians, then modules."""
    measured = np.degrees(comparison.angles[side][:, *pairs])  # (module, pair, k)
    ordered, count = np.sort(measured, axis=0), (~np.isnan(measured)).sum(0)  # NaN is last
    middle = [
        np.take_along_axis(ordered, np.maximum(place, 0)[None], 0)
        for place in ((count - 1) // 2, count // 2)
    ]
    numbers = {
        "degrees": np.r_[(middle[0] + middle[1]) / 2, measured],
        **_columns(
            {
                null: np.moveaxis(np.r_[medians[None], single], 2, 0)
                for null, (single, medians) in bands.items()
            }
        ),
        "modules": np.r_[count[None], ~np.isnan(measured)],
    }
    modules = comparison.modules
    places = pd.DataFrame(
        {
            "scope": ["global"] + ["module"] * len(modules),
            **{name: [None, *modules[name]] for name in geometry.PLACE},
        }
    ).astype({"layer": "Int64"})
    return geometry.angle_rows(places, comparison.runs, pairs, side, **numbers)


def _columns(
    bands: dict[str, Float64[np.ndarray, "low_and_high ..."]],
) -> dict[str, np.ndarray]:
    """The columns of the bands of both nulls, rounded outwards."""
    low, high = (
        {null: np.maximum(0, band[0] - _ROUNDING) for null, band in bands.items()},
        {null: band[1] + _ROUNDING for null, band in bands.items()},
    )
    return {
        "chance_low": low["matched"],
        "chance_high": high["matched"],
        "gaussian_low": low["gaussian"],
        "gaussian_high": high["gaussian"],
        "harder": np.where(low["gaussian"] < low["matched"], "gaussian", "matched"),
    }


def _directions_table(
    comparison: Comparison,
    pairs: Int[np.ndarray, "2 pair"],
    drawn: dict[str, list[Float[np.ndarray, "pair _"]]],
) -> pd.DataFrame:
    """The table `directions`, from the overlaps of null updates by null and module."""
    modules, tables = comparison.modules, []
    d_out = modules.d_out.to_numpy()[:, None]
    random = np.sqrt(largest_by_chance(*projected_moments(d_out, 1)))  # of a random unit vector
    for side in SIDES:
        overlap = np.minimum(comparison.first[side][:, *pairs], 1)  # (module, pair)
        limits = {
            null: np.where(np.isnan(overlap), np.nan, random)
            if side == "left"
            else _limits(comparison, pairs, overlap, drawn[null])
            for null in _NULLS
        }
        numbers = {
            "overlap": overlap,
            "chance_high": limits["matched"],
            "gaussian_high": limits["gaussian"],
            "harder": np.where(limits["gaussian"] > limits["matched"], "gaussian", "matched"),
        }
        rows = {name: values[..., None] for name, values in numbers.items()}
        table = geometry.angle_rows(modules[geometry.PLACE], comparison.runs, pairs, side, **rows)
        tables.append(table.drop(columns="index"))
    return pd.concat(tables, ignore_index=True)


def _limits(
    comparison: Comparison,
    pairs: Int[np.ndarray, "2 pair"],
    overlap: Float64[np.ndarray, "module pair"],
    drawn: Sequence[Float[np.ndarray, "pair _"]],
) -> Float64[np.ndarray, "module pair"]:
    """Below which 95 % of the drawn overlaps lie, pooled over modules of a shape and its ranks in
    which there are first directions; NaN where there are none."""
    shapes = comparison.modules[["d_out", "d_in"]].to_numpy()
    limits = np.full(overlap.shape, np.nan)
    for pair, both in enumerate(pairs.T):
        is_defined = ~np.isnan(overlap[:, pair])
        kinds = np.column_stack([shapes, comparison.rank[:, both]])
        _, of_kind = np.unique(kinds, axis=0, return_inverse=True)
        for kind in range(of_kind.max() + 1):
            chosen = np.flatnonzero(is_defined & (of_kind.ravel() == kind)).tolist()
            if not chosen:
                continue
            draws = np.concatenate([drawn[module][pair] for module in chosen])
            limit = np.quantile(draws.astype(float), LEVEL, method="weibull")
            limits[chosen, pair] = min(1, limit + _ROUNDING)
    return limits


# --- likeness of subspaces of any size ------------------------------------------------------------


def similarity_table(
    adapters: Adapters, pairs: Sequence[tuple[str, str]], seed: int = 0
) -> pd.DataFrame:
    """The `similarity` table: how much of the top i directions of one update lies in the top j of
    the other, for all i and j up to their ranks: phi = |U_i' U_j|_F^2 / min(i, j), from 0 to 1 (Hu
    et al. 2021).

    It needs no common k, so that ranks may differ. Columns: run_a, run_b, side, i, j, similarity,
    modules, chance, chance_high. The similarity is the mean over the modules in which both
    subspaces are defined (as in `geometry.compare`), `modules` their number. `chance` is its mean
    for updates of the matched null and 95 % of them lie below `chance_high`: on the left, for
    random subspaces, mean and variance are closed forms; on the right they are those of drawn
    updates, which keep their A's. The limit is that of the Beta distribution with this mean and
    variance.
    """
    tables = [
        _similarities({run: adapters[run] for run in pair}, seed).assign(
            run_a=pair[0], run_b=pair[1]
        )
        for pair in pairs
    ]
    columns = ["run_a", "run_b", "side", "i", "j", "similarity", "modules", "chance", "chance_high"]
    return pd.concat(tables, ignore_index=True)[columns]


def _similarities(pair: Adapters, seed: int) -> pd.DataFrame:
    """The rows of `similarity_table` of one pair of adapters, without their names."""
    comparison = geometry.empty(pair)
    names, (first, second) = comparison.modules.module.tolist(), comparison.runs
    draws = max(_FEWEST, math.ceil(_SIMILARITIES / len(names)))
    sums: dict[tuple[str, int], Float64[np.ndarray, "4 i j"]] = {}  # by side and first of a chunk

    def work(chunk: list[int], left: Frames, right: Frames, scales: Tensor) -> None:
        U, sigma, Vh = torch.linalg.svd(scales[:, :, None, None] * left.R @ right.R.mT)
        spectra, is_defined = torch.linalg.svdvals(left.R), geometry.separated(sigma)
        ranks = comparison.rank[chunk[0]].tolist()
        both = is_defined[:, 0, : ranks[0], None] & is_defined[:, 1, None, : ranks[1]]
        null: list[Tensor] = []  # by module: (run, draw, r, r)
        for position, module in enumerate(chunk):
            factors = [pair[run][names[module]] for run in (first, second)]
            rngs, R = _generators(names[module], factors, seed), right.R[position]
            null.append(
                _directions("matched", R, spectra[position], factors, draws, rngs, R.shape[-1])
            )
        of_sides = {
            "left": (_phi(U, _shared(left), ranks), _left_moments(left.d, ranks)),
            "right": (_phi(Vh.mT, _shared(right), ranks), _right_moments(null, right, ranks)),
        }
        for side, (phi, (mean, variance)) in of_sides.items():
            numbers = torch.stack(
                [torch.ones_like(phi), phi, mean.expand_as(phi), variance.expand_as(phi)]
            )
            sums[side, chunk[0]] = numbers.where(both.cpu(), 0).sum(1).numpy()

    geometry.in_chunks(pair, comparison, work)
    shape = comparison.rank.max(0)
    i, j = (index.ravel() + 1 for index in np.indices(shape))
    tables = []
    for side in SIDES:
        total = np.zeros((4, *shape))
        for of_side, begin in sorted(sums):  # whatever was ready first
            if of_side == side:
                part = sums[side, begin]
                total[:, : part.shape[1], : part.shape[2]] += part
        count, similarity, mean, variance = total.reshape(4, -1)
        defined = np.where(count > 0, count, np.nan)
        limit = largest_by_chance(mean / defined, variance / defined**2) + _ROUNDING
        numbers = {
            "i": i,
            "j": j,
            "similarity": np.minimum(similarity / defined, 1),
            "modules": count.astype(int),
            "chance": mean / defined,
            "chance_high": np.minimum(1, limit),
        }
        tables.append(pd.DataFrame({"side": side, **numbers}))
    return pd.concat(tables)


def _shared(frames: Frames) -> Float64[Tensor, "module r r"]:
    """Overlaps of the frames of two runs."""
    first, second = torch.tensor([[0], [1]], device=frames.R.device)
    return frames.shared(first, second)[:, 0]


def _phi(
    vectors: Float64[Tensor, "*batch run r r"],
    overlaps: Float64[Tensor, "*any_batch r r"],
    ranks: Sequence[int],
) -> Float64[Tensor, "*batch i j"]:
    """|U_i' U_j|_F^2 / min(i, j) of the first i and j vectors of two runs, given in frames with
    these overlaps; on the CPU."""
    first, second = vectors[..., 0, :, : ranks[0]], vectors[..., 1, :, : ranks[1]]
    squares = (first.mT @ overlaps @ second).square().cumsum(-2).cumsum(-1).cpu()
    i, j = (torch.arange(1, rank + 1) for rank in ranks)
    return squares / torch.minimum(i[:, None], j)


def _left_moments(
    d_out: int, ranks: Sequence[int]
) -> tuple[Float64[Tensor, "i j"], Float64[Tensor, "i j"]]:
    """(mean, variance) of `_phi` of random subspaces."""
    i, j = np.indices(ranks) + 1
    mean, variance = projected_moments(d_out, np.minimum(i, d_out), j, j)
    smaller = np.minimum(i, j)
    return torch.from_numpy(mean / smaller), torch.from_numpy(variance / smaller**2)


def _right_moments(
    null: Sequence[Float64[Tensor, "run draw r r"]], right: Frames, ranks: Sequence[int]
) -> tuple[Float64[Tensor, "module i j"], Float64[Tensor, "module i j"]]:
    """(mean, variance) of `_phi` of the drawn right directions of each module."""
    drawn = [
        _phi(vectors.transpose(0, 1), overlaps, ranks)
        for vectors, overlaps in zip(null, _shared(right), strict=True)
    ]
    return torch.stack([each.mean(0) for each in drawn]), torch.stack(
        [each.var(0) for each in drawn]
    )
