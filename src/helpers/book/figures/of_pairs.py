"""Figures with one value per pair of runs, beside what chance gives."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Num
from matplotlib.figure import Figure

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS, LABELS, line_of, pair_label
from helpers.book.figures.elements import (
    SMALL,
    chance_band,
    name_columns,
    name_pairs,
    paper_value,
    small_panels,
)

_NULL_COLOURS = {
    "Gaussian": "#bbbbbb",
    "Gaussian B": "#777777",
    "matched": "#56B4E9",
    "outputs rotated": "#0072B2",
    "modules permuted": "#E69F00",
    "another seed": "#009E73",
}


def matrix(
    values: Num[np.ndarray, "run run"],
    names: Sequence[str],
    label: str,
    low: float = -1.0,
    high: float = 1.0,
) -> Figure:
    """A square matrix of numbers between runs, each written in its cell.

    low, high: ends of the colours' range.
    """
    fig, axis = plt.subplots(figsize=(0.62 * len(names) + 2.2, 0.55 * len(names) + 1.2))
    image = style.cells(axis, values, low, high, fontsize=9.0)
    labels = [LABELS[name] for name in names]
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    fig.colorbar(image, label=label)
    return fig


def matrices(
    panels: Mapping[str, Num[np.ndarray, "row column"]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    insides: Mapping[str, Bool[np.ndarray, "row column"]],
    low: float = -1.0,
    high: float = 1.0,
) -> Figure:
    """Matrices of one number between runs side by side, by heading.

    rows, columns: names of the runs. Cells marked in `insides` (within chance) are hatched. low,
    high: ends of the colours' range.
    """
    size = (2.6 * len(panels) + 1.8, 3.1)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (heading, values) in zip(axes[0], panels.items(), strict=True):
        image = style.cells(axis, values, low, high, insides[heading])
        name_columns(axis, columns)
        axis.set_title(heading, fontsize=SMALL)
    axes[0, 0].set_yticks(range(len(rows)), [LABELS[name] for name in rows], fontsize=9)
    fig.colorbar(image, ax=axes[0, :], label=label, shrink=0.8)
    return fig


def pairs(
    table: pd.DataFrame,
    value: str,
    label: str,
    paper: Mapping[tuple[str, str], float] | None = None,
) -> Figure:
    """One row per pair of runs: a dot at the column `value`, and the pair's chance band in grey.

    table: columns run_a, run_b, chance_low, chance_high and `value`. paper: the paper's values by
    (run_a, run_b), drawn as open diamonds.
    """
    fig, axis = plt.subplots(figsize=(style.WIDTH, 0.27 * len(table) + 1.0))
    for position, row in enumerate(table.itertuples()):
        chance_band(axis, position, row.chance_low, row.chance_high, half=0.35)
        axis.plot(getattr(row, value), position, "o", color=COLOURS["sft"], markersize=6, zorder=3)
        if paper and (row.run_a, row.run_b) in paper:
            paper_value(axis, position, paper[row.run_a, row.run_b], size=7.0, edge=1.6)
    name_pairs(axis, zip(table.run_a, table.run_b, strict=True))
    axis.set_xlabel(label)
    return fig


def null_bands(
    panels: Mapping[str, pd.DataFrame], label_x: str, linear_within: float | None = None
) -> Figure:
    """One row per pair: a bar for each null from `low` to `high`, and a dot at the measured value.

    panels: {heading: rows of the table `chance` for one statistic}, side by side. linear_within:
    the axis is logarithmic beyond this distance from 0.
    """
    nulls = list(next(iter(panels.values())).null.unique())
    count = max(len(table.groupby(["run_a", "run_b"])) for table in panels.values())
    size = (style.WIDTH, 0.42 * count + 1.2)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (heading, table) in zip(axes[0], panels.items(), strict=True):
        groups = table.groupby(["run_a", "run_b"], sort=False)
        for position, (_, rows) in enumerate(groups):
            is_first = position == 0  # the one that the legend is made from
            for row in rows.itertuples():
                # The bars of a pair lie under each other, within .36 of its row.
                height = position - 0.36 + 0.72 * nulls.index(row.null) / max(len(nulls) - 1, 1)
                axis.plot(
                    [row.low, row.high],
                    [height] * 2,
                    color=_NULL_COLOURS[row.null],
                    linewidth=2.6,
                    solid_capstyle="round",
                    label=row.null if is_first else None,
                )
            measured = rows.value.iloc[0]
            ends = [position - 0.42, position + 0.42]
            axis.plot([measured] * 2, ends, color="black", linewidth=1)
            axis.plot(
                measured,
                position,
                "o",
                color="black",
                markersize=5,
                zorder=3,
                label="measured" if is_first else None,
            )
        axis.set_title(heading, fontsize=SMALL)
        axis.grid(False, axis="y")
        if linear_within:
            axis.set_xscale("symlog", linthresh=linear_within)
        else:
            axis.locator_params(axis="x", nbins=4)
    name_pairs(axes[0, 0], groups.groups)
    fig.supxlabel(label_x, fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9)
    return fig


def pairs_over_steps(
    table: pd.DataFrame, predicted: pd.DataFrame, label_y: str, columns: int = 5
) -> Figure:
    """One small panel per pair: what was measured over the logarithm of the step, and predicted.

    table: columns run_a, run_b, step, measured, chance_low, chance_high (the band, in grey).
    predicted: columns run_a, run_b, step, predicted and `prediction`, one marker for each kind.
    """
    groups = list(table.groupby(["run_a", "run_b"], sort=False))
    kinds = list(predicted.prediction.unique())
    fig, axes = small_panels(len(groups), columns, height=0.8)
    for axis, ((first, second), group) in zip(axes, groups, strict=True):
        axis.fill_between(
            group.step,
            group.chance_low,
            group.chance_high,
            color=COLOURS["base"],
            alpha=0.2,
            linewidth=0,
        )
        axis.plot(
            group.step, group.measured, color="black", linewidth=1.5, marker=".", label="measured"
        )
        of_pair = predicted[(predicted.run_a == first) & (predicted.run_b == second)]
        for number, kind in enumerate(kinds):
            points = of_pair[of_pair.prediction == kind]
            axis.plot(
                points.step,
                points.predicted,
                linestyle="none",
                markersize=5,
                fillstyle="none",
                zorder=3,
                **line_of(kind, number),
            )
        axis.set_title(pair_label(first, second), fontsize=8.5)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.locator_params(axis="x", numticks=6)
        axis.minorticks_off()
    fig.supxlabel("optimiser step", fontsize=10)
    fig.supylabel(label_y, fontsize=10)
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(kinds) + 1,
        fontsize=8.5,
        columnspacing=1,
        handletextpad=0.3,
    )
    return fig
