"""The report of a comparison as one HTML page that needs no network.

Comes after `findings`; `templates/` holds its HTML and its style sheet. Draws with `figures` and
writes nothing itself.
"""

import base64
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from adapter_geometry import geometry, storage
from adapter_geometry.report import figures
from adapter_geometry.report.findings import Findings, with_reference
from adapter_geometry.report.summary import about, overview

# What determined the numbers on the page.
_LIBRARIES = ("torch", "safetensors", "numpy", "scipy")


class _Table(NamedTuple):
    """A DataFrame for the template."""

    headings: list[str]
    rows: list[list[str]]


class _Figure(NamedTuple):
    """A figure for the template; `alternative` says in words what the image, a PNG as base64,
    shows."""

    heading: str
    caption: str
    alternative: str
    image: str


def render(findings: Findings) -> str:
    """The report as one HTML page that needs no network: tables as HTML, figures as embedded
    images, every text escaped."""
    environment = Environment(
        loader=PackageLoader("adapter_geometry.report", "templates"), autoescape=True
    )
    return environment.get_template("report.html").render(
        about=list(about(findings)),
        warnings=findings.warnings,
        overview=_table(overview(findings)),
        settings=_table(_settings(findings)),
        figures=list(_figures(findings)),
        provenance=storage.provenance(_LIBRARIES),
        tables=sorted(findings.tables),
    )


# --- tables ---------------------------------------------------------------------------------------


