# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, 10_norms]
# ---

# %% [markdown]
# # Orthogonal decomposition: what is not SFT
#
# *Previously,* the [cosine](10_norms.ipynb) said how alike two updates are as a whole, and the [principal angles](11_angles.ipynb) which
# directions they share. *Now* each update is cut into the part that points along SFT's update and the rest, and the question is what the size of
# that rest adds to what the cosine already said.
#
# **Key takeaways**
# - The {term}`orthogonal part` of an update is the cosine in another unit: $\sqrt{1 - \cos^2}$ by norm, $1 - \cos^2$ by energy. It measures nothing new.
# - The unit matters to the reader: the same cosine of .74 is "67 % orthogonal" by norm and 45 % by energy.
# - A layer, a projection or a module is cut along its *own* reference, so their shares are other questions than the global one, not its parts.
# - A looser question does add something: how much of an update lies within the leading output directions of another. It has a chance level and a ceiling.
#
# You need: inner products and norms of matrices, and the page on [cosines](10_norms.ipynb). Reads the adapters of the six runs. Time to run: under
# half a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study to set beside it at the end

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from adapter_geometry import geometry
from adapter_geometry.chance import compare_by_chance
from helpers import profiles, store
from helpers.analysis import paper, replication
from helpers.book import figures
from helpers.training import trainer

study = profiles.load(profile)
runs = {name: study.runs[name] for name in study.main_runs}
adapters = {name: trainer.update_of(study, name) for name in runs}
compared = geometry.compare(adapters)
figures.use_style(study)

# %% [markdown]
# ## One update, cut in two
#
# Take the update $\Delta W$ of a method and a reference $R$ of the same shape, here the update of SFT. Among all multiples of $R$ there is one
# that comes closest to $\Delta W$. The squared distance $\|\Delta W - c R\|^2 = \|\Delta W\|^2 - 2 c \langle \Delta W, R \rangle + c^2 \|R\|^2$ is a
# parabola in $c$, and its lowest point gives the split
#
# ```{math}
# :label: eq-decomposition-split
# \Delta W = \underbrace{c R}_{\Delta W_\parallel} + \Delta W_\perp, \qquad c = \frac{\langle \Delta W, R \rangle}{\langle R, R \rangle}, \qquad
# \langle \Delta W_\perp, R \rangle = 0 .
# ```
#
# The two parts are at right angles, so their squared norms add up, as in the theorem of Pythagoras. Computed for one module, with its matrices written out in full:

# %%
module = compared.modules.module[0]
R, update = (part.scale * (part.B.double() @ part.A.double()).numpy()
             for part in (adapters[run][module] for run in ("sft", "offline-grpo")))
norm = np.linalg.norm
coefficient = (update * R).sum() / (R * R).sum()
parallel = coefficient * R
rest = update - parallel

# %%
assert abs((rest * R).sum()) < 1e-9 * norm(update) * norm(R)
assert np.isclose(norm(parallel) ** 2 + norm(rest) ** 2, norm(update) ** 2)
Markdown(f"In `{module}` the update of Offline GRPO has the norm {norm(update):.4f}. "
         f"Its part along SFT is {coefficient:.3f} times SFT's update and has the "
         f"norm {norm(parallel):.4f}; the rest has the norm {norm(rest):.4f}, which "
         f"is **{norm(rest) / norm(update):.3f}** of the whole.")

# %% [markdown]
# ## The same number in another unit
#
# How large is the rest? Put $c$ from {eq}`eq-decomposition-split` into $\|\Delta W_\perp\|^2 = \|\Delta W\|^2 - c^2 \|R\|^2$ and divide by $\|\Delta W\|^2$:
#
# ```{math}
# :label: eq-decomposition-fractions
# \begin{gathered}
# \underbrace{\frac{\|\Delta W_\perp\|^2}{\|\Delta W\|^2}}_{\text{by energy}} = 1 - \frac{\langle \Delta W, R \rangle^2}{\|\Delta W\|^2 \|R\|^2}
# = 1 - \cos^2(\Delta W, R), \\
# \underbrace{\frac{\|\Delta W_\perp\|}{\|\Delta W\|}}_{\text{by norm}} = \sqrt{1 - \cos^2(\Delta W, R)} .
# \end{gathered}
# ```
#
# Nothing but the cosine is left on the right-hand side. Who knows the cosine of two updates knows their orthogonal part, by either measure, and the other
# way round up to a sign.

