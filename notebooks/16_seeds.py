# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, seeds, grid-sft, grid-rft, grid-dpo, mirrored, rates, subset, held-out]
# ---

# %% [markdown]
# # Seeds and initialisation
#
# *Previously,* the geometry of six updates was read beside bands of [chance](15_chance.ipynb). *Now* the question is what a seed alone does to it. All six runs began with the
# same random factor $A$ and met the prompts in the same order; here both are drawn anew, together and one at a time, and what two updates share is
# divided among the initialisation, the order of the data and the loss.
#
# **Key takeaways**
# - Two random starts show a gradient through two different windows. Even on one and the same gradient the first steps then have a cosine of only about $r / (r + d_\text{in})$.
# - A crossed design of initialisations, orders and losses divides the update's squared norm exactly, from inner products alone; what that says of *other* seeds needs a correction.
# - The cosine of two losses at equal seeds and their cosine with the seeds averaged out are two numbers, and the page gives both.
# - With $A = 0$ and $B$ random at the start, the side on which all runs agree by construction is the output side.
#
# You need: [cosines](10_norms.ipynb) and [principal angles](11_angles.ipynb) with their chance levels. Reads more than forty adapters, trained beforehand. Time to run: about a minute.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import json
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from adapter_geometry import geometry, mode_connectivity, representations, updates
from adapter_geometry.chance import compare_by_chance
from helpers import profiles, store
from helpers.analysis import (
    connectivity,
    outcomes,
    paper,
    predictions,
    replication,
    seed_grid,
)
from helpers.book import figures
from helpers.evaluation import answering, statistics
from helpers.models import loading
from helpers.training import trainer

study = profiles.load(profile)
groups = {name: group.runs for name, group in study.controls.items()}
figures.use_style(study)

# %% [markdown]
# ## Two draws in one seed
#
# "Another seed" changes two things at once. One draw fills the factor $A$ of each {term}`module` before training starts (`init_seed`). The other shuffles the prompts
# (`seed`). A run is named by both, initialisation first: SFT 43/44 began with $A$ number 43 and read the prompts in order 44, and the
# [main runs](03_sft.ipynb) are 42/42. For three losses, SFT, RFT and DPO, each initialisation meets each order: a *crossed design*.

# %%
methods = ("sft", "rft", "dpo")
grid = seed_grid.grid_of(study, methods)
runs, pairs = grid.runs, grid.pairs
adapters = {name: trainer.update_of(study, name) for name in runs.run}
compared = geometry.compare(adapters)
modules = compared.modules
cosine, sd = geometry.stacked_cosine(compared)
grid.add("cosine", cosine)

# %%
counts = runs[["method", "init", "order"]].nunique()
norms = runs.run.map(lambda name: updates.norm(adapters[name])).groupby(runs.method)
spread = (norms.std() / norms.mean()).max()
seconds = {"sft-low": "sft-low-second", "sft": "sft-43-43",
           "sft-high": "sft-high-second"}
kinds_of_runs = ("seeds", *(f"grid-{method}" for method in methods), "mirrored",
                 "subset")
controls = [name for kind in kinds_of_runs for name in groups[kind]]
used = dict.fromkeys([*study.main_runs, *controls, *seconds, *seconds.values()])
Markdown(f"""{counts.method} losses × {counts.init} initialisations × {counts.order}
orders: {len(runs)} runs. Within a method the norms of the updates have a standard
deviation of at most {spread:.1%} of their mean; what follows compares directions.
{store.origin(profile, [study.runs[name] for name in used])}""")

# %% [markdown]
# The cosines among the runs of SFT, all modules stacked:

# %% mystnb={"image": {"alt": "Symmetric matrix of cosines between the runs of SFT, ordered by initialisation and within it by order of the prompts, with ones on the diagonal"}, "figure": {"caption": "Cosine of the updates of SFT under different seeds, written as initialisation/order; SFT without numbers is 42/42.", "name": "fig-seeds-matrix"}}
of_sft = runs.index[runs.method == "sft"]
figures.matrix(cosine[np.ix_(of_sft, of_sft)], runs.run[of_sft].tolist(),
               "cosine of the updates", 0, 1);

# %% [markdown]
# The runs of {numref}`fig-seeds-matrix` stand in blocks of one initialisation. If the initialisation did not matter, no blocks would be seen; if nothing else mattered, the
# blocks would be full of ones and the rest empty. Every number of the matrix belongs to the same loss, the same base and the same table of rollouts.
#
# ## One gradient through two windows
#
# What should one expect? Let $G = \partial L / \partial W$ be the gradient of a module's dense weight. At the start $B = 0$, and the first step of plain gradient descent with
# rate $\eta$ moves only $B$, by $-\eta s\, G A^\top$ (the page on [angles](11_angles.ipynb) derives it). The update is
#
# ```{math}
# :label: eq-seeds-window
# \Delta W = s B A = -\eta s^2\, G\, P, \qquad P = A^\top A ,
# ```
#
# the gradient seen through the window $P$: a random $d_\text{in} \times d_\text{in}$ matrix of rank $r$ that lets $r$ input directions pass. Let a second run have *the same gradient* and
# its own window $P'$. With independent entries of variance $\sigma^2$ in $A$ we have $\mathbb{E}\,P = r \sigma^2 I$ and $\mathbb{E}\,P^2 \approx r (r + d_\text{in}) \sigma^4 I$, since
# $P^2 = \sum_{kl} a_k (a_k^\top a_l)\, a_l^\top$ has $r$ terms with $k = l$, each on average $d_\text{in} \sigma^4 I$, and $r(r-1)$ others, each $\sigma^4 I$. So
# $\mathbb{E} \langle G P, G P' \rangle = r^2 \sigma^4 \lVert G \rVert^2$ and $\mathbb{E} \lVert G P \rVert^2 \approx r (r + d_\text{in}) \sigma^4 \lVert G \rVert^2$, whatever $G$ is:
#
# ```{math}
# :label: eq-seeds-expected
# \cos(\Delta W, \Delta W') \approx \frac{r}{r + d_\text{in}} .
# ```
#
# AdamW's first step is not along the gradient of $B$ but close to its *sign*, with $\Delta W \propto \operatorname{sign}(G A^\top) A$. A row $g$ of $G$ then becomes $\operatorname{sign}(A g)^\top A$, whose mean
# points along $g$ with the length $r \sigma \sqrt{2/\pi}$, in a vector of squared length about $r d_\text{in} \sigma^2$. Instead of {eq}`eq-seeds-expected` the cosine is about
#
# ```{math}
# :label: eq-seeds-signs
# \cos(\Delta W, \Delta W') \approx \frac{r}{r + \tfrac{\pi}{2}\, d_\text{in}} .
# ```
#
# The two sides fare differently. If one pair of directions dominates, $G \approx g\, u v^\top$, then $G P \approx g\, u\, (P v)^\top$: the output direction $u$ is the same in both
# runs, while the input directions $P v$ and $P' v$ have the small cosine. A simulation with a planted pair $u, v$ and some noise:

