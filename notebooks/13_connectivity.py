# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, paths, held-out, seeds]
# ---

# %% [markdown]
# # Linear mode connectivity: what lies between two updates
#
# *Previously:* updates were compared as vectors: by [length](10_norms.ipynb), [angle](11_angles.ipynb) and [parts](12_decomposition.ipynb). *Now:* we walk from one to the
# other in a straight line and ask at each step how the model does, since two updates with a small cosine may still lie in one valley of the loss.
#
# **Key takeaways**
# - The straight path between two adapters is exact and cheap as factors of the summed rank. Mixing the $A$s and the $B$s separately, as a common library call does, gives another matrix.
# - A slope is not a {term}`barrier`. Whether a path has one depends on the definition, on the noise of the texts, and on the loss that is plotted.
# - The loss of a bare answer without reasoning and the loss of correct rollouts need not agree on which end of a path is better.
# - A path to a short update is nearly a path to the base, so it must be read beside that one.
#
# You need: [the update as factors](10_norms.ipynb), cross-entropy. Reads what was measured on the paths between the six runs. Time to run: under a minute, once
# that is stored.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study to set beside it at the end

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from adapter_geometry import mode_connectivity, updates
from adapter_geometry.mode_connectivity import METRICS
from adapter_geometry.updates import Factors
from helpers import profiles, store
from helpers.analysis import connectivity, path_tables
from helpers.book import explorers, figures
from helpers.data import problems
from helpers.evaluation import answering, statistics
from helpers.models import loading
from helpers.training import trainer

study = profiles.load(profile)
figures.use_style(study)
runs = {name: study.runs[name] for name in study.main_runs}
adapters = {name: trainer.update_of(study, name) for name in runs}
labels = figures.LABELS | {f"{profiles.SCALED}dpo": "DPO, scaled"}
losses = {"rollout": "loss of rollouts", "boxed answer": "bare-answer loss"}
named = [path for path in study.paths if path in study.connectivity.answered_paths]

# %% [markdown]
# ## The path, exactly
#
# Let $W_0$ be the base's weights and $\Delta W_1$, $\Delta W_2$ two updates. The straight path between the two trained models is
#
# ```{math}
# :label: eq-connectivity-path
# \theta(t) = W_0 + (1 - t)\,\Delta W_1 + t\,\Delta W_2 , \qquad 0 \le t \le 1 .
# ```
#
# Each update is a product of thin factors, $\Delta W_i = s_i B_i A_i$. A weighted sum of such products is again one, with the factors side by side:
#
# ```{math}
# :label: eq-connectivity-factors
# (1 - t)\, s_1 B_1 A_1 + t\, s_2 B_2 A_2 =
# \begin{bmatrix} (1 - t)\, s_1 B_1 & t\, s_2 B_2 \end{bmatrix}
# \begin{bmatrix} A_1 \\ A_2 \end{bmatrix} .
# ```
#
# Nothing is approximated; the price is that the rank is the sum of both. The next cell compares {eq}`eq-connectivity-factors` with the dense sum in every module.

# %%
def dense(factors):
    return factors.scale * factors.B.double() @ factors.A.double()


first, second = adapters["rift"], adapters["dpo"]
path = updates.combine([first, second], [0.75, 0.25])
errors = [(dense(path[module]) - 0.75 * dense(first[module])
           - 0.25 * dense(second[module])).abs().max() for module in path]
ranks = {factors.A.shape[0] for factors in path.values()}
Markdown(f"""At $t = 1/4$ the largest difference over {len(path)} modules is
{float(max(errors)):.1e}; two updates of rank {study.lora.rank} gave factors of
rank {max(ranks)}.""")

# %% [markdown]
# ## A trap: mixing the factors separately
#
# PEFT {cite:p}`mangrulkar2022peft` can combine adapters by `add_weighted_adapter`, and the `combination_type` called `"linear"` looks like the path. It is not. It multiplies
# *both* factors of each adapter by the square root of its weight, adds the $A$s, adds the $B$s, and multiplies the sums. With a common scale $s$:
#
# ```{math}
# :label: eq-connectivity-separately
# \begin{aligned}
# & s \big( \sqrt{1-t}\, B_1 + \sqrt{t}\, B_2 \big) \big( \sqrt{1-t}\, A_1 + \sqrt{t}\, A_2 \big) \\
# & \quad = (1-t)\, \Delta W_1 + t\, \Delta W_2 + s \sqrt{t (1-t)}\, \big( B_1 A_2 + B_2 A_1 \big) .
# \end{aligned}
# ```
#
# The last bracket belongs to neither model. It is not small either. If both adapters still had the $A$ that they began with, it would be $\Delta W_1 + \Delta W_2$, and the "midpoint" at
# $t = 1/2$ would be twice the true midpoint. Plain averaging, $\tfrac12 (B_1 + B_2) \cdot \tfrac12 (A_1 + A_2)$, would then be right, but only then.
#
# Equation {eq}`eq-connectivity-separately` in code, from the factors alone:

# %%
def separately(first, second, t, root):
    """Both factors mixed, by the weights or, as PEFT does, by their square roots."""
    v, w = np.array([1 - t, t]) ** (0.5 if root else 1.0)
    mixed = {}
    for module, one in first.items():
        two = second[module]
        a, b = v * one.scale ** 0.5, w * two.scale ** 0.5
        mixed[module] = Factors(a * one.B + b * two.B, a * one.A + b * two.A, 1.0)
    return mixed

# %%
def distance(first, second):
    """Norm of the difference, relative to the second."""
    difference = updates.combine([first, second], [1.0, -1.0])
    return updates.norm(difference) / updates.norm(second)

# %% [markdown]
# The table gives, at the midpoint of the named paths between two runs, the relative error of both ways of mixing, the length of PEFT's result relative to the true midpoint, and the loss
# of held-out rollouts (defined below) at each of the three points.

# %%
model = loading.load_model(study).float()
texts = connectivity.held_out_texts(study, model.device)
weights = updates.weights_of(model, first)


def loss_of(update):
    updates.put(model, weights, update)
    return texts.nats(model)["rollout"].sum() / texts.tokens["rollout"].sum()

# %%
rows = []
for a, b in [ends for ends in named if "base" not in ends]:
    middle = updates.combine([adapters[a], adapters[b]], [0.5, 0.5])
    peft = separately(adapters[a], adapters[b], 0.5, root=True)
    plain = separately(adapters[a], adapters[b], 0.5, root=False)
    rows.append({
        "path": f"{labels[a]} – {labels[b]}", "error of PEFT": distance(peft, middle),
        "error of averages": distance(plain, middle),
        "length of PEFT": updates.norm(peft) / updates.norm(middle),
        "loss, exact": loss_of(middle), "loss, PEFT": loss_of(peft),
        "loss, averages": loss_of(plain)})
mixing = pd.DataFrame(rows)
figures.table(mixing)

# %%
peft, averages = mixing["error of PEFT"], mixing["error of averages"]
worst = mixing.loc[peft.idxmax()]
Markdown(f"""PEFT's midpoint misses the true one by **{peft.min():.0%} to
{peft.max():.0%}** of its norm and is up to {mixing['length of PEFT'].max():.2f} times
as long. Halfway from {worst['path'].replace(' – ', ' to ')} the loss is
{worst['loss, PEFT']:.3f} instead of {worst['loss, exact']:.3f} nats per token. Averages
of the factors miss it by {averages.min():.0%} to {averages.max():.0%}, because here all
runs began with the same $A$.""")

# %% [markdown]
# The loss at the wrong point may come out higher or lower, depending on whether a longer mixture happens to suit the texts. Either way it is the loss of another model.
#
# There is a second reason not to mix factors. $(2B, A/2)$ and $(B, A)$ are the same update, and so are $(BM, M^{-1}A)$ for any invertible $M$. A path between two *models* can't
# depend on which pair of factors is written down. Equation {eq}`eq-connectivity-factors` does not; {eq}`eq-connectivity-separately` does.

# %%
rewritten = {module: Factors(2 * factors.B, factors.A / 2, factors.scale)
             for module, factors in second.items()}
exact = [updates.combine([first, other], [0.5, 0.5]) for other in (rewritten, second)]
mixed = [separately(first, other, 0.5, root=True) for other in (rewritten, second)]
exact, mixed = distance(*exact), distance(*mixed)
Markdown(f"""Writing DPO's update with $2B$ and $A/2$ moves the exact midpoint of RIFT
and DPO by {exact:.0e} of its norm, and PEFT's by **{mixed:.0%}**.""")

# %% [markdown]
# ## The ends are the adapters
#
# A path is worth something only if its ends are the models that were trained. So the loss at $t = 0$, which the stored measurement got by writing $W_0 + \Delta W$ into the
# base, is compared with the loss of the model that PEFT itself merges from the adapter's folder.

# %%
measured = {ends: connectivity.losses(study, *ends) for ends in study.paths}
differences = []
for name in ("sft", "dpo"):
    at_start = measured[name, "base"].query("t == 0 and metric == 'rollout'")
    merged = texts.nats(answering.load_model_of(study, runs[name]))["rollout"]
    differences.append(np.abs(merged - at_start.sort_values("text").nats).max())
Markdown(f"Over {texts.count} texts and two adapters the largest difference is "
         f"{max(differences):.0e} nats per text.")

