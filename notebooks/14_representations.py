# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, held-out, seeds, templated]  # short texts, since it keeps every state
# ---

# %% [markdown]
# # Representations: CKA and the logit lens
#
# *Previously,* the updates were compared as matrices, and [paths](13_connectivity.ipynb) between them by the loss. *Now* the models read the same texts, and what is compared are
# their hidden states: how alike two models are layer by layer, and at which layer each of them has settled on the next token.
#
# **Key takeaways**
# - {term}`Centred kernel alignment <centred kernel alignment>` (CKA) is the cosine between two models' tables of likenesses, token against token. In its plain form unrelated models come out alike.
# - The debiased form is zero by chance. It still depends on which tokens are taken as rows: one token that is the same in every text can decide it.
# - Tokens of one text depend on each other, so each text gives one row, and the interval leaves out whole texts instead of repeating them.
# - A value near one does not say that two models behave alike, and the base belongs among the models: it may be the nearest neighbour.
#
# You need: matrix products and the [cosine of updates](10_norms.ipynb). Reads the adapters of the six runs and held-out texts. Time to run: about a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study to set beside it at the end

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy.stats import ttest_1samp

from adapter_geometry import representations, updates
from adapter_geometry.adapters import load_update
from helpers import profiles, store
from helpers.analysis import replication
from helpers.book import figures
from helpers.evaluation import answering, statistics
from helpers.training import trainer

study = profiles.load(profile)
runs = {"base": "base"} | {name: study.runs[name] for name in study.main_runs}
texts = answering.held_out(study, study.representations.texts)
figures.use_style(study)

# %% [markdown]
# ## Seven models read the same texts
#
# The texts are correct rollouts of the teacher to validation problems, on which no run was trained. All models read each of them whole, prompt and
# completion, and write down the hidden state of every token: before the first layer, after each layer, and in place of the last one after the final norm.

# %%
prompts, completions = list(texts.prompt_ids), list(texts.completion_ids)
found = {name: representations.states(answering.load_model_of(study, run), prompts,
        completions) for name, run in runs.items()}
base = found["base"]
last, width = len(base.hidden) - 1, base.hidden.shape[2]
Markdown(f"{len(texts)} texts, {len(base.text)} tokens, {last} layers, {width} "
         f"features a token.")

# %% [markdown]
# Whether the last of these states is taken before or after the final norm is a convention of the library. The {term}`logit lens` below relies on it, so it is
# checked: the output matrix, applied to the last state, must give the model's own logits.

# %%
model = answering.load_model_of(study, "base")
with torch.inference_mode():
    logits = model(input_ids=torch.tensor([[*prompts[0], *completions[0]]],
            device=model.device)).logits[0]
    own = model.lm_head(torch.from_numpy(base.hidden[last][base.text == 0]).to(
        model.device, model.dtype))
assert torch.allclose(logits, own, atol=1e-3)

# %% [markdown]
# ## Alike up to a rotation
#
# Let $X$ hold the states of $n$ tokens in one model, a row a token, and $Y$ those of the same tokens in another. Feature 17 of one model has no
# reason to match feature 17 of the other: a rotation of all features, undone by the next layer, would change nothing in what the model
# does. What does not depend on a rotation is the table of inner products between tokens, the *kernel* $K = X X^\top$, $n \times n$. It says which
# tokens a model holds to be alike. Subtract the mean over the tokens first, with $H = I - \frac1n \mathbf 1 \mathbf 1^\top$, and take the cosine of two such tables as if they were vectors:
#
# ```{math}
# :label: eq-representations-cka
# \operatorname{CKA}(X, Y) = \frac{\langle HKH,\, HLH \rangle}{\|HKH\|\, \|HLH\|}, \qquad K = X X^{\top},\; L = Y Y^{\top} .
# ```
#
# This is linear {term}`centred kernel alignment` {cite:p}`kornblith2019cka`; its numerator is the Hilbert-Schmidt independence criterion (HSIC) up to a factor. For centred
# features $\langle XX^\top, YY^\top \rangle = \operatorname{tr}(X X^\top Y Y^\top) = \|Y^\top X\|^2$, so one may work with $d \times d$ or with $n \times n$ matrices, whichever are smaller.

# %%
def kernel(X):
    X = X - X.mean(0, dtype=float)
    return X @ X.T


def cosine(K, L):
    return (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum())


