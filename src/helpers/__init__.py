"""Helpers of the book on the weight-space geometry of offline reasoning training.

For programs, these names are stable: `load_update`, `common`, `combine`, `compress`, `export` and `Factors` (`helpers.updates`), `compare`
and its tables (`helpers.geometry`), `compare_adapters` and `Report` (`helpers.report`), `AdapterError` for all that cannot be compared.

    import helpers
    report = helpers.compare_adapters(["run-a/adapter", "run-b/adapter"])
    report.tables["cosine"]
"""

import importlib

_PUBLIC = {"AdapterError": "updates", "Factors": "updates", "load_update": "updates", "common": "updates", "combine": "updates", "compress": "updates",
           "export": "updates", "Comparison": "geometry", "compare": "geometry", "Report": "report", "compare_adapters": "report"}
__all__ = list(_PUBLIC)


def __getattr__(name):
    """The public names, imported when they are asked for: torch takes seconds that `python -m helpers --help` need not wait for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"helpers.{_PUBLIC[name]}"), name)
