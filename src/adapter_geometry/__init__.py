"""Geometry of LoRA updates: directions, angles, paths beside their chance levels; norms, ranks.

    import adapter_geometry

    report = adapter_geometry.compare_adapters(["run-a/adapter", "run-b/adapter"])
    print(report.summary())
    report.tables["cosine"]

The names below are stable. They are imported when they are first asked for: torch takes seconds
that `adapter-geometry --help` need not wait for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapter_geometry.adapters import (
        AdapterError,
        Loaded,
        common_modules,
        export_adapter,
        load,
        load_update,
    )
    from adapter_geometry.base_weights import BaseWeights
    from adapter_geometry.chance import compare_by_chance
    from adapter_geometry.conversion import Conversion, convert
    from adapter_geometry.geometry import Comparison, compare
    from adapter_geometry.inspection import Inspection, inspect_adapter
    from adapter_geometry.report.comparison import Report, compare_adapters
    from adapter_geometry.updates import Factors, combine, compress

__all__ = [
    "AdapterError",
    "BaseWeights",
    "Comparison",
    "Conversion",
    "Factors",
    "Inspection",
    "Loaded",
    "Report",
    "combine",
    "common_modules",
    "compare",
    "compare_adapters",
    "compare_by_chance",
    "compress",
    "convert",
    "export_adapter",
    "inspect_adapter",
    "load",
    "load_update",
]

_MODULES = {
    "adapters": (
        "AdapterError",
        "Loaded",
        "common_modules",
        "export_adapter",
        "load",
        "load_update",
    ),
    "base_weights": ("BaseWeights",),
    "chance": ("compare_by_chance",),
    "conversion": ("Conversion", "convert"),
    "geometry": ("Comparison", "compare"),
    "inspection": ("Inspection", "inspect_adapter"),
    "report.comparison": ("Report", "compare_adapters"),
    "updates": ("Factors", "combine", "compress"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
