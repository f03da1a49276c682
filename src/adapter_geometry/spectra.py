"""What an update does to the spectrum of the base's weights: intruder dimensions and spectral
shift, without a dense SVD of W0 + dW.

Comes after `updates` and `adapters`, beside `geometry`; the report and the page on one's own
adapters use it. Reads a base model's folder and writes nothing but the decompositions of its
weights, into the cache folder that it is given or the user's.

In the singular frame of W0 = U S V', stored once it is computed, W0 + dW is a diagonal matrix plus
one of rank r, so that its leading singular vectors cost a few products with thin matrices, and
their overlaps with those of W0 are their entries.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import platformdirs
import torch
from jaxtyping import Float, Float64, Num
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from adapter_geometry import storage, updates
from adapter_geometry.adapters import AdapterError
from adapter_geometry.updates import Adapters, Factors, Update

# Shuttleworth et al. 2024: intruders are those of the ten leading left vectors of W0 + dW that have
# no overlap of .5 or more with any of W0.
TOP, THRESHOLD = 10, 0.5

# (U, sigma, V) of a weight matrix W0 = U diag(sigma) V' (rows, columns), size = min(rows, columns)
Decomposition = tuple[
    Float[Tensor, "rows size"], Float[Tensor, " size"], Float[Tensor, "columns size"]
]
_Content = TypeVar("_Content")


class BaseWeights:
    """The weight matrices of a base model's folder, read one by one from its safetensors files;
    AdapterError (a ValueError) where they cannot be."""

    def __init__(self, folder: str | Path, cache: str | Path | None = None) -> None:
        """cache: folder in which decompositions are stored; the user's cache folder by default.

        Raises FileNotFoundError where the folder holds no safetensors file.
        """
        self.folder = Path(folder)
        self.cache = Path(cache or platformdirs.user_cache_path("adapter-geometry"))
        # {name of a tensor: file that holds it}; from an index the file may be anything JSON holds
        self.files: dict[str, Any]
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            try:
                self.files = dict(json.loads(index.read_text())["weight_map"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise AdapterError(
                    f"{index} cannot be read ({type(error).__name__}): download the model again"
                ) from error
        elif (self.folder / "model.safetensors").exists():
            names = self._read("model.safetensors", lambda stored: list(stored.keys()))
            self.files = dict.fromkeys(names, "model.safetensors")
        else:
            raise FileNotFoundError(
                f"no base model in {self.folder}: model.safetensors is missing; "
                "name a folder that `save_pretrained` wrote"
            )

    def weight(self, module: str) -> Num[Tensor, "rows columns"]:
        """W0 of a module as stored; AdapterError if the model has no such module or its weights are
        not finite."""
        name = f"{module}.weight"
        weight: Tensor = self._read(self._file(module), lambda stored: stored.get_tensor(name))
        if not torch.isfinite(weight.float()).all():
            raise AdapterError(
                f"{self.folder / self._file(module)} holds NaN or infinity in {module}: "
                "download the model again"
            )
        return weight

    def check_shapes(self, update: Update) -> None:
        """Raise AdapterError naming the first module of an update that the model lacks or holds in
        another shape; reads no weights."""
        for module, factors in update.items():
            shape, wanted = self._shape(module), [factors.B.shape[0], factors.A.shape[1]]
            if shape != (wanted[::-1] if factors.is_transposed else wanted):
                raise AdapterError(
                    f"{module} is {' x '.join(map(str, shape))} in the base model in {self.folder},"
                    f" but the update is {wanted[0]} x {wanted[1]}: the adapters belong to another "
                    "model, or this one is quantised"
                )

    def norms(self, modules: Iterable[str]) -> dict[str, float]:
        """{module: Frobenius norm of W0}, with one matrix in memory at a time."""
        return {module: float(self.weight(module).double().norm()) for module in modules}

    def decomposition(self, module: str) -> Decomposition:
        """(U, sigma, V) of W0 in float32, thin; stored in the cache by a hash of the weights."""
        weight = self.weight(module).float()
        content = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
        path = self.cache / f"{storage.digest([list(weight.shape), content])}.safetensors"
        if not path.exists():
            U, sigma, Vh = torch.linalg.svd(weight, full_matrices=False)
            parts = {"U": U.contiguous(), "sigma": sigma, "V": Vh.T.contiguous()}
            with storage.whole(path) as temporary:
                save_file(parts, temporary)
        stored = load_file(path)
        return stored["U"], stored["sigma"], stored["V"]

    def _shape(self, module: str) -> list[int]:
        name = f"{module}.weight"
        return self._read(
            self._file(module), lambda stored: list(stored.get_slice(name).get_shape())
        )

    def _file(self, module: str) -> Any:
        if f"{module}.weight" not in self.files:
            raise AdapterError(
                f"the base model in {self.folder} has no module {module}: "
                "the adapters belong to another model"
            )
        return self.files[f"{module}.weight"]

    def _read(self, file: Any, read: Callable[[Any], _Content]) -> _Content:
        """What `read` takes out of an opened safetensors file of the folder."""
        path = self.folder / str(file)
        if Path(str(file)).name != file:
            raise AdapterError(
                f"model.safetensors.index.json in {self.folder} names {file!r}, "
                "which leads out of the folder"
            )
        try:
            with safe_open(path, "pt") as stored:
                return read(stored)
        except (OSError, SafetensorError) as error:
            raise AdapterError(
                f"{path} cannot be read ({error}): it is truncated or not a safetensors file; "
                "download it again"
            ) from error


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

    Columns: run, module (its full name), layer (missing where the name has none), projection; count
    (intruder dimensions among the ten leading vectors), spectral_shift and shift_error of
    `change_of_spectrum`.
    Raises AdapterError where an update does not fit the base, before anything is decomposed.
    """
    for update in adapters.values():
        base.check_shapes(update)
    rows = []
    for module in next(iter(adapters.values())):
        layer, projection = updates.layer_and_projection(module)
        decomposition = base.decomposition(module)
        for run, update in adapters.items():
            change = change_of_spectrum(update[module], decomposition)
            rows.append(
                {
                    "run": run,
                    "module": module,
                    "layer": layer,
                    "projection": projection,
                    "count": change["intruders"],
                    "spectral_shift": change["spectral_shift"],
                    "shift_error": change["shift_error"],
                }
            )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    order = ["run", "layer", "projection"]
    return table.sort_values(order, na_position="first", ignore_index=True)
