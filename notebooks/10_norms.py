# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, seeds]
# ---

# %% [markdown]
# # Norms, rank, cosine
#
# *Previously:* [the evaluation](09_evaluation.ipynb) asked what the six adapters can do, and took a first look at the angles between their
# weights. *Now:* how long each {term}`update` is, how many directions it uses, and which pairs point the same way: over all modules, by
# layer, by projection, and module by module.
#
# **Key takeaways**
# - Factors $(A, B)$ are no coordinates of an update. Compared number by number they can make two unrelated updates look almost equal.
# - A cosine needs its {term}`chance level`, and real updates, whose spectra are concentrated, have a wider one than a count of entries
#   suggests.
# - A norm needs a yardstick too: what the learning rate alone could have done.
#
# You need: the singular value decomposition, [LoRA's two factors](03_sft.ipynb). Reads all six runs. Time to run: half a minute, once they
# exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study to set beside it at the end

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy.stats import norm as normal

from adapter_geometry import geometry, updates
from adapter_geometry.updates import Factors
from helpers import profiles, store
from helpers.analysis import base_weights, paper, replication
from helpers.book import explorers, figures
from helpers.evaluation import statistics
from helpers.training import trainer

study = profiles.load(profile)
runs = {name: study.runs[name] for name in study.main_runs}
adapters = {name: trainer.update_of(study, name) for name in runs}
figures.use_style(study)

# %%
compared = geometry.compare(adapters)
modules = compared.modules
at = {name: index for index, name in enumerate(compared.runs)}
example = modules.module.iloc[-1]
by_projection = modules.groupby("projection")
shapes = by_projection.agg(modules=("module", "size"), d_out=("d_out", "first"),
                           d_in=("d_in", "first"))
shapes.reset_index().style.hide()

# %% [markdown]
# ## The same update has many factors
#
# A LoRA adapter stores two thin matrices per module, and what acts on the model is their product $\Delta W = s\,B A$ {cite:p}`hu2021lora`.
# For every invertible $M$ ($r \times r$),
#
# ```{math}
# :label: eq-norms-gauge
# (B M)(M^{-1} A) = B A ,
# ```
#
# so that the stored numbers can be changed at will while the model stays as it is. A quantity that changes under {eq}`eq-norms-gauge`, a
# *change of gauge*, is no property of the update. The cosine of the flattened factors is such a quantity. Here is one module's update
# compared with itself in another gauge:

# %%
def flat(update):
    """All entries of the factors of an update as one vector."""
    factors = [factor for part in update.values() for factor in (part.B, part.A)]
    return torch.cat([factor.double().flatten() for factor in factors])


def flat_cosine(first, second):
    cosine = torch.nn.functional.cosine_similarity(flat(first), flat(second), dim=0)
    return float(cosine)


sft = adapters["sft"][example]
B, A = sft.B.double(), sft.A.double()
source = torch.Generator().manual_seed(0)
M = torch.randn(len(A), len(A), generator=source, dtype=torch.float64)
regauged = Factors(B @ M, torch.linalg.solve(M, A), sft.scale)
squares = updates.inner(sft, sft) * updates.inner(regauged, regauged)
true = updates.inner(sft, regauged) / np.sqrt(squares)
Markdown(f"In `{example}`, SFT against SFT in another gauge: cosine of the flattened "
         f"factors **{flat_cosine({0: sft}, {0: regauged}):.3f}**, cosine of the "
         f"updates **{true:.6f}**.")

# %% [markdown]
# Nobody multiplies an adapter by a random $M$, one might say, and all our runs start from the same $A$. That makes the matter worse. The
# runs then share most of the numbers in $A$ because they were *drawn* together, and the flattened cosine reports this as likeness of what
# was learnt:

# %%
stacked, stacked_sd = geometry.stacked_cosine(compared)
cosines = pd.DataFrame(
    [{"pair": f"SFT – {figures.LABELS[other]}",
      "flattened factors": flat_cosine(adapters["sft"], adapters[other]),
      "updates": stacked[0, at[other]]} for other in list(runs)[1:]])
cosines.style.format(precision=3).hide()

# %% [markdown]
# In the first column the shared $A$ speaks. Only the second has a meaning, and the rest of the page is about it.
#
# ## An inner product from the factors
#
# The inner product of two matrices is the sum of the products of their entries, $\langle X, Y \rangle_F = \operatorname{tr}(X^\top Y)$, and
# a trace allows its factors to be moved round in a circle. With $\Delta W_i = s_i B_i A_i$:
#
# ```{math}
# :label: eq-norms-inner
# \langle \Delta W_1, \Delta W_2 \rangle_F = s_1 s_2 \operatorname{tr}\!\big(A_1^\top B_1^\top B_2 A_2\big)
# = s_1 s_2 \operatorname{tr}\!\big(\underbrace{(B_1^\top B_2)}_{r \times r}\, \underbrace{(A_2 A_1^\top)}_{r \times r}\big) .
# ```
#
# The large matrices are never formed. By {eq}`eq-norms-gauge` the result is the same in every gauge, and it must agree with the plain
# computation:

# %%
first, second = adapters["sft"][example], adapters["offline-grpo"][example]
dense = [part.scale * part.B.double() @ part.A.double() for part in (first, second)]
from_factors = updates.inner(first, second)
from_entries = float((dense[0] * dense[1]).sum())
assert np.isclose(from_factors, from_entries, rtol=1e-9)
Markdown(f"From the factors {from_factors:.9f}, from the {dense[0].numel():,} entries "
         f"{from_entries:.9f}.")

# %% [markdown]
# Everything below follows from such small matrices, in float64, for all pairs at once (`geometry.compare`). Norms are square roots of
# {eq}`eq-norms-inner` with itself. Several modules are *stacked*: taken as one long vector, so that inner products and squared norms add
# up.
#
# ## How far did each run go?
#
# The norm alone has no scale. Divided by the norm of the weights that it is added to, it is a share:

# %%
base_norms = base_weights.norms_of_base(study, modules.module)
measured = store.write_table(profile, "updates",
                             geometry.updates_table(compared, base_norms))
overall = measured[measured.scope == "global"].set_index("run")
rest = overall.loc[["sft", "rft", "rift"]].norm

# %% [markdown]
# The second yardstick is the optimiser. AdamW divides out the size of the gradient, so that each entry of $B$ moves by about the learning
# rate $\eta_t$ at each step. If the directions were fresh coin flips every time, an entry would be $\sqrt{\sum_t \eta_t^2}$ from its start,
# which is a *walk*; if it always went the same way, $\sum_t \eta_t$, a *march*. For a $B$ with independent entries of size $\eta$,
# $\lVert B A \rVert_F^2 \approx \eta^2 d_\text{out} \lVert A \rVert_F^2$, and PEFT draws the entries of $A$ uniformly from
# $\pm 1/\sqrt{d_\text{in}}$, so that $\lVert A \rVert_F^2 \approx r/3$. Together
#
# ```{math}
# :label: eq-norms-walk
# \lVert \Delta W \rVert_F \approx s \sqrt{\tfrac{r}{3} \textstyle\sum_m d_\text{out}^m} \;\times\;
# \begin{cases} \sqrt{\sum_t \eta_t^2} & \text{walk: steps without memory,} \\ \sum_t \eta_t & \text{march: every step the same way.} \end{cases}
# ```
#
# This is an estimate and no bound, for $A$ moves as well. Its walk is the chance level of a norm: how far pure noise would carry the
# weights.

# %%
def reach(rates, rank, scale, outputs):
    """Norms of a walk and of a march, for modules with these output dimensions."""
    factor = scale * np.sqrt(rank / 3 * np.sum(outputs))
    return factor * np.sqrt(np.sum(np.square(rates))), factor * np.sum(rates)


scale, rates = sft.scale, {}
for name, run in runs.items():
    history = pd.read_parquet(trainer.train(study, run) / "history.parquet")
    rates[name] = history.learning_rate
    reached = reach(rates[name], study.lora.rank, scale, modules.d_out)
    overall.loc[name, ["walk", "march"]] = reached
overall["peak rate"] = [run.learning_rate for run in runs.values()]
overall["norm / walk"] = overall.norm / overall.walk
overall["norm / march"] = overall.norm / overall.march
shown = overall[["norm", "relative_norm", "peak rate", "walk", "march", "norm / walk",
                 "norm / march"]]
shown = shown.rename(index=figures.LABELS).reset_index()
shown.style.format({"peak rate": "{:.0e}"}, precision=3).hide()

# %% [markdown]
# The base would be a row of zeros here. `relative_norm` is the norm of all modules stacked over that of their base weights; the next figure
# has one dot per module.

# %%
relative = {name: measured[(measured.run == name)
                           & (measured.scope == "module")].relative_norm.to_numpy()
            for name in runs}
bases = np.array([base_norms[module] for module in modules.module])
sizes = list(zip(modules.d_out, bases, strict=True))
bands = {name: np.median([reach(rates[name], study.lora.rank, scale, d) / base
                          for d, base in sizes], axis=0)
         for name in runs}

# %% mystnb={"image": {"alt": "Strips of dots, one for each module, of the norm of the update relative to the base weights for the six objectives on a logarithmic axis, with a grey band from walk to march"}, "figure": {"caption": "Norm of the update relative to the base weights, one dot per module, bar: median. Grey: from a walk to a march by {eq}`eq-norms-walk`, median over modules.", "name": "fig-norms-relative"}}
figures.strips({"": relative}, "norm of dW / norm of W0", {"": bands}, log=True);

