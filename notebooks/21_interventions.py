# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, matched]
# ---

# %% [markdown]
# # Interventions: which part of an update does what
#
# *Previously,* [other data](20_on_policy.ipynb), and before that other seeds, rates and losses, changed how an update comes about. *Now* finished updates are cut, stretched, mixed and
# merged, without any training, and each result is put into the base and measured. Geometry says how updates lie to each other; only this says what their parts do.
#
# **Key takeaways**
# - A part of an update is also a *shorter* update. Each part is compared with an equally short piece of the whole and with a random update, and not with the whole alone.
# - "The part of a method along SFT" is SFT's own update, shortened. Keeping it alone asks whether a shorter SFT would have done the same.
# - Accuracy against the divergence from the base gives a yardstick: the curve of one update scaled by a factor. What leaves this curve has a direction that matters; what stays on it differs in length.
# - PEFT's `linear` merge is not the sum of the updates: it mixes factors of different adapters, and the merge of an adapter with itself is a multiple of that adapter.
#
# You need: the pages on [orthogonal parts](12_decomposition.ipynb) and on [DPO at matched norm and divergence](17_matched_dpo.ipynb). Reads the six runs, the matched DPO, and stored answers of
# the interventions. Time to run: under a minute; computing the stored answers took about 20 minutes on one core.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
import pandas as pd
from IPython.display import Markdown

from adapter_geometry import geometry, updates
from helpers import profiles, store
from helpers.analysis import edits, interventions, outcomes, predictions
from helpers.book import figures
from helpers.evaluation import statistics
from helpers.models import loading

study = profiles.load(profile)
planned = interventions.planned(study)
figures.use_style(study)

# %% [markdown]
# ## What is done, and what is measured
#
# An intervention is a function $f$ of one or more trained updates. The model that is measured has the weights
#
# ```{math}
# :label: eq-interventions-model
# W_0 + f(\Delta W_1, \Delta W_2, \dots),
# ```
#
# in every module that carries an adapter, and the base's weights elsewhere. All $f$ on this page work on the products $\Delta W = s B A$, with one exception that is named. None of them looks at data, so nothing here is trained
# or tuned on the test problems. Only the factors of the rows "at ...'s KL" are found by measuring a divergence, on validation problems.
#
# Two numbers are taken of each model {eq}`eq-interventions-model`: the share of the first test problems that it solves by greedy decoding, and the {term}`forward KL divergence` from the base in nats per token, along texts that the base wrote.
# A third one, the mean number of tokens of an answer, tells the *style*: the base is terse and the teacher wordy, so a length near SFT's says that the teacher's way of writing was taken over. The functions are those of `helpers.analysis.edits` and `helpers.analysis.interventions`, and the answers are stored like those of a run.

# %%
wholes = ["base", *study.main_runs, "dpo-matched"]
table = interventions.table(study, [*wholes, *planned])
store.write_table(profile, "interventions", table)
shown = ["label", "norm", "accuracy", "low", "high", "kl", "kl_low", "kl_high",
         "tokens"]
by_name = table.set_index("part", drop=False)
figures.table(by_name.loc[wholes, shown])

# %%
base, sft = by_name.loc["base"], by_name.loc["sft"]
trained = [study.runs[name] for name in wholes[1:]]
Markdown(f"""{len(planned)} interventions are measured on {base.n} problems each. The
base solves **{base.accuracy:.1%}** of these and SFT **{sft.accuracy:.1%}**, at
{sft.kl:.3f} nats per token and with answers of {sft.tokens:.0f} tokens instead
of {base.tokens:.0f}. The table is the frame for all that follows: every intervention is
built from one or more of its rows. {store.origin(profile, trained)}""")

# %% [markdown]
# With so many models, differences will be found by accident unless they are counted. Two families of tests are fixed here, before any of them is looked at. The first compares each intervention with the base and with the
# whole update that it was built from (a swap of singular vectors with SFT, whose length it has), and each part with its control of equal length: exact McNemar tests {cite:p}`mcnemar1947`, corrected over all of them by Holm's method {cite:p}`holm1979`.
# The second family comes with the yardstick of the next section. Scalings are left out of the first: a longer step is not a hypothesis about a direction.

