"""What an update does to the spectrum of the base's weights: intruder dimensions and spectral
shift, without a dense SVD of W0 + dW.

Comes after `updates` and `base_weights`, beside `geometry`; the report and the page on one's own
adapters use it. Reads and writes nothing itself.

In the singular frame of W0 = U S V', stored once it is computed, W0 + dW is a diagonal matrix plus
one of rank r, so that its leading singular vectors cost a few products with thin matrices, and
their overlaps with those of W0 are their entries.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor
from tqdm import tqdm

from adapter_geometry import updates
from adapter_geometry.base_weights import BaseWeights, Decomposition
from adapter_geometry.chance import outputs_turned
from adapter_geometry.updates import Adapters, Factors

# Shuttleworth et al. 2024: intruders are those of the ten leading left vectors of W0 + dW that have
# no overlap of .5 or more with any of W0.
TOP, THRESHOLD = 10, 0.5


def change_of_spectrum(factors: Factors, decomposition: Decomposition) -> dict[str, int | float]:
    """What one module's update does to its base.

    - intruders: how many of the ten leading left singular vectors of W0 + dW have an overlap below
      .5 with every one of W0 (Shuttleworth et al. 2024).
    - spectral_shift: |sigma(W0 + dW) - sigma(W0)| / |sigma(W0)|, NaN for W0 = 0. The r + 10 leading
      values are exact; those behind them are taken to first order, sigma_i + u_i' dW v_i, in order
      of size.
    - shift_error: bound of the error of spectral_shift. A value behind the leading ones lies
      between sigma_(i+r) and sigma_(i-r) (interlacing) and within |dW|_2 of sigma_i (Weyl), and the
      whole shift between that of the leading values and |dW|_F (Mirsky).

    >>> W0 = torch.diag(0.5 ** torch.arange(20.0))
    >>> U, sigma, Vh = torch.linalg.svd(W0)
    >>> new = updates.Factors(torch.ones(20, 1), torch.eye(20)[:1], scale=1.0)  # no u_i is near
    >>> change_of_spectrum(new, (U, sigma, Vh.T))["intruders"]
    1
    """
    U, sigma, V = (part.double() for part in decomposition)
    B, A = factors.scale * factors.B.double(), factors.A.double()
    if factors.is_transposed:  # the base stores W0'
        U, V = V, U
    # (size, r) each: within the span of U and V the update is P Q'
    P, Q = U.T @ B, V.T @ A.T
    # (size + few, r) each: and in whole bases that begin with U and V it is left right'. W0 is
    # diagonal there, so that W0 + dW = diag(sigma) + left right', up to rotations.
    left, right = (
        torch.cat([inside, _outside(matrix, frame, inside)]).numpy()
        for matrix, frame, inside in ((B, U, P), (A.T, V, Q))
    )
    old, size, rank = sigma.numpy(), len(sigma), A.shape[0]

    # Ten leading vectors are asked for. An update of rank r can put r values of its own before
    # those of W0, so that r more are computed and the values behind are close to old ones.
    exact = TOP + rank
    if exact < size:
        vectors, leading = _leading(old, left, right, exact)
    else:  # all values are leading ones: as many as the matrix is wide
        matrix = left @ right.T
        matrix[np.arange(size), np.arange(size)] += old
        vectors, leading, _ = np.linalg.svd(matrix, full_matrices=False)
        vectors, leading, exact = vectors[:, :size], leading[:size], size

    # The values behind: (size - exact,), bounded from both sides.
    index = np.arange(exact, size)
    largest = float(torch.linalg.matrix_norm(torch.linalg.qr(B).R @ torch.linalg.qr(A.T).R.T, 2))
    # sigma_(i+r)(W0) <= sigma_i(W0 + dW) <= sigma_(i-r)(W0), for a dW of rank r; no value behind
    # the last one of W0 is known but that it is not negative
    interlaced_low = np.where(index + rank < size, old[np.minimum(index + rank, size - 1)], 0)
    interlaced_high = np.where(index >= rank, old[np.maximum(index - rank, 0)], np.inf)
    low = np.maximum(interlaced_low, old[exact:] - largest)
    # nor does any exceed the smallest of the leading ones
    high = np.minimum(interlaced_high, np.minimum(old[exact:] + largest, leading[-1]))
    # u_i' (W0 + dW) v_i for all i, of which the leading ones are dropped by size, since they may
    # have changed places
    first_order = old + (P * Q).sum(1).numpy()
    trailing = np.clip(np.sort(np.abs(first_order))[::-1][exact:], low, high)

    shift = np.linalg.norm(np.concatenate([leading, trailing]) - old)
    least = np.linalg.norm(leading - old[:exact])  # the leading values are part of the shift
    most = float(((B.T @ B) * (A @ A.T)).sum()) ** 0.5  # |dW|_F
    error = min(
        np.linalg.norm(np.maximum(high - trailing, trailing - low)),
        max(most - shift, shift - least, 0.0),
    )
    # The first `size` entries of a left vector are its products with u_1, u_2, ... of W0.
    overlaps = np.abs(vectors[:size, :TOP]).max(0)
    scale = np.linalg.norm(old) or np.nan
    return {
        "intruders": int((overlaps < THRESHOLD).sum()),
        "spectral_shift": float(shift / scale),
        "shift_error": float(error / scale),
    }


def _leading(
    sigma: Float64[np.ndarray, " size"],
    left: Float64[np.ndarray, "rows r"],
    right: Float64[np.ndarray, "columns r"],
    count: int,
) -> tuple[Float64[np.ndarray, "rows count"], Float64[np.ndarray, " count"]]:
    """(left vectors, values) of the `count` largest singular values, descending, of the (rows,
    columns) matrix diag(sigma) + left right', by products with vectors alone (Lanczos)."""
    rows, columns, size = len(left), len(right), len(sigma)

    def diagonal(x: Float64[np.ndarray, " _"], length: int) -> Float64[np.ndarray, " _"]:
        return np.concatenate([sigma * x[:size], np.zeros(length - size)])

    operator = LinearOperator(
        (rows, columns),
        dtype=float,
        matvec=lambda x: diagonal(x.ravel(), rows) + left @ (right.T @ x.ravel()),
        rmatvec=lambda y: diagonal(y.ravel(), columns) + right @ (left.T @ y.ravel()),
    )
    vectors, values, _ = svds(operator, count, return_singular_vectors="u", random_state=0)
    return vectors[:, ::-1], values[::-1]  # scipy's are ascending


