"""Gradients at step 0: what each rollout asks of the adapter before any training.

And which updates would follow from it: their geometry, and AdamW fed with these gradients.

After `training` and before `gradient_sums`, which adds the gradients up over the rollouts of a
study. Nothing is stored here.

At the start B = 0, so the gradient of a module's adapter is s G A' with respect to B, G the
gradient of the dense weight, and 0 with respect to A. Every loss of the main study has, at step 0,
token weights of the form c_i + e_i p_t for completion i (`affine_weights`), so that two gradients
per rollout are enough for all of them: of sum_t logp_t and of sum_t p_t.

A *vector* is a gradient with respect to all B stacked, of D entries, in ascent direction; times s
and A it is a direction of the update (`as_update`). A *start* is the adapter that training starts
from, {module: Factors} with B = 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int, Num
from scipy.stats import t as student
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from adapter_geometry.language_models import CausalModel
from adapter_geometry.updates import Factors, Update
from helpers.models import loading
from helpers.profiles import Profile, Run
from helpers.training import objectives
from helpers.training.batches import collate

_BATCH = 32  # rollouts per forward pass
_ALMOST_NEVER = 1e-30  # a probability that stands for 0, whose logarithm is finite

Signals = dict[str, Float[Tensor, "rows tokens _"]]  # by module
Estimate = Float[np.ndarray, "..."] | np.floating


# --- from a rollout to its gradient ---------------------------------------------------------------


def initial(profile: Profile, run: Run) -> tuple[CausalModel, Update]:
    """(model, start): the run's base without an adapter, and what its training starts from."""
    adapted = loading.attach_adapter(
        loading.load_model(profile, run.base), profile.lora, run.init_seed
    )
    start = {
        module: Factors(
            layer.lora_B["default"].weight.detach(),
            layer.lora_A["default"].weight.detach(),
            layer.scaling["default"],
        )
        for module, layer in adapted.get_base_model().named_modules()
        if hasattr(layer, "lora_A")
    }
    return adapted.unload(), start


