r"""Every loss of the book: pure functions of log-probabilities, masks, rewards and groups.

Comes after the table of rollouts and before the trainer in the flow of data; touches no file and no
model. With logp_t = log pi(y_t | x, y_<t) of shape (rows, tokens), where a row is a rollout and a
token is one that is predicted, so that there is one column less than tokens in the row. Outside the
completion logp_t is 0 and so is the mask, of the same shape.

Each function returns the sum of its losses over *units*, and the units' total weight; the loss of a
step is sum(loss) / sum(weight), both summed over all micro-batches and processes before dividing.
A unit is a token (token mean), a completion or a pair. One loss is more than a sum over its units:
KTO's, whose baseline is a mean over all rows of the step (`Objective.step_mean`).

Where a method's citation says something else than arXiv:2606.23740 prints, both are here under
names of their own.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

LossAndWeight = tuple[Float[Tensor, ""], Float[Tensor, ""]]
"""Sum of the losses of some units, and the weight of these units."""


@dataclass(frozen=True)
class Rows:
    """What a loss may use besides the policy's log-probabilities; one entry per completion, or one
    per token of each.

    mask       (rows, tokens)  1 on completion tokens, the end token included
    reward     (rows,)         0 or 1
    advantage  (rows,)         reward minus the mean reward of the prompt's group
    spread     (rows,)         standard deviation of the rewards of the prompt's group (n in the
                               denominator)
    behaviour  (rows, tokens)  log mu of the policy that wrote the rollout
    reference  (rows, tokens)  log pi_0 of the base

    For a preference objective rows alternate: chosen, rejected, chosen, rejected, ...
    """

    mask: Float[Tensor, "rows tokens"]
    reward: Float[Tensor, " rows"]
    advantage: Float[Tensor, " rows"]
    spread: Float[Tensor, " rows"]
    behaviour: Float[Tensor, "rows tokens"]
    reference: Float[Tensor, "rows tokens"]

    def to(self, device: torch.device | str) -> "Rows":
        """The same on another device."""
        return Rows(**{name: values.to(device) for name, values in vars(self).items()})


def _mean(per_token: Float[Tensor, "rows tokens"], rows: Rows, aggregation: str) -> LossAndWeight:
    """Sum and weight of a mean over tokens ("token"), over completions of the means of their tokens
    ("sequence"), or over completions of the sums of their tokens ("sum").

    Raises ValueError for another aggregation.
    """
    if aggregation == "token":
        return (per_token * rows.mask).sum(), rows.mask.sum()
    per_row = (per_token * rows.mask).sum(1)  # (rows,)
    if aggregation == "sequence":
        per_row = per_row / rows.mask.sum(1)
    elif aggregation != "sum":
        raise ValueError(f"unknown aggregation {aggregation!r}: choose one of token, sequence, sum")
    return _total(per_row)


def _total(losses: Float[Tensor, " units"]) -> LossAndWeight:
    """Sum and weight of losses of completions or pairs, each of which counts once."""
    return losses.sum(), torch.tensor(float(len(losses)))


def _completion_sum(values: Float[Tensor, "rows tokens"], rows: Rows) -> Float[Tensor, " rows"]:
    """Sum of the values at the tokens of each completion."""
    return (values * rows.mask).sum(1)


# --- losses of completions -----------------------------------------------------------------------


def sft(
    logp: Float[Tensor, "rows tokens"], rows: Rows, aggregation: str = "token"
) -> LossAndWeight:
    """Negative log-likelihood, -logp_t; also RFT's loss, whose rows are the correct ones
    (2308.01825)."""
    return _mean(-logp, rows, aggregation)


def dft(
    logp: Float[Tensor, "rows tokens"], rows: Rows, aggregation: str = "token"
) -> LossAndWeight:
    """-sg(p_t) logp_t with p_t = exp(logp_t) and sg = stop-gradient: likelihood weighted by the
    token's own probability; its gradient is that of -p_t (2508.05629, eq. 9)."""
    weights = logp.exp().detach()  # (rows, tokens), without gradient: a weight, not a term
    return _mean(-weights * logp, rows, aggregation)


