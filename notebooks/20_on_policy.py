# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, self-generated, online, grid-sft, 18_gradient_plane]
# ---

# %% [markdown]
# # On-policy: is the shared direction the teacher's style?
#
# *Previously,* all six objectives learned from texts that a teacher wrote, in a style that the base hardly uses. *Now* the base writes the
# texts itself, to the same prompts, and the same six objectives learn from those; two more runs write new texts at every step. What
# survives of the direction that the methods share?
#
# **Key takeaways**
# - A policy has nothing to learn from imitating its own samples: the expected gradient of SFT on them is exactly zero. What SFT
#   learns from a teacher's texts is therefore the difference between two writers.
# - On its own samples, a method that weighs right rollouts against wrong ones climbs the pass rate, whatever its loss is called.
# - Both hold at the first step only. From then on the texts are out of date, and a loss without a floor can leave the base on its own texts too.
# - Two methods that see the same rows share the noise of these rows. A cosine above chance is not yet a shared goal.
# - This page shows how much of the norm, of the common direction and of the loss of accuracy goes away with the teacher's style, and
#   whether a shorter step does the same.
#
# You need: [cosines and their chance levels](10_norms.ipynb), and the [losses](03_sft.ipynb). Reads the main runs, the same six on the base's own
# rollouts, online GRPO and DAPO, and scaled updates. Time to run: under a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from adapter_geometry import geometry
from adapter_geometry.adapters import load_update
from adapter_geometry.chance import compare_by_chance
from helpers import profiles, store
from helpers.analysis import (
    gradient_sums,
    gradients,
    interventions,
    on_policy,
    outcomes,
    predictions,
)
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, statistics
from helpers.training import trainer

study = profiles.load(profile)
methods = list(study.main_runs)
# runs on the base's rollouts
on_base = {method: f"{method}-self-generated" for method in methods}
base_runs = list(on_base.values())
online = list(study.controls["online"].runs)
writers = {**dict.fromkeys(methods, "teacher"),
           **dict.fromkeys(base_runs, "base"),
           **dict.fromkeys(online, "the run itself")}
figures.use_style(study)

# %% [markdown]
# ## Two tables with the same questions
#
# The second table of {term}`rollouts <rollout>` has the same prompts, the same number of rollouts per prompt and the same reward as the first, and another
# writer: the base, at temperature 1, nothing cut off. One rollout of each, to the same question:

# %%
tables = {writer: rollouts.with_group_columns(rollouts.load_table(study, writer))
          for writer in ("teacher", "base")}
question = tables["teacher"].problem_id.iloc[0]
for writer, table in tables.items():
    print(f"[{writer}]\n{table[table.problem_id == question].completion.iloc[1]}\n")

# %% [markdown]
# The base's habit is one equation per line; sentences are the teacher's style. A text that begins with a letter is in that style, one that begins
# with a digit is not, and so the style can be counted.

# %%
counts = on_policy.writers_table(tables)
figures.table(counts)

# %%
teacher, base = counts.set_index("writer").loc[["teacher", "base"]].to_dict("records")
Markdown(f"""The teacher begins with a sentence in
**{teacher['begins with a sentence']:.0%}** of its texts, the base in
**{base['begins with a sentence']:.0%}**, and the teacher's texts are
{teacher['tokens'] / base['tokens']:.1f} times as long. The teacher is right in
{teacher['right']:.0%} of its rollouts and the base in {base['right']:.0%}, so that the
base's table has {base['mixed groups']:.0%} mixed groups, against
{teacher['mixed groups']:.0%}.
{store.origin(profile, [study.runs[name] for name in writers])}""")