def signals(
    model: CausalModel,
    modules: Sequence[str],
    input_ids: Int[Tensor, "rows tokens"],
    completion_mask: Num[Tensor, "rows tokens"],
    weights: Sequence[Float[Tensor, "rows tokens-1"]],
) -> tuple[Signals, list[Signals]]:
    """What the gradients of sum_t w_t logp_t are made of: (inputs, output_gradients).

    inputs: {module: (rows, tokens, d_in)}, the module's input h_t at each token.
    output_gradients: for each of the `weights`, {module: (rows, tokens, d_out)}, the gradient
    delta_t with respect to the module's output. The gradient of the module's weight is
    sum_t delta_t h_t', row by row.
    """
    inputs: Signals = {}
    outputs: Signals = {}

    def record_signals(module: str) -> RemovableHandle:
        def record(_: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[module], outputs[module] = arguments[0].detach(), output

        layer: torch.nn.Module = model.get_submodule(module)
        return layer.register_forward_hook(record)

    hooks = [record_signals(module) for module in modules]
    # The base's weights need no gradients. The embedded tokens do, so that autograd keeps a graph
    # from the modules' outputs to the log-probabilities.
    embedded = model.get_input_embeddings()(input_ids).requires_grad_(True)
    # (rows, tokens - 1, hidden): a token's state predicts the next token, and the last one none.
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    for hook in hooks:
        hook.remove()
    # (rows, tokens - 1): where the predicted token belongs to the completion. Only there are logits
    # made, which are the largest tensors of the pass; the completions' tokens become one axis.
    is_predicted = completion_mask[:, 1:].bool()
    logp = torch.log_softmax(model.lm_head(hidden[is_predicted]), -1).gather(
        -1, input_ids[:, 1:][is_predicted][:, None]
    )[:, 0]
    # One backward pass per weights through one graph. A row's loss depends on its own tokens alone,
    # so the gradient of the sum over rows holds the gradient of each row.
    module_outputs = [outputs[module] for module in modules]
    output_gradients = [
        torch.autograd.grad((weight[is_predicted] * logp).sum(), module_outputs, retain_graph=True)
        for weight in weights
    ]
    return inputs, [dict(zip(modules, deltas, strict=True)) for deltas in output_gradients]


def row_gradients(
    model: CausalModel,
    start: Update,
    input_ids: Int[Tensor, "rows tokens"],
    completion_mask: Num[Tensor, "rows tokens"],
    weights: Sequence[Float[Tensor, "rows tokens-1"]],
) -> Float[Tensor, "weights rows D"]:
    """Gradient of sum_t w_t logp_t of each row with respect to all B stacked, at B = 0.

    By module s sum_t delta_t (A h_t)', which is s G A'. With A = 1 and s = 1 it is G, the gradient
    of the dense weight (`dense_start`).
    """
    inputs, output_gradients = signals(model, list(start), input_ids, completion_mask, weights)
    # s A h_t, (rows, tokens, r): A first, since r is small and the dense G is never needed.
    projected = {
        module: inputs[module] @ factors.A.T * factors.scale for module, factors in start.items()
    }
    # (rows, d_out, tokens) @ (rows, tokens, r) sums over the tokens of each row; (rows, d_out r) of
    # all modules side by side are the rows of D entries.
    return torch.stack(
        [
            torch.cat([(delta[module].mT @ projected[module]).flatten(1) for module in start], 1)
            for delta in output_gradients
        ]
    )


def affine_weights(
    name: str, rows: objectives.Rows, **options: float | str
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """(c, e) of each row: the token weights of an objective at step 0 are c_i + e_i p_t.

    At step 0 the policy is equal to the base. The weights come from the loss itself
    (`objectives.token_weights`) at the probabilities 0 and 1. The normalisation, by tokens or
    pairs, is in them. Raises ValueError for an objective whose weights have another form.
    """

    def weights_at(logp: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
        return objectives.token_weights(name, logp, replace(rows, reference=logp), **options)

    def row_mean(weights: Float[Tensor, "rows tokens"]) -> Float[Tensor, " rows"]:
        return (weights * rows.mask).sum(1) / rows.mask.sum(1)

    # c at p = 0 and c + e at p = 1; the weights of a row are equal there, so their mean is each.
    at_zero = row_mean(weights_at(math.log(_ALMOST_NEVER) * rows.mask))
    at_one = row_mean(weights_at(0 * rows.mask))
    slope = at_one - at_zero
    affine = (at_zero[:, None] + slope[:, None] * rows.reference.exp()) * rows.mask
    exact = weights_at(rows.reference)
    if not torch.allclose(exact, affine, rtol=1e-3, atol=1e-4 * float(exact.abs().max())):
        raise ValueError(
            f"the token weights of {name!r} at step 0 are not c + e p_t: use `row_gradients` with "
            "`objectives.token_weights` instead"
        )
    return at_zero, slope


def weighted_sums(
    model: CausalModel,
    start: Update,
    table: pd.DataFrame,
    coefficients: Float[np.ndarray, "sums powers rows"],
    powers: Sequence[int] = (0, 1),
    name: str = "",
) -> Float[Tensor, "sums D"]:
    """Sums of gradients over rows i and powers q, with coefficients[k, q, i], in float32.

    The gradient is that of sum_t p_t^q logp_t, p_t the base's probability, a constant. table:
    rollouts with group columns (`rollouts.with_group_columns`), a row each. name: of the progress
    bar.
    """
    # Rollouts of similar length together, so that little is computed for padding.
    order = np.argsort((table.prompt_ids.map(len) + table.tokens).to_numpy(), kind="stable")
    row_coefficients = torch.tensor(coefficients, dtype=torch.float32)
    total = torch.zeros(
        len(coefficients),
        sum(factors.B.shape[0] * factors.A.shape[0] for factors in start.values()),
    )
    for first in tqdm(range(0, len(order), _BATCH), desc=f"gradients {name}", unit="batch"):
        numbers = order[first : first + _BATCH]
        batch = collate(table, numbers.tolist())
        weights = [(batch["rows"].reference * power).exp() * batch["rows"].mask for power in powers]
        gradients = row_gradients(
            model,
            start,
            batch["input_ids"].to(model.device),
            batch["completion_mask"].to(model.device),
            [weight.to(model.device) for weight in weights],
        )
        # (sums, powers rows) @ (powers rows, D): the batch's gradients are added to the sums and
        # forgotten, so that memory does not grow with the table.
        total += row_coefficients[:, :, numbers].flatten(1) @ gradients.flatten(0, 1).cpu()
    return total


def dense_start(start: Update) -> Update:
    """The start of an adapter with A = 1 and s = 1, whose B is the whole update."""
    return {
        module: Factors(
            torch.zeros(factors.B.shape[0], factors.A.shape[1]),
            torch.eye(factors.A.shape[1]).to(factors.A),
            1.0,
        )
        for module, factors in start.items()
    }


def project(
    dense: Mapping[str, Float[Tensor, " dense"]], start: Update
) -> dict[str, Float[Tensor, " D"]]:
    """s G A' of dense vectors by name: the vectors that the adapter `start` sees.

    dense: gradients G of all modules stacked, as `row_gradients` gives them for a `dense_start`.
    """
    projected = {}
    for name, vector in dense.items():
        whole = as_update(dense_start(start), vector)
        projected[name] = torch.cat(
            [
                factors.scale * (whole[module].B @ factors.A.T).flatten()
                for module, factors in start.items()
            ]
        )
    return projected


# --- geometry of vectors --------------------------------------------------------------------------


def as_update(start: Update, vector: Float[Tensor, " D"]) -> Update:
    """The direction s B A that a vector makes of the initial A."""
    update, offset = {}, 0
    for module, factors in start.items():
        shape = factors.B.shape
        update[module] = replace(factors, B=vector[offset : offset + shape.numel()].reshape(shape))
        offset += shape.numel()
    return update


def inner_products(
    start: Update, vectors: Float[Tensor, "*axes D"]
) -> Float64[np.ndarray, "vectors vectors"]:
    """<s B_k A, s B_l A>_F of all pairs of vectors, modules added up.

    All axes but the last count the vectors. With A' = Q R, B A = (B R') Q', so that the inner
    products are those of the rows s B R'.
    """
    vectors = vectors.flatten(0, -2).double()
    gram, offset = torch.zeros(len(vectors), len(vectors), dtype=torch.float64), 0
    for factors in start.values():
        size = factors.B.shape.numel()
        # (r, r) in place of A's (r, d_in): Q' has orthonormal rows and drops out.
        R = torch.linalg.qr(factors.A.double().T).R
        # (vectors, d_out r) -> (vectors, d_out, r), times R', and flat again: s B_k R' of a module.
        B = vectors[:, offset : offset + size].reshape(len(vectors), *factors.B.shape)
        rows = factors.scale * (B @ R.T).flatten(1)
        gram, offset = gram + rows @ rows.T, offset + size
    return gram.numpy()


def cosines(gram: Float[np.ndarray, "*axes K K"]) -> Float[np.ndarray, "*axes K K"]:
    """Cosines from inner products.

    NaN where a squared norm that was estimated without its noise came out negative.
    """
    squares = np.einsum("...kk->...k", gram)
    norms = np.sqrt(np.where(squares > 0, squares, np.nan))
    cosines_: Float[np.ndarray, "*axes K K"]
    cosines_ = gram / (norms[..., :, None] * norms[..., None, :])
    return cosines_


def orthonormal(start: Update, vectors: Float[Tensor, "K D"]) -> Float64[Tensor, "K D"]:
    """Vectors that span the same directions and are orthonormal as updates.

    The first is along the first (Gram-Schmidt, by the Cholesky factor of the inner products).
    """
    lower = torch.linalg.cholesky(torch.from_numpy(inner_products(start, vectors)))
    frame: Float64[Tensor, "K D"]
    frame = torch.linalg.solve_triangular(lower, vectors.double(), upper=False)
    return frame


def jackknife(
    gram: Float[np.ndarray, "K blocks K blocks"],
    statistic: Callable[[Float[np.ndarray, "K K"]], Any],
    between: bool = False,
) -> tuple[Estimate, Estimate, Estimate]:
    """(value, low, high) of a statistic of inner products between sums over blocks.

    The 95 % interval is the jackknife's, which leaves out one block at a time, with Student's t
    (Efron and Tibshirani 1993, chapter 11). gram: inner products of K vectors in each block.
    statistic: maps the inner products (K, K) of the K sums over blocks to a number or an array.
    between: only products of different blocks count, scaled to all of them, so that the sampling
    noise of a sum adds nothing to its own norm.
    """
    blocks = gram.shape[1]

    def of_blocks(numbers: Int[np.ndarray, " numbers"]) -> Float[np.ndarray, "..."]:
        part = gram[:, numbers][:, :, :, numbers]
        # (K, K): <sum_b v_kb, sum_c v_lc> is the sum of all products of blocks.
        of_sums = part.sum((1, 3))
        if between:
            # Less the n products of a block with itself, which hold its noise; n (n - 1) of n^2
            # products are left, and scaled up to n^2.
            within = np.einsum("kblb->kl", part)
            of_sums = (of_sums - within) * len(numbers) / (len(numbers) - 1)
        return np.asarray(statistic(of_sums))

    value = of_blocks(np.arange(blocks))
    left_out = np.stack([of_blocks(np.delete(np.arange(blocks), block)) for block in range(blocks)])
    # The jackknife's variance is (n - 1) / n times the sum of squares: values that share all blocks
    # but two are that much closer together than independent ones.
    half_width = student.ppf(0.975, blocks - 1) * np.sqrt(
        (blocks - 1) / blocks * ((left_out - left_out.mean(0)) ** 2).sum(0)
    )
    return value, value - half_width, value + half_width


def sign_flips(gram: Float[np.ndarray, "blocks blocks"]) -> tuple[float, float]:
    """(ratio, p) of the sum of some blocks, from their inner products.

    ratio: squared norm of the sum over the sum of the blocks' squared norms, 1 on average if the
    blocks have mean 0. p: how often the blocks reach it with their signs flipped in all possible
    ways.
    """
    blocks = len(gram)
    # (2^(blocks - 1), blocks): the bits of a number are the signs, + for 0. The last block keeps
    # its sign, since flipping all of them changes nothing; number 0 is the blocks as they are.
    signs = 1 - 2 * (np.arange(2 ** (blocks - 1))[:, None] >> np.arange(blocks) & 1)
    ratios = np.einsum("nb,bc,nc->n", signs, gram, signs) / np.trace(gram)
    return float(ratios[0]), float((ratios >= ratios[0] - 1e-12).mean())


# --- AdamW ----------------------------------------------------------------------------------------


def replay(run: Run, vectors: Float[Tensor, "steps D"]) -> Float[Tensor, "steps D"]:
    """B stacked after each of the run's first steps, if gradients stayed as they are at the start.

    vectors: minus the gradient of each batch. PyTorch's AdamW with the run's clipping and schedule,
    as in training; its first step has the rate 0. A stays as it is: its gradient is 0 while that of
    B is taken at B = 0.
    """
    # One parameter for all modules: AdamW works entry by entry, and the norm that is clipped is
    # that of all modules together, as in training.
    B = torch.nn.Parameter(torch.zeros_like(vectors[0]))
    optimizer = torch.optim.AdamW([B], lr=run.learning_rate, weight_decay=run.weight_decay)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, math.ceil(run.warmup * run.steps), run.steps
    )
    after_steps = []
    for vector in vectors:
        B.grad = -vector  # the optimiser descends; a vector is in ascent direction
        torch.nn.utils.clip_grad_norm_([B], run.clip)
        optimizer.step()
        schedule.step()
        after_steps.append(B.detach().clone())
    return torch.stack(after_steps)