# %%
ratio = rest.mean() / overall.norm["dpo"]
rate_ratio = runs["sft"].learning_rate / runs["dpo"].learning_rate
of_march = overall["norm / march"]
per_rate = "more" if of_march["dpo"] > of_march["sft"] else "less"
Markdown(f"Mean of SFT, RFT and RIFT over DPO: the norms differ by a factor of "
         f"**{ratio:.1f}**, the learning rates by {rate_ratio:g}. For its rate DPO "
         f"thus moved {per_rate} than SFT: it covered "
         f"{of_march['dpo']:.0%} of a march, SFT {of_march['sft']:.0%}. In units of a "
         f"walk the six are between {overall['norm / walk'].min():.1f} and "
         f"{overall['norm / walk'].max():.1f}.")

# %% [markdown]
# {numref}`fig-norms-relative` has to be read together with the rates. DPO is trained at a tenth of the rate of the others, here as in the
# paper, and an optimiser that takes steps of the size of its rate makes a shorter update for that reason alone. How much of a norm's ratio
# the rate explains is open, though. If nothing else changed, a tenth of the rate would give a tenth of the norm. The paper reports that one
# and the same loss at ten times the rate has three times the norm, because a longer path turns more. Measured by that, its factor of 13
# between SFT and DPO leaves about 4 to explain. The arithmetic of {eq}`eq-norms-walk` can be done for the paper's recipe as well
# {cite:p}`nikolich2026geometry`: rank 32, $s = 2$, 36 layers, and a thousand steps of a cosine made for 1,500.

# %%
steps = np.arange(1000)
shape = np.where(steps < 75, steps / 75, (1 + np.cos(np.pi * (steps - 75) / 1425)) / 2)
outputs = 36 * [4096, 1024, 1024, 2560]
theirs = pd.DataFrame({"run": ["SFT", "DPO"], "norm": [2.84, 2.84 / 13]})
theirs[["walk", "march"]] = [reach(peak * shape, 32, 2.0, outputs)
                             for peak in (5e-6, 5e-7)]
theirs["norm / walk"] = theirs.norm / theirs.walk
theirs["norm / march"] = theirs.norm / theirs.march
theirs.style.format(precision=3).hide()

# %% [markdown]
# Neither of the paper's two runs is a walk, and in shares of a march they are nearer to each other than 13 suggests. A later page trains
# DPO at SFT's rate and at SFT's norm; until then no statement about DPO's *length* is a statement about its loss. A norm near a walk, on
# the other hand, does not make an update noise: a walk has no preferred direction, and whether two runs prefer the same one is seen in
# their cosine, which divides the lengths out.
#
# ## Singular values without the matrix
#
# Write $B = Q_B R_B$ and $A^\top = Q_A R_A$ with orthonormal columns in $Q_B$ and $Q_A$ (QR decompositions). Then
#
# ```{math}
# :label: eq-norms-svd
# \Delta W = Q_B \,\underbrace{\big(s\, R_B R_A^\top\big)}_{r \times r}\, Q_A^\top
# = \underbrace{(Q_B \tilde U)}_{U}\, \Sigma\, \underbrace{(Q_A \tilde V)^\top}_{V^\top} \qquad \text{where } s\, R_B R_A^\top = \tilde U \Sigma \tilde V^\top .
# ```
#
# The small matrix has the singular values $\sigma_1 \ge \dots \ge \sigma_r$ of the large one, which has no others. By {eq}`eq-norms-svd`
# the singular vectors $U$ and $V$ of the large one cost no more; the next chapter lives on them. A check against the dense matrix:

# %%
R_B, R_A = torch.linalg.qr(first.B.double()).R, torch.linalg.qr(first.A.double().T).R
small = torch.linalg.svdvals(first.scale * R_B @ R_A.T)
large = torch.linalg.svdvals(dense[0])
assert torch.allclose(small, large[:len(small)], rtol=1e-8)
assert large[len(small):].max() < 1e-10 * large[0]

# %% [markdown]
# Three numbers say how many directions an update uses. With the shares $p_i = \sigma_i / \sum_j \sigma_j$:
#
# ```{math}
# :label: eq-norms-ranks
# \begin{gathered}
# \text{effective rank} = \exp\Big({-\sum_i p_i \log p_i}\Big), \\
# \text{stable rank} = \frac{\sum_i \sigma_i^2}{\sigma_1^2}, \qquad
# \text{participation ratio} = \frac{\big(\sum_i \sigma_i^2\big)^2}{\sum_i \sigma_i^4} .
# \end{gathered}
# ```
#
# Each is 1 for a single direction and $r$ for $r$ equal ones. The {term}`effective rank` is that of {cite:t}`roy2007effective`; it works on
# $\sigma$ itself and so counts a long flat tail. The {term}`stable rank` {cite:p}`rudelson2007sampling` and the {term}`participation ratio`
# work on squares and see the head of the spectrum. What would they be by chance? A fresh random $B$ on the run's own $A$ answers that.

# %%
def with_random_B(seed):
    source = torch.Generator().manual_seed(seed)
    return {run: {module: Factors(torch.randn(part.B.shape, generator=source),
                                  part.A, part.scale)
                  for module, part in update.items()}
            for run, update in adapters.items()}


