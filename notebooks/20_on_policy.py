# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, own, online, grid-sft, 18_gradient_plane]
# ---

# %% [markdown]
# # On-policy: is the shared direction the teacher's manner?
#
# *Previously,* all six objectives learned from texts that a teacher wrote, in a manner that the base hardly uses. *Now* the base writes the
# texts itself, to the same prompts, and the same six objectives learn from those; two more runs write new texts at every step. What
# survives of the direction that the methods share?
#
# **Key takeaways**
# - A policy has nothing to learn from imitating its own samples: the expected gradient of SFT on them is exactly zero. What SFT
#   learns from a teacher's texts is therefore the difference between two writers.
# - On its own samples, a method that weighs right rollouts against wrong ones climbs the pass rate, whatever its loss is called.
# - Both hold at the first step only. From then on the texts are out of date, and a loss without a floor can leave the base on its own texts too.
# - Two methods that see the same rows share the noise of these rows. A cosine above chance is not yet a shared goal.
# - This page shows how much of the norm, of the common direction and of the loss of accuracy goes away with the teacher's manner, and
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
from helpers.analysis import gradients, interventions, predictions
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.training import trainer

study = profiles.load(profile)
methods = list(study.main_runs)
own = {method: f"{method}-own" for method in methods}
counterpart = {name: method for method, name in own.items()}
online = list(study.controls["online"].runs)
writers = {**dict.fromkeys(methods, "teacher"), **dict.fromkeys(own.values(), "base"),
           **dict.fromkeys(online, "the run itself")}
figures.use_style(study)

# %% [markdown]
# ## Two tables with the same questions
#
# The second table of {term}`rollouts <rollout>` has the same prompts, the same number of rollouts a prompt and the same reward as the first, and another
# writer: the base, at temperature 1, nothing cut off. One rollout of each, to the same question:

# %%
tables = {writer: rollouts.with_group_columns(rollouts.load_table(study, writer))
          for writer in ("teacher", "base")}
question = tables["teacher"].problem_id.iloc[0]
for writer, table in tables.items():
    print(f"[{writer}]\n{table[table.problem_id == question].completion.iloc[1]}\n")

# %% [markdown]
# The base's habit is one equation a line; sentences are the teacher's manner. A text that begins with a letter is in that manner, one that begins
# with a digit is not, and so the manner can be counted.

# %%
def in_sentences(completions):
    """Which texts begin with a word, as the teacher's do, and not with an equation."""
    return completions.str.match(r"\s*[A-Z]")


counts = [{"writer": writer, "rows": len(table), "right": table.reward.mean(),
           "mixed groups": (table.groupby("problem_id").spread.first() > 0).mean(),
           "begins with a sentence": in_sentences(table.completion).mean(),
           "tokens": table.tokens.mean(), "log-probability a token, base":
           np.concatenate(list(table.logp_base)).mean()} for writer,
          table in tables.items()]
figures.table(pd.DataFrame(counts))

# %%
first, second = counts
Markdown(f"The teacher begins with a sentence in "
         f"**{first['begins with a sentence']:.0%}** of its texts, the base in "
         f"**{second['begins with a sentence']:.0%}**, and the teacher's texts are "
         f"{first['tokens'] / second['tokens']:.1f} times as long. The teacher is "
         f"right in {first['right']:.0%} of its rollouts and the base in "
         f"{second['right']:.0%}, so that the base's table has "
         f"{second['mixed groups']:.0%} mixed groups, against "
         f"{first['mixed groups']:.0%}. "
         f"{store.origin(profile, [study.runs[name] for name in writers])}")

# %% [markdown]
# Two things change at once, then: the manner, and how often the writer is right. A difference between runs on the two tables may come from either. What
# holds them apart is that the methods differ in what they make of a wrong rollout, while all of them see the manner.
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
# | objective | weight $f$ of a rollout | expected direction on own rollouts |
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
# So RFT, Offline GRPO and DPO, three methods that the paper places far apart, all climb the pass rate on their own rollouts, with other weights a prompt, and
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
sums = gradients.measure(study, {name: study.runs[name] for name in methods}).blocks
scores = {"teacher": sums, "base": gradients.own_scores(study, study.runs["sft"])}
kinds = [(writer, objective) for writer in scores for objective in ("sft", "rft")]
vectors = torch.stack([parts["right"] + (parts["wrong"] if objective == "sft" else 0)
                       for parts in scores.values() for objective in ("sft", "rft")])
_, start = gradients.initial(study, study.runs["sft"])
blocks = vectors.shape[1]
inner = gradients.inner_products(start, vectors).reshape(len(kinds), blocks, len(kinds),
    blocks)