# %%
cosine = (update * R).sum() / (norm(update) * norm(R))
assert np.isclose(norm(rest) / norm(update), np.sqrt(1 - cosine ** 2))
Markdown(f"In the module above the cosine is {cosine:.4f}, and "
         f"$\\sqrt{{1 - {cosine:.4f}^2}}$ = **{np.sqrt(1 - cosine ** 2):.4f}**: the "
         f"number found by cutting the matrix, {norm(rest) / norm(update):.4f}, "
         f"without cutting anything.")

# %% [markdown]
# The paper reports both numbers as separate findings: a cosine of about .74 between Offline GRPO and the SFT cluster, and an orthogonal part of .67 of
# Offline GRPO's norm {cite:p}`nikolich2026geometry`. By {eq}`eq-decomposition-fractions` the second follows from the first. In the next table the
# paper's cosines with SFT go through the equation (for DPO, the middle of the range that it gives for the whole cluster).

# %%
with_sft = pd.Series({b: value for (a, b), value in paper.COSINES.items()
                      if a == "sft"})
implied = pd.DataFrame({"run": with_sft.index, "cosine": with_sft.values,
                        "by_norm": np.sqrt(1 - with_sft.values ** 2),
                        "by_energy": 1 - with_sft.values ** 2})
figures.table(implied)

# %%
at = implied.set_index("run")
Markdown(f"A cosine of .74 gives **{at.by_norm['offline-grpo']:.3f}** by norm and "
         f"**{at.by_energy['offline-grpo']:.0%}** by energy. Even RFT, with a cosine "
         f"of .977, is {at.by_norm['rft']:.0%} orthogonal by norm, and "
         f"{at.by_energy['rft']:.1%} by energy.")

# %% [markdown]
# Which unit should one use? Energies add up: parallel plus orthogonal is one. Norms do not: the parallel part of Offline GRPO is .74 of its norm and the
# orthogonal one .67, together more than the whole. Read as "two thirds are orthogonal and so one third is shared", .67 misleads. By energy the
# shared part is the larger one.
#
# ## The whole update
#
# Now all modules are stacked into one long vector per method, and the inner products come from the factors of the adapters. Every number has its
# chance level: turn the output space of each module of one update by a random rotation, which keeps all its singular values, and the cosine with SFT is
# zero up to a spread that has a closed form (`geometry.stacked_cosine`). Since $\cos \approx 0$ there, an unrelated update is orthogonal *almost
# entirely*, and the chance level of the orthogonal part is just below one.

# %%
def against(cosines, reference):
    """Cosines of the other runs with one, and their orthogonal parts by both measures.

    `chance_low` is the lower end of the chance band by norm.
    """
    first = cosines[cosines.run_a == reference]
    second = cosines[cosines.run_b == reference]
    rows = pd.concat([first.rename(columns={"run_b": "run"}),
                      second.rename(columns={"run_a": "run"})])
    low = np.sqrt(1 - rows.chance_high ** 2)
    parts = rows[["scope", "layer", "projection", "run", "cosine"]].assign(
        by_norm=np.sqrt(1 - rows.cosine ** 2), by_energy=1 - rows.cosine ** 2,
        chance_low=low, chance_high=1.0)
    return parts.reset_index(drop=True)


parts = against(geometry.cosine_table(compared), "sft")
columns = ["run", "cosine", "by_norm", "by_energy", "chance_low"]
overall = parts.loc[parts.scope == "global", columns]
overall.style.format(precision=4).hide(axis="index")

