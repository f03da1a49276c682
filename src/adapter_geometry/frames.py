"""TODO docstring."""

import copy

import numpy as np
import torch

_CONDITION = 1e2  # largest condition number of a factor whose Gram matrix, which squares it, is still good to ten digits
SMALL = 1e-3  # radians; below it arccos has lost half its digits


class Frames:
    """Orthonormal frames of each run's thin matrices (d, r) on a few modules: matrix = L T R, where L T is orthonormal.

    L is a slice of `joined`, either the matrix itself, with T R = 1 from the Cholesky factor of its Gram matrix, or, where the condition
    number that would square is too large, the orthonormal factor of Householder's QR, with T = 1. T and R are padded with zeros.
    """

    def __init__(self, matrices):
        m, widths, self.d = (
            len(matrices[0]),
            [parts[0].shape[1] for parts in matrices],
            matrices[0][0].shape[0],
        )
        device, widest = "cuda" if torch.cuda.is_available() else matrices[0][0].device, max(widths)
        self.starts = np.cumsum([0, *widths])
        self.joined = torch.empty(
            m, max(self.d, widest), self.starts[-1], dtype=torch.float64, device=device
        )
        self.joined[:, self.d :] = 0  # a rank above d: rows of zeros change no product
        self.T, self.R = torch.zeros(
            2, m, len(widths), widest, widest, dtype=torch.float64, device=device
        )
        poor = torch.zeros(m, dtype=torch.bool, device=device)
        for run, parts in enumerate(matrices):
            for place, part in enumerate(parts):
                self.joined[place, : self.d, self.slice(run)] = part
        gram = _gram(self.joined)
        for run, width in enumerate(widths):
            inside, eye = (
                self.slice(run),
                torch.eye(width, dtype=torch.float64, device=device).expand(m, -1, -1),
            )
            lower, failed = torch.linalg.cholesky_ex(gram[:, inside, inside])
            R = lower.mT.where((failed == 0)[:, None, None], eye)
            T = torch.linalg.solve_triangular(R, eye, upper=True)
            bad = (failed != 0) | ~(
                torch.linalg.matrix_norm(R) * torch.linalg.matrix_norm(T) < _CONDITION * width
            )
            if bad.any():
                Q, R_bad = torch.linalg.qr(self.joined[bad][:, :, inside])
                self.joined[bad, :, inside], R, T = (
                    Q,
                    R.index_put((bad,), R_bad),
                    T.index_put((bad,), eye[bad]),
                )
            self.T[:, run, :width, :width], self.R[:, run, :width, :width] = T, R
            poor |= bad
        if poor.any():
            gram[poor] = _gram(self.joined[poor])
        self.blocks = self._split(gram)

    def by_chance(self, rng):
        """Frames of O Sigma W for each run: O a random orthonormal frame of R^d, Sigma the matrix's singular values, W a Haar rotation."""
        drawn, device, m = copy.copy(self), self.R.device, len(self.R)
        total = int(self.starts[-1])
        gaussian = (
            rng.standard_normal((m, self.joined.shape[1], total))
            if self.d < total
            else bartlett(rng, m, total, self.d)
        )
        drawn.joined, drawn.blocks = (
            None,
            self._split(torch.as_tensor(gaussian.mT @ gaussian, device=device)),
        )
        drawn.T, drawn.R = torch.zeros_like(self.T), torch.zeros_like(self.R)
        sigma = torch.linalg.svdvals(self.R)
        for run, width in enumerate(np.diff(self.starts)):
            upper = torch.linalg.cholesky(drawn.blocks[:, run, run, :width, :width]).mT
            drawn.T[:, run, :width, :width] = torch.linalg.inv(upper)
            Q, R = np.linalg.qr(rng.standard_normal((m, width, width)))
            rotation = torch.as_tensor(
                Q * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None], device=device
            )
            drawn.R[:, run, :width, :width] = sigma[:, run, :width, None] * rotation
        return drawn

    def _split(self, gram):
        """(module, run, run, r, r) from Gram matrices (module, sum of r, sum of r), padded with zeros."""
        widths, widest = np.diff(self.starts), self.T.shape[-1]
        blocks = gram.new_zeros(len(gram), len(widths), len(widths), widest, widest)
        for i, j in np.ndindex(len(widths), len(widths)):
            blocks[:, i, j, : widths[i], : widths[j]] = gram[:, self.slice(i), self.slice(j)]
        return blocks

    def slice(self, run):
        return slice(self.starts[run], self.starts[run + 1])

    def shared(self, i, j):
        """Overlaps (module, pair, r, r) of the frames of the pairs of runs (i, j)."""
        return self.T[:, i].mT @ self.blocks[:, i, j] @ self.T[:, j]

    def vectors(self, place, run, coordinates):
        """Orthonormal (d, count): vectors given in the frame of a run, good to the last digit."""
        L = self.joined[place, :, self.slice(run)]
        return torch.linalg.qr(L @ (self.T[place, run] @ coordinates)[: L.shape[1]]).Q


def _gram(joined):
    """X'X of each module; numpy's own product uses that it is symmetric and takes half the time."""
    if joined.is_cuda:
        return joined.mT @ joined
    return torch.from_numpy(np.stack([matrix.T @ matrix for matrix in joined.numpy()]))


def angles_of(U, V):
    """Principal angles, ascending, of the column spaces of orthonormal U and V, the small ones by their sines (Bjorck & Golub 1973)."""
    if U.shape[1] < V.shape[1]:
        U, V = V, U
    cosines = torch.linalg.svdvals(U.T @ V).clamp(max=1)
    sines = torch.linalg.svdvals(V - U @ (U.T @ V)).clamp(max=1).flip(0)
    return torch.where(cosines**2 > 0.5, torch.arcsin(sines), torch.arccos(cosines))


def bartlett(rng, draws, k, freedom):
    """Upper triangular (draws, k, k) whose Gram matrices are Wishart with this many degrees of freedom."""
    found = np.triu(rng.standard_normal((draws, k, k)), 1)
    found[:, np.arange(k), np.arange(k)] = np.sqrt(
        rng.chisquare(freedom - np.arange(k), size=(draws, k))
    )
    return found
