"""What a comparison of adapters measured, as data.

Before `comparison`, which fills it, and `summary` and `page`, which are made from it.
"""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from adapter_geometry.geometry import Comparison


@dataclass(frozen=True)
class Findings:
    """What was measured of the adapters that were compared.

    `tables` are tidy DataFrames by name; each is described by the function that makes it.
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


def with_reference(findings: Findings, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of pairs (run_a, run_b) that hold the reference, with the other adapter
    as column `run`."""
    reference = findings.reference
    table = table[(table.run_a == reference) != (table.run_b == reference)]
    return table.assign(run=table.run_a.where(table.run_a != reference, table.run_b))
