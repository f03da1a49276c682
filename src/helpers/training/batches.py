"""TODO docstring."""

import numpy as np
import torch
from torch.utils.data import Dataset

from adapter_geometry import language_models
from helpers.data import rollouts
from helpers.models import loading
from helpers.training import objectives

# --- data ----------------------------------------------------------------------------------------------------------


def row_order(taken, table_ids, seed, length):
    """Row numbers of a whole run: pass after pass over the prompts, each in a fresh order that depends on `seed` alone.

    Every method walks through the same permutation of all prompts and takes its own rows of each (`rollouts.select`).
    """
    order, number = [], 0
    while len(order) < length:
        for prompt in np.random.default_rng([seed, number]).permutation(len(table_ids)):
            order.extend(taken.get(table_ids[prompt], []))
        number += 1
    return order[:length]


def rows_of(table, run):
    """{problem_id: row numbers of the table} that a run trains on (`rollouts.select`)."""
    return rollouts.select(table, run.rows or objectives.objective(run.objective).rows)


def run_order(table, taken, run, steps):
    """Row numbers of a run's first steps, in the order in which training takes them; taken: its `rows_of` the table."""
    return row_order(
        taken, list(table.problem_id.unique()), run.seed, steps * run.batch_size * rows_a_unit(run)
    )


def rows_a_unit(run):
    """Rows that a run's loss takes as one: two for a pair."""
    return 2 if objectives.objective(run.objective).rows == "pairs" else 1


class RunRows(Dataset):
    """The rows of a run in the order of training; an item is a row number or, for pairs, a list of two."""

    def __init__(self, order, size):
        self.items = [order[first : first + size] for first in range(0, len(order), size)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, item):
        return self.items[item]


def collate(table, numbers, pad_id=0):
    """The model's inputs and the loss's `Rows` for the given rows of the table (with group columns)."""
    chosen = table.iloc[numbers]
    input_ids, completion_mask = language_models.pad(
        list(chosen.prompt_ids), list(chosen.completion_ids), pad_id
    )
    mask = completion_mask[:, 1:].float()

    def per_token(column):
        return torch.zeros_like(mask).masked_scatter(
            mask.bool(), torch.tensor(np.concatenate(list(chosen[column])))
        )

    def per_row(column):
        return torch.tensor(chosen[column].to_numpy(np.float32))

    rows = objectives.Rows(
        mask=mask,
        reward=per_row("reward"),
        advantage=per_row("advantage"),
        spread=per_row("spread"),
        behaviour=per_token("logp_behaviour"),
        reference=per_token("logp_base"),
    )
    return {"input_ids": input_ids, "completion_mask": completion_mask, "rows": rows}


def example_weights(profile, objective, **options):
    """The weights of an objective at step 0 on a right and a wrong rollout of one prompt, for the page that explains it.

    Returns (tokens, weights, headings), one entry a rollout: its tokens as text, an array of the weights of their
    log-probabilities in units of SFT's weight (`objectives.token_weights`), and a line that says what it is.
    """
    table = rollouts.with_group_columns(rollouts.load_table(profile))
    pair = next(iter(rollouts.select(table, "pairs").values()))
    rows = collate(table, pair)["rows"]
    weights = objectives.token_weights(objective, rows.reference, rows, **options) * rows.mask.sum()
    tokenizer = loading.load_tokenizer(profile)
    readable = {tokenizer.eos_token: "end", "\n": "↵"}
    tokens = [
        [readable.get(text := tokenizer.decode([token]), text.strip()) for token in ids]
        for ids in table.completion_ids.iloc[pair]
    ]
    headings = [
        f"{'right' if reward else 'wrong'} rollout, answer {answer}, advantage {advantage:+.2f}"
        for reward, answer, advantage in zip(
            table.reward.iloc[pair],
            table.answer.iloc[pair],
            table.advantage.iloc[pair],
            strict=True,
        )
    ]
    return (
        tokens,
        [row[mask.bool()].numpy() for row, mask in zip(weights, rows.mask, strict=True)],
        headings,
    )
