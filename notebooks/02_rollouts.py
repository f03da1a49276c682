# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [rollouts]
# ---

# %% [markdown]
# # Rollouts: one table for all
#
# *Previously:* [problems, a grader and three models](01_problems.ipynb). *Now:* the teacher answers every training problem several times,
# the grader rewards each answer, and the result is frozen. Six objectives will learn from this one table, so nothing that differs between
# them later can come from who wrote the texts. Two of them take only a part of its rows, and that will matter.
#
# **Key takeaways**
# - Every objective of this book is offline: it reads a fixed table of (prompt, completion, reward) and never samples.
# - The table also stores how probable each token was to the teacher who wrote it and to the base who will learn from it.
# - For the base the rows are {term}`off-policy`: it would hardly have written them. How far off is a number, and it is here.
#
# You need: [the page before](01_problems.ipynb), logarithms and expectations. Time to run: half a minute.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from IPython.display import Markdown, display
from scipy.stats import binom

from helpers import profiles, store
from helpers.book import figures
from helpers.data import grading, problems, rollouts

study = profiles.load(profile)
table = rollouts.load_table(study)
figures.use_style(study)

# %% [markdown]
# ## What a rollout is
#
# A language model with parameters $\theta$ writes a completion $y = (y_1, \dots, y_T)$ to a prompt $x$ one token at a time. The probability
# of the whole is the product over its tokens, its logarithm a sum:
#
# ```{math}
# :label: eq-rollouts-logp
# \log \pi_\theta(y \mid x) = \sum_{t=1}^{T} \log \pi_\theta(y_t \mid x, y_{<t}) .
# ```
#
# A *rollout* is a completion sampled from some model, the {term}`behaviour policy` $\mu$. Here $\mu$ is the teacher, at a temperature of 1 and
# without any truncation of the distribution, so that $\mu$ is exactly what equation {eq}`eq-rollouts-logp` says with the teacher's
# weights. Each of $N$ prompts gets $K$ rollouts; those of one prompt are a *group*.

# %%
sampling = study.rollouts
Markdown(f"The table holds {table.problem_id.nunique()} prompts with "
         f"$K = {sampling.samples}$ rollouts each, {len(table)} rows and "
         f"{table.tokens.sum():,} completion tokens, sampled at temperature "
         f"{sampling.temperature:g}.")

# %% [markdown]
# One row a rollout. The first group, without the columns of token ids and log-probabilities:

# %%
columns = ["problem_id", "sample_id", "completion", "gold", "answer", "reward",
           "status", "truncated", "tokens"]
left_aligned = {"text-align": "left", "white-space": "normal"}
shown = table.head(sampling.samples)[columns].style.format({"reward": "{:.0f}"})
shown.hide(axis="index").set_properties(**left_aligned)

# %% [markdown]
# The teacher says the same thing in different words, and now and then gets a number wrong and carries it on to the end. The tokens are kept
# as they were sampled: a text decoded and encoded again could split differently, and the log-probabilities would belong to other tokens.
#
# ## Is the table what it says?
#
# The table ships with the book, so that everyone trains on the same rows. A shipped file must be checkable: the next cell lets the teacher
# write the first groups again, now, on this machine, and compares them token by token. Each completion depends only on its own random
# numbers, so a part can be remade without the whole.

# %%
first_problems = problems.problem_sets(study.problems)["train"][:16]
live = rollouts.sample_rollouts(study, first_problems)
stored = table.head(len(live))
same = [list(a) == list(b)
        for a, b in zip(live.completion_ids, stored.completion_ids, strict=True)]
Markdown(f"**{sum(same)} of {len(same)}** rollouts sampled live agree with the shipped "
         f"table in every token.")

