"""How alike two pairs of rows are, whichever row of a pair comes first.

With k a kernel of rows, and pairs x = (x_a, x_b), t = (t_a, t_b):

    sym-linear   K(x, t) = 1/2 [ k(x_a, t_a) k(x_b, t_b) + k(x_a, t_b) k(x_b, t_a) ],   k(h, h') = h.h' / K
    sym-rbf      the same; k(h, h') = exp(-||h - h'||^2 / (2 sigma^2)) by random features, sigma half the median
                 distance
    align-max    K(x, t) = max[ k(x_a, t_a) + k(x_b, t_b), k(x_a, t_b) + k(x_b, t_a) ],   k(h, h') = h.h' / K

align-max is DH-APS to the letter, but not positive. The other two are: with f the features of k, a pair has the
features sym(f_a f_b^T) = (f_a f_b^T + f_b f_a^T) / 2, so the sum of K over any set of pairs is f_a^T W f_b with one
matrix W for the set. For all pairs a < b among some rows W = 1/2 (s s^T - sum_a f_a f_a^T), s = sum_a f_a: sums over
billions of pairs cost a pass over the rows, and no matrix of pairs by pairs is ever made.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from distindex.labeling.pair_loss import FloatArray

Float64Array = npt.NDArray[np.float64]
RowSet = tuple[float, npt.NDArray[np.int64]]
"""A weight, and rows, all pairs of which have that weight in a sum."""

_RBF_FEATURES, _RBF_WIDTH, _MEDIAN_PAIRS = 512, 0.5, 2048
_REFERENCES, _REFERENCE_BLOCK = 2048, 256
_PAIR_BLOCK = 1 << 16
_SUM_BLOCK = 1 << 14


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P pairs of rows: `first_P < second_P`, int32."""

    first_P: npt.NDArray[np.int32]
    second_P: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.first_P)

    def blocks(self) -> Iterator[tuple[slice, Pairs]]:
        """Consecutive pairs, as many as fit into the processor's cache with their rows."""
        for start in range(0, len(self), _PAIR_BLOCK):
            part = slice(start, min(start + _PAIR_BLOCK, len(self)))
            yield part, Pairs(self.first_P[part], self.second_P[part])


class PairKernel(ABC):
    """A kernel of pairs over N rows with features `row_ND` of a kernel of rows.

    Args:
        row_ND: the features.
    """

    def __init__(self, row_ND: FloatArray) -> None:
        self.row_ND = np.ascontiguousarray(row_ND, np.float32)

    @abstractmethod
    def sums(self, sets: Sequence[RowSet], pairs: Pairs) -> Float64Array:
        """For each pair the weighted sum of K between it and all pairs of rows of these sets."""

    @abstractmethod
    def column(self, first: int, second: int, pairs: Pairs) -> FloatArray:
        """K between one pair and each of `pairs`."""

    @abstractmethod
    def diagonal(self, pairs: Pairs) -> Float64Array:
        """K between each pair and itself."""

    def _rows(self, first: int, second: int) -> tuple[FloatArray, FloatArray]:
        return self.row_ND @ self.row_ND[first], self.row_ND @ self.row_ND[second]

    def _inner(self, a_P: npt.NDArray[np.integer], b_P: npt.NDArray[np.integer]) -> Float64Array:
        return np.einsum("pd,pd->p", self.row_ND[a_P], self.row_ND[b_P], dtype=np.float64)


class ProductKernel(PairKernel):
    """sym-linear and sym-rbf."""

    def sums(self, sets: Sequence[RowSet], pairs: Pairs) -> Float64Array:
        weight_DD = np.zeros((self.row_ND.shape[1],) * 2)
        for weight, rows in sets:
            total_D, square_DD = np.zeros(len(weight_DD)), np.zeros_like(weight_DD)
            for start in range(0, len(rows), _SUM_BLOCK):
                row_MD = self.row_ND[rows[start : start + _SUM_BLOCK]].astype(np.float64)
                total_D += row_MD.sum(0)
                square_DD += row_MD.T @ row_MD
            weight_DD += weight / 2 * (np.outer(total_D, total_D) - square_DD)
        return self._against(weight_DD, pairs)

    def mixture(self, alpha_P: Float64Array, pairs: Pairs) -> Float64Array:
        """`K alpha`: for each pair the sum of K between it and all of them, with these weights, most of them 0."""
        used = np.flatnonzero(alpha_P)
        first_QD, second_QD = self.row_ND[pairs.first_P[used]], self.row_ND[pairs.second_P[used]]
        half_DD = (alpha_P[used, None] * first_QD).T @ second_QD.astype(np.float64)
        # Single precision does for sums over as few pairs as are chosen.
        return self._against(((half_DD + half_DD.T) / 2).astype(np.float32), pairs)

    def column(self, first: int, second: int, pairs: Pairs) -> FloatArray:
        a_N, b_N = self._rows(first, second)
        return (a_N[pairs.first_P] * b_N[pairs.second_P] + a_N[pairs.second_P] * b_N[pairs.first_P]) / 2

    def diagonal(self, pairs: Pairs) -> Float64Array:
        diagonal_P = np.empty(len(pairs))
        for part, block in pairs.blocks():
            a_P, b_P = block.first_P, block.second_P
            diagonal_P[part] = (self._inner(a_P, a_P) * self._inner(b_P, b_P) + self._inner(a_P, b_P) ** 2) / 2
        return diagonal_P

    def _against(self, weight_DD: FloatArray, pairs: Pairs) -> Float64Array:
        """`f_a^T W f_b` of each pair, in the precision of W."""
        weighted_ND = np.empty(self.row_ND.shape, weight_DD.dtype)
        for start in range(0, len(self.row_ND), _SUM_BLOCK):
            weighted_ND[start : start + _SUM_BLOCK] = self.row_ND[start : start + _SUM_BLOCK] @ weight_DD
        sum_P = np.empty(len(pairs))
        for part, block in pairs.blocks():
            sum_P[part] = np.einsum("pd,pd->p", weighted_ND[block.first_P], self.row_ND[block.second_P])
        return sum_P


