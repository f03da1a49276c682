"""Geometry of updates, from their factors alone, and what each number would be by chance.

Comes after `updates`. Every quantity equals the one of the dense updates and is found without forming them: each module's
update is written in orthonormal frames, dW_i = Q_i M_i P_i' with Q_i (d_out, r), P_i (d_in, r) and a core M_i (r, r). All that two
updates have to do with each other then stands in the small matrices M_i, Q_i' Q_j and P_i' P_j. Everything is float64.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from threadpoolctl import threadpool_limits

from adapter_geometry import updates
from adapter_geometry.frames import SMALL, Frames, angles_of

_RANK_TOLERANCE = 1e-10  # singular values below this share of the largest are rounding
_CHUNK = 5e6  # float64 numbers of factors held at once
_LEVEL = 0.95
_Z = float(ndtri((1 + _LEVEL) / 2))
_SIDES = ("left", "right")


# --- from singular values -----------------------------------------------------------------------------------------


def effective_rank(singular_values):
    """exp(entropy of sigma / sum sigma) along the last axis (Roy & Vetterli 2007); NaN for a zero update, NaN entries are padding.

    >>> round(float(effective_rank([5, 5, 5, 0])), 6)
    3.0
    """
    sigma = np.nan_to_num(np.asarray(singular_values, float))
    share = _ratio(sigma, sigma.sum(-1, keepdims=True))
    return np.exp(
        -np.where(
            share > 0,
            share * np.log(np.where(share > 0, share, 1)),
            np.where(np.isnan(share), np.nan, 0),
        ).sum(-1)
    )


def stable_rank(singular_values):
    """sum sigma^2 / sigma_1^2 along the last axis; NaN for a zero update.

    >>> float(stable_rank([2, 1, 1]))
    1.5
    """
    squares = np.nan_to_num(np.asarray(singular_values, float)) ** 2
    return _ratio(squares.sum(-1), squares.max(-1))


def participation_ratio(singular_values):
    """(sum sigma^2)^2 / sum sigma^4 along the last axis; NaN for a zero update."""
    squares = np.nan_to_num(np.asarray(singular_values, float)) ** 2
    return _ratio(squares.sum(-1) ** 2, (squares**2).sum(-1))


def top_k(rank):
    """How many singular vectors span the compared subspace: a third of the rank, at least 2, below the rank where that has room.

    With k = r the right subspace would be the whole row space of A.

    >>> [top_k(rank) for rank in (1, 4, 16, 32)]
    [1, 2, 5, 11]
    """
    return max(1, min(max(2, round(rank / 3)), rank - 1))


def _ratio(a, b):
    """a / b, NaN where b is 0."""
    return np.divide(
        a,
        b,
        out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan),
        where=np.asarray(b) > 0,
    )


# --- all pairs of adapters, module by module -----------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: m modules, n runs, the top k singular vectors of each side. NaN marks what is not defined."""

    runs: list
    modules: pd.DataFrame  # module, layer, projection, d_out, d_in; one row a module
    rank: np.ndarray  # (m, n): r of the factors
    inner: np.ndarray  # (m, n, n): <dW_i, dW_j>
    cross: np.ndarray  # (m, n, n): |dW_i dW_j'|_F^2
    singular_values: np.ndarray  # (m, n, largest r), descending, NaN beyond r
    angles: dict  # side -> (m, n, n, k): principal angles in radians, ascending
    first: dict  # side -> (m, n, n): abs <u_1, u_1'>
    alignment: np.ndarray  # (m, n, n): |U_k U_k' dW_j| / |dW_j|, U_k of run i


def compare(adapters, k=None):
    """Measure every pair of updates {run: {module: Factors}} on every module; returns a `Comparison`.

    k: size of the compared subspaces, `top_k` of the smallest rank by default. A subspace is defined where its update has rank k and
    sigma_k > sigma_(k+1); an update of lower rank takes part with its whole column space, and the missing angles are NaN, as
    are all angles of a zero update. First vectors need sigma_1 > sigma_2.
    Raises ValueError naming the first module that one of the updates lacks, or whose shapes differ.
    """
    return compare_variants(adapters, k, lambda left, right, places: [(left, right)], 1)[0]


