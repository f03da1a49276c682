"""Figures of straight paths between updates: losses and answers along them, and their barriers.

After `elements` and `current_study`; draws what it is given.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS, LABELS, MARKERS, pair_label
from helpers.book.figures.elements import CHANCE, SMALL, legend_beside, name_pairs, small_panels
from helpers.profiles import SCALED


def path_panels(table: pd.DataFrame, label_y: str, columns: int = 5) -> Figure:
    """One small panel per path: the value with its interval over t, with one common y axis.

    Dashed is the chord between the ends. table: rows of one metric of the table `connectivity`
    (run_a, run_b, t, value, low, high).
    """
    groups = list(table.groupby(["run_a", "run_b"], sort=False))
    fig, axes = small_panels(len(groups), columns, height=0.5)
    for axis, ((first, second), group) in zip(axes, groups, strict=True):
        values = group.value.to_numpy()
        axis.fill_between(
            group.t, group.low, group.high, color=COLOURS["base"], alpha=0.2, linewidth=0
        )
        axis.plot([0, 1], values[[0, -1]], color=COLOURS["base"], linestyle="--", linewidth=1)
        marker = "." if len(group) <= 5 else ""
        axis.plot(group.t, values, color="black", linewidth=1.5, marker=marker)
        for index, run in ((0, first), (-1, second)):
            axis.plot(
                group.t.iloc[index],
                values[index],
                MARKERS[run],
                color=COLOURS[run],
                markersize=7,
                zorder=3,
            )
        axis.set_title(pair_label(first, second), fontsize=8.5)
        axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"], fontsize=8.5)
    fig.supxlabel("t, from the first run to the second", fontsize=10)
    fig.supylabel(label_y, fontsize=10)
    return fig


def curves_by_run(
    table: pd.DataFrame,
    by: str,
    x: str,
    label_x: str,
    label_y: str,
    panels: Mapping[str, str],
) -> Figure:
    """One panel per metric, {metric: heading}, with a line and its interval per run.

    by: the column of the runs; one that begins with `scaled-` is an update scaled to another norm,
    and dashed. x: the column along x. table: columns metric, value, low, high besides.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(style.WIDTH, 3.2), squeeze=False)
    for axis, (metric, heading) in zip(axes[0], panels.items(), strict=True):
        for name, group in table[table.metric == metric].groupby(by, sort=False):
            run = name.removeprefix(SCALED)
            is_scaled = run != name
            axis.plot(
                group[x],
                group.value,
                "--" if is_scaled else "-",
                color=COLOURS[run],
                linewidth=2,
                marker=MARKERS[run],
                markevery=0.25,
                markersize=6,
                label=f"{LABELS[run]}, scaled" if is_scaled else LABELS[run],
            )
            axis.fill_between(
                group[x], group.low, group.high, color=COLOURS[run], alpha=0.08, linewidth=0
            )
        axis.set_title(heading, fontsize=SMALL)
        axis.set_xlabel(label_x)
    axes[0, 0].set_ylabel(label_y)
    legend_beside(fig, axes[0, -1])
    return fig


def barriers(table: pd.DataFrame, label_x: str, panels: Mapping[str, str]) -> Figure:
    """Barriers of paths, one row per path and one panel per metric, {metric: heading}.

    A dot is the height above the chord (above_chord, low, high), a diamond that above the mean of
    the ends (above_mean, mean_low, mean_high), each with its interval. Grey up to `noise`, the
    height that a straight path's curve reaches by chance.
    """
    paths = table[["run_a", "run_b"]].drop_duplicates().reset_index(drop=True)
    size = (style.WIDTH, 0.3 * len(paths) + 1.1)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (metric, heading) in zip(axes[0], panels.items(), strict=True):
        for position, row in enumerate(paths.merge(table[table.metric == metric]).itertuples()):
            ends = [position - 0.4, position + 0.4]
            axis.fill_betweenx(ends, 0, row.noise, color=CHANCE, linewidth=0)
            above_chord = row.above_chord, row.low, row.high
            above_mean = row.above_mean, row.mean_low, row.mean_high
            _draw_height(axis, position - 0.16, above_chord, "o", COLOURS["sft"])
            _draw_height(axis, position + 0.16, above_mean, "D", COLOURS["rift"])
        axis.set_title(heading, fontsize=SMALL)
        axis.set_xlabel(label_x)
    name_pairs(axes[0, 0], zip(paths.run_a, paths.run_b, strict=True))
    dot_and_diamond = axes[0, 0].lines[1:4:2]  # of the first row; intervals lie between
    names = ["above the chord", "above the mean of the ends"]
    fig.legend(dot_and_diamond, names, loc="outside lower center", ncols=2, fontsize=9)
    return fig


def _draw_height(
    axis: Axes,
    position: float,
    estimate: tuple[float, float, float],
    marker: str,
    colour: str,
) -> None:
    """Draw one barrier (value, low, high): its interval, and a marker at its value."""
    value, low, high = estimate
    axis.plot([low, high], [position] * 2, color=colour, linewidth=1.5)
    axis.plot(value, position, marker, color=colour, markersize=5)


def losses_and_accuracy(table: pd.DataFrame, panels: Mapping[str, str]) -> Figure:
    """Share of problems solved against each loss, one panel per metric, {metric: axis label}.

    table: columns run, accuracy and the metrics. A run has its marker; rows without a run (NaN) are
    points between runs, and grey dots.
    """
    between, ends = table[table.run.isna()], table[table.run.notna()].drop_duplicates("run")
    size = (style.WIDTH, 3.4)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (metric, label) in zip(axes[0], panels.items(), strict=True):
        axis.plot(between[metric], between.accuracy, "o", color="#999999", markersize=4)
        for row in ends.to_dict("records"):
            axis.plot(
                row[metric],
                row["accuracy"],
                MARKERS[row["run"]],
                color=COLOURS[row["run"]],
                markersize=9,
                linestyle="none",
                label=LABELS[row["run"]],
            )
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("share of problems solved")
    legend_beside(fig, axes[0, 0])
    return fig
