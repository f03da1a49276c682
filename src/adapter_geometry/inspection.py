"""One adapter alone: how long its update is and where, what rank it uses, which modules are dead or
stand out, and, with the base model, what it does to the base's spectra and what it writes.

Comes after `geometry`, `spectra` and `logit_lens`, beside the report of several adapters; the
command calls it. Reads the adapter and the base model that it is given, and writes where
`Inspection.write` is told, and decompositions of the base's weights into their cache.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapter_geometry import adapters, geometry, sources, storage
from adapter_geometry.adapters import AdapterError, Loaded
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.logit_lens import lens_table, read_unembedding
from adapter_geometry.report import progress
from adapter_geometry.wording import counted, span

_DEAD = 0.01  # of the median norm of a module's kind
# Norms within this factor of their kind's median are no outliers, however alike the others are.
_FACTOR = 1.5
_DRAWS, _KINDS_WITHIN = 4000, 0.99
_KIND = ["stack", "projection", "d_out", "d_in"]
_SHARES = (0.9, 0.99)
_EXAMPLES = 5  # that a line names
_OF_SPECTRUM = ("intruders", "count_by_chance", "spectral_shift", "shift_by_chance")
NUMBERS = "inspection.json"
_TABLES = ("modules", "spectra", "intruders", "lens")
_FILES = {NUMBERS, *(f"{name}.{ending}" for name in _TABLES for ending in ("parquet", "csv"))}


@dataclass(frozen=True)
class Inspection:
    """What `inspect_adapter` measured; `tables` are tidy DataFrames by name, each described by the
    function that makes it."""

    loaded: Loaded
    base: str | None
    tables: dict[str, pd.DataFrame]
    notes: list[str]

    def lines(self) -> list[str]:
        """The findings as sentences, with the notes and a table of the kinds of modules."""
        about, *findings = _sentences(self)
        if not self.norm:
            return [*findings, about, *self.notes]
        return [about, *self.notes, *findings, "", _kinds(self)]

    @property
    def norm(self) -> float:
        """Frobenius norm of the update, all modules stacked."""
        return float(np.linalg.norm(self.tables["modules"].norm))

    def as_json(self) -> dict[str, Any]:
        """What was found as JSON holds it: sentences, and a record of each module; the other tables
        are named with their columns and rows, and what is not defined is null."""
        modules = self.tables["modules"]
        if "intruders" in self.tables:
            spectrum = self.tables["intruders"]
            numbers = spectrum.rename(columns={"count": "intruders"})[["module", *_OF_SPECTRUM]]
            modules = modules.merge(numbers, on="module")
        return {
            "adapter": self.loaded.origin,
            "revision": self.loaded.revision,
            "files": self.loaded.files,
            "kind": self.loaded.kind,
            "base": self.base,
            "notes": self.notes,
            "left_out": self.loaded.left_out,
            "findings": list(_sentences(self)),
            "norm": self.norm,
            "modules": modules.astype(object).where(modules.notna(), None).to_dict("records"),
            "tables": {
                name: {"columns": list(table.columns), "rows": len(table)}
                for name, table in self.tables.items()
            },
        }

    def write(self, folder: str | Path) -> Path:
        """Write each table as Parquet and CSV, and `inspection.json`, into a folder that is
        replaced as a whole; returns the folder.

        AdapterError if the folder holds anything but an inspection, or is the one worked in.
        """
        path = require_own(folder)
        with storage.whole(path) as temporary:
            temporary.mkdir()
            for name, table in self.tables.items():
                storage.write_frame(temporary / f"{name}.parquet", table)
                table.to_csv(temporary / f"{name}.csv", index=False)
            content = json.dumps(self.as_json(), indent=2, allow_nan=False)
            (temporary / NUMBERS).write_text(content, encoding="utf-8")
        return Path(folder)


def require_own(folder: str | Path) -> Path:
    """The path of a folder that an inspection may take the place of: there is none, or it is empty
    or holds an inspection and nothing else; AdapterError otherwise."""
    return storage.require_replaceable(folder, _FILES, "an inspection")


def inspect_adapter(
    adapter: str | Path,
    base: str | Path | None = None,
    cache: str | Path | None = None,
    lora_only: bool = False,
    rank: int | None = None,
) -> Inspection:
    """Measure one adapter alone; returns an `Inspection`.

    adapter: folder or hub id. base: folder or hub id of the base model, for relative norms,
    intruder dimensions and the logit lens. cache: folder for the decompositions of the base's
    weights; the user's cache folder by default. lora_only: parts that are no update of a weight
    matrix are left out, and not refused. rank: of the low-rank parts that a full model is read as.
    Raises AdapterError (a ValueError) or FileNotFoundError with one clear message for what cannot
    be inspected.
    """
    weights = BaseWeights(sources.fetch(base, sources.BASE_FILES), cache) if base else None
    loaded = adapters.load(adapter, weights, lora_only, rank)
    notes = list(loaded.notes)
    if weights:
        weights.check_shapes(loaded.update)
        named = loaded.config.get("base_model_name_or_path")
        names = [str(base), *([weights.name] if weights.name else [])]
        if named and not any(sources.is_one_model(str(named), each) for each in names):
            notes.append(
                f"the adapter names {named} as its base model, and is measured beside {base}: "
                "unless these are one, what is said of the base is beside the wrong weights"
            )
    compared = geometry.compare({"": loaded.update})
    norms = weights.norms(compared.modules.module) if weights else None
    tables = {
        "modules": modules_table(compared, norms),
        "spectra": spectra_table(compared),
    }
    if weights:
        progress.announce_decompositions(compared.modules, weights.cache)
        from adapter_geometry.spectra import intruders_table  # and scipy's sparse solvers

        tables["intruders"] = intruders_table({"": loaded.update}, weights).drop(columns="run")
        notes += weights.notes
        try:
            unembedding = read_unembedding(weights)
        except AdapterError as error:
            notes.append(f"no logit lens: {error}")
        else:
            tables["lens"] = lens_table(loaded.update, unembedding)
            if unembedding.norm is None:
                notes.append(
                    "the logit lens leaves out the gain of the final norm, which was not found in "
                    "the base model"
                )
    return Inspection(loaded, str(base) if base else None, tables, notes)


# --- tables ---------------------------------------------------------------------------------------


def modules_table(
    compared: geometry.Comparison, base_norms: dict[str, float] | None = None
) -> pd.DataFrame:
    """The `modules` table of a Comparison of one adapter: one row per module.

    Columns: those of `Comparison.modules`; rank (of the factors); norm, relative_norm and ranks of
    the `updates` table; rank_90 and rank_99 (the number of singular values that hold 90 and 99 % of
    the squared norm, 0 for a zero update); ratio (norm over the median of its kind: its stack,
    projection and shape); finding ("dead": the norm is zero, or below a hundredth of that median;
    "outlying": beyond a factor of 1.5 of that median, and so far from it that 99 of 100 kinds of as
    many modules have none such by chance, `_largest_by_chance`; missing otherwise).
    """
    of_modules = geometry.updates_table(compared, base_norms).query("scope == 'module'")
    numbers = of_modules.loc[:, "norm":].reset_index(drop=True)  # in the order of the modules
    table = pd.concat([compared.modules.assign(rank=compared.rank[:, 0]), numbers], axis=1)
    energy = np.nan_to_num(compared.singular_values[:, 0]) ** 2  # (module, r)
    total = energy.sum(1)
    for share in _SHARES:
        # what is below the share before the last value that is needed, up to rounding
        below = energy.cumsum(1) < share * total[:, None] * (1 - 1e-12)
        table[f"rank_{share * 100:.0f}"] = np.where(total > 0, below.sum(1) + 1, 0)
    return table.assign(**_unusual(table))


def _unusual(table: pd.DataFrame) -> dict[str, Any]:
    """The columns `ratio` and `finding` of the `modules` table."""
    kinds = table.groupby(_KIND, dropna=False, sort=False).ngroup()
    norms = table.norm.where(table.norm > 0)
    median = norms.groupby(kinds).transform("median")
    ratio = table.norm / median
    is_dead = (table.norm == 0) | (ratio < _DEAD)
    alive = np.log(norms.where(~is_dead))
    distance = alive - alive.groupby(kinds).transform("median")
    deviation = distance.abs().groupby(kinds).transform("median")
    count = alive.groupby(kinds).transform("count")
    is_far = distance.abs() > deviation * count.map(_largest_by_chance)
    is_outlying = is_far & (distance.abs() > np.log(_FACTOR))
    finding = pd.Series(None, index=table.index, dtype=object)
    return {"ratio": ratio, "finding": finding.mask(is_outlying, "outlying").mask(is_dead, "dead")}


@functools.cache
def _largest_by_chance(count: int) -> float:
    """How far from their median the farthest of so many normal numbers is, over the median distance
    (the modified z-score of Iglewicz & Hoaglin 1993), in all but one of 100 draws."""
    drawn = np.random.default_rng(0).standard_normal((_DRAWS, max(count, 1)))
    distance = np.abs(drawn - np.median(drawn, 1, keepdims=True))
    with np.errstate(invalid="ignore"):  # one number is its own median
        largest = distance.max(1) / np.median(distance, 1)
    return float(np.quantile(largest, _KINDS_WITHIN))


def spectra_table(compared: geometry.Comparison) -> pd.DataFrame:
    """The `spectra` table of a Comparison of one adapter: one row per module and singular value.

    Columns: those of `Comparison.modules` that name the module; index (1 is the largest),
    singular_value, share (of the module's squared norm, NaN for a zero update).
    """
    named = compared.modules.drop(columns=["d_out", "d_in"])
    sigma = compared.singular_values[:, 0]
    module, index = np.nonzero(~np.isnan(sigma))
    table = named.iloc[module].reset_index(drop=True)
    values, total = sigma[module, index], np.nansum(sigma**2, 1)[module]
    share = np.divide(values**2, total, out=np.full(len(values), np.nan), where=total > 0)
    return table.assign(index=index + 1, singular_value=values, share=share)


# --- the summary ----------------------------------------------------------------------------------


def _sentences(inspection: Inspection) -> Iterator[str]:
    """What was inspected, then what was found."""
    modules, loaded, norm = inspection.tables["modules"], inspection.loaded, inspection.norm
    revision = f" at {loaded.revision}" if loaded.revision else ""
    ranks = span(modules["rank"].min(), modules["rank"].max())
    yield (
        f"{loaded.origin}{revision}: {loaded.kind}, {len(modules)} modules in "
        f"{modules.layer.nunique()} layers, rank {ranks}"
    )
    if not norm:
        yield (
            "the update is zero in every module: the adapter was never trained, or its factors B "
            "were lost when it was saved"
        )
        return
    trained = modules[modules.norm > 0]
    relative = ""
    if inspection.base:
        of_base = float(np.linalg.norm(trained.norm / trained.relative_norm))
        relative = f", {norm / of_base:.3g} of the norm of the weights that it changes"
    yield (
        f"norm {norm:.3g}{relative}; effective rank {trained.effective_rank.mean():.1f}, mean over "
        f"modules; 90 % of the squared norm is in {trained.rank_90.median():.0f} singular values, "
        f"median over modules, of {span(trained['rank'].min(), trained['rank'].max())}"
    )
    yield from _of_unusual(modules)
    if "intruders" in inspection.tables:
        spectrum = inspection.tables["intruders"]
        yield (
            f"intruder dimensions: {spectrum['count'].mean():.2f} of the ten leading vectors per "
            f"module, {spectrum.count_by_chance.mean():.2f} with outputs turned at random; "
            f"spectral shift {spectrum.spectral_shift.mean():.3g}, turned "
            f"{spectrum.shift_by_chance.mean():.3g}"
        )
    if "lens" in inspection.tables:
        yield from _of_lens(inspection.tables["lens"])


def _of_unusual(modules: pd.DataFrame) -> Iterator[str]:
    """Sentences on dead and outlying modules."""
    dead = modules[modules.finding == "dead"]
    if len(dead):
        yield (
            f"dead: {len(dead)} of {len(modules)} modules have no update, or one below "
            f"{_DEAD:.0%} of the median of their kind: {_named(dead.module)}"
        )
    outlying = modules[modules.finding == "outlying"]
    if len(outlying):
        order = np.log(outlying.ratio).abs().sort_values(ascending=False).index
        named = [
            f"{row.module} ({row.ratio:.2g} times the median)"
            for row in outlying.loc[order].itertuples()
        ]
        yield (
            f"outlying norms within their kind: {counted(len(outlying), 'module')}: {_named(named)}"
        )
    if not len(dead) and not len(outlying):
        yield "no module is dead or has an outlying norm within its kind"


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more


def _of_lens(lens: pd.DataFrame) -> Iterator[str]:
    """Sentences on what the first output directions write."""
    first = lens.query("end == 'promoted' and place == 1")
    if first.empty:
        yield "logit lens: no module of the adapter writes to the residual stream"
        return
    beyond = first[first.logit.abs() > first.chance_high]
    yield (
        f"logit lens: {len(beyond)} of {len(first)} first output directions move a logit by more "
        f"than 97.5 % of random directions do; about {0.025 * len(first):.1f} would by chance"
    )
    order = (beyond.logit.abs() / beyond.chance_high).sort_values(ascending=False).index
    for row in beyond.loc[order[:_EXAMPLES]].itertuples():
        of_direction = lens[(lens.module == row.module) & (lens["index"] == row.index)]
        ends = [
            " ".join(repr(token) for token in of_direction[of_direction.end == end].token)
            for end in ("promoted", "suppressed")
        ]
        yield (
            f"  {row.module}, direction {row.index}: {ends[0]} against {ends[1]} (logit "
            f"{abs(row.logit):.2g}, by chance up to {row.chance_high:.2g})"
        )


def _kinds(inspection: Inspection) -> str:
    """A table with one row per kind of module, columns as headings for a reader."""
    modules = inspection.tables["modules"]
    if "intruders" in inspection.tables:
        of_base = inspection.tables["intruders"][["module", "count", "count_by_chance"]]
        modules = modules.merge(of_base, on="module")
    rows = []
    total = float((modules.norm**2).sum())
    for (stack, projection), part in modules.groupby(
        ["stack", "projection"], dropna=False, sort=False
    ):
        row: dict[str, Any] = {
            "stack": stack,
            "projection": projection,
            "modules": len(part),
            "share of norm^2": float((part.norm**2).sum()) / total,
            "median norm": part.norm.median(),
            "relative": part.relative_norm.median(),
            "effective rank": part.effective_rank.mean(),
            "rank for 90 %": f"{part.rank_90.median():.0f}",
        }
        if "count" in part:
            row |= {"intruders": part["count"].mean(), "turned": part.count_by_chance.mean()}
        rows.append(row)
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    text: str = table.to_string(index=False, float_format="{:.3g}".format, na_rep="")
    return text
