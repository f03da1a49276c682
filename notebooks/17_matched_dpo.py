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
import json

import numpy as np
import pandas as pd
from IPython.display import Markdown

from adapter_geometry import geometry, mode_connectivity, updates
from adapter_geometry.adapters import load_update
from adapter_geometry.chance import compare_by_chance
from helpers import profiles, store
from helpers.analysis import connectivity, interventions, predictions
from helpers.book import figures
from helpers.data import problems, rollouts
from helpers.evaluation import answering, statistics
from helpers.models import loading
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
about = {name: json.loads((folder / "run.json").read_text()) for name,
         folder in folders.items()}
norms = {name: updates.norm(update) for name, update in adapters.items()}
shown = ["sft", "rft", "dpo", "dpo-matched", "sft-low", "rft-low", "dpo-one-pass",
         "dpo-matched-one-pass", "sft-pairs", "rft-chosen"]
facts = pd.DataFrame(
    [{"run": figures.LABELS[name], "objective": study.runs[name].objective,
      "learning_rate": study.runs[name].learning_rate, "steps": study.runs[name].steps,
      "rows": about[name]["rows"], "passes": about[name]["passes"], "norm": norms[name]}
     for name in shown])
figures.table(facts)

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
          "rft at dpo's kl": ("rft", "dpo"), "sft at dpo-matched's kl":
          ("sft", "dpo-matched")}
adapters |= {name: interventions.update_of(study, name) for name in scaled}
norms |= {name: updates.norm(adapters[name]) for name in scaled}


def forward_kl(name):
    """Forward divergence of a run or an intervention from its base, nats a token, with its bootstrap interval."""
    found = interventions.divergences(study, name)
    return dict(zip(("kl", "kl_low", "kl_high"), statistics.bootstrap_ratio(found.nats,
            found.tokens), strict=True))

# %% [markdown]
# ## Is what is called matched matched?
#
# Before any result: how well was each condition reached? Rates and rows must be equal exactly, norms to rounding, divergences to a few per cent, since the factor is found by
# bisection.

# %%
kl = {name: forward_kl(name) for name in [*(name for name in names if name != "rift"),
        *scaled]}
table = rollouts.load_table(study)
rows_of = {rows: {number for numbers in rollouts.select(table, rows).values()
                  for number in numbers} for rows in ("pairs", "chosen")}
reached = [{"match": "learning rate", "condition": f"{a}, {b}",
            "reached": study.runs[a].learning_rate / study.runs[b].learning_rate} for a,
           b in (("dpo-matched", "sft"), ("sft-low", "dpo"), ("rft-low", "dpo"))]
reached += [{"match": match, "condition": f"{name}, dpo", "reached": about[name]["rows"]
             / len(rows_of[rows])} for match, name,
            rows in (("rows", "sft-pairs", "pairs"),
                     ("chosen rows", "rft-chosen", "chosen"))]
for name, (run, other) in scaled.items():
    by_kl = name.endswith("kl")
    reached.append({"match": "divergence" if by_kl else "norm", "condition": name,
                    "reached": kl[name]["kl"] / kl[other]["kl"] if by_kl
                    else norms[name] / norms[other], "factor on the update": norms[name]
                    / norms[run]})
reached = pd.DataFrame(reached)
reached.style.format(precision=6, na_rep="–").hide(axis="index")

# %%
by = reached.groupby("match", sort=False).reached
assert (reached[reached.match == "learning rate"].reached == 1).all()
assert np.allclose(reached[reached.match == "norm"].reached, 1, atol=1e-6)
assert rows_of["chosen"] < rows_of["pairs"]
assert about["sft-pairs"]["rows"] == about["dpo"]["rows"] == len(rows_of["pairs"])
Markdown(f"Rates are equal as numbers. SFT on DPO's rows takes the same "
         f"{len(rows_of['pairs'])} rows as DPO, RFT on the chosen ones the "
         f"{len(rows_of['chosen'])} that DPO raises. Norms agree to "
         f"{(by.get_group('norm') - 1).abs().max():.0e}, divergences to "
         f"{(by.get_group('divergence') - 1).abs().max():.1%}. DPO at most once over "
         f"its pairs: {about['dpo-one-pass']['passes']:.2f} passes, where SFT makes "
         f"{about['sft']['passes']:.2f} over its rows. "
         f"{store.origin(profile, [study.runs[name] for name in (*names, *study.controls['rounding'].runs)])}")

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
        "through SFT at DPO's rate": norms["sft"] / norms["sft-low"]}
ratio = norms["sft"] / norms["dpo"]
split = pd.DataFrame([{"way": way, "ratio of norms": ratio, "factor of the rate": rate,
                       "factor of the loss": ratio / rate, "share of the rate, log":
                       np.log(rate) / np.log(ratio)} for way,
                      rate in [*ways.items(), ("the paper, as far as it says",
        np.nan)]])
