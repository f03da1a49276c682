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
# - At step 0 every loss of the main study is a weighted sum of the same two gradients a rollout. SFT and RFT lie in the {term}`gradient plane`, spanned by
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
from helpers.analysis import gradients, predictions
from helpers.book import explorers, figures
from helpers.data import rollouts
from helpers.training import batches, objectives, trainer

study = profiles.load(profile)
runs = {name: study.runs[name] for name in study.main_runs}
table = rollouts.with_group_columns(rollouts.load_table(study))
figures.use_style(study)

# %% [markdown]
# ## Six losses, two gradients a rollout
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
weights = pd.DataFrame(
    [{"run": figures.LABELS[name],
      **dict(zip(("c, right", "c, wrong", "e, right", "e, wrong"),
                 (tokens * torch.cat(gradients.affine_weights(run.objective, rows,
        **run.options))).tolist(), strict=True))} for name, run in runs.items()])
figures.table(weights)

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
kept = gradients.measure(study, runs)
model, start = gradients.initial(study, runs["sft"])
weight, block = gradients.sample(table, runs["sft"].seed,
                                 gradients.STEPS * runs["sft"].batch_size,
                                 gradients.OTHERS)

# %%
rates = table.groupby("problem_id").reward.mean()
is_mixed = table.problem_id.map(rates.between(0, 1, inclusive="neither"))
Markdown(f"The table has {len(table)} rollouts of {len(rates)} prompts, "
         f"{table.reward.mean():.1%} of them correct. The sample holds "
         f"{(weight > 0).sum()}: all rollouts of "
         f"{table.problem_id[(weight > 0) & is_mixed].nunique()} of the "
         f"{is_mixed.sum() // study.rollouts.samples} prompts with right and wrong "
         f"ones, and of {table.problem_id[(weight > 0) & ~is_mixed].nunique()} of the "
         f"{(~is_mixed).sum() // study.rollouts.samples} others, the first of each "
         f"kind in the order of training. {store.origin(profile, list(runs.values()))}")

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
names = list(kept.blocks)  # right, wrong and the six runs
vectors = torch.stack([kept.blocks[name] for name in names])  # (8, blocks, D)
gram = gradients.inner_products(start, vectors).reshape(*vectors.shape[:2],
    *vectors.shape[:2])
p, counts = table.reward.mean(), np.array([(table.reward > 0).sum(),
        (table.reward == 0).sum()])


def three_numbers(inside):
    (right, both), (_, wrong) = inside[:2, :2] / np.outer(counts, counts)
    return both / np.sqrt(right * wrong), np.sqrt(wrong / right)


# %%
value, low, high = gradients.jackknife(gram, three_numbers)
free, free_low, free_high = gradients.jackknife(gram, three_numbers, between=True)
pd.DataFrame({"": ["cos(g₊, g₋)", "|g₋| / |g₊|"], "in the sample": value, "low": low,
              "high": high, "without noise": free, "low ": free_low,
              "high ": free_high}).style.format(precision=3).hide(axis="index")

# %% [markdown]
# The first value is the one of the rollouts at hand. Means over finitely many rollouts carry noise, which is different in $g_+$ and $g_-$ and lowers
# their cosine. The right half of the table keeps only products between different blocks of prompts, in which independent noise averages to zero. It
# estimates the two numbers for unlimited rollouts of the same teacher.

# %%
side = "the same side" if value[0] > 0.3 else "unrelated sides" if value[
    0] > -0.3 else "opposite sides"
Markdown(f"With $p$ = {p:.3f}, $\\cos(g_+, g_-)$ = **{value[0]:.3f}** ({low[0]:.3f} to "
         f"{high[0]:.3f}) and a ratio of **{value[1]:.2f}** ({low[1]:.2f} to "
         f"{high[1]:.2f}), right and wrong rollouts of the teacher pull the base to "
         f"{side}. Written out, {{eq}}`eq-plane-three` becomes:")

# %%
bias = 0.1
plane = pd.DataFrame({"right": {"sft": p, "rft": 1.0, "rift": p,
                                "offline-grpo": p * (1 - p) + bias * p, "dpo": 1.0},
                      "wrong": {"sft": 1 - p, "rft": 0.0, "rift": -0.2 * (1 - p),
                                "offline-grpo": -p * (1 - p) + bias * (1 - p),
                                "dpo": -1.0}})