# %%
# (ways, blocks), first no sign is turned
signs = 1.0 - 2 * (np.arange(2 ** (blocks - 1))[:, None] >> np.arange(blocks) & 1)


def product(weights_a, a, weights_b, b):
    """Inner products (ways,) of two weighted sums of blocks; a and b are places in `kinds`."""
    return np.einsum("nk,kl,nl->n", weights_a, inner[a, :, b], weights_b)


rows = []
for number, (writer, objective) in enumerate(kinds):
    values = product(signs, number, signs, number) / np.trace(inner[number, :, number])
    low, high = np.quantile(values, [0.025, 0.975])
    rows.append({"writer": writer, "objective": figures.LABELS[objective],
                 "coherence": values[0], "chance, low": low, "chance, high": high,
                 "p": (values >= values[0] - 1e-12).mean()})
figures.table(coherence := pd.DataFrame(rows))

# %%
at = coherence.set_index(["writer", "objective"])
sft_own = at.loc["base", "SFT"]
is_within = sft_own["chance, low"] <= sft_own.coherence <= sft_own["chance, high"]
Markdown(f"On the teacher's rollouts the coherence of SFT's {blocks} blocks is "
         f"**{at.coherence['teacher', 'SFT']:.2f}**; on the base's own it is "
         f"**{sft_own.coherence:.2f}**, {'within' if is_within else 'outside'} the "
         f"band of chance ({sft_own['chance, low']:.2f} to "
         f"{sft_own['chance, high']:.2f}). RFT's is "
         f"{at.coherence['teacher', 'RFT']:.2f} and {at.coherence['base', 'RFT']:.2f}.")

# %% [markdown]
# A coherence within chance on own rollouts is what {eq}`eq-onpolicy-zero` demands, for a base that was sampled as the equation asks. It is also a test of the
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
    return product(one, a, other, b) / np.sqrt(product(one, a, one, a) * product(other,
            b, other, b))


even = np.arange(blocks) % 2 == 0
rows = []
for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
    line = {"first": f"{figures.LABELS[kinds[a][1]]}, {kinds[a][0]}",
            "second": f"{figures.LABELS[kinds[b][1]]}, {kinds[b][0]}"}
    ways = {"same blocks": (1, 1), "other blocks": (even, ~even)}
    # two writers have no rows in common
    for name, (one, other) in list(ways.items())[kinds[a][0] != kinds[b][0]:]:
        values = cosine_of(signs * one, a, signs * other, b)
        low, high = np.nanquantile(values, [0.025, 0.975])
        line |= {name: values[0], f"{name}, chance": f"{low:+.2f} to {high:+.2f}"}
    rows.append(line)
pairs = pd.DataFrame(rows)
pairs.style.format(precision=2, na_rep="").hide(axis="index")

# %%
line = pairs.iloc[1]
Markdown(f"On the base's own rollouts the gradients of SFT and RFT have a cosine of "
         f"**{line['same blocks']:.2f}** on the same blocks, where noise alone gives "
         f"{line['same blocks, chance']}, and of **{line['other blocks']:.2f}** on "
         f"different ones. On the teacher's they have {pairs['same blocks'][0]:.2f} "
         f"and {pairs['other blocks'][0]:.2f}.")

# %% [markdown]
# The comparison on different blocks is the fair one: it asks whether two objectives *want* the same thing. The cosines of trained updates, to which we
# come now, are always of the first kind, since all methods walk through one table in one order. Keep this in mind for the own rollouts.
#
# ## How long are the updates?
#
# If the gradient is noise, is the update short? Not by itself. AdamW divides each entry's step by the size of its recent gradients, so that pure noise still
# moves the weights by what {eq}`eq-norms-walk` calls a *walk*. In units of a walk, a norm says whether the steps had a common direction.

# %%
names = [*methods, *own.values(), *online]
folders = {name: trainer.train(study, study.runs[name]) for name in names}
adapters = {name: load_update(folder / "adapter") for name, folder in folders.items()}
histories = {name: pd.read_parquet(folder / "history.parquet") for name,
             folder in folders.items()}
compared = geometry.compare(adapters)
place = {name: number for number, name in enumerate(compared.runs)}

# %%
def walk(name):
    """Norm that steps of the run's learning rates without any memory would reach."""
    scale = study.lora.alpha / study.lora.rank
    return scale * np.sqrt(study.lora.rank / 3 * compared.modules.d_out.sum()
                           * (histories[name].learning_rate ** 2).sum())


