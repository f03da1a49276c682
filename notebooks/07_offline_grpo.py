# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [offline-grpo]
# ---

# %% [markdown]
# # Offline GRPO: compare within the group
#
# *Previously:* [RIFT](06_rift.ipynb) gave right and wrong rollouts two fixed signs. *Now:* the weight of a rollout is its reward compared with the
# other rollouts of the same prompt, so that a right answer to a hard question counts more than a right answer to an easy one.
#
# **Key takeaways**
# - The weight is the advantage $r - \operatorname{mean}_G r + b$, the same for all tokens of a rollout.
# - Its mean in every group is $b$: the method is a comparison plus a small dose of SFT. Groups without a contrast receive the dose alone.
# - What makes GRPO safe to run off-policy, the ratio to the writer of the rollouts and its clipping, is not in this loss.
#
# You need: [SFT](03_sft.ipynb) and [the groups](02_rollouts.ipynb). Reads the run `offline-grpo`. Time to run: half a minute, or a few
# minutes if the run must be trained first.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import inspect

import numpy as np
import pandas as pd
from IPython.display import Markdown

from helpers import profiles
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
run = study.runs["offline-grpo"]
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)

# %% [markdown]
# ## The loss
#
# Let $G$ be the $K$ rollouts of one prompt and $r_i$ their rewards. The *advantage* compares a rollout with its group, and a constant $b$ is
# added:
#
# ```{math}
# :label: eq-grpo-advantage
# A_i = r_i - \frac1K \sum_{j \in G} r_j + b, \qquad b = 0.1 .
# ```
#
# The loss multiplies each log-probability by the advantage of its rollout,
#
# ```{math}
# :label: eq-grpo-loss
# L_{\text{GRPO}}(\theta) = -\frac{1}{\sum_i T_i} \sum_{i} A_i \sum_{t=1}^{T_i} \log p_{it} .
# ```
#
# The paper prints $\sum_i A_i \ell_i$ with $\ell_i = -\log \pi_\theta(y_i \mid x_i)$ {cite:p}`nikolich2026geometry`. A reader who knows the
# objective of GRPO as something to be *maximised* may miss a minus sign; it is inside $\ell_i$. Minimising {eq}`eq-grpo-loss` raises
# rollouts with $A_i > 0$ and lowers those with $A_i < 0$, as it should.

# %%
print(inspect.getsource(objectives.offline_grpo))

# %% [markdown]
# In the table, and in the code, the column `advantage` is {eq}`eq-grpo-advantage` without $b$; the objective adds it.
#
# ## The gradient: one weight per rollout
#
# The loss is linear in the log-probabilities, so {eq}`eq-sft-weights` can be read off. In units of SFT's weight,
#
# ```{math}
# :label: eq-grpo-weights
# w_{it}^{\text{GRPO}} = A_i .
# ```
#
# Unlike those of DFT and RIFT, these weights do not depend on the model. They are known before training and stay what they are. The check
# of {eq}`eq-grpo-weights`:

# %%
default = inspect.signature(objectives.offline_grpo).parameters["bias"].default
b = run.options.get("bias", default)
tokens, weights, headings = batches.example_weights(study, "offline-grpo",
                                                    **run.options)
pair = next(iter(rollouts.select(table, "pairs").values()))
for of_rollout, advantage in zip(weights, table.advantage.iloc[pair], strict=True):
    assert np.allclose(of_rollout, advantage + b, atol=1e-5)

# %% mystnb={"image": {"alt": "Tokens of a right rollout in boxes of one positive colour and of a wrong rollout in boxes of one negative colour"}, "figure": {"caption": "Offline GRPO's weight on each token of a right and a wrong rollout of the same prompt; the headings give the advantage without the added constant.", "name": "fig-grpo-weights"}}
figures.token_weights(tokens, weights, headings);

# %% [markdown]
# In {numref}`fig-grpo-weights` a rollout has one colour from its first to its last token, because the reward came at the end and the method has no
# opinion on where it was earned. How strong each colour is depends on the group: the rarer the outcome, the larger its weight.
#
# ## What the weights add up to
#
# Deviations from a mean sum to zero, so in each group only $b$ is left:
#
# ```{math}
# :label: eq-grpo-mean
# \frac1K \sum_{i \in G} A_i = b .
# ```

