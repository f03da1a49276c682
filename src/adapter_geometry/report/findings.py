"""What a comparison of adapters measured, as data.

Before `comparison`, which fills it, and `summary`, `programs` and `page`, which are made from it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from adapter_geometry import geometry
from adapter_geometry.geometry import Comparison
from adapter_geometry.wording import span


@dataclass(frozen=True)
class Findings:
    """What was measured of the adapters that were compared.

    `tables` are tidy DataFrames by name; each is described by the function that makes it. What is
    said by name has an entry for each adapter, where anything is known.
    """

    folders: dict[str, str]  # name -> where the adapter was read
    reference: str
    compared: Comparison
    tables: dict[str, pd.DataFrame]
    left_out: dict[str, list[str]]  # name -> modules that not all adapters have
    warnings: list[str]
    base: str | None = None
    # name -> PEFT's configuration
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # name -> "LoRA", "DoRA", "full model", ...
    notes: dict[str, list[str]] = field(default_factory=dict)  # name -> what was done in reading it
    # name -> module -> relative Frobenius error of its factors, where they are not exact
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    # what the numbers follow from: command, versions, base, adapters (origin, revision, files)
    provenance: dict[str, Any] = field(default_factory=dict)


def with_reference(findings: Findings, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of pairs (run_a, run_b) that hold the reference, with the other adapter
    as column `run`."""
    reference = findings.reference
    table = table[(table.run_a == reference) != (table.run_b == reference)]
    return table.assign(run=table.run_a.where(table.run_a != reference, table.run_b))


def zero_modules(findings: Findings) -> pd.Series:
    """How many modules of each adapter, by name, have an update of zero."""
    modules = findings.tables["updates"].query("scope == 'module'")
    counts = (modules.norm == 0).groupby(modules.run).sum()
    return counts.reindex(findings.compared.runs)


def measures(findings: Findings) -> pd.DataFrame:
    """One number per adapter (the index) and measure, NaN where it is not defined.

    Of each adapter: norm, effective_rank, zero_modules; with the base relative_norm, intruders and
    spectral_shift (means over modules); with texts kl, kl_null_high, loss.
    Beside the reference, NaN for itself: cosine, cosine_chance (the upper end of its band), angle
    (the smallest on the left side, median over modules, in degrees), angle_chance (the lower end of
    its band), norm_ratio (its norm over the reference's); with texts barrier, barrier_noise, cka.
    """
    tables, names = findings.tables, findings.compared.runs
    stacked = tables["updates"].query("scope == 'global'").set_index("run")
    cosines = with_reference(findings, tables["cosine"].query("scope == 'global'")).set_index("run")
    angles = smallest_angles(findings)
    columns = {
        "norm": stacked.norm,
        **({"relative_norm": stacked.relative_norm} if findings.base else {}),
        "effective_rank": stacked.effective_rank,
        "zero_modules": zero_modules(findings),
        "cosine": cosines.cosine,
        "cosine_chance": chance_of_cosine(cosines),
        "angle": angles.degrees,
        "angle_chance": angles.chance_low,
        "norm_ratio": _ratio_to_reference(findings, stacked.norm),
    }
    if "intruders" in tables:
        spectra = tables["intruders"].groupby("run")
        columns["intruders"] = spectra["count"].mean()
        columns["spectral_shift"] = spectra.spectral_shift.mean()
    if "behaviour" in tables:
        behaviour = tables["behaviour"].query("end == 'adapter'").set_index("run")
        columns |= {name: behaviour[name] for name in ("kl", "kl_null_high", "loss")}
    if "barriers" in tables:
        paths = tables["barriers"].query("end_b == 'adapter'").set_index("run_b")
        columns |= {"barrier": paths.above_chord, "barrier_noise": paths.noise}
    if "cka" in tables:
        of_pairs = tables["cka"].query("end_a == 'adapter'")
        columns["cka"] = of_pairs.groupby("run_b").debiased.last()
    return pd.DataFrame({name: column.reindex(names) for name, column in columns.items()})


def smallest_angles(findings: Findings) -> pd.DataFrame:
    """The smallest angle with the reference on the left side, median over modules, beside the band
    of medians: the rows of the `angles` table, one per other adapter (the index `run`)."""
    angles = with_reference(findings, findings.tables["angles"])
    first = angles.query("side == 'left' and index == 1")
    return first.query("scope == 'global'").set_index("run")


def chance_of_cosine(cosines: pd.DataFrame) -> pd.Series:
    """Up to where chance gives a cosine, for rows of the `cosine` table: the wider of its bands."""
    return cosines[["chance_high", "gaussian_high"]].max(axis=1)


def sizes(compared: Comparison) -> str:
    """How many singular vectors are compared: "5", or "2 to 5" where ranks differ."""
    i, j = np.triu_indices(len(compared.runs), 1)
    counts = compared.compared[:, i, j]
    counts = counts[counts > 0]
    if not len(counts):
        return "0"
    return span(counts.min(), counts.max())


def _ratio_to_reference(findings: Findings, norms: pd.Series) -> pd.Series:
    """Norms over that of the reference; NaN for the reference itself, and where it is zero."""
    own = norms[findings.reference]
    ratios = norms / own if own > 0 else norms * np.nan
    return ratios.drop(findings.reference)


def tree(compared: Comparison) -> pd.DataFrame:
    """The `tree` table: how adapters join to groups, by average linkage of 1 - cosine of the whole
    updates (Sokal & Michener 1958); one row per join, the nearest first.

    Columns: first and second (numbers of what is joined: adapters are 0 to n - 1 in the order of
    `Comparison.runs`, the group of row i is n + i), distance, count (adapters in the group). A zero
    update, whose cosine is not defined, lies at the distance 1 of unrelated ones.
    """
    joins = _linkage(compared)
    columns = ["first", "second", "distance", "count"]
    return pd.DataFrame(joins, columns=columns).astype({"first": int, "second": int, "count": int})


def order(findings: Findings) -> list[int]:
    """Numbers of the adapters in an order in which similar ones stand side by side: that of the
    leaves of the `tree` table, turned so that neighbours are nearest (Bar-Joseph et al. 2001); as
    they were given where there is none, of two."""
    if "tree" not in findings.tables:
        return list(range(len(findings.compared.runs)))
    from scipy.cluster import hierarchy

    joins = findings.tables["tree"].to_numpy(float)
    return [int(number) for number in hierarchy.leaves_list(joins)]


def _linkage(compared: Comparison) -> Float64[np.ndarray, "join 4"]:
    # a third of a second that two adapters need not wait for
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    cosine, _ = geometry.stacked_cosine(compared)
    distances = 1 - np.nan_to_num(np.clip(cosine, -1, 1), nan=0.0)
    np.fill_diagonal(distances, 0)
    # squareform asks for exact symmetry, which sums of products have only up to rounding
    condensed = squareform((distances + distances.T) / 2)
    joins: np.ndarray = hierarchy.linkage(condensed, "average", optimal_ordering=True)
    return joins