# %% [markdown]
# Rounding differs a little between processors, and a token whose draw falls within the rounding of a boundary may come out otherwise on
# yours; `make rollouts` remakes the whole table. The hash of all settings and model weights stands in the file, and a table made with
# others is refused.
#
# ## How often is the teacher right?
#
# Write $r_{ij}$ for the reward of rollout $j$ of prompt $i$. The {term}`pass rate` of a prompt and the pass rate of the table are
#
# ```{math}
# :label: eq-rollouts-passrate
# \hat p_i = \frac1K \sum_{j=1}^{K} r_{ij}, \qquad \hat p = \frac1N \sum_{i=1}^{N} \hat p_i .
# ```

# %%
groups = rollouts.group_statistics(table)
composition = groups.correct.value_counts(normalize=True).sort_index()
K = sampling.samples
expected = pd.Series(binom.pmf(range(K + 1), K, table.reward.mean()))

# %% mystnb={"image": {"alt": "Bar chart of the share of groups by their number of correct rollouts, with dots for equally hard prompts"}, "figure": {"caption": "Groups by their number of correct rollouts (bars), and what equally hard prompts would give (dots).", "name": "fig-rollouts-groups"}}
fig = figures.bars(composition.reindex(expected.index, fill_value=0),
                   "correct rollouts in the group", "share of groups",
                   figures.COLOURS["rft"])
fig.axes[0].plot([str(k) for k in expected.index], expected, "o", color="black",
                 markersize=6);

# %% [markdown]
# The dots in {numref}`fig-rollouts-groups` are the binomial shares that would hold if every prompt had the same pass rate. Groups that
# are all right or all wrong are more common than that wherever bars stand above dots at the two ends: some prompts are easier than others.
# This matters later: a group with no spread of rewards has zero {term}`advantage` for each of its rows and gives DPO no pair.

# %%
Markdown(f"Pass rate of the table by equation {{eq}}`eq-rollouts-passrate`: "
         f"**{table.reward.mean():.1%}**. Groups all right: "
         f"{(groups.pass_rate == 1).mean():.1%}, all wrong: "
         f"{(groups.pass_rate == 0).mean():.1%}, mixed: "
         f"**{groups.pass_rate.between(0, 1, inclusive='neither').mean():.1%}**. "
         f"Different right texts in a group, on average: "
         f"{groups.distinct_correct.mean():.2f}.")

# %% [markdown]
# ## How long are they?
#
# Right and wrong rollouts need not be equally long, and every objective that sums over tokens would notice. So length is looked at before
# anything is trained.

# %% mystnb={"image": {"alt": "Step histograms of completion lengths in tokens for right and wrong rollouts"}, "figure": {"caption": "Length of the completions in tokens, by reward; each curve has the area 1.", "name": "fig-rollouts-lengths"}}
lengths = {"right": table.tokens[table.reward > 0],
           "wrong": table.tokens[table.reward == 0]}
looks = {"right": {"color": figures.COLOURS["dft"], "linestyle": "-"},
         "wrong": {"color": figures.COLOURS["dpo"], "linestyle": "--"}}
fig, axis = plt.subplots()
for name, tokens in lengths.items():
    axis.hist(tokens, bins=25, range=(0, table.tokens.max()), density=True,
              histtype="step", linewidth=2, label=name, **looks[name])
axis.set(xlabel="tokens", ylabel="density")
axis.legend();

# %%
Markdown(f"Right rollouts have {lengths['right'].mean():.1f} tokens on average, wrong "
         f"ones {lengths['wrong'].mean():.1f}.")

# %% [markdown]
# Where the dashed curve of {numref}`fig-rollouts-lengths` lies to the right, wrong rollouts are longer, and not because length causes
# errors: problems with more steps have longer solutions and more places to err. The same confounding is in every real table.
#
# ## An audit of the reward
#
# A reward of 0 can mean a wrong answer ("boxed" below: it was read), a text that the verifier cannot read ("unreadable"), a box that was cut
# off ("cut box") or a missing one ("no box"). Only the first is about reasoning.

# %%
by_outcome = table.groupby(["status", "reward"]).truncated
audit = by_outcome.agg(rollouts="size", truncated="sum").reset_index()
audit.style.format({"reward": "{:.0f}"}).hide(axis="index")