split.iloc[-1, 1:] = [13, 3, 13 / 3, np.log(3) / np.log(13)]
figures.table(split)

# %%
step = study.runs["sft"].learning_rate / study.runs["dpo"].learning_rate
first, second = ways.values()
Markdown(f"SFT's update is **{ratio:.1f}** times as long as DPO's. A rate {step:.0f} "
         f"times larger makes DPO's update **{first:.1f}** times and SFT's "
         f"**{second:.1f}** times as long. At SFT's rate DPO is {first / ratio:.2f} "
         f"times as long as SFT; at DPO's rate SFT is {ratio / second:.2f} times as "
         f"long as DPO. The paper says that ten times the rate makes three times the "
         f"norm and that DPO's norm is thirteen times smaller, which leaves a factor "
         f"of 4.3 unexplained by the rate. It does not say for which method the "
         f"factor of three was measured.")

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
def by_module(name):
    return np.array([updates.inner(factors, factors) ** 0.5
                     for factors in adapters[name].values()])


exponents = {method:
             np.polyfit(np.log([study.runs[name].learning_rate for name in group]),
                        np.log([norms[name] for name in group]), 1)[0] for method,
             group in swept.items()}
spread = np.quantile(by_module("dpo-matched") / by_module("dpo"),
                     [0.25, 0.75]), np.quantile(by_module("sft") / by_module("sft-low"),
    [0.25, 0.75])
Markdown(f"Over four rates the exponent is **{exponents['sft']:.2f}** for SFT and "
         f"**{exponents['dpo']:.2f}** for DPO. The middle half of the modules grew "
         f"{spread[0][0]:.1f} to {spread[0][1]:.1f} times under DPO and "
         f"{spread[1][0]:.1f} to {spread[1][1]:.1f} times under SFT when the rate "
         f"grew {step:.0f} times.")

# %% [markdown]
# ## The same sweep, and everything else
#
# Four rates, both losses, all other settings equal. For each rate: accuracy, divergence from the base, and, between SFT and DPO *at that rate*, the cosine with its band and the barrier on the straight path between the two.
# First what is needed for the geometry, for all runs of this page at once.

# %%
halves = {name: load_update(trainer.train(study, study.runs[name]) / "adapter")
          for name in study.controls["rounding"].runs}
compared = geometry.compare(adapters | halves)
cosine, sd = (pd.DataFrame(values, compared.runs, compared.runs)
              for values in geometry.stacked_cosine(compared))
nulls = compare_by_chance(adapters, 20)
Z = 1.96


def beside(run, other):
    """Two updates: cosine with its band; mean over modules of the first left vectors' overlap, and median of the smallest left angle, with their chance levels."""
    i, j = compared.runs.index(run), compared.runs.index(other)
    angles = [np.degrees(np.median(found.angles["left"][:, i, j, 0]))
              for found in (compared, *nulls)]
    overlaps = [found.first["left"][:, i, j].mean() for found in (compared, *nulls)]
    return {"cosine": cosine.loc[run, other], "chance_low": -Z * sd.loc[run, other],
            "chance_high": Z * sd.loc[run, other], "first left": overlaps[0],
            "first left, chance": np.quantile(overlaps[1:], 0.975),
            "smallest angle": angles[0], "smallest angle, chance":
            np.quantile(angles[1:], 0.025)}


model = loading.load_model(study)
texts = connectivity.held_out_texts(study, model.device)
weights = updates.weights_of(model, adapters["sft"])
ends = [*zip(*swept.values(), strict=True), ("rift", "dpo-matched")]
paths = {(a, b): mode_connectivity.along(model, weights, texts, adapters[a],
        adapters[b], np.linspace(0, 1, 9), f"{a} to {b}") for a, b in ends}
heights = {pair: mode_connectivity.barrier(found).set_index("metric") for pair,
           found in paths.items()}

# %% [markdown]
# The answers come in two sizes: the base and the main runs answered every test problem, controls and interventions the first ones of the same list. Accuracies therefore carry their $n$, and a test of two conditions
# uses the problems that both answered.

# %%
def answers_of(name):
    if name in planned:
        return interventions.records(study, name)
    return answering.evaluate(study, study.runs.get(name, name)).query(
        "split == 'test'")


records = pd.concat([answers_of(name).assign(run=name) for name in ["base", *kl]])
accuracy = statistics.accuracy_table(records).set_index("run")[["n", "accuracy", "low",
        "high", "unparsed", "mean_tokens"]]


def paired(pairs, found):
    """Each pair's difference on the problems that both answered, with its exact test, Holm over the pairs given."""
    return statistics.mcnemar_table(found, pairs).drop(columns=["split", "detectable"])