# %% [markdown]
# Two things change at once, then: the style, and how often the writer is right. A difference between runs on the two tables may come from either. What
# holds them apart is that the methods differ in what they make of a wrong rollout, while all of them see the style.
#
# ## Nothing to imitate
#
# Let $f(y)$ be any number that one assigns to a completion, such as its reward. Its mean over samples of the policy is a sum over all completions,
# $\sum_y \pi(y \mid x) f(y)$, and since $\nabla \pi = \pi \nabla \log \pi$,
#
# ```{math}
# :label: eq-onpolicy-score
# \nabla\, \mathbb{E}_{y \sim \pi}\big[f(y)\big] = \mathbb{E}_{y \sim \pi}\big[f(y)\, \nabla \log \pi(y \mid x)\big] .
# ```
#
# This is the score-function identity, on which REINFORCE rests {cite:p}`williams1992reinforce`. Put $f = 1$. On the left stands the gradient of the
# constant 1, and so
#
# ```{math}
# :label: eq-onpolicy-zero
# \mathbb{E}_{y \sim \pi}\big[\nabla \log \pi(y \mid x)\big] = 0 .
# ```
#
# The left-hand side is what SFT follows at step 0 on rollouts of the base itself. Its expected gradient is not small, it is zero, in every
# parameter. Three conditions matter. The samples must come from the policy as it is: at another temperature, or with rare tokens cut off, they come
# from another one. The score must be that of the whole completion, a *sum* over its tokens, the end token included. And it holds at step 0 only: once the policy
# has moved from $\pi_0$, samples of $\pi_0$ pull it back, because $\mathbb{E}_{\pi_0}[-\log \pi]$ is smallest at $\pi = \pi_0$.
#
# Our runs divide by the number of tokens of the batch, which is random too. A batch of $N$ rollouts with mean length $\bar T$ then has, to first order,
#
# ```{math}
# :label: eq-onpolicy-length
# \mathbb{E}\left[\frac{\sum_i \nabla \log \pi(y_i)}{\sum_i T_i}\right] \approx - \frac{\operatorname{Cov}(\nabla \log \pi,\, T)}{N\, \bar T^2}
# = - \frac{\nabla\, \mathbb{E}[T]}{N\, \bar T^2} ,
# ```
#
# where the last step is {eq}`eq-onpolicy-score` with $f = T$. Imitating oneself with a token mean makes one slightly *terser*, by an effect that falls with
# the size of the batch. (With $N = 1$, a mean over each completion, it is exactly $\nabla\, \mathbb{E}[1/T]$.) Batches of 32 make it small beside the noise.
#
# ## What the other objectives expect
#
# Equation {eq}`eq-onpolicy-score` covers them as well, with $p$ the pass rate of a prompt under the policy:
#
# | objective | weight $f$ of a rollout | expected direction on self-generated rollouts |
# |---|---|---|
# | SFT | $1$ | $0$ |
# | RFT | $r$ | $\nabla p$ |
# | Offline GRPO | $r - \operatorname{mean}_G r + b$ | $(1 - 1/K)\, \nabla p$: the other rewards of the group are independent of $y$, and $b$ drops out |
# | DPO | right minus wrong | $\nabla \log \frac{p}{1 - p}$, by the next equation |
# | RIFT | $r$, and tokens of wrong rollouts pushed down by their own probability | $\nabla p$, and less sharpening on wrong ones |
# | DFT | each token by its own probability | $\tfrac12 \nabla \sum_v \pi_v^2$ at each position: it sharpens |
#
# For DPO take the mean score given that the rollout is right, $\nabla p / p$ by {eq}`eq-onpolicy-score` with $f = r$, and given that it is wrong,
# $-\nabla p / (1 - p)$:
#
# ```{math}
# :label: eq-onpolicy-logit
# \mathbb{E}\big[\nabla \log \pi \,\big|\, r = 1\big] - \mathbb{E}\big[\nabla \log \pi \,\big|\, r = 0\big]
# = \frac{\nabla p}{p} + \frac{\nabla p}{1 - p} = \nabla \log \frac{p}{1 - p} .
# ```
#
# So RFT, Offline GRPO and DPO, three methods that the paper places far apart, all climb the pass rate on their own rollouts, with other weights per prompt, and
# so does the first step of an online method. Equation {eq}`eq-onpolicy-zero` gives SFT no direction at all. That is theory for infinitely many
# samples. With a finite table each gradient is a direction plus noise, and the question is which of them one sees.
#
# ## Is it zero?
#
# The page on the [gradient plane](18_gradient_plane.ipynb) sums the scores of right and of wrong rollouts over ten blocks of prompts, with respect to
# the factors $B$, which are all that moves at the first step. Call the sum of block $k$ $G_k$. If all blocks pull the same way, their sum grows with their
# number; if they pull at random, with its square root. The *coherence* is
#
# ```{math}
# :label: eq-onpolicy-coherence
# R = \frac{\big\| \sum_k G_k \big\|^2}{\sum_k \| G_k \|^2} , \qquad \mathbb{E}[R] = 1 \text{ when the } G_k \text{ are independent with mean } 0 ,
# ```
#
# and it is the number of blocks when all $G_k$ are equal. Chance: give the blocks random signs, in all possible ways, which keeps every length and destroys a
# common direction.

# %%
main = {name: study.runs[name] for name in methods}
scores = {"teacher": gradient_sums.measure(study, main).blocks,
          "base": gradient_sums.self_generated_scores(study, main["sft"])}
kinds = [(writer, objective) for writer in scores for objective in ("sft", "rft")]
vectors = torch.stack([parts["right"] + (parts["wrong"] if objective == "sft" else 0)
                       for parts in scores.values() for objective in ("sft", "rft")])
_, start = gradients.initial(study, main["sft"])
inner = gradients.inner_products(start, vectors)
blocks = vectors.shape[1]
inner = inner.reshape(len(kinds), blocks, len(kinds), blocks)

# %%
# (ways, blocks); in the first way no sign is flipped
signs = 1.0 - 2 * (np.arange(2 ** (blocks - 1))[:, None] >> np.arange(blocks) & 1)


def product(weights_a, a, weights_b, b):
    """Inner products (ways,) of weighted sums of blocks of kinds number a and b."""
    return np.einsum("nk,kl,nl->n", weights_a, inner[a, :, b], weights_b)


rows = []
for number, (writer, objective) in enumerate(kinds):
    values = product(signs, number, signs, number) / np.trace(inner[number, :, number])
    low, high = np.quantile(values, [0.025, 0.975])
    rows.append({"writer": writer, "objective": figures.LABELS[objective],
                 "coherence": values[0], "chance, low": low, "chance, high": high,
                 "p": (values >= values[0] - 1e-12).mean()})
