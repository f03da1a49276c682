"""Geometry of updates, from their factors alone.

Comes after `updates`. Every quantity here equals the one of the dense updates and is found without forming them.
"""

import numpy as np


def inner(first, second):
    """<dW1, dW2>_F = s1 s2 tr((B2' B1)(A1 A2')) of two modules' `Factors`."""
    return first.scale * second.scale * float(((second.B.T @ first.B) * (first.A @ second.A.T).T).sum())


def cosine_matrix(updates):
    """Cosines of updates stacked over all modules, (n, n), for {name: {module: Factors}}; NaN for a zero update.

    Raises ValueError naming the first module that one of them lacks.
    """
    names = list(updates)
    modules = updates[names[0]].keys()
    for name in names:
        if different := modules ^ updates[name].keys():
            raise ValueError(f"{name} and {names[0]} have different modules, for example {sorted(different)[0]}")
    gram = np.array([[sum(inner(updates[a][module], updates[b][module]) for module in modules) for b in names] for a in names])
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore"):
        return gram / np.outer(norms, norms)
