# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, seeds, all methods]
# ---

# %% [markdown]
# # Chance levels
#
# *Previously,* each page of this part set its numbers beside a band of chance, and each took the band that suited it. *Now* all of these bands
# stand side by side, from updates of pure noise to a second run of the same loss, and the question is which of them a claim has to beat.
#
# **Key takeaways**
# - A {term}`chance level` is not one number. It depends on what the null keeps of the real updates: shapes, the factor $A$, spectra, input directions,
#   or everything but the place or the seed.
# - Some widely used nulls are so weak that any two runs from one start beat them. Beating them says that the runs are related, not why.
# - Only another seed of the same loss says what a cosine near one is worth. It is a yardstick of likeness, where the other nulls are yardsticks of
#   unlikeness.
# - A worst angle of 90 degrees and a plain CKA of .96 are what noise gives.
#
# You need: [cosines](10_norms.ipynb), [principal angles](11_angles.ipynb), [decomposition](12_decomposition.ipynb). Reads the six runs and the same losses
# under further seeds. Time to run: about a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
from itertools import combinations, product
from math import comb

import numpy as np
import pandas as pd
from IPython.display import Markdown

from adapter_geometry import geometry, representations
from adapter_geometry.chance import (
    compare_by_chance,
    expected_overlap,
    gaussian_null,
    permuted,
    random_angles,
)
from helpers import profiles, store
from helpers.book import figures
from helpers.training import trainer

study = profiles.load(profile)
main = list(study.main_runs)
figures.use_style(study)


adapters = {name: trainer.update_of(study, name) for name in main}
compared = geometry.compare(adapters)
modules, n, k = compared.modules, len(main), compared.angles["left"].shape[-1]
r, d_out, d_in = study.lora.rank, modules.d_out.to_numpy(), modules.d_in.to_numpy()

# %% [markdown]
# ## What a null keeps
#
# A null is a way to make updates in which the thing that a claim is about is absent, and everything else is as in the real ones. The statistic is computed
# on these, and 95 % of its values are the band. So a null is described by two lists, what it keeps and what it destroys, and a number outside
# the band shows that *something on the second list* matters. Here are six, in the order of what they keep:
#
# | null | keeps | destroys |
# |---|---|---|
# | Gaussian | shapes and ranks of the modules | everything else |
# | Gaussian B | and each run's trained $A$ | what training did to $B$: lengths, spectra, directions |
# | matched | and the singular values of $B$ | both sets of singular vectors of $B$ |
# | outputs rotated | the whole update but for a rotation of its outputs: all singular values of $\Delta W$ and *which inputs* it reacts to | where it writes |
# | modules permuted | every update as it is | which module of one run meets which of the other |
# | another seed | the loss, the rollouts, the base and the way of training | the initial $A$, the order of the prompts |
#
# The first five ask what *unrelated* updates look like, the last what the *same* loss looks like. They are taken up one after the other.
#
# ## Pure noise
#
# Let all entries of $B$ and $A$ be independent standard normal numbers, for both runs. The inner product is
# $\operatorname{tr}\big((B_2^\top B_1)(A_1 A_2^\top)\big)$, a sum of $r^2$ products of an entry of $B_1^\top B_2$, which has variance $d_\text{out}$,
# and one of $A_1 A_2^\top$, with variance $d_\text{in}$. The squared norms are about $r\, d_\text{out} d_\text{in}$ each. Hence
#
# ```{math}
# :label: eq-chance-gaussian
# \operatorname{sd}(\cos) \approx \frac{\sqrt{r^2\, d_\text{out} d_\text{in}}}{r\, d_\text{out} d_\text{in}} = \frac{1}{\sqrt{d_\text{out} d_\text{in}}} .
# ```
#
# The rank has dropped out: two random matrices of low rank are as nearly perpendicular as any two random directions in a space of
# $d_\text{out} d_\text{in}$ dimensions. This null is what "random vectors in high dimension are orthogonal" means, and it is the weakest of all.
#
# ## Noise on a shared A
#
# Runs with one `init_seed` start from the same $A$, and [most of it stays](11_angles.ipynb). Now only $B$ is drawn. The entries of $B_1^\top B_2$ are
# uncorrelated with variance $d_\text{out}$, and with $\lVert \Delta W_i \rVert^2 \approx d_\text{out} \lVert A_i \rVert^2$
#
# ```{math}
# :label: eq-chance-shared
# \begin{gathered}
# \operatorname{sd}(\cos) \approx \frac{\lVert A_1 A_2^\top \rVert_F}{\sqrt{d_\text{out}}\, \lVert A_1 \rVert_F \lVert A_2 \rVert_F}
# = \frac{1}{\sqrt{r\, d_\text{out}}} \\
# \text{(the last for one $A$ with perpendicular rows of equal length).}
# \end{gathered}
# ```
#
# That is wider than {eq}`eq-chance-gaussian` by $\sqrt{d_\text{in} / r}$, without $B$ having learnt anything. When modules are stacked, the variances of their
# inner products add up, and so do the squared norms. Both formulas, and the updates themselves drawn `draws` times:

# %%
draws = 40
gaussian = [geometry.compare(gaussian_null(adapters, seed, keeps_A=False))
            for seed in range(draws)]
gaussian_B = [geometry.compare(gaussian_null(adapters, seed, keeps_A=True))
              for seed in range(draws)]
matched = compare_by_chance(adapters, draws)
pair = np.triu_indices(n, 1)