coherence = pd.DataFrame(rows)
figures.table(coherence)

# %%
at = coherence.set_index(["writer", "objective"])
value, low, high = at.loc[("base", "SFT"), ["coherence", "chance, low", "chance, high"]]
within = "within" if low <= value <= high else "outside"
Markdown(f"""On the teacher's rollouts the coherence of SFT's {blocks} blocks is
**{at.coherence['teacher', 'SFT']:.2f}**; on the base's own it is **{value:.2f}**,
{within} the band of chance ({low:.2f} to {high:.2f}). RFT's is
{at.coherence['teacher', 'RFT']:.2f} and {at.coherence['base', 'RFT']:.2f}.""")

# %% [markdown]
# A coherence within chance on self-generated rollouts is what {eq}`eq-onpolicy-zero` demands, for a base that was sampled as the equation asks. It is also a test of the
# table: one sampled at another temperature would fail it. RFT need not be within chance there, but by how much its $\nabla p$ stands out from
# the noise depends on the number of rollouts.
#
# ## Noise that two methods share
#
# SFT and RFT on one table see many of the same rows. If neither had any direction, their sums would still point the same way in part, because the
# noise of a row enters both. So the cosine of two gradients is taken twice: on the same blocks, and with even blocks for one and odd ones for
# the other. The signs give each its own chance level; on the same blocks, that level keeps the shared noise and loses the shared direction.

# %%
def cosine_of(one, a, other, b):
    squares = product(one, a, one, a) * product(other, b, other, b)
    return product(one, a, other, b) / np.sqrt(squares)


is_even = np.arange(blocks) % 2 == 0
rows = []
for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
    row = {"first": f"{figures.LABELS[kinds[a][1]]}, {kinds[a][0]}",
           "second": f"{figures.LABELS[kinds[b][1]]}, {kinds[b][0]}"}
    ways = {"same blocks": (1, 1), "other blocks": (is_even, ~is_even)}
    if kinds[a][0] != kinds[b][0]:
        del ways["same blocks"]  # two writers have no rows in common
    for name, (one, other) in ways.items():
        values = cosine_of(signs * one, a, signs * other, b)
        low, high = np.nanquantile(values, [0.025, 0.975])
        row |= {name: values[0], f"{name}, chance": f"{low:+.2f} to {high:+.2f}"}
    rows.append(row)
pairs = pd.DataFrame(rows)
pairs.style.format(precision=2, na_rep="").hide(axis="index")

# %%
teacher, base = pairs.iloc[0], pairs.iloc[1]
Markdown(f"""On the base's own rollouts the gradients of SFT and RFT have a cosine of
**{base['same blocks']:.2f}** on the same blocks, where noise alone gives
{base['same blocks, chance']}, and of **{base['other blocks']:.2f}** on different ones.
On the teacher's they have {teacher['same blocks']:.2f} and
{teacher['other blocks']:.2f}.""")

# %% [markdown]
# The comparison on different blocks is the fair one: it asks whether two objectives *want* the same thing. The cosines of trained updates, to which we
# come now, are always of the first kind, since all methods walk through one table in one order. Keep this in mind for the self-generated rollouts.
#
# ## How long are the updates?
#
# If the gradient is noise, is the update short? Not by itself. AdamW divides each entry's step by the size of its recent gradients, so that pure noise still
# moves the weights by what {eq}`eq-norms-walk` calls a *walk*. In units of a walk, a norm says whether the steps had a common direction.

# %%
names = [*methods, *base_runs, *online]
folders = {name: trainer.train(study, study.runs[name]) for name in names}
adapters = {name: load_update(folder / "adapter") for name, folder in folders.items()}
compared = geometry.compare(adapters)
cosine, sd = (pd.DataFrame(values, names, names)
              for values in geometry.stacked_cosine(compared))
band = 1.96 * sd  # half the width of the band of chance
overall = geometry.updates_table(compared).query("scope == 'global'").set_index("run")

# %%
def walk(name):
    """Norm that steps of the run's learning rates without any memory would reach."""
    rates = pd.read_parquet(folders[name] / "history.parquet").learning_rate
    rank, scale = study.lora.rank, study.lora.alpha / study.lora.rank
    return scale * np.sqrt(rank / 3 * compared.modules.d_out.sum() * (rates ** 2).sum())


lengths = pd.DataFrame({"writer": writers, "norm": overall.norm,
                        "effective rank": overall.effective_rank}).loc[names]
lengths["peak rate"] = [study.runs[name].learning_rate for name in names]
lengths["norm / walk"] = lengths.norm / [walk(name) for name in names]
lengths["over the teacher's"] = pd.Series({
    name: lengths.norm[name] / lengths.norm[method]
    for method, name in on_base.items()})
base = pd.DataFrame({"writer": "", "norm": 0.0}, index=["base"])
shown = pd.concat([base, lengths]).rename(index=figures.LABELS).reset_index(names="run")
shown.style.format({"peak rate": "{:.0e}"}, precision=3, na_rep="").hide(axis="index")