# %%
table = store.write_table(profile, "orthogonal", geometry.orthogonal_table(compared))
stored = table[(table.reference == "sft") & (table.scope == "global")]
stored = stored.set_index("run").by_norm
assert np.allclose(stored[overall.run], overall.by_norm)
inside = overall[overall.by_norm >= overall.chance_low].run.map(figures.LABELS)
within = (f"Within that band of their own: {', '.join(inside)}." if len(inside)
          else "None of the five methods is within that band of its own.")
Markdown(f"Offline GRPO is orthogonal to SFT by **{stored['offline-grpo']:.3f}** of "
         f"its norm, {stored['offline-grpo'] ** 2:.0%} of its energy. An unrelated "
         f"update of the same spectrum would be at or above "
         f"{overall.set_index('run').chance_low['offline-grpo']:.4f} in 95 cases of a "
         f"hundred. {within}")

# %% [markdown]
# The base has no row: its update is zero, and a share of zero is not defined. All other rows are read against the band, not against
# zero. A fraction of .9 sounds like "nearly unrelated", but it is a cosine of .44, many standard deviations from what unrelated updates have.
#
# The next figure is {eq}`eq-decomposition-fractions` as a picture. The curve by norm is a quarter of a circle: where the cosine is high it falls
# steeply, so that tiny differences between near-identical updates look large, and where the cosine is low it is flat.

# %% mystnb={"image": {"alt": "A quarter circle and a parabola of the orthogonal part against the cosine, with a marker on both curves for each method and open diamonds for the paper's values"}, "figure": {"caption": "Orthogonal part of an update against its cosine with SFT, by norm (solid) and by energy (dashed), the two forms of {eq}`eq-decomposition-fractions`. Filled markers: our runs; open diamonds: the paper's values in the same colours.", "name": "fig-decomposition-curves"}}
grid = np.linspace(0, 1, 200)
curves = {"by norm": (grid, np.sqrt(1 - grid ** 2)), "by energy": (grid, 1 - grid ** 2)}
points = {row.run: (abs(row.cosine), (row.by_norm, row.by_energy))
          for row in overall.itertuples()}
theirs = {row.run: (row.cosine, (row.by_norm, row.by_energy))
          for row in implied.itertuples()}
figures.curves_with_runs(curves, points, theirs, "absolute cosine with SFT",
                         "orthogonal part of the update");

# %% [markdown]
# All markers of {numref}`fig-decomposition-curves` lie on the curves, ours and the paper's, because they cannot lie anywhere else. What can differ
# between the two studies is *where* on the curve a method stands.
#
# Against each of the other references the same can be done. The fraction is the same in both directions, since the cosine is.
# The coefficient $c$ is not: by {eq}`eq-decomposition-split` it is the cosine times the ratio of the two norms.

# %% mystnb={"image": {"alt": "Symmetric matrix of the orthogonal part by norm between the six objectives, zero on the diagonal"}, "figure": {"caption": "Orthogonal part, by norm, of the row's update against the column's, all modules stacked.", "name": "fig-decomposition-matrix"}}
every = table[table.scope == "global"].pivot(index="run", columns="reference",
                                             values="by_norm")
every = every.loc[list(runs), list(runs)]
figures.matrix(every.fillna(0).to_numpy(), list(runs), "orthogonal part, by norm",
               0, 1);

# %%
cosines, sd = geometry.stacked_cosine(compared)
norms = np.sqrt(np.einsum("mii->i", compared.inner))
coefficients = pd.DataFrame(cosines * norms[:, None] / norms[None, :],
                            index=list(runs), columns=list(runs))
lowest = every.where(~np.eye(len(runs), dtype=bool)).stack().idxmin()
Markdown(f"The two closest in {{numref}}`fig-decomposition-matrix` are "
         f"{figures.LABELS[lowest[0]]} and {figures.LABELS[lowest[1]]}, with "
         f"{every.loc[lowest]:.3f}. For SFT and DPO the fraction is "
         f"{every.loc['sft', 'dpo']:.4f} either way, but $c$ is "
         f"{coefficients.loc['dpo', 'sft']:+.4f} for DPO along SFT and "
         f"{coefficients.loc['sft', 'dpo']:+.3f} for SFT along DPO.")

