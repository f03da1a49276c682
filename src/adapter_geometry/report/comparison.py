"""From PEFT folders to a `Report`: tables, a summary, and a page to keep.

Comes after all that measures, and calls it in turn. It knows no study: it reads the folders, the
base model and the texts that it is given, and writes where `Report.write` is told, and
decompositions of the base's weights into their cache.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adapter_geometry import geometry, storage
from adapter_geometry.adapters import AdapterError, common_modules, fetch, load_update, read_config
from adapter_geometry.chance import compare_by_chance
from adapter_geometry.report import summary
from adapter_geometry.report.findings import Findings
from adapter_geometry.report.texts import measure, read_texts
from adapter_geometry.updates import Adapters

_NULLS = 5  # draws of the matched null, each pooled over all modules of one shape
_BASE_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")  # of a hub repository; no code


class Report(Findings):
    """What `compare_adapters` measured: its tables, a summary of them, and a page to keep."""

    def summary(self) -> str:
        """A few lines of text: size, direction and rank of each update beside the reference, with
        chance levels."""
        lines = "\n".join(summary.lines(self)).splitlines()
        return "\n".join(map(summary.printable, lines))

    def write(self, folder: str | Path) -> Path:
        """Write `report.html` and one Parquet file per table into a folder; returns the path of the
        page."""
        from adapter_geometry.report import page  # matplotlib, which a summary does without

        folder = Path(folder)
        for name, table in self.tables.items():
            storage.write_frame(folder / f"{name}.parquet", table)
        with storage.whole(folder / "report.html") as temporary:
            temporary.write_text(page.render(self), encoding="utf-8")
        return folder / "report.html"


def compare_adapters(
    adapters: Mapping[str, str | Path] | Sequence[str | Path],
    base: str | Path | None = None,
    reference: str | None = None,
    texts: str | Path | None = None,
    cache: str | Path | None = None,
) -> Report:
    """Compare PEFT LoRA adapters of one base model; returns a `Report`.

    adapters: folders or hub ids, at least two, as a list (each named by its folder, or
    "NAME=FOLDER") or a mapping {name: folder}.
    base: folder or hub id of the base model, for relative norms, intruder dimensions and spectral
    shift.
    reference: name of the adapter that the others are measured against; the first by default.
    texts: a file of JSON lines with `prompt` and `completion`, for losses along paths and CKA;
    needs `base`.
    cache: folder for the decompositions of the base's weights; the user's cache folder by default.
    Raises AdapterError (a ValueError) or FileNotFoundError with one clear message for anything that
    cannot be compared.
    """
    named = adapters if isinstance(adapters, Mapping) else _named(adapters)
    if len(named) < 2:
        raise AdapterError("one adapter has nothing to be compared with: name two or more")
    reference = reference or next(iter(named))
    if reference not in named:
        raise AdapterError(
            f"no adapter is called {reference!r}: the reference is one of {', '.join(named)}"
        )
    if texts and not base:
        raise AdapterError("losses along paths and CKA need the base model: add --base")
    folders = {name: fetch(path_or_id) for name, path_or_id in named.items()}
    settings = {name: read_config(folder) for name, folder in folders.items()}
    lines = read_texts(Path(texts)) if texts else None
    loaded, left_out = common_modules(
        {name: load_update(folder) for name, folder in folders.items()}
    )
    base_folder = fetch(base, _BASE_FILES) if base else None
    weights = _base_weights(base_folder, loaded, cache) if base_folder else None
    compared = geometry.compare(loaded)
    tables = {
        "cosine": geometry.cosine_table(compared),
        "orthogonal": geometry.orthogonal_table(compared, [reference]),
        "angles": geometry.angles_table(compared, compare_by_chance(loaded, _NULLS)),
    }
    if weights:
        tables |= _with_base(loaded, compared, weights)
    else:
        tables["updates"] = geometry.updates_table(compared)
    if lines and base_folder:
        tables |= measure(loaded, base_folder, reference, lines)
    return Report(
        folders={name: str(path_or_id) for name, path_or_id in named.items()},
        reference=reference,
        compared=compared,
        tables=tables,
        left_out=left_out,
        warnings=_warnings(settings, left_out),
        base=str(base) if base else None,
        settings=settings,
    )


def _named(adapters: Sequence[str | Path]) -> dict[str, str]:
    """{name: path or id} of a list, each `NAME=PATH` or a path named by its folder (`run/adapter`
    by `run`)."""
    named: dict[str, str] = {}
    for adapter in map(str, adapters):
        name, _, path = adapter.partition("=")
        if not path or Path(adapter).exists():  # no name is given, or the folder has = in its own
            name, path = "", adapter
        if not name:
            # "." has no name before it is resolved; a hub id is no path to resolve
            parts = Path(path).resolve().parts if Path(path).exists() else Path(path).parts
            name = parts[-2] if parts[-1] == "adapter" and len(parts) > 1 else parts[-1]
        if name in named:
            raise AdapterError(
                f"two adapters are called {name!r} ({named[name]} and {path}): "
                f"name them, as in first={named[name]} second={path}"
            )
        named[name] = path
    return named


def _warnings(
    settings: Mapping[str, dict[str, Any]], left_out: Mapping[str, list[str]]
) -> list[str]:
    """What a reader should know of adapters that are compared all the same."""
    warnings = []
    bases = {str(config.get("base_model_name_or_path")) for config in settings.values()}
    if len(bases) > 1:
        warnings.append(
            f"the adapters name different base models ({', '.join(sorted(bases))}): their updates "
            "are compared all the same, as matrices of equal shapes"
        )
    for name, modules in left_out.items():
        if modules:
            warnings.append(
                f"{name}: {len(modules)} modules that not all adapters have are left out, "
                f"for example {modules[0]}"
            )
    return warnings


def _base_weights(folder: Path, adapters: Adapters, cache: str | Path | None) -> Any:
    """The `BaseWeights` of the base model, which every update fits."""
    from adapter_geometry.spectra import BaseWeights  # and scipy's sparse solvers

    base = BaseWeights(folder, cache)
    for update in adapters.values():
        base.check_shapes(update)
    return base


def _with_base(
    adapters: Adapters, compared: geometry.Comparison, base: Any
) -> dict[str, pd.DataFrame]:
    """The tables `updates`, with norms relative to those of the `BaseWeights`, and `intruders`."""
    from adapter_geometry.spectra import intruders_table

    return {
        "updates": geometry.updates_table(compared, base.norms(compared.modules.module)),
        "intruders": intruders_table(adapters, base),
    }