def compare_variants(adapters, k, variants, count):
    """`count` Comparisons, one for each variant (left frames, right frames) that `variants` makes of a chunk of modules."""
    runs = list(adapters)
    first = adapters[runs[0]]
    for run in runs:
        if different := first.keys() ^ adapters[run].keys():
            raise ValueError(
                f"{run} and {runs[0]} have different modules, for example {sorted(different)[0]}"
            )
        for module, factors in adapters[run].items():
            if (factors.B.shape[0], factors.A.shape[1]) != (
                first[module].B.shape[0],
                first[module].A.shape[1],
            ):
                raise ValueError(
                    f"{module} is {factors.B.shape[0]} x {factors.A.shape[1]} in {run} and {first[module].B.shape[0]} x "
                    f"{first[module].A.shape[1]} in {runs[0]}: adapters of different base models cannot be compared"
                )
    names = sorted(first, key=lambda module: (*updates.layer_and_projection(module), module))
    modules = pd.DataFrame(
        [
            {
                "module": module,
                **dict(
                    zip(("layer", "projection"), updates.layer_and_projection(module), strict=True)
                ),
                "d_out": first[module].B.shape[0],
                "d_in": first[module].A.shape[1],
            }
            for module in names
        ]
    )
    rank = np.array([[adapters[run][module].A.shape[0] for run in runs] for module in names])
    k = k or top_k(int(rank.min()))
    found = [_empty(runs, modules, rank, k) for _ in range(count)]
    groups = {}
    for place, row in enumerate(modules.itertuples()):
        groups.setdefault((row.d_out, row.d_in, *rank[place]), []).append(place)
    chunks = []
    for (d_out, d_in, *shape), places in groups.items():
        size = max(1, int(_CHUNK // ((d_out + d_in) * sum(shape))))
        chunks += [places[begin : begin + size] for begin in range(0, len(places), size)]

    def fill(places):
        factors = [[adapters[run][names[place]] for place in places] for run in runs]
        left, right = (
            Frames([[part.B for part in parts] for parts in factors]),
            Frames([[part.A.T for part in parts] for parts in factors]),
        )
        scales = torch.tensor(
            [[part.scale for part in parts] for parts in factors],
            dtype=torch.float64,
            device=left.R.device,
        ).T
        for comparison, pair in zip(found, variants(left, right, places), strict=True):
            _measure(comparison, places, *pair, scales, k)

    threads = torch.get_num_threads()
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(threads) as pool,
    ):  # chunks side by side: no sum depends on the number of threads
        list(pool.map(fill, chunks))
    return found


def _empty(runs, modules, rank, k):
    m, n = rank.shape
    return Comparison(
        runs,
        modules,
        rank,
        np.empty((m, n, n)),
        np.empty((m, n, n)),
        np.full((m, n, rank.max()), np.nan),
        {side: np.full((m, n, n, k), np.nan) for side in _SIDES},
        {side: np.full((m, n, n), np.nan) for side in _SIDES},
        np.full((m, n, n), np.nan),
    )


def _measure(found, places, left, right, scales, k):
    """Fill the rows `places` of a Comparison from the frames of the modules' B and A' and the scales (module, run).

    Batches have axes (module, run, ...) or (module, pair, ...), with every pair of runs once; smaller ranks are padded with zeros.
    """
    cores = scales[:, :, None, None] * left.R @ right.R.mT
    norms = torch.linalg.matrix_norm(cores)
    U, sigma, Vh = torch.linalg.svd(cores)
    rank = (sigma > _RANK_TOLERANCE * sigma[..., :1]).sum(-1)
    floor = _RANK_TOLERANCE * sigma[..., 0]
    gaps = sigma - torch.nn.functional.pad(sigma[..., 1:], (0, 1))
    width = min(k, sigma.shape[-1])
    count = torch.where(rank <= width, rank, torch.where(gaps[..., width - 1] > floor, width, 0))
    keep = (torch.arange(width, device=sigma.device) < count[..., None])[:, :, None].double()
    is_led = (gaps[..., 0] > floor) & (rank > 0)
    tops = {"left": U[..., :width] * keep, "right": Vh.mT[..., :width] * keep}

    own_rank = torch.as_tensor(found.rank[places], device=sigma.device)
    found.singular_values[places, :, : sigma.shape[-1]] = sigma.where(
        torch.arange(sigma.shape[-1], device=sigma.device) < own_rank[..., None], torch.nan
    ).cpu()
    i, j = torch.triu_indices(len(found.runs), len(found.runs), device=sigma.device)
    QQ, PP = left.shared(i, j), right.shared(i, j)
    _put(found.inner, places, i, j, (cores[:, i] * (QQ @ cores[:, j] @ PP.mT)).sum((-2, -1)))
    _put(found.cross, places, i, j, (cores[:, i] @ PP @ cores[:, j].mT).square().sum((-2, -1)))
    for one, other, Q in ((i, j, QQ), (j, i, QQ.mT)):
        captured = (
            torch.linalg.matrix_norm(tops["left"][:, one].mT @ Q @ cores[:, other])
            / norms[:, other]
        )
        found.alignment[np.asarray(places)[:, None], one.cpu(), other.cpu()] = captured.where(
            count[:, one] > 0, torch.nan
        ).cpu()
    for side, frames, shared in (("left", left, QQ), ("right", right, PP)):
        cosines = tops[side][:, i].mT @ shared @ tops[side][:, j]
        _put(
            found.first[side],
            places,
            i,
            j,
            cosines[..., 0, 0].abs().where(is_led[:, i] & is_led[:, j], torch.nan),
        )
        angles = torch.arccos(torch.linalg.svdvals(cosines).clamp(max=1)).where(
            (i != j)[:, None], 0.0
        )
        is_small = (angles[..., 0] < SMALL) & (i != j)
        for place, pair in torch.nonzero(is_small).tolist() if frames.joined is not None else ():
            vectors = [
                frames.vectors(place, run, tops[side][place, run, :, : count[place, run]])
                for run in (i[pair], j[pair])
            ]
            angles[place, pair, : min(vector.shape[1] for vector in vectors)] = angles_of(*vectors)
        is_defined = (
            torch.arange(width, device=sigma.device)
            < torch.minimum(count[:, i], count[:, j])[..., None]
        )
        _put(found.angles[side][..., :width], places, i, j, angles.where(is_defined, torch.nan))


def _put(array, places, i, j, values):
    """Write values (module, pair, ...) of every pair into an array (module, run, run, ...), both ways round."""
    rows, i, j = np.asarray(places)[:, None], i.cpu().numpy(), j.cpu().numpy()
    array[rows, i, j] = array[rows, j, i] = values.cpu().numpy()


# --- tables --------------------------------------------------------------------------------------------------------


def _scopes(compared):
    """(scope, layer, projection, module numbers): all modules stacked, each layer, each projection, each module."""
    modules, everything = compared.modules, np.arange(len(compared.modules))
    yield "global", -1, "all", everything
    for layer in sorted(modules.layer.unique()):
        yield "layer", layer, "all", everything[modules.layer == layer]
    for projection in modules.projection.unique():
        yield "projection", -1, projection, everything[modules.projection == projection]
    for place, row in enumerate(modules.itertuples()):
        yield "module", row.layer, row.projection, everything[[place]]


def stacked_cosine(compared, places=None):
    """(cosine, sd), each (n, n), of the updates stacked over the modules `places` (all by default); NaN for a zero update.

    sd: standard deviation of the cosine when one of the two is turned by a Haar-random rotation of each module's output space,
    its spectrum and right vectors kept: |dW_i dW_j'|_F / (sqrt(d_out) |dW_i| |dW_j|) for one module, variances added for several.
    """
    places = np.arange(len(compared.modules)) if places is None else places
    gram = compared.inner[places].sum(0)
    norms = np.sqrt(np.diag(gram))
    variance = (compared.cross[places] / compared.modules.d_out.to_numpy()[places, None, None]).sum(
        0
    )
    scale = np.outer(norms, norms)
    return _ratio(gram, scale), _ratio(np.sqrt(variance), scale)


def cosine_table(compared):
    """The `cosine` table: every pair in every scope, with the 95 % band of the spectrum-matched null (`stacked_cosine`)."""
    rows = []
    for scope, layer, projection, places in _scopes(compared):
        cosine, sd = stacked_cosine(compared, places)
        for i, j in combinations(range(len(compared.runs)), 2):
            rows.append(
                {
                    "scope": scope,
                    "layer": layer,
                    "projection": projection,
                    "run_a": compared.runs[i],
                    "run_b": compared.runs[j],
                    "cosine": cosine[i, j],
                    "chance_low": -_Z * sd[i, j],
                    "chance_high": _Z * sd[i, j],
                }
            )
    return pd.DataFrame(rows)


def updates_table(compared, base_norms=None):
    """The `updates` table, one row a run and module, and one a run with layer -1: norms of all modules stacked, ranks averaged over modules.

    base_norms: {module: norm of W0} for the relative norms; NaN without.
    """
    modules, n = compared.modules, len(compared.runs)
    sigma, norm = compared.singular_values, np.sqrt(np.einsum("mii->mi", compared.inner))
    base = np.array([base_norms[module] if base_norms else np.nan for module in modules.module])[
        :, None
    ] * np.ones(n)
    effective = effective_rank(sigma)
    values = {
        "norm": norm,
        "relative_norm": norm / base,
        "effective_rank": effective,
        "effective_rank_share": effective / compared.rank,
        "stable_rank": stable_rank(sigma),
        "participation_ratio": participation_ratio(sigma),
    }
    rows = [
        {
            "run": run,
            "layer": row.layer,
            "projection": row.projection,
            **{name: value[place, i] for name, value in values.items()},
        }
        for i, run in enumerate(compared.runs)
        for place, row in enumerate(modules.itertuples())
    ]
    for i, run in enumerate(compared.runs):
        total = float(np.linalg.norm(norm[:, i]))
        means = {
            name: value[:, i].mean()
            for name, value in values.items()
            if name not in ("norm", "relative_norm")
        }
        rows.append(
            {
                "run": run,
                "layer": -1,
                "projection": "all",
                "norm": total,
                "relative_norm": total / float(np.linalg.norm(base[:, i])),
                **means,
            }
        )
    return pd.DataFrame(rows)


def angles_table(compared, nulls):
    """The `angles` table: every pair on every module, in degrees, with the 95 % band of the matched null.

    nulls: Comparisons of `matched_null` updates; their angles are pooled over the modules of one shape.
    """
    modules, (i, j) = compared.modules, np.triu_indices(len(compared.runs), 1)
    shapes = modules.groupby(["d_out", "d_in"]).ngroup().to_numpy()
    parts = []
    for side in _SIDES:
        drawn = np.degrees(np.stack([null.angles[side][:, i, j] for null in nulls]))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "All-NaN slice"
            )  # a zero update has no angles, drawn or measured
            bands = np.stack(
                [
                    np.nanquantile(
                        drawn[:, shapes == shape], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=(0, 1)
                    )
                    for shape in range(shapes.max() + 1)
                ]
            )
        measured = np.degrees(compared.angles[side][:, i, j])  # (modules, pairs, k)
        place, pair, index = (axis.ravel() for axis in np.indices(measured.shape))
        parts.append(
            pd.DataFrame(
                {
                    "layer": modules.layer.to_numpy()[place],
                    "projection": modules.projection.to_numpy()[place],
                    "side": side,
                    "run_a": np.array(compared.runs)[i[pair]],
                    "run_b": np.array(compared.runs)[j[pair]],
                    "index": index + 1,
                    "degrees": measured.ravel(),
                    "chance_low": bands[shapes[place], 0, pair, index],
                    "chance_high": bands[shapes[place], 1, pair, index],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def orthogonal_table(compared, references=None):
    """The `orthogonal` table: what of each run's update is orthogonal to each reference's, by norm and by energy, in every scope.

    Within a scope the updates are stacked, and the parallel part uses the reference of that scope: a module's own reference
    for a module, so that the modules' energies do not add up to the global one.
    """
    rows = []
    for scope, layer, projection, places in _scopes(compared):
        cosine, _ = stacked_cosine(compared, places)
        for reference in references or compared.runs:
            for i, run in enumerate(compared.runs):
                if run != reference:
                    energy = np.maximum(
                        0, 1 - cosine[i, compared.runs.index(reference)] ** 2
                    )  # which, unlike max, keeps NaN
                    rows.append(
                        {
                            "scope": scope,
                            "layer": layer,
                            "projection": projection,
                            "run": run,
                            "reference": reference,
                            "by_norm": np.sqrt(energy),
                            "by_energy": energy,
                        }
                    )
    return pd.DataFrame(rows)
