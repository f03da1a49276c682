"""Every loss against a closed form written out by hand in float64, its identities at the first
step, and its gradient."""

import math
from dataclasses import replace

import pytest
import torch

from helpers.training import objectives

EXACT = {"rtol": 1e-10, "atol": 1e-12}
# For losses whose signs and rewards are made in single precision.
SINGLE = {"rtol": 1e-7, "atol": 1e-9}
PREFERENCES = {"dpo", "dpo-length-normalised", "ipo", "simpo", "kto"}


@pytest.fixture
def rows():
    """Two groups of three rollouts, of unequal lengths, with rewards 1, 0, 0 and 1, 1, 0."""
    torch.manual_seed(1)
    lengths = [5, 2, 3, 4, 1, 5]
    mask = torch.tensor(
        [[1.0 * (t < length) for t in range(6)] for length in lengths], dtype=torch.float64
    )
    reward = torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.float64)
    mean = torch.tensor([1 / 3] * 3 + [2 / 3] * 3, dtype=torch.float64)
    spread = torch.full((6,), math.sqrt(2) / 3, dtype=torch.float64)
    behaviour, reference = -torch.rand(2, 6, 6).double() * 2 * mask
    return objectives.Rows(mask, reward, reward - mean, spread, behaviour, reference)


@pytest.fixture
def logp(rows):
    torch.manual_seed(2)
    return -torch.rand(6, 6).double() * 2 * rows.mask


def value(name, logp, rows, **options):
    loss, weight = objectives.objective(name).loss(logp, rows, **options)
    return (loss / weight).item()


def gradient(name, logp, rows, **options):
    return -objectives.token_weights(name, logp, rows, **options)


def tokens(rows):
    """(row, position) of each completion token."""
    return [
        (i, t)
        for i in range(rows.mask.shape[0])
        for t in range(rows.mask.shape[1])
        if rows.mask[i, t]
    ]


def token_mean(rows, term):
    positions = tokens(rows)
    return sum(term(i, t) for i, t in positions) / len(positions)


def row_sum(values, rows, i):
    return sum(values[i, t].item() for t in range(values.shape[1]) if rows.mask[i, t])


def test_sft_is_the_mean_negative_log_likelihood_of_completion_tokens(logp, rows):
    expected = token_mean(rows, lambda i, t: -logp[i, t].item())
    assert value("sft", logp, rows) == pytest.approx(expected, rel=1e-12), (
        "SFT must be the mean of -log p over all completion tokens"
    )


def test_rft_is_the_likelihood_of_the_correct_rows():
    assert objectives.OBJECTIVES["rft"].rows == "correct", "RFT trains on correct rollouts only"
    assert objectives.OBJECTIVES["rft"].loss is objectives.OBJECTIVES["sft"].loss, (
        "RFT differs from SFT in its rows alone"
    )
    assert {
        name for name, objective in objectives.OBJECTIVES.items() if objective.rows == "pairs"
    } == PREFERENCES, "only preferences come in pairs"


def test_dft_weighs_each_token_by_its_own_probability(logp, rows):
    expected = token_mean(rows, lambda i, t: -math.exp(logp[i, t]) * logp[i, t].item())
    assert value("dft", logp, rows) == pytest.approx(expected, rel=1e-12), (
        "DFT is -p log p in value"
    )


def test_gradient_of_dft_is_that_of_minus_the_probability(logp, rows):
    expected = -(logp.exp() * rows.mask) / rows.mask.sum()
    torch.testing.assert_close(
        gradient("dft", logp, rows),
        expected,
        **EXACT,
        msg="d(-p)/d(log p) = -p, so DFT's weight is p over the number of tokens",
    )


def test_rift_by_token_is_logarithm_for_right_and_probability_for_wrong(logp, rows):
    expected = token_mean(
        rows, lambda i, t: -logp[i, t].item() if rows.reward[i] else 0.2 * math.exp(logp[i, t])
    )
    assert value("rift", logp, rows) == pytest.approx(expected, rel=1e-12), (
        "RIFT: -log p for r > 0, +|r| p for r < 0, token mean"
    )


