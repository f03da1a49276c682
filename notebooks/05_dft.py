# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [dft]
# ---

# %% [markdown]
# # DFT: imitate what is already likely
#
# *Previously:* [RFT](04_rft.ipynb) chose rows by their reward. *Now:* dynamic fine-tuning keeps every row and never looks at the reward. It
# weighs each token by the probability that the model itself gives it.
#
# **Key takeaways**
# - The weight of a token is its own probability: DFT believes the table where it already agrees with it.
# - Its gradient is that of $-p_t$, so it maximises the expected number of matched tokens and not the likelihood.
# - What the base finds improbable receives almost no weight at the first step. Yet the run takes on the teacher's style as SFT does: small weights at the start do not say what is learned in the end.
#
# You need: [SFT](03_sft.ipynb). Reads the run `dft`. Time to run: half a minute, or a few minutes if the run must be trained first.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from helpers import profiles
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
run = study.runs["dft"]
table = rollouts.load_table(study)
figures.use_style(study)

# %% [markdown]
# ## The loss
#
# With $p_{it} = \pi_\theta(y_{it} \mid x_i, y_{i,<t})$ and $\operatorname{sg}$ for "take the value as a constant",
# {cite:t}`wu2025dft` minimise
#
# ```{math}
# :label: eq-dft-loss
# L_{\text{DFT}}(\theta) = -\frac{1}{\sum_i T_i}\sum_{i}\sum_{t=1}^{T_i} \operatorname{sg}(p_{it}) \log p_{it} .
# ```
#
# The paper of this book prints the same formula, so for once there is nothing to choose. In code, `detach` is the $\operatorname{sg}$ of
# {eq}`eq-dft-loss`:

# %%
print(inspect.getsource(objectives.dft))

# %% [markdown]
# ## Where the factor comes from
#
# Read imitation as reinforcement learning. Let $y^*$ be the token of the table, and suppose the model drew a token $y$ of its own. The
# gradient of SFT at this position can be written as an expectation over the model's own draws,
#
# ```{math}
# :label: eq-dft-importance
# \nabla \log \pi_\theta(y^*) = \mathbb{E}_{y \sim \pi_\theta}\!\left[ \frac{\mathbb{1}[y = y^*]}{\pi_\theta(y)}\, \nabla \log \pi_\theta(y) \right],
# ```
#
# because the factor $\pi_\theta(y)$ of the expectation cancels the denominator and only $y = y^*$ survives. Seen through
# {eq}`eq-dft-importance`, SFT is a policy gradient whose reward is paid for a match and *divided by the probability of the match*. A token
# that the model finds a thousand times less likely is paid a thousand times more when it is hit. DFT multiplies by $\pi_\theta$ and so removes
# the denominator: every match is paid the same.
#
# ## The gradient: the probability itself
#
# In the weights view of {eq}`eq-sft-weights` the constant stays a constant when {eq}`eq-dft-loss` is differentiated. In units of SFT's weight,
#
# ```{math}
# :label: eq-dft-weights
# w_{it}^{\text{DFT}} = p_{it} .
# ```
#
# By the chain rule $p\, \nabla \log p = \nabla p$, so the whole gradient is also that of another, simpler loss,
#
# ```{math}
# :label: eq-dft-probability
# \nabla L_{\text{DFT}} = \nabla \left( -\frac{1}{\sum_i T_i}\sum_{i,t} p_{it} \right) .
# ```
#
# The right side is minus the expected share of positions at which a draw from the model matches the table, given the
# table's tokens before it. Both statements are checked: {eq}`eq-dft-weights` against automatic differentiation of the loss, and
# {eq}`eq-dft-probability` by differentiating $-p$ instead.

# %%
tokens, weights, headings = batches.example_weights(study, "dft", **run.options)
pair = next(iter(rollouts.select(table, "pairs").values()))
for of_rollout, logp in zip(weights, table.logp_base.iloc[pair], strict=True):
    assert np.allclose(of_rollout, np.exp(logp), rtol=1e-4, atol=1e-7)

