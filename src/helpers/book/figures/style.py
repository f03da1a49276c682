"""One style: colours, markers, matrices and lines of any adapters, drawn by matplotlib.

Before all other modules of figures, which draw with what is here. Figures are opaque, so that they
read the same in the light and the dark theme, and carry no title: the caption is the title. A label
is drawn as it is given; nothing is known of the names or of a study.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

WIDTH = 7.0
DIVERGING = "PuOr"
BAND = "#555555"  # what chance gives
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#7A2E2E")
_MARKERS = "sXD^vPo*"
_HATCHED: dict[str, Any] = {"hatch": "////", "edgecolor": "#bbbbbb", "linewidth": 0}


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
    """Colour, marker and label of the adapter called `name`, which is the `number`-th, from 0."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "label": name,
    }


def matrix(
    values: Num[np.ndarray, "adapter adapter"],
    labels: Sequence[str],
    label: str,
    low: float = -1.0,
    high: float = 1.0,
) -> Figure:
    """A square matrix of numbers between adapters, each written in its cell."""
    fig, axis = plt.subplots(figsize=(0.62 * len(labels) + 2.2, 0.55 * len(labels) + 1.2))
    image = cells(axis, values, low, high, fontsize=9.0)
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    fig.colorbar(image, label=label)
    return fig


def cells(
    axis: Axes,
    values: Num[np.ndarray, "row column"],
    low: float,
    high: float,
    is_within_chance: Bool[np.ndarray, "row column"] | None = None,
    is_written: bool = True,
    fontsize: float = 8.0,
    **options: Any,
) -> AxesImage:
    """A matrix of coloured cells, each with its number, hatched where `is_within_chance`; returns
    the image. `options` are those of `Axes.imshow`."""
    image = axis.imshow(values, cmap=DIVERGING, vmin=low, vmax=high, **options)
    for row, column in np.ndindex(*np.shape(values)):
        if is_within_chance is not None and is_within_chance[row][column]:
            corner = (column - 0.5, row - 0.5)
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, **_HATCHED))
        if is_written:
            value = values[row][column]
            is_dark = abs(2 * (value - low) / (high - low) - 1) > 0.7
            colour = "white" if is_dark else "black"
            text = f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=colour)
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
    run, x and value}. A missing run is the base model.

    Where a table has them, `low` and `high` are shaded in the run's colour, and `chance_low` and
    `chance_high` in grey. line_of: colour, marker and label of a run, from its name and position.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 3.4), sharex=True, sharey=True, squeeze=False
    )
    for axis, (heading, table) in zip(axes[0], panels.items(), strict=True):
        for number, (name, rows) in enumerate(table.groupby("run", sort=False, dropna=False)):
            style = line_of("base model" if pd.isna(name) else str(name), number)
            if "chance_low" in rows:
                shade = {"color": BAND, "alpha": 0.1, "linewidth": 0, "zorder": 0}
                axis.fill_between(rows[x], rows.chance_low, rows.chance_high, **shade)
            if "low" in rows:
                shade = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
                axis.fill_between(rows[x], rows.low, rows.high, **shade)
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
