"""Gradients at step 0 against automatic differentiation, AdamW against its formula, and the mean of the score against 0 by enumeration."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapter_geometry import updates
from adapter_geometry.adapters import load_update
from adapter_geometry.updates import Factors
from helpers import profiles
from helpers.analysis import gradients
from helpers.data import rollouts
from helpers.training import objectives, trainer

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def adapted(tiny_model):
    """(PEFT model at B = 0, base without adapter, start), both models with the same weights in float64."""
    modules = ["q_proj", "v_proj", "o_proj"]
    torch.manual_seed(3)
    peft = (
        get_peft_model(
            tiny_model().double(),
            LoraConfig(r=3, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM"),
        )
        .eval()
        .double()
    )
    start = {
        name: Factors(
            layer.lora_B["default"].weight.detach().clone(),
            layer.lora_A["default"].weight.detach().clone(),
            2.0,
        )
        for name, layer in peft.get_base_model().named_modules()
        if hasattr(layer, "lora_A")
    }
    return peft, tiny_model().double(), start


@pytest.fixture
def batch():
    """Four rows of a prompt of three tokens and completions of unequal lengths: (input_ids, completion_mask)."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 40, (4, 9), generator=generator)
    mask = torch.tensor([[0, 0, 0] + [1] * length + [0] * (6 - length) for length in (6, 2, 4, 5)])
    return ids, mask


def logprobs(model, ids, mask):
    """Plain log-probabilities of the completion's tokens, zero outside."""
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]


def rows_of(logp, mask):
    """Two groups, right and wrong in turn; behaviour and reference are the policy's own."""
    reward = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    return objectives.Rows(
        mask[:, 1:].double(),
        reward,
        reward - 0.5,
        torch.full((4,), 0.5).double(),
        logp.detach(),
        logp.detach(),
    )


OPTIONS = {"rift-paper": {"penalty": 0.5}}


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_weighted_scores_are_the_gradient_of_every_loss(name, adapted, batch):
    peft, base, start = adapted
    logp = logprobs(peft, *batch)
    rows = rows_of(logp, batch[1])
    weights = objectives.token_weights(name, logp, rows, **OPTIONS.get(name, {}))
    loss, weight = objectives.objective(name).loss(logp, rows, **OPTIONS.get(name, {}))
    factors = [
        parameter
        for parameter_name, parameter in peft.named_parameters()
        if "lora_B" in parameter_name
    ]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss / weight, factors)])
    found = gradients.row_gradients(base, start, *batch, [weights])[0].sum(0)
    torch.testing.assert_close(
        found,
        -expected,
        **EXACT,
        msg=lambda text: f"{name}: minus the loss's gradient is the weighted sum of scores\n{text}",
    )


def test_gradient_of_B_is_the_dense_gradient_seen_through_A(adapted, batch):
    _, base, start = adapted
    for module in start:
        base.get_submodule(module).weight.requires_grad_(True)
    dense = torch.autograd.grad(
        logprobs(base, *batch).sum(), [base.get_submodule(module).weight for module in start]
    )
    expected = torch.cat(
        [(2.0 * G @ start[module].A.T).flatten() for module, G in zip(start, dense, strict=True)]
    )
    ones = [batch[1][:, 1:].double()]
    found = gradients.row_gradients(base, start, *batch, ones)[0].sum(0)
    torch.testing.assert_close(found, expected, **EXACT, msg="at B = 0 the gradient of B is s G A'")
    whole = {
        module: Factors(torch.zeros(G.shape), torch.eye(G.shape[1]).double(), 1.0)
        for module, G in zip(start, dense, strict=True)
    }
    at_once = gradients.row_gradients(base, whole, *batch, ones)[0].sum(0)
    torch.testing.assert_close(
        at_once,
        torch.cat([G.flatten() for G in dense]),
        **EXACT,
        msg="with A = 1 it is the dense gradient",
    )
    double = {
        module: replace(factors, A=factors.A.double())
        for module, factors in gradients.dense_start(start).items()
    }
    assert [part.A.shape for part in double.values()] == [
        part.A.shape for part in whole.values()
    ], "dense_start has A = 1"
    projected = gradients.project({"sum": at_once}, start)["sum"]
    torch.testing.assert_close(
        projected, expected, **EXACT, msg="a dense gradient can be projected afterwards"
    )