random = [geometry.compare(with_random_B(seed)) for seed in range(4)]
random_sigma = np.concatenate([null.singular_values for null in random])

# %%
def spectrum(sigma, name):
    share = sigma / sigma[:, :1]
    low, middle, high = np.nanquantile(share, [0.25, 0.5, 0.75], axis=0)
    return pd.DataFrame({"run": name, "index": np.arange(1, len(middle) + 1),
                         "middle": middle, "low": low, "high": high})


sigma = {name: compared.singular_values[:, at[name]] for name in runs}
falling = pd.concat([*(spectrum(sigma[name], name) for name in runs),
                     spectrum(random_sigma[:, 0], "random B")])

# %% mystnb={"image": {"alt": "Line plot of singular values divided by the largest against their index for the six objectives and for a random factor B, whose line is much flatter"}, "figure": {"caption": "Singular values of the updates divided by the largest, median over modules; shaded: from the first to the third quartile. Random B: chance, on SFT's A.", "name": "fig-norms-spectra"}}
fig = figures.lines_of_runs({"": falling}, "index", "middle",
                            "index of the singular value",
                            "singular value / the largest")
fig.axes[0].set_ylim(0, None);

# %% [markdown]
# In {numref}`fig-norms-spectra` a random $B$ gives a gentle slope: the rank is filled almost evenly. Trained updates fall off at once, so
# that a few directions carry most of the square of the norm, and keep a long tail of directions that are small but not nothing. The three
# ranks weigh head and tail differently.

# %%
measures = {"effective rank": geometry.effective_rank,
            "stable rank": geometry.stable_rank,
            "participation ratio": geometry.participation_ratio}
ranks = pd.DataFrame(
    [{"run": figures.LABELS[name],
      **{key: measure(sigma[name]).mean() for key, measure in measures.items()}}
     for name in runs])
by_chance = {key: float(np.mean(measure(random_sigma)))
             for key, measure in measures.items()}
ranks.loc[len(ranks)] = {"run": "random B (chance)", **by_chance}
ranks.insert(2, "effective rank / r", ranks["effective rank"] / study.lora.rank)
ranks.style.format(precision=2).hide()

# %% mystnb={"image": {"alt": "Two panels of strips, one dot for each module: effective rank and stable rank, both divided by the adapter's rank, for the six objectives, far below grey bands near the top"}, "figure": {"caption": "Effective and stable rank by {eq}`eq-norms-ranks`, divided by the rank of the adapter, one dot per module, bar: median. Grey: 95 % of the modules with a random B.", "name": "fig-norms-ranks"}}
kinds, r = ("effective rank", "stable rank"), study.lora.rank
dots = {kind: {name: measures[kind](sigma[name]) / r for name in runs}
        for kind in kinds}
chance = {kind: {name: np.quantile(measures[kind](random_sigma[:, at[name]]) / r,
                                   [0.025, 0.975]) for name in runs}
          for kind in kinds}
figures.strips(dots, "share of the adapter's rank", chance);

# %%
effective = overall.effective_rank_share
Markdown(f"The effective ranks are between **{effective.min():.0%}** "
         f"({figures.LABELS[effective.idxmin()]}) and **{effective.max():.0%}** "
         f"({figures.LABELS[effective.idxmax()]}) of $r$; by chance it would be "
         f"{by_chance['effective rank'] / study.lora.rank:.0%}. DPO's is "
         f"{effective['dpo']:.0%} and SFT's {effective['sft']:.0%}.")

# %% [markdown]
# The grey bands of {numref}`fig-norms-ranks` are not a value for updates that learnt nothing in particular, they are a ceiling: noise fills
# the rank. An effective rank is read as a distance *below* it. (The bands differ between runs because each keeps its own $A$, which
# training has concentrated as well.) In the paper DPO has the largest, 24.5 of 32, which can mean a loss that uses more directions, or a
# short update in which noise is a larger share. The number alone does not tell the two apart.
#
# ## What cosine would chance give?
#
# Take two updates of a module and turn one by a random rotation $Q$ of its output space. That keeps all its singular values and its right
# vectors and destroys only *where* it writes. With $C = \Delta W_2 \Delta W_1^\top$, the inner product becomes
# $\langle \Delta W_1, Q\, \Delta W_2 \rangle = \operatorname{tr}(Q\, C) = \sum_{ij} Q_{ij} C_{ji}$. For a uniform
# ({term}`Haar <Haar rotation>`) rotation the entries have mean 0, variance $1/d_\text{out}$, since rows have length one, and no
# correlation, since flipping the sign of a row or a column changes nothing in the distribution. Hence
#
# ```{math}
# :label: eq-norms-null
# \operatorname{sd}(\cos) = \frac{\lVert \Delta W_1 \Delta W_2^\top \rVert_F}{\sqrt{d_\text{out}}\; \lVert \Delta W_1 \rVert_F \lVert \Delta W_2 \rVert_F} .
# ```
#
# When modules are stacked, the variances of their inner products add up. To see what is in {eq}`eq-norms-null`, compare an update with a
# rotated copy of itself. Then $\lVert \Delta W \Delta W^\top \rVert_F^2 = \sum_i \sigma_i^4$, and by {eq}`eq-norms-ranks`
#
# ```{math}
# :label: eq-norms-participation
# \operatorname{sd}(\cos) = \frac{1}{\sqrt{d_\text{out} \times \text{participation ratio}}} \qquad \text{instead of the naive} \qquad \frac{1}{\sqrt{d_\text{out}\, r}} .
# ```
#
# The naive value holds for two independent Gaussian $B$ on one shared $A$ with perpendicular rows. It counts all $r$ directions as equal,
# and as we saw, they are not. Random rotations of one module confirm the derivation. A uniform frame is the $Q$ of a Gaussian matrix's QR
# decomposition, with the signs chosen so that $R$ has a positive diagonal {cite:p}`mezzadri2007random`.