# %% [markdown]
# The grader itself can be wrong. Here it meets answers in all the ways in which models write them, each with what a careful human says of it
# (`data/answers.yaml`; most of the situations are from public reports about graders):

# %%
answers = store.ROOT / "data" / "answers.yaml"
pairs = pd.DataFrame(yaml.safe_load(answers.read_text()))
graded = [grading.grade(pair.completion, pair.gold) for pair in pairs.itertuples()]
pairs["graded"] = ["right" if grade.correct else "wrong" for grade in graded]
pairs["status"] = [grade.status for grade in graded]
pairs["human"] = pairs.right.map({True: "right", False: "wrong"})
differs = pairs[pairs.graded != pairs.human]
paid, unpaid = (differs.graded == "right").sum(), (differs.graded == "wrong").sum()
shown = differs[["gold", "completion", "human", "graded", "status"]]
display(shown.style.format(escape="html").hide(axis="index")
        .set_properties(**left_aligned))
Markdown(f"Of {len(pairs)} answers, {pairs.right.sum()} of them right, {paid} are paid "
         f"although they are wrong, and {unpaid} right ones are not paid.")

# %% [markdown]
# What is left is of two kinds. The grader wants one box, and gives nothing for an answer without one or in two halves: a rule of the study.
# The rest is `math-verify`'s: it drops units and the base of a number, rounds to six decimals and so takes very small numbers for equal, reads
# a decimal comma as a list, does not turn an inequality into an interval, and does not assume that a letter is positive. None of it occurs
# in the problems of this book, whose answers are whole numbers. For problems of other kinds the table says what a reward may miss.
#
# And is a reward of 1 always earned by right reasoning? Two errors can cancel. The equations that a completion writes can be checked one by
# one, which large-scale tables never allow:

# %%
def all_true(text):
    equations = [line.split("=") for line in grading.written_equations(text)]
    return all(eval(left.replace("/", "//")) == float(right)
               for left, right in equations)


sound = table.completion.map(all_true)
wrong_but_paid = ((table.reward > 0) & ~sound).mean()
right_but_unpaid = ((table.reward == 0) & sound & (table.status == "boxed")).mean()
Markdown(f"**{wrong_but_paid:.2%}** of the rows are paid although an equation in them "
         f"is false; {right_but_unpaid:.2%} are unpaid although every equation in "
         f"them is true.")

# %% [markdown]
# The first number is the reward's noise. The second has its own cause: a solution can be sound arithmetic about another problem than the one that was
# told, when a sentence was misread. Now look at some of the unpaid rows themselves.

# %%
wrong = table[(table.reward == 0)].head(3)
for row in wrong.itertuples():
    graded = f"\n    found {row.answer}, gold {row.gold}\n"
    print(row.prompt, "\n ->", row.completion, graded)

# %% [markdown]
# ## Which rows each objective takes
#
# | objective | rows | why |
# |---|---|---|
# | SFT, DFT, RIFT, Offline GRPO | all | SFT, as the paper prints it, and DFT imitate wrong rollouts too; RIFT and Offline GRPO weigh them |
# | RFT | reward 1 | rejection: only right rollouts are imitated |
# | DPO | pairs | the first right and the first wrong rollout of each mixed group |
#
# All walk through the prompts in the same order, one permutation per pass; each takes its own rows of the prompt whose turn it is.

# %%
kinds = ("all", "correct", "correct-distinct", "pairs")
selections = {rows: rollouts.select(table, rows) for rows in kinds}
counts = pd.DataFrame([{"rows": rows, "prompts": len(selected),
                        "table rows": sum(map(len, selected.values()))}
                       for rows, selected in selections.items()])
counts["share of the table"] = counts["table rows"] / len(table)
counts.style.format({"share of the table": "{:.1%}"}).hide(axis="index")