overall = geometry.updates_table(compared).query("layer == -1").set_index("run")
lengths = pd.DataFrame({"run": names, "writer": [writers[name] for name in names],
                        "norm": overall.norm[names].to_numpy(),
                        "effective rank": overall.effective_rank[names].to_numpy()})
lengths["peak rate"] = [study.runs[name].learning_rate for name in names]
lengths["norm / walk"] = lengths.norm / [walk(name) for name in names]
lengths["over the teacher's"] = [row.norm / overall.norm[method]
                                 if (method := counterpart.get(row.run)) else np.nan
                                 for row in lengths.itertuples()]
lengths = pd.concat([pd.DataFrame([{"run": "base", "writer": "", "norm": 0.0}]),
                     lengths])
lengths.assign(run=lengths.run.map(figures.LABELS)).style.format(
    {"peak rate": "{:.0e}"}, precision=3, na_rep="").hide(axis="index")

# %%
ratio = overall.norm["sft-own"] / overall.norm["sft"]
norms = np.sqrt(np.einsum("mii->mi", compared.inner))
quartiles = np.quantile(norms[:, place["sft-own"]] / norms[:, place["sft"]],
                        [0.25, 0.75])
by_walk = lengths.set_index("run")["norm / walk"]
Markdown(f"SFT on the base's own rollouts has **{ratio:.2f}** of the norm that it has "
         f"on the teacher's (quartiles over modules {quartiles[0]:.2f} to "
         f"{quartiles[1]:.2f}). That is {by_walk['sft-own']:.1f} walks, against "
         f"{by_walk['sft']:.1f} on the teacher's.")

# %% [markdown]
# Read the column `norm / walk` for what the length of an update is worth. At one, an update is as long as steps without memory make it, of whatever origin.
# Above one, steps had a direction in common. Below one they undid each other, as they must when texts of $\pi_0$ pull a policy back to $\pi_0$
# that noise has carried away.
#
# ## Who is close to whom?
#
# Now the directions. Left: the six methods on the teacher's rollouts, as on the page on [cosines](10_norms.ipynb). Right: the same six on the base's own. The chance level
# of each cell turns one of the two updates in the output space of each module and keeps its spectrum (`geometry.stacked_cosine`).

# %% mystnb={"image": {"alt": "Two six by six matrices of cosines between the updates of the six objectives, one trained on the teacher's rollouts and one on the base's own"}, "figure": {"caption": "Cosine between the updates of the six objectives, all modules stacked, trained on the teacher's rollouts and on the base's own. Hatched: within 95 % of chance.", "name": "fig-onpolicy-matrices"}}
cosine, sd = geometry.stacked_cosine(compared)
band = 1.96 * sd


def block(rows, columns, values=cosine):
    return values[np.ix_([place[name] for name in rows],
                         [place[name] for name in columns])]


squares = {"on the teacher's rollouts": (methods, methods),
           "on own rollouts": (list(own.values()), list(own.values()))}
panels = {heading: block(*pair) for heading, pair in squares.items()}
insides = {heading: np.abs(block(*pair)) <= block(*pair, band) for heading,
           pair in squares.items()}
figures.matrices(panels, methods, methods, "cosine", insides);

# %%
upper = np.triu_indices(len(methods), 1)
theirs, ours = (panel[upper] for panel in panels.values())
labels = [f"{figures.LABELS[methods[i]]} – {figures.LABELS[methods[j]]}" for i,
          j in zip(*upper, strict=True)]
rank, low, high = statistics.mantel(*panels.values())
with_sft = ours[:len(methods) - 1]
Markdown(f"Over the {len(labels)} pairs the median cosine is "
         f"**{np.median(theirs):.2f}** on the teacher's rollouts and "
         f"**{np.median(ours):.2f}** on own ones; the closest pair is "
         f"{labels[theirs.argmax()]} ({theirs.max():.2f}) there and "
         f"{labels[ours.argmax()]} ({ours.max():.2f}) here. SFT and RFT go from "
         f"{theirs[0]:.2f} to {ours[0]:.2f}. The two orders of pairs agree with a "
         f"rank correlation of {rank:+.2f} (methods exchanged at random: {low:+.2f} "
         f"to {high:+.2f}). On own rollouts SFT is closest to "
         f"{figures.LABELS[methods[1 + int(with_sft.argmax())]]} "
         f"({with_sft.max():.2f}).")