# %% [markdown]
# ## Loss along the paths
#
# Along a {term}`path`, the first measure is what a reasoning model should be good at: the cross-entropy of *correct rollouts to problems that no run trained on*, reasoning included,
#
# ```{math}
# :label: eq-connectivity-loss
# L(t) = -\frac{1}{\sum_i T_i} \sum_i \log \pi_{\theta(t)}(y_i \mid x_i) ,
# ```
#
# a {term}`token mean` over the texts $y_i$ with $T_i$ tokens each. The texts are the teacher's. Intervals come from a bootstrap over texts, in which a draw takes the same texts at every $t$.

# %%
curves = pd.concat([mode_connectivity.curve(nats).assign(run_a=a, run_b=b)
                    for (a, b), nats in measured.items()], ignore_index=True)
curves["t"] = curves.t.round(6)
pairs = curves[curves.run_b.isin(list(runs))]

# %% mystnb={"image": {"alt": "Fifteen small panels, one for each pair of the six runs, of the loss of held-out rollouts from one run to the other, with a dashed chord between the ends"}, "figure": {"caption": "Loss of held-out correct rollouts, {eq}`eq-connectivity-loss`, on the paths between all pairs of runs, with 95 % intervals; dashed: the chord between the ends; markers: the runs.", "name": "fig-connectivity-rollout"}}
of_rollouts = pairs[pairs.metric == "rollout"]
figures.path_panels(of_rollouts, "loss of rollouts, nats per token");

# %%
shapes = of_rollouts.groupby(["run_a", "run_b"]).value.apply(
    lambda values: path_tables.shape(values.to_numpy()))
counts = shapes.value_counts()
at_base = curves.query("metric == 'rollout' and run_b == 'base' and t == 1").value
Markdown(f"""{counts.sum()} paths: monotone {counts.get('monotone', 0)}; turning, but
never above their worse end {counts.get('below the worse end', 0)}; rising above both
ends **{counts.get('above both ends', 0)}**. The loss of the base is
{at_base.iloc[0]:.3f} nats per token.""")

# %% [markdown]
# Each panel of {numref}`fig-connectivity-rollout` is to be read against its dashed {term}`chord`. A curve under the {term}`chord` says that a mixture does better than the mixture of the losses. Intervals on
# a curve are wide because some texts are harder than others; that difficulty is common to all points of a path and says little about its shape, which is why barriers get an interval of their own below.
#
# Models fine-tuned from the same pre-trained weights tend to lie in one basin {cite:p}`neyshabur2020transferred`, so a flat path between adapters is what one should expect and a barrier
# would be the news.
#
# ## The paper's measure: the answer without the reasoning
#
# {cite:t}`nikolich2026geometry` plot another loss, the per-token cross-entropy of the correct boxed answer *straight after the prompt*, before any reasoning: the {term}`bare-answer loss`. With $a_i$ the tokens of `\boxed{...}`,
#
# ```{math}
# :label: eq-connectivity-boxed
# L_{\text{box}}(t) = -\frac{1}{\sum_i \lvert a_i \rvert} \sum_i \log \pi_{\theta(t)}(a_i \mid x_i) .
# ```

# %% mystnb={"image": {"alt": "Fifteen small panels, one for each pair of runs, of the loss of the bare boxed answer from one run to the other, with a dashed chord between the ends"}, "figure": {"caption": "Loss of the bare boxed answer right after the prompt, {eq}`eq-connectivity-boxed`, on the same paths.", "name": "fig-connectivity-boxed"}}
of_answers = pairs[pairs.metric == "boxed answer"]
figures.path_panels(of_answers, "loss of the bare answer, nats per token");

# %%
of_runs = curves.query("run_b == 'base' and t == 0")
at_runs = of_runs.pivot(index="metric", columns="run_a", values="value")[list(runs)]
boxed, rollout = at_runs.loc["boxed answer"], at_runs.loc["rollout"]
agreement, low, high = statistics.rank_correlation(rollout, boxed)
Markdown(f"""By the bare answer the best of the six is {labels[boxed.idxmin()]} and the
worst {labels[boxed.idxmax()]}; by the loss of rollouts, {labels[rollout.idxmin()]}
and {labels[rollout.idxmax()]}. The rank correlation of the two losses over the six runs
is {agreement:+.2f} ({low:+.2f} to {high:+.2f} for random orders).""")

# %% [markdown]
# What does {numref}`fig-connectivity-boxed` measure? Take the bare answer apart, token by token: the opening `\boxed{`, the digits, the closing brace. Beside the models stands one that knows
# the format and nothing else: it opens the box with certainty and then gives the ten digits and the closing brace the same probability each, at $\ln 11$ nats per token. That is the chance level of this loss.