# %%
between_inputs = first.A.double() @ second.A.double().T
inner_part = first.scale * second.scale * first.B.double() @ between_inputs
R_second = torch.linalg.qr(second.B.double()).R
source = torch.Generator().manual_seed(0)


def rotated_inner():
    """Inner product with the second update, its outputs rotated at random."""
    gaussian = torch.randn(second.B.shape, generator=source, dtype=torch.float64)
    Q, R = torch.linalg.qr(gaussian)
    return float((inner_part * ((Q * R.diagonal().sign()) @ R_second)).sum())


# %%
lengths = np.sqrt(updates.inner(first, first) * updates.inner(second, second))
rotations = np.array([rotated_inner() for _ in range(2000)]) / lengths
row = modules.module.tolist().index(example)
cosine_here, sd_here = (values[at["sft"], at["offline-grpo"]]
                        for values in geometry.stacked_cosine(compared, [row]))
naive = 1 / np.sqrt(study.lora.rank * modules.d_out[row])

# %% mystnb={"image": {"alt": "Histogram of cosines after random rotations, matching the normal curve of the derived standard deviation and much wider than the narrow naive curve"}, "figure": {"caption": "Cosine of SFT and Offline GRPO in one module after 2,000 random rotations of its outputs; solid: normal curve with the derived {eq}`eq-norms-null`, dashed: with the naive standard deviation.", "name": "fig-norms-null"}}
fig = figures.histograms({"random rotations": rotations}, "cosine", "rotations",
                         bins=40)
line = np.linspace(1.1 * rotations.min(), 1.1 * rotations.max(), 300)
area = len(rotations) * np.ptp(rotations) / 40
fig.axes[0].plot(line, area * normal.pdf(line, scale=sd_here), color="black",
                 label="derived")
fig.axes[0].plot(line, area * normal.pdf(line, scale=naive), color="black",
                 linestyle="--", linewidth=1, label="naive")
fig.axes[0].legend();

# %%
naive_all = 1 / np.sqrt(study.lora.rank * modules.d_out.sum())
widening = stacked_sd[0, at["rft"]] / naive_all
Markdown(f"In {{numref}}`fig-norms-null`, the rotations have a standard deviation of "
         f"{rotations.std():.4f}, the derivation gives **{sd_here:.4f}**, the naive "
         f"formula {naive:.4f}; the measured cosine is {cosine_here:.3f}. Over all "
         f"modules stacked, SFT and RFT have a band of "
         f"±{normal.ppf(0.975) * stacked_sd[0, at['rft']]:.4f} where the naive value "
         f"would be ±{normal.ppf(0.975) * naive_all:.4f}, "
         f"**{widening:.1f}** times narrower.")

# %% [markdown]
# Stacking adds to the difference, since modules with long and concentrated updates weigh most in {eq}`eq-norms-null`, where the naive value
# lets all weigh the same.
#
# ## The cosines
#
# All pairs, all modules stacked, each with its own band:

# %%
cosine = store.write_table(profile, "cosine", geometry.cosine_table(compared))
overall_cosine = cosine[cosine.scope == "global"]

# %% mystnb={"image": {"alt": "Dot plot of the cosine for all fifteen pairs of objectives with narrow grey chance bands around zero and open diamonds at the paper's values"}, "figure": {"caption": "Cosine of the updates for each pair, all modules stacked. Grey: 95 % of {eq}`eq-norms-null` around zero. Open diamonds: the paper's values, where it gives one.", "name": "fig-norms-pairs"}}
figures.pairs(overall_cosine, "cosine", "cosine of the updates", paper.COSINES);

# %%
is_inside = overall_cosine.cosine.between(overall_cosine.chance_low,
                                          overall_cosine.chance_high)
inside = overall_cosine[is_inside]
names = ", ".join(f"{figures.LABELS[row.run_a]} – {figures.LABELS[row.run_b]} "
                  f"({row.cosine:+.3f}, band ±{row.chance_high:.3f})"
                  for row in inside.itertuples())
