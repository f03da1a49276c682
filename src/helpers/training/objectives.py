r"""Every loss of the book: pure functions of per-token log-probabilities, masks, rewards and groups.

Comes after `rollouts` and before `training` in the flow of data. With logp_t = log pi(y_t | x, y_<t) of shape (rows, tokens),
0 outside the completion, and mask of the same shape. Each function returns one loss a *unit* together with the unit's
weight; the loss of a batch is sum(loss) / sum(weight), both summed over all micro-batches and processes before dividing.
A unit is a token (token mean), a completion or a pair.

Where a method's citation says something else than arXiv:2606.23740 prints, both are here under names of their own.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Rows:
    """What a loss may use besides the policy's log-probabilities; one entry a completion unless shown otherwise.

    mask       (rows, tokens)  1 on completion tokens, the end token included
    reward     (rows,)         0 or 1
    advantage  (rows,)         reward minus the mean reward of the prompt's group
    spread     (rows,)         standard deviation of the rewards of the prompt's group (n in the denominator)
    behaviour  (rows, tokens)  log mu of the policy that wrote the rollout
    reference  (rows, tokens)  log pi_0 of the base
    For a preference objective rows alternate: chosen, rejected, chosen, rejected, ...
    """

    mask: torch.Tensor
    reward: torch.Tensor
    advantage: torch.Tensor
    spread: torch.Tensor
    behaviour: torch.Tensor
    reference: torch.Tensor

    def to(self, device):
        """The same on another device."""
        return Rows(**{name: values.to(device) for name, values in vars(self).items()})


def _mean(per_token, rows, aggregation):
    """Sum and weight of a mean over tokens ("token"), over completions of their token means ("sequence"), or of sums ("sum")."""
    if aggregation == "token":
        return (per_token * rows.mask).sum(), rows.mask.sum()
    sums = (per_token * rows.mask).sum(1)
    if aggregation == "sequence":
        sums = sums / rows.mask.sum(1)
    elif aggregation != "sum":
        raise ValueError(f"unknown aggregation {aggregation!r}: choose one of token, sequence, sum")
    return sums.sum(), torch.tensor(float(len(sums)))


def _total(loss):
    """Sum and weight of losses of completions or pairs."""
    return loss.sum(), torch.tensor(float(len(loss)))


def sft(logp, rows, aggregation="token"):
    """Negative log-likelihood, -logp_t; also RFT's loss, whose rows are the correct ones (2308.01825)."""
    return _mean(-logp, rows, aggregation)


def dft(logp, rows, aggregation="token"):
    """-sg(p_t) logp_t: likelihood weighted by the token's own probability; same gradient as -p_t (2508.05629, eq. 9)."""
    return _mean(-logp.exp().detach() * logp, rows, aggregation)


def rift(logp, rows, negative_reward=-0.2, level="token"):
    """Reward-informed fine-tuning (2601.09253): -r logp for r > 0, and |r| pi, bounded, for r < 0.

    `level`: "token" takes p_t and the token mean; "length-normalised" exp(mean logp) and "sequence" exp(sum logp) a
    completion, as published, where the latter underflows for long completions.
    """
    positive = rows.reward > 0
    if level == "token":
        return _mean(
            torch.where(positive[:, None], -logp, abs(negative_reward) * logp.exp()), rows, "token"
        )
    if level not in ("length-normalised", "sequence"):
        raise ValueError(
            f"unknown level {level!r} of RIFT: choose one of token, length-normalised, sequence"
        )
    total = (logp * rows.mask).sum(1)
    if level == "length-normalised":
        total = total / rows.mask.sum(1)
    return _total(torch.where(positive, -total, abs(negative_reward) * total.exp()))


def rift_as_printed(logp, rows, penalty, aggregation="token"):
    """(1 - r lambda)(-logp_t) as 2606.23740 prints it: with lambda > 0 correct rollouts weigh less."""
    return _mean((1 - rows.reward * penalty)[:, None] * -logp, rows, aggregation)


def rift_naive(logp, rows, negative_reward=-0.2, aggregation="token"):
    """-r logp_t for every rollout: what RIFT's bounded branch replaces, unbounded below for r < 0 (2601.09253)."""
    return _mean(
        -torch.where(rows.reward > 0, 1.0, negative_reward)[:, None] * logp, rows, aggregation
    )


def offline_grpo(logp, rows, bias=0.1, aggregation="token"):
    """-A_i logp_t with A_i = r_i - mean_G r + b: no std, ratio, clip or KL (2606.23740)."""
    return _mean(-(rows.advantage + bias)[:, None] * logp, rows, aggregation)


def offline_grpo_clipped(logp, rows, epsilon=0.2, aggregation="token"):
    """The clipped ratio to the behaviour policy with group-normalised advantages (2402.03300, eq. 3; no KL)."""
    advantage = (rows.advantage / (rows.spread + 1e-4))[:, None]
    ratio = (logp - rows.behaviour).exp()
    return _mean(
        -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage),
        rows,
        aggregation,
    )


def offline_grpo_probability(logp, rows, bias=0.1, aggregation="token"):
    """-A_i p_t: the advantage times the probability, not its logarithm (the form called GPO)."""
    return _mean(-(rows.advantage + bias)[:, None] * logp.exp(), rows, aggregation)