# %%
logp_base = np.concatenate(list(table.logp_base.iloc[pair]))
logp = torch.tensor(logp_base, requires_grad=True)
(gradient,) = torch.autograd.grad(-logp.exp().sum(), logp)
assert np.allclose(-gradient, np.concatenate(weights), rtol=1e-4, atol=1e-7)

# %% mystnb={"image": {"alt": "Tokens of a right and a wrong rollout in boxes coloured by the probability that the base gives to each of them"}, "figure": {"caption": "DFT's weight on each token of a right and a wrong rollout of the same prompt, at the first step.", "name": "fig-dft-weights"}}
figures.token_weights(tokens, weights, headings);

# %% [markdown]
# Whatever is pale in {numref}`fig-dft-weights` is hardly pushed at the first step. The pale tokens are the ones at which the base would have gone another way:
# openings of sentences, choices of words, and the result of an equation where it is not the result the base expects. The strongly
# coloured ones follow from the tokens before them, and the base needs no teaching there.
#
# ## What is left to learn
#
# A token that is certain cannot become more certain. To see where learning can happen, go one level down, to the logits $z_j$ of the
# softmax. For the table's token $k$ with probability $p$, $\partial p / \partial z_k = p(1-p)$, so a step pushes its own logit by
#
# ```{math}
# :label: eq-dft-logit
# -\frac{\partial L_{\text{SFT}}}{\partial z_k} \propto 1 - p, \qquad -\frac{\partial L_{\text{DFT}}}{\partial z_k} \propto p\,(1 - p) .
# ```
#
# SFT pushes hardest where it knows least. By {eq}`eq-dft-logit` DFT pushes hardest at $p = 1/2$ and not at all at both ends: it sharpens
# what is undecided. A token at $p = 0.001$ receives a thousandth of SFT's push, so at the first step it hardly moves for its own sake. But its neighbours pull it along, the weight grows as $p$ does, and AdamW makes steps of the usual length from small gradients too.
#
# How much of the table lies where? The next figure sorts all its tokens by the base's probability and gives the share of each bin in three
# sums: of SFT's weights (one per token), of DFT's weights, and of DFT's pushes by {eq}`eq-dft-logit`.

# %%
p = np.exp(np.concatenate(list(table.logp_base)))
edges = np.linspace(0, 1, 11)
tenth = np.clip(np.digitize(p, edges) - 1, 0, 9)
of_tokens = {"SFT weight": np.ones_like(p), "DFT weight": p, "DFT push": p * (1 - p)}
sums = {name: np.bincount(tenth, values, minlength=10)
        for name, values in of_tokens.items()}
shares = pd.DataFrame({name: values / values.sum() for name, values in sums.items()},
                      index=edges[:-1])

# %% mystnb={"image": {"alt": "Three step curves over ten bins of the base's probability: share of tokens, share of DFT's weight and share of DFT's push on logits"}, "figure": {"caption": "Where the weight lies: share of tokens (SFT), of DFT's weight and of DFT's push on the logits, by the base's probability of the token.", "name": "fig-dft-shares"}}
looks = {"SFT weight": ("sft", "--"), "DFT weight": ("dft", "-"),
         "DFT push": ("base", ":")}
fig, axis = plt.subplots()
for name, (run_name, style) in looks.items():
    axis.stairs(shares[name], edges, color=figures.COLOURS[run_name], linestyle=style,
                linewidth=2, label=name)
axis.set(xlabel="probability of the token under the base", ylabel="share of the sum")
axis.legend();

# %%
sure = p > 0.5
share_of_weight = p[sure].sum() / p.sum()
Markdown(f"**{share_of_weight:.1%}** of DFT's weight lies on tokens that the base "
         f"already gives more than one half, which are {sure.mean():.1%} of the "
         f"tokens. The {(p < 0.1).mean():.1%} of tokens below one tenth get "
         f"{p[p < 0.1].sum() / p.sum():.1%} of it. The mean weight is {p.mean():.3f} "
         f"of SFT's.")

