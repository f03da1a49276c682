# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [rft, sft]
# ---

# %% [markdown]
# # RFT: imitate what is right
#
# *Previously:* [SFT](03_sft.ipynb) imitates every rollout, right or wrong. *Now:* rejection fine-tuning throws the wrong ones away and
# imitates the rest, with the same loss. The reward is used once, as a filter, before training begins.
#
# **Key takeaways**
# - RFT is SFT on other rows. As a weight per token it is 1 on right rollouts and 0 on wrong ones.
# - Its rows are a subset of SFT's rows, and its gradient is one of the two parts that SFT's gradient is made of.
# - The source of the method also removes right rollouts that repeat the same equations; the paper leaves that step out.
#
# You need: [SFT](03_sft.ipynb). Reads the run `rft`. Time to run: half a minute, or a few minutes if the run must be trained first.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import inspect
import json
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import Markdown

from helpers import profiles
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
run = study.runs["rft"]
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)

# %% [markdown]
# ## The loss
#
# Keep the rollouts whose reward $r_i$ is 1 and maximise their likelihood. With $p_{it}$ short for the probability
# $\pi_\theta(y_{it} \mid x_i, y_{i,<t})$ of one token and $T_i$ tokens in rollout $i$,
#
# ```{math}
# :label: eq-rft-loss
# L_{\text{RFT}}(\theta) = -\frac{1}{\sum_i r_i T_i}\sum_{i} r_i \sum_{t=1}^{T_i} \log p_{it} .
# ```
#
# The factor $r_i$ in {eq}`eq-rft-loss` is a multiplication on paper and a selection in practice: a row that weighs nothing need not be
# computed. So the code has no new function. RFT takes the function of SFT and names other rows.

# %%
print(inspect.getsource(objectives.sft))
{name: objectives.OBJECTIVES[name].rows for name in ("sft", "rft")}

# %% [markdown]
# What the selection leaves, prompt by prompt, comes from `rollouts.select`; a prompt without a single right rollout drops out altogether.

# %%
everything, correct = (rollouts.select(table, rows) for rows in ("all", "correct"))
Markdown(f"RFT keeps **{sum(map(len, correct.values()))}** of {len(table)} rows "
         f"({table.reward.mean():.1%}, the pass rate of the table) and {len(correct)} "
         f"of {len(everything)} prompts.")

# %% [markdown]
# ## The gradient: a filter
#
# The weights view of {eq}`eq-sft-weights` asks for $-\partial L / \partial \log p_{it}$. Differentiating {eq}`eq-rft-loss` gives
# $r_i / \sum_j r_j T_j$. In units of one token of the batch that is trained on,
#
# ```{math}
# :label: eq-rft-weights
# w_{it}^{\text{RFT}} = r_i \in \{0, 1\} .
# ```
#
# To check {eq}`eq-rft-weights`, the next cell lets automatic differentiation loose on the pair of rollouts that all these pages share, with
# the mask of the wrong one set to zero: exactly what a batch without that row would compute.

# %%
tokens, unfiltered, headings = batches.example_weights(study, "rft", **run.options)
pair = next(iter(rollouts.select(table, "pairs").values()))
rows = batches.collate(table, pair)["rows"]
filtered = replace(rows, mask=rows.mask * rows.reward[:, None])
per_token = objectives.token_weights("rft", rows.reference, filtered, **run.options)
assert np.allclose(per_token * filtered.mask.sum(), filtered.mask)
weights = [float(reward) * of_rollout
           for reward, of_rollout in zip(rows.reward, unfiltered, strict=True)]

# %% mystnb={"image": {"alt": "Tokens of a right rollout in boxes of one strong colour and of a wrong rollout in boxes of the neutral colour of weight zero"}, "figure": {"caption": "RFT's weight on each token of a right and a wrong rollout of the same prompt.", "name": "fig-rft-weights"}}
figures.token_weights(tokens, weights, headings);