figures.table(plane.rename(columns={"right": "times g₊", "wrong": "times g₋"})
              .rename_axis("run").reset_index())

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
exact = pd.DataFrame(np.eye(len(runs)), index=list(runs), columns=list(runs))
prompted = exact.drop(index="dft")
prompted.loc["rift"] = 0.0
rungs = {"three numbers": plane / counts,
         "per prompt": prompted.assign(right=1.0 * (prompted.index == "rift"),
        wrong=-0.2 * (prompted.index == "rift")), "token weights": exact}


# %%
def predict(combinations_):
    """Cosines of the directions that are these combinations of sums, with jackknife intervals: three matrices (runs, runs)."""
    matrix = combinations_.reindex(columns=names, fill_value=0.0).to_numpy()
    return np.clip(gradients.jackknife(gram,
            lambda inside: gradients.cosines(matrix @ inside @ matrix.T)), -1, 1)


def as_pairs(prediction, chosen, found, step):
    """Matrices (predicted, low, high) as one row a pair."""
    return pd.DataFrame([{"step": step, "run_a": a, "run_b": b,
                          "prediction": prediction, **{part: values[i, j] for part,
            values in zip(("predicted", "low", "high"), found, strict=True)}}
                         for (i, a), (j, b) in combinations(enumerate(chosen), 2)])


expected = pd.concat([as_pairs(rung, list(matrix.index), predict(matrix), 0) for rung,
                      matrix in rungs.items()])

# %%
shown = expected.assign(pair=[f"{figures.LABELS[row.run_a]} – "
                              f"{figures.LABELS[row.run_b]}"
                              for row in expected.itertuples()],
                        text=[f"{row.predicted:+.3f} ({row.low:+.3f} to "
                              f"{row.high:+.3f})" for row in expected.itertuples()])
order = shown[shown.prediction == "token weights"].pair
shown.pivot(index="pair", columns="prediction", values="text").loc[order,
    list(rungs)].fillna("–").rename_axis(columns=None).reset_index().style.hide()

# %%
at = expected.set_index(["prediction", "run_a", "run_b"]).predicted
Markdown(f"SFT and RFT are predicted at **{at['three numbers', 'sft', 'rft']:.3f}** by "
         f"all rungs, SFT and DPO at **{at['three numbers', 'sft', 'dpo']:+.3f}** "
         f"from three numbers and {at['token weights', 'sft', 'dpo']:+.3f} from the "
         f"exact gradients. For SFT and Offline GRPO the three numbers say "
         f"{at['three numbers', 'sft', 'offline-grpo']:.3f} and the exact gradients "
         f"{at['token weights', 'sft', 'offline-grpo']:.3f}.")

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
dense = gradients.dense_sums(study, runs)
inside = torch.stack(list(dense.values()))
seen = {"whole gradient":
        gradients.cosines((inside.double() @ inside.double().T).numpy())}
for seed in (runs["sft"].init_seed, 43, 44):
    _, other = gradients.initial(study,
                                 runs["sft"].model_copy(update={"init_seed": seed}))
    projected = torch.stack(list(gradients.project(dense, other).values()))
    seen[f"seen by A of seed {seed}"] = gradients.cosines(
        gradients.inner_products(other, projected))

# %%
chosen = {"g₊ – g₋": ("right", "wrong"), "SFT – RFT": ("sft", "rft"),
          "SFT – DFT": ("sft", "dft"), "SFT – Offline GRPO": ("sft", "offline-grpo"),
          "SFT – DPO": ("sft", "dpo")}
found = {label: np.ix_(*[[list(dense).index(name)] for name in pair]) for label,
         pair in chosen.items()}
figures.table(
    pd.DataFrame(
        [{"cosine of": label, **{kind: values[place].item() for kind,
                                 values in seen.items()}} for label,
         place in found.items()]))

# %%
every = np.triu_indices(len(dense), 1)
gap = max(np.abs(values - seen["whole gradient"])[every].max()
          for values in list(seen.values())[1:])