# %%
in_group = (table.advantage + b).groupby(table.problem_id).mean()
assert np.allclose(in_group, b, atol=1e-5)
over_tokens = ((table.advantage + b) * table.tokens).sum() / table.tokens.sum()
Markdown(f"The mean weight of each of the {len(in_group)} groups is {b:g}, as "
         f"{{eq}}`eq-grpo-mean` says. Weighted by tokens the mean of the table is "
         f"{over_tokens:+.3f}: it would leave $b$ only if right and wrong rollouts of "
         f"the same group differed in length.")

# %% [markdown]
# Now let $\hat p$ be the pass rate of the group, $s_i = \nabla \log \pi_\theta(y_i \mid x)$ the summed score of a rollout, and $\bar s_+$,
# $\bar s_-$, $\bar s$ the means of $s_i$ over right, wrong and all rollouts of the group. Sorting by reward, right rollouts contribute
# $\hat p\,(1 - \hat p)\, \bar s_+$ and wrong ones $(1-\hat p)(-\hat p)\, \bar s_-$, so
#
# ```{math}
# :label: eq-grpo-plane
# \frac1K \sum_{i \in G} A_i s_i = \hat p\,(1 - \hat p)\,(\bar s_+ - \bar s_-) + b\, \bar s .
# ```
#
# The first term of {eq}`eq-grpo-plane` is a contrast: it is what DPO will be made of on the next page, weighted by how undecided the group
# is. The second is SFT, scaled by $b$. Which of the two is larger is not obvious: the contrast has the larger weights, but it is a
# difference of two gradients that share the teacher's style, while the dose of SFT is nothing but that style.
#
# ## The advantages of the table

# %%
values = (table.advantage + b).round(3)
counts = values.value_counts().sort_index()
signs = [figures.COLOURS["offline-grpo"] if value > 0 else figures.COLOURS["base"]
         for value in counts.index]
counts.index = [f"{value:+.2f}" for value in counts.index]

# %% mystnb={"image": {"alt": "Bar chart of the number of rollouts for each value of the weight, negative values in grey, positive ones in colour"}, "figure": {"caption": "Rollouts of the table by the weight that Offline GRPO gives them (grey: pushed down).", "name": "fig-grpo-advantages"}}
figures.bars(counts, "weight of the rollout", "rollouts", signs);

# %%
groups = rollouts.group_statistics(table)
flat = table.spread == 0
dose = (table.advantage + b).abs()
Markdown(f"{(groups.pass_rate == 1).mean():.1%} of the groups are all right, "
         f"{(groups.pass_rate == 0).mean():.1%} all wrong: **{flat.mean():.1%}** of "
         f"the rows have no contrast and weigh {b:g}. They hold "
         f"{dose[flat].sum() / dose.sum():.1%} of the total absolute weight. "
         f"{(values < 0).mean():.1%} of all rows are pushed down.")