# %%
d_in, rank = int(modules.d_in.median()), study.lora.rank
source = np.random.default_rng(0)
u, v = source.standard_normal(64), source.standard_normal(d_in)
G = 3 * np.outer(u, v) / np.sqrt(d_in) + 0.3 * source.standard_normal((64, d_in))


def seen_through_a_window(step):
    A = source.uniform(-1, 1, (rank, d_in))
    update = step(G @ A.T) @ A
    U, _, Vh = np.linalg.svd(update, full_matrices=False)
    return update.ravel() / np.linalg.norm(update), U[:, 0], Vh[0]


def two_windows(step):
    """Mean cosine of two updates, overlaps of their first left and right vectors."""
    drawn = [zip(seen_through_a_window(step), seen_through_a_window(step), strict=True)
             for _ in range(40)]
    products = np.array([[one @ other for one, other in pair] for pair in drawn])
    return products[:, 0].mean(), *np.abs(products[:, 1:]).mean(0)


plain, signs = two_windows(lambda gradient: gradient), two_windows(np.sign)
expected, expected_signs = (rank / (rank + factor * d_in) for factor in (1, np.pi / 2))
Markdown(f"""With $r$ = {rank} and $d_\\text{{in}}$ = {d_in}, one gradient and two
windows: cosine **{plain[0]:.3f}** for a gradient step ({expected:.3f} by
{{eq}}`eq-seeds-expected`), **{signs[0]:.3f}** for a step of signs ({expected_signs:.3f}
by {{eq}}`eq-seeds-signs`). The first left vectors overlap by {plain[1]:.2f} and
{signs[1]:.2f}, the first right ones by {plain[2]:.2f} and {signs[2]:.2f}. At the
paper's $r$ = 32 and $d_\\text{{in}}$ = 2560 the two equations give
{32 / (32 + 2560):.3f} and {32 / (32 + np.pi / 2 * 2560):.3f}.""")

# %% [markdown]
# (An overlap is an absolute value and so a little larger than the cosine.) Small as they are, these values are not the cosine of two unrelated updates, which is zero on average. They are what *one step on the same
# gradient* shows. A real run makes many steps, on gradients that move away from the first, and its $A$ turns towards what it needs. Then the cosine may
# rise above the value, and that it should rise with the learning rate is part of what the paper reports.
#
# Two runs with the *same* $A$ look through one window. They have the cosine of $G P$ and $G' P$, which for gradients that differ by noise only is close to one.
#
# ## What a pair of runs shares
#
# Each pair of runs from the grid shares the initial $A$, the order of the prompts, both or neither. For each pair we take the cosine of the stacked updates with its chance band (a random rotation
# of each module's outputs, [as before](10_norms.ipynb)), the overlap of the first left and of the first right singular vectors, averaged over modules, and the smallest
# {term}`principal angle` of each side, as its median over modules.

# %%
grid.add("cosine_chance", 1.96 * sd)
for side in ("left", "right"):
    grid.add(side, np.nanmean(compared.first[side], 0))
    smallest = compared.angles[side][..., 0]
    grid.add(f"{side}_angle", np.degrees(np.nanmedian(smallest, 0)))


def heading(first, second):
    labels = [figures.LABELS[method] for method in (first, second)]
    return " – ".join(dict.fromkeys(labels))


# %% mystnb={"image": {"alt": "Five panels of strips, for SFT, RFT, DPO, SFT with RFT and SFT with DPO, one dot for each pair of runs, grouped by whether they share neither seed, the order, the initial A or both, with thin grey chance bands at zero"}, "figure": {"caption": "Cosine of the updates of two runs by what they share: neither seed, the order of the prompts, the initial $A$, or both; one dot per pair, bar: median. Grey: 95 % of what chance gives.", "name": "fig-seeds-shares"}}
couples = [(method, method) for method in methods] + [("sft", "rft"), ("sft", "dpo")]
panels, bands = {}, {}
for couple in couples:
    panels[heading(*couple)] = grid.by_share("cosine", *couple)
    chance = grid.by_share("cosine_chance", *couple)
    bands[heading(*couple)] = {label: (-values.mean(), values.mean())
                               for label, values in chance.items()}
figures.strips(panels, "cosine of the updates", bands);

# %% [markdown]
# In {numref}`fig-seeds-shares` compare first within a panel: the step from "order" to "A" is what a common window is worth, the step from "neither" to "order" what a common order is worth. Then compare
# across panels: where SFT – RFT with other seeds stands as high as SFT with itself, a change of loss costs no more than a change of seed already did.
#
# Means need an interval over seeds, not over pairs: pairs that have an initialisation in common are no independent numbers. We leave out one initialisation or one order at a time (a {term}`jackknife`), add the
# two variances and use Student's $t$ with one degree of freedom less than there are levels. Resampling both ways of a table errs on the wide side {cite:p}`owen2007pigeonhole`.

# %%
means = grid.means("cosine", couples)
shown = means.reset_index(names=["method_a", "method_b", "share"])
shown.insert(0, "runs of", shown.method_a.combine(shown.method_b, heading))
shown["chance"] = shown.chance.map("±{:.3f}".format)
shown = shown.drop(columns=["method_a", "method_b"]).rename(columns={"value": "cosine"})
figures.table(shown)

# %%
alone, rft = (means.value.xs(("sft", method), level=["method_a", "method_b"])
              for method in ("sft", "rft"))
by_order, by_start = alone[["order", "initialisation"]] - alone["neither"]
larger = "initialisation" if by_start > by_order else "order"
Markdown(f"""Two runs of SFT that share nothing but loss and data have a cosine of
**{alone['neither']:.3f}**. A common order adds {by_order:+.3f}, a common $A$ adds
{by_start:+.3f}: the {larger} is worth more. One step on one gradient gives
{expected_signs:.3f} by {{eq}}`eq-seeds-signs`. SFT and RFT with equal seeds have
{rft['both']:.3f}, with other seeds {rft['neither']:.3f}.""")

# %% [markdown]
# So "SFT and RFT are alike" makes two statements. One is about two runs under a common window and a common order. The other
# compares their cosine at other seeds with what SFT has with itself at other seeds, and it is the second that says whether the *loss* makes a difference.
#
# ## The side that was drawn and the side that was learnt
#
# By {eq}`eq-seeds-window` the windows concern the input side. The chance level of both sides is the {term}`matched null`: each run keeps its own trained $A$ and the singular values of $B$, all else is
# drawn anew. For runs with one $A$ it contains the common window, for runs with two it does not.

