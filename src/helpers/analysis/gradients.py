r"""Gradients at step 0: what each rollout asks of the adapter before any training, and which updates would follow from it.

Comes after `training`. At the start B = 0, so the gradient of a module's adapter is s G A' with respect to B, G the gradient of the dense weight,
and 0 with respect to A. Every loss of the main study has, at step 0, token weights of the form c_i + e_i p_t for completion i
(`affine_weights`), so that two gradients a rollout are enough for all of them: of sum_t logp_t and of sum_t p_t.

A *vector* is a gradient with respect to all B stacked, (D,), in ascent direction; times s and A it is a direction of the update (`as_update`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from adapter_geometry import storage
from adapter_geometry.updates import Factors
from helpers import store
from helpers.data import rollouts
from helpers.models import loading
from helpers.training import objectives
from helpers.training.batches import collate, row_order, rows_of, run_order

RECIPE = 1  # raised whenever the stored gradients change, as `training.RECIPE`
STEPS = 10  # first batches of each run whose gradients are kept one by one
BLOCKS = 10  # groups of prompts that the jackknife leaves out in turn
OTHERS = 80  # prompts of each kind without a mixed group in the sample
OWN = 120  # prompts of the sample of a model's own rollouts
DENSE = 40  # mixed prompts on which the whole gradient is compared with what the adapter sees
_BATCH = 32
_ALMOST_NEVER = 1e-30


# --- from a rollout to its gradient --------------------------------------------------------------------------------


def initial(profile, run):
    """(model, start): the run's base without adapter, and the adapter that training starts from, {module: Factors} with B = 0."""
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


def signals(model, modules, input_ids, completion_mask, weights):
    """What the gradients of sum_t w_t logp_t are made of: (inputs, backward).

    inputs: {module: (rows, tokens, d_in)}, h_t; backward: for each weights (rows, tokens - 1) a dict {module: (rows, tokens, d_out)}, delta_t, the
    gradient with respect to the module's output. The gradient of the module's weight is sum_t delta_t h_t', row by row.
    """
    inputs, outputs = {}, {}

    def listen(module):
        def keep(_, arguments, output):
            inputs[module], outputs[module] = arguments[0].detach(), output

        return model.get_submodule(module).register_forward_hook(keep)

    hooks = [listen(module) for module in modules]
    embedded = model.get_input_embeddings()(input_ids).requires_grad_(True)
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    for hook in hooks:
        hook.remove()
    inside = completion_mask[:, 1:].bool()
    logp = torch.log_softmax(model.lm_head(hidden[inside]), -1).gather(
        -1, input_ids[:, 1:][inside][:, None]
    )[:, 0]
    wanted = [outputs[module] for module in modules]
    backward = [
        torch.autograd.grad((weight[inside] * logp).sum(), wanted, retain_graph=True)
        for weight in weights
    ]
    return inputs, [dict(zip(modules, parts, strict=True)) for parts in backward]


def row_gradients(model, start, input_ids, completion_mask, weights):
    """Gradient of sum_t w_t logp_t of each row with respect to all B stacked, at B = 0: (weights, rows, D).

    By module s sum_t delta_t (A h_t)', which is s G A'. With A = 1 and s = 1 it is G, the gradient of the dense weight.
    """
    inputs, backward = signals(model, list(start), input_ids, completion_mask, weights)
    read = {
        module: inputs[module] @ factors.A.T * factors.scale for module, factors in start.items()
    }
    return torch.stack(
        [
            torch.cat([(delta[module].mT @ read[module]).flatten(1) for module in start], 1)
            for delta in backward
        ]
    )


def affine_weights(name, rows, **options):
    """(c, e), each (rows,): the token weights of an objective at step 0 are c_i + e_i p_t, with the policy still equal to the base.

    Found from the loss itself (`objectives.token_weights`) at probability 0 and 1. The normalisation, by tokens or pairs, is in them.
    Raises ValueError for an objective whose weights have another form.
    """

    def at(logp):
        return objectives.token_weights(name, logp, replace(rows, reference=logp), **options)

    def by_row(weights):
        return (weights * rows.mask).sum(1) / rows.mask.sum(1)

    never, always = by_row(at(math.log(_ALMOST_NEVER) * rows.mask)), by_row(at(0 * rows.mask))
    expected = (never[:, None] + (always - never)[:, None] * rows.reference.exp()) * rows.mask
    found = at(rows.reference)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(found.abs().max())):
        raise ValueError(
            f"the token weights of {name!r} at step 0 are not c + e p_t: use `row_gradients` with `objectives.token_weights` instead"
        )
    return never, always - never


