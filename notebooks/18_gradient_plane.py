# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, snapshots]
# ---

# %% [markdown]
# # The gradient plane
#
# *Previously,* controls changed the [start and the order](16_seeds.ipynb) and the [rate](17_matched_dpo.ipynb), and asked whether the six updates stay as
# alike as they were. *Now* nothing is trained. All runs begin at the same weights, so the first thing each loss asks for can be computed from the base
# alone. How much of the geometry is known before training?
#
# **Key takeaways**
# - At step 0 every loss of the main study is a weighted sum of the same two gradients per rollout. SFT and RFT lie in the {term}`gradient plane`, spanned by
#   the mean gradients over correct and over incorrect rollouts, and the others near it as far as token weights and the pairing by prompt do not matter.
# - Three numbers then predict the cosines between SFT, RFT, RIFT, DPO and, roughly, Offline GRPO. Adding per-prompt sums, token weights, the first
#   batches and the optimiser gives four finer predictions.
# - AdamW does not step along a gradient: its first steps are close to the gradient's signs. Replaying it on the run's own batches tells the optimiser's
#   part of a cosine from the part of the batches' noise.
# - Set against the cosines measured during training, the predictions show when knowing the loss's gradient stops being enough.
# - On rollouts that a model wrote itself, correct and incorrect ones pull in opposite directions by necessity, which they need not on a teacher's.
#
# You need: the [losses](03_sft.ipynb) and [LoRA's factors](10_norms.ipynb). Reads the six runs with their snapshots. Time to run: about two minutes for
# the gradients of some 2,200 rollouts the first time, on one free core, and half a minute after that.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
from itertools import combinations, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy.stats import t as student

from adapter_geometry import geometry, updates
from adapter_geometry.adapters import load_update
from helpers import profiles, store
from helpers.analysis import (
    gradient_sums,
    gradients,
    outcomes,
    plane_tables,
    predictions,
)
from helpers.book import explorers, figures
from helpers.data import rollouts
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
runs = {name: study.runs[name] for name in study.main_runs}
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)


def labelled(pairs):
    """Labels of the pairs of runs in a table."""
    return [f"{figures.LABELS[row.run_a]} – {figures.LABELS[row.run_b]}"
            for row in pairs.itertuples()]

# %% [markdown]
# ## Six losses, two gradients per rollout
#
# Every loss of this book is a function of the log-probabilities of tokens, so by the chain rule its gradient is a weighted sum of theirs, $\nabla
# \text{loss} = -\sum_{i,t} w_{i,t} \nabla \mathrm{logp}_{i,t}$, with the weights $w$ of the [chapters on objectives](07_offline_grpo.ipynb). Training
# starts from the base, $\pi = \pi_0$, and there the weights of all six losses have one form, a number for the rollout plus a number times the token's own
# probability:
#
# ```{math}
# :label: eq-plane-affine
# \begin{gathered}
# w_{i,t} \propto c_i + e_i\, p_{i,t}, \qquad -\nabla \text{loss} \propto \sum_i \big( c_i\, s_i + e_i\, d_i \big), \\
# s_i = \sum_t \nabla \mathrm{logp}_{i,t}, \quad d_i = \sum_t p_{i,t} \nabla \mathrm{logp}_{i,t} = \sum_t \nabla p_{i,t} .
# \end{gathered}
# ```
#
# The vector $s_i$ is the *score* of the rollout, the direction that makes the whole text more likely fastest. The other one, $d_i$, raises the
# probabilities themselves rather than their logarithms and so cares little for tokens that the model finds unlikely. Differentiating each loss at two
# made-up probabilities finds $c$ and $e$. Here they are for one mixed group of prompts, in units of SFT's weight:

# %%
pair = next(iter(rollouts.select(table, "pairs").values()))
rows = batches.collate(table, pair)["rows"]
tokens = float(rows.mask.sum())
weights = pd.DataFrame({name: torch.cat(gradients.affine_weights(
    run.objective, rows, **run.options)).numpy() for name, run in runs.items()}).T
weights.columns = ["c, right", "c, wrong", "e, right", "e, wrong"]
figures.table((tokens * weights).reset_index(names="run"))

# %%
loss, weight = objectives.dpo(rows.reference, rows)
Markdown(f"DPO's loss on this pair is {loss / weight:.6f} at step 0, and $\\log 2$ = "
         f"{np.log(2):.6f}.")

