"""Gradients at step 0 against automatic differentiation, AdamW against its formula, and the mean of
the score against 0 by enumeration."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapter_geometry import updates
from adapter_geometry.updates import Factors
from helpers import profiles
from helpers.analysis import gradients
from helpers.training import objectives

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def adapted(tiny_model):
    """(PEFT model at B = 0, base without adapter, start), both models with the same weights in
    float64."""
    modules = ["q_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    peft = get_peft_model(tiny_model().double(), lora).eval().double()
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
    """Four rows of a prompt of three tokens and completions of unequal lengths.

    (input_ids, completion_mask), each (4, 9).
    """
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 40, (4, 9), generator=generator)
    mask = torch.tensor([[0, 0, 0] + [1] * length + [0] * (6 - length) for length in (6, 2, 4, 5)])
    return ids, mask


def logprobs(model, ids, mask):
    """Plain log-probabilities of the completion's tokens, zero outside."""
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]


def rows_of(logp, mask):
    """Two groups, right and wrong in turn; behaviour and reference are the policy itself."""
    reward = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    return objectives.Rows(
        mask=mask[:, 1:].double(),
        reward=reward,
        advantage=reward - 0.5,
        spread=torch.full((4,), 0.5).double(),
        behaviour=logp.detach(),
        reference=logp.detach(),
    )


OPTIONS = {"rift-paper": {"penalty": 0.5}}


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_weighted_scores_are_the_gradient_of_every_loss(name, adapted, batch):
    peft, base, start = adapted
    logp = logprobs(peft, *batch)
    rows = rows_of(logp, batch[1])
    weights = objectives.token_weights(name, logp, rows, **OPTIONS.get(name, {}))
    loss, weight = objectives.objective(name).loss(logp, rows, **OPTIONS.get(name, {}))
    factors = [factor for key, factor in peft.named_parameters() if "lora_B" in key]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss / weight, factors)])
    weighted = gradients.row_gradients(base, start, *batch, [weights])[0].sum(0)
    torch.testing.assert_close(
        weighted,
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
    seen = gradients.row_gradients(base, start, *batch, ones)[0].sum(0)
    torch.testing.assert_close(seen, expected, **EXACT, msg="at B = 0 the gradient of B is s G A'")
    whole = {
        module: Factors(torch.zeros(G.shape), torch.eye(G.shape[1]).double(), 1.0)
        for module, G in zip(start, dense, strict=True)
    }
    at_once = gradients.row_gradients(base, whole, *batch, ones)[0].sum(0)
    flat = torch.cat([G.flatten() for G in dense])
    torch.testing.assert_close(at_once, flat, **EXACT, msg="with A = 1 it is the dense gradient")
    dense_start = gradients.dense_start(start)
    shapes = [[part.A.shape for part in each.values()] for each in (dense_start, whole)]
    assert shapes[0] == shapes[1], "dense_start has A = 1"
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


AFFINE = (
    *("sft", "rft", "dft", "rift", "rift-paper", "offline-grpo", "offline-grpo-probability"),
    *("dpo", "ipo", "kto"),
)


@pytest.mark.parametrize("name", AFFINE)
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
    finished, unfinished = [], [[]]
    while unfinished:
        beginning = unfinished.pop()
        for token in range(vocabulary):
            text = [*beginning, token]
            is_finished = token == end or len(text) == length
            (finished if is_finished else unfinished).append(text)
    return finished


def test_the_score_has_mean_zero_over_the_completions_of_the_policy(tiny_model, adapted):
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
    settings = {"steps": 40, "clip": 1.0, "learning_rate": 0.01, "weight_decay": 0.1}
    run = profiles.load("smoke").runs["sft"].model_copy(update=settings)
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    B, first, second = np.zeros(5), np.zeros(5), np.zeros(5)
    replayed = gradients.replay(run, vectors)
    for step, vector in enumerate(vectors.numpy(), start=1):
        g = -vector * min(1, 1 / (np.linalg.norm(vector) + 1e-6))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        cosine = (1 + math.cos(math.pi * (step - 3) / 38)) / 2
        rate = 0.01 * ((step - 1) / 2 if step <= 2 else cosine)
        mean, size = first / (1 - 0.9**step), np.sqrt(second / (1 - 0.999**step))
        B = B * (1 - rate * 0.1) - rate * mean / (size + 1e-8)
        np.testing.assert_allclose(
            replayed[step - 1], B, rtol=1e-9, atol=1e-15, err_msg=f"AdamW after step {step}"
        )
    assert (replayed[0] == 0).all(), "the first step of the warm-up has rate 0"


# --- geometry -------------------------------------------------------------------------------------


def test_inner_products_are_those_of_the_updates(adapted):
    start = adapted[2]
    size = sum(factors.B.numel() for factors in start.values())
    vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(1)).double()
    gram = gradients.inner_products(start, vectors)
    as_updates = [gradients.as_update(start, vector) for vector in vectors]
    expected = [
        [sum(updates.inner(one[module], other[module]) for module in start) for other in as_updates]
        for one in as_updates
    ]
    np.testing.assert_allclose(
        gram, expected, rtol=1e-10, err_msg="<s B A, s B' A> module by module"
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

    def cosine(of_sums):
        return gradients.cosines(of_sums)[0, 1]

    covered, plain, noise_free = 0, [], []
    for _ in range(60):
        blocks = (signal + 3 * rng.standard_normal((2, 10, 400))).reshape(20, 400)
        gram = (blocks @ blocks.T).reshape(2, 10, 2, 10)
        value, low, high = gradients.jackknife(gram, cosine, between=True)
        plain.append(gradients.jackknife(gram, cosine)[0])
        noise_free.append(value)
        covered += low <= truth <= high
    assert abs(np.mean(noise_free) - truth) < 0.03 < truth - np.mean(plain), (
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
