"""What training on own rollouts expects, by enumerating every completion of a small model; and whether the shipped rollouts are the base's own."""

import itertools

import numpy as np
import pytest
import torch

from adapter_geometry import language_models
from helpers import profiles
from helpers.data import rollouts
from helpers.models import loading, logprobs
from helpers.training import objectives

PROMPT, END, LONGEST = [3, 1, 4], 0, 3
WORDS = range(6)


class Everything:
    """All completions of one prompt, up to a length at which they are cut, with their probabilities under a model with an adapter."""

    def __init__(self, model, longest=LONGEST):
        self.completions = [
            list(ids)
            for length in range(1, longest + 1)
            for ids in itertools.product(WORDS, repeat=length)
            if END not in ids[:-1] and (ids[-1] == END or length == longest)
        ]
        self.factors = [weight for name, weight in model.named_parameters() if "lora_B" in name]
        input_ids, completion_mask = language_models.pad(
            [PROMPT] * len(self.completions), self.completions, END
        )
        self.mask = completion_mask[:, 1:].float()
        self.logp = logprobs.token_logprobs(model, input_ids, completion_mask)
        self.S = (self.logp * self.mask).sum(1)
        self.p = self.S.exp()
        self.tokens = self.mask.sum(1)
        self.reward = torch.tensor([float(sum(ids) % 3 == 1) for ids in self.completions])

    def gradient(self, value):
        """Gradient of a number with respect to every B, one vector."""
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(value, self.factors, retain_graph=True)]
        )

    def expected(self, weights):
        """E[sum_t w_t grad logp_t] for weights (completions,) or (completions, tokens) that are constants."""
        weights = torch.as_tensor(weights, dtype=torch.float32).detach()
        return self.gradient(
            (
                self.p.detach()[:, None]
                * (weights[:, None] if weights.ndim == 1 else weights)
                * self.logp
                * self.mask
            ).sum()
        )

    def rows(self, numbers, advantage=None):
        """The objectives' view of some completions, the policy itself being behaviour policy and reference."""
        zeros = torch.zeros(len(self.p))
        logp = (self.logp * self.mask).detach()
        columns = (
            self.mask,
            self.reward,
            zeros if advantage is None else advantage,
            zeros,
            logp,
            logp,
        )
        return objectives.Rows(*(column[numbers] for column in columns))

    def weights(self, name, numbers, advantage=None, **options):
        """Weights of the tokens of some completions in an objective's descent direction."""
        return objectives.token_weights(
            name, (self.logp * self.mask)[numbers], self.rows(numbers, advantage), **options
        )


@pytest.fixture
def everything(tiny_model, with_adapter):
    return Everything(with_adapter(tiny_model(vocabulary=len(WORDS), context=16, seed=3)))


def close(found, expected):
    scale = max(float(expected.norm()), 1e-3)
    return float((found - expected).norm()) < 1e-4 * scale


def one_by_one(everything, name, advantage=None, **options):
    return torch.cat(
        [
            everything.weights(name, [number], advantage, **options)
            for number in range(len(everything.p))
        ]
    )


def test_all_completions_have_probability_one(everything):
    assert float(everything.p.sum().detach()) == pytest.approx(1, abs=1e-5), (
        "completions that end or are cut are all there are"
    )


def test_expected_gradient_of_sft_on_own_rollouts_is_zero(everything):
    found = everything.expected(one_by_one(everything, "sft", aggregation="sum"))
    single = everything.gradient(everything.S[0])
    assert float(found.norm()) < 1e-5 * float(single.norm()), (
        "the score has mean zero, whatever the policy"
    )


def test_it_is_not_zero_on_samples_of_a_cooler_policy(everything):
    cool = everything.S.detach() / 0.7
    cool = (cool - cool.logsumexp(0)).exp()
    found = everything.gradient((cool * everything.S).sum())
    apart = everything.gradient(-(cool * (cool.log() - everything.S)).sum())
    assert float(found.norm()) > 1e-2, "imitating a sharper policy teaches to be sharp"
    assert close(found, apart), "E_q[grad log pi] = -grad KL(q || pi)"


def test_expected_gradient_of_rft_on_own_rollouts_is_that_of_the_pass_rate(everything):
    found = everything.expected(
        one_by_one(everything, "rft", aggregation="sum") * everything.reward[:, None]
    )
    assert close(found, everything.gradient((everything.p * everything.reward).sum())), (
        "E[r grad log pi] = grad E[r]"
    )


@pytest.mark.parametrize("bias", [0.0, 0.1, 3.0])
def test_expected_gradient_of_offline_grpo_is_a_share_of_that_of_the_pass_rate(everything, bias):
    p, r = everything.p.detach(), everything.reward
    advantage = sum(
        p[other] * (r - (r + r[other]) / 2) for other in range(len(p))
    )  # groups of two, the other one drawn independently
    found = everything.expected(
        one_by_one(everything, "offline-grpo", advantage, aggregation="sum", bias=bias)
    )
    assert close(found, everything.gradient((everything.p * r).sum()) / 2), (
        "(1 - 1/K) grad E[r], and the bias drops out"
    )


