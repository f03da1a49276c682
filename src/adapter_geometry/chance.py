"""TODO docstring."""

import numpy as np
import torch
from scipy.special import gammaln

from adapter_geometry import geometry, updates
from adapter_geometry.frames import bartlett
from adapter_geometry.updates import Factors


def compare_by_chance(adapters, draws, seed=0, k=None):
    """Comparisons of `draws` independent draws of the matched null of the given updates, as `compare(matched_null(...))` would give.

    All that the random frames O of the runs have to do with each other is their Gram matrix, which is drawn itself (Wishart): no vector
    of length d_out is.
    """

    def drawn(left, right, places):
        return [
            (left.by_chance(np.random.default_rng([seed, draw, places[0]])), right)
            for draw in range(draws)
        ]

    return geometry.compare_variants(adapters, k, drawn, draws)


# --- chance --------------------------------------------------------------------------------------------------------


def random_angles(d, k, draws=2000, seed=0):
    """Principal angles in radians, (draws, k), ascending, between two random k-dimensional subspaces of R^d.

    One of them may be fixed to the first k axes; the other is spanned by a Gaussian (d, k) matrix, of which only the first k
    rows X and the Wishart matrix of the others are needed: the cosines are the singular values of X (X'X + W)^(-1/2).
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((draws, k, k))
    rest = (
        rng.standard_normal((draws, max(d - k, 0), k))
        if d < 2 * k
        else bartlett(rng, draws, k, d - k)
    )
    lower = np.linalg.cholesky(X.mT @ X + rest.mT @ rest)
    cosines = np.linalg.svd(np.linalg.solve(lower, X.mT), compute_uv=False)
    return np.arccos(np.clip(cosines, 0, 1))


def expected_overlap(d):
    """E |<u, u'>| of two random unit vectors of R^d, about sqrt(2 / (pi d)).

    >>> round(expected_overlap(2560), 4)
    0.0158
    """
    return float(np.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / np.sqrt(np.pi))


def matched_null(adapters, seed):
    """Updates that share nothing but their row spaces: each keeps its own A, as trained, and B keeps its singular values.

    B becomes O Sigma W with a random orthonormal frame O (d_out, r) and a Haar-random rotation W (r, r), independently for each
    run and module. Left subspaces are then random ones of R^d_out; right ones are random within the row space of A, which is
    what runs from one initialisation have in common.
    """
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = {}
    for run, update in adapters.items():
        by_shape = {}
        for module, factors in update.items():
            by_shape.setdefault(factors.B.shape, []).append(module)
        drawn = {}
        for (d_out, rank), modules in by_shape.items():
            B = torch.stack([update[module].B for module in modules]).double()
            sigma = torch.linalg.eigvalsh(B.mT @ B).clamp(min=0).sqrt()
            frames, (Q, R) = (
                gaussian(len(modules), d_out, rank),
                torch.linalg.qr(gaussian(len(modules), rank, rank)),
            )
            rotations = Q * R.diagonal(dim1=1, dim2=2).sign()[:, None]
            inverse_roots = torch.linalg.cholesky(torch.linalg.inv(frames.mT @ frames))
            drawn.update(
                zip(modules, frames @ (inverse_roots * sigma[:, None] @ rotations), strict=True)
            )
        found[run] = {
            module: Factors(drawn[module], factors.A, factors.scale, factors.is_transposed)
            for module, factors in update.items()
        }
    return found


def gaussian_null(adapters, seed, keeps_A):
    """Updates of standard normal factors, independent for each run and module: shapes and ranks are those given, and, if `keeps_A`, each A.

    With d_out large beside r, the cosine of two of them in one module has the standard deviation 1 / sqrt(d_out d_in), or, on kept A's,
    |A_1 A_2'|_F / (sqrt(d_out) |A_1| |A_2|), which is 1 / sqrt(d_out r) for one A with perpendicular rows of equal length.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(factor):
        return torch.randn(factor.shape, generator=generator, dtype=torch.float64)

    return {
        run: {
            module: Factors(
                drawn(part.B), part.A if keeps_A else drawn(part.A), part.scale, part.is_transposed
            )
            for module, part in update.items()
        }
        for run, update in adapters.items()
    }


def permuted(adapters, seed):
    """The given updates with every module in another's place, the same place for all runs: only what is tied to the place is lost.

    The modules of one projection and shape are moved round, in the order of the layers, by a random number of places that is not 0. Compared with the
    updates themselves, as further runs, they tell what two updates have in common wherever one looks.
    Raises ValueError for a projection of which there is a single module.
    """
    rng, source, groups = np.random.default_rng(seed), {}, {}
    first = next(iter(adapters.values()))
    for module in sorted(first, key=updates.layer_and_projection):
        kind = (
            updates.layer_and_projection(module)[1],
            first[module].B.shape[0],
            first[module].A.shape[1],
        )
        groups.setdefault(kind, []).append(module)
    for (projection, d_out, d_in), modules in groups.items():
        if len(modules) == 1:
            raise ValueError(
                f"{modules[0]} is the only {projection} of shape {d_out} x {d_in}: it can change places with no other; leave it out"
            )
        source.update(
            zip(modules, np.roll(modules, rng.integers(1, len(modules))).tolist(), strict=True)
        )
    return {
        run: {module: update[source[module]] for module in update}
        for run, update in adapters.items()
    }