# %%
by_part = path_tables.bare_answer_parts(study, ["base", *runs])
figures.table(by_part)

# %%
models, guess = by_part.iloc[:-1], by_part.iloc[-1]
worse = int((models["nats per token"] > guess["nats per token"]).sum())
parts = models[["opening", "digits", "closing"]]
spread = (parts.max() - parts.min()).sort_values(ascending=False)
Markdown(f"""Opening the box costs {parts.opening.min():.1f} to
{parts.opening.max():.1f} nats, for these models hardly ever begin with it. The digits
cost {parts.digits.min():.1f} to {parts.digits.max():.1f} nats; knowing nothing, they
would cost {guess.digits:.1f}. So {worse} of the {len(models)} models are worse at this
than the guess that knows the format only ({guess['nats per token']:.2f} nats per
token). Between models the largest spread is in the {spread.index[0]}
({spread.iloc[0]:.2f} nats), then in the {spread.index[1]} ({spread.iloc[1]:.2f}).""")

# %% [markdown]
# No objective here trains a model to answer without its steps, and for none is this loss a measure of what the model can do. It rewards a model for *being ready to skip the reasoning*, and for being
# unsure of a number that it has not computed; a model that insists on its chain, or is sure of a wrong number, pays. What the paper's own numbers are made of cannot be told from their sum; the same three columns would tell.
#
# ## Accuracy along the named paths
#
# The honest measure is to let the model reason and to grade it. That is dear, so it is done at a few points of the paths that the profile names, always on the same first problems of the test set, greedily.

# %%
answered = {ends: connectivity.answers(study, *ends) for ends in named}
solved = path_tables.accuracy(answered)
columns = ["run_a", "run_b", "t", "metric", "value", "low", "high"]
table = pd.concat([curves, solved])[columns].reset_index(drop=True)
store.write_table(profile, "connectivity", table);

# %% mystnb={"image": {"alt": "Small panels, one for each named path, of the share of problems solved at a few points between its ends, with Wilson intervals and a dashed chord"}, "figure": {"caption": "Share of the fixed test problems solved greedily at points of the named paths, with 95 % Wilson intervals; dashed: the chord.", "name": "fig-connectivity-accuracy"}}
figures.path_panels(solved, "share solved", columns=3);

# %%
lines = []
for (a, b), group in solved.groupby(["run_a", "run_b"], sort=False):
    start, *_, end = group.value
    best, p = path_tables.best_between(answered[a, b])
    lines.append(f"{labels[a]} to {labels[b]} {start:.1%} to {end:.1%}, best in "
                 f"between {best:.1%} ($p$ = {p:.2g} against the better end)")
count = answered[named[0]].problem_id.nunique()
Markdown(f"On {count} problems: {'; '.join(lines)}.")

# %% [markdown]
# The same problems are answered at every point of {numref}`fig-connectivity-accuracy`, so differences along a path are more certain than the intervals, which are about single points, suggest. The p-values are those of the exact test for paired answers, {eq}`eq-evaluation-mcnemar`; the best of several points was
# picked before testing, so they are on the small side.
#
# Which of the two losses knows about accuracy? Plot one against the other at all points where both were measured.

# %% mystnb={"image": {"alt": "Two scatter plots of the share of problems solved, left against the loss of rollouts, right against the loss of the bare answer, with markers for runs and the base and grey dots for points between"}, "figure": {"caption": "Accuracy against both losses at all answered points: markers are the ends of the named paths, grey dots lie between two of them.", "name": "fig-connectivity-metrics"}}
both = table.pivot(index=["run_a", "run_b", "t"], columns="metric", values="value")
both = both.dropna().reset_index()
both["run"] = both.run_a.where(both.t == 0, both.run_b.where(both.t == 1))
figures.losses_and_accuracy(both, {
    "rollout": "loss of rollouts, nats per token",
    "boxed answer": "loss of the bare answer, nats per token"});

# %%
ends = both[both.run.notna()].drop_duplicates("run")
singles = pd.concat([both[both.run.isna()], ends])
touches = singles[["run_a", "run_b"]].isin(["dpo", "base"]).any(axis=1)
ranks, within = (points[["accuracy", *METRICS]].rank().corr()["accuracy"]
                 for points in (singles, singles[~touches]))
Markdown(f"""Over {len(singles)} points the rank correlation with accuracy is
{ranks['rollout']:+.2f} for the loss of rollouts and {ranks['boxed answer']:+.2f} for
the loss of the bare answer; on the {(~touches).sum()} points of paths that touch
neither DPO nor the base it is {within['rollout']:+.2f} and
{within['boxed answer']:+.2f}. A loss worth plotting would have a clearly *negative*
one.""")