rows = representations.one_a_text(base)
X, Y = (found[name].hidden[last][rows] for name in ("base", "sft"))
plain = cosine(kernel(X), kernel(Y))
assert np.isclose(plain, representations.cka(X, Y, debiased=False))

# %%
rng = np.random.default_rng(0)
turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
assert np.isclose(plain, cosine(kernel(X), kernel(3 * Y @ turn + 1)))
Markdown(f"After the last layer the base and SFT have a plain CKA of **{plain:.4f}**, "
         f"and the same after SFT's features were rotated, tripled and shifted.")

# %% [markdown]
# ## Unrelated models come out alike
#
# How large is {eq}`eq-representations-cka` when there is nothing to find? Pair the tokens of one model with those of the other at random. Averaged over all
# permutations $\sigma$ of the rows, with both kernels centred, diagonal entries meet diagonal entries and the others meet others, and as the rows of a centred kernel sum to zero the
# two contributions are $\operatorname{tr} K \operatorname{tr} L / n$ and $\operatorname{tr} K \operatorname{tr} L / (n (n-1))$. Together
#
# ```{math}
# :label: eq-representations-chance
# \mathbb{E}_\sigma \operatorname{CKA}(X, Y_\sigma) = \frac{\operatorname{tr} K \operatorname{tr} L}{(n - 1)\, \|K\|\, \|L\|}, \qquad
# \text{for Gaussian features about } \frac{d}{d + n} .
# ```
#
# The right-hand form follows with $\mathbb{E} \operatorname{tr} K = (n-1) d$ and $\mathbb{E} \|K\|^2 = (n-1)\, d\, (d + n)$. The diagonal is the culprit. Each token is
# like itself in both models, and with more features than tokens the diagonal outweighs all the rest. With 100 rows of 2,560 features, the width of the paper's model:

# %%
A, B = rng.standard_normal((2, 100, 2560))
Markdown(f"Two sets of *independent* Gaussian numbers have a plain CKA of "
         f"**{cosine(kernel(A), kernel(B)):.3f}**; {{eq}}`eq-representations-chance` "
         f"says {2560 / 2660:.3f}.")

# %% [markdown]
# ## Leaving out the diagonal
#
# The remedy is an estimate of HSIC whose mean is right for any number of rows. {cite:t}`song2012hsic` set the diagonals to zero and correct the centring for it:
#
# ```{math}
# :label: eq-representations-hsic
# \begin{gathered}
# \operatorname{HSIC}_1(K, L) = \frac{1}{n (n - 3)} \left[ \operatorname{tr}(K L) + \frac{\mathbf 1^{\top} K \mathbf 1\; \mathbf 1^{\top} L \mathbf 1}{(n-1)(n-2)}
# - \frac{2}{n - 2}\, \mathbf 1^{\top} K L \mathbf 1 \right], \\
# K_{ii} = L_{ii} = 0 .
# \end{gathered}
# ```
#
# *Debiased CKA* is {eq}`eq-representations-cka` with $\operatorname{HSIC}_1$ in all three places, as {cite:t}`murphy2024cka` recommend. The bracket is itself an inner product of two suitably
# centred tables {cite:p}`szekely2014partial`, so the debiased value cannot exceed one either; it can be slightly negative.

# %%
def hsic(K, L):
    n = len(K)
    K, L = K - np.diag(K.diagonal()), L - np.diag(L.diagonal())
    return ((K * L).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2
            * K.sum(0) @ L.sum(0) / (n - 2)) / (n * (n - 3))


def debiased(K, L):
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


assert np.isclose(debiased(kernel(X), kernel(Y)), representations.cka(X, Y))

# %% mystnb={"image": {"alt": "Line plot against the number of rows: plain CKA of independent Gaussians starts near one and falls slowly, debiased CKA stays at zero"}, "figure": {"caption": "CKA of independent Gaussian features of width 2,560 against the number of rows: mean, and shaded the range over the draws. There is nothing to find, and only the debiased form finds nothing.", "name": "fig-representations-bias"}}
simulated = []
for n, draws in ((30, 40), (100, 40), (300, 8), (1000, 3)):
    pairs = [[kernel(part) for part in rng.standard_normal((2, n, 2560))]
             for _ in range(draws)]
    for name, measure in (("plain", cosine), ("debiased", debiased)):
        values = [measure(*pair) for pair in pairs]
        simulated.append({"run": name, "n": n, "value": np.mean(values),
                          "low": np.min(values), "high": np.max(values),
                          "sd": np.std(values, ddof=1)})
