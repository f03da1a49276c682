# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [rift]
# ---

# %% [markdown]
# # RIFT: imitate the right, discourage the wrong
#
# *Previously:* [RFT](04_rft.ipynb) filtered wrong rollouts out and [DFT](05_dft.ipynb) ignored the reward. *Now:* reward-informed fine-tuning keeps the
# wrong rollouts and pushes them down, with a loss made so that this cannot run away.
#
# **Key takeaways**
# - Right rollouts have SFT's weight; a token of a wrong one has a small negative weight that fades as the token becomes improbable.
# - At the level of whole completions the negative weights vanish as completions grow; what is left is RFT with sums over completions instead of the mean over tokens.
# - The formula that the paper prints is another one, and for any positive value of its parameter it favours wrong rollouts.
#
# You need: [RFT](04_rft.ipynb). Reads the run `rift`. Time to run: half a minute, or a few minutes if the run must be trained first.

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
run = study.runs["rift"]
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)

# %% [markdown]
# ## Why a negative likelihood is dangerous
#
# Give right rollouts the reward $+1$ and wrong ones a negative reward $r$, here $-0.2$ as in {cite:t}`rift2026`. The first idea
# is to multiply the log-likelihood by the reward. For a wrong rollout that is
#
# ```{math}
# :label: eq-rift-unbounded
# L_{\text{naive}} = -r \log p = |r| \log p \;\longrightarrow\; -\infty \quad\text{as } p \to 0 .
# ```
#
# Nothing stops the optimiser in {eq}`eq-rift-unbounded`: a token already suppressed earns as much for each further factor of ten as the
# first time. Whether that happens depends on what pulls the other way: right rollouts raise many of the same tokens. The remedy is to replace, for wrong rollouts only, the
# logarithm by the probability itself, which cannot fall below 0.
#
# ## The loss
#
# Token by token, with $p_{it} = \pi_\theta(y_{it} \mid x_i, y_{i,<t})$,
#
# ```{math}
# :label: eq-rift-loss
# L_{\text{RIFT}}(\theta) = \frac{1}{\sum_i T_i} \sum_{i,t} \begin{cases}
# -\log p_{it} & \text{if rollout } i \text{ is right}, \\
# \phantom{-}|r|\, p_{it} & \text{if it is wrong.} \end{cases}
# ```
#
# This is the main run of the book. The function knows two other levels, to which we return below.

# %%
print(inspect.getsource(objectives.rift))

# %% [markdown]
# ## The gradient: two signs
#
# By {eq}`eq-sft-weights` the weight is $-\partial L/\partial \log p_{it}$, and $\partial p / \partial \log p = p$. From {eq}`eq-rift-loss`,
# in units of SFT's weight,
#
# ```{math}
# :label: eq-rift-weights
# w_{it}^{\text{RIFT}} = \begin{cases} 1 & \text{right}, \\ -|r|\, p_{it} & \text{wrong.} \end{cases}
# ```
#
# The wrong branch is DFT's weight with a minus sign and a factor $|r|$: what the model already finds improbable is not pushed further. The
# cell compares {eq}`eq-rift-weights` with automatic differentiation.

# %%
default = inspect.signature(objectives.rift).parameters["negative_reward"].default
strength = -run.options.get("negative_reward", default)
tokens, weights, headings = batches.example_weights(study, "rift", **run.options)
pair = next(iter(rollouts.select(table, "pairs").values()))
right, wrong = (np.exp(values) for values in table.logp_base.iloc[pair])
assert np.allclose(weights[0], 1)
assert np.allclose(weights[1], -strength * wrong, rtol=1e-4, atol=1e-7)

# %% mystnb={"image": {"alt": "Tokens of a right rollout in boxes of the full positive colour and of a wrong rollout in boxes of faint negative colours"}, "figure": {"caption": "RIFT's weight on each token of a right and a wrong rollout of the same prompt, at the first step.", "name": "fig-rift-weights"}}
figures.token_weights(tokens, weights, headings);

# %%
p_wrong = np.exp(np.concatenate(list(table.logp_base[table.reward == 0])))
positive = table.tokens[table.reward > 0].sum()
Markdown(f"Over the whole table the negative weights add up to "
         f"**{strength * p_wrong.sum() / positive:.2%}** of the positive ones. No "
         f"negative weight can exceed {strength:g}; their mean is "
         f"{strength * p_wrong.mean():.3f}.")