def weighted_sums(model, start, table, coefficients, powers=(0, 1), name=""):
    """sum over rows i and powers q of coefficients[k, q, i] times the gradient of sum_t p_t^q logp_t: (sums, D), in float32.

    table: rows with group columns; coefficients: (sums, powers, rows). p_t is the base's own probability, a constant.
    """
    order = np.argsort((table.prompt_ids.map(len) + table.tokens).to_numpy(), kind="stable")
    coefficients = torch.tensor(coefficients, dtype=torch.float32)
    total = torch.zeros(
        len(coefficients),
        sum(factors.B.shape[0] * factors.A.shape[0] for factors in start.values()),
    )
    for first in tqdm(range(0, len(order), _BATCH), desc=f"gradients {name}", unit="batch"):
        chosen = order[first : first + _BATCH]
        batch = collate(table, chosen)
        weights = [(batch["rows"].reference * power).exp() * batch["rows"].mask for power in powers]
        found = row_gradients(
            model,
            start,
            batch["input_ids"].to(model.device),
            batch["completion_mask"].to(model.device),
            [weight.to(model.device) for weight in weights],
        )
        total += coefficients[:, :, chosen].flatten(1) @ found.flatten(0, 1).cpu()
    return total


# --- which rollouts ------------------------------------------------------------------------------------------------


def sample(table, seed, mixed, others):
    """Weights of a sample of whole prompts, in the order of training: (weight, block), each (rows of the table,); weight 0 is not in it.

    Of the prompts with right and wrong rollouts the first `mixed` are taken, and `others` of those with only right and of those with only
    wrong ones. A row weighs as many rows of its kind as it stands for. Blocks hold whole prompts and the same share of each kind.
    """
    everything = rollouts.select(table, "all")
    order = row_order(everything, list(table.problem_id.unique()), seed, len(table))
    rates = table.groupby("problem_id").reward.mean()
    kinds = np.sign(rates - 0.5).where((rates == 0) | (rates == 1), 0.0)
    weight, block = np.zeros(len(table)), np.zeros(len(table), int)
    for kind, size in ((0, mixed), (1, others), (-1, others)):
        prompts = [
            problem_id
            for problem_id in dict.fromkeys(table.problem_id.iloc[order])
            if kinds[problem_id] == kind
        ]
        for place, problem_id in enumerate(prompts[:size]):
            weight[everything[problem_id]] = len(prompts) / len(prompts[:size])
            block[everything[problem_id]] = place % BLOCKS
    return weight, block


def batches(table, run, steps):
    """Table rows of the run's first batches, as training takes them: a list of lists."""
    order = run_order(table, rows_of(table, run), run, steps)
    size = len(order) // steps
    return [order[first : first + size] for first in range(0, len(order), size)]


def _coefficients(table, run, numbers):
    """(powers, rows of the table): how the run's loss on the rows `numbers` combines the two gradients of each row."""
    found = np.zeros((2, len(table)))
    for power, weights in enumerate(
        affine_weights(run.objective, collate(table, numbers)["rows"], **run.options)
    ):
        np.add.at(found[power], numbers, weights.numpy())
    return found


