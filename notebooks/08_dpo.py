# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [dpo]
# ---

# %% [markdown]
# # DPO: prefer one to the other
#
# *Previously:* [Offline GRPO](07_offline_grpo.ipynb) mixed a contrast between right and wrong rollouts with a dose of imitation. *Now:*
# direct preference optimisation keeps the contrast alone. It takes a right and a wrong rollout of the same prompt and asks only that the
# first gain more on the base than the second.
#
# **Key takeaways**
# - The loss follows from rewards with a KL penalty: a policy's log-ratio to the base *is* a reward, up to a constant that pairs cancel.
# - All tokens of the chosen rollout have the same positive weight, all of the rejected one the same negative weight; what the two share cancels.
# - DPO differs from the other five in more than its loss: fewer rows, more passes over them, and a tenth of the learning rate.
#
# You need: [SFT](03_sft.ipynb), the {term}`KL divergence`. Reads the run `dpo`. Time to run: half a minute, or a few minutes if the run must be
# trained first.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import inspect
import json

import numpy as np
import pandas as pd
from IPython.display import Markdown

from helpers import profiles
from helpers.book import explorers, figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.models import loading, logprobs
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
run = study.runs["dpo"]
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)

# %% [markdown]
# ## From a reward to a loss
#
# Suppose a reward $R(x, y)$ were known, and one wanted much of it without leaving the base $\pi_0$ far behind:
#
# ```{math}
# :label: eq-dpo-objective
# \max_\pi\; \mathbb{E}_{y \sim \pi}\big[R(x, y)\big] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_0) .
# ```
#
# Write the KL divergence as an expectation under $\pi$ and collect everything in one logarithm. The objective becomes
# $-\beta\, \mathrm{KL}(\pi \,\|\, \pi^*)$ plus a constant, with
#
# ```{math}
# :label: eq-dpo-optimum
# \pi^*(y \mid x) = \frac{1}{Z(x)}\, \pi_0(y \mid x)\, e^{R(x, y)/\beta}, \qquad Z(x) = \sum_{y} \pi_0(y \mid x)\, e^{R(x, y)/\beta} .
# ```
#
# A KL divergence is smallest, namely zero, when its arguments agree, so $\pi^*$ solves {eq}`eq-dpo-objective`. It cannot be computed, as
# $Z$ is a sum over all texts. The idea of {cite:t}`rafailov2023dpo` is to read {eq}`eq-dpo-optimum` backwards. *Every* policy is the
# optimum of some reward:
#
# ```{math}
# :label: eq-dpo-reward
# R(x, y) = \beta \log \frac{\pi(y \mid x)}{\pi_0(y \mid x)} + \beta \log Z(x) .
# ```
#
# Now let preferences between a chosen $y_w$ and a rejected $y_l$ follow the model of Bradley and Terry, in which only the difference of
# their rewards matters:
#
# ```{math}
# :label: eq-dpo-bt
# P(y_w \succ y_l) = \sigma\big(R(x, y_w) - R(x, y_l)\big), \qquad \sigma(u) = \frac{1}{1 + e^{-u}} .
# ```
#
# Put {eq}`eq-dpo-reward` into {eq}`eq-dpo-bt`: $Z(x)$ belongs to the prompt, so it cancels. With $S = \sum_t \log p_t$ the log-probability
# of a completion and $S_0$ the same under the base, the likelihood of $P$ pairs gives the loss
#
# ```{math}
# :label: eq-dpo-loss
# L_{\text{DPO}}(\theta) = -\frac1P \sum_{\text{pairs}} \log \sigma(\beta m), \qquad m = (S_w - S_{0,w}) - (S_l - S_{0,l}) .
# ```
#
# We call $\beta m$ the *margin*. In code chosen and rejected rows alternate:

# %%
print(inspect.getsource(objectives.dpo))