def test_expected_gradient_of_dpo_is_that_of_the_log_odds_of_being_right(everything):
    p, r, beta = everything.p, everything.reward, 0.1
    right, wrong = (torch.nonzero(r == value).flatten().tolist() for value in (1, 0))
    weights = torch.zeros_like(everything.mask)
    for number in right:
        weights[number] = (
            everything.weights("dpo", [number, wrong[0]], beta=beta)[0] / p[right].sum()
        )
    for number in wrong:
        weights[number] = (
            everything.weights("dpo", [right[0], number], beta=beta)[1] / p[wrong].sum()
        )
    odds = p[right].sum().log() - p[wrong].sum().log()
    assert close(everything.expected(weights), beta / 2 * everything.gradient(odds)), (
        "grad p / p + grad p / (1 - p) = grad log(p / (1 - p))"
    )


def test_expected_gradient_of_dft_sharpens(tiny_model, with_adapter):
    single = Everything(
        with_adapter(tiny_model(vocabulary=len(WORDS), context=16, seed=3)), longest=1
    )
    found = single.expected(one_by_one(single, "dft", aggregation="sum"))
    assert close(found, single.gradient((single.p**2).sum()) / 2), (
        "half the gradient of the chance that two draws of a token agree"
    )
    assert float(found.norm()) > 1e-2, "DFT is not at rest on its own rollouts"


def test_means_over_tokens_make_own_rollouts_shorter(everything):
    sequence = everything.expected(one_by_one(everything, "sft", aggregation="sequence"))
    assert close(sequence, everything.gradient((everything.p / everything.tokens).sum())), (
        "with one rollout, E[g / T] = grad E[1 / T]"
    )
    p, T, count = everything.p.detach(), everything.tokens, 64
    by_length = np.bincount(T.int().numpy(), weights=p.numpy())
    others = np.array([1.0])
    for _ in range(count - 1):
        others = np.convolve(others, by_length)
    share = torch.tensor(
        [count * (others / (length + np.arange(len(others)))).sum() for length in T.tolist()]
    )
    found, first_order = (
        everything.expected(share),
        -everything.gradient((everything.p * T).sum()) / (count * float((p * T).sum()) ** 2),
    )
    assert float(torch.nn.functional.cosine_similarity(found, first_order, dim=0)) > 0.999, (
        "a batch's token mean leans against the expected length"
    )
    assert float(found.norm() / first_order.norm()) == pytest.approx(1, abs=0.1), (
        "by grad E[T] / (N mean(T)^2), to first order in 1/N"
    )


# --- the shipped table of the base's own rollouts ------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    return profiles.load("tiny")


def test_own_rollouts_answer_the_same_prompts_and_were_written_by_the_base(study):
    own, teacher = (rollouts.load_table(study, writer) for writer in ("base", "teacher"))
    assert own.problem_id.tolist() == teacher.problem_id.tolist(), (
        "the same prompts in the same order, as many rollouts each"
    )
    for behaviour, base in zip(own.logp_behaviour, own.logp_base, strict=True):
        np.testing.assert_array_equal(
            behaviour, base, err_msg="writer and base are one model, so every importance ratio is 1"
        )


@torch.inference_mode()
def surprises(model, table, temperatures):
    """{temperature: z} of the sum of log-probability plus entropy over the tokens of some rows, about standard normal for samples at this
    temperature, since it is the score with respect to the inverse temperature."""
    sums = {temperature: [0.0, 0.0] for temperature in temperatures}
    for prompt, completion in zip(table.prompt_ids, table.completion_ids, strict=True):
        ids = torch.tensor([*prompt, *completion])
        logits = model(ids[None]).logits[0, len(prompt) - 1 : -1].double()
        for temperature, found in sums.items():
            logp = torch.log_softmax(logits / temperature, -1)
            mean = (logp.exp() * logp).sum(-1)
            found[0] += float((logp.gather(1, ids[len(prompt) :, None]).squeeze(1) - mean).sum())
            found[1] += float(((logp.exp() * logp**2).sum(-1) - mean**2).sum())
    return {temperature: total / variance**0.5 for temperature, (total, variance) in sums.items()}


def test_own_rollouts_are_samples_of_the_base_at_temperature_one(study):
    model, own = loading.load_model(study), rollouts.load_table(study, "base").iloc[::160]
    found = surprises(model, own, (0.7, 1.0, 1.4))
    assert abs(found[1.0]) < 3, (
        f"a policy is as surprised by its own samples as its entropy says: {found}"
    )
    assert found[0.7] < -4, f"samples of a hotter policy would be seen: {found}"
    assert found[1.4] > 4, f"and those of a cooler one: {found}"
