"""Sums of gradients over the rollouts of a study: sample, batches, and what training did."""

import numpy as np
import pandas as pd
import pytest
import torch

from adapter_geometry.adapters import load_update
from helpers import profiles
from helpers.analysis import gradient_sums, gradients
from helpers.data import rollouts
from helpers.training import trainer


def test_the_sample_stands_for_the_table():
    rewards = [[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [0, 1], [1, 0], [0, 0], [1, 1]]
    table = pd.DataFrame(
        [
            {"problem_id": str(number), "reward": float(reward)}
            for number, group in enumerate(rewards)
            for reward in group
        ]
    )
    weight, block = gradient_sums.sample(table, seed=0, mixed=2, unmixed=1)
    assert weight.sum() == pytest.approx(len(table)), "weights add up to the rows of the table"
    kinds = np.repeat([sum(group) for group in rewards], 2)
    for kind in range(3):
        assert weight[kinds == kind].sum() == pytest.approx((kinds == kind).sum()), (
            "and do so for each kind of prompt"
        )
    per_prompt = weight.reshape(-1, 2)
    assert (per_prompt[:, 0] == per_prompt[:, 1]).all(), "prompts are taken whole"
    assert (block[::2] == block[1::2]).all(), "and lie in one block"


def test_batches_are_those_of_training(table, smoke):
    run = profiles.run(smoke, "dpo")
    batches = gradient_sums.batches(table, run, 2)
    assert [len(rows) for rows in batches] == [2 * run.batch_size] * 2, (
        "a batch of pairs has two rows per pair"
    )
    first = table.iloc[batches[0]]
    assert (first.reward.to_numpy().reshape(-1, 2) == [1, 0]).all(), "chosen and rejected in turn"
    assert first.problem_id.nunique() <= run.batch_size


def test_all_wrong_prompts_do_not_break_the_choice_of_pairs(table):
    assert set(gradient_sums.sample(table, 1, 3, 2)[1]) <= set(range(gradient_sums.BLOCKS))
    assert rollouts.select(table, "pairs"), "the smoke table has mixed prompts"


def test_replay_is_what_training_did_after_the_first_step_that_moves(smoke, table):
    run = profiles.run(smoke, "dpo")
    runs = {name: profiles.run(smoke, name) for name in smoke.main_runs}
    sums = gradient_sums.measure(smoke, runs)
    _, start = gradients.initial(smoke, run)
    trained = load_update(trainer.train(smoke, run) / "snapshots" / "step-2")
    predicted = gradients.as_update(start, gradients.replay(run, sums.batches["dpo"])[1])
    for module, factors in trained.items():
        torch.testing.assert_close(
            predicted[module].B, factors.B, rtol=2e-2, atol=2e-6, msg=f"B of {module} after step 2"
        )
