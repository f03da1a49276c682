# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [models, main, seeds]
# ---

# %% [markdown]
# # Evaluation: who solves what
#
# *Previously:* six objectives, [SFT](03_sft.ipynb) to [DPO](08_dpo.ipynb), each trained one adapter from the same start. *Now:* all of them, and
# the base, answer the same problems, and the differences are tested as paired data.
#
# **Key takeaways**
# - The base is a row of every table. Without it, "best" cannot be told from "moved least".
# - On the same problems, models are compared by the problems on which they *differ*; twenty-one comparisons need a correction.
# - A test that finds nothing has said how large a difference it would have found. That number stands beside each comparison.
#
# You need: the idea of a p-value. Reads all six runs, their {term}`replicas <replica>` from other seeds, and their evaluations. Time to run: half a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
from itertools import combinations

import numpy as np
import pandas as pd
from IPython.display import Markdown
from myst_nb import glue

from adapter_geometry import geometry
from helpers import profiles, store
from helpers.analysis import replication
from helpers.book import figures
from helpers.data import diagnosis, problems, rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.models import loading
from helpers.training import trainer

study = profiles.load(profile)
runs = {name: study.runs[name] for name in study.main_runs}
figures.use_style(study)

# %% [markdown]
# ## One answer a problem
#
# Each model answers each problem once, greedily: $\hat y_t = \arg\max_v \pi(v \mid x, \hat y_{<t})$, so there is no sampling noise to repeat
# away. What remains random is the choice of problems, and that is what intervals and tests are about. The records hold one row a
# model and problem.

# %%
records = answering.records(study, ["base", *runs.values()])
columns = ["run", "completion", "answer", "correct", "tokens"]
records.sample(3, random_state=0)[columns].style.hide(axis="index")

# %% [markdown]
# ## Accuracy, with its interval
#
# For $k$ right answers to $n$ problems the share is $\hat a = k/n$. Its {term}`Wilson interval` {cite:p}`wilson1927` holds those $a$ from which $\hat a$ is not further than
# $z = 1.96$ standard errors, the standard error taken at $a$ itself:
#
# ```{math}
# :label: eq-evaluation-wilson
# \left| \hat a - a \right| \le z \sqrt{\frac{a\,(1 - a)}{n}} .
# ```
#
# Unlike the textbook interval around $\hat a$, it never leaves $[0, 1]$ and is honest near both ends.

# %%
accuracy = store.write_table(profile, "accuracy", statistics.accuracy_table(records))
figures.table(accuracy)

# %% mystnb={"image": {"alt": "Dot plot of test accuracy with Wilson intervals for base, SFT, RFT, DFT, RIFT, Offline GRPO and DPO, and a dashed line at the base"}, "figure": {"caption": "Share of test problems solved by the base and by each of the six objectives, with 95 % Wilson intervals by {eq}`eq-evaluation-wilson`; dashed: the base.", "name": "fig-evaluation-test"}}
figures.intervals(accuracy[accuracy.split == "test"], "accuracy", "low", "high",
                  "share of test problems solved", reference="base");

# %%
on_test = accuracy[accuracy.split == "test"].set_index("run")
trained = on_test.drop(index="base").accuracy
above = int((trained > on_test.accuracy["base"]).sum())
Markdown(f"On the test problems the base solves **{on_test.accuracy['base']:.1%}**. Of "
         f"the six objectives, {above} end above it; the highest is "
         f"{figures.LABELS[trained.idxmax()]} with **{trained.max():.1%}**, the "
         f"lowest {figures.LABELS[trained.idxmin()]} with **{trained.min():.1%}**.")

# %% [markdown]
# Read {numref}`fig-evaluation-test` from the dashed line outwards, not from the left edge: what a method *did* is its distance from the base. In the
# paper the base was at 93 to 94 %, DPO at 93.5 % and the five others near 88 %, so that the method with the best score was also the one
# that had changed least. Intervals that overlap prove nothing here, because all models answered the same problems; the tests below use that.
#
# The hard problems have longer chains than almost anything in the models' training texts.

