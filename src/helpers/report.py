"""Your own adapters: from PEFT folders to tables, a summary and a report in one self-contained HTML file.

Comes after `representations`; beside the study, not in it: it knows no profile and no run, only folders, and reads nothing else.
"""

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import geometry, store, updates

_NULLS = 5  # draws of the matched null, each pooled over all modules of one shape
_POINTS = 25


@dataclass(frozen=True)
class Report:
    """What `compare_adapters` found. `tables` are tidy DataFrames by name, as `write` stores them; each is described by the function that makes it."""

    folders: dict  # name -> where the adapter was read
    reference: str
    compared: geometry.Comparison
    tables: dict
    left_out: dict  # name -> modules that not all adapters have
    warnings: list
    base: str | None = None
    settings: dict = field(default_factory=dict)  # name -> PEFT's configuration

    def summary(self):
        """A few lines of text: size, direction and rank of each update beside the reference, with chance levels."""
        return "\n".join(map(printable, "\n".join(_summary(self)).splitlines()))

    def write(self, folder):
        """Write `report.html` and one Parquet file a table into a folder; returns the path of the report."""
        folder = Path(folder)
        for name, table in self.tables.items():
            store.write_frame(folder / f"{name}.parquet", table)
        with store.whole(folder / "report.html") as beside:
            beside.write_text(_page(self), encoding="utf-8")
        return folder / "report.html"


def compare_adapters(adapters, base=None, reference=None, texts=None):
    """Compare PEFT LoRA adapters of one base model; returns a `Report`.

    adapters: folders or hub ids, as a list (named by their folders) or a dict {name: folder}. At least two.
    base: folder or hub id of the base model, for relative norms, intruder dimensions and spectral shift.
    reference: name of the adapter that the others are measured against; the first by default.
    texts: a file of JSON lines with `prompt` and `completion`, for losses along paths and CKA; needs `base`.
    Raises AdapterError (a ValueError) or FileNotFoundError with one clear message for anything that cannot be compared.
    """
    named = adapters if isinstance(adapters, dict) else _named(adapters)
    if len(named) < 2:
        raise updates.AdapterError("one adapter has nothing to be compared with: name two or more")
    reference = reference or next(iter(named))
    if reference not in named:
        raise updates.AdapterError(f"no adapter is called {reference!r}: the reference is one of {', '.join(named)}")
    if texts and not base:
        raise updates.AdapterError("losses along paths and CKA need the base model: add --base")
    folders = {name: updates.fetched(place) for name, place in named.items()}
    settings = {name: updates.read_config(folder) for name, folder in folders.items()}
    lines = _texts(Path(texts)) if texts else None
    loaded, left_out = updates.common({name: updates.load_update(folder) for name, folder in folders.items()})
    base_folder = updates.fetched(base, ("*.json", "*.safetensors", "*.jinja", "*.txt")) if base else None
    weights = _base_weights(base_folder, loaded) if base else None
    compared = geometry.compare(loaded)
    tables = {"cosine": geometry.cosine_table(compared), "orthogonal": geometry.orthogonal_table(compared, [reference])}
    tables["angles"] = geometry.angles_table(compared, geometry.compare_by_chance(loaded, _NULLS))
    if base:
        tables.update(_with_base(loaded, compared, weights))
    else:
        tables["updates"] = geometry.updates_table(compared)
    if texts:
        tables.update(_with_texts(loaded, base_folder, reference, lines))
    return Report({name: str(place) for name, place in named.items()}, reference, compared, tables, left_out,
                  _warnings(settings, left_out), base and str(base), settings)