def rift(
    logp: Float[Tensor, "rows tokens"],
    rows: Rows,
    negative_reward: float = -0.2,
    level: str = "token",
) -> LossAndWeight:
    """Reward-informed fine-tuning: -logp for r = 1, and |r| pi, bounded, for r < 0 (2601.09253).

    r is `negative_reward` on wrong completions. `level`: "token" takes p_t and the token mean;
    "length-normalised" exp(mean logp) and "sequence" exp(sum logp) per completion, as published,
    where the latter underflows for long completions. Raises ValueError for another level.
    """
    is_right = rows.reward > 0  # (rows,)
    penalty = abs(negative_reward)
    if level == "token":
        # (rows, tokens): the branch of a token is that of its completion.
        per_token = torch.where(is_right[:, None], -logp, penalty * logp.exp())
        return _mean(per_token, rows, "token")
    if level not in ("length-normalised", "sequence"):
        raise ValueError(
            f"unknown level {level!r} of RIFT: choose one of token, length-normalised, sequence"
        )
    total = _completion_sum(logp, rows)  # (rows,)
    if level == "length-normalised":
        total = total / rows.mask.sum(1)
    return _total(torch.where(is_right, -total, penalty * total.exp()))


def rift_as_printed(
    logp: Float[Tensor, "rows tokens"], rows: Rows, penalty: float, aggregation: str = "token"
) -> LossAndWeight:
    """(1 - r lambda)(-logp_t) as 2606.23740 prints it, r the reward and lambda the `penalty`: with
    lambda > 0 correct rollouts weigh less."""
    weights = (1 - rows.reward * penalty)[:, None]  # (rows, 1): one per completion
    return _mean(weights * -logp, rows, aggregation)


def rift_naive(
    logp: Float[Tensor, "rows tokens"],
    rows: Rows,
    negative_reward: float = -0.2,
    aggregation: str = "token",
) -> LossAndWeight:
    """-r logp_t for every rollout, r = 1 or `negative_reward`: what RIFT's bounded branch replaces,
    unbounded below for r < 0 (2601.09253)."""
    signed_reward = torch.where(rows.reward > 0, 1.0, negative_reward)[:, None]  # (rows, 1)
    return _mean(-signed_reward * logp, rows, aggregation)


def offline_grpo(
    logp: Float[Tensor, "rows tokens"],
    rows: Rows,
    bias: float = 0.1,
    aggregation: str = "token",
) -> LossAndWeight:
    """-A_i logp_t with A_i = r_i - mean_G r + b, b the `bias`: no standard deviation, ratio, clip
    or KL (2606.23740)."""
    advantage = (rows.advantage + bias)[:, None]  # (rows, 1)
    return _mean(-advantage * logp, rows, aggregation)


def offline_grpo_clipped(
    logp: Float[Tensor, "rows tokens"],
    rows: Rows,
    epsilon: float = 0.2,
    aggregation: str = "token",
) -> LossAndWeight:
    """-min(rho_t A_i, clip(rho_t, 1 - epsilon, 1 + epsilon) A_i), with rho_t = pi / mu the ratio to
    the behaviour policy and A_i = (r_i - mean_G r) / std_G r (2402.03300, eq. 3; no KL)."""
    # (rows, 1); the small number keeps groups without spread, whose advantage is 0, at 0.
    advantage = (rows.advantage / (rows.spread + 1e-4))[:, None]
    ratio = (logp - rows.behaviour).exp()  # (rows, tokens)
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + epsilon)
    gain = torch.minimum(ratio * advantage, clipped_ratio * advantage)  # the pessimistic of the two
    return _mean(-gain, rows, aggregation)