def spread(comparisons):
    """Root mean square of the stacked cosine over draws and pairs of runs."""
    return np.sqrt(np.mean([geometry.stacked_cosine(one)[0][pair] ** 2
                            for one in comparisons]))


# %%
def on_own_A(first, second):
    """sd of the stacked cosine of two runs for standard normal B, one scale for all."""
    A = {m: (first[m].A.double().numpy(), second[m].A.double().numpy(), len(first[m].B))
         for m in first}
    variance = sum(d * np.sum((one @ two.T) ** 2) for one, two, d in A.values())
    squares = [sum(parts[2] * np.sum(parts[side] ** 2) for parts in A.values())
               for side in (0, 1)]
    return np.sqrt(variance / squares[0] / squares[1])


trained_A = np.sqrt(np.mean([on_own_A(adapters[a], adapters[b]) ** 2
                             for a, b in combinations(main, 2)]))
pure, shared = 1 / np.sqrt(np.sum(d_out * d_in)), 1 / np.sqrt(r * np.sum(d_out))

# %%
standard_deviations = pd.DataFrame(
    [("Gaussian", pure, spread(gaussian)),
     ("Gaussian B, one A, equal rows", shared, np.nan),
     ("Gaussian B, the trained A's", trained_A, spread(gaussian_B))],
    columns=["null", "closed form", "drawn"])
standard_deviations.style.format(precision=5, na_rep="–").hide()

# %% [markdown]
# The table has standard deviations of the cosine with all modules stacked. For one $A$ the third line can only be
# above the second: rows that training has stretched more than others leave fewer than $r$ directions that count. Where it is not, the runs' $A$ have drifted apart.
#
# ## Concentrated spectra
#
# Trained updates are concentrated: a few singular values carry most of the length. Does that widen the band? In the {term}`matched null`
# $B_i = O_i \Sigma_i W_i$, with the singular values $\Sigma_i$ of the trained $B_i$, a random orthonormal $O_i$ and a random rotation $W_i$. Averaging over
# $O_2$ gives the variance $\lVert B_1 A_1 A_2^\top W_2^\top \Sigma_2 \rVert^2 / d_\text{out}$, as for the rotation in {eq}`eq-norms-null`. Averaging over the two $W_i$
# replaces each $B_i^\top B_i$ by its mean, $\lVert B_i \rVert^2 / r$ times the identity, in the numerator and in the norms, and
#
# ```{math}
# :label: eq-chance-matched
# \mathbb{E}\langle \Delta W_1, \Delta W_2 \rangle^2 = \frac{\lVert B_1 \rVert^2 \lVert B_2 \rVert^2 \lVert A_1 A_2^\top \rVert^2}{r^2\, d_\text{out}}, \qquad
# \mathbb{E}\lVert \Delta W_i \rVert^2 = \frac{\lVert B_i \rVert^2 \lVert A_i \rVert^2}{r} .
# ```
#
# Their ratio is {eq}`eq-chance-shared` again: no singular value is left in it. Concentration *alone* does not widen the band of a module. Two updates of
# few directions agree strongly where they agree, but seldom agree. Stacking does widen it, since long modules weigh more.
#
# What widens the band of a module is the fourth null. Rotating only the outputs, {eq}`eq-norms-null`, keeps each update's singular values *together with the
# input directions that they belong to*. If two runs react most to the same inputs, then the input half of an agreement is already there. The difference between the two nulls is
# therefore what the runs share on the input side, learnt or not.

# %%
def by_module(comparison):
    """Cosines of one module each, (modules, runs, runs)."""
    lengths = np.sqrt(np.einsum("mii->mi", comparison.inner))
    return comparison.inner / (lengths[:, :, None] * lengths[:, None])


matched_sd = np.std([by_module(one) for one in matched], axis=0).mean(0)[pair]
rotated_sd = np.mean([geometry.stacked_cosine(compared, [m])[1][pair]
                      for m in range(len(modules))], 0)
names = [f"{figures.LABELS[a]} – {figures.LABELS[b]}" for a, b in combinations(main, 2)]
ladder = pd.DataFrame({"pair": names, "Gaussian": np.mean(1 / np.sqrt(d_out * d_in)),
                       "shared A": np.mean(1 / np.sqrt(r * d_out)),
                       "matched": matched_sd, "outputs rotated": rotated_sd})
ladder.style.format(precision=4).hide()

# %%
wider = (ladder["outputs rotated"] / ladder.matched).to_numpy()
Markdown(f"""Standard deviation of the cosine of *one module*, mean over modules.
Rotating outputs gives a band that is **{wider.min():.1f} to {wider.max():.1f}** times
as wide as the matched one, most for {names[wider.argmax()]}. The two columns to the
left are {{eq}}`eq-chance-gaussian` and the right-hand side of
{{eq}}`eq-chance-shared`.""")

# %% [markdown]
# ## Modules permuted
#
# The nulls so far replace real updates by drawn ones. The fifth draws nothing: it compares module $m$ of one run with another module $m'$ of
# the other run, of the same projection in another layer (`chance.permuted`). Spectra, lengths, and all else of each update are exactly as trained. What is destroyed is the
# correspondence of places, and two things go with it. Each module's $A$ was drawn for it alone, so the shared initial $A$ is gone. And whatever training taught
# this particular layer is compared with what it taught another.
#
# What remains is what is common to *all layers*. There may be such a thing: the layers read from one residual stream and write into it. A direction
# that every query, key and value matrix reads, or that every output matrix writes, survives the permutation. So this null answers whether two updates share directions *because they stand in the same place*.
#
# ## Another seed
#
# The sixth is of another kind. Take one loss, and train it again from another initial $A$ and in another order of the prompts. Nothing is shared but the
# loss, the rollouts and the base. The cosine of such two runs is what an honest reader compares a cosine of two *methods* with: not the question whether
# the two are more alike than noise, but whether they are less alike than one method and itself.