# %% [markdown]
# ## Layers and modules are other questions
#
# Nothing forces one to stack all modules. The same split can be made in each layer, for each projection or in each module, and the function
# that wrote the table `orthogonal` does all of these. But each of them has a reference of its own. In module $m$ the parallel part is
# $c_m R^m$ with that module's own coefficient, in the whole update it is $c R^m$ with one $c$ for all. A fit with a coefficient per module can only be
# better. How much better follows from $c = \sum_m \|R^m\|^2 c_m / \sum_m \|R^m\|^2$, the weighted mean of the $c_m$:
#
# ```{math}
# :label: eq-decomposition-pooled
# \sum_m \|\Delta W^m_\parallel\|^2 - \|\Delta W_\parallel\|^2 = \sum_m \|R^m\|^2 c_m^2 - c^2 \sum_m \|R^m\|^2 = \sum_m \|R^m\|^2\, (c_m - c)^2 .
# ```
#
# The modules' parallel energies add up to *more* than the global one, by the spread of the coefficients: a method that does what SFT does, but more of it in one
# layer and less in another, is partly orthogonal to SFT as a whole and not at all in any module.

# %%
sft = compared.runs.index("sft")
squares = compared.inner[:, sft, sft]
energy = np.einsum("mii->i", compared.inner)
by_module = compared.inner[:, sft] / squares[:, None]
single = squares @ by_module / squares.sum()
energies = pd.DataFrame(
    {"one coefficient": 1 - single ** 2 * squares.sum() / energy,
     "one per module": 1 - squares @ by_module ** 2 / energy,
     "spread of coefficients": squares @ (by_module - single) ** 2 / energy},
    index=pd.Index(list(runs), name="run")).drop(index="sft")

# %%
assert np.allclose(energies["one coefficient"] - energies["one per module"],
                   energies["spread of coefficients"])
assert np.allclose(energies["one coefficient"], stored[energies.index] ** 2)
energies.style.format("{:.4f}")

# %%
widest = energies["spread of coefficients"].idxmax()
number = list(runs).index(widest)
Markdown(f"The orthogonal energy of {figures.LABELS[widest]} is "
         f"{energies['one coefficient'][widest]:.1%} with one coefficient and "
         f"**{energies['one per module'][widest]:.1%}** with one per module, the "
         f"widest gap of the five. Its coefficients run from "
         f"{by_module[:, number].min():.2f} to {by_module[:, number].max():.2f} around "
         f"the common {single[number]:.2f}.")

# %% [markdown]
# The last column of the table is the right-hand side of {eq}`eq-decomposition-pooled`, computed on its own, and the assertion in the cell checks that it is the difference
# of the other two. When a page or a paper gives a mean of per-module fractions and a global fraction, they are therefore two statistics, and the second is
# not the mean of the first.
#
# ## Along the layers
#
# With this in mind, look at the layers one by one; within a layer the four projections are stacked.

# %% mystnb={"image": {"alt": "Two line plots of the orthogonal part against the layer, by norm and by energy, one line for each of five methods, with a chance band at one that is hardly thicker than a line"}, "figure": {"caption": "Orthogonal part of each layer's update against SFT's update of that layer, by norm (left) and by energy (right). Unrelated updates with the same spectra would lie at the upper edge: the grey band that holds 95 % of them is hardly thicker than a line.", "name": "fig-decomposition-layers"}}
layers = parts[parts.scope == "layer"]
by_energy = layers.assign(by_norm=layers.by_energy, chance_low=layers.chance_low ** 2)
figures.lines_of_runs({"by norm": layers, "by energy": by_energy}, "layer", "by_norm",
                      "layer", "orthogonal part");