Markdown(f"**{len(overall_cosine) - len(inside)} of {len(overall_cosine)}** pairs lie "
         f"outside their chance band" + (f"; within it: {names}." if names else "."))

# %% [markdown]
# Most distances in {numref}`fig-norms-pairs` from dot to band are so large that no correction for fifteen comparisons would matter. What
# the bands exclude is that two updates are *unrelated*. They do not say why they are related. Runs on the same rollouts, in the same order,
# from the same $A$ have reasons to agree that have nothing to do with their losses; the pages on controls take these away one by one.
#
# A stacked cosine weighs each module by its norms, so that a few long ones can decide it. By layer:

# %% mystnb={"image": {"alt": "Line plot of the cosine with SFT against the layer for RFT, RIFT, Offline GRPO, DFT and DPO, with grey chance bands around zero"}, "figure": {"caption": "Cosine with SFT by layer, the four projections stacked. Grey: chance bands of the five pairs, one over the other.", "name": "fig-norms-layers"}}
with_sft = cosine[cosine.run_a == "sft"].rename(columns={"run_b": "run"})
layers = with_sft[with_sft.scope == "layer"]
fig = figures.lines_of_runs({"": layers}, "layer", "cosine", "layer", "cosine with SFT")
fig.axes[0].set_ylim(None, 1.02);

# %%
stacks = with_sft[with_sft.scope == "projection"]
stacks = stacks.assign(text=[f"{row.cosine:.3f} (±{row.chance_high:.3f})"
                             for row in stacks.itertuples()])
wide = stacks.pivot(index="projection", columns="run", values="text")
wide = wide[list(runs)[1:]].rename(columns=figures.LABELS)
wide.rename_axis(columns=None).reset_index().style.hide()

# %% [markdown]
# The brackets of the table by projection hold the bands. Stacking hides what {numref}`fig-norms-layers` shows:

# %%
extremes = layers.groupby("run", sort=False).cosine.agg(["min", "max"])
Markdown("Over the layers, the cosine with SFT goes "
         + ", ".join(f"from {row.min:.3f} to {row.max:.3f} for "
                     f"{figures.LABELS[row.Index]}" for row in extremes.itertuples())
         + ".")

# %% [markdown]
# And, at full resolution, each module by itself:

# %%
def maps_of(cosines):
    """Cosine with SFT in each module, {heading: (projections, layers)}.

    Also the layers, the projections, and the cells within chance, by heading too.
    """
    rows = cosines[(cosines.run_a == "sft") & (cosines.scope == "module")]
    rows = rows.assign(inside=rows.cosine.between(rows.chance_low, rows.chance_high))
    maps, insides = {}, {}
    for name, part in rows.groupby("run_b", sort=False):
        wide = part.pivot(index="projection", columns="layer")
        maps[f"SFT – {figures.LABELS[name]}"] = wide.cosine.to_numpy()
        insides[f"SFT – {figures.LABELS[name]}"] = wide.inside.to_numpy()
    layers, projections = rows.layer.drop_duplicates().tolist(), wide.index.tolist()
    return maps, layers, projections, insides


# %% mystnb={"image": {"alt": "Five maps of projections by layers with the cosine of SFT with RFT, DFT, RIFT, Offline GRPO and DPO in each module, cells within chance hatched"}, "figure": {"caption": "Cosine with SFT in each module. Hatched: within the module's own 95 % band by {eq}`eq-norms-null`.", "name": "fig-norms-modules"}}
figures.module_maps(*maps_of(cosine), "cosine");

# %%
def with_dpo(cosines):
    """Cosines of SFT and DPO by module, and how many are below and above chance."""
    rows = cosines[(cosines.run_a == "sft") & (cosines.run_b == "dpo")
                   & (cosines.scope == "module")]
    below = int((rows.cosine < rows.chance_low).sum())
    above = int((rows.cosine > rows.chance_high).sum())
    return rows, below, above


dpo, negative, positive = with_dpo(cosine)
outside = negative + positive
Markdown(f"SFT and DPO: {len(dpo) - outside} of {len(dpo)} modules are within chance "
         f"and {outside} outside, where 5 % or {0.05 * len(dpo):.1f} would be "
         f"expected of unrelated updates. Of those outside, {negative} are negative "
         f"and {positive} positive. The module with the largest cosine has "
         f"{dpo.cosine.max():+.3f}, the smallest {dpo.cosine.min():+.3f}, all stacked "
         f"{stacked[0, at['dpo']]:+.3f}.")

# %% [markdown]
# The last row of {numref}`fig-norms-modules` is the reason to look at modules at all. A stacked cosine near zero can be made of modules
# that are all unrelated, or of modules that agree in one place and oppose each other in another. The count in the sentence above tells
# which of the two it is here. In the same way, a high stacked cosine could come from a few long modules; the upper rows say whether it
# does.
#
# ## The paper's numbers beside ours
#
# The chance levels of the paper's numbers are added by us {cite:p}`nikolich2026geometry`. The band of its cosines would need its singular
# values. We bracket it: from the naive value of {eq}`eq-norms-participation` for its shapes, to that value widened by as much as ours is.

