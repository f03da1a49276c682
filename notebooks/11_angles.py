# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, 10_norms]
# ---

# %% [markdown]
# # Principal angles
#
# *Previously:* [norms, ranks and cosines](10_norms.ipynb) of the six updates, each one number per pair. *Now:* which directions do two
# updates share? A module's update has its strongest output and input directions, and two sets of directions are compared by their principal
# angles.
#
# **Key takeaways**
# - Principal angles are the singular values of one small matrix. Near zero they must be taken from sines, since cosines have lost half the
#   digits.
# - In high dimension random subspaces are nearly perpendicular in *every* direction: a largest angle near 90 degrees is what chance gives.
# - On the input side chance gives much smaller angles, because runs that start from the same $A$ can at first only read from its row space.
#
# You need: [norms, rank, cosine](10_norms.ipynb). Reads all six runs. Time to run: half a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study to set beside it at the end

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy.linalg import subspace_angles
from scipy.stats import beta

from adapter_geometry import geometry, updates
from adapter_geometry.chance import compare_by_chance, expected_overlap, random_angles
from adapter_geometry.updates import Factors
from helpers import profiles, store
from helpers.analysis import replication
from helpers.book import explorers, figures
from helpers.evaluation import statistics
from helpers.models import loading
from helpers.training import trainer

study = profiles.load(profile)
runs = {name: study.runs[name] for name in study.main_runs}
adapters = {name: trainer.update_of(study, name) for name in runs}
figures.use_style(study)

# %%
compared = geometry.compare(adapters)
nulls = compare_by_chance(adapters, 16)
modules, others = compared.modules, list(runs)[1:]
at = {name: index for index, name in enumerate(compared.runs)}
k = compared.angles["left"].shape[-1]

# %% [markdown]
# ## What a principal angle is
#
# Two lines have one angle. Two $k$-dimensional subspaces have $k$ of them, found one after the other: take the two unit vectors, one from
# each, that are closest to each other,
#
# ```{math}
# :label: eq-angles-definition
# \cos\theta_1 = \max_{u \in \mathcal{U},\; u' \in \mathcal{U}'} u^\top u', \qquad \lVert u \rVert = \lVert u' \rVert = 1 ,
# ```
#
# put them aside, and repeat among the vectors perpendicular to those already taken. So $\theta_1 \le \dots \le \theta_k$: the smallest
# {term}`principal angle` tells how close the closest shared direction is, and the largest whether *everything* is shared. Let the columns
# of $U$ and $U'$ be orthonormal bases. Every pair of vectors is $U a$ and $U' b$ with unit vectors $a$ and $b$, so that
# {eq}`eq-angles-definition` maximises $a^\top (U^\top U')\, b$, and that is the definition of a largest singular value. All angles come
# from one $k \times k$ matrix {cite:p}`bjorck1973angles`:
#
# ```{math}
# :label: eq-angles-svd
# \cos\theta_i = \sigma_i(U^\top U') .
# ```
#
# Which subspaces? From $\Delta W = U \Sigma V^\top$ the first $k$ columns of $U$ span the output directions into which the module's update
# writes most strongly (*left*), those of $V$ the input directions to which it reacts most (*right*).

# %%
example = modules.module.iloc[-1]
pair = [adapters[name][example] for name in ("sft", "rft")]
dense = [part.scale * part.B.double() @ part.A.double() for part in pair]
U, U_other = (torch.linalg.svd(matrix, full_matrices=False).U[:, :k]
              for matrix in dense)
degrees = np.degrees(torch.arccos(torch.linalg.svdvals(U.T @ U_other)).numpy())
from_factors = np.degrees(compared.angles["left"][-1, at["sft"], at["rft"]])
assert np.allclose(degrees, from_factors, atol=1e-4)
listed = ", ".join(f"{angle:.1f}" for angle in degrees)
Markdown(f"SFT and RFT in `{example}`, left, $k$ = {k}: {listed} degrees.")

# %% [markdown]
# The helper (`geometry.compare`) gets the same numbers without the dense matrices. $k$ is a third of the adapter's rank $r$, the paper's
# choice of 10 at rank 32. It must be smaller than $r$: with $k = r$ the right subspace would be the whole row space of $A$, whatever was
# learnt.
#
# ## Small angles need sines
#
# Near zero $\cos\theta \approx 1 - \theta^2/2$. A floating-point number next to 1 differs from it by about $10^{-16}$, so that all angles
# below about $10^{-8}$ have the same cosine. The cure is to measure what is *left over* when $U'$ is projected on $\mathcal{U}$
# {cite:p}`bjorck1973angles`:
#
# ```{math}
# :label: eq-angles-sine
# \sin\theta_i = \sigma_i\big((I - U U^\top)\, U'\big) \qquad \text{(in reverse order).}
# ```
#
# A sine near zero keeps all its digits. To see it, plant an angle: turn one vector of a random basis by a known $\theta$ into a direction
# perpendicular to all of them.

