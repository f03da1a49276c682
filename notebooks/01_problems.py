# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [models, templated]
# ---

# %% [markdown]
# # Problems and models
#
# *Now:* before anyone can ask what six training objectives do to a model, there must be a world in which a model reasons, errs and
# is marked. This page builds that world: word problems, the way answers are written and graded, and the three models of the study.
#
# **Key takeaways**
# - A problem is a chain of small operations told as a story, so its answer, its difficulty and its equations are known exactly.
# - The models see what large ones see: a chat template, single-digit tokens, an answer in `\boxed{}`, a verifier that says 1 or 0.
# - The *base* and the *teacher* write in different styles; the *strong base* is the base trained longer. All later pages start here.
#
# You need: a little PyTorch. Time to run: half a minute, once the three models were evaluated by the pipeline.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from helpers import profiles
from helpers.book import figures
from helpers.data import grading, problems, rollouts, templates
from helpers.evaluation import answering, statistics
from helpers.models import loading

study = profiles.load(profile)
figures.use_style(study)

# %% [markdown]
# ## A problem is a chain
#
# Someone has $v_0$ things; then $n$ things happen to them, one after another. Write $\circ_i$ for the operation of step $i$ and $a_i$
# for its number. The value after each step, and the answer, are
#
# ```{math}
# :label: eq-problems-chain
# v_i = v_{i-1} \circ_i a_i, \qquad \circ_i \in \{+, -, \times, \div\}, \qquad \text{answer} = v_n .
# ```
#
# Some numbers are themselves the result of a step: *three boxes of six* must be multiplied before they are added. One step of reasoning
# is one equation of the worked solution, and the generator draws chains with a given number of them, all values staying between 1 and
# 99. Here is one problem of each length.

# %%
sets = problems.problem_sets(study.problems)
shortest_first = sorted(sets["validation"], key=lambda problem: problem.steps)
examples = {problem.steps: problem for problem in shortest_first}
left_aligned = {"text-align": "left", "white-space": "normal"}
shown = pd.DataFrame({"steps": examples.keys(),
                      "question": [problem.question for problem in examples.values()],
                      "answer": [problem.answer for problem in examples.values()]})
shown.style.hide(axis="index").set_properties(**left_aligned)

# %% [markdown]
# Equation {eq}`eq-problems-chain` is all the reasoning there is. That is the point: when a model gets one wrong, it misread a sentence,
# miscopied a number or miscalculated, and one can tell which.
#
# ## Who sees which problem
#
# Four sets are drawn once. The *train* problems are the prompts that the teacher will answer on the next page; *validation* is where
# learning rates are chosen; *test* has as many problems as GSM8K's test set, so that the paired tests of this book have the paper's
# power; *hard* has longer chains than all others and plays the part that AIME plays in the paper.

# %%
sizes = pd.DataFrame([{"set": split, "problems": len(drawn),
                       "fewest steps": min(problem.steps for problem in drawn),
                       "most steps": max(problem.steps for problem in drawn)}
                      for split, drawn in sets.items()])
sizes.style.hide(axis="index")

# %% [markdown]
# Two problems with the same chain but another name and other things would be the same exercise. So the sets are kept apart by chain, not
# by text, and the models' own training texts were kept apart from all of them in the same way. The next cell counts what is shared.

# %%
chains = {split: {problem.chain for problem in drawn} for split, drawn in sets.items()}
shared = sum(len(chains[a] & chains[b]) for a in chains for b in chains if a < b)
total = len(set().union(*chains.values()))
Markdown(f"Of {total} different chains, **{shared}** are in more than one set.")

# %% [markdown]
# ## What a model reads
#
# A question goes through the tokenizer's chat template, exactly as for a large model. Digits are single tokens, as in Qwen3: the model
# must put numbers together itself. Tokens are separated by `|` below; `↵` is a line break.

# %%
tokenizer = loading.load_tokenizer(study)
example = examples[min(examples)]
ids = loading.prompt_ids(tokenizer, example.question, study.problems.instruction)
print("|".join(tokenizer.decode([token]).replace("\n", "↵") for token in ids))

# %% [markdown]
# The prompt ends where the assistant's turn begins. Everything the model writes from there to its end token is the {term}`completion`.
#
# ## Two styles of writing
#
# The same chain can be worked out in many ways. The base model learned mostly from **terse** texts, one equation per line. The teacher
# learned from **wordy** ones: sentences, sums split into tens and ones, several phrasings of each thought.

# %%
rng = np.random.default_rng(0)
longer = examples[max(examples)]
print(longer.question, end="\n\n")
for style in templates.STYLES:
    solution = templates.worked_solution(longer, style, rng)
    print(f"[{style}]", solution, sep="\n", end="\n\n")