# %% [markdown]
# In {numref}`fig-dft-shares` the last bin has nearly all of DFT's weight and a much smaller share of its push, because little is left to push there. In the first bin are few tokens, but by {eq}`eq-dft-logit`
# SFT's push on them is nearly one each, and DFT's nearly nothing. The mean weight is a change of scale.
# AdamW divides a gradient by its own recent size, so that part alone would change little: it is the *pattern* of the weights that makes
# DFT another method.
#
# ## Style and errors
#
# Two things in the table are improbable to the base for opposite reasons. The teacher's style is strange but right; an error is familiar
# in style and wrong. A method that trusts the base cannot tell one from the other. First the style: the weight by position in the completion.

# %%
longest = int(table.tokens.quantile(0.75))
position = np.concatenate([np.arange(1, n + 1) for n in table.tokens])
by_position = pd.Series(p).groupby(position).mean().loc[:longest]
typical = 5

# %% mystnb={"image": {"alt": "Line plot of the mean DFT weight against the position of the token in the completion, with SFT's constant weight of one as a dashed line"}, "figure": {"caption": "Mean weight by position in the completion, DFT (line) and SFT (dashed).", "name": "fig-dft-position"}}
fig, axis = plt.subplots()
axis.plot(by_position.index, by_position, color=figures.COLOURS["dft"], linewidth=2)
axis.axhline(1, color=figures.COLOURS["sft"], linestyle="--", linewidth=1)
axis.set(xlabel="position of the token", ylabel="mean weight (SFT = 1)",
         ylim=(0, 1.05));

# %%
first = by_position.iloc[0]
opening = by_position.iloc[1:typical].mean()
rest = by_position.iloc[typical:].mean()
Markdown(f"The first token weighs {first:.3f} on average, those from the second to the "
         f"{typical}th {opening:.3f} and the later ones {rest:.3f}. The style is "
         f"chosen where {{numref}}`fig-dft-position` begins.")

# %% [markdown]
# A style is set by its first words: after a wordy opening even a terse model expects wordy tokens to follow. That is why few tokens can
# hold much of the style, and why small weights there might keep a student from changing it. The length of the answers below tells whether they do. Now the errors. A wrong rollout usually contains
# at least one token that neither model expects, so compare the smallest weight in each rollout, right against wrong.

# %%
probabilities = table.logp_base.map(np.exp)
of_rollouts = pd.DataFrame({"mean weight": probabilities.map(np.mean),
                            "smallest weight": probabilities.map(np.min)})
medians = of_rollouts.groupby(table.reward).median().rename_axis("median of")
outcomes = {0.0: "wrong rollouts", 1.0: "right rollouts"}
medians.rename(index=outcomes).style.format("{:.2g}")

# %% [markdown]
# If the second column is smaller for wrong rollouts, DFT filters some of the errors without a reward, by the base's own judgement. Where the
# two rows are alike, style hides the errors: every rollout has a token that the base finds strange, and the strangest one is not the
# mistake.
#
# ## Training
#
# The learning rate is SFT's; the loss is a sum of $-p \log p$, which is at most $1/e$ for any token, so its values cannot be compared with
# those of a likelihood. It need not even fall: raising $p$ from 0 to $1/e$ makes $-p \log p$ *larger*.

# %%
folder = trainer.train(study, run)
history = pd.read_parquet(folder / "history.parquet")
clipped = (history.grad_norm > run.clip).mean()

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the DFT loss with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "DFT: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-dft-curve"}}
figures.training_curve(history, run);

# %%
Markdown(f"The loss went from {history.loss.iloc[0]:.3f} to "
         f"{history.loss.tail(10).mean():.3f}; no value can exceed {np.exp(-1):.3f}. "
         f"The gradient was clipped in {clipped:.0%} of the steps.")