# %%
basis = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 6)))[0]


def plant(angle):
    """Bases of two spaces that differ in one direction, rotated by `angle` radians."""
    rotated = basis[:, :5].copy()
    rotated[:, 0] = np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, 5]
    mixing = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    return basis[:, :5], rotated @ mixing


def by_cosine(first, second):
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    return np.arccos(np.clip(cosines, 0, 1)).max()


def by_sine(first, second):
    left_over = second - first @ (first.T @ second)
    return np.arcsin(np.linalg.svd(left_over, compute_uv=False).max())


# %%
planted = 10.0 ** np.arange(-13, 0)
measured = pd.concat(
    [pd.DataFrame({"run": name, "planted": planted,
                   "measured": [form(*plant(angle)) or np.nan for angle in planted]})
     for name, form in (("arccos", by_cosine), ("sine form", by_sine))])

# %% mystnb={"image": {"alt": "Measured against planted angle on logarithmic axes: the sine form follows the diagonal down to the smallest angle, the arccosine stops following near ten to the minus eight"}, "figure": {"caption": "Angle measured against angle planted, by the arccosine of {eq}`eq-angles-svd` and by the sine form {eq}`eq-angles-sine`.", "name": "fig-angles-precision"}}
figures.lines_of_runs({"": measured}, "planted", "measured", "planted angle, radians",
                      "measured angle, radians", log=True);

# %%
one = plant(1e-9)
Markdown(f"Planted: 1e-9 radians. The arccosine says {by_cosine(*one):.2e}, the sine "
         f"form **{by_sine(*one):.4e}**, scipy's `subspace_angles` "
         f"{subspace_angles(*one).max():.4e}. The smallest angle above zero that an "
         f"arccosine can return is {np.arccos(1 - 2.0 ** -53):.1e} in float64 and "
         f"{np.degrees(np.arccos(1 - 2.0 ** -24)):.3f} degrees in float32.")

# %% [markdown]
# The line of the arccosine in {numref}`fig-angles-precision` leaves the diagonal where the theory says. For angles of several degrees the
# two forms agree; the helper changes to the sine form below a thousandth of a radian, so that a run compared with a copy of itself has
# angles of the size of a rounding error and not of its square root.
#
# ## What chance gives
#
# Let $\mathcal{U}'$ be a uniformly random subspace of $\mathbb{R}^d$. Each of its unit vectors has on average the share $k/d$ of its square
# in $\mathcal{U}$, whatever $\mathcal{U}$ is. Adding this up over a basis,
#
# ```{math}
# :label: eq-angles-chance
# \mathbb{E} \sum_{i=1}^{k} \cos^2\theta_i = \mathbb{E}\, \lVert U^\top U' \rVert_F^2 = \frac{k^2}{d} .
# ```
#
# For $k = 10$ and $d = 2560$ the mean squared cosine is 1/256. The entries of $U^\top U'$ are then nearly independent Gaussians of variance
# $1/d$, and the extreme singular values of a $k \times k$ matrix of these are about $2\sqrt{k/d}$ and a fraction of $1/\sqrt{k d}$. So the
# smallest angle is far from zero and the largest is close to 90 degrees. The exact distribution is easy to draw from:

# %%
def chance_of(d, size, name):
    drawn = np.degrees(random_angles(d, size))
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=0)
    return pd.DataFrame({"run": name, "index": np.arange(1, size + 1),
                         "degrees": middle, "low": low, "high": high})


ours_d = int(modules.d_out.median())
cases = [(ours_d, k), (1024, 10), (2560, 10), (4096, 10)]
by_chance = [chance_of(d, size, f"d = {d}, k = {size}") for d, size in cases]

# %% mystnb={"image": {"alt": "Principal angles of random subspaces against their index for our dimension and for 1024, 2560 and 4096, all rising to almost 90 degrees"}, "figure": {"caption": "Principal angles between two random subspaces: median and 95 % of the draws. First line: our modules; the others: the shapes of the paper.", "name": "fig-angles-chance"}}
figures.lines_of_runs({"": pd.concat(by_chance)}, "index", "degrees",
                      "index of the principal angle", "degrees");