# %% [markdown]
# The paper prints {eq}`eq-dpo-loss` as its source does. One part of the source's recipe is left out, though: it advises that the reference
# be the model that wrote the pairs, or one first fine-tuned on the chosen completions. Here, as in the paper, the pairs come from the
# teacher and the reference is the base that has never seen them.
#
# ## The gradient: a contrast
#
# $-\log \sigma(u)$ has the derivative $-\sigma(-u)$. In the weights view of {eq}`eq-sft-weights`, {eq}`eq-dpo-loss` gives for a batch of one pair
#
# ```{math}
# :label: eq-dpo-weights
# -\frac{\partial L_{\text{DPO}}}{\partial \log p_{t}} = \begin{cases}
# {+}\beta\, \sigma(-\beta m) & \text{on every token of } y_w, \\
# {-}\beta\, \sigma(-\beta m) & \text{on every token of } y_l. \end{cases}
# ```
#
# The factor $\sigma(-\beta m)$ is the probability with which the model still gets the pair wrong: pairs already won stop pulling. At the
# first step the policy is the base, so $m = 0$, the loss is $\log 2$ exactly, and the weight is $\pm\beta/2$.
#
# A word on units. SFT divides by tokens and DPO by pairs. On a pair with $T_w + T_l$ tokens, SFT's weight would be $1/(T_w + T_l)$, so in
# SFT's units DPO's weight is
#
# ```{math}
# :label: eq-dpo-units
# w_{t}^{\text{DPO}} = \pm \frac{\beta}{2}\,(T_w + T_l) \quad \text{at the first step.}
# ```

# %%
default = inspect.signature(objectives.dpo).parameters["beta"].default
beta = run.options.get("beta", default)
tokens, weights, headings = batches.example_weights(study, "dpo", **run.options)
size = sum(map(len, tokens))
assert np.allclose(weights[0], beta / 2 * size)
assert np.allclose(weights[1], -beta / 2 * size)

# %%
pair = next(iter(rollouts.select(table, "pairs").values()))
rows = batches.collate(table, pair)["rows"]
loss, count = objectives.dpo(rows.reference, rows, beta=beta)
assert np.isclose(float(loss / count), np.log(2))
Markdown(f"At the first step the loss of the pair is {float(loss / count):.6f}, and "
         f"$\\log 2$ is {np.log(2):.6f}. The weight is $\\pm${beta / 2:g} in DPO's "
         f"own units and **$\\pm${beta / 2 * size:.2f}** in SFT's, because the pair "
         f"has {size} tokens.")

# %% mystnb={"image": {"alt": "Tokens of a right rollout in boxes of one strong positive colour and of a wrong rollout in boxes of the equally strong negative colour"}, "figure": {"caption": "DPO's weight on each token of a right (chosen) and a wrong (rejected) rollout of the same prompt, at the first step.", "name": "fig-dpo-weights"}}
figures.token_weights(tokens, weights, headings);

# %% [markdown]
# {numref}`fig-dpo-weights` has the sharpest contrast of the six pages, and no token stands out: like Offline GRPO, DPO does not know where
# the mistake was made. But the two rows must be read *together*, for the model is the same in both.
#
# ## What cancels
#
# If the two completions begin with the same tokens, the model sees the same context at each of them and the scores $\nabla \log p_t$ are
# equal. Their weights are opposite, so the sum over a shared prefix of $n$ tokens is
#
# ```{math}
# :label: eq-dpo-prefix
# \sum_{t \le n} \Big[ \beta\, \sigma(-\beta m)\, \nabla \log p_{t} - \beta\, \sigma(-\beta m)\, \nabla \log p_{t} \Big] = 0
# ```
#
# at every step of training, not only the first. After the first difference the contexts differ and the cancellation is partial.

# %%
def shared_prefix(chosen, rejected):
    """Number of tokens before the first in which the two differ."""
    together = enumerate(zip(chosen, rejected, strict=False))
    differing = (position for position, (a, b) in together if a != b)
    return next(differing, min(len(chosen), len(rejected)))


rows_of_pairs = rollouts.select(table, "pairs")
chosen, rejected = (table.iloc[[numbers[side] for numbers in rows_of_pairs.values()]]
                    for side in (0, 1))
completions = zip(chosen.completion_ids, rejected.completion_ids, strict=True)
prefixes = np.array([shared_prefix(*both) for both in completions])
assert np.allclose(weights[0][:prefixes[0]] + weights[1][:prefixes[0]], 0)

