"""Orthonormal frames of thin matrices, all runs and several modules at a time, and the angles
between the subspaces that they span.

Comes before `geometry`, which writes every update in the frames of its factors, and `chance`, which
draws random ones. Works in memory alone, in float64, on the GPU where there is one.
"""

import copy

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

# Largest condition number of a factor whose Gram matrix, which squares it, is still good to ten
# digits.
_CONDITION = 1e2
_ROWS = 2048  # of the matrices of all runs that are in float64 at a time
SMALL = 1e-3  # radians; below it arccos has lost half its digits


class Frames:
    """Orthonormal frames of each run's thin matrices (d, r) on a few modules: matrix = L T R, where
    L T is orthonormal.

    L is either the matrix itself, with T R = 1 from the Cholesky factor of its Gram matrix, or,
    where the condition number that this squares is too large, the orthonormal factor of
    Householder's QR, with T = 1. `widest` is the largest rank of the runs; T, R and `blocks` are
    padded with zeros beyond a run's own. The matrices are not copied: of long ones a slab of rows
    is in float64 at a time.
    """

    d: int
    rows: int  # d, or the largest rank where that is larger
    # first column of each run in a Gram matrix, and the end of the last
    starts: Int[np.ndarray, " runs_and_one"]
    has_vectors: bool  # not where `by_chance` drew `blocks` alone
    T: Float64[Tensor, "module run widest widest"]
    R: Float64[Tensor, "module run widest widest"]
    blocks: Float64[Tensor, "module run run widest widest"]  # L_i' L_j of every two runs

    def __init__(self, matrices: list[list[Float[Tensor, "d _"]]]) -> None:
        """matrices: by run, then by module; one d for all, and one rank for each run."""
        modules, widths = len(matrices[0]), [parts[0].shape[1] for parts in matrices]
        widest, total = max(widths), sum(widths)
        self.d, self.has_vectors = matrices[0][0].shape[0], True
        self.rows, self.starts = max(self.d, widest), np.cumsum([0, *widths])
        self._matrices = matrices
        self._orthonormal: dict[tuple[int, int], Float64[Tensor, "d _"]] = {}  # (module, run): Q
        device = torch.device("cuda") if torch.cuda.is_available() else matrices[0][0].device
        gram = torch.empty(modules, total, total, dtype=torch.float64, device=device)
        for module in range(modules):
            gram[module] = self._gram(module, device)
        self.T = gram.new_zeros(modules, len(widths), widest, widest)
        self.R = self.T.clone()
        for run, width in enumerate(widths):
            columns = slice(self.starts[run], self.starts[run + 1])
            eye = torch.eye(width, dtype=torch.float64, device=device).expand(modules, -1, -1)
            # X'X = R'R with upper triangular R, so that X R^-1 is orthonormal: Q of X = Q R at the
            # price of a product. Where X'X is not positive definite, R is replaced below.
            lower, failed = torch.linalg.cholesky_ex(gram[:, columns, columns])
            R = lower.mT.where((failed == 0)[:, None, None], eye)
            T = torch.linalg.solve_triangular(R, eye, upper=True)
            # |R|_F |R^-1|_F, which is at least the condition number and at most r times it; "not <"
            # and not ">=", since it may be NaN
            condition = torch.linalg.matrix_norm(R) * torch.linalg.matrix_norm(T)  # (module,)
            is_poor = (failed != 0) | ~(condition < _CONDITION * width)
            for module in torch.nonzero(is_poor).flatten().tolist():
                # Householder's QR is stable for any condition number; L is then Q itself
                Q, of_poor = torch.linalg.qr(self._L(module, run, device))
                self._orthonormal[module, run] = Q
                R[module], T[module] = of_poor, eye[module]
            self.T[:, run, :width, :width], self.R[:, run, :width, :width] = T, R
        for module in {module for module, _ in self._orthonormal}:
            # L is no longer the matrix that the Gram matrix was taken of
            gram[module] = self._gram(module, device)
        self.blocks = self._split(gram)

    def by_chance(self, rng: np.random.Generator) -> "Frames":
        """Frames of O Sigma W for each run: O a random orthonormal frame of R^d, Sigma the matrix's
        singular values, W a Haar-random rotation.

        All that the frames O of the runs have to do with each other is the Gram matrix of the
        standard normal (d, total) matrix whose orthonormal factors they are.
        """
        drawn, device = copy.copy(self), self.R.device
        modules = len(self.R)
        total = int(self.starts[-1])
        # Below d = total the Gram matrix is singular and has no Bartlett factor: the vectors
        # themselves are drawn. Elsewhere their length does not matter.
        gaussian = (
            rng.standard_normal((modules, self.rows, total))
            if self.d < total
            else bartlett(rng, modules, total, self.d)
        )
        drawn.has_vectors = False
        drawn.blocks = self._split(torch.as_tensor(gaussian.mT @ gaussian, device=device))
        drawn.T, drawn.R = torch.zeros_like(self.T), torch.zeros_like(self.R)
        sigma = torch.linalg.svdvals(self.R)  # (module, run, widest): the matrices' own
        for run, width in enumerate(np.diff(self.starts)):
            # the Gaussian's orthonormal factor is L T with T the inverse of its Cholesky factor
            upper = torch.linalg.cholesky(drawn.blocks[:, run, run, :width, :width]).mT
            drawn.T[:, run, :width, :width] = torch.linalg.inv(upper)
            # QR of a Gaussian matrix with the signs of R's diagonal moved into Q is Haar-random
            Q, R = np.linalg.qr(rng.standard_normal((modules, width, width)))
            rotation = Q * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None]
            scaled = sigma[:, run, :width, None] * torch.as_tensor(rotation, device=device)
            drawn.R[:, run, :width, :width] = scaled
        return drawn

    def shared(
        self, i: Int[Tensor, " pair"], j: Int[Tensor, " pair"], modules: slice = slice(None)
    ) -> Float64[Tensor, "module pair widest widest"]:
        """Overlaps (L_i T_i)' (L_j T_j) of the frames of the pairs of runs (i, j), on all modules
        or some."""
        T = self.T[modules]
        return T[:, i].mT @ self.blocks[modules][:, i, j] @ T[:, j]

    def vectors(
        self,
        module: int,
        run: int | Int[Tensor, ""],
        coordinates: Float64[Tensor, "widest count"],
    ) -> Float64[Tensor, "rows count"]:
        """Orthonormal vectors of R^d, given in the frame of a run, good to the last digit.

        Not for frames drawn `by_chance`, which have no vectors.
        """
        assert self.has_vectors, "frames drawn by chance have no vectors"
        L = self._L(module, int(run), self.T.device)
        # coordinates beyond the run's own rank are zero
        Q: Tensor = torch.linalg.qr(L @ (self.T[module, run] @ coordinates)[: L.shape[1]]).Q
        return Q

    def _L(
        self, module: int, run: int, device: torch.device, rows: slice = slice(None)
    ) -> Float64[Tensor, "rows r"]:
        """Rows of L of a run in a module: of Q, or of the matrix."""
        L = self._orthonormal.get((module, run))
        if L is None:
            L = self._matrices[run][module]
            if self.rows > self.d:  # rows of zeros change no product
                L = torch.nn.functional.pad(L, (0, 0, 0, self.rows - self.d))
        return L[rows].to(device, torch.float64)

    def _gram(self, module: int, device: torch.device) -> Float64[Tensor, "total total"]:
        """L'L of all runs side by side: one product for all pairs, summed over slabs of rows, whose
        size depends on nothing, so that no product does."""
        runs = range(len(self._matrices))
        slabs = (
            torch.cat(
                [self._L(module, run, device, slice(begin, begin + _ROWS)) for run in runs], 1
            )
            for begin in range(0, self.rows, _ROWS)
        )
        gram = _squared(next(slabs))
        for slab in slabs:
            gram += _squared(slab)
        return gram

    def _split(
        self, gram: Float64[Tensor, "module total total"]
    ) -> Float64[Tensor, "module run run widest widest"]:
        """Gram matrices of all runs side by side as a block for every two runs, padded with zeros,
        so that all pairs are one batch whatever their ranks."""
        widths, widest = np.diff(self.starts), self.T.shape[-1]
        if (widths == widest).all():
            n = len(widths)
            return gram.reshape(-1, n, widest, n, widest).transpose(2, 3).contiguous()
        blocks = gram.new_zeros(len(gram), len(widths), len(widths), widest, widest)
        for i, j in np.ndindex(len(widths), len(widths)):
            block = gram[:, slice(*self.starts[i : i + 2]), slice(*self.starts[j : j + 2])]
            blocks[:, i, j, : widths[i], : widths[j]] = block
        return blocks


