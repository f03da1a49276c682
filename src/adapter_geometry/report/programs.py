"""A comparison for programs: as JSON, which `schema.json` describes, and conditions for a gate.

Comes after `findings` and `summary`; reads their numbers and writes nothing.
"""

import math
import operator
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapter_geometry.adapters import AdapterError
from adapter_geometry.report import summary
from adapter_geometry.report.findings import Findings, chance_of_cosine, measures, order

_VERSION = 1  # of the form of the JSON; schema.json has it too
# Every measure of `findings.measures`, and the options without which it is not measured.
_NEEDS = {
    **dict.fromkeys(("norm", "effective_rank", "zero_modules"), ""),
    **dict.fromkeys(("cosine", "cosine_chance", "angle", "angle_chance", "norm_ratio"), ""),
    **dict.fromkeys(("relative_norm", "intruders", "spectral_shift"), "--base"),
    **dict.fromkeys(("kl", "kl_null_high", "loss"), "--base and --texts"),
    **dict.fromkeys(("barrier", "barrier_noise", "cka"), "--base and --texts"),
}
# Measures of a pair: the reference has none of them.
_BESIDE_REFERENCE = {
    "cosine",
    "cosine_chance",
    "angle",
    "angle_chance",
    "norm_ratio",
    "barrier",
    "barrier_noise",
    "cka",
}
_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(r"\s*(?P<measure>\w+)\s*(?P<operator><=|>=|<|>)\s*(?P<bound>[^\s<>=]+)\s*")


def as_json(findings: Findings) -> dict[str, Any]:
    """The comparison as what JSON can hold, in the form of `schema.json`; undefined numbers are
    null. The tables, which may be long, are named with their columns and rows."""
    measured = measures(findings)
    adapters = [
        {
            "name": name,
            "kind": findings.kinds.get(name),
            "notes": findings.notes.get(name, []),
            "left_out": findings.left_out[name],
            "error": max(findings.errors.get(name, {}).values(), default=0.0),
            **{column: _number(measured.at[name, column]) for column in measured},
        }
        for name in findings.compared.runs
    ]
    return {
        "version": _VERSION,
        "reference": findings.reference,
        "base": findings.base,
        "modules": len(findings.compared.modules),
        "findings": summary.findings(findings),
        "warnings": findings.warnings,
        "adapters": adapters,
        "order": [findings.compared.runs[number] for number in order(findings)],
        "pairs": list(_pairs(findings)),
        "tables": {
            name: {"columns": list(map(str, table.columns)), "rows": len(table)}
            for name, table in findings.tables.items()
        },
        "provenance": findings.provenance,
    }


def _pairs(findings: Findings) -> Iterator[dict[str, Any]]:
    """Every pair once, with the cosine of the whole updates and the upper end of its band."""
    pairs = findings.tables["cosine"].query("scope == 'global'")
    for row in pairs.assign(chance=chance_of_cosine(pairs)).itertuples():
        yield {
            "adapters": [row.run_a, row.run_b],
            "cosine": _number(row.cosine),
            "cosine_chance": _number(row.chance),
        }


def _number(value: Any) -> float | int | None:
    """A number as JSON has it: no NaN, no infinity, no type of NumPy."""
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if math.isfinite(value) else None


class Condition(NamedTuple):
    """A measure of `findings.measures`, one of < <= > >=, and a number."""

    measure: str
    operator: str
    bound: float


def parse(condition: str) -> Condition:
    """The `Condition` of a text such as "cosine<0.9"; AdapterError for any other text and for what
    is no measure."""
    parts = _CONDITION.fullmatch(condition)
    if not parts:
        raise AdapterError(
            f"{condition!r} is no condition: a measure, one of {' '.join(_OPERATORS)}, and a "
            "number are expected, as in cosine<0.9"
        )
    if parts["measure"] not in _NEEDS:
        raise AdapterError(
            f"{condition!r}: there is no measure {parts['measure']!r}, but {', '.join(_NEEDS)}"
        )
    try:
        bound = float(parts["bound"])
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise AdapterError(f"{condition!r}: {parts['bound']!r} is no number")
    return Condition(parts["measure"], parts["operator"], bound)


def check(findings: Findings, condition: str) -> list[str]:
    """Sentences that name the adapters for which a condition holds (see `parse`).

    A measure of a pair is that of each other adapter with the reference; any other is of each
    adapter, the reference too. A number that is not defined, such as the cosine of a zero update,
    is named as well: a gate lets nothing pass that it could not measure.
    Raises AdapterError for what is no condition, and for a measure that was not measured.
    """
    measure, sign, bound = parse(condition)
    measured = measures(findings)
    if measure not in measured:
        raise AdapterError(f"{condition!r}: {measure} was not measured; add {_NEEDS[measure]}")
    column = measured[measure]
    if measure in _BESIDE_REFERENCE:
        column = column.drop(index=findings.reference)
    return [
        f"{name}: {measure} is not defined ({condition.strip()})"
        if pd.isna(value)
        else f"{name}: {measure} is {value:.4g} ({condition.strip()})"
        for name, value in column.items()
        if pd.isna(value) or _OPERATORS[sign](value, bound)
    ]