def _outside(
    matrix: Float64[Tensor, "d r"],
    frame: Float64[Tensor, "d size"],
    inside: Float64[Tensor, "size r"],
) -> Float64[Tensor, "few r"]:
    """The part of a thin matrix that leaves the span of a frame, as few rows, in an orthonormal
    basis of what it spans; no rows where the frame is a whole basis."""
    if frame.shape[0] == frame.shape[1]:
        return matrix.new_zeros(0, matrix.shape[1])
    rows: Tensor = torch.linalg.qr(matrix - frame @ inside).R
    return rows


def intruders_table(adapters: Adapters, base: BaseWeights) -> pd.DataFrame:
    """The `intruders` table of updates with equal modules: one row per run and module.

    Columns: run, module (its full name), stack and layer (missing where the name has none),
    projection; count (intruder dimensions among the ten leading vectors), spectral_shift and
    shift_error of `change_of_spectrum`; count_by_chance and shift_by_chance, those of a copy with
    turned outputs (`chance.outputs_turned`).
    Raises AdapterError where an update does not fit the base, before anything is decomposed.
    """
    for update in adapters.values():
        base.check_shapes(update)
    adapters = {run: base.oriented(update) for run, update in adapters.items()}
    rows = []
    modules = list(next(iter(adapters.values())))
    places = dict(zip(modules, updates.places(modules), strict=True))
    for module in tqdm(modules, "intruders", unit="module", leave=False, disable=None):
        stack, layer, projection = places[module]
        decomposition = base.decomposition(module)
        for run, update in adapters.items():
            change = change_of_spectrum(update[module], decomposition)
            turned = outputs_turned({module: update[module]})[module]
            by_chance = change_of_spectrum(turned, decomposition)
            rows.append(
                {
                    "run": run,
                    "module": module,
                    "stack": stack,
                    "layer": layer,
                    "projection": projection,
                    "count": change["intruders"],
                    "spectral_shift": change["spectral_shift"],
                    "shift_error": change["shift_error"],
                    "count_by_chance": by_chance["intruders"],
                    "shift_by_chance": by_chance["spectral_shift"],
                }
            )
    table = pd.DataFrame(rows).astype({"stack": "str", "layer": "Int64"})
    order = ["run", "stack", "layer", "projection"]
    return table.sort_values(order, na_position="first", ignore_index=True)