Markdown(f"Over all {len(every[0])} pairs of the eight directions and the three draws "
         f"of $A$, the largest difference between a projected cosine and that of the "
         f"whole gradients is {gap:.3f}. (These prompts are few and all mixed, so "
         f"their cosines are not those of the table above.)")

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
replayed = {name: gradients.replay(run, kept.batches[name]) for name,
            run in runs.items()}
folders = {name: trainer.train(study, run) for name, run in runs.items()}
steps = sorted({*runs["sft"].snapshots, runs["sft"].steps})


def update_after(name, step):
    is_last = step == runs[name].steps
    return load_update(folders[name] / "adapter" if is_last else folders[name]
                       / "snapshots" / f"step-{step}")


# %%
rows = []
for name in runs:
    trained, replay = update_after(name, 2), gradients.as_update(start,
        replayed[name][1])
    gradient = kept.batches[name][:2].sum(0)
    turned = gradients.cosines(gradients.inner_products(start,
            torch.stack([gradient, gradient.sign(), replayed[name][1],
                         kept.total(name)])))
    rows.append({"run": figures.LABELS[name], "relative error at step 2":
                 updates.norm(updates.combine([trained, replay], [1, -1]))
                 / updates.norm(trained), "cosine with the batches' gradient": turned[0,
            2], "with its signs": turned[1, 2], "with the exact gradient": turned[3,
            2]})
first_steps = pd.DataFrame(rows)
first_steps.style.format(precision=3).format("{:.1e}",
    subset=["relative error at step 2"]).hide()

# %%
worst, least = first_steps["relative error at step 2"].max(), first_steps.set_index(
    "run")["with the exact gradient"]
Markdown(f"The replay and the trained adapters differ by at most {worst:.1e} of the "
         f"update's norm at step 2: up to rounding, the first step *is* known from "
         f"the base, the data and the optimiser. It is not the gradient's direction, "
         f"though. The cosine of the first step with the run's own exact gradient is "
         f"between **{least.min():.2f}** ({least.idxmin()}) and {least.max():.2f} "
         f"({least.idxmax()}).")

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
    tables.append(overall.rename(columns={"cosine": "measured"})[["run_a", "run_b",
            "measured", "chance_low", "chance_high"]].assign(step=step))
measured = pd.concat(tables, ignore_index=True)

# %%
known = [step for step in steps if step <= len(replayed["sft"])]
stepped = {"batches": {name: kept.batches[name].cumsum(0) for name in runs},
           "AdamW": replayed}
for (prediction, directions), step in product(stepped.items(), known):
    found = gradients.cosines(gradients.inner_products(start,
            torch.stack([directions[name][step - 1] for name in runs])))
    none = np.full_like(found, np.nan)  # these batches are the run's own, and no sample
    expected = pd.concat([expected, as_pairs(prediction, list(runs),
            (found, none, none), step)])

# %%
always = expected[expected.step == 0].drop(columns="step").merge(measured,
    on=["run_a", "run_b"])
both = pd.concat([always, expected[expected.step > 0].merge(measured,
        on=["run_a", "run_b", "step"])])
store.write_table(profile, "gradients",
                  both[["step", "run_a", "run_b", "prediction", "predicted", "low",
                        "high", "measured"]])
both["error"] = (both.predicted - both.measured).abs()
without_dft = both[(both.run_a != "dft") & (both.run_b != "dft")]
errors = without_dft.pivot_table(index="prediction", columns="step",
                                 values="error").loc[[*rungs, *stepped]]

# %% mystnb={"image": {"alt": "Fifteen small panels, one for each pair of objectives, with the measured cosine as a black line over the logarithm of the step and open markers of five kinds for the predictions, three of them left of the line"}, "figure": {"caption": "Cosine of the updates over training for each pair: measured (black, with the chance band in grey) and predicted before training. The three predictions that know no step stand at the left; those from batches and from AdamW stand at their steps.", "name": "fig-plane-steps"}}
places = {"three numbers": 0.45, "per prompt": 0.7, "token weights": 1.1}
marks = expected.assign(step=[places.get(row.prediction, row.step)
                              for row in expected.itertuples()])
figures.pairs_over_steps(measured, marks, "cosine of the updates");

# %% [markdown]
# **Explorer.** The same as matrices: what the exact gradients at the base predict, and what was measured after each step.

