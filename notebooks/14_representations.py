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
from helpers import profiles, store
from helpers.analysis import cka_tables
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
states = {name: representations.states(answering.load_model_of(study, run), prompts,
                                       completions) for name, run in runs.items()}
base = states["base"]
last, width = len(base.hidden) - 1, base.hidden.shape[2]
Markdown(f"""{len(texts)} texts, {len(base.text)} tokens, {last} layers, {width}
features per token.""")

# %% [markdown]
# Whether the last of these states is taken before or after the final norm is a convention of the library. The {term}`logit lens` below relies on it, so it is
# checked: the output matrix, applied to the last state, must give the model's own logits.

# %%
model = answering.load_model_of(study, "base")
ids = torch.tensor([[*prompts[0], *completions[0]]], device=model.device)
final = torch.from_numpy(base.hidden[last][base.text == 0])
with torch.inference_mode():
    logits = model(input_ids=ids).logits[0]
    from_states = model.lm_head(final.to(model.device, model.dtype))
assert torch.allclose(logits, from_states, atol=1e-3)

# %% [markdown]
# ## Alike up to a rotation
#
# Let $X$ hold the states of $n$ tokens in one model, one row per token, and $Y$ those of the same tokens in another. Feature 17 of one model has no
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


rows = representations.one_token_per_text(base)
X, Y = (states[name].hidden[last][rows] for name in ("base", "sft"))
plain = cosine(kernel(X), kernel(Y))
assert np.isclose(plain, representations.cka(X, Y, debiased=False))

# %%
rng = np.random.default_rng(0)
rotation, _ = np.linalg.qr(rng.standard_normal((width, width)))
assert np.isclose(plain, cosine(kernel(X), kernel(3 * Y @ rotation + 1)))
Markdown(f"""After the last layer the base and SFT have a plain CKA of **{plain:.4f}**,
and the same after SFT's features were rotated, tripled and shifted.""")

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
Markdown(f"""Two sets of *independent* Gaussian numbers have a plain CKA of
**{cosine(kernel(A), kernel(B)):.3f}**; {{eq}}`eq-representations-chance` says
{2560 / 2660:.3f}.""")

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
    total = K.sum() * L.sum() / ((n - 1) * (n - 2))
    rowwise = 2 * K.sum(0) @ L.sum(0) / (n - 2)
    return ((K * L).sum() + total - rowwise) / (n * (n - 3))


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
at = simulated.set_index(["run", "n"])
Markdown(f"""With 100 rows the plain form gives {at.value['plain', 100]:.3f} and the
debiased one {at.value['debiased', 100]:+.3f} with a standard deviation of
{at.sd['debiased', 100]:.3f}; with 1,000 rows the plain form still gives
{at.value['plain', 1000]:.3f}, as $d / (d + n)$ = {2560 / 3560:.3f} says.""")

# %% [markdown]
# A plain CKA is therefore read against its own chance level, never against zero. {numref}`fig-representations-bias` is the worst case, features without
# structure. Hidden states have a few strong directions, and {eq}`eq-representations-chance` then gives less.
#
# ## Chance for these models
#
# That level can be had without any assumption: permute the rows of one model, as in {eq}`eq-representations-chance`. All structure within each model stays, only the pairing is gone.

# %%
def by_permutation(X, Y, draws=100):
    """CKA over random pairings of the rows, and what the plain form expects."""
    K, L = kernel(X), kernel(Y)
    orders = [rng.permutation(len(K)) for _ in range(draws)]
    plain = [cosine(K, L[order][:, order]) for order in orders]
    unbiased = [debiased(K, L[order][:, order]) for order in orders]
    lengths = np.linalg.norm(K) * np.linalg.norm(L)
    low, high = np.quantile(unbiased, [0.025, 0.975])
    return {"plain, expected": K.trace() * L.trace() / ((len(K) - 1) * lengths),
            "plain, mean": np.mean(plain), "debiased, mean": np.mean(unbiased),
            "debiased, low": low, "debiased, high": high}