# %% [markdown]
# RFT's entry for the wrong rollout is never used, since RFT's rows are the correct ones. DFT has only $e$. RIFT has $c$ where the rollout is right and a
# negative $e$ where it is wrong. Offline GRPO weighs by the advantage plus its bias. And DPO's rather complicated loss is simple here. With policy and
# reference still equal, the margin of every pair is 0, the loss is $-\log \sigma(0) = \log 2$, and
#
# ```{math}
# :label: eq-plane-dpo
# -\nabla \text{loss}_\text{DPO} = \beta\,\big(1 - \sigma(0)\big)\, \operatorname{mean}_\text{pairs} (s_w - s_l) = \tfrac{\beta}{2}\, \operatorname{mean}_\text{pairs}(s_w - s_l) .
# ```
#
# So $c = \pm \beta/2$ for each pair, and the table shows it multiplied by the number of tokens, because DPO averages over pairs and SFT over tokens. That
# difference of normalisation changes the length of a gradient and not its direction. It also says which gradients count. A token mean divides the sum
# over *all* tokens of a batch by one number. What is averaged over rollouts is therefore the summed score, in which a long rollout weighs more than a
# short one.
#
# ## What the adapter sees
#
# The adapter does not see the gradient $G$ of a weight matrix itself. With $\Delta W = s\,BA$ the chain rule gives
#
# ```{math}
# :label: eq-plane-seen
# \frac{\partial\, \text{loss}}{\partial B} = s\, G A^\top, \qquad \frac{\partial\, \text{loss}}{\partial A} = s\, B^\top G = 0 \quad \text{at } B = 0, \qquad
# G = \sum_t \delta_t h_t^\top ,
# ```
#
# where $h_t$ is the module's input at a token and $\delta_t$ what backpropagation brings to its output. So $G$ is read through the few input directions
# that the random $A$ happens to have, and a step along it moves the weights by $s B A \propto G A^\top A$. One forward pass, and one backward pass for
# each of $s_i$ and $d_i$, give the gradients of all rollouts of a batch one by one, since a rollout's signals do not depend on its neighbours.

# %%
sums = gradient_sums.measure(study, runs)
_, start = gradients.initial(study, runs["sft"])
mixed, unmixed = (gradient_sums.STEPS * runs["sft"].batch_size,
                  gradient_sums.UNMIXED_PROMPTS)
weight, _ = gradient_sums.sample(table, runs["sft"].seed, mixed, unmixed)