def _squared(slab: Float64[Tensor, "rows total"]) -> Float64[Tensor, "total total"]:
    """X'X; numpy's own product uses that it is symmetric and takes half the time."""
    if slab.is_cuda:
        return slab.T @ slab
    X = slab.numpy()
    return torch.from_numpy(X.T @ X)


def angles_of(U: Float[Tensor, "d _"], V: Float[Tensor, "d _"]) -> Float[Tensor, " smaller"]:
    """Principal angles in radians, ascending, of the column spaces of orthonormal U and V: the
    large ones by their cosines, the small ones by their sines (Bjorck & Golub 1973)."""
    if U.shape[1] < V.shape[1]:
        U, V = V, U
    cosines: Tensor = torch.linalg.svdvals(U.T @ V).clamp(max=1)  # descending: angles ascend
    # V less its projection on U has the sines, which descend too and are reversed
    sines = torch.linalg.svdvals(V - U @ (U.T @ V)).clamp(max=1).flip(0)
    return torch.where(cosines**2 > 0.5, torch.arcsin(sines), torch.arccos(cosines))


def bartlett(
    rng: np.random.Generator, draws: int, k: int, freedom: int
) -> Float64[np.ndarray, "draws k k"]:
    """Upper triangular factors whose Gram matrices are Wishart with `freedom` degrees of freedom,
    those of a standard normal (freedom, k) matrix (Bartlett 1933); freedom >= k."""
    upper = np.triu(rng.standard_normal((draws, k, k)), 1)
    # on the diagonal the length of what each column has outside the span of those before it
    squares = rng.chisquare(freedom - np.arange(k), size=(draws, k))
    upper[:, np.arange(k), np.arange(k)] = np.sqrt(squares)
    return upper