# %%
ratio = lengths["over the teacher's"][on_base["sft"]]
norms = pd.DataFrame(np.sqrt(np.einsum("mii->mi", compared.inner)), columns=names)
quartiles = (norms[on_base["sft"]] / norms["sft"]).quantile([0.25, 0.75]).tolist()
walks = lengths["norm / walk"]
Markdown(f"""SFT on the base's own rollouts has **{ratio:.2f}** of the norm that it has
on the teacher's (quartiles over modules {quartiles[0]:.2f} to {quartiles[1]:.2f}). That
is {walks[on_base['sft']]:.1f} walks, against {walks['sft']:.1f} on the teacher's.""")

# %% [markdown]
# Read the column `norm / walk` for what the length of an update is worth. At one, an update is as long as steps without memory make it, of whatever origin.
# Above one, steps had a direction in common. Below one they undid each other, as they must when texts of $\pi_0$ pull a policy back to $\pi_0$
# that noise has carried away.
#
# ## Who is close to whom?
#
# Now the directions. Left: the six methods on the teacher's rollouts, as on the page on [cosines](10_norms.ipynb). Right: the same six on the base's own. The chance level
# of each cell rotates one of the two updates in the output space of each module and keeps its spectrum (`geometry.stacked_cosine`).

# %% mystnb={"image": {"alt": "Two six by six matrices of cosines between the updates of the six objectives, one trained on the teacher's rollouts and one on the base's own"}, "figure": {"caption": "Cosine between the updates of the six objectives, all modules stacked, trained on the teacher's rollouts and on the base's own. Hatched: within 95 % of chance.", "name": "fig-onpolicy-matrices"}}
runs_on = {"on the teacher's rollouts": methods,
           "on self-generated rollouts": base_runs}
panels = {heading: cosine.loc[runs, runs].to_numpy()
          for heading, runs in runs_on.items()}
insides = {heading: (cosine.abs() <= band).loc[runs, runs].to_numpy()
           for heading, runs in runs_on.items()}
figures.matrices(panels, methods, methods, "cosine", insides);

# %%
upper = np.triu_indices(len(methods), 1)
theirs, ours = (panel[upper] for panel in panels.values())
labels = [f"{figures.LABELS[methods[i]]} – {figures.LABELS[methods[j]]}"
          for i, j in zip(*upper, strict=True)]
rank, low, high = statistics.mantel(*panels.values())
with_sft = ours[:len(methods) - 1]
closest = figures.LABELS[methods[1 + int(with_sft.argmax())]]
Markdown(f"""Over the {len(labels)} pairs the median cosine is
**{np.median(theirs):.2f}** on the teacher's rollouts and **{np.median(ours):.2f}** on
self-generated ones; the closest pair is {labels[theirs.argmax()]} ({theirs.max():.2f})
there and {labels[ours.argmax()]} ({ours.max():.2f}) here. SFT and RFT go from
{theirs[0]:.2f} to {ours[0]:.2f}. The two orders of pairs agree with a rank correlation
of {rank:+.2f} (methods exchanged at random: {low:+.2f} to {high:+.2f}). On
self-generated rollouts SFT is closest to {closest} ({with_sft.max():.2f}).""")

# %% [markdown]
# Compare the right side of {numref}`fig-onpolicy-matrices` with the table of expected directions. SFT has no reason to be near anyone there, except for rows that
# it shares. RFT, Offline GRPO and DPO have the pass rate in common, under noise, and at the first step only. RIFT and RFT share that and the right rows as well.
# Each cell is one run against one other; how far such a cosine moves from seed to seed is the subject of [another page](16_seeds.ipynb).

# %%
climbing = [("rft", "offline-grpo"), ("rft", "dpo"), ("offline-grpo", "dpo")]
values = ", ".join(f"{figures.LABELS[a]} – {figures.LABELS[b]} "
                   f"{cosine.loc[on_base[a], on_base[b]]:+.2f} (on the teacher's "
                   f"{cosine.loc[a, b]:+.2f})" for a, b in climbing)
widest = max(band.loc[on_base[a], on_base[b]] for a, b in climbing)
Markdown(f"""The three that climb the pass rate, on self-generated rollouts: {values};
chance is within ±{widest:.3f}.""")

# %% [markdown]
# ## The same method, another writer
#
# If the direction of a method were its own, a run on one table would look like the run of that method on the other. Rows are the runs on the teacher's
# rollouts, columns those on self-generated ones.

# %% mystnb={"image": {"alt": "Six by six matrix of cosines between updates trained on the teacher's rollouts, in rows, and on the base's own rollouts, in columns"}, "figure": {"caption": "Cosine between the updates on the teacher's rollouts (rows) and on the base's own (columns). Hatched: within 95 % of chance.", "name": "fig-onpolicy-cross"}}
crossed = cosine.loc[methods, base_runs].to_numpy()
is_inside = np.abs(crossed) <= band.loc[methods, base_runs].to_numpy()
heading = "rows: teacher's, columns: self-generated"
figures.matrices({heading: crossed}, methods, methods, "cosine", {heading: is_inside});