# %%
def matrix_of(rows, value):
    """A column of a table of pairs as a matrix of all runs."""
    found = np.eye(len(runs))
    for row in rows.itertuples():
        place = list(runs).index(row.run_a), list(runs).index(row.run_b)
        found[place] = found[place[::-1]] = getattr(row, value)
    return found


exactly, none = matrix_of(expected[(expected.prediction == "token weights")
        & (expected.step == 0)], "predicted"), np.zeros((len(runs), len(runs)), bool)
pictures = []
for step in steps:
    panels = {"predicted at the base": exactly, f"measured after step {step}":
              matrix_of(measured[measured.step == step], "measured")}
    apart = np.abs(np.subtract(*panels.values())).max()
    pictures.append((f"step {step}", figures.matrices(panels, list(runs), list(runs),
            "cosine", dict.fromkeys(panels, none)), f"Two matrices of cosines between "
                                                    f"six methods, predicted and "
                                                    f"measured after step {step}; "
                                                    f"the largest difference is "
                                                    f"{apart:.2f}"))
explorers.frames(pictures, "after",
                 measured.assign(pair=[f"{figures.LABELS[row.run_a]} "
                                       f"– "
                                       f"{figures.LABELS[row.run_b]}"
        for row in measured.itertuples()])[["pair", "step", "measured"]],
                 "plane-by-step")

# %% [markdown]
# How far is each rung from the measurement? The next table has the mean absolute difference of the predicted and the measured cosine over the pairs, by
# the step at which it was measured. It leaves out DFT, of which the first two rungs say nothing, so that all rows are about the same pairs. The last two
# have one column a replayed step.

# %%
errors.rename_axis(columns=None).reset_index().style.format(precision=3,
    na_rep="–").hide()

# %%
closest = errors.loc[list(rungs)].idxmin()
dft = both[((both.run_a == "dft") | (both.run_b == "dft"))
           & (both.prediction == "token weights")].groupby("step").error.mean()
Markdown(f"At step {steps[0]} the best of the three predictions that know no batches "
         f"is *{closest[steps[0]]}*, with a mean difference of "
         f"**{errors.loc[closest[steps[0]], steps[0]]:.3f}**; the batches' is "
         f"{errors.loc['batches', steps[0]]:.3f} and AdamW's "
         f"{errors.loc['AdamW', steps[0]]:.1e}. At the end, step {steps[-1]}, the "
         f"best is *{closest[steps[-1]]}* with "
         f"**{errors.loc[closest[steps[-1]], steps[-1]]:.3f}**. On the five pairs "
         f"with DFT the exact gradients are off by {dft.iloc[0]:.3f} and "
         f"{dft.iloc[-1]:.3f}.")

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
wide = measured.pivot(index=["run_a", "run_b"], columns="step", values="measured").loc[
    list(combinations(runs, 2))]
moved = wide.sub(wide[steps[0]], axis=0).abs() > 0.1
parted = moved.idxmax(axis=1).where(moved.any(axis=1))
summary = wide[[steps[0], steps[-1]]].set_axis(["first", "last"],
    axis=1).assign(parted=parted, change=wide[steps[-1]] - wide[steps[0]])
shown = summary.reset_index()
shown.insert(0, "pair", [f"{figures.LABELS[a]} – {figures.LABELS[b]}" for a,
                         b in zip(shown.run_a, shown.run_b, strict=True)])
shown.drop(columns=["run_a", "run_b"]).rename(columns={"first": f"step {steps[0]}",
        "last": f"step {steps[-1]}", "parted": "first step a tenth away"}).style.format(
            "{:.3f}", subset=[f"step {steps[0]}", f"step {steps[-1]}",
                              "change"]).format("{:.0f}", na_rep="never",
    subset=["first step a tenth away"]).hide()

# %%
apart, together = summary.change.idxmin(), summary.change.idxmax()
label = {pair: f"{figures.LABELS[pair[0]]} and {figures.LABELS[pair[1]]}"
         for pair in summary.index}
Markdown(f"{int(summary.parted.isna().sum())} of {len(summary)} pairs stay within a "
         f"tenth of their cosine at step {steps[0]} at every step that we kept. The "
         f"pair that loses most is {label[apart]}, from {summary['first'][apart]:.3f} "
         f"to {summary['last'][apart]:.3f}; the one that gains most is "
         f"{label[together]}, from {summary['first'][together]:.3f} to "
         f"{summary['last'][together]:.3f}.")

