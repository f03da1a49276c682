"""The summary of a comparison as lines of text for a terminal."""

import pandas as pd

from adapter_geometry import geometry
from adapter_geometry.report.findings import with_reference


def printable(text):
    """A line for the terminal: control characters, which names in a foreign file may hold, become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def overview(findings):
    """One row an adapter: norms, rank, and its direction beside the reference with the chance level of each."""
    everything = findings.tables["updates"].query("layer == -1").set_index("run")
    cosine = with_reference(findings, findings.tables["cosine"].query("scope == 'global'"))
    angles = with_reference(
        findings, findings.tables["angles"].query("side == 'left' and index == 1")
    )
    rows = []
    for name in findings.compared.runs:
        row = {
            "adapter": name,
            "rank": _span(findings.compared.rank[:, findings.compared.runs.index(name)]),
            "norm": everything.norm[name],
            "relative norm": everything.relative_norm[name],
            "effective rank": everything.effective_rank[name],
        }
        if name != findings.reference:
            near, pair = (table[table.run == name] for table in (cosine, angles))
            row |= {
                "cosine": near.cosine.item(),
                "by chance, up to": near.chance_high.item(),
                "smallest angle": pair.degrees.median(),
                "by chance, from": pair.chance_low.median(),
            }
            if "barriers" in findings.tables:
                path = findings.tables["barriers"].query("run_b == @name")
                alike = findings.tables["cka"].query(
                    "run_a == @findings.reference and run_b == @name"
                )
                row |= {
                    "barrier": path.above_chord.item(),
                    "by noise, up to": path.noise.item(),
                    "CKA": alike.debiased.iloc[-1],
                }
        if "intruders" in findings.tables:
            spectrum = findings.tables["intruders"].query("run == @name")
            row |= {
                "intruders a module": spectrum["count"].mean(),
                "spectral shift": spectrum.spectral_shift.mean(),
            }
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _span(ranks):
    return str(ranks.min()) if ranks.min() == ranks.max() else f"{ranks.min()} to {ranks.max()}"


def about(findings):
    """Sentences that say what was compared and how to read the columns."""
    modules = findings.compared.modules
    k = findings.compared.angles["left"].shape[-1]
    yield (
        f"{len(findings.compared.runs)} adapters, {len(modules)} common modules in {modules.layer.nunique()} layers "
        f"({', '.join(modules.projection.unique())}); reference: {findings.reference}."
    )
    yield (
        "Cosines are of the updates dW = scale B A, all modules stacked; by chance: 97.5 % of unrelated updates with the same spectra lie below. "
        f"Angles are medians over modules, in degrees, between the top {k} left singular subspaces; by chance: 97.5 % of random ones lie above. "
        "Effective rank is the mean over modules."
    )
    if "barriers" in findings.tables:
        yield (
            f"Barriers are of the loss of the texts, in nats a token, above the chord of the straight path from {findings.reference}; by noise: a straight "
            "path of the loss stays below in 19 of 20 samples of texts. CKA is debiased, of the last layer, one token a text."
        )
    if findings.base is None:
        yield "Without the base model there are no relative norms, intruder dimensions and spectral shifts: add --base."


def lines(findings):
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