# %% [markdown]
# Do not look for progress in the left panel of {numref}`fig-dft-curve`. Its stop-gradient makes the loss a device for producing a gradient,
# not a quantity that is being minimised; by {eq}`eq-dft-probability` the quantity is the mean of $-p$, and the next table
# measures something closer to it.
#
# ## What it did to the model
#
# The mean log-probability per token of right and wrong rollouts, before and after:

# %%
effect = likelihood.effect(study, run)
effect.rename(index={0: "wrong rollouts", 1: "right rollouts"}).style.format("{:.3f}")

# %% [markdown]
# These are means of logarithms, and a logarithm is most sensitive where DFT does not look. A small rise would be compatible with many
# tokens having become more certain. The accuracies, with intervals, and the paired test of {cite:t}`mcnemar1947`:

# %%
records = answering.records(study, ["base", run])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %%
pairs = statistics.mcnemar_table(records)
figures.table(pairs[["split", "b", "c", "difference", "low", "high", "p"]])

# %% [markdown]
# As before, `b` counts problems that only the base solved and `c` those that only DFT solved. The mean number of tokens in the table of
# accuracies tells whether the student took on the wordy style. One problem in the words of both:

# %%
print(answering.answers_side_by_side(study, records))

# %%
summary = accuracy.set_index(["split", "run"])
test = pairs.set_index("split").loc["test"]
verdict = ("a difference this test can see" if test.p < 0.05
           else "no difference that this test can see")
Markdown(f"On the test problems the base solves {summary.accuracy['test', 'base']:.1%} "
         f"and DFT **{summary.accuracy['test', 'dft']:.1%}** (McNemar $p$ = "
         f"{test.p:.2g}): {verdict}. On the hard ones they solve "
         f"{summary.accuracy['hard', 'base']:.1%} and "
         f"{summary.accuracy['hard', 'dft']:.1%}. A test answer has "
         f"{summary.mean_tokens['test', 'base']:.1f} tokens before and "
         f"{summary.mean_tokens['test', 'dft']:.1f} after.")

# %% [markdown]
# ## Try it
#
# 1. Train from the strong base: `run.model_copy(update={"base": "strong-base"})`. Does DFT move it more or less than the base?
#
# ````{dropdown} What to think of
# The strong base is surer of its own style, so it gives the teacher's first words less probability and DFT less weight. Once inside a
# wordy solution it is surer of the arithmetic too, where $p(1-p)$ of {eq}`eq-dft-logit` is small. Both speak for a smaller step. Note that
# the table's column `logp_base` belongs to the base; DFT does not read it, it uses the probabilities of the model in training.
# ````
#
# 2. Leave out `detach` in the loss. What is the weight of a token then, and at which $p$ does its sign change?
#
# ````{dropdown} Answer
# The derivative of $-e^{u} u$ with respect to $u = \log p$ is $-e^{u}(1 + u)$, so the weight is $p\,(1 + \log p)$. It is negative below
# $p = 1/e$: improbable tokens would be pushed *down*, since $-p \log p$ is smallest at both ends. The stop-gradient is not cosmetic.
# ````
#
# 3. Square the weight, $w = p^2$. Which simple loss has that gradient?
#
# ````{dropdown} Answer
# $p^2\, \nabla \log p = p\, \nabla p = \nabla (p^2 / 2)$, so it is the loss $-p^2/2$. In general $w = p^{a}$ belongs to $-p^{a}/a$, and SFT's
# logarithm is the limit as $a$ goes to 0.
# ````
#
# ## Summary
#
# DFT weighs each token by its own probability, which is to maximise the expected number of matches. At the first step it pushes where the model is
# undecided and hardly where it finds the table strange; whether that keeps a run from the teacher's style is seen in the length of its answers, and not in the weights at the start. It leaves the reward unused; the
# [next page](06_rift.ipynb) uses it with two signs.