def printable(text):
    """A line for the terminal: control characters, which names in a foreign file may hold, become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# --- what is read --------------------------------------------------------------------------------------------------

def _named(places):
    """{name: place} for a list of places, each `NAME=PLACE` or a place named by its folder (`run/adapter` by `run`)."""
    found = {}
    for place in map(str, places):
        given, _, rest = place.partition("=")
        if not rest or Path(place).exists():
            given, rest = "", place
        parts = Path(rest).resolve().parts if not given and Path(rest).exists() else Path(rest).parts
        name = given or (parts[-2] if parts[-1] == "adapter" and len(parts) > 1 else parts[-1])
        if name in found:
            raise updates.AdapterError(f"two adapters are called {name!r} ({found[name]} and {rest}): name them, as in first={found[name]} second={rest}")
        found[name] = rest
    return found


def _warnings(settings, left_out):
    found = []
    bases = {str(config.get("base_model_name_or_path")) for config in settings.values()}
    if len(bases) > 1:
        found.append(f"the adapters name different base models ({', '.join(sorted(bases))}): their updates are compared all the same, "
                     "as matrices of equal shapes")
    for name, modules in left_out.items():
        if modules:
            found.append(f"{name}: {len(modules)} modules that not all adapters have are left out, for example {modules[0]}")
    return found


def _base_weights(folder, loaded):
    """The weights of the base model, which every update fits."""
    from helpers import spectra  # scipy's sparse solvers, which nothing else here needs

    base = spectra.BaseWeights(folder)
    for update in loaded.values():
        base.require(update)
    return base


def _with_base(loaded, compared, base):
    from helpers import spectra

    return {"updates": geometry.updates_table(compared, base.norms(compared.modules.module)), "intruders": spectra.intruders_table(loaded, base)}


def _with_texts(loaded, folder, reference, lines):
    """Losses along the paths from the reference to every other adapter and to the base, their barriers, and CKA by layer with the base and the reference."""
    from helpers import connectivity, representations

    tokenizer, model = _model(folder)
    prompts, completions = ([tokenizer(line[part], add_special_tokens=part == "prompt").input_ids for line in lines] for part in ("prompt", "completion"))
    if short := [line["prompt"] for line, *ids in zip(lines, prompts, completions, strict=True) if not all(ids)]:
        raise updates.AdapterError(f"the tokenizer in {folder} makes no tokens of the prompt or completion of the text that starts {short[0][:40]!r}")
    packed = connectivity.Texts(prompts, completions, [completion[:1] for completion in completions], model.device)  # bare answers are not asked for here
    weights = updates.weights_of(model, loaded[reference])
    nothing = updates.combine([loaded[reference]], [0.0])
    states = {"base": representations.states(model, prompts, completions)}
    curves, barriers, cka = [], [], []
    for name in loaded:
        updates.put(model, weights, loaded[name])
        states[name] = representations.states(model, prompts, completions)
    for name, goal in [*((name, update) for name, update in loaded.items() if name != reference), ("base", nothing)]:
        measured = connectivity.along(model, weights, packed, loaded[reference], goal, np.linspace(0, 1, _POINTS), f"{reference} to {name}")
        ends = {"run_a": reference, "run_b": name}
        measured = measured[measured.metric == "rollout"]
        curves.append(connectivity.curve(measured).assign(**ends))
        barriers.append(connectivity.barrier(measured).assign(**ends))
    rows = representations.one_a_text(states["base"])
    for other in dict.fromkeys(("base", reference)):
        for name in loaded:
            if name != other:
                cka += [{"layer": layer, "run_a": other, "run_b": name, "debiased": representations.cka(first, second),
                         "biased": representations.cka(first, second, debiased=False), "n": len(rows)}
                        for layer, (first, second) in enumerate(zip(states[other].hidden[:, rows], states[name].hidden[:, rows], strict=True))]
    return {"connectivity": pd.concat(curves, ignore_index=True), "barriers": pd.concat(barriers, ignore_index=True), "cka": pd.DataFrame(cka)}


def _model(folder):
    """(tokenizer, model) of a base model's folder, in float32; none of its own code is run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        why = str(error).strip().split("\n")[0]
        raise updates.AdapterError(f"transformers cannot load the model or tokenizer in {folder} ({why}): losses and CKA need both") from error
    if not hasattr(getattr(model, "model", None), "norm"):
        raise updates.AdapterError(f"losses and CKA need a model with the parts of Llama or Qwen, and {folder} holds a {type(model).__name__}: "
                                   "leave out the texts")
    return tokenizer, model.eval().requires_grad_(False)