# %% [markdown]
# The bar at $b$ in {numref}`fig-grpo-advantages` can hold two kinds of groups that could not be more different: those in which everything is right
# and those in which everything is wrong. The comparison within the group cannot tell them apart, so in a table with groups of the second kind the wrong answers to the hardest
# questions would be *raised*. The shares above say how many of each this table has. With $b = 0$ both would be ignored.
#
# ## Is it a policy gradient?
#
# If the rollouts were the model's own, {eq}`eq-grpo-loss` would be the classical estimator of the gradient of the expected reward, for any
# constant $c$ in place of the group mean (strictly, one that does not contain the rollout itself):
#
# ```{math}
# :label: eq-grpo-policy
# \mathbb{E}_{y \sim \pi_\theta}\big[(r(y) - c)\, \nabla \log \pi_\theta(y \mid x)\big] = \nabla\, \mathbb{E}_{y \sim \pi_\theta}[\,r(y)\,],
# \qquad\text{since}\quad \mathbb{E}_{y \sim \pi_\theta}[\nabla \log \pi_\theta(y \mid x)] = 0 .
# ```
#
# On-policy a baseline removes noise and changes nothing else, and neither would $b$. Here the rollouts are the *teacher's*. The mean score
# under another writer is not zero; it is the gradient of SFT. So every constant that is added to or taken from the advantage adds or takes
# that much imitation, and {eq}`eq-grpo-policy` no longer says what the loss maximises. The constant that is harmless on-policy is a real
# choice offline.
#
# ## What GRPO has and this loss has not
#
# The name belongs to {cite:t}`shao2024deepseekmath`. Their objective corrects for rollouts written by an older copy of the model;
# {cite:t}`mroueh2025grpo` study how it behaves when the writer is further away. Side by side:
#
# | | as the paper prints it | GRPO |
# |---|---|---|
# | rollouts | a teacher's, once | the model's own, fresh or a few steps old |
# | advantage | $r - \operatorname{mean}$, plus $b$ | $(r - \operatorname{mean}) / \operatorname{std}$ |
# | ratio to the writer $\mu$ | none | $\rho_t = p_t / \mu_t$ |
# | clipping | none: a wrong rollout can be pushed down for ever | no gradient once $\rho_t$ has moved by $\varepsilon$ in the wanted direction |
# | tie to the base | none | a KL penalty |
# | mean over tokens | of the batch | of each completion |
#
# The book has a variant with the ratio, the clipping and the normalised advantage (no KL, and the token mean of all other methods):
#
# ```{math}
# :label: eq-grpo-clipped
# L_{\text{clipped}} = -\frac{1}{\sum_i T_i}\sum_{i,t}
# \min\!\big(\rho_{it} \tilde A_i,\; \operatorname{clip}(\rho_{it}, 1-\varepsilon, 1+\varepsilon)\, \tilde A_i\big),
# \qquad \tilde A_i = \frac{r_i - \operatorname{mean}_G r}{\operatorname{std}_G r + 10^{-4}} .
# ```

# %%
print(inspect.getsource(objectives.offline_grpo_clipped))

# %% [markdown]
# Differentiating {eq}`eq-grpo-clipped`, the weight is $\rho_{it} \tilde A_i$ where the unclipped term is the smaller one and 0 elsewhere.
# That is: 0 on tokens of right rollouts with $\rho > 1 + \varepsilon$, and 0 on tokens of *wrong* rollouts with $\rho < 1 - \varepsilon$.
# The check, and the picture:

# %%
parameters = inspect.signature(objectives.offline_grpo_clipped).parameters
epsilon = parameters["epsilon"].default
tokens, weights, headings = batches.example_weights(study, "offline-grpo-clipped")
for of_rollout, row in zip(weights, table.iloc[pair].itertuples(), strict=True):
    ratio = np.exp(row.logp_base - row.logp_behaviour)
    unclipped = ratio <= 1 + epsilon if row.advantage > 0 else ratio >= 1 - epsilon
    normalised = row.advantage / (row.spread + 1e-4)
    assert np.allclose(of_rollout, unclipped * ratio * normalised, rtol=1e-3, atol=1e-6)

# %% mystnb={"image": {"alt": "Tokens of a right and a wrong rollout in boxes coloured by the weight of the clipped loss, which differs from token to token"}, "figure": {"caption": "The clipped variant's weight on each token of the same two rollouts, at the first step.", "name": "fig-grpo-clipped"}}
figures.token_weights(tokens, weights, headings);

# %%
mixed = table[table.spread > 0]
ratios = (mixed.logp_base - mixed.logp_behaviour).map(np.exp)
right = np.concatenate(list(ratios[mixed.reward > 0]))
wrong = np.concatenate(list(ratios[mixed.reward == 0]))
Markdown(f"In mixed groups the clipped loss gives no gradient at the first step to "
         f"{(right > 1 + epsilon).mean():.1%} of the tokens of right rollouts and to "
         f"**{(wrong < 1 - epsilon).mean():.1%}** of the tokens of wrong ones.")

# %% [markdown]
# The uneven colours of {numref}`fig-grpo-clipped` are the ratio at work. A token that the base finds much less likely than the teacher did
# is, if its rollout is wrong, already "pushed down enough" and left alone; if its rollout is right, it gets a weight near zero, since
# $\rho$ multiplies it. So a clipped loss can hardly teach the base the teacher's style. The printed loss can, through $b$. It is a real
# difference under one name, and a later page trains the variants.
#
# ## Training

# %%
folder = trainer.train(study, run)
history = pd.read_parquet(folder / "history.parquet")

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the Offline GRPO loss with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "Offline GRPO: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-grpo-curve"}}
figures.training_curve(history, run);

