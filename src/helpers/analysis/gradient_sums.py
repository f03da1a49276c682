"""Sums of gradients at step 0 over the rollouts of a study, stored block by block.

After `gradients`, which says what a rollout's gradient is; before the notebooks on the gradient
plane and on self-generated rollouts. Here it is decided which rollouts count and how much: a sample
of whole prompts in the order of training, cut into blocks for the jackknife, and the first batches
of each run. What is computed is stored under `results/<profile>/gradients/`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from adapter_geometry import storage
from helpers import store
from helpers.analysis.gradients import affine_weights, dense_start, initial, weighted_sums
from helpers.data import rollouts
from helpers.models import loading
from helpers.profiles import Profile, Run
from helpers.training.batches import collate, row_order, rows_of, run_order

RECIPE = 1  # raised whenever the stored gradients change, as `trainer.RECIPE`
STEPS = 10  # first batches of each run whose gradients are kept one by one
BLOCKS = 10  # groups of prompts that the jackknife leaves out in turn
UNMIXED_PROMPTS = 80  # of each kind, only right or only wrong rollouts, in the sample
SELF_GENERATED_PROMPTS = 120  # in the sample of the base's self-generated rollouts
DENSE_PROMPTS = 40  # mixed ones on which the whole gradient is compared with what the adapter sees

Runs = Mapping[str, Run]


# --- which rollouts -------------------------------------------------------------------------------


def sample(
    table: pd.DataFrame, seed: int, mixed: int, unmixed: int
) -> tuple[Float64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """(weight, block) of each row of the table in a sample of whole prompts.

    A row of weight 0 is not in it. In the order of training: of the prompts with right and wrong
    rollouts the first `mixed` are taken, and `unmixed` of those with only right and of those with
    only wrong ones. A row weighs as many rows of its kind as it represents. Blocks hold whole
    prompts and the same share of each kind. table: columns problem_id and reward.
    """
    rows_of_prompt = rollouts.select(table, "all")
    order = row_order(rows_of_prompt, list(table.problem_id.unique()), seed, len(table))
    rates = table.groupby("problem_id").reward.mean()
    # 1 = only right, -1 = only wrong, 0 = mixed
    kinds = np.sign(rates - 0.5).where((rates == 0) | (rates == 1), 0.0)
    weight, block = np.zeros(len(table)), np.zeros(len(table), int)
    for kind, size in ((0, mixed), (1, unmixed), (-1, unmixed)):
        prompts = [
            problem_id
            for problem_id in dict.fromkeys(table.problem_id.iloc[order])
            if kinds[problem_id] == kind
        ]
        for number, problem_id in enumerate(prompts[:size]):
            weight[rows_of_prompt[problem_id]] = len(prompts) / len(prompts[:size])
            block[rows_of_prompt[problem_id]] = number % BLOCKS
    return weight, block


def batches(table: pd.DataFrame, run: Run, steps: int) -> list[list[int]]:
    """Row numbers of the run's first batches, as training takes them."""
    order = run_order(table, rows_of(table, run), run, steps)
    size = len(order) // steps
    return [order[first : first + size] for first in range(0, len(order), size)]


def _coefficients(
    table: pd.DataFrame, run: Run, numbers: Sequence[int]
) -> Float64[np.ndarray, "powers rows"]:
    """How the run's loss on the rows `numbers` combines the two gradients of each row of the table.

    That of sum_t logp_t has the coefficient c, that of sum_t p_t e (`gradients.affine_weights`).
    """
    coefficients = np.zeros((2, len(table)))
    for power, weights in enumerate(
        affine_weights(run.objective, collate(table, numbers)["rows"], **run.options)
    ):
        np.add.at(coefficients[power], numbers, weights.numpy())  # a row may occur more than once
    return coefficients


def _all_coefficients(table: pd.DataFrame, run: Run) -> Float64[np.ndarray, "powers rows"]:
    """`_coefficients` of all rows that the run trains on."""
    numbers = [number for group in rows_of(table, run).values() for number in group]
    return _coefficients(table, run, numbers)


