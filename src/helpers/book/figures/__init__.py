"""Figures and tables: one style, one colour and one marker per method all through the book.

Draws what other modules computed, and computes nothing itself. Figures are opaque, so that they
read the same in the light and the dark theme, and carry no title: the caption on the page is the
title. The modules are called after what they draw (`of_runs`, `of_pairs`, ...); `style` has what
needs no study, `current_study` the looks of the study that is drawn, `elements` what several
figures have in common. Pages use the names listed here.
"""

from helpers.book.figures.current_study import COLOURS, LABELS, MARKERS, use_style
from helpers.book.figures.of_claims import claims
from helpers.book.figures.of_distributions import bars, histograms
from helpers.book.figures.of_modules import module_maps, strips
from helpers.book.figures.of_pairs import matrices, matrix, null_bands, pairs, pairs_over_steps
from helpers.book.figures.of_paths import (
    barriers,
    curves_by_run,
    losses_and_accuracy,
    path_panels,
)
from helpers.book.figures.of_runs import (
    curves_with_runs,
    interval_panels,
    intervals,
    lines_of_runs,
    marked_scatter,
    points_on_curves,
    scatter_of_runs,
)
from helpers.book.figures.of_training import token_weights, training_curve
from helpers.book.figures.tables import table

__all__ = [
    "COLOURS",
    "LABELS",
    "MARKERS",
    "barriers",
    "bars",
    "claims",
    "curves_by_run",
    "curves_with_runs",
    "histograms",
    "interval_panels",
    "intervals",
    "lines_of_runs",
    "losses_and_accuracy",
    "marked_scatter",
    "matrices",
    "matrix",
    "module_maps",
    "null_bands",
    "pairs",
    "pairs_over_steps",
    "path_panels",
    "points_on_curves",
    "scatter_of_runs",
    "strips",
    "table",
    "token_weights",
    "training_curve",
    "use_style",
]