def _texts(path):
    """The lines of a JSON-lines file with `prompt` and `completion`; AdapterError names the first line that is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise updates.AdapterError(f"{path} cannot be read ({error}): one JSON object a line, with prompt and completion, is expected") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise updates.AdapterError(f"{path}, line {number} is not JSON ({error}): an object with prompt and completion is expected") from error
            if not (isinstance(lines[-1], dict) and all(isinstance(lines[-1].get(part), str) and lines[-1][part] for part in ("prompt", "completion"))):
                raise updates.AdapterError(f"{path}, line {number}: an object with the texts prompt and completion is expected")
    if len(lines) < 10:
        raise updates.AdapterError(f"{path} holds {len(lines)} texts: ten or more are needed for an interval")
    return lines


# --- what is shown -------------------------------------------------------------------------------------------------

def _overview(report):
    """One row an adapter: norms, rank, and its direction beside the reference with the chance level of each."""
    everything = report.tables["updates"].query("layer == -1").set_index("run")
    cosine = _beside(report, report.tables["cosine"].query("scope == 'global'"))
    angles = _beside(report, report.tables["angles"].query("side == 'left' and index == 1"))
    rows = []
    for name in report.compared.runs:
        row = {"adapter": name, "rank": _span(report.compared.rank[:, report.compared.runs.index(name)]), "norm": everything.norm[name],
               "relative norm": everything.relative_norm[name], "effective rank": everything.effective_rank[name]}
        if name != report.reference:
            near, pair = (table[table.run == name] for table in (cosine, angles))
            row |= {"cosine": near.cosine.item(), "by chance, up to": near.chance_high.item(), "smallest angle": pair.degrees.median(),
                    "by chance, from": pair.chance_low.median()}
            if "barriers" in report.tables:
                path = report.tables["barriers"].query("run_b == @name")
                alike = report.tables["cka"].query("run_a == @report.reference and run_b == @name")
                row |= {"barrier": path.above_chord.item(), "by noise, up to": path.noise.item(), "CKA": alike.debiased.iloc[-1]}
        if "intruders" in report.tables:
            spectrum = report.tables["intruders"].query("run == @name")
            row |= {"intruders a module": spectrum["count"].mean(), "spectral shift": spectrum.spectral_shift.mean()}
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _span(ranks):
    return str(ranks.min()) if ranks.min() == ranks.max() else f"{ranks.min()} to {ranks.max()}"


def _about(report):
    """Sentences that say what was compared and how to read the columns."""
    modules = report.compared.modules
    k = report.compared.angles["left"].shape[-1]
    yield (f"{len(report.compared.runs)} adapters, {len(modules)} common modules in {modules.layer.nunique()} layers "
           f"({', '.join(modules.projection.unique())}); reference: {report.reference}.")
    yield ("Cosines are of the updates dW = scale B A, all modules stacked; by chance: 97.5 % of unrelated updates with the same spectra lie below. "
           f"Angles are medians over modules, in degrees, between the top {k} left singular subspaces; by chance: 97.5 % of random ones lie above. "
           "Effective rank is the mean over modules.")
    if "barriers" in report.tables:
        yield (f"Barriers are of the loss of the texts, in nats a token, above the chord of the straight path from {report.reference}; by noise: a straight "
               "path of the loss stays below in 19 of 20 samples of texts. CKA is debiased, of the last layer, one token a text.")
    if report.base is None:
        yield "Without the base model there are no relative norms, intruder dimensions and spectral shifts: add --base."


def _summary(report):
    yield from (f"warning: {warning}" for warning in report.warnings)
    yield from _about(report)
    yield ""
    yield _overview(report).to_string(index=False, float_format=lambda number: f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}", na_rep="")
    yield ""
    names, (cosine, _) = report.compared.runs, geometry.stacked_cosine(report.compared)
    yield "cosine of every pair:"
    yield pd.DataFrame(cosine, names, names).to_string(float_format="{:+.3f}".format)


def _page(report):
    """The report as one HTML page that needs no network: tables as HTML, figures as embedded images, every text escaped."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("helpers", "templates"), autoescape=True).get_template("report.html")
    settings = pd.DataFrame([{"adapter": name, "read from": report.folders[name], "base": config.get("base_model_name_or_path"), "r": config.get("r"),
                              "lora_alpha": config.get("lora_alpha"), "rsLoRA": bool(config.get("use_rslora")),
                              "modules left out": len(report.left_out[name])} for name, config in report.settings.items()])
    return template.render(about=list(_about(report)), warnings=report.warnings, overview=_table(_overview(report)), settings=_table(settings),
                           figures=list(_figures(report)), place=store.provenance(), tables=sorted(report.tables))


def _table(frame):
    """A DataFrame for the template: headings, and rows of texts."""
    def text(value):
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else f"{value:.3g}"
        return str(value)
    return {"headings": list(frame.columns), "rows": [[text(value) for value in row] for row in frame.itertuples(index=False)]}