class AlignMaxKernel(PairKernel):
    """align-max. A sum over more than 2048 pairs is estimated from so many of them, drawn at random.

    Args:
        row_ND: the features.
        seed: of these draws.
    """

    def __init__(self, row_ND: FloatArray, seed: int) -> None:
        super().__init__(row_ND)
        self._seed = seed

    def sums(self, sets: Sequence[RowSet], pairs: Pairs) -> Float64Array:
        sum_P = np.zeros(len(pairs))
        for number, (weight, rows) in enumerate(sets):
            count = len(rows) * (len(rows) - 1) // 2
            references = _draw_pairs(rows, np.random.default_rng([self._seed, number]))
            if weight and count:
                sum_P += weight * count / len(references) * self._sum(references, pairs)
        return sum_P

    def _sum(self, references: Pairs, pairs: Pairs) -> Float64Array:
        sum_P = np.zeros(len(pairs))
        for start in range(0, len(references), _REFERENCE_BLOCK):
            chosen = slice(start, start + _REFERENCE_BLOCK)
            a_NR = self.row_ND @ self.row_ND[references.first_P[chosen]].T
            b_NR = self.row_ND @ self.row_ND[references.second_P[chosen]].T
            for part, block in pairs.blocks():
                first_P, second_P = block.first_P, block.second_P
                straight_PR = a_NR[first_P] + b_NR[second_P]
                sum_P[part] += np.maximum(straight_PR, a_NR[second_P] + b_NR[first_P]).sum(1, dtype=np.float64)
        return sum_P

    def column(self, first: int, second: int, pairs: Pairs) -> FloatArray:
        a_N, b_N = self._rows(first, second)
        return np.maximum(
            a_N[pairs.first_P] + b_N[pairs.second_P],
            a_N[pairs.second_P] + b_N[pairs.first_P],
        )

    def diagonal(self, pairs: Pairs) -> Float64Array:
        diagonal_P = np.empty(len(pairs))
        for part, block in pairs.blocks():
            a_P, b_P = block.first_P, block.second_P
            straight_P = self._inner(a_P, a_P) + self._inner(b_P, b_P)
            diagonal_P[part] = np.maximum(straight_P, 2 * self._inner(a_P, b_P))
        return diagonal_P


def make_kernel(name: str, code_NK: FloatArray, seed: int) -> PairKernel:
    """The kernel of this name over rows with these relaxed codes.

    Args:
        name: sym-linear, sym-rbf or align-max.
        code_NK: relaxed codes.
        seed: of the random features of sym-rbf, and of what align-max estimates sums from.
    """
    if name == "sym-rbf":
        # Here, since importing scikit-learn takes as long as torch.
        from sklearn.kernel_approximation import RBFSampler

        drawn = _draw_pairs(np.arange(len(code_NK)), np.random.default_rng(seed), _MEDIAN_PAIRS)
        square_P = ((code_NK[drawn.first_P] - code_NK[drawn.second_P]) ** 2).sum(1)
        median = float(np.median(square_P)) or 1.0
        sampler = RBFSampler(gamma=1 / (2 * _RBF_WIDTH**2 * median), n_components=_RBF_FEATURES, random_state=seed)
        return ProductKernel(sampler.fit_transform(code_NK))
    row_ND = code_NK / np.sqrt(code_NK.shape[1])
    return ProductKernel(row_ND) if name == "sym-linear" else AlignMaxKernel(row_ND, seed)


def _draw_pairs(rows: npt.NDArray[np.int64], random: np.random.Generator, count: int = _REFERENCES) -> Pairs:
    """All pairs of some rows, or as many of them as are asked for, drawn with replacement."""
    if len(rows) * (len(rows) - 1) // 2 <= count:
        first, second = np.triu_indices(len(rows), 1)
    else:
        first = random.integers(0, len(rows), count)
        second = (first + random.integers(1, len(rows), count)) % len(rows)
    a_P, b_P = rows[first], rows[second]
    return Pairs(np.minimum(a_P, b_P).astype(np.int32), np.maximum(a_P, b_P).astype(np.int32))