# %% [markdown]
# ## The plane itself
#
# The plane of $g_+$ and $g_-$ can be drawn. Take $g_+$ as the horizontal axis and the part of $g_-$ at right angles to it as the vertical one, and scale
# every direction to length one. A direction inside the plane ends on the unit circle, and one that leaves the plane ends inside it.

# %%
basis = ["right", "wrong", "rift", "dft", "offline-grpo", "dpo"]
# the first two span the plane
frame = gradients.orthonormal(start, torch.stack([kept.total(name) for name in basis]))
totals = torch.stack([kept.total(name).double() for name in runs])
coordinates = gradients.cosines(gradients.inner_products(start,
        torch.cat([frame, totals])))[len(basis):, :len(basis)]


def in_frame(step):
    """Cosines of the runs' updates with the directions of the frame, and their standard deviations by chance, (runs, 6) each."""
    directions = {f"direction {place}": gradients.as_update(start, vector) for place,
                  vector in enumerate(frame)}
    cosine, sd = geometry.stacked_cosine(
        geometry.compare({**{name: update_after(name, step) for name in runs},
                          **directions}))
    return cosine[:len(runs), len(runs):], sd[:len(runs), len(runs):]


early, final, chance = in_frame(steps[0])[0], *in_frame(steps[-1])

# %% mystnb={"image": {"alt": "Unit circle with a filled marker for the initial gradient of each of the six objectives, most of them on or near the circle, and open markers for the final updates near the centre"}, "figure": {"caption": "The plane of $g_+$ (horizontal) and $g_-$. Filled: each loss's exact gradient at step 0, scaled to length one; open: each final update, scaled to length one and projected into the plane. On the circle a direction lies wholly in the plane; the grey disc at the centre has the typical radius of final updates that have nothing in common with the plane.", "name": "fig-plane-circle"}}
fig, axis = plt.subplots(figsize=(6.6, 4.8))
turn = np.linspace(0, 2 * np.pi, 200)
circle = np.stack([np.cos(turn), np.sin(turn)])
axis.plot(*circle, color=figures.COLOURS["base"], linewidth=1)
axis.fill(*(np.sqrt((chance[:, :2] ** 2).sum(1).mean()) * circle),
          color=figures.COLOURS["base"], alpha=0.3)
for name, first, last in zip(runs, coordinates[:, :2], final[:, :2], strict=True):
    style = {"marker": figures.MARKERS[name], "color": figures.COLOURS[name],
             "linestyle": "none", "markersize": 8}
    axis.plot(*first, alpha=0.8, label=figures.LABELS[name], **style)
    axis.plot(*last, fillstyle="none", **style)
axis.set(aspect="equal", xlabel="along $g_+$", ylabel="at right angles to it, towards "
                                                      "$g_-$")
fig.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9);

# %% [markdown]
# The filled markers of {numref}`fig-plane-circle` that lie on the circle are the losses for which the plane is the whole story at step 0. How far inside
# it DPO, Offline GRPO and DFT lie is what the first rung of the ladder cannot know. The open markers show what is left of each in the end. Their
# direction seen from the centre can still be compared with the filled marker's.
#
# In numbers, and by energy, that is by squared norm, so that shares add up: how much of each final update lies in the plane, and how much in the span of
# all the initial gradients, six dimensions of many thousands.

# %%
own = coordinates / np.linalg.norm(coordinates, axis=1, keepdims=True)
shares = pd.DataFrame({"run": list(runs), "gradient in the plane":
                       (coordinates[:, :2] ** 2).sum(1), "update in the plane, first":
                       (early[:, :2] ** 2).sum(1), "last": (final[:, :2] ** 2).sum(1),
                       "by chance": (chance[:, :2] ** 2).sum(1),
                       "in the span of all, last": (final ** 2).sum(1),
                       "by chance ": (chance ** 2).sum(1), "cosine with its own "
                                                           "gradient, first":
                       (early * own).sum(1), "last ": (final * own).sum(1)})
energies = [column for column in shares if column != "run" and "cosine" not in column
            and column != "last "]
