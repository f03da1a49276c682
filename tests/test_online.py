"""Online training: TRL's loss is ours on the policy's own rollouts, the prompts are the study's,
and runs repeat and resume exactly, in one process as in several."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from adapter_geometry import language_models, storage
from helpers import profiles
from helpers.data import grading, rollouts
from helpers.models import loading, logprobs, sampling
from helpers.training import batches, objectives
from helpers.training.trainer import _Recorder, _trainer, run_folder, train


@pytest.fixture
def coin(monkeypatch):
    """A reward that an untrained model earns now and then: every other length of text is right."""
    monkeypatch.setattr(
        grading, "grade", lambda text, gold, *_: grading.Grade(gold, len(text) % 2 == 0, "boxed")
    )


def online(smoke, objective, **changes):
    return smoke.runs["sft"].model_copy(
        update={"name": objective, "objective": objective, "snapshots": (), **changes}
    )


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_update(adapter, whole, message):
    """Weights that agree to 1e-6, of an update that is a thousand times as large."""
    assert max(weight.abs().max() for name, weight in whole.items() if "lora_B" in name) > 1e-3, (
        "the run must have moved, or nothing was compared"
    )
    for name, weight in whole.items():
        torch.testing.assert_close(
            adapter[name], weight, rtol=0, atol=1e-6, msg=f"{message}: {name} differs"
        )


def with_ends(monkeypatch, named):
    """Let the models name end tokens of their own."""
    load_model = loading.load_model

    def load(*arguments):
        model = load_model(*arguments)
        model.generation_config.eos_token_id = named
        return model

    monkeypatch.setattr(loading, "load_model", load)


@pytest.mark.parametrize(("objective", "aggregation"), [("grpo", "sequence"), ("dapo", "token")])
def test_the_gradient_is_that_of_the_clipped_loss_on_own_rollouts(
    objective, aggregation, smoke, table, coin, monkeypatch, tmp_path
):
    tokenizer = loading.load_tokenizer(smoke)
    end = tokenizer.eos_token_id
    completions = [[40, 41, end], [50, 51, 52, 53, 54, end], [60, end], [70, 71, 72, 73, end]]
    monkeypatch.setattr(sampling, "sample", lambda model, prompts, **_: completions)
    trainer, _ = _trainer(smoke, online(smoke, objective, zero="A"), tmp_path)

    def gradients(loss):
        trainer.model.zero_grad()
        loss.backward()
        return {
            name: weight.grad.clone()
            for name, weight in trainer.model.named_parameters()
            if weight.requires_grad
        }

    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(batch)
    theirs = gradients(trainer.compute_loss(trainer.model, inputs))

    prompt = loading.prompt_ids(tokenizer, batch[0]["prompt"], smoke.problems.instruction)
    input_ids, mask = language_models.pad([prompt] * 4, completions, 0)
    logp = logprobs.token_logprobs(trainer.model, input_ids, mask)
    reward = torch.tensor(
        [len(tokenizer.decode(ids, skip_special_tokens=True)) % 2 == 0 for ids in completions]
    ).float()
    assert 0 < reward.mean() < 1, "the group must be mixed, or there is no gradient to compare"
    rows = objectives.Rows(
        mask[:, 1:].float(),
        reward,
        reward - reward.mean(),
        reward.std().expand(4),
        logp.detach(),
        logp.detach(),
    )
    loss, weight = objectives.offline_grpo_clipped(logp, rows, aggregation=aggregation)
    ours = gradients(loss / weight)
    for name, gradient in ours.items():
        torch.testing.assert_close(
            theirs[name],
            gradient,
            rtol=1e-4,
            atol=1e-6 * max(1.0, gradient.norm().item()),
            msg=f"{objective}: gradient of {name}",
        )
    assert sum(gradient.norm() for gradient in ours.values()) > 1e-3, (
        "the gradient is worth comparing"
    )


@pytest.mark.parametrize(("objective", "counted"), [("grpo", 5), ("dapo", 0)])
def test_only_dapo_leaves_truncated_completions_out(
    objective, counted, smoke, table, coin, monkeypatch, tmp_path
):
    end = loading.load_tokenizer(smoke).eos_token_id
    monkeypatch.setattr(
        sampling,
        "sample",
        lambda model, prompts, **_: [[40, 41, end], [50, 51, 52, 53, 54], [60, end], [70, 71, end]],
    )
    trainer, _ = _trainer(smoke, online(smoke, objective), tmp_path)
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    lengths = {
        int(ids[0]): int(mask.sum())
        for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    }
    assert lengths == {40: 3, 50: counted, 60: 2, 70: 3}, (
        "tokens of each completion that take part, by its first token"
    )


def test_dapo_takes_a_completion_for_whole_at_each_end_token_of_the_model_and_at_no_padding(
    smoke, table, coin, monkeypatch, tmp_path
):
    tokenizer = loading.load_tokenizer(smoke)
    with_ends(monkeypatch, [7, 9])
    written = [[40, 41, 7], [50, 51, 52, tokenizer.pad_token_id], [60, 9], [70, 2]]
    monkeypatch.setattr(sampling, "sample", lambda model, prompts, **_: written)
    texts = []
    monkeypatch.setattr(
        grading,
        "grade",
        lambda text, answer, *_: (
            texts.append(text) or grading.Grade(answer, len(texts) % 2 == 0, "boxed")
        ),
    )
    trainer, _ = _trainer(smoke, online(smoke, "dapo"), tmp_path)
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    lengths = {
        int(ids[0]): int(mask.sum())
        for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    }
    assert lengths == {40: 3, 50: 0, 60: 2, 70: 2}, (
        "tokens of each completion that take part, by its first token"
    )
    assert set(trainer.eos_token_ids) == {2, 7, 9}, "TRL's end tokens are the model's"
    assert texts[0] == tokenizer.decode([40, 41]), "7 is no special token, and not graded"


def test_prompts_and_their_order_are_those_of_the_other_methods(
    smoke, table, coin, monkeypatch, tmp_path
):
    seen, sample = [], sampling.sample

    def listen(model, prompts, **settings):
        seen.append((prompts, settings))
        return sample(model, prompts, **settings)

    monkeypatch.setattr(sampling, "sample", listen)
    trainer, _ = _trainer(smoke, online(smoke, "grpo", steps=3), tmp_path)
    trainer.train()
    ids = list(table.problem_id.unique())
    order = batches.row_order(rollouts.select(table, "all"), ids, 42, 3 * smoke.rollouts.samples)
    expected = [list(table.prompt_ids.iloc[row]) for row in order]
    assert [list(prompt) for prompts, _ in seen for prompt in prompts] == expected, (
        "four completions of each prompt, in the first pass's order"
    )
    assert [list(settings["indices"]) for _, settings in seen] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ], "no two completions share random numbers"
    assert {(settings["temperature"], settings["max_new_tokens"]) for _, settings in seen} == {
        (1.0, 12)
    }, "sampled as the table is"
    moved = sum(
        weight.norm().item()
        for name, weight in trainer.model.named_parameters()
        if "lora_B" in name
    )
    assert moved > 0, "training moves the adapter"


@pytest.mark.parametrize("objective", ["grpo", "dapo"])
def test_a_run_is_stored_like_any_other(objective, smoke, table, coin):
    folder = train(smoke, online(smoke, objective, snapshots=(2,)))
    plain = weights(train(smoke, smoke.runs["sft"]))
    assert weights(folder).keys() == plain.keys(), (
        "the same names, base_model.model. ... lora_A.weight"
    )
    assert (folder / "snapshots" / "step-2" / "adapter_model.safetensors").exists()
    history = pd.read_parquet(folder / "history.parquet")
    assert list(history.step) == [1, 2, 3], "one row per step"
    assert np.isfinite(history[["loss", "grad_norm", "reward"]]).all(axis=None), (
        "each with the mean reward of its rollouts, which the loss does not show"
    )


def test_a_killed_run_goes_on_to_the_same_adapter(smoke, table, coin, monkeypatch):
    run = online(smoke, "grpo", steps=4)
    whole = weights(train(smoke, run))
    assert any(weight.norm() > 0 for name, weight in whole.items() if "lora_B" in name), (
        "there is something to lose"
    )
    on_step_end = _Recorder.on_step_end

    def kill(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    storage.remove(run_folder(smoke, run))
    monkeypatch.setattr(_Recorder, "on_step_end", kill)
    with pytest.raises(KeyboardInterrupt):
        train(smoke, run)
    monkeypatch.setattr(_Recorder, "on_step_end", on_step_end)
    resumed = weights(train(smoke, run))
    for name, weight in whole.items():
        torch.testing.assert_close(
            resumed[name], weight, rtol=0, atol=0, msg=f"resumed after step 2 of 4: {name} differs"
        )


# An eighth of the vocabulary ends a completion, so that some are whole and of unlike lengths.
ENDS = list(range(0, 640, 8))
STEPS = {"batch_size": 8, "steps": 4}


@pytest.mark.parametrize("objective", ["grpo", "dapo"])
def test_a_step_in_parts_makes_the_update_of_one_batch(objective, smoke, table, coin, monkeypatch):
    with_ends(monkeypatch, ENDS)
    whole, parts = (
        weights(train(smoke, online(smoke, objective, **STEPS, accumulation=accumulation)))
        for accumulation in (1, 4)
    )
    assert_same_update(parts, whole, "four parts of two completions")


TRAIN = f"""
import sys
from pathlib import Path
from helpers import profiles, store
from helpers.data import grading
from helpers.models import loading
from helpers.training import trainer
store.ROOT = Path(sys.argv[1])
load_model = loading.load_model