# %%
rates = table.groupby("problem_id").reward.mean()
is_mixed = table.problem_id.map(rates.between(0, 1, inclusive="neither"))
kinds = (is_mixed, ~is_mixed)
sampled = [table.problem_id[(weight > 0) & kind].nunique() for kind in kinds]
counts = [kind.sum() // study.rollouts.samples for kind in kinds]
Markdown(f"""The table has {len(table)} rollouts of {len(rates)} prompts,
{table.reward.mean():.1%} of them correct. The sample holds {(weight > 0).sum()}: all
rollouts of {sampled[0]} of the {counts[0]} prompts with right and wrong ones, and of
{sampled[1]} of the {counts[1]} others, the first of each kind in the order of training.
{store.origin(profile, list(runs.values()))}""")

# %% [markdown]
# The two kinds of prompt are sampled at different rates because everything that tells right from wrong comes from the mixed ones. In the sums below a
# rollout weighs as many rollouts of its kind as it stands for. The prompts are dealt into ten blocks, and the intervals come from a {term}`jackknife`
# over these blocks.
#
# ## Three numbers
#
# Let $g_+$ and $g_-$ be the means of $s_i$ over correct and over incorrect rollouts, and $p$ the share of correct ones. Putting the weights of
# {eq}`eq-plane-affine` into the sum gives, up to a factor,
#
# ```{math}
# :label: eq-plane-three
# \begin{aligned}
# \text{SFT} &\sim p\, g_+ + (1 - p)\, g_- & \text{RFT} &\sim g_+ \\
# \text{RIFT} &\sim p\, g_+ - 0.2\,(1 - p)\, g_- & \text{DPO} &\sim g_+ - g_- \\
# \text{Offline GRPO} &\sim p(1-p)\,(g_+ - g_-) + b\,\big(p\, g_+ + (1-p)\, g_-\big) & &
# \end{aligned}
# ```
#
# The first two are exact. RIFT's line takes $p_t = 1$ on wrong rollouts, the most that its negative branch can weigh. The last two ignore that right and
# wrong rollouts of one prompt have that prompt in common: $p(1-p)$ is what the mean of $A_i s_i$ would be if gradients did not depend on the prompt. DFT
# has no line, since it uses $d_i$.
#
# All five are combinations of two vectors. The angles between them follow from $p$, $\cos(g_+, g_-)$ and $\lVert g_- \rVert / \lVert g_+ \rVert$, and
# from nothing else.

# %%
names = list(sums.blocks)  # right, wrong and the six runs
vectors = torch.stack(list(sums.blocks.values()))  # (8, blocks, D)
gram = gradients.inner_products(start, vectors)
gram = gram.reshape(*vectors.shape[:2], *vectors.shape[:2])
p = table.reward.mean()
counts = np.array([(table.reward > 0).sum(), (table.reward == 0).sum()])


def three_numbers(inside):
    (right, both), (_, wrong) = inside[:2, :2] / np.outer(counts, counts)
    return both / np.sqrt(right * wrong), np.sqrt(wrong / right)


# %%
value, low, high = gradients.jackknife(gram, three_numbers)
free, free_low, free_high = gradients.jackknife(gram, three_numbers, between=True)
numbers = pd.DataFrame({"": ["cos(g₊, g₋)", "|g₋| / |g₊|"], "in the sample": value,
                        "low": low, "high": high, "without noise": free,
                        "low ": free_low, "high ": free_high})
numbers.style.format(precision=3).hide(axis="index")

# %% [markdown]
# The first value is the one of the rollouts at hand. Means over finitely many rollouts carry noise, which is different in $g_+$ and $g_-$ and lowers
# their cosine. The right half of the table keeps only products between different blocks of prompts, in which independent noise averages to zero. It
# estimates the two numbers for unlimited rollouts of the same teacher.

# %%
side = ("the same side" if value[0] > 0.3 else
        "unrelated sides" if value[0] > -0.3 else "opposite sides")
Markdown(f"""With $p$ = {p:.3f}, $\\cos(g_+, g_-)$ = **{value[0]:.3f}** ({low[0]:.3f} to
{high[0]:.3f}) and a ratio of **{value[1]:.2f}** ({low[1]:.2f} to {high[1]:.2f}), right
and wrong rollouts of the teacher pull the base to {side}. Written out,
{{eq}}`eq-plane-three` becomes:""")

# %%
bias = 0.1
plane = pd.DataFrame({
    "sft": [p, 1 - p], "rft": [1.0, 0.0], "rift": [p, -0.2 * (1 - p)],
    "offline-grpo": [p * (1 - p) + bias * p, -p * (1 - p) + bias * (1 - p)],
    "dpo": [1.0, -1.0]}, index=["right", "wrong"]).T
shown = plane.rename(columns={"right": "times g₊", "wrong": "times g₋"})
figures.table(shown.reset_index(names="run"))

# %% [markdown]
# ## A ladder of predictions
#
# Each rung uses more of what is known before training, and so can say where a coarser one fails.
#
# 1. **Three numbers**, {eq}`eq-plane-three`.
# 2. **Per prompt**: Offline GRPO's advantages and DPO's pairs as they are. The sum $\sum_i A_i s_i$ of one prompt with $K$ rollouts is $K\, p_x (1 -
#    p_x)(g_{+,x} - g_{-,x})$, with the prompt's own pass rate and means; unmixed prompts drop out of it and out of DPO.
# 3. **Token weights**: also $d_i$ where a loss uses it, which adds DFT and mends RIFT. This is the exact gradient of each loss on its rows.
# 4. **Batches**: the gradients of the run's own first batches, taken at the base and added up, in place of all its rows.
# 5. **AdamW**: the same gradients through the optimiser. These last two come further down.
#
# The first three are matrices: which combination of the summed gradients each run takes.

# %%
identity = pd.DataFrame(np.eye(len(runs)), index=list(runs), columns=list(runs))
prompted = identity.drop(index="dft").assign(right=0.0, wrong=0.0)
prompted.loc["rift"] = 0.0
prompted.loc["rift", ["right", "wrong"]] = 1.0, -0.2
rungs = {"three numbers": plane / counts, "per prompt": prompted,
         "token weights": identity}


# %%
def predict(weights):
    """Cosines of weighted sums of the directions, with jackknife intervals."""
    matrix = weights.reindex(columns=names, fill_value=0.0).to_numpy()
    return np.clip(gradients.jackknife(
        gram, lambda inside: gradients.cosines(matrix @ inside @ matrix.T)), -1, 1)


expected = pd.concat([
    plane_tables.pairs_table(rung, list(weights.index), predict(weights), step=0)
    for rung, weights in rungs.items()])

# %%
texts = [f"{row.predicted:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
         for row in expected.itertuples()]
shown = expected.assign(pair=labelled(expected), text=texts)
order = shown[shown.prediction == "token weights"].pair
shown = shown.pivot(index="pair", columns="prediction", values="text")
shown = shown.loc[order, list(rungs)].fillna("–").rename_axis(columns=None)
shown.reset_index().style.hide()

# %%
at = expected.set_index(["prediction", "run_a", "run_b"]).predicted
three, exact = at["three numbers"], at["token weights"]
Markdown(f"""SFT and RFT are predicted at **{three['sft', 'rft']:.3f}** by all rungs,
SFT and DPO at **{three['sft', 'dpo']:+.3f}** from three numbers and
{exact['sft', 'dpo']:+.3f} from the exact gradients. For SFT and Offline GRPO the three
numbers say {three['sft', 'offline-grpo']:.3f} and the exact gradients
{exact['sft', 'offline-grpo']:.3f}.""")

# %% [markdown]
# What stands in the way of the three numbers is visible in DPO's and Offline GRPO's lines, the only ones that change between the first two rungs. Where
# most prompts are always answered well, a mean over all correct rollouts is mostly about those. A preference loss never sees them. It subtracts two texts
# to the same question, and what they have in common goes away with the question.
#
# SFT and RFT agree for a reason that has little to do with weight space. When nearly all of the rollouts are correct, leaving out the others cannot
# change the mean much, whatever $\cos(g_+, g_-)$ is. By {eq}`eq-plane-three` the difference of the two is $(1 - p)(g_- - g_+)$.
#
# ## Does the random A matter?
#
# By {eq}`eq-plane-seen` the adapter reads the dense gradient through the rows of $A$, few against the width of the model. For some mixed prompts we keep
# the whole $G$, and project it afterwards on the $A$ of this study and on two others.

# %%
dense = gradient_sums.dense_sums(study, runs)
whole = torch.stack(list(dense.values())).double()
seen = {"whole gradient": gradients.cosines((whole @ whole.T).numpy())}
for seed in (runs["sft"].init_seed, 43, 44):
    run = runs["sft"].model_copy(update={"init_seed": seed})
    _, other = gradients.initial(study, run)
    projected = torch.stack(list(gradients.project(dense, other).values()))
    products = gradients.inner_products(other, projected)
    seen[f"seen by A of seed {seed}"] = gradients.cosines(products)

# %%
chosen = {"g₊ – g₋": ("right", "wrong"), "SFT – RFT": ("sft", "rft"),
          "SFT – DFT": ("sft", "dft"), "SFT – Offline GRPO": ("sft", "offline-grpo"),
          "SFT – DPO": ("sft", "dpo")}
by_name = {kind: pd.DataFrame(values, list(dense), list(dense))
           for kind, values in seen.items()}
shown = pd.DataFrame({kind: [cosines.loc[pair] for pair in chosen.values()]
                      for kind, cosines in by_name.items()}, index=list(chosen))
figures.table(shown.reset_index(names="cosine of"))

# %%
every = np.triu_indices(len(dense), 1)
whole, *projected = (values[every] for values in seen.values())
gap = max(np.abs(values - whole).max() for values in projected)
Markdown(f"""Over all {len(whole)} pairs of the eight directions and the three draws of
$A$, the largest difference between a projected cosine and that of the whole gradients
is {gap:.3f}. (These prompts are few and all mixed, so their cosines are not those of
the table above.)""")

# %% [markdown]
# A random projection keeps angles up to an error that falls with the number of entries that are kept. The initialisation decides *where* an update lies,
# namely in the row space of $A$, and does so equally for all methods. Angles *between* methods at step 0 it can hardly change.
#
# ## What AdamW makes of a gradient
#
# A cosine between gradients predicts a cosine between updates if a run steps along its gradient. AdamW {cite:p}`loshchilov2019adamw` does not. It keeps
# running means of the gradient and of its square, entry by entry, and with bias correction and the rate $\eta_k$ of step $k$
#
# ```{math}
# :label: eq-plane-adam
# \begin{gathered}
# B_{k} = (1 - \eta_k \lambda_\text{decay})\, B_{k-1} - \eta_k\, \frac{\hat m_k}{\sqrt{\hat v_k} + \epsilon}, \\
# \hat m_k = \frac{1 - \beta_1}{1 - \beta_1^k} \sum_{j \le k} \beta_1^{k-j} g_j, \qquad \hat v_k = \frac{1 - \beta_2}{1 - \beta_2^k} \sum_{j \le k} \beta_2^{k-j} g_j^2 .
# \end{gathered}
# ```
#
# After one batch $\hat m / \sqrt{\hat v} = g / |g|$: the sign of the gradient, its size forgotten in every entry {cite:p}`balles2018adam`. After more
# batches an entry on which they agree still moves by the full $\eta$, and one whose sign changes from batch to batch moves less.
#
# The warm-up gives the first step the rate $\eta_1 = 0$, so that after step 1 the update is still exactly zero and has no direction. What "the first
# step" means here is step 2. Its gradient is also taken at the untouched base, which makes the prediction for it exact: feed the gradients of the run's
# first two batches to {eq}`eq-plane-adam`. Beyond step 2 we keep feeding gradients taken at the base, as if nothing had moved. The rung is then an
# approximation.

# %%
replayed = {name: gradients.replay(run, sums.batches[name])
            for name, run in runs.items()}
folders = {name: trainer.train(study, run) for name, run in runs.items()}
steps = sorted({*runs["sft"].snapshots, runs["sft"].steps})


def update_after(name, step):
    is_last = step == runs[name].steps
    return load_update(folders[name] / ("adapter" if is_last
                                        else f"snapshots/step-{step}"))


# %%
rows = []
for name in runs:
    trained, replay = update_after(name, 2), replayed[name][1]
    missed = updates.combine([trained, gradients.as_update(start, replay)], [1, -1])
    gradient = sums.batches[name][:2].sum(0)
    vectors = torch.stack([gradient, gradient.sign(), replay, sums.total(name)])
    cosines = gradients.cosines(gradients.inner_products(start, vectors))[:, 2]
    rows.append({"run": figures.LABELS[name],
                 "relative error at step 2":
                     updates.norm(missed) / updates.norm(trained),
                 "cosine with the batches' gradient": cosines[0],
                 "with its signs": cosines[1], "with the exact gradient": cosines[3]})
first_steps = pd.DataFrame(rows)
first_steps.style.format(precision=3).format(
    "{:.1e}", subset=["relative error at step 2"]).hide()

# %%
worst = first_steps["relative error at step 2"].max()
least = first_steps.set_index("run")["with the exact gradient"]
Markdown(f"""The replay and the trained adapters differ by at most {worst:.1e} of the
update's norm at step 2: up to rounding, the first step *is* known from the base, the
data and the optimiser. It is not the gradient's direction, though. The cosine of the
first step with the run's own exact gradient is between **{least.min():.2f}**
({least.idxmin()}) and {least.max():.2f} ({least.idxmax()}).""")

# %% [markdown]
# Two things separate the first step from the exact gradient: the few rollouts of two batches in place of all, and the signs in place of the values. The
# column "with its signs" shows that the step is close to the signs of the batches' gradient wherever it is near one. Signs treat all entries alike. Where
# a gradient has a few large entries and many small noisy ones, the small ones count as much as the large after this step. Two losses that agree in the
# large entries then become less alike. The noise of the batches works either way. Runs that take the same rollouts in the same order share it, which
# makes them more alike. RFT, which skips the wrong ones, soon has other prompts in the batch of the same number than SFT, and then shares less of it.
#
# ## Against the trained runs
#
# Now the measurement: the cosines of the updates after each step at which the runs kept their adapter, with the band that unrelated updates of the same
# spectra would have.

# %%
tables = []
for step in steps:
    compared = geometry.compare({name: update_after(name, step) for name in runs})
    overall = geometry.cosine_table(compared).query("scope == 'global'")
    tables.append(overall.assign(step=step).rename(columns={"cosine": "measured"}))
columns = ["run_a", "run_b", "measured", "chance_low", "chance_high", "step"]
measured = pd.concat(tables, ignore_index=True)[columns]

# %%
stepped = {"batches": {name: sums.batches[name].cumsum(0) for name in runs},
           "AdamW": replayed}
known = [step for step in steps if step <= len(replayed["sft"])]
for (prediction, directions), step in product(stepped.items(), known):
    vectors = torch.stack([directions[name][step - 1] for name in runs])
    cosines = gradients.cosines(gradients.inner_products(start, vectors))
    none = np.full_like(cosines, np.nan)  # these are the run's batches, and no sample
    expected = pd.concat([expected, plane_tables.pairs_table(
        prediction, list(runs), (cosines, none, none), step)])

# %%
ends = ["run_a", "run_b"]
always = expected[expected.step == 0].drop(columns="step").merge(measured, on=ends)
later = expected[expected.step > 0].merge(measured, on=[*ends, "step"])
both = pd.concat([always, later])
columns = ["step", *ends, "prediction", "predicted", "low", "high", "measured"]
store.write_table(profile, "gradients", both[columns])
both["error"] = (both.predicted - both.measured).abs()
has_dft = (both.run_a == "dft") | (both.run_b == "dft")
errors = both[~has_dft].pivot_table(index="prediction", columns="step", values="error")
errors = errors.loc[[*rungs, *stepped]]

# %% mystnb={"image": {"alt": "Fifteen small panels, one for each pair of objectives, with the measured cosine as a black line over the logarithm of the step and open markers of five kinds for the predictions, three of them left of the line"}, "figure": {"caption": "Cosine of the updates over training for each pair: measured (black, with the chance band in grey) and predicted before training. The three predictions that know no step are at the left; those from batches and from AdamW are at their steps.", "name": "fig-plane-steps"}}
shifts = {"three numbers": 0.45, "per prompt": 0.7, "token weights": 1.1}
marks = expected.assign(step=expected.prediction.map(shifts).fillna(expected.step))
figures.pairs_over_steps(measured, marks, "cosine of the updates");

# %% [markdown]
# **Explorer.** The same as matrices: what the exact gradients at the base predict, and what was measured after each step.

# %%
exactly = expected[(expected.prediction == "token weights") & (expected.step == 0)]
exactly = plane_tables.as_matrix(exactly, "predicted", list(runs))
nowhere = np.zeros(exactly.shape, bool)
pictures = []
for step, rows in measured.groupby("step"):
    after = plane_tables.as_matrix(rows, "measured", list(runs))
    panels = {"predicted at the base": exactly, f"measured after step {step}": after}
    figure = figures.matrices(panels, list(runs), list(runs), "cosine",
                              dict.fromkeys(panels, nowhere))
    text = ("Two matrices of cosines between six methods, predicted and measured "
            f"after step {step}; the largest difference is "
            f"{np.abs(exactly - after).max():.2f}")
    pictures.append((f"step {step}", figure, text))
listed = measured.assign(pair=labelled(measured))[["pair", "step", "measured"]]
explorers.frames(pictures, "after", listed, "plane-by-step")

# %% [markdown]
# How far is each rung from the measurement? The next table has the mean absolute difference of the predicted and the measured cosine over the pairs, by
# the step at which it was measured. It leaves out DFT, of which the first two rungs say nothing, so that all rows are about the same pairs. The last two
# have one column a replayed step.

# %%
shown = errors.rename_axis(columns=None).reset_index()
shown.style.format(precision=3, na_rep="–").hide()

# %%
first, last = steps[0], steps[-1]
closest = errors.loc[list(rungs)].idxmin()
with_dft = both[has_dft & (both.prediction == "token weights")]
dft = with_dft.groupby("step").error.mean()
Markdown(f"""At step {first} the best of the three predictions that know no batches is
*{closest[first]}*, with a mean difference of
**{errors.loc[closest[first], first]:.3f}**; the batches' is
{errors.loc['batches', first]:.3f} and AdamW's {errors.loc['AdamW', first]:.1e}. At the
end, step {last}, the best is *{closest[last]}* with
**{errors.loc[closest[last], last]:.3f}**. On the five pairs with DFT the exact
gradients are off by {dft.iloc[0]:.3f} and {dft.iloc[-1]:.3f}.""")

# %% [markdown]
# In {numref}`fig-plane-steps` the distance from the markers on the left to the beginning of the line is the work of the batches and of the optimiser, and
# the markers for batches between them tell the two apart. AdamW's markers lie on the line at step 2 by construction. From there on the distance between
# AdamW's markers and the line is the work of *moving*: the gradients of later steps are taken at other weights, each loss's own. The line's own slope
# says whether methods part or come together.
#
# The base has no panel, since its update is zero and has no direction.
#
# ## Where do methods part?
#
# Call two methods parted at the first step at which their cosine is more than a tenth from what it was at step 2.

# %%
wide = measured.pivot(index=ends, columns="step", values="measured")
wide = wide.loc[list(combinations(runs, 2))]
is_away = wide.sub(wide[first], axis=0).abs() > 0.1
summary = pd.DataFrame({
    "first": wide[first], "last": wide[last],
    "parted": is_away.idxmax(axis=1).where(is_away.any(axis=1)),
    "change": wide[last] - wide[first]})
shown = summary.reset_index()
shown.insert(0, "pair", labelled(shown))
headings = {"first": f"step {first}", "last": f"step {last}",
            "parted": "first step a tenth away"}
shown = shown.drop(columns=ends).rename(columns=headings)
shown.style.format({
    headings["first"]: "{:.3f}", headings["last"]: "{:.3f}", "change": "{:.3f}",
    headings["parted"]: "{:.0f}"}, na_rep="never").hide()

# %%
apart, together = summary.change.idxmin(), summary.change.idxmax()
losing, gaining = (" and ".join(figures.LABELS[run] for run in both_runs)
                   for both_runs in (apart, together))
Markdown(f"""{int(summary.parted.isna().sum())} of {len(summary)} pairs stay within a
tenth of their cosine at step {first} at every step that we kept. The pair that loses
most is {losing}, from {summary['first'][apart]:.3f} to {summary['last'][apart]:.3f};
the one that gains most is {gaining}, from {summary['first'][together]:.3f} to
{summary['last'][together]:.3f}.""")

# %% [markdown]
# ## The plane itself
#
# The plane of $g_+$ and $g_-$ can be drawn. Take $g_+$ as the horizontal axis and the part of $g_-$ at right angles to it as the vertical one, and scale
# every direction to length one. A direction inside the plane ends on the unit circle, and one that leaves the plane ends inside it.

# %%
basis = ["right", "wrong", "rift", "dft", "offline-grpo", "dpo"]
# the first two span the plane
frame = gradients.orthonormal(start, torch.stack([sums.total(name) for name in basis]))
totals = torch.stack([sums.total(name).double() for name in runs])
products = gradients.inner_products(start, torch.cat([frame, totals]))
coordinates = gradients.cosines(products)[len(basis):, :len(basis)]


def in_frame(step):
    """Cosines of the updates with the frame, (runs, 6), and their sd by chance."""
    trained = {name: update_after(name, step) for name in runs}
    directions = {f"direction {number}": gradients.as_update(start, vector)
                  for number, vector in enumerate(frame)}
    cosine, sd = geometry.stacked_cosine(geometry.compare(trained | directions))
    return cosine[:len(runs), len(runs):], sd[:len(runs), len(runs):]


early, final, chance = in_frame(steps[0])[0], *in_frame(steps[-1])

# %% mystnb={"image": {"alt": "Unit circle with a filled marker for the initial gradient of each of the six objectives, most of them on or near the circle, and open markers for the final updates near the centre"}, "figure": {"caption": "The plane of $g_+$ (horizontal) and $g_-$. Filled: each loss's exact gradient at step 0, scaled to length one; open: each final update, scaled to length one and projected into the plane. On the circle a direction lies wholly in the plane; the grey disc at the centre has the typical radius of final updates that have nothing in common with the plane.", "name": "fig-plane-circle"}}
fig, axis = plt.subplots(figsize=(6.6, 4.8))
angle = np.linspace(0, 2 * np.pi, 200)
circle = np.stack([np.cos(angle), np.sin(angle)])
radius = np.sqrt((chance[:, :2] ** 2).sum(1).mean())
axis.plot(*circle, color=figures.COLOURS["base"], linewidth=1)
axis.fill(*(radius * circle), color=figures.COLOURS["base"], alpha=0.3)
for name, start_at, end_at in zip(runs, coordinates[:, :2], final[:, :2], strict=True):
    style = {"marker": figures.MARKERS[name], "color": figures.COLOURS[name],
             "linestyle": "none", "markersize": 8}
    axis.plot(*start_at, alpha=0.8, label=figures.LABELS[name], **style)
    axis.plot(*end_at, fillstyle="none", **style)
axis.set(aspect="equal", xlabel="along $g_+$",
         ylabel="at right angles to it, towards $g_-$")
fig.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9);

