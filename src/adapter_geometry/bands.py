"""Principal angles beside what chance gives: bands of single modules and of medians over modules.

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
from adapter_geometry.chance import random_angles
from adapter_geometry.frames import Frames, bartlett
from adapter_geometry.geometry import LEVEL, SIDES, Comparison
from adapter_geometry.updates import Adapters, Factors

_NULLS = ("matched", "gaussian")
_DRAWS = 2000  # of the band of one module
_MEDIANS = 1000  # and of the band of medians
_WORK = 20_000  # drawn updates of single modules, about; beyond it, bands have fewer draws
_FEWEST = 8  # draws of each module,
_FEWEST_POOLED = 80  # and of all modules of a shape, whose outer 2.5 % lie between draws
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
) -> tuple[Comparison, pd.DataFrame]:
    """(`geometry.compare(adapters, k)`, the `angles` table with 95 % bands) of all pairs, or of
    those that hold one of the `references`.

    Columns: scope ("module", or "global" for the median over modules); module (its full name),
    stack, layer (Int64) and projection, missing where there is none; side, run_a, run_b, index (1
    is the smallest angle), degrees; chance_low, chance_high, the band of the matched null;
    gaussian_low, gaussian_high, that of Gaussian B; harder, the null that reaches lower, "matched"
    or "gaussian"; modules, how many the number is from. A median is over the modules in which the
    angle is defined, and its band is one of medians. 95 % of the unrelated updates of a null lie
    within its band, for any number of modules and any order of the adapters. Right angles are drawn
    for each pair and module; for the band of one module those of a shape and its ranks are pooled.
    """
    comparison = geometry.empty(adapters, k)
    pairs = _pairs(comparison.runs, references)
    counts, names = _draws_per_module(comparison), comparison.modules.module.tolist()
    width = comparison.angles["right"].shape[-1]
    drawn = {null: [np.empty((0, 0, 0), np.float32)] * len(names) for null in _NULLS}

    def work(chunk: list[int], left: Frames, right: Frames, scales: Tensor) -> None:
        geometry.measure(comparison, chunk, left, right, scales, k)
        sigma = torch.linalg.svdvals(left.R)  # (module, run, r): B's own
        for position, module in enumerate(chunk):
            factors = [adapters[run][names[module]] for run in comparison.runs]
            compared = torch.as_tensor(comparison.compared[module], device=scales.device)
            rngs = _generators(names[module], factors, seed)
            for null in _NULLS:
                vectors = _directions(
                    null, right.R[position], sigma[position], factors, int(counts[module]), rngs
                )
                drawn[null][module] = _angles(vectors, right, position, pairs, compared, width)

    geometry.in_chunks(adapters, comparison, work)
    left = _left_bands(comparison, pairs, seed)
    right = {null: _right_bands(comparison, pairs, drawn[null], seed) for null in _NULLS}
    sides = {"left": dict.fromkeys(_NULLS, left), "right": right}
    tables = [_table(comparison, pairs, side, sides[side]) for side in SIDES]
    return comparison, pd.concat(tables, ignore_index=True)


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
    ranks = pd.DataFrame(np.sort(comparison.rank, axis=1)).assign(
        d_out=comparison.modules.d_out, d_in=comparison.modules.d_in
    )
    alike = ranks.groupby(list(ranks)).d_out.transform("size").to_numpy()
    affordable = _WORK // comparison.rank.size
    fewest = np.maximum(_FEWEST, np.ceil(_FEWEST_POOLED / alike))
    draws: np.ndarray = np.clip(np.ceil(_DRAWS / alike), fewest, np.maximum(fewest, affordable))
    return draws.astype(int)


# --- draws of right angles ------------------------------------------------------------------------


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
) -> Float64[Tensor, "run draw r r"]:
    """Right singular vectors of `draws` null updates of one module, in the frame of A', descending.

    With A' = P R they are those of C R', where C is Sigma W with B's singular values and a
    Haar-random rotation W, or, for Gaussian B, a matrix with B's Gram matrix, which is Wishart.
    """
    widest = R.shape[-1]
    C = torch.zeros(len(factors), draws, widest, widest, dtype=torch.float64)
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
        C[run, :, : drawn.shape[1], :rank] = torch.from_numpy(drawn)
    cores = C.to(R.device) @ R.mT[:, None]
    # eigenvectors of the Gram matrix take half the time of singular vectors
    vectors: Tensor = torch.linalg.eigh(cores.mT @ cores).eigenvectors.flip(-1)
    return vectors


def _angles(
    vectors: Float64[Tensor, "run draw r r"],
    right: Frames,
    position: int,
    pairs: Int[np.ndarray, "2 pair"],
    compared: Int[Tensor, "run run"],
    width: int,
) -> Float[np.ndarray, "pair draw {width}"]:
    """Angles in degrees, ascending, between the first of the drawn directions of the two runs of
    each pair, on the module at this position of the frames; NaN beyond those that are `compared`.
    """
    tops = vectors[..., :width]
    _, draws, r, k = tops.shape
    i, j = torch.as_tensor(pairs, device=tops.device)
    angles = np.full((len(i), draws, width), np.nan, np.float32)
    size = max(1, int(_BLOCK // (draws * r * max(k, 1))))
    places = torch.arange(k, device=tops.device)
    for begin in range(0, len(i), size):
        a, b = i[begin : begin + size], j[begin : begin + size]
        overlaps = right.shared(a, b, slice(position, position + 1))[0]  # (pair, r, r)
        of_a, of_b = (
            (tops[one] * (places < compared[one, other, None])[:, None, None])
            for one, other in ((a, b), (b, a))
        )  # (pair, draw, r, k), zeros for vectors that take no part
        # all draws of a pair in one product
        met = overlaps @ of_b.transpose(1, 2).flatten(2)
        met = met.reshape(*met.shape[:2], draws, k).transpose(1, 2)
        cosines = torch.linalg.svdvals(of_a.mT @ met).clamp(max=1)
        smaller = torch.minimum(compared[a, b], compared[b, a])[:, None, None]
        degrees = torch.rad2deg(torch.arccos(cosines)).where(places < smaller, torch.nan)
        angles[begin : begin + size, :, :k] = degrees.cpu()
    return angles


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


# --- the table ------------------------------------------------------------------------------------


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