# %%
bracket = [factor * normal.ppf(0.975) / np.sqrt(32 * np.sum(outputs))
           for factor in (1, widening)]
source = torch.Generator().manual_seed(0)
random_update = {}
for d_out, d_in in ((4096, 2560), (1024, 2560), (2560, 4096)):
    B = torch.randn(d_out, 32, generator=source)
    A = torch.rand(32, d_in, generator=source) - 0.5
    random_update[f"layers.0.{d_out}"] = Factors(B, A, 2.0)
paper_random = geometry.compare({"random": random_update})
paper_ceiling = geometry.effective_rank(paper_random.singular_values).mean()

# %% [markdown]
# The band says what unrelated updates would give. A stricter comparison is what *related* ones give: the same method trained again from other seeds, with another initial $A$ and
# another order of the prompts. Two runs of one loss share the data and the loss and nothing else, so their cosine is what those two alone bring about.

# %%
replicas = store.write_table(profile, "replicas", replication.replicas_table(study))
over_seeds = replication.side_by_side(replicas, "cosine", paper.COSINES)
over_seeds = over_seeds.set_index(["run_a", "run_b"])
value = overall_cosine.set_index(["run_a", "run_b"])
printed = {0.74: "about 0.74", 0.061: "0.057 to 0.065"}
lines = [{"quantity": f"cosine {figures.LABELS[a]} – {figures.LABELS[b]}",
          "paper": printed.get(number, f"{number:.3f}"),
          "paper's chance level": f"±{bracket[0]:.4f} to ±{bracket[1]:.4f}",
          "ours": f"{value.cosine[a, b]:.3f}",
          "our chance level": f"±{value.chance_high[a, b]:.3f}",
          **over_seeds.loc[(a, b)]} for (a, b), number in paper.COSINES.items()]
norms_sft, norms_dpo = (replication.at_seeds(replicas, "norm", name)
                        for name in ("sft", "dpo"))
ratios = norms_sft / norms_dpo
lines.append({"quantity": "norm SFT / DPO", "paper": "13",
              "paper's chance level": "10 (the rates)",
              "ours": f"{overall.norm['sft'] / overall.norm['dpo']:.1f}",
              "our chance level": f"{rate_ratio:g} (the rates)",
              "over seeds": f"{ratios.min():.1f} to {ratios.max():.1f}"})
for name, number in {"sft": "about 16", "offline-grpo": "14.8", "dpo": "24.5"}.items():
    at_seeds = replication.at_seeds(replicas, "effective rank", name)
    lines.append({"quantity": f"effective rank {figures.LABELS[name]}",
                  "paper": f"{number} of 32",
                  "paper's chance level": f"{paper_ceiling:.1f}",
                  "ours": f"{overall.effective_rank[name]:.1f} of {study.lora.rank}",
                  "our chance level": f"{by_chance['effective rank']:.1f}",
                  "over seeds": f"{at_seeds.min():.1f} to {at_seeds.max():.1f}"})
pd.DataFrame(lines).fillna("–").style.hide()

# %%
of_paper = [paper.COSINES.get(pair) for pair in value.index]
both_orders = overall_cosine.assign(paper=of_paper).dropna(subset="paper")
agreement = both_orders.cosine.corr(both_orders.paper, method="spearman")
others = overall.effective_rank.drop("dpo")
above = "above" if overall.effective_rank["dpo"] > others.max() else "not above"
sd_dpo = value.cosine["sft", "dpo"] / value.chance_high["sft", "dpo"]
dpo_inside = "within" if abs(sd_dpo) <= 1 else "above" if sd_dpo > 0 else "below"
Markdown(f"Over the {len(both_orders)} pairs for which the paper gives a cosine, "
         f"its order and ours have a rank correlation of **{agreement:.2f}**. The "
         f"small positive cosine of SFT and DPO in the paper is "
         f"{0.061 / bracket[1]:.0f} to {0.061 / bracket[0]:.0f} times the half-width "
         f"of its chance band; ours is {dpo_inside} its band. DPO's effective rank, "
         f"the largest in the paper, is {above} all the others here.")

# %%
other_seed = replication.between_seeds(replicas, "cosine", "sft")
other_loss = replication.at_seeds(replicas, "cosine", "sft", "rft")
conclusion = ("The difference is what one initial adapter and one order of the prompts "
              "add." if other_loss.min() > other_seed.max()
              else "Equal seeds add nothing to the likeness.")
Markdown(f"SFT has a cosine of **{other_seed.min():.3f} to {other_seed.max():.3f}** "
         f"with its own replicas, and of {other_loss.min():.3f} to "
         f"{other_loss.max():.3f} with RFT at an equal seed. {conclusion}")

