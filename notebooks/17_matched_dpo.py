# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [models, main, matched, rates, rounding, strong, preference, paths, held-out]
# ---

# %% [markdown]
# # Matched DPO: the paper's open question
#
# *Previously,* DPO stood apart from the other five methods: it harmed least, its update was the shortest, and it was nearly orthogonal to theirs. But
# [it was also trained differently](08_dpo.ipynb), at a smaller rate, on fewer rows, with more passes. *Now* each of these differences is removed in turn, and we
# look at what is left for the loss to explain.
#
# **Key takeaways**
# - "Matched" has at least four meanings here: equal rate, equal norm, equal rows and passes, equal distance from the base. Each answers another question.
# - Scaling an update cannot change its cosine with anything. Matching norms can therefore say something about accuracy and nothing about orthogonality.
# - A method that keeps the base's accuracy may have kept it by its direction or by its length. Only at equal distance from the base can the two be told apart.
# - What the rate contributes to a norm depends on the loss at which the rate is changed, so "the rate explains so much" needs two numbers and not one.
#
# You need: [DPO](08_dpo.ipynb), [cosines and their chance level](10_norms.ipynb), [barriers](13_connectivity.ipynb). Reads the main runs and about twenty controls. Time to run:
# about a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
from itertools import chain, combinations

import numpy as np
import pandas as pd
from IPython.display import Markdown

from adapter_geometry import geometry, mode_connectivity, updates
from adapter_geometry.adapters import load_update
from adapter_geometry.chance import compare_by_chance
from helpers import profiles, store
from helpers.analysis import (
    connectivity,
    interventions,
    matching,
    outcomes,
    path_tables,
    predictions,
)
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import answering, statistics
from helpers.training import trainer

study = profiles.load(profile)
swept = {"sft": ["sft-low", "sft-mid", "sft", "sft-high"],
         "dpo": ["dpo", "dpo-mid", "dpo-matched", "dpo-high"]}
relatives = list(study.controls["preference"].runs)
names = ["sft", "rft", "rift", "dpo", *study.controls["matched"].runs, "sft-low",
         "rft-low", "sft-mid", "sft-high", "dpo-mid", "dpo-high", *relatives]
figures.use_style(study)

# %% [markdown]
# ## What differs between SFT and DPO
#
# A run is a loss, a rate, a choice of rows, and how often it goes over them. In the main study, as in the paper, DPO differs from SFT in all of
# these. The next table has the main runs and the controls that change one thing at a time.

# %%
folders = {name: trainer.train(study, study.runs[name]) for name in names}
adapters = {name: load_update(folder / "adapter") for name, folder in folders.items()}
norms = {name: updates.norm(update) for name, update in adapters.items()}
about = matching.settings(study, folders)
listed = ["sft", "rft", "dpo", "dpo-matched", "sft-low", "rft-low", "dpo-one-pass",
          "dpo-matched-one-pass", "sft-pairs", "rft-chosen"]
facts = about.loc[listed].assign(norm=pd.Series(norms))
figures.table(facts.reset_index())

# %% [markdown]
# "Passes" counts how often a run saw its own rows. A step of DPO takes as many *pairs* as a step of SFT takes rows, twice as many rows, so on the same
# rows DPO makes twice as many passes in the same number of steps; RFT on the chosen halves alone makes as many as DPO.
#
# ## Four ways to match, and what each can answer
#
# *Rate.* Train again at the other's rate. This changes length and direction, and both may be asked about.
#
# *Norm.* Multiply one update by a number. Nothing is trained. For every $\kappa > 0$
#
# ```{math}
# :label: eq-matched-scaling
# \cos(\kappa\, \Delta W_1,\ \Delta W_2) = \frac{\kappa\, \langle \Delta W_1, \Delta W_2 \rangle}{\kappa\, \lVert \Delta W_1 \rVert\, \lVert \Delta W_2 \rVert} = \cos(\Delta W_1,\ \Delta W_2) ,
# ```
#
# and principal angles and singular vectors do not change either. So if DPO is orthogonal to SFT, it is so at any norm, and "DPO's update is orthogonal *because* it is
# short" cannot be true of one fixed update. What can be true is that a run is orthogonal *while* it is short and turns as it goes on; that is asked of snapshots, below.
# What norm-matching does answer is a question about behaviour: does DPO's direction do less harm than SFT's at the same length?
#
# *Distance from the base.* Equal norm is not equal change of behaviour. For a short update the forward divergence grows as
#
# ```{math}
# :label: eq-matched-fisher
# \mathrm{KL}(\pi_0 \,\|\, \pi_{\kappa}) \approx \frac{\kappa^2}{2}\, \langle \Delta W, F\, \Delta W \rangle ,
# \qquad F = \mathbb{E}\big[ \nabla \log \pi_0\, \nabla \log \pi_0^{\top} \big] ,
# ```
#
# with $F$ the Fisher information of the base, because the divergence is zero at $\kappa = 0$ and cannot be negative: it has no linear term. Along some directions $F$ is large, and a short step changes much; along others a long one
# changes nothing. By {eq}`eq-matched-fisher` a direction can look harmless at equal norm only because the model hardly depends on it. So a third match scales one update until its
# divergence equals the other's.
#
# *Rows and passes.* Train SFT and RFT on DPO's rows, and DPO for at most one pass over its pairs.

# %%
planned = interventions.planned(study)
scaled = {"dpo at sft's norm": ("dpo", "sft"), "dpo at rft's norm": ("dpo", "rft"),
          "dpo-matched at sft's norm": ("dpo-matched", "sft"),
          "sft at dpo's norm": ("sft", "dpo"), "sft at dpo's kl": ("sft", "dpo"),
          "rft at dpo's kl": ("rft", "dpo"),
          "sft at dpo-matched's kl": ("sft", "dpo-matched")}
adapters |= {name: interventions.update_of(study, name) for name in scaled}
norms |= {name: updates.norm(adapters[name]) for name in scaled}

# %% [markdown]
# ## Is what is called matched matched?
#
# Before any result: how well was each condition reached? Rates and rows must be equal exactly, norms to rounding, divergences to a few per cent, since the factor is found by
# bisection.