simulated = pd.DataFrame(simulated)
figures.lines_of_runs({"independent features": simulated}, "n", "value", "rows n",
                      "CKA");

# %%
seen = simulated.set_index(["run", "n"])
Markdown(f"With 100 rows the plain form gives {seen.value['plain', 100]:.3f} and the "
         f"debiased one {seen.value['debiased', 100]:+.3f} with a standard deviation "
         f"of {seen.sd['debiased', 100]:.3f}; with 1,000 rows the plain form still "
         f"gives {seen.value['plain', 1000]:.3f}, as $d / (d + n)$ = "
         f"{2560 / 3560:.3f} says.")

# %% [markdown]
# A plain CKA is therefore read against its own chance level, never against zero. {numref}`fig-representations-bias` is the worst case, features without
# structure. Hidden states have a few strong directions, and {eq}`eq-representations-chance` then gives less.
#
# ## Chance for these models
#
# That level can be had without any assumption: permute the rows of one model, as in {eq}`eq-representations-chance`. All structure within each model stays, only the pairing is gone.

# %%
def by_permutation(X, Y, draws=100):
    """Chance of both forms over random pairings of the rows, and the expected value of the plain one."""
    K, L = kernel(X), kernel(Y)
    orders = [rng.permutation(len(K)) for _ in range(draws)]
    plain = [cosine(K, L[order][:, order]) for order in orders]
    unbiased = [debiased(K, L[order][:, order]) for order in orders]
    expected = K.trace() * L.trace() / ((len(K) - 1) * np.linalg.norm(K)
        * np.linalg.norm(L))
    return {"plain, expected": expected, "plain, mean": np.mean(plain),
            "debiased, mean": np.mean(unbiased), "debiased, low": np.quantile(unbiased,
            0.025), "debiased, high": np.quantile(unbiased, 0.975)}


by_chance = pd.DataFrame([by_permutation(found["base"].hidden[layer][rows],
        found["sft"].hidden[layer][rows]) for layer in range(last + 1)])
by_chance.rename_axis("layer").style.format("{:.3f}")

# %%
Markdown(f"For base and SFT the plain form has a chance level of "
         f"{by_chance['plain, mean'].min():.2f} to "
         f"{by_chance['plain, mean'].max():.2f} over the layers, on {len(rows)} rows. "
         f"The debiased form is within "
         f"±{by_chance[['debiased, low', 'debiased, high']].abs().max().max():.3f} in "
         f"95 cases of a hundred.")

# %% [markdown]
# ## Rows and intervals
#
# The rows of this table are *one completion token of each text*, drawn at random (`representations.one_a_text`). Tokens of one text share a problem, names and numbers. Their
# states depend on each other, and a hundred of them carry less information than a hundred texts. With one row a text the rows are independent.
#
# For an interval one would reach for the bootstrap. It fails here, and instructively so: it draws rows with replacement, a row that was drawn twice is perfectly like its copy in both models, and
# with these pairs the diagonal that the debiased form leaves out comes back by another door. On randomly paired rows, where the truth is zero:

# %%
K, L = kernel(X), kernel(Y[rng.permutation(len(Y))])
drawn = [debiased(K[np.ix_(order, order)], L[np.ix_(order, order)])
         for order in rng.integers(len(K), size=(200, len(K)))]
Markdown(f"The debiased CKA of the randomly paired rows is {debiased(K, L):+.3f}; its "
         f"bootstrap distribution has the mean **{np.mean(drawn):+.3f}** and covers "
         f"{np.quantile(drawn, 0.025):+.3f} to {np.quantile(drawn, 0.975):+.3f}.")

# %% [markdown]
# So the intervals come from a {term}`jackknife`: leave out one of twenty groups of texts at a time and see how the value moves. With $g$ groups and
# the value $c_{(j)}$ without group $j$,
#
# ```{math}
# :label: eq-representations-jackknife
# \text{standard error}^2 = \frac{g - 1}{g} \sum_{j=1}^{g} \big( c_{(j)} - \bar c \big)^2 ,
# ```
#
# and the interval is the value ± 1.96 standard errors, cut off at one. It covers the choice of texts and tokens, not that of a training seed.

# %%
table = store.write_table(profile, "cka", representations.cka_table(found, rows))
one = table[(table.layer == last) & (table.run_a == "base")
            & (table.run_b == "sft")].iloc[0]
