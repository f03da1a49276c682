"""From adapters and models to a `Report`: tables, a summary, and a page to keep.

Comes after all that measures, and calls it in turn. It knows no study: it reads the folders, the
base model and the texts that it is given, and writes where `Report.write` is told, and
decompositions of the base's weights into their cache.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from adapter_geometry import adapters as reading
from adapter_geometry import geometry, sources, storage
from adapter_geometry.adapters import AdapterError, Loaded, aligned, common_modules
from adapter_geometry.bands import compare_beside_chance, similarity_table
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.chance import groups_table, shared_tables
from adapter_geometry.report import findings, output, programs, progress, summary
from adapter_geometry.report.findings import Findings
from adapter_geometry.report.texts import measure, read_texts
from adapter_geometry.updates import Adapters

_MOST_ROWS = 3e6  # of the table of angles, which has the most
_LIBRARIES = ("torch", "safetensors", "numpy", "scipy")  # what determines the numbers


class Report(Findings):
    """What `compare_adapters` measured: its tables, a summary of them, and a page to keep."""

    def summary(self) -> str:
        """A few lines of text: findings, and size, direction and rank of each update beside the
        reference, with chance levels; as wide as the terminal, where there is one."""
        lines = "\n".join(summary.lines(self)).splitlines()
        return "\n".join(map(summary.printable, lines))

    def as_json(self) -> dict[str, Any]:
        """The numbers of each adapter and pair, the findings in sentences, and where they come
        from, in the form of `report/schema.json`."""
        return programs.as_json(self)

    def check(self, condition: str) -> list[str]:
        """Sentences that name the adapters for which a condition such as "cosine<0.9" holds, or
        whose number is not defined; see `programs.check`."""
        return programs.check(self, condition)

    def write(self, folder: str | Path) -> Path:
        """Write `report.html`, `report.json` and the tables, as Parquet and CSV, into a folder that
        is new, or empty, or that of a report, which is replaced; returns the path of the page."""
        return output.write(self, folder)


def compare_adapters(
    adapters: Mapping[str, str | Path] | Sequence[str | Path],
    base: str | Path | None = None,
    reference: str | None = None,
    texts: str | Path | None = None,
    cache: str | Path | None = None,
    lora_only: bool = False,
    rank: int | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Report:
    """Compare adapters, or fine-tuned models, of one base model; returns a `Report`.

    adapters: folders or hub ids, at least two, as a list (each named by its folder, or
    "NAME=FOLDER") or a mapping {name: folder}.
    base: folder or hub id of the base model, for relative norms, intruder dimensions and spectral
    shift, and for what is no plain LoRA adapter.
    reference: name of the adapter that the others are measured against; the first by default.
    texts: a file of JSON lines with `prompt` and `completion`, for losses along paths, CKA and
    behaviour beside null adapters; needs `base`.
    cache: folder for the decompositions of the base's weights; the user's cache folder by default.
    lora_only: leave out what an adapter holds besides updates of weight matrices, such as heads.
    rank: of the factors of what has none of its own, such as a whole model's difference.
    groups: {name of a group: names of its adapters}, such as the seeds of a method, for mean
    cosines of groups with one another and within each.
    What takes long is announced on standard error.
    Raises AdapterError (a ValueError) or FileNotFoundError with one clear message for anything that
    cannot be compared.
    """
    named = dict(adapters) if isinstance(adapters, Mapping) else _named(adapters)
    if len(named) < 2:
        raise AdapterError("one adapter has nothing to be compared with: name two or more")
    reference = reference or next(iter(named))
    if reference not in named:
        raise AdapterError(
            f"no adapter is called {reference!r}: the reference is one of {', '.join(named)}"
        )
    for group, members in (groups or {}).items():
        if unknown := [member for member in members if member not in named]:
            raise AdapterError(
                f"no adapter is called {unknown[0]!r}, which is in the group {group!r}: it has "
                f"some of {', '.join(named)}"
            )
        if not members or len(set(members)) < len(members):
            raise AdapterError(f"the group {group!r} names no adapter, or one twice")
    if texts and not base:
        raise AdapterError("losses along paths and CKA need the base model: add --base")
    lines = read_texts(Path(texts)) if texts else None
    base_folder = sources.fetch(base, sources.BASE_FILES) if base else None
    weights = BaseWeights(base_folder, cache) if base_folder else None
    loaded = {
        name: reading.load(path_or_id, weights, lora_only, rank)
        for name, path_or_id in named.items()
    }
    renamed, spellings = aligned({name: each.update for name, each in loaded.items()})
    common, left_out = common_modules(renamed)
    if weights:
        for update in common.values():
            weights.check_shapes(update)
    references = [reference] if _is_many(common) else None
    compared, angles, directions = compare_beside_chance(common, references=references)
    tables = {
        "cosine": geometry.cosine_table(compared, references),
        "orthogonal": geometry.orthogonal_table(compared, [reference]),
        "angles": angles,
        "directions": directions,
    }
    if len(common) > 2:
        tables["tree"] = findings.tree(compared)
    tables |= shared_tables(compared)
    if uneven := _of_unequal_rank(compared, reference):
        tables["similarity"] = similarity_table(common, [(reference, other) for other in uneven])
    if groups:
        _require_directions(compared, groups)
        tables["groups"] = groups_table(common, compared, groups)
    if weights:
        tables |= _with_base(common, compared, weights)
    else:
        tables["updates"] = geometry.updates_table(compared)
    if lines and base_folder:
        tables |= measure(common, base_folder, reference, lines)
    options: dict[str, object] = {
        "base": base,
        "reference": reference,
        "texts": texts,
        "rank": rank,
    }
    memberships = {name: ",".join(members) for name, members in (groups or {}).items()}
    return Report(
        folders={name: str(path_or_id) for name, path_or_id in named.items()},
        reference=reference,
        compared=compared,
        tables=tables,
        left_out=left_out,
        warnings=[
            *_zeros(tables["updates"]),
            *(f"{name}: {note}" for name, notes in spellings.items() for note in notes),
            *_warnings(loaded, left_out, base, weights),
        ],
        base=str(base) if base else None,
        settings={name: each.config for name, each in loaded.items()},
        kinds={name: each.kind for name, each in loaded.items()},
        notes={name: each.notes for name, each in loaded.items() if each.notes},
        errors={name: each.errors for name, each in loaded.items() if each.errors},
        provenance={
            "command": _command(named, options, memberships, lora_only),
            "versions": storage.provenance(_LIBRARIES),
            "base": _about_base(str(base), weights) if weights else None,
            "adapters": {name: _about_adapter(each) for name, each in loaded.items()},
        },
    )


def _is_many(adapters: Adapters) -> bool:
    """Whether there are so many adapters and modules that tables hold, module by module, the pairs
    with the reference only, and of all other pairs the whole updates."""
    ranks = [part.A.shape[0] for part in next(iter(adapters.values())).values()]
    pairs = len(adapters) * (len(adapters) - 1) / 2
    return pairs * sum(2 * geometry.top_k(rank) for rank in ranks) > _MOST_ROWS


def _of_unequal_rank(compared: geometry.Comparison, reference: str) -> list[str]:
    """The adapters whose factors have another rank than the reference's in some module."""
    ranks = compared.rank
    is_other = (ranks != ranks[:, [compared.runs.index(reference)]]).any(0)
    return [run for run, other in zip(compared.runs, is_other, strict=True) if other]