# %%
shape = layers.pivot(index="layer", columns="run", values="by_norm")
grpo = shape["offline-grpo"]
outside = layers[layers.by_norm < layers.chance_low].groupby("run").size()
outside = outside.reindex(shape.columns, fill_value=0)
Markdown(f"Offline GRPO runs from {grpo.min():.3f} (layer {grpo.idxmin()}) to "
         f"{grpo.max():.3f} (layer {grpo.idxmax()}); in the last layer it is "
         f"{grpo.iloc[-1]:.3f}. Below the chance band are {outside['offline-grpo']} "
         f"of {len(shape)} layers for Offline GRPO, {outside['dft']} for DFT and "
         f"{outside['dpo']} for DPO.")

# %% [markdown]
# In the paper Offline GRPO is the less orthogonal to SFT in the middle layers, with .55, and the more so at the end, with .79 to .86 in the last five of 36
# blocks {cite:p}`nikolich2026geometry`. As a cosine that is a fall from about .84 to between .61 and .51. Whether our model has such a rise can
# be read from {numref}`fig-decomposition-layers`, and the table at the end of the page puts numbers on it. Six layers are few for a pattern over depth.
#
# By projection, with all layers stacked:

# %%
of_projections = parts[parts.scope == "projection"]
projections = of_projections.pivot(index="run", columns="projection", values="by_norm")
projections = projections.loc[[run for run in runs if run != "sft"]]
chance = of_projections.groupby("projection").chance_low.min()
with_chance = pd.concat([projections, chance.to_frame("lowest chance level").T])
with_chance.style.format("{:.3f}")

# %%
span = projections.max(axis=1) - projections.min(axis=1)
Markdown(f"The projections of a method differ by at most {span.max():.3f} "
         f"({figures.LABELS[span.idxmax()]}). For Offline GRPO the most orthogonal "
         f"one is `{projections.loc['offline-grpo'].idxmax()}`, the least "
         f"`{projections.loc['offline-grpo'].idxmin()}`.")

# %% [markdown]
# ## What orthogonal does not mean
#
# "Two thirds of its update are orthogonal to SFT" invites the reading that two thirds of what Offline GRPO learned are *new*. Three things
# stand against it.
#
# First, orthogonal is what everything is by default. In a space of millions of dimensions an arbitrary update is orthogonal to any other, so that the
# shared part needs an explanation and the orthogonal part does not. Second, the same loss with another seed is orthogonal to itself. The paper gives cosines of .07 to
# .36 between two seeds of one method, according to the learning rate.

# %%
seeds = np.sqrt(1 - np.array([0.36, 0.07]) ** 2)
Markdown(f"By {{eq}}`eq-decomposition-fractions` the second seed is orthogonal to the "
         f"first by **{seeds[0]:.2f} to {seeds[1]:.3f}** of its norm, more than "
         f"Offline GRPO is to SFT with the same seed.")

# %% [markdown]
# The seed also draws the initial $A$, so two seeds read from different input directions from the first step on. Still nobody would say that the second seed
# learned something else than the first.
#
# Third, weights are not behaviour. The orthogonal part may act on directions that no input ever takes, or may carry the whole change of
# accuracy. To know, one has to put the parallel and the orthogonal part into the model separately and measure; a later page on interventions does.
#
# ## A looser question: the same output directions
#
# There is another statistic, the {term}`subspace alignment`, and it does not follow from the cosine. Two updates can be orthogonal as matrices and still write into the same few directions of the residual stream, or read from the same ones.
# Let $U_k$ hold the first $k$ left singular vectors of the reference, the output directions along which it acts most. The share
#
# ```{math}
# :label: eq-decomposition-alignment
# a_k(R, \Delta W) = \frac{\|U_k U_k^{\top} \Delta W\|}{\|\Delta W\|}
# ```
#
# says how much of $\Delta W$, by norm, lies within these directions, whatever inputs they are tied to. It does not ask for the same matrix, only for the same
# column space. With the matrices in full:

# %%
k = compared.angles["left"].shape[-1]
U, sigma, _ = np.linalg.svd(R)
ratio = norm(U[:, :k].T @ update) / norm(update)
grpo_index = compared.runs.index("offline-grpo")
assert np.isclose(ratio, compared.alignment[0, sft, grpo_index])

