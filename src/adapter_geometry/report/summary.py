"""The summary of a comparison as lines of text for a terminal, and the overview that it shares with
the page.

Comes after `findings`; reads its tables and prints nothing itself.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from adapter_geometry import geometry
from adapter_geometry.report.findings import Findings, with_reference


def printable(text: str) -> str:
    """A line for the terminal: control characters, which names in a foreign file may hold, become
    question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def overview(findings: Findings) -> pd.DataFrame:
    """One row per adapter, columns as headings for a reader: norms, rank, and its direction beside
    the reference with the chance level of each. What none of the adapters has is no column."""
    tables = findings.tables
    stacked = tables["updates"].query("scope == 'global'").set_index("run")
    cosines = with_reference(findings, tables["cosine"].query("scope == 'global'"))
    angles = with_reference(findings, tables["angles"].query("side == 'left' and index == 1"))
    rows = []
    for number, name in enumerate(findings.compared.runs):
        row: dict[str, Any] = {
            "adapter": name,
            "rank": _span(findings.compared.rank[:, number]),
            "norm": stacked.norm[name],
            "relative norm": stacked.relative_norm[name],
            "effective rank": stacked.effective_rank[name],
        }
        if name != findings.reference:
            row |= _beside_reference(cosines[cosines.run == name], angles[angles.run == name])
            if "barriers" in tables:
                row |= _on_texts(findings, name)
        if "intruders" in tables:
            spectrum = tables["intruders"].query("run == @name")
            row |= {
                "intruders per module": spectrum["count"].mean(),
                "spectral shift": spectrum.spectral_shift.mean(),
            }
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _beside_reference(cosine: pd.DataFrame, angles: pd.DataFrame) -> dict[str, float]:
    """Part of an adapter's row: its cosine with the reference, and its smallest angle by module."""
    return {
        "cosine": cosine.cosine.item(),
        "by chance, up to": cosine.chance_high.item(),
        "smallest angle": angles.degrees.median(),
        "by chance, from": angles.chance_low.median(),
    }


def _on_texts(findings: Findings, name: str) -> dict[str, float]:
    """Part of an adapter's row: the path to it from the reference, and CKA of the last layer."""
    path = findings.tables["barriers"].query("run_b == @name")
    cka = findings.tables["cka"].query("run_a == @findings.reference and run_b == @name")
    return {
        "barrier": path.above_chord.item(),
        "by noise, up to": path.noise.item(),
        "CKA": cka.debiased.iloc[-1],
    }


def _span(ranks: Int[np.ndarray, " module"]) -> str:
    return str(ranks.min()) if ranks.min() == ranks.max() else f"{ranks.min()} to {ranks.max()}"


def about(findings: Findings) -> Iterator[str]:
    """Sentences that say what was compared and how to read the columns."""
    modules = findings.compared.modules
    k = findings.compared.angles["left"].shape[-1]
    yield (
        f"{len(findings.compared.runs)} adapters, {len(modules)} common modules in "
        f"{modules.layer.nunique()} layers ({', '.join(modules.projection.unique())}); "
        f"reference: {findings.reference}."
    )
    yield (
        "Cosines are of the updates dW = scale B A, all modules stacked; by chance: 97.5 % of "
        "unrelated updates with the same spectra lie below. Angles are medians over modules, in "
        f"degrees, between the top {k} left singular subspaces; by chance: 97.5 % of random ones "
        "lie above. Effective rank is the mean over modules."
    )
    if "barriers" in findings.tables:
        yield (
            "Barriers are of the loss of the texts, in nats per token, above the chord of the "
            f"straight path from {findings.reference}; by noise: a straight path of the loss stays "
            "below in 19 of 20 samples of texts. CKA is debiased, of the last layer, one token per "
            "text."
        )
    if findings.base is None:
        yield (
            "Without the base model there are no relative norms, intruder dimensions and spectral "
            "shifts: add --base."
        )


def lines(findings: Findings) -> Iterator[str]:
    """The summary: warnings, the sentences of `about`, the overview and the cosine of every pair.

    Names are in it as they are; `printable` makes it safe for a terminal.
    """
    yield from (f"warning: {warning}" for warning in findings.warnings)
    yield from about(findings)
    yield ""
    yield overview(findings).to_string(
        index=False,
        float_format=lambda number: f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}",
        na_rep="",
    )
    yield ""
    names, (cosine, _) = findings.compared.runs, geometry.stacked_cosine(findings.compared)
    yield "cosine of every pair:"
    yield pd.DataFrame(cosine, names, names).to_string(float_format="{:+.3f}".format)