# %% mystnb={"image": {"alt": "Dot plot of accuracy on the hard problems with Wilson intervals for base and six objectives"}, "figure": {"caption": "The same for the hard problems of five and six steps.", "name": "fig-evaluation-hard"}}
figures.intervals(accuracy[accuracy.split == "hard"], "accuracy", "low", "high",
                  "share of hard problems solved", reference="base");

# %% [markdown]
# Fewer problems make the intervals of {numref}`fig-evaluation-hard` wider. In the paper this set was AIME with 30 problems, where a difference of
# twenty points is within the reach of chance. Does it help to ask each problem many times, at a temperature above zero? The answers to one problem are alike, so they are a cluster and not so many problems. With $m$ answers to each of $n$
# problems, and $s_i$ the sum over the answers to problem $i$ of their distances from the overall mean,
#
# ```{math}
# :label: eq-evaluation-clustered
# \text{standard error}^2 = \frac{n}{n - 1} \sum_{i=1}^{n} \Big(\frac{s_i}{n\,m}\Big)^2 .
# ```
#
# So many standard errors to both sides of $\hat a$ would reach below 0 where one problem is solved, and nowhere at all where none is. The interval is therefore Wilson's again, with the
# *effective* number of answers in the place of $n$ in {eq}`eq-evaluation-wilson`: the number of independent answers that would have this standard error {cite:p}`korn1998`,
#
# ```{math}
# :label: eq-evaluation-effective
# n_\text{eff} = \frac{\hat a\,(1 - \hat a)}{\text{standard error}^2} , \qquad n \le n_\text{eff} \le n\,m ,
# ```
#
# made smaller by Student's $t$, for the few problems, but never less than $n$. It is $n$ where the answers to each problem are all alike, so also where no answer is right. A few right answers tell
# little about how alike answers are, so the variance of {eq}`eq-evaluation-clustered` is taken with one more problem, on which all answers are right, or all wrong, with equal chance.

# %%
def asked_often(run):
    """Accuracy over many answers to each hard problem, with its interval.

    The interval is over problems; the last number is half of its width if all answers
    were independent.
    """
    answers = answering.sampled_records(study, runs.get(run, run))
    mean, low, high = statistics.clustered_mean(answers.correct, answers.problem_id)
    independent = np.ptp(statistics.wilson(answers.correct.sum(), len(answers)))
    return {"run": run, "answers per problem": study.sampled.samples, "accuracy": mean,
            "low": low, "high": high, "half width, over problems": (high - low) / 2,
            "half width, as if independent": independent / 2}


(figures.table(pd.DataFrame([asked_often(run) for run in ["base", *runs]]))
 if study.sampled else Markdown("This profile asks each problem once."))

# %% [markdown]
# By {eq}`eq-evaluation-clustered` and {eq}`eq-evaluation-effective` the answers beyond the first narrow an interval only as far as the model is undecided about single problems; what is left is the choice of the problems, and no number of answers makes more of those. The accuracies are lower than those of the greedy answers, since at a temperature above zero one unlucky
# token in a long chain is enough to fail; the two tables measure different things, and the widths of their intervals can't be compared. An interval as if all answers were independent is too narrow by the ratio of the last two columns. Where nearly every answer is wrong, the right ones are too few to show
# whether they come together on few problems, and the interval counts on little from the answers beyond the first.
#
# ## Is it reasoning or format?
#
# A model can fail because it reasoned wrongly, because it never wrote a box, or because it was cut off. And a strict grader can hide the first
# behind the second. So the same completions are graded again by a flexible rule: the last number in the text, boxed or not.

# %%
by_run = records.groupby(["split", "run"], sort=False)
flexible = by_run.correct_flexible.mean().rename("flexible").reset_index()
columns = ["split", "run", "accuracy", "flexible", "unparsed", "truncated",
           "mean_tokens"]
audit = accuracy.merge(flexible)[columns]
figures.table(audit)