# %%
other_order = trainer.update_of(study, "sft-42-43")
two_orders = geometry.compare({"sft": adapters["sft"], "other": other_order})
yardstick = geometry.stacked_cosine(two_orders)[0][0, 1]
alike, elsewhere = np.diag(crossed), crossed[~np.eye(len(methods), dtype=bool)]
itself = int((crossed.argmax(1) == np.arange(len(methods))).sum())
Markdown(f"""SFT on the two tables: **{crossed[0, 0]:+.3f}** (chance
±{band.loc['sft', on_base['sft']]:.3f}). The same rows of the teacher in another order,
from
the same initial adapter, would give **{yardstick:.2f}**. On the diagonal of the matrix
the median is {np.median(alike):+.3f}, off it {np.median(elsewhere):+.3f}. For {itself}
of {len(methods)} runs on the teacher's rollouts the closest run on self-generated ones
is that of the same method; a blind guess would be right in one of {len(methods)}.""")

# %% [markdown]
# Two yardsticks frame {numref}`fig-onpolicy-cross`. Chance is close to zero. The same objective on the same texts in another order is what "the same direction" looks
# like when nothing but the order changes. The nearer the diagonal to the first, the more of the shared direction was in the texts; a direction of the loss
# would show as a diagonal that stands out from the rest of the matrix.
#
# A cosine can be small while two updates still act through the same few directions, so here are the first singular vectors. `left` is the output side, on which nothing is
# shared by construction. `right` is the input side, where all runs began with the same $A$.

# %%
of_sft = {name: adapters[name] for name in ("sft", on_base["sft"])}
nulls = compare_by_chance(of_sft, 20)
chance = {side: np.mean([null.first[side][:, 0, 1].mean() for null in nulls])
          for side in ("left", "right")}
itself = np.eye(len(names), dtype=bool)
rows = []
for method in methods:
    row = {"method": figures.LABELS[method]}
    for side in chance:
        first = pd.DataFrame(compared.first[side].mean(0), names, names).mask(itself)
        row |= {f"{side}: with SFT, teacher's": first.loc["sft", method],
                f"{side}: with SFT, self-generated":
                    first.loc[on_base["sft"], on_base[method]],
                f"{side}: both writers": first.loc[method, on_base[method]]}
    rows.append(row)
vectors = pd.DataFrame(rows)
by_chance = [chance[side] for side in chance for _ in range(3)]
vectors.loc[len(vectors)] = ["by chance", *by_chance]
figures.table(vectors)

# %%
left, right = vectors.loc[0, ["left: both writers", "right: both writers"]]
rank = overall.effective_rank
Markdown(f"""The first left vector of SFT on self-generated rollouts overlaps with that
of SFT on the teacher's by **{left:.2f}** (chance {chance['left']:.2f}), the first right
vector by {right:.2f} (chance within one row space {chance['right']:.2f}). The effective
rank, of at most {study.lora.rank}, is {rank['sft']:.1f} on the teacher's and
{rank[on_base['sft']]:.1f} on self-generated rollouts.""")

# %% [markdown]
# ## Did the style go over?
#
# Behaviour next. Each run answers the same test problems greedily, those that every control answers; the counts are those of the tables above.

# %%
answered = answering.records(study, ["base", *(study.runs[name] for name in names)])
answered = answered[answered.split == "test"].groupby("run", sort=False)
answered = answered.head(answering.CONTROL_PROBLEMS)
spoken = answered.assign(sentence=on_policy.in_sentences(answered.completion))
style = spoken.groupby("run", sort=False)[["sentence", "tokens", "truncated"]].mean()
figures.table(style.rename(columns={"sentence": "begins with a sentence"})
              .reset_index())

# %%
of_teacher, of_base = style.loc[methods], style.loc[base_runs]
changed = of_teacher.index[of_teacher.sentence > 0.5]
changed = [figures.LABELS[name] for name in changed]
listed = f" ({', '.join(changed)})" if changed else ""
Markdown(f"""The base begins {style.sentence['base']:.1%} of its greedy answers with a
sentence. On the teacher's rollouts, {len(changed)} of {len(methods)} methods went over
to the teacher's style{listed}; on self-generated rollouts the share of sentences stays
between {of_base.sentence.min():.1%} and {of_base.sentence.max():.1%}, with
{of_base.tokens.min():.0f} to {of_base.tokens.max():.0f} tokens per answer against the
base's {style.tokens['base']:.0f}.""")

# %% [markdown]
# Forced into the teacher's opening without any training, the base loses accuracy, as the page on [evaluation](09_evaluation.ipynb) measured. A run
# that did not go over to the style does not pay that price, whatever else it learned.

# %% mystnb={"image": {"alt": "Dot plot of test accuracy with intervals for the base, the six objectives on the teacher's rollouts, the six on self-generated rollouts and the online runs, dashed line at the base"}, "figure": {"caption": "Share of test problems solved, with 95 % Wilson intervals: the base, the six objectives on the teacher's rollouts, on the base's own, and online; dashed: the base.", "name": "fig-onpolicy-accuracy"}}
accuracy = statistics.accuracy_table(answered)
figures.intervals(accuracy, "accuracy", "low", "high", "share of test problems solved",
                  reference="base");