# %%
d_out = len(R)
ceiling = np.sqrt((sigma[:k] ** 2).sum() / (sigma ** 2).sum())
Markdown(f"In `{module}` the first {k} of {d_out} output directions of SFT hold "
         f"**{ratio:.3f}** of Offline GRPO's update. Two levels belong to it: "
         f"{np.sqrt(k / d_out):.3f} by chance, "
         f"and {ceiling:.3f} for SFT's update itself.")

# %% [markdown]
# The *chance level*: if the columns of $\Delta W$ have nothing to do with $U_k$, each has on average the share $k / d_\text{out}$ of its squared length in any
# $k$-dimensional subspace, so $a_k$ is about $\sqrt{k / d_\text{out}}$. The spread around it depends on the spectrum, so we draw it: updates that keep their $A$ and the
# singular values of $B$ and share nothing else (`chance.matched_null`). The *ceiling*: not even the reference lies wholly within its own
# first $k$ directions, only by $\sqrt{\sum_{i \le k} \sigma_i^2 / \sum_i \sigma_i^2}$. A method with SFT's own update would stand there.

# %%
nulls = compare_by_chance(adapters, 10, k=k)


def bands(reference):
    """The middle 95 % of the alignment with a reference by chance, {run: (low, high)}.

    Over modules and draws.
    """
    drawn = np.stack([null.alignment[:, list(runs).index(reference)] for null in nulls])
    return {run: tuple(np.quantile(drawn[:, :, number], [0.025, 0.975]))
            for number, run in enumerate(runs) if run != reference}

# %% mystnb={"image": {"alt": "Two strip plots with one dot per module: alignment of each method's update with the leading output directions of SFT and of DPO, grey chance bands, and the reference itself at the edge as ceiling"}, "figure": {"caption": "Share of each module's update, by norm, within the first $k$ output directions of the reference, by {eq}`eq-decomposition-alignment`; black bars: medians; grey: 95 % of what chance gives. The reference's own column is its ceiling.", "name": "fig-decomposition-alignment"}}
panels, chance = {}, {}
for reference in ("sft", "dpo"):
    ratios = compared.alignment[:, list(runs).index(reference)]
    heading = f"first {k} directions of {figures.LABELS[reference]}"
    panels[heading] = dict(zip(runs, ratios.T, strict=True))
    chance[heading] = bands(reference) | {reference: (np.nan, np.nan)}
figures.strips(panels, "alignment ratio", chance);

# %%
alignment = pd.DataFrame(compared.alignment[:, sft], columns=list(runs))
aligned = pd.DataFrame(
    [{"run": run, "orthogonal part": stored[run],
      "alignment, median": alignment[run].median(), "chance, low": low,
      "chance, high": high,
      "modules above chance": f"{(alignment[run] > high).mean():.0%}"}
     for run, (low, high) in bands("sft").items()])
figures.table(aligned)

# %%
line = aligned.set_index("run").loc["dpo"]
median, low, high = line[["alignment, median", "chance, low", "chance, high"]]
verdict = "above" if median > high else "within" if median >= low else "below"
Markdown(f"SFT itself has a median of {alignment.sft.median():.3f}, the ceiling. DPO's "
         f"update is orthogonal to SFT's by {line['orthogonal part']:.4f}, yet the "
         f"median of its alignment is **{median:.3f}**, {verdict} the band of chance "
         f"({low:.3f} to {high:.3f}); {line['modules above chance']} of its modules "
         f"are above that band, where chance would put about 2.5 %.")

# %% [markdown]
# Where a method stands above its band in {numref}`fig-decomposition-alignment`, it writes into SFT's directions more than an unrelated update would, even if
# the two matrices are at right angles. That is no contradiction: within $k$ output directions there are still $k \cdot d_\text{in}$ ways to be orthogonal. Nor
# does it say why. Both methods train the same base on texts of the same teacher, and some output directions may be where any training of this
# model acts. The controls with other seeds and other data have to decide that.
#
# ## The paper's numbers beside ours
#
# "Middle layers" is read as the middle third, and "the last five blocks" of 36 as the last seventh of ours, at least one layer. For each group
# of layers its modules are stacked.