# --- the sums that the page needs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Vectors at step 0. blocks: {name: (BLOCKS, D)}, "right" and "wrong" (summed scores) and each run's objective, block by block;
    batches: {run: (steps, D)}, minus the gradient of the loss on each of its first batches."""

    blocks: dict
    batches: dict

    def total(self, name):
        """A direction over the whole sample, (D,)."""
        return self.blocks[name].sum(0)


def measure(profile, runs):
    """`Sums` of the given main runs, which share base, table, order and initial adapter, from a sample of the table; stored."""
    first = next(iter(runs.values()))

    def compute():
        torch.set_num_threads(profile.evaluation.threads)
        table = rollouts.with_group_columns(rollouts.load_table(profile, first.writer))
        weight, block = sample(table, first.seed, STEPS * first.batch_size, OTHERS)
        right, none = (table.reward > 0).to_numpy(), np.zeros(len(table))
        wanted = {"right": np.stack([right * 1.0, none]), "wrong": np.stack([~right * 1.0, none])}
        replayed = {name: batches(table, run, min(STEPS, run.steps)) for name, run in runs.items()}
        for name, run in runs.items():
            wanted[name] = _coefficients(
                table,
                run,
                [number for numbers in rows_of(table, run).values() for number in numbers],
            )
        columns = {
            f"{name}/{place}": parts * weight * (block == place)
            for name, parts in wanted.items()
            for place in range(BLOCKS)
        }
        columns |= {
            f"{name}/step {step}": _coefficients(table, runs[name], numbers)
            for name, parts in replayed.items()
            for step, numbers in enumerate(parts, start=1)
        }
        coefficients = np.stack(list(columns.values()))
        used = np.flatnonzero(np.abs(coefficients).sum((0, 1)))
        found = weighted_sums(
            *initial(profile, first),
            table.iloc[used].reset_index(drop=True),
            coefficients[:, :, used],
        )
        return pd.DataFrame(dict(zip(columns, found.numpy(), strict=True)))

    frame = _stored(profile, "step-0", first, _specs(runs), compute)
    vectors = {name: torch.tensor(frame[name].to_numpy()) for name in frame}

    def gather(name, is_step):
        return torch.stack(
            [
                vector
                for column, vector in vectors.items()
                if column.startswith(f"{name}/") and ("step" in column) == is_step
            ]
        )

    return Sums(
        {name: gather(name, False) for name in ("right", "wrong", *runs)},
        {name: gather(name, True) for name in runs},
    )


def own_scores(profile, run):
    """{"right", "wrong"}: (BLOCKS, D), summed scores of rollouts that the base wrote itself, block by block, from whole prompts in the run's order; stored."""

    def compute():
        torch.set_num_threads(profile.evaluation.threads)
        table = rollouts.with_group_columns(rollouts.load_table(profile, "base"))
        order = row_order(
            rollouts.select(table, "all"), list(table.problem_id.unique()), run.seed, len(table)
        )
        chosen = table.iloc[order[: OWN * profile.rollouts.samples]].reset_index(drop=True)
        block = chosen.index.to_numpy() // profile.rollouts.samples % BLOCKS
        columns = {
            f"{name}/{place}": ((chosen.reward > 0).to_numpy() == is_right) & (block == place)
            for name, is_right in (("right", True), ("wrong", False))
            for place in range(BLOCKS)
        }
        found = weighted_sums(
            *initial(profile, run),
            chosen,
            np.stack(list(columns.values()))[:, None] * 1.0,
            powers=(0,),
            name="own",
        )
        return pd.DataFrame(dict(zip(columns, found.numpy(), strict=True)))

    frame = _stored(profile, "own", run.model_copy(update={"writer": "base"}), {}, compute)
    return {
        name: torch.tensor(frame[[f"{name}/{place}" for place in range(BLOCKS)]].to_numpy().T)
        for name in ("right", "wrong")
    }


def dense_sums(profile, runs):
    """{name: (D,)}: "right", "wrong" and each run's objective with respect to the whole weights, D all their entries, on the first mixed prompts; stored."""
    first = next(iter(runs.values()))

    def compute():
        torch.set_num_threads(profile.evaluation.threads)
        table = rollouts.with_group_columns(rollouts.load_table(profile, first.writer))
        weight, _ = sample(table, first.seed, DENSE, 0)
        chosen = table[weight > 0].reset_index(drop=True)
        right = (chosen.reward > 0).to_numpy()
        columns = {
            name: np.stack([of * 1.0, 0.0 * of])
            for name, of in (("right", right), ("wrong", ~right))
        }
        for name, run in runs.items():
            columns[name] = _coefficients(
                chosen,
                run,
                [number for numbers in rows_of(chosen, run).values() for number in numbers],
            )
        model, start = initial(profile, first)
        found = weighted_sums(
            model,
            dense_start(start),
            chosen,
            np.stack(list(columns.values())),
            name="of whole weights",
        )
        return pd.DataFrame(dict(zip(columns, found.numpy(), strict=True)))

    frame = _stored(profile, "dense", first, _specs(runs), compute)
    return {name: torch.tensor(frame[name].to_numpy()) for name in frame}


def dense_start(start):
    """The start of an adapter with A = 1 and s = 1, whose B is the whole update."""
    return {
        module: Factors(
            torch.zeros(factors.B.shape[0], factors.A.shape[1]),
            torch.eye(factors.A.shape[1]).to(factors.A),
            1.0,
        )
        for module, factors in start.items()
    }


def project(dense, start):
    """s G A' by module of dense vectors {name: (D,)}: the vectors that the adapter `start` sees."""
    found = {}
    for name, vector in dense.items():
        parts = as_update(dense_start(start), vector)
        found[name] = torch.cat(
            [
                factors.scale * (parts[module].B @ factors.A.T).flatten()
                for module, factors in start.items()
            ]
        )
    return found


def _specs(runs):
    """What of the runs determines their gradients."""
    return {
        name: run.model_dump(exclude={"name", "snapshots", "threads"}) for name, run in runs.items()
    }