def _require_directions(compared: geometry.Comparison, groups: Mapping[str, Sequence[str]]) -> None:
    """AdapterError for a group in which every update is zero."""
    squares = dict(zip(compared.runs, compared.inner.sum(0).diagonal(), strict=True))
    for group, members in groups.items():
        if not any(squares[member] > 0 for member in members):
            raise AdapterError(f"every adapter of the group {group!r} is zero: it has no direction")


# --- names and origins ----------------------------------------------------------------------------


def _named(adapters: Sequence[str | Path]) -> dict[str, str]:
    """{name: path or id} of a list, each `NAME=PATH` or a path named by its folder, and by the
    folders above it where several have one name."""
    given: list[tuple[str, str]] = []
    for adapter in map(str, adapters):
        name, _, path = adapter.partition("=")
        # no name is given, or the folder has = in its own, there or mistyped
        is_path = Path(adapter).exists() or (
            "/" in name and Path(name).parent.is_dir() and not Path(path).exists()
        )
        given.append(("", adapter) if is_path or not path else (name, path))
    names = iter(sources.names_of([path for name, path in given if not name]))
    named: dict[str, str] = {}
    for name_given, path in given:
        name = name_given or next(names)
        if name in named:
            raise AdapterError(
                f"two adapters are called {name!r} ({named[name]} and {path}): "
                f"name them, as in first={named[name]} second={path}"
            )
        named[name] = path
    return named


def _command(
    named: Mapping[str, str | Path],
    options: Mapping[str, object],
    groups: Mapping[str, str],
    lora_only: bool,
) -> str:
    """The command line that compares the same again."""
    words = ["adapter-geometry", "compare", *(f"{name}={path}" for name, path in named.items())]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", str(value)]
    for name, members in groups.items():
        words += ["--group", f"{name}={members}"]
    return shlex.join([*words, *(["--lora-only"] if lora_only else [])])