# %%
directed = [name for name in planned if " times " not in name]
pairs = []
for name in directed:
    whole = "sft" if name.startswith("left") else planned[name].runs[0]
    pairs += [(name, "base"), (name, whole)]
pairs += [(f"{run} {part} sft", f"{run} as short as its part {part} sft")
          for run in ("offline-grpo", "dft") for part in ("along", "without")]
pairs += [(f"{run} late layers", f"{run} early layers")
          for run in ("sft", "offline-grpo")]
tests = interventions.compared(study, pairs).set_index(["part", "against"])


def said(part, against):
    """A difference of two accuracies in words, with its interval and the verdict."""
    row = tests.loc[(part, against)]
    verdict = ("not told apart" if row.p_holm >= 0.05
               else "better" if row.difference > 0 else "worse")
    return (f"{row.difference:+.1%} ({row.low:+.1%} to {row.high:+.1%}; p = "
            f"{row.p_holm:.2g}, **{verdict}**)")

# %%
visible = tests.detectable
Markdown(f"""The first family has {len(tests)} comparisons. With {base.n} problems a
single test at 5 % finds, in four cases of five, a difference of {visible.median():.1%}
(median over the family; {visible.min():.1%} to {visible.max():.1%}, according to how
often two models disagree). Smaller differences than that may exist and go unseen.""")

# %% [markdown]
# ## The yardstick: one update, scaled
#
# The cheapest intervention is a factor, $f(\Delta W) = t\,\Delta W$. It changes the length and nothing else. For a short step the divergence grows with $t^2$, {eq}`eq-matched-fisher`, so that its root is a length
# as the model feels it. The curve of accuracy against divergence as $t$ grows is the price list of a direction: so many problems lost for so many nats.
#
# An intervention is read against SFT's curve. Let $t_1, t_2, \dots$ be the factors at which SFT's update was measured, with $t = 0$ the base, and $w_j$ the weights of the straight line, in
# $\sqrt{\mathrm{KL}}$, between the two neighbours of the intervention's divergence. With $c_i$ and $c_{ij}$ equal to 1 where problem $i$ is solved by the intervention and at the factor $t_j$, the excess is
#
# ```{math}
# :label: eq-interventions-excess
# e = \frac{1}{n} \sum_{i=1}^{n} \Big( c_i - \sum_j w_j\, c_{ij} \Big).
# ```
#
# It is a mean of paired differences, one per problem, and has the interval and test of such a mean. Above zero, the intervention solves more than a shortened or stretched SFT that is as far from the base.
# Between two neighbours the straight line is an assumption. Where the curve is steep and its points lie far apart, an excess of a few points may be the line's and not the intervention's.

# %%
scaled_sft = [name for name in planned if name.startswith("sft times")]
judged = [*study.main_runs[1:], "dpo-matched",
          *(name for name in planned if name not in scaled_sft)]
excess = interventions.above_scaling(study, judged, "sft").set_index("part")
count = excess.p.notna().sum()
Markdown(f"""Of {len(excess)} rows judged by {{eq}}`eq-interventions-excess`,
{len(excess) - count} lie beyond the divergence of the longest SFT and have no value.
These {count} tests are the second family.""")

# %% mystnb={"image": {"alt": "Accuracy against forward divergence on a logarithmic axis: lines for the updates of SFT, Offline GRPO and DPO scaled by factors, markers for the whole runs, dashed line at the base"}, "figure": {"caption": "Share of problems solved against the divergence from the base, with 95 % intervals. Lines: the updates of SFT, Offline GRPO and DPO times a factor. Markers: whole runs. Dashed: the base.", "name": "fig-interventions-scaling"}}
curves = {run: by_name.loc[[*(f"{run} times {t:g}" for t in factors), run]]
          for run, factors in interventions.SCALES.items()}