# %% [markdown]
# The filled markers of {numref}`fig-plane-circle` that lie on the circle are the losses for which the plane is the whole story at step 0. How far inside
# it DPO, Offline GRPO and DFT lie is what the first rung of the ladder cannot know. The open markers show what is left of each in the end. Their
# direction seen from the centre can still be compared with the filled marker's.
#
# In numbers, and by energy, that is by squared norm, so that shares add up: how much of each final update lies in the plane, and how much in the span of
# all the initial gradients, six dimensions of many thousands.

# %%
units = coordinates / np.linalg.norm(coordinates, axis=1, keepdims=True)
squares = {"gradient in the plane": coordinates[:, :2], "update in the plane, first":
           early[:, :2], "last": final[:, :2], "by chance": chance[:, :2],
           "in the span of all, last": final, "by chance ": chance}
shares = pd.DataFrame({name: (part ** 2).sum(1) for name, part in squares.items()},
                      index=list(runs))
shares["cosine with its own gradient, first"] = (early * units).sum(1)
shares["last "] = (final * units).sum(1)
shown = shares.rename(index=figures.LABELS).reset_index(names="run")
shown.style.format(precision=3).format("{:.2%}", subset=list(squares)).hide()

# %%
spanned = shares["in the span of all, last"]
along = shares["cosine with its own gradient, first"].mean()
most, fewest = (figures.LABELS[run] for run in (spanned.idxmax(), spanned.idxmin()))
Markdown(f"""Of a final update, between **{spanned.min():.1%}** ({fewest}) and
**{spanned.max():.1%}** ({most}) of the energy lies in the span of the initial
gradients, where chance would put about {shares['by chance '].mean():.2%}. The cosine of
an update with its own gradient at step 0 goes from {along:.2f} at step {first} to
{shares['last '].mean():.2f} at the end, on average over the runs.""")