by_chance = pd.DataFrame([by_permutation(before[rows], after[rows]) for before, after
                          in zip(base.hidden, states["sft"].hidden, strict=True)])
by_chance.rename_axis("layer").style.format("{:.3f}")

# %%
mean, ends = by_chance["plain, mean"], by_chance[["debiased, low", "debiased, high"]]
Markdown(f"""For base and SFT the plain form has a chance level of {mean.min():.2f} to
{mean.max():.2f} over the layers, on {len(rows)} rows. The debiased form is within
±{ends.abs().max().max():.3f} in 95 cases of a hundred.""")

# %% [markdown]
# ## Rows and intervals
#
# The rows of this table are *one completion token of each text*, drawn at random (`representations.one_token_per_text`). Tokens of one text share a problem, names and numbers. Their
# states depend on each other, and a hundred of them carry less information than a hundred texts. With one row per text the rows are independent.
#
# For an interval one would reach for the bootstrap. It fails here, and instructively so: it draws rows with replacement, a row that was drawn twice is perfectly like its copy in both models, and
# with these pairs the diagonal that the debiased form leaves out comes back by another door. On randomly paired rows, where the truth is zero:

# %%
K, L = kernel(X), kernel(Y[rng.permutation(len(Y))])
drawn = [debiased(K[np.ix_(order, order)], L[np.ix_(order, order)])
         for order in rng.integers(len(K), size=(200, len(K)))]
Markdown(f"""The debiased CKA of the randomly paired rows is {debiased(K, L):+.3f}; its
bootstrap distribution has the mean **{np.mean(drawn):+.3f}** and covers
{np.quantile(drawn, 0.025):+.3f} to {np.quantile(drawn, 0.975):+.3f}.""")

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
table = store.write_table(profile, "cka", representations.cka_table(states, rows))
final = table[table.layer == last].sort_values("debiased")
sft = final[(final.run_a == "base") & (final.run_b == "sft")].iloc[0]
interval = representations.cka_interval(X, Y, base.text[rows])
assert np.allclose([sft.debiased, sft.low, sft.high], interval)
figures.table(final.iloc[[0, 1, 2, -3, -2, -1]])

# %% [markdown]
# These are the three least and the three most similar pairs of the 21 after the last layer, by {eq}`eq-representations-hsic` with the interval of {eq}`eq-representations-jackknife`.
#
# ## How far from the base?

# %% mystnb={"image": {"alt": "Line plot of debiased CKA with the base against the layer for six objectives, starting at one before the first layer"}, "figure": {"caption": "Debiased CKA of each trained model with the base, layer by layer (0: before the first layer; last: after the final norm), with 95 % jackknife intervals. Chance is zero, far below the axis.", "name": "fig-representations-base"}}
def pairs_with(name, among=table):
    """The rows of a table of CKA with the model `name`, the other model as `run`."""
    first, second = among[among.run_a == name], among[among.run_b == name]
    return pd.concat([second.assign(run=second.run_a), first.assign(run=first.run_b)])


figures.lines_of_runs({"against the base": pairs_with("base")}, "layer", "debiased",
                      "layer", "debiased CKA");

# %%
with_base = pairs_with("base")
lowest = with_base.sort_values("debiased").iloc[0]
from_base = with_base.pivot(index="layer", columns="run", values="debiased")
steps = sorted(set(from_base.diff().idxmin()))
Markdown(f"""Layer 0 is exactly one for all, because no adapter touches the embeddings.
The lowest value of {{numref}}`fig-representations-base` is **{lowest.debiased:.3f}**
({figures.LABELS[lowest.run]}, layer {lowest.layer}). The largest step down is at
layer {', '.join(str(layer) for layer in steps)}.""")

# %% [markdown]
# Does CKA see anything but how far a model moved? Beside the norm of each update:

# %%
adapters = {name: trainer.update_of(study, name) for name in study.main_runs}
norms = {name: updates.norm(update) for name, update in adapters.items()}
moved = pd.DataFrame({
    "run": list(runs), "norm of the update": [norms.get(name, 0.0) for name in runs]})