# %%
answering_runs = [name for name in (*names, *scaled) if name != "rift"]
kl = matching.divergences(study, answering_runs)
table = rollouts.load_table(study)
rows_of = {rows: set(chain.from_iterable(rollouts.select(table, rows).values()))
           for rows in ("pairs", "chosen")}
reached = matching.reached(about, norms, kl.kl, scaled, rows_of)
reached.style.format(precision=6, na_rep="–").hide(axis="index")

# %%
by = reached.groupby("match", sort=False).reached
assert (by.get_group("learning rate") == 1).all()
assert np.allclose(by.get_group("norm"), 1, atol=1e-6)
assert rows_of["chosen"] < rows_of["pairs"]
assert about.rows["sft-pairs"] == about.rows["dpo"] == len(rows_of["pairs"])
off = {match: (ratios - 1).abs().max() for match, ratios in by}
trained = [study.runs[name] for name in (*names, *study.controls["rounding"].runs)]
Markdown(f"""Rates are equal as numbers. SFT on DPO's rows takes the same
{len(rows_of['pairs'])} rows as DPO, RFT on the chosen ones the {len(rows_of['chosen'])}
that DPO raises. Norms agree to {off['norm']:.0e}, divergences to
{off['divergence']:.1%}. DPO at most once over its pairs:
{about.passes['dpo-one-pass']:.2f} passes, where SFT makes {about.passes['sft']:.2f}
over its rows. {store.origin(profile, trained)}""")

# %% [markdown]
# ## How much of the norm is the rate?
#
# DPO's update is shorter than SFT's, and its rate is smaller. The ratio of the two norms can be cut in two factors by going through DPO at SFT's rate, or, the other
# way round, through SFT at DPO's rate:
#
# ```{math}
# :label: eq-matched-ratio
# \begin{aligned}
# \frac{\lVert \text{SFT} \rVert}{\lVert \text{DPO} \rVert}
# &= \underbrace{\frac{\lVert \text{SFT} \rVert}{\lVert \text{DPO at SFT's rate} \rVert}}_{\text{loss}} \cdot \underbrace{\frac{\lVert \text{DPO at SFT's rate} \rVert}{\lVert \text{DPO} \rVert}}_{\text{rate, at DPO's loss}} \\
# &= \underbrace{\frac{\lVert \text{SFT} \rVert}{\lVert \text{SFT at DPO's rate} \rVert}}_{\text{rate, at SFT's loss}} \cdot \underbrace{\frac{\lVert \text{SFT at DPO's rate} \rVert}{\lVert \text{DPO} \rVert}}_{\text{loss}} .
# \end{aligned}
# ```
#
# In logarithms the factors of {eq}`eq-matched-ratio` add up, and the share of the rate is the logarithm of its factor over that of the whole ratio. The two ways round need not agree: if they differ, rate and
# loss act together, and no single share is right.

# %%
ways = {"through DPO at SFT's rate": norms["dpo-matched"] / norms["dpo"],
        "through SFT at DPO's rate": norms["sft"] / norms["sft-low"],
        "the paper, as far as it says": 3}
first, second, _ = ways.values()
ratio = norms["sft"] / norms["dpo"]
split = pd.DataFrame({"way": list(ways), "ratio of norms": [ratio, ratio, 13],
                      "factor of the rate": list(ways.values())})
split["factor of the loss"] = split["ratio of norms"] / split["factor of the rate"]
split["share of the rate, log"] = (np.log(split["factor of the rate"])
                                   / np.log(split["ratio of norms"]))
figures.table(split)

# %%
step = about.learning_rate["sft"] / about.learning_rate["dpo"]
Markdown(f"""SFT's update is **{ratio:.1f}** times as long as DPO's. A rate {step:.0f}
times larger makes DPO's update **{first:.1f}** times and SFT's **{second:.1f}** times
as long. At SFT's rate DPO is {first / ratio:.2f} times as long as SFT; at DPO's rate
SFT is {ratio / second:.2f} times as long as DPO. The paper says that ten times the rate
makes three times the norm and that DPO's norm is thirteen times smaller, which leaves a
factor of 4.3 unexplained by the rate. It does not say for which method the factor of
three was measured.""")

# %% [markdown]
# A share above one is no mistake: then the rate explains more than the whole ratio, and the loss works against it. Norms are exact for these runs, and each is one run; how much a norm varies from seed to seed is
# asked on [the page about seeds](16_seeds.ipynb). What the ratio varies by from module to module can be seen here. The exponent $e$ in
#
# ```{math}
# :label: eq-matched-exponent
# \lVert \Delta W(\eta) \rVert \propto \eta^{\,e}
# ```
#
# puts the same in one number. In the estimates of {eq}`eq-norms-walk`, the walk and the march, all steps are given and only their size changes; both have $e = 1$. An $e$ below one says that later steps react to
# earlier ones: where the gradient turns back or fades, a larger rate gains less than its ratio. The paper's factor of three for ten is $e = .48$.

# %%
def growth(name, other):
    """Quartiles over modules of one run's length over another's."""
    ratios = [updates.inner(part, part) / updates.inner(start, start) for part, start
              in zip(adapters[name].values(), adapters[other].values(), strict=True)]
    return np.quantile(np.sqrt(ratios), [0.25, 0.75])


exponents = {method: np.polyfit(np.log(about.learning_rate[group]),
                                np.log([norms[name] for name in group]), 1)[0]
             for method, group in swept.items()}
of_dpo, of_sft = growth("dpo-matched", "dpo"), growth("sft", "sft-low")
Markdown(f"""Over four rates the exponent is **{exponents['sft']:.2f}** for SFT and
**{exponents['dpo']:.2f}** for DPO. The middle half of the modules grew {of_dpo[0]:.1f}
to {of_dpo[1]:.1f} times under DPO and {of_sft[0]:.1f} to {of_sft[1]:.1f} times under
SFT when the rate grew {step:.0f} times.""")

# %% [markdown]
# ## The same sweep, and everything else
#
# Four rates, both losses, all other settings equal. For each rate: accuracy, divergence from the base, and, between SFT and DPO *at that rate*, the cosine with its band and the barrier on the straight path between the two.
# First what is needed for the geometry, for all runs of this page at once.