# %%
def paired(records, pairs):
    """Paired tests of some (run, against), run minus against, with Holm over them."""
    tests = statistics.mcnemar_table(records, pairs)
    tests = tests.rename(columns={"run_a": "run", "run_b": "against"})
    return tests[["run", "against", "difference", "low", "high", "detectable", "p",
                  "p_holm"]]


from_base = paired(answered, [(name, "base") for name in names])
figures.table(from_base)

# %%
by_writer = paired(answered, [(on_base[method], method) for method in methods])
figures.table(by_writer)

# %%
def significant(tests):
    """(losses, gains) among some tests, at 5 % after correction."""
    differences = tests[tests.p_holm < 0.05].difference
    return int((differences < 0).sum()), int((differences > 0).sum())


verdicts = []
for runs in (methods, base_runs, online):
    losses, gains = significant(from_base[from_base.run.isin(runs)])
    verdicts.append(f"{losses} of {len(runs)} lose and {gains} gain")
Markdown(f"""Against the base, at 5 % after Holm's correction over all {len(from_base)}:
on the teacher's rollouts {verdicts[0]}; on self-generated ones {verdicts[1]};
online {verdicts[2]}. Self-generated minus teacher's, the same method: from
{by_writer.difference.min():+.1%} to {by_writer.difference.max():+.1%};
{significant(by_writer)[1]} of {len(by_writer)} are better on self-generated
rollouts.""")

# %% [markdown]
# In {numref}`fig-onpolicy-accuracy` the first and the second six differ in nothing but the texts. Where the second keeps what the first loses, the loss was in
# the texts. It need not be the style alone, since the base is also wrong more often than the teacher; but being wrong more often should make it a *worse*
# teacher.
#
# Self-generated texts do not make a method safe, however. The table of expected directions holds at step 0. After that the texts are those of a policy that is no longer the one in
# training, and it matters whether a loss has a floor. SFT, RFT and DFT only raise what they see, and RIFT lowers wrong texts by a bounded amount. Offline GRPO
# multiplies $\log \pi$ of wrong texts by a negative weight, and that product has no minimum: a text that has become improbable is pushed down as hard as before. DPO
# has a floor for the *difference* of two texts and none for their common level. Own rollouts give both more to push down, because more of them are wrong.

# %%
apart = from_base.set_index("run").difference
pushing = ["offline-grpo", "dpo"]
raising = [method for method in methods if method not in pushing]
raised = apart[raising].mean(), apart[[on_base[name] for name in raising]].mean()
pushed = apart[pushing].mean(), apart[[on_base[name] for name in pushing]].mean()
Markdown(f"""Mean difference from the base over the {len(raising)} methods that raise or
have a floor: {raised[0]:+.1%} on the teacher's rollouts, **{raised[1]:+.1%}** on
self-generated ones. Over the {len(pushing)} that push wrong texts down:
{pushed[0]:+.1%} and **{pushed[1]:+.1%}**.""")

# %% [markdown]
# The online runs below are a control for this reading: they weigh right and wrong much as Offline GRPO does, on texts that are never out of date. It is not a clean
# one where their peak rate is another, as the table of lengths says; DPO has a rate of its own as well.
#
# ## How far from the base?
#
# Divergence per token, along the base's own texts (forward) and along the run's (reverse), as on the page on evaluation.

# %%
divergences = on_policy.divergences(study, names)
wide = divergences.pivot(index="run", columns="direction", values=["kl", "interval"])
wide = wide.loc[["base", *names]].rename(index=figures.LABELS)
wide.style.format(precision=4, na_rep="–")

# %%
kl = divergences[divergences.direction == "forward"].set_index("run").kl
Markdown(f"""Forward, SFT is {kl['sft']:.3f} nats per token away from the base on the
teacher's rollouts and {kl[on_base['sft']]:.4f} on its own, a factor of
**{kl['sft'] / kl[on_base['sft']]:.0f}**, where the norms differ by {1 / ratio:.1f}. RFT
goes from {kl['rft']:.3f} to {kl[on_base['rft']]:.4f}.""")

# %% [markdown]
# The two factors need not agree. A divergence is quadratic in a small step, and it counts only what reaches the next token: noise in weights
# that the base's texts hardly feel has length and no effect.
#
# ## Does a shorter step give it back?
#
# Another way to keep the base's accuracy is to move less. The update of a finished run can be scaled, $W_0 + t\, \Delta W$, without training: $t = 0$ is the base and
# $t = 1$ the run. If SFT lost accuracy by going too far in a good direction, some $t < 1$ should do better than both ends.

# %% mystnb={"image": {"alt": "Two lines with shaded intervals of accuracy against the factor t that scales the updates of SFT and Offline GRPO, starting at the base at zero"}, "figure": {"caption": "Share of problems solved when the update is scaled by $t$; shaded: 95 % Wilson intervals; $t = 0$ is the base, $t = 1$ the trained run.", "name": "fig-onpolicy-scaled"}}
scaled = {}
for run in ("sft", "offline-grpo"):
    factors = {0: "base", 1: run}
    factors |= {t: f"{run} times {t:g}" for t in interventions.SCALES["sft"]}
    factors = dict(sorted(factors.items()))
    scaled[run] = interventions.table(study, list(factors.values())).assign(
        run=run, t=list(factors))