# %%
formula = [np.degrees(np.arccos(min(1, 2 * np.sqrt(size / d)))) for d, size in cases]
summary = pd.DataFrame(
    [{"subspaces": table.run[0], "smallest, median": table.degrees[0],
      "2.5 %": table.low[0], "97.5 %": table.high[0],
      "largest, median": table.degrees.iloc[-1]} for table in by_chance])
summary["smallest, by 2√(k/d)"] = formula
summary.style.format(precision=1).hide()

# %% [markdown]
# Two conclusions from {numref}`fig-angles-chance` for reading the paper {cite:p}`nikolich2026geometry`. Between SFT and DPO its median
# *largest* angle is 90 degrees, with quartiles 89.6 and 89.8. That sounds like evidence of unrelated updates, yet it is the value of any
# two subspaces that differ in at least one direction thoroughly. Its median *smallest* angle, 54.6 degrees, sounds large, yet no draw for
# any of the paper's shapes comes near it. How far is it from chance? A random direction of $\mathbb{R}^d$ has $\cos^2\theta$ to a fixed
# $k$-dimensional subspace distributed as Beta$(k/2, (d-k)/2)$:

# %%
exponent = beta.logsf(np.cos(np.radians(54.6)) ** 2, 5, (2560 - 10) / 2) / np.log(10)
lowest = min(np.degrees(random_angles(d, 10)).min() for d in (1024, 2560, 4096))
Markdown(f"A random direction of $\\mathbb{{R}}^{{2560}}$ is within 54.6 degrees of a "
         f"given 10-dimensional subspace with probability $10^{{{exponent:.0f}}}$. In "
         f"2,000 draws for each of the three shapes, the smallest angle of all was "
         f"{lowest:.1f} degrees.")

# %% [markdown]
# In three dimensions 54 degrees is a loose agreement. In 2,560, where nearly all directions are perpendicular to everything one has fixed,
# it is a strong one.
#
# ## The input side: a row space that was drawn, not learnt
#
# Chance as above holds for outputs. For inputs it is far off, for a reason that lies in the start. With $G = \partial L / \partial W$ the
# gradient of the dense weight, the chain rule gives
#
# ```{math}
# :label: eq-angles-gradient
# \frac{\partial L}{\partial B} = s\, G A^\top, \qquad \frac{\partial L}{\partial A} = s\, B^\top G = 0 \quad \text{while } B = 0 .
# ```
#
# The first step moves $B$ alone, and $\Delta W = s B A$ has all its rows in the span of the *initial* $A$: $r$ directions out of
# $d_\text{in}$, drawn at random before any loss was computed, and the same for all runs with one seed. Only later, when $B$ is no longer
# small, does $A$ turn as well. That the two factors play unequal parts, and that a random $A$ that is never trained does nearly as well, is
# known {cite:p}`zhu2024asymmetry`. How much of each update still lies in the initial row space, after training?

# %%
fresh = loading.attach_adapter(loading.load_model(study), study.lora,
                               runs["sft"].init_seed)
layer = {module: fresh.base_model.model.get_submodule(module)
         for module in modules.module}
assert all(not part.lora_B["default"].weight.any() for part in layer.values())
A_0 = {module: part.lora_A["default"].weight.detach().cpu().double()
       for module, part in layer.items()}
frame = {module: torch.linalg.qr(A.T).Q for module, A in A_0.items()}

# %%
def inside(update, module):
    """Share of |dW|^2 in the row space of the initial A."""
    part = update[module]
    within = Factors(part.B, part.A.double() @ frame[module], part.scale)
    return updates.inner(within, within) / updates.inner(part, part)


def change_of_A(update):
    """Mean over modules of |A - A_0| / |A_0|."""
    return np.mean([float((update[module].A.double() - A).norm() / A.norm())
                    for module, A in A_0.items()])


share = pd.DataFrame({name: [inside(update, module) for module in modules.module]
                      for name, update in adapters.items()})
moved = [change_of_A(update) for update in adapters.values()]
chance_share = (study.lora.rank / modules.d_in).mean()

# %%
table = pd.DataFrame({"mean": share.mean(), "lowest module": share.min(),
                      "highest module": share.max(),
                      "by chance (r / d_in)": chance_share, "change of A / A": moved})
table = table.rename(index=figures.LABELS).rename_axis("run").reset_index()
table.style.format(precision=3).hide()

