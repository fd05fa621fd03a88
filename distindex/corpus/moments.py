"""Mean and deviation of each dimension of vectors that come in pieces, in any number of places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Moments:
    """Means and sums of squared deviations, merged without cancellation (Chan et al. 1979).

    Attributes:
        rows: vectors seen.
        width: dimensions V; None before the first piece.
        mean_V: float64, their mean.
        square_V: float64, sum of squared deviations from it.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.width: int | None = None
        self.mean_V, self.square_V = np.zeros(0), np.zeros(0)

    def add(self, x_NV: npt.NDArray[np.float32]) -> None:
        """Take vectors into account."""
        piece = Moments()
        piece.rows, piece.width = x_NV.shape
        wide_NV = x_NV.astype(np.float64)
        piece.mean_V = wide_NV.mean(axis=0)
        piece.square_V = ((wide_NV - piece.mean_V) ** 2).sum(axis=0)
        self.merge(piece)

    def merge(self, other: Moments) -> None:
        """Take into account the vectors that another has seen; of the same width."""
        if not other.rows:
            return
        if self.width is None:
            self.width = other.width
            self.mean_V, self.square_V = np.zeros(other.width or 0), np.zeros(other.width or 0)
        rows = self.rows + other.rows
        difference_V = other.mean_V - self.mean_V
        self.square_V = self.square_V + other.square_V + difference_V**2 * (self.rows * other.rows / rows)
        self.mean_V = self.mean_V + difference_V * (other.rows / rows)
        self.rows = rows

    def mean_and_deviation(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """`mean_V` and `deviation_V`, float32; 1 for a constant dimension."""
        variance_V = self.square_V / self.rows
        # What rounding leaves of a constant dimension is noise: dividing by it would make it the loudest one.
        noise_V = (np.finfo(np.float64).eps * self.rows * np.abs(self.mean_V)) ** 2
        deviation_V = np.where(variance_V <= noise_V, 1.0, np.sqrt(variance_V)).astype(np.float32)
        deviation_V[deviation_V == 0] = 1
        return self.mean_V.astype(np.float32), deviation_V