# %%
lines = []
for a, b in zip(*swept.values(), strict=True):
    geometry_of, high = beside(a, b), heights[a, b].loc["rollout"]
    for name in (a, b):
        lines.append({"run": name, "learning_rate": study.runs[name].learning_rate,
                      "norm": norms[name],
                      **accuracy.loc[name, ["n", "accuracy", "low", "high"]],
                      **kl[name],
                      **{key: geometry_of[key] for key in ("cosine", "chance_low",
                "chance_high")}, "barrier": high.above_chord, "noise": high.noise})
rates = store.write_table(profile, "rates", pd.DataFrame(lines))
base = pd.DataFrame(
    [{"run": "base", "norm": 0.0,
      **accuracy.loc["base", ["n", "accuracy", "low", "high"]], "kl": 0.0}])
both = pd.concat([base, rates])
figures.table(both.assign(n=both.n.astype(int)).drop(columns=["chance_low", "kl_low",
        "kl_high"]))

# %% mystnb={"image": {"alt": "Log-log plot of the norm of the update against the learning rate, one rising line for SFT and one for DPO"}, "figure": {"caption": "Norm of the update against the peak learning rate, for SFT and for DPO, all else equal; the slope of a line is the exponent of {eq}`eq-matched-exponent`.", "name": "fig-matched-norms"}}
rates["method"] = rates.run.str.split("-").str[0]
figures.lines_of_runs(
    {"": rates.assign(run=rates.method).drop(columns=["low", "high", "chance_low",
        "chance_high"])}, "learning_rate", "norm", "learning rate",
    "norm of the update", log=True);

# %%
at = rates.set_index("run")
bars = [f"{study.runs[a].learning_rate:g}: {at.cosine[b]:+.3f} (chance "
        f"±{at.chance_high[b]:.3f})" for a, b in zip(*swept.values(), strict=True)]
inside = sum(abs(at.cosine[b]) <= at.chance_high[b] for b in swept["dpo"])
over = int(sum(heights[pair].above_chord["rollout"] > heights[pair].noise["rollout"]
               for pair in ends[:-1]))
best = {method: at.loc[group].accuracy.idxmax() for method, group in swept.items()}
drop = {method: accuracy.accuracy["base"] - at.accuracy[group] for method,
        group in swept.items()}
Markdown(f"Cosine of SFT and DPO at equal rates, {'; '.join(bars)}. **{inside} of 4** "
         f"lie within chance. The path between the two rises above its chord by more "
         f"than chance at {over} of 4 rates. Against the base's "
         f"{accuracy.accuracy['base']:.1%}, SFT falls by "
         f"{100 * drop['sft'].iloc[0]:.1f} points at the lowest rate and "
         f"{100 * drop['sft'].iloc[-1]:.1f} at the highest, DPO by "
         f"{100 * drop['dpo'].iloc[0]:.1f} and **{100 * drop['dpo'].iloc[-1]:.1f}**. "
         f"Each method's best accuracy is at "
         f"{study.runs[best['sft']].learning_rate:g} (SFT) and "
         f"{study.runs[best['dpo']].learning_rate:g} (DPO). Trained once more with "
         f"the gradient of each step summed in two halves, in exact arithmetic the "
         f"same run, SFT has a cosine of {cosine.loc['sft', 'sft-halves']:.4f} with "
         f"itself and DPO at SFT's rate "
         f"**{cosine.loc['dpo-matched', 'dpo-matched-halves']:.4f}** (chance "
         f"±{Z * sd.loc['dpo-matched', 'dpo-matched-halves']:.3f}).")

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
steps = {"sft": [name for name in planned if name.startswith("sft times ")],
         "dpo": [name for name in planned if name.startswith("dpo times ")]}
grown = pd.concat([interventions.table(study, names_of).assign(run=f"scaled-{method}")
                   for method, names_of in steps.items()])
own = rates.assign(run=rates.method)[["run", "accuracy", "low", "high", "kl"]]
plane = pd.concat([own, grown[["run", "accuracy", "low", "high", "kl"]]]).assign(
    metric="accuracy").rename(columns={"accuracy": "value"}).sort_values(["run", "kl"])
fig = figures.curves_by_run(plane[plane.kl > 0], "run", "kl", "KL(base || policy), "
                                                              "nats a token",
                            "share solved", {"accuracy": ""})
fig.axes[0].set_xscale("log")
for drawn in fig.axes[0].lines:
    drawn.set_markevery(1)
fig.axes[0].axhline(accuracy.accuracy["base"], color=figures.COLOURS["base"],
                    linestyle=":", linewidth=1);

# %% [markdown]
# {numref}`fig-matched-plane` compares by eye. The seven interventions make the same comparison at chosen points, with tests: each pair below was answered by two models that have been made equal in norm or in divergence.

# %%
pairs = [(name, other) for name, (_, other) in scaled.items()]
equal = paired(pairs, records)
labelled = equal.assign(run_a=[planned[name].label for name in equal.run_a],
                        run_b=[figures.LABELS[run] for run in equal.run_b])
labelled["divergences"] = [f"{kl[a]['kl']:.4f}, {kl[b]['kl']:.4f}" for a, b in pairs]
figures.table(labelled)