# %% [markdown]
# Compare the right side of {numref}`fig-onpolicy-matrices` with the table of expected directions. SFT has no reason to be near anyone there, except for rows that
# it shares. RFT, Offline GRPO and DPO have the pass rate in common, under noise, and at the first step only. RIFT and RFT share that and the right rows as well.
# Each cell is one run against one other; how far such a cosine moves from seed to seed is the subject of [another page](16_seeds.ipynb).

# %%
shown = [("rft", "offline-grpo"), ("rft", "dpo"), ("offline-grpo", "dpo")]
values = ", ".join(f"{figures.LABELS[a]} – {figures.LABELS[b]} "
                   f"{block([own[a]], [own[b]])[0, 0]:+.2f} (on the teacher's "
                   f"{block([a], [b])[0, 0]:+.2f})" for a, b in shown)
widest = max(block([own[a]], [own[b]], band)[0, 0] for a, b in shown)
Markdown(f"The three that climb the pass rate, on own rollouts: {values}; chance is "
         f"within ±{widest:.3f}.")

# %% [markdown]
# ## The same method, another writer
#
# If the direction of a method were its own, a run on one table would look like the run of that method on the other. Rows are the runs on the teacher's
# rollouts, columns those on own ones.

# %% mystnb={"image": {"alt": "Six by six matrix of cosines between updates trained on the teacher's rollouts, in rows, and on the base's own rollouts, in columns"}, "figure": {"caption": "Cosine between the updates on the teacher's rollouts (rows) and on the base's own (columns). Hatched: within 95 % of chance.", "name": "fig-onpolicy-cross"}}
crossed = block(methods, own.values())
is_inside = np.abs(crossed) <= block(methods, own.values(), band)
figures.matrices({"rows: teacher's, columns: own": crossed}, methods, methods, "cosine",
                 {"rows: teacher's, columns: own": is_inside});

# %%
other_order = load_update(trainer.train(study, study.runs["sft-42-43"]) / "adapter")
yardstick = geometry.stacked_cosine(geometry.compare({"sft": adapters["sft"],
        "other": other_order}))[0][0, 1]
alike, elsewhere = np.diag(crossed), crossed[~np.eye(len(methods), dtype=bool)]
itself = int((crossed.argmax(1) == np.arange(len(methods))).sum())
Markdown(f"SFT on the two tables: **{crossed[0, 0]:+.3f}** (chance "
         f"±{block(['sft'], ['sft-own'], band)[0, 0]:.3f}). The same rows of the "
         f"teacher in another order, from the same initial adapter, would give "
         f"**{yardstick:.2f}**. On the diagonal of the matrix the median is "
         f"{np.median(alike):+.3f}, off it {np.median(elsewhere):+.3f}. For {itself} "
         f"of {len(methods)} runs on the teacher's rollouts the closest run on own "
         f"ones is that of the same method; a blind guess would be right in one of "
         f"{len(methods)}.")

# %% [markdown]
# Two yardsticks frame {numref}`fig-onpolicy-cross`. Chance is close to zero. The same objective on the same texts in another order is what "the same direction" looks
# like when nothing but the order changes. The nearer the diagonal to the first, the more of the shared direction was in the texts; a direction of the loss
# would show as a diagonal that stands out from the rest of the matrix.
#
# A cosine can be small while two updates still act through the same few directions, so here are the first singular vectors. `left` is the output side, on which nothing is
# shared by construction. `right` is the input side, where all runs began with the same $A$.

# %%
nulls = compare_by_chance({name: adapters[name] for name in ("sft", "sft-own")}, 20)
rows = []
for method in methods:
    trio = {"with SFT, teacher's": ("sft", method),
            "with SFT, own": ("sft-own", own[method]),
            "both writers": (method, own[method])}
    rows.append({"method": figures.LABELS[method],
                 **{f"{side}: {name}": compared.first[side][:, place[a],
            place[b]].mean() if a != b else np.nan for side in ("left", "right")
                    for name, (a, b) in trio.items()}})
vectors = pd.DataFrame(rows)
drawn = {side: np.mean([null.first[side][:, 0, 1].mean() for null in nulls])
         for side in ("left", "right")}
vectors.loc[len(vectors)] = ["by chance",
                             *[drawn[name.split(":")[0]]
                               for name in vectors.columns[1:]]]
figures.table(vectors)

# %%
line = vectors.set_index("method").loc["SFT"]
Markdown(f"The first left vector of SFT on own rollouts overlaps with that of SFT on "
         f"the teacher's by **{line['left: both writers']:.2f}** (chance "
         f"{drawn['left']:.2f}), the first right vector by "
         f"{line['right: both writers']:.2f} (chance within one row space "
         f"{drawn['right']:.2f}). The effective rank, of at most {study.lora.rank}, "
         f"is {overall.effective_rank['sft']:.1f} on the teacher's and "
         f"{overall.effective_rank['sft-own']:.1f} on own rollouts.")

