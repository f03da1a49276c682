"""A LoRA update as factors: dW = scale B A for each module. Read from any PEFT folder, combined exactly, compressed, put into a model, written again.

Comes after `training`, before `geometry`. An update is a dict {module: Factors}; it is never formed densely. Factors keep the dtype in
which they are stored, since a file's bfloat16 numbers are exact in any wider type; what is computed from them is computed in float64.
"""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Factors:
    """One module's update, dW = scale B A, with B (d_out, r) and A (r, d_in), as stored.

    `is_transposed`: the base keeps this module's weight as (d_in, d_out), as GPT-2's Conv1D does (PEFT's `fan_in_fan_out`).
    """

    B: torch.Tensor
    A: torch.Tensor
    scale: float
    is_transposed: bool = False


def layer_and_projection(module):
    """(layer, projection) of a module's name; layer -1 if it has none.

    >>> layer_and_projection("model.layers.3.self_attn.q_proj")
    (3, 'q_proj')
    """
    layer = re.search(r"\.(\d+)\.", module)
    return int(layer.group(1)) if layer else -1, module.rsplit(".", 1)[-1]


# --- arithmetic ----------------------------------------------------------------------------------------------------


def inner(first, second):
    """<dW1, dW2>_F = s1 s2 tr((B2' B1)(A1 A2')) of two modules' `Factors`, in float64."""
    (B1, A1), (B2, A2) = ((factors.B.double(), factors.A.double()) for factors in (first, second))
    return first.scale * second.scale * float(((B2.T @ B1) * (A1 @ A2.T).T).sum())


def norm(update):
    """Frobenius norm of an update, all modules stacked."""
    return sum(inner(factors, factors) for factors in update.values()) ** 0.5


def combine(updates, weights):
    """The exact weighted sum of updates with equal modules, as factors: [w1 s1 B1, w2 s2 B2, ...] [A1; A2; ...], rank r1 + r2 + ...

    PEFT's `combination_type="linear"` adds A's and B's separately, which is another matrix. Raises ValueError naming a module that
    one of them lacks (`common` restricts updates to what all have).

    >>> update = {"q_proj": Factors(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]), 2.0)}
    >>> norm(update), norm(combine([update, update], [0.5, -0.5]))
    (10.0, 0.0)
    """
    for number, update in enumerate(updates):
        if different := updates[0].keys() ^ update.keys():
            raise ValueError(
                f"updates 0 and {number} have different modules, for example {sorted(different)[0]}: a sum needs equal ones"
            )
    found = {}
    for module in updates[0]:
        parts = [
            (weight * update[module].scale, update[module])
            for update, weight in zip(updates, weights, strict=True)
        ]
        B = torch.cat([factor * part.B for factor, part in parts], 1)
        found[module] = Factors(
            B, torch.cat([part.A for _, part in parts]), 1.0, updates[0][module].is_transposed
        )
    return found


def compress(update, rank):
    """(update, lost): the best approximation of at most this rank, module by module, and the share of the squared norm that it loses.

    By QR of both factors and the SVD of the small core, in float64; the singular values are shared evenly by B and A.
    """
    found, lost, total = {}, 0.0, 0.0
    for module, factors in update.items():
        (Q, R), (P, L) = torch.linalg.qr(factors.B.double()), torch.linalg.qr(factors.A.double().T)
        U, sigma, Vh = torch.linalg.svd(factors.scale * R @ L.T)
        roots = sigma[:rank].sqrt()
        found[module] = Factors(
            Q @ U[:, :rank] * roots, (roots[:, None] * Vh[:rank]) @ P.T, 1.0, factors.is_transposed
        )
        lost, total = lost + float((sigma[rank:] ** 2).sum()), total + float((sigma**2).sum())
    return found, lost / total if total else 0.0


# --- models and files ----------------------------------------------------------------------------------------------


def weights_of(model, modules):
    """{module: a copy of its weight matrix, as the model stores it} of a model."""
    return {module: model.get_submodule(module).weight.detach().clone() for module in modules}


@torch.no_grad()
def put(model, weights, update):
    """Write W0 + dW into the model's modules, W0 from `weights_of`; dW itself is never formed."""
    for module, factors in update.items():
        target = model.get_submodule(module).weight
        B, A = factors.B.to(target), factors.A.to(target)
        left, right = (A.T, B.T) if factors.is_transposed else (B, A)
        torch.addmm(weights[module], left, right, alpha=factors.scale, out=target.data)


def norms_of(weights):
    """{module: Frobenius norm} of weight matrices."""
    return {module: float(weight.double().norm()) for module, weight in weights.items()}
