"""Tables of results as a page shows them."""

import pandas as pd
from pandas.io.formats.style import Styler

from helpers.book.figures.current_study import LABELS

_FORMATS = {
    "p": "{:.2g}",
    "p_holm": "{:.2g}",
    "difference": "{:+.3f}",
    "learning_rate": "{:.0e}",
    **dict.fromkeys(("run", "run_a", "run_b", "against"), LABELS.__getitem__),
}  # by column; numbers of other columns have three decimals


def table(frame: pd.DataFrame) -> Styler:
    """A table for the page, without its index.

    Runs (columns run, run_a, run_b, against) are shown by their labels, numbers with three
    decimals, p-values with two digits, learning rates with one, differences with their sign, and a
    value that is missing (NaN, None, pd.NA, pd.NaT) as a dash.
    """
    return frame.style.format(_FORMATS, precision=3, na_rep="–").hide(axis="index")
