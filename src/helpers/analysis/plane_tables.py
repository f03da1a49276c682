"""Tables of pairs of runs as matrices and back, for the page on the gradient plane.

After `gradients`; works in memory alone.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

Matrix = Float[np.ndarray, "runs runs"]
Matrices = tuple[Matrix, Matrix, Matrix] | Float[np.ndarray, "3 runs runs"]


def pairs_table(
    prediction: str, runs: Sequence[str], matrices: Matrices, step: int
) -> pd.DataFrame:
    """Predicted cosines of all pairs of runs after a step: one row per pair.

    matrices: the cosines with the lower and upper ends of their intervals. Columns: step, run_a,
    run_b, prediction (its name), predicted, low, high.
    """
    rows = []
    for (i, first), (j, second) in combinations(enumerate(runs), 2):
        values = [matrix[i, j] for matrix in matrices]
        rows.append((step, first, second, prediction, *values))
    columns = ["step", "run_a", "run_b", "prediction", "predicted", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def as_matrix(pairs: pd.DataFrame, column: str, runs: Sequence[str]) -> Matrix:
    """A column of a table of pairs as a symmetric matrix of runs, with ones on the diagonal."""
    matrix = np.eye(len(runs))
    for row in pairs.to_dict("records"):
        i, j = runs.index(row["run_a"]), runs.index(row["run_b"])
        matrix[i, j] = matrix[j, i] = row[column]
    return matrix