# %% [markdown]
# So a cosine near one between two methods at one seed is no proof that their losses want the same. Which part of it belongs to the initial $A$ and which to the order is separated in the chapter on
# [seeds](16_seeds.ipynb), the chance levels in [another](15_chance.ipynb), and whether DPO's small cosine is the rate's in a [third](17_matched_dpo.ipynb).
#
# ## On a pretrained model
#
# The same maps for SmolLM2-135M-Instruct, a model that many know, from weights rounded to four bits and adapted to the problems before the study began ([how](22_pretrained.ipynb), and all its other numbers).
# With thirty layers a map shows what six cannot: whether anything changes with depth.

# %% mystnb={"image": {"alt": "Five maps of four projections by thirty layers with the cosine of SFT with RFT, DFT, RIFT, Offline GRPO and DPO in each module of the pretrained model, cells within chance hatched"}, "figure": {"caption": "Cosine with SFT in each module of the pretrained model. Hatched: within the module's own 95 % band.", "name": "fig-norms-pretrained"}}
study_second = profiles.load(pretrained)
deep = geometry.compare(trainer.updates_of_study(pretrained, study_second.main_runs))
cosine_second = geometry.cosine_table(deep)
figures.module_maps(*maps_of(cosine_second), "cosine");

# %%
rows, below, above_band = with_dpo(cosine_second)
agreement, low, high = statistics.mantel(stacked, geometry.stacked_cosine(deep)[0])
runs_second = [study_second.runs[run] for run in study_second.main_runs]
Markdown(f"In {{numref}}`fig-norms-pretrained` SFT and DPO are outside chance in "
         f"{below + above_band} of {len(rows)} modules, {below} of them negative and "
         f"{above_band} positive; here in {outside} of {len(dpo)}, {negative} "
         f"negative. The stacked cosines of the two models have a rank correlation of "
         f"**{agreement:+.2f}**; with the methods of one model exchanged at random it "
         f"is between {low:+.2f} and {high:+.2f} in 95 % of the cases. "
         f"{store.origin(pretrained, runs_second)}")

# %% [markdown]
# **Explorer.** All pairs at once, layer by layer: move through the depth of the pretrained model, or choose one of the projections at the end of the row.

# %%
groups = {**{f"layer {layer}": deep.modules.layer == layer
             for layer in sorted(deep.modules.layer.unique())},
          **{f"all {projection}": deep.modules.projection == projection
             for projection in deep.modules.projection.unique()}}
at_depth = {group: geometry.stacked_cosine(deep, np.flatnonzero(chosen))[0]
            for group, chosen in groups.items()}
labels = [figures.LABELS[run] for run in deep.runs]
pair_names = {(a, b): f"{labels[a]} – {labels[b]}"
              for a, b in zip(*np.triu_indices(len(labels), 1), strict=True)}
pictures = ((group, figures.matrix(values, deep.runs, "cosine"),
             f"Matrix of the cosines of six updates, {group}: SFT and RFT "
             f"{values[0, 1]:.2f}, SFT and DPO {values[0, -1]:.2f}")
            for group, values in at_depth.items())
rows = [{"layer or projection": group,
         **{name: float(values[pair]) for pair, name in pair_names.items()}}
        for group, values in at_depth.items()]
explorers.frames(pictures, "layer or projection", rows, "cosines-by-depth")

# %% [markdown]
# ## Try it
#
# 1. Multiply DPO's update by ten: `updates.combine([adapters["dpo"]], [10.0])`. Which of this page's numbers change?
#
# ````{dropdown} What happens
# Its norms, and nothing else. Cosines, their bands by {eq}`eq-norms-null` and all three ranks of {eq}`eq-norms-ranks` divide the length
# out.
# ````
#
# 2. Take `M` as ten times the identity. What happens to the flattened cosine?
#
# ````{dropdown} What happens
# $B$ grows tenfold and $A$ shrinks tenfold, so that the flattened vector of the module in the new gauge consists almost only of $B$, while the
# original is mostly $A$. Their cosine falls although neither the update nor any direction in the factors changed. By {eq}`eq-norms-gauge`
# it could be given almost any value.
# ````
#
# 3. Keep only the largest singular value of each update. What does the chance band become?
#
# ````{dropdown} Answer
# The participation ratio is 1, and {eq}`eq-norms-participation` gives $1/\sqrt{d_\text{out}}$ for a module compared with a rotated copy: the
# cosine of two random unit vectors. For two different updates it is this times $|\langle v_1, v_1' \rangle|$, so that a band also depends
# on how alike the *right* vectors are.
# ````
#
# ## Summary
#
# An update is known from its factors but not by them: {eq}`eq-norms-inner` is the comparison that survives a change of gauge. Norms follow
# the learning rate before they follow the loss. Spectra are concentrated, which makes chance cosines larger than counted from the rank, and
# the bands of {eq}`eq-norms-null` take that into account. A cosine is one number for two subspaces, though. The
# [next page](11_angles.ipynb) asks which directions two updates share.