# --- the sums that the pages need -----------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Vectors at step 0 (`gradients`), by name.

    blocks: "right" and "wrong" (summed scores, the gradients of logp) and each run's objective,
    block by block. batches: of each run, minus the gradient of the loss on each of its first
    batches.
    """

    blocks: dict[str, Float[Tensor, "blocks D"]]
    batches: dict[str, Float[Tensor, "steps D"]]

    def total(self, name: str) -> Float[Tensor, " D"]:
        """A direction over the whole sample."""
        return self.blocks[name].sum(0)


def measure(profile: Profile, runs: Runs) -> Sums:
    """`Sums` of the given main runs, from a sample of the table; stored.

    The runs share base, table, order and initial adapter.
    """
    first = next(iter(runs.values()))

    def compute() -> pd.DataFrame:
        torch.set_num_threads(profile.evaluation.threads)
        table = rollouts.with_group_columns(rollouts.load_table(profile, first.writer))
        weight, block = sample(table, first.seed, STEPS * first.batch_size, UNMIXED_PROMPTS)
        is_right, zeros = (table.reward > 0).to_numpy(), np.zeros(len(table))
        # (powers, rows) of each direction: how it weighs the two gradients of each row.
        directions = {
            "right": np.stack([is_right * 1.0, zeros]),
            "wrong": np.stack([~is_right * 1.0, zeros]),
        }
        directions |= {name: _all_coefficients(table, run) for name, run in runs.items()}
        replayed = {name: batches(table, run, min(STEPS, run.steps)) for name, run in runs.items()}
        columns = {
            f"{name}/{number}": parts * weight * (block == number)
            for name, parts in directions.items()
            for number in range(BLOCKS)
        }
        columns |= {
            f"{name}/step {step}": _coefficients(table, runs[name], numbers)
            for name, batches_of_run in replayed.items()
            for step, numbers in enumerate(batches_of_run, start=1)
        }
        coefficients = np.stack(list(columns.values()))  # (sums, powers, rows)
        used = np.flatnonzero(np.abs(coefficients).sum((0, 1)))  # rows that any sum needs
        sums = weighted_sums(
            *initial(profile, first),
            table.iloc[used].reset_index(drop=True),
            coefficients[:, :, used],
        )
        return pd.DataFrame(dict(zip(columns, sums.numpy(), strict=True)))

    frame = _stored(profile, "step-0", first, _specs(runs), compute)
    vectors = {name: torch.tensor(frame[name].to_numpy()) for name in frame}

    def gather(name: str, is_step: bool) -> Float[Tensor, "parts D"]:
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


def self_generated_scores(profile: Profile, run: Run) -> dict[str, Float[Tensor, "blocks D"]]:
    """Summed scores of the "right" and the "wrong" rollouts that the base generated itself.

    Block by block, from whole prompts in the run's order; stored.
    """

    def compute() -> pd.DataFrame:
        torch.set_num_threads(profile.evaluation.threads)
        table = rollouts.with_group_columns(rollouts.load_table(profile, "base"))
        order = row_order(
            rollouts.select(table, "all"), list(table.problem_id.unique()), run.seed, len(table)
        )
        samples = profile.rollouts.samples
        rows = table.iloc[order[: SELF_GENERATED_PROMPTS * samples]].reset_index(drop=True)
        block = rows.index.to_numpy() // samples % BLOCKS  # prompts take turns
        is_right = (rows.reward > 0).to_numpy()
        columns = {
            f"{name}/{number}": (is_right == wanted) & (block == number)
            for name, wanted in (("right", True), ("wrong", False))
            for number in range(BLOCKS)
        }
        sums = weighted_sums(
            *initial(profile, run),
            rows,
            np.stack(list(columns.values()))[:, None] * 1.0,  # (sums, 1 power, rows)
            powers=(0,),
            name="of self-generated rollouts",
        )
        return pd.DataFrame(dict(zip(columns, sums.numpy(), strict=True)))

    frame = _stored(
        profile, "self-generated", run.model_copy(update={"writer": "base"}), {}, compute
    )
    return {
        name: torch.tensor(frame[[f"{name}/{number}" for number in range(BLOCKS)]].to_numpy().T)
        for name in ("right", "wrong")
    }


def dense_sums(profile: Profile, runs: Runs) -> dict[str, Float[Tensor, " dense"]]:
    """The gradients with respect to all entries of the adapted weights, by name; stored.

    Of "right", "wrong" and each run's objective, as in `Sums`, on the first mixed prompts.
    """
    first = next(iter(runs.values()))

    def compute() -> pd.DataFrame:
        torch.set_num_threads(profile.evaluation.threads)
        table = rollouts.with_group_columns(rollouts.load_table(profile, first.writer))
        weight, _ = sample(table, first.seed, DENSE_PROMPTS, 0)
        rows = table[weight > 0].reset_index(drop=True)
        is_right = (rows.reward > 0).to_numpy()
        columns = {
            name: np.stack([is_kind * 1.0, 0.0 * is_kind])
            for name, is_kind in (("right", is_right), ("wrong", ~is_right))
        }
        columns |= {name: _all_coefficients(rows, run) for name, run in runs.items()}
        model, start = initial(profile, first)
        sums = weighted_sums(
            model,
            dense_start(start),
            rows,
            np.stack(list(columns.values())),
            name="of whole weights",
        )
        return pd.DataFrame(dict(zip(columns, sums.numpy(), strict=True)))

    frame = _stored(profile, "dense", first, _specs(runs), compute)
    return {name: torch.tensor(frame[name].to_numpy()) for name in frame}


def _specs(runs: Runs) -> dict[str, dict[str, Any]]:
    """What of the runs determines their gradients."""
    return {
        name: run.model_dump(exclude={"name", "snapshots", "threads"}) for name, run in runs.items()
    }


def _stored(
    profile: Profile,
    name: str,
    run: Run,
    settings: Mapping[str, Any],
    compute: Callable[[], pd.DataFrame],
) -> pd.DataFrame:
    """The stored sums, or `compute()` if what determines them has changed."""
    identity = storage.digest(
        {
            "base": loading.model_digest(profile.name, run.base),
            "table": store.file_digest(rollouts.table_path(profile, run.writer)),
            "lora": profile.lora.model_dump(exclude_defaults=True),
            "seeds": [run.seed, run.init_seed],
            "settings": settings,
            "recipe": RECIPE,
            "sizes": [STEPS, BLOCKS, UNMIXED_PROMPTS, SELF_GENERATED_PROMPTS, DENSE_PROMPTS],
        }
    )
    code = store.code_digest("helpers.analysis.gradient_sums")
    return store.load_or_compute_record(profile.name, "gradients", name, identity, code, compute)
