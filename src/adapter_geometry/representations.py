"""Representations: hidden states of the same tokens in two models.

How alike they are (CKA), at which layer a model has decided what it says next, and updates as the
data see them. Comes after `geometry` and `language_models`; the study and the report call it. Runs
the model that it is given, and reads and writes no file.

Features are compared without forming the n x n kernels: every term of the unbiased estimate has a
form in the features alone, so that n may be all tokens of all texts.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, Num
from torch import Tensor

from adapter_geometry import geometry, language_models
from adapter_geometry.language_models import CausalModel, TokenIds
from adapter_geometry.updates import Adapters, Factors

_BATCH = 32
_ROUNDING = 1e-12  # a feature whose spread is this share of its size is constant


@dataclass(frozen=True)
class States:
    """Hidden states of one model on fixed texts, and what each of their tokens is."""

    # Before the first layer, after each layer, and after the final norm instead of after the last.
    hidden: Float32[np.ndarray, "layers_and_one token d"]
    # First layer from which on the logit lens names the model's own next token; -1 where no
    # completion token follows.
    decided: Int64[np.ndarray, " token"]
    text: Int64[np.ndarray, " token"]  # number of the text
    position: Int64[np.ndarray, " token"]  # in the text; 0 is the attention sink
    is_completion: Bool[np.ndarray, " token"]


@torch.inference_mode()
def states(
    model: CausalModel, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> States:
    """The `States` of `model` on the given texts; texts of similar length run together."""
    of_texts: list[Any] = [None] * len(prompts)
    for numbers, lengths, input_ids, mask in _batches(prompts, completions):
        layers = model.model(
            input_ids=input_ids.to(model.device), output_hidden_states=True, use_cache=False
        ).hidden_states  # (row, width, d) each
        # (row, width): whether the next token belongs to the completion
        is_followed = torch.nn.functional.pad(mask[:, 1:], (0, 1)).bool()
        followed = [layer[is_followed.to(model.device)] for layer in layers]  # (followed, d) each
        # (layer, followed): the token that each layer names, read as if it were the last one
        # (logit lens); the last has gone through the norm already
        lens = (*map(model.model.norm, followed[:-1]), followed[-1])
        named = torch.stack([_named(model, layer) for layer in lens])
        # From the last layer backwards, 1 as long as the name is the model's own: their number is
        # that of the layers from the decision on.
        is_own = (named == named[-1]).flip(0).cumprod(0)
        decided = torch.full(mask.shape, -1)
        decided[is_followed] = (len(layers) - is_own.sum(0)).cpu()
        hidden = torch.stack(layers).float().cpu().numpy()  # (layer, row, width, d)
        for row, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
            of_texts[number] = (
                hidden[:, row, :length],
                decided[row, :length].numpy(),
                np.full(length, number),
                np.arange(length),
                mask[row, :length].numpy().astype(bool),
            )
    hidden_states, *about = zip(*of_texts, strict=True)
    return States(np.concatenate(hidden_states, 1), *(np.concatenate(parts) for parts in about))


def _named(model: CausalModel, states: Float[Tensor, "token d"]) -> Int64[Tensor, " token"]:
    """The most probable next token by the last hidden state of each token, after the final norm."""
    parts = language_models.in_parts(model, states)
    return torch.cat([model.lm_head(part).argmax(-1) for (part,) in parts])


def _batches(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> Iterator[
    tuple[
        Int64[np.ndarray, " row"],
        Int64[np.ndarray, " row"],
        Int64[Tensor, "row width"],
        Int64[Tensor, "row width"],
    ]
]:
    """(numbers, lengths, input_ids, completion_mask) of texts of similar length, by batch."""
    pairs = zip(prompts, completions, strict=True)
    lengths = np.array([len(prompt) + len(completion) for prompt, completion in pairs])
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), _BATCH):
        numbers = order[first : first + _BATCH]
        padded = language_models.pad(
            [prompts[number] for number in numbers], [completions[number] for number in numbers], 0
        )
        yield numbers, lengths[numbers], *padded


def one_token_per_text(of_model: States, seed: int = 0) -> Int64[np.ndarray, " text"]:
    """Token numbers: one completion token of each text, drawn from `seed`.

    Rows of different texts are independent of each other, those of one text are not.
    """
    rng = np.random.default_rng(seed)
    completion = np.flatnonzero(of_model.is_completion)
    text_of = of_model.text[completion]
    return np.array([rng.choice(completion[text_of == text]) for text in np.unique(of_model.text)])


# --- centred kernel alignment ---------------------------------------------------------------------

Features = Num[np.ndarray, "row _"]  # of equal tokens, one per row


def hsic(X: Features, Y: Features, debiased: bool = True) -> float:
    """HSIC of linear kernels of features (n, d1) and (n, d2), up to a factor common to all.

    Unbiased (Song et al. 2012), or else the plain one. Unbiased, with the diagonals of K = XX' and
    L = YY' set to zero:
    [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3)).
    Raises ValueError if that is asked for with fewer than 4 rows.
    """
    X, Y = _centred(X), _centred(Y)
    if not debiased:
        return float(((X.T @ Y) ** 2).sum())  # tr(XX' YY') = |X'Y|_F^2: (d1, d2), not (n, n)
    n = len(X)
    if n < 4:
        raise ValueError(f"the unbiased HSIC needs at least 4 rows, not {n}")
    # (n,) each: the diagonals that are to be zero, and the row sums of what is left,
    # XX'1 = X (X'1) less the diagonal
    diagonal_K, diagonal_L = (X**2).sum(1), (Y**2).sum(1)
    K1, L1 = X @ X.sum(0) - diagonal_K, Y @ Y.sum(0) - diagonal_L
    # tr(KL) sums K_ij L_ij over i and j; what |X'Y|^2 has on the diagonal is taken away again
    trace = ((X.T @ Y) ** 2).sum() - diagonal_K @ diagonal_L
    # 1'KL1 = (K1)'(L1), since K is symmetric
    estimate = trace + K1.sum() * L1.sum() / ((n - 1) * (n - 2)) - 2 * (K1 @ L1) / (n - 2)
    return float(estimate / (n * (n - 3)))


def _centred(features: Features) -> Float64[np.ndarray, "row _"]:
    """Features less their means, in float64; those that vary by rounding only are 0."""
    features = np.asarray(features, float)
    centred = features - features.mean(0)
    return np.where(np.abs(centred).max(0) > _ROUNDING * np.abs(features).max(0), centred, 0)


def cka(X: Features, Y: Features, debiased: bool = True) -> float:
    """Linear centred kernel alignment of features (n, d1) and (n, d2) of the same n rows.

    Invariant under rotations, a common scale and shifts of either (Kornblith et al. 2019). The
    plain form is near 1 for unrelated features whenever d is not small beside n; the debiased one
    is then near 0, and may be slightly negative. NaN for constant features.
    """
    own = hsic(X, X, debiased) * hsic(Y, Y, debiased)
    return float(hsic(X, Y, debiased) / np.sqrt(own)) if own > 0 else float("nan")


def cka_interval(
    X: Features, Y: Features, text: Int[np.ndarray, " row"], groups: int = 20
) -> tuple[float, float, float]:
    """(value, low, high): debiased CKA with its 95 % interval, from a jackknife over texts.

    It leaves out a group of whole texts at a time; `text` is the number of each row's text. A
    bootstrap would repeat rows, and the likeness of a row to its own copy is just what the debiased
    estimate leaves out.
    """
    left_out = np.array([cka(X[keep], Y[keep]) for keep in _rows_kept(text, groups)])
    return _jackknife(cka(X, Y), left_out)


def cka_table(
    states_of: Mapping[str, States], rows: Int[np.ndarray, " row"], groups: int = 20
) -> pd.DataFrame:
    """The `cka` table: every pair of models at every layer, on the tokens of these numbers.

    states_of: {run: States}. Columns layer, run_a, run_b, debiased, biased, n, low, high, the
    interval being that of `cka_interval`. The kernels (n, n) of a layer are formed once for all
    pairs, groups and both forms.
    """
    runs = list(states_of)
    first = states_of[runs[0]]
    text = first.text[rows]
    n = len(text)
    keeps = [np.flatnonzero(keep) for keep in _rows_kept(text, groups)]
    table = []
    for layer in range(len(first.hidden)):
        features = [_centred(states_of[run].hidden[layer][rows]) for run in runs]
        kernels = np.stack([X @ X.T for X in features])  # (run, n, n)
        biased = _cosines(kernels)  # (run, run): plain CKA is the cosine of two centred kernels
        kernels[:, np.arange(n), np.arange(n)] = 0
        debiased = _cosines(_u_centred(kernels))
        # (group, run, run): leaving out texts leaves out rows and columns of kernels. The features
        # keep the mean of all rows, since U-centring takes any common shift away.
        left_out = np.stack(
            [_cosines(_u_centred(kernels[:, keep[:, None], keep])) for keep in keeps]
        )
        for i, j in combinations(range(len(runs)), 2):
            value, low, high = _jackknife(debiased[i, j], left_out[:, i, j])
            table.append((layer, runs[i], runs[j], value, biased[i, j], n, low, high))
    columns = ["layer", "run_a", "run_b", "debiased", "biased", "n", "low", "high"]
    return pd.DataFrame(table, columns=columns)


def _rows_kept(text: Int[np.ndarray, " row"], groups: int) -> list[Bool[np.ndarray, " row"]]:
    """For each group of texts that is left out, the mask of the rows that stay."""
    numbers = np.unique(text)
    return [~np.isin(text, part) for part in np.array_split(numbers, min(groups, len(numbers)))]


def _jackknife(value: float, left_out: Float64[np.ndarray, " group"]) -> tuple[float, float, float]:
    """(value, low, high) from the values with one group left out; no alignment exceeds 1."""
    error = np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
    return value, value - 1.96 * error, min(1.0, value + 1.96 * error)


def _u_centred(kernels: Float64[np.ndarray, "run n n"]) -> Float64[np.ndarray, "run n n"]:
    """Kernels with zero diagonals, U-centred (Szekely & Rizzo 2014).

    Inner products of the result are n (n - 3) times the unbiased HSIC.
    """
    n = kernels.shape[1]
    # Off the diagonal: K_ij - K_i. / (n - 2) - K_.j / (n - 2) + K_.. / ((n - 1)(n - 2)). Ordinary
    # centring divides by n; these divisors make every row of the result, its zero on the diagonal
    # included, sum to 0, though the diagonal was left out.
    row_sums = kernels.sum(2, keepdims=True) / (n - 2)  # (run, n, 1)
    total = row_sums.sum((1, 2), keepdims=True) / (n - 1)  # (run, 1, 1)
    centred: np.ndarray = kernels - row_sums - row_sums.mT + total
    centred[:, np.arange(n), np.arange(n)] = 0
    return centred


def _cosines(matrices: Float64[np.ndarray, "run n n"]) -> Float64[np.ndarray, "run run"]:
    """Cosines of matrices taken as vectors; NaN where one is 0."""
    flat = matrices.reshape(len(matrices), -1)
    gram = flat @ flat.T
    norms = np.sqrt(np.diag(gram))
    products = np.outer(norms, norms)
    cosines: np.ndarray = np.full_like(gram, np.nan)
    np.divide(gram, products, out=cosines, where=products > 0)
    return cosines


# --- updates as the data see them -----------------------------------------------------------------


@torch.inference_mode()
def input_moments(
    model: CausalModel,
    modules: Collection[str],
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
) -> dict[str, Float64[Tensor, "_ _"]]:
    """Second moments C = E[h h'], (d_in, d_in), of the inputs h of linear modules, by module.

    The mean is over all tokens of the given texts, padding left out.
    """
    totals: dict[str, Any] = dict.fromkeys(modules, 0.0)
    tokens, is_token = 0, None

    def add(module: str) -> Callable[[torch.nn.Module, Any], None]:
        def hook(_: torch.nn.Module, inputs: Any) -> None:
            h = inputs[0][is_token].double()  # (token, d_in)
            totals[module] = totals[module] + h.T @ h

        return hook

    handles = [
        model.get_submodule(module).register_forward_pre_hook(add(module)) for module in modules
    ]
    try:
        for _, lengths, input_ids, _ in _batches(prompts, completions):
            columns = torch.arange(input_ids.shape[1])
            is_token = (columns < torch.from_numpy(lengths)[:, None]).to(model.device)
            tokens += int(lengths.sum())
            model.model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {module: total / tokens for module, total in totals.items()}


def functional_cosine(
    adapters: Adapters, moments: Mapping[str, Float64[Tensor, "_ _"]]
) -> tuple[Float64[np.ndarray, "run run"], Float64[np.ndarray, "run run"]]:
    """(cosine, sd) of what the updates add to the modules' outputs, all modules stacked.

    <dW1, dW2>_C = tr(dW1 C dW2') = E[(dW1 h)'(dW2 h)], C = E[h h'] from `input_moments`; sd by
    chance as in `geometry.stacked_cosine`.
    """
    # dW S with S S' = C has <dW1 S, dW2 S> = tr(dW1 S S' dW2'), so that a root of C multiplied into
    # A turns this inner product into the plain one.
    roots = {}
    for module, moment in moments.items():
        values, vectors = torch.linalg.eigh(moment.cpu())
        roots[module] = vectors * values.clamp(min=0).sqrt()  # (d_in, d_in)
    weighted = {
        run: {
            module: Factors(part.B, part.A.double() @ roots[module], part.scale, part.is_transposed)
            for module, part in update.items()
        }
        for run, update in adapters.items()
    }
    return geometry.stacked_cosine(geometry.compare(weighted))