@pytest.mark.parametrize("level", ["sequence", "length-normalised"])
def test_rift_by_completion(logp, rows, level):
    terms = []
    for i in range(6):
        total = row_sum(logp, rows, i) / (
            rows.mask[i].sum().item() if level == "length-normalised" else 1
        )
        terms.append(-total if rows.reward[i] else 0.3 * math.exp(total))
    loss = value("rift", logp, rows, level=level, negative_reward=-0.3)
    assert loss == pytest.approx(sum(terms) / 6, rel=1e-12), (
        f"RIFT at level {level} averages one term per completion"
    )


@pytest.mark.parametrize("level", ["token", "length-normalised", "sequence"])
def test_rift_lowers_wrong_completions_and_its_push_is_bounded(logp, rows, level):
    weights = objectives.token_weights("rift", logp, rows, level=level)
    wrong = rows.mask.bool() & (rows.reward == 0)[:, None]
    assert (weights[wrong] < 0).all(), "a wrong completion must become less likely"
    assert (weights[rows.mask.bool() & (rows.reward > 0)[:, None]] > 0).all(), (
        "a right completion must become more likely"
    )
    unlikely = objectives.token_weights("rift", logp - 50 * rows.mask, rows, level=level)
    assert unlikely[wrong].abs().max() < 1e-12, (
        "the push fades with the probability: |r| pi goes to 0"
    )


def test_rift_with_only_right_rows_is_rft(logp, rows):
    right = objectives.Rows(
        rows.mask,
        torch.ones(6).double(),
        rows.advantage,
        rows.spread,
        rows.behaviour,
        rows.reference,
    )
    assert value("rift", logp, right) == pytest.approx(value("rft", logp, right), rel=1e-12), (
        "without wrong rows RIFT is RFT"
    )
    torch.testing.assert_close(gradient("rift", logp, right), gradient("rft", logp, right), **EXACT)


def test_rift_by_sequence_underflows_where_the_token_level_does_not():
    logp, mask = torch.full((1, 400), -1.0), torch.ones(1, 400)
    none = torch.zeros(1)
    long = objectives.Rows(mask, none, none, none, 0 * mask, 0 * mask)
    assert torch.equal(gradient("rift", logp, long, level="sequence"), 0 * mask), (
        "exp(-400) is 0 in float32: the negative vanishes"
    )
    for level in ("token", "length-normalised"):
        torch.testing.assert_close(
            gradient("rift", logp, long, level=level),
            0.2 * math.exp(-1) / 400 * mask,
            msg=f"{level}: each token weighs |r| / (e T)",
        )


@pytest.mark.parametrize("penalty", [-1.0, 0.5, 0.9, 1.0])
def test_rift_as_printed_weighs_right_rows_by_one_minus_lambda(logp, rows, penalty):
    expected = token_mean(
        rows, lambda i, t: -logp[i, t].item() * (1 - rows.reward[i].item() * penalty)
    )
    assert value("rift-paper", logp, rows, penalty=penalty) == pytest.approx(expected, rel=1e-12), (
        "the loss printed in 2606.23740"
    )
    weights = objectives.token_weights("rift-paper", logp, rows, penalty=penalty)
    ratio = weights[0, 0] / weights[1, 0]
    assert ratio == pytest.approx(1 - penalty), (
        "a right token weighs 1 - lambda times a wrong one: less for lambda > 0, nothing for 1"
    )


def test_offline_grpo_is_advantage_plus_bias_times_log_probability(logp, rows):
    means = [1 / 3] * 3 + [2 / 3] * 3
    expected = token_mean(
        rows, lambda i, t: -(rows.reward[i].item() - means[i] + 0.1) * logp[i, t].item()
    )
    assert value("offline-grpo", logp, rows) == pytest.approx(expected, rel=1e-12), (
        "-A log p with A = r - mean + 0.1"
    )


