"""What an update does to the spectrum of the base's weights: intruder dimensions and spectral shift, without a dense SVD of W0 + dW.

Comes after `geometry`. In the singular frame of W0 = U S V', kept once it is computed, W0 + dW is a diagonal matrix plus one of rank
r, so that its leading singular vectors cost a few products with thin matrices, and their overlaps with those of W0 are their entries.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy.sparse.linalg import LinearOperator, svds

from adapter_geometry import storage, updates
from adapter_geometry.adapters import AdapterError

TOP, THRESHOLD = (
    10,
    0.5,
)  # Shuttleworth et al. 2024: of the ten leading left vectors, those with no overlap of .5 or more


class BaseWeights:
    """The weight matrices of a base model's folder, read one by one from its safetensors files; AdapterError (a ValueError) where they cannot be."""

    def __init__(self, folder, cache=None):
        """cache: folder in which decompositions are kept; the user's cache folder by default."""
        self.folder = Path(folder)
        self.cache = Path(cache or platformdirs.user_cache_path("adapter-geometry"))
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            try:
                self.files = dict(json.loads(index.read_text())["weight_map"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise AdapterError(
                    f"{index} cannot be read ({type(error).__name__}): download the model again"
                ) from error
        elif (self.folder / "model.safetensors").exists():
            self.files = dict.fromkeys(
                self._read("model.safetensors", lambda stored: list(stored.keys())),
                "model.safetensors",
            )
        else:
            raise FileNotFoundError(
                f"no base model in {self.folder}: model.safetensors is missing; name a folder that `save_pretrained` wrote"
            )

    def weight(self, module):
        """W0 of a module as stored; AdapterError if the model has no such module or its weights are not finite."""
        weight = self._read(
            self._file(module), lambda stored: stored.get_tensor(f"{module}.weight")
        )
        if not torch.isfinite(weight.float()).all():
            raise AdapterError(
                f"{self.folder / self._file(module)} holds NaN or infinity in {module}: download the model again"
            )
        return weight

    def require(self, update):
        """Raise AdapterError naming the first module of an update that the model lacks or holds in another shape; reads no weights."""
        for module, factors in update.items():
            shape, wanted = self._shape(module), [factors.B.shape[0], factors.A.shape[1]]
            if shape != (wanted[::-1] if factors.is_transposed else wanted):
                raise AdapterError(
                    f"{module} is {' x '.join(map(str, shape))} in the base model in {self.folder}, but the update is {wanted[0]} x "
                    f"{wanted[1]}: the adapters belong to another model, or this one is quantised"
                )

    def norms(self, modules):
        """{module: Frobenius norm of W0}, with one matrix in memory at a time."""
        return {module: float(self.weight(module).double().norm()) for module in modules}

    def _shape(self, module):
        return self._read(
            self._file(module),
            lambda stored: list(stored.get_slice(f"{module}.weight").get_shape()),
        )

    def _file(self, module):
        if f"{module}.weight" not in self.files:
            raise AdapterError(
                f"the base model in {self.folder} has no module {module}: the adapters belong to another model"
            )
        return self.files[f"{module}.weight"]

    def _read(self, file, read):
        path = self.folder / str(file)
        if Path(str(file)).name != file:
            raise AdapterError(
                f"model.safetensors.index.json in {self.folder} names {file!r}, which leads out of the folder"
            )
        try:
            with safe_open(path, "pt") as stored:
                return read(stored)
        except (OSError, SafetensorError) as error:
            raise AdapterError(
                f"{path} cannot be read ({error}): it is truncated or not a safetensors file; download it again"
            ) from error

    def decomposition(self, module):
        """(U, sigma, V) of W0 in float32, thin; kept in the cache by a hash of the weights."""
        weight = self.weight(module).float()
        mark = storage.digest(
            [list(weight.shape), hashlib.sha256(weight.numpy().tobytes()).hexdigest()]
        )
        path = self.cache / f"{mark}.safetensors"
        if not path.exists():
            U, sigma, Vh = torch.linalg.svd(weight, full_matrices=False)
            with storage.whole(path) as beside:
                save_file({"U": U.contiguous(), "sigma": sigma, "V": Vh.T.contiguous()}, beside)
        kept = load_file(path)
        return kept["U"], kept["sigma"], kept["V"]


def change_of_spectrum(factors, decomposition):
    """What one module's update does to its base, as a dict.

    - intruders: how many of the ten leading left singular vectors of W0 + dW have an overlap below .5 with every one of W0.
    - spectral_shift: |sigma(W0 + dW) - sigma(W0)| / |sigma(W0)|, NaN for W0 = 0. The r + 10 leading values are exact; those behind them are taken to
      first order, sigma_i + u_i' dW v_i, in order of size.
    - shift_error: bound of the error of spectral_shift. A value behind the leading ones lies between sigma_(i+r) and sigma_(i-r)
      (interlacing) and within |dW|_2 of sigma_i (Weyl), and the whole shift between that of the leading values and |dW|_F (Mirsky).

    >>> W0 = torch.diag(0.5 ** torch.arange(20.0))
    >>> U, sigma, Vh = torch.linalg.svd(W0)
    >>> new = updates.Factors(torch.ones(20, 1), torch.eye(20)[:1], scale=1.0)  # a direction that no u_i of W0 is near
    >>> change_of_spectrum(new, (U, sigma, Vh.T))["intruders"]
    1
    """
    U, sigma, V = (part.double() for part in decomposition)
    B, A = factors.scale * factors.B.double(), factors.A.double()
    if factors.is_transposed:
        U, V = V, U
    P, Q = U.T @ B, V.T @ A.T  # the update in the singular frame of W0 is P Q'
    left, right = (
        torch.cat([inside, _outside(matrix, frame, inside)]).numpy()
        for matrix, frame, inside in ((B, U, P), (A.T, V, Q))
    )
    old, size, rank = sigma.numpy(), len(sigma), A.shape[0]

    def stretched(x, length):
        return np.concatenate([old * x[:size], np.zeros(length - size)])

    exact = TOP + rank
    if exact < size:
        operator = LinearOperator(
            (len(left), len(right)),
            dtype=float,
            matvec=lambda x: stretched(x.ravel(), len(left)) + left @ (right.T @ x.ravel()),
            rmatvec=lambda y: stretched(y.ravel(), len(right)) + right @ (left.T @ y.ravel()),
        )
        vectors, leading, _ = svds(operator, exact, return_singular_vectors="u", random_state=0)
        vectors, leading = vectors[:, ::-1], leading[::-1]
    else:  # all values are leading ones
        whole = left @ right.T
        whole[np.arange(size), np.arange(size)] += old
        vectors, leading, _ = np.linalg.svd(whole, full_matrices=False)
        vectors, leading, exact = vectors[:, :size], leading[:size], size

    places = np.arange(exact, size)
    moved = old + (P * Q).sum(1).numpy()
    largest = float(torch.linalg.matrix_norm(torch.linalg.qr(B).R @ torch.linalg.qr(A.T).R.T, 2))
    low = np.maximum(
        np.where(places + rank < size, old[np.minimum(places + rank, size - 1)], 0),
        old[exact:] - largest,
    )
    high = np.minimum(
        np.where(places >= rank, old[np.maximum(places - rank, 0)], np.inf),
        np.minimum(old[exact:] + largest, leading[-1]),
    )
    trailing = np.clip(np.sort(np.abs(moved))[::-1][exact:], low, high)
    shift, least = (
        np.linalg.norm(np.concatenate([leading, trailing]) - old),
        np.linalg.norm(leading - old[:exact]),
    )
    most = float(((B.T @ B) * (A @ A.T)).sum()) ** 0.5
    error = min(
        np.linalg.norm(np.maximum(high - trailing, trailing - low)),
        max(most - shift, shift - least, 0.0),
    )
    scale = np.linalg.norm(old) or np.nan
    return {
        "intruders": int((np.abs(vectors[:size, :TOP]).max(0) < THRESHOLD).sum()),
        "spectral_shift": float(shift / scale),
        "shift_error": float(error / scale),
    }


def _outside(matrix, frame, inside):
    """The part of a thin matrix that leaves the span of a frame, as few rows; none where the frame is a whole basis."""
    return (
        torch.linalg.qr(matrix - frame @ inside).R
        if frame.shape[0] > frame.shape[1]
        else matrix.new_zeros(0, matrix.shape[1])
    )


def intruders_table(adapters, base):
    """The `intruders` table: one row a run and module; columns count (intruder dimensions among the top ten), spectral_shift, shift_error."""
    rows = []
    for update in adapters.values():
        base.require(update)
    for module in next(iter(adapters.values())):
        layer, projection = updates.layer_and_projection(module)
        decomposition = base.decomposition(module)
        for run, update in adapters.items():
            found = change_of_spectrum(update[module], decomposition)
            rows.append(
                {
                    "run": run,
                    "layer": layer,
                    "projection": projection,
                    "count": found["intruders"],
                    "spectral_shift": found["spectral_shift"],
                    "shift_error": found["shift_error"],
                }
            )
    return pd.DataFrame(rows).sort_values(["run", "layer", "projection"], ignore_index=True)