# %%
difference = (audit.flexible - audit.accuracy).abs().max()
Markdown(f"The two rules differ by at most {difference:.1%} for any model; unparsed "
         f"answers reach {audit.unparsed.max():.1%} and truncated ones "
         f"{audit.truncated.max():.1%}.")

# %% [markdown]
# The last column shows who writes in whose style: a terse solution has about half the tokens of a wordy one. A model whose mean length is
# that of the base has kept its style.
#
# ## How do they fail?
#
# The generator knows the right chain of every problem, so each answer can be read step by step: which is the first step that it gets wrong, and
# how? A *wrong equation* has the right operation on the right numbers, and another result. A *number miscopied* is neither the question's
# nor the answer's own earlier result where one of these belongs. The chain can be right and the *box* wrong or missing. *Other* is another
# operation, a step too few or too many, or no solution at all. An answer may also name another person or other things than the question,
# which no box shows. All numbers are shares of a model's answers to the test problems:

# %%
test_problems = problems.problem_sets(study.problems)["test"]
errors = store.write_table(profile, "errors",
                           diagnosis.error_table(test_problems, records))
shares = errors.select_dtypes("number").columns
figures.table(errors).format("{:.1%}", subset=list(shares))

# %%
by_model = errors.set_index("run")
commonest = by_model[list(diagnosis.CLASSES)].idxmax(axis=1)
same = int((commonest[list(runs)] == commonest["base"]).sum())
strangers = by_model["wrong name"]
stranger = strangers[list(runs)].idxmax()
Markdown(f"The base's commonest failure is: *{commonest['base']}*; so it is for {same} "
         f"of the six students. The student that most often names another person or "
         f"other things is {figures.LABELS[stranger]}, in {strangers[stranger]:.1%} of "
         f"its answers (the base: {strangers['base']:.1%}).")

# %% [markdown]
# One problem, answered by all of them; the first of the longest test problems that some of them solve and others do not:

# %%
tested = records[records.split == "test"]
solved = tested.groupby("problem_id").correct.mean()
longest = sorted(test_problems, key=lambda problem: -problem.steps)
chosen = next((problem for problem in longest
               if 0 < solved[problem.problem_id] < 1), longest[0])
print(answering.answers_side_by_side(
    study, tested[tested.problem_id == chosen.problem_id]))

# %% [markdown]
# ## What the style costs
#
# There is a second suspicion. The trained models may write in the teacher's style, and the base, which saw that style in one text in ten,
# may simply be worse at it. Then a change of accuracy would say little about the objectives. The control needs no training: put the
# teacher's commonest first sentence into the mouth of the untouched base and let it go on from there.

# %%
opening = rollouts.load_table(study).completion.str.extract(r"^(.+?[.\n])")[0].mode()[0]
first_problems = problems.problem_sets(study.problems)["test"][:400]
base = loading.load_model(study)
forced = answering.answer(study, base, first_problems, opening=opening)
forced["run"] = "forced base"
compared = pd.concat([records[records.problem_id.isin(forced.problem_id)], forced])
by_style = store.write_table(profile, "style", statistics.accuracy_table(compared))
figures.table(by_style)

# %%
share = by_style.set_index("run").accuracy
both = compared[compared.run.isin(["sft", "forced base"])]
paired = statistics.mcnemar_table(both).iloc[0]
Markdown(f"The sentence is: *{opening.strip()}* On the same {len(first_problems)} "
         f"problems the base solves {share['base']:.1%} in its own style and "
         f"**{share['forced base']:.1%}** when it is made to open like the teacher; "
         f"SFT solves {share['sft']:.1%}. SFT minus the forced base is "
         f"{paired.difference:+.1%} ({paired.low:+.1%} to {paired.high:+.1%}, $p$ = "
         f"{paired.p:.2g}).")