# %% [markdown]
# In {numref}`fig-rift-weights` both rollouts carry colour for the first time, and of different signs. But look *where* the wrong one is
# coloured: most on the tokens that the base takes for granted. An error that the base finds improbable is not among them. What the minus sign
# mostly pushes down is the ordinary text around the error, which the right rollout pushes up at the same time and with more force.
#
# So before any training one can say how much RIFT can differ from RFT: about as much as the percentage above allows, unless the negative
# weights point in a direction that the positive ones leave empty.
#
# ## Three levels, one of which vanishes
#
# The published loss is not written for tokens but for completions. With $S_i = \sum_t \log p_{it}$,
#
# ```{math}
# :label: eq-rift-sequence
# L_{\text{sequence}} = \frac1n \sum_{i=1}^{n} \begin{cases} -S_i & \text{right}, \\ \phantom{-}|r|\, e^{S_i} & \text{wrong,} \end{cases}
# \qquad w_{it} \propto \begin{cases} 1 & \text{right}, \\ -|r|\, e^{S_i} & \text{wrong.} \end{cases}
# ```
#
# The weight of every token of a wrong rollout is $|r|$ times the probability of the *whole* rollout, a product of as many factors as it
# has tokens. A compromise is the *length-normalised* form, in which $S_i$ is replaced by $S_i / T_i$ in both branches, so that
# $e^{S_i / T_i}$ is the geometric mean of the probabilities of the tokens. How large are the two numbers under the base?

# %%
unpaid = table[table.reward == 0]
S = unpaid.logp_base.map(np.sum)
decades = {"whole completion": S / np.log(10),
           "geometric mean per token": S / unpaid.tokens / np.log(10)}
quantiles = pd.DataFrame(decades).quantile([0.05, 0.25, 0.5, 0.75, 0.95])
quantiles.rename_axis("quantile").style.format("{:.2f}").format_index("{:.0%}")

# %% mystnb={"image": {"alt": "Step histograms of the decimal logarithm of the probability of wrong rollouts under the base, whole and as a geometric mean per token"}, "figure": {"caption": "Probability of the wrong rollouts under the base, as powers of ten: of the whole completion, and its geometric mean per token.", "name": "fig-rift-underflow"}}
figures.histograms(decades, "decimal logarithm of the probability", "wrong rollouts");

# %%
probability = np.exp(S.to_numpy(np.float64))
tiny, zero = (probability < 1e-6).mean(), (np.exp(S.to_numpy(np.float32)) == 0).mean()
Markdown(f"**{tiny:.1%}** of the wrong rollouts have a probability below one in a "
         f"million under the base; {zero:.1%} are exactly 0 in single precision. The "
         f"median is $10^{{{np.median(S) / np.log(10):.0f}}}$, for completions of "
         f"{unpaid.tokens.median():.0f} tokens.")

# %% [markdown]
# To the left of $-6$ in {numref}`fig-rift-underflow` a negative weight is less than a millionth of a positive one, and its gradient is lost
# in the rounding of the sum. A rollout there might as well have been filtered out, and filtering them out is RFT. The chains of thought of the
# paper have hundreds or thousands of tokens, so what is a tendency at our lengths is a certainty at theirs. The next table gives, for each
# level, the sum of the negative weights as a share of the sum of the positive ones, over the whole table at the first step.

# %%
rows = batches.collate(table, list(range(len(table))))["rows"]


def negative_over_positive(level):
    """Sum of the negative weights as a share of that of the positive ones."""
    weights = objectives.token_weights("rift", rows.reference, rows,
                                       negative_reward=-strength, level=level)
    return float(weights.clamp(max=0).sum().abs() / weights.clamp(min=0).sum())


levels = ["token", "length-normalised", "sequence"]
ratios = [negative_over_positive(level) for level in levels]
balance = pd.DataFrame({"level": levels, "negative / positive": ratios})
balance.style.format({"negative / positive": "{:.2e}"}).hide(axis="index")

# %% [markdown]
# The last line is {eq}`eq-rift-sequence` in one number. Where it is negligible, wrong rollouts have a say only at the token level or with
# normalised lengths, which is why the token level is our main run. A later page trains all the levels and measures how far each ends from
# RFT.
#
# ## What the paper prints
#
# The paper of this book {cite:p}`nikolich2026geometry` gives a third formula under the same name. With $r_i \in \{0, 1\}$ and a parameter
# $\lambda$ whose value it does not state,
#
# ```{math}
# :label: eq-rift-paper
# L_{\text{printed}} = -\frac{1}{\sum_i T_i}\sum_{i,t} (1 - r_i \lambda) \log p_{it}, \qquad
# w_{it} = \begin{cases} 1 - \lambda & \text{right}, \\ 1 & \text{wrong.} \end{cases}
# ```
#
# Here is what {eq}`eq-rift-paper` does at three values, by automatic differentiation of the function `objectives.rift_as_printed`:

# %%
def printed(penalty):
    _, weights, _ = batches.example_weights(study, "rift-paper", penalty=penalty)
    on_right, on_wrong = (of_rollout.mean() for of_rollout in weights)
    assert np.allclose([on_right, on_wrong], [1 - penalty, 1], atol=1e-5)
    return {"lambda": penalty, "right rollout": on_right, "wrong rollout": on_wrong,
            "right / wrong": on_right / on_wrong}


forms = pd.DataFrame([printed(penalty) for penalty in (-1.0, 0.5, 0.9)])
forms.style.format("{:+.2f}").hide(axis="index")