# %%
share = prefixes.sum() / chosen.tokens.sum()
Markdown(f"The pair of the figure shares its first **{prefixes[0]}** tokens. Over all "
         f"{len(prefixes)} pairs the shared prefix has {prefixes.mean():.1f} tokens on "
         f"average (at most {prefixes.max()}), which is {share:.1%} of the chosen "
         f"tokens, and {(prefixes == 0).mean():.0%} of the pairs differ from the "
         f"first token on.")

# %% [markdown]
# By {eq}`eq-dpo-prefix` these tokens teach nothing. Something weaker holds for all that the two have in *common* without being equal, above
# all the teacher's style. If $\bar s$ is the mean score of a token written in that style, its part in the gradient of a pair at the first
# step is
#
# ```{math}
# :label: eq-dpo-style
# \frac{\beta}{2}\,(T_w - T_l)\, \bar s ,
# ```
#
# and only the difference of the lengths is left. What moves SFT most, the change of style, is thus nearly invisible to DPO, unless right
# and wrong rollouts differ in length.

# %%
difference = chosen.tokens.to_numpy() - rejected.tokens.to_numpy()
total = chosen.tokens.to_numpy() + rejected.tokens.to_numpy()
Markdown(f"In our pairs the chosen rollout is {abs(difference.mean()):.2f} tokens "
         f"{'longer' if difference.mean() > 0 else 'shorter'} on average, out of "
         f"{total.mean():.1f} in a pair: by {{eq}}`eq-dpo-style` "
         f"**{abs(difference.mean()) / total.mean():.1%}** of the weight that would "
         f"fall on the style if both were raised.")

# %% [markdown]
# That is a prediction about geometry, made before any training: whatever part of an update is style should be in SFT's and missing in
# DPO's. In the paper the cosine between the two is about .06 {cite:p}`nikolich2026geometry`. A later page tests the prediction.
#
# ## Pairs, passes and the learning rate
#
# Three things besides the loss set DPO apart from the other five runs, in the paper and here.

# %%
folder = trainer.train(study, run)
history = pd.read_parquet(folder / "history.parquet")
record = json.loads((folder / "run.json").read_text())
sft = study.runs["sft"]
sft_passes = sft.steps * sft.batch_size / len(table)

# %%
count = len(rows_of_pairs)
facts = pd.DataFrame(
    {"SFT": [len(table), table.problem_id.nunique(), sft_passes, sft.learning_rate],
     "DPO": [2 * count, count, record["passes"], run.learning_rate]},
    index=["rows of the table", "prompts", "passes over its rows", "learning rate"])
facts.style.format("{:.4g}")

# %% [markdown]
# Only mixed groups have a pair, and each gives one. With the same number of steps DPO therefore goes over its rows more often. In the paper
# the imbalance is extreme: within the thousand steps that are reported, SFT had seen less than half of its 75 thousand rows once, while DPO
# had gone about eighteen times over its 1.8 thousand pairs. One run never repeats itself, the other repeats itself all the time. A
# difference between their updates may come from that as well as from the loss.

# %%
ratio, passes = sft.learning_rate / run.learning_rate, record["passes"] / sft_passes
Markdown(f"Here DPO makes **{passes:.1f}** times as many passes over its rows as SFT, "
         f"at a learning rate {ratio:g} times smaller.")

# %% [markdown]
# The smaller rate is the paper's choice, and the reason it gives is that DPO diverges at higher ones. AdamW's steps hardly depend on the
# size of the gradient, so a comparison of norms between DPO and the rest is in part a comparison of rates. Only in part: the paper reports
# that a rate ten times larger makes a norm three times larger, while DPO's norm is thirteen times smaller than the others'. A later page
# trains DPO at the matched rate, at a matched norm, and with at most one pass.
#
# ## Training

# %% mystnb={"image": {"alt": "Two line plots against optimiser steps: the DPO loss with its running mean, and the norm of its gradient with the clipping level"}, "figure": {"caption": "DPO: loss (thin: each step; thick: mean of ten) and norm of the gradient, clipped at the dashed line.", "name": "fig-dpo-curve"}}
figures.training_curve(history, run);

# %%
last = history.loss.tail(10).mean()
Markdown(f"The loss began at {history.loss.iloc[0]:.4f} and came to {last:.4f}. A loss "
         f"of {last:.4f} is what a constant margin of {-np.log(np.expm1(last)):.3f} "
         f"would give.")

