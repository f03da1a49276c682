"""A word on standard error before anything long: how long it will take, and on what disk.

Before `comparison` and `texts`, which call it. Prints nothing of what is short.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

_LONG = 30.0  # seconds; what is shorter is done without a word
_LARGE = 1e9  # bytes
_SVD = 2.6e-10  # seconds of a singular value decomposition, over rows x columns x the smaller


def announce(what: str, seconds: float) -> None:
    """Say that `what` takes about so long; nothing where that is less than half a minute."""
    if seconds >= _LONG:
        print(f"{what}: about {_duration(seconds)}", file=sys.stderr, flush=True)


def announce_on_disk(what: str, seconds: float, size: float, folder: Path) -> None:
    """Say that `what` takes about so long and so many bytes below a folder, and what is free there
    if that is too little; nothing where both are small."""
    if seconds < _LONG and size < _LARGE:
        return
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    short = f", where only {free / 1e9:.1f} GB are free" if free < size else ""
    print(
        f"{what}: up to {_duration(seconds)} and {size / 1e9:.1f} GB in {folder}{short}, unless "
        "they are there already",
        file=sys.stderr,
        flush=True,
    )


def announce_decompositions(modules: pd.DataFrame, folder: Path) -> None:
    """`announce_on_disk` for the decompositions of the base's weights, of `Comparison.modules`."""
    smaller = modules[["d_out", "d_in"]].min(axis=1)
    size = 4.0 * (smaller * (modules.d_out + modules.d_in + 1)).sum()  # U, V and sigma in float32
    announce_on_disk(
        f"decompositions of {len(modules)} weight matrices of the base",
        float(_SVD * (modules.d_out * modules.d_in * smaller).sum()),
        float(size),
        folder,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.0f} hours"