# %% [markdown]
# The comparison that isolates what *training* did to reasoning is the one between the forced base and the trained models. The distance between
# the base's two lines is the price of the style alone, and any objective that carries the model over to the teacher's style pays it. It is a
# property of this base and this teacher. Whether something like it is behind the six points that the paper's students lost, the paper's
# numbers cannot tell, since they have no such line.
#
# ## Paired tests
#
# Two models on the same $n$ problems give four counts: both right, only the first ($b$), only the second ($c$), neither. The problems on
# which they agree say nothing about which is better. If they are equally good, each of the $b + c$ disagreements is a fair coin, so that
# the exact two-sided p-value of {cite:t}`mcnemar1947` is
#
# ```{math}
# :label: eq-evaluation-mcnemar
# p = \min\Big(1,\; 2 \sum_{k=0}^{\min(b,c)} \binom{b+c}{k} 2^{-(b+c)}\Big).
# ```
#
# An example from the paper: on 30 problems, $b = 7$ and $c = 1$.

# %%
Markdown(f"Equation {{eq}}`eq-evaluation-mcnemar` gives $p$ = "
         f"{statistics.mcnemar(7, 1):.4f}: seven against one on thirty problems is "
         f"not yet evidence.")

# %% [markdown]
# Seven models make 21 pairs. Testing each at 5 % would find a "difference" somewhere in most studies of equal models, so the p-values
# are adjusted by the method of {cite:t}`holm1979`: sorted upwards, the $i$-th of $m$ is multiplied by $m - i + 1$, and none may fall below its predecessor.

# %%
tests = store.write_table(profile, "mcnemar", statistics.mcnemar_table(records))
shown = tests[tests.split == "test"].drop(columns="split")
figures.table(shown)

# %% [markdown]
# Each line has an effect beside its p-value: the difference of the two accuracies with the interval of {cite:t}`newcombe1998` for paired shares. The column
# `detectable` is the smallest difference that this comparison would have found four times out of five, from the share of problems on
# which the two disagree {cite:p}`connor1987`.

# %%
significant = shown[shown.p_holm < 0.05]
among = shown[~shown.run_a.isin(["base", "dpo"]) & ~shown.run_b.isin(["base", "dpo"])]
with_dpo = shown[(shown.run_b == "dpo") & (shown.run_a != "base")]
Markdown(f"After Holm's correction **{len(significant)} of {len(shown)}** pairs differ "
         f"at 5 %. Among the five of the SFT family it is "
         f"{int((among.p_holm < 0.05).sum())} of {len(among)} (largest difference "
         f"{among.difference.abs().max():.1%}); of DPO against these five, "
         f"{int((with_dpo.p_holm < 0.05).sum())} of {len(with_dpo)}.")

# %% mystnb={"image": {"alt": "Matrix of differences in test accuracy between base and the six objectives, row minus column"}, "figure": {"caption": "Differences of test accuracy, row minus column, in percentage points.", "name": "fig-evaluation-differences"}}
names = ["base", *runs]
points = 100 * (on_test.accuracy[names].to_numpy()[:, None]
                - on_test.accuracy[names].to_numpy()[None, :])
limit = max(1.0, np.abs(points).max())
figures.matrix(points, names, "row minus column, points", -limit, limit);

# %% [markdown]
# The rows of {numref}`fig-evaluation-differences` are easier to remember than 21 lines; the lines above say which of its cells to believe.
# The paper's claims about these pairs were two: the five of the family cannot be told apart (each $p \ge 0.15$), and DPO differs from each of them
# ($p < 10^{-9}$). Our own numbers for the same two statements stand in the sentence above the figure.
#
# ## How far did each policy move?
#
# Accuracy says whether a model became better, not how much it changed. The natural measure is the Kullback-Leibler divergence between the
# two policies, here a token. It has two directions, and they ask different questions:
#
# ```{math}
# :label: eq-evaluation-kl
# \begin{gathered}
# \mathrm{KL}(\pi_0 \| \pi) = \mathbb{E}_{y \sim \pi_0} \frac1T \sum_t \sum_v \pi_0(v \mid y_{<t}) \log \frac{\pi_0(v \mid y_{<t})}{\pi(v \mid y_{<t})} , \\
# \mathrm{KL}(\pi \| \pi_0) \text{ with the roles exchanged.}
# \end{gathered}
# ```
#
# *Forward* walks along the base's own texts and asks how surprised the trained model is; *reverse* walks along the trained model's texts. At
# each position the sum over the vocabulary is exact; only the texts are sampled, one a validation problem.