# %% [markdown]
# The curve of {numref}`fig-dpo-curve` starts at $\log 2$ like every DPO run. The gradient's norm is in DPO's units, so by
# {eq}`eq-dpo-units` it is larger than SFT's for the same signal, so the clipping at the dashed line acts sooner; where the curve stays
# below it nothing is clipped, and under AdamW the scale itself matters little.
#
# A verifier's preferences are not noisy as in {eq}`eq-dpo-bt`: a right rollout always wins. Then no finite margin is the best one, and the
# loss falls as long as one trains. What stops it is the number of steps and the rate.
#
# ## What it did to the model
#
# The margin is the quantity that was trained, so look at it first: on pairs of the table, under the trained model. Under the base it is 0
# for each pair, by definition.

# %%
model = answering.load_model_of(study, run)


def change_of_logp(rows):
    """log pi of each completion under the trained model minus that under the base."""
    trained = logprobs.score(model, list(rows.prompt_ids), list(rows.completion_ids))
    return np.array([float(np.sum(after) - np.sum(before))
                     for after, before in zip(trained, rows.logp_base, strict=True)])


on_chosen = change_of_logp(chosen.head(300))
on_rejected = change_of_logp(rejected.head(300))
margins = beta * (on_chosen - on_rejected)

# %% mystnb={"image": {"alt": "Step histogram of DPO's margin on pairs of the table after training, with a dashed line at zero, its value before training"}, "figure": {"caption": "Margin of the pairs after training; before training all of them are at the dashed line.", "name": "fig-dpo-margins"}}
fig = figures.histograms({"dpo": margins}, "margin of the pair", "pairs")
fig.axes[0].axvline(0, color=figures.COLOURS["base"], linestyle="--", linewidth=1);

# %%
Markdown(f"**{(margins > 0).mean():.1%}** of the first {len(margins)} pairs have a "
         f"positive margin; the mean is {margins.mean():+.3f} (standard error "
         f"{margins.std(ddof=1) / np.sqrt(len(margins)):.3f}). The chosen rollout "
         f"changed by {on_chosen.mean():+.2f} nats and the rejected one by "
         f"{on_rejected.mean():+.2f}.")

# %% [markdown]
# The share to the right of the dashed line in {numref}`fig-dpo-margins` is an accuracy on *training* pairs, so it says that the loss did
# its work, not that the model reasons better. The two changes in nats are the more telling numbers. The loss asks for their difference
# only: both may rise, or both may fall, the rejected one faster. A chosen rollout that becomes less probable is no failure of the
# optimiser, it is allowed by {eq}`eq-dpo-loss`. The same, a token and over all rows of the table's first prompts:

# %%
effect = likelihood.effect(study, run)
effect.rename(index={0: "wrong rollouts", 1: "right rollouts"}).style.format("{:.3f}")

# %% [markdown]
# Compare the changes with those on the five pages before. Now the accuracies, with intervals, and the paired test of {cite:t}`mcnemar1947`.

# %%
records = answering.records(study, ["base", run])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %%
pairs = statistics.mcnemar_table(records)
figures.table(pairs[["split", "b", "c", "difference", "low", "high", "p"]])

# %% [markdown]
# As before, `b` counts problems that only the base solved and `c` those that only DPO solved. One problem in the words of both:

# %%
print(answering.answers_side_by_side(study, records))

# %%
summary = accuracy.set_index(["split", "run"])
test = pairs.set_index("split").loc["test"]
verdict = ("a difference this test can see" if test.p < 0.05
           else "no difference that this test can see")
Markdown(f"On the test problems the base solves {summary.accuracy['test', 'base']:.1%} "
         f"and DPO **{summary.accuracy['test', 'dpo']:.1%}** (McNemar $p$ = "
         f"{test.p:.2g}): {verdict}. On the hard ones they solve "
         f"{summary.accuracy['hard', 'base']:.1%} and "
         f"{summary.accuracy['hard', 'dpo']:.1%}. A test answer has "
         f"{summary.mean_tokens['test', 'base']:.1f} tokens before and "
         f"{summary.mean_tokens['test', 'dpo']:.1f} after.")