# %%
halves = {name: trainer.update_of(study, name)
          for name in study.controls["rounding"].runs}
compared = geometry.compare(adapters | halves)
nulls = compare_by_chance(adapters, 20)
cosine, sd = (pd.DataFrame(values, compared.runs, compared.runs)
              for values in geometry.stacked_cosine(compared))
band = 1.96 * sd  # half the width of the band of chance

# %% [markdown]
# The answers come in two sizes: the base and the main runs answered every test problem, controls and interventions the first ones of the same list. Accuracies therefore carry their $n$, and a test of two conditions
# uses the problems that both answered.

# %%
records = matching.records(study, ["base", *kl.index])
accuracy = statistics.accuracy_table(records).set_index("run")
columns = ["n", "accuracy", "low", "high", "unparsed", "mean_tokens"]
by_run = pd.DataFrame({"norm": norms | {"base": 0.0}}).join([accuracy[columns], kl])
by_run.loc["base", "kl"] = 0.0


def paired(pairs, among):
    """Each pair's difference on problems that both answered; Holm over the pairs."""
    return statistics.mcnemar_table(among, pairs).drop(columns=["split", "detectable"])

# %%
equal_rates = list(zip(*swept.values(), strict=True))
ends = [*equal_rates, ("rift", "dpo-matched")]
paths = path_tables.walked(study, adapters, ends, points=9)
heights = pd.concat({pair: mode_connectivity.barrier(nats).set_index("metric")
                     for pair, nats in paths.items()}, names=["run_a", "run_b"])
heights = heights.xs("rollout", level="metric")
of_pairs = matching.likeness(compared, nulls, equal_rates)
of_pairs = of_pairs[["cosine", "chance_low", "chance_high"]].assign(
    barrier=heights.above_chord, noise=heights.noise)
columns = ["norm", "n", "accuracy", "low", "high", *kl.columns]
rates = by_run.loc[list(chain(*equal_rates)), columns].reset_index(names="run")
rates.insert(1, "learning_rate", rates.run.map(about.learning_rate))
rates = rates.join(of_pairs.loc[[pair for pair in equal_rates for _ in pair]]
                   .reset_index(drop=True))
store.write_table(profile, "rates", rates)
base = by_run.loc[["base"], columns].reset_index(names="run")
both = pd.concat([base, rates]).astype({"n": int})
figures.table(both.drop(columns=["chance_low", "kl_low", "kl_high"]))

# %% mystnb={"image": {"alt": "Log-log plot of the norm of the update against the learning rate, one rising line for SFT and one for DPO"}, "figure": {"caption": "Norm of the update against the peak learning rate, for SFT and for DPO, all else equal; the slope of a line is the exponent of {eq}`eq-matched-exponent`.", "name": "fig-matched-norms"}}
rates["method"] = rates.run.str.split("-").str[0]
by_method = rates[["method", "learning_rate", "norm"]].rename(columns={"method": "run"})
figures.lines_of_runs({"": by_method}, "learning_rate", "norm", "learning rate",
                      "norm of the update", log=True);

# %%
at = rates.set_index("run")
lines = [f"{at.learning_rate[run]:g}: {row.cosine:+.3f} (chance ±{row.chance_high:.3f})"
         for run, row in zip(swept["sft"], of_pairs.itertuples(), strict=True)]
inside = (of_pairs.cosine.abs() <= of_pairs.chance_high).sum()
over = (of_pairs.barrier > of_pairs.noise).sum()
drop = 100 * (by_run.accuracy["base"] - at.accuracy)
sft, dpo = (drop[group].iloc[[0, -1]].tolist() for group in swept.values())
best = [at.learning_rate[at.accuracy[group].idxmax()] for group in swept.values()]
Markdown(f"""Cosine of SFT and DPO at equal rates, {'; '.join(lines)}. **{inside} of 4**
lie within chance. The path between the two rises above its chord by more than chance at
{over} of 4 rates. Against the base's {by_run.accuracy['base']:.1%}, SFT falls by
{sft[0]:.1f} points at the lowest rate and {sft[1]:.1f} at the highest, DPO by
{dpo[0]:.1f} and **{dpo[1]:.1f}**. Each method's best accuracy is at {best[0]:g} (SFT)
and {best[1]:g} (DPO). Trained once more with the gradient of each step summed in two
halves, in exact arithmetic the same run, SFT has a cosine of
{cosine.loc['sft', 'sft-halves']:.4f} with itself and DPO at SFT's rate
**{cosine.loc['dpo-matched', 'dpo-matched-halves']:.4f}** (chance
±{band.loc['dpo-matched', 'dpo-matched-halves']:.3f}).""")

# %% [markdown]
# Two readings of the table and of {numref}`fig-matched-norms` should be kept apart. Read down, it says what a rate does to one loss. Read in pairs, it says how the two losses compare at one rate, which is the comparison
# that the main study, like the paper, does not contain. A learning rate is part of a method only as long as one says how it was chosen; "DPO harms least" is a statement about DPO *at its rate*.
#
# The last two numbers are a warning about single runs. A seed fixes the order of the rows and the initial adapter, and one would think that it fixes the result. At a rate where the loss magnifies small differences from step to
# step, it does not: the last digit of a sum, which depends on the processor and on the order of the terms, is enough to send the run elsewhere. Where two such runs have a cosine well below one, no other number about them can be read more finely than that.
#
# ## Accuracy at equal distance from the base
#
# The next figure puts accuracy against the divergence from the base. Solid lines join the four rates of a method; dashed lines are one trained update, SFT's or DPO's, multiplied by a factor, and need no training. If DPO's
# direction were kinder than SFT's, its line would lie above SFT's at the same divergence. If DPO only moved less, both would lie on one line and DPO at its left.

# %% mystnb={"image": {"alt": "Accuracy against forward divergence from the base on a logarithmic axis, solid lines for SFT and DPO at four rates, dashed lines for both updates scaled, and a dashed horizontal line at the base"}, "figure": {"caption": "Share of test problems solved against the forward divergence from the base, with 95 % intervals. Solid: SFT and DPO trained at four rates; dashed: the update of SFT, and of DPO, times a factor; dotted: the base.", "name": "fig-matched-plane"}}
columns = ["run", "accuracy", "low", "high", "kl"]
parts = [rates.assign(run=rates.method)[columns]]
for method in swept:
    steps = [name for name in planned if name.startswith(f"{method} times ")]
    steps = interventions.table(study, steps).assign(run=f"scaled-{method}")
    parts.append(steps[columns])
