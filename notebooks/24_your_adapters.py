# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [adapters, held-out]
# ---

# %% [markdown]
# # Your own adapters
#
# *Previously,* [the verdict](23_verdict.ipynb) closed the study of six adapters. *Now* the same analysis is one command for any set of adapters or fine-tuned models that
# share a base model, and this page says what it reads, what it refuses, what it computes, and how far to trust the answer. The book's own six adapters stand in for yours; those of a pretrained model are the worked example.
#
# **Key takeaways**
# - One command or one call compares any adapters of one base model, each number with its chance level. What has no such update, or cannot be read for certain, is refused by name.
# - A cosine needs a yardstick twice: what unrelated updates give, and what another seed of the same method gives.
# - A question without an answer, such as the direction of a zero update, gets NaN and not a number that looks like one.
# - Counts of {term}`intruder dimensions <intruder dimension>` follow the *length* of an update: read them beside an update of equal length that has no meaning.
# - A weighted sum of adapters is exact as factors of the summed rank; what a smaller rank loses is a number that one can ask for.
#
# You need: [norms and cosines](10_norms.ipynb), [principal angles](11_angles.ipynb). Reads all six runs, and the adapters of the pretrained model, which come with the book. Time to run: under a minute, once they exist.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing
pretrained = "smollm2-135m"  # the study whose adapters are the worked example

# %%
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from IPython.utils.capture import capture_output
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import adapter_geometry
from adapter_geometry import geometry, spectra, updates
from adapter_geometry.adapters import load_update
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.cli import main
from adapter_geometry.spectra import THRESHOLD, TOP
from adapter_geometry.updates import Factors
from helpers import profiles, store
from helpers.analysis import edits
from helpers.book import figures
from helpers.evaluation import answering, statistics
from helpers.models import loading
from helpers.training import trainer

study = profiles.load(profile)
figures.use_style(study)
os.environ["COLUMNS"] = "78"  # of the page, as of a terminal
temporary = tempfile.TemporaryDirectory()
scratch = Path(temporary.name)
cache = store.results(study.name) / "decompositions"

# %% [markdown]
# ## One command, one call
#
# In a terminal, with folders or hub names of the form `owner/name`, with `@revision` and `/folder` if wanted:
#
# ```bash
# adapter-geometry compare run-a/adapter run-b/adapter third=elsewhere/lora \
#     --base path/to/base-model --reference run-a --out report
# ```
#
# The first adapter is the *reference* unless another is named; `NAME=FOLDER` gives a name of your own. Without `--base`, everything that needs only the factors
# is computed; with it, also relative norms, intruder dimensions and {term}`spectral shifts <spectral shift>`; with `--texts FILE`, also losses along paths, {term}`CKA <centred kernel alignment>` and behaviour; with `--group sft=run-a,run-b`, given once for each method, mean cosines of methods over their seeds. For programs, `--json` prints the numbers and `--fail-on 'cosine<0.9'` ends
# with exit code 1 where that holds. Four other commands take one adapter or write one:
#
# ```bash
# adapter-geometry inspect run-a/adapter --base path/to/base-model
# adapter-geometry combine merged run-a/adapter run-b/adapter --weights .5 .5
# adapter-geometry compress small run-a/adapter --rank 8
# adapter-geometry export plain checkpoints/saved-by-another-trainer
# ```
#
# `inspect` says how long an update is, what rank it uses and which modules are dead or stand out; `combine` writes a weighted sum, `compress` the best approximation of a rank with what it loses, and `export` an adapter of another saver or kind as plain LoRA factors. [The tool's Python interface](../api.md) lists the
# functions behind them. That of `compare` takes a list or a dictionary of folders:

# %%
folders = {name: trainer.train(study, study.runs[name]) / "adapter"
           for name in study.main_runs}
base = scratch / "base"
for part in (loading.load_model(study), loading.load_tokenizer(study)):
    part.save_pretrained(base)
report = adapter_geometry.compare_adapters(folders, base=base, reference="sft",
                                           cache=cache)
print(report.summary())

# %% [markdown]
# First come findings in sentences, then the table that they are written from. A cosine and an angle are followed by where chance would put them. *By chance, up to* is the upper end of the wider of two bands: of unrelated updates with the same spectra, and of Gaussian $B$ on the $A$ that each has. *By chance, from* is the lower end of
# the band of medians over as many random subspaces, so a cosine speaks when it is above the first and an angle when it is below the second.

# %%
cosine = report.tables["cosine"].query("scope == 'global' and run_a == 'sft'")
cosine = cosine.set_index("run_b")
cosine["limit"] = cosine[["chance_high", "gaussian_high"]].max(axis=1)
inside = cosine.query("-limit <= cosine <= limit").index
angles = report.tables["angles"].query("side == 'left' and index == 1")
angles = angles.query("scope == 'global' and run_a == 'sft'").set_index("run_b")
near = angles.query("degrees < chance_low").index
in_band, near_sft = (", ".join(figures.LABELS[run] for run in runs) or "none"
                     for runs in (inside, near))
Markdown(f"""Of the {len(cosine)} others, the cosine with SFT lies within its band
for: {in_band}. The median smallest angle with SFT lies below its band
for: {near_sft}.""")

# %% [markdown]
# An adapter in the first list and in the second shares directions with SFT and yet has no cosine with it. The page on [angles](11_angles.ipynb) explains how both can be true.
#
# ## A worked example
#
# The adapters of [the pretrained model](22_pretrained.ipynb) come with the book: six methods with one seed, and SFT once more with another. What does the report say of them, and what would one do?

# %%
trained = {run: store.find(pretrained, f"runs/{run}/run.json").parent / "adapter"
           for run in [*profiles.load(pretrained).main_runs, "sft-43-43"]}
example = adapter_geometry.compare_adapters(trained)
print(example.summary())