# %% [markdown]
# The first three columns are shares of the update's squared norm, the last is the relative length by which $A$ moved. A row space drawn at
# random *after* training would hold the share in the fourth column. The smaller a run's steps, the more of it stays where it was put.
#
# So the honest chance level for two runs of one initialisation keeps what they have in common by construction and makes all else random.
# The {term}`matched null` (`chance.matched_null`) keeps each run's own $A$ and the singular values of its $B$; $B$'s two sets of singular
# vectors are drawn anew for each run and module. Left subspaces are then random in $\mathbb{R}^{d_\text{out}}$, right subspaces random
# *within the row space of $A$*. Since $A$ has moved meanwhile, one may ask whether a null with each run's own $A$ is too kind to it. With
# the initial $A$ in its place:

# %%
at_start = {name: {module: Factors(part.B, A_0[module], part.scale)
                   for module, part in update.items()}
            for name, update in adapters.items()}
start_nulls = compare_by_chance(at_start, 16)


def smallest_and_largest(comparisons):
    """Median over modules and draws of SFT's angles with RFT, both sides."""
    medians = {}
    for side in ("left", "right"):
        angles = [null.angles[side][:, at["sft"], at["rft"]] for null in comparisons]
        by_index = np.degrees(np.median(np.concatenate(angles), axis=0))
        medians[f"{side}, smallest"], medians[f"{side}, largest"] = by_index[[0, -1]]
    return medians


# %%
table = pd.DataFrame({"matched null, own A": smallest_and_largest(nulls),
                      "matched null, initial A": smallest_and_largest(start_nulls)}).T
uniform = [np.degrees(np.median(random_angles(int(modules[d].median()), k), axis=0))
           for d in ("d_out", "d_in")]
table.loc["uniform"] = [angle for angles in uniform for angle in angles[[0, -1]]]
table.rename_axis("subspaces").reset_index().style.format(precision=1).hide()

# %% [markdown]
# For the left side all lines agree, as they should. For the right side the matched nulls have much smaller angles than uniform subspaces of
# $\mathbb{R}^{d_\text{in}}$: sharing $A$ is worth that much, with nothing learnt in common. Whoever compares right subspaces with uniform
# ones will find "shared input features" in any two runs with one seed.
#
# ## The angles of our six updates
#
# Every pair, every module, both sides, each angle with the band of its own null:

# %%
angles = store.write_table(profile, "angles", geometry.angles_table(compared, nulls))
with_sft = angles[angles.run_a == "sft"].rename(columns={"run_b": "run"})


def over_modules(rows):
    low, middle, high = rows.degrees.quantile([0.25, 0.5, 0.75])
    return pd.Series({"degrees": middle, "low": low, "high": high,
                      **rows[["chance_low", "chance_high"]].median()})


by_index = with_sft.groupby(["side", "run", "index"], sort=False)
lines = by_index.apply(over_modules, include_groups=False).reset_index()

# %% mystnb={"image": {"alt": "Two panels of principal angles with SFT against their index, left and right, for five objectives with grey chance bands; the right bands start much lower"}, "figure": {"caption": "Principal angles with SFT: median over modules, shaded from the first to the third quartile. Grey: 95 % of the matched null, the five bands one over the other.", "name": "fig-angles-with-sft"}}
sides = {side: lines[lines.side == side] for side in ("left", "right")}
figures.lines_of_runs(sides, "index", "degrees", "index of the angle", "degrees");

# %%
drawn = {side: np.degrees(np.concatenate([null.angles[side] for null in nulls]))
         for side in ("left", "right")}
real = {side: np.degrees(compared.angles[side]) for side in ("left", "right")}
picks = {"smallest": lambda values: values[..., 0],
         "median": lambda values: np.median(values, axis=-1),
         "largest": lambda values: values[..., -1]}
rows = []
for other in others:
    for side in ("left", "right"):
        row = {"SFT with": figures.LABELS[other], "side": side}
        for name, pick in picks.items():
            ours, by_null = (np.median(pick(values[side][:, at["sft"], at[other]]))
                             for values in (real, drawn))
            row[name] = f"{ours:.1f} ({by_null:.1f})"
        rows.append(row)
pd.DataFrame(rows).style.hide()

# %% [markdown]
# **Explorer.** One method at a time against both kinds of chance, on both sides: uniform random subspaces, and the matched null, which keeps what an initialisation shares.

# %%
def medians_of(other, side):
    """Medians over modules of SFT's angles with another method, by index.

    As measured, by the matched null, and between uniform subspaces.
    """
    measured, null = (np.median(values[side][:, at["sft"], at[other]], axis=0)
                      for values in (real, drawn))
    return pd.DataFrame({"measured": measured, "matched null": null,
                         "uniform subspaces": uniform[("left", "right").index(side)]},
                        index=pd.RangeIndex(1, k + 1, name="index"))