# %% [markdown]
# In {numref}`fig-rft-weights` the right rollout looks as it did under SFT and the wrong one has lost its colour. Nothing is pushed *down*:
# RFT does not know that the wrong rollout was wrong, it has merely never heard of it. It also cannot tell which tokens of a rollout made
# it right. Every token of a paid rollout is paid, the detours and the lucky errors too.
#
# ## How far from SFT can that be?
#
# Write $\bar g_+$ for the mean of $\nabla \log p_{it}$ over all tokens of right rollouts, $\bar g_-$ for the mean over tokens of wrong
# ones, and $q$ for the share of tokens that belong to right rollouts. Sorting the sum in SFT's gradient by reward, we get
#
# ```{math}
# :label: eq-rft-split
# -\nabla L_{\text{SFT}} = q\, \bar g_+ + (1 - q)\, \bar g_-, \qquad -\nabla L_{\text{RFT}} = \bar g_+ .
# ```
#
# So at any one point the two methods differ by the wrong rollouts' part alone, and that part is small for two reasons that have nothing to
# do with the method: a good teacher makes $1-q$ small, and right and wrong rollouts share their style, which makes $\bar g_-$ similar to
# $\bar g_+$. With $c$ the cosine between $\bar g_+$ and $\bar g_-$ and $k$ the ratio of the second's norm to the first's,
#
# ```{math}
# :label: eq-rft-cosine
# \cos(\nabla L_{\text{SFT}}, \nabla L_{\text{RFT}}) = \frac{q + (1-q)\,k c}{\sqrt{q^2 + 2q(1-q)\,k c + (1-q)^2 k^2}} .
# ```
#
# Here are values of {eq}`eq-rft-cosine` for gradients of equal length ($k = 1$) at the share $q$ of our table, and at one half.

# %%
def cosine(q, c, k=1.0):
    along, across = q + (1 - q) * k * c, (1 - q) * k * np.sqrt(1 - c**2)
    return along / np.hypot(along, across)


share = table.tokens[table.reward > 0].sum() / table.tokens.sum()
predicted = pd.DataFrame(
    {f"q = {q:.2f}": {f"c = {c:g}": cosine(q, c) for c in (-0.5, 0.0, 0.5, 0.9)}
     for q in (share, 0.5)})
predicted.style.format("{:.3f}")

# %% [markdown]
# Even the row $c = 0$, in which right and wrong rollouts would have nothing in common, shows how much agreement is decided by the table's
# pass rate before any method is chosen. In the paper the updates of SFT and RFT have a cosine of .977
# {cite:p}`nikolich2026geometry`. Read next to {eq}`eq-rft-split`, that is what one would expect of two runs whose data are nearly the same,
# and it says little about the losses. A later page trains on *random* subsets of the same size to see what a subset alone does.
#
# Equation {eq}`eq-rft-split` speaks of expectations. Two real runs also see different rows at different times, because RFT skips rows and so
# reaches later prompts sooner. How many of the rows it trained on did SFT meet too, in the same number of steps?

# %%
ids, length = list(table.problem_id.unique()), run.steps * run.batch_size
seen = {name: set(batches.row_order(selected, ids, run.seed, length))
        for name, selected in (("sft", everything), ("rft", correct))}
shared = len(seen["sft"] & seen["rft"])
Markdown(f"In {run.steps} steps RFT draws {length} rows, {len(seen['rft'])} of them "
         f"different. **{shared / len(seen['rft']):.1%}** of these SFT meets as well; "
         f"{shared / len(seen['sft']):.1%} of the rows that SFT meets are also RFT's.")

# %% [markdown]
# ## What the paper prints, what the source says
#
# The name comes from {cite:t}`yuan2023rft`, where a model answers its own training questions many times and is then trained on the answers
# that turn out right. Two things are different there. The rollouts are written by the fine-tuned student itself, not by another teacher. And
# right rollouts that carry out *the same list of equations* count once: of several, the one that is least like the texts already kept
# stays. The point is variety, since four copies of one solution teach what one copy teaches. The paper of this book names the source
# and filters by the reward alone. Both selections exist here; this is what they leave.

# %%
kinds = {"all": "SFT", "correct": "RFT as the paper prints it",
         "correct-distinct": "RFT as its source describes it"}
selected = {rows: [number for numbers in rollouts.select(table, rows).values()
                   for number in numbers]
            for rows in kinds}
counts = pd.DataFrame([{"rows": rows, "used by": kinds[rows], "kept": len(numbers),
                        "share": len(numbers) / len(table),
                        "mean tokens": table.tokens.iloc[numbers].mean()}
                       for rows, numbers in selected.items()])
counts.style.format({"share": "{:.1%}", "mean tokens": "{:.1f}"}).hide(axis="index")

# %%
repeats = 1 - len(selected["correct-distinct"]) / len(selected["correct"])
Markdown(f"By the source's rule **{repeats:.1%}** of the right rollouts are repeats: "
         f"other words around the same equations.")

# %% [markdown]
# How harsh the rule is depends on the problems. Ours fix the chain of operations and leave only its working open, such as how a sum is
# split, so right rollouts have less room to differ in their equations than free mathematical text has. Removing repeats has a second effect
# that is easy to miss. Without the rule an easy prompt, with all of its rollouts right, supplies more rows than a hard one with a single
# right rollout. With it each prompt counts about equally, so hard prompts gain weight.
#
# ## Training
#
# All settings but the objective are those of SFT. The losses of the two are not comparable: their rows differ.