# %% mystnb={"image": {"alt": "Four panels of strips, overlap of first left and of first right singular vectors for pairs of SFT runs and for SFT with DPO, grouped by what the runs share, with grey chance bands"}, "figure": {"caption": "Overlap of the first singular vectors, left (output) and right (input), mean over modules, one dot per pair of runs. Grey: 95 % of the matched null.", "name": "fig-seeds-sides"}}
nulls = compare_by_chance(adapters, 2)
by_chance = {side: np.stack([np.nanmean(null.first[side][:, pairs.a, pairs.b], 0)
                             for null in nulls]) for side in ("left", "right")}
panels, bands = {}, {}
for couple in (("sft", "sft"), ("sft", "dpo")):
    for side, drawn in by_chance.items():
        panels[f"{side}, {heading(*couple)}"] = grid.by_share(side, *couple)
        bands[f"{side}, {heading(*couple)}"] = grid.bands(drawn, *couple)
figures.strips(panels, "overlap of the first vectors", bands);

# %%
vectors = seed_grid.first_vectors_table(
    grid, by_chance, [("sft", "sft"), ("dpo", "dpo"), ("sft", "rft"), ("sft", "dpo")])
vectors.insert(0, "runs of", vectors.method_a.combine(vectors.method_b, heading))
vectors.drop(columns=["method_a", "method_b"]).style.hide()

# %%
left, right = (grid.mean(side, "sft", "sft", "order", "neither")
               for side in ("left", "right"))
other_A = seed_grid.between(pairs, "sft", "sft", "order", "neither").index
chance = {side: drawn[:, other_A].mean() for side, drawn in by_chance.items()}
Markdown(f"""Two SFT runs with different $A$: first left vectors **{left[0]:.2f}** (by
chance {chance['left']:.2f}), first right vectors **{right[0]:.2f}** (by chance
{chance['right']:.2f}). The paper has .99 and .07.""")

# %% [markdown]
# The brackets of the table, like the bands of {numref}`fig-seeds-sides`, are the matched null. The paper reads its pair of numbers as an output direction that every seed finds, next to an arbitrary input direction
# {cite:p}`nikolich2026geometry`. The derivation above says why that pattern needs no learning beyond one common gradient: $u$ passes through every window unharmed, and $v$ passes through none. Where an overlap of left vectors is well below one, either no single pair dominates or the two runs have left their common gradient. What remains an observation, and could
# have been otherwise, is that one pair of directions dominates the gradient at all, and how far $A$ turns towards $v$ in the end. At the paper's width $v$ is one direction among 2,560, at ours it is
# one among far fewer, so its .07 and our number are to be compared each with its own value of {eq}`eq-seeds-expected` or {eq}`eq-seeds-signs`.
#
# ## What the data see
#
# Two updates with a small cosine may still do similar things to the inputs that occur. Let $h$ be a module's input and $C = \mathbb{E}[h h^\top]$, taken from the base on held-out rollouts. What an update adds to the
# module's output is $\Delta W h$, and the mean inner product of two such additions is
#
# ```{math}
# :label: eq-seeds-functional
# \langle \Delta W, \Delta W' \rangle_C = \mathbb{E}\,\big[(\Delta W h)^\top (\Delta W' h)\big] = \operatorname{tr}\!\big(\Delta W\, C\, \Delta W'^\top\big) .
# ```
#
# Its cosine is the *functional cosine*. With $C \propto I$ it is the plain one; directions that no input has count for nothing. A root of $C$ multiplied into $A$ turns one into the other, chance band included.

# %%
base = loading.load_model(study)
written = answering.held_out(study, study.representations.texts)
prompts, completions = list(written.prompt_ids), list(written.completion_ids)
moments = representations.input_moments(base, modules.module, prompts, completions)
functional, functional_sd = representations.functional_cosine(adapters, moments)
grid.add("functional", functional)
grid.add("functional_chance", 1.96 * functional_sd)
largest = [float(torch.linalg.eigvalsh(C)[-1] / C.trace()) for C in moments.values()]
Markdown(f"""From {len(written)} texts. In the median module a single direction carries
{np.median(largest):.0%} of the inputs' mean square, where {1 / d_in:.1%} would be its
part if all were alike.""")

# %% mystnb={"image": {"alt": "Two panels of strips, cosine of the weights and functional cosine, for pairs of runs with other initialisation and other order, within SFT, RFT and DPO and between them, with grey chance bands"}, "figure": {"caption": "Runs that share neither seed: cosine of the updates (left) and functional cosine by {eq}`eq-seeds-functional` (right), one dot per pair. Grey: 95 % of what chance gives.", "name": "fig-seeds-functional"}}
panels, bands = {"weights": {}, "outputs": {}}, {"weights": {}, "outputs": {}}
for couple in couples:
    chosen = seed_grid.between(pairs, *couple, "neither")
    for name, column in (("weights", "cosine"), ("outputs", "functional")):
        width = chosen[f"{column}_chance"].mean()
        panels[name][heading(*couple)] = chosen[column].to_numpy()
        bands[name][heading(*couple)] = (-width, width)
figures.strips(panels, "cosine", bands);

# %%
in_weights, in_outputs = (
    grid.means(column, couples).xs("neither", level="shares")
    for column in ("cosine", "functional"))
gains = pd.DataFrame({
    "runs of": [heading(*couple) for couple in couples],
    "weights": in_weights.value.to_numpy(), "outputs": in_outputs.value.to_numpy(),
    "chance, outputs": [f"±{width:.3f}" for width in in_outputs.chance]})
figures.table(gains)

