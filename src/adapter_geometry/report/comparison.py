"""Your own adapters: from PEFT folders to tables, a summary and a report in one self-contained HTML file.

Comes after `representations`; beside the study, not in it: it knows no profile and no run, only folders, and reads nothing else.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from adapter_geometry import geometry, storage, updates
from adapter_geometry.adapters import AdapterError, common_modules, fetch, load_update, read_config
from adapter_geometry.chance import compare_by_chance
from adapter_geometry.report import summary
from adapter_geometry.report.findings import Findings

_NULLS = 5  # draws of the matched null, each pooled over all modules of one shape
_POINTS = 25


class Report(Findings):
    """What `compare_adapters` found: its tables, a summary of them, and a page to keep."""

    def summary(self) -> str:
        """A few lines of text: size, direction and rank of each update beside the reference, with
        chance levels."""
        lines = "\n".join(summary.lines(self)).splitlines()
        return "\n".join(map(summary.printable, lines))

    def write(self, folder: str | Path) -> Path:
        """Write `report.html` and one Parquet file per table into a folder; returns the report's path."""
        from adapter_geometry.report import page  # matplotlib, which a summary does without

        folder = Path(folder)
        for name, table in self.tables.items():
            storage.write_frame(folder / f"{name}.parquet", table)
        with storage.whole(folder / "report.html") as temporary:
            temporary.write_text(page.render(self), encoding="utf-8")
        return folder / "report.html"


def compare_adapters(adapters, base=None, reference=None, texts=None, cache=None):
    """Compare PEFT LoRA adapters of one base model; returns a `Report`.

    adapters: folders or hub ids, as a list (named by their folders) or a dict {name: folder}. At least two.
    base: folder or hub id of the base model, for relative norms, intruder dimensions and spectral shift.
    reference: name of the adapter that the others are measured against; the first by default.
    texts: a file of JSON lines with `prompt` and `completion`, for losses along paths and CKA; needs `base`.
    cache: folder for the decompositions of the base's weights; the user's cache folder by default.
    Raises AdapterError (a ValueError) or FileNotFoundError with one clear message for anything that cannot be compared.
    """
    named = adapters if isinstance(adapters, dict) else _named(adapters)
    if len(named) < 2:
        raise AdapterError("one adapter has nothing to be compared with: name two or more")
    reference = reference or next(iter(named))
    if reference not in named:
        raise AdapterError(
            f"no adapter is called {reference!r}: the reference is one of {', '.join(named)}"
        )
    if texts and not base:
        raise AdapterError("losses along paths and CKA need the base model: add --base")
    folders = {name: fetch(place) for name, place in named.items()}
    settings = {name: read_config(folder) for name, folder in folders.items()}
    lines = _texts(Path(texts)) if texts else None
    loaded, left_out = common_modules(
        {name: load_update(folder) for name, folder in folders.items()}
    )
    base_folder = fetch(base, ("*.json", "*.safetensors", "*.jinja", "*.txt")) if base else None
    weights = _base_weights(base_folder, loaded, cache) if base else None
    compared = geometry.compare(loaded)
    tables = {
        "cosine": geometry.cosine_table(compared),
        "orthogonal": geometry.orthogonal_table(compared, [reference]),
    }
    tables["angles"] = geometry.angles_table(compared, compare_by_chance(loaded, _NULLS))
    if base:
        tables.update(_with_base(loaded, compared, weights))
    else:
        tables["updates"] = geometry.updates_table(compared)
    if texts:
        tables.update(_with_texts(loaded, base_folder, reference, lines))
    return Report(
        {name: str(place) for name, place in named.items()},
        reference,
        compared,
        tables,
        left_out,
        _warnings(settings, left_out),
        base and str(base),
        settings,
    )


# --- what is read --------------------------------------------------------------------------------------------------


def _named(places):
    """{name: place} for a list of places, each `NAME=PLACE` or a place named by its folder (`run/adapter` by `run`)."""
    found = {}
    for place in map(str, places):
        given, _, rest = place.partition("=")
        if not rest or Path(place).exists():
            given, rest = "", place
        parts = (
            Path(rest).resolve().parts if not given and Path(rest).exists() else Path(rest).parts
        )
        name = given or (parts[-2] if parts[-1] == "adapter" and len(parts) > 1 else parts[-1])
        if name in found:
            raise AdapterError(
                f"two adapters are called {name!r} ({found[name]} and {rest}): name them, as in first={found[name]} second={rest}"
            )
        found[name] = rest
    return found


