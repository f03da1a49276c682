"""Predictions and their outcomes: what was expected of each control before it was run, and what came out.

After `statistics`; reads `book/predictions.md`, which is never edited, and tables of outcomes that the notebooks on controls write.
"""

import pandas as pd

from helpers import store

_COLUMNS = ("number", "expected", "changes")
_OUTCOME = ("outcome", "value", "low", "high", "is_expected", "changes_mind")


def lines():
    """The predictions in their order: columns section, number (what was to be measured), expected, changes (what would change our mind)."""
    section, rows = None, []
    for line in (store.ROOT / "book" / "predictions.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("|") and not line.startswith(("| number", "|---")):
            rows.append(
                {
                    "section": section,
                    **dict(
                        zip(
                            _COLUMNS,
                            (cell.strip() for cell in line.strip("|").split("|")),
                            strict=True,
                        )
                    ),
                }
            )
    return pd.DataFrame(rows)


def outcome(number, value, is_expected, changes_mind, low=None, high=None, form="{:.3f}", about=""):
    """One outcome, for `write`: `number` as it stands in the predictions, our value with its interval, whether it lies in the expected
    range, and whether it is what would have changed our mind. `about` is a short remark, such as which of several values is shown."""
    text = (
        form.format(value)
        + (f" ({form.format(low)} to {form.format(high)})" if low is not None else "")
        + (f"; {about}" if about else "")
    )
    return {
        "number": number,
        "outcome": text,
        "value": float(value),
        "low": low,
        "high": high,
        "is_expected": bool(is_expected),
        "changes_mind": bool(changes_mind),
    }


def write(profile_name, page, outcomes):
    """Store the outcomes that a page found as the table `outcomes_<page>`; returns them beside what was expected, for the page.

    Raises ValueError for an outcome that nobody predicted.
    """
    found, predicted = pd.DataFrame(outcomes), lines()
    if unknown := set(found.number) - set(predicted.number):
        raise ValueError(
            f"no line of book/predictions.md reads {sorted(unknown)[0]!r}: copy the first column as it stands there"
        )
    store.write_table(profile_name, f"outcomes_{page}", found)
    return found.merge(predicted, on="number")[
        ["number", "expected", "outcome", "is_expected", "changes", "changes_mind"]
    ]


def outcomes(profile_name):
    """All predictions in their order beside the outcomes that the pages stored; a prediction without outcome has none (NaN)."""
    tables = sorted((store.results(profile_name) / "tables").glob("outcomes_*.parquet"))
    found = [store.read_frame(path) for path in tables] or [
        pd.DataFrame(columns=["number", *_OUTCOME])
    ]
    return lines().merge(pd.concat(found), on="number", how="left")
