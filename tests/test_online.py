"""Online training: TRL's loss is ours on the policy's own rollouts, the prompts are the study's,
and runs repeat and resume exactly."""

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
        grading, "grade", lambda text, answer: grading.Grade(answer, len(text) % 2 == 0, "boxed")
    )


def online(smoke, objective, **changes):
    return smoke.runs["sft"].model_copy(
        update={"name": objective, "objective": objective, "snapshots": (), **changes}
    )


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


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


def test_a_batch_without_whole_groups_is_refused(smoke, table, tmp_path):
    tiny = profiles.load("tiny")
    run = online(smoke, "grpo", batch_size=12)
    with pytest.raises(ValueError, match="divisible by"):
        _trainer(tiny.model_copy(update={"models": smoke.models}), run, tmp_path)