# %% [markdown]
# ## Did the manner go over?
#
# Behaviour next. Each run answers the same test problems greedily, those that every control answers; the counts are those of the tables above.

# %%
answered = answering.records(study,
                             ["base", *(study.runs[name] for name in names)]).query(
                                 "split == 'test'")
answered = answered.groupby("run", sort=False).head(answering.CONTROL_PROBLEMS)
spoken = answered.assign(sentence=in_sentences(answered.completion))
manner = spoken.groupby("run", sort=False).agg(sentences=("sentence", "mean"),
    tokens=("tokens", "mean"), truncated=("truncated", "mean"))
figures.table(manner.rename(columns={"sentences": "begins with a sentence"})
              .reset_index())

# %%
kept = manner.sentences[list(own.values())]
taken = manner.sentences[methods]
changed = [figures.LABELS[name] for name in methods if taken[name] > 0.5]
Markdown(f"The base begins {manner.sentences['base']:.1%} of its greedy answers with a "
         f"sentence. On the teacher's rollouts, {len(changed)} of {len(methods)} "
         f"methods went over to the teacher's "
         f"manner{' (' + ', '.join(changed) + ')' if changed else ''}; on own "
         f"rollouts the share of sentences stays between {kept.min():.1%} and "
         f"{kept.max():.1%}, with {manner.tokens[list(own.values())].min():.0f} to "
         f"{manner.tokens[list(own.values())].max():.0f} tokens an answer against the "
         f"base's {manner.tokens['base']:.0f}.")

# %% [markdown]
# Forced into the teacher's opening without any training, the base loses accuracy, as the page on [evaluation](09_evaluation.ipynb) measured. A run
# that did not go over to the manner does not pay that price, whatever else it learned.

# %% mystnb={"image": {"alt": "Dot plot of test accuracy with intervals for the base, the six objectives on the teacher's rollouts, the six on own rollouts and the online runs, dashed line at the base"}, "figure": {"caption": "Share of test problems solved, with 95 % Wilson intervals: the base, the six objectives on the teacher's rollouts, on the base's own, and online; dashed: the base.", "name": "fig-onpolicy-accuracy"}}
accuracy = statistics.accuracy_table(answered)
figures.intervals(accuracy, "accuracy", "low", "high", "share of test problems solved",
                  reference="base");

# %%
def paired(records, pairs):
    """Paired tests of some (run, against), differences run minus against, with Holm's correction within this family."""
    found = statistics.mcnemar_table(records, pairs).rename(columns={"run_a": "run",
            "run_b": "against"})
    return found[["run", "against", "difference", "low", "high", "detectable", "p",
                  "p_holm"]]


from_base = paired(answered, [(name, "base") for name in names])
figures.table(from_base)

# %%
by_writer = paired(answered, [(own[method], method) for method in methods])
figures.table(by_writer)

# %%
def verdicts(rows):
    """How many of some tests found a loss, how many a gain."""
    found = rows[rows.p_holm < 0.05].difference
    return f"{int((found < 0).sum())} of {len(rows)} lose and {int((found > 0).sum())} gain"


split = {name: from_base[from_base.run.isin(group)] for name,
         group in (("teacher", methods), ("own", own.values()), ("online", online))}
Markdown(f"Against the base, at 5 % after Holm's correction over all {len(from_base)}: "
         f"on the teacher's rollouts {verdicts(split['teacher'])}; on own ones "
         f"{verdicts(split['own'])}; online {verdicts(split['online'])}. Own minus "
         f"teacher's, the same method: from {by_writer.difference.min():+.1%} to "
         f"{by_writer.difference.max():+.1%}; "
         f"{int(((by_writer.p_holm < 0.05) & (by_writer.difference > 0)).sum())} of "
         f"{len(by_writer)} are better on own rollouts.")

# %% [markdown]
# In {numref}`fig-onpolicy-accuracy` the first and the second six differ in nothing but the texts. Where the second keeps what the first loses, the loss was in
# the texts. It need not be the manner alone, since the base is also wrong more often than the teacher; but being wrong more often should make it a *worse*
# teacher.
#
# Own texts do not make a method safe, however. The table of expected directions holds at step 0. After that the texts are those of a policy that is no longer the one in
# training, and it matters whether a loss has a floor. SFT, RFT and DFT only raise what they see, and RIFT lowers wrong texts by a bounded amount. Offline GRPO
# multiplies $\log \pi$ of wrong texts by a negative weight, and that product has no minimum: a text that has become improbable is pushed down as hard as before. DPO
# has a floor for the *difference* of two texts and none for their common level. Own rollouts give both more to push down, because more of them are wrong.