# %%
rows = []
for name, run in runs.items():
    for direction, group in likelihood.divergence(study, run).groupby("direction"):
        value, low, high = statistics.bootstrap_ratio(group.nats, group.tokens)
        rows.append({"run": name, "direction": direction, "value": value, "low": low,
                     "high": high, "n": len(group)})
kl = store.write_table(profile, "kl", pd.DataFrame(rows))
wide = kl.pivot(index="run", columns="direction", values=["value", "low", "high"])
wide.loc[list(runs)].style.format("{:.4f}")

# %% mystnb={"image": {"alt": "Scatter plot of change in test accuracy against reverse KL to the base per token, one marker for each objective"}, "figure": {"caption": "Change of test accuracy from the base, in points, against the reverse divergence from the base by {eq}`eq-evaluation-kl`.", "name": "fig-evaluation-kl"}}
reverse = kl[kl.direction == "reverse"].set_index("run").value
gain = 100 * (trained[list(runs)] - on_test.accuracy["base"])
plane = pd.DataFrame({"run": list(runs), "kl": reverse[list(runs)].to_numpy(),
                      "gain": gain.to_numpy()})
fig = figures.scatter_of_runs(plane, "kl", "gain", "KL(policy || base), nats per token",
                              "change of test accuracy, points")
fig.axes[0].axhline(0, color=figures.COLOURS["base"], linestyle="--", linewidth=1);

# %%
nearest, furthest = reverse[list(runs)].idxmin(), reverse[list(runs)].idxmax()
rank, low, high = statistics.rank_correlation(plane.kl, plane.gain)
Markdown(f"The policy nearest to the base is {figures.LABELS[nearest]}, at "
         f"{plane.kl.min():.4f} nats per token; the furthest is "
         f"{figures.LABELS[furthest]}, at "
         f"{plane.kl.max():.3f}. Over the six methods the rank correlation of "
         f"distance and gain is {rank:+.2f}; six points in a random order have "
         f"{low:+.2f} to {high:+.2f} in 95 % of the cases.")

# %% [markdown]
# {numref}`fig-evaluation-kl` separates two readings of any "best method": one that moved and gained, and one that gained or lost little because it hardly moved.
#
# ## Again, from other seeds
#
# So far each method is one run, and its interval says what other *problems* would have given. Another order of the prompts and another initial adapter would have given another model. Each method was therefore
# trained again with both changed. Let $d_{sp} \in \{-1, 0, 1\}$ be the difference of two models on problem $p$ at seed $s$, $S$ seeds and $n$ problems. Seeds and problems are crossed, and their contributions to the interval of the mean add as squares:
#
# ```{math}
# :label: eq-evaluation-seeds
# h^2 = \Big(t_{S-1}\, \frac{\operatorname{sd}_s(\bar d_{s \cdot})}{\sqrt S}\Big)^2 + \Big(1.96\, \frac{\operatorname{sd}_p(\bar d_{\cdot p})}{\sqrt n}\Big)^2 .
# ```
#
# Few seeds are paid for in the factor of Student's $t$, which is 12.7 for two seeds and 4.3 for three, where it is 1.96 for many. The runs from other seeds answered the first part of the test problems only, so that all lines of this section are about those.

# %%
replicas = [(method, seed, name) for seed, group in replication.replicas(study).items()
            for method, name in group.items()]
parts = []
for method, seed, name in replicas:
    of_run = answering.evaluate(study, study.runs[name])
    parts.append(of_run.assign(run=method, seed=seed))
answered = pd.concat(parts).query("split == 'test'")
right = answered.pivot(index=["run", "seed"], columns="problem_id", values="correct")
right = right.dropna(axis=1).astype(float)
of_base = records[(records.run == "base") & (records.split == "test")]
of_base = of_base.set_index("problem_id").correct[right.columns].astype(float)
answers = {**{method: right.loc[method] for method in runs}, "base": of_base}