# %%
test_of = {(row.run_a, row.run_b): row for row in equal.itertuples()}


def said(name):
    """One sentence on an intervention against the run that it was matched to."""
    row = test_of[name, scaled[name][1]]
    word = "cannot be told apart" if row.p_holm >= 0.05 else "does better" if row.difference > 0 else "does worse"
    return f"{planned[name].label} against {figures.LABELS[row.run_b]}: {row.difference:+.1%} ({row.low:+.1%} to {row.high:+.1%}), {word}"


Markdown("At equal norm, " + "; ".join(said(name) for name in scaled
        if name.endswith("norm")) + ". At equal divergence, " + "; ".join(said(name)
        for name in scaled if name.endswith("kl")) + f". In all, "
                                                     f"{int((equal.p_holm < 0.05).sum())} "
                                                     f"of {len(equal)} differ after "
                                                     f"Holm's correction.")

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
short, long = norms["dpo-one-pass"] / norms["dpo"], norms[
    "dpo-matched-one-pass"] / norms["dpo-matched"]
widest = Z * sd.loc[group, group].where(~np.eye(len(group), dtype=bool)).max().max()
Markdown(f"Chance is within ±{widest:.3f} or less in every cell. SFT on DPO's rows has "
         f"a cosine of {cosine.loc['sft-pairs', 'sft']:.3f} with SFT, "
         f"**{cosine.loc['sft-pairs', 'dpo-matched']:+.3f}** with DPO at the same "
         f"rate on the same rows, and {cosine.loc['sft-pairs', 'dpo']:+.3f} with DPO "
         f"at its own rate; RFT on the chosen rows, which makes as many passes as "
         f"DPO, {cosine.loc['rft-chosen', 'sft']:.3f}, "
         f"**{cosine.loc['rft-chosen', 'dpo-matched']:+.3f}** and "
         f"{cosine.loc['rft-chosen', 'dpo']:+.3f}. After one pass DPO's update has "
         f"{short:.2f} of its final norm at its own rate and {long:.2f} at SFT's, and "
         f"cosines of {cosine.loc['dpo-one-pass', 'dpo']:.3f} and "
         f"{cosine.loc['dpo-matched-one-pass', 'dpo-matched']:.3f} with the finished "
         f"runs.")

# %% [markdown]
# The lower left block of {numref}`fig-matched-rows` is the one that decides: rows from SFT's kind of loss, columns from DPO's, equal rows, and for one pair of them equal rates. RFT and DPO differ there in nothing but what is done with the
# rejected half. By {eq}`eq-matched-pairs` one expects a small number of either sign for SFT on the pairs, negative where the rejected half pulls harder, and a positive one for RFT on the chosen rows. As [the page on DPO](08_dpo.ipynb) derives, what chosen and rejected have in common cancels in DPO's gradient, {eq}`eq-dpo-manner`; a loss that raises both, or only the chosen, keeps it.
#
# A run of one pass is also a run of fewer steps, with the whole schedule of rates run through in that time. Passes and steps cannot both be held equal on a fixed table of pairs.
#
# ## Norm by training: along the way
#
# By {eq}`eq-matched-scaling` the norm cannot be matched by scaling when the question is the direction. But training itself goes through all norms up to its last. Snapshots of a run are a set of updates of growing length, each of them
# really trained. Is DPO at SFT's rate nearer to SFT when it has SFT's norm?

# %%
def snapshots(name):
    """{step: update} along a run, the finished one last."""
    kept = {step: load_update(folders[name] / "snapshots" / f"step-{step}")
            for step in study.runs[name].snapshots}
    return kept | {study.runs[name].steps: adapters[name]}


# %% mystnb={"image": {"alt": "Cosine with the finished SFT against the norm relative to SFT's along the training of RFT, DPO at SFT's rate and DPO, with grey chance bands around zero"}, "figure": {"caption": "Cosine with the finished SFT along the training of RFT and of DPO at two rates, against the norm reached, in per cent of SFT's; grey: 95 % of what chance gives.", "name": "fig-matched-training"}}
lines = []
for name in ("rft", "dpo-matched", "dpo"):
    for number, update in snapshots(name).items():
        values, spreads = geometry.stacked_cosine(
            geometry.compare({"sft": adapters["sft"], "here": update}))
        lines.append({"run": name, "step": number, "norm": updates.norm(update),
                      "relative": 100 * updates.norm(update) / norms["sft"],
                      "cosine": values[0, 1], "chance_low": -Z * spreads[0, 1],
                      "chance_high": Z * spreads[0, 1]})
along = pd.DataFrame(lines).dropna()
along_shown = along.assign(run=along.run.replace("dpo-matched", "DPO, SFT's rate"))
figures.lines_of_runs({"": along_shown}, "relative", "cosine", "norm, % of SFT's",
                      "cosine with the finished SFT");