def _stored(profile, name, run, settings, compute):
    identity = storage.digest(
        {
            "base": loading.model_digest(profile.name, run.base),
            "table": store.file_digest(rollouts.table_path(profile, run.writer)),
            "lora": profile.lora.model_dump(exclude_defaults=True),
            "seeds": [run.seed, run.init_seed],
            "settings": settings,
            "recipe": RECIPE,
            "sizes": [STEPS, BLOCKS, OTHERS, OWN, DENSE],
        }
    )
    return store.record(
        profile.name,
        "gradients",
        name,
        identity,
        store.code_digest("helpers.analysis.gradients"),
        compute,
    )


# --- geometry of vectors -------------------------------------------------------------------------------------------


def as_update(start, vector):
    """The direction s B A that a vector, (D,), makes of the initial A: {module: Factors}."""
    found, place = {}, 0
    for module, factors in start.items():
        shape = factors.B.shape
        found[module] = replace(factors, B=vector[place : place + shape.numel()].reshape(shape))
        place += shape.numel()
    return found


def inner_products(start, vectors):
    """<s B_k A, s B_l A>_F of all pairs of vectors (..., D), modules added up: (K, K) in float64, K vectors.

    With A' = Q R, B A = (B R') Q', so that the inner products are those of the rows s B R'.
    """
    vectors = vectors.flatten(0, -2).double()
    found, place = 0, 0
    for factors in start.values():
        size = factors.B.shape.numel()
        R = torch.linalg.qr(factors.A.double().T).R
        rows = factors.scale * (
            vectors[:, place : place + size].unflatten(1, factors.B.shape) @ R.T
        ).flatten(1)
        found, place = found + rows @ rows.T, place + size
    return found.numpy()


def cosines(gram):
    """Cosines from inner products, (..., K, K); NaN where a squared norm that was estimated without its noise came out negative."""
    squares = np.einsum("...kk->...k", gram)
    norms = np.sqrt(np.where(squares > 0, squares, np.nan))
    return gram / (norms[..., :, None] * norms[..., None, :])


def orthonormal(start, vectors):
    """Vectors (K, D) that span the same directions and are orthonormal as updates, the first along the first (Gram-Schmidt)."""
    lower = torch.linalg.cholesky(torch.from_numpy(inner_products(start, vectors)))
    return torch.linalg.solve_triangular(lower, vectors.double(), upper=False)


def jackknife(gram, statistic, between=False):
    """(value, low, high) of a statistic of inner products between sums over blocks, leaving out one block at a time; 95 %, Student's t.

    gram: (K, blocks, K, blocks); `statistic` maps the inner products (K, K) of the K sums to an array. `between`: only products of different
    blocks count, scaled to all of them, so that the sampling noise of a sum adds nothing to its own norm.
    """
    blocks = gram.shape[1]

    def of(kept):
        part = gram[:, kept][:, :, :, kept]
        inside = part.sum((1, 3))
        if between:
            inside = (inside - np.einsum("kblb->kl", part)) * len(kept) / (len(kept) - 1)
        return np.asarray(statistic(inside))

    value = of(np.arange(blocks))
    left_out = np.stack([of(np.delete(np.arange(blocks), block)) for block in range(blocks)])
    half = student.ppf(0.975, blocks - 1) * np.sqrt(
        (blocks - 1) / blocks * ((left_out - left_out.mean(0)) ** 2).sum(0)
    )
    return value, value - half, value + half


def sign_flips(gram):
    """(ratio, p): squared norm of a sum of blocks over the sum of their squared norms, 1 on average if the blocks have mean 0, and how often
    the blocks reach it with their signs flipped in all possible ways. gram: (blocks, blocks)."""
    blocks = len(gram)
    signs = 1 - 2 * (np.arange(2 ** (blocks - 1))[:, None] >> np.arange(blocks) & 1)
    ratios = np.einsum("nb,bc,nc->n", signs, gram, signs) / np.trace(gram)
    return float(ratios[0]), float((ratios >= ratios[0] - 1e-12).mean())


# --- AdamW ---------------------------------------------------------------------------------------------------------


def replay(run, vectors):
    """B stacked after each of the run's first steps, (steps, D), if the gradient of each batch stayed what it is at the start.

    vectors: minus the gradient of each batch, (steps, D). PyTorch's AdamW with the run's clipping and schedule, as in training; its first step has the
    rate 0. A stays as it is: its gradient is 0 while that of B is taken at B = 0.
    """
    B = torch.nn.Parameter(torch.zeros_like(vectors[0]))
    optimizer = torch.optim.AdamW([B], lr=run.learning_rate, weight_decay=run.weight_decay)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, math.ceil(run.warmup * run.steps), run.steps
    )
    after = []
    for vector in vectors:
        B.grad = -vector
        torch.nn.utils.clip_grad_norm_([B], run.clip)
        optimizer.step()
        schedule.step()
        after.append(B.detach().clone())
    return torch.stack(after)
