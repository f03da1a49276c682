"""Figures with one value per module: maps of layers and projections, and strips of dots.

After `elements` and `current_study`; draws what it is given.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Num
from matplotlib.figure import Figure

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS, line_of
from helpers.book.figures.elements import SMALL, Numbers, name_columns

_LABELLED_LAYERS = 12  # numbers that fit side by side
_GOLDEN = 0.618  # its multiples, modulo 1, spread the dots of a strip evenly and without chance


def module_maps(
    panels: Mapping[str, Num[np.ndarray, "projection layer"]],
    layers: Sequence[int],
    projections: Sequence[str],
    insides: Mapping[str, Bool[np.ndarray, "projection layer"]],
    label: str,
    low: float = -1.0,
    high: float = 1.0,
) -> Figure:
    """Maps of one number per module, panel under panel, by heading.

    Cells marked in `insides` (within chance) are hatched. low, high: ends of the colours' range.
    """
    fig, axes = plt.subplots(
        len(panels),
        1,
        figsize=(style.WIDTH, (0.2 * len(projections) + 0.42) * len(panels) + 0.5),
        sharex=True,
        squeeze=False,
    )
    is_written = len(layers) <= _LABELLED_LAYERS
    for axis, (heading, values) in zip(axes[:, 0], panels.items(), strict=True):
        inside = insides[heading]
        image = style.cells(axis, values, low, high, inside, is_written=is_written, aspect="auto")
        axis.set_yticks(range(len(projections)), projections, fontsize=8)
        axis.set_title(heading, loc="left", fontsize=SMALL)
    apart = -(-len(layers) // _LABELLED_LAYERS)
    axes[-1, 0].set_xticks(range(0, len(layers), apart), layers[::apart])
    axes[-1, 0].set_xlabel("layer")
    fig.colorbar(image, ax=axes[:, 0], label=label, shrink=0.6)
    return fig


def strips(
    panels: Mapping[str, Mapping[str, Numbers]],
    label_y: str,
    chance: Mapping[str, Mapping[str, Numbers]] | None = None,
    log: bool = False,
    share_y: bool = True,
) -> Figure:
    """One dot per module, runs side by side, a bar at their median: {heading: {run: values}}.

    chance: {heading: {run: (low, high)}}, drawn in grey. log: a logarithmic y axis.
    """
    size = (style.WIDTH, 3.4)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=share_y, squeeze=False)
    for axis, (heading, groups) in zip(axes[0], panels.items(), strict=True):
        for column, (name, numbers) in enumerate(groups.items()):
            values = np.asarray(numbers)
            if chance:
                low, high = np.asarray(chance[heading][name])
                axis.fill_between(
                    [column - 0.42, column + 0.42],
                    low,
                    high,
                    color=COLOURS["base"],
                    alpha=0.18,
                    linewidth=0,
                    zorder=0,
                )
            shift = 0.5 * (np.arange(len(values)) * _GOLDEN % 1 - 0.5)
            colour = line_of(name, column)["color"]
            axis.plot(column + shift, values, ".", color=colour, markersize=5, alpha=0.8)
            ends, middle = [column - 0.38, column + 0.38], [np.nanmedian(values)] * 2
            axis.plot(ends, middle, color="black", linewidth=1.6)
        name_columns(axis, groups)
        axis.set_title(heading, fontsize=SMALL)
        axis.grid(False, axis="x")
        if log:
            axis.set_yscale("log")
    axes[0, 0].set_ylabel(label_y)
    return fig