# %%
trace = along[along.run == "dpo-matched"]
nearest = trace.iloc[(trace.relative - 100).abs().argmin()]
reaches = "passes SFT's norm" if trace.relative.max() >= 100 else "never reaches SFT's norm"
within = "within" if abs(nearest.cosine) <= nearest.chance_high else "outside"
Markdown(f"DPO at SFT's rate {reaches}. Nearest to it is step {nearest.step:.0f}, with "
         f"{nearest.relative:.0f} % of SFT's norm; its cosine with SFT is "
         f"**{nearest.cosine:+.3f}**, {within} the band of chance "
         f"(±{nearest.chance_high:.3f}). Along the whole run the cosine stays between "
         f"{trace.cosine.min():+.3f} and {trace.cosine.max():+.3f}; RFT's goes from "
         f"{along[along.run == 'rft'].cosine.iloc[0]:.3f} to "
         f"{along[along.run == 'rft'].cosine.iloc[-1]:.3f}.")

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
              "rft at dpo's kl": "divergence", "sft at dpo-matched's kl":
              "divergence, rate"}
label_of = {name: planned[name].label if name in planned else figures.LABELS[name]
            for name in conditions}
against_base = paired([(name, "base") for name in conditions],
                      records).set_index("run_a")
whole = pd.DataFrame([{"run": name, "condition": condition, "norm": norms[name],
                       **beside(name, "sft"), **accuracy.loc[name], **kl[name],
                       "difference": against_base.difference[name],
                       "difference_low": against_base.low[name],
                       "difference_high": against_base.high[name],
                       "p_holm": against_base.p_holm[name]} for name,
                      condition in conditions.items()])
matched = store.write_table(profile, "matched",
                            whole.rename(columns={"cosine": "cosine_sft"})[
                                ["run", "condition", "norm", "cosine_sft", "chance_low",
                                 "chance_high", "accuracy", "low", "high", "kl",
                                 "kl_low", "kl_high"]])
weight_side = whole[["run", "condition", "norm", "cosine", "chance_high", "first left",
                     "first left, chance", "smallest angle", "smallest angle, chance"]]
figures.table(weight_side.assign(run=weight_side.run.map(label_of)))

# %%
columns = ["run", "condition", "n", "accuracy", "low", "high", "mean_tokens",
           "difference", "difference_low", "difference_high", "p_holm", "kl", "kl_low",
           "kl_high"]
behaviour = pd.concat([whole,
                       pd.DataFrame(
                           [{"run": "base", "condition": "–", **accuracy.loc["base"],
                             "kl": 0.0}])])[columns]
figures.table(behaviour.assign(run=behaviour.run.map(lambda name: label_of.get(name,
        name)), n=behaviour.n.astype(int)))

# %% mystnb={"image": {"alt": "Dot plot of accuracy with Wilson intervals for the base, SFT, RFT, DPO and the trained controls that match rate, rows or passes, with a dashed line at the base"}, "figure": {"caption": "Share of test problems solved by the trained conditions, with 95 % Wilson intervals; dashed: the base.", "name": "fig-matched-accuracy"}}
trained = statistics.accuracy_table(records).query("run == 'base' or (run in "
                                                   "@conditions and run not in "
                                                   "@planned)")
figures.intervals(trained, "accuracy", "low", "high", "share of test problems solved",
                  reference="base");

# %%
order = trained.set_index("run").accuracy.drop("base").sort_values()
lost = against_base[(against_base.p_holm < 0.05) & (against_base.difference < 0)]
gained = against_base[(against_base.p_holm < 0.05) & (against_base.difference > 0)]
rate_test = paired([("dpo-matched", "dpo"), ("dpo-matched", "sft")],
                   records).set_index("run_b")
Markdown(f"Of {len(conditions)} conditions {len(lost)} solve fewer problems than the "
         f"base and {len(gained)} more, after Holm's correction over all of them. Of "
         f"the trained ones the lowest is {figures.LABELS[order.index[0]]} with "
         f"**{order.iloc[0]:.1%}**, the highest {figures.LABELS[order.index[-1]]} "
         f"with **{order.iloc[-1]:.1%}**. DPO at SFT's rate minus DPO at its own is "
         f"{rate_test.difference['dpo']:+.1%} ({rate_test.low['dpo']:+.1%} to "
         f"{rate_test.high['dpo']:+.1%}, $p$ = {rate_test.p_holm['dpo']:.2g}), and "
         f"minus SFT at the same rate {rate_test.difference['sft']:+.1%} "
         f"({rate_test.low['sft']:+.1%} to {rate_test.high['sft']:+.1%}, $p$ = "
         f"{rate_test.p_holm['sft']:.2g}).")

