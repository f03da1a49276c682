"""The report of a comparison as one HTML page that needs no network.

Comes after `findings`; `charts` draws for it, `templates/` holds its HTML, style sheet and script.
Writes nothing itself.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from adapter_geometry.report import charts, module_maps, svg
from adapter_geometry.report.findings import Findings
from adapter_geometry.report.summary import about, nearest, overview
from adapter_geometry.report.summary import findings as sentences


class _Table(NamedTuple):
    """A DataFrame for the template."""

    headings: list[str]
    rows: list[list[str]]


def render(findings: Findings) -> str:
    """The report as one HTML page that needs no network: tables as HTML, figures as SVG in it,
    every text escaped."""
    environment = Environment(
        loader=PackageLoader("adapter_geometry.report", "templates"), autoescape=True
    )
    layout = module_maps.layout_of(findings.compared.modules)
    statistics = module_maps.statistics(findings)
    return environment.get_template("report.html").render(
        sentences=sentences(findings),
        about=list(about(findings)),
        warnings=findings.warnings,
        overview=_table(overview(findings)),
        nearest=_table(nearest(findings)) if charts.are_many(findings) else None,
        settings=_table(_settings(findings)),
        sections=charts.sections(findings, layout, statistics),
        explorer=module_maps.explorer(findings, layout, statistics),
        steps=range(svg.STEPS + 1),
        notes=findings.notes,
        provenance=findings.provenance,
        tables=sorted(findings.tables),
    )


def _settings(findings: Findings) -> pd.DataFrame:
    """One row per adapter: where it was read, and what its configuration says. What is known of
    none of them is no column."""
    rows = []
    for name, config in findings.settings.items():
        origin = findings.provenance.get("adapters", {}).get(name, {})
        files = origin.get("files", {})
        errors = findings.errors.get(name, {})
        rows.append(
            {
                "adapter": name,
                "kind": findings.kinds.get(name),
                "read from": findings.folders[name],
                "revision": origin.get("revision"),
                "base": config.get("base_model_name_or_path"),
                "r": config.get("r"),
                "lora_alpha": config.get("lora_alpha"),
                "rsLoRA": bool(config.get("use_rslora")),
                "modules left out": len(findings.left_out[name]),
                "largest error": max(errors.values()) if errors else None,
                "SHA-256 of": "; ".join(f"{file} {files[file][:12]}" for file in files) or None,
            }
        )
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _table(frame: pd.DataFrame) -> _Table:
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    return _Table(list(frame.columns), rows)


def _text(value: Any) -> str:
    """A cell: numbers with three digits, nothing for NaN."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.3g}"
    return "" if value is None else str(value)
