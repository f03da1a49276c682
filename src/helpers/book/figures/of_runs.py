"""Figures with one mark or one line per run.

After `elements` and `current_study`; draws what it is given.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS, LABELS, MARKERS, line_of
from helpers.book.figures.elements import Numbers, legend_beside, name_rows, reference_line


def intervals(
    table: pd.DataFrame,
    value: str,
    low: str,
    high: str,
    label: str,
    reference: str | None = None,
) -> Figure:
    """One row per run of the column `run`, top to bottom: a dot with its interval and its number.

    value, low, high: columns of the table. A dashed line marks the value of the run `reference`.
    """
    fig, axis = plt.subplots(figsize=(style.WIDTH, 0.42 * len(table) + 1.0))
    for position, row in enumerate(table.itertuples()):
        centre, ends = getattr(row, value), (getattr(row, low), getattr(row, high))
        axis.plot(ends, [position] * 2, color=COLOURS[row.run], linewidth=2)
        axis.plot(centre, position, MARKERS[row.run], color=COLOURS[row.run], markersize=8)
        axis.annotate(
            f"{centre:.3f}",
            (ends[1], position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    if reference is not None:
        reference_line(axis, table.set_index("run")[value][reference], COLOURS[reference])
    name_rows(axis, [LABELS[run] for run in table.run])
    axis.margins(x=0.14)
    axis.set_xlabel(label)
    return fig


def interval_panels(table: pd.DataFrame, panels: Mapping[str, str], reference: str) -> Figure:
    """One row per run of the column `run`, one panel per measure, {column: axis label}.

    Each dot has its interval, from `<column>_low` to `<column>_high`, where the table has one. A
    dashed line marks the value of the run `reference`.
    """
    size = (style.WIDTH, 0.27 * len(table) + 0.9)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        for position, row in enumerate(table.to_dict("records")):
            colour = COLOURS[row["run"]]
            if f"{column}_low" in row:
                ends = row[f"{column}_low"], row[f"{column}_high"]
                axis.plot(ends, [position] * 2, color=colour, linewidth=2)
            axis.plot(row[column], position, MARKERS[row["run"]], color=colour, markersize=6)
        reference_line(axis, table.set_index("run")[column][reference], COLOURS["base"])
        axis.set_xlabel(label)
    name_rows(axes[0, 0], [LABELS[run] for run in table.run], 9.0)
    return fig


def scatter_of_runs(table: pd.DataFrame, x: str, y: str, label_x: str, label_y: str) -> Figure:
    """One marker per run of the column `run`, with its own shape and named in a legend.

    x, y: columns of the table.
    """
    fig, axis = plt.subplots()
    for row in table.itertuples():
        axis.plot(
            getattr(row, x),
            getattr(row, y),
            MARKERS[row.run],
            color=COLOURS[row.run],
            markersize=9,
            label=LABELS[row.run],
        )
    legend_beside(fig, axis)
    axis.margins(0.15)
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    return fig


def marked_scatter(
    table: pd.DataFrame, x: str, y: str, label_x: str, label_y: str, band: float | None = None
) -> Figure:
    """One marker per run of the column `run`, for runs of which several share a method's shape.

    x, y: columns of the table. The stripes |x| < `band` and |y| < `band` (chance) are grey.
    """
    fig, axis = plt.subplots(figsize=(style.WIDTH, 4.4))
    if band:
        axis.axvspan(-band, band, color=COLOURS["base"], alpha=0.12, linewidth=0)
        axis.axhspan(-band, band, color=COLOURS["base"], alpha=0.12, linewidth=0)
    for position, row in enumerate(table.to_dict("records")):
        axis.plot(
            row[x],
            row[y],
            "osD^vPX*<>hpd8"[position % 14],
            color=COLOURS[row["run"]],
            markeredgecolor="black",
            markersize=9,
            linestyle="none",
            alpha=0.85,
            label=LABELS[row["run"]],
        )
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    legend_beside(fig, axis, 8.5)
    return fig


def lines_of_runs(
    panels: Mapping[str, pd.DataFrame],
    x: str,
    value: str,
    label_x: str,
    label_y: str,
    log: bool = False,
) -> Figure:
    """One line per run in its colour against a common axis, panels side by side: {heading: table
    with the columns run, x and value}. A missing run is the base model.

    Where a table has them, `low` and `high` are shaded in the run's colour, and `chance_low` and
    `chance_high` in grey.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(style.WIDTH, 3.4), sharex=True, sharey=True, squeeze=False
    )
    for axis, (heading, table) in zip(axes[0], panels.items(), strict=True):
        for number, (name, rows) in enumerate(table.groupby("run", sort=False, dropna=False)):
            line = line_of("base model" if pd.isna(name) else str(name), number)
            if "chance_low" in rows:
                shade = {"color": style.BAND, "alpha": 0.1, "linewidth": 0, "zorder": 0}
                axis.fill_between(rows[x], rows.chance_low, rows.chance_high, **shade)
            if "low" in rows:
                shade = {"color": line["color"], "alpha": 0.18, "linewidth": 0}
                axis.fill_between(rows[x], rows.low, rows.high, **shade)
            axis.plot(rows[x], rows[value], markersize=5, linewidth=1.6, **line)
        axis.set_title(heading, fontsize=9.5)
        axis.set_xlabel(label_x)
        axis.xaxis.get_major_locator().set_params(integer=not log)
    axes[0, 0].set_ylabel(label_y)
    if log:
        axes[0, 0].set(xscale="log", yscale="log")
    legend_beside(fig, axes[0, -1])
    return fig