plane = pd.concat(parts).assign(metric="accuracy").sort_values(["run", "kl"])
plane = plane[plane.kl > 0].rename(columns={"accuracy": "value"})
fig = figures.curves_by_run(plane, "run", "kl", "KL(base || policy), nats per token",
                            "share solved", {"accuracy": ""})
fig.axes[0].set_xscale("log")
for line in fig.axes[0].lines:
    line.set_markevery(1)
fig.axes[0].axhline(by_run.accuracy["base"], color=figures.COLOURS["base"],
                    linestyle=":", linewidth=1);

# %% [markdown]
# {numref}`fig-matched-plane` compares by eye. The seven interventions make the same comparison at chosen points, with tests: each pair below was answered by two models that have been made equal in norm or in divergence.

# %%
pairs = [(name, other) for name, (_, other) in scaled.items()]
equal = paired(pairs, records)
labelled = equal.assign(run_a=[planned[name].label for name in equal.run_a])
labelled["divergences"] = [f"{kl.kl[a]:.4f}, {kl.kl[b]:.4f}" for a, b in pairs]
figures.table(labelled)

# %%
def said(row):
    """One sentence on an intervention against the run that it was matched to."""
    word = ("cannot be told apart" if row.p_holm >= 0.05
            else "does better" if row.difference > 0 else "does worse")
    return (f"{planned[row.run_a].label} against {figures.LABELS[row.run_b]}: "
            f"{row.difference:+.1%} ({row.low:+.1%} to {row.high:+.1%}), {word}")


at_norm, at_kl = ("; ".join(said(row) for row in equal.itertuples()
                            if row.run_a.endswith(match)) for match in ("norm", "kl"))
Markdown(f"""At equal norm, {at_norm}. At equal divergence, {at_kl}. In all,
{int((equal.p_holm < 0.05).sum())} of {len(equal)} differ after Holm's correction.""")

# %% [markdown]
# How to read these lines. "SFT at DPO's norm" and "SFT at DPO's divergence" against DPO decide whether DPO's small loss of accuracy is a merit of its direction: where they cannot be told apart, a shortened SFT would have served as
# well, as far as this test can see; where SFT does better, DPO's direction is the more harmful one at that length and the merit is the short step's alone. "DPO at SFT's norm" against SFT asks the reverse, with a caveat: no training made a stretched update, and to stretch is to overshoot, so a bad result speaks less clearly than a good one. The
# run trained at SFT's rate, scaled back or compared at its own divergence, is the fairer witness for what DPO does when it goes far. The same caveat holds the other way round: a shortened SFT is not SFT trained gently, and where the solid and the dashed line of one
# method part in {numref}`fig-matched-plane`, training at a smaller rate took another way than the straight one.
#
# ## Rows and passes
#
# DPO sees only mixed groups, one pair each, and sees them several times. Three controls: SFT on the very same rows; RFT on the chosen halves; DPO stopped after at most one pass.
#
# What should one expect on equal rows? Let $g_+$ and $g_-$ be the mean gradients of $\log \pi$ over chosen and over rejected completions. Apart from how lengths are weighted, the first step of SFT on both halves goes along their sum, that of
# RFT on the chosen ones along $g_+$, and that of DPO along their difference. Then
#
# ```{math}
# :label: eq-matched-pairs
# \langle g_+ + g_-,\ g_+ - g_- \rangle = \lVert g_+ \rVert^2 - \lVert g_- \rVert^2 , \qquad \langle g_+,\ g_+ - g_- \rangle = \lVert g_+ \rVert^2 - \langle g_+, g_- \rangle .
# ```
#
# The sum and the difference of two vectors of equal length are orthogonal. If right and wrong rollouts pull equally hard, SFT and DPO on the *same rows* start at right angles, whatever was learned and at any rate. The sign of the first product says which half pulls
# harder; the second is positive unless the two halves nearly agree.

# %% mystnb={"image": {"alt": "Matrix of cosines between SFT, RFT, SFT on DPO's rows, RFT on the chosen rows, and DPO at two rates and after one pass"}, "figure": {"caption": "Cosine of the stacked updates of runs that share rows, passes or rates with DPO.", "name": "fig-matched-rows"}}
group = ["sft", "rft", "sft-pairs", "rft-chosen", "dpo-matched", "dpo", "dpo-one-pass",
         "dpo-matched-one-pass"]
figures.matrix(cosine.loc[group, group].to_numpy(), group, "cosine");

# %%
shares = {"own": norms["dpo-one-pass"] / norms["dpo"],
          "sft": norms["dpo-matched-one-pass"] / norms["dpo-matched"]}
widest = band.loc[group, group].where(~np.eye(len(group), dtype=bool)).max().max()
rows, chosen = cosine.loc["sft-pairs"], cosine.loc["rft-chosen"]
Markdown(f"""Chance is within ±{widest:.3f} or less in every cell. SFT on DPO's rows has
a cosine of {rows['sft']:.3f} with SFT, **{rows['dpo-matched']:+.3f}** with DPO at the
same rate on the same rows, and {rows['dpo']:+.3f} with DPO at its own rate; RFT on the
chosen rows, which makes as many passes as DPO, {chosen['sft']:.3f},
**{chosen['dpo-matched']:+.3f}** and {chosen['dpo']:+.3f}. After one pass DPO's update
has {shares['own']:.2f} of its final norm at its own rate and {shares['sft']:.2f} at
SFT's, and cosines of {cosine.loc['dpo-one-pass', 'dpo']:.3f} and
{cosine.loc['dpo-matched-one-pass', 'dpo-matched']:.3f} with the finished runs.""")