def _settings(findings: Findings) -> pd.DataFrame:
    """One row per adapter: where it was read, and what its configuration says."""
    rows = [
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
    return pd.DataFrame(rows)


def _table(frame: pd.DataFrame) -> _Table:
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    return _Table(list(frame.columns), rows)


def _text(value: Any) -> str:
    """A cell: numbers with three digits, nothing for NaN."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.3g}"
    return str(value)


# --- figures --------------------------------------------------------------------------------------


def _figures(findings: Findings) -> Iterator[_Figure]:
    """The figures of the page in their order, one at a time."""
    figures.use_style()
    yield _cosine(findings)
    yield _cosine_by_layer(findings)
    yield _norm_by_layer(findings)
    yield from _spectra(findings)
    yield _angles(findings)
    if "connectivity" in findings.tables:
        yield _losses(findings)
    if "intruders" in findings.tables:
        yield _shifts(findings)
    if "cka" in findings.tables:
        yield _cka(findings)


def _cosine(findings: Findings) -> _Figure:
    names, (cosine, sd) = findings.compared.runs, geometry.stacked_cosine(findings.compared)
    i, j = np.triu_indices(len(names), 1)  # every pair once
    chance = sd[i, j]
    widest = (
        f"Unrelated updates with these spectra lie within {1.96 * np.nanmax(chance):.3f} of zero."
        if np.isfinite(chance).any()
        else "None is defined."
    )
    pairs = [f"{names[a]} and {names[b]} {cosine[a, b]:.2f}" for a, b in zip(i, j, strict=True)]
    return _encoded(
        "Cosine",
        f"Cosine of the updates, all modules stacked. {widest}",
        f"Matrix of cosines: {', '.join(pairs)}",
        figures.matrix(cosine, [_label(name) for name in names], "cosine"),
    )


def _cosine_by_layer(findings: Findings) -> _Figure:
    by_layer = findings.tables["cosine"].query("scope == 'layer'").dropna(subset="layer")
    return _encoded(
        "Cosine by layer",
        f"Cosine with {findings.reference}, the modules of a layer stacked; "
        "grey: unrelated updates with these spectra.",
        f"Lines of the cosine with {findings.reference} over the layers, "
        "one for each other adapter",
        _lines(with_reference(findings, by_layer), "layer", "cosine", "layer", "cosine"),
    )


def _norm_by_layer(findings: Findings) -> _Figure:
    modules = findings.tables["updates"].query("scope == 'module'")
    by_layer = modules.groupby(["run", "layer"], sort=False).norm.apply(np.linalg.norm)
    return _encoded(
        "Norm by layer",
        "Frobenius norm of the update, the modules of a layer stacked.",
        "Lines of the norm over the layers, one for each adapter",
        _lines(by_layer.reset_index(), "layer", "norm", "layer", "norm of dW"),
    )


def _spectra(findings: Findings) -> Iterator[_Figure]:
    """The figure of singular values; none where all updates are zero."""
    sigma = findings.compared.singular_values  # (module, run, largest r)
    largest = sigma[..., :1]
    shares = np.divide(sigma, largest, out=np.full_like(sigma, np.nan), where=largest > 0)
    index = np.arange(1, sigma.shape[2] + 1)
    # pandas' mean leaves out NaN, which numpy's would warn of where a whole column is NaN
    means = [pd.DataFrame(shares[:, i]).mean() for i in range(sigma.shape[1])]
    spectra = pd.concat(
        [
            pd.DataFrame({"run": name, "index": index, "share": mean})
            for name, mean in zip(findings.compared.runs, means, strict=True)
        ]
    ).dropna()
    if len(spectra):
        yield _encoded(
            "Spectra",
            "Singular values of each update over the largest, mean over modules.",
            "Falling lines of normalised singular values, one for each adapter",
            _lines(spectra, "index", "share", "index of the singular value", "over the largest"),
        )


def _angles(findings: Findings) -> _Figure:
    angles = with_reference(findings, findings.tables["angles"].query("side == 'left'"))
    columns = ["degrees", "chance_low", "chance_high"]
    medians = angles.groupby(["run", "index"], sort=False)[columns].median().reset_index()
    return _encoded(
        "Principal angles",
        f"Principal angles with {findings.reference} between top left singular subspaces, "
        "medians over modules; grey: random subspaces.",
        f"Rising lines of principal angles with {findings.reference}, one for each other adapter",
        _lines(medians, "index", "degrees", "index of the angle", "degrees"),
    )


def _losses(findings: Findings) -> _Figure:
    curves = findings.tables["connectivity"].rename(columns={"run_b": "run"})
    return _encoded(
        "Loss along straight paths",
        f"Loss of the texts from {findings.reference} (0) to each other adapter and to the base "
        "model (1), with 95 % bootstrap intervals over texts.",
        f"Lines of the loss along the path from {findings.reference}, one for each other adapter "
        "and the base",
        _lines(curves, "t", "value", "position on the path", "loss in nats per token"),
    )


def _shifts(findings: Findings) -> _Figure:
    modules = findings.tables["intruders"].groupby(["run", "layer"], sort=False)
    return _encoded(
        "Spectral shift",
        "Change of the base weights' singular values over their norm, mean over the modules of a "
        "layer.",
        "Lines of the spectral shift over the layers, one for each adapter",
        _lines(
            modules.spectral_shift.mean().reset_index(),
            "layer",
            "spectral_shift",
            "layer",
            "shift",
        ),
    )


def _cka(findings: Findings) -> _Figure:
    with_base = findings.tables["cka"].query("end_a == 'base model'")
    return _encoded(
        "Likeness of representations",
        "Debiased CKA of hidden states with the base, one token per text; "
        "0 for unrelated features.",
        "Lines of CKA with the base over the layers, one for each adapter",
        _lines(
            with_base.rename(columns={"run_b": "run"}),
            "layer",
            "debiased",
            "layer",
            "CKA with the base",
        ),
    )


def _lines(table: pd.DataFrame, x: str, value: str, label_x: str, label_y: str) -> Figure:
    """One line per run of a table."""
    return figures.lines({"": _labelled(table)}, x, value, label_x, label_y)


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the names of its runs as they are drawn; a missing one, the base model's, stays
    missing."""
    return table.assign(run=table.run.map(_label, na_action="ignore"))


def _label(name: str) -> str:
    """A name as matplotlib shows it: a dollar sign is no mathematics, and a legend lists what
    starts with an underscore."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def _encoded(heading: str, caption: str, alternative: str, figure: Figure) -> _Figure:
    """A figure drawn to a PNG and closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return _Figure(heading, caption, alternative, base64.b64encode(buffer.getvalue()).decode())
