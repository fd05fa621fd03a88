"""Nearest rows of a corpus by cosine, which a decoder may reconstruct beside the row itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse

MOST_ANCHORS = 20_000
"""Rows among which neighbours are looked for; so the search costs the same for each row of any corpus."""


class Anchors:
    """Rows among which the neighbours of any rows of their corpus are looked for.

    Args:
        x_AV: features of the anchors, dense or CSR, of at least two rows.
        row_A: their numbers in the corpus.
        count: neighbours J of each row; fewer where there are fewer anchors.
    """

    def __init__(
        self, x_AV: np.ndarray | scipy.sparse.csr_matrix, row_A: npt.NDArray[np.integer], count: int
    ) -> None:
        # Here, since every worker loads this module and few make neighbours.
        from sklearn.neighbors import NearestNeighbors

        self._row_A, self._count = row_A, min(count, len(row_A) - 1)
        self._search = NearestNeighbors(n_neighbors=self._count + 1, metric="cosine", algorithm="brute").fit(x_AV)

    def nearest(
        self, x_BV: np.ndarray | scipy.sparse.csr_matrix, row_B: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int32]:
        """The places `near_BJ`, among the anchors, of the nearest ones of each row other than itself.

        Args:
            x_BV: features of the rows.
            row_B: their numbers in the corpus.
        """
        near_BJ = self._search.kneighbors(x_BV, return_distance=False)
        other_BJ = self._row_A[near_BJ] != row_B[:, None]
        # A row that did not find itself has one neighbour more than the others.
        other_BJ[other_BJ.all(axis=1), -1] = False
        return near_BJ[other_BJ].reshape(len(row_B), self._count).astype(np.int32)


def anchor_rows(rows: int, seed: int, most: int) -> npt.NDArray[np.int32]:
    """All rows of a corpus, or `most` random ones of a large one, ascending."""
    chosen = np.arange(rows, dtype=np.int32)
    return chosen if rows <= most else np.sort(np.random.default_rng(seed).permutation(chosen)[:most])


def nearest_rows(x_NV: np.ndarray | scipy.sparse.csr_matrix, count: int, seed: int) -> npt.NDArray[np.int32]:
    """The `count` nearest other rows `neighbor_NJ` of each row, among `MOST_ANCHORS` random ones of a large corpus.

    Args:
        x_NV: features, dense or CSR, of at least two rows.
        count: neighbours J of each row; fewer where there are fewer rows.
        seed: of the draw.
    """
    rows = int(x_NV.shape[0])  # type: ignore[index]
    anchors = anchor_rows(rows, seed, MOST_ANCHORS)
    return anchors[Anchors(x_NV[anchors], anchors, count).nearest(x_NV, np.arange(rows))]  # type: ignore[index]
