"""The report's figures: matrices and lines of any adapters, in one style.

Figures are opaque, so that they read the same in the light and the dark theme, and carry no title:
the caption is the title. A label is drawn as it stands; nothing is known of the names.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

WIDTH = 7.0
DIVERGING = "PuOr"
BAND = "#555555"  # what chance gives
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#7A2E2E")
_MARKERS = "sXD^vPo*"


def use_style() -> None:
    """Set matplotlib's defaults for every figure."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "font.size": 10.5,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )


def line_of(name: str, number: int) -> dict[str, str]:
    """Colour, marker and label of the adapter called `name`, the one at place `number`."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "label": name,
    }


def matrix(
    values: np.ndarray, labels: Sequence[str], label: str, low: float = -1.0, high: float = 1.0
) -> Figure:
    """A square matrix of numbers between adapters, each written in its cell."""
    fig, axis = plt.subplots(figsize=(0.62 * len(labels) + 2.2, 0.55 * len(labels) + 1.2))
    image = cells(axis, values, low, high, fontsize=9)
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    fig.colorbar(image, label=label)
    return fig


def cells(
    axis: Axes,
    values: np.ndarray,
    low: float,
    high: float,
    insides: np.ndarray | None = None,
    is_written: bool = True,
    fontsize: float = 8,
    **options: Any,
) -> AxesImage:
    """A matrix of coloured cells, each with its number, hatched where `insides` (within chance) says
    so; returns the image."""
    image = axis.imshow(values, cmap=DIVERGING, vmin=low, vmax=high, **options)
    for row, column in np.ndindex(*np.shape(values)):
        if insides is not None and insides[row][column]:
            axis.add_patch(
                plt.Rectangle(
                    (column - 0.5, row - 0.5),
                    1,
                    1,
                    fill=False,
                    hatch="////",
                    edgecolor="#bbbbbb",
                    linewidth=0,
                )
            )
        if is_written:
            is_dark = abs(2 * (values[row][column] - low) / (high - low) - 1) > 0.7
            axis.text(
                column,
                row,
                f"{values[row][column]:.2f}",
                ha="center",
                va="center",
                fontsize=fontsize,
                color="white" if is_dark else "black",
            )
    axis.grid(False)
    return image


def lines(
    panels: Mapping[str, pd.DataFrame],
    x: str,
    value: str,
    label_x: str,
    label_y: str,
    log: bool = False,
    line_of: Callable[[str, int], Mapping[str, str]] = line_of,
) -> Figure:
    """One line per run against a common axis, panels side by side: {heading: table with the columns
    run, x and value}.

    Where a table has them, `low` and `high` are shaded in the run's colour, and `chance_low` and
    `chance_high` in grey. line_of: colour, marker and label of a run, from its name and place.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 3.4), sharex=True, sharey=True, squeeze=False
    )
    for axis, (heading, table) in zip(axes[0], panels.items(), strict=True):
        for number, (name, rows) in enumerate(table.groupby("run", sort=False)):
            style = line_of(str(name), number)
            if "chance_low" in rows:
                axis.fill_between(
                    rows[x],
                    rows.chance_low,
                    rows.chance_high,
                    color=BAND,
                    alpha=0.1,
                    linewidth=0,
                    zorder=0,
                )
            if "low" in rows:
                axis.fill_between(
                    rows[x], rows.low, rows.high, color=style["color"], alpha=0.18, linewidth=0
                )
            axis.plot(rows[x], rows[value], markersize=5, linewidth=1.6, **style)
        axis.set_title(heading, fontsize=9.5)
        axis.set_xlabel(label_x)
        axis.xaxis.get_major_locator().set_params(integer=not log)
    axes[0, 0].set_ylabel(label_y)
    if log:
        axes[0, 0].set(xscale="log", yscale="log")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", fontsize=9)
    return fig
