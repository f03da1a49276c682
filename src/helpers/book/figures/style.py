"""One style for all figures: sizes, matplotlib's defaults, and cells of a matrix.

Before all other modules of figures, which draw with what is here. Figures are opaque, so that they
read the same in the light and the dark theme, and carry no title: the caption is the title. Nothing
is known of a study or its runs.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Num
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

WIDTH = 7.0
DIVERGING = "PuOr"
BAND = "#555555"  # what chance gives
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
