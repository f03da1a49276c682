"""Figures of how values are distributed: bars of counts, and histograms.

After `elements` and `current_study`; draws what it is given.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.book.figures.current_study import COLOURS, LABELS
from helpers.book.figures.elements import Numbers


def bars(
    counts: pd.Series,
    label_x: str,
    label_y: str,
    colours: str | Sequence[str] | None = None,
) -> Figure:
    """One bar per value of a series: its index along x, its values up.

    colours: of all bars, or one for each.
    """
    fig, axis = plt.subplots()
    names = [textwrap.fill(str(index), 15) for index in counts.index]
    axis.bar(names, counts.to_numpy(), color=colours or COLOURS["sft"])
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    return fig


def histograms(
    samples: Mapping[str, Numbers], label_x: str, label_y: str = "rollouts", bins: int = 30
) -> Figure:
    """Step histograms of several samples on common bins, by name.

    Names of methods and models take their colours.
    """
    fig, axis = plt.subplots()
    everything = np.concatenate([np.asarray(values) for values in samples.values()])
    edges = np.histogram_bin_edges(everything, bins)
    for number, (name, values) in enumerate(samples.items()):
        axis.hist(
            np.asarray(values),
            edges.tolist(),
            histtype="step",
            linewidth=2,
            color=COLOURS.get(name, f"C{number}"),
            linestyle=("-", "--", ":")[number % 3],
            label=LABELS[name],
        )
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)
    axis.legend()
    return fig