# %% [markdown]
# DPO loses accuracy too, but far less than the other five. That has two readings, and the table alone cannot decide between them: DPO may spare what the base could do, or
# it may have moved too little to break more of it. The number of tokens is a first hint: a model that took on the teacher's style would write longer answers, and with the style comes
# [its price](09_evaluation.ipynb).
#
# ## All six, token by token
#
# **Explorer.** The weight that each of the six objectives gives to each token of the table, at the first step. Choose a problem and an objective. The problems are the first ones of the table that have right and wrong rollouts. For each objective the unit is the weight that SFT would give
# to a token of the same rows, as in {eq}`eq-dpo-units`.

# %%
def weights_of(method, group):
    """{row: weights of its tokens} at the base, for the rows that a method takes."""
    selected = rollouts.select(group, objectives.objective(method).rows)
    numbers = [number for of_prompt in selected.values() for number in of_prompt]
    rows = batches.collate(group, numbers)["rows"]
    weights = objectives.token_weights(method, rows.reference, rows) * rows.mask.sum()
    return {number: weights[index][rows.mask[index].bool()].tolist()
            for index, number in enumerate(numbers)}


# %%
def page_of(problem_id):
    """A problem with its completions, their tokens and every method's weights."""
    group = table[table.problem_id == problem_id].reset_index(drop=True)
    by_method = {method: weights_of(method, group) for method in study.main_runs}
    completions = [
        {"reward": float(row.reward),
         "tokens": [tokenizer.decode([token]) for token in row.completion_ids],
         "weights": {method: weights[row.Index]
                     for method, weights in by_method.items() if row.Index in weights}}
        for row in group.itertuples()]
    return {"question": group.prompt[0], "answer": group.gold[0],
            "completions": completions}


tokenizer = loading.load_tokenizer(study)
pages = [page_of(problem_id) for problem_id in list(rows_of_pairs)[:8]]
explorers.rollout_browser(pages, list(study.main_runs), "rollouts-token-by-token")

# %% [markdown]
# Going through the list from SFT to DPO one sees the objectives grow out of each other. SFT has one colour and one strength. RFT has the same and fewer rows. DFT fades where the base is unsure. RIFT and Offline GRPO turn the wrong rollouts orange. DPO keeps one right and one wrong rollout, with the
# largest weights of all; colours are scaled for each objective, so read their size from the line above each rollout. Only DFT, and RIFT on wrong rollouts, make differences between the tokens of one rollout.
#
# ## Try it
#
# 1. Train DPO at SFT's learning rate: `run.model_copy(update={"learning_rate": study.runs["sft"].learning_rate})`. What happens to the margins?
#
# ````{dropdown} What to expect
# The update grows, less than in proportion since $\sigma(-\beta m)$ fades as pairs are won. Margins rise and the loss goes towards 0.
# Whether accuracy holds is the question of the page on matched DPO; look at the length of the answers and at the share without a box as
# well.
# ````
#
# 2. What does a smaller $\beta$ do to the weight at the first step, and what to the size of the update?
#
# ````{dropdown} Answer
# By {eq}`eq-dpo-weights` the weight is proportional to $\beta$, but AdamW divides the scale out. What changes is saturation: with a small
# $\beta$ the factor $\sigma(-\beta m)$ stays near one half for much larger $m$, so the pairs pull for longer and the policy goes further
# from the base, as $\beta$ in {eq}`eq-dpo-objective` says it should.
# ````
#
# 3. Suppose each rejected rollout were the chosen one with only its last number changed. Which tokens would be trained?
#
# ````{dropdown} Answer
# By {eq}`eq-dpo-prefix` all tokens before that number cancel exactly. The number itself would be pushed up in one and down in the other,
# and the tokens after it, though equal as text, follow different contexts and cancel in part. Such pairs would aim the contrast at the
# mistake, where ours spread it over whole solutions.
# ````
#
# ## Summary
#
# DPO's gradient is the contrast between a right and a wrong rollout: tokens that both share cancel, and by {eq}`eq-dpo-style` much of the
# teacher's style with them. It runs on fewer rows, more often, at a smaller rate, and each of these must be undone before its loss can be
# judged. All six objectives are trained now; the [next page](09_evaluation.ipynb) compares what they can do.