# %% [markdown]
# The column of tokens in the second table belongs to {numref}`fig-matched-accuracy`: it tells whether a model has taken on the teacher's long manner or kept the base's short one. Two models can lose the same number of problems for different reasons, one because it
# writes in a manner that it has not practised, the other because it no longer computes as well in its own.
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
share = pd.DataFrame([{"run_a": a, "run_b": b, "matched": what,
                       **{key: beside(a, b)[key] for key in ("cosine", "chance_low",
        "chance_high")}} for (a, b), what in matches.items()])
late = pd.DataFrame([{"run_a": "sft", "run_b": f"DPO, SFT's rate, step "
                                               f"{nearest.step:.0f}",
                      "matched": "rate, norm by training",
                      **nearest[["cosine", "chance_low", "chance_high"]]}])
share = pd.concat([share, late], ignore_index=True)
unmatched, full = share.cosine[0], cosine.loc["sft", "rft"]
share["explained"] = (share.cosine - unmatched) / (full - unmatched)
figures.table(share)

# %% mystnb={"image": {"alt": "Dots for the cosine of nine pairs of a SFT-like and a DPO-like run under different matches, with narrow grey chance bands, and SFT with RFT far to the right"}, "figure": {"caption": "Cosine of an SFT-like with a DPO-like update when rate, rows, passes or norm are matched, and of SFT with RFT for comparison; grey: 95 % of what chance gives.", "name": "fig-matched-cosines"}}
figures.pairs(share, "cosine", "cosine of the stacked updates");

# %%
tried = share[
    ~share.matched.isin(["nothing", "all but wrong rows"])].dropna().sort_values(
        "explained")
most, others = tried.iloc[-1], tried.explained.iloc[:-1]
answer = ("none of the matches goes half of the way, and what is left is **the loss**"
          if most.explained < 0.5 else f"matching **{most.matched}** goes more than "
                                       f"half of the way")
Markdown(f"By {{eq}}`eq-matched-share`, the match that goes furthest is "
         f"*{most.matched}*, with {most.explained:.0%} (a cosine of "
         f"{most.cosine:+.3f}, chance ±{most.chance_high:.3f}); the others lie "
         f"between {others.min():.0%} and {others.max():.0%}. So {answer}. By "
         f"{{eq}}`eq-matched-scaling` the norm alone explains nothing, by "
         f"construction.")

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
found = {goal: paths["rift", goal] if goal == "dpo-matched"
         else connectivity.losses(study, "rift", goal) for goal in goals}
barriers = pd.concat([mode_connectivity.barrier(part).assign(run_a="rift",
        run_b=goals[goal]) for goal, part in found.items()], ignore_index=True)
figures.table(barriers[["run_b", "metric", "above_chord", "low", "high", "noise", "at",
                        "above_mean", "mean_low", "mean_high"]])

# %% mystnb={"image": {"alt": "Barriers with intervals on the paths from RIFT to DPO, to the base, to DPO at RIFT's norm and to DPO at SFT's rate, for both losses, over grey bars for chance"}, "figure": {"caption": "Barriers on four paths that start at RIFT, above the chord and above the mean of the ends, with 95 % intervals; grey: the height that a straight path reaches by chance.", "name": "fig-matched-barriers"}}
figures.barriers(barriers, "nats a token", {"rollout": "loss of rollouts",
        "boxed answer": "bare-answer loss"});

# %%
sentences = []
for metric, words in (("rollout", "the loss of rollouts"),
                      ("boxed answer", "the bare-answer loss")):
    part = barriers[barriers.metric == metric].set_index("run_b")
    high = part.index[part.above_chord > part.noise].tolist()
    sentences.append(f"By {words}, {', '.join(high) or 'no path'} "
                     f"exceed{'' if len(high) > 1 else 's'} chance above the chord "
                     f"({'; '.join(f'{goal} {row.above_chord:.3f}, chance {row.noise:.3f}' for goal, row in part.iterrows())}).")
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
to_base = paired([(name, "base") for name in ["dpo-matched", *relatives]],
                 records).set_index("run_a")
family = pd.DataFrame([{"run": figures.LABELS[name], "norm": norms[name],
                        "cosine with DPO": cosine.loc[name, "dpo-matched"],
                        "chance": Z * sd.loc[name, "dpo-matched"],
                        "cosine with SFT": cosine.loc[name, "sft"],
                        **accuracy.loc[name,
        ["accuracy", "low", "high", "mean_tokens"]],
                        "difference": to_base.difference.get(name),
                        "p_holm": to_base.p_holm.get(name), **kl[name]}
                       for name in ["dpo-matched", *relatives, "dpo", "sft"]])
base_row = pd.DataFrame(
    [{"run": "base", "norm": 0.0,
      **accuracy.loc["base", ["accuracy", "low", "high", "mean_tokens"]], "kl": 0.0}])
figures.table(pd.concat([family, base_row]))

# %%
likeness = cosine.loc[relatives, "dpo-matched"]
among = [cosine.loc[a, b] for place, a in enumerate(relatives)
         for b in relatives[place + 1:]]
