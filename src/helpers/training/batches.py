"""Which rows of the table of rollouts a run trains on, in which order, and as tensors.

Between the table of rollouts and the trainer in the flow of data. Writes no file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.utils.data import Dataset

from adapter_geometry import language_models
from helpers.data import rollouts
from helpers.models import loading
from helpers.profiles import Profile, Run
from helpers.training import objectives

RowNumbers = Mapping[str, list[int]]
"""{problem_id: numbers of the table's rows that training takes of it} (`rollouts.select`)."""


def row_order(
    row_numbers: RowNumbers, problem_ids: Sequence[str], seed: int, length: int
) -> list[int]:
    """Row numbers of a whole run, `length` of them: pass after pass over the prompts, each in a
    fresh order that depends on `seed` alone.

    problem_ids: of all prompts of the table, in its order. Every method walks through the same
    permutation of them and takes its own rows of each.
    """
    order: list[int] = []
    number = 0  # of the pass
    while len(order) < length:
        for prompt in np.random.default_rng([seed, number]).permutation(len(problem_ids)):
            order.extend(row_numbers.get(problem_ids[prompt], []))
        number += 1
    return order[:length]


def rows_of(table: pd.DataFrame, run: Run) -> RowNumbers:
    """The rows of the table that a run trains on: those it names, or those its objective asks
    for.

    Raises ValueError where the objective reads the writer's log-probabilities and those of a row
    are not known.
    """
    objective = objectives.objective(run.objective)
    row_numbers = rollouts.select(table, run.rows or objective.rows)
    if objective.reads_behaviour:
        numbers = sorted({number for of_prompt in row_numbers.values() for number in of_prompt})
        unknown = sum(np.isnan(logp).any() for logp in table.logp_behaviour.iloc[numbers])
        if unknown:
            raise ValueError(
                f"run {run.name!r}: objective {run.objective!r} needs the log-probabilities that "
                f"the writer gave its rollouts, and the table of the {run.writer}'s rollouts does "
                f"not know them (logp_behaviour) for {unknown} of the {len(numbers)} rows of this "
                "run, as for all that a server or a file wrote: choose an objective without a "
                "ratio to the writer, or have the rollouts written by a model that can be loaded"
            )
    return row_numbers


def run_order(table: pd.DataFrame, row_numbers: RowNumbers, run: Run, steps: int) -> list[int]:
    """Row numbers of a run's first steps, in the order in which training takes them; row_numbers:
    its `rows_of` the table."""
    length = steps * run.batch_size * rows_per_unit(run)
    return row_order(row_numbers, list(table.problem_id.unique()), run.seed, length)


def rows_per_unit(run: Run) -> int:
    """Rows that a run's loss takes as one: two for a pair."""
    return 2 if objectives.objective(run.objective).rows == "pairs" else 1


class RunRows(Dataset[list[int]]):
    """The rows of a run in the order of training; an item is a list of `size` row numbers: one, or
    two for a pair."""

    def __init__(self, order: Sequence[int], size: int) -> None:
        self.items = [list(order[first : first + size]) for first in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> list[int]:
        return self.items[item]


def collate(table: pd.DataFrame, numbers: Sequence[int], pad_id: int = 0) -> dict[str, Any]:
    """The model's inputs and the loss's rows for the given rows of the table (with group columns).

    "input_ids" and "completion_mask" are (rows, tokens); "rows" is an `objectives.Rows` of tokens
    that are predicted, one column less.
    """
    chosen = table.iloc[numbers]
    # (rows, tokens): prompt, completion, padding; 1 on the completion.
    input_ids, completion_mask = language_models.pad(
        list(chosen.prompt_ids), list(chosen.completion_ids), pad_id
    )
    # (rows, tokens - 1): column t is the token at t + 1, which is predicted at t.
    mask = completion_mask[:, 1:].float()

    def per_token(column: str) -> Float[Tensor, "rows predicted"]:
        # Row after row the mask has as many 1s as the column has values, so they fill it in order.
        values = torch.tensor(np.concatenate(list(chosen[column])))  # (completion tokens,)
        return torch.zeros_like(mask).masked_scatter(mask.bool(), values)

    def per_row(column: str) -> Float32[Tensor, " rows"]:
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


def example_weights(
    profile: Profile, objective: str, **options: Any
) -> tuple[list[list[str]], list[Float[np.ndarray, " tokens"]], list[str]]:
    """The weights of an objective at step 0 on a right and a wrong rollout of one prompt, for the
    page that explains it.

    Returns (tokens, weights, headings), one entry per rollout: its tokens as text, an array of the
    weights of their log-probabilities in units of SFT's weight (`objectives.token_weights`), and a
    line that says what it is.
    """
    table = rollouts.with_group_columns(rollouts.load_table(profile))
    pair = next(iter(rollouts.select(table, "pairs").values()))
    rows = collate(table, pair)["rows"]
    # (rows, tokens); SFT's weight is one over the number of tokens.
    weights = objectives.token_weights(objective, rows.reference, rows, **options) * rows.mask.sum()
    tokenizer = loading.load_tokenizer(profile)
    readable = {tokenizer.eos_token: "end", "\n": "↵"}

    def text_of(token: int) -> str:
        text = cast(str, tokenizer.decode([token]))
        return readable.get(text, text.strip())

    completions = [np.asarray(ids).tolist() for ids in table.completion_ids.iloc[pair]]
    tokens = [[text_of(token) for token in ids] for ids in completions]
    headings = [
        f"{'right' if row.reward else 'wrong'} rollout, answer {row.answer}, "
        f"advantage {row.advantage:+.2f}"
        for row in table.iloc[pair].itertuples()
    ]
    return (
        tokens,
        [row[mask.bool()].numpy() for row, mask in zip(weights, rows.mask, strict=True)],
        headings,
    )