# %%
rows = []
for method in runs:
    mean, low, high = replication.interval(answers[method])
    at_seeds = answers[method].mean(axis=1)
    rows.append({"run": method, "accuracy": mean, "low": low, "high": high,
                 **{f"seed {seed}": value for seed, value in at_seeds.items()}})
over_seeds = pd.DataFrame(rows)
figures.table(over_seeds)

# %% mystnb={"image": {"alt": "Dots with intervals over seeds and problems for the accuracy of each of the six objectives"}, "figure": {"caption": "Accuracy on the test problems, mean over the seeds of each method, with 95 % intervals over seeds and problems by {eq}`eq-evaluation-seeds`.", "name": "fig-evaluation-seeds"}}
figures.intervals(over_seeds, "accuracy", "low", "high",
                  "share of test problems solved, mean over seeds");

# %%
rows = []
for a, b in combinations(answers, 2):
    gap = answers[a] - answers[b]
    difference, low, high = replication.interval(gap)
    rows.append({"run_a": a, "run_b": b, "difference": difference, "low": low,
                 "high": high, "least": gap.mean(axis=1).min(),
                 "most": gap.mean(axis=1).max()})
between = pd.DataFrame(rows)
store.write_table(profile, "accuracy_seeds", between)
apart = between[(between.low > 0) | (between.high < 0)]
family = apart[~apart.run_a.isin(["dpo"]) & ~apart.run_b.isin(["dpo", "base"])]
with_base = between[between.run_b == "base"].set_index("run_a")
lines = ", ".join(f"{figures.LABELS[row.Index]} {row.difference:+.1%} ({row.low:+.1%} "
                  f"to {row.high:+.1%})" for row in with_base.itertuples())
Markdown(f"On {right.shape[1]} problems, minus the base: {lines}. Over seeds, "
         f"{len(apart)} of {len(between)} differences have an interval that leaves "
         f"out zero; among the five methods without DPO, {len(family)} of 10. "
         f"{store.origin(profile, [study.runs[name] for _, _, name in replicas])}")

# %% [markdown]
# The intervals of {numref}`fig-evaluation-seeds` are those that an ordering of *methods*, and not of six particular adapters, has to survive.
#
# ## A first look at the weights
#
# Do methods that behave alike have the same update? Stack the updates of all modules into one long vector per method; the cosine of two such vectors needs only their
# factors, because
#
# ```{math}
# :label: eq-evaluation-cosine
# \langle \Delta W_1, \Delta W_2 \rangle = s_1 s_2 \operatorname{tr}\!\big( (B_2^{\top} B_1)(A_1 A_2^{\top}) \big),
# \qquad \cos = \frac{\sum_m \langle \Delta W_1^m, \Delta W_2^m \rangle}{\sqrt{\sum_m \|\Delta W_1^m\|^2}\sqrt{\sum_m \|\Delta W_2^m\|^2}} .
# ```

# %%
adapters = {name: trainer.update_of(study, name) for name in runs}
cosine, sd = geometry.stacked_cosine(geometry.compare(adapters))

# %% mystnb={"image": {"alt": "Matrix of cosines between the stacked updates of the six objectives"}, "figure": {"caption": "Cosine between the updates of the six objectives, all modules stacked, by {eq}`eq-evaluation-cosine`.", "name": "fig-evaluation-cosine"}}
figures.matrix(cosine, list(runs), "cosine");

# %%
at = {name: index for index, name in enumerate(runs)}
Markdown(f"SFT and RFT have a cosine of **{cosine[at['sft'], at['rft']]:.3f}** (in the "
         f"paper .977), SFT and Offline GRPO "
         f"{cosine[at['sft'], at['offline-grpo']]:.3f} (about .74), SFT and DFT "
         f"{cosine[at['sft'], at['dft']]:.3f} (.572), SFT and DPO "
         f"**{cosine[at['sft'], at['dpo']]:.3f}** (.057 to .065). Unrelated updates "
         f"with the spectra of the last two would have a cosine within "
         f"±{1.96 * sd[at['sft'], at['dpo']]:.3f}.")