# %%
apart = from_base.set_index("run").difference
pushing = ["offline-grpo", "dpo"]
raising = [method for method in methods if method not in pushing]
means = {(kind, where): apart[[name_of[method] for method in group]].mean() for kind,
         group in (("raise", raising), ("push", pushing)) for where,
         name_of in (("teacher", {method: method for method in methods}), ("own", own))}
Markdown(f"Mean difference from the base over the {len(raising)} methods that raise or "
         f"have a floor: {means['raise', 'teacher']:+.1%} on the teacher's rollouts, "
         f"**{means['raise', 'own']:+.1%}** on own ones. Over the {len(pushing)} that "
         f"push wrong texts down: {means['push', 'teacher']:+.1%} and "
         f"**{means['push', 'own']:+.1%}**.")

# %% [markdown]
# The online runs below are a control for this reading: they weigh right and wrong much as Offline GRPO does, on texts that are never out of date. It is not a clean
# one where their peak rate is another, as the table of lengths says; DPO has a rate of its own as well.
#
# ## How far from the base?
#
# Divergence a token, along the base's own texts (forward) and along the run's (reverse), as on the page on evaluation.

# %%
rows = [{"run": "base", "direction": direction, "kl": 0.0} for direction in ("forward",
        "reverse")]
for name in names:
    for direction, group in likelihood.divergence(study, study.runs[name]).groupby(
        "direction"):
        value, low, high = statistics.bootstrap_ratio(group.nats, group.tokens)
        rows.append({"run": name, "direction": direction, "kl": value,
                     "interval": f"{low:.4f} to {high:.4f}"})
divergences = pd.DataFrame(rows)
wide = divergences.pivot(index="run", columns="direction",
                         values=["kl", "interval"]).loc[["base", *names]]
wide.rename(index=figures.LABELS).style.format(precision=4, na_rep="–")

# %%
kl = divergences[divergences.direction == "forward"].set_index("run").kl
Markdown(f"Forward, SFT is {kl['sft']:.3f} nats a token away from the base on the "
         f"teacher's rollouts and {kl['sft-own']:.4f} on its own, a factor of "
         f"**{kl['sft'] / kl['sft-own']:.0f}**, where the norms differ by "
         f"{1 / ratio:.1f}. RFT goes from {kl['rft']:.3f} to {kl['rft-own']:.4f}.")

# %% [markdown]
# The two factors need not agree. A divergence is quadratic in a small step, and it counts only what reaches the next token: noise in weights
# that the base's texts hardly feel has length and no effect.
#
# ## Does a shorter step give it back?
#
# Another way to keep the base's accuracy is to move less. The update of a finished run can be scaled, $W_0 + t\, \Delta W$, without training: $t = 0$ is the base and
# $t = 1$ the run. If SFT lost accuracy by going too far in a good direction, some $t < 1$ should do better than both ends.

# %% mystnb={"image": {"alt": "Two lines with shaded intervals of accuracy against the factor t that scales the updates of SFT and Offline GRPO, starting at the base at zero"}, "figure": {"caption": "Share of problems solved when the update is scaled by $t$; shaded: 95 % Wilson intervals; $t = 0$ is the base, $t = 1$ the trained run.", "name": "fig-onpolicy-scaled"}}
steps = interventions.SCALES["sft"]
ends = {"sft": {0: "base", 1: "sft"}, "offline-grpo": {0: "base", 1: "offline-grpo"}}
parts = {run:
         dict(sorted({**ends[run], **{t: f"{run} times {t:g}" for t in steps}}.items()))
         for run in ends}
scaled = {run: interventions.table(study, list(named.values())).assign(run=run,
        t=list(named)) for run, named in parts.items()}
figures.lines_of_runs({"": pd.concat(scaled.values())}, "t", "accuracy", "factor t",
                      "share of problems solved");

# %%
graded = pd.concat([interventions.records(study, name).assign(run=name)
                    for name in parts["sft"].values()])
shorter = [name for t, name in parts["sft"].items() if 0 < t < 1]
against_base = paired(graded, [(name, "base") for name in shorter])
against_sft = paired(graded, [(name, "sft") for name in shorter])
figures.table(pd.concat([against_base, against_sft]))