axes_named = ("kl", "accuracy", "KL(base || policy), nats per token",
              "share of problems solved")
figures.points_on_curves(curves, by_name.loc[wholes[1:]], *axes_named,
                         reference=base.accuracy);

# %%
def against_curve(names):
    """How the rows lie to SFT's curve: label, excess with interval, corrected p."""
    rows = excess.loc[names].assign(label=by_name.loc[names].label)
    return rows[["label", "kl", "on_curve", "difference", "low", "high", "p_holm"]]


scaled = [f"{run} times {t:g}" for run in ("offline-grpo", "dpo")
          for t in interventions.SCALES[run]]
figures.table(against_curve([*study.main_runs[1:], "dpo-matched", *scaled]))

# %%
def off_curve(names):
    """(above, below): labels of the rows whose excess is told apart from zero."""
    rows = excess.loc[names].query("p_holm < 0.05")
    return ["; ".join(by_name.label[rows.index[is_side]]) or "none"
            for is_side in (rows.difference > 0, rows.difference < 0)]


above, below = off_curve([*study.main_runs[1:], "dpo-matched", *scaled])
half = by_name.loc["sft times 0.5"]
Markdown(f"""Half of SFT's update solves {half.accuracy:.1%}, between the base's
{base.accuracy:.1%} and SFT's {sft.accuracy:.1%}. Whole runs and scaled updates of other
methods that solve more than a scaled SFT at the same divergence: **{above}**; less:
**{below}**.""")

# %%
matched, at_its_kl = by_name.loc["dpo-matched"], by_name.loc["sft at dpo-matched's kl"]
from_base, from_sft = (abs(matched.tokens - row.tokens) for row in (base, sft))
Markdown(f"""DPO at SFT's rate, {matched.kl:.3f} nats per token from the base, solves
{matched.accuracy:.1%}; SFT stretched to that divergence solves
{at_its_kl.accuracy:.1%}. The answers of the first have {matched.tokens:.1f} tokens and
those of the second {at_its_kl.tokens:.1f}: in its style the matched DPO is nearer to
the {"base's" if from_base < from_sft else "SFT's"}.""")

# %% [markdown]
# In {numref}`fig-interventions-scaling` the lines begin near the base on the left, where the factor is small. If they coincided, the divergence alone would decide what is lost, whatever the loss that was trained, and the names of the methods would be
# labels for places on one curve. Where one lies above another, a method buys the same divergence for fewer problems. One warning: a divergence along the base's texts counts a change of *style*, which may cost no problem
# at all, as well as a change of *result*. Two updates at one divergence need not have changed the same thing. So look at the lengths of the answers along SFT's curve.

# %%
shorter = [name for name in scaled_sft if by_name.norm[name] < sft.norm]
steps = ["base", *sorted(shorter, key=by_name.norm.get), "sft"]
figures.table(by_name.loc[steps, shown])

# %%
middle = (base.tokens + sft.tokens) / 2
wordy = [name for name in steps if by_name.tokens[name] > middle]
first = by_name.loc[wordy[0] if wordy else "sft"]
before = by_name.loc[steps[steps.index(first.part) - 1]]
share = (before.accuracy - first.accuracy) / (base.accuracy - sft.accuracy)
Markdown(f"""The answers pass the middle between the base's length and SFT's at
*{first.label}*. One step before, at *{before.label}*, they have {before.tokens:.1f}
tokens and {before.accuracy:.1%} are right; at this step {first.tokens:.1f} and
{first.accuracy:.1%}. Of the difference between base and SFT, **{share:.0%}** arises in
this one step.""")

# %% [markdown]
# An accuracy that is straight in the factor would mean that each piece of the update costs the same. A fall that comes together with the change of length says that the cost belongs to the new style, which a greedy model
# either writes or does not.
#
# How much divergence does a unit of length buy? A direction that the model hardly feels has a small ratio of divergence to squared norm.