def curves_with_runs(
    curves: Mapping[str, tuple[Numbers, Numbers]],
    points: Mapping[str, tuple[float, Sequence[float]]],
    paper: Mapping[str, tuple[float, Sequence[float]]],
    label_x: str,
    label_y: str,
) -> Figure:
    """Curves, {label: (x, y)}, with one marker per run on each, and the paper's as open diamonds.

    points, paper: {run: (its x, its y on each curve)}.
    """
    fig, axis = plt.subplots()
    for number, (label, (x, y)) in enumerate(curves.items()):
        dashes = ("-", "--", ":")[number % 3]
        axis.plot(x, y, dashes, color=COLOURS["base"], linewidth=1.5, label=label)
    for position, (run, (run_x, values)) in enumerate(points.items()):
        axis.plot(
            [run_x] * len(values),
            values,
            MARKERS[run],
            color=COLOURS[run],
            markersize=8,
            zorder=3,
            label=LABELS[run],
        )
        if run in paper:
            paper_x, paper_values = paper[run]
            axis.plot(
                [paper_x] * len(values),
                paper_values,
                "D",
                color=COLOURS[run],
                fillstyle="none",
                markersize=9,
                zorder=2 + 0.01 * position,
            )
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    legend_beside(fig, axis)
    return fig


def points_on_curves(
    curves: Mapping[str, pd.DataFrame],
    points: pd.DataFrame,
    x: str,
    value: str,
    label_x: str,
    label_y: str,
    reference: float | None = None,
) -> Figure:
    """Points beside curves, x logarithmic.

    curves: {run: table}, a line in its run's colour with its interval. points: a marker per row,
    named by the column `label`, in the colour of its `run`. x, value: columns of both; intervals
    are `low` and `high` for the value and, of points, `<x>_low` and `<x>_high`. reference: height
    of a dashed line, the base.
    """
    fig, axis = plt.subplots(figsize=(style.WIDTH, 3.9))
    for run, table in curves.items():
        rows = table.sort_values(x)
        axis.fill_between(rows[x], rows.low, rows.high, color=COLOURS[run], alpha=0.12, linewidth=0)
        axis.plot(
            rows[x],
            rows[value],
            color=COLOURS[run],
            linewidth=1.4,
            marker=".",
            alpha=0.7,
            label=f"{LABELS[run]}, scaled",
        )
    for position, row in enumerate(points.to_dict("records")):
        colour = COLOURS[row["run"]]
        axis.plot([row[f"{x}_low"], row[f"{x}_high"]], [row[value]] * 2, color=colour, linewidth=1)
        axis.plot([row[x]] * 2, [row["low"], row["high"]], color=colour, linewidth=1)
        axis.plot(
            row[x],
            row[value],
            "osD^vPX*<>"[position % 10],
            color=colour,
            markeredgecolor="black",
            markersize=8,
            linestyle="none",
            label=textwrap.fill(row["label"], 28),
            zorder=3,
        )
    if reference is not None:
        axis.axhline(
            reference, color=COLOURS["base"], linestyle="--", linewidth=1, label="base", zorder=0
        )
    axis.set_xscale("log")
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    legend_beside(fig, axis, 8.5)
    return fig
