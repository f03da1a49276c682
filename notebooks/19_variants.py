# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, rift-variants, grpo-variants, grid-rft]
# ---

# %% [markdown]
# # Variants: one name, several losses
#
# *Previously,* six methods were compared, each in one form. *Now* the other forms are trained that go by the name of [RIFT](06_rift.ipynb) or of
# [Offline GRPO](07_offline_grpo.ipynb), with the same rows, rate, steps and initial adapter, and the question is how much of a result belongs to the name and how much to the form.
#
# **Key takeaways**
# - A negative weight that is the probability of a whole completion falls exponentially with its length. A weight per token does not.
# - No value of $\lambda$ in the printed form of RIFT pushes anything down; it only sets how much of the training is on wrong rollouts.
# - A loss without a floor need not run away within a given number of steps. Whether it does here is measured, not argued.
# - Four losses called offline GRPO differ in whose tokens they still hear. The share that clipping silences, and how many rollouts a ratio leaves, are numbers of the table.
# - Two forms are "one method" if they are at least as alike as one method in two orders of the prompts. That is the yardstick of this page.
#
# You need: the pages on [RIFT](06_rift.ipynb), [Offline GRPO](07_offline_grpo.ipynb) and [cosines](10_norms.ipynb). Reads the runs of three groups: the six main ones,
# the variants of RIFT and those of Offline GRPO, and one run in another order. Time to run: about a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from adapter_geometry import geometry
from helpers import profiles, store
from helpers.analysis import outcomes, predictions
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.models import logprobs
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
groups = {"rift": study.controls["rift-variants"].runs,
          "offline-grpo": study.controls["grpo-variants"].runs}
namesake = {name: main for main, names in groups.items() for name in names}
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)

# %% [markdown]
# ## Nine variants and their weights
#
# All of them are losses of token log-probabilities, so that a variant is fully described by the weight $w_{it}$ that it gives to a token, {eq}`eq-sft-weights`. With $p_t$ the probability of a token,
# $S$ the log-probability of the whole completion under the policy and $S_\mu$ under the teacher, $T$ its length, $A$ the advantage, $\rho_t$ the ratio to the teacher, and $|r| = .2$:
#
# | run | loss is a mean over | weight on a right rollout | weight on a wrong one |
# |---|---|---|---|
# | RIFT, the main run | tokens | $1$ | $-\lvert r\rvert\, p_t$ |
# | RIFT, by length | completions | $1/T$ | $-\lvert r\rvert\, e^{S/T} / T$ |
# | RIFT, sequence (as published) | completions | $1$ | $-\lvert r\rvert\, e^{S}$ |
# | RIFT as printed | tokens | $1 - \lambda$ | $1$ |
# | naive $r \log \pi$ | tokens | $1$ | $-\lvert r\rvert$ |
# | Offline GRPO, the main run (as printed) | tokens | $A + b$ | $A + b$ |
# | Offline GRPO, probability | tokens | $(A + b)\, p_t$ | $(A + b)\, p_t$ |
# | Offline GRPO, clipped | tokens | $\rho_t \tilde A$, or 0 beyond $1 + \varepsilon$ | $\rho_t \tilde A$, or 0 below $1 - \varepsilon$ |
# | TOPR | completions | $1$ | $-\min(e^{S - S_\mu}, 1)$ |
#
# The first five are of {cite:t}`rift2026` or, for the fourth, of {cite:t}`nikolich2026geometry`; of the other four the first is printed by {cite:t}`nikolich2026geometry` and close to {cite:t}`krafton2025offlinegrpo`, the third is GRPO's own
# {cite:p}`shao2024deepseekmath,mroueh2025grpo` and the last is tapered off-policy REINFORCE {cite:p}`leroux2025topr`. The table is checked against automatic differentiation of the losses themselves, on real rollouts under the base:

# %%
batch = batches.collate(table, list(range(min(64, len(table)))))["rows"]
logp, mask, right = batch.reference, batch.mask, batch.reward[:, None] > 0
S, S_mu = ((values * mask).sum(1, keepdim=True) for values in (logp, batch.behaviour))
T, tokens, count = mask.sum(1, keepdim=True), mask.sum(), len(mask)
p, ratio, A = logp.exp(), (logp - batch.behaviour).exp(), batch.advantage[:, None]
is_heard = torch.where(A > 0, ratio <= 1.2, ratio >= 0.8)

# %%
by_hand = {
    "rift": torch.where(right, 1, -0.2 * p) / tokens,
    "rift-length-normalised": torch.where(right, 1, -0.2 * (S / T).exp()) / T / count,
    "rift-sequence": torch.where(right, 1, -0.2 * S.exp()) / count,
    "rift-printed-most": torch.where(right, 1 - 0.9, 1) / tokens,
    "rift-naive": torch.where(right, 1, -0.2) / tokens,
    "offline-grpo": (A + 0.1) / tokens,
    "offline-grpo-probability": (A + 0.1) * p / tokens,
    "offline-grpo-clipped":
        is_heard * ratio * A / (batch.spread[:, None] + 1e-4) / tokens,
    "topr": torch.where(right, 1, -(S - S_mu).exp().clamp(max=1)) / count}