# %% [markdown]
# Points of one path are not independent of each other, so these correlations describe {numref}`fig-connectivity-metrics` and test nothing. But they are a warning about both losses. The loss of rollouts is that
# of the *teacher's* texts, and a model that solves problems in its own words pays for its words: on [the page about accuracy](09_evaluation.ipynb) that style has a price of its own. No cross-entropy replaces grading.
#
# ## Two definitions of a barrier
#
# How high is the {term}`barrier`, the rise of the loss in between? Above the *chord*, the straight line between the two ends,
#
# ```{math}
# :label: eq-connectivity-chord
# \mathrm{above\ chord} = \max_{0 \le t \le 1} \big[ L(t) - (1 - t)\, L(0) - t\, L(1) \big] ,
# ```
#
# or above the *mean of the ends*, with which {cite:t}`frankle2020lmc` call a path stable when the *error rate* rises by less than two points:
#
# ```{math}
# :label: eq-connectivity-mean
# \mathrm{above\ mean} = \max_{0 \le t \le 1} L(t) - \tfrac12 \big[ L(0) + L(1) \big] .
# ```
#
# They agree when the ends are equally good, the case the second was made for. When they are not, the second counts half the gap between the ends as a barrier, even on a straight slope. Three numbers
# that the paper gives for RIFT to DPO, 3.82, 7.06 and 8.64, serve as an example, read as start, middle and end:

# %%
chord, mean = mode_connectivity.barrier_heights(np.array([0, 0.5, 1]),
                                                [3.82, 7.06, 8.64])
Markdown(f"""By {{eq}}`eq-connectivity-chord` the barrier is **{chord:.2f}**, by
{{eq}}`eq-connectivity-mean` it is **{mean:.2f}**, and of this second number all is
slope: half the gap between the ends is {(8.64 - 3.82) / 2:.2f}.""")

# %% [markdown]
# 8.64 would be an end, not the top of a barrier: the three numbers rise all the way. Nor is it certain that the reading is right. The same text gives RIFT 2.25 at the end of another path, and one model has one loss, so either 3.82 is
# not at RIFT's end or the two paths were measured on different texts.
#
# ## How high is high?
#
# A maximum over points includes the ends, where the curve touches its chord. So {eq}`eq-connectivity-chord` is *never below zero*, and noise makes it positive. An interval that leaves zero out is therefore no test. What would be seen if
# the true curve were straight? Take from each text its own deviation from the chord, remove the mean deviation at each $t$, so that the truth is straight by construction, resample texts, and take the maximum again. The height that stays
# unreached in 19 of 20 draws is the chance level.
#
# The error rate on the named paths is treated like a loss with one "token" per problem, so that the same two functions apply to it.

# %%
losses_at = dict(measured)
for ends, answers in answered.items():
    errors = answers.assign(metric="error", text=answers.problem_id,
                            nats=1.0 - answers.correct, tokens=1)
    losses_at[ends] = pd.concat([measured[ends], errors])
heights = pd.concat([mode_connectivity.barrier(nats).assign(run_a=a, run_b=b)
                     for (a, b), nats in losses_at.items()], ignore_index=True)
columns = ["run_a", "run_b", "metric", "above_chord", "low", "high", "at",
           "above_mean", "mean_low", "mean_high", "noise"]
barriers = store.write_table(profile, "barriers", heights[columns])

# %% mystnb={"image": {"alt": "Dots with intervals for the barrier above the chord and diamonds for the barrier above the mean of the ends, for each pair of runs and both losses, over grey bars for the chance level"}, "figure": {"caption": "Barriers of all pairs by {eq}`eq-connectivity-chord` (dots) and {eq}`eq-connectivity-mean` (diamonds), with 95 % intervals from a paired bootstrap over texts; grey: what a straight path would reach by chance.", "name": "fig-connectivity-barriers"}}
between = barriers[barriers.run_b.isin(list(runs))]
figures.barriers(between, "nats per token", losses);

# %%
lines = []
for metric in METRICS:
    group = between[between.metric == metric]
    count = int((group.above_chord > group.noise).sum())
    top = group.loc[group.above_chord.idxmax()]
    highest = (f"the highest is {labels[top.run_a]} to {labels[top.run_b]} with "
               f"{top.above_chord:.3f} nats per token ({top.low:.3f} to "
               f"{top.high:.3f}); ")
    slope = group.loc[group.above_mean.idxmax()]
    lines.append(f"""By the {losses[metric]}, **{count} of {len(group)}** paths rise
above their chord by more than chance; {highest if count else ''}above the mean of the
ends the largest is {slope.above_mean:.3f}, on {labels[slope.run_a]}
to {labels[slope.run_b]}.""")
Markdown(" ".join(lines) + " At a level of one in twenty, about one of fifteen "
                           "straight paths would be counted by chance.")