def test_a_row_does_not_depend_on_its_neighbours(adapted, batch):
    _, base, start = adapted
    ones = [batch[1][:, 1:].double()]
    together = gradients.row_gradients(base, start, *batch, ones)[0]
    alone = gradients.row_gradients(base, start, batch[0][1:2], batch[1][1:2], [ones[0][1:2]])[0, 0]
    torch.testing.assert_close(
        together[1], alone, **EXACT, msg="rows of a batch have gradients of their own"
    )


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "rft",
        "dft",
        "rift",
        "offline-grpo",
        "offline-grpo-probability",
        "dpo",
        "ipo",
        "kto",
        "rift-paper",
    ],
)
def test_affine_weights_are_the_token_weights_of_the_loss(name, adapted, batch):
    logp = logprobs(adapted[0], *batch).detach()
    rows = rows_of(logp, batch[1])
    options = OPTIONS.get(name, {})
    c, e = gradients.affine_weights(name, rows, **options)
    expected = objectives.token_weights(name, logp, rows, **options)
    torch.testing.assert_close(
        (c[:, None] + e[:, None] * logp.exp()) * rows.mask,
        expected,
        rtol=1e-6,
        atol=1e-9,
        msg=f"{name}: w = c + e p",
    )


@pytest.mark.parametrize("name", ["simpo", "topr"])
def test_other_objectives_are_refused(name, adapted, batch):
    rows = rows_of(logprobs(adapted[0], *batch).detach(), batch[1])
    rows = replace(rows, behaviour=rows.behaviour - 0.3 * rows.mask)
    if name == "topr":
        rows = replace(rows, behaviour=rows.reference + 0.3 * rows.mask)
    with pytest.raises(ValueError, match=f"'{name}' at step 0 are not c"):
        gradients.affine_weights(name, rows)


def test_dpo_starts_at_log_two_with_half_of_beta(adapted, batch):
    rows = rows_of(logprobs(adapted[0], *batch).detach(), batch[1])
    loss, weight = objectives.dpo(rows.reference, rows)
    assert float(loss / weight) == pytest.approx(math.log(2), rel=1e-12), (
        "no margin yet: -log sigmoid(0) = log 2"
    )
    c, _ = gradients.affine_weights("dpo", rows)
    torch.testing.assert_close(
        c,
        torch.tensor([1.0, -1.0, 1.0, -1.0]).double() * 0.05 / 2,
        **EXACT,
        msg="each token weighs beta / 2, two pairs averaged",
    )


def completions(length, vocabulary, end):
    """All completions of at most this many tokens: they stop at the end token or are cut."""
    found, open_ = [], [[]]
    while open_:
        begun = open_.pop()
        for token in range(vocabulary):
            text = [*begun, token]
            (found if token == end or len(text) == length else open_).append(text)
    return found


def test_the_score_has_mean_zero_over_the_policys_own_completions(tiny_model, adapted):
    base, start = tiny_model(vocabulary=4).double(), adapted[2]
    texts = completions(3, 4, end=0)
    ids = torch.tensor([[1, 2, *text, *[0] * (3 - len(text))] for text in texts])
    mask = torch.tensor([[0, 0, *[1] * len(text), *[0] * (3 - len(text))] for text in texts])
    with torch.no_grad():
        probability = logprobs(base, ids, mask).sum(1).exp()
    assert float(probability.sum()) == pytest.approx(1, rel=1e-12), (
        "the completions are all there are"
    )
    scores = gradients.row_gradients(base, start, ids, mask, [mask[:, 1:].double()])[0]
    mean, size = probability @ scores, (probability @ scores**2).sum().sqrt()
    assert float(mean.norm() / size) < 1e-6, (
        "E[grad log pi(y)] = grad of the sum of all probabilities = 0, cut completions included"
    )
    halves = torch.arange(len(texts)) % 2 == 0
    parts = [probability[half] @ scores[half] for half in (halves, ~halves)]
    torch.testing.assert_close(
        parts[0],
        -parts[1],
        rtol=1e-4,
        atol=1e-6,
        msg="whatever splits them, right and wrong pull in exactly opposite directions",
    )


def test_replay_is_adamw_by_its_formula():
    run = (
        profiles.load("smoke")
        .runs["sft"]
        .model_copy(update={"steps": 40, "clip": 1.0, "learning_rate": 0.01, "weight_decay": 0.1})
    )
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    B, first, second = np.zeros(5), np.zeros(5), np.zeros(5)
    found = gradients.replay(run, vectors)
    for step, vector in enumerate(vectors.numpy(), start=1):
        g = -vector * min(1, 1 / (np.linalg.norm(vector) + 1e-6))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        rate = 0.01 * (
            (step - 1) / 2 if step <= 2 else (1 + math.cos(math.pi * (step - 3) / 38)) / 2
        )
        B = B * (1 - rate * 0.1) - rate * (first / (1 - 0.9**step)) / (
            np.sqrt(second / (1 - 0.999**step)) + 1e-8
        )
        np.testing.assert_allclose(
            found[step - 1], B, rtol=1e-9, atol=1e-15, err_msg=f"AdamW after step {step}"
        )
    assert (found[0] == 0).all(), "the first step of the warm-up has rate 0"