figures.lines_of_runs({"": pd.concat(scaled.values())}, "t", "accuracy", "factor t",
                      "share of problems solved");

# %%
curve = scaled["sft"].set_index("t")
graded = pd.concat([interventions.records(study, name).assign(run=name)
                    for name in curve.part])
shorter = curve.part[(curve.index > 0) & (curve.index < 1)]
against_base = paired(graded, [(name, "base") for name in shorter])
against_sft = paired(graded, [(name, "sft") for name in shorter])
figures.table(pd.concat([against_base, against_sft]))

# %%
best = curve.accuracy[shorter.index].idxmax()
worse, better = significant(against_base)
_, better_than_sft = significant(against_sft)
Markdown(f"""The base solves {curve.accuracy[0]:.1%} of these {curve.n[0]} problems and
SFT {curve.accuracy[1]:.1%}. The best of the shorter steps is $t$ = {best:g} with
**{curve.accuracy[best]:.1%}**. Of the {len(shorter)} shorter steps, {better_than_sft}
are better than SFT, {better} better and {worse} worse than the base (Holm, 5 %).""")

# %% [markdown]
# A curve that falls from the base to the run without a hump in {numref}`fig-onpolicy-scaled` says that the length was not the trouble: a shorter step only
# undoes the training. A valley says that half of a change of style is worse than either style. And a hump would mean that the method knew where to go
# and not where to stop.
#
# Length can be measured by its effect as well. At the same divergence from the base, are self-generated rollouts better than a shortened SFT?

# %% mystnb={"image": {"alt": "Scatter plot of accuracy against forward divergence from the base: grey dots for SFT shortened, markers for the base, the runs on self-generated rollouts and the online runs"}, "figure": {"caption": "Share of problems solved against the forward divergence from the base. Grey dots: SFT on the teacher's rollouts, its update scaled by $t$ up to 1; markers: runs on self-generated rollouts and online runs.", "name": "fig-onpolicy-plane"}}
reached = interventions.table(study, [*base_runs, *online])
between = scaled["sft"].query("0 < t <= 1")
base = scaled["sft"].query("t == 0").assign(run="base")
points = pd.concat([between.assign(run=np.nan), base, reached])
fig = figures.losses_and_accuracy(points, {"kl": "KL(base || policy), nats per token"})
fig.axes[0].set_xscale("symlog", linthresh=0.01);

# %%
nearest = {row.part: between.part.iloc[(between.kl - row.kl).abs().argmin()]
           for row in reached.itertuples()}
answers = [interventions.records(study, name).assign(run=name) for name in nearest]
at_kl = paired(pd.concat([graded, *answers]), list(nearest.items()))
divergence = pd.concat([reached, between]).set_index("part").kl
at_kl.insert(2, "kl", divergence[at_kl.run].to_numpy())
at_kl.insert(3, "its kl", divergence[at_kl.against].to_numpy())
figures.table(at_kl)

# %%
is_better = (at_kl.p_holm < 0.05) & (at_kl.difference > 0)
better = [figures.LABELS[run] for run in at_kl.run[is_better]]
listed = f": {', '.join(better)}" if better else ""
Markdown(f"""**{len(better)} of {len(at_kl)}** runs on their own texts solve more
problems than the shortened SFT that is nearest to them in divergence{listed}. Forward
divergences run from {reached.kl.min():.4f} to {reached.kl.max():.3f} nats per token for
them, and from {between.kl.min():.4f} to {between.kl.max():.3f} along SFT's update.""")

# %% [markdown]
# In {numref}`fig-onpolicy-plane` the grey dots are the exchange that SFT offers, problems for nats. A marker above them got more for the same distance from
# the base: there the direction made the difference, and not the length.
#
# ## Online
#
# The runs on self-generated rollouts use texts of the *initial* policy to the end. Online methods write new ones at every step, eight per prompt: GRPO {cite:p}`shao2024deepseekmath`
# and DAPO's loss {cite:p}`yu2025dapo`, with `trl.GRPOTrainer`, from the same start and with the same adapter. At step 0 both follow the
# gradient of the pass rate, as {eq}`eq-onpolicy-score` says, divided by the spread of each group.

# %%
rows, tests = [], from_base.set_index("run")
for name in online:
    value, test = cosine.loc[name, "sft"], tests.loc[name]
    rows.append((figures.LABELS[name], value, f"±{band.loc[name, 'sft']:.4f}",
                 np.sqrt(1 - value ** 2), overall.norm[name] / overall.norm["sft"],
                 f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})"))
rows.append(("GRPO of the paper", 0.025, "", 0.998, 0.30 / 2.84,
             "about 0 (93 to 94 % both)"))
figures.table(pd.DataFrame(rows, columns=[
    "run", "cosine with SFT", "chance", "orthogonal by norm", "norm / SFT's",
    "accuracy minus the base's"]))