medians = {other: {side: medians_of(other, side) for side in ("left", "right")}
           for other in others}

# %%
def picture(other):
    """Label, figure and alternative text of SFT with another method."""
    label, panels = figures.LABELS[other], {}
    for side, wide in medians[other].items():
        panels[side] = wide.reset_index().melt("index", var_name="run",
                                               value_name="degrees")
    figure = figures.lines_of_runs(panels, "index", "degrees",
                                   "index of the angle", "degrees")
    left, right = (medians[other][side].loc[1] for side in ("left", "right"))
    return (f"SFT with {label}", figure,
            f"Principal angles of SFT and {label}, left and right: the smallest are "
            f"{left['measured']:.0f} and {right['measured']:.0f} degrees, by the "
            f"matched null {left['matched null']:.0f} and {right['matched null']:.0f}")


rows = [{"SFT with": figures.LABELS[other], "side": side, "index": index, **degrees}
        for other in others for side, wide in medians[other].items()
        for index, degrees in wide.iterrows()]
explorers.frames((picture(other) for other in others), "pair", rows,
                 "angles-and-chance", is_ordered=False)

# %% [markdown]
# The table before the explorer gives degrees, median over modules, with the median of the matched null in brackets. In {numref}`fig-angles-with-sft`, a line
# that stays under its grey band at every index shares a whole subspace with SFT; a line that begins under it and ends within it shares a
# few directions and is otherwise unrelated. At the right end chance is close to 90 degrees on the left side, and updates that share little are there too. A largest angle can
# therefore only ever speak for likeness, not against it.
#
# ## Module by module
#
# Medians hide modules. The smallest, the median and the largest of the $k$ angles, one dot a module:

# %%
def strip(side):
    """Angles with SFT and their chance bands, {which angle: {method: values}}."""
    dots, bands = {}, {}
    for name, pick in picks.items():
        dots[name] = {other: pick(real[side][:, at["sft"], at[other]])
                      for other in others}
        by_null = {other: pick(drawn[side][:, at["sft"], at[other]])
                   for other in others}
        bands[name] = {other: np.nanquantile(values, [0.025, 0.975])
                       for other, values in by_null.items()}
    return dots, bands


# %% mystnb={"image": {"alt": "Three panels of strips of dots, one for each module: smallest, median and largest left angle with SFT for five objectives, with grey chance bands"}, "figure": {"caption": "Left (output) angles with SFT, one dot per module, bar: median. Grey: 95 % of the matched null.", "name": "fig-angles-left"}}
dots, bands = strip("left")
figures.strips(dots, "degrees", bands);

# %% mystnb={"image": {"alt": "Three panels of strips of dots, one for each module: smallest, median and largest right angle with SFT for five objectives, with wide grey chance bands that reach low"}, "figure": {"caption": "The same for the right (input) angles. The grey bands reach much lower than in the figure before.", "name": "fig-angles-right"}}
dots, bands = strip("right")
figures.strips(dots, "degrees", bands);

# %%
def below(other, side):
    rows = with_sft[(with_sft.run == other) & (with_sft.side == side)
                    & (with_sft["index"] == 1)]
    return f"{int((rows.degrees < rows.chance_low).sum())} of {len(rows)}"


counts = "; ".join(f"{figures.LABELS[other]} {below(other, 'left')} and "
                   f"{below(other, 'right')}" for other in others)
Markdown(f"Modules in which the *smallest* angle with SFT is below its band, left and "
         f"right: {counts}. Chance would put 2.5 % of the modules there.")

# %% [markdown]
# Compare {numref}`fig-angles-left` and {numref}`fig-angles-right` for DPO. The left angles are larger than the right ones, and an eye that
# has no grey bands would conclude that SFT and DPO read the same inputs and write to different outputs. The bands say how much of that was
# settled when $A$ was drawn; the counts say what remains.
#
# All pairs, not only those with SFT, by their smallest left angle:

# %%
smallest = angles[(angles.side == "left") & (angles["index"] == 1)]
by_pair = smallest.groupby(["run_a", "run_b"], sort=False)
nearest = by_pair[["degrees", "chance_low", "chance_high"]].median().reset_index()

# %% mystnb={"image": {"alt": "Dot plot of the median smallest left principal angle for all fifteen pairs of objectives, with grey chance bands at large angles"}, "figure": {"caption": "Smallest left angle of each pair, median over modules. Grey: 95 % of the matched null for a single module.", "name": "fig-angles-pairs"}}
figures.pairs(nearest, "degrees", "smallest left angle, degrees");