# %% [markdown]
# Behaviour and direction in one picture: how far each method turned away from SFT, and what that did to the accuracy.

# %% mystnb={"image": {"alt": "Scatter plot of the change of test accuracy from the base against the cosine of the update with SFT's, one marker for each of six objectives, with a dashed line at the accuracy of the base"}, "figure": {"caption": "Direction and behaviour of the six updates: cosine with the update of SFT, and change of test accuracy from the base, in points; dashed: the base, which has no update and so no direction.", "name": "fig-evaluation-headline"}}
plane = pd.DataFrame({"run": list(runs), "cosine": cosine[at["sft"]],
                      "gain": gain.to_numpy()})
fig = figures.scatter_of_runs(plane, "cosine", "gain",
                              "cosine of the update with SFT's",
                              "change of test accuracy, points")
fig.axes[0].axhline(0, color=figures.COLOURS["base"], linestyle="--", linewidth=1);

# %% [markdown]
# {numref}`fig-evaluation-headline` invites the reading that turning away from SFT is what keeps accuracy. Six markers can't carry it: the one that stands apart was also trained at a tenth of the rate. What these numbers and those in {numref}`fig-evaluation-cosine` are worth, and what lies behind them module by module, is the subject of the [next chapter](10_norms.ipynb), which derives
# the chance level of each.

# %%
best, worst = trained.idxmax(), trained.idxmin()
headline = (f"the base solves {on_test.accuracy['base']:.1%} of the test problems "
            f"and the six objectives between {trained.min():.1%} and "
            f"{trained.max():.1%}; made to open its answers like the teacher, without "
            f"any training, the base itself solves {share['forced base']:.1%} of the "
            f"first {len(first_problems)}")
glue("headline", headline, display=False)
glue("base-accuracy", f"{on_test.accuracy['base']:.1%}", display=False)
if "strong-base" in study.models:
    strong = answering.evaluate(study, "strong-base")
    glue("strong-base-accuracy", f"{strong.correct[strong.split == 'test'].mean():.1%}",
         display=False)
for key, value in {"best-run": figures.LABELS[best],
                   "best-accuracy": f"{trained[best]:.1%}",
                   "worst-run": figures.LABELS[worst],
                   "worst-accuracy": f"{trained[worst]:.1%}",
                   "cosine-sft-rft": f"{cosine[at['sft'], at['rft']]:.3f}",
                   "cosine-sft-dpo": f"{cosine[at['sft'], at['dpo']]:.3f}",
                   "significant-pairs": str(len(significant)),
                   "pairs": str(len(shown))}.items():
    glue(key, value, display=False)

# %% [markdown]
# ## Try it
#
# 1. Keep only the problems of four steps and test SFT against DPO again. What happens to the {term}`detectable difference`?
#
# ````{dropdown} What happens
# A quarter of the problems makes it about twice as large, as one over the square root says. More disagreement on harder problems makes it larger still.
# ````
#
# 2. How many {term}`discordant problems` would give $p < 0.05$ if all of them favour one model?
#
# ````{dropdown} Answer
# By {eq}`eq-evaluation-mcnemar`, $2 \cdot 2^{-n} < 0.05$ needs $n \ge 6$: `[statistics.mcnemar(n, 0) for n in range(1, 8)]`.
# ````
#
# 3. Multiply all of one update by two and compute its cosine with the others again.
#
# ````{dropdown} What happens
# Nothing changes: a cosine is blind to length. DPO's update is much shorter than the others, and its cosine does not say so; its norm does.
# ````
#
# ## Summary
#
# Every accuracy has its interval, every pair its exact test, its effect and the difference it could have seen, and the base stands in every table. What the six
# updates look like inside, and which of their likenesses are more than chance, is what the chapters on geometry show, from [norms and cosines](10_norms.ipynb) on.