# %% [markdown]
# The table holds the means of the panels. Those of {numref}`fig-seeds-functional` have one vertical axis. If a seed were only another way to write down the same function, the right-hand dots of a method with itself would be at one. The distance that
# is left measures, to first order in the update and module by module, how differently two seeds of one loss act on the same inputs.
#
# ## Dividing the update among its causes
#
# Write $\Delta W_{io}$ for the update with initialisation $i$ and order $o$ of one method, divided by its norm and with all modules stacked. Let a dot stand for the mean over an index. Then
#
# ```{math}
# :label: eq-seeds-anova
# \begin{gathered}
# \Delta W_{io} = \underbrace{M}_{\Delta W_{\cdot\cdot}} + \underbrace{I_i}_{\Delta W_{i\cdot} - M} + \underbrace{O_o}_{\Delta W_{\cdot o} - M} + R_{io}, \\
# \sum_{io} \lVert \Delta W_{io} \rVert^2 = \sum_{io} \Big( \lVert M \rVert^2 + \lVert I_i \rVert^2 + \lVert O_o \rVert^2 + \lVert R_{io} \rVert^2 \Big) ,
# \end{gathered}
# ```
#
# because each of the four sets of vectors is perpendicular to the others when summed over the table. This is an analysis of variance whose observations are not numbers but whole updates. No update is formed for it: every term is
# a sum of inner products, and the matrix of cosines has them all.
#
# But the shares of {eq}`eq-seeds-anova` flatter the causes. Let there be $m$ initialisations and $n$ orders. Even $mn$ updates *at right angles*, which share nothing, have a mean with the share $1/mn$ of their square, and give $(m-1)/mn$ to $I$, $(n-1)/mn$ to $O$ and $(m-1)(n-1)/mn$ to $R$: their degrees of
# freedom. What we want to know is what *other* seeds would have in common. Take the initialisations and the orders as drawn at random, $\Delta W_{io} = \mu + \alpha_i + \beta_o + \varepsilon_{io}$ with independent vectors of mean
# zero. Then the mean inner product of a pair of runs depends on what it shares:
#
# ```{math}
# :label: eq-seeds-components
# \begin{aligned}
# \text{neither: } & c_0 = \lVert \mu \rVert^2, \\
# \text{the same } A\text{: } & c_I = \lVert \mu \rVert^2 + \mathbb{E}\lVert \alpha \rVert^2, \\
# \text{the same order: } & c_O = \lVert \mu \rVert^2 + \mathbb{E}\lVert \beta \rVert^2, \\
# \text{a run with itself: } & 1 = \lVert \mu \rVert^2 + \mathbb{E}\lVert \alpha \rVert^2 + \mathbb{E}\lVert \beta \rVert^2 + \mathbb{E}\lVert \varepsilon \rVert^2 .
# \end{aligned}
# ```
#
# So the components are differences of the mean cosines of {numref}`fig-seeds-shares`: $c_0$ is the part that every seed has, $c_I - c_0$ the initialisation's, $c_O - c_0$ the order's, and the rest belongs to the one run.
# They are the classical estimates of variance components {cite:p}`searle1992variance`; they add up to one, are zero on average for unrelated updates, and can come out slightly negative.

# %%
parts = {"mean": "common to all seeds", "init": "initialisation", "order": "order",
         "init x order": "the single run"}
spaces = {"weights": (cosine, sd), "outputs": (functional, functional_sd)}
of_seeds = ["init", "order"]
two_way = pd.concat([
    grid.variance(*matrices, of_seeds, method).assign(design=method, space=space)
    for space, matrices in spaces.items() for method in methods], ignore_index=True)

# %% mystnb={"image": {"alt": "Twelve horizontal intervals, four parts for each of SFT, RFT and DPO: common to all seeds, initialisation, order and single run, with very thin grey bands at zero or one"}, "figure": {"caption": "Parts of the squared norm of an update by {eq}`eq-seeds-components`, with 95 % intervals over seeds. Grey: what unrelated updates give.", "name": "fig-seeds-variance"}}
shown = two_way[two_way.space == "weights"].assign(paper_value=np.nan)
shown["claim"] = [f"{figures.LABELS[row.design]}: {parts[row.part]}"
                  for row in shown.itertuples()]
figures.claims(shown.assign(value=shown.share), "share of the update's squared norm");

# %%
sft = two_way.query("design == 'sft' and space == 'weights'").set_index("part")
columns = ["part", "observed", "by_chance", "alike", "share", "low", "high"]
figures.table(sft.rename(index=parts).reset_index()[columns])

# %% [markdown]
# In {numref}`fig-seeds-variance` the first line of a method is what any seed would find again, and the last is bought with one run only. The table has SFT in detail: `observed` is the split of {eq}`eq-seeds-anova`, `by_chance` the same for updates at right angles, `alike` the mean cosine of the pairs that agree in just this, and `share` the component of
# {eq}`eq-seeds-components` with its interval. The difference of `observed` and `share` is largest where few runs are averaged.
#
# How can so few levels tell anything? A variance estimated from two or three numbers is nearly worthless. But each level here is a *vector*, and the squared lengths of two random vectors in
# a space of many independent directions hardly differ: the dimensions do the averaging that a few draws cannot. The jackknife sees this by itself: where it holds, leaving out one initialisation changes little. What a few levels *can't* tell
# is whether one initialisation in twenty behaves quite differently, and what would happen under another way of drawing $A$, another size of $A$ or another rank. And "the single run" contains both the interaction of initialisation and
# order and whatever else differs from run to run, which here is nothing: a run repeated with both seeds is the same run.
#
# Next, the loss as a third factor. The three losses are not drawn at random, they are the ones we chose; the same formula then reads as "how much more alike are runs with the same loss". Each combination of factors has
# its part, and the components again are mean cosines of pairs that agree in exactly those factors, less the components of all smaller sets.

# %%
factors = ["method", "init", "order"]
three_way = pd.concat([
    grid.variance(*matrices, factors).assign(design="three losses", space=space)
    for space, matrices in spaces.items()])
variance = pd.concat([two_way, three_way], ignore_index=True)
columns = ["part", "observed", "by_chance", "alike", "share", "low", "high",
           "chance_low", "chance_high"]
store.write_table(profile, "variance", variance[["design", "space", *columns]])
three, outputs = (three_way[three_way.space == space].set_index("part")
                  for space in ("weights", "outputs"))
shown = three.assign(outputs=outputs.share).reset_index()
figures.table(shown[[*columns, "outputs"]].drop(columns="alike"))

# %%
called = {"method": "the loss", "init": "the initialisation", "order": "the order"}
sums = {name: three.share[[factor in part.split(" x ") for part in three.index]].sum()
        for factor, name in called.items()}
text = ", ".join(f"**{value:.0%}** for {name}" for name, value in sums.items())
Markdown(f"""Over the three losses, the parts in which a factor takes part, alone or
with others, add up to {text} (they overlap, so the sum exceeds one). What all
{len(runs)} runs have in common is {three.share['mean']:.1%}. The largest
is {max(sums, key=sums.get)}.""")

# %% [markdown]
# One more reading of the same table, the one that was [predicted](../predictions.md): among all pairs of the runs of SFT in the grid, which share of the *variance of the cosine* is explained by whether the pair has one $A$? With
# $c_p$ the cosine of pair $p$, $\bar c$ the mean of all and $\bar c_{k(p)}$ the mean of the pairs that agree with $p$ in having one $A$ or not,
#
# ```{math}
# :label: eq-seeds-eta
# \eta^2 = 1 - \frac{\sum_p (c_p - \bar c_{k(p)})^2}{\sum_p (c_p - \bar c)^2} .
# ```