# %%
curve = scaled["sft"].set_index("t")
inner_best = curve.accuracy[[t for t in steps if t < 1]].idxmax()
gains = int(((against_base.p_holm < 0.05) & (against_base.difference > 0)).sum())
losses = int(((against_base.p_holm < 0.05) & (against_base.difference < 0)).sum())
back = int(((against_sft.p_holm < 0.05) & (against_sft.difference > 0)).sum())
Markdown(f"The base solves {curve.accuracy[0]:.1%} of these {curve.n[0]} problems and "
         f"SFT {curve.accuracy[1]:.1%}. The best of the shorter steps is $t$ = "
         f"{inner_best:g} with **{curve.accuracy[inner_best]:.1%}**. Of the "
         f"{len(shorter)} shorter steps, {back} are better than SFT, {gains} better "
         f"and {losses} worse than the base (Holm, 5 %).")

# %% [markdown]
# A curve that falls from the base to the run without a hump in {numref}`fig-onpolicy-scaled` says that the length was not the trouble: a shorter step only
# undoes the training. A valley says that half of a change of manner is worse than either manner. And a hump would mean that the method knew where to go
# and not where to stop.
#
# Length can be measured by its effect as well. At the same divergence from the base, are own rollouts better than a shortened SFT?

# %% mystnb={"image": {"alt": "Scatter plot of accuracy against forward divergence from the base: grey dots for SFT shortened, markers for the base, the runs on own rollouts and the online runs"}, "figure": {"caption": "Share of problems solved against the forward divergence from the base. Grey dots: SFT on the teacher's rollouts, its update scaled by $t$ up to 1; markers: runs on own rollouts and online runs.", "name": "fig-onpolicy-plane"}}
reached = interventions.table(study, [*own.values(), *online])
between = scaled["sft"].query("0 < t <= 1")
points = [between.assign(run=np.nan), scaled["sft"].query("t == 0").assign(run="base"),
          reached]
fig = figures.losses_and_accuracy(pd.concat(points), {"kl": "KL(base || policy), nats "
                                                            "a token"})
fig.axes[0].set_xscale("symlog", linthresh=0.01);

# %%
nearest = {row.part: between.part.iloc[(between.kl - row.kl).abs().argmin()]
           for row in reached.itertuples()}
on_same = pd.concat([graded, *(interventions.records(study, name).assign(run=name)
                               for name in nearest)])
at_kl = paired(on_same, list(nearest.items()))
divergence = pd.concat([reached, between]).set_index("part").kl
at_kl.insert(2, "kl", divergence[at_kl.run].to_numpy())
at_kl.insert(3, "its kl", divergence[at_kl.against].to_numpy())
figures.table(at_kl)

# %%
better = at_kl[(at_kl.p_holm < 0.05) & (at_kl.difference > 0)].run.map(lambda run:
    figures.LABELS[run])
Markdown(f"**{len(better)} of {len(at_kl)}** runs on their own texts solve more "
         f"problems than the shortened SFT that is nearest to them in "
         f"divergence{': ' + ', '.join(better) if len(better) else ''}. Forward "
         f"divergences run from {reached.kl.min():.4f} to {reached.kl.max():.3f} nats "
         f"a token for them, and from {between.kl.min():.4f} to "
         f"{between.kl.max():.3f} along SFT's update.")

# %% [markdown]
# In {numref}`fig-onpolicy-plane` the grey dots are the exchange that SFT offers, problems for nats. A marker above them got more for the same distance from
# the base: there the direction made the difference, and not the length.
#
# ## Online
#
# The runs on own rollouts use texts of the *initial* policy to the end. Online methods write new ones at every step, eight a prompt: GRPO {cite:p}`shao2024deepseekmath`
# and DAPO's loss {cite:p}`yu2025dapo`, with `trl.GRPOTrainer`, from the same start and with the same adapter. At step 0 both follow the
# gradient of the pass rate, as {eq}`eq-onpolicy-score` says, divided by the spread of each group.

# %%
rows = []
for name in online:
    value, width = block([name], ["sft"])[0, 0], block([name], ["sft"], band)[0, 0]
    test = from_base.set_index("run").loc[name]
    rows.append({"run": figures.LABELS[name], "cosine with SFT": value,
                 "chance": f"±{width:.4f}",
                 "orthogonal by norm": np.sqrt(1 - value ** 2),
                 "norm / SFT's": overall.norm[name] / overall.norm["sft"],
                 "accuracy minus the base's": f"{test.difference:+.3f} "
                                              f"({test.low:+.3f} to {test.high:+.3f})"})