# %%
randoms = ["random like sft", "random like sft, second draw"]
by_name["per_square"] = by_name.kl / by_name.norm ** 2
ratios = by_name.loc[["sft times 0.2", "sft", "offline-grpo times 0.2", "offline-grpo",
                      "dft", "dpo", "dpo times 10", "dpo-matched", *randoms]]
numbers = ["kl", "per_square"]
figures.table(ratios[["label", "norm", *numbers]]).format("{:.2g}", subset=numbers)

# %%
random = by_name.loc[randoms]
chance = ", ".join(f"{value:.2g}" for value in random.per_square)
accuracies = ", ".join(f"{value:.1%}" for value in random.accuracy)
Markdown(f"""SFT moves the base's texts by {by_name.per_square['sft']:.2g} nats per unit
of squared norm, DPO by {by_name.per_square['dpo']:.2g}. The chance level, two random
updates with SFT's norm in each module, SFT's matrices $A$ and nearly its spectra, is at
{chance}; they solve {accuracies} (the base: {base.accuracy:.1%}).""")

# %% [markdown]
# By the same table a ratio that stays the same from a fifth of an update to the whole says that the divergence is still quadratic there; one that changes says that the second order of {eq}`eq-matched-fisher` has
# ended and the step is no longer small.
#
# ## Along SFT, and the rest
#
# The [page on orthogonal parts](12_decomposition.ipynb) splits an update $\Delta W$ with {eq}`eq-decomposition-split` into a multiple $c R$ of SFT's update $R$ and a rest at right angles to it. Here all modules are stacked and there is *one*
# coefficient $c$; the rest is orthogonal to SFT as a whole, and not in each module. The two sum back to the update.
#
# What would one expect? The part along SFT is $c$ times SFT, a point on SFT's own curve, at $t = c$. To keep it alone is to say: train SFT and stop early. The rest is what the method has that no SFT of any length has.

# %%
cut = ("offline-grpo", "dft", "dpo")
adapters = {run: interventions.update_of(study, run) for run in ("sft", *cut)}
for run in cut:
    along = edits.along(adapters[run], adapters["sft"])
    rest = edits.without(adapters[run], adapters["sft"])
    left_over = updates.combine([along, rest, adapters[run]], [1, 1, -1])
    square = updates.norm(adapters[run]) ** 2
    errors = [updates.inner(part, part) for part in left_over.values()]
    assert abs(sum(errors)) < 1e-6 * square, "along + without = whole"
    products = [updates.inner(along[module], rest[module]) for module in along]
    assert abs(sum(products)) < 1e-6 * square, "at right angles"

# %% mystnb={"image": {"alt": "Parts of Offline GRPO, DFT and DPO along SFT and without it as markers beside the curves of scaled SFT, Offline GRPO and DPO, in the plane of accuracy and divergence"}, "figure": {"caption": "Parts of three updates along SFT's and without it, and the whole updates shortened to the same norms, beside the curves of {numref}`fig-interventions-scaling`. Colours are those of the method that was cut. The part of DPO along SFT is left out: it is too short for the axis.", "name": "fig-interventions-parts"}}
parts = [f"{run} {part} sft" for run in cut for part in ("along", "without")]
short = [f"{run} as short as its part {part} sft" for run in ("offline-grpo", "dft")
         for part in ("along", "without")]
points = by_name.loc[[*parts, *short]].drop(index="dpo along sft")
figures.points_on_curves(curves, points, *axes_named, reference=base.accuracy);

# %%
figures.table(by_name.loc[["base", "sft", *cut, *parts, *short], shown])

# %%
lines = []
for run in ("offline-grpo", "dft"):
    along, rest = f"{run} along sft", f"{run} without sft"
    short_along, short_rest = (f"{run} as short as its part {part} sft"
                               for part in ("along", "without"))
    lines.append(
        f"- **{figures.LABELS[run]}** ({by_name.accuracy[run]:.1%}). Its part along "
        f"SFT is {by_name.norm[along] / sft.norm:.2f} times SFT's update and differs "
        f"from the whole by {said(along, run)}, and from an equally short piece of the "
        f"whole by {said(along, short_along)}. The rest alone differs from the *base* "
        f"by {said(rest, 'base')}, and from a piece of the whole as short as it is by "
        f"{said(rest, short_rest)}.")
