"""Losses along straight paths between updates, and the barriers on them.

Comes after `updates` and `language_models`; the study's `connectivity` and the report call it. Puts
updates into the model that it is given, and reads and writes no file.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int, Int64
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from adapter_geometry import language_models, updates
from adapter_geometry.language_models import CausalModel, TokenIds
from adapter_geometry.updates import Update, Weights

# Token-mean cross-entropies: of held-out correct rollouts; of the bare answer right after the
# prompt, as in the paper.
METRICS = ("rollout", "boxed answer")
_INTERVAL = (0.025, 0.975)
_BATCHES = 4


# --- texts ----------------------------------------------------------------------------------------


class _Targets(NamedTuple):
    """The tokens of a batch whose losses make one metric, in no particular order."""

    row: Int64[Tensor, " target"]
    source: Int64[Tensor, " target"]  # column of the token whose hidden state predicts the target
    token: Int64[Tensor, " target"]  # its id
    text: Int64[Tensor, " target"]  # number of the text that it belongs to


class _Batch(NamedTuple):
    """Rows of texts of similar length, padded on the right."""

    ids: Int64[Tensor, "row width"]
    positions: Int64[Tensor, "row width"]
    visible: Bool[Tensor, "row 1 width width"]  # [row, 0, query, key]
    targets: dict[str, _Targets]  # by metric


class Texts:
    """Held-out rollouts, each packed with its bare boxed answer in one row: [prompt, completion,
    answer].

    The answer's tokens see the prompt and themselves only, and have the positions right after it,
    so that one pass gives both cross-entropies. Rows of similar length run together.
    `tokens`: by metric, the number of tokens of each text over which its loss is taken.
    """

    def __init__(
        self,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        answers: Sequence[TokenIds],
        device: str | torch.device = "cpu",
    ) -> None:
        self.count = len(prompts)
        parts = list(zip(prompts, completions, answers, strict=True))
        order = np.argsort([sum(map(len, text)) for text in parts])
        self.batches = [
            self._batch(numbers, parts, device)
            for numbers in np.array_split(order, min(_BATCHES, self.count))
        ]
        self.tokens: dict[str, Int[np.ndarray, " text"]] = {
            "rollout": np.array([len(completion) for completion in completions]),
            "boxed answer": np.array([len(answer) for answer in answers]),
        }

    @staticmethod
    def _batch(
        numbers: Int[np.ndarray, " row"],
        texts: Sequence[tuple[TokenIds, TokenIds, TokenIds]],
        device: str | torch.device,
    ) -> _Batch:
        """The texts (prompt, completion, answer) of these numbers as one batch."""
        width = max(sum(map(len, texts[number])) for number in numbers)
        ids = torch.zeros(len(numbers), width, dtype=torch.long)
        positions = torch.zeros(len(numbers), width, dtype=torch.long)
        # (row, 1, width, width): what a causal model sees, for every row and, by the axis of length
        # 1, for every head
        visible = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(numbers), 1, 1, 1)
        targets: dict[str, list[list[int]]] = {metric: [[], [], [], []] for metric in METRICS}
        for row, number in enumerate(numbers.tolist()):
            prompt, completion, answer = texts[number]
            p, c, a = len(prompt), len(completion), len(answer)
            ids[row, : p + c + a] = torch.tensor([*prompt, *completion, *answer])
            # the answer goes on where the prompt ends, as if the completion were not there ...
            positions[row, : p + c + a] = torch.tensor([*range(p + c), *range(p, p + a)])
            # ... and does not see it; a causal completion does not see the answer behind it
            visible[row, :, p + c :, p : p + c] = False
            # each token is predicted from the one before it, the first of the completion and the
            # first of the answer both from the last of the prompt
            of_completion = range(p - 1, p + c - 1)
            of_answer = [p - 1, *range(p + c, p + c + a - 1)]
            for metric, sources, tokens in zip(
                METRICS, (of_completion, of_answer), (completion, answer), strict=True
            ):
                columns = [row] * len(tokens), sources, tokens, [number] * len(tokens)
                for column, values in zip(targets[metric], columns, strict=True):
                    column.extend(values)
        return _Batch(
            ids.to(device),
            positions.to(device),
            visible.to(device),
            {
                metric: _Targets(*(torch.tensor(column, device=device) for column in columns))
                for metric, columns in targets.items()
            },
        )

    @torch.inference_mode()
    def nats(self, model: CausalModel) -> dict[str, Float64[np.ndarray, " text"]]:
        """Each text's summed cross-entropy in nats under `model`, by metric."""
        sums = {metric: np.zeros(self.count) for metric in METRICS}
        for batch in self.batches:
            hidden = model.model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                attention_mask=batch.visible,
                use_cache=False,
            ).last_hidden_state  # (row, width, d)
            for metric, targets in batch.targets.items():
                states = hidden[targets.row, targets.source]  # (target, d)
                losses = -language_models.chosen_logprobs(model, states, targets.token)
                # np.add.at, unlike +=, adds every target of a text and not the last one alone
                text = targets.text.cpu().numpy()
                np.add.at(sums[metric], text, losses.double().cpu().numpy())
        return sums