theirs = {"run": "GRPO of the paper", "cosine with SFT": 0.025, "chance": "",
          "orthogonal by norm": 0.998, "norm / SFT's": 0.30 / 2.84,
          "accuracy minus the base's": "about 0 (93 to 94 % both)"}
figures.table(pd.DataFrame([*rows, theirs]))

# %%
everyone = [*methods, *own.values()]
# a run without any reward stays at zero
near = pd.Series(block(online[:1], everyone)[0], index=everyone).fillna(0)
inside = abs(near["sft"]) <= block(online[:1], ["sft"], band)[0, 0]
Markdown(f"Online GRPO has a cosine with SFT {'within' if inside else 'outside'} its "
         f"band of chance. Among the twelve offline runs it is closest to "
         f"{figures.LABELS[near.idxmax()]} (**{near.max():+.3f}**). Its cosine with "
         f"RFT is {near['rft-own']:+.3f} on own rollouts and {near['rft']:+.3f} on "
         f"the teacher's, with Offline GRPO {near['offline-grpo-own']:+.3f} and "
         f"{near['offline-grpo']:+.3f}, with DPO {near['dpo-own']:+.3f} and "
         f"{near['dpo']:+.3f}.")

# %% [markdown]
# The paper's orthogonal part of .998 is its cosine of .025 in another unit {cite:p}`nikolich2026geometry`. And a cosine with SFT near zero is what *any* two updates without a common cause have, and by {eq}`eq-onpolicy-zero` a method on its own samples has no cause in
# common with the imitation of a teacher. To call online training "a different mechanism" because of it would be to say too much; runs of SFT and RFT on own
# rollouts, in {numref}`fig-onpolicy-cross`, are the control. What is left for the mechanism is the difference between those and the online runs.

# %% [markdown]
# ## The table of this page

# %%
def with_sft(name):
    value, width = (0.0, 0.0) if name == "sft" else (block([name], ["sft"])[0, 0],
        block([name], ["sft"], band)[0, 0])
    return {"cosine_sft": 1.0 if name == "sft" else value, "chance_low": -width,
            "chance_high": width}


stored = [{"run": "base", "writer": "", "norm": 0.0, "cosine_sft": np.nan,
           "chance_low": np.nan, "chance_high": np.nan}]
stored += [{"run": name, "writer": writers[name], "norm": overall.norm[name],
            **with_sft(name)} for name in names]
stored = pd.DataFrame(stored).merge(
    accuracy[["run", "accuracy", "low", "high"]]).assign(kl=lambda table:
    table.run.map(kl), tokens=lambda table: table.run.map(manner.tokens))
figures.table(store.write_table(profile, "on_policy", stored))

# %% [markdown]
# ## What was expected
#
# Written down before any of these runs existed, in [the predictions](../predictions.md):

# %%
rft = from_base.set_index("run").loc["rft-own"]
across = crossed[0, 0]
outcomes = [predictions.outcome("norm of SFT on the base's own rollouts, over SFT's on "
                                "the teacher's", ratio, ratio < 0.5, ratio > 0.8,
                                form="{:.2f}", about=f"quartiles over modules "
                                                     f"{quartiles[0]:.2f} to "
                                                     f"{quartiles[1]:.2f}"),
            predictions.outcome("SFT on own and on the teacher's rollouts, alike",
                                across, across < 0.2, across > 0.5),
            predictions.outcome("accuracy of RFT on the base's own rollouts minus the "
                                "base's", 100 * rft.difference,
                                0 <= rft.difference <= 0.06, rft.difference <= -0.05,
                                100 * rft.low, 100 * rft.high, "{:+.1f}", "in points"),
            predictions.outcome("online GRPO, alike to SFT", near["sft"],
                                abs(near["sft"]) <= 0.1, abs(near["sft"]) > 0.1)]
expected = predictions.write(profile, "20", outcomes)
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
# 3. Why does Offline GRPO's bias $b$ matter on the teacher's rollouts and not, in expectation, on own ones?
#
# ````{dropdown} Answer
# The bias adds $b$ times SFT's gradient. On own rollouts that has mean zero. On the teacher's it is a steady pull towards the teacher's manner: a tenth of SFT, while
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
# teacher is the difference between two writers, and a difference of manner is its largest part. On own rollouts the objectives that look at rewards have one
# direction in common, the pass rate, {eq}`eq-onpolicy-logit`, at the first step and under noise that all methods on one table share. The tables above say how much of the norm, of
# the cosines and of the loss of accuracy went with the teacher's texts, and for which objectives own texts were no protection. The [next page](21_interventions.ipynb) takes updates apart and measures what each part does.