for name, expected in by_hand.items():
    run = study.runs[name]
    weights = objectives.token_weights(run.objective, logp, batch, **run.options)
    assert torch.allclose(weights, expected * mask, rtol=1e-3, atol=1e-7), name

# %% [markdown]
# The scale of a whole line of the table does not matter much: AdamW divides a gradient by its own recent size. What matters is the balance *within* a line, between right and wrong rollouts, between long and
# short ones, and between probable and improbable tokens.
#
# ## RIFT: how much say do wrong rollouts have?
#
# Compare a right and a wrong rollout of equal length $T$, and let $h = -S/T$ be the mean surprise per token of the wrong one, in nats. Adding up the weights of its tokens and dividing by those of the right one gives
#
# ```{math}
# :label: eq-variants-share
# \begin{gathered}
# \frac{\sum_t |w_t^{\text{wrong}}|}{\sum_t w_t^{\text{right}}} = |r| \times \begin{cases}
# \bar p = \frac1T \sum_t p_t & \text{token,} \\
# e^{-h} & \text{length-normalised,} \\
# e^{-hT} & \text{sequence,} \end{cases} \\
# \text{and} \quad e^{-h} \le \bar p \le 1 ,
# \end{gathered}
# ```
#
# the last by Jensen's inequality: a geometric mean is at most the arithmetic one. Two of the three do not contain $T$. The third is exponential in it. On the rollouts of the table, sorted into classes of length, under the base:

# %%
levels = ("rift", "rift-length-normalised", "rift-sequence")
rows = batches.collate(table, list(range(len(table))))["rows"]
sizes = table[["reward"]].reset_index(drop=True)
for name in levels:
    weights = objectives.token_weights("rift", rows.reference, rows,
                                       **study.runs[name].options)
    sizes[name] = weights.abs().sum(1).numpy()
lengths = pd.qcut(table.tokens.to_numpy(), 6, duplicates="drop")
means = sizes.groupby([lengths, "reward"], observed=True)[list(levels)].mean().unstack()
centres = table.tokens.groupby(lengths, observed=True).mean()

# %%
lost = table[table.reward == 0]
h = -lost.logp_base.map(np.sum).sum() / lost.tokens.sum()
p_mean = np.exp(np.concatenate(list(lost.logp_base))).mean()
measured = pd.concat([
    pd.DataFrame({"run": name, "tokens": centres,
                  "share": means[name][0.0] / means[name][1.0]})
    for name in levels]).dropna()
T = np.geomspace(10, 2000, 24)
smallest = float(np.finfo(np.float32).smallest_subnormal)
shares = dict(zip(levels, (p_mean, np.exp(-h), np.exp(-h * T)), strict=True))
by_formula = pd.concat([pd.DataFrame({"run": name, "tokens": T, "share": 0.2 * share})
                        for name, share in shares.items()]).query("share > @smallest")

# %% mystnb={"image": {"alt": "Two log-log plots of the weight of wrong over right rollouts against length: two flat lines, and one for the sequence level that falls without end"}, "figure": {"caption": "Weight of a wrong rollout over that of a right one of the same length, for three levels of RIFT: rollouts of the table under the base, in classes of length (left), and {eq}`eq-variants-share` with the table's mean surprise (right), up to the length where single precision has no smaller number.", "name": "fig-variants-share"}}
figures.lines_of_runs({"rollouts of the table": measured, "by the formula": by_formula},
                      "tokens", "share", "tokens of the completion", "wrong / right",
                      log=True);

# %%
trained = [study.runs[name] for name in (*study.main_runs, *namesake)]
Markdown(f"""The wrong rollouts of the table have a mean surprise of $h$ = {h:.2f} nats
per token under the base. At that rate $e^{{-hT}}$ is below a ten-millionth, where it is
lost in the rounding of a sum in single precision, from **{np.log(1e7) / h:.0f} tokens**
on, and is 0 exactly from {-np.log(smallest) / h:.0f} on. A wrong rollout of the table
has {lost.tokens.median():.0f} tokens in the median.
{store.origin(profile, trained)}""")

# %% [markdown]
# The lines of {numref}`fig-variants-share` that do not bend are the point of the token level and of the length-normalised one. Where the measured points of the sequence level lie above its formula, it is because a mean of exponentials is carried by the few rollouts with the
# least surprise; that too is Jensen's inequality. A chain of thought of a large model is hundreds or thousands of tokens long and leaves the right panel. This answers half of the question before anything is trained: where the weight has vanished, the gradient at the level of
# sequences *is* RFT's, for the rows that are in the batch.
#
# One difference remains. RFT fills its batches with right rollouts. RIFT's batches hold wrong ones too, and where their weight is zero they take up places. So the two see the right rollouts in batches of other sizes and get through
# fewer of them, and even without any say of the wrong ones their updates cannot be equal. How alike they could be at best is what the yardstick below is for.
#
# ## RIFT as printed: what does λ do?
#
# The form in the paper, {eq}`eq-rift-paper`, has weights $1 - \lambda$ and $1$. With $q$ the share of tokens on right rollouts, the share of the total weight that lies on *wrong* ones is
#
# ```{math}
# :label: eq-variants-printed
# s(\lambda) = \frac{1 - q}{(1 - \lambda)\, q + 1 - q}, \qquad s(0) = 1 - q \ (\text{SFT}), \qquad s(\lambda) \to 0 \ (\text{RFT}) \ \text{as}\ \lambda \to -\infty .
# ```