verdict = "They are a family in this sense" if likeness.min() > 0.5 else "They are not one family" if likeness.min() < 0.2 else "Some are closer to it than others, and all are closer than chance" if likeness.min() > family.chance.max() else "They are not one family"
Markdown(f"With DPO at the same rate the four have cosines of {likeness.min():.2f} "
         f"({figures.LABELS[likeness.idxmin()]}) to {likeness.max():.2f} "
         f"({figures.LABELS[likeness.idxmax()]}), with each other {min(among):.2f} to "
         f"{max(among):.2f}, and with SFT {cosine.loc[relatives, 'sft'].min():+.2f} "
         f"to {cosine.loc[relatives, 'sft'].max():+.2f}. DPO at its own rate, the "
         f"same loss, has {cosine.loc['dpo', 'dpo-matched']:.2f} with DPO at SFT's "
         f"rate; {(likeness >= cosine.loc['dpo', 'dpo-matched']).sum()} of the four "
         f"are at least as like it as that. {verdict}.")

# %% [markdown]
# The last number before the verdict is the one to hold {numref}`fig-matched-family` against. Two rates of one loss need not be alike at all, so a cosine between two losses is high or low by comparison with that, and not with one. The norms say how unlike the runs are in size: an equal rate is no
# equal length when one loss stops pulling and another does not.
#
# ## The strong base
#
# In the paper the base was nearly at its ceiling on the test problems, and the SFT family lost six points there that DPO kept. Our main base is far below its ceiling. The *strong base* is not: the same model trained for longer, in the same short manner. Four runs start from it, and
# one control without training: it is made to [open like the teacher](09_evaluation.ipynb) and goes on by itself.

# %% mystnb={"image": {"alt": "Dot plot of accuracy with Wilson intervals for the strong base and for SFT, RFT and DPO at two rates trained from it, with a dashed line at the strong base and a dotted one at the base forced into the teacher's opening"}, "figure": {"caption": "Share of test problems solved by the strong base and by four runs that start from it, with 95 % Wilson intervals; dashed: the strong base; dotted: the strong base made to open like the teacher, on the first of the problems.", "name": "fig-matched-strong"}}
opening = "We count step by step."
some = problems.problem_sets(study.problems)["test"][:400]
forced = answering.answer(study, loading.load_model(study, "strong-base"), some,
                          opening=opening).assign(run="forced strong base")
strong_runs = [study.runs[name] for name in study.controls["strong"].runs]
strong = pd.concat([answering.records(study, ["strong-base", *strong_runs]).query(
    "split == 'test'"), forced])
solved = statistics.accuracy_table(strong)
strong_pairs = paired([*((run.name, "strong-base") for run in strong_runs),
                       ("forced strong base", "strong-base"),
                       ("strong-sft", "forced strong base"),
                       ("strong-rft", "forced strong base")], strong)
fig = figures.intervals(solved[solved.run != "forced strong base"], "accuracy", "low",
                        "high", "share of test problems solved",
                        reference="strong-base")
fig.axes[0].axvline(solved.set_index("run").accuracy["forced strong base"],
                    color=figures.COLOURS["teacher"], linestyle=":", linewidth=1);

# %%
divergence = {run.name: forward_kl(run.name)["kl"] for run in strong_runs}
figures.table(solved.assign(kl=solved.run.map(divergence | {"strong-base": 0.0}))[
    ["run", "n", "accuracy", "low", "high", "unparsed", "mean_tokens", "kl"]])

# %%
figures.table(strong_pairs)

# %%
line = strong_pairs.set_index(["run_a", "run_b"])
losses = {run.name: 0 - line.difference[run.name, "strong-base"] for run in strong_runs}
manner = line.loc[("strong-sft", "forced strong base")]
lesser = "less than the family, as in the paper" if losses["strong-dpo"] < min(
    losses["strong-sft"],
    losses["strong-rft"]) else "no less than the family, unlike in the paper"
far = "more" if losses["strong-dpo-matched"] > max(losses["strong-sft"],
    losses["strong-rft"]) else "no more"
Markdown(f"From a base that solves "
         f"{solved.set_index('run').accuracy['strong-base']:.1%}, SFT loses "
         f"**{100 * losses['strong-sft']:.1f}** points, RFT "
         f"{100 * losses['strong-rft']:.1f} and DPO "
         f"**{100 * losses['strong-dpo']:.1f}**: DPO at its own rate loses {lesser}. "
         f"At SFT's rate DPO loses **{100 * losses['strong-dpo-matched']:.1f}** "
         f"points, {far} than both. Made to open like the teacher, the strong base "
         f"itself solves {solved.set_index('run').accuracy['forced strong base']:.1%} "
         f"of {len(some)} problems; SFT minus that is {manner.difference:+.1%} "
         f"({manner.low:+.1%} to {manner.high:+.1%}, $p$ = {manner.p_holm:.2g}).")

