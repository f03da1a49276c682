"""The report of a comparison as one HTML page that needs no network."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from adapter_geometry import geometry, storage
from adapter_geometry.report import figures
from adapter_geometry.report.findings import with_reference
from adapter_geometry.report.summary import about, overview

# What determined the numbers on the page.
_LIBRARIES = ("torch", "safetensors", "numpy", "scipy")


def render(findings):
    """The report as one HTML page that needs no network: tables as HTML, figures as embedded images, every text escaped."""
    template = Environment(
        loader=PackageLoader("adapter_geometry.report", "templates"), autoescape=True
    ).get_template("report.html")
    settings = pd.DataFrame(
        [
            {
                "adapter": name,
                "read from": findings.folders[name],
                "base": config.get("base_model_name_or_path"),
                "r": config.get("r"),
                "lora_alpha": config.get("lora_alpha"),
                "rsLoRA": bool(config.get("use_rslora")),
                "modules left out": len(findings.left_out[name]),
            }
            for name, config in findings.settings.items()
        ]
    )
    return template.render(
        about=list(about(findings)),
        warnings=findings.warnings,
        overview=_table(overview(findings)),
        settings=_table(settings),
        figures=list(_figures(findings)),
        place=storage.provenance(_LIBRARIES),
        tables=sorted(findings.tables),
    )


def _table(frame):
    """A DataFrame for the template: headings, and rows of texts."""

    def text(value):
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else f"{value:.3g}"
        return str(value)

    return {
        "headings": list(frame.columns),
        "rows": [[text(value) for value in row] for row in frame.itertuples(index=False)],
    }


def _figures(findings):
    """(heading, caption, alternative text, PNG as base64) of each figure."""
    figures.use_style()
    names, (cosine, sd) = findings.compared.runs, geometry.stacked_cosine(findings.compared)
    pairs = {
        (a, b): cosine[i, j] for i, a in enumerate(names) for j, b in enumerate(names) if i < j
    }
    chance = sd[np.triu_indices(len(names), 1)]
    widest = (
        f"Unrelated updates with these spectra lie within {1.96 * np.nanmax(chance):.3f} of zero."
        if np.isfinite(chance).any()
        else "None is defined."
    )
    yield _figure(
        "Cosine",
        f"Cosine of the updates, all modules stacked. {widest}",
        "Matrix of cosines: "
        + ", ".join(f"{a} and {b} {value:.2f}" for (a, b), value in pairs.items()),
        figures.matrix(cosine, [_label(name) for name in names], "cosine"),
    )
    near = with_reference(findings, findings.tables["cosine"].query("scope == 'layer'"))
    yield _figure(
        "Cosine by layer",
        f"Cosine with {findings.reference}, the modules of a layer stacked; grey: unrelated updates with these spectra.",
        f"Lines of the cosine with {findings.reference} over the layers, one for each other adapter",
        figures.lines({"": _labelled(near)}, "layer", "cosine", "layer", "cosine"),
    )
    sizes = (
        findings.tables["updates"]
        .query("layer >= 0")
        .groupby(["run", "layer"], sort=False)
        .norm.apply(np.linalg.norm)
        .reset_index()
    )
    yield _figure(
        "Norm by layer",
        "Frobenius norm of the update, the modules of a layer stacked.",
        "Lines of the norm over the layers, one for each adapter",
        figures.lines({"": _labelled(sizes)}, "layer", "norm", "layer", "norm of dW"),
    )
    sigma = findings.compared.singular_values
    sigma = np.divide(
        sigma, sigma[..., :1], out=np.full_like(sigma, np.nan), where=sigma[..., :1] > 0
    )
    spectra = pd.concat(
        [
            pd.DataFrame(
                {
                    "run": name,
                    "index": np.arange(1, sigma.shape[2] + 1),
                    "share": pd.DataFrame(sigma[:, i]).mean(),
                }
            )
            for i, name in enumerate(names)
        ]
    ).dropna()
    if len(spectra):
        yield _figure(
            "Spectra",
            "Singular values of each update over the largest, mean over modules.",
            "Falling lines of normalised singular values, one for each adapter",
            figures.lines(
                {"": _labelled(spectra)},
                "index",
                "share",
                "index of the singular value",
                "over the largest",
            ),
        )
    angles = with_reference(findings, findings.tables["angles"].query("side == 'left'"))
    angles = angles.groupby(["run", "index"], sort=False)[
        ["degrees", "chance_low", "chance_high"]
    ].median()
    yield _figure(
        "Principal angles",
        f"Principal angles with {findings.reference} between top left singular subspaces, medians over modules; grey: random subspaces.",
        f"Rising lines of principal angles with {findings.reference}, one for each other adapter",
        figures.lines(
            {"": _labelled(angles.reset_index())},
            "index",
            "degrees",
            "index of the angle",
            "degrees",
        ),
    )
    if "connectivity" in findings.tables:
        yield _figure(
            "Loss along straight paths",
            f"Loss of the texts from {findings.reference} (0) to each other adapter and to the base model (1), with 95 % "
            "bootstrap intervals over texts.",
            f"Lines of the loss along the path from {findings.reference}, one for each other adapter and the base",
            figures.lines(
                {
                    "": _labelled(
                        findings.tables["connectivity"].assign(run=lambda path: path.run_b)
                    )
                },
                "t",
                "value",
                "place on the path",
                "loss in nats a token",
            ),
        )
    if "intruders" in findings.tables:
        shift = (
            findings.tables["intruders"]
            .groupby(["run", "layer"], sort=False)
            .spectral_shift.mean()
            .reset_index()
        )
        yield _figure(
            "Spectral shift",
            "Change of the base weights' singular values over their norm, mean over the modules of a layer.",
            "Lines of the spectral shift over the layers, one for each adapter",
            figures.lines({"": _labelled(shift)}, "layer", "spectral_shift", "layer", "shift"),
        )
    if "cka" in findings.tables:
        cka = findings.tables["cka"].query("run_a == 'base'").rename(columns={"run_b": "run"})
        yield _figure(
            "Likeness of representations",
            "Debiased CKA of hidden states with the base, one token a text; 0 for unrelated features.",
            "Lines of CKA with the base over the layers, one for each adapter",
            figures.lines({"": _labelled(cka)}, "layer", "debiased", "layer", "CKA with the base"),
        )


def _label(name):
    """A name as matplotlib shows it: a dollar sign is no mathematics, and a legend lists what starts with an underscore."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def _labelled(table):
    return table.assign(run=table.run.map(_label))


def _figure(heading, caption, alternative, drawn):
    stored = io.BytesIO()
    drawn.savefig(stored, format="png", dpi=110)
    plt.close(drawn)
    return {
        "heading": heading,
        "caption": caption,
        "alternative": alternative,
        "image": base64.b64encode(stored.getvalue()).decode(),
    }