def test_replay_is_what_training_did_after_the_first_step_that_moves(smoke, table):
    run = profiles.run(smoke, "dpo")
    kept = gradients.measure(smoke, {name: profiles.run(smoke, name) for name in smoke.main_runs})
    _, start = gradients.initial(smoke, run)
    trained = load_update(trainer.train(smoke, run) / "snapshots" / "step-2")
    predicted = gradients.as_update(start, gradients.replay(run, kept.batches["dpo"])[1])
    for module, factors in trained.items():
        torch.testing.assert_close(
            predicted[module].B, factors.B, rtol=2e-2, atol=2e-6, msg=f"B of {module} after step 2"
        )


def test_the_sample_stands_for_the_table():
    rewards = [[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [0, 1], [1, 0], [0, 0], [1, 1]]
    table = pd.DataFrame(
        [
            {"problem_id": str(number), "reward": float(reward)}
            for number, group in enumerate(rewards)
            for reward in group
        ]
    )
    weight, block = gradients.sample(table, seed=0, mixed=2, others=1)
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
    found = gradients.batches(table, run, 2)
    assert [len(rows) for rows in found] == [2 * run.batch_size] * 2, (
        "a batch of pairs has two rows a pair"
    )
    assert (table.reward.iloc[found[0]].to_numpy().reshape(-1, 2) == [1, 0]).all(), (
        "chosen and rejected in turn"
    )
    assert table.problem_id.iloc[found[0]].nunique() <= run.batch_size


# --- geometry ------------------------------------------------------------------------------------------------------


def test_inner_products_are_those_of_the_updates(adapted):
    start = adapted[2]
    size = sum(factors.B.numel() for factors in start.values())
    vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(1)).double()
    found = gradients.inner_products(start, vectors)
    as_updates = [gradients.as_update(start, vector) for vector in vectors]
    expected = [
        [sum(updates.inner(one[module], other[module]) for module in start) for other in as_updates]
        for one in as_updates
    ]
    np.testing.assert_allclose(
        found, expected, rtol=1e-10, err_msg="<s B A, s B' A> module by module"
    )
    frame = gradients.orthonormal(start, vectors)
    np.testing.assert_allclose(
        gradients.inner_products(start, frame),
        np.eye(3),
        atol=1e-10,
        err_msg="the frame is orthonormal as updates",
    )
    cosine = gradients.cosines(gradients.inner_products(start, torch.stack([frame[0], vectors[0]])))
    assert cosine[0, 1] == pytest.approx(1, abs=1e-10), "and begins along the first vector"


def test_jackknife_covers_and_products_between_blocks_leave_out_noise():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2, 1, 400)) * [[[1.0]], [[0.5]]]
    signal[1] += 0.6 * signal[0]
    truth = gradients.cosines((signal[:, 0] @ signal[:, 0].T)[None])[0, 0, 1]
    covered, plain, free = 0, [], []
    for _ in range(60):
        blocks = (signal + 3 * rng.standard_normal((2, 10, 400))).reshape(20, 400)
        gram = (blocks @ blocks.T).reshape(2, 10, 2, 10)
        value, low, high = gradients.jackknife(
            gram, lambda inside: gradients.cosines(inside)[0, 1], between=True
        )
        plain.append(gradients.jackknife(gram, lambda inside: gradients.cosines(inside)[0, 1])[0])
        free.append(value)
        covered += low <= truth <= high
    assert abs(np.mean(free) - truth) < 0.03 < truth - np.mean(plain), (
        "noise lowers a plain cosine, not one of products between blocks"
    )
    assert covered >= 51, f"{covered} of 60 intervals of 95 % hold the true cosine"


def test_sign_flips_tell_a_mean_from_noise():
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((10, 300))
    ratio, p = gradients.sign_flips(noise @ noise.T)
    assert 0.5 < ratio < 1.6, "without a mean the ratio is about 1"
    assert p > 0.01, "which other signs reach as well"
    moved = noise + 0.5
    assert gradients.sign_flips(moved @ moved.T)[1] == pytest.approx(1 / 512), (
        "with one no other choice of signs reaches it"
    )


def test_all_wrong_prompts_do_not_break_the_choice_of_pairs(table):
    assert set(gradients.sample(table, 1, 3, 2)[1]) <= set(range(gradients.BLOCKS))
    assert rollouts.select(table, "pairs"), "the smoke table has mixed prompts"