# %%
q = table.tokens[table.reward > 0].sum() / table.tokens.sum()
names = {-1: "printed, λ = −1", 0: "SFT (λ = 0)", 0.5: "printed, λ = .5",
         0.9: "printed, λ = .9", 1: "printed, λ = 1"}
on_wrong = {"RFT (λ → −∞)": 0} | {name: (1 - q) / ((1 - value) * q + 1 - q)
                                  for value, name in names.items()}
printed = pd.DataFrame(on_wrong.items(), columns=["loss", "weight on wrong rollouts"])
printed.style.format({"weight on wrong rollouts": "{:.1%}"}).hide(axis="index")

# %% [markdown]
# {eq}`eq-variants-printed` says that the parameter is a dial between RFT, SFT and training on mistakes only. All weights are positive for $\lambda < 1$: nothing is discouraged. With few wrong rollouts the dial must be turned far before the mistakes
# have a say, and even then what they teach is mostly the teacher's style, which wrong rollouts have as well as right ones.
#
# ## Naive $r \log \pi$: does it run away?
#
# The naive loss is unbounded below, {eq}`eq-rift-unbounded`. But "no floor" is a statement about the end of an endless training. Look at one token with logit $z$ and probability $p$: $\partial \log p / \partial z = 1 - p \le 1$. A token of a wrong rollout
# is pushed with a force of at most $|r|$, and a token that right and wrong rollouts share in the same place feels, per token of the batch,
#
# ```{math}
# :label: eq-variants-naive
# w_{\text{net}} = q - |r|\, (1 - q) ,
# ```
#
# which is positive unless wrong rollouts are several times as frequent as right ones. So the style is imitated as before. Only what is peculiar to wrong rollouts can fall without end, and it does so at a bounded speed, since the norm of the gradient is clipped.

# %%
folder = trainer.train(study, study.runs["rift-naive"])
history = pd.read_parquet(folder / "history.parquet")
Markdown(f"""Here {{eq}}`eq-variants-naive` gives {q:.3f} − .2 · {1 - q:.3f} =
**{q - 0.2 * (1 - q):+.3f}**, where SFT has 1 and RIFT at the level of tokens about
{q - 0.2 * (1 - q) * p_mean:+.3f}.""")

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the loss of the naive form with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "The naive form: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-variants-naive"}}
figures.training_curve(history, study.runs["rift-naive"]);

# %%
effects = {name: likelihood.effect(study, study.runs[name]).change
           for name in ("rift", "rift-naive")}
changes = pd.DataFrame(effects).rename(columns=figures.LABELS)
changes = changes.rename(index={0: "wrong rollouts", 1: "right rollouts"})
changes.style.format("{:+.3f}")

# %%
wrong, right = effects["rift-naive"][[0, 1]]
clipped = (history.grad_norm > study.runs["rift-naive"].clip).mean()
Markdown(f"""The loss in {{numref}}`fig-variants-naive` went from
{history.loss.iloc[0]:+.3f} to {history.loss.tail(10).mean():+.3f}; its lowest step was
{history.loss.min():+.3f}, and the gradient was clipped in {clipped:.0%} of the steps.
Wrong rollouts became {'less' if wrong < 0 else 'more'} probable than under the base by
{abs(wrong):.3f} nats per token, right ones {'less' if right < 0 else 'more'} by
{abs(right):.3f}. With RIFT's bounded branch wrong ones changed by
{effects['rift'][0]:+.3f}.""")

# %% [markdown]
# The table above gives the change of the mean log-probability per token, over the first hundred prompts. The contrast of its two rows is what the reward did; the level is the style. Whether the model still solves problems is a question for the
# accuracies below.
#
# ## Offline GRPO: whom does each loss still hear?
#
# The rollouts are the teacher's. Two of the four losses know that and use the ratio $\rho$ of the policy to the teacher, a token or a completion. Three numbers say what a ratio leaves. The share of *silent* tokens: those that clipping gives no gradient. The *taper*
# of TOPR, $\min(e^{S - S_\mu}, 1)$, on wrong rollouts. And how many rollouts an importance-weighted mean would effectively rest on: with weights $\rho_i$,
#
# ```{math}
# :label: eq-variants-ess
# \frac{n_\text{eff}}{n} = \frac{\big(\sum_i \rho_i\big)^2}{n \sum_i \rho_i^2} \in \Big[\frac1n, 1\Big] ,
# ```
#
# which is 1 for equal weights, and $1/n$ if one rollout outweighs the rest {cite:p}`kong1994sequential`. For whole completions $\log \rho = S - S_\mu$ is a sum of $T$ terms, so its spread grows with the length and {eq}`eq-variants-ess` falls with it, exponentially in the variance:
# for a normal $\log \rho$ with variance $v$ it is $e^{-v}$. Measured on rollouts of mixed groups, under the base and under each trained policy:

# %%
mixed = table[table.spread > 0]
chosen = mixed[mixed.problem_id.isin(mixed.problem_id.unique()[:60])]
policies = ("offline-grpo", "offline-grpo-probability", "offline-grpo-clipped", "topr",
            "rift-sequence")


def log_probabilities(name):
    """log pi of each token of the chosen rollouts, one array per rollout."""
    model = answering.load_model_of(study, study.runs[name])
    return logprobs.score(model, list(chosen.prompt_ids), list(chosen.completion_ids))


scored = {"base": list(chosen.logp_base),
          **{name: log_probabilities(name) for name in policies}}
log_ratio = {name: [policy - teacher for policy, teacher
                    in zip(values, chosen.logp_behaviour, strict=True)]
             for name, values in scored.items()}
wrong = (chosen.reward == 0).to_numpy()

# %%
def effective(log_weights):
    """Effective share of a sample by its logarithmic weights."""
    weights = np.exp(log_weights - np.max(log_weights))
    return weights.sum() ** 2 / (len(weights) * (weights ** 2).sum())


def heard(name):
    of_tokens = np.concatenate(log_ratio[name])
    is_wrong = np.repeat(wrong, [len(values) for values in log_ratio[name]])
    whole = np.array([values.sum() for values in log_ratio[name]])
    return {"policy": figures.LABELS[name],
            "silent, right": (of_tokens[~is_wrong] > np.log(1.2)).mean(),
            "silent, wrong": (of_tokens[is_wrong] < np.log(0.8)).mean(),
            "taper, wrong": np.exp(np.minimum(whole[wrong], 0)).mean(),
            "effective, tokens": effective(of_tokens),
            "effective, completions": effective(whole)}


left = pd.DataFrame([heard(name) for name in log_ratio if name != "rift-sequence"])
figures.table(left)

# %% [markdown]
# The clip of {eq}`eq-grpo-clipped` is one-sided. A token of a right rollout can weigh at most $(1 + \varepsilon) \tilde A$. A token of a *wrong* rollout weighs $\rho_t \tilde A$ however large $\rho_t$ is: what the policy finds likely and the teacher, at its error, found
# unlikely, is pushed down with a force of $1/\mu_t$. Near the policy that wrote the rollouts this does no harm, since $\rho$ is near 1. Far from it a few tokens can own the loss. (A second clip on this side is known from games as dual-clip {cite:p}`ye2020dualclip`; GRPO as published has none.) On the
# same rollouts, the weights of the clipped loss under the base and under the policy that it trained:

# %%
inside = batches.collate(chosen, list(range(len(chosen))))["rows"]