# %% [markdown]
# The lower left block of {numref}`fig-matched-rows` is the one that decides: rows from SFT's kind of loss, columns from DPO's, equal rows, and for one pair of them equal rates. RFT and DPO differ there in nothing but what is done with the
# rejected half. By {eq}`eq-matched-pairs` one expects a small number of either sign for SFT on the pairs, negative where the rejected half pulls harder, and a positive one for RFT on the chosen rows. As [the page on DPO](08_dpo.ipynb) derives, what chosen and rejected have in common cancels in DPO's gradient, {eq}`eq-dpo-style`; a loss that raises both, or only the chosen, keeps it.
#
# A run of one pass is also a run of fewer steps, with the whole schedule of rates run through in that time. Passes and steps cannot both be held equal on a fixed table of pairs.
#
# ## Norm by training: along the way
#
# By {eq}`eq-matched-scaling` the norm cannot be matched by scaling when the question is the direction. But training itself goes through all norms up to its last. Snapshots of a run are a set of updates of growing length, each of them
# really trained. Is DPO at SFT's rate nearer to SFT when it has SFT's norm?

# %%
traced = {name: folders[name] for name in ("rft", "dpo-matched", "dpo")}
along = matching.along_training(study, traced, adapters["sft"])


# %% mystnb={"image": {"alt": "Cosine with the finished SFT against the norm relative to SFT's along the training of RFT, DPO at SFT's rate and DPO, with grey chance bands around zero"}, "figure": {"caption": "Cosine with the finished SFT along the training of RFT and of DPO at two rates, against the norm reached, in per cent of SFT's; grey: 95 % of what chance gives.", "name": "fig-matched-training"}}
shown = along.replace({"run": {"dpo-matched": "DPO, SFT's rate"}})
figures.lines_of_runs({"": shown}, "relative", "cosine", "norm, % of SFT's",
                      "cosine with the finished SFT");

# %%
trace, of_rft = (along[along.run == name] for name in ("dpo-matched", "rft"))
nearest = trace.iloc[(trace.relative - 100).abs().argmin()]
reaches = "passes" if trace.relative.max() >= 100 else "never reaches"
within = "within" if abs(nearest.cosine) <= nearest.chance_high else "outside"
Markdown(f"""DPO at SFT's rate {reaches} SFT's norm. Nearest to it is step
{nearest.step:.0f}, with {nearest.relative:.0f} % of SFT's norm; its cosine with SFT is
**{nearest.cosine:+.3f}**, {within} the band of chance (±{nearest.chance_high:.3f}).
Along the whole run the cosine stays between {trace.cosine.min():+.3f} and
{trace.cosine.max():+.3f}; RFT's goes from {of_rft.cosine.iloc[0]:.3f} to
{of_rft.cosine.iloc[-1]:.3f}.""")

# %% [markdown]
# In {numref}`fig-matched-training` RFT shows what the picture of a method that follows SFT looks like, from its first steps on. A line that stays near the band all the way says that length has nothing to do with it; a line that
# leaves the band as it grows would say that DPO at its own rate was stopped before it turned.
#
# ## One table: what is matched, and what comes out
#
# All conditions beside each other, against the base and against SFT. "First left" is the mean overlap of the first output directions with SFT's, the angle the median of the smallest principal angle of the output subspaces; each stands
# beside the level that chance reaches in one of forty draws.

# %%
conditions = {"sft": "reference", "rft": "all but the rows", "dpo": "nothing",
              "dpo-matched": "rate", "sft-low": "rate, at DPO's",
              "rft-low": "rate, at DPO's", "dpo-one-pass": "at most one pass",
              "dpo-matched-one-pass": "rate, at most one pass", "sft-pairs": "rows",
              "rft-chosen": "chosen rows, passes", "dpo at sft's norm": "norm",
              "dpo at rft's norm": "norm", "dpo-matched at sft's norm": "rate, norm",
              "sft at dpo's norm": "norm", "sft at dpo's kl": "divergence",
              "rft at dpo's kl": "divergence",
              "sft at dpo-matched's kl": "divergence, rate"}
label_of = {name: planned[name].label if name in planned else figures.LABELS[name]
            for name in ["base", *conditions]}
with_sft = matching.likeness(compared, nulls, [(name, "sft") for name in conditions])
whole = by_run.loc[list(conditions)].join(with_sft.droplevel("run_b"))
whole.insert(0, "condition", list(conditions.values()))
columns = ["run", "condition", "norm", "cosine_sft", "chance_low", "chance_high",
           "accuracy", "low", "high", "kl", "kl_low", "kl_high"]
stored = whole.rename(columns={"cosine": "cosine_sft"}).reset_index(names="run")
store.write_table(profile, "matched", stored[columns])
weight_side = whole[["condition", "norm", "cosine", "chance_high", "first left",
                     "first left, chance", "smallest angle", "smallest angle, chance"]]
figures.table(weight_side.rename(index=label_of).reset_index(names="run"))

# %%
against_base = paired([(name, "base") for name in conditions], records)
against_base = against_base.set_index("run_a")
names_of = {"low": "difference_low", "high": "difference_high"}
tests = against_base[["difference", "low", "high", "p_holm"]].rename(columns=names_of)
behaviour = pd.concat([whole, by_run.loc[["base"]].assign(condition="–")]).join(tests)
columns = ["condition", "n", "accuracy", "low", "high", "mean_tokens", *tests,
           *kl.columns]
shown = behaviour[columns].astype({"n": int}).rename(index=label_of)
figures.table(shown.reset_index(names="run"))

# %% mystnb={"image": {"alt": "Dot plot of accuracy with Wilson intervals for the base, SFT, RFT, DPO and the trained controls that match rate, rows or passes, with a dashed line at the base"}, "figure": {"caption": "Share of test problems solved by the trained conditions, with 95 % Wilson intervals; dashed: the base.", "name": "fig-matched-accuracy"}}
of_runs = ["base", *(name for name in conditions if name not in planned)]
trained = accuracy.loc[[name for name in accuracy.index if name in of_runs]]
figures.intervals(trained.reset_index(), "accuracy", "low", "high",
                  "share of test problems solved", reference="base");