# %% [markdown]
# Why should the two differ? In the paper a student of one family learns from rollouts of a teacher of another. A student that copied its
# own style would have little to learn; the change of style is part of what the updates in this book contain, and a later page asks how
# large that part is. One in ten of the base's texts was wordy, so that the teacher's style is unusual for it, but not unknown.
#
# ## What a completion is worth
#
# A completion is graded by what stands in its last `\boxed{}`, its {term}`answer`. The text in the box goes to `math-verify`, which parses it and
# compares it with the gold answer as mathematics, not as text. The {term}`reward` of a completion $y$ to a problem with answer $v_n$ is
#
# ```{math}
# :label: eq-problems-reward
# r(y) = \begin{cases} 1 & \text{if the last box of } y \text{ equals } v_n, \\ 0 & \text{otherwise, or if there is no whole box.}\end{cases}
# ```
#
# A few cases that a grader must get right:

# %%
cases = ["So \\boxed{12}", "\\boxed{7} no, \\boxed{12}", "\\boxed{12.0}",
         "\\boxed{\\frac{24}{2}}", "The answer is 12", "\\boxed{see above}",
         "\\boxed{12} or rather \\boxed{1"]
graded = [grading.grade(case, "12") for case in cases]
shown = pd.DataFrame({"completion": cases,
                      "answer": [grade.answer for grade in graded],
                      "status": [grade.status for grade in graded],
                      "reward": [int(grade.correct) for grade in graded]})
shown.style.hide(axis="index").set_properties(**left_aligned)

# %% [markdown]
# By equation {eq}`eq-problems-reward` the fifth completion earns nothing although its answer is right: it has no box. The sixth has one that
# cannot be read as a number. In the last one the box that decides was cut off, and the earlier one does not take its place: that would pay
# a model for what it was about to correct. All three are counted as *unparsed* wherever an accuracy is shown, so that a model that loses
# the format is not mistaken for one that cannot reason.
#
# ## The three models
#
# All three have the architecture of Qwen3, at a size that two CPU cores can train. They were made from random weights by one command,
# from texts that the generator above wrote; a few in a hundred of the equations in those texts carry an error, so that sampling from the
# models errs as people do: now and then, and near the right number.

# %%
def describe(name):
    model = loading.load_model(study, name)
    config = model.config
    return {"model": name,
            "parameters": sum(weights.numel() for weights in model.parameters()),
            "layers": config.num_hidden_layers, "hidden size": config.hidden_size,
            "heads": config.num_attention_heads, "vocabulary": config.vocab_size}


models = pd.DataFrame([describe(name) for name in study.models])
models.style.hide(axis="index")

# %% [markdown]
# Each layer has four projections in its attention, $W_q, W_k, W_v, W_o$. They are the {term}`modules <module>` that carry the adapters of all later
# pages, as in the paper, and every number about geometry is a statement about them.
#
# How good are the models? Each answers every test and hard problem once, greedily: at each step the most probable token.

# %%
records = answering.records(study, study.models)
accuracy = statistics.accuracy_table(records)
on_test = accuracy[accuracy.split == "test"]
on_hard = accuracy[accuracy.split == "hard"]
figures.table(accuracy)

# %% mystnb={"image": {"alt": "Dot plot of greedy accuracy on the test problems for base, strong base and teacher, each with its Wilson interval"}, "figure": {"caption": "Greedy accuracy of the three models on the test problems, with 95 % Wilson intervals.", "name": "fig-models-accuracy"}}
figures.intervals(on_test, "accuracy", "low", "high", "share of test problems solved");

# %% [markdown]
# {numref}`fig-models-accuracy` shows the distance that the study lives in: between the base and the teacher there is something to learn,
# and between the base and the strong base there is something to lose. In the paper the base was better than most of its students; the
# strong base is here so that this case can be studied too. Accuracy falls with the number of steps, because each is a chance to err:

# %%
solved = records.groupby(["run", "steps"], sort=False).correct.mean()
by_steps = solved.unstack("run").sort_index()
by_steps.style.format("{:.2f}")

# %% [markdown]
# If every step succeeded independently with probability $q$, a chain of $s$ steps would succeed with probability
#
# ```{math}
# :label: eq-problems-steps
# P(\text{correct}) = q^{\,s}, \qquad\text{so}\qquad q = P(\text{correct})^{1/s} .
# ```
#
# The next figure draws the accuracies of the table with the curve of equation {eq}`eq-problems-steps` that agrees with all test problems
# together, one $q$ a model. Where the dots leave the curve, steps are not independent, or long stories are hard for another reason.