# %%
near = cosine.loc[online[0]].fillna(0)  # a run without any reward stays at zero
offline = near[[*methods, *base_runs]]
inside = abs(near["sft"]) <= band.loc[online[0], "sft"]
Markdown(f"""Online GRPO has a cosine with SFT {'within' if inside else 'outside'} its
band of chance. Among the twelve offline runs it is closest to
{figures.LABELS[offline.idxmax()]} (**{offline.max():+.3f}**). Its cosine with RFT is
{near[on_base['rft']]:+.3f} on self-generated rollouts and {near['rft']:+.3f} on the
teacher's, with Offline GRPO {near[on_base['offline-grpo']]:+.3f} and
{near['offline-grpo']:+.3f}, with DPO {near[on_base['dpo']]:+.3f} and
{near['dpo']:+.3f}.""")

# %% [markdown]
# The paper's orthogonal part of .998 is its cosine of .025 in another unit {cite:p}`nikolich2026geometry`. And a cosine with SFT near zero is what *any* two updates without a common cause have, and by {eq}`eq-onpolicy-zero` a method on its own samples has no cause in
# common with the imitation of a teacher. To call online training "a different mechanism" because of it would be to say too much; runs of SFT and RFT on self-generated
# rollouts, in {numref}`fig-onpolicy-cross`, are the control. What is left for the mechanism is the difference between those and the online runs.

# %% [markdown]
# ## The table of this page

# %%
half = band["sft"].copy()
half["sft"] = 0.0
stored = pd.DataFrame({
    "writer": writers, "norm": overall.norm, "cosine_sft": cosine["sft"],
    "chance_low": -half, "chance_high": half}).loc[names]
stored.loc["sft", "cosine_sft"] = 1.0
base = pd.DataFrame({"writer": "", "norm": 0.0}, index=["base"])
stored = pd.concat([base, stored]).reset_index(names="run")
stored = stored.merge(accuracy[["run", "accuracy", "low", "high"]])
stored = stored.assign(kl=stored.run.map(kl), tokens=stored.run.map(style.tokens))
figures.table(store.write_table(profile, "on_policy", stored))

# %% [markdown]
# ## What was expected
#
# Written down before any of these runs existed, in [the predictions](../predictions.md):

# %%
rft = tests.loc[on_base["rft"], ["difference", "low", "high"]]
about = f"quartiles over modules {quartiles[0]:.2f} to {quartiles[1]:.2f}"
results = outcomes.of_on_policy(ratio, about, crossed[0, 0], tuple(rft), near["sft"])
expected = predictions.write(profile, "20", results)
expected.rename(columns={"is_expected": "as expected",
                         "changes": "would change our mind",
                         "changes_mind": "changes it"}).style.hide(axis="index")

# %% [markdown]
# ## Try it
#
# 1. Sample the base at temperature 0.7 and compute the coherence {eq}`eq-onpolicy-coherence` again. Is the gradient still zero?
#
# ````{dropdown} What happens
# No. Those samples come from a sharper policy, and imitating them sharpens: the expected score is then $-\nabla\,\mathrm{KL}$ between the two, which points from the
# policy towards its cooler version. Self-distillation with a low temperature does teach something.
# ````
#
# 2. Show {eq}`eq-onpolicy-zero` for a single token by hand: a softmax over three logits $z$, whose score is $\nabla_z \log \pi_v = e_v - \pi$.
#
# ````{dropdown} Answer
# $\sum_v \pi_v (e_v - \pi) = \pi - \pi = 0$. For a whole completion each factor of the product adds such a term, and each has mean zero given the tokens before it.
# ````
#
# 3. Why does Offline GRPO's bias $b$ matter on the teacher's rollouts and not, in expectation, on self-generated ones?
#
# ````{dropdown} Answer
# The bias adds $b$ times SFT's gradient. On self-generated rollouts that has mean zero. On the teacher's it is a steady pull towards the teacher's style: a tenth of SFT, while
# advantages of mixed groups have weights up to one but few rows.
# ````
#
# 4. Divide each $G_k$ by the number of tokens of its block, as training does with a batch, before the coherence is taken. By {eq}`eq-onpolicy-length` the mean is no
#    longer zero. Can one see it?
#
# ````{dropdown} What to expect
# Hardly. The bias is the gradient of the expected length, divided by the number of rollouts that are divided together, and the noise falls only with the
# square root of that number. With a mean over each completion, $N = 1$, the bias is largest.
# ````
#
# ## Summary
#
# A policy that imitates itself has nothing to learn, {eq}`eq-onpolicy-zero`, and the gradients say the same of this base. So whatever SFT learns from a
# teacher is the difference between two writers, and a difference of style is its largest part. On self-generated rollouts the objectives that look at rewards have one
# direction in common, the pass rate, {eq}`eq-onpolicy-logit`, at the first step and under noise that all methods on one table share. The tables above say how much of the norm, of
# the cosines and of the loss of accuracy went with the teacher's texts, and for which objectives self-generated texts were no protection. The [next page](21_interventions.ipynb) takes updates apart and measures what each part does.