def pushes(name):
    """How unevenly the clipped loss pushes under a policy."""
    is_token = inside.mask.bool()
    logp = torch.zeros_like(inside.mask)
    logp[is_token] = torch.tensor(np.concatenate(scored[name])).to(logp)
    weights = objectives.token_weights("offline-grpo-clipped", logp, inside)
    weights = weights[is_token].numpy()
    sizes = np.sort(np.abs(weights))[::-1]
    largest = sizes[:max(1, len(sizes) // 100)].sum()
    down, up = -weights[weights < 0].sum(), weights[weights > 0].sum()
    return {"policy": figures.LABELS[name], "down / up": down / up,
            "held by 1 % of the tokens": largest / sizes.sum(),
            "largest, in means": sizes[0] / sizes.mean()}


uneven = pd.DataFrame([pushes(name) for name in ("base", "offline-grpo-clipped")])
figures.table(uneven)

# %%
start = uneven.iloc[0]
Markdown(f"""Without the ratio, up and down would balance in every group. With it the
loss pushes down {start['down / up']:.2f} times as much as up at the start, and one
token weighs **{start['largest, in means']:.0f}** times the mean. Only the
{(table.spread > 0).mean():.0%} of the rows that are in mixed groups have a weight at
all, and AdamW, which divides by the size of the gradient, makes steps of the usual
length from what they say.""")

# %% mystnb={"image": {"alt": "Step histograms of the logarithm of the ratio of policy to teacher for whole wrong completions, for the base and three trained policies"}, "figure": {"caption": "Logarithm of the ratio of the policy to the teacher, $S - S_\\mu$, on wrong completions of mixed groups. TOPR's weight on a completion is the exponential of this number, and 1 to the right of 0.", "name": "fig-variants-ratio"}}
whole = {name: np.array([values.sum() for values in log_ratio[name]])[wrong]
         for name in ("base", "offline-grpo", "offline-grpo-clipped", "topr")}
figures.histograms(whole, "logarithm of the ratio to the teacher", "wrong rollouts",
                   bins=20);

# %%
at = left.set_index("policy").rename(columns={"effective, completions": "effective"})
base, clipped, tapered = (at.loc[figures.LABELS[name]] for name
                          in ("base", "offline-grpo-clipped", "topr"))
trend = "rose" if tapered["taper, wrong"] > base["taper, wrong"] else "did not rise"
Markdown(f"""At the start clipping silences {base['silent, wrong']:.1%} of the tokens of
wrong rollouts and {base['silent, right']:.1%} of those of right ones; under the policy
that it trained, {clipped['silent, wrong']:.1%} and {clipped['silent, right']:.1%}.
Weighted by whole completions, the {len(chosen)} rollouts are worth
**{base.effective * len(chosen):.1f}** at the start and
{tapered.effective * len(chosen):.1f} under TOPR's policy. TOPR's mean weight on a wrong
rollout is {base['taper, wrong']:.2g} at the start; it {trend} in training, to
{tapered['taper, wrong']:.2g}.""")

# %% [markdown]
# Where most of a histogram in {numref}`fig-variants-ratio` is far to the left, an average weighted by the ratio rests on the few rollouts at its right end: this is why a ratio of whole completions is hardly ever used as a weight. TOPR only *removes* weight from wrong rollouts, and so
# cannot blow up. But as long as the policy is far from the teacher, it does the same as RIFT at the level of sequences: the wrong ones fade out and RFT is left. The difference is what happens later. A policy that learns the teacher's style gives the
# teacher's wrong rollouts back some of the probability that they had, and the taper opens.
#
# For RIFT's sequence level the same is seen without a ratio:

# %%
early, late = (np.exp([values.sum() for values in scored[name]])[wrong].mean()
               for name in ("base", "rift-sequence"))
Markdown(f"""The mean of $e^S$ over these wrong rollouts is {early:.1e} under the base
and {late:.1e} under the policy that the sequence level trained. Times $|r|$ = .2, that
is the weight of a wrong rollout's tokens, where a right one's have 1.""")

# %% [markdown]
# ## Where they end up
#
# Now the updates. All fifteen runs are compared by the [cosine](10_norms.ipynb) of their updates, all modules stacked, and every cosine has its band of chance: the one that 95 % of updates with the same spectrum, rotated at random, would fall in. Being outside that
# band only says "related", and two runs with the same rows, initial adapter and order are that anyway. For "the same" a yardstick is needed: RFT in another order of the prompts, with the same initial adapter. Call two variants one method if
#
# ```{math}
# :label: eq-variants-same
# \cos(\Delta W_1, \Delta W_2) \;\ge\; \cos(\Delta W_{\text{RFT}}, \Delta W_{\text{RFT, another order}}) .
# ```

# %% [markdown]
# The yardstick is lenient, since two variants share their order as well, which makes them more alike than their losses do. Below it, two losses differ by more than an order; above it, they may still differ.

# %%
runs = {name: study.runs[name] for name in (*study.main_runs, *namesake, "rft-42-43")}
adapters = {name: trainer.update_of(study, name) for name in runs}
compared = geometry.compare(adapters)
cosines, spread = (pd.DataFrame(values, index=list(runs), columns=list(runs))
                   for values in geometry.stacked_cosine(compared))
norms = pd.Series(np.sqrt(np.diag(compared.inner.sum(0))), index=list(runs))
yardstick = cosines.loc["rft", "rft-42-43"]

# %%
bands = 1.96 * spread.to_numpy()[~np.eye(len(runs), dtype=bool)]
Markdown(f"""The yardstick of {{eq}}`eq-variants-same` is **{yardstick:.3f}**. By chance
a cosine would lie within ±{bands.max():.3f} for the pair with the widest band.""")

# %% mystnb={"image": {"alt": "Square matrix of cosines between SFT, RFT, RIFT and its six variants, ones on the diagonal"}, "figure": {"caption": "Cosines of the updates of SFT, RFT, RIFT and its variants, all modules stacked.", "name": "fig-variants-rift"}}
family = ["sft", "rft", "rift", *groups["rift"]]
figures.matrix(cosines.loc[family, family].to_numpy(), family, "cosine of updates");

# %%
with_rft = cosines.loc["rft"]
token, by_length, sequence = with_rft[list(levels)]
printed_sft = cosines.loc["sft", [name for name in groups["rift"] if "printed" in name]]
Markdown(f"""With RFT the three levels have cosines of {token:.3f} (token),
{by_length:.3f} (by length) and **{sequence:.3f}** (sequence); the yardstick is
{yardstick:.3f}. Of the printed forms, the one furthest from SFT is
{figures.LABELS[printed_sft.idxmin()]}, at {printed_sft.min():.3f}. The naive form has
{with_rft['rift-naive']:.3f} with RFT and {cosines.loc['rift', 'rift-naive']:.3f} with
RIFT.""")

# %% [markdown]
# What, besides the weights, can separate RIFT at the level of sequences from RFT? The empty places in the batch, named above, which the token level has as well. And a difference in *scale* that is not as harmless as it looks. A mean over completions of sums has a gradient some $T$ times as
# long as a token mean. AdamW forgives a constant factor. But before AdamW sees a gradient it is clipped to a norm of one, and a loss that is clipped in every step gives each batch the same say, where an unclipped one gives more to the batches with the longer gradients.

# %%
rows = []
for name in ("sft", "rft", "rift", *groups["rift"], "topr"):
    run = study.runs[name]
    norm = pd.read_parquet(trainer.train(study, run) / "history.parquet").grad_norm
    rows.append({"run": figures.LABELS[name], "mean norm of the gradient": norm.mean(),
                 "steps clipped": (norm > run.clip).mean()})
steps = pd.DataFrame(rows)
figures.table(steps)

# %%
cut = steps.set_index("run")["steps clipped"]
of_rft, of_sequence, of_topr = (cut[figures.LABELS[name]]
                                for name in ("rft", "rift-sequence", "topr"))
Markdown(f"""RFT was clipped in {of_rft:.0%} of its steps, the sequence level in
**{of_sequence:.0%}** and TOPR, the other mean of sums, in {of_topr:.0%}. The sequence
level and TOPR have a cosine of {cosines.loc['rift-sequence', 'topr']:.3f} with each
other, and of {sequence:.3f} and {with_rft['topr']:.3f} with RFT.""")

# %% [markdown]
# {numref}`fig-variants-rift` is to be read by rows against the yardstick: cells above it are at least as alike as one method in two orders. In the paper RIFT has a cosine of .969 with RFT and .967 with SFT {cite:p}`nikolich2026geometry`; every form whose cells here are high would have given numbers of that kind,
# so the paper's cannot tell which form was trained.

# %% mystnb={"image": {"alt": "Square matrix of cosines between SFT, RFT, DPO, Offline GRPO and its three variants, ones on the diagonal"}, "figure": {"caption": "Cosines of the updates of SFT, RFT, DPO, Offline GRPO and its variants, all modules stacked.", "name": "fig-variants-grpo"}}
four = ["offline-grpo", *groups["offline-grpo"]]
family = ["sft", "rft", "dpo", *four]
figures.matrix(cosines.loc[family, family].to_numpy(), family, "cosine of updates");

# %%
among = cosines.loc[four, four].where(np.triu(np.ones((4, 4), dtype=bool), 1)).stack()
closest, apart = (" and ".join(figures.LABELS[run] for run in pair)
                  for pair in (among.idxmax(), among.idxmin()))
same = int((among >= yardstick).sum())
with_dpo = ", ".join(f"{value:+.3f}" for value in cosines.loc[four, "dpo"])
Markdown(f"""Among the four losses of that name the cosines run from
**{among.min():.3f}** ({apart}) to **{among.max():.3f}** ({closest}); {same} of the six
pairs reach the yardstick. With DPO, which is nothing but contrast, they have
{with_dpo}, in the order of the figure.""")

# %% [markdown]
# The rows of {numref}`fig-variants-grpo` can be sorted by how much of each loss is imitation. TOPR and the printed form raise right rollouts with weights that do not depend on the policy. The clipped form multiplies by $\rho$, which is small exactly where the base
# would have to learn something from the teacher, and is silent on the rest. The probability form multiplies by $p$ and so, like [DFT](05_dft.ipynb), listens to what the model knows already, and to that with a tenth of DFT's weight wherever a group has no contrast. The next figure puts all runs in one plane: likeness to imitation along one axis, likeness to
# preference along the other.

# %% mystnb={"image": {"alt": "Scatter plot of fifteen runs, cosine with SFT on one axis and cosine with DPO on the other, with grey bands of chance around both axes"}, "figure": {"caption": "Cosine with SFT against cosine with DPO for the main runs and all variants. Grey: within chance of zero.", "name": "fig-variants-plane"}}
names = [*study.main_runs, *namesake]
plane = cosines.loc[names, ["sft", "dpo"]].reset_index(names="run")
figures.marked_scatter(plane[plane.run != "dpo"], "sft", "dpo", "cosine with SFT",
                       "cosine with DPO", band=bands.max());

# %%
sft, dpo = (plane[plane.run.isin(namesake)].set_index("run")[name]
            for name in ("sft", "dpo"))
most, least, contrast = (figures.LABELS[run] for run
                         in (sft.idxmax(), sft.idxmin(), dpo.idxmax()))
sft_dpo = cosines.loc["sft", "dpo"]
Markdown(f"""SFT itself is at (1, {sft_dpo:+.3f}) and DPO, left out, at ({sft_dpo:+.3f},
1). Of the variants {most} is nearest to SFT in direction ({sft.max():.3f}) and {least}
furthest ({sft.min():.3f}); {contrast} has most in common with DPO
({dpo.max():+.3f}).""")

# %% [markdown]
# A single plane cannot show everything: two runs at the same place in {numref}`fig-variants-plane` may still differ in all directions that are neither SFT's nor DPO's. The matrices above are the check.
#
# ## What they do
#
# Direction is one thing, length and behaviour are others. For each run: the norm of its update, how far its policy is from the base (KL of the policy to the base, nats per token, on sampled answers of its own), and the greedy accuracy on the test problems that all runs answered (the variants answered the first part of them).

# %%
records = answering.records(study, ["base", *(study.runs[name] for name in names)])
records = records[records.split == "test"]
answered = records.groupby("problem_id").run.transform("size")
records = records[answered == 1 + len(names)]
accuracy = statistics.accuracy_table(records)
rows = [("base", 0.0, 0.0, 0.0)]
for name in names:
    texts = likelihood.divergence(study, study.runs[name])
    texts = texts[texts.direction == "reverse"]
    rows.append((name, *statistics.bootstrap_ratio(texts.nats, texts.tokens)))
kl = pd.DataFrame(rows, columns=["run", "kl", "kl_low", "kl_high"])

# %%
half = 1.96 * np.maximum(spread.loc[names, "sft"], spread.loc[names, "rft"])
about = pd.DataFrame({
    "objective": {name: study.runs[name].objective for name in names},
    "options": {name: str(study.runs[name].options or "") for name in names},
    "norm": norms[names], "cosine_sft": cosines.loc[names, "sft"],
    "cosine_rft": cosines.loc[names, "rft"], "chance_low": -half, "chance_high": half})
whole = accuracy.merge(kl).join(about, on="run")
whole = whole.fillna({"norm": 0.0, "objective": "", "options": ""})
columns = ["run", "objective", "options", "norm", "cosine_sft", "cosine_rft",
           "chance_low", "chance_high", "accuracy", "low", "high", "unparsed",
           "truncated", "kl", "kl_low", "kl_high"]
variants = store.write_table(profile, "variants", whole[columns])
figures.table(variants.drop(columns=["objective", "options", "kl_low", "kl_high"]))

# %% mystnb={"image": {"alt": "Three panels of dots, one row for the base and each run: norm of the update, divergence from the base and test accuracy, with intervals and a dashed line at the base"}, "figure": {"caption": "Norm of the update, divergence of the policy from the base, and accuracy on the test problems, with 95 % intervals; dashed: the base.", "name": "fig-variants-behaviour"}}
shown = variants.rename(columns={"low": "accuracy_low", "high": "accuracy_high"})
panels = {"norm": "norm", "kl": "KL, nats per token", "accuracy": "accuracy"}
figures.interval_panels(shown, panels, "base");

# %% [markdown]
# Every variant is compared with the main run of its name and with the base, on these same problems, by the exact test of {cite:t}`mcnemar1947`; so is the printed RIFT with the largest $\lambda$ with SFT, since that is the loss it is a reweighting of. Holm's correction {cite:p}`holm1979` is over all lines of
# the table. `difference` is the first minus the second.

# %%
wanted = [(main, name) for name, main in namesake.items()]
wanted += [("base", name) for name in namesake] + [("sft", "rift-printed-most")]
tests = statistics.mcnemar_table(records, wanted)
figures.table(tests[["run_a", "run_b", "b", "c", "difference", "low", "high", "p",
                     "p_holm", "detectable"]])

# %%
against = tests[tests.run_a != "base"].iloc[:len(namesake)].set_index("run_b")
differ = against[against.p_holm < 0.05]
said = ", ".join(f"{figures.LABELS[row.Index]} ({-100 * row.difference:+.1f} points)"
                 for row in differ.itertuples()) or "none"
from_base = (tests[tests.run_a == "base"].p_holm < 0.05).sum()
Markdown(f"""Of the nine variants **{len(differ)}** differ in accuracy from the main run
of their name after correction: {said}. With the others a difference of about
{100 * against.detectable.median():.1f} points would have been seen in four cases of
five. Against the base, {from_base} of nine differ.""")

# %% [markdown]
# {numref}`fig-variants-behaviour` has to be read across its panels. Where a variant keeps more of the base's accuracy than its namesake, look left first: if it is also shorter and nearer to the base, the accuracy may be that of having moved less.

# %%
trained = variants[variants.run != "base"].sort_values("kl")
by_kl, by_norm = (trained[column].rank().corr(trained.accuracy.rank())
                  for column in ("kl", "norm"))
near, far = trained.iloc[0], trained.iloc[-1]
Markdown(f"""Over the {len(trained)} runs the rank correlation with accuracy is
**{by_kl:+.2f}** for the divergence and {by_norm:+.2f} for the norm; the run nearest to
the base is {figures.LABELS[near.run]} (accuracy {near.accuracy:.1%}) and the furthest
{figures.LABELS[far.run]} ({far.accuracy:.1%}). The runs share their rows and their
start, so they are not independent, and these numbers have no p-value.""")

# %% [markdown]
# ## The two questions
#
# A careful reader of the paper asks two things about names. *Does RIFT become RFT at the level of sequences?* *Are the four losses called offline GRPO one?*

# %%
order = "at least as alike as" if sequence >= yardstick else "less alike than"
clip_matters = token > sequence and of_sequence > of_rft
closer = ("closer to RFT, so that the sums and their clip separate the two more than "
          "the negatives do" if clip_matters else "no closer to RFT")
pairs = {0: "no two of them are one method", 6: "all of them are one method"}.get(
    same, f"{same} of the six pairs are one method and the others are not")
gap = against.loc[["rift-sequence", "rift-length-normalised"], "difference"].abs().max()
accuracies = trained.set_index("run").accuracy[four]
Markdown(f"- By weights, yes: a wrong rollout has {early * 0.2:.0e} of a right one's "
         "weight at the start. By the update, RIFT at the level of sequences and RFT "
         f"have a cosine of {sequence:.3f}: {order} RFT in two orders. The token "
         f"level, where wrong rollouts do have a say, is {closer}. The choice of level "
         f"changes the accuracy by {100 * gap:.1f} points at most.\n- By the yardstick "
         f"of {{eq}}`eq-variants-same`, {pairs}. Their accuracies run from "
         f"{accuracies.min():.1%} to {accuracies.max():.1%}.")

# %% [markdown]
# A paper that says "RIFT" or "offline GRPO" therefore has to print the weight of a token of a right and of a wrong rollout. The name does not determine it.
#
# ## What was expected
#
# The [predictions](../predictions.md) were written before these runs.

# %%
by_pair, by_run = tests.set_index(["run_a", "run_b"]), variants.set_index("run")
worse = by_pair.loc[("sft", "rift-printed-most")]
naive = by_run.loc["rift-naive", ["accuracy", "low", "high"]]
results = outcomes.of_variants(
    sequence, (-worse.difference, -worse.high, -worse.low), tuple(naive),
    cosines.loc["offline-grpo", "offline-grpo-clipped"], with_rft["topr"])
expected = predictions.write(profile, "19", results)
expected.style.hide(axis="index")

# %%
sums = ("The first line shows a flaw of the prediction and not of the reasoning about "
        "weights: it forgot that a mean of sums is clipped where a token mean is not. "
        if clip_matters and sequence < 0.95 else "")
Markdown(f"""{int(expected.is_expected.sum())} of {len(expected)} came out as expected,
and {int(expected.changes_mind.sum())} as what was to change our mind. {sums}""")

# %% [markdown]
# ## Try it
#
# 1. Give RIFT at the level of sequences a negative reward of $-1000$ with `options={"level": "sequence", "negative_reward": -1000.0}`. Does that bring the wrong rollouts back?
#
# ````{dropdown} What happens
# Only those with the least surprise. By {eq}`eq-variants-share` a factor of a thousand is bought back by $\log 1000 / h$ more tokens, so it shifts the length at which the weight vanishes by that number and does not remove it. Shorter wrong rollouts
# would then have a weight of the order of the right ones', and longer ones still none.
# ````
#
# 2. At which $\lambda$ would the printed form give wrong rollouts half of the weight? Is there a $\lambda$ at which it pushes them down?
#
# ````{dropdown} Answer
# Set {eq}`eq-variants-printed` to one half: $(1 - \lambda)\, q = 1 - q$, so $\lambda = 2 - 1/q$. There is none at which they are pushed down: their weight is 1 for every $\lambda$. For $\lambda > 1$ it is the *right* rollouts that are pushed down.
# ````
#
# 3. Set $\varepsilon$ of the clipped loss to $.02$ and to $5$, and compute the silent shares again. Which of the two comes closer to the printed form?
#
# ````{dropdown} Answer
# With a narrow band nearly every token whose ratio differs from 1 in the wanted direction is silent. With a wide one nothing is. But the second is not the printed form either: its weight is still $\rho_t \tilde A$, small wherever the base finds the
# teacher's token improbable, and there is no $b$. What separates the two losses is the ratio, more than the clip.
# ````
#
# 4. Train RFT with `options={"aggregation": "sum"}`, which is clipped as the sequence level of RIFT is. Which of the two RFTs should RIFT at the level of sequences be closer to?
#
# ````{dropdown} Answer
# To the sum, if the clip is what separates it from RFT. What is left then is the empty places in the batch, and the weight of the wrong rollouts, which is known. With a clip at 100 instead of 1 in both runs the question could be turned around.
# ````
#
# 5. Compute {eq}`eq-variants-ess` for completions cut off after 5, 10, 20 and 40 tokens. What does the logarithm of the effective share look like against the length?
#
# ````{dropdown} Answer
# Near a straight line, if the ratios of different tokens were independent: variances of $\log \rho$ add up, and the share is about $e^{-v}$. Where tokens are certain for both models the line is flat.
# ````
#
# ## Summary
#
# The losses behind two names were trained with everything else equal. For RIFT the level decides whether wrong rollouts have a say: at the level of sequences it fades exponentially with their length. As printed, it is SFT with other proportions. For Offline GRPO the ratio to the teacher, and not the clip alone,
# separates the forms. The [next page](20_on_policy.ipynb) takes the teacher away: rollouts of the base itself, where all ratios start at 1.