# %%
others = study.controls["seeds"].runs
objective = {run: study.runs[run].objective for run in (*main, *others)}
groups = [[name, *(run for run in others if objective[run] == objective[name])]
          for name in main]
everything = geometry.compare({run: trainer.update_of(study, run)
                               for group in groups for run in group})
# (methods, seeds): the number of each run among all
indices = np.array([[everything.runs.index(run) for run in group] for group in groups])
first, second = np.triu_indices(indices.shape[1], 1)
values = 2 * len(first)
trained = [study.runs[name] for name in (*main, *others)]
Markdown(f"""{indices.shape[1]} seeds per method, {len(first)} pairs of seeds: for two
methods together, {values} values. That is too few for a 95 % band, so the whole range
from the lowest to the highest is taken; one more value of the same kind, if
independent, would fall outside it with probability {2 / (values + 1):.0%}.
{store.origin(profile, trained)}""")

# %% [markdown]
# ## Every statistic under every null
#
# One number per pair of runs for each statistic of the previous pages: the cosine with all modules stacked, and otherwise the median (for first singular
# vectors the mean, as in the paper) over modules. The effective rank belongs to a single run.

# %%
def summary(comparison):
    """{statistic: (runs, runs)}: one number per pair, angles in degrees."""
    cosine, _ = geometry.stacked_cosine(comparison)
    values = {"cosine": cosine,
              "cosine, one module": np.median(by_module(comparison), 0),
              "orthogonal part": np.sqrt(np.maximum(0, 1 - cosine ** 2)),
              "alignment": np.nanmedian(comparison.alignment, 0)}
    for side in ("left", "right"):
        angles = np.degrees(np.nanmedian(comparison.angles[side], 0))
        values[f"smallest {side} angle"] = angles[..., 0]
        values[f"largest {side} angle"] = angles[..., -1]
        values[f"first {side} vectors"] = np.nanmean(comparison.first[side], 0)
    ranks = geometry.effective_rank(comparison.singular_values).mean(0)
    return values | {"effective rank": np.tile(ranks, (len(ranks), 1))}


# %%
def displaced(seed):
    """The runs and, after them, the same runs with their modules permuted."""
    permuted_runs = permuted(adapters, seed).items()
    return geometry.compare(
        adapters | {f"{name}, moved": update for name, update in permuted_runs})


def bands_of(comparisons, rows=slice(None), columns=slice(None)):
    """{statistic: (2, runs, runs)}: the middle 95 % over comparisons."""
    summaries = [summary(one) for one in comparisons]
    return {statistic: np.nanquantile(
        [one[statistic][rows, columns] for one in summaries], [0.025, 0.975], axis=0)
        for statistic in summaries[0]}


moved = [displaced(seed) for seed in range(draws)]
_, sd = geometry.stacked_cosine(compared)
bands = {"Gaussian": bands_of(gaussian), "Gaussian B": bands_of(gaussian_B),
         "matched": bands_of(matched),
         "outputs rotated": {"cosine": 1.96 * np.array([-sd, sd])},
         "modules permuted": bands_of(moved, slice(n), slice(n, None))}

# %% [markdown]
# For the seeds, the values of both methods of a pair are taken together:

# %%
seed_bands = bands["another seed"] = {}
for statistic, values in summary(everything).items():
    is_alone = statistic == "effective rank"
    of_seeds = (values[indices, indices] if is_alone
                else values[indices[:, first], indices[:, second]])
    low, high = of_seeds.min(1), of_seeds.max(1)
    seed_bands[statistic] = np.array([np.minimum.outer(low, low),
                                      np.maximum.outer(high, high)])

# %%
measured, rows = summary(compared), []
for statistic, values in measured.items():
    is_alone = statistic == "effective rank"
    chosen = [(i, i) for i in range(n)] if is_alone else combinations(range(n), 2)
    bands_here = {null: band[statistic] for null, band in bands.items()
                  if statistic in band}
    for (i, j), (null, (low, high)) in product(chosen, bands_here.items()):
        rows.append({"statistic": statistic, "run_a": main[i], "run_b": main[j],
                     "null": null, "value": values[i, j], "low": low[i, j],
                     "high": high[i, j]})
table = store.write_table(profile, "chance", pd.DataFrame(rows))

# %% [markdown]
# The base is no run here: its update is zero and has no direction. (The effective rank has one row per run, which stands in both columns.) Two pairs in full, the closest kin of the paper and its furthest, SFT with RFT and SFT with DPO:

# %%
def in_full(a, b):
    """Measured value and every band of one pair."""
    rows = table[table.run_a.isin([a, b]) & (table.run_b == b)]
    texts = rows.assign(band=[f"{row.low:.3g} to {row.high:.3g}"
                              for row in rows.itertuples()])
    wide = texts.pivot(index="statistic", columns="null", values="band").fillna("–")
    wide = wide.loc[list(measured), list(bands)]
    values = rows.groupby("statistic").value.first()
    wide.insert(0, "measured", values.map("{:.3g}".format))
    return wide.rename_axis(None, axis=1).reset_index().style.hide()


in_full("sft", "rft")

# %%
in_full("sft", "dpo")

