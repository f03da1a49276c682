"""Predictions and outcomes: what was expected of each control before it was run, and what came out.

Reads `book/predictions.md`, which is never edited, and the tables of outcomes that the notebooks on
controls write through this module; before the notebook on the verdict, which shows all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers import store

_COLUMNS = ("number", "expected", "changes")  # of a table in book/predictions.md
# Of other runs, with probabilities instead of ranges.
_SECOND_PART = "\n## Second part"
_OUTCOME = ("outcome", "value", "low", "high", "is_expected", "changes_mind")


def load() -> pd.DataFrame:
    """The predictions of the page's first part, in their order.

    Columns section, number (what was to be measured), expected, changes (what would change our
    mind).
    """
    section, rows = None, []
    page = (store.ROOT / "book" / "predictions.md").read_text()
    for line in page.partition(_SECOND_PART)[0].splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("|") and not line.startswith(("| number", "|---")):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.append({"section": section, **dict(zip(_COLUMNS, cells, strict=True))})
    return pd.DataFrame(rows)


def outcome(
    number: str,
    value: float,
    is_expected: bool | np.bool_,
    changes_mind: bool | np.bool_,
    low: float | None = None,
    high: float | None = None,
    form: str = "{:.3f}",
    about: str = "",
) -> dict[str, Any]:
    """One outcome, for `write`.

    number: what was measured, as the predictions word it. value, low, high: ours with its interval.
    is_expected: whether it lies in the expected range. changes_mind: whether it is what would have
    changed our mind. about: a short remark, such as which of several values is shown.
    """
    text = form.format(value)
    if low is not None:
        text += f" ({form.format(low)} to {form.format(high)})"
    if about:
        text += f"; {about}"
    return {
        "number": number,
        "outcome": text,
        "value": float(value),
        "low": low,
        "high": high,
        "is_expected": bool(is_expected),
        "changes_mind": bool(changes_mind),
    }


def write(profile_name: str, page: str, outcomes: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Store the outcomes that a page found as the table `outcomes_<page>`.

    Returns them next to what was expected, for the page. Raises ValueError for an outcome that
    nobody predicted.
    """
    table, predicted = pd.DataFrame(outcomes), load()
    if unknown := set(table.number) - set(predicted.number):
        raise ValueError(
            f"no line of book/predictions.md reads {sorted(unknown)[0]!r}: copy the first column "
            "as it is there"
        )
    store.write_table(profile_name, f"outcomes_{page}", table)
    return table.merge(predicted, on="number")[
        ["number", "expected", "outcome", "is_expected", "changes", "changes_mind"]
    ]


def outcomes(profile_name: str) -> pd.DataFrame:
    """All predictions in their order with the outcomes that the pages stored.

    A prediction without an outcome has NaN. Columns as `load`, and outcome (text), value, low,
    high, is_expected, changes_mind.
    """
    paths = sorted((store.results(profile_name) / "tables").glob("outcomes_*.parquet"))
    tables = [store.read_frame(path) for path in paths]
    none = pd.DataFrame(columns=["number", *_OUTCOME])
    return load().merge(pd.concat(tables or [none]), on="number", how="left")