# %%
replicas, depth = store.read_table(profile, "replicas"), compared.modules.layer
thirds = replication.middle_and_last(depth)
groups = {"whole update": (np.full(len(depth), True), ".67"),
          "middle layers": (thirds["middle"], ".55"),
          "last layers": (thirds["last"], ".79–.86")}
pair = ("sft", "offline-grpo")
at_seeds = replication.at_seeds(replicas, "cosine", *pair)
other_seed = replication.between_seeds(replicas, "cosine", "sft")
over_seeds = {"whole update": np.sqrt(1 - at_seeds ** 2)}
with_other_seed = {"whole update": np.sqrt(1 - other_seed ** 2)}
for name in ("middle", "last"):
    part = f"by norm, {name}"
    over_seeds[f"{name} layers"] = replication.at_seeds(replicas, part, *pair)
    with_other_seed[f"{name} layers"] = replication.between_seeds(replicas, part, "sft")

# %%
rows = []
for name, (chosen, theirs) in groups.items():
    stacked, spread = geometry.stacked_cosine(compared, np.flatnonzero(chosen))
    value, by_seed = stacked[sft, grpo_index], over_seeds[name]
    half_width = 1.96 * spread[sft, grpo_index]
    rows.append({"Offline GRPO against SFT": name, "paper, by norm": theirs,
                 "ours, by norm": np.sqrt(1 - value ** 2),
                 "ours, by energy": 1 - value ** 2, "ours, cosine": value,
                 "by chance at least": np.sqrt(1 - half_width ** 2),
                 "over seeds": f"{by_seed.min():.3f} to {by_seed.max():.3f}",
                 "SFT against SFT of another seed": with_other_seed[name].mean()})
figures.table(pd.DataFrame(rows))

# %%
whole, middle, late = (row["ours, by norm"] for row in rows)
order = "more" if late > middle else "less"
Markdown(f"By norm, Offline GRPO is **{whole:.2f}** orthogonal to SFT here and .67 in "
         f"the paper. In our last layers it is *{order}* orthogonal than in the "
         f"middle ones ({late:.2f} against {middle:.2f}); in the paper it is more so "
         f"(.79 to .86 against .55).")

# %% [markdown]
# The last column is the control: two runs of *one* method are orthogonal to each other to this degree. An orthogonal part that is not larger than that is less than another initial adapter and another order of the prompts bring about with no change of loss, so its size alone is no sign of something new. It does come from the loss: at one seed, the same loss would give zero up to rounding.
#
# One more number of the paper, online GRPO's .998 with a cosine of .025, is by {eq}`eq-decomposition-fractions` once more a single statement. Its counterpart here, with the band of
# chance, is in the chapter on [on-policy training](20_on_policy.ipynb).
#
# ## On a pretrained model
#
# Both questions for SmolLM2-135M-Instruct, from weights rounded to four bits and adapted to the problems ([how](22_pretrained.ipynb)): how much of each update is orthogonal to SFT's at each of thirty layers, and how much of it lies in SFT's leading output directions.

# %% mystnb={"image": {"alt": "Line plot of the orthogonal part by norm against the layer, thirty layers, for five methods in the pretrained model, with a chance band at one"}, "figure": {"caption": "Orthogonal part with respect to SFT, by norm, of each layer of the pretrained model. Grey: chance.", "name": "fig-decomposition-pretrained"}}
second = profiles.load(pretrained)
adapters_second = trainer.updates_of_study(pretrained, second.main_runs)
compared_second = geometry.compare(adapters_second, k=k)
parts_second = against(geometry.cosine_table(compared_second), "sft")
figures.lines_of_runs({"": parts_second[parts_second.scope == "layer"]}, "layer",
                      "by_norm", "layer", "orthogonal part, by norm");

# %%
replicas_second = store.read_table(pretrained, "replicas")
late_second = {name: replication.at_seeds(replicas_second, f"by norm, {name}", *pair)
               for name in ("middle", "last")}