# %% [markdown]
# Angles are in degrees. The bands are those of the number in the row, a median over modules, and not those of a single module. The rows for the orthogonal part repeat those of the cosine in [another unit](12_decomposition.ipynb); there chance is just below one.
# The effective rank is that of the second run; noise fills the rank of the adapter, and a permutation cannot change it. Two columns that agree in a row show that what the stronger
# null keeps in addition plays no part in this statistic.

# %% mystnb={"image": {"alt": "Fifteen pairs of objectives with a dot for the cosine on each and six coloured bars: four narrow ones around zero, one for permuted modules, and a distant one for other seeds"}, "figure": {"caption": "Cosine of the updates of each pair, all modules stacked (dot), on 95 % of each null; green: from the least to the most alike two seeds of one of the two methods. The axis is logarithmic beyond .01 on both sides.", "name": "fig-chance-cosine"}}
figures.null_bands({"": table[table.statistic == "cosine"]}, "cosine of the updates",
                   0.01);

# %%
def beats(statistic):
    """For each null, how many pairs are more alike than its band."""
    rows = table[table.statistic == statistic]
    is_distance = "angle" in statistic or "orthogonal" in statistic
    is_alike = rows.value < rows.low if is_distance else rows.value > rows.high
    return is_alike.groupby(rows.null, sort=False).sum()


of_pairs = [statistic for statistic in measured if statistic != "effective rank"]
counts = pd.DataFrame({statistic: beats(statistic) for statistic in of_pairs}).T
counts = counts.astype("Int64").reindex(columns=list(bands))
counts = counts.rename_axis("pairs more alike than")
counts.reset_index().style.format(na_rep="–").hide()

# %%
outside, total = counts.loc["cosine"], n * (n - 1) // 2
weak, strong = ([low <= value <= high for value, low, high
                 in zip(measured["cosine"][pair], *band[:, *pair], strict=True)]
                for band in (bands["Gaussian B"]["cosine"],
                             bands["outputs rotated"]["cosine"]))
split = [name for name, is_weak, is_strong in zip(names, weak, strong, strict=True)
         if is_strong and not is_weak]
Markdown(f"""By the cosine, {outside['Gaussian']} of {total} pairs are more alike than
pure noise, {outside['outputs rotated']} than with outputs rotated,
{outside['modules permuted']} than with modules permuted, and
**{outside['another seed']}** than any two seeds of their methods. Pairs that Gaussian B
calls related or opposed and rotated outputs call
unrelated: {', '.join(split) or 'none'}.""")

# %% [markdown]
# In {numref}`fig-chance-cosine` and the table of counts, the first five columns ask for little. About one pair in forty would pass each of them by chance, and a pair that passes is *related*. The last column
# asks for much, and unfairly so: two methods of the main study share their initial $A$ and the order of their prompts, while two seeds share neither. A dot to the right of the green
# bar says that changing the loss did less than changing the seed. It does not say that the losses are the same. A later section makes that comparison fair.
#
# ## Angles

# %% mystnb={"image": {"alt": "Four panels of smallest and largest left and right angles for the five pairs with SFT: dots at measured values on bars of the nulls, the largest left angles of all nulls at about ninety degrees"}, "figure": {"caption": "Principal angles with SFT, median over modules (dot), on 95 % of each null for that median; green: range over seeds of the two methods. Far to the left means alike.", "name": "fig-chance-angles"}}
with_sft = table[table.run_a == "sft"]
panels = [f"{size} {side} angle" for side in ("left", "right")
          for size in ("smallest", "largest")]
figures.null_bands({name: with_sft[with_sft.statistic == name] for name in panels},
                   "degrees");

# %%
grouped = with_sft.groupby(["statistic", "null"])[["low", "high"]].median()
middle = grouped.mean(axis=1).unstack()
middle = middle.loc[panels, [null for null in bands if null in middle]]
middle.insert(0, "measured", with_sft.groupby("statistic").value.median())
shown = middle.rename_axis(None, axis=1).rename_axis("median over the five pairs")
shown.reset_index().style.format(precision=1, na_rep="–").hide()

# %%
smallest, right = middle.loc["smallest left angle"], middle.loc["smallest right angle"]
Markdown(f"""In degrees, the middle of each band. The smallest left angle is
{smallest['matched']:.1f} for the matched null and {smallest['modules permuted']:.1f}
for permuted modules: the difference is what a module meets of itself in other layers.
The smallest right angle is {right['Gaussian']:.1f} for pure noise and
**{right['Gaussian B']:.1f}** as soon as $A$ is kept (matched: {right['matched']:.1f});
for two seeds it is {right['another seed']:.1f}.""")

# %% [markdown]
# In the two panels on the right of {numref}`fig-chance-angles` the nulls fall into two groups: those that keep each run's own $A$, and those in which the two $A$ had nothing to do with each other at the start (pure noise, permuted modules, another seed).
# The step from pure noise to Gaussian B is what the two $A$ alone can claim of a shared input subspace, drawn together and then trained. The step from pure noise to the green bar of the seeds is what *loss and data* can claim. On the left, $A$ plays no part,
# so that the three drawn nulls agree, and only permuted modules or another seed can differ from them.
#
# On the right, Gaussian B can be the harder null to beat of the two that keep $A$, although it keeps less. For a standard normal $B$ the matrix $B^\top B$ is nearly a multiple of the identity, so that the right singular vectors of $BA$ are those of $A$
# itself, the longest first. Training stretches each $A$ along the directions that it uses, and if two runs stretched theirs alike, Gaussian B shows it in full. The matched null mixes these directions by a random rotation with unequal weights.
# So there is one ladder for each statistic, not one for all.
#
# Which projections have something in common across layers? Queries, keys and values read the residual stream, and output matrices write into it:

# %%
def elsewhere(projection, side):
    """Smallest angle in degrees of modules with those of other runs in other layers."""
    is_kind = modules.projection.to_numpy() == projection
    return np.degrees(np.median([one.angles[side][is_kind][:, :n, n:][:, *pair, 0]
                                 for one in moved]))


rows = []
for projection, part in modules.groupby("projection", sort=False):
    for side, d in (("left", part.d_out.iloc[0]), ("right", part.d_in.iloc[0])):
        uniform_angle = np.degrees(np.median(random_angles(d, k)[:, 0]))
        rows.append({"projection": projection, "side": side,
                     "modules permuted": elsewhere(projection, side),
                     "uniform": uniform_angle})
stream = pd.DataFrame(rows)
stream["gap"] = stream["uniform"] - stream["modules permuted"]
stream.style.format(precision=1).hide()

# %% [markdown]
# The table has the smallest angle in degrees, the median over modules, pairs of runs and draws. A gap means that part of what two updates share at a module is not about that module. For the sides that face the residual stream (right for `q_proj`, `k_proj` and `v_proj`, left for `o_proj`) this has an
# obvious reading; a gap on the other side would need another one, since the inner coordinates of one head have nothing to do with those of a head elsewhere.
#
# ## Chance and dimension
#
# Chance levels of angles, overlaps and cosines depend on $d$ and $k$, so that numbers of a small model cannot be read as those of a large one. For uniform
# subspaces of dimension $k$, ours and the paper's ten:

# %%
sizes = 2 ** np.arange(6, 14)
ours = int(np.median(d_out))
marks = {64: "64", ours: f"{ours}\nours", 1024: "1024\nk, v", 2560: "2560\no",
         4096: "4096\nq", 8192: "8192"}


def uniform(size, which, index):
    drawn = [np.degrees(random_angles(int(d), size, 600)[:, index]) for d in sizes]
    middle, low, high = np.quantile(drawn, [0.5, 0.025, 0.975], axis=1)
    return pd.DataFrame({"run": f"{which}, k = {size}", "d": sizes, "degrees": middle,
                         "low": low, "high": high})


lines = pd.concat([uniform(size, which, index) for size in (k, 10)
                   for which, index in (("smallest", 0), ("largest", -1))])

# %% mystnb={"image": {"alt": "Smallest and largest principal angle of random subspaces against the dimension from 64 to 8192 for two sizes: the smallest rise steeply towards ninety degrees, the largest lie just below it"}, "figure": {"caption": "Smallest and largest principal angle of two uniform subspaces against the dimension: median and 95 % of the draws. Marked: our output dimension and those of Qwen3-4B, with its projections.", "name": "fig-chance-dimension"}}
fig = figures.lines_of_runs({"": lines}, "d", "degrees", "dimension d", "degrees")
fig.axes[0].set_xscale("log")
fig.axes[0].set_xticks(list(marks), list(marks.values()), fontsize=8)
fig.axes[0].minorticks_off()

# %% [markdown]
# In {numref}`fig-chance-dimension` the largest angle says next to nothing anywhere: for any $d$ on the axis it is close to 90 degrees. The smallest is informative, and the more so the larger the model: the room
# between it and 90 degrees is about $2\sqrt{k/d}$ radians. The next figure has the same for overlaps of first vectors and for the cosine of one module.

# %%
def line(name, values):
    return pd.DataFrame({"run": name, "d": sizes, "value": values})


overlaps = pd.concat([line("first vectors", [expected_overlap(int(d)) for d in sizes]),
                      line(f"cosine, one A, r = {r}", 1 / np.sqrt(r * sizes)),
                      line("cosine, one A, r = 32", 1 / np.sqrt(32 * sizes)),
                      line("cosine, nothing shared", 1 / sizes)])

# %% mystnb={"image": {"alt": "Straight falling lines on logarithmic axes of chance overlap and of the standard deviation of the cosine against the dimension, the line for nothing shared falling twice as steeply"}, "figure": {"caption": "Chance level of one module against its dimension ($d_\\text{out} = d_\\text{in} = d$): mean overlap of first singular vectors, and standard deviation of the cosine by {eq}`eq-chance-gaussian` and {eq}`eq-chance-shared`.", "name": "fig-chance-overlap"}}
fig = figures.lines_of_runs({"": overlaps}, "d", "value", "dimension d",
                            "mean overlap, or sd of the cosine", log=True)
fig.axes[0].set_xticks(list(marks), list(marks.values()), fontsize=8)
fig.axes[0].minorticks_off()

# %% [markdown]
# At the paper's shapes the levels of {numref}`fig-chance-overlap` can be written down, and drawn as a check. Rank 32, ten directions, 36 layers with projections
# `q` 4096 x 2560, `k` and `v` 1024 x 2560, and `o` 2560 x 4096:

# %%
rng = np.random.default_rng(0)


def drawn_cosine(d):
    """sd of the cosine of two Gaussian B (d, 32) on one A with perpendicular rows."""
    pairs_of_B = rng.standard_normal((60, 2, d * 32))
    return np.std(np.prod(pairs_of_B, 1).sum(1)
                  / np.prod(np.linalg.norm(pairs_of_B, axis=2), 1))