# %%
def explained(pairs):
    shares = ("neither", "order", "initialisation")
    chosen = seed_grid.between(pairs, "sft", "sft", *shares)
    by_start = chosen.groupby(chosen.shares == "initialisation").cosine
    total = ((chosen.cosine - chosen.cosine.mean()) ** 2).sum()
    rest = ((chosen.cosine - by_start.transform("mean")) ** 2).sum()
    return 1 - rest / total if total else np.nan


eta = grid.over_seeds(explained)
changing = sft.share[["init", "order", "init x order"]]
Markdown(f"""For SFT, {{eq}}`eq-seeds-eta` is **{eta[0]:.3f}** ({eta[1]:.3f} to
{eta[2]:.3f}). Of the part of an update that *changes* with the seeds, the
initialisation has {changing['init'] / changing.sum():.0%}.""")

# %% [markdown]
# ## Two losses with the seeds averaged out
#
# If seeds add so much of their own, the cosine of two runs mixes two questions: are the two losses alike, and are two runs of anything alike? Under the model of {eq}`eq-seeds-components` they can be separated. Runs of two losses that share no seed have the
# mean inner product $\langle \mu, \mu' \rangle$, and two runs of one loss $\lVert \mu \rVert^2$. Hence
#
# ```{math}
# :label: eq-seeds-attenuation
# \cos(\mu, \mu') = \frac{c_0(\text{SFT}, \text{RFT})}{\sqrt{c_0(\text{SFT}, \text{SFT})\; c_0(\text{RFT}, \text{RFT})}}
# ```
#
# is the cosine of the two losses' *mean* updates, over all initialisations and orders. Dividing by what a thing has in common with itself is an old correction for noise {cite:p}`spearman1904association`.

# %%
def cosine_of_means(column, first, second):
    def statistic(pairs):
        across, one, two = (
            seed_grid.between(pairs, *couple, "neither")[column].mean()
            for couple in ((first, second), (first, first), (second, second)))
        return across / np.sqrt(one * two) if one * two > 0 else np.nan
    return grid.over_seeds(statistic)


averaged = []
for couple in (("sft", "rft"), ("sft", "dpo"), ("rft", "dpo")):
    for space, column in (("weights", "cosine"), ("outputs", "functional")):
        here = grid.means(column, [couple]).droplevel(["method_a", "method_b"])
        value, low, high = cosine_of_means(column, *couple)
        averaged.append({
            "losses": heading(*couple), "of": space, "equal seeds": here.value["both"],
            "other seeds": here.value["neither"], "of the means": value, "low": low,
            "high": high, "chance at other seeds": f"±{here.chance['neither']:.3f}"})
averaged = pd.DataFrame(averaged)
figures.table(averaged)

# %%
by_losses = averaged[averaged.of == "weights"].set_index("losses")
near, far = (by_losses.loc[heading("sft", other)] for other in ("rft", "dpo"))
Markdown(f"""SFT and RFT: {near['equal seeds']:.3f} at equal seeds,
{near['other seeds']:.3f} at other seeds, and **{near['of the means']:.3f}**
({near.low:.3f} to {near.high:.3f}) for their means. SFT and DPO:
{far['equal seeds']:+.3f}, {far['other seeds']:+.3f} and **{far['of the means']:+.3f}**
({far.low:+.3f} to {far.high:+.3f}).""")

# %% [markdown]
# The first column is what a study with one seed reports, the third what it would like to know. A common window and a common order cancel in the first, but not the part of a run that it shares with nobody: even two losses with one and the same mean update stay below one at equal seeds. Where the third column is
# higher than the first, that much of the difference between the two runs was luck; where it is lower, a common seed made two losses look more alike than they are. The middle column alone says nothing of the losses, for two runs of *one* loss have no more.
#
# ## The learning rate
#
# Equations {eq}`eq-seeds-expected` and {eq}`eq-seeds-signs` are about the first step. Later $A$ turns towards the direction $v$ that the gradient asks for, and this helps more than one might think. Stay with one dominant pair of directions and write the update as
# $\Delta W \propto u\,(p + c\, v)^\top$, where $p = P v / \lVert P v \rVert$ is what the window lets through and $c$ says how far $A$ has turned. With $\rho = r / (r + d_\text{in})$ we have $\langle p, p' \rangle \approx \rho$ and, for the same reason, $\langle p, v \rangle = \lVert A v \rVert^2 / \lVert A^\top A v \rVert \approx \sqrt{\rho}$. So
#
# ```{math}
# :label: eq-seeds-rotated
# \cos(\Delta W, \Delta W') \approx \frac{\rho + 2 c \sqrt{\rho} + c^2}{1 + 2 c \sqrt{\rho} + c^2}, \qquad
# 1 - \kappa \approx \Big(1 - \frac{r}{d_\text{in}}\Big) \frac{c^2}{1 + 2 c \sqrt{\rho} + c^2} ,
# ```
#
# where $\kappa$ is the share of the update's square that still lies in the row space of the initial $A$, of which $v$ itself has the part $r / d_\text{in}$. The share can be measured; with it, {eq}`eq-seeds-rotated` gives the cosine of two seeds that *differ in their window only*, all else being one gradient. SFT at three rates, each from two
# seeds (both draws changed):

# %%
def one_gradient(inside):
    """Cosine of two seeds on one gradient, with this share in the initial rows."""
    root, out = np.sqrt(expected), 1 - inside
    c = max(np.roots([1 - rank / d_in - out, -2 * out * root, -out]).real)
    return (expected + 2 * c * root + c ** 2) / (1 + 2 * c * root + c ** 2)


starts = {seed: seed_grid.initial_factors(study, modules.module, seed)
          for seed in runs.init.unique().tolist()}
rates = seed_grid.by_rate(study, seconds, moments, starts)
rates["on one gradient"] = rates["in the initial rows"].map(one_gradient)
columns = ["run_a", "run_b", "cosine", "cosine_chance", "functional", "left", "right"]
others = rates[columns].assign(method_a="sft", method_b="sft", shares="neither")
seeds = pd.concat([pairs.drop(columns=["a", "b"]), others])
store.write_table(profile, "seeds", seeds.drop_duplicates(["run_a", "run_b"]))
figures.table(rates.drop(columns=["run_a", "run_b"]).rename(columns={
    "cosine_chance": "chance ±", "left": "first left", "right": "first right"}))