lines.append(
    f"- **DPO** ({by_name.accuracy['dpo']:.1%}). Without its part along SFT it differs "
    f"from DPO by {said('dpo without sft', 'dpo')}; the part along SFT alone, a very "
    f"short update, differs from the base by {said('dpo along sft', 'base')}.")
Markdown("\n".join(lines))

# %%
lines = []
for run in ("offline-grpo", "dft"):
    whole, along, rest = (by_name.loc[name] for name
                          in (run, f"{run} along sft", f"{run} without sft"))
    square = (along.norm / whole.norm) ** 2
    lines.append(
        f"- **{figures.LABELS[run]}**: the part along SFT has {square:.0%} of the "
        f"squared norm and {along.kl / whole.kl:.0%} of the divergence, the rest "
        f"{1 - square:.0%} and {rest.kl / whole.kl:.0%}. For each unit of squared norm "
        f"the part along SFT moves the base {along.per_square / rest.per_square:.1f} "
        "times as much as the rest, and the rest "
        f"{rest.per_square / random.per_square.mean():.0f} times as much as a random "
        f"update. Their answers have {along.tokens:.1f} and {rest.tokens:.1f} tokens, "
        f"those of the whole {whole.tokens:.1f}.")
Markdown("\n".join(lines))

# %% [markdown]
# The two shares of the squared norm add up to one, by construction. The two shares of the divergence need not: where they add up to less, the parts do together what neither does alone.
#
# Three readings of {numref}`fig-interventions-parts` and the list are possible for each method. The part along SFT does what the whole does, and the rest little: then the method is a shortened SFT, and its orthogonal part, however large by
# norm, is noise in directions that the problems do not feel. Or the rest does as much harm or good as an equally short piece of the whole: then the loss has something of its own. Or neither alone does what the sum does, and the parts work together; a
# network is not linear in its weights, and effects of parts need not add up.
#
# ## Early and late layers
#
# Half of the layers get their update, the others keep the base's weights. The two halves are disjoint, their squared norms add up to that of the whole, and each is compared with the scaled update by {eq}`eq-interventions-excess`.

# %% mystnb={"image": {"alt": "Early and late halves of SFT and of Offline GRPO as four markers beside the curves of the scaled updates"}, "figure": {"caption": "Updates of SFT and Offline GRPO in the early or the late half of the layers only, beside the curves of the scaled updates.", "name": "fig-interventions-layers"}}
halves = [f"{run} {half} layers" for run in ("sft", "offline-grpo")
          for half in ("early", "late")]
figures.points_on_curves(curves, by_name.loc[halves], *axes_named,
                         reference=base.accuracy);

# %%
figures.table(by_name.loc[["base", "sft", "offline-grpo", *halves], shown])

# %%
early, late = (interventions.divergences(study, f"sft {half} layers").nats
               for half in ("early", "late"))
ratio, low, high = statistics.bootstrap_ratio(late, early)
share = (by_name.norm["sft late layers"] / sft.norm) ** 2
Markdown(f"""The late half of SFT holds {share:.0%} of its squared norm and is
**{ratio:.2f}** times ({low:.2f} to {high:.2f}) as far from the base by divergence as
the early half. By accuracy, late differs from early by
{said('sft late layers', 'sft early layers')} for SFT and by
{said('offline-grpo late layers', 'offline-grpo early layers')} for Offline GRPO. The
whole of SFT differs from the base by {sft.accuracy - base.accuracy:+.1%}; the early
half alone by {said('sft early layers', 'base')} and the late half alone
by {said('sft late layers', 'base')}.""")

