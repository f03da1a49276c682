"""Parts that several figures have in common: bands of chance, names along an axis, legends, grids.

A figure with a row per run, pair or claim counts its rows from the top: row `position` is at height
`position`, and the axis is turned upside down.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS, LABELS, pair_label

Numbers: TypeAlias = np.ndarray | pd.Series | Sequence[float]  # along one axis

CHANCE = "#cccccc"  # what chance gives, behind a row
SMALL = 9.5  # size of a panel's heading, in points


def chance_band(axis: Axes, position: int, low: float, high: float, half: float) -> None:
    """Draw what chance gives as a grey band behind a row, `half` a row's height to each side."""
    axis.fill_betweenx([position - half, position + half], low, high, color=CHANCE, zorder=1)


def paper_value(axis: Axes, position: int, value: float, size: float, edge: float) -> None:
    """Draw the value that the paper reports as an open diamond in a row; sizes in points."""
    axis.plot(
        value,
        position,
        "D",
        color=COLOURS["dpo"],
        fillstyle="none",
        markersize=size,
        markeredgewidth=edge,
        zorder=3,
    )


def reference_line(axis: Axes, value: float, colour: str) -> None:
    """Draw a dashed vertical line behind the rows, at the value to compare them with."""
    axis.axvline(value, color=colour, linestyle="--", linewidth=1, zorder=0)


def name_rows(axis: Axes, names: Sequence[str], size: float | None = None) -> None:
    """Name the rows, the first one at the top; size: of the names, in points."""
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.invert_yaxis()


def name_pairs(axis: Axes, pairs: Iterable[tuple[str, str]]) -> None:
    """Name a row per pair of runs, the first one at the top."""
    name_rows(axis, [pair_label(*pair) for pair in pairs], 9.0)


def name_columns(axis: Axes, runs: Iterable[str]) -> None:
    """Name a column per run, the labels at an angle so that long ones fit."""
    labels = [LABELS[run] for run in runs]
    axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=9)


def legend_beside(fig: Figure, axis: Axes, size: float = 9.0) -> None:
    """Put the legend of a panel to the right of the figure; size: of its text, in points."""
    fig.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=size)


def small_panels(count: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `count` small panels with common axes, row by row, and the panels in that order.

    height: what the figure needs above its panels and below them, in inches.
    """
    rows = -(-count // columns)
    size = (style.WIDTH, 1.45 * rows + height)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return fig, axes.flat[:count]