# %% [markdown]
# The third line is what the source of RFT asks for and the paper leaves out: of right rollouts with the same list of equations only one
# is kept. The fourth counts both sides of each pair.
#
# ## How far off-policy?
#
# The base did not write these rows. The distance between writer and reader is the mean difference of their log-probabilities, which for
# samples of $\mu$ estimates a Kullback-Leibler divergence a token:
#
# ```{math}
# :label: eq-rollouts-kl
# \widehat{\mathrm{KL}}(\mu \,\|\, \pi_0) = \frac{\sum_{i} \sum_{t} \left[\log \mu(y_{it}) - \log \pi_0(y_{it})\right]}{\sum_{i} T_i} .
# ```

# %%
behaviour = np.concatenate(list(table.logp_behaviour))
base = np.concatenate(list(table.logp_base))
first_behaviour = table.logp_behaviour.map(lambda logps: logps[0]).mean()
first_base = table.logp_base.map(lambda logps: logps[0]).mean()
Markdown(f"A token of the table has a mean log-probability of {behaviour.mean():.3f} "
         f"under the teacher and **{base.mean():.3f}** under the base: "
         f"{(behaviour - base).mean():.3f} nats per token by equation "
         f"{{eq}}`eq-rollouts-kl`. The first token alone costs the base "
         f"{first_behaviour - first_base:.2f} nats more than the teacher.")

# %% mystnb={"image": {"alt": "Step histograms of the mean log-probability per token of each rollout under teacher and base"}, "figure": {"caption": "Mean log-probability per token of each rollout, under the teacher who wrote it and under the base.", "name": "fig-rollouts-offpolicy"}}
per_row = {"teacher": table.logp_behaviour.map(np.mean),
           "base": table.logp_base.map(np.mean)}
figures.histograms(per_row, "mean log-probability per token");

# %% [markdown]
# {numref}`fig-rollouts-offpolicy` is the reason why importance ratios are hopeless for whole completions: a gap of a fifth of a nat a
# token, summed over fifty tokens, is a ratio of $e^{-10}$. It is also what supervised objectives will spend their first steps on: closing
# the gap in *style*, which says nothing about reasoning.
#
# Are wrong rollouts less probable to the base than right ones of the same problems? If the base already knows better, preference learning
# has something to build on.

# %%
by_group = per_row["base"].groupby([table.problem_id, table.reward])
mixed = by_group.mean().unstack().dropna()
gap = mixed[1.0] - mixed[0.0]
Markdown(f"In {len(mixed)} mixed groups the right rollouts are more probable to the "
         f"base by {gap.mean():.3f} nats per token on average (standard error "
         f"{gap.std() / np.sqrt(max(len(gap), 1)):.3f}); the right ones win in "
         f"{(gap > 0).mean():.0%} of the groups.")

# %% [markdown]
# ## Try it
#
# 1. What share of mixed groups would $K = 16$ give, if all prompts were equally hard with the table's pass rate?
#
# ````{dropdown} Answer
# $1 - \hat p^{16} - (1-\hat p)^{16}$; with $\hat p = 0.9$ that is 81 %. More rollouts per prompt turn more prompts into {term}`preference pairs <preference pair>`,
# which is why the number of pairs in the paper (1.8 thousand from 40 thousand prompts) says as much about $K$ and the teacher as about the data.
# ````
#
# 2. Sample one group again with another `seed` in the profile (`study.model_copy`) and compare. Does the pass rate change?
#
# ````{dropdown} What happens
# The texts change, the shares only within their sampling error. A table is one draw; the seeds of a later page vary the order of rows and the
# initial adapter, but keep the table, as the paper does.
# ````
#
# 3. Compute equation {eq}`eq-rollouts-kl` from wrong rollouts only. Larger or smaller, and why?
#
# ````{dropdown} What to expect
# An error is a token that the teacher itself finds improbable, so both logarithms fall. The difference of the two can go either way, and changes by less than
# either logarithm, since both models err in similar places.
# ````
#
# ## Summary
#
# There is one table, checked against its own making: its pass rate, its groups, the lengths, the noise of its reward and its distance
# from the base are known before anything learns from it. The next six pages each turn it into a gradient, beginning with
# [plain imitation](03_sft.ipynb).