# %% [markdown]
# The sum of what the halves of {numref}`fig-interventions-layers` lose can be compared with what the whole loses. If a half alone loses almost nothing and both together much, no layer "has" the change: it takes a first part that writes something and
# a second part that reads it.
#
# ## Left and right singular vectors
#
# A module's update reads from the input directions $v_i$ and writes into the output directions $u_i$, $\Delta W = \sum_i \sigma_i u_i v_i^\top$. The paper finds the first right vectors shared by nearly all methods and the left ones less so
# {cite:p}`nikolich2026geometry`. Which side carries the behaviour? Take the left vectors of one method, the right ones of another and the singular values $\sigma_i$ of SFT:
#
# ```{math}
# :label: eq-interventions-swap
# f(\Delta W_1, \Delta W_2) = \sum_i \sigma_i\, s_i\, u_i^{(1)} {v_i^{(2)}}^\top, \qquad
# s_i = \operatorname{sign}\big( u_i^{(1)} \cdot u_i^{(2)} + v_i^{(1)} \cdot v_i^{(2)} \big).
# ```
#
# The sign is needed because a pair $(u_i, v_i)$ and its negative $(-u_i, -v_i)$ are the same update, while a mixture of the two is not. Every update of {eq}`eq-interventions-swap` has exactly SFT's norm and spectrum in every module. The pairing goes by the order of singular
# values; where two methods order their directions differently, even two updates that read and write the same subspaces are torn apart, and the result says more than "another side". As controls, one side of SFT is rotated by a {term}`Haar rotation`, which keeps the other
# side and all singular values.

# %%
swaps = ["left of sft, right of offline-grpo", "left of offline-grpo, right of sft",
         "left of sft, right of dpo", "left of dpo, right of sft"]
controls = ["sft rotated left", "sft rotated right", *randoms,
            "random like sft at sft's kl"]
references = {run: adapters[run] for run in ("sft", "offline-grpo", "dpo")}
compared = geometry.compare(references | {
    name: interventions.update_of(study, name) for name in [*swaps, *controls]})
cosine, sd = geometry.stacked_cosine(compared)
alike = pd.DataFrame({
    "update": [by_name.label[name] for name in compared.runs[1:]],
    "cosine with SFT": cosine[0, 1:], "chance, low": -1.96 * sd[0, 1:],
    "chance, high": 1.96 * sd[0, 1:], "cosine with Offline GRPO": cosine[1, 1:],
    "cosine with DPO": cosine[2, 1:]})
figures.table(alike)

# %% mystnb={"image": {"alt": "Updates with swapped singular vectors, updates with one side rotated at random, and random updates, as markers beside the curves of scaled SFT, Offline GRPO and DPO"}, "figure": {"caption": "Updates with the left vectors of one method and the right vectors of another, SFT with one side rotated at random, and random updates, all with SFT's norm except the one that is stretched to SFT's divergence, beside the curves of the scaled updates.", "name": "fig-interventions-swaps"}}
figures.points_on_curves(curves, by_name.loc[[*swaps, *controls]], *axes_named,
                         reference=base.accuracy);

# %%
figures.table(by_name.loc[["base", "sft", *swaps, *controls], shown])

# %%
stretched = by_name.loc["random like sft at sft's kl"]
lines = [f"- {by_name.label[name]}: {by_name.kl[name] / sft.kl:.0%} of SFT's "
         f"divergence; accuracy against the base {said(name, 'base')}, against SFT "
         f"{said(name, 'sft')}." for name in [*swaps, *controls[:3]]]
lines.append(f"- The random update must be {stretched.norm / sft.norm:.1f} times as "
             "long as SFT's to be as far from the base by divergence. There it "
             f"differs from SFT by {said(stretched.part, 'sft')}.")
Markdown("\n".join(lines))