def load(*arguments):
    model = load_model(*arguments)
    model.generation_config.eos_token_id = {ENDS}
    return model

loading.load_model = load
grading.grade = lambda text, answer, *_: grading.Grade(answer, len(text) % 2 == 0, "boxed")
profile = profiles.load("smoke")
changes = dict({STEPS}, name="online", objective=sys.argv[2], accumulation=2, snapshots=())
run = profile.runs["sft"].model_copy(update=changes)
sys.stdout.write(f"{{trainer.train(profile, run)}}\\n")  # in one piece, since two processes write
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["grpo", "dapo"])
def test_two_processes_that_share_a_group_make_the_update_of_one(objective, table, workplace):
    script, environment = workplace / "train.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    script.write_text(TRAIN)
    adapters, rewards = {}, {}
    for processes in (1, 2):
        storage.remove(workplace / "results" / "smoke" / "runs")
        command = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split()
        done = subprocess.run(
            [sys.executable, *command, script, workplace, objective],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (folder,) = set(done.stdout.split())
        adapters[processes] = weights(workplace / folder)
        rewards[processes] = list(pd.read_parquet(workplace / folder / "history.parquet").reward)
    assert len(set(rewards[1])) > 1, "mixed groups, or nothing is learned"
    assert rewards[2] == rewards[1], "the same completions, so the same rewards"
    assert_same_update(adapters[2], adapters[1], f"{objective} in two processes")


def test_a_step_that_needs_more_problems_than_there_are_is_refused(smoke, table, tmp_path):
    assert smoke.problems.train == 8
    with pytest.raises(
        ValueError,
        match="run 'grpo': batch_size 72 asks for 9 problems in a step, and profile 'smoke' has 8",
    ):
        _trainer(smoke, online(smoke, "grpo", batch_size=72), tmp_path)


def test_a_batch_without_whole_groups_is_refused(smoke, table, tmp_path):
    tiny = profiles.load("tiny")
    run = online(smoke, "grpo", batch_size=12)
    with pytest.raises(ValueError, match="divisible by"):
        _trainer(tiny.model_copy(update={"models": smoke.models}), run, tmp_path)