# %% [markdown]
# The cosine with the own gradient at step 0 has two enemies with opposite tendencies. Batch by batch the noise averages out, which brings an update
# nearer to the exact gradient. Step by step the weights move, and the gradient with them. A run that moves little, as DPO does at its small rate, meets
# only the first.
#
# A small share here and a high cosine between two methods do not contradict each other. Two runs can leave the initial plane together, along the same
# path, because their losses ask for nearly the same thing at every point on it.
#
# ## Rollouts of one's own
#
# One more case can be known in advance. Suppose that the rollouts were not the teacher's but sampled from the base itself, at temperature 1 and without
# cutting off unlikely tokens. Since the probabilities of all texts add up to one whatever the weights are, the mean score over texts that the model
# writes itself is {cite:p}`williams1992reinforce`
#
# ```{math}
# :label: eq-plane-score
# \begin{gathered}
# \mathbb{E}_{y \sim \pi}\big[ \nabla \log \pi(y) \big] = \sum_y \pi(y) \frac{\nabla \pi(y)}{\pi(y)} = \nabla \sum_y \pi(y) = 0, \\
# \text{hence} \quad p\, g_+ + (1 - p)\, g_- = 0 .
# \end{gathered}
# ```
#
# It holds for each prompt by itself, and also for texts that are cut at a fixed length, because each token's score has mean zero given what came before.
# SFT on self-generated rollouts then has nothing to follow but sampling noise, and $g_+$ and $g_-$ are opposite: $\cos(g_+, g_-) = -1$. RFT, DPO and Offline GRPO
# become variants of one direction, that of the *policy gradient*. The same is not true of $d_i$. Its mean is $\tfrac12 \nabla \sum_t \sum_v \pi(v)^2$, so
# that DFT on self-generated rollouts still makes the model more certain.
#
# Is it so here? The base's own table is scored in the same way.