# %% [markdown]
# The two rotated updates in {numref}`fig-interventions-swaps` are what is left of the effect when one side is right and the other is arbitrary. A swap that stands no further from the base than they do has lost the link between what is read and what is
# written, whichever side one calls important. A swap that keeps most of SFT's effect shows that the exchanged side was nearly the same in both methods, which the [angles](11_angles.ipynb) then should show as well. Note the last line of the list: at equal
# *divergence* a random direction may cost other problems than SFT does, and so a divergence is not a full account of behaviour.
#
# ## Merges
#
# Updates are also added to combine what methods learned. The exact sum and mean of updates are as in task arithmetic {cite:p}`ilharco2023arithmetic`. PEFT {cite:p}`mangrulkar2022peft` offers several merges of adapters, and three of them are run through its own `add_weighted_adapter`.
# *TIES* {cite:p}`yadav2023ties` sets the small entries of each update to zero, chooses a sign for each entry, and averages those that agree with it. *DARE* {cite:p}`yu2024dare` drops entries at random and enlarges the others, so that the expectation stays.
# Both are used in their `svd` form, which works on the products $\Delta W$ and keeps the full rank.
#
# The third, called `linear`, adds the *factors*. With weights $w_i$ and scales $s_i$ it makes
#
# ```{math}
# :label: eq-interventions-linear
# \Big( \sum_i \sqrt{w_i s_i}\, B_i \Big) \Big( \sum_j \sqrt{w_j s_j}\, A_j \Big)
# = \sum_i w_i\, \Delta W_i + \sum_{i \ne j} \sqrt{w_i s_i w_j s_j}\, B_i A_j .
# ```
#
# The last sum is not in any of the adapters. With $n$ equal adapters and $w_i = 1/n$, {eq}`eq-interventions-linear` is $n\,\Delta W$ and not $\Delta W$: runs from one initialisation, whose $A$ hardly differ, are close to that case.

# %%
twice = edits.merged_by_peft(adapters["sft"], adapters["sft"],
                             base=loading.load_model(study), combination="linear",
                             weight=0.5)
linear, mean = (by_name.norm[f"{kind} of the six"] for kind in ("linear mix", "mean"))
Markdown(f"""SFT merged with itself by `linear`, with weights of one half, has
**{updates.norm(twice) / sft.norm:.3f}** times SFT's norm. The linear mix of all six
methods, with weights of one sixth, has {linear / mean:.2f} times the norm of their
mean.""")

# %% mystnb={"image": {"alt": "Sum, linear mix, TIES and DARE of SFT and DPO, and mean, linear mix, TIES and DARE of the six methods as markers beside the curves of the scaled updates"}, "figure": {"caption": "Merges of SFT with DPO and of all six methods, beside the curves of the scaled updates. `Linear mix` is PEFT's `linear`, {eq}`eq-interventions-linear`.", "name": "fig-interventions-merges"}}
merges = [name for name in planned if name.endswith((" of sft and dpo", " of the six"))]
figures.points_on_curves(curves, by_name.loc[merges], *axes_named,
                         reference=base.accuracy);

# %%
figures.table(by_name.loc[["base", "sft", "dpo", *merges], shown])

# %%
best = by_name.loc[merges].accuracy.idxmax()
from_base = tests.xs("base", level="against").loc[merges]
gains = from_base.index[(from_base.p_holm < 0.05) & (from_base.difference > 0)]
Markdown(f"""The best of the merges is **{by_name.label[best]}** with
{by_name.accuracy[best]:.1%}, which differs from the base by {said(best, 'base')} and
from SFT by {said(best, 'sft')}. Merges that solve more than the base:
**{', '.join(by_name.label[gains]) or 'none'}**. The exact sum of SFT and DPO differs
from SFT by {said('sum of sft and dpo', 'sft')}, and PEFT's linear mix of the two
by {said('linear mix of sft and dpo', 'sft')}.""")

# %% [markdown]
# A merge of {numref}`fig-interventions-merges` can be good for a dull reason: a mean, or a merge that drops entries, is short. The yardstick takes that out. Dropping entries at random does the opposite: with a share $q$ kept and enlarged by $1/q$, the expected squared norm
# grows by the same factor, and what is added is noise that nobody learned.
#
# ## Does anything leave the curve?
#
# All interventions that are no mere factor, by their excess over scaled SFT. The correction is over the whole second family, scaled rows included.