# %%
folder = trainer.train(study, run)
history = pd.read_parquet(folder / "history.parquet")
record = json.loads((folder / "run.json").read_text())

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the RFT loss with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "RFT: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-rft-curve"}}
figures.training_curve(history, run);

# %%
right = table.logp_behaviour[table.reward > 0]
floor = -np.concatenate(list(right)).mean()
Markdown(f"The loss of {{numref}}`fig-rft-curve` went from {history.loss.iloc[0]:.3f} "
         f"to {history.loss.tail(10).mean():.3f} nats per token in "
         f"{record['passes']:.2f} passes over its rows. The teacher's own loss on "
         f"right rollouts is **{floor:.3f}**, against "
         f"{-np.concatenate(list(table.logp_behaviour)).mean():.3f} on all.")

# %% [markdown]
# Where the first floor is the lower one, errors are the likely reason: an error is a token that the teacher itself finds improbable, and most
# rollouts that hold one are filtered out. That much of a lower loss is owed to the choice of rows, and nobody had to learn it.
#
# ## What it did to the model
#
# The mean {term}`log-probability` per token of right and wrong rollouts, before and after:

# %%
effect = likelihood.effect(study, run)
effect.rename(index={0: "wrong rollouts", 1: "right rollouts"}).style.format("{:.3f}")

# %%
share_of_change = effect.change[0] / effect.change[1]
Markdown(f"The wrong rollouts, which RFT never saw, changed by {effect.change[0]:+.3f} "
         f"nats per token, the right ones by {effect.change[1]:+.3f}: a ratio of "
         f"**{share_of_change:.2f}**.")

# %% [markdown]
# A ratio near 1 means that what was learned is common to right and wrong rollouts, the style of the teacher; a ratio near 0 would mean that
# rightness itself was learned. A token's probability can rise without ever having been pushed, when tokens like it were. The accuracies,
# with intervals, and the paired test of {cite:t}`mcnemar1947`:

# %%
records = answering.records(study, ["base", run])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %%
pairs = statistics.mcnemar_table(records)
figures.table(pairs[["split", "b", "c", "difference", "low", "high", "p"]])

# %% [markdown]
# As before, `b` counts problems that only the base solved, `c` those that only RFT solved; a positive difference favours the base. One
# problem in the words of both:

# %%
print(answering.answers_side_by_side(study, records))

# %%
solved = accuracy.set_index(["split", "run"]).accuracy
test = pairs.set_index("split").loc["test"]
verdict = ("a difference this test can see" if test.p < 0.05
           else "no difference that this test can see")
Markdown(f"On the test problems the base solves {solved['test', 'base']:.1%} and RFT "
         f"**{solved['test', 'rft']:.1%}** (McNemar $p$ = {test.p:.2g}): {verdict}. "
         f"On the hard ones they solve {solved['hard', 'base']:.1%} and "
         f"{solved['hard', 'rft']:.1%}.")

# %% [markdown]
# Whether RFT differs from *SFT* is another comparison, and the interesting one. It waits for [the page on evaluation](09_evaluation.ipynb),
# where all runs answer the same problems and the tests are corrected for their number.
#
# ## Try it
#
# 1. Train on the source's selection: `trainer.train(study, run.model_copy(update={"rows": "correct-distinct"}))`. What does the smaller
#    table change in a run of the same number of steps?
#
# ````{dropdown} Answer
# The number of passes: as many rows are drawn from fewer different ones, so each is seen more often, and more prompts are visited in the same
# number of steps. `run.json` in the new folder holds the number. The loss measured during training falls further once rows repeat.
# ````
#
# 2. Use {eq}`eq-rft-cosine` to find the pass rate at which SFT and RFT would have a cosine of one half, if $k = 1$ and $c = 0$.
#
# ````{dropdown} Answer
# $q / \sqrt{q^2 + (1-q)^2} = 1/2$ gives $q = 1/(1 + \sqrt 3) \approx 0.37$. With a teacher that is right more often than that, even unrelated
# gradients on right and wrong rollouts would leave the two methods closer than 60 degrees.
# ````
#
# 3. Keep only *wrong* rollouts instead. Without running it: would the log-probability of right rollouts rise or fall?
#
# ````{dropdown} What to expect
# The gradient would be $\bar g_-$. If $c > 0$, a small step along it raises right rollouts too, for they are written in the same style. The table
# of effects above, read the other way round, tells how strong that coupling is.
# ````
#
# ## Summary
#
# RFT is SFT with weight 0 on wrong rollouts. It sees a subset of SFT's rows and follows one of the two parts of SFT's gradient, so a small
# distance between the two is the expectation and not a finding. Next: [a loss that keeps every row and trusts the base](05_dft.ipynb).