# %%
scores = gradient_sums.self_generated_scores(study, runs["sft"])
right_and_wrong = torch.stack([scores["right"], scores["wrong"]])
blocks = gradient_sums.BLOCKS
base_gram = gradients.inner_products(start, right_and_wrong)
base_gram = base_gram.reshape(2, blocks, 2, blocks)
by_writer = {"self-generated rollouts": right_and_wrong.sum(0),
             "the teacher's rollouts": sums.blocks["sft"]}
t_values = {}
for name, parts in by_writer.items():
    values = (parts.mean(0) / parts.std(0) * np.sqrt(blocks)).numpy()
    t_values[name] = values[np.isfinite(values)]

# %% mystnb={"image": {"alt": "Two step histograms of t-values of the entries of the mean score: that of the self-generated rollouts follows the black curve of Student's distribution, the other compares with the teacher's rollouts"}, "figure": {"caption": "The mean score over rollouts, each entry of $B$ divided by its standard error over ten blocks of prompts, for the base's own rollouts and for the teacher's. Black: Student's distribution, which entries with mean zero follow. Values beyond 12 are not shown.", "name": "fig-plane-own"}}
near = {name: values[np.abs(values) < 12] for name, values in t_values.items()}
fig = figures.histograms(near, "mean score over its standard error", "entries of $B$",
                         bins=60)