for heading, layer in (("1 - CKA, half way", last // 2), ("1 - CKA, last", last)):
    moved[heading] = moved.run.map(1 - from_base.loc[layer]).fillna(0.0)
figures.table(moved)

# %%
trained = moved[moved.run != "base"].set_index("run")
norm, half_way, final = (trained[column] for column in trained)
at_half, at_last = (statistics.rank_correlation(norm, distance)
                    for distance in (half_way, final))
Markdown(f"""Over the six methods the rank correlation of the norm with the distance
from the base is {at_half[0]:+.2f} half way and {at_last[0]:+.2f} after the last layer
({at_last[1]:+.2f} to {at_last[2]:+.2f} for random orders). The shortest update is
{figures.LABELS[norm.idxmin()]}'s, and the nearest to the base after the last layer
is {figures.LABELS[final.idxmin()]}.""")

# %% [markdown]
# With six points that is a hint, no more. But a high CKA with the base need not mean that an objective is gentle on representations; it may only mean that
# it moved the weights little.
#
# ## How far from SFT, and from each other?

# %% mystnb={"image": {"alt": "Line plot of debiased CKA with SFT against the layer for the base and five other objectives, starting at one before the first layer"}, "figure": {"caption": "The same with SFT as the partner; the base is now one of the lines.", "name": "fig-representations-sft"}}
figures.lines_of_runs({"against SFT": pairs_with("sft")}, "layer", "debiased", "layer",
                      "debiased CKA");

# %%
after = pairs_with("sft").query("layer == @last").set_index("run").debiased
nearest = [f"{figures.LABELS[run]} {value:.3f}"
           for run, value in after.sort_values(ascending=False).items()]
Markdown(f"""After the last layer of {{numref}}`fig-representations-sft`, from the
nearest to SFT: {', '.join(nearest)}.""")

# %% mystnb={"image": {"alt": "Symmetric matrix of one minus debiased CKA in hundredths between base and six objectives after the last layer"}, "figure": {"caption": "Distance of all pairs after the last layer: 1 − debiased CKA, in hundredths. Unrelated models would be at 100.", "name": "fig-representations-pairs"}}
names = list(runs)
distance = np.zeros((len(names), len(names)))
for row in table[table.layer == last].itertuples():
    a, b = names.index(row.run_a), names.index(row.run_b)
    distance[a, b] = distance[b, a] = 100 * (1 - row.debiased)
figures.matrix(distance, names, "100 (1 - CKA)", 0, max(distance.max(), 1e-6));

# %%
others = np.where(np.eye(len(names), dtype=bool), np.inf, distance)
nearest = {name: names[row.argmin()] for name, row in zip(names, others, strict=True)}
pairs = ", ".join(f"{figures.LABELS[name]} – {figures.LABELS[other]}"
                  for name, other in nearest.items())
with_base = [figures.LABELS[name] for name, other in nearest.items() if other == "base"]
Markdown(f"The nearest neighbour of each in {{numref}}`fig-representations-pairs`: "
         f"{pairs}. The base is the nearest of {len(with_base)} of the six"
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
first_token, others = length[sink].mean(), length[~sink].mean()
Markdown(f"""In the base, after layer {before}, the first token's state has the norm
{first_token:.1f} and the others {others:.1f} on average: a ratio of
**{first_token / others:.1f}**. Over the texts it varies by
{base.hidden[before][sink].std(0).max():.1g}.""")

# %%
choices = {"all tokens": few, "without the first": few & ~sink,
           "completion only": few & base.is_completion}
by_rows = pd.DataFrame([
    {"run": name, "one per text": from_base.loc[before, name]}
    | {label: representations.cka(base.hidden[before][chosen],
                                  states[name].hidden[before][chosen])
       for label, chosen in choices.items()} for name in study.main_runs])
by_rows.style.format(precision=4).hide(axis="index")

# %%
shift = (by_rows["all tokens"] - by_rows["without the first"]).abs().max()
Markdown(f"""Debiased CKA with the base after layer {before}, tokens of the first
{len(np.unique(base.text[few]))} texts. Leaving out the first token changes it by at
most {shift:.4f}: our models' first token is
{'no' if first_token < 10 * others else 'a'} sink of the kind that large models
have.""")

# %% [markdown]
# What such a sink would do can be tried: make the first token's state longer in both models, by the same factor, and leave everything else. As a control, pair all *other* tokens at random, so that
# the two models have nothing in common but the sink.

# %%
first, second = (states[name].hidden[before][few].astype(float) for name in names[:2])
after_first = np.flatnonzero(~sink[few])
shuffled = second.copy()
shuffled[after_first] = second[rng.permutation(after_first)]
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
Markdown(f"""With all other tokens paired at random CKA goes from {ends[0]:.3f} to
**{ends[-1]:.3f}** as the first token becomes a hundred times longer.""")

# %% [markdown]
# Debiasing is no help against {numref}`fig-representations-sink`: it leaves out each row's likeness to itself, but copies of one vector from different texts are different rows. A CKA over all tokens of a model with a sink reports that
# both have a sink. One completion token per text avoids it, which is the second reason for the choice made above.
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
counts = {name: np.bincount(each.decided[each.decided >= 0], minlength=last + 1)
          for name, each in states.items()}
settled = pd.concat([
    pd.DataFrame({"run": name, "layer": range(last + 1),
                  "share": np.cumsum(values) / values.sum()})
    for name, values in counts.items()], ignore_index=True)
figures.lines_of_runs({"decided by this layer": settled}, "layer", "share", "layer",
                      "share of completion tokens");

# %%
share = counts["base"] / counts["base"].sum()
early, late = share[:2].sum(), share[last]
by_layer = settled.pivot(index="layer", columns="run", values="share").to_numpy()
kind = "distribution with two ends" if min(early, late) > 0.25 else "broad distribution"
Markdown(f"""In the base, {early:.0%} of the tokens are decided by layer 1 and
{late:.0%} only by the last layer; between them lie {share[2:last].sum():.0%}. A mean
depth summarises a {kind}. The lines of the models differ by at most
{np.ptp(by_layer, axis=1).max():.1%} at any layer.""")

# %% [markdown]
# {numref}`fig-representations-settled` shows what a mean hides. Its interval comes from resampling texts, since tokens of one text are decided together.

# %% mystnb={"image": {"alt": "Dot plot of the mean logit lens depth with intervals for the base and six objectives, dashed line at the base"}, "figure": {"caption": "Mean depth by {eq}`eq-representations-lens` over completion tokens, with 95 % intervals over texts; dashed: the base.", "name": "fig-representations-depth"}}
def by_text(each):
    """Summed depth and number of positions of each text."""
    texts, depths = (part[each.decided >= 0] for part in (each.text, each.decided))
    return np.bincount(texts, depths), np.bincount(texts)


sums = {name: by_text(each)[0] for name, each in states.items()}
positions = by_text(base)[1]
depths = pd.DataFrame([(name, *statistics.bootstrap_ratio(values, positions))
                       for name, values in sums.items()],
                      columns=["run", "depth", "low", "high"])
figures.intervals(depths, "depth", "low", "high", f"logit lens depth, of {last} layers",
                  reference="base");

# %% [markdown]
# As with accuracies, all models read the same texts, so the differences from the base are tested in pairs: a t-test over texts of the summed change of depth, with Holm's correction for six comparisons {cite:p}`holm1979`.

# %%
compared = []
for name in study.main_runs:
    deeper = sums[name] - sums["base"]
    change, low, high = statistics.bootstrap_ratio(deeper, positions)
    compared.append({"run": name, "difference": change, "low": low, "high": high,
                     "p": ttest_1samp(deeper, 0).pvalue})
compared = pd.DataFrame(compared).assign(p_holm=lambda rows: statistics.holm(rows.p))
figures.table(store.write_table(profile, "depth", compared))

# %%
half = ((compared.high - compared.low) / 2).max()
Markdown(f"""In {{numref}}`fig-representations-depth` the depths lie between
{depths.depth.min():.2f} and {depths.depth.max():.2f} of {last} layers.
{int((compared.p_holm < 0.05).sum())} of the six methods differ from the base after
correction; the largest difference is **{compared.difference.abs().max():.3f}** layers,
and intervals are at most ±{half:.3f} wide, so a shift of a tenth of a layer would
{'have been' if half < 0.1 else 'not have been'} seen.""")

# %% [markdown]
# ## The paper's numbers beside ours
#
# The paper compares hidden states on 100 prompts of GSM8K {cite:p}`nikolich2026geometry`. If its CKA is the plain one with one row per prompt, its chance level is somewhere between zero and the .963 of {eq}`eq-representations-chance`, according to how
# many directions its states fill. Then neither .85 nor .45 says by itself how far above chance it is. Ours are debiased.

# %%
stated = {("sft", "rift"): "> .99", ("sft", "offline-grpo"): "about .85",
          ("rift", "offline-grpo"): "about .85",
          ("offline-grpo", "dpo"): "about .45, from .93",
          ("dft", "dpo"): "about .45, from .93"}


def beside_stated(among):
    """The paper's values for pairs beside those of a table of CKA."""
    values = cka_tables.of_pairs(among, list(stated))
    values.insert(0, "paper, last layer", list(stated.values()))
    values.insert(0, "pair", [f"{figures.LABELS[a]} – {figures.LABELS[b]}"
                              for a, b in stated])
    return values


comparison = beside_stated(table)
figures.table(comparison)

# %%
early = round(last * 2 / 3)
ours = comparison["ours, last layer"]
drops = comparison[f"ours, layer {early}"] - ours
shares = depths.depth / last
Markdown(f"""SFT and RIFT are at {ours.iloc[0]:.3f} here (paper: above .99). From layer
{early} to the last, Offline GRPO – DPO falls by {drops.iloc[3]:.3f} and DFT – DPO by
{drops.iloc[4]:.3f}; in the paper both fall by about .48 from layer 25 of 36 on. As a
share of the layers our depths are {shares.min():.2f} to {shares.max():.2f}, a range of
{np.ptp(depths.depth) / last:.1%}; the paper's are {35.3 / 36:.2f} to {36 / 36:.2f}, a
range of {0.7 / 36:.1%}, which it reads as no difference.""")

# %% [markdown]
# What do other seeds say? The same pairs from the replicas of each method, at the same two layers; and as the control of "the same representation", SFT beside SFT from another seed.

# %%
replicas = cka_tables.over_seeds(study, states, rows, list(stated), [early, last])
over_seeds = store.write_table(profile, "replicas_cka", replicas)
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
figures.table(beside_stated(table_second))

# %%
final = pairs_with("base", table_second).query("layer == layer.max()")
nearest_second = final.set_index("run").debiased
Markdown(f"""In {{numref}}`fig-representations-pretrained` the furthest from the base
after the last layer is {figures.LABELS[nearest_second.idxmin()]}
({nearest_second.min():.3f}), the nearest {figures.LABELS[nearest_second.idxmax()]}
({nearest_second.max():.3f}). The table above has the paper's pairs.
{store.table_origin(pretrained, 'cka')}""")

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
# 2. Take two rows per text instead of one and use the jackknife over *rows* in place of texts. Is the interval right?
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
# CKA is a cosine again, of tables of likenesses, and like every cosine it needs its chance level. Debiased, on one token per text and with a jackknife over texts, that level is zero with a narrow band. With all tokens and a sink it would be near one.
# Where the models of this book stand is in {numref}`fig-representations-pairs`, with the base among them. The lens adds at which layer a choice is made, and whether the methods differ in it. The [verdict](23_verdict.ipynb) sets these numbers beside the paper's claims.