# %%
closest = nearest.loc[nearest.degrees.idxmin()]
furthest = nearest.loc[nearest.degrees.idxmax()]
cosine, sd = geometry.stacked_cosine(compared)
Markdown(f"In {{numref}}`fig-angles-pairs`, the closest pair is "
         f"{figures.LABELS[closest.run_a]} and {figures.LABELS[closest.run_b]} with "
         f"**{closest.degrees:.1f}** degrees, the furthest "
         f"{figures.LABELS[furthest.run_a]} and {figures.LABELS[furthest.run_b]} with "
         f"**{furthest.degrees:.1f}**. SFT and DPO, whose stacked cosine is "
         f"{cosine[0, at['dpo']]:+.3f} (chance ±{1.96 * sd[0, at['dpo']]:.3f}), have "
         f"a smallest left angle below its band in {below('dpo', 'left')} modules.")

# %% [markdown]
# Angles and cosines ask different questions. To have a small angle, two updates must write into a common direction; to have a cosine, they
# must also write *the same* into it, for the same inputs and with the same sign. A pair can share directions and still have no cosine.
#
# ## The first singular vectors
#
# The single strongest direction on each side, $u_1$ and $v_1$. Its overlap $|\langle u_1, u_1' \rangle|$ with a random unit vector of
# $\mathbb{R}^d$ is on average
#
# ```{math}
# :label: eq-angles-overlap
# \mathbb{E}\, |\langle u, u' \rangle| = \frac{\Gamma(d/2)}{\sqrt{\pi}\, \Gamma((d+1)/2)} \approx \sqrt{\frac{2}{\pi d}} .
# ```
#
# That is the left side's chance level; within the row space of a shared $A$ the same formula holds with about $r$ in the place of $d$, as
# long as $A$'s rows are of similar length and nearly perpendicular. The matched null needs no such assumption.

# %% mystnb={"image": {"alt": "Two panels of strips of dots, one for each module: overlap of the first left and of the first right singular vector with SFT's for five objectives, with grey chance bands"}, "figure": {"caption": "Overlap of the first singular vector with SFT's, one dot per module, bar: median. Grey: 95 % of the matched null.", "name": "fig-angles-first"}}
null_first = {side: np.concatenate([null.first[side] for null in nulls])
              for side in ("left", "right")}
dots = {side: {other: compared.first[side][:, at["sft"], at[other]] for other in others}
        for side in ("left", "right")}
bands = {side: {other: np.nanquantile(null_first[side][:, at["sft"], at[other]],
                                      [0.025, 0.975]) for other in others}
         for side in ("left", "right")}
figures.strips(dots, "overlap of the first vectors", bands);

# %%
def mean_first(other, side, source):
    return float(np.nanmean(source[side][:, at["sft"], at[other]]))


first = pd.DataFrame({"SFT with": [figures.LABELS[other] for other in others]})
for side in ("left", "right"):
    first[side] = [mean_first(other, side, compared.first) for other in others]
    first[f"{side}, matched null"] = [mean_first(other, side, null_first)
                                      for other in others]
first["left, formula"] = expected_overlap(ours_d)
first["right, formula with r"] = expected_overlap(study.lora.rank)
first.style.format(precision=3).hide()

# %% [markdown]
# A first vector can also be unstable: where $\sigma_1$ and $\sigma_2$ are close, a small change exchanges the two, and the overlap falls to
# near zero although the subspace has hardly moved. Is that what the single low dots in {numref}`fig-angles-first` are?

# %%
lead = compared.singular_values[:, :, 0] / compared.singular_values[:, :, 1]
lowest_overlaps = []
for other in others:
    overlaps = compared.first["left"][:, at["sft"], at[other]]
    module = int(np.nanargmin(overlaps))
    smaller = min(lead[module, at["sft"]], lead[module, at[other]])
    label = figures.LABELS[other]
    lowest_overlaps.append(f"{label} {overlaps[module]:.2f} at {smaller:.2f}")
Markdown(f"Lowest left overlap with SFT, and in that module the smaller of the two "
         f"runs' $\\sigma_1 / \\sigma_2$: {'; '.join(lowest_overlaps)}. The median of "
         f"$\\sigma_1 / \\sigma_2$ over all runs and modules is {np.median(lead):.2f}.")