# %%
ranked = against_curve(directed).dropna(subset="difference")
ranked = ranked.sort_values("difference", ascending=False)
is_apart = ranked.p_holm < 0.05
figures.table(pd.concat([ranked[is_apart], ranked[~is_apart].head(3)]))

# %%
above, below = off_curve(directed)
on_curve = ranked[~is_apart]
Markdown(f"""Of {len(ranked)} interventions with a place on the curve, {len(on_curve)}
are not told apart from it; the largest of their deviations is
{on_curve.difference.abs().max():.1%}. Above it: **{above}**. Below it: **{below}**. The
rows without a verdict at the end of the table are the three highest of those on the
curve.""")

# %% [markdown]
# What stands above the curve moves the base's texts in ways that touch the answers less than SFT does. What stands below has broken more answers than its divergence tells; compare the random update, whose direction nobody chose. Both are statements about
# direction. What is on the curve is, for these two numbers, an SFT of another length.
#
# ## What was expected
#
# Before these were run, three numbers were predicted. Each is a difference or a ratio with its 95 % interval.

# %%
values = tests[["difference", "low", "high"]]
results = outcomes.of_interventions(
    tuple(values.loc[("offline-grpo along sft", "offline-grpo")]),
    tuple(values.loc[("dpo without sft", "dpo")]), (ratio, low, high))
predictions.write(profile, "21", results).style.hide(axis="index")

# %% [markdown]
# The first line has to be read with its control. The part along SFT is shorter than the whole, so a difference between the two may be one of length alone; the list under {numref}`fig-interventions-parts` compares it with an equally
# short piece of the whole, which the prediction should have done.
#
# ## Try it
#
# 1. Cut Offline GRPO along RFT in place of SFT: `edits.along(update, reference)` with RFT's update as the reference. What changes?
#
# ````{dropdown} What happens
# Little, if RFT and SFT are close to each other: the coefficient changes slightly, and the part is a shortened RFT. Cut it along a method whose cosine with it is near zero, and the part is tiny. A
# part belongs to a pair of updates, and "what is specific to a method" depends on what it is compared with.
# ````
#
# 2. Take the part along SFT with a coefficient for each module. Is the rest shorter or longer than with one coefficient?
#
# ````{dropdown} Answer
# Shorter, never longer: a fit with more coefficients is at least as close. By {eq}`eq-decomposition-pooled` the difference is the spread of the modules' coefficients. The part is then no longer
# a multiple of SFT, and so not a point of SFT's curve.
# ````
#
# 3. Merge an adapter with its own negative by PEFT's `linear`, weights 1 and −1. Is the result the base?
#
# ````{dropdown} Answer
# PEFT puts the sign on one factor only, so the factors are $B + B$ and $A - A = 0$: here the result is the base, by luck. Merge two *different* adapters of equal $A$ with
# weights 1 and −1 and the product is still zero, although the difference of the two updates is not. The exact difference needs the factors side by side.
# ````
#
# 4. Build a random update that is stretched until it loses as many problems as SFT. Is its divergence larger or smaller than SFT's?
#
# ````{dropdown} What to think about
# The row of the random update at SFT's divergence tells: if it solves more than SFT there, it has to go further still, and its divergence will be larger; if it solves less, it stops earlier. A possible
# reason for a difference is where the divergence sits: a change of style is felt at a few tokens of every answer, noise at all of them.
# ````
#
# ## Summary
#
# A cosine says how alike two updates are, and an intervention says whether the difference does anything. The controls decided what could be concluded: a part against a piece of equal length, a swap against a rotated side, a merge against plain scaling,
# everything against the base. The part along SFT is by construction a shorter SFT, so for Offline GRPO and DFT the question was whether the rest adds anything to it; the list under {numref}`fig-interventions-parts` answers it. Whatever is not told apart from the
# curve of scaled SFT differs from it in length, for accuracy and divergence on these problems. The [next page](22_pretrained.ipynb) makes the main comparisons once more, on a
# pretrained model, and the [verdict](23_verdict.ipynb) collects everything.