shares.assign(run=shares.run.map(figures.LABELS)).style.format(precision=3).format(
    "{:.2%}", subset=energies).hide()

# %%
most, fewest = shares["in the span of all, last"].idxmax(), shares[
    "in the span of all, last"].idxmin()
Markdown(f"Of a final update, between "
         f"**{shares['in the span of all, last'][fewest]:.1%}** "
         f"({figures.LABELS[shares.run[fewest]]}) and "
         f"**{shares['in the span of all, last'][most]:.1%}** "
         f"({figures.LABELS[shares.run[most]]}) of the energy lies in the span of the "
         f"initial gradients, where chance would put about "
         f"{shares['by chance '].mean():.2%}. The cosine of an update with its own "
         f"gradient at step 0 goes from "
         f"{shares['cosine with its own gradient, first'].mean():.2f} at step "
         f"{steps[0]} to {shares['last '].mean():.2f} at the end, on average over the "
         f"runs.")

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
# SFT on own rollouts then has nothing to follow but sampling noise, and $g_+$ and $g_-$ are opposite: $\cos(g_+, g_-) = -1$. RFT, DPO and Offline GRPO
# become variants of one direction, that of the *policy gradient*. The same is not true of $d_i$. Its mean is $\tfrac12 \nabla \sum_t \sum_v \pi(v)^2$, so
# that DFT on own rollouts still makes the model more certain.
#
# Is it so here? The base's own table is scored in the same way.

# %%
scores = gradients.own_scores(study, runs["sft"])
both_kinds = torch.stack([scores["right"], scores["wrong"]])
own_gram = gradients.inner_products(start, both_kinds).reshape(2, gradients.BLOCKS, 2,
    gradients.BLOCKS)
sums = {"own rollouts": both_kinds.sum(0), "the teacher's rollouts": kept.blocks["sft"]}
t_values = {name: (parts.mean(0) / parts.std(0) * np.sqrt(len(parts))).numpy() for name,
            parts in sums.items()}
t_values = {name: values[np.isfinite(values)] for name, values in t_values.items()}

# %% mystnb={"image": {"alt": "Two step histograms of t-values of the entries of the mean score: that of the own rollouts follows the black curve of Student's distribution, the other compares with the teacher's rollouts"}, "figure": {"caption": "The mean score over rollouts, each entry of $B$ divided by its standard error over ten blocks of prompts, for the base's own rollouts and for the teacher's. Black: Student's distribution, which entries with mean zero follow. Values beyond 12 are not shown.", "name": "fig-plane-own"}}
fig = figures.histograms({name: values[np.abs(values) < 12] for name,
                          values in t_values.items()}, "mean score over its standard "
                                                       "error", "entries of $B$",
                         bins=60)
edges = np.histogram_bin_edges(
    np.concatenate([values[np.abs(values) < 12] for values in t_values.values()]), 60)
line = np.linspace(edges[0], edges[-1], 300)
fig.axes[0].plot(line, len(t_values["own rollouts"]) * (edges[1] - edges[0])
                 * student.pdf(line, gradients.BLOCKS - 1), color="black", linewidth=1);

# %%
tested = sums | {"own, correct only": scores["right"], "own, incorrect only":
                 scores["wrong"], "the teacher's, incorrect only": kept.blocks["wrong"]}
rows = []
for name, parts in tested.items():
    ratio, chance_of = gradients.sign_flips(gradients.inner_products(start, parts))
    beyond = (np.mean(np.abs(t_values[name]) > student.ppf(0.975, gradients.BLOCKS - 1))
              if name in t_values else np.nan)
    rows.append({"rollouts": name, "squared norm over noise": ratio,
                 "p, signs flipped": chance_of, "entries beyond 95 %": beyond})
pd.DataFrame(rows).style.format(precision=3, na_rep="–").hide()

# %%
def cosine_of(inside):
    return gradients.cosines(inside)[0, 1]


opposite, opposite_low, opposite_high = gradients.jackknife(own_gram, cosine_of)
clean, clean_low, clean_high = gradients.jackknife(own_gram, cosine_of, between=True)
estimate = f"{clean:.2f} ({clean_low:.2f} to {clean_high:.2f})" if np.isfinite(
    [clean,
     clean_low]).all() else "not defined, since the noise-free norm of one of them comes out negative"