def offline_grpo_probability(
    logp: Float[Tensor, "rows tokens"],
    rows: Rows,
    bias: float = 0.1,
    aggregation: str = "token",
) -> LossAndWeight:
    """-A_i p_t with the advantage of `offline_grpo`: times the probability, not its logarithm (the
    form called GPO)."""
    advantage = (rows.advantage + bias)[:, None]  # (rows, 1)
    return _mean(-advantage * logp.exp(), rows, aggregation)


def topr(logp: Float[Tensor, "rows tokens"], rows: Rows) -> LossAndWeight:
    """Tapered off-policy REINFORCE (2503.14286), S = sum of logp_t: -S for correct completions, and
    sg(clip(pi / mu, 0, 1)) S for wrong ones."""
    total = _completion_sum(logp, rows)  # (rows,) log pi(y | x)
    behaviour = _completion_sum(rows.behaviour, rows)  # (rows,) log mu(y | x)
    taper = (total - behaviour).exp().clamp(0, 1).detach()  # (rows,), without gradient: a weight
    return _total(torch.where(rows.reward > 0, -total, taper * total))


# --- losses of pairs, and of completions against a reference --------------------------------------


def _gain(logp: Float[Tensor, "rows tokens"], rows: Rows) -> Float[Tensor, " rows"]:
    """S - S0 of each completion, S = sum of logp_t and S0 the same of the reference."""
    return _completion_sum(logp - rows.reference, rows)


def _margin(scores: Float[Tensor, " rows"]) -> Float[Tensor, " pairs"]:
    """Chosen minus rejected, which alternate: one entry per pair."""
    return scores[0::2] - scores[1::2]


def dpo(logp: Float[Tensor, "rows tokens"], rows: Rows, beta: float = 0.1) -> LossAndWeight:
    """-log sigmoid(beta [(S_w - S0_w) - (S_l - S0_l)]), S = sum of logp_t, w chosen and l rejected;
    mean over pairs (2305.18290, eq. 7)."""
    return _total(-logsigmoid(beta * _margin(_gain(logp, rows))))


def dpo_length_normalised(
    logp: Float[Tensor, "rows tokens"], rows: Rows, beta: float = 5.0
) -> LossAndWeight:
    """`dpo` with S and S0 divided by the completion's length; beta as in Tulu 3 (2411.15124,
    eq. 6)."""
    return _total(-logsigmoid(beta * _margin(_gain(logp, rows) / rows.mask.sum(1))))


def ipo(logp: Float[Tensor, "rows tokens"], rows: Rows, beta: float = 0.1) -> LossAndWeight:
    """([(S_w - S0_w) - (S_l - S0_l)] - 1/(2 beta))^2, a margin that is reached and not exceeded
    (2310.12036, eq. 17)."""
    target = 1 / (2 * beta)
    return _total((_margin(_gain(logp, rows)) - target) ** 2)


def simpo(
    logp: Float[Tensor, "rows tokens"], rows: Rows, beta: float = 2.0, margin: float = 1.0
) -> LossAndWeight:
    """-log sigmoid(beta (mean logp_w - mean logp_l) - margin): no reference, lengths divided out
    (2405.14734, eq. 6)."""
    mean_logp = _completion_sum(logp, rows) / rows.mask.sum(1)  # (rows,)
    return _total(-logsigmoid(beta * _margin(mean_logp) - margin))


def kto(
    logp: Float[Tensor, "rows tokens"],
    rows: Rows,
    beta: float = 0.1,
    *,
    step_mean: Float[Tensor, ""] | None = None,
) -> LossAndWeight:
    """1 - sigmoid(+-beta (S - S0 - z)), + for correct and - for wrong completions, z >= 0 a
    baseline without gradient (2402.01306, eq. 8).

    The paper estimates z from completions of other prompts; here it is the mean of S - S0 over the
    step's batch, where it is positive. step_mean: that mean, where `rows` are a part of the batch;
    none = they are all of it.
    """
    gain = _gain(logp, rows)  # (rows,)
    mean = gain.mean() if step_mean is None else step_mean
    baseline = mean.clamp(min=0).detach()
    signs = torch.where(rows.reward > 0, 1.0, -1.0)  # (rows,)
    return _total(1 - torch.sigmoid(signs * beta * (gain - baseline)))


