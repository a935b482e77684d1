"""The cheapest non-negative solution of linear equations, by the simplex method."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TINY = 1e-9


def solve(costs: Array, matrix: Array, values: Array, penalties: Array) -> Array:
    """x >= 0 with matrix @ x = values that makes costs @ x least.

    Where no x satisfies every equation, each unit by which one is missed costs its penalty.

    Args:
        costs: [n], at least 0.
        matrix: [m, n].
        values: [m], at least 0.
        penalties: [m], far above what any x that satisfies the equations costs.

    Returns:
        x [n].
    """
    m, n = matrix.shape
    # Columns: x, what is missing of each equation, what is too much. The basis begins with
    # what is missing.
    table = np.hstack([matrix, np.eye(m), -np.eye(m), values[:, None]])
    weights = np.concatenate([costs, penalties, penalties, [0.0]])
    basis = np.arange(n, n + m)
    reduced = weights - penalties @ table
    while True:
        # Bland's rule, the first that helps, never goes in circles.
        better = np.flatnonzero(reduced[:-1] < -TINY * penalties.max())
        if not len(better):
            break
        enters = better[0]
        column = table[:, enters]
        rows = np.flatnonzero(column > TINY)
        ratios = table[rows, -1] / column[rows]
        ties = rows[ratios <= ratios.min() + TINY]
        leaves = ties[np.argmin(basis[ties])]
        table[leaves] /= table[leaves, enters]
        others = np.arange(m) != leaves
        table[others] -= np.outer(table[others, enters], table[leaves])
        reduced -= reduced[enters] * table[leaves]
        basis[leaves] = enters
    x = np.zeros(n + 2 * m)
    x[basis] = table[:, -1]
    return x[:n]