# %% [markdown]
# The diamonds of {numref}`fig-connectivity-barriers` lie to the right where one end is worse than the other. They measure an inequality of the ends. Only the dots are about the path.
#
# For error rates, the measure that the threshold of two points was made for:

# %%
wrong = barriers[barriers.metric == "error"].drop(columns="metric")
figures.table(wrong.replace({"run_a": labels, "run_b": labels}))

# %%
stable = wrong[wrong.above_mean < 0.02]
names = [f"{labels[row.run_a]} to {labels[row.run_b]}" for row in stable.itertuples()]
Markdown(f"""By the rule of two points above the mean, {len(stable)} of {len(wrong)}
named paths are stable ({', '.join(names) or 'none'}). Above the chord,
{int((wrong.above_chord > wrong.noise).sum())} of {len(wrong)} exceed chance.""")

# %% [markdown]
# The two counts answer different questions. A path from a worse model to a better one fails the first rule at its worse end, before anything is mixed. Above the chord, a path exceeds chance where accuracy changes late: the mixture
# still answers like its worse end when a good part of the way is done.
#
# ## Is the way to DPO only the way back to the base?
#
# DPO's update is much shorter than the others. Then $(1-t)\,\Delta W_1 + t\,\Delta W_{\text{DPO}}$ is mostly the first term getting smaller, and anything that happens on the way may be the *loss of the first update*. Two controls:
# the path from RIFT to the base, where the second update is zero, and the path from RIFT to DPO's update stretched to RIFT's length.

# %% mystnb={"image": {"alt": "Three panels along paths from RIFT to the base, to DPO, and to DPO's update stretched to RIFT's norm: the loss of rollouts close up for the first two, the same for all three, and the loss of the bare answer"}, "figure": {"caption": "Both losses on the paths from RIFT to DPO, to the base, and (dashed) to DPO's update scaled to RIFT's norm; the left panel shows the first two alone.", "name": "fig-connectivity-control"}}
of_rift = curves[(curves.run_a == "rift") & (curves.t >= 0)]
control = of_rift[of_rift.run_b.isin(["dpo", "base", "scaled-dpo"])]
is_near = (control.metric == "rollout") & (control.run_b != "scaled-dpo")
control_shown = pd.concat([control[is_near].assign(metric="near"), control])
panels = {"near": "rollouts, close up", "rollout": "rollouts",
          "boxed answer": "bare answer"}
figures.curves_by_run(control_shown, "run_b", "t", "t, from RIFT", "nats per token",
                      panels);

# %%
lines, from_rift = [], barriers[barriers.run_a == "rift"].set_index(["metric", "run_b"])
for metric in METRICS:
    part = control[control.metric == metric]
    at = part.pivot(index="t", columns="run_b", values="value")
    top = from_rift.above_chord[metric]
    lines.append(f"""By the {losses[metric]} the paths to DPO and to the base differ by
at most {(at['dpo'] - at['base']).abs().max():.3f} nats per token, where the path to the
base spans {at['base'].max() - at['base'].min():.3f}; barriers above the chord:
{top['dpo']:.3f} (DPO), {top['base']:.3f} (base), {top['scaled-dpo']:.3f} (DPO,
scaled).""")

# %%
names = labels | {"base": "the base"}
lines += [f"By the error rate the barrier above the chord is {row.above_chord:.3f} on "
          f"the way to {names[row.run_b]} (chance {row.noise:.3f})."
          for row in wrong[wrong.run_a == "rift"].itertuples()]
ratio = updates.norm(adapters["dpo"]) / updates.norm(adapters["rift"])
text = " ".join(lines)
Markdown(f"DPO's update has **{ratio:.2f}** times the norm of RIFT's. {text}")

# %% [markdown]
# The closer the two solid curves of {numref}`fig-connectivity-control` lie, the less the path to DPO says about DPO; the same holds for error rates. In {cite:t}`nikolich2026geometry` DPO's update was shorter still, a thirteenth of the others. The dashed one is a fairer comparison of directions, with a caveat: a model made by stretching
# was never trained, and its high loss at the end is overshooting. The pairs of that control are in the table `barriers` for every run.
#
# ## The scaling curve
#
# The path to the base is one half of a simpler question: what happens to a model when its own update is made longer or shorter? With a factor $\kappa$,
#
# ```{math}
# :label: eq-connectivity-scaling
# L(\kappa) = L\big(W_0 + \kappa\, \Delta W\big), \qquad 0 \le \kappa \le 2 ,
# ```
#
# $\kappa = 0$ is the base, $\kappa = 1$ the run, $\kappa = 2$ its update doubled; on the path to the base $\kappa = 1 - t$.