assert np.allclose([one.debiased, one.low, one.high], representations.cka_interval(X, Y,
        base.text[rows]))
figures.table(table[table.layer == last].sort_values("debiased").iloc[[0, 1, 2, -3, -2,
        -1]])

# %% [markdown]
# These are the three least and the three most similar pairs of the 21 after the last layer, by {eq}`eq-representations-hsic` with the interval of {eq}`eq-representations-jackknife`.
#
# ## How far from the base?

# %% mystnb={"image": {"alt": "Line plot of debiased CKA with the base against the layer for six objectives, starting at one before the first layer"}, "figure": {"caption": "Debiased CKA of each trained model with the base, layer by layer (0: before the first layer; last: after the final norm), with 95 % jackknife intervals. Chance is zero, far below the axis.", "name": "fig-representations-base"}}
def pairs_with(name, among=table):
    """The rows of a table of CKA in which `name` takes part, with the other model as `run`."""
    first, second = among[among.run_a == name], among[among.run_b == name]
    return pd.concat([second.assign(run=second.run_a), first.assign(run=first.run_b)])


figures.lines_of_runs({"against the base": pairs_with("base")}, "layer", "debiased",
                      "layer", "debiased CKA");

# %%
from_base = pairs_with("base").set_index(["run", "layer"]).debiased
lowest = from_base.idxmin()
steps = from_base.groupby("run").apply(lambda values:
    values.droplevel(0).sort_index().diff().idxmin())
Markdown(f"Layer 0 is exactly one for all, because no adapter touches the embeddings. "
         f"The lowest value of {{numref}}`fig-representations-base` is "
         f"**{from_base.min():.3f}** ({figures.LABELS[lowest[0]]}, layer "
         f"{lowest[1]}). The largest step down is at layer "
         f"{', '.join(str(layer) for layer in sorted(steps.unique()))}.")

# %% [markdown]
# Does CKA see anything but how far a model moved? Beside the norm of each update:

# %%
norms = {name: 0.0 if name == "base"
         else updates.norm(load_update(trainer.train(study, run) / "adapter")) for name,
         run in runs.items()}
