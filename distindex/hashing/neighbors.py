"""Nearest rows of a corpus by cosine, which a decoder may reconstruct beside the row itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse

MOST_ANCHORS = 20_000
"""Rows among which neighbours are looked for; so the search costs the same for each row of any corpus."""


def nearest_rows(x_NV: np.ndarray | scipy.sparse.csr_matrix, count: int, seed: int) -> npt.NDArray[np.int32]:
    """The `count` nearest other rows `neighbor_NJ` of each row, among `MOST_ANCHORS` random ones of a large corpus.

    Args:
        x_NV: features, dense or CSR, of at least two rows.
        count: neighbours J of each row; fewer where there are fewer rows.
        seed: of the draw.
    """
    # Here, since every worker loads this module and few make neighbours.
    from sklearn.neighbors import NearestNeighbors

    rows = int(x_NV.shape[0])  # type: ignore[index]
    anchors = np.arange(rows, dtype=np.int32)
    if rows > MOST_ANCHORS:
        anchors = np.sort(np.random.default_rng(seed).permutation(anchors)[:MOST_ANCHORS])
    count = min(count, len(anchors) - 1)
    search = NearestNeighbors(n_neighbors=count + 1, metric="cosine", algorithm="brute").fit(x_NV[anchors])  # type: ignore[index]
    near_NJ = anchors[search.kneighbors(x_NV, return_distance=False)]
    other_NJ = near_NJ != np.arange(rows, dtype=np.int32)[:, None]
    # A row that did not find itself has one neighbour more than the others.
    other_NJ[other_NJ.all(axis=1), -1] = False
    return near_NJ[other_NJ].reshape(rows, count)