# %%
Markdown(f"The loss went from {history.loss.iloc[0]:+.3f} to "
         f"{history.loss.tail(10).mean():+.3f}, with a standard deviation from step "
         f"to step of {history.loss.tail(50).std():.3f}; it was below zero in "
         f"{(history.loss < 0).mean():.0%} of the steps, and the gradient was clipped "
         f"in {(history.grad_norm > run.clip).mean():.0%}.")

# %% [markdown]
# The loss in {numref}`fig-grpo-curve` is a sum of terms of both signs whose weights cancel but for $b$. Its value depends on which groups
# happen to be in the batch, and it has no floor: pushing wrong rollouts down lowers it without end, as {eq}`eq-rift-unbounded` warned. So
# the curve tells whether training is stable, and little else. Within a step, the clipping of the *gradient's norm* is the only brake in the recipe that
# this loss has; below its level, dashed in the figure, the learning rate alone bounds a step.
#
# ## What it did to the model
#
# The mean log-probability per token of right and wrong rollouts, before and after:

# %%
effect = likelihood.effect(study, run)
effect.rename(index={0: "wrong rollouts", 1: "right rollouts"}).style.format("{:.3f}")

# %%
gap = effect.change[1] - effect.change[0]
Markdown(f"Right rollouts changed by {effect.change[1]:+.3f} nats per token and wrong "
         f"ones by {effect.change[0]:+.3f}. The contrast between them "
         f"{'grew' if gap > 0 else 'did not grow'} (**{gap:+.3f}**), and their common "
         f"part is {effect.change.mean():+.3f}.")

# %% [markdown]
# The two numbers answer to the two terms of {eq}`eq-grpo-plane`: the contrast to the first, the common part mostly to the second. Now the
# accuracies, with intervals, and the paired test of {cite:t}`mcnemar1947`.

# %%
records = answering.records(study, ["base", run])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %%
pairs = statistics.mcnemar_table(records)
figures.table(pairs[["split", "b", "c", "difference", "low", "high", "p"]])

# %% [markdown]
# As before, `b` counts problems that only the base solved and `c` those that only the trained model solved. One problem in the words of both:

# %%
print(answering.answers_side_by_side(study, records))

# %%
solved = accuracy.set_index(["split", "run"]).accuracy
test = pairs.set_index("split").loc["test"]
verdict = ("a difference this test can see" if test.p < 0.05
           else "no difference that this test can see")
Markdown(f"On the test problems the base solves {solved['test', 'base']:.1%} and "
         f"Offline GRPO **{solved['test', 'offline-grpo']:.1%}** (McNemar $p$ = "
         f"{test.p:.2g}): {verdict}. On the hard ones they solve "
         f"{solved['hard', 'base']:.1%} and {solved['hard', 'offline-grpo']:.1%}.")

# %% [markdown]
# ## Try it
#
# 1. Train with `options={"bias": 0.0}`. What happens to the groups that are all right or all wrong, and what to the effective size of the batch?
#
# ````{dropdown} Answer
# Their weight is exactly 0, so they take up places in the batch and contribute nothing: only the mixed groups teach. The part of the update that is
# SFT disappears, so the update should turn away from SFT's. How far it turns is a question for the pages on geometry.
# ````
#
# 2. Set the bias to 1. Which objective does it come close to, and why not exactly?
#
# ````{dropdown} Answer
# All weights become positive, between $1/K$ and $2 - 1/K$, with mean 1 in each group: SFT with a preference for right rollouts. The
# remaining difference is the contrast of {eq}`eq-grpo-plane`.
# ````
#
# 3. For $K = 4$, which group gives its single right rollout the largest weight, and how often would such a group occur by chance at a pass
#    rate of $0.9$?
#
# ````{dropdown} Answer
# One right among three wrong: $1 - 1/4 + 0.1 = 0.85$. By the binomial formula its share is $4 \times 0.9 \times 0.1^3 \approx 0.004$. In
# a real table it is larger, since prompts differ in difficulty, and the largest weights sit on few prompts.
# ````
#
# ## Summary
#
# Offline GRPO is a contrast within mixed groups plus a dose $b$ of plain imitation everywhere, without the ratio and the clipping that the
# original uses to stay near the writer of its rollouts. The [next page](08_dpo.ipynb) keeps the contrast and drops the dose.
