"""Representations: hidden states of the same tokens in two models, how alike they are (CKA), at which layer a model has decided, and updates as the
data see them.

Comes after `connectivity`. Features are compared without forming the n x n kernels: every term of the unbiased estimate has a form
in the features alone, so that n may be all tokens of all texts.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from adapter_geometry import geometry, language_models
from adapter_geometry.updates import Factors

_BATCH = 32
_ROUNDING = 1e-12  # a feature whose spread is this share of its size is constant


@dataclass(frozen=True)
class States:
    """Hidden states of one model on fixed texts: `hidden` (layers + 1, tokens, d), in float32, and what each token is."""

    hidden: (
        np.ndarray
    )  # before the first layer, after each layer, and after the final norm in the place of the last
    decided: np.ndarray  # (tokens,): first layer from which on the logit lens names the model's own next token; -1 where no completion token follows
    text: np.ndarray  # (tokens,): number of the text
    position: np.ndarray  # (tokens,): place in the text; 0 is the attention sink
    is_completion: np.ndarray  # (tokens,): whether the token belongs to the completion


@torch.inference_mode()
def states(model, prompts, completions):
    """The `States` of `model` on the given texts, lists of token ids; texts of similar length run together."""
    found = [None] * len(prompts)
    for rows, lengths, input_ids, mask in _batches(prompts, completions):
        layers = model.model(
            input_ids=input_ids.to(model.device), output_hidden_states=True, use_cache=False
        ).hidden_states
        followed = torch.nn.functional.pad(mask[:, 1:], (0, 1)).bool()
        wanted = [layer[followed.to(model.device)] for layer in layers]
        named = torch.stack(
            [
                torch.cat(
                    [
                        model.lm_head(part).argmax(-1)
                        for (part,) in language_models.in_parts(model, layer)
                    ]
                )
                for layer in (*map(model.model.norm, wanted[:-1]), wanted[-1])
            ]
        )
        decided = torch.full(mask.shape, -1)
        decided[followed] = (len(layers) - (named == named[-1]).flip(0).cumprod(0).sum(0)).cpu()
        hidden = torch.stack(layers).float().cpu().numpy()
        for row, i in enumerate(rows):
            inside = slice(0, lengths[row])
            position, is_completion = (
                np.arange(lengths[row]),
                mask[row, inside].numpy().astype(bool),
            )
            found[i] = (
                hidden[:, row, inside],
                decided[row, inside].numpy(),
                np.full(lengths[row], i),
                position,
                is_completion,
            )
    hidden, *about = zip(*found, strict=True)
    return States(np.concatenate(hidden, 1), *(np.concatenate(parts) for parts in about))


def _batches(prompts, completions):
    """(numbers, lengths, input_ids, completion_mask) of texts of similar length, batch by batch."""
    lengths = np.array(
        [
            len(prompt) + len(completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )
    order = np.argsort(lengths, kind="stable")
    for rows in (order[first : first + _BATCH] for first in range(0, len(order), _BATCH)):
        yield (
            rows,
            lengths[rows],
            *language_models.pad([prompts[i] for i in rows], [completions[i] for i in rows], 0),
        )


def one_a_text(found, seed=0):
    """Token numbers, one completion token of each text drawn from `seed`: rows that are independent of each other."""
    rng = np.random.default_rng(seed)
    completion = np.flatnonzero(found.is_completion)
    return np.array(
        [rng.choice(completion[found.text[completion] == text]) for text in np.unique(found.text)]
    )


def hsic(X, Y, debiased=True):
    """HSIC of linear kernels of features (n, d1) and (n, d2), up to a factor common to all: unbiased (Song et al. 2012) or the plain one.

    Unbiased, with the diagonals of K = XX' and L = YY' set to zero:
    [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3)); needs n >= 4.
    """
    X, Y = _centred(X), _centred(Y)
    if not debiased:
        return float(((X.T @ Y) ** 2).sum())
    n = len(X)
    if n < 4:
        raise ValueError(f"the unbiased HSIC needs at least 4 rows, not {n}")
    diagonal_K, diagonal_L = (X**2).sum(1), (Y**2).sum(1)
    K1, L1 = X @ X.sum(0) - diagonal_K, Y @ Y.sum(0) - diagonal_L
    trace = ((X.T @ Y) ** 2).sum() - diagonal_K @ diagonal_L
    return float(
        (trace + K1.sum() * L1.sum() / ((n - 1) * (n - 2)) - 2 * (K1 @ L1) / (n - 2))
        / (n * (n - 3))
    )


def _centred(features):
    """Features (n, d) less their means, in float64; those that vary by rounding only are 0."""
    features = np.asarray(features, float)
    centred = features - features.mean(0)
    return np.where(np.abs(centred).max(0) > _ROUNDING * np.abs(features).max(0), centred, 0)


def cka(X, Y, debiased=True):
    """Linear centred kernel alignment of features (n, d1) and (n, d2) of the same n rows (Kornblith et al. 2019).

    Invariant under rotations, a common scale and shifts of either. The plain form is near 1 for unrelated features whenever d is
    not small beside n; the debiased one is then near 0, and may be slightly negative. NaN for constant features.
    """
    own = hsic(X, X, debiased) * hsic(Y, Y, debiased)
    return hsic(X, Y, debiased) / np.sqrt(own) if own > 0 else float("nan")


def cka_interval(X, Y, text, groups=20):
    """(value, low, high): debiased CKA with its 95 % interval from a jackknife that leaves out a group of whole texts at a time.

    A bootstrap would repeat rows, and the likeness of a row to its own copy is just what the debiased estimate leaves out.
    """
    left_out = np.array([cka(X[keep], Y[keep]) for keep in _keeps(text, groups)])
    return _jackknife(cka(X, Y), left_out)


def cka_table(found, rows, groups=20):
    """The `cka` table: every pair of models {run: States} at every layer on the token numbers `rows`, with the interval of `cka_interval`.

    Columns layer, run_a, run_b, debiased, biased, n, low, high. The kernels (n, n) of a layer are formed once for all pairs, groups and both forms.
    """
    runs = list(found)
    text, table = found[runs[0]].text[rows], []
    keeps = [np.flatnonzero(keep) for keep in _keeps(text, groups)]
    for layer in range(len(found[runs[0]].hidden)):
        features = [_centred(found[run].hidden[layer][rows]) for run in runs]
        kernels = np.stack([X @ X.T for X in features])
        biased = _cosines(kernels)
        kernels[:, np.arange(len(text)), np.arange(len(text))] = 0
        debiased = _cosines(_u_centred(kernels))
        left_out = np.stack(
            [_cosines(_u_centred(kernels[:, keep[:, None], keep])) for keep in keeps]
        )
        for i, j in combinations(range(len(runs)), 2):
            value, low, high = _jackknife(debiased[i, j], left_out[:, i, j])
            table.append(
                {
                    "layer": layer,
                    "run_a": runs[i],
                    "run_b": runs[j],
                    "debiased": value,
                    "biased": biased[i, j],
                    "n": len(text),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(table)


def _keeps(text, groups):
    """For each group of texts that is left out, the mask of the rows that stay."""
    numbers = np.unique(text)
    return [~np.isin(text, part) for part in np.array_split(numbers, min(groups, len(numbers)))]


def _jackknife(value, left_out):
    """(value, low, high) from the values with one group left out; no alignment exceeds 1."""
    error = np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
    return value, value - 1.96 * error, min(1.0, value + 1.96 * error)


def _u_centred(kernels):
    """Kernels (m, n, n) with zero diagonals, centred so that inner products are n (n - 3) times the unbiased HSIC (Szekely & Rizzo 2014)."""
    n = kernels.shape[1]
    rows = kernels.sum(2, keepdims=True) / (n - 2)
    centred = kernels - rows - rows.mT + rows.sum((1, 2), keepdims=True) / (n - 1)
    centred[:, np.arange(n), np.arange(n)] = 0
    return centred


def _cosines(matrices):
    """(m, m): cosines of matrices (m, n, n) taken as vectors; NaN where one is 0."""
    flat = matrices.reshape(len(matrices), -1)
    gram = flat @ flat.T
    norms = np.sqrt(np.diag(gram))
    return np.divide(
        gram,
        np.outer(norms, norms),
        out=np.full_like(gram, np.nan),
        where=np.outer(norms, norms) > 0,
    )


# --- updates as the data see them ----------------------------------------------------------------------------------


@torch.inference_mode()
def input_moments(model, modules, prompts, completions):
    """{module: C = E[h h'], (d_in, d_in), float64}: second moments of the inputs h of linear modules, over all tokens of the given texts of token ids."""
    found, tokens, inside = dict.fromkeys(modules, 0.0), 0, None

    def add(module):
        def hook(_, inputs):
            h = inputs[0][inside].double()
            found[module] = found[module] + h.T @ h

        return hook

    handles = [
        model.get_submodule(module).register_forward_pre_hook(add(module)) for module in modules
    ]
    try:
        for _, lengths, input_ids, _ in _batches(prompts, completions):
            inside = (torch.arange(input_ids.shape[1]) < torch.from_numpy(lengths)[:, None]).to(
                model.device
            )
            tokens += int(lengths.sum())
            model.model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {module: total / tokens for module, total in found.items()}


def functional_cosine(adapters, moments):
    """(cosine, sd), each (n, n): cosine of what n updates {run: {module: Factors}} add to the modules' outputs, all modules stacked.

    <dW1, dW2>_C = tr(dW1 C dW2') = E[(dW1 h)'(dW2 h)], C = E[h h'] from `input_moments`; sd by chance as in `geometry.stacked_cosine`. A root of C is
    multiplied into A.
    """
    roots = {}
    for module, moment in moments.items():
        values, vectors = torch.linalg.eigh(moment.cpu())
        roots[module] = vectors * values.clamp(min=0).sqrt()  # (d_in, d_in), root root' = C
    seen = {
        run: {
            module: Factors(part.B, part.A.double() @ roots[module], part.scale, part.is_transposed)
            for module, part in update.items()
        }
        for run, update in adapters.items()
    }
    return geometry.stacked_cosine(geometry.compare(seen))
