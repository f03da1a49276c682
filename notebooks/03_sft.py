# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [sft]
# ---

# %% [markdown]
# # SFT: imitate everything
#
# *Previously:* [one table of rewarded rollouts](02_rollouts.ipynb). *Now:* the first and simplest objective, supervised fine-tuning. It
# raises the probability of every rollout, right or wrong, and never looks at the reward.
#
# **Key takeaways**
# - A loss of log-probabilities is, for its gradient, nothing but one *weight* per token. SFT's weights are all equal.
# - Where the table errs, SFT imitates the error: its target is the teacher, not the truth.
# - The learning rate of five of the six objectives is chosen here, once, on validation problems.
#
# You need: [the table](02_rollouts.ipynb) and gradients. Reads the run `sft`. Time to run: half a minute, or a few minutes if the run must be trained first.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import inspect

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from helpers import profiles
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
run = study.runs["sft"]
figures.use_style(study)

# %% [markdown]
# ## The loss
#
# Imitation is maximum likelihood: choose $\theta$ so that the rollouts $y_i$ become as probable as possible. With equation
# {eq}`eq-rollouts-logp` and $T_i$ tokens in rollout $i$, the mean over all tokens of a batch is
#
# ```{math}
# :label: eq-sft-loss
# L_{\text{SFT}}(\theta) = -\frac{1}{\sum_i T_i}\sum_{i}\sum_{t=1}^{T_i} \log \pi_\theta(y_{it} \mid x_i, y_{i,<t}) .
# ```
#
# In code it is one line; `rows.mask` is 1 on the tokens of completions and 0 on prompts and padding.

# %%
print(inspect.getsource(objectives.sft))

# %% [markdown]
# The function returns the sum and the number of tokens separately. That is no detail: when a batch is split into micro-batches, the mean of
# their means is not the mean over all tokens, and equation {eq}`eq-sft-loss` would silently become another objective.
#
# ## The gradient: one weight per token
#
# Any loss that depends on the model only through the log-probabilities of the tokens has a gradient of one form. By the chain rule
#
# ```{math}
# :label: eq-sft-weights
# -\nabla_\theta L = \sum_{i,t} w_{it}\, \nabla_\theta \log \pi_\theta(y_{it} \mid x_i, y_{i,<t}),
# \qquad w_{it} = -\frac{\partial L}{\partial \log \pi_\theta(y_{it} \mid \cdot)} .
# ```
#
# A positive weight pushes the token's probability up, a negative one down, and the objectives of this book differ in nothing but $w_{it}$ and the
# rows they see. For SFT, differentiate {eq}`eq-sft-loss`: every weight is $1/\sum_i T_i$. In units of that number,
#
# ```{math}
# :label: eq-sft-one
# w_{it}^{\text{SFT}} = 1 .
# ```
#
# The next figure draws the weights on two real rollouts of one prompt, one right and one wrong, as automatic differentiation finds them.

# %%
tokens, weights, headings = batches.example_weights(study, "sft")
assert all(np.allclose(values, 1) for values in weights)

# %% mystnb={"image": {"alt": "Tokens of a right and a wrong rollout in boxes, all of the same colour because SFT weighs every token alike"}, "figure": {"caption": "SFT's weight on each token of a right and a wrong rollout of the same prompt.", "name": "fig-sft-weights"}}
figures.token_weights(tokens, weights, headings);

# %% [markdown]
# In {numref}`fig-sft-weights` the error and all that follows from it are as much worth imitating as the rest. The same figure on the next
# five pages has other colours, and these colours are the whole difference between the methods at the first step.
#
# ## What is trained
#
# The base is frozen. Each of its attention projections $W$ gets an *adapter*: two thin matrices whose product is added to it,
#
# ```{math}
# :label: eq-sft-lora
# W' = W + \Delta W, \qquad \Delta W = \frac{\alpha}{r} B A, \qquad B \in \mathbb{R}^{d_\text{out} \times r},\; A \in \mathbb{R}^{r \times d_\text{in}} .
# ```
#
# $B$ starts at zero and $A$ at random numbers that are the same for all methods, so all start from the same model and the same frame. Before the first step {eq}`eq-sft-lora` adds nothing at all.
# Everything that differs between two runs stands in their specs; this is the one of the run on this page.

# %%
pd.Series({**run.model_dump(exclude={"name", "options", "rows"}),
           "rank r": study.lora.rank, "alpha": study.lora.alpha},
          name="value").astype(str).to_frame()

# %% [markdown]
# ## One learning rate, chosen once
#
# A comparison of objectives is worth little if one of them was tuned and the others not. So the rate is chosen on SFT alone and then used
# for RFT, DFT, RIFT and Offline GRPO as it is. DPO gets a tenth of it, as in the paper. The choice is by the loss on fresh rollouts of the
# teacher to *validation* problems, which is what SFT is made to lower. It was first meant to be by greedy accuracy, but accuracy cannot
# choose: as the table shows, it prefers a rate of zero, the base itself. These are all the rates that were tried; `make sweep` trains them again.

# %%
sweep_path = likelihood.sweep_path(study)
if sweep_path.exists():
    sweep = pd.read_csv(sweep_path)
    ends = [statistics.wilson(round(row.validation_accuracy * row.n), row.n)
            for row in sweep.itertuples()]
    sweep["low"], sweep["high"] = zip(*ends, strict=True)
    display(figures.table(sweep))