def test_offline_grpo_without_bias_has_no_mean_weight_in_a_group(logp, rows):
    for name in ("offline-grpo", "offline-grpo-probability"):
        weights = objectives.token_weights(name, 0 * logp, rows, bias=0.0)[:, 0]
        torch.testing.assert_close(
            weights.reshape(2, 3).sum(1),
            torch.zeros(2).double(),
            **EXACT,
            msg="advantages of a group sum to 0",
        )


def test_offline_grpo_bias_raises_groups_that_are_all_wrong(logp, rows):
    none = torch.zeros(6).double()
    wrong = objectives.Rows(rows.mask, none, none, none, rows.behaviour, rows.reference)
    assert (objectives.token_weights("offline-grpo", logp, wrong)[rows.mask.bool()] > 0).all(), (
        "with b = 0.1 even wrong completions are reinforced"
    )


def test_offline_grpo_clipped_is_the_pessimistic_ratio(logp, rows):
    def term(i, t):
        advantage = rows.advantage[i].item() / (math.sqrt(2) / 3 + 1e-4)
        ratio = math.exp(logp[i, t] - rows.behaviour[i, t])
        return -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)

    assert value("offline-grpo-clipped", logp, rows) == pytest.approx(
        token_mean(rows, term), rel=1e-12
    ), "-min(rho A, clip(rho) A)"


def test_offline_grpo_clipped_on_own_rollouts_is_the_policy_gradient(rows):
    logp = rows.behaviour
    expected = -(rows.advantage / (rows.spread + 1e-4))[:, None] * rows.mask / rows.mask.sum()
    torch.testing.assert_close(
        gradient("offline-grpo-clipped", logp, rows),
        expected,
        **EXACT,
        msg="at rho = 1 the gradient is that of -A log p",
    )


def test_offline_grpo_clipped_stops_where_the_ratio_left_the_trust_region(rows):
    far = rows.behaviour + 0.5 * rows.mask
    weights = objectives.token_weights("offline-grpo-clipped", far, rows)
    right, wrong = (
        rows.mask.bool() & (rows.advantage > 0)[:, None],
        rows.mask.bool() & (rows.advantage < 0)[:, None],
    )
    assert (weights[right] == 0).all(), "rho = e^0.5 > 1.2 with A > 0: nothing more to gain"
    assert (weights[wrong] < 0).all(), "rho > 1.2 with A < 0 is still pushed down"


def test_offline_grpo_clipped_is_zero_for_groups_without_variance(logp, rows):
    none = torch.zeros(6).double()
    flat = objectives.Rows(rows.mask, none, none, none, rows.behaviour, rows.reference)
    assert value("offline-grpo-clipped", logp, flat) == 0, (
        "a group whose rewards are equal has no advantage"
    )


def test_offline_grpo_probability_is_advantage_times_probability(logp, rows):
    expected = token_mean(
        rows, lambda i, t: -(rows.advantage[i].item() + 0.1) * math.exp(logp[i, t])
    )
    assert value("offline-grpo-probability", logp, rows) == pytest.approx(expected, rel=1e-12), (
        "-A p"
    )


def test_topr_tapers_wrong_completions_by_the_clipped_ratio(logp, rows):
    terms, tapers = [], []
    for i in range(6):
        total = row_sum(logp, rows, i)
        tapers.append(min(math.exp(total - row_sum(rows.behaviour, rows, i)), 1.0))
        terms.append(-total if rows.reward[i] else tapers[i] * total)
    assert value("topr", logp, rows) == pytest.approx(sum(terms) / 6, rel=1e-12), (
        "TOPR: -S for right, +clip(pi/mu, 0, 1) S for wrong, mean over sequences"
    )
    expected = torch.stack(
        [rows.mask[i] * (1.0 if rows.reward[i] else -tapers[i]) / 6 for i in range(6)]
    )
    torch.testing.assert_close(
        objectives.token_weights("topr", logp, rows),
        expected,
        **EXACT,
        msg="the taper is a constant: no gradient flows through it",
    )