# %%
order = trained.accuracy.drop("base").sort_values()
is_apart = against_base.p_holm < 0.05
lost = (is_apart & (against_base.difference < 0)).sum()
gained = (is_apart & (against_base.difference > 0)).sum()
rate_pairs = [("dpo-matched", "dpo"), ("dpo-matched", "sft")]
rate_test = paired(rate_pairs, records).set_index("run_b")
own_rate, same_rate = rate_test.loc["dpo"], rate_test.loc["sft"]
Markdown(f"""Of {len(conditions)} conditions {lost} solve fewer problems than the base
and {gained} more, after Holm's correction over all of them. Of the trained ones the
lowest is {figures.LABELS[order.index[0]]} with **{order.iloc[0]:.1%}**, the highest
{figures.LABELS[order.index[-1]]} with **{order.iloc[-1]:.1%}**. DPO at SFT's rate minus
DPO at its own is {own_rate.difference:+.1%} ({own_rate.low:+.1%} to
{own_rate.high:+.1%}, $p$ = {own_rate.p_holm:.2g}), and minus SFT at the same rate
{same_rate.difference:+.1%} ({same_rate.low:+.1%} to {same_rate.high:+.1%}, $p$ =
{same_rate.p_holm:.2g}).""")

# %% [markdown]
# The column of tokens in the second table belongs to {numref}`fig-matched-accuracy`: it tells whether a model has taken on the teacher's long style or kept the base's short one. Two models can lose the same number of problems for different reasons, one because it
# writes in a style that it has not practised, the other because it no longer computes as well in its own.
#
# ## Loss, rate, rows or norm?
#
# What would it mean that one of them *explains* the near-orthogonality? Matching it should bring the cosine up. As a yardstick take the cosine of SFT and RFT, two runs that differ in rows only, and ask how far a match goes from the
# unmatched cosine to that one (below zero, the match took the pair further apart):
#
# ```{math}
# :label: eq-matched-share
# \text{share explained} = \frac{\cos(\text{matched pair}) - \cos(\text{SFT}, \text{DPO})}{\cos(\text{SFT}, \text{RFT}) - \cos(\text{SFT}, \text{DPO})} .
# ```

# %%
matches = {("sft", "dpo"): "nothing", ("sft", "dpo-matched"): "rate (SFT's)",
           ("sft-low", "dpo"): "rate (DPO's)", ("sft", "dpo-one-pass"): "passes",
           ("sft", "dpo-matched-one-pass"): "rate, passes",
           ("sft-pairs", "dpo"): "rows", ("sft-pairs", "dpo-matched"): "rate, rows",
           ("rft-chosen", "dpo-matched"): "rate, chosen rows, passes",
           ("sft", "rft"): "all but wrong rows"}
columns = ["cosine", "chance_low", "chance_high"]
share = matching.likeness(compared, nulls, list(matches))[columns]
share.insert(0, "matched", list(matches.values()))
late = pd.DataFrame([{"run_a": "sft", "matched": "rate, norm by training",
                      "run_b": f"DPO, SFT's rate, step {nearest.step:.0f}",
                      **nearest[columns]}])
share = pd.concat([share.reset_index(), late], ignore_index=True)
unmatched, full = cosine.loc["sft", ["dpo", "rft"]]
share["explained"] = (share.cosine - unmatched) / (full - unmatched)
figures.table(share)

# %% mystnb={"image": {"alt": "Dots for the cosine of nine pairs of a SFT-like and a DPO-like run under different matches, with narrow grey chance bands, and SFT with RFT far to the right"}, "figure": {"caption": "Cosine of an SFT-like with a DPO-like update when rate, rows, passes or norm are matched, and of SFT with RFT for comparison; grey: 95 % of what chance gives.", "name": "fig-matched-cosines"}}
figures.pairs(share, "cosine", "cosine of the stacked updates");

# %%
is_tried = ~share.matched.isin(["nothing", "all but wrong rows"])
tried = share[is_tried].dropna().sort_values("explained")
most, others = tried.iloc[-1], tried.explained.iloc[:-1]
answer = ("none of the matches goes half of the way, and what is left is **the loss**"
          if most.explained < 0.5 else
          f"matching **{most.matched}** goes more than half of the way")
Markdown(f"""By {{eq}}`eq-matched-share`, the match that goes furthest is
*{most.matched}*, with {most.explained:.0%} (a cosine of {most.cosine:+.3f}, chance
±{most.chance_high:.3f}); the others lie between {others.min():.0%} and
{others.max():.0%}. So {answer}. By {{eq}}`eq-matched-scaling` the norm alone explains
nothing, by construction.""")

# %% [markdown]
# A dot of {numref}`fig-matched-cosines` outside its band is a real relation, and may still be a small one: bands for updates of this size are narrow, and a cosine of .1 is one hundredth of the energy. Near-orthogonality and "unrelated" are two statements. The
# first is about how large the common part is, the second about whether there is one. The output side, the columns "first left" and "smallest angle" of the table above, can show a common part that the cosine hides.
#
# ## Is the barrier only shrinkage?
#
# The paper finds a barrier on the path from RIFT to DPO, where DPO's update is thirteen times the shorter. [The page on paths](13_connectivity.ipynb) set that path beside the one to the base. Here is the full set: to DPO, to the base, to DPO stretched to RIFT's norm, and to
# DPO *trained* at RIFT's rate, which needs no stretching; both losses, and both definitions of a barrier, {eq}`eq-connectivity-chord` and {eq}`eq-connectivity-mean`.

# %%
goals = {"dpo": "DPO", "base": "the base", "scaled-dpo": "DPO at RIFT's norm",
         "dpo-matched": "DPO, SFT's rate"}
from_rift = {goal: paths["rift", goal] if goal == "dpo-matched"
             else connectivity.losses(study, "rift", goal) for goal in goals}
barriers = pd.concat([mode_connectivity.barrier(nats).assign(run_b=goals[goal])
                      for goal, nats in from_rift.items()], ignore_index=True)
figures.table(barriers[["run_b", "metric", "above_chord", "low", "high", "noise", "at",
                        "above_mean", "mean_low", "mean_high"]])

