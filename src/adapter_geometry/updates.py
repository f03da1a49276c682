"""A LoRA update as factors, dW = scale B A for each module: inner products, exact sums,
compression, and putting it into a model.

After `storage`, before all other modules: `adapters` reads updates from files, everything else
computes with them. dW itself is never formed. Factors keep the dtype in which they are stored,
since a file's bfloat16 numbers are exact in any wider type. Products, norms and decompositions are
computed in float64; `combine` multiplies its weights into B in the dtype that B has. Nothing is
read or written here; `put` changes the weights of the model it is given.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """One module's update, dW = scale B A, with B and A as stored.

    `is_transposed`: the base stores this module's weight as (d_in, d_out), as GPT-2's Conv1D does
    (PEFT's `fan_in_fan_out`).
    """

    B: Float[Tensor, "d_out rank"]
    A: Float[Tensor, "rank d_in"]
    scale: float
    is_transposed: bool = False


Update = dict[str, Factors]  # {name of the module in the base model: its factors}
Adapters = Mapping[str, Update]  # {name of the adapter or run: its update}
Weights = dict[str, Float[Tensor, "_ _"]]  # {module: W0 as the model stores it}


def layer_and_projection(module: str) -> tuple[int | None, str]:
    """(layer, projection) of a module's name; the layer is None where the name has none.

    >>> layer_and_projection("model.layers.3.self_attn.q_proj")
    (3, 'q_proj')
    """
    layer = re.search(r"\.(\d+)\.", module)
    return int(layer.group(1)) if layer else None, module.rsplit(".", 1)[-1]


def order_key(module: str) -> tuple[str, int, str]:
    """Sorts modules by stack, layer and projection; those without a layer come first."""
    stack, layer, _ = _stack_layer_and_kind(module)
    return stack or "", -1 if layer is None else layer, module.rsplit(".", 1)[-1]


def places(modules: Sequence[str]) -> list[tuple[str | None, int | None, str]]:
    """(stack, layer, projection) of each of the modules, as the tables name them.

    The stack is what the name has before the layer's number; stack and layer are None where it has
    no layer. The projection is the shortest end of what follows, without numbers of experts and
    sublayers, that tells the kinds of these modules apart: `q_proj`, and `attention.output.dense`
    beside `output.dense`. Experts, and equal blocks within a layer, share one.

    >>> places(["encoder.layers.0.self_attn.q_proj", "decoder.layers.0.self_attn.q_proj"])
    [('encoder.layers', 0, 'q_proj'), ('decoder.layers', 0, 'q_proj')]
    >>> places(["h.2.attn.c_proj", "h.2.mlp.c_proj", "lm_head"])
    [('h', 2, 'attn.c_proj'), ('h', 2, 'mlp.c_proj'), (None, None, 'lm_head')]
    """
    split = [_stack_layer_and_kind(module) for module in modules]
    ends = Counter(
        kind[start:] for kind in {kind for _, _, kind in split} for start in range(len(kind))
    )

    def shortest(kind: tuple[str, ...]) -> str:
        for start in reversed(range(len(kind))):
            # a number alone, the place in a Sequential, names nothing
            if ends[kind[start:]] == 1 and not kind[start].isdigit():
                return ".".join(kind[start:])
        return ".".join(kind)

    return [(stack, layer, shortest(kind)) for stack, layer, kind in split]


def _stack_layer_and_kind(module: str) -> tuple[str | None, int | None, tuple[str, ...]]:
    """The parts of a module's name before, at and after the layer's number, the last without inner
    numbers."""
    numbered = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", module)
    if numbered is None:
        return None, None, tuple(module.split("."))
    stack, layer, rest = numbered.groups()
    *inner, last = rest.split(".")
    return stack, int(layer), (*(part for part in inner if not part.isdigit()), last)


# --- arithmetic -----------------------------------------------------------------------------------


def inner(first: Factors, second: Factors) -> float:
    """<dW1, dW2>_F = s1 s2 tr((B2' B1)(A1 A2')) of two modules' factors, in float64."""
    (B1, A1), (B2, A2) = ((factors.B.double(), factors.A.double()) for factors in (first, second))
    return first.scale * second.scale * float(((B2.T @ B1) * (A1 @ A2.T).T).sum())


def norm(update: Update) -> float:
    """Frobenius norm of an update, all modules stacked."""
    return float(sum(inner(factors, factors) for factors in update.values()) ** 0.5)


def combine(updates: Sequence[Update], weights: Sequence[int | float]) -> Update:
    """The weighted sum of updates with equal modules, exact but for the rounding of B, as factors
    [w1 s1 B1, w2 s2 B2, ...] [A1; A2; ...] of rank r1 + r2 + ...

    PEFT's `combination_type="linear"` adds A's and B's separately, which is another matrix.
    Raises ValueError naming a module that one of them lacks (`adapters.common_modules` restricts
    updates to what all have).

    >>> update = {"q_proj": Factors(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]), 2.0)}
    >>> norm(update), norm(combine([update, update], [0.5, -0.5]))
    (10.0, 0.0)
    """
    for number, update in enumerate(updates):
        if different := updates[0].keys() ^ update.keys():
            raise ValueError(
                f"updates 0 and {number} have different modules, for example "
                f"{sorted(different)[0]}: a sum needs equal ones"
            )
    total = {}
    for module, first in updates[0].items():
        parts = [
            (weight * update[module].scale, update[module])
            for update, weight in zip(updates, weights, strict=True)
        ]
        B = torch.cat([factor * part.B for factor, part in parts], 1)
        A = torch.cat([part.A for _, part in parts])
        total[module] = Factors(B, A, 1.0, first.is_transposed)
    return total


def compress(update: Update, rank: int) -> tuple[Update, float]:
    """(update, lost): the best approximation of at most this rank, module by module (Eckart & Young
    1936), and the share of the squared norm that it loses.

    By QR of both factors and the SVD of the small core, in float64; the singular values are shared
    evenly by B and A.
    """
    compressed, lost, total = {}, 0.0, 0.0
    for module, factors in update.items():
        # B = Q R and A' = P L, so that dW = Q (scale R L') P' has the core's singular values
        (Q, R), (P, L) = torch.linalg.qr(factors.B.double()), torch.linalg.qr(factors.A.double().T)
        U, sigma, Vh = torch.linalg.svd(factors.scale * R @ L.T)
        roots = sigma[:rank].sqrt()
        B, A = Q @ U[:, :rank] * roots, (roots[:, None] * Vh[:rank]) @ P.T
        compressed[module] = Factors(B, A, 1.0, factors.is_transposed)
        # the sum over what is dropped keeps the digits that 1 - kept / total would lose
        lost, total = lost + float((sigma[rank:] ** 2).sum()), total + float((sigma**2).sum())
    return compressed, lost / total if total else 0.0


# --- models ---------------------------------------------------------------------------------------


def weights_of(model: torch.nn.Module, modules: Iterable[str]) -> Weights:
    """{module: a copy of its weight matrix, as the model stores it} of a model."""
    return {module: model.get_parameter(f"{module}.weight").detach().clone() for module in modules}


@torch.no_grad()
def put(model: torch.nn.Module, weights: Weights, update: Update) -> None:
    """Write W0 + dW into the model's modules, W0 from `weights_of`; dW itself is never formed."""
    for module, factors in update.items():
        target = model.get_parameter(f"{module}.weight")
        B, A = factors.B.to(target), factors.A.to(target)
        left, right = (A.T, B.T) if factors.is_transposed else (B, A)
        torch.addmm(weights[module], left, right, alpha=factors.scale, out=target.data)


def norms_of(weights: Weights) -> dict[str, float]:
    """{module: Frobenius norm} of weight matrices."""
    return {module: float(weight.double().norm()) for module, weight in weights.items()}
