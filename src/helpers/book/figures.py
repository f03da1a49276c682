"""Figures: one style, one colour and marker per method all through the book.

Last in the flow of data; draws what other modules computed and computes nothing itself. Figures are opaque, so that they
read the same in the light and the dark theme, and carry no title: the caption on the page is the title.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm

from adapter_geometry.report import figures as style
from helpers.profiles import Profile
from helpers.profiles.appearance import ByMethod, Labels

# Of the study that is drawn (`use_style`): label, colour and marker of each run.
LABELS, COLOURS, MARKERS = Labels(), ByMethod(), ByMethod()
_NULLS = {
    "Gaussian": "#bbbbbb",
    "Gaussian B": "#777777",
    "matched": "#56B4E9",
    "outputs turned": "#0072B2",
    "modules permuted": "#E69F00",
    "another seed": "#009E73",
}
_FORMATS = {
    "p": "{:.2g}",
    "p_holm": "{:.2g}",
    "difference": "{:+.3f}",
    "learning_rate": "{:.0e}",
    **dict.fromkeys(("run", "run_a", "run_b", "against"), LABELS.__getitem__),
}
_TOKENS_A_LINE = 14


def use_style(study: Profile) -> None:
    """Set matplotlib's defaults, and the looks of the study's runs, for every figure that follows."""
    style.use_style()
    looks = study.appearance
    for current, values in (
        (LABELS, looks.labels),
        (COLOURS, looks.colours),
        (MARKERS, looks.markers),
    ):
        current.clear()
        current.update(values)


def table(frame):
    """A table for the page: runs by their labels, three decimals, two digits for p-values and learning rates, differences with their sign, a dash for none."""
    return frame.style.format(_FORMATS, precision=3, na_rep="–").hide(axis="index")


def intervals(table, value, low, high, label, reference=None):
    """One dot with its interval a run, top to bottom in the table's order; a dashed line at the run called `reference`."""
    fig, axis = plt.subplots(figsize=(style.WIDTH, 0.42 * len(table) + 1.0))
    for place, row in enumerate(table.itertuples()):
        centre, ends = getattr(row, value), (getattr(row, low), getattr(row, high))
        axis.plot(ends, [place, place], color=COLOURS[row.run], linewidth=2)
        axis.plot(centre, place, MARKERS[row.run], color=COLOURS[row.run], markersize=8)
        axis.annotate(
            f"{centre:.3f}",
            (ends[1], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    if reference is not None:
        axis.axvline(
            table.set_index("run")[value][reference],
            color=COLOURS[reference],
            linestyle="--",
            linewidth=1,
            zorder=0,
        )
    axis.set_yticks(range(len(table)), [LABELS[run] for run in table.run])
    axis.invert_yaxis()
    axis.margins(x=0.14)
    axis.set_xlabel(label)
    return fig


def bars(counts, label_x, label_y, colours=None):
    """Bars for a pandas Series: its index along x, its values up."""
    fig, axis = plt.subplots()
    axis.bar(
        [textwrap.fill(str(index), 15) for index in counts.index],
        counts.to_numpy(),
        color=colours or COLOURS["sft"],
    )
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    return fig


def histograms(samples, label_x, label_y="rollouts", bins=30):
    """Step histograms on common bins: {name: values}; names of methods and models take their colours."""
    fig, axis = plt.subplots()
    edges = np.histogram_bin_edges(
        np.concatenate([np.asarray(values) for values in samples.values()]), bins
    )
    for number, (name, values) in enumerate(samples.items()):
        line = {
            "color": COLOURS.get(name, f"C{number}"),
            "linestyle": ("-", "--", ":")[number % 3],
            "label": LABELS[name],
        }
        axis.hist(values, edges, histtype="step", linewidth=2, **line)
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    axis.legend()
    return fig


def training_curve(history, run):
    """Loss and gradient norm of one run, step by step, the loss also as a running mean; dashed: the clipping level."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 2.8))
    colour = COLOURS[run.name]
    smooth = history.loss.rolling(min(10, len(history)), min_periods=1).mean()
    left.plot(history.step, history.loss, color=colour, alpha=0.3, linewidth=1)
    left.plot(history.step, smooth, color=colour, linewidth=2)
    left.set_ylabel("loss")
    right.plot(history.step, history.grad_norm, color=colour, linewidth=1)
    right.axhline(run.clip, color=COLOURS["base"], linestyle="--", linewidth=1)
    right.set_ylabel("norm of the gradient")
    for axis in (left, right):
        axis.set_xlabel("optimiser step")
    return fig


def token_weights(tokens, weights, headings):
    """Completions token by token, each token's box coloured by the weight of its log-probability in the gradient.

    tokens: list of lists of text; weights: list of arrays of the same lengths, in units of SFT's weight; one heading each.
    """
    lines = [int(np.ceil(len(texts) / _TOKENS_A_LINE)) for texts in tokens]
    largest = max(max(float(np.abs(values).max()) for values in weights), 1e-9)
    norm = TwoSlopeNorm(0, -largest, largest)
    colours = plt.get_cmap(style.DIVERGING)
    fig, axes = plt.subplots(
        len(tokens),
        1,
        figsize=(style.WIDTH, 0.32 * sum(lines) + 1.2),
        height_ratios=lines,
        squeeze=False,
    )
    for axis, texts, values, heading, count in zip(
        axes[:, 0], tokens, weights, headings, lines, strict=True
    ):
        for place, (text, value) in enumerate(zip(texts, values, strict=True)):
            line, column = divmod(place, _TOKENS_A_LINE)
            shade = colours(norm(value))
            axis.add_patch(plt.Rectangle((column, line), 0.96, 0.9, color=shade))
            dark = np.dot(shade[:3], (0.299, 0.587, 0.114)) < 0.5
            axis.text(
                column + 0.48,
                line + 0.47,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
        axis.set(xlim=(0, _TOKENS_A_LINE), ylim=(count, 0))
        axis.axis("off")
        axis.set_title(heading, loc="left", fontsize=9.5)
    fig.colorbar(
        plt.cm.ScalarMappable(norm, colours), ax=axes[:, 0], shrink=0.9, label="weight (SFT = 1)"
    )
    return fig


def matrix(values, names, label, low=-1.0, high=1.0):
    """A square matrix of numbers between runs, each written in its cell."""
    return style.matrix(values, [LABELS[name] for name in names], label, low, high)


def scatter_of_runs(table, x, y, label_x, label_y):
    """One marker a run, named in a legend, since several runs often lie close together."""
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
    fig.legend(loc="outside right center", fontsize=9)
    axis.margins(0.15)
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    return fig


def claims(table, label):
    """One line a claim, top to bottom: the control's band in grey, ours as a dot with its interval, the paper's value as an open diamond."""
    fig, axis = plt.subplots(figsize=(style.WIDTH, 0.55 * len(table) + 1.0))
    for place, row in enumerate(table.itertuples()):
        axis.fill_betweenx(
            [place - 0.3, place + 0.3], row.chance_low, row.chance_high, color="#cccccc", zorder=1
        )
        axis.plot([row.low, row.high], [place, place], color=COLOURS["sft"], linewidth=2, zorder=2)
        axis.plot(row.value, place, "o", color=COLOURS["sft"], markersize=7, zorder=3)
        axis.plot(
            row.paper_value,
            place,
            "D",
            color=COLOURS["dpo"],
            fillstyle="none",
            markersize=8,
            markeredgewidth=1.8,
            zorder=3,
        )
    axis.set_yticks(
        range(len(table)), [textwrap.fill(claim, 34) for claim in table.claim], fontsize=9
    )
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xlabel(label)
    return fig


def _line(name, number):
    """Colour, marker and label of a method; any other name has a colour of no method, by its place."""
    colour = COLOURS.get(name, ("#000000", "#6a3d9a", "#777777", "#8c564b")[number % 4])
    return {
        "color": colour,
        "marker": MARKERS.get(name, "os^Dv"[number % 5]),
        "label": LABELS[name],
    }


def lines_of_runs(panels, x, value, label_x, label_y, log=False):
    """One line per run in its colour, as `adapter_geometry.report.figures.lines` draws them."""
    return style.lines(panels, x, value, label_x, label_y, log, _line)


def module_maps(panels, layers, projections, insides, label, low=-1.0, high=1.0):
    """Maps of one number a module, panel under panel: {heading: (projections, layers)}; cells marked in `insides` (within chance) are hatched."""
    fig, axes = plt.subplots(
        len(panels),
        1,
        figsize=(style.WIDTH, (0.2 * len(projections) + 0.42) * len(panels) + 0.5),
        sharex=True,
        squeeze=False,
    )
    for axis, (heading, values) in zip(axes[:, 0], panels.items(), strict=True):
        image = style.cells(
            axis, values, low, high, insides[heading], is_written=len(layers) <= 12, aspect="auto"
        )
        axis.set_yticks(range(len(projections)), projections, fontsize=8)
        axis.set_title(heading, loc="left", fontsize=9.5)
    apart = -(-len(layers) // 12)  # numbers that fit side by side
    axes[-1, 0].set_xticks(range(0, len(layers), apart), layers[::apart])
    axes[-1, 0].set_xlabel("layer")
    fig.colorbar(image, ax=axes[:, 0], label=label, shrink=0.6)
    return fig


def strips(panels, label_y, chance=None, log=False, share_y=True):
    """One dot a module, runs side by side, a bar at their median: {heading: {run: values}}; chance: {heading: {run: (low, high)}}, grey."""
    fig, axes = plt.subplots(
        1, len(panels), figsize=(style.WIDTH, 3.4), sharey=share_y, squeeze=False
    )
    for axis, (heading, groups) in zip(axes[0], panels.items(), strict=True):
        for place, (name, values) in enumerate(groups.items()):
            if chance:
                axis.fill_between(
                    [place - 0.42, place + 0.42],
                    *chance[heading][name],
                    color=COLOURS["base"],
                    alpha=0.18,
                    linewidth=0,
                    zorder=0,
                )
            shift = 0.5 * (np.arange(len(values)) * 0.618 % 1 - 0.5)
            axis.plot(
                place + shift,
                values,
                ".",
                color=_line(name, place)["color"],
                markersize=5,
                alpha=0.8,
            )
            axis.plot(
                [place - 0.38, place + 0.38],
                [np.nanmedian(values)] * 2,
                color="black",
                linewidth=1.6,
            )
        axis.set_xticks(
            range(len(groups)),
            [LABELS[name] for name in groups],
            rotation=45,
            ha="right",
            fontsize=9,
        )
        axis.set_title(heading, fontsize=9.5)
        axis.grid(False, axis="x")
        if log:
            axis.set_yscale("log")
    axes[0, 0].set_ylabel(label_y)
    return fig


def pairs(table_, value, label, paper=None):
    """One dot a pair of runs, its chance band (`chance_low` to `chance_high`) in grey; open diamonds: paper, {(run_a, run_b): its value}."""
    fig, axis = plt.subplots(figsize=(style.WIDTH, 0.27 * len(table_) + 1.0))
    for place, row in enumerate(table_.itertuples()):
        axis.fill_betweenx(
            [place - 0.35, place + 0.35], row.chance_low, row.chance_high, color="#cccccc", zorder=1
        )
        axis.plot(getattr(row, value), place, "o", color=COLOURS["sft"], markersize=6, zorder=3)
        if (row.run_a, row.run_b) in (paper or {}):
            axis.plot(
                paper[row.run_a, row.run_b],
                place,
                "D",
                color=COLOURS["dpo"],
                fillstyle="none",
                markersize=7,
                markeredgewidth=1.6,
                zorder=3,
            )
    axis.set_yticks(
        range(len(table_)),
        [f"{LABELS[row.run_a]} – {LABELS[row.run_b]}" for row in table_.itertuples()],
        fontsize=9,
    )
    axis.invert_yaxis()
    axis.set_xlabel(label)
    return fig


def path_panels(table_, label_y, columns=5):
    """One small panel a path of a `connectivity` table: value with its interval over t, dashed the chord between the ends; one common y axis."""
    groups = list(table_.groupby(["run_a", "run_b"], sort=False))
    rows = -(-len(groups) // columns)
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(style.WIDTH, 1.45 * rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, ((first, second), group) in zip(axes.flat, groups, strict=False):
        values = group.value.to_numpy()
        axis.fill_between(
            group.t, group.low, group.high, color=COLOURS["base"], alpha=0.2, linewidth=0
        )
        axis.plot([0, 1], values[[0, -1]], color=COLOURS["base"], linestyle="--", linewidth=1)
        axis.plot(
            group.t, values, color="black", linewidth=1.5, marker="." if len(group) <= 5 else ""
        )
        for place, run in ((0, first), (-1, second)):
            axis.plot(
                group.t.iloc[place],
                values[place],
                MARKERS[run],
                color=COLOURS[run],
                markersize=7,
                zorder=3,
            )
        axis.set_title(f"{LABELS[first]} – {LABELS[second]}", fontsize=8.5)
        axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"], fontsize=8.5)
    fig.supxlabel("t, from the first run to the second", fontsize=10)
    fig.supylabel(label_y, fontsize=10)
    return fig


def curves_by_run(table_, by, x, label_x, label_y, panels):
    """One panel a metric, {metric: heading}, one line with its interval for each value of column `by`; dashed for an update scaled to another norm."""
    fig, axes = plt.subplots(1, len(panels), figsize=(style.WIDTH, 3.2), squeeze=False)
    for axis, (metric, heading) in zip(axes[0], panels.items(), strict=True):
        for name, group in table_[table_.metric == metric].groupby(by, sort=False):
            run = name.removeprefix("scaled-")
            label = LABELS[run] if run == name else f"{LABELS[run]}, scaled"
            axis.plot(
                group[x],
                group.value,
                "-" if run == name else "--",
                color=COLOURS[run],
                linewidth=2,
                marker=MARKERS[run],
                markevery=0.25,
                markersize=6,
                label=label,
            )
            axis.fill_between(
                group[x], group.low, group.high, color=COLOURS[run], alpha=0.08, linewidth=0
            )
        axis.set_title(heading, fontsize=9.5)
        axis.set_xlabel(label_x)
    axes[0, 0].set_ylabel(label_y)
    fig.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return fig


def barriers(table_, label_x, panels):
    """Barriers of paths, one panel a metric, {metric: heading}: dot above the chord, diamond above the mean of the ends, each with its interval; grey up
    to `noise`, the height that a straight path's curve reaches by chance."""
    paths = table_[["run_a", "run_b"]].drop_duplicates().reset_index(drop=True)
    fig, axes = plt.subplots(
        1, len(panels), figsize=(style.WIDTH, 0.3 * len(paths) + 1.1), sharey=True, squeeze=False
    )
    for axis, (metric, heading) in zip(axes[0], panels.items(), strict=True):
        for place, row in enumerate(paths.merge(table_[table_.metric == metric]).itertuples()):
            axis.fill_betweenx(
                [place - 0.4, place + 0.4], 0, row.noise, color="#cccccc", linewidth=0
            )
            axis.plot([row.low, row.high], [place - 0.16] * 2, color=COLOURS["sft"], linewidth=1.5)
            axis.plot(
                row.above_chord,
                place - 0.16,
                "o",
                color=COLOURS["sft"],
                markersize=5,
                label="above the chord" if place == 0 else None,
            )
            axis.plot(
                [row.mean_low, row.mean_high],
                [place + 0.16] * 2,
                color=COLOURS["rift"],
                linewidth=1.5,
            )
            axis.plot(
                row.above_mean,
                place + 0.16,
                "D",
                color=COLOURS["rift"],
                markersize=5,
                label="above the mean of the ends" if place == 0 else None,
            )
        axis.set_title(heading, fontsize=9.5)
        axis.set_xlabel(label_x)
    axes[0, 0].set_yticks(
        range(len(paths)),
        [f"{LABELS[row.run_a]} – {LABELS[row.run_b]}" for row in paths.itertuples()],
        fontsize=9,
    )
    axes[0, 0].invert_yaxis()
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9
    )
    return fig


def losses_and_accuracy(table_, panels):
    """Share of problems solved against each loss, one panel a metric, {metric: axis label}; markers for runs, grey dots for points between them (run NaN)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(style.WIDTH, 3.4), sharey=True, squeeze=False)
    for axis, (metric, label) in zip(axes[0], panels.items(), strict=True):
        between, ends = table_[table_.run.isna()], table_[table_.run.notna()].drop_duplicates("run")
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
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return fig


def curves_with_runs(curves, points, paper, label_x, label_y):
    """Curves {label: (x, y)}, one marker a run on them, and the paper's values as open diamonds; points and paper: a run's x and the y's, one a curve."""
    fig, axis = plt.subplots()
    for number, (label, (x, y)) in enumerate(curves.items()):
        axis.plot(
            x, y, ("-", "--", ":")[number % 3], color=COLOURS["base"], linewidth=1.5, label=label
        )
    for place, (run, (x, values)) in enumerate(points.items()):
        axis.plot(
            [x] * len(values),
            values,
            MARKERS[run],
            color=COLOURS[run],
            markersize=8,
            zorder=3,
            label=LABELS[run],
        )
        if run in paper:
            axis.plot(
                [paper[run][0]] * len(values),
                paper[run][1],
                "D",
                color=COLOURS[run],
                fillstyle="none",
                markersize=9,
                zorder=2 + 0.01 * place,
            )
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    fig.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return fig


def null_bands(panels, label_x, linear_within=None):
    """One row a pair: under each other a bar for each null, from `low` to `high`, and a black dot at the measured `value`.

    panels: {heading: rows of the `chance` table for one statistic}, side by side. linear_within: the axis is logarithmic beyond this distance from 0.
    """
    nulls = list(next(iter(panels.values())).null.unique())
    count = max(len(table_.groupby(["run_a", "run_b"])) for table_ in panels.values())
    fig, axes = plt.subplots(
        1, len(panels), figsize=(style.WIDTH, 0.42 * count + 1.2), sharey=True, squeeze=False
    )
    for axis, (heading, table_) in zip(axes[0], panels.items(), strict=True):
        groups = table_.groupby(["run_a", "run_b"], sort=False)
        for place, (_, rows) in enumerate(groups):
            for row in rows.itertuples():
                height = place - 0.36 + 0.72 * nulls.index(row.null) / max(len(nulls) - 1, 1)
                axis.plot(
                    [row.low, row.high],
                    [height] * 2,
                    color=_NULLS[row.null],
                    linewidth=2.6,
                    solid_capstyle="round",
                    label=row.null if place == 0 else None,
                )
            axis.plot(
                [rows.value.iloc[0]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1
            )
            axis.plot(
                rows.value.iloc[0],
                place,
                "o",
                color="black",
                markersize=5,
                zorder=3,
                label="measured" if place == 0 else None,
            )
        axis.set_title(heading, fontsize=9.5)
        axis.grid(False, axis="y")
        if linear_within:
            axis.set_xscale("symlog", linthresh=linear_within)
        else:
            axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set_yticks(
        range(len(groups)), [f"{LABELS[a]} – {LABELS[b]}" for a, b in groups.groups], fontsize=9
    )
    axes[0, 0].invert_yaxis()
    fig.supxlabel(label_x, fontsize=10)
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9
    )
    return fig


def matrices(panels, rows, columns, label, insides, low=-1.0, high=1.0):
    """Matrices of one number between runs side by side, {heading: (rows, columns)}; cells marked in `insides` (within chance) are hatched."""
    fig, axes = plt.subplots(
        1, len(panels), figsize=(2.6 * len(panels) + 1.8, 3.1), sharey=True, squeeze=False
    )
    for axis, (heading, values) in zip(axes[0], panels.items(), strict=True):
        image = style.cells(axis, values, low, high, insides[heading])
        axis.set_xticks(
            range(len(columns)),
            [LABELS[name] for name in columns],
            rotation=45,
            ha="right",
            fontsize=9,
        )
        axis.set_title(heading, fontsize=9.5)
    axes[0, 0].set_yticks(range(len(rows)), [LABELS[name] for name in rows], fontsize=9)
    fig.colorbar(image, ax=axes[0, :], label=label, shrink=0.8)
    return fig


def pairs_over_steps(table_, predicted, label_y, columns=5):
    """One small panel a pair: `measured` over the logarithm of the step, its chance band in grey, and what was `predicted`, a marker a `prediction`."""
    groups, kinds = (
        list(table_.groupby(["run_a", "run_b"], sort=False)),
        list(predicted.prediction.unique()),
    )
    rows = -(-len(groups) // columns)
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(style.WIDTH, 1.45 * rows + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, ((first, second), group) in zip(axes.flat, groups, strict=False):
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
        own = predicted[(predicted.run_a == first) & (predicted.run_b == second)]
        for number, kind in enumerate(kinds):
            line, chosen = _line(kind, number), own[own.prediction == kind]
            axis.plot(
                chosen.step,
                chosen.predicted,
                linestyle="none",
                markersize=5,
                fillstyle="none",
                zorder=3,
                **line,
            )
        axis.set_title(f"{LABELS[first]} – {LABELS[second]}", fontsize=8.5)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.locator_params(axis="x", numticks=6)
        axis.minorticks_off()
    fig.supxlabel("optimiser step", fontsize=10)
    fig.supylabel(label_y, fontsize=10)
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(kinds) + 1,
        fontsize=8.5,
        columnspacing=1,
        handletextpad=0.3,
    )
    return fig


def points_on_curves(curves, points, x, value, label_x, label_y, reference=None):
    """Points beside curves, x logarithmic: {run: table} a line with its interval each; a row of `points` is a marker, named by `label`, in its run's colour.

    Intervals are `low` and `high` for the value and, of points, `<x>_low` and `<x>_high`. reference: height of a dashed line, the base.
    """
    fig, axis = plt.subplots(figsize=(style.WIDTH, 3.9))
    for run, rows in curves.items():
        rows = rows.sort_values(x)
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
    for place, row in enumerate(points.to_dict("records")):
        colour = COLOURS[row["run"]]
        axis.plot([row[f"{x}_low"], row[f"{x}_high"]], [row[value]] * 2, color=colour, linewidth=1)
        axis.plot([row[x]] * 2, [row["low"], row["high"]], color=colour, linewidth=1)
        axis.plot(
            row[x],
            row[value],
            "osD^vPX*<>"[place % 10],
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
    fig.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8.5)
    return fig


def marked_scatter(table_, x, y, label_x, label_y, band=None):
    """One marker a run, its name in a legend beside the axes, for runs that lie too close for names; the square |x|, |y| < `band` (chance) in grey."""
    fig, axis = plt.subplots(figsize=(style.WIDTH, 4.4))
    if band:
        axis.axvspan(-band, band, color=COLOURS["base"], alpha=0.12, linewidth=0)
        axis.axhspan(-band, band, color=COLOURS["base"], alpha=0.12, linewidth=0)
    for place, row in enumerate(table_.to_dict("records")):
        axis.plot(
            row[x],
            row[y],
            "osD^vPX*<>hpd8"[place % 14],
            color=COLOURS[row["run"]],
            markeredgecolor="black",
            markersize=9,
            linestyle="none",
            alpha=0.85,
            label=LABELS[row["run"]],
        )
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    fig.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8.5)
    return fig


def interval_panels(table_, panels, reference):
    """One row a run, one panel a measure, {column: axis label}: a dot with its interval `<column>_low` to `<column>_high` where the table has one.

    A dashed line at the run called `reference`.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(style.WIDTH, 0.27 * len(table_) + 0.9), sharey=True, squeeze=False
    )
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        for place, row in enumerate(table_.to_dict("records")):
            colour = COLOURS[row["run"]]
            if f"{column}_low" in row:
                axis.plot(
                    [row[f"{column}_low"], row[f"{column}_high"]],
                    [place, place],
                    color=colour,
                    linewidth=2,
                )
            axis.plot(row[column], place, MARKERS[row["run"]], color=colour, markersize=6)
        axis.axvline(
            table_.set_index("run")[column][reference],
            color=COLOURS["base"],
            linestyle="--",
            linewidth=1,
            zorder=0,
        )
        axis.set_xlabel(label)
    axes[0, 0].set_yticks(range(len(table_)), [LABELS[run] for run in table_.run], fontsize=9)
    axes[0, 0].invert_yaxis()
    return fig