# %% mystnb={"image": {"alt": "Barriers with intervals on the paths from RIFT to DPO, to the base, to DPO at RIFT's norm and to DPO at SFT's rate, for both losses, over grey bars for chance"}, "figure": {"caption": "Barriers on four paths that start at RIFT, above the chord and above the mean of the ends, with 95 % intervals; grey: the height that a straight path reaches by chance.", "name": "fig-matched-barriers"}}
figures.barriers(barriers.assign(run_a="rift"), "nats per token", {
    "rollout": "loss of rollouts", "boxed answer": "bare-answer loss"});

# %%
sentences = []
for metric, words in (("rollout", "the loss of rollouts"),
                      ("boxed answer", "the bare-answer loss")):
    part = barriers[barriers.metric == metric]
    high = part.run_b[part.above_chord > part.noise].tolist()
    values = "; ".join(f"{row.run_b} {row.above_chord:.3f}, chance {row.noise:.3f}"
                        for row in part.itertuples())
    sentences.append(f"By {words}, {', '.join(high) or 'no path'} "
                     f"exceed{'' if len(high) > 1 else 's'} chance above the chord "
                     f"({values}).")
Markdown(" ".join(sentences))

# %% [markdown]
# The logic of {numref}`fig-matched-barriers`: if the path to DPO has no more of a barrier than the path to the base, it says nothing about DPO. If one appears at equal norm, in DPO's own direction or after training at the same rate, the two solutions are separated by something, and the
# length was hiding it. A large value above the *mean* with a small one above the *chord* is a slope between unequal ends. The ends differ more here than in other pairs, as the accuracies of DPO at SFT's rate show, and for the stretched update the end is no trained model.
#
# ## A family of preference losses?
#
# DPO has relatives that are trained on the same pairs: IPO aims at a margin and does not exceed it {cite:p}`azar2024ipo`, SimPO drops the reference and divides by length {cite:p}`meng2024simpo`, KTO scores each completion by itself {cite:p}`ethayarajh2024kto`, and length-normalised
# DPO divides by length and keeps the reference {cite:p}`lambert2024tulu`. All were trained at SFT's rate, with DPO's rows and number of steps, each with the constants of its source. Do they form a family in weight space, as SFT, RFT and RIFT do?

# %% mystnb={"image": {"alt": "Matrix of cosines between DPO at SFT's rate, IPO, SimPO, KTO, DPO by length, DPO at its own rate, SFT and RFT"}, "figure": {"caption": "Cosine of the stacked updates of the preference losses at SFT's rate, of DPO at its own rate, and of SFT and RFT.", "name": "fig-matched-family"}}
kin = ["dpo-matched", *relatives, "dpo", "sft", "rft"]
figures.matrix(cosine.loc[kin, kin].to_numpy(), kin, "cosine");

# %%
at_rate = ["dpo-matched", *relatives]
to_base = paired([(name, "base") for name in at_rate], records).set_index("run_a")
family = by_run.loc[[*at_rate, "dpo", "sft", "base"], ["norm"]].assign(**{
    "cosine with DPO": cosine["dpo-matched"], "chance": band["dpo-matched"],
    "cosine with SFT": cosine["sft"]})
behaviour = by_run.join(to_base[["difference", "p_holm"]])[[
    "accuracy", "low", "high", "mean_tokens", "difference", "p_holm", *kl.columns]]
figures.table(family.join(behaviour).reset_index(names="run"))

# %%
likeness, with_sft = (cosine.loc[relatives, other] for other in ("dpo-matched", "sft"))
among = [cosine.loc[pair] for pair in combinations(relatives, 2)]
by_rate = cosine.loc["dpo", "dpo-matched"]
verdict = ("They are a family in this sense" if likeness.min() > 0.5
           else "They are not one family" if likeness.min() < 0.2
           else "Some are closer to it than others, and all are closer than chance"
           if likeness.min() > family.chance.max() else "They are not one family")
Markdown(f"""With DPO at the same rate the four have cosines of {likeness.min():.2f}
({figures.LABELS[likeness.idxmin()]}) to {likeness.max():.2f}
({figures.LABELS[likeness.idxmax()]}), with each other {min(among):.2f} to
{max(among):.2f}, and with SFT {with_sft.min():+.2f} to {with_sft.max():+.2f}. DPO at
its own rate, the same loss, has {by_rate:.2f} with DPO at SFT's rate;
{(likeness >= by_rate).sum()} of the four are at least as like it as
that. {verdict}.""")

# %% [markdown]
# The last number before the verdict is the one to hold {numref}`fig-matched-family` against. Two rates of one loss need not be alike at all, so a cosine between two losses is high or low by comparison with that, and not with one. The norms say how unlike the runs are in size: an equal rate is no
# equal length when one loss stops pulling and another does not.
#
# ## The strong base
#
# In the paper the base was nearly at its ceiling on the test problems, and the SFT family lost six points there that DPO kept. Our main base is far below its ceiling. The *strong base* is not: the same model trained for longer, in the same short style. Four runs start from it, and
# one control without training: it is made to [open like the teacher](09_evaluation.ipynb) and goes on by itself.

# %% mystnb={"image": {"alt": "Dot plot of accuracy with Wilson intervals for the strong base and for SFT, RFT and DPO at two rates trained from it, with a dashed line at the strong base and a dotted one at the base forced into the teacher's opening"}, "figure": {"caption": "Share of test problems solved by the strong base and by four runs that start from it, with 95 % Wilson intervals; dashed: the strong base; dotted: the strong base made to open like the teacher, on the first of the problems.", "name": "fig-matched-strong"}}
forced = matching.forced_answers(study, "strong-base", "We count step by step.", 400)
strong_runs = [study.runs[name] for name in study.controls["strong"].runs]
trained = answering.records(study, ["strong-base", *strong_runs])
strong = pd.concat([trained[trained.split == "test"],
                    forced.assign(run="forced strong base")])
solved = statistics.accuracy_table(strong).set_index("run")
unforced = solved.drop("forced strong base").reset_index()
fig = figures.intervals(unforced, "accuracy", "low", "high",
                        "share of test problems solved", reference="strong-base")
fig.axes[0].axvline(solved.accuracy["forced strong base"],
                    color=figures.COLOURS["teacher"], linestyle=":", linewidth=1);