edges = np.histogram_bin_edges(np.concatenate(list(near.values())), 60)
line = np.linspace(edges[0], edges[-1], 300)
count = len(t_values["self-generated rollouts"]) * (edges[1] - edges[0])
fig.axes[0].plot(line, count * student.pdf(line, blocks - 1), color="black",
                 linewidth=1);

# %%
tested = by_writer | {"self-generated, correct only": scores["right"],
                      "self-generated, incorrect only": scores["wrong"],
                      "the teacher's, incorrect only": sums.blocks["wrong"]}
rows = []
for name, parts in tested.items():
    ratio, p_flipped = gradients.sign_flips(gradients.inner_products(start, parts))
    rows.append({"rollouts": name, "squared norm over noise": ratio,
                 "p, signs flipped": p_flipped})
flips, limit = pd.DataFrame(rows), student.ppf(0.975, blocks - 1)
flips["entries beyond 95 %"] = flips.rollouts.map(
    {name: np.mean(np.abs(values) > limit) for name, values in t_values.items()})
flips.style.format(precision=3, na_rep="–").hide()

# %%
def cosine_of(inside):
    return gradients.cosines(inside)[0, 1]


opposite = gradients.jackknife(base_gram, cosine_of)
clean = gradients.jackknife(base_gram, cosine_of, between=True)
estimate = ("{:.2f} ({:.2f} to {:.2f})".format(*clean)
            if np.isfinite(clean[:2]).all() else
            "not defined, since the noise-free norm of one of them comes out negative")
