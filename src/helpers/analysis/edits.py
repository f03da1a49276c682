"""Edits of updates: updates that no run trained, built from those that some did.

After `training`, which made the updates, and before `interventions`, which measures how the base
behaves with an edited one. Each function takes updates, {module: Factors}, and returns one: the
update at another length, a part of it, some of its layers, with other singular vectors, a random
one like it, or a merge of several. Nothing is stored, and no update is formed densely.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor

from adapter_geometry import updates
from adapter_geometry.adapters import export_adapter
from adapter_geometry.chance import matched_null
from adapter_geometry.language_models import CausalModel
from adapter_geometry.updates import Factors, Update

# --- length and parts -----------------------------------------------------------------------------


def scaled(update: Update, t: int | float) -> Update:
    """t dW."""
    return updates.combine([update], [t])


def at_norm(update: Update, other: Update) -> Update:
    """The update stretched or shrunk to the Frobenius norm of another, all modules stacked."""
    return scaled(update, updates.norm(other) / updates.norm(update))


def along(update: Update, reference: Update) -> Update:
    """c R, the part of an update along a reference.

    One coefficient c = <dW, R> / <R, R> for all modules together.
    """
    return scaled(reference, _coefficient(update, reference))


def without(update: Update, reference: Update) -> Update:
    """dW - c R, what is left when the part `along` the reference is taken away.

    It is orthogonal to R as a whole, not in each module.
    """
    return updates.combine([update, reference], [1.0, -_coefficient(update, reference)])


def _coefficient(update: Update, reference: Update) -> float:
    """c = <dW, R> / <R, R>, all modules stacked."""
    return (
        sum(updates.inner(update[module], reference[module]) for module in update)
        / updates.norm(reference) ** 2
    )


def of_layers(update: Update, half: Literal["early", "late"]) -> Update:
    """The update in one half of the layers, zero in the other.

    The middle one of an odd number of layers is late.
    """
    ordered = sorted(update, key=updates.order_key)
    layers = list(dict.fromkeys(updates.layer_and_projection(module)[0] for module in ordered))
    count = len(layers) // 2
    chosen = layers[:count] if half == "early" else layers[count:]
    return {
        module: Factors(
            factors.B,
            factors.A,
            factors.scale * (updates.layer_and_projection(module)[0] in chosen),
            factors.is_transposed,
        )
        for module, factors in update.items()
    }


# --- singular vectors -----------------------------------------------------------------------------


def swapped(left: Update, right: Update, lengths: Update) -> Update:
    """sum_i sigma_i u_i v_i' in each module, each part of another update.

    u_i are the left singular vectors of one update, v_i the right ones of another, sigma_i the
    singular values of a third (`lengths`). The i-th vectors are paired by the order of the singular
    values. A pair (u_i, v_i) is defined up to a common sign only, and so the signs of the two
    updates' pairs are first made to agree: <u_i, u_i'> + <v_i, v_i'> >= 0. There are as many as the
    smallest of the ranks.
    """
    sources = (left, right, lengths)
    rank = min(factors.A.shape[0] for update in sources for factors in update.values())
    # B = U sqrt(sigma), (d_out, rank), and A = sqrt(sigma) V', (rank, d_in), of every module: the
    # singular value decomposition, its values shared evenly by the two factors.
    left, right, lengths = (updates.compress(update, rank)[0] for update in sources)
    swap = {}
    for module, factors in left.items():
        U, V = _singular_vectors(factors)
        U_other, V_other = _singular_vectors(right[module])
        # (rank,): whether the i-th pairs of both updates point the same way. Without this, u_i of
        # one might be multiplied by -v_i of the other even where the two updates are equal.
        agreement = (U * U_other).sum(0) + (V * V_other).sum(1)
        sign = torch.where(agreement < 0, -1.0, 1.0)
        # (rank,): a column of B has length sqrt(sigma_i), so its square is sigma_i.
        sigma = lengths[module].B.square().sum(0)
        swap[module] = Factors(U * sigma * sign, V_other, 1.0, factors.is_transposed)
    return swap


def _singular_vectors(factors: Factors) -> tuple[Tensor, Tensor]:
    """(U, V'), (d_out, rank) and (rank, d_in), of factors that `updates.compress` made.

    Their columns and rows are the singular vectors, with the singular values divided out here.
    """
    return (
        torch.nn.functional.normalize(factors.B, dim=0),
        torch.nn.functional.normalize(factors.A, dim=1),
    )


def rotated(update: Update, side: Literal["left", "right"], seed: int = 0) -> Update:
    """The update with its "left" (output) or "right" (input) singular vectors rotated at random.

    Each module has a Haar rotation of its own; the other side and all singular values are as they
    were.
    """
    generator = torch.Generator().manual_seed(seed)
    rotation = {}
    for module, factors in update.items():
        d = factors.B.shape[0] if side == "left" else factors.A.shape[1]
        # (d, d). QR of a Gaussian matrix gives an orthogonal Q whose distribution depends on how
        # the routine chooses signs; with the diagonal of R positive it is Haar's (Mezzadri 2007).
        Q, R = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
        Q = Q * R.diagonal().sign()
        # Q dW rotates the columns of dW, and so its left vectors; dW Q its rows, the right ones.
        B, A = (
            (Q @ factors.B.double(), factors.A)
            if side == "left"
            else (factors.B, factors.A.double() @ Q)
        )
        rotation[module] = Factors(B, A, factors.scale, factors.is_transposed)
    return rotation


def random_like(update: Update, seed: int = 0) -> Update:
    """A draw of `chance.matched_null`, stretched to the update's norm module by module.

    It keeps A and, up to that stretching, the singular values of B.
    """
    drawn = matched_null({"drawn": update}, seed)["drawn"]
    return {
        module: at_norm({module: factors}, {module: update[module]})[module]
        for module, factors in drawn.items()
    }


# --- merges ---------------------------------------------------------------------------------------


def mean_of(*parts: Update) -> Update:
    """(dW_1 + ... + dW_n) / n, exactly."""
    return scaled(sum_of(*parts), 1 / len(parts))


def sum_of(*parts: Update) -> Update:
    """dW_1 + ... + dW_n, exactly."""
    return updates.combine(parts, [1.0] * len(parts))


def merged_by_peft(
    *parts: Update,
    base: CausalModel,
    combination: str,
    weight: int | float = 1.0,
    density: float | None = None,
    seed: int = 0,
) -> Update:
    """What PEFT's `add_weighted_adapter` makes of adapters, each with the same weight.

    base: the model that they are put on, which is not fit for other use afterwards. combination:
    its `combination_type`. Those that end in `_svd` work on the products dW and are given as many
    ranks as the smallest side of any module has, so that nothing is cut off at the end; the others
    work on the factors B and A separately.
    """
    names = [f"part-{number}" for number in range(len(parts))]
    rank = min(min(factors.B.shape[0], factors.A.shape[1]) for factors in parts[0].values())
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        for name, part in zip(names, parts, strict=True):
            export_adapter(part, Path(folder) / name)
        model: Any = PeftModel.from_pretrained(base, Path(folder) / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(Path(folder) / name, adapter_name=name)
        torch.manual_seed(seed)
        model.add_weighted_adapter(
            names, [weight] * len(parts), "merged", combination, svd_rank=rank, density=density
        )
    layers = {module: model.base_model.model.get_submodule(module) for module in parts[0]}
    return {
        module: Factors(
            layer.lora_B["merged"].weight.detach().cpu(),
            layer.lora_A["merged"].weight.detach().cpu(),
            layer.scaling["merged"],
            parts[0][module].is_transposed,
        )
        for module, layer in layers.items()
    }