# --- their names ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """A loss with the rows it trains on: "all", "correct" or "pairs", and where its formula is from
    (an arXiv number, or a repository).

    reads_behaviour: whether it needs the log-probabilities of the policy that wrote the rollouts,
    which are not known for those of a server or a file.
    step_mean: (rows,) of what the loss needs the mean over all rows of a step, as its keyword
    `step_mean`; none = the losses of rows are independent of each other.
    """

    loss: Callable[..., LossAndWeight]
    rows: str
    source: str
    reads_behaviour: bool = False
    step_mean: Callable[[Tensor, Rows], Float[Tensor, " rows"]] | None = None


OBJECTIVES = {
    "sft": Objective(sft, "all", "2606.23740"),
    "rft": Objective(sft, "correct", "2308.01825"),
    "dft": Objective(dft, "all", "2508.05629"),
    "rift": Objective(rift, "all", "2601.09253"),
    "rift-naive": Objective(rift_naive, "all", "2601.09253"),
    "rift-paper": Objective(rift_as_printed, "all", "2606.23740"),
    "offline-grpo": Objective(offline_grpo, "all", "2606.23740"),
    "offline-grpo-clipped": Objective(
        offline_grpo_clipped, "all", "2402.03300", reads_behaviour=True
    ),
    "offline-grpo-probability": Objective(
        offline_grpo_probability, "all", "effective_llm_alignment"
    ),
    "topr": Objective(topr, "all", "2503.14286", reads_behaviour=True),
    "dpo": Objective(dpo, "pairs", "2305.18290"),
    "dpo-length-normalised": Objective(dpo_length_normalised, "pairs", "2411.15124"),
    "ipo": Objective(ipo, "pairs", "2310.12036"),
    "simpo": Objective(simpo, "pairs", "2405.14734"),
    "kto": Objective(kto, "pairs", "2402.01306", step_mean=_gain),
}
# Trained on rollouts that the policy generates itself (`online`), with TRL's losses. {name: its
# arXiv number}
ONLINE = {"grpo": "2402.03300", "dapo": "2503.14476"}


def objective(name: str) -> Objective:
    """The objective called `name`; raises ValueError naming the ones that exist."""
    if name not in OBJECTIVES:
        names = ", ".join([*OBJECTIVES, *ONLINE])
        raise ValueError(f"unknown objective {name!r}: choose one of {names}")
    return OBJECTIVES[name]


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise ValueError for an option that the objective does not have, naming those it has."""
    # After logp and rows; what follows a * comes from the trainer.
    parameters = list(inspect.signature(objective(name).loss).parameters.values())[2:]
    known = [given.name for given in parameters if given.kind is not given.KEYWORD_ONLY]
    if unknown := set(options) - set(known):
        raise ValueError(
            f"objective {name!r} has no option {sorted(unknown)[0]!r}: "
            f"it has {', '.join(known) or 'none'}"
        )


def token_weights(
    name: str, logp: Float[Tensor, "rows tokens"], rows: Rows, **options: Any
) -> Float[Tensor, "rows tokens"]:
    """The gradient as one weight per token: w with grad(loss) = -sum_t w_t grad(logp_t).

    Positive weights raise a token's probability. They are the derivative of the loss itself by
    logp_t, with the opposite sign.
    """
    logp = logp.detach().requires_grad_(True)
    loss, weight = objective(name).loss(logp, rows, **options)
    (gradient,) = torch.autograd.grad(loss / weight, logp)
    return -gradient