# %% [markdown]
# The first line is the base. `low` and `high` are the interval of the accuracy; where the intervals of two rates overlap, their accuracies
# are not told apart by this many problems, and the choice is between orders of magnitude, not between decimals.
#
# ## Training
#
# `train` returns at once when the store holds a run of the same spec, data and code; otherwise it trains and resumes where it was stopped.

# %%
folder = trainer.train(study, run)
history = pd.read_parquet(folder / "history.parquet")
sorted(path.name for path in folder.rglob("*") if path.is_file())

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the SFT loss with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "SFT: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-sft-curve"}}
figures.training_curve(history, run);

# %%
floor = -np.concatenate(list(rollouts.load_table(study).logp_behaviour)).mean()
Markdown(f"The loss went from {history.loss.iloc[0]:.3f} to "
         f"{history.loss.tail(10).mean():.3f} nats per token. The teacher's own "
         f"loss on the same table, its entropy, is **{floor:.3f}**: no student can do "
         f"better on fresh rollouts.")

# %% [markdown]
# The first fall of {numref}`fig-sft-curve` is the change of style: the first words of a wordy solution stop being a surprise. What remains
# above the teacher's entropy is what an adapter on attention alone did not learn in this many steps.
#
# ## What it did to the model
#
# Three views. First, log-probabilities per token of the same right and wrong rollouts, before and after:

# %%
effect = likelihood.effect(study, run)
effect.rename(index={0: "wrong rollouts", 1: "right rollouts"}).style.format("{:.3f}")

# %% [markdown]
# Both kinds rise, as the equal weights of {eq}`eq-sft-one` ask. That alone does not show that wrong rollouts were imitated: the next pages raise them nearly as much without imitating them. Second, the accuracy on the test and hard problems, each with its
# interval, and the exact paired test of {cite:t}`mcnemar1947` on the problems that only one of the two models solved.

# %%
records = answering.records(study, ["base", run])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %%
pairs = statistics.mcnemar_table(records)
figures.table(pairs[["split", "b", "c", "difference", "low", "high", "p"]])

# %% [markdown]
# Here `b` counts problems that only the base solved, `c` those that only the trained model solved; a positive difference favours the base.
# Third, one problem in the words of both:

# %%
print(answering.answers_side_by_side(study, records))

# %%
solved = accuracy.set_index(["split", "run"]).accuracy
test = pairs.set_index("split").loc["test"]
Markdown(f"On the test problems the base solves {solved['test', 'base']:.1%} and SFT "
         f"**{solved['test', 'sft']:.1%}** (McNemar $p$ = {test.p:.2g}); on the hard "
         f"ones {solved['hard', 'base']:.1%} and {solved['hard', 'sft']:.1%}.")

# %% [markdown]
# The student now writes in the teacher's style. Whether it reasons better or worse than before is a question of its own, and the answer
# is in the test, not in the loss.
#
# ## Try it
#
# 1. Train on right rollouts only: `trainer.train(study, run.model_copy(update={"rows": "correct"}))`. Which objective of this book is that?
#
# ````{dropdown} Answer
# It is RFT, page 04. The changed spec gets a folder of its own in the store; the book's run is not touched.
# ````
#
# 2. Halve the `steps` of the spec. Does the accuracy halve its change?
#
# ````{dropdown} What to expect
# The cosine schedule is stretched to the number of steps, so a shorter run is not the first half of a longer one. Most of the change of style
# happens early; the rest depends on the rate more than on the number of steps.
# ````
#
# 3. Replace the {term}`token mean` of {eq}`eq-sft-loss` by the mean over completions of their means: `options={"aggregation": "sequence"}`. Which tokens gain weight?
#
# ````{dropdown} Answer
# Those of short completions, in proportion to $1/T_i$. Short solutions belong to easy problems, so the batch becomes easier without a change of data.
# ````
#
# 4. Turn the rate and the rank of the adapter in a live notebook: two dials, ten steps of training at each position, found again when you come back to it.
#
# ````{dropdown} The code
# ```python
# import ipywidgets
#
# from adapter_geometry import updates
# from adapter_geometry.adapters import load_update
#
#
# def ten_steps(rate, rank):
#     tried = study.model_copy(update={"lora": study.lora.model_copy(update={"rank": rank, "alpha": 2 * rank})})
#     trained = trainer.train(tried, run.model_copy(update={"learning_rate": rate, "steps": 10}))
#     pd.read_parquet(trained / "history.parquet").plot(x="step", y="loss", ylim=(0, 1))
#     print(f"norm of the update: {updates.norm(load_update(trained / 'adapter')):.3g}")
#
#
# ipywidgets.interact(ten_steps, rate=ipywidgets.FloatLogSlider(value=3e-3, min=-4, max=-1.5, step=0.25, continuous_update=False),
#                     rank=ipywidgets.SelectionSlider(options=[1, 2, 4, 8, 16, 32], value=16, continuous_update=False));
# ```
# The norm grows in proportion to the rate, because Adam moves each entry by about the rate, whatever the size of its gradient; and, more slowly, with the rank, which adds
# entries, though $\alpha = 2r$ keeps the factor before $BA$ as it is. Towards the upper end the loss rises instead of falling. [Norms](10_norms.ipynb) has more on this.
# ````
#
# ## Summary
#
# SFT pulls every token of every rollout with the same weight. It is the reference for all that follows: the other objectives are changes of these
# weights, and their updates will be compared with this one. Next: [the same loss on right rollouts only](04_rft.ipynb).