# %% [markdown]
# Two things are worth noticing. No value of $\lambda$ makes the weight of a wrong rollout negative: in this form the wrong ones are
# always imitated. And for $\lambda > 0$ they are imitated *more* than the right ones; at $\lambda = 1$ they would be all that is imitated. Only
# a negative $\lambda$ does what the name promises, and then it is a mixture of SFT and RFT: with $\lambda = -1$, a right rollout counts as two.
#
# Which of the formulas produced the paper's numbers cannot be told from its text. Its results for RIFT lie close to those of RFT and SFT
# (cosines of .969 and .967), which the sequence level explains by underflow and the printed form by being a reweighted SFT. So the
# closeness is compatible with all of them and evidence for none. That is a reason to keep the variants apart under names of their own.
#
# ## Training
#
# The run of this page is the token level of {eq}`eq-rift-loss`, with SFT's learning rate and rows.

# %%
folder = trainer.train(study, run)
history = pd.read_parquet(folder / "history.parquet")

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the RIFT loss with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "RIFT: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-rift-curve"}}
figures.training_curve(history, run);

# %%
share = positive / table.tokens.sum()
Markdown(f"The loss went from {history.loss.iloc[0]:.3f} to "
         f"{history.loss.tail(10).mean():.3f}. Its positive branch is averaged over "
         f"*all* tokens, of which {share:.1%} are on right rollouts, so it is about "
         f"that share of what RFT would read, and the other branch adds between 0 and "
         f"{strength * (1 - share):.3f}.")

# %% [markdown]
# In {numref}`fig-rift-curve` the second branch can hardly be seen: it is bounded by a small number, while the first is a mean of
# logarithms. Being bounded was its purpose. A loss like {eq}`eq-rift-unbounded` has no such bound; [the page on variants](19_variants.ipynb) trains it and shows whether it runs away.
#
# ## What it did to the model
#
# The mean log-probability per token of right and wrong rollouts, before and after:

# %%
effect = likelihood.effect(study, run)
effect.rename(index={0: "wrong rollouts", 1: "right rollouts"}).style.format("{:.3f}")

# %%
direction = ("rose although every one of their tokens was pushed down"
             if effect.change[0] > 0 else "fell, as their weights ask")
Markdown(f"The wrong rollouts {direction} ({effect.change[0]:+.3f} nats per token, "
         f"against {effect.change[1]:+.3f} for the right ones).")

# %% [markdown]
# If the wrong ones rise, the pull of the shared style is stronger than the direct push: raising a right rollout raises its relatives. The
# *difference* between the two rows says more about the reward than either of them. Now the accuracies, with intervals, and the paired test
# of {cite:t}`mcnemar1947`.

# %%
records = answering.records(study, ["base", run])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %%
pairs = statistics.mcnemar_table(records)
figures.table(pairs[["split", "b", "c", "difference", "low", "high", "p"]])

# %% [markdown]
# As before, `b` counts problems that only the base solved and `c` those that only RIFT solved. One problem in the words of both:

# %%
print(answering.answers_side_by_side(study, records))

# %%
solved = accuracy.set_index(["split", "run"]).accuracy
test = pairs.set_index("split").loc["test"]
verdict = ("a difference this test can see" if test.p < 0.05
           else "no difference that this test can see")
Markdown(f"On the test problems the base solves {solved['test', 'base']:.1%} and RIFT "
         f"**{solved['test', 'rift']:.1%}** (McNemar $p$ = {test.p:.2g}): {verdict}. "
         f"On the hard ones they solve {solved['hard', 'base']:.1%} and "
         f"{solved['hard', 'rift']:.1%}.")

# %% [markdown]
# ## Try it
#
# 1. Train the sequence level: `options={"level": "sequence"}`. Which other objective, with which aggregation, should it agree with?
#
# ````{dropdown} Answer
# With RFT's loss summed over each completion, `aggregation="sum"`, as long as $e^{S}$ of the wrong rollouts is negligible. Two differences
# remain: wrong rows still take up places in the batch, and the sum is divided by all completions. AdamW forgives the second, the first
# makes the batch of right rows smaller.
# ````
#
# 2. Set `negative_reward` to $-1$. By how much does the balance of negative to positive weights change, and can training now run away?
#
# ````{dropdown} Answer
# By {eq}`eq-rift-weights` it is proportional to $|r|$, so it becomes five times as large. It cannot run away: each token's loss stays between 0 and 1, and its
# weight vanishes with its probability. What can happen is that the common tokens of wrong rollouts, which are also common in right ones,
# are held back.
# ````
#
# 3. Train the printed form with `objective="rift-paper"` and `options={"penalty": -1.0}`. Where between SFT and RFT should its update lie?
#
# ````{dropdown} Answer
# With $q$ the share of tokens on right rollouts, the gradient is proportional to $2q\,\bar g_+ + (1-q)\,\bar g_-$ in the notation of
# {eq}`eq-rft-split`. That is SFT on a table in which right rollouts appear twice: between the two, and nearer to RFT than SFT is.
# ````
#
# ## Summary
#
# RIFT gives right rollouts SFT's weight and wrong ones a bounded, small, negative one. In its published sequence-level form the negative weights vanish for long
# completions, and the form printed in the paper never pushes anything down. The [next page](07_offline_grpo.ipynb) lets the weight depend on the
# whole group: a right rollout counts for more where right rollouts are rare.