# %%
measured = {each["name"]: each for each in example.as_json()["adapters"]}
cosines = pd.Series({name: each["cosine"] for name, each in measured.items()})
alike, dpo = cosines[["rft", "rift", "offline-grpo"]], measured["dpo"]
Markdown(f"""SFT with another seed has a cosine of
**{cosines['sft-43-43']:.2f}** with SFT.
RFT, RIFT and Offline GRPO, with SFT's seed, have {alike.min():.2f} to
{alike.max():.2f}, DFT {cosines['dft']:.2f}. DPO's cosine of {cosines['dpo']:.3f} is
above chance, up to {dpo['cosine_chance']:.3f}; its smallest angle is
{dpo['angle']:.0f} degrees where chance begins at {dpo['angle_chance']:.0f}; and its
update is {1 / dpo['norm_ratio']:.0f} times shorter than SFT's.""")

# %% [markdown]
# All of these cosines are far beyond chance, so each of the six has something in common with SFT; that alone is a weak statement, for they have the base, the problems and, but for the last, the initial $A$ and the order of the rows in common too. The second yardstick is the other seed. Methods that share a seed are nearer to
# one another than SFT is to itself, so a part of their likeness belongs to the seed and not to the method. What one would do:
#
# - *RFT and RIFT beside SFT.* Treat them as variants of one update. To claim a difference between them, train each with several seeds, and compare within a seed and across seeds ([here](16_seeds.ipynb)); before two of them are shipped, test whether their answers differ at all.
# - *DFT.* Less like SFT than SFT is with another seed: the difference is larger than the one that this seed makes, and a third seed would say how firm that is. Look at the maps of the report for where it is: in all layers, or in a few.
# - *DPO.* Short, and partly in SFT's directions. Its length asks for a control first, DPO at a [matched rate](17_matched_dpo.ipynb), before its direction is called a property of the method. A merge of both is SFT's in all but name; what compression does to the shorter part comes further down.
#
# The first thing to look at in any one of them is itself:

# %%
lines = adapter_geometry.inspect_adapter(trained["dft"]).lines()
print("\n".join(lines).replace(f"{store.ROOT}/", ""))

# %% [markdown]
# Few of the singular values hold most of the update, fewer in the values than in the queries and keys, and no module is dead: the rank of the factors leaves room, and `compress` would say what a smaller one loses. A module at a hundredth of the norm of its kind, or at zero, would be named here, and would be the first thing to explain.
#
# ## What is read
#
# A PEFT folder {cite:p}`mangrulkar2022peft` holds a configuration and a file of factors. The rank $r_m$ and the numerator $\alpha_m$ may differ from module to module (`rank_pattern`, `alpha_pattern`), and
# rank-stabilised LoRA {cite:p}`kalajdzievski2023rslora` divides by a root. So each module $m$ has its own scale,
#
# ```{math}
# :label: eq-adapters-scale
# \Delta W_m = s_m B_m A_m , \qquad s_m = \frac{\alpha_m}{r_m} \quad\text{or, with rsLoRA,}\quad s_m = \frac{\alpha_m}{\sqrt{r_m}} .
# ```
#
# An adapter with all three, made by PEFT and read back:

# %%
config = LoraConfig(r=8, lora_alpha=16, use_rslora=True,
                    target_modules=["q_proj", "v_proj"],
                    rank_pattern={"layers.0.self_attn.q_proj": 2},
                    alpha_pattern={"v_proj": 4}, task_type="CAUSAL_LM")
patterned = get_peft_model(loading.load_model(study), config)
patterned.save_pretrained(scratch / "patterns")
read = adapter_geometry.load_update(scratch / "patterns")
rows = [(module, factors.A.shape[0], factors.scale) for module, factors in read.items()]
figures.table(pd.DataFrame(rows, columns=["module", "rank", "scale"]).head(4))

# %% [markdown]
# Adapters with different modules are compared on those that all have, and the report names what was left out. Ranks may differ too. The patterned adapter beside SFT:

# %%
both, left_out = adapter_geometry.common_modules(
    {"sft": load_update(folders["sft"]), "patterns": read})
Markdown(f"""In common: {len(both['sft'])} modules. Left out of SFT:
{len(left_out['sft'])}, for example `{left_out['sft'][0]}`; left out of the
other: {len(left_out['patterns'])}.""")

# %% [markdown]
# Everything on these pages is algebra on $s B A$, so whatever else is read becomes such factors first, and what that loses is said:
#
# - **Other savers.** Names that `torch.compile`, FSDP, DDP or checkpoint wrappers leave behind, the adapter's own name in a key, a missing prefix, MLX, several files: matched, and noted. Where a folder holds its adapters in subfolders, these are named.
# - **Other kinds.** DoRA, LoHa, LoKr, AdaLoRA, OFT, fused experts and more: the difference that PEFT itself makes when it merges, module by module. Most need `--base`. A difference of high rank is cut at 64, or at `--rank`, and the relative error is stated.
# - **Whole models.** A fine-tuned or merged model, with `--base`: $W_1 - W_0$, one matrix at a time, cut in the same way. So a full fine-tune can stand beside an adapter. What is stored in bfloat16 holds rounding too, which has no direction and lowers every cosine of a short update.
# - **The base.** $W_0$ is what the model computes with: FP8 with scales, LLM.int8, bitsandbytes' 4 bits and compressed-tensors are dequantised; formats whose arithmetic isn't certain are refused by their name.
#
# ## What is refused
#
# A trained head, biases and tokens are no update of a weight matrix, and a NaN spoils every sum that it enters. A tool that
# quietly left such parts out would compare something other than the models. So the folder is refused, with the file, the reason and a way out; for heads and their like that is `--lora-only`, which leaves them out and says so:

# %%
def damaged(name, change, **settings):
    """A copy of SFT's adapter with other settings and a change made to its weights."""
    folder = shutil.copytree(folders["sft"], scratch / name)
    configuration = folder / "adapter_config.json"
    fields = json.loads(configuration.read_text()) | settings
    configuration.write_text(json.dumps(fields))
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights, next(key for key in weights if "lora_B" in key))
    save_file(weights, folder / "adapter_model.safetensors")


damaged("dora", lambda weights, key: None, use_dora=True)
damaged("diverged", lambda weights, key: weights[key].view(-1)[:1].fill_(torch.nan))
damaged("incomplete", lambda weights, key: weights.pop(key))
damaged("mixed-up", lambda weights, key: None, r=study.lora.rank + 1)

# %%
for name in ("dora", "diverged", "incomplete", "mixed-up", "missing"):
    try:
        adapter_geometry.load(scratch / name)
    except (adapter_geometry.AdapterError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {str(error).replace(f'{scratch}/', '')}\n")

# %% [markdown]
# The list of refusals is longer: broken JSON, a kind that changes more than weight matrices, a truncated file, a pointer of git-lfs, a link that leads out of its folder, no common module, two adapters of one name, and a `.bin` file, which is a
# pickle and can run code when it is opened; its message holds the command that converts it. No code from a folder or from the hub is ever run. On the command line the message goes to the error stream, and the exit code is 2:

# %%
with contextlib.redirect_stderr(sys.stdout):
    try:
        main(["compare", str(folders["sft"])])
    except SystemExit as stopped:
        print("exit code", stopped.code)

# %% [markdown]
# A different base model named in the configurations, or another one than `--base`, is a *warning* and no refusal: the matrices can be compared, and whether that means anything is for you to judge.
#
# ## Stored as they are, computed in float64
#
# Factors keep the type in which they are stored: each bfloat16 number is exactly a float64 number, so reading loses nothing. All sums are in float64, because the interesting quantities are often small differences of large
# ones. The distance between two updates from their inner products, for example, is
#
# ```{math}
# :label: eq-adapters-distance
# \lVert \Delta W_1 - \Delta W_2 \rVert^2 = \lVert \Delta W_1 \rVert^2 - 2 \langle \Delta W_1, \Delta W_2 \rangle + \lVert \Delta W_2 \rVert^2 ,
# ```
#
# and if the two differ by a part in $10^5$, all but one part in $10^{10}$ cancels. Here is {eq}`eq-adapters-distance` for one module and a copy that is longer by such a part, in both types:

# %%
adapters = {name: load_update(folder) for name, folder in folders.items()}
module, factors = next(iter(adapters["sft"].items()))


def distance(dtype):
    """Relative distance of an update and a copy that is longer by a part in 10^5."""
    B, A = factors.B.to(dtype), factors.A.to(dtype)
    longer = B * (1 + 1e-5)
    square, both, other = (float((one.T @ two * (A @ A.T)).sum())
                           for one, two in ((B, B), (B, longer), (longer, longer)))
    return max(square - 2 * both + other, 0) ** 0.5 / square ** 0.5


Markdown(f"""The relative distance, true value 1.00e-05:
**{distance(torch.float32):.2e}** in float32, **{distance(torch.float64):.2e}** in
float64.""")

# %% [markdown]
# ## When there is no answer
#
# Mathematics leaves some questions open, and a program must not close them by accident. The rules are: a zero update has no direction, hence no cosine, no angles, no effective rank. An update of rank
# below $k$ takes part with the whole space that it has, and the angles beyond it are NaN. Where singular values are equal, single vectors mean nothing, though a subspace still may: the top $k$ vectors span a definite
# subspace only if $\sigma_k > \sigma_{k+1}$. Beside one ordinary module of SFT:

# %%
column = torch.arange(factors.B.shape[1])
Q, _ = torch.linalg.qr(factors.B.double())
P, _ = torch.linalg.qr(factors.A.double().T)
cases = {"ordinary": adapters["dpo"][module],
         "zero": Factors(0 * factors.B, factors.A, factors.scale),
         "rank one": Factors(factors.B * (column < 1), factors.A, factors.scale),
         "all singular values equal": Factors(Q, P.T, 1.0)}
compared = geometry.compare(
    {name: {module: case} for name, case in ({"sft": factors} | cases).items()})
angles = compared.angles["left"][0, 0, 1:]
degenerate = pd.DataFrame({
    "second update": list(cases), "cosine": geometry.stacked_cosine(compared)[0][0, 1:],
    "effective rank": geometry.effective_rank(compared.singular_values[0, 1:]),
    f"defined angles, of {angles.shape[-1]}": np.isfinite(angles).sum(-1),
    "first left vectors": compared.first["left"][0, 0, 1:]})
figures.table(degenerate)

# %% [markdown]
# The last line has a cosine, since all of it is there to be multiplied, and no angles, since any $k$ of its directions are as good as any others.
#
# ## What an update does to the spectrum
#
# So far the base model was only a yardstick. A different question is how $W_0 + \Delta W$ looks from within: {cite:t}`shuttleworth2024intruder` compare the singular vectors of the trained matrix with those of the old one, and
# call a leading vector that resembles none of them an {term}`intruder dimension`. With $u_j$ the left singular vectors of $W_0$ and $u'_i$ those of $W_0 + \Delta W$, the count is
#
# ```{math}
# :label: eq-adapters-intruders
# \#\Big\{ i \le 10 : \; \max_j \lvert \langle u_j, u'_i \rangle \rvert < \tfrac12 \Big\} .
# ```
#
# And the normalised {term}`spectral shift` says how far the singular values moved,
#
# ```{math}
# :label: eq-adapters-shift
# \frac{\lVert \sigma(W_0 + \Delta W) - \sigma(W_0) \rVert}{\lVert \sigma(W_0) \rVert} .
# ```
#
# Done densely, each needs the decomposition of every $W_0 + \Delta W$, for each adapter anew. The decomposition of $W_0 = U S V^\top$ has to be computed only once, and then the rank of the update helps: in the singular frame of the base,
#
# ```{math}
# :label: eq-adapters-frame
# U^\top (W_0 + \Delta W) V = S + P Q^\top , \qquad P = s\, U^\top B , \quad Q = V^\top A^\top ,
# ```
#
# a diagonal matrix plus one of rank $r$. Multiplying a vector by {eq}`eq-adapters-frame` costs $O(r d)$ instead of $O(d^2)$, so that an iterative solver finds the leading $r + 10$ singular values and vectors cheaply. And in this frame the old singular
# vectors are the axes: the overlaps $\langle u_j, u'_i \rangle$ of {eq}`eq-adapters-intruders` are the *entries* of the new vectors, with nothing more to compute. The frame in code, for one module:

# %%
weights = BaseWeights(base, cache)
U, S, V = (part.double() for part in weights.decomposition(module))
B, A = factors.B.double(), factors.A.double()
P, Q = factors.scale * U.T @ B, V.T @ A.T
trained = weights.weight(module).double() + factors.scale * B @ A
error = (U.T @ trained @ V - torch.diag(S) - P @ Q.T).abs().max()
Markdown(f"""Largest error of {{eq}}`eq-adapters-frame` in `{module}`, whose
decomposition is kept in float32: {float(error):.0e}.""")

# %% [markdown]
# The singular values behind the leading ones are not computed but estimated, by the first-order change $\sigma_i + (P Q^\top)_{ii}$. What is known of them for certain {cite:p}`horn2013matrix` is Weyl's bound and interlacing,
#
# ```{math}
# :label: eq-adapters-bounds
# \lvert \sigma'_i - \sigma_i \rvert \le \lVert \Delta W \rVert_2 , \qquad \sigma_{i+r} \le \sigma'_i \le \sigma_{i-r} ,
# ```
#
# and each estimate is moved into the interval that {eq}`eq-adapters-bounds` allows. How wide these intervals are is the column `shift_error`. A third bound concerns the sum, $\lVert \sigma' - \sigma \rVert \le \lVert \Delta W \rVert_F$: the shift can never exceed the relative norm.
#
# These are guarantees for the worst case. Our matrices are small enough to look at what happened, by a dense decomposition of every module of two runs:

# %%
intruders = store.write_table(profile, "intruders", report.tables["intruders"])
rows = []
for run in ("sft", "dpo"):
    for module, factors in adapters[run].items():
        old, U = weights.weight(module).double(), weights.decomposition(module)[0]
        update = factors.scale * factors.B.double() @ factors.A.double()
        left, new, _ = torch.linalg.svd(old + update)
        shift = (new - torch.linalg.svdvals(old)).norm() / old.norm()
        overlaps = (U.double().T @ left[:, :TOP]).abs()
        rows.append({"run": run, "module": module, "dense shift": float(shift),
                     "dense count": int((overlaps.amax(0) < THRESHOLD).sum())})
dense = pd.DataFrame(rows).merge(intruders)
dense["error"] = (dense.spectral_shift - dense["dense shift"]).abs()
dense["wrong counts"] = (dense["count"] != dense["dense count"]).astype(int)
how = {"wrong counts": "sum", "dense shift": "mean", "spectral_shift": "mean",
       "error": "max", "shift_error": "mean"}
check = dense.groupby("run", sort=False).agg(how)
figures.table(check.reset_index().rename(columns={
    "spectral_shift": "estimated shift", "error": "largest error",
    "shift_error": "mean bound"}))

# %%
worst = dense.loc[dense.error.idxmax()]
ratio = dense.shift_error.mean() / dense.error.mean()
Markdown(f"""Counts of intruders agree in {int((dense['wrong counts'] == 0).sum())} of
{len(dense)} modules. The estimated shift misses the dense one by at most
{dense.error.max():.4f}, in a module where it is {worst['dense shift']:.4f}. The bound
is {ratio:,.0f} times the mean error: for a rank that is no small part of the width, as
here, it says little.""")

# %% [markdown]
# ## Intruders, and what chance would give
#
# What would an update of the same length and the same spectrum do if it had no meaning at all? Rotate its outputs: $Q\,\Delta W$ with a {term}`Haar rotation` $Q$ of the module's output space keeps the norm, all singular values and all right vectors. If the rotated outputs
# have no preferred direction, $u_i^\top Q\, \Delta W\, v_i$ has variance $\lVert \Delta W v_i \rVert^2 / d_\text{out}$, and summed over a whole basis of $v_i$ the first-order shift is about
#
# ```{math}
# :label: eq-adapters-chance
# \frac{1}{\sqrt{d_\text{out}}} \, \frac{\lVert \Delta W \rVert}{\lVert W_0 \rVert} .
# ```

# %%
rotated = {run: edits.rotated(update, "left", number)
           for number, (run, update) in enumerate(adapters.items())}
by_chance = spectra.intruders_table(rotated, weights)
modules = report.tables["updates"].query("scope == 'module'")
sizes = modules.groupby("run").relative_norm.mean()
ours, null = (table.groupby("run").agg({"count": "sum", "spectral_shift": "mean"})
              for table in (intruders, by_chance))
width = compared.modules.d_out.iloc[0]
spectrum = pd.DataFrame({
    "intruders": ours["count"], "intruders, rotated": null["count"],
    "spectral shift": ours.spectral_shift, "shift, rotated": null.spectral_shift,
    "by the formula": sizes / np.sqrt(width), "relative norm": sizes})
spectrum = spectrum.loc[list(folders)].rename_axis("run")
spectrum.reset_index().style.format(precision=4).hide()

# %%
possible = TOP * len(adapters["sft"])
count, shift = spectrum.intruders, spectrum["spectral shift"]
ratio = shift / spectrum["shift, rotated"]
having = ", ".join(figures.LABELS[run] for run in count.index[count > 0]) or "none"
Markdown(f"""Of {possible} leading vectors per run, at most {count.max()} are intruders
(runs with any: {having}); rotated outputs give at
most {spectrum['intruders, rotated'].max()}. The mean shift is {ratio.min():.2f} to
{ratio.max():.2f} times that of the rotated update, and at most
{(shift / spectrum['relative norm']).max():.0%} of what an update of its relative norm
could do.""")

# %% mystnb={"image": {"alt": "Strips of dots, one for each module, of the normalised spectral shift of six objectives on a logarithmic scale, with the range of updates with rotated outputs in grey"}, "figure": {"caption": "Normalised spectral shift {eq}`eq-adapters-shift`, one dot per module, bar: median. Grey: the range over modules of the same updates with rotated outputs, one draw.", "name": "fig-adapters-shift"}}
dots, bands = {}, {}
for run in folders:
    dots[run] = intruders[intruders.run == run].spectral_shift.to_numpy()
    shifts = by_chance[by_chance.run == run].spectral_shift
    bands[run] = shifts.min(), shifts.max()
figures.strips({"": dots}, "spectral shift", {"": bands}, log=True);

# %%
count = len(dots["sft"])
above = ", ".join(f"{figures.LABELS[run]} {int((dots[run] > high).sum())} of {count}"
                  for run, (_, high) in bands.items())
Markdown(f"""Modules in {{numref}}`fig-adapters-shift` that lie above the whole range of
the rotated updates: {above}. If trained and rotated modules were alike,
{count / (count + 1):.1f} per run would be expected there.""")

# %% [markdown]
# The formula {eq}`eq-adapters-chance` is of first order and tends to be too low: it leaves out that an update also pushes the leading values up, whatever its direction, and the column of the table inherits the errors of the estimates checked above.
#
# A dot well above the grey says that an update is aligned with the base's own singular directions: it strengthens or weakens what was there more than a stranger of its size would. That is a statement about direction, made after length was taken out. The counts of intruders need the same care.
# A rank-$r$ update brings a vector of its own to the top when its singular values are as large as the base's leading ones, whatever it points at. So let us make two updates longer, both as trained and with rotated outputs, and set them to the *same* length:

# %%
total = np.linalg.norm([float(weights.weight(module).double().norm())
                        for module in adapters["sft"]])
rows = []
for share in (12.5, 25, 50, 100):
    for name in ("sft", "dpo"):
        update = adapters[name]
        both = {"as trained": update, "outputs rotated": edits.rotated(update, "left")}
        for heading, direction in both.items():
            factor = share / 100 * total / updates.norm(direction)
            stretched = {name: updates.combine([direction], [factor])}
            count = spectra.intruders_table(stretched, weights)["count"].mean()
            rows.append((heading, name, share, count))
stretched = pd.DataFrame(rows, columns=["panel", "run", "share", "count"])

# %% mystnb={"image": {"alt": "Two panels of intruder dimensions per module against the norm of the update as a percentage of the base's, for SFT and DPO as trained and with rotated outputs; all lines rise"}, "figure": {"caption": "Intruder dimensions per module, of ten possible, when the updates of SFT and DPO are stretched to the same norm; left as trained, right with rotated outputs.", "name": "fig-adapters-stretched"}}
panels = dict(list(stretched.groupby("panel", sort=False)))
figures.lines_of_runs(panels, "share", "count", "norm of the update, % of the base's",
                      "intruders per module");

# %%
means = stretched.pivot_table(index="panel", columns="share", values="count")
trained, rotated = means.loc["as trained"], means.loc["outputs rotated"]
longest = stretched[stretched.share == stretched.share.max()].set_index("run")
sft, dpo = longest["count"][longest.panel == "as trained"][["sft", "dpo"]]
Markdown(f"""From the shortest to the longest the mean count goes from
{trained.iloc[0]:.2f} to {trained.iloc[-1]:.2f} as trained, and from
{rotated.iloc[0]:.2f} to {rotated.iloc[-1]:.2f} with rotated outputs. At the largest
norm SFT has {sft:.2f} and DPO {dpo:.2f}.""")

# %% [markdown]
# In {numref}`fig-adapters-stretched` the count is first of all a measure of length. Where the right panel is as high as the left, training has brought no more strangers to the top than a meaningless update of that size. Two adapters may be compared by {eq}`eq-adapters-intruders` only at equal norms, or each beside its own
# rotated copy; and with a threshold of one half, a count of zero says that no leading vector is *mostly* new, not that none has changed.
#
# ## Merging done right
#
# A weighted sum of updates is one update whose factors stand side by side, which the page on [connectivity](13_connectivity.ipynb) derives together with the error of PEFT's `"linear"`. Here PEFT itself merges SFT and DPO half and half, in three of its ways; the merged adapters are saved, read back, and compared with the exact sum.

# %%
halves = adapter_geometry.combine([adapters["sft"], adapters["dpo"]], [0.5, 0.5])
model = PeftModel.from_pretrained(loading.load_model(study), folders["sft"],
                                  adapter_name="sft")
model.load_adapter(folders["dpo"], adapter_name="dpo")
rows = []
for way in ("linear", "svd", "cat"):
    model.add_weighted_adapter(["sft", "dpo"], [0.5, 0.5], way, combination_type=way)
    model.save_pretrained(scratch / "merged", selected_adapters=[way])
    merged = adapter_geometry.load_update(scratch / "merged" / way)
    error = adapter_geometry.combine([merged, halves], [1, -1])
    rows.append({"combination_type": way,
                 "rank": next(iter(merged.values())).A.shape[0],
                 "relative norm": updates.norm(merged) / updates.norm(halves),
                 "relative error": updates.norm(error) / updates.norm(halves)})
ways = pd.DataFrame(rows).set_index("combination_type")
ways.reset_index().style.format({"relative norm": "{:.3f}",
                                 "relative error": "{:.1e}"}).hide()

# %%
errors = ways["relative error"]
Markdown(f"""`linear` is another matrix, off by **{errors['linear']:.0%}** of the sum's
norm and {ways['relative norm']['linear']:.2f} times as long. `cat` is the exact sum, up
to rounding. `svd` is the best approximation of the old rank, off by
{errors['svd']:.2%}.""")

# %% [markdown]
# The exact sum has the summed rank. `adapter_geometry.compress` brings it down again, module by module, with the best approximation that a rank allows, and says what share of the squared norm is lost. By the theorem of Eckart and Young {cite:p}`horn2013matrix` that is
#
# ```{math}
# :label: eq-adapters-lost
# \frac{\sum_m \sum_{i > \rho} \sigma_{m,i}^2}{\sum_m \sum_i \sigma_{m,i}^2}
# ```
#
# for a rank of $\rho$ in every module. Its yardstick is again a sum of unrelated updates: the same two, the second with outputs *and* inputs rotated. (With the outputs alone rotated, two runs from one initial $A$ would still share their inputs, and the sum of such a pair needs no more directions on that side.)
# Both updates are brought to length one before they are added.

# %%
def added(first, second):
    """The sum of two updates, each brought to length one."""
    return adapter_geometry.combine([first, second],
                                    [1 / updates.norm(first), 1 / updates.norm(second)])


pairs = {}
for other in ("rft", "dpo"):
    label, update = f"SFT + {figures.LABELS[other]}", adapters[other]
    unrelated = edits.rotated(edits.rotated(update, "left", 1), "right", 2)
    pairs[label] = added(adapters["sft"], update)
    pairs[f"{label}, rotated"] = added(adapters["sft"], unrelated)
rank = study.lora.rank
shares = (0.0625, 0.125, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
ranks = sorted({max(1, round(share * rank)) for share in shares})
rows = [(name, count, adapter_geometry.compress(update, count)[1])
        for name, update in pairs.items() for count in ranks]
lost = pd.DataFrame(rows, columns=["run", "rank", "lost"])

# %% mystnb={"image": {"alt": "Four falling curves of the share of the squared norm that is lost against the rank kept, for the sums of SFT with RFT and with DPO, each as trained and with the second update rotated"}, "figure": {"caption": "Energy that a sum of two updates loses when it is compressed to a rank, by {eq}`eq-adapters-lost`; *rotated*: the second update with rotated outputs and inputs.", "name": "fig-adapters-lost"}}
figures.lines_of_runs({"": lost}, "rank", "lost", "rank that is kept",
                      "share of the squared norm lost");

# %%
at_rank = lost[lost["rank"] == rank].set_index("run").lost
Markdown(f"""At the rank of one adapter, {rank}, the sum of SFT and RFT loses
{at_rank['SFT + RFT']:.2%} of its energy where unrelated ones lose
{at_rank['SFT + RFT, rotated']:.2%}; SFT and DPO lose {at_rank['SFT + DPO']:.2%}, and
{at_rank['SFT + DPO, rotated']:.2%} unrelated.""")

# %% [markdown]
# In {numref}`fig-adapters-lost`, a curve well below its rotated twin belongs to updates that share directions, on either side, so that their sum needs less room. With one initial $A$ part of that is [there by construction](11_angles.ipynb).
#
# Without the equal lengths the energy can mislead. The large singular values are kept first, and they belong to the longer update; the whole of a short one may be less than what is lost. The sum of SFT and DPO as they are:

# %%
plain = adapter_geometry.combine([adapters["sft"], adapters["dpo"]], [1, 1])
of_dpo = updates.norm(adapters["dpo"]) ** 2 / updates.norm(plain) ** 2
losses = {count: adapter_geometry.compress(plain, count)[1]
          for count in (rank, rank // 2)}
lines = [f"At rank {count} the sum loses {loss:.2%} of its energy, which is "
         f"{loss / of_dpo:.0%} of DPO's." for count, loss in losses.items()]
Markdown(f"DPO's whole update has {of_dpo:.1%} of the energy of that sum. "
         + " ".join(lines))

# %% [markdown]
# A loss that is small for the sum can be large for one of its parts, so measure it against the part that you care about.
#
# ## From factors back to a folder
#
# `adapter_geometry.export_adapter` writes any update as a folder that PEFT loads. The test is the model's own: the logits of the loaded adapter against those of the base with the exact sum written into its weights.

# %%
adapter_geometry.export_adapter(halves, scratch / "halves")
loaded = PeftModel.from_pretrained(loading.load_model(study), scratch / "halves").eval()
bare = loading.load_model(study)
tokens = torch.randint(bare.config.vocab_size, (4, 32),
                       generator=torch.Generator().manual_seed(0)).to(bare.device)
with torch.no_grad():
    untouched, by_peft = bare(tokens).logits, loaded(tokens).logits
    updates.put(bare, updates.weights_of(bare, halves), halves)
    merged = bare(tokens).logits
difference, effect = (float((merged - other).abs().max())
                      for other in (by_peft, untouched))
Markdown(f"""The largest difference of a logit is {difference:.0e}; the update itself
changes logits by up to {effect:.2g}.""")

# %% [markdown]
# The two differ by rounding, because PEFT multiplies $x$ by $A$ and then by $B$ while `updates.put` adds the product to the weights first.
#
# ## What the report holds
#
# With `--out`, or `report.write(folder)`, the tables are written as Parquet and CSV files, tidy, one value per row, and with them the numbers as JSON and one HTML page that needs nothing else: its figures are inside, its texts are escaped, and it says which command, base, files and versions made it. The folder is one unit and is replaced as a whole.

# %%
page = report.write(scratch / "report")
headings = "; ".join(re.findall(r"<h2>(.*?)</h2>", page.read_text()))
rows = [(name, len(table), ", ".join(table.columns))
        for name, table in report.tables.items()]
contents = pd.DataFrame(rows, columns=["table", "rows", "columns"]).style.hide()
display(Markdown(f"`{page.name}`, {page.stat().st_size / 2**20:.1f} MiB, with the "
                 f"sections: {headings}."),
        contents.set_properties(**{"text-align": "left"}))

# %% [markdown]
# The tables have the columns of the book's own, so every figure of these pages can be drawn from them. For losses along paths, CKA and behaviour the tool needs texts, ten or more, as JSON lines with `prompt` and `completion`. The ten shortest of the teacher's held-out rollouts show the form; a statement needs hundreds.

# %%
tokenizer = loading.load_tokenizer(study)
texts = answering.held_out(study, 50).nsmallest(10, "tokens")
lines = [json.dumps({"prompt": tokenizer.decode(row.prompt_ids),
                     "completion": tokenizer.decode(row.completion_ids)})
         for row in texts.itertuples()]
(scratch / "texts.jsonl").write_text("\n".join(lines))
with capture_output():  # the progress bars
    with_texts = adapter_geometry.compare_adapters(
        {name: folders[name] for name in ("sft", "dpo")}, base=base,
        texts=scratch / "texts.jsonl", cache=cache)
figures.table(with_texts.tables["barriers"].drop(columns="metric"))

# %% [markdown]
# Each line is one path, from the reference to another adapter or to the base, with its {term}`barrier` above the {term}`chord` and above the mean of the ends. The table `behaviour` has each adapter's divergence from the base and its loss, beside those of null adapters of the same norm and spectrum, and `generations` what the model says at multiples of the update.
#
# ## Larger models
#
# For $n$ adapters of rank $r$, all pairs on all modules cost in multiplications, from the factors and densely (without any dense decomposition, which would cost far more),
#
# ```{math}
# :label: eq-adapters-cost
# \sum_m (n r)^2 (d_\text{out} + d_\text{in}) \qquad\text{and}\qquad \sum_m \Big( n r + \tfrac{n (n + 1)}{2} \Big)\, d_\text{out}\, d_\text{in} .
# ```
#
# The authors of {cite:t}`nikolich2026geometry` released 28 adapters of rank 32 on a model of 4 billion parameters with 36 layers:

# %%
shapes = np.array([(4096, 2560), (1024, 2560), (1024, 2560), (2560, 4096)])
rows = []
for count in (len(folders), 28):
    thin = 36 * float(((count * 32) ** 2 * shapes.sum(1)).sum())
    full = 36 * float(((count * 32 + count * (count + 1) / 2) * shapes.prod(1)).sum())
    stored = count * 36 * 32 * shapes.sum() * 4 / 1e9
    rows.append({"adapters": count, "from factors": thin, "densely": full,
                 "factors in float32, GB": stored})
pd.DataFrame(rows).style.format({"from factors": "{:.1e}", "densely": "{:.1e}",
                                 "factors in float32, GB": "{:.2f}"}).hide()

# %% [markdown]
# By {eq}`eq-adapters-cost` the factors win as long as $n r$ is well below the width; the angles and spectra, which densely would each take a decomposition of a large matrix, are then almost free. The stored factors are mapped from their files and not copied into memory, so the system may drop them and fetch them again, and modules are converted to float64 a few at a time.
# `make benchmark` times six and 28 such adapters on your machine, and says what memory they take. Intruders are the slow part with `--base`: each $W_0$ is decomposed once, and the decompositions are kept in the user's cache folder, or where `--cache` says, by a hash of the weights, so that the next comparison on the same base begins with them.
#
# ## How to read your results
#
# Each number answers one question, has one yardstick, and is silent on something that it is often taken for:
#
# | number | what it says | its yardstick | what it doesn't say |
# |---|---|---|---|
# | cosine | how much of two updates is the same, as one number for all modules, which the longest ones rule | *by chance, up to*; another seed | which modules; whether the models answer alike |
# | smallest angle | whether the leading directions meet at all, strong or weak | *by chance, from*, left and right apart | how much of the update lies there |
# | first directions | whether the strongest direction of both is one, module by module | random outputs; for inputs, each update's own $A$ with another $B$ | what the other directions do |
# | likeness of subspaces, $\phi(i, j)$ | for adapters of unequal rank: whether the smaller one is part of the larger one | its mean by chance and 95 % of it, left and right apart | how strong these directions are |
# | cosine without what all share | which of four or more adapters are alike beyond the one direction that all have in common | updates that share that direction and nothing else, whose cosines are a little below zero | what the common direction is |
# | mean cosine of groups | whether methods differ by more than their seeds (`--group`) | one rotation for all seeds of a group, and the mean within each | which seed makes it |
# | norm, relative norm | how far training went | the other adapters; the base's weights | where to |
# | effective rank | over how many directions the update is spread | the rank of the factors | whether these directions matter |
# | intruders, spectral shift | what the update does to the base's own singular directions | a copy with turned outputs; equal length | whether something was forgotten |
# | barrier, CKA | whether the loss rises between two adapters; how alike states are | noise of the texts; the base | anything about other texts |
# | divergence from the base | how far the answers moved | null adapters of equal norm and spectrum | whether they got better |
#
# A cosine is no evidence of a common lesson when it lies within its band; when both runs began at one $A$ or saw the rows in one order, until another seed has been compared; when one of the two is cut from a high rank with a large stated error, or is a merged model whose rounding is as long as its update; and when a few long modules make it,
# which the maps of the report show. Nor is a cosine near zero evidence of a different lesson: two gauges of one update have the cosine 1, but two solutions of one task needn't share a direction.
#
# Five habits follow.
#
# 1. **Band first, number second.** A cosine of .05 can be far outside its band and an angle of 80 degrees well inside. Bands depend on width, rank and spectrum, so numbers from different models are compared by their distance from their own bands.
# 2. **Ask how $A$ was drawn.** PEFT starts with $B = 0$ and a random $A$. Runs with one initial $A$ share their right (input) subspaces [by construction](11_angles.ipynb), whatever they learnt; the band of the right angles takes each run's own $A$ as given and so accounts for it. Look at the left side for what training chose.
# 3. **Length is not direction.** A cosine is blind to length, an intruder count and a barrier are not. Before a short update is called different, stretch it to the length of the other.
# 4. **One seed proves little.** Modules of one run are not independent runs. Two seeds of one method tell how large a difference between two methods has to be; without them, a difference is an observation about two files.
# 5. **Geometry is not behaviour.** That two updates are orthogonal doesn't say that the models answer differently. That needs [paired tests](09_evaluation.ipynb) on the same problems.
#
# ## The paper's numbers beside ours
#
# The paper reports neither intruders nor spectral shifts. What it does report of directions and lengths, the command gives for our adapters as

# %%
paper = {"rft": (".977", "2.82"), "rift": (".967", "3.04"), "dft": (".572", "–"),
         "offline-grpo": ("about .74", "–"), "dpo": (".057 to .065", "2.84 / 13")}
norms = report.tables["updates"].query("scope == 'global'").set_index("run").norm
rows = [(run, stated, cosine.cosine[run], cosine.limit[run], length, norms[run])
        for run, (stated, length) in paper.items()]
comparison = pd.DataFrame(rows, columns=[
    "run", "cosine with SFT, paper", "cosine, ours", "by chance, up to", "norm, paper",
    "norm, ours"])
figures.table(comparison)

# %%
order, low, high = statistics.rank_correlation(comparison["cosine, ours"],
                                               [.977, .967, .572, .74, .06])
temporary.cleanup()
Markdown(f"""The rank correlation of the two columns of cosines is {order:+.2f}, that of
random orders {low:+.2f} to {high:+.2f}. SFT's norm is {norms['sft']:.2f} here and 2.84
in the paper; over DPO's it is {norms['sft'] / norms['dpo']:.1f} here and 13 there.""")

# %% [markdown]
# ## Beside other tools
#
# Five tools look at adapters or at what training changed. What they say of themselves, on their pages of the Python Package Index in November 2026, is what this table has; none was run for it.
#
# | tool | takes | answers | beside |
# |---|---|---|---|
# | `adapter-geometry` | two or more adapters or models of one base; or one | in what directions, sizes and ranks they agree | unrelated updates, pair by pair; turned copies; null adapters |
# | [AdapterSentry](https://pypi.org/project/adaptersentry/) 2.0 | one LoRA file | is it suspicious? A scan without running the model, with a verdict | each module beside its own family in the file; thresholds set on public adapters |
# | [modeldelta](https://pypi.org/project/modeldelta/) 0.4 | two checkpoints | what changed, per module: norm, sparsity, effective rank, cosine of the weights | four profiles, from seven pairs of models |
# | [Modeldiffr](https://pypi.org/project/modeldiffr/) 0.9 | a base and a derivative, both run | did behaviour change? Benchmarks and divergence | intervals by bootstrap, paired |
# | [sway](https://pypi.org/project/dlm-sway/) (dlm-sway) 0.1 | a base and an adapter, run | did training change behaviour? | null adapters |
# | [weightscope](https://pypi.org/project/weightscope/) 0.4 | two checkpoints | which tensors changed, and a patch of the difference | classes of change, such as "like LoRA" |
#
# The questions differ, and so these are companions more than rivals: a scan before an unknown file is loaded, a comparison of behaviour before a model is shipped. None of the five says that it compares two updates with each other beside what unrelated ones would give, which is what this book needed. `modeldelta`'s cosine, for instance, is one of the weights before and after, near 1 for any short
# update.
#
# ## Try it
#
# 1. Compare `sft` with an adapter that is SFT's in another gauge: $(B M, M^{-1} A)$ for a random invertible $M$, written by `adapter_geometry.export_adapter`. What do you expect of the cosine, and of a cosine of the flattened factors?
#
# ````{dropdown} What happens
# The tool's cosine is 1 up to the rounding of the file, and all angles are zero in the same sense, because the update is the same matrix. The cosine of the flattened factors is some other number that depends on $M$; the page on [norms](10_norms.ipynb) shows how misleading it can be.
# ````
#
# 2. Export `halves` with `dtype=torch.bfloat16` and measure the relative error of what `adapter_geometry.load_update` reads back. Is it large beside the loss of a compression?
#
# ````{dropdown} What to expect
# A bfloat16 number has 8 significant bits, so each entry is off by up to a part in 500, at random, and the update by about two parts in 1000 of its norm. Squared, that is a few millionths of the energy: compare it with the loss at your rank in {numref}`fig-adapters-lost`.
# ````
#
# 3. Give the tool two adapters trained from different seeds of the initial $A$. Which bands change, the left or the right ones?
#
# ````{dropdown} Answer
# The right ones. With one $A$ for all, the right subspaces of unrelated runs are random within one space of dimension $r$; with two, within two spaces that are random to each other, so that the band moves up towards 90 degrees, where the left one is already.
# ````
#
# ## Summary
#
# Folders in, numbers with their chance levels out. Updates are read with each module's own rank and scale {eq}`eq-adapters-scale`; other kinds become such factors, with their error stated; what has no such update is refused; what is not defined is NaN. Intruders and shifts come from a diagonal matrix plus a thin product, checked here against dense decompositions, and grow with length for any update. Sums are exact
# as factors, and compression tells what it costs. The rest of the book is how to read what comes out.
