"""Figures of claims: what we measured, what the paper reports, and what the control gives.

After `elements` and `current_study`; draws what it is given.
"""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS
from helpers.book.figures.elements import chance_band, paper_value


def claims(table: pd.DataFrame, label: str) -> Figure:
    """One row per claim, top to bottom in the table's order.

    The control's band is grey, our value a dot with its interval, the paper's value an open
    diamond. table: columns claim, value, low, high, chance_low, chance_high, paper_value, all in
    the unit that `label` names.
    """
    fig, axis = plt.subplots(figsize=(style.WIDTH, 0.55 * len(table) + 1.0))
    for position, row in enumerate(table.itertuples()):
        chance_band(axis, position, row.chance_low, row.chance_high, half=0.3)
        axis.plot([row.low, row.high], [position] * 2, color=COLOURS["sft"], linewidth=2, zorder=2)
        axis.plot(row.value, position, "o", color=COLOURS["sft"], markersize=7, zorder=3)
        paper_value(axis, position, row.paper_value, size=8.0, edge=1.8)
    names = [textwrap.fill(claim, 34) for claim in table.claim]
    axis.set_yticks(range(len(table)), names, fontsize=9)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xlabel(label)
    return fig