def _figures(report):
    """(heading, caption, alternative text, PNG as base64) of each figure."""
    from helpers import figures

    figures.use_style()
    names, (cosine, sd) = report.compared.runs, geometry.stacked_cosine(report.compared)
    pairs = {(a, b): cosine[i, j] for i, a in enumerate(names) for j, b in enumerate(names) if i < j}
    chance = sd[np.triu_indices(len(names), 1)]
    widest = f"Unrelated updates with these spectra lie within {1.96 * np.nanmax(chance):.3f} of zero." if np.isfinite(chance).any() else "None is defined."
    yield _figure("Cosine", f"Cosine of the updates, all modules stacked. {widest}",
                  "Matrix of cosines: " + ", ".join(f"{a} and {b} {value:.2f}" for (a, b), value in pairs.items()),
                  figures.matrix(cosine, [_label(name) for name in names], "cosine"))
    near = _beside(report, report.tables["cosine"].query("scope == 'layer'"))
    yield _figure("Cosine by layer", f"Cosine with {report.reference}, the modules of a layer stacked; grey: unrelated updates with these spectra.",
                  f"Lines of the cosine with {report.reference} over the layers, one for each other adapter",
                  figures.lines_of_runs({"": _labelled(near)}, "layer", "cosine", "layer", "cosine"))
    sizes = report.tables["updates"].query("layer >= 0").groupby(["run", "layer"], sort=False).norm.apply(np.linalg.norm).reset_index()
    yield _figure("Norm by layer", "Frobenius norm of the update, the modules of a layer stacked.", "Lines of the norm over the layers, one for each adapter",
                  figures.lines_of_runs({"": _labelled(sizes)}, "layer", "norm", "layer", "norm of dW"))
    sigma = report.compared.singular_values
    sigma = np.divide(sigma, sigma[..., :1], out=np.full_like(sigma, np.nan), where=sigma[..., :1] > 0)
    spectra = pd.concat([pd.DataFrame({"run": name, "index": np.arange(1, sigma.shape[2] + 1), "share": pd.DataFrame(sigma[:, i]).mean()})
                         for i, name in enumerate(names)]).dropna()
    if len(spectra):
        yield _figure("Spectra", "Singular values of each update over the largest, mean over modules.",
                      "Falling lines of normalised singular values, one for each adapter",
                      figures.lines_of_runs({"": _labelled(spectra)}, "index", "share", "index of the singular value", "over the largest"))
    angles = _beside(report, report.tables["angles"].query("side == 'left'"))
    angles = angles.groupby(["run", "index"], sort=False)[["degrees", "chance_low", "chance_high"]].median()
    yield _figure("Principal angles",
                  f"Principal angles with {report.reference} between top left singular subspaces, medians over modules; grey: random subspaces.",
                  f"Rising lines of principal angles with {report.reference}, one for each other adapter",
                  figures.lines_of_runs({"": _labelled(angles.reset_index())}, "index", "degrees", "index of the angle", "degrees"))
    if "connectivity" in report.tables:
        yield _figure("Loss along straight paths", f"Loss of the texts from {report.reference} (0) to each other adapter and to the base model (1), with 95 % "
                      "bootstrap intervals over texts.", f"Lines of the loss along the path from {report.reference}, one for each other adapter and the base",
                      figures.lines_of_runs({"": _labelled(report.tables["connectivity"].assign(run=lambda path: path.run_b))}, "t", "value",
                                            "place on the path", "loss in nats a token"))
    if "intruders" in report.tables:
        shift = report.tables["intruders"].groupby(["run", "layer"], sort=False).spectral_shift.mean().reset_index()
        yield _figure("Spectral shift", "Change of the base weights' singular values over their norm, mean over the modules of a layer.",
                      "Lines of the spectral shift over the layers, one for each adapter",
                      figures.lines_of_runs({"": _labelled(shift)}, "layer", "spectral_shift", "layer", "shift"))
    if "cka" in report.tables:
        cka = report.tables["cka"].query("run_a == 'base'").rename(columns={"run_b": "run"})
        yield _figure("Likeness of representations", "Debiased CKA of hidden states with the base, one token a text; 0 for unrelated features.",
                      "Lines of CKA with the base over the layers, one for each adapter",
                      figures.lines_of_runs({"": _labelled(cka)}, "layer", "debiased", "layer", "CKA with the base"))


def _beside(report, table):
    """The rows of a table of pairs that hold the reference, with the other adapter as `run`."""
    table = table[(table.run_a == report.reference) != (table.run_b == report.reference)]
    return table.assign(run=table.run_a.where(table.run_a != report.reference, table.run_b))


def _label(name):
    """A name as matplotlib shows it: a dollar sign is no mathematics, and a legend lists what starts with an underscore."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def _labelled(table):
    return table.assign(run=table.run.map(_label))


def _figure(heading, caption, alternative, drawn):
    import matplotlib.pyplot as plt

    stored = io.BytesIO()
    drawn.savefig(stored, format="png", dpi=110)
    plt.close(drawn)
    return {"heading": heading, "caption": caption, "alternative": alternative, "image": base64.b64encode(stored.getvalue()).decode()}