Markdown(f"On the base's own rollouts the squared norm of the mean score is "
         f"**{rows[0]['squared norm over noise']:.2f}** times what noise alone gives "
         f"(1 on average; flipping the signs of blocks reaches it in a share of "
         f"{rows[0]['p, signs flipped']:.3f}), on the teacher's "
         f"{rows[1]['squared norm over noise']:.2f} times, of at most "
         f"{gradients.BLOCKS}. The own $\\cos(g_+, g_-)$ is **{opposite:.3f}** "
         f"({opposite_low:.3f} to {opposite_high:.3f}), noise included, and from "
         f"products between blocks {estimate}; on the teacher's rollouts these are "
         f"{value[0]:.3f} and {free[0]:.3f}.")

# %% [markdown]
# The flip test asks how often blocks of prompts, each with a random sign, would add up to as long a vector as they do. In {numref}`fig-plane-own`, mean
# zero is the black curve. Two consequences of {eq}`eq-plane-score` should be kept apart. That the mean over all own rollouts vanishes is what the first
# line of the table tests. That its two parts are opposite can only be *seen* where the parts stand out of their noise, and the lines on correct and
# incorrect ones say whether they do. If they are near 1 as well, the cosine of the two is that of two noises, near 0, and says nothing about $-1$.
#
# This is a statement about the shared direction of the main study. Its rollouts are the teacher's, and a cosine of $g_+$ and $g_-$ far above $-1$ is a
# measure of how far the teacher's texts are from the base's own, right or wrong: the manner of writing that both have in common. The [page on own
# rollouts](20_on_policy.ipynb) trains the six losses on them.
#
# ## What was expected
#
# The predictions of this page were written down before any of it was computed. The line on step 1 is answered at step 2, the first step with a direction,
# and for the three numbers of {eq}`eq-plane-three`.

# %%
four = both[(both.prediction == "three numbers")
            & both.run_a.isin(["sft", "rft", "rift", "dpo"])
            & both.run_b.isin(["sft", "rft", "rift", "dpo"])]
largest = (four.predicted - four.measured).abs().groupby(four.step).max()
line = expected[expected.prediction == "three numbers"].set_index(["run_a", "run_b"])
rft, dpo = line.loc[("sft", "rft")], line.loc[("sft", "dpo")]
numbers = predictions.lines().query("section == 'The gradient plane'").number.tolist()
judged = [predictions.outcome(numbers[0], value[0], value[0] > 0.7, value[0] < 0.3,
                              low[0], high[0], about=f"{free[0]:.3f} without sampling "
                                                     f"noise"),
          predictions.outcome(numbers[1], rft.predicted, rft.predicted > 0.97,
                              rft.predicted < 0.9, rft.low, rft.high, "{:.4f}"),
          predictions.outcome(numbers[2], dpo.predicted, -0.2 <= dpo.predicted <= 0.4,
                              not -0.2 <= dpo.predicted <= 0.4, dpo.low, dpo.high,
                              about=f"{at['token weights', 'sft', 'dpo']:.3f} from the "
                                    f"exact gradients"), predictions.outcome(numbers[3],
        largest.iloc[-1], largest.iloc[0] < 0.15 and largest.iloc[-1] > 0.1,
        largest.iloc[-1] < 0.05, about=f"at the end; {largest.iloc[0]:.3f} at step "
                                       f"{steps[0]}")]

# %%
predictions.write(profile, "18", judged).style.hide()

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
# 3. Multiply all gradients of a run by ten before the replay, `gradients.replay(run, 10 * kept.batches[name])`. What changes in the update, and what
#    could?
#
# ````{dropdown} What happens
# Almost nothing. In {eq}`eq-plane-adam` a common factor cancels between $\hat m$ and $\sqrt{\hat v}$, except beside $\epsilon$. Only the clipping can see
# the length: batches whose gradient is longer than the limit are scaled down to it, and so lose weight against shorter ones. For the same reason DPO's
# factor $\beta/2$ of {eq}`eq-plane-dpo` hardly matters for its first steps, and its learning rate does.
# ````
#
# 4. RFT on own rollouts and Offline GRPO with $b = 0$ on own rollouts: why do their exact gradients agree in expectation?
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