moved = pd.DataFrame({"run": list(runs), "norm of the update": list(norms.values()),
                      "1 - CKA, half way": [0.0 if name == "base"
        else 1 - from_base[name, last // 2] for name in runs],
                      "1 - CKA, last": [0.0 if name == "base" else 1 - from_base[name,
        last] for name in runs]})
figures.table(moved)

# %%
trained = moved[moved.run != "base"].set_index("run")
half_way, at_last = (statistics.rank_correlation(trained["norm of the update"],
        trained[column]) for column in trained.columns[1:])
Markdown(f"Over the six methods the rank correlation of the norm with the distance "
         f"from the base is {half_way[0]:+.2f} half way and {at_last[0]:+.2f} after "
         f"the last layer ({at_last[1]:+.2f} to {at_last[2]:+.2f} for random orders). "
         f"The shortest update is "
         f"{figures.LABELS[trained['norm of the update'].idxmin()]}'s, and the "
         f"nearest to the base after the last layer is "
         f"{figures.LABELS[trained['1 - CKA, last'].idxmin()]}.")

# %% [markdown]
# With six points that is a hint, no more. But a high CKA with the base need not mean that an objective is gentle on representations; it may only mean that
# it moved the weights little.
#
# ## How far from SFT, and from each other?

# %% mystnb={"image": {"alt": "Line plot of debiased CKA with SFT against the layer for the base and five other objectives, starting at one before the first layer"}, "figure": {"caption": "The same with SFT as the partner; the base is now one of the lines.", "name": "fig-representations-sft"}}
figures.lines_of_runs({"against SFT": pairs_with("sft")}, "layer", "debiased", "layer",
                      "debiased CKA");

# %%
after = pairs_with("sft").query("layer == @last").set_index("run").debiased.sort_values(
    ascending=False)
Markdown("After the last layer of {numref}`fig-representations-sft`, from the nearest "
         "to SFT: " + ", ".join(f"{figures.LABELS[run]} {value:.3f}" for run,
                                value in after.items()) + ".")

# %% mystnb={"image": {"alt": "Symmetric matrix of one minus debiased CKA in hundredths between base and six objectives after the last layer"}, "figure": {"caption": "Distance of all pairs after the last layer: 1 − debiased CKA, in hundredths. Unrelated models would be at 100.", "name": "fig-representations-pairs"}}
names = list(runs)
distance = np.zeros((len(names), len(names)))
for row in table[table.layer == last].itertuples():
    a, b = names.index(row.run_a), names.index(row.run_b)
    distance[a, b] = distance[b, a] = 100 * (1 - row.debiased)
figures.matrix(distance, names, "100 (1 - CKA)", 0, max(distance.max(), 1e-6));

# %%
nearest = {name:
           names[int(np.argmin(np.where(np.eye(len(names), dtype=bool)[place], np.inf,
        distance[place])))] for place, name in enumerate(names)}
with_base = [figures.LABELS[name] for name, other in nearest.items() if other == "base"]
Markdown("The nearest neighbour of each in {numref}`fig-representations-pairs`: "
         + ", ".join(f"{figures.LABELS[name]} – {figures.LABELS[other]}" for name,
                     other in nearest.items()) + f". The base is the nearest of "
                                                 f"{len(with_base)} of the six"
         + (f" ({', '.join(with_base)})." if with_base else "."))

# %% [markdown]
# Distances are shown in hundredths because the values themselves crowd near one. Whether that means "almost the same model" cannot be told from CKA. It is dominated by the
# strongest directions of the states, and models can differ in what they write while those stay put. {cite:t}`davari2023cka` show that its value can be changed at will with little change in what a network does. How far the
# models differ in what they write is a question for the page on [accuracies and divergences](09_evaluation.ipynb).
#
# ## All tokens, and the attention sink
#
# What if all tokens are rows? The first token of a text is a special one. It is the same in every text and sees only itself, so that within one model its state is one and the same vector, as often
# as there are texts. In large models it also serves as an {term}`attention sink` {cite:p}`xiao2024sinks` with a few features far larger than those of any other token {cite:p}`sun2024massive`.

# %%
before = last - 1
few = base.text < 60
length = np.linalg.norm(base.hidden[before], axis=1)
sink = base.position == 0
spread = base.hidden[before][sink].std(0).max()
Markdown(f"In the base, after layer {before}, the first token's state has the norm "
         f"{length[sink].mean():.1f} and the others {length[~sink].mean():.1f} on "
         f"average: a ratio of **{length[sink].mean() / length[~sink].mean():.1f}**. "
         f"Over the texts it varies by {spread:.1g}.")

# %%
choices = {"all tokens": few, "without the first": few & ~sink, "completion only": few
           & base.is_completion}
by_rows = []
for name in study.main_runs:
    values = {label: representations.cka(base.hidden[before][chosen],
            found[name].hidden[before][chosen]) for label, chosen in choices.items()}
    by_rows.append({"run": name, "one a text": from_base[name, before], **values})
by_rows = pd.DataFrame(by_rows)
by_rows.style.format(precision=4).hide(axis="index")

# %%
shift = (by_rows["all tokens"] - by_rows["without the first"]).abs().max()
Markdown(f"Debiased CKA with the base after layer {before}, tokens of the first "
         f"{len(np.unique(base.text[few]))} texts. Leaving out the first token "
         f"changes it by at most {shift:.4f}: our models' first token is "
         f"{'no' if length[sink].mean() < 10 * length[~sink].mean() else 'a'} sink of "
         f"the kind that large models have.")

# %% [markdown]
# What such a sink would do can be tried: make the first token's state longer in both models, by the same factor, and leave everything else. As a control, pair all *other* tokens at random, so that
# the two models have nothing in common but the sink.

# %%
partner = study.main_runs[0]
first, second = base.hidden[before][few].astype(float), found[partner].hidden[before][
    few].astype(float)
others = np.flatnonzero(~sink[few])
shuffled = second.copy()
shuffled[others] = second[rng.permutation(others)]
stretched = []
for exponent in (0, 0.5, 1, 1.5, 2):
    factor = np.where(sink[few], 10 ** exponent, 1.0)[:, None]
    for name, other in (("same tokens", second), ("others at random", shuffled)):
        stretched.append({"run": name, "exponent": exponent,
                          "cka": representations.cka(first * factor, other * factor)})
stretched = pd.DataFrame(stretched)

# %% mystnb={"image": {"alt": "Line plot of debiased CKA against the factor on the first token: one line near one throughout, the line for randomly paired tokens rising towards one"}, "figure": {"caption": "Debiased CKA of the base with SFT on all tokens of these texts when the first token's state is made longer: with the other tokens paired correctly, and at random.", "name": "fig-representations-sink"}}
figures.lines_of_runs({"all tokens as rows": stretched}, "exponent", "cka",
                      "log10 of the factor on the first token", "debiased CKA");

# %%
ends = stretched[stretched.run == "others at random"].cka.to_numpy()
Markdown(f"With all other tokens paired at random CKA goes from {ends[0]:.3f} to "
         f"**{ends[-1]:.3f}** as the first token becomes a hundred times longer.")

# %% [markdown]
# Debiasing is no help against {numref}`fig-representations-sink`: it leaves out each row's likeness to itself, but copies of one vector from different texts are different rows. A CKA over all tokens of a model with a sink reports that
# both have a sink. One completion token a text avoids it, which is the second reason for the choice made above.
#
# ## When has a model decided?
#
# The {term}`logit lens` reads a state in the middle as if it were the last one {cite:p}`nostalgebraist2020lens`: apply the final norm and the output matrix $W_U$, and take the most probable token. Its *depth* for a token is the first
# layer from which on that token stays the one the model ends with:
#
# ```{math}
# :label: eq-representations-lens
# \hat v_\ell = \arg\max_v \big[ W_U \operatorname{norm}(h_\ell) \big]_v, \qquad
# \text{depth} = \min \{ \ell : \hat v_{\ell'} = \hat v_{\text{last}} \text{ for all } \ell' \ge \ell \} .
# ```
#
# It is taken at the positions that predict a completion token. A depth equal to the number of layers means that the last layer still changed the choice.

# %% mystnb={"image": {"alt": "Line plot of the cumulative share of completion tokens decided by each layer, one line for the base and each of six objectives, reaching one at the last layer"}, "figure": {"caption": "Share of completion tokens whose final choice the logit lens shows from this layer on, by {eq}`eq-representations-lens`.", "name": "fig-representations-settled"}}
counts = {name: np.bincount(states.decided[states.decided >= 0], minlength=last + 1)
          for name, states in found.items()}
settled = pd.DataFrame([{"run": name, "layer": layer, "share": share} for name,
                        values in counts.items() for layer,
                        share in enumerate(np.cumsum(values) / values.sum())])
figures.lines_of_runs({"decided by this layer": settled}, "layer", "share", "layer",
                      "share of completion tokens");

# %%
share = pd.Series(counts["base"] / counts["base"].sum())
gap = np.ptp(settled.pivot(index="layer", columns="run", values="share").to_numpy(),
             axis=1).max()
Markdown(f"In the base, {share[0] + share[1]:.0%} of the tokens are decided by layer 1 "
         f"and {share[last]:.0%} only by the last layer; between them lie "
         f"{share[2:last].sum():.0%}. A mean depth summarises "
         f"{'a distribution with two ends' if min(share[0] + share[1], share[last]) > 0.25 else 'a broad distribution'}. "
         f"The lines of the models differ by at most {gap:.1%} at any layer.")

# %% [markdown]
# {numref}`fig-representations-settled` shows what a mean hides. Its interval comes from resampling texts, since tokens of one text are decided together.

# %% mystnb={"image": {"alt": "Dot plot of the mean logit lens depth with intervals for the base and six objectives, dashed line at the base"}, "figure": {"caption": "Mean depth by {eq}`eq-representations-lens` over completion tokens, with 95 % intervals over texts; dashed: the base.", "name": "fig-representations-depth"}}
def by_text(states):
    """Summed depth and number of positions of each text."""
    kept = states.decided >= 0
    return np.bincount(states.text[kept], states.decided[kept]), np.bincount(
        states.text[kept])


sums, positions = {name: by_text(states)[0] for name, states in found.items()}, by_text(
    base)[1]
depths = pd.DataFrame(
    [{"run": name,
      **dict(zip(("depth", "low", "high"), statistics.bootstrap_ratio(values,
        positions), strict=True))} for name, values in sums.items()])
figures.intervals(depths, "depth", "low", "high", f"logit lens depth, of {last} layers",
                  reference="base");

# %% [markdown]
# As with accuracies, all models read the same texts, so the differences from the base are tested in pairs: a t-test over texts of the summed change of depth, with Holm's correction for six comparisons {cite:p}`holm1979`.

# %%
compared = []
for name in study.main_runs:
    change, low, high = statistics.bootstrap_ratio(sums[name] - sums["base"], positions)
    compared.append({"run": name, "difference": change, "low": low, "high": high,
                     "p": ttest_1samp(sums[name] - sums["base"], 0).pvalue})
compared = store.write_table(profile, "depth",
                             pd.DataFrame(compared).assign(p_holm=lambda frame:
        statistics.holm(frame.p)))
figures.table(compared)

# %%
half = ((compared.high - compared.low) / 2).max()
Markdown(f"In {{numref}}`fig-representations-depth` the depths lie between "
         f"{depths.depth.min():.2f} and {depths.depth.max():.2f} of {last} layers. "
         f"{int((compared.p_holm < 0.05).sum())} of the six methods differ from the "
         f"base after correction; the largest difference is "
         f"**{compared.difference.abs().max():.3f}** layers, and intervals are at "
         f"most ±{half:.3f} wide, so a shift of a tenth of a layer would "
         f"{'have been' if half < 0.1 else 'not have been'} seen.")

# %% [markdown]
# ## The paper's numbers beside ours
#
# The paper compares hidden states on 100 prompts of GSM8K {cite:p}`nikolich2026geometry`. If its CKA is the plain one with one row a prompt, its chance level is somewhere between zero and the .963 of {eq}`eq-representations-chance`, according to how
# many directions its states fill. Then neither .85 nor .45 says by itself how far above chance it is. Ours are debiased.

# %%
stated = {("sft", "rift"): "> .99", ("sft", "offline-grpo"): "about .85",
          ("rift", "offline-grpo"): "about .85", ("offline-grpo", "dpo"):
          "about .45, from .93", ("dft", "dpo"): "about .45, from .93"}


def beside_paper(among):
    """The paper's pairs in a table of CKA: after the last layer with its interval, at two thirds of the depth, and in the plain form."""
    keyed, final = among.set_index(["run_a", "run_b", "layer"]), among.layer.max()
    third = round(final * 2 / 3)
    return pd.DataFrame([{"pair": " – ".join(figures.LABELS[name] for name in pair),
                          "paper, last layer": value,
                          "ours, last layer": keyed.debiased[(*pair, final)],
                          "low": keyed.low[(*pair, final)],
                          "high": keyed.high[(*pair, final)], f"ours, layer {third}":
                          keyed.debiased[(*pair, third)],
                          "plain, last layer": keyed.biased[(*pair, final)]} for pair,
                         value in stated.items()])


beside, early = beside_paper(table), round(last * 2 / 3)
figures.table(beside)

# %%
ours = beside.set_index("pair")["ours, last layer"]
drops = beside[f"ours, layer {early}"] - beside["ours, last layer"]
Markdown(f"SFT and RIFT are at {ours.iloc[0]:.3f} here (paper: above .99). From layer "
         f"{early} to the last, Offline GRPO – DPO falls by {drops.iloc[3]:.3f} and "
         f"DFT – DPO by {drops.iloc[4]:.3f}; in the paper both fall by about .48 from "
         f"layer 25 of 36 on. As a share of the layers our depths are "
         f"{depths.depth.min() / last:.2f} to {depths.depth.max() / last:.2f}, a "
         f"range of {np.ptp(depths.depth) / last:.1%}; the paper's are "
         f"{35.3 / 36:.2f} to {36 / 36:.2f}, a range of {0.7 / 36:.1%}, which it "
         f"reads as no difference.")

# %% [markdown]
# What do other seeds say? The same pairs from the replicas of each method, at the same two layers; and as the control of "the same representation", SFT beside SFT from another seed.

# %%
wanted = {name for pair in stated for name in pair}
again = {(method, seed): found[method] if name == method
         else representations.states(answering.load_model_of(study, study.runs[name]),
        prompts, completions) for seed, group in replication.replicas(study).items()
         for method, name in group.items() if method in wanted}
seeds = sorted({seed for _, seed in again})
pairs = [((a, seed), (b, seed)) for a, b in stated for seed in seeds] + [
    (("sft", seeds[0]), ("sft", seed)) for seed in seeds[1:]]
lines = [{"layer": layer, "run_a": a, "run_b": b, "seed_a": seed_a, "seed_b": seed_b,
          "debiased": representations.cka(*(again[key].hidden[layer][rows]
        for key in ((a, seed_a), (b, seed_b))))} for layer in (early, last)
         for (a, seed_a), (b, seed_b) in pairs]
over_seeds = store.write_table(profile, "replicas_cka", pd.DataFrame(lines))
ranges = over_seeds.groupby(["run_a", "run_b", "layer"], sort=False).debiased.agg(
    ["min", "max"]).reset_index()
figures.table(ranges)

# %% [markdown]
# The pair of SFT with itself is the yardstick for two runs that share no seed. It is no ceiling: methods at one seed also share the initial adapter and the order of the prompts and can lie above it, and where they do, the seed changed the representations more than the loss did.
#
# Two things keep these columns apart besides the form of CKA. Our texts are completions of the teacher, its are prompts. And a model of a few layers trained on one kind of problem has fewer ways to differ than one of 36 layers. For
# the depth the paper reports a null result. Whether a range of that size is nothing, or a small effect, only a paired test can say, and the table of differences above is one: small does not mean absent, and significant does not mean large.
#
# ## On a pretrained model
#
# CKA with the base once more, for SmolLM2-135M-Instruct, from weights rounded to four bits and adapted to the problems ([how](22_pretrained.ipynb)). It has thirty layers, nearly as many as the paper's model. To write down the states of so many layers takes minutes, so the table comes with the book.

# %% mystnb={"image": {"alt": "Line plot of debiased CKA with the base against the layer, thirty layers, for six objectives in the pretrained model"}, "figure": {"caption": "Debiased CKA of each trained model with the base in the pretrained model, layer by layer, with 95 % jackknife intervals.", "name": "fig-representations-pretrained"}}
table_second = store.read_table(pretrained, "cka")
figures.lines_of_runs({"against the base": pairs_with("base", table_second)}, "layer",
                      "debiased", "layer", "debiased CKA");

# %%
figures.table(beside_paper(table_second))

# %%
nearest_second = pairs_with("base",
                            table_second).query("layer == layer.max()").set_index(
                                "run").debiased
Markdown(f"In {{numref}}`fig-representations-pretrained` the furthest from the base "
         f"after the last layer is {figures.LABELS[nearest_second.idxmin()]} "
         f"({nearest_second.min():.3f}), the nearest "
         f"{figures.LABELS[nearest_second.idxmax()]} ({nearest_second.max():.3f}). "
         f"The table above has the paper's pairs. "
         f"{store.table_origin(pretrained, 'cka')}")

# %% [markdown]
# ## Try it
#
# 1. Compute the plain CKA of the base's states after layer 1 with those of *its own* layer 3 under permuted rows, with 20 rows instead of all. What do you expect?
#
# ````{dropdown} What happens
# By {eq}`eq-representations-chance` the chance level of the plain form rises as rows become fewer, roughly as one over $n - 1$ as long as there are more rows than directions that the states fill, and towards one when there are fewer.
# `by_permutation(base.hidden[1][rows[:20]], base.hidden[3][rows[:20]])` shows it; the debiased mean stays near zero and only its band widens.
# ````
#
# 2. Take two rows a text instead of one and use the jackknife over *rows* in place of texts. Is the interval right?
#
# ````{dropdown} Answer
# It is too short. Two rows of one text move together, and leaving out one of them while the other stays shows too little of what another choice of texts would do. `representations.cka_interval` leaves out
# whole texts for that reason.
# ````
#
# 3. Multiply one single feature by a hundred in both models before computing CKA. What happens to differences between methods?
#
# ````{dropdown} What happens
# The kernels become nearly those of this one feature, and CKA its squared correlation between the two models. Everything the other features do disappears. Linear CKA weighs directions by their variance, which is why it tells little about the weak ones.
# ````
#
# 4. Compute the depth at prompt tokens. Why might it be larger?
#
# ````{dropdown} Answer
# Words of a problem are hard to predict, as names and numbers come at random, so the last layers may still change the choice. `states` reads the lens only where a completion token follows; the change is one line in a copy of it.
# ````
#
# ## Summary
#
# CKA is a cosine again, of tables of likenesses, and like every cosine it needs its chance level. Debiased, on one token a text and with a jackknife over texts, that level is zero with a narrow band. With all tokens and a sink it would be near one.
# Where the models of this book stand is in {numref}`fig-representations-pairs`, with the base among them. The lens adds at which layer a choice is made, and whether the methods differ in it. The [verdict](23_verdict.ipynb) sets these numbers beside the paper's claims.
