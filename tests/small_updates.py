"""Small updates with known answers, for the tests of geometry and of chance."""

import numpy as np
import torch

from adapter_geometry.updates import Factors

Q_PROJ = "model.layers.0.self_attn.q_proj"


def orthonormal(rng, d, k):
    """A random orthonormal frame (d, k)."""
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def factors_of(B, A, scale=1.0):
    return Factors(torch.as_tensor(np.array(B)), torch.as_tensor(np.array(A)), float(scale))


def planted(U, sigma, V, scale=1.0):
    """Factors of U diag(sigma) V'."""
    return factors_of(U * np.asarray(sigma, float) / scale, V.T, scale)


def dense(factors):
    """dW of one module."""
    return factors.scale * factors.B.double().numpy() @ factors.A.double().numpy()


def stacked(update, modules):
    """The dense dW of several modules as one vector."""
    return np.concatenate([dense(update[module]).ravel() for module in modules])


def three_runs():
    """Three runs on 3 layers x 2 projections of different shapes and sizes."""
    rng = np.random.default_rng(3)
    shapes = {"q_proj": (12, 8), "o_proj": (8, 12)}

    def drawn(d_out, d_in, r, layer):
        B = rng.standard_normal((d_out, r))
        return factors_of(B, (1 + layer) * rng.standard_normal((r, d_in)), 0.5)

    return {
        run: {
            f"model.layers.{layer}.self_attn.{projection}": drawn(d_out, d_in, r, layer)
            for layer in range(3)
            for projection, (d_out, d_in) in shapes.items()
        }
        for run, r in (("a", 3), ("b", 4), ("c", 3))
    }