def losses_along(
    model: CausalModel,
    weights: Weights,
    texts: Texts,
    start: Update,
    goal: Update,
    points: Sequence[float] | Float64[np.ndarray, " points"],
    description: str,
) -> pd.DataFrame:
    """Losses of `Texts` under W0 + (1 - t) dW1 + t dW2 for each t of `points`.

    One row per (t, metric, text); columns t, metric, text (its number), nats (summed over its
    tokens) and tokens (how many they are).
    weights: W0 from `updates.weights_of`, taken before anything was put into the model, which is in
    float32: bfloat16 would round a short update away. It is left with the last point's weights.
    description: what the progress bar says.
    """
    rows = []
    for t in tqdm(points, desc=description, unit="point"):
        updates.put(model, weights, updates.combine([start, goal], [1 - t, t]))
        for metric, nats in texts.nats(model).items():
            columns = {"text": range(texts.count), "nats": nats, "tokens": texts.tokens[metric]}
            rows.append(pd.DataFrame({"t": t, "metric": metric, **columns}))
    return pd.concat(rows)


# --- what a path says -----------------------------------------------------------------------------


class _Resampled(NamedTuple):
    """One metric on a path, and samples of its texts; a draw takes the same texts at every t."""

    t: Float64[np.ndarray, " points"]
    nats: Float64[np.ndarray, "text points"]
    tokens: Float64[np.ndarray, " text"]
    counts: Int64[np.ndarray, "draw text"]  # how often a draw, with replacement, took each text


def _resampled(losses: pd.DataFrame, draws: int = 2000, seed: int = 0) -> _Resampled:
    nats = losses.pivot(index="text", columns="t", values="nats")
    tokens = losses.drop_duplicates("text").set_index("text").tokens.loc[nats.index]
    shares = np.full(len(nats), 1 / len(nats))
    counts = np.random.default_rng(seed).multinomial(len(nats), shares, size=draws)
    return _Resampled(nats.columns.to_numpy(float), nats.to_numpy(), tokens.to_numpy(float), counts)


def _curves(
    losses: pd.DataFrame,
) -> tuple[
    Float64[np.ndarray, " points"],
    Float64[np.ndarray, " points"],
    Float64[np.ndarray, "draw points"],
]:
    """(t, loss, resampled losses) of one metric on a path, in nats per token."""
    t, nats, tokens, counts = _resampled(losses)
    return t, nats.sum(0) / tokens.sum(), (counts @ nats) / (counts @ tokens)[:, None]


def curve(losses: pd.DataFrame) -> pd.DataFrame:
    """Loss along a path, with 95 % bootstrap intervals over texts.

    From the rows of `losses_along`, one row per (t, metric): columns t, metric, value (in nats per
    token), low, high.
    """
    rows = []
    for metric, part in losses.groupby("metric", sort=False):
        t, loss, drawn = _curves(part)
        low, high = np.quantile(drawn, _INTERVAL, axis=0)
        rows.append(
            pd.DataFrame({"t": t, "metric": metric, "value": loss, "low": low, "high": high})
        )
    return pd.concat(rows, ignore_index=True)


def barrier_heights(
    t: Float64[np.ndarray, " points"], loss: ArrayLike
) -> tuple[
    np.float64 | Float64[np.ndarray, "*curves"], np.float64 | Float64[np.ndarray, "*curves"]
]:
    """Both barriers of curves (..., points) over t from 0 to 1.

    (above the chord between the ends, above the mean of the ends):
    max_t [L(t) - ((1 - t) L(0) + t L(1))], never below 0, and max_t L(t) - (L(0) + L(1)) / 2
    (Frankle et al. 2020).
    """
    curves = np.asarray(loss)
    start, end = curves[..., :1], curves[..., -1:]
    above_chord = (curves - ((1 - t) * start + t * end)).max(-1)
    return above_chord, curves.max(-1) - (start + end)[..., 0] / 2


def barrier(losses: pd.DataFrame) -> pd.DataFrame:
    """Both barriers of a path, one row per metric, with paired bootstrap intervals over texts.

    From the rows of `losses_along` with t in [0, 1]. Columns: metric; above_chord, low, high, at
    (the t of its maximum), noise; above_mean, mean_low, mean_high; all heights in nats per token.
    Since a maximum that includes the ends is never below 0, an interval that leaves out 0 is no
    test: `noise` is the height that a path whose loss is straight stays under in 19 of 20 samples
    of texts, with these texts' own deviations from their chords.
    """
    rows = []
    for metric, part in losses[losses.t >= 0].groupby("metric", sort=False):
        t, loss, drawn = _curves(part)
        above = loss - ((1 - t) * loss[0] + t * loss[-1])
        (chord, mean), (chords, means) = barrier_heights(t, loss), barrier_heights(t, drawn)
        low, high = np.quantile(chords, _INTERVAL)
        mean_low, mean_high = np.quantile(means, _INTERVAL)
        rows.append(
            {
                "metric": metric,
                "above_chord": chord,
                "low": low,
                "high": high,
                "at": t[above.argmax()],
                "noise": _noise(part),
                "above_mean": mean,
                "mean_low": mean_low,
                "mean_high": mean_high,
            }
        )
    return pd.DataFrame(rows)


def _noise(losses: pd.DataFrame) -> float:
    """The height above the chord that a straight path stays under in 95 % of samples of texts."""
    t, nats, tokens, counts = _resampled(losses)
    # (text, points): each text's deviation from its own chord, in nats; then, so that the loss of
    # all texts together is straight, less its share, by tokens, of their common deviation
    deviation = nats - np.outer(nats[:, 0], 1 - t) - np.outer(nats[:, -1], t)
    deviation = deviation - tokens[:, None] * deviation.sum(0) / tokens.sum()
    of_samples = (counts @ deviation) / (counts @ tokens)[:, None]  # (draw, points), per token
    return float(np.quantile(of_samples.max(1), 0.95))