def _warnings(settings, left_out):
    found = []
    bases = {str(config.get("base_model_name_or_path")) for config in settings.values()}
    if len(bases) > 1:
        found.append(
            f"the adapters name different base models ({', '.join(sorted(bases))}): their updates are compared all the same, "
            "as matrices of equal shapes"
        )
    for name, modules in left_out.items():
        if modules:
            found.append(
                f"{name}: {len(modules)} modules that not all adapters have are left out, for example {modules[0]}"
            )
    return found


def _base_weights(folder, loaded, cache):
    """The weights of the base model, which every update fits."""
    from adapter_geometry.spectra import BaseWeights  # and scipy's sparse solvers

    base = BaseWeights(folder, cache)
    for update in loaded.values():
        base.require(update)
    return base


def _with_base(loaded, compared, base):
    from adapter_geometry.spectra import intruders_table

    return {
        "updates": geometry.updates_table(compared, base.norms(compared.modules.module)),
        "intruders": intruders_table(loaded, base),
    }


def _with_texts(loaded, folder, reference, lines):
    """Losses along the paths from the reference to every other adapter and to the base, their barriers, and CKA by layer with the base and the reference."""
    from adapter_geometry import mode_connectivity, representations
    from adapter_geometry.mode_connectivity import Texts

    tokenizer, model = _model(folder)
    prompts, completions = (
        [tokenizer(line[part], add_special_tokens=part == "prompt").input_ids for line in lines]
        for part in ("prompt", "completion")
    )
    if short := [
        line["prompt"]
        for line, *ids in zip(lines, prompts, completions, strict=True)
        if not all(ids)
    ]:
        raise AdapterError(
            f"the tokenizer in {folder} makes no tokens of the prompt or completion of the text that starts {short[0][:40]!r}"
        )
    packed = Texts(
        prompts, completions, [completion[:1] for completion in completions], model.device
    )  # bare answers are not asked for here
    weights = updates.weights_of(model, loaded[reference])
    nothing = updates.combine([loaded[reference]], [0.0])
    states = {"base": representations.states(model, prompts, completions)}
    curves, barriers, cka = [], [], []
    for name in loaded:
        updates.put(model, weights, loaded[name])
        states[name] = representations.states(model, prompts, completions)
    for name, goal in [
        *((name, update) for name, update in loaded.items() if name != reference),
        ("base", nothing),
    ]:
        measured = mode_connectivity.along(
            model,
            weights,
            packed,
            loaded[reference],
            goal,
            np.linspace(0, 1, _POINTS),
            f"{reference} to {name}",
        )
        ends = {"run_a": reference, "run_b": name}
        measured = measured[measured.metric == "rollout"]
        curves.append(mode_connectivity.curve(measured).assign(**ends))
        barriers.append(mode_connectivity.barrier(measured).assign(**ends))
    rows = representations.one_a_text(states["base"])
    for other in dict.fromkeys(("base", reference)):
        for name in loaded:
            if name != other:
                cka += [
                    {
                        "layer": layer,
                        "run_a": other,
                        "run_b": name,
                        "debiased": representations.cka(first, second),
                        "biased": representations.cka(first, second, debiased=False),
                        "n": len(rows),
                    }
                    for layer, (first, second) in enumerate(
                        zip(
                            states[other].hidden[:, rows], states[name].hidden[:, rows], strict=True
                        )
                    )
                ]
    return {
        "connectivity": pd.concat(curves, ignore_index=True),
        "barriers": pd.concat(barriers, ignore_index=True),
        "cka": pd.DataFrame(cka),
    }


def _model(folder):
    """(tokenizer, model) of a base model's folder, in float32; none of its own code is run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        why = str(error).strip().split("\n")[0]
        raise AdapterError(
            f"transformers cannot load the model or tokenizer in {folder} ({why}): losses and CKA need both"
        ) from error
    if not hasattr(getattr(model, "model", None), "norm"):
        raise AdapterError(
            f"losses and CKA need a model with the parts of Llama or Qwen, and {folder} holds a {type(model).__name__}: "
            "leave out the texts"
        )
    return tokenizer, model.eval().requires_grad_(False)


def _texts(path):
    """The lines of a JSON-lines file with `prompt` and `completion`; AdapterError names the first line that is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path} cannot be read ({error}): one JSON object a line, with prompt and completion, is expected"
        ) from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise AdapterError(
                    f"{path}, line {number} is not JSON ({error}): an object with prompt and completion is expected"
                ) from error
            if not (
                isinstance(lines[-1], dict)
                and all(
                    isinstance(lines[-1].get(part), str) and lines[-1][part]
                    for part in ("prompt", "completion")
                )
            ):
                raise AdapterError(
                    f"{path}, line {number}: an object with the texts prompt and completion is expected"
                )
    if len(lines) < 10:
        raise AdapterError(
            f"{path} holds {len(lines)} texts: ten or more are needed for an interval"
        )
    return lines
