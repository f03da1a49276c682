"""TODO docstring."""

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from adapter_geometry import language_models, updates

METRICS = (
    "rollout",
    "boxed answer",
)  # token-mean cross-entropy of held-out correct rollouts; of the bare answer right after the prompt, as in the paper
_INTERVAL = (0.025, 0.975)
_GROUPS = 4


# --- texts ---------------------------------------------------------------------------------------------------------


class Texts:
    """Held-out rollouts, each packed with its bare boxed answer: [prompt, completion, answer] in one row.

    The answer's tokens see the prompt and themselves only and stand at the positions right after it, so that one pass gives both
    cross-entropies. Rows of similar length run together.
    """

    def __init__(self, prompts, completions, answers, device="cpu"):
        self.count = len(prompts)
        order = np.argsort(
            [
                len(p) + len(c) + len(a)
                for p, c, a in zip(prompts, completions, answers, strict=True)
            ]
        )
        self.batches = [
            self._batch(rows, prompts, completions, answers, device)
            for rows in np.array_split(order, min(_GROUPS, self.count))
        ]
        self.tokens = {
            "rollout": np.array([len(c) for c in completions]),
            "boxed answer": np.array([len(a) for a in answers]),
        }

    @staticmethod
    def _batch(rows, prompts, completions, answers, device):
        width = max(len(prompts[i]) + len(completions[i]) + len(answers[i]) for i in rows)
        ids, positions = (
            torch.zeros(len(rows), width, dtype=torch.long),
            torch.zeros(len(rows), width, dtype=torch.long),
        )
        visible = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1, 1)
        where = {metric: ([], [], [], []) for metric in METRICS}
        for place, i in enumerate(rows):
            p, c, a = len(prompts[i]), len(completions[i]), len(answers[i])
            ids[place, : p + c + a] = torch.tensor([*prompts[i], *completions[i], *answers[i]])
            positions[place, : p + c + a] = torch.tensor([*range(p + c), *range(p, p + a)])
            visible[place, :, p + c :, p : p + c] = False
            for metric, sources, targets in (
                ("rollout", range(p - 1, p + c - 1), completions[i]),
                ("boxed answer", [p - 1, *range(p + c, p + c + a - 1)], answers[i]),
            ):
                for kept, new in zip(
                    where[metric],
                    ([place] * len(targets), sources, targets, [i] * len(targets)),
                    strict=True,
                ):
                    kept.extend(new)
        found = {
            metric: tuple(torch.tensor(part, device=device) for part in parts)
            for metric, parts in where.items()
        }
        return ids.to(device), positions.to(device), visible.to(device), found

    @torch.inference_mode()
    def nats(self, model):
        """{metric: (texts,) summed cross-entropies in nats} under `model`."""
        found = {metric: np.zeros(self.count) for metric in METRICS}
        for ids, positions, visible, where in self.batches:
            hidden = model.model(
                input_ids=ids, position_ids=positions, attention_mask=visible, use_cache=False
            ).last_hidden_state
            for metric, (place, source, target, text) in where.items():
                losses = -language_models.chosen_logprobs(model, hidden[place, source], target)
                np.add.at(found[metric], text.cpu().numpy(), losses.double().cpu().numpy())
        return found


def along(model, weights, texts, start, goal, points, name):
    """Losses of `Texts` under W0 + (1 - t) dW1 + t dW2 for each t of `points`: one row a (t, metric, text) with columns nats and tokens.

    weights: W0 from `updates.weights_of`, taken before anything was put into the model, which is in float32: bfloat16 would round a short update away.
    """
    rows = []
    for t in tqdm(points, desc=name, unit="point"):
        updates.put(model, weights, updates.combine([start, goal], [1 - t, t]))
        for metric, nats in texts.nats(model).items():
            rows.append(
                pd.DataFrame(
                    {
                        "t": t,
                        "metric": metric,
                        "text": range(texts.count),
                        "nats": nats,
                        "tokens": texts.tokens[metric],
                    }
                )
            )
    return pd.concat(rows)


# --- what a path says ----------------------------------------------------------------------------------------------


def _resampled(measured, draws=2000, seed=0):
    """(t, nats (texts, points), tokens (texts,), counts (draws, texts)) of one metric on a path; a draw takes the same texts at every t."""
    nats = measured.pivot(index="text", columns="t", values="nats")
    tokens = (
        measured.drop_duplicates("text").set_index("text").tokens.loc[nats.index].to_numpy(float)
    )
    counts = np.random.default_rng(seed).multinomial(
        len(nats), np.full(len(nats), 1 / len(nats)), size=draws
    )
    return nats.columns.to_numpy(float), nats.to_numpy(), tokens, counts


def _curves(measured):
    """(t, loss (points,), resampled losses (draws, points)) of one metric on a path."""
    t, nats, tokens, counts = _resampled(measured)
    return t, nats.sum(0) / tokens.sum(), (counts @ nats) / (counts @ tokens)[:, None]


def curve(measured):
    """Loss along a path in nats a token, with 95 % bootstrap intervals over texts: one row a (t, metric); columns value, low, high."""
    rows = []
    for metric, part in measured.groupby("metric", sort=False):
        t, loss, drawn = _curves(part)
        low, high = np.quantile(drawn, _INTERVAL, axis=0)
        rows.append(
            pd.DataFrame({"t": t, "metric": metric, "value": loss, "low": low, "high": high})
        )
    return pd.concat(rows, ignore_index=True)


def heights(t, loss):
    """Both barriers of curves (..., points) over t from 0 to 1: (above the chord between the ends, above the mean of the ends).

    max_t [L(t) - ((1 - t) L(0) + t L(1))], never below 0, and max_t L(t) - (L(0) + L(1)) / 2 (Frankle et al. 2020).
    """
    loss = np.asarray(loss)
    start, end = loss[..., :1], loss[..., -1:]
    return (loss - ((1 - t) * start + t * end)).max(-1), loss.max(-1) - (start + end)[..., 0] / 2


def barrier(measured):
    """Both barriers of a path, one row a metric, with paired bootstrap intervals over texts.

    Columns: metric; above_chord, low, high, at (the t of its maximum), noise; above_mean, mean_low, mean_high. Since a maximum that
    includes the ends is never below 0, an interval that leaves out 0 is no test: `noise` is the height that a path whose loss is
    straight stays under in 19 of 20 samples of texts, with these texts' own deviations from their chords.
    """
    rows = []
    for metric, part in measured[measured.t >= 0].groupby("metric", sort=False):
        t, loss, drawn = _curves(part)
        above = loss - ((1 - t) * loss[0] + t * loss[-1])
        (chord, mean), (chords, means) = heights(t, loss), heights(t, drawn)
        (low, high), (mean_low, mean_high) = (
            np.quantile(values, _INTERVAL) for values in (chords, means)
        )
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


def _noise(part):
    t, nats, tokens, counts = _resampled(part)
    deviation = nats - np.outer(nats[:, 0], 1 - t) - np.outer(nats[:, -1], t)
    deviation = deviation - tokens[:, None] * deviation.sum(0) / tokens.sum()
    return float(np.quantile(((counts @ deviation) / (counts @ tokens)[:, None]).max(1), 0.95))