nulls_second = np.concatenate([null.alignment[:, 0]
                               for null in compare_by_chance(adapters_second, 3, k=k)])
overall_second = parts_second[parts_second.scope == "global"].set_index("run")
rows_second = []
for number, run in enumerate(second.main_runs):
    if run != "sft":
        values = compared_second.alignment[:, 0, number]
        high = np.quantile(nulls_second[:, number], 0.975)
        rows_second.append({"run": run, "orthogonal part": overall_second.by_norm[run],
                            "alignment, median": np.median(values),
                            "chance, high": high,
                            "modules above chance": f"{(values > high).mean():.0%}"})
aligned_second = pd.DataFrame(rows_second)
figures.table(aligned_second)

# %%
above = aligned_second.set_index("run")["modules above chance"]
in_middle, in_last = late_second["middle"], late_second["last"]
runs_second = [second.runs[run] for run in second.main_runs]
Markdown(f"In the pretrained model Offline GRPO is orthogonal to SFT by "
         f"{in_middle.min():.3f} to {in_middle.max():.3f} in the middle layers over "
         f"its seeds, and by **{in_last.min():.3f} to {in_last.max():.3f}** in the "
         f"last ones; here by {middle:.3f} and {late:.3f} at the main seed; in the "
         f"paper by .55 and .79 to .86. Above their bands of chance in the alignment "
         f"with SFT's first {k} output directions are {above['dpo']} of DPO's modules "
         f"there, and {line['modules above chance']} here. "
         f"{store.origin(pretrained, runs_second)}")

# %% [markdown]
# In {numref}`fig-decomposition-pretrained` a rise of Offline GRPO's line towards the right end would be the paper's finding; the sentence above puts numbers on it.
#
# ## Try it
#
# 1. Multiply Offline GRPO's update by ten and split it again. Which numbers on this page change?
#
# ````{dropdown} What happens
# Only the coefficient $c$, which becomes ten times larger. Fractions, cosines and alignments are ratios in which the length of the update cancels. A run
# with a tiny update, such as DPO, is treated like any other, and whether its update matters at all must be asked of its [norm](10_norms.ipynb).
# ````
#
# 2. Use RFT as the reference in place of SFT: `against(geometry.cosine_table(compared), "rft")`.
#
# ````{dropdown} What happens
# The rows hardly change for methods far from both, since SFT and RFT are close to each other. But "new with respect to SFT" and "new with respect to RFT" are different
# parts of the update: an orthogonal part belongs to a pair, never to a method.
# ````
#
# 3. Replace $k$ by the full rank: `geometry.compare(adapters, k=study.lora.rank)`. Why is SFT's own alignment then exactly one, and what happens to chance?
#
# ````{dropdown} Answer
# All of SFT's update lies within all of its $r$ output directions, so the ceiling is one. Chance rises to $\sqrt{r / d_\text{out}}$, and the room between
# them shrinks. A small $k$ asks about the directions that carry most of the update, a large one about anything that it touches.
# ````
#
# 4. Sum the reference of two methods, `updates.combine([adapters["sft"], adapters["dpo"]], [1, 1])`, and split Offline GRPO along the sum. Can its orthogonal part be smaller
#    than along either?
#
# ````{dropdown} Answer
# Yes. If Offline GRPO were a mixture of the two, the sum could come close to it while each alone does not. The best one can do with both is a
# plane instead of a line: least squares with two coefficients.
# ````
#
# ## Summary
#
# The orthogonal decomposition is a picture of the cosine, {eq}`eq-decomposition-fractions`, and its two units differ more than most differences between
# methods. Cut layer by layer it asks other questions, whose answers do not add up to the global one unless all coefficients agree, {eq}`eq-decomposition-pooled`.
# Chance puts any update near one, so it is the parallel part that needs a cause. The alignment of {eq}`eq-decomposition-alignment` is a different statistic with a ceiling and a band, and can
# find something in common where the cosine is zero. So far every quantity compared weights with weights; the [next page](13_connectivity.ipynb) walks from one
# update to the other and measures the loss on the way.