rows = []
for d in (1024, 2560, 4096):
    angles, vectors = np.degrees(random_angles(d, 10)), rng.standard_normal((2000, d))
    overlap = np.mean(np.abs(vectors[:, 0]) / np.linalg.norm(vectors, axis=1))
    rows.append({"d_out": d, "smallest angle": angles[:, 0].mean(),
                 "largest angle": angles[:, -1].mean(),
                 "overlap, √(2/πd)": np.sqrt(2 / np.pi / d), "overlap, drawn": overlap,
                 "sd of the cosine, 1/√(r d)": 1 / np.sqrt(32 * d),
                 "sd, drawn": drawn_cosine(d)})
qwen = pd.DataFrame(rows).set_index("d_out")
degrees = dict.fromkeys(["smallest angle", "largest angle"], "{:.1f}")
qwen.reset_index().style.format(degrees, precision=4).hide()

# %%
assert np.allclose(qwen["smallest angle"], [79.9, 83.6, 85.0], atol=0.3)
assert qwen["largest angle"].between(89.5, 89.9).all()
outputs, inputs = np.array([4096, 1024, 1024, 2560]), np.array([2560, 2560, 2560, 4096])
all_shared = 1 / np.sqrt(36 * 32 * outputs.sum())
all_free = 1 / np.sqrt(36 * (outputs * inputs).sum())
Markdown(f"""All 144 modules stacked, the standard deviation of the cosine by chance is
**{all_shared:.5f}** with a shared $A$ and {all_free:.6f} with nothing shared.""")

# %% [markdown]
# ## Representations, barriers, ranks
#
# Statistics other than directions have chance levels of their own kind.
#
# **CKA.** Let the rows of $X$ and $Y$ ($n \times d$) be independent standard normal. The centred kernels have rank $m = n - 1$, and
# $\mathbb{E}\langle K, L \rangle = d^2 m$ while $\mathbb{E}\lVert K \rVert^2 = d\, m\, (d + m + 1)$: the diagonals, which are large and positive in *every* kernel, agree. So the plain form
# of {eq}`eq-representations-cka` is, for unrelated features,
#
# ```{math}
# :label: eq-chance-cka
# \operatorname{CKA} \approx \frac{d^2 m}{d\, m\, (d + m + 1)} = \frac{d}{d + n}, \qquad \text{debiased: } 0 \pm \sqrt{\frac{2}{n (n - 1)}} ,
# ```
#
# the second since without diagonals $n (n-1) / 2$ independent products remain.

# %%
rows = []
for texts in (100, 1000):
    X, Y = rng.standard_normal((2, texts, 2560))
    rows.append({"n": texts, "d": 2560, "plain, d/(d+n)": 2560 / (2560 + texts),
                 "plain, drawn": representations.cka(X, Y, debiased=False),
                 "debiased": 0.0,
                 "its standard deviation": np.sqrt(2 / texts / (texts - 1))})
kernels = pd.DataFrame(rows)
debiased = np.array([representations.cka(*rng.standard_normal((2, 100, 2560)))
                     for _ in range(5)])
kernels.style.format(precision=3).hide()

# %%
assert np.allclose(kernels["plain, drawn"], [0.963, 0.718], atol=0.003)
Markdown(f"""A plain CKA of **{kernels['plain, drawn'][0]:.2f}** at a hundred texts, as
many as the paper takes, is noise by {{eq}}`eq-chance-cka`. Five draws of the debiased
form at a hundred texts lie between {debiased.min():+.3f} and {debiased.max():+.3f}.""")

# %% [markdown]
# Real hidden states are far from isotropic, which lowers that level; the [page on representations](14_representations.ipynb) has the debiased form with intervals.
#
# **Barriers.** The height of a curve above its chord is a maximum that includes the ends, so it is never below zero and positive by noise alone. Its null is a straight
# path with the measured noise of texts, and the [page on paths](13_connectivity.ipynb) draws it.
#
# **Effective rank.** Noise of rank $r$ has nearly $r$ equal singular values. This is a ceiling, not a level for updates that learnt nothing in particular:

# %%
rank = table[table.statistic == "effective rank"]
texts = rank.assign(run=rank.run_a.map(figures.LABELS.get), band=[
    f"{row.low:.2f} to {row.high:.2f}" for row in rank.itertuples()])
ranks = texts.pivot(index=["run", "value"], columns="null", values="band")
ranks = ranks[["Gaussian", "Gaussian B", "matched", "another seed"]]
ranks = ranks.rename_axis(None, axis=1).reset_index("value")
ranks = ranks.loc[[figures.LABELS[name] for name in main]].reset_index()
figures.table(ranks.rename(columns={"value": "effective rank"}))

# %%
low, high = (np.diag(end) for end in bands["another seed"]["effective rank"])
separate = sum(low[i] > high[j] or low[j] > high[i]
               for i, j in combinations(range(n), 2))
count = indices.shape[1]
Markdown(f"""In **{separate}** of {total} pairs of methods the ranges over seeds do not
overlap. With {count} seeds per method this happens by luck in
{2 / comb(2 * count, count):.0%} of pairs that do not differ.""")

# %% [markdown]
# ## What two methods have in common, whatever the seed
#
# Back to the cosine near one. Same seed, different loss (the pages so far) and different seed, same loss (the green bars) differ in two things at once. With several seeds of
# every method there is a third kind of pair, *different seed, different loss*, which differs from the second in the loss alone:

# %%
cosine, sd_of_all = geometry.stacked_cosine(everything)
away = ~np.eye(indices.shape[1], dtype=bool)  # pairs of different seeds