# %% [markdown]
# {numref}`fig-matched-strong` is the situation of the paper with two lines that the paper lacks. The first, DPO at the same rate, says whether the gap between DPO and the family survives when both are trained alike. The second, the forced base, says what the loss of the family consists of. To the extent that
# the untouched model, once it has begun in the teacher's manner, does no better than SFT, the loss is a price of the manner and not of the training; to the extent that SFT lies above or below it, training did something beyond the manner.
#
# ## What was expected
#
# These lines were [written down](../predictions.md) before any of the controls was run.

# %%
outcomes = [predictions.outcome("norm of DPO at SFT's rate, over SFT's",
                                value := norms["dpo-matched"] / norms["sft"],
                                0.6 <= value <= 1.6, value < 0.4, form="{:.2f}"),
            predictions.outcome("DPO at SFT's rate, alike to SFT",
                                value := cosine.loc["sft", "dpo-matched"],
                                -0.1 <= value <= 0.2, value > 0.4,
                                about=f"chance ±{Z * sd.loc['sft', 'dpo-matched']:.3f}"),
            predictions.outcome("its accuracy minus that of DPO at its own rate",
                                value := rate_test.difference["dpo"], value <= -0.15,
                                value > 0, rate_test.low["dpo"], rate_test.high["dpo"],
                                "{:+.1%}"),
            predictions.outcome("DPO scaled to SFT's norm along its own direction",
                                value := accuracy.accuracy["dpo at sft's norm"],
                                value < 0.6, value > 0.75,
                                accuracy.low["dpo at sft's norm"],
                                accuracy.high["dpo at sft's norm"], "{:.1%}")]
row, one, weaker = test_of["sft at dpo's norm",
                           "dpo"], abs(against_base.difference[["dpo-one-pass",
        "dpo"]]), likeness.idxmin()
equal_norm = barriers[(barriers.metric == "rollout")
                      & (barriers.run_b == goals["scaled-dpo"])].iloc[0]
outcomes += [predictions.outcome("SFT scaled down to DPO's norm", row.difference,
                                 abs(row.difference) <= 0.04, row.difference <= -0.1,
                                 row.low, row.high, "{:+.1%}", "minus DPO, on the "
                                                               "problems that both "
                                                               "answered"),
             predictions.outcome("DPO after at most one pass over its pairs", short,
                                 0.3 <= short <= 0.7 and one["dpo-one-pass"]
                                 < one["dpo"], short > 0.9, form="{:.2f}",
                                 about=f"accuracy {one['dpo-one-pass']:.1%} from the "
                                       f"base's, and {one['dpo']:.1%} after all "
                                       f"passes"),
             predictions.outcome("barrier between RIFT and DPO at equal norm, loss of "
                                 "rollouts, above the chord", equal_norm.above_chord,
                                 equal_norm.above_chord <= equal_norm.noise,
                                 equal_norm.above_chord > equal_norm.noise,
                                 equal_norm.low, equal_norm.high,
                                 about=f"chance {equal_norm.noise:.3f}"),
             predictions.outcome("IPO, SimPO, KTO and length-normalised DPO at the "
                                 "matched setting, alike to DPO", likeness.min(),
                                 likeness.min() > 0.5, likeness.min() < 0.2,
                                 about=f"the lowest, {figures.LABELS[weaker]}; the "
                                       f"highest {likeness.max():.3f}")]
at, own_rate = solved.set_index("run"), line.loc[("strong-dpo", "strong-base")]
family_loss = {name: losses[name] for name in ("strong-sft", "strong-rft")}
outcomes += [predictions.outcome("accuracy on the test problems of SFT and RFT trained "
                                 "from the *strong* base", at.accuracy["strong-sft"],
                                 all(0.6 <= at.accuracy[name] <= 0.9 and lost >= 0.08
        for name, lost in family_loss.items()), min(family_loss.values()) < 0.03,
                                 at.low["strong-sft"], at.high["strong-sft"], "{:.1%}",
                                 f"SFT; RFT {at.accuracy['strong-rft']:.1%}; strong "
                                 f"base {at.accuracy['strong-base']:.1%}"),
             predictions.outcome("the same of DPO at its own rate", own_rate.difference,
                                 abs(own_rate.difference) <= 0.02,
                                 own_rate.difference < -0.05, own_rate.low,
                                 own_rate.high, "{:+.1%}", "minus the strong base"),
             predictions.outcome("SFT minus the strong base forced into the teacher's "
                                 "opening", manner.difference, abs(manner.difference)
                                 <= 0.06, abs(manner.difference) > 0.06, manner.low,
                                 manner.high, "{:+.1%}")]
expected = predictions.write(profile, "17", outcomes)
figures.table(expected)

# %%
Markdown(f"**{int(expected.is_expected.sum())} of {len(expected)}** outcomes lie where "
         f"they were expected, and {int(expected.changes_mind.sum())} are of the kind "
         f"that we had said would change our mind.")

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
