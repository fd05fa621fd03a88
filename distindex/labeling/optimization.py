"""The rows of the pairs that make the acquisition small: pairs one by one, or all at once and rounded.

The budget counts rows, since labels are given to rows: a pair may bring two new ones, or one. A pair whose rows are
both labeled or chosen tells nothing new.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distindex.labeling.acquisition import Objective
from distindex.labeling.kernels import Float64Array, PairKernel, Pairs, ProductKernel

_STEPS = 60
_GAP = 1e-4


class Choice:
    """Rows chosen so far, in the order of their choice.

    Args:
        labeled_N: the rows that have labels.
        budget: rows to choose.
    """

    def __init__(self, labeled_N: npt.NDArray[np.bool_], budget: int) -> None:
        self._known_N = labeled_N.copy()
        self.rows: list[int] = []
        self.budget = budget

    @property
    def left(self) -> int:
        return self.budget - len(self.rows)

    def allowed(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """The pairs that bring a new row, and not more of them than are left to choose."""
        first_P, second_P = self._known_N[pairs.first_P], self._known_N[pairs.second_P]
        return ~(first_P & second_P) if self.left > 1 else first_P ^ second_P

    def take(self, first: int, second: int) -> None:
        """Choose the rows of a pair that are new, as far as the budget goes."""
        for row in (first, second):
            if self.left and not self._known_N[row]:
                self._known_N[row] = True
                self.rows.append(row)


def greedy(wanted: Objective, kernel: PairKernel, pairs: Pairs, choice: Choice) -> npt.NDArray[np.int64]:
    """Choose the pair that adds least to the objective, again and again; the candidates in the order of choice.

    Ends when the budget is spent or no candidate brings a new row. Ties go to the first candidate.
    """
    cost_P = wanted.linear_P + wanted.curvature / 2 * wanted.own_P
    chosen: list[int] = []
    while choice.left:
        allowed_P = choice.allowed(pairs)
        best = int(np.where(allowed_P, cost_P, np.inf).argmin()) if len(cost_P) else 0
        if not allowed_P.any():
            break
        first, second = int(pairs.first_P[best]), int(pairs.second_P[best])
        choice.take(first, second)
        chosen.append(best)
        if wanted.curvature and choice.left:
            cost_P += wanted.curvature * kernel.column(first, second, pairs)
    return np.array(chosen, np.int64)


def relaxed(
    wanted: Objective, kernel: ProductKernel, pairs: Pairs, choice: Choice, queried: int
) -> npt.NDArray[np.int64]:
    """Weigh all pairs, `0 <= alpha <= 1` with sum `queried`, then choose them by their weights.

    Ends as `greedy`. Ties in weight go to the pair with the smaller gradient, then to the first.
    """
    alpha_P, gradient_P, _ = weigh(wanted, kernel, pairs, queried)
    chosen: list[int] = []
    for pair in np.lexsort((gradient_P, -alpha_P)):
        if not choice.left:
            break
        one = Pairs(pairs.first_P[pair : pair + 1], pairs.second_P[pair : pair + 1])
        if choice.allowed(one)[0]:
            choice.take(int(one.first_P[0]), int(one.second_P[0]))
            chosen.append(int(pair))
    return np.array(chosen, np.int64)


def weigh(
    wanted: Objective, kernel: ProductKernel, pairs: Pairs, queried: int
) -> tuple[Float64Array, Float64Array, float]:
    """The weights `alpha_P`, the gradient there, and by how much the objective may be above its minimum at most.

    Frank-Wolfe (Jaggi, ICML 2013) with exact line search: each step needs one pass over the pairs, and its gap bounds
    the error.
    """
    queried = min(queried, len(pairs))
    alpha_P = _corner(wanted.linear_P + wanted.curvature / 2 * wanted.own_P, queried)
    similar_P = kernel.mixture(alpha_P, pairs)
    for _ in range(_STEPS):
        gradient_P = wanted.linear_P + wanted.curvature * similar_P
        corner_P = _corner(gradient_P, queried)
        towards_P = corner_P - alpha_P
        gap = float(-gradient_P @ towards_P)
        value = float(wanted.linear_P @ alpha_P + wanted.curvature / 2 * similar_P @ alpha_P)
        if gap <= _GAP * max(1.0, abs(value)):
            break
        change_P = kernel.mixture(corner_P, pairs) - similar_P
        bend = wanted.curvature * float(towards_P @ change_P)
        step = min(1.0, gap / bend) if bend > 0 else 1.0
        alpha_P = alpha_P + step * towards_P
        similar_P = similar_P + step * change_P
    gradient_P = wanted.linear_P + wanted.curvature * similar_P
    return alpha_P, gradient_P, float(gradient_P @ (alpha_P - _corner(gradient_P, queried)))


def _corner(cost_P: Float64Array, queried: int) -> Float64Array:
    """Weight 1 for the cheapest pairs; of equal ones the first."""
    corner_P = np.zeros(len(cost_P))
    corner_P[np.argsort(cost_P, kind="stable")[:queried]] = 1.0
    return corner_P