# %%
divergence = matching.divergences(study, [run.name for run in strong_runs]).kl
divergence["strong-base"] = 0.0
columns = ["n", "accuracy", "low", "high", "unparsed", "mean_tokens", "kl"]
figures.table(solved.assign(kl=divergence)[columns].reset_index())

# %%
forced_pairs = [(name, "forced strong base") for name in ("strong-sft", "strong-rft")]
strong_pairs = [(run.name, "strong-base") for run in strong_runs]
strong_pairs += [("forced strong base", "strong-base"), *forced_pairs]
strong_tests = paired(strong_pairs, strong)
figures.table(strong_tests)

# %%
by_pair = strong_tests.set_index(["run_a", "run_b"])
losses = 0 - by_pair.difference.xs("strong-base", level="run_b")
sft, rft, dpo, matched_dpo = (100 * losses[f"strong-{name}"]
                              for name in ("sft", "rft", "dpo", "dpo-matched"))
style = by_pair.loc[("strong-sft", "forced strong base")]
lesser = ("less than the family, as in the paper" if dpo < min(sft, rft)
          else "no less than the family, unlike in the paper")
far = "more" if matched_dpo > max(sft, rft) else "no more"
Markdown(f"""From a base that solves {solved.accuracy['strong-base']:.1%}, SFT loses
**{sft:.1f}** points, RFT {rft:.1f} and DPO **{dpo:.1f}**: DPO at its own rate
loses {lesser}. At SFT's rate DPO loses **{matched_dpo:.1f}** points, {far} than both.
Made to open like the teacher, the strong base itself solves
{solved.accuracy['forced strong base']:.1%} of {len(forced)} problems; SFT minus that is
{style.difference:+.1%} ({style.low:+.1%} to {style.high:+.1%}, $p$ =
{style.p_holm:.2g}).""")

# %% [markdown]
# {numref}`fig-matched-strong` is the situation of the paper with two lines that the paper lacks. The first, DPO at the same rate, says whether the gap between DPO and the family survives when both are trained alike. The second, the forced base, says what the loss of the family consists of. To the extent that
# the untouched model, once it has begun in the teacher's style, does no better than SFT, the loss is a price of the style and not of the training; to the extent that SFT lies above or below it, training did something beyond the style.
#
# ## What was expected
#
# These lines were [written down](../predictions.md) before any of the controls was run.

# %%
def interval(row, value="difference"):
    return row[value], row["low"], row["high"]


row = equal.set_index("run_a").loc["sft at dpo's norm"]
distances = against_base.difference[["dpo-one-pass", "dpo"]].abs()
of_rollouts = barriers[barriers.metric == "rollout"].set_index("run_b")
barrier = of_rollouts.loc[goals["scaled-dpo"]]
results = outcomes.of_matched_dpo(
    norms["dpo-matched"] / norms["sft"], cosine.loc["sft", "dpo-matched"],
    band.loc["sft", "dpo-matched"], interval(own_rate),
    interval(accuracy.loc["dpo at sft's norm"], "accuracy"), interval(row),
    shares["own"], distances.to_dict(), interval(barrier, "above_chord"), barrier.noise,
    likeness.rename(index=figures.LABELS).to_dict())
results += outcomes.of_strong_base(
    interval(solved.loc["strong-sft"], "accuracy"), solved.accuracy["strong-rft"],
    solved.accuracy["strong-base"], losses[["strong-sft", "strong-rft"]].to_dict(),
    interval(by_pair.loc[("strong-dpo", "strong-base")]), interval(style))
expected = predictions.write(profile, "17", results)
figures.table(expected)

# %%
Markdown(f"""**{int(expected.is_expected.sum())} of {len(expected)}** outcomes lie where
they were expected, and {int(expected.changes_mind.sum())} are of the kind that we had
said would change our mind.""")

# %% [markdown]
# ## Try it
#
# 1. Multiply DPO's update by $-1$ and put it into the model: `updates.put(model, weights, updates.combine([adapters["dpo"]], [-1.0]))`. What does {eq}`eq-matched-fisher` predict for its divergence from the base, and what for its accuracy?
#
# ````{dropdown} What to expect
# The same divergence, as long as the update is short: the square does not see the sign. Accuracy is free to differ, since the divergence counts every change alike, for better and for worse. That is why an accuracy at equal divergence is worth comparing.
# ````
#
# 2. Train SFT for fewer steps instead of at a smaller rate: `study.runs["sft"].model_copy(update={"steps": 10})`. Is a short run at a large rate like a long run at a small one?
#
# ````{dropdown} What to expect
# Their norms can be made equal, but the long run has averaged over more rows. Compare both with SFT by `geometry.compare`; of two runs with equal norm the one with more rows behind it should be the more like SFT.
# ````
#
# 3. Replace the yardstick of {eq}`eq-matched-share`, SFT and RFT, by SFT at two rates, `cosine.loc["sft", "sft-low"]`. Does the answer change?
#
# ````{dropdown} Answer
# The shares become larger if two rates of one loss are less alike than two losses at one rate, since the denominator shrinks. The cosines of the matched pairs do not change, and whether they lie within chance does not either. A share always depends on what counts as the whole.
# ````
#
# 4. Halve the learning rate of DPO once more. By {eq}`eq-matched-exponent`, what norm do you expect?
#
# ````{dropdown} Answer
# The norm times $2^{-e}$. With the exponent of DPO from above that is a reduction by somewhat less than one half if $e < 1$. And if accuracy then equals the base's, it has been shown once more that not moving does no harm.
# ````
#
# ## Summary
#
# The question "is it the loss or the setting?" has become four, and each has its own control: the rate by training again, the norm by scaling, the rows by choosing them, the distance from the base by bisection. Scaling decides questions of behaviour and, by {eq}`eq-matched-scaling`, none of
# direction; directions were compared between runs that share rate, rows and passes, and along the training of DPO itself. Whatever the numbers above say, two sentences of the paper have to be read with their setting attached: "DPO harms least" holds at the rate at which it was trained, and "DPO is
# nearly orthogonal" is a statement about a loss only as far as the matched pairs bear it out. The [next page](18_gradient_plane.ipynb) asks how much of all this could have been known before the first step. DPO is the method of {cite:t}`rafailov2023dpo`, the open question that of
# {cite:t}`nikolich2026geometry`.