def topr(logp, rows):
    """Tapered off-policy REINFORCE (2503.14286): wrong completions weigh clip(pi/mu, 0, 1), correct ones 1."""
    total, behaviour = (logp * rows.mask).sum(1), (rows.behaviour * rows.mask).sum(1)
    taper = (total - behaviour).exp().clamp(0, 1).detach()
    return _total(torch.where(rows.reward > 0, -total, taper * total))


def _gain(logp, rows):
    """S - S0 of each completion, S = sum of logp_t."""
    return ((logp - rows.reference) * rows.mask).sum(1)


def _margin(scores):
    """Chosen minus rejected, one entry a pair."""
    return scores[0::2] - scores[1::2]


def dpo(logp, rows, beta=0.1):
    """-log sigmoid(beta [(S_w - S0_w) - (S_l - S0_l)]), S = sum of logp_t; mean over pairs (2305.18290, eq. 7)."""
    return _total(-logsigmoid(beta * _margin(_gain(logp, rows))))


def dpo_length_normalised(logp, rows, beta=5.0):
    """DPO with S and S0 divided by the completion's length; beta as in Tulu 3 (2411.15124, eq. 6)."""
    return _total(-logsigmoid(beta * _margin(_gain(logp, rows) / rows.mask.sum(1))))


def ipo(logp, rows, beta=0.1):
    """([(S_w - S0_w) - (S_l - S0_l)] - 1/(2 beta))^2, a margin that is reached and not exceeded (2310.12036, eq. 17)."""
    return _total((_margin(_gain(logp, rows)) - 1 / (2 * beta)) ** 2)


def simpo(logp, rows, beta=2.0, margin=1.0):
    """-log sigmoid(beta (mean logp_w - mean logp_l) - margin): no reference, lengths divided out (2405.14734, eq. 6)."""
    return _total(
        -logsigmoid(beta * _margin((logp * rows.mask).sum(1) / rows.mask.sum(1)) - margin)
    )


def kto(logp, rows, beta=0.1):
    """1 - sigmoid(+-beta (S - S0 - z)), + for correct and - for wrong completions, z >= 0 a baseline without gradient (2402.01306, eq. 8).

    The paper estimates z from completions of other prompts; here it is the mean of S - S0 over the batch, where it is positive.
    """
    gain = _gain(logp, rows)
    signs = torch.where(rows.reward > 0, 1.0, -1.0)
    return _total(1 - torch.sigmoid(signs * beta * (gain - gain.mean().clamp(min=0).detach())))


@dataclass(frozen=True)
class Objective:
    """A loss with the rows it trains on: "all", "correct" or "pairs", and where its formula is from."""

    loss: Callable
    rows: str
    source: str


OBJECTIVES = {
    "sft": Objective(sft, "all", "2606.23740"),
    "rft": Objective(sft, "correct", "2308.01825"),
    "dft": Objective(dft, "all", "2508.05629"),
    "rift": Objective(rift, "all", "2601.09253"),
    "rift-naive": Objective(rift_naive, "all", "2601.09253"),
    "rift-paper": Objective(rift_as_printed, "all", "2606.23740"),
    "offline-grpo": Objective(offline_grpo, "all", "2606.23740"),
    "offline-grpo-clipped": Objective(offline_grpo_clipped, "all", "2402.03300"),
    "offline-grpo-probability": Objective(
        offline_grpo_probability, "all", "effective_llm_alignment"
    ),
    "topr": Objective(topr, "all", "2503.14286"),
    "dpo": Objective(dpo, "pairs", "2305.18290"),
    "dpo-length-normalised": Objective(dpo_length_normalised, "pairs", "2411.15124"),
    "ipo": Objective(ipo, "pairs", "2310.12036"),
    "simpo": Objective(simpo, "pairs", "2405.14734"),
    "kto": Objective(kto, "pairs", "2402.01306"),
}
ONLINE = {
    "grpo": "2402.03300",
    "dapo": "2503.14476",
}  # trained on the policy's own rollouts (`online`): their losses are TRL's


def objective(name):
    """The objective called `name`; raises ValueError naming the ones that exist."""
    if name not in OBJECTIVES:
        raise ValueError(
            f"unknown objective {name!r}: choose one of {', '.join([*OBJECTIVES, *ONLINE])}"
        )
    return OBJECTIVES[name]


def check_options(name, options):
    """Raise ValueError for an option that the objective does not have, naming those it has."""
    known = list(inspect.signature(objective(name).loss).parameters)[2:]
    if unknown := set(options) - set(known):
        raise ValueError(
            f"objective {name!r} has no option {sorted(unknown)[0]!r}: it has {', '.join(known) or 'none'}"
        )


def token_weights(name, logp, rows, **options):
    """The gradient as a weight a token: w with grad(loss) = -sum_t w_t grad(logp_t), shape (rows, tokens).

    Positive weights raise a token's probability. Found by differentiating the loss itself.
    """
    logp = logp.detach().requires_grad_(True)
    loss, weight = objective(name).loss(logp, rows, **options)
    (gradient,) = torch.autograd.grad(loss / weight, logp)
    return -gradient