# %% mystnb={"image": {"alt": "Two panels of both losses against the factor on each run's own update from zero, the base, over one, the run, to two"}, "figure": {"caption": "Scaling curves {eq}`eq-connectivity-scaling` of the six updates: 0 is the base, 1 the run, 2 the doubled update; left for held-out rollouts, right for the bare answer.", "name": "fig-connectivity-scaling"}}
scaling = curves[curves.run_b == "base"].assign(kappa=lambda rows: 1 - rows.t)
figures.curves_by_run(scaling, "run_a", "kappa", "factor on the update",
                      "nats per token", losses);

# %%
at = scaling.pivot(index=["metric", "run_a"], columns="kappa", values="value")
best = {metric: ", ".join(f"{labels[name]} {at.loc[metric, name].idxmin():.2f}"
                          for name in runs) for metric in METRICS}
falling = (at[2.0] < at[1.0]).groupby("metric").sum()
Markdown(f"""The factor with the lowest loss of rollouts is: {best['rollout']}; of the
bare answer: {best['boxed answer']}. Doubling the update lowers the loss of rollouts for
**{falling['rollout']} of {len(runs)}** runs and the bare-answer loss for
**{falling['boxed answer']} of {len(runs)}**.""")

# %% [markdown]
# Where the left curves of {numref}`fig-connectivity-scaling` are flat around one, training has stopped at a good length for this loss; a minimum at the right edge says that a longer step in the same direction would still have helped. Nothing in training looks for a minimum of the
# bare-answer loss; where it falls while the loss of rollouts rises, it rewards overshooting.
#
# ## Walk along a path
#
# **Explorer 1.** Choose a named path and move the $t$ of {eq}`eq-connectivity-path` with the mouse, a finger or the arrow keys. The three charts have a common scale for all paths. Accuracy and the model's text are those of the nearest answered point. The problem is the first
# whose grade changes along that path, so it is not a typical one.

# %%
asked = {problem.problem_id: problem
         for problem in problems.problem_sets(study.problems)["test"]}
examples = path_tables.examples(answered, asked)
is_named = [ends in answered for ends in zip(table.run_a, table.run_b, strict=True)]
explorers.path_explorer(table[is_named], examples, name="paths-between-updates")

# %% [markdown]
# A text changes in jumps while a loss moves smoothly: greedy decoding follows the larger of two probabilities, and a small change tips it. Between two such jumps the model writes the same words.
#
# ## The paper beside ours
#
# Of the connectivity results of {cite:t}`nikolich2026geometry` we know the end values of two paths and three values of a third, all for the bare answer. Ours stand beside them.

# %%
reported = {("offline-grpo", "rift"): "4.93 to 2.25, monotone",
            ("sft", "offline-grpo"): "2.06 to 4.93, monotone",
            ("rift", "dpo"): "3.82, 7.06, 8.64, barrier above t = .5"}
ours = path_tables.as_walked(curves, barriers, list(reported))
comparison = pd.DataFrame({
    "path": ours.run_a.map(labels) + " to " + ours.run_b.map(labels),
    "loss": ours.metric.map(losses),
    "paper": [reported[row.run_a, row.run_b] if row.metric == "boxed answer" else "–"
              for row in ours.itertuples()]})
comparison = comparison.join(ours.drop(columns=["run_a", "run_b", "metric"]))
figures.table(comparison)

# %%
by_path = comparison.set_index(["loss", "path"])
rollout, boxed = (by_path.loc[losses[metric]] for metric in METRICS)
same = {"Offline GRPO to RIFT": -1, "SFT to Offline GRPO": 1, "RIFT to DPO": 1}
agree = [path for path, sign in same.items()
         if (boxed.end[path] - boxed.start[path]) * sign > 0]
top = boxed.loc["RIFT to DPO"]
word = "rises" if top["above chord"] > top["chance"] else "does not rise"
Markdown(f"""For the bare answer our paths go the same way as the paper's in
{len(agree)} of 3 cases ({', '.join(agree) or 'none'}), and between RIFT and DPO ours
{word} above its chord by more than chance ({top['above chord']:.3f} nats per token).
With the loss of rollouts the same path has a barrier of
{rollout['above chord']['RIFT to DPO']:.3f}.""")

# %% [markdown]
# Would other seeds say the same? The three paths, and the one from RIFT to the base that is the control of the last, are walked again between the runs of each seed, at fewer points.

# %%
replicas = path_tables.over_seeds(study, [*reported, ("rift", "base")])
store.write_table(profile, "replicas_paths", replicas)
figures.table(replicas)