def test_dpo_is_the_logistic_loss_of_the_difference_of_gains(logp, rows):
    gains = [row_sum(logp, rows, i) - row_sum(rows.reference, rows, i) for i in range(6)]
    terms = [math.log1p(math.exp(-0.1 * (gains[i] - gains[i + 1]))) for i in (0, 2, 4)]
    assert value("dpo", logp, rows) == pytest.approx(sum(terms) / 3, rel=1e-12), (
        "-log sigmoid(0.1 (gain chosen - gain rejected)), mean over pairs"
    )


def test_dpo_starts_at_log_two_with_half_of_beta_on_each_token(rows):
    assert value("dpo", rows.reference, rows) == pytest.approx(math.log(2), abs=1e-12), (
        "policy = reference: sigmoid(0) = 1/2"
    )
    sign = torch.tensor([1.0, -1.0] * 3).double()[:, None]
    expected = sign * 0.1 / 2 / 3 * rows.mask
    torch.testing.assert_close(
        objectives.token_weights("dpo", rows.reference, rows),
        expected,
        **EXACT,
        msg="+-beta/2 per token, over the number of pairs",
    )


def gains(logp, rows):
    """S - S0 of each completion."""
    return [row_sum(logp, rows, i) - row_sum(rows.reference, rows, i) for i in range(6)]


def lengths(rows):
    return rows.mask.sum(1).tolist()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_hand(name, logp, rows):
    """(value, weights of the tokens) of a preference loss, written out with scalars; rows 0, 2, 4
    are chosen, 1, 3, 5 rejected."""
    gain, T = gains(logp, rows), lengths(rows)
    values, weights = [], [0.0] * 6
    for w in (0, 2, 4):
        if name == "dpo-length-normalised":
            margin, beta = gain[w] / T[w] - gain[w + 1] / T[w + 1], 5.0
            values.append(-math.log(sigmoid(beta * margin)))
            push = beta * sigmoid(-beta * margin)
            weights[w], weights[w + 1] = push / T[w], -push / T[w + 1]
        elif name == "ipo":
            miss = gain[w] - gain[w + 1] - 5.0
            values.append(miss**2)
            weights[w], weights[w + 1] = -2 * miss, 2 * miss
        else:
            margin = (
                2.0 * (row_sum(logp, rows, w) / T[w] - row_sum(logp, rows, w + 1) / T[w + 1]) - 1.0
            )
            values.append(-math.log(sigmoid(margin)))
            push = 2.0 * sigmoid(-margin)
            weights[w], weights[w + 1] = push / T[w], -push / T[w + 1]
    return sum(values) / 3, torch.tensor(weights, dtype=torch.float64)[:, None] / 3 * rows.mask


@pytest.mark.parametrize("name", ["dpo-length-normalised", "ipo", "simpo"])
def test_preference_losses_and_their_gradients_are_the_hand_formulas(name, logp, rows):
    expected, weights = by_hand(name, logp, rows)
    assert value(name, logp, rows) == pytest.approx(expected, rel=1e-12), (
        f"{name}: mean over three pairs"
    )
    torch.testing.assert_close(
        objectives.token_weights(name, logp, rows),
        weights,
        **EXACT,
        msg=f"{name}: minus the derivative by log p, written by hand",
    )


def test_losses_with_a_reference_start_at_their_constants(rows):
    for name, expected in (("dpo-length-normalised", math.log(2)), ("ipo", 25.0), ("kto", 0.5)):
        assert value(name, rows.reference, rows) == pytest.approx(expected, abs=1e-12), (
            f"{name}: policy = reference, no margin yet"
        )


