"""Figures of how one objective trains: what it weighs in the gradient, and how a run went.

After `elements` and `current_study`; draws what it is given.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.book.figures import style
from helpers.book.figures.current_study import COLOURS
from helpers.book.figures.elements import SMALL
from helpers.profiles import Run

_TOKENS_PER_LINE = 14
_LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


def training_curve(history: pd.DataFrame, run: Run) -> Figure:
    """Loss and norm of the gradient of one run by optimiser step.

    The loss is drawn as it is and, over it, as a running mean; dashed is the clipping level.
    history: columns step, loss, grad_norm, as a run's folder stores them.
    """
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


def token_weights(
    tokens: Sequence[Sequence[str]],
    weights: Sequence[Float[np.ndarray, " _"]],
    headings: Sequence[str],
) -> Figure:
    """Completions token by token, in boxes coloured by the weight of the token's log-probability.

    tokens: the texts of each completion's tokens; weights: the weight of each of them in the
    gradient, in units of SFT's weight; headings: one for each completion.
    """
    line_counts = [int(np.ceil(len(texts) / _TOKENS_PER_LINE)) for texts in tokens]
    # The same shade is the same weight in all completions, and no weight is white.
    largest = max(max(float(np.abs(values).max()) for values in weights), 1e-9)
    norm = TwoSlopeNorm(0, -largest, largest)
    colours = plt.get_cmap(style.DIVERGING)
    fig, axes = plt.subplots(
        len(tokens),
        1,
        figsize=(style.WIDTH, 0.32 * sum(line_counts) + 1.2),
        height_ratios=line_counts,
        squeeze=False,
    )
    for axis, texts, values, heading, line_count in zip(
        axes[:, 0], tokens, weights, headings, line_counts, strict=True
    ):
        _draw_tokens(axis, texts, values, norm, colours)
        axis.set(xlim=(0, _TOKENS_PER_LINE), ylim=(line_count, 0))
        axis.axis("off")
        axis.set_title(heading, loc="left", fontsize=SMALL)
    scale = plt.cm.ScalarMappable(norm, colours)
    fig.colorbar(scale, ax=axes[:, 0], shrink=0.9, label="weight (SFT = 1)")
    return fig


def _draw_tokens(
    axis: Axes,
    texts: Sequence[str],
    values: Float[np.ndarray, " tokens"],
    norm: Normalize,
    colours: Colormap,
) -> None:
    """Draw one completion, a box of unit width per token, line by line."""
    for position, (text, value) in enumerate(zip(texts, values, strict=True)):
        line, column = divmod(position, _TOKENS_PER_LINE)
        shade = colours(norm(value))
        axis.add_patch(Rectangle((column, line), 0.96, 0.9, color=shade))
        is_dark = np.dot(shade[:3], _LUMA) < 0.5
        axis.text(
            column + 0.48,
            line + 0.47,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if is_dark else "black",
        )