def _about_adapter(loaded: Loaded) -> dict[str, Any]:
    return {
        "origin": loaded.origin,
        "revision": loaded.revision,
        "files": dict(loaded.files),
        "notes": list(loaded.notes),
        "base": loaded.config.get("base_model_name_or_path"),
        "base_revision": loaded.config.get("revision"),
    }


def _about_base(base: str, weights: BaseWeights) -> dict[str, Any]:
    return {
        "origin": base,
        "name": weights.name,
        "revision": weights.revision,
        "digest": weights.digest(),
        "notes": list(weights.notes),
    }


# --- warnings -------------------------------------------------------------------------------------


def _zeros(updates: pd.DataFrame) -> Iterator[str]:
    """Warnings of modules whose update is zero: those of an adapter that is zero altogether are the
    first sentence of the findings."""
    for name, rows in updates.query("scope == 'module'").groupby("run", sort=False):
        zero = rows[rows.norm == 0]
        if len(zero) == len(rows):
            yield f"{name}: all {len(rows)} modules are zero"
        elif len(zero):
            yield (
                f"{name}: {len(zero)} of {len(rows)} modules are zero, for example "
                f"{zero.module.iloc[0]}; means of ranks are over the others"
            )


def _warnings(
    loaded: Mapping[str, Loaded],
    left_out: Mapping[str, list[str]],
    base: str | Path | None,
    weights: BaseWeights | None,
) -> Iterator[str]:
    """What a reader should know of adapters that are compared all the same."""
    bases = {
        name: str(each.config["base_model_name_or_path"])
        for name, each in loaded.items()
        if each.config.get("base_model_name_or_path")
    }
    if any(
        not sources.is_one_model(*pair) for pair in combinations(sorted(set(bases.values())), 2)
    ):
        yield (
            f"the adapters name different base models ({', '.join(sorted(set(bases.values())))}): "
            "their updates are compared all the same, as matrices of equal shapes"
        )
    revisions = {name: _revision(each.config.get("revision")) for name, each in loaded.items()}
    if len(set(revisions.values())) > 1:
        of = ", ".join(f"{name} {revision or 'none'}" for name, revision in revisions.items())
        yield f"the adapters name different revisions of their base model ({of})"
    if weights:
        yield from _warnings_of_base(str(base), weights, bases, revisions)
    for name, each in loaded.items():
        if each.left_out:
            yield (
                f"{name}: {len(each.left_out)} parts that are no update of a weight matrix are "
                f"left out, for example {each.left_out[0]}"
            )
    for name, modules in left_out.items():
        if modules:
            yield (
                f"{name}: {len(modules)} modules that not all adapters have are left out, "
                f"for example {modules[0]}"
            )


def _warnings_of_base(
    base: str,
    weights: BaseWeights,
    bases: Mapping[str, str],
    revisions: Mapping[str, str | None],
) -> Iterator[str]:
    """Warnings of a base model that is not the one, or the revision, that adapters name."""
    names = [base, *([weights.name] if weights.name else [])]
    others = {
        name: named
        for name, named in bases.items()
        if not any(sources.is_one_model(named, each) for each in names)
    }
    if others:
        named = ", ".join(f"{name} names {other}" for name, other in others.items())
        yield (
            f"the base model is {base}, but {named}: unless these are one model, relative norms, "
            "intruders and shifts are beside the wrong weights"
        )
    stated = re.search(r"@([\w.-]+)", base)
    given = _revision(stated[1] if stated else None)
    different = {
        name: revision
        for name, revision in revisions.items()
        # of a local folder the revision is not known
        if weights.revision and name in bases and revision not in (given, weights.revision)
    }
    if different:
        named = ", ".join(f"{name} names {other or 'none'}" for name, other in different.items())
        yield f"the base model is of the revision {given or 'main'}, but {named}"


def _revision(stated: Any) -> str | None:
    """A revision as it is compared: "main" is what is taken where none is stated."""
    return None if stated in (None, "", "main") else str(stated)


# --- with the base model --------------------------------------------------------------------------


def _with_base(
    adapters: Adapters, compared: geometry.Comparison, base: BaseWeights
) -> dict[str, pd.DataFrame]:
    """The tables `updates`, with norms relative to those of the `BaseWeights`, and `intruders`."""
    from adapter_geometry.spectra import intruders_table

    progress.announce_decompositions(compared.modules, base.cache)
    return {
        "updates": geometry.updates_table(compared, base.norms(compared.modules.module)),
        "intruders": intruders_table(adapters, base),
    }