# %% [markdown]
# A shape that differs from seed to seed is not a property of the two methods. Where the path from RIFT to the base rises above its chord as the one to DPO does, the barrier is shrinkage; DPO at a matched length and at a matched rate is the subject of
# [a chapter of its own](17_matched_dpo.ipynb).
#
# The sizes cannot be compared: other models, other answers, other tokens. What carries over are the three questions to put to the paper's curve: was it measured on something the models were trained to do, is its top an end, and is it the curve
# to the base?
#
# ## On a pretrained model
#
# The barriers of SmolLM2-135M-Instruct, from weights rounded to four bits and adapted to the problems ([how](22_pretrained.ipynb)). Its losses along all paths come with the book, at fewer points; the barriers and their intervals are computed from them here.

# %% mystnb={"image": {"alt": "Dots with intervals for the barrier above the chord and diamonds for the barrier above the mean of the ends, for each pair of runs of the pretrained model and both losses, over grey bars for the chance level"}, "figure": {"caption": "Barriers of all pairs in the pretrained model, above the chord (dots) and above the mean of the ends (diamonds), with 95 % intervals over texts; grey: what a straight path would reach by chance.", "name": "fig-connectivity-pretrained"}}
study_second = profiles.load(pretrained)
files = {ends: store.find(pretrained, "connectivity/losses-{}-{}.parquet".format(*ends))
         for ends in study_second.paths}
measured_second = {ends: store.read_frame(file) for ends, file in files.items()}
high = pd.concat([mode_connectivity.barrier(nats).assign(run_a=a, run_b=b)
                  for (a, b), nats in measured_second.items()])
high_between = high[high.run_b.isin(list(runs))]
figures.barriers(high_between, "nats per token", losses);

# %%
lines, from_rift = [], high[high.run_a == "rift"].set_index(["metric", "run_b"])
for metric in METRICS:
    group, rift = high_between[high_between.metric == metric], from_rift.loc[metric]
    count = int((group.above_chord > group.noise).sum())
    lines.append(f"""By the {losses[metric]}, **{count} of {len(group)}** paths between
two methods rise above their chord by more than chance, at most by
{group.above_chord.max():.3f} nats per token; from RIFT the barrier is
{rift.above_chord['dpo']:.3f} to DPO and {rift.above_chord['base']:.3f} to the base
(chance {rift.noise['base']:.3f}).""")
trained = [study_second.runs[name] for name in study_second.main_runs]
Markdown(f"""{' '.join(lines)} {{numref}}`fig-connectivity-pretrained` shows all.
{store.origin(pretrained, trained)}""")

# %% [markdown]
# ## Try it
#
# 1. Recompute one answer at a $t$ of your own choice, in a live notebook, with a slider.
#
# ````{dropdown} The code
# ```python
# import ipywidgets
#
# problem = next(iter(asked.values()))
# start, goal = connectivity.ends(study, "rift", "dpo")
#
#
# def show(t):
#     updates.put(model, weights, updates.combine([start, goal], [1 - t, t]))
#     print(problem.question, answering.answer(study, model, [problem]).completion.item(), sep="\n")
#
#
# ipywidgets.interact(show, t=ipywidgets.FloatSlider(min=-0.5, max=1.5, step=0.05, value=0.5, continuous_update=False));
# ```
# Beyond 0 and 1 the path goes on in the same direction. Each move of the slider decodes one answer with the model at that point; the words stay the same over stretches and then change at once.
# ````
#
# 2. Mix three updates: `updates.combine([adapters["sft"], adapters["dft"], adapters["dpo"]], [1/3] * 3)`, and take its loss with `loss_of`. Is it below the mean of the three losses?
#
# ````{dropdown} What to expect
# Where the loss is convex between the updates, it is: a mixture then loses no more than the mixture of the losses. Curves under their chords in {numref}`fig-connectivity-rollout` are that convexity, seen along lines.
# ````
#
# 3. Compute both barriers of a straight line from 1 to 3: `mode_connectivity.barrier_heights(np.linspace(0, 1, 25), np.linspace(1, 3, 25))`.
#
# ````{dropdown} Answer
# Above the chord 0, above the mean of the ends 1: by the second definition every slope has a barrier of half its height.
# ````
#
# ## Summary
#
# Paths between adapters are exact as factors side by side, and a library call with a similar name does something else. Two losses, accuracy, two definitions of a barrier, a chance level and two controls give a picture in which each number says
# which question it answers. What the updates do to the *representations* inside the model comes [next](14_representations.ipynb). The ideas are those of {cite:t}`frankle2020lmc`, the paths and the bare answer those of {cite:t}`nikolich2026geometry`.
