"""Chance: random subspaces and updates that share nothing but what a null leaves them.

Comes after `geometry`, which measures what is drawn here as it measures trained updates, and before
the tables that set a number beside its chance level. Reads and writes no file; all that is drawn
follows from the given seed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from scipy.special import gammaln
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


def mean_cosine(first: Sequence[Update], second: Sequence[Update]) -> tuple[float, float]:
    """(mean, sd) of the cosine of each of the first updates with each of the second, as those of
    the seeds of two methods.

    sd: standard deviation of the mean when all of the second are multiplied by one Haar-random
    rotation of each module's output space, so that what they have in common with each other stays.
    Turned one by one they would share nothing, and their mean would spread less.
    """
    # the mean over pairs is the inner product of the means of the updates scaled to length 1
    means = {
        name: updates.combine(group, [1 / (updates.norm(update) * len(group)) for update in group])
        for name, group in (("first", first), ("second", second))
    }
    cosine, sd = geometry.stacked_cosine(geometry.compare(means))
    size = updates.norm(means["first"]) * updates.norm(means["second"])
    return float(size * cosine[0, 1]), float(size * sd[0, 1])


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