ratios = flips["squared norm over noise"]
Markdown(f"""On the base's own rollouts the squared norm of the mean score is
**{ratios[0]:.2f}** times what noise alone gives (1 on average; flipping the signs of
blocks reaches it in a share of {flips['p, signs flipped'][0]:.3f}), on the teacher's
{ratios[1]:.2f} times, of at most {blocks}. The own $\\cos(g_+, g_-)$ is
**{opposite[0]:.3f}** ({opposite[1]:.3f} to {opposite[2]:.3f}), noise included, and from
products between blocks {estimate}; on the teacher's rollouts these are {value[0]:.3f}
and {free[0]:.3f}.""")

# %% [markdown]
# The flip test asks how often blocks of prompts, each with a random sign, would add up to as long a vector as they do. In {numref}`fig-plane-own`, mean
# zero is the black curve. Two consequences of {eq}`eq-plane-score` should be kept apart. That the mean over all self-generated rollouts vanishes is what the first
# line of the table tests. That its two parts are opposite can only be *seen* where the parts stand out of their noise, and the lines on correct and
# incorrect ones say whether they do. If they are near 1 as well, the cosine of the two is that of two noises, near 0, and says nothing about $-1$.
#
# This is a statement about the shared direction of the main study. Its rollouts are the teacher's, and a cosine of $g_+$ and $g_-$ far above $-1$ is a
# measure of how far the teacher's texts are from the base's own, right or wrong: the style of writing that both have in common. The [page on self-generated
# rollouts](20_on_policy.ipynb) trains the six losses on them.
#
# ## What was expected
#
# The predictions of this page were written down before any of it was computed. The line on step 1 is answered at step 2, the first step with a direction,
# and for the three numbers of {eq}`eq-plane-three`.

# %%
four = ["sft", "rft", "rift", "dpo"]
is_three = both.prediction == "three numbers"
predicted = both[is_three & both.run_a.isin(four) & both.run_b.isin(four)]
largest = predicted.groupby("step").error.max()
of_three = expected[expected.prediction == "three numbers"].set_index(ends)
of_three = of_three[["predicted", "low", "high"]]
results = outcomes.of_gradient_plane(
    (value[0], low[0], high[0]), free[0], tuple(of_three.loc[("sft", "rft"), :]),
    tuple(of_three.loc[("sft", "dpo"), :]), exact["sft", "dpo"], largest.to_dict())

# %%
predictions.write(profile, "18", results).style.hide()

# %% [markdown]
# ## Try it
#
# 1. Set $p$ to one half in `plane`, leaving the two gradients as they are, and predict again. Which cosines fall?
#
# ````{dropdown} What happens
# SFT becomes the mean of $g_+$ and $g_-$, so that its cosine with RFT, which stays at $g_+$, falls, the further the smaller $\cos(g_+, g_-)$ is. RIFT
# moves away from SFT on the other side. A high cosine of SFT and RFT is in part a statement about the teacher's pass rate.
# ````
#
# 2. Give each rollout the same weight instead of each token: divide $c_i$ and $e_i$ by the length of the rollout. What changes in {eq}`eq-plane-three`?
#
# ````{dropdown} What happens
# The formulas stay, with $g_+$ and $g_-$ now means of *mean* scores. Long rollouts lose weight. Since wrong rollouts of this teacher are longer on
# average, $\lVert g_- \rVert$ falls more than $\lVert g_+ \rVert$ does. This is the difference between aggregation by "token" and by "sequence".
# ````
#
# 3. Multiply all gradients of a run by ten before the replay, `gradients.replay(run, 10 * sums.batches[name])`. What changes in the update, and what
#    could?
#
# ````{dropdown} What happens
# Almost nothing. In {eq}`eq-plane-adam` a common factor cancels between $\hat m$ and $\sqrt{\hat v}$, except beside $\epsilon$. Only the clipping can see
# the length: batches whose gradient is longer than the limit are scaled down to it, and so lose weight against shorter ones. For the same reason DPO's
# factor $\beta/2$ of {eq}`eq-plane-dpo` hardly matters for its first steps, and its learning rate does.
# ````
#
# 4. RFT on self-generated rollouts and Offline GRPO with $b = 0$ on self-generated rollouts: why do their exact gradients agree in expectation?
#
# ````{dropdown} Answer
# For one prompt, $p_x(1 - p_x)(g_{+,x} - g_{-,x})$ with $g_{-,x} = -\tfrac{p_x}{1 - p_x}\, g_{+,x}$ from {eq}`eq-plane-score` is $p_x\, g_{+,x}$, the sum
# over correct rollouts. Subtracting the group's mean reward changes the noise and not the mean. On a teacher's rollouts the two differ, because there the
# mean score is not zero.
# ````
#
# ## Summary
#
# At step 0 the six losses weigh the same rollouts by {eq}`eq-plane-affine`, and five of them would lie in the plane of $g_+$ and $g_-$,
# {eq}`eq-plane-three`, if neither the prompt nor the token mattered. The ladder separates what a cosine at the end of training is made of: the pass rate and two mean gradients, the pairing of texts
# by prompt, token weights, the noise of batches, the optimiser's signs by {eq}`eq-plane-adam`, and the path taken afterwards. Whether that path or the
# start decides the final geometry can be read from the table of differences and from the shares of the final updates in the span of the first gradients.
# And {eq}`eq-plane-score` says what the common part of right and wrong rollouts is: whatever makes the teacher's texts unlike the base's own. The [next
# page](19_variants.ipynb) changes the losses themselves.