# %% [markdown]
# Where the ratio is close to 1, a low overlap says little, which is a reason to prefer angles between subspaces. The mean over modules is
# what the paper reports.
#
# ## The paper's numbers beside ours
#
# Chance levels for the paper's shapes are computed by us: uniform subspaces on the left, pooled over its four projections, and on the right
# {eq}`eq-angles-overlap` within the 32 dimensions of a shared $A$, taken as unmoved. The last two columns are controls: the same number at every seed, and that of SFT with SFT trained from another seed.

# %%
drawn_theirs = [random_angles(d, 10) for d in (4096, 1024, 1024, 2560)]
pooled = np.degrees(np.concatenate(drawn_theirs))
theirs = {"smallest": np.median(pooled[:, 0]), "largest": np.median(pooled[:, -1]),
          "left": np.mean([expected_overlap(d) for d in (4096, 1024, 1024, 2560)]),
          "right": expected_overlap(32)}
paper = {"smallest": {"rft": "6.7", "rift": "8.2", "offline-grpo": "18.5",
                      "dft": "26.7", "dpo": "54.6"},
         "largest": {"rft": "36", "rift": "40", "offline-grpo": "76", "dft": "85",
                     "dpo": "90"},
         "left": {"rft": "0.97 to 0.98", "rift": "0.97 to 0.98",
                  "offline-grpo": "0.78 to 0.80", "dft": "0.64 to 0.67", "dpo": "0.11"},
         "right": {"rft": "0.99 to 1.00", "rift": "0.99 to 1.00", "dft": "0.94",
                   "dpo": "0.66 to 0.70"}}

# %%
replicas = store.read_table(profile, "replicas")
names = {"smallest": "smallest angle left", "largest": "largest angle left",
         "left": "first vector left", "right": "first vector right"}
pairs = [("sft", other) for other in others]
controlled = {}
for quantity, name in names.items():
    form = "{:.1f}" if quantity in picks else "{:.2f}"
    over_seeds = replication.side_by_side(replicas, name, pairs, form)
    controlled[quantity] = over_seeds.set_index("run_b").drop(columns="run_a")

# %%
lines = []
for quantity, printed_for in paper.items():
    for other, printed in printed_for.items():
        if quantity in picks:
            label, form = f"{quantity} left angle, degrees", "{:.1f}"
            values = [np.median(picks[quantity](angle["left"][:, at["sft"], at[other]]))
                      for angle in (real, drawn)]
        else:
            label, form = f"first {quantity} vector", "{:.2f}"
            values = [mean_first(other, quantity, source)
                      for source in (compared.first, null_first)]
        numbers = [form.format(value) for value in (theirs[quantity], *values)]
        lines.append([label, figures.LABELS[other], printed, *numbers,
                      *controlled[quantity].loc[other]])
pd.DataFrame(lines, columns=["quantity", "SFT with", "paper", "paper's chance level",
                             "ours", "our chance level", "over seeds",
                             "SFT, another seed"]).style.hide()

# %%
order_ours = pd.Series({other: np.median(real["left"][:, at["sft"], at[other], 0])
                        for other in others})
order_paper = pd.Series(paper["smallest"]).astype(float)[list(others)]
agreement, low, high = statistics.rank_correlation(order_ours[list(others)],
                                                   order_paper)
by_null = np.median(drawn["left"][:, at["sft"], at["dpo"], 0])
near_to_far = order_ours.sort_values().index.map(figures.LABELS)
Markdown(f"Ordered by the smallest left angle with SFT, from near to far: "
         f"{', '.join(near_to_far)}; the paper has RFT, RIFT, Offline GRPO, DFT, DPO "
         f"(rank correlation **{agreement:.2f}**; five methods in a random order, "
         f"{low:+.2f} to {high:+.2f} in 95 % of the cases). DPO's smallest angle is "
         f"{1 - order_ours['dpo'] / by_null:.0%} below its chance level here and "
         f"{1 - 54.6 / theirs['smallest']:.0%} in the paper. On the right, DPO's "
         f"first vector has {mean_first('dpo', 'right', compared.first):.2f} where "
         f"chance gives {mean_first('dpo', 'right', null_first):.2f}; in the paper "
         f"0.66 to 0.70 stands against about {theirs['right']:.2f}.")