# %%
root, theirs = np.sqrt(32 / (32 + 2560)), {}
for value in (0.07, 0.36):
    c = max(np.roots([1 - value, 2 * root * (1 - value), root ** 2 - value]))
    theirs[value] = (1 - 32 / 2560) * c ** 2 / (1 + 2 * c * root + c ** 2)
shares = ", ".join(f"{value:.2f}" for value in rates.cosine / rates["on one gradient"])
trend = ("rises" if rates.cosine.is_monotonic_increasing else
         "falls" if rates.cosine.is_monotonic_decreasing else
         "neither only rises nor only falls")
Markdown(f"""From the smallest rate to the largest the cosine between seeds **{trend}**:
{', '.join(f'{value:.3f}' for value in rates.cosine)}. It is {shares} of what one common
gradient would give. In the paper it goes from .07 at 5e-7 to .36 at 5e-5. By
{{eq}}`eq-seeds-rotated` these two would need {theirs[0.07]:.1%} and {theirs[0.36]:.0%}
of the update outside the initial rows, and nothing else.""")

# %% [markdown]
# Two things thus happen to a pair of seeds as the rate grows. The window opens, which brings them together: the share in the initial rows falls, and "on one gradient" rises. And the runs travel further on losses that are not linear, which can take them apart: then the
# measured cosine stays below that column, and the functional cosine is low as well. Which of the two wins depends on where on this scale a study trains, so a rise of the cosine with the rate, as in the paper, is no law. At a low rate, a cosine between seeds tells more of rank and width than of the loss.
#
# ## The mirror image
#
# Everything said of the input side rests on the choice $B = 0$ with $A$ random, which is a convention. The mirror image starts with $A = 0$ and $B$ random; its training dynamics are known to differ {cite:p}`hayou2024initialization`. With it the first gradient reaches $A$ alone,
# $\partial L / \partial A = s\, B^\top G$, and
#
# ```{math}
# :label: eq-seeds-mirrored
# \Delta W = -\eta s^2\, (B B^\top)\, G :
# ```
#
# now the *output* side looks through a window, and the input side is free. If the agreement of the input side between methods is by construction, it must move to the output side. We train SFT, RFT and DPO so, from one $B$.

# %%
mirrored = {study.runs[name].objective: name for name in groups["mirrored"]}
both_ways = {name: trainer.update_of(study, name)
             for method in methods for name in (method, mirrored[method])}
B_0, A_0 = seed_grid.initial_factors(study, modules.module, 42, "A"), starts[42]
in_A, in_B = ({name: seed_grid.share_inside(update, factor, side)
               for name, update in both_ways.items()}
              for factor, side in ((A_0, "right"), (B_0, "left")))
inside = pd.DataFrame(
    [(figures.LABELS[name], in_A[name].mean(), in_B[name].mean(), in_B[name].min(),
      in_B[name].max()) for name in both_ways],
    columns=["run", "in the rows of the plain start's A",
             "in the columns of the mirrored start's B", "lowest module",
             "highest module"])
of_A, of_B = (rank / modules.d_in).mean(), (rank / modules.d_out).mean()
inside.loc[len(inside)] = ["by chance", of_A, of_B, np.nan, np.nan]
figures.table(inside)

# %% [markdown]
# A run has a reason to keep to the window that it was given, and the table tells to what degree it did; for the other one its share is to be read beside chance. Now the overlap of first vectors between methods. The {term}`matched null` of a mirrored run must keep its own $B$ and draw anew what $A$ does. That is
# the matched null of the transposed updates, with the two sides exchanged.

# %% mystnb={"figure": {"caption": "Overlap of the first singular vectors between methods from the plain start ($B = 0$) and the mirrored one ($A = 0$), one dot per module, bar: median. Grey: 95 % of the matched null, which keeps the factor that was drawn.", "name": "fig-seeds-mirrored"}, "image": {"alt": "Four panels of strips, one dot for each module: overlap of first left and first right vectors between SFT, RFT and DPO for the plain and for the mirrored start, with grey chance bands that are wide on the right for the plain and on the left for the mirrored start"}}
starting = {"plain": {method: both_ways[method] for method in methods},
            "mirrored": {method: both_ways[mirrored[method]] for method in methods}}
places = {"SFT – RFT": (0, 1), "SFT – DPO": (0, 2), "RFT – DPO": (1, 2)}
panels, bands = {}, {}
for way, trained in starting.items():
    overlaps, chance = seed_grid.first_overlaps(trained, places, way)
    panels, bands = panels | overlaps, bands | chance
figures.strips(panels, "overlap of the first vectors", bands);

# %%
medians = {name: np.nanmedian(part["SFT – DPO"]) for name, part in panels.items()}
gaps = [medians[f"right, {way}"] - medians[f"left, {way}"] for way in starting]
flips = "flips" if gaps[0] > 0 > gaps[1] else "does not flip"
between, between_sd = geometry.stacked_cosine(geometry.compare(both_ways))
Markdown(f"""SFT with DPO, median over modules: left {medians['left, plain']:.2f} and
right {medians['right, plain']:.2f} from the plain start, left
{medians['left, mirrored']:.2f} and right {medians['right, mirrored']:.2f} from the
mirrored one. The side on which the two are more alike **{flips}**. SFT from the one
start and SFT from the other have a cosine of {between[0, 1]:.3f} (chance
±{1.96 * between_sd[0, 1]:.3f}).""")

# %% [markdown]
# The grey bands of {numref}`fig-seeds-mirrored` change sides with the random factor: where the window is, chance alone gives a large overlap. A statement such as "SFT and DPO read the same inputs and write to different outputs" is about the convention $B = 0$ as far as it follows
# the bands, and about the losses only as far as the dots leave them.
#
# ## Is there a barrier between seeds?
#
# The straight path between two updates of one loss, with the loss of held-out correct rollouts on the way, as on the page on [connectivity](13_connectivity.ipynb). The middle of two updates at an angle is shorter than either: with
# cosine $c$ and equal norms, by the factor $\sqrt{(1 + c)/2}$. So a low loss in the middle is worth comparing with that of *half an update* alone.

# %% mystnb={"figure": {"caption": "Loss of held-out correct rollouts along the path between two seeds, with 95 % intervals over texts; dashed: the chord.", "name": "fig-seeds-paths"}, "image": {"alt": "Five small panels of the loss of held-out rollouts along straight paths: SFT to SFT with another order, another initialisation, both, SFT to RFT with other seeds, and DPO to DPO with other seeds, with dashed chords"}}
paths = [("sft", "sft-42-43"), ("sft", "sft-43-42"), ("sft", "sft-43-43"),
         ("sft", "rft-43-43"), ("dpo", "dpo-43-43")]
