"""Figures: one style, one colour and marker per method all through the book.

Last in the flow of data; draws what other modules computed and computes nothing itself. Figures are opaque, so that they
read the same in the light and the dark theme, and carry no title: the caption on the page is the title.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm

LABELS = {"base": "base", "strong-base": "strong base", "teacher": "teacher", "sft": "SFT", "rft": "RFT", "dft": "DFT", "rift": "RIFT",
          "offline-grpo": "Offline GRPO", "dpo": "DPO"}
COLOURS = {"base": "#555555", "strong-base": "#999999", "teacher": "#000000", "sft": "#0072B2", "rft": "#56B4E9", "dft": "#009E73", "rift": "#E69F00",
           "offline-grpo": "#CC79A7", "dpo": "#D55E00"}
MARKERS = {"base": "o", "strong-base": "o", "teacher": "*", "sft": "s", "rft": "D", "dft": "^", "rift": "v", "offline-grpo": "P", "dpo": "X"}
_FORMATS = {"p": "{:.2g}", "p_holm": "{:.2g}", "difference": "{:+.3f}", "learning_rate": "{:.0e}"}
_DIVERGING = "PuOr"
_WIDTH = 7.0
_TOKENS_A_LINE = 14


def use_style():
    """Set matplotlib's defaults for every figure of the book."""
    plt.rcParams.update({
        "figure.figsize": (_WIDTH, 3.4), "figure.dpi": 110, "figure.facecolor": "white", "figure.constrained_layout.use": True, "savefig.facecolor": "white",
        "font.size": 10.5, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def table(frame):
    """A table for the page: three decimals, p-values and learning rates with two digits, differences with their sign, no index."""
    return frame.style.format(_FORMATS, precision=3).hide(axis="index")


def intervals(table, value, low, high, label, reference=None):
    """One dot with its interval a run, top to bottom in the table's order; a dashed line at the run called `reference`."""
    fig, axis = plt.subplots(figsize=(_WIDTH, 0.42 * len(table) + 1.0))
    for place, row in enumerate(table.itertuples()):
        centre, ends = getattr(row, value), (getattr(row, low), getattr(row, high))
        axis.plot(ends, [place, place], color=COLOURS[row.run], linewidth=2)
        axis.plot(centre, place, MARKERS[row.run], color=COLOURS[row.run], markersize=8)
        axis.annotate(f"{centre:.3f}", (ends[1], place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    if reference is not None:
        axis.axvline(table.set_index("run")[value][reference], color=COLOURS[reference], linestyle="--", linewidth=1, zorder=0)
    axis.set_yticks(range(len(table)), [LABELS[run] for run in table.run])
    axis.invert_yaxis()
    axis.margins(x=0.14)
    axis.set_xlabel(label)
    return fig


def bars(counts, label_x, label_y, colours=None):
    """Bars for a pandas Series: its index along x, its values up."""
    fig, axis = plt.subplots()
    axis.bar([str(index) for index in counts.index], counts.to_numpy(), color=colours or COLOURS["sft"])
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    return fig


def histograms(samples, label_x, label_y="rollouts", bins=30):
    """Step histograms on common bins: {name: values}; names of methods and models take their colours."""
    fig, axis = plt.subplots()
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in samples.values()]), bins)
    for number, (name, values) in enumerate(samples.items()):
        line = {"color": COLOURS.get(name, f"C{number}"), "linestyle": ("-", "--", ":")[number % 3], "label": LABELS.get(name, name)}
        axis.hist(values, edges, histtype="step", linewidth=2, **line)
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    axis.legend()
    return fig


def training_curve(history, run):
    """Loss and gradient norm of one run, step by step, the loss also as a running mean; dashed: the clipping level."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH, 2.8))
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
    colours = plt.get_cmap(_DIVERGING)
    fig, axes = plt.subplots(len(tokens), 1, figsize=(_WIDTH, 0.32 * sum(lines) + 1.2), height_ratios=lines, squeeze=False)
    for axis, texts, values, heading, count in zip(axes[:, 0], tokens, weights, headings, lines, strict=True):
        for place, (text, value) in enumerate(zip(texts, values, strict=True)):
            line, column = divmod(place, _TOKENS_A_LINE)
            shade = colours(norm(value))
            axis.add_patch(plt.Rectangle((column, line), 0.96, 0.9, color=shade))
            dark = np.dot(shade[:3], (0.299, 0.587, 0.114)) < 0.5
            axis.text(column + 0.48, line + 0.47, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set(xlim=(0, _TOKENS_A_LINE), ylim=(count, 0))
        axis.axis("off")
        axis.set_title(heading, loc="left", fontsize=9.5)
    fig.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axes[:, 0], shrink=0.9, label="weight (SFT = 1)")
    return fig


def matrix(values, names, label, low=-1.0, high=1.0):
    """A square matrix of numbers between runs, each written in its cell."""
    fig, axis = plt.subplots(figsize=(0.62 * len(names) + 2.2, 0.55 * len(names) + 1.2))
    image = axis.imshow(values, cmap=_DIVERGING, vmin=low, vmax=high)
    for row in range(len(names)):
        for column in range(len(names)):
            is_dark = abs(2 * (values[row][column] - low) / (high - low) - 1) > 0.7
            axis.text(column, row, f"{values[row][column]:.2f}", ha="center", va="center", fontsize=9, color="white" if is_dark else "black")
    axis.set_xticks(range(len(names)), [LABELS[name] for name in names], rotation=30, ha="right")
    axis.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axis.grid(False)
    fig.colorbar(image, label=label)
    return fig


def scatter_of_runs(table, x, y, label_x, label_y):
    """One marker a run, its name beside it."""
    fig, axis = plt.subplots()
    for row in table.itertuples():
        axis.plot(getattr(row, x), getattr(row, y), MARKERS[row.run], color=COLOURS[row.run], markersize=9)
        axis.annotate(LABELS[row.run], (getattr(row, x), getattr(row, y)), xytext=(7, 4), textcoords="offset points", fontsize=9)
    axis.margins(0.15)
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    return fig