# %% [markdown]
# The last column is the measure for "the same direction". Where another method at the same seed is closer to SFT than SFT's own replicas are, what runs of one seed share, the initial adapter and the order of the prompts, is part of the likeness, and on the right side a larger
# part than on the left. A shared $A$ alone gives only the matched null's level, and two seeds of one loss still lie above the level {eq}`eq-angles-overlap` of unrelated row spaces. The [chapter on seeds](16_seeds.ipynb) takes adapter and order apart.
#
# Angles depend on $d$, $k$ and $r$, so that degrees from models of different width cannot be compared with each other. What can be compared
# is each number's distance from its own chance level, and the order of the methods.
#
# ## On a pretrained model
#
# The smallest angles once more, for SmolLM2-135M-Instruct, from weights rounded to four bits and adapted to the problems ([how](22_pretrained.ipynb)): each of its modules has more outputs than ours, so its bands on the left lie nearer to 90 degrees; those on the right are set by the rank of the adapter, which is the same.

# %%
second = profiles.load(pretrained)
adapters_second = trainer.updates_of_study(pretrained, second.main_runs)
nulls_second = compare_by_chance(adapters_second, 4)
null_angles = {side: np.concatenate([null.angles[side] for null in nulls_second])
               for side in ("left", "right")}


def smallest_with_sft(angles):
    """Smallest angles with SFT in degrees, {side: {method: values}}."""
    return {side: {other: np.degrees(angles[side][:, at["sft"], at[other], 0])
                   for other in others} for side in ("left", "right")}

# %% mystnb={"image": {"alt": "Two panels of strips of dots, one for each of 120 modules: smallest left and smallest right angle with SFT for five objectives in the pretrained model, with grey chance bands"}, "figure": {"caption": "Smallest left and right angles with SFT in the pretrained model, one dot per module, bar: median. Grey: 95 % of the matched null.", "name": "fig-angles-pretrained"}}
dots = smallest_with_sft(geometry.compare(adapters_second).angles)
bands = {side: {other: np.quantile(values, [0.025, 0.975])
                for other, values in methods.items()}
         for side, methods in smallest_with_sft(null_angles).items()}
figures.strips(dots, "smallest angle with SFT, degrees", bands);

# %%
under = {side: {other: int((values < bands[side][other][0]).sum())
                for other, values in methods.items()}
         for side, methods in dots.items()}
counts = "; ".join(f"{figures.LABELS[other]} {under['left'][other]} and "
                   f"{under['right'][other]}" for other in others)
order_second = pd.Series({other: np.median(dots["left"][other]) for other in others})
near_to_far = order_second.sort_values().index.map(figures.LABELS)
with_ours, _, _ = statistics.rank_correlation(order_second, order_ours)
with_paper, _, _ = statistics.rank_correlation(order_second, order_paper)
runs_second = [second.runs[run] for run in second.main_runs]
Markdown(f"Below the bands of {{numref}}`fig-angles-pretrained`, left and right, of "
         f"{len(dots['left']['dpo'])} modules: {counts}. By the smallest left angle "
         f"its order, from near to far, is {', '.join(near_to_far)}; the rank "
         f"correlation with ours is **{with_ours:+.2f}**, with the paper's "
         f"{with_paper:+.2f}, with the same chance level. "
         f"{store.origin(pretrained, runs_second)}")

# %% [markdown]
# ## Try it
#
# 1. Set $k$ to the full rank: `geometry.compare(adapters, k=study.lora.rank)`. What happens to the right angles?
#
# ````{dropdown} What happens
# They become the angles between the row spaces of the runs' $A$, and shrink to what training has rotated there. For two runs that kept $A$
# fixed they would all be zero, whatever the losses.
# ````
#
# 2. Start one run from another seed: `run.model_copy(update={"init_seed": 1})`. Which side's angles change more?
#
# ````{dropdown} What to expect
# By {eq}`eq-angles-gradient` the right ones: two initial row spaces are random with respect to each other, and the chance level for the
# right side becomes the uniform one. The left side is decided by gradients, which depend on $A$ only through what it lets pass. The paper
# reports just this for two seeds of one loss, .99 for the first left vector and .07 for the first right one.
# ````
#
# 3. Multiply one update by $-1$. What happens to its angles and to its cosine?
#
# ````{dropdown} Answer
# A subspace has no sign, so all angles stay, and so do the overlaps of first vectors, which are absolute values. The cosine changes its
# sign. Angles say that two updates act in the same place, not that they do the same thing there.
# ````
#
# ## Summary
#
# Principal angles {eq}`eq-angles-svd` tell which directions two updates share, if they are computed with sines where they are small, and
# read beside what chance gives: by {eq}`eq-angles-chance` near 90 degrees on the left, and much less on the right, where one $A$ was drawn
# for all. A shared subspace can still carry opposite content. The [next page](12_decomposition.ipynb) splits each update into what lies
# along another one and what is its own.