def by_method(values):
    """(methods, methods, seeds, seeds) of a matrix between all runs."""
    return values[indices[:, None, :, None], indices[None, :, None, :]]


same_seed, other_seed = (by_method(cosine)[:, :, chosen].mean(-1)
                         for chosen in (~away, away))

# %% [markdown]
# (Cosines of one seed are means over the seeds as well, and so differ a little from those of the main runs.) Cosines of different seeds are low in part because each run is one noisy draw. Let $\Delta W_a^i$ be method $a$ with seed $i$, and $\mathbb{E}\,\Delta W_a$ its mean over
# seeds: what the method does whatever the seed. Seeds are independent, so for $i \ne j$ the expectation of an inner product is the inner product of the expectations,
# $\mathbb{E}\langle \Delta W_a^i, \Delta W_b^j \rangle = \langle \mathbb{E}\,\Delta W_a, \mathbb{E}\,\Delta W_b \rangle$, also for $a = b$. This gives the cosine of the two
# means without knowing them:
#
# ```{math}
# :label: eq-chance-expected
# \cos(\mathbb{E}\,\Delta W_a, \mathbb{E}\,\Delta W_b) = \frac{\mathbb{E}\langle \Delta W_a^i, \Delta W_b^j \rangle}
# {\sqrt{\mathbb{E}\langle \Delta W_a^i, \Delta W_a^j \rangle\; \mathbb{E}\langle \Delta W_b^i, \Delta W_b^j \rangle}}, \qquad i \ne j .
# ```
#
# Psychologists know it as the correction for attenuation {cite:p}`spearman1904`: two tests correlate less than the abilities that they measure, and by how
# much is told by the correlation of each test with its own repetition.

# %%
def of_means(seeds):
    """Cosine of the expected updates, (methods, methods), from some of the seeds.

    NaN where a method's own seeds are not alike at all.
    """
    inner = by_method(everything.inner.sum(0))[:, :, seeds][:, :, :, seeds]
    means = inner[:, :, ~np.eye(len(seeds), dtype=bool)].mean(-1)
    squares = np.where(np.diag(means) > 0, np.diag(means), np.nan)
    return means / np.sqrt(np.outer(squares, squares))


seeds = np.arange(indices.shape[1])
expected = of_means(seeds)
subsets = combinations(seeds, max(2, len(seeds) - 1))
without_one = np.array([of_means(np.array(some)) for some in subsets])
alike = np.maximum(np.diag(other_seed), 1e-9)
variance = by_method(sd_of_all ** 2)[:, :, away].mean(-1) / away.sum()
band = 1.96 * np.sqrt(variance / np.outer(alike, alike))

# %%
left_out = ["{:.3f} to {:.3f}".format(*np.sort(without_one[:, i, j])[[0, -1]])
            for i, j in zip(*pair, strict=True)]
itself = np.diag(other_seed)
fair = pd.DataFrame({
    "pair": names, "same seed": same_seed[pair], "other seed": other_seed[pair],
    "first with itself": itself[pair[0]], "second with itself": itself[pair[1]],
    "of the means": expected[pair], "chance, ±": band[pair],
    "leaving one seed out": left_out})
figures.table(fair)

# %%
at = {name: number for number, name in enumerate(main)}


def sentence(a, b):
    i, j = at[a], at[b]
    return (f"{figures.LABELS[a]} and {figures.LABELS[b]}: **{same_seed[i, j]:.3f}** "
            f"with one seed, {other_seed[i, j]:.3f} with two; the methods with "
            f"themselves under two seeds {itself[i]:.3f} and {itself[j]:.3f}. Of the "
            f"means, **{expected[i, j]:.3f}**.")


Markdown(" ".join(sentence("sft", other) for other in ("rft", "dft", "dpo")))

# %% mystnb={"image": {"alt": "Symmetric matrix of the cosines between the expected updates of the six objectives with ones on the diagonal"}, "figure": {"caption": "Cosine of the expected updates by {eq}`eq-chance-expected`: what two losses have in common whatever the seed. Values slightly above one are estimation error.", "name": "fig-chance-expected"}}
figures.matrix(expected, main, "cosine of the expected updates", -1, 1);

# %%
change = fair["of the means"] - fair["same seed"]
up, down = fair.loc[change.idxmax()], fair.loc[change.idxmin()]
Markdown(f"""From one seed to the means, the cosine changes by {change.mean():+.3f} on
average; most upwards for {up.pair} ({up['same seed']:.3f} to {up['of the means']:.3f}),
least or downwards for {down.pair} ({down['same seed']:.3f} to
{down['of the means']:.3f}).""")

# %% [markdown]
# The chance level in the table is that of rotated outputs for pairs of different seeds, averaged as if these pairs were independent and divided by the same denominator as the value.
#
# How to read {numref}`fig-chance-expected`: a cosine of means near one says that the two losses, trained many times and averaged, would point the same way, and that what separated two of their runs was
# chance. One that is lower than with a shared seed says that part of the likeness of these runs came from the common $A$ and the common order, not from the losses. The rollouts are the same in all
# runs, so that what the data have in common stays in the means. With so few seeds it is an estimate whose range when one seed is left out stands in the last column of the table, and means over seeds are not what anybody deploys.
#
# ## The paper's numbers on the ladder
#
# The paper gives a few of its numbers for two seeds of one loss {cite:p}`nikolich2026geometry`. That is enough to place them. Chance is computed here, for its shapes:

# %%
noise = f"± {1.96 * all_shared:.4f}"
ends = {size: "{:.1f}° to {:.1f}°".format(*qwen[f"{size} angle"].agg(["min", "max"]))
        for size in ("smallest", "largest")}
first_left = f"{np.mean([expected_overlap(d) for d in outputs.tolist()]):.3f}"
with_A, without_A = expected_overlap(32), expected_overlap(2560)
first_right = f"{with_A:.2f} with one A, {without_A:.3f} without"
pd.DataFrame([["cosine, SFT – RFT", ".977", noise, ".07 to .36"],
              ["cosine, SFT – DPO", ".057 to .065", noise, ".07 to .36"],
              ["cosine, SFT – online GRPO", ".025", noise, ".07 to .36"],
              ["first left vector, SFT – DPO", ".11", first_left, ".99"],
              ["first right vector, SFT – DPO", ".66 to .70", first_right, ".07"],
              ["smallest left angle, SFT – DPO", "54.6°", ends["smallest"], "–"],
              ["largest left angle, SFT – DPO", "90°", ends["largest"], "–"]],
             columns=["statistic", "paper", "noise, Gaussian B",
                      "paper, two seeds of one loss"]).style.hide()

# %%
Markdown(f"""A cosine of .06 is {0.061 / all_shared:.0f} standard deviations of Gaussian
B, and .025 is {0.025 / all_shared:.0f}. Neither is orthogonal in the sense of chance;
but one loss with two seeds, at the smallest rate, has no more than .07.""")

# %% [markdown]
# So the near-orthogonality of SFT and DPO in the paper is at the same time far from noise and about as large as the likeness of *one* loss trained twice at DPO's rate. Its .977 for SFT and RFT lies far above what one loss reaches with two seeds, so that the
# shared start and order must contribute to it. Both readings need the last column, which the paper has and does not set beside its matrix of cosines. Clearest is the first left vector: .11 for SFT and DPO is several times its chance level
# and far below the .99 of two seeds, so that here, on the output side, the losses differ by more than a seed. On the input side the row for right vectors says the reverse: .66 with one $A$ and another loss, .07 with another $A$ and the same loss.
#
# ## Which null for which claim
#
# | claim | null that it has to face | what it cannot show |
# |---|---|---|
# | these two updates are related | outputs rotated | why: data, start and order are shared as well |
# | these two updates are unrelated | outputs rotated, value *inside* the band | with a few runs, likeness smaller than the band |
# | they write into the same directions | matched, left side; then modules permuted, if it is to be about this layer | that they do the same there |
# | they read from the same directions | Gaussian B and matched, on the runs' own $A$; or runs with different $A$ | anything, against uniform subspaces: one $A$ is enough to pass |
# | part of an update is orthogonal to another | none: noise is orthogonal as well. Compare with another seed of the same loss | that the orthogonal part is new |
# | the worst angle is 90 degrees | none: chance is there too | difference |
# | two losses give the same update | another seed, by {eq}`eq-chance-expected` | likeness of single runs |
# | two losses give different updates | another order of the same loss from the same $A$, or {eq}`eq-chance-expected` | – |
# | an update uses more directions than another | another seed; Gaussian B is only the ceiling | what the directions are for |
# | two models represent texts alike | debiased CKA, with the base among the models | that they behave alike |
# | there is a barrier between two runs | a straight path with the noise of the texts; the path to zero | a difference of solutions, if the norms differ |
#
# A null that is too weak makes everything significant; one that is too strong, such as another seed for "related", hides what is there. The rule is to destroy the claimed thing and *nothing else*.
#
# ## Try it
#
# 1. Scale DPO's update by 13 and run the page again. Which bands change?
#
# ````{dropdown} What happens
# None. All statistics here are free of length within a run: the stacked cosine weighs modules by their lengths, but a common factor cancels. Length needs its own null, such as the [walk](10_norms.ipynb).
# ````
#
# 2. Draw only the *signs* of $B$ anew and keep the sizes of its entries. Where on the ladder does this null stand?
#
# ````{dropdown} Answer
# It keeps $A$, the norms and which outputs carry long rows of $B$, and destroys singular vectors and, by and large, the concentration of the spectrum. It is stronger than Gaussian B in one respect and weaker than the matched null in another. The ladder
# is not a line: what counts is the two lists.
# ````
#
# 3. Permute modules *between projections* as well (here all have one shape). Would the band of the cosine be wider or narrower than with layers alone?
#
# ````{dropdown} What to expect
# Not wider, unless projections share more than layers do: a query and a value matrix read the same stream, but write into different spaces. At Qwen3-4B only `k_proj` and `v_proj` have one shape, so that
# there the question hardly arises.
# ````
#
# 4. Use two seeds in place of all in `of_means`. How far does the cosine of the means move?
#
# ````{dropdown} What happens
# The last column of the table has exactly this. Each estimate then rests on a single pair of seeds for each method with itself, and the square root in the denominator passes on their noise to every pair of that method.
# ````
#
# ## Summary
#
# Chance levels form a ladder. Pure noise, {eq}`eq-chance-gaussian`, is beaten by a shared $A$, {eq}`eq-chance-shared`; a concentrated spectrum by itself changes nothing, {eq}`eq-chance-matched`, until input directions are kept with it; permuted modules
# show what belongs to all layers; another seed shows what one loss has in common with itself. Most claims of likeness pass the lower rungs, most claims of *difference* have to be held against the top one, where {eq}`eq-chance-expected` separates losses from
# seeds. The pages that follow take away, one at a time, what the six runs share: the initial $A$, the order, the rows.