def test_ipo_turns_around_beyond_its_target_where_dpo_pushes_on(rows):
    gap = (
        torch.tensor([1.0, -1.0] * 3).double()[:, None] * rows.mask / rows.mask.sum(1, keepdim=True)
    )
    for margin, sign in ((4.0, 1), (6.0, -1)):
        there = rows.reference + gap * margin / 2
        assert (
            sign * objectives.token_weights("ipo", there, rows)[0::2][rows.mask[0::2].bool()] > 0
        ).all(), f"IPO at a margin of {margin}, target 5"
        assert (
            objectives.token_weights("dpo", there, rows)[0::2][rows.mask[0::2].bool()] > 0
        ).all(), "DPO always wants a larger margin"


def test_simpo_knows_no_reference(logp, rows):
    moved = objectives.Rows(
        rows.mask,
        rows.reward,
        rows.advantage,
        rows.spread,
        rows.behaviour,
        rows.reference - 3 * rows.mask,
    )
    assert value("simpo", logp, moved) == value("simpo", logp, rows), (
        "the base plays no part in SimPO"
    )


def test_simpo_and_length_normalised_dpo_do_not_see_a_repeated_completion():
    torch.manual_seed(3)
    once, mask = -torch.rand(2, 4).double(), torch.ones(2, 4).double()
    none = torch.zeros(2).double()
    twice = torch.cat([once, once], 1)
    for name in ("simpo", "dpo-length-normalised"):
        short = value(name, once, objectives.Rows(mask, none, none, none, once, once * 0.5))
        long = value(
            name,
            twice,
            objectives.Rows(torch.cat([mask, mask], 1), none, none, none, twice, twice * 0.5),
        )
        assert short == pytest.approx(long, rel=1e-12), f"{name} divides by the length"


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_kto_is_one_minus_a_sigmoid_against_a_baseline_without_gradient(shift, logp, rows):
    raised = logp + shift * rows.mask
    gain = gains(raised, rows)
    baseline = max(sum(gain) / 6, 0.0)
    assert (baseline > 0) == (shift > 0), "both branches of the baseline are tried"
    signs = [1 if reward else -1 for reward in rows.reward]
    utilities = [sigmoid(sign * 0.1 * (g - baseline)) for sign, g in zip(signs, gain, strict=True)]
    assert value("kto", raised, rows) == pytest.approx(
        sum(1 - u for u in utilities) / 6, rel=1e-7
    ), "KTO: 1 - v, mean over completions"
    weights = torch.tensor(
        [sign * 0.1 * u * (1 - u) / 6 for sign, u in zip(signs, utilities, strict=True)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(
        objectives.token_weights("kto", raised, rows),
        weights[:, None] * rows.mask,
        **SINGLE,
        msg="sigma' by hand, z held fixed",
    )


def test_naive_rift_is_reward_times_log_probability(logp, rows):
    expected = token_mean(rows, lambda i, t: -logp[i, t].item() * (1 if rows.reward[i] else -0.2))
    assert value("rift-naive", logp, rows) == pytest.approx(expected, rel=1e-7), (
        "-r log p, also for r < 0"
    )
    weights = (
        torch.where(rows.reward > 0, 1.0, -0.2).double()[:, None] * rows.mask / rows.mask.sum()
    )
    for drop in (0.0, 50.0):
        unlikely = objectives.token_weights("rift-naive", logp - drop * rows.mask, rows)
        torch.testing.assert_close(
            unlikely, weights, **SINGLE, msg="the push on a wrong token never fades"
        )
    assert value("rift-naive", logp - 50 * (1 - rows.reward)[:, None] * rows.mask, rows) < -1, (
        "unbounded below"
    )


OPTIONS = {"rift-paper": {"penalty": 0.5}}


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_positions_outside_the_completion_have_no_weight_and_no_influence(name, logp, rows):
    options = OPTIONS.get(name, {})
    outside = rows.mask == 0
    assert (objectives.token_weights(name, logp, rows, **options)[outside] == 0).all(), (
        f"{name}: prompt and padding must not be trained"
    )
    disturbed = logp - 3.0 * outside
    assert value(name, disturbed, rows, **options) == pytest.approx(
        value(name, logp, rows, **options), rel=1e-12
    ), f"{name} must not see masked positions"


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_loss_and_weight_add_up_over_micro_batches(name, logp, rows):
    objective, options = objectives.objective(name), OPTIONS.get(name, {})
    logp = logp + 0.5 * rows.mask  # so that KTO's baseline is above 0
    whole = objective.loss(logp, rows, **options)
    if objective.step_mean is not None:
        mean = objective.step_mean(logp, rows).mean()
        assert mean > 0.1
        options = options | {"step_mean": mean}

    def part(numbers):
        fields = {field: getattr(rows, field)[numbers] for field in rows.__dataclass_fields__}
        return objective.loss(logp[numbers], objectives.Rows(**fields), **options)

    parts = [part([0, 1]), part([2, 3, 4, 5])]
    for *summands, total, what in zip(*parts, whole, ("loss", "weight"), strict=True):
        assert sum(summands).item() == pytest.approx(total.item(), rel=1e-12), (
            f"{name}: the {what} of a step adds up"
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sft", lambda p, rows: torch.ones_like(p)),
        ("dft", lambda p, rows: p),
        (
            "rift",
            lambda p, rows: torch.where(rows.reward[:, None] > 0, torch.ones_like(p), -0.2 * p),
        ),
        ("offline-grpo", lambda p, rows: (rows.advantage + 0.1)[:, None].expand_as(p)),
        ("offline-grpo-probability", lambda p, rows: (rows.advantage + 0.1)[:, None] * p),
    ],
)
def test_token_weights_of_token_means_are_the_hand_formulas(name, expected, logp, rows):
    weights = objectives.token_weights(name, logp, rows) * rows.mask.sum()
    torch.testing.assert_close(
        weights,
        expected(logp.exp(), rows) * rows.mask,
        **EXACT,
        msg=f"{name}: minus the derivative by log p, written by hand",
    )


@pytest.mark.parametrize(
    "name", ["sft", "dft", "offline-grpo", "offline-grpo-probability", "rift-paper", "rift-naive"]
)
def test_other_aggregations_weigh_tokens_by_the_length_of_their_completion(name, logp, rows):
    options = OPTIONS.get(name, {})
    by_token = objectives.token_weights(name, logp, rows, **options) * rows.mask.sum()
    for aggregation, expected in (
        ("sequence", by_token / rows.mask.sum(1, keepdim=True) / 6),
        ("sum", by_token / 6),
    ):
        weights = objectives.token_weights(name, logp, rows, aggregation=aggregation, **options)
        torch.testing.assert_close(
            weights,
            expected,
            **EXACT,
            msg=f"{name} by {aggregation}: the same token weights over T_i n or over n",
        )


def test_unknown_aggregation_is_refused(logp, rows):
    with pytest.raises(
        ValueError, match="unknown aggregation 'mean': choose one of token, sequence, sum"
    ):
        objectives.sft(logp, rows, aggregation="mean")


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_an_objective_says_whether_it_reads_what_the_writer_gave_the_rollouts(name, logp, rows):
    unknown = replace(rows, behaviour=rows.behaviour * math.nan)
    loss = value(name, logp, unknown, **OPTIONS.get(name, {}))
    assert math.isnan(loss) == objectives.OBJECTIVES[name].reads_behaviour, (
        f"{name}: a loss that reads what is not known is not known"
    )


def test_what_the_trainer_gives_a_loss_is_no_option():
    objectives.check_options("kto", ["beta"])
    with pytest.raises(ValueError, match="'kto' has no option 'step_mean': it has beta"):
        objectives.check_options("kto", ["step_mean"])


def test_unknown_objective_is_refused_naming_those_that_exist():
    with pytest.raises(ValueError, match="unknown objective 'grpo': choose one of sft, rft"):
        objectives.objective("grpo")


def test_unknown_level_of_rift_is_refused(logp, rows):
    with pytest.raises(ValueError, match="sequenze"):
        objectives.rift(logp, rows, level="sequenze")