# %% mystnb={"image": {"alt": "Line plot of accuracy against the number of steps for base, strong base and teacher with dashed curves q to the power s"}, "figure": {"caption": "Accuracy against the number of steps (markers), and the curve of independent steps fitted to the test problems (dashed).", "name": "fig-models-steps"}}
tested = records[records.split == "test"].groupby("run")
q = tested.correct.mean() ** (1 / tested.steps.mean())
fig, axis = plt.subplots()
for name in by_steps:
    axis.plot(by_steps.index, by_steps[name], figures.MARKERS[name],
              color=figures.COLOURS[name], label=figures.LABELS[name])
    axis.plot(by_steps.index, q[name] ** by_steps.index.to_numpy(), "--",
              color=figures.COLOURS[name], linewidth=1)
axis.set(xlabel="steps", ylabel="share solved", ylim=(0, 1.02))
axis.legend();

# %% [markdown]
# In {numref}`fig-models-steps` the last two lengths are those of the hard set, rare in the texts the models learned from: how far the
# markers fall below the dashed curves there measures what length alone costs.
#
# ## The teacher when it samples
#
# Rollouts are not greedy: the teacher *samples* from its distribution, and the objectives live on the difference between its good and bad
# days. A prompt whose rollouts are all right or all wrong tells DPO nothing; a prompt whose right rollouts are all the same text tells RFT
# the same thing four times. So three numbers matter: the share of right rollouts, the share of {term}`mixed groups <mixed group>`, and how often a group
# holds at least two different right texts.

# %%
table = rollouts.load_table(study)
groups = rollouts.group_statistics(table)
mixed = groups.pass_rate.between(0, 1, inclusive="neither").mean()
various = (groups.distinct_correct >= 2).mean()
Markdown(f"Sampled at temperature {study.rollouts.temperature:g}, "
         f"**{table.reward.mean():.1%}** of the teacher's rollouts are right, "
         f"**{mixed:.1%}** of the groups are mixed, and **{various:.1%}** "
         f"hold at least two different right texts, most of them other words "
         f"around the same equations.")

# %% [markdown]
# {term}`Greedy decoding <greedy decoding>` of the same model is better than that, because an error is seldom the most probable token. Students are graded greedily too, so they need not
# inherit the errors that they imitate: a filter of right rollouts can gain less than this gap.
#
# ## Does this world fit its purpose?
#
# The study needs a base that is good but not perfect, a hard set that is neither hopeless nor easy, a strong base near the ceiling, and a
# teacher that is right most of the time but not always. The bands below were fixed before the models were made.

# %%
value = {(row.run, row.split): row.accuracy for row in accuracy.itertuples()}
wanted = [("base, test", value["base", "test"], 0.75, 0.90),
          ("base, hard", value["base", "hard"], 0.10, 0.50),
          ("strong base, test", value["strong-base", "test"], 0.95, 1.0),
          ("teacher, test", value["teacher", "test"], 0.93, 1.0),
          ("teacher, sampled", table.reward.mean(), 0.75, 0.92),
          ("mixed groups", mixed, 0.25, 1.0),
          ("groups with two right texts", various, 0.5, 1.0)]
bands = pd.DataFrame(wanted, columns=["quantity", "value", "low", "high"])
bands["inside"] = bands.value.between(bands.low, bands.high)
figures.table(bands)

# %% [markdown]
# ## Try it
#
# 1. In the cell that grades cases, add the completion `"\\boxed{12} or \\boxed{13}"` and predict its reward before you run it.
#
# ````{dropdown} What happens
# The last box counts, so the reward is 0. A grader that took any box would pay a model for listing guesses.
# ````
#
# 2. Set `style` to the terse one only and print a solution with `error_rate=1.0`. How far is the answer from the right one?
#
# ````{dropdown} What happens
# Each equation is off by 1, 2 or 10 and later equations carry the error on, so multiplication and division change its size. The text stays
# consistent: every line continues from the wrong value of the line before, as people's errors do.
# ````
#
# 3. In {eq}`eq-problems-steps`, which $q$ would put a model at one half on problems of five steps?
#
# ````{dropdown} Answer
# $q = 0.5^{1/5} \approx 0.871$. A model that gets one step in eight wrong, which sounds good, loses every second long problem.
# ````
#
# ## Summary
#
# There are problems whose every step is known, a format and a grader that large models use too, and three models that differ in how well
# and in which style they write. The [next page](02_rollouts.ipynb) lets the teacher write the table of rollouts on which every objective trains.