texts = connectivity.held_out_texts(study, base.device)
weights = updates.weights_of(base, modules.module)
points = np.linspace(0, 1, min(11, study.connectivity.points))
measured = {(a, b): mode_connectivity.losses_along(
    base, weights, texts, adapters[a], adapters[b], points, f"{a} to {b}")
    for a, b in paths}
curves = pd.concat([mode_connectivity.curve(nats).assign(run_a=a, run_b=b)
                    for (a, b), nats in measured.items()], ignore_index=True)
curves = curves[curves.metric == "rollout"]
figures.path_panels(curves, "loss, nats per token");

# %%
barriers = pd.concat([
    mode_connectivity.barrier(nats).assign(path=heading(*ends))
    for ends, nats in measured.items()]).query("metric == 'rollout'")
figures.table(barriers[["path", "above_chord", "low", "high", "noise", "above_mean",
                        "mean_low", "mean_high"]])

# %%
nothing = updates.combine([adapters["sft"]], [0.0])
shrunk = mode_connectivity.curve(mode_connectivity.losses_along(
    base, weights, texts, adapters["sft"], nothing, [0, 0.5, 1], "SFT to the base"))
whole, half, none = shrunk[shrunk.metric == "rollout"].value
path = curves[curves.run_b == "sft-43-43"].value.to_numpy()
middle = path[len(path) // 2]
over = int((barriers.above_chord > barriers.noise).sum())
Markdown(f"""**{over} of {len(barriers)}** paths rise above their chord by more than
noise would. Halfway between SFT 42/42 and SFT 43/43 the loss is
{middle - (path[0] + path[-1]) / 2:+.4f} nats per token from the mean of its ends (the
paper: +.004, of another loss). It is {middle:.3f}, that of SFT 42/42 is {whole:.3f}, of
half of SFT's update {half:.3f}, of the base {none:.3f}.""")

# %% [markdown]
# Columns `above_chord` and `above_mean` are the two definitions of a {term}`barrier`; `noise` is the height that a straight path stays under in 19 of 20 samples of texts. A curve of {numref}`fig-seeds-paths` that sags between two seeds says more than "no barrier": the mixture of two runs is then better
# than either, as an average of noisy estimates is. That is in keeping with {eq}`eq-seeds-components`, where halving the sum of two runs keeps $\mu$ and halves the square of all that is the seeds' own.
#
# ## Which rows, or how many
#
# RFT trains on a part of SFT's rows, the correct ones. Is its likeness to SFT due to *which* rows it left out, or would leaving out as many at random do the same? Two runs of SFT on random subsets of RFT's size, with the same $A$ and the same order of prompts:

# %% mystnb={"figure": {"caption": "Cosine of the updates among SFT, RFT and SFT on random subsets of as many rows as RFT has. Grey: 95 % of what chance gives.", "name": "fig-seeds-subset"}, "image": {"alt": "Dot plot of the cosine for the six pairs among SFT, RFT and two runs of SFT on random subsets of rows, with grey chance bands around zero"}}
subset = ["sft", "rft", *groups["subset"]]
in_subset = geometry.compare({name: trainer.update_of(study, name) for name in subset})
of_subset = geometry.cosine_table(in_subset).query("scope == 'global'")
columns = ["run_a", "run_b", "cosine", "chance_low", "chance_high"]
figures.pairs(of_subset[columns], "cosine", "cosine of the updates");

# %%
with_sft = of_subset[of_subset.run_a == "sft"].set_index("run_b").cosine
random_rows, rft = with_sft[list(groups["subset"])], with_sft["rft"]
nearer = ("closer to SFT than" if random_rows.min() > rft else
          "further from SFT than" if random_rows.max() < rft else "on both sides of")
each_other = of_subset.set_index(["run_a", "run_b"]).cosine[tuple(groups["subset"])]
folders = {name: trainer.train(study, study.runs[name]) for name in subset}
about = {name: json.loads((folders[name] / "run.json").read_text()) for name in subset}
rows = ", ".join(f"{figures.LABELS[name]} {about[name]['rows']:,}" for name in subset)
Markdown(f"""Rows: {rows}. With SFT, RFT has **{rft:.3f}** and the random subsets
{' and '.join(f'**{value:.3f}**' for value in random_rows)}: they are {nearer} RFT, by
{random_rows.mean() - rft:+.3f} on average. The two random subsets with each other have
{each_other:.3f}, and SFT under another order has {alone['initialisation']:.3f}.""")

# %% [markdown]
# The measure for such differences is at the end of the sentence: another order of the *same* rows. A pair of runs in {numref}`fig-seeds-subset` whose cosine is about that value differs by no more than the luck of the order. Two random subsets are few, so a difference between them and RFT should be large
# beside the difference between the two.
#
# ## The paper's cosines, with an interval over seeds
#
# The paper's table has one seed. Here are its fifteen pairs at each of ours, always with equal seeds within a pair, and the mean with its 95 % interval (Student's $t$ over seeds).

# %% mystnb={"figure": {"caption": "Cosine between methods at equal seeds: mean over seeds with its 95 % interval. Grey: chance; open diamonds: the paper's values, where it gives one.", "name": "fig-seeds-pairs"}, "image": {"alt": "Fifteen horizontal intervals of cosines between objectives, mean over seeds, mostly short, with grey chance bands at zero and open diamonds at the paper's values"}}
seeds_pairs = seed_grid.cosines_by_seed(study)
store.write_table(profile, "seeds_pairs", seeds_pairs)
summary = seed_grid.mean_cosines(seeds_pairs)
ends = list(zip(summary.run_a, summary.run_b, strict=True))
summary["claim"] = [heading(*pair) for pair in ends]
summary["paper_value"] = [paper.COSINES.get(pair, np.nan) for pair in ends]
figures.claims(summary, "cosine of the updates");

# %%
by_seed = seeds_pairs.pivot(index=["run_a", "run_b"], columns="seed", values="cosine")
stable = (by_seed.rank().nunique(axis=1) == 1).sum()
lowest = by_seed.corr(method="spearman").to_numpy().min()
above, below = summary.low > summary.chance_high, summary.high < summary.chance_low
Markdown(f"""The intervals of {int((above | below).sum())} of {len(summary)} pairs in
{{numref}}`fig-seeds-pairs` lie outside their chance band. The largest standard
deviation over seeds is {summary.sd.max():.3f} ({summary.claim[summary.sd.idxmax()]}),
the median {summary.sd.median():.3f}. {stable} of {len(by_seed)} pairs have the same
place in the order of all pairs at every seed; the lowest rank correlation between two
seeds is {lowest:.3f}.""")

# %% [markdown]
# Cosines at equal seeds vary little from seed to seed, if their intervals are short, even where two seeds of one method are far apart: the window changes, but it changes for both runs of the pair. Short intervals here are no contradiction to {numref}`fig-seeds-shares`.
#
# ## Accuracy over seeds
#
# Last, what the seeds do to the number that all this is about. The page on [evaluation](09_evaluation.ipynb) compares the *methods* over seeds; here each method is compared with *itself*: the
# first test problems, which the runs from other seeds answered, with both draws changed together.

# %% mystnb={"figure": {"caption": "Share of test problems solved, with Wilson intervals; each method under its seeds, a name without numbers being 42/42. Dashed: the base.", "name": "fig-seeds-accuracy"}, "image": {"alt": "Horizontal intervals of test accuracy for the base and for each of six methods under each pair of seeds, with a dashed line at the base"}}
replicas = replication.replicas(study).values()
method_of = {names[method]: method for method in study.main_runs for names in replicas}
answered = answering.records(study, ["base", *(study.runs[name] for name in method_of)])
asked = answered.groupby("problem_id").run.transform("nunique")
answered = answered[asked == len(method_of) + 1]
accuracy = statistics.accuracy_table(answered)
figures.intervals(accuracy, "accuracy", "low", "high", "share of test problems solved",
                  "base");

# %%
same_method = [(one, other) for one, other in combinations(method_of, 2)
               if method_of[one] == method_of[other]]
tests = statistics.mcnemar_table(answered, same_method)
furthest = tests.loc[tests.difference.abs().idxmax()]
over = accuracy.accuracy.groupby(accuracy.run.map(method_of), sort=False)
over = over.agg(["mean", "std"])
lines = ", ".join(f"{figures.LABELS[row.Index]} {row.mean:.3f} ± {row.std:.3f}"
                  for row in over.itertuples())
Markdown(f"""On {accuracy.n.iloc[0]} problems, mean and standard deviation over seeds:
{lines}; the base {accuracy.accuracy.iloc[0]:.3f}. Between seeds of one method,
**{int((tests.p_holm < 0.05).sum())} of {len(tests)}** differences are significant by
exact McNemar tests with Holm's correction over these pairs. The largest is
{furthest.difference:+.3f} ({furthest.low:+.3f} to {furthest.high:+.3f};
{figures.LABELS[furthest.run_a]} against {figures.LABELS[furthest.run_b]}, Holm's p =
{furthest.p_holm:.2g}). The means of SFT, RFT and RIFT differ by up to
{np.ptp(over.loc[['sft', 'rft', 'rift'], 'mean']):.3f}.""")

# %% [markdown]
# The intervals of {numref}`fig-seeds-accuracy` are Wilson's and ask what other *problems* would give; the standard deviations ask what other *seeds* would give. A {term}`McNemar test` between two methods at one seed sees only the first kind, so a small p-value from one seed says that two
# *runs* differ, and nothing on whether two *losses* do. For that, the difference has to be large beside the standard deviation over seeds.
#
# ## What was expected
#
# The [predictions](../predictions.md) were written before these runs. Each line that concerns this page, with its outcome:

# %%
mean_in_B = {method: in_B[mirrored[method]].mean() for method in ("sft", "rft")}
lower, higher = sorted(mean_in_B, key=lambda method: (mean_in_B[method], method))
resampled = np.random.default_rng(0).choice(in_B[mirrored[lower]], (2000, len(modules)))
ends = np.quantile(resampled.mean(1), [0.025, 0.975])
about = (f"{figures.LABELS[lower]}, the lower; {figures.LABELS[higher]} has "
         f"{mean_in_B[higher]:.3f}")
apart, reordered = (tuple(means.loc[("sft", "sft", share), ["value", "low", "high"]])
                    for share in ("neither", "initialisation"))
results = outcomes.of_seeds(
    apart, reordered, left, right, (mean_in_B[lower], *ends), eta,
    (random_rows.mean(), random_rows.min(), random_rows.max()), rft, about)
figures.table(predictions.write(profile, "16", results))

# %% [markdown]
# Intervals are over initialisations and orders, for the share in $B$ over modules, and for the subsets the two values themselves. A line in which neither of the last two judgements is true lies in between: not what was expected, and not far enough off to discard the idea.
#
# ## Try it
#
# 1. Double the rank in the simulation of {eq}`eq-seeds-expected` (`rank = 2 * study.lora.rank`). What happens to the cosine between two windows, and what if $r = d_\text{in}$?
#
# ````{dropdown} What happens
# It becomes $2r / (2r + d_\text{in})$, nearly twice as large. At $r = d_\text{in}$ it is about one half and not one: a square random $A$ lets everything pass, but $A^\top A$ still stretches some directions more than others. Only with orthonormal rows would the window vanish.
# ````
#
# 2. Give `grid.variance` the identity matrix, `np.eye(len(runs))`, in the place of the cosines. Which column shows that the runs share nothing?
#
# ````{dropdown} What happens
# `share` is zero for all parts but the last, which is one. `observed` equals `by_chance` and is anything but zero: a study that reports $\lVert I_i \rVert^2$ as "explained by the initialisation" finds $(m-1)/mn$ in pure noise.
# ````
#
# 3. Compare the cosine of SFT 42/42 with the *mean* of two other SFT runs, `updates.combine([adapters["sft-43-43"], adapters["sft-44-44"]], [0.5, 0.5])`. Should it be higher than with one of them?
#
# ````{dropdown} Answer
# Yes. By {eq}`eq-seeds-components` the inner product with SFT 42/42 stays $c_0$ while the squared norm of the mean falls from 1 to $(1 + c_0)/2$, so that the cosine rises from $c_0$ to $c_0 \sqrt{2 / (1 + c_0)}$. With more and more runs it tends to $\sqrt{c_0}$, the cosine of a run with $\mu$.
# ````
#
# 4. Why can the cosine of means {eq}`eq-seeds-attenuation` come out above one?
#
# ````{dropdown} Answer
# Its numerator and its denominator are estimated from different pairs. If two losses really have one mean update, half of all samples give a value above one. The interval tells how far above is still luck.
# ````
#
# ## Summary
#
# A seed draws a window, {eq}`eq-seeds-window`, and an order. Pairs of runs that share one or both or none divide an update into what every seed finds, what the window adds, what the order adds and what the single run adds, {eq}`eq-seeds-components`. Equal seeds cancel the window, other seeds do not, and what either leaves of a difference between losses is to be held against {eq}`eq-seeds-attenuation`.
# Which side of the weights all methods agree on is a consequence of which factor was zero, {eq}`eq-seeds-mirrored`. The [next page](17_matched_dpo.ipynb) takes up the pair that differs most, SFT and DPO, and makes their settings equal one by one.
