"""Nearest rows against sorting all cosines, and what the decoder is given of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from distindex.config import CorpusConfig, MethodConfig, TrainConfig, ValidationConfig
from distindex.hashing import neighbors
from distindex.hashing.batch import SparseRows
from distindex.hashing.distributed import share_of
from distindex.training.data import read_training_set


def _rows(rows: int) -> np.ndarray:
    random = np.random.default_rng(rows)
    return (random.random((rows, 30)) * (random.random((rows, 30)) < 0.4) + 1e-3).astype(np.float32)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("rows", "count"), [(40, 5), (4, 10), (2, 1)])
def test_the_nearest_rows_are_those_of_the_largest_cosines(sparse: bool, rows: int, count: int) -> None:
    x_NV: Any = _rows(rows)
    unit_NV = x_NV / np.linalg.norm(x_NV, axis=1, keepdims=True)
    cosine_NN = unit_NV @ unit_NV.T
    np.fill_diagonal(cosine_NN, -2)
    expected = np.argsort(-cosine_NN, axis=1)[:, : min(count, rows - 1)]
    found = neighbors.nearest_rows(scipy.sparse.csr_matrix(x_NV) if sparse else x_NV, count, seed=0)
    assert [set(row) for row in found.tolist()] == [set(row) for row in expected.tolist()]


def test_equal_rows_are_neighbours_of_each_other_and_none_of_itself() -> None:
    found = neighbors.nearest_rows(np.repeat(_rows(3), 4, axis=0), 3, seed=0)
    for row, near in enumerate(found.tolist()):
        assert set(near) == set(range(row // 4 * 4, row // 4 * 4 + 4)) - {row}


def test_a_large_corpus_is_searched_among_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "MOST_ANCHORS", 10)
    found = neighbors.nearest_rows(_rows(50), 4, seed=1)
    assert found.shape == (50, 4)
    assert len(np.unique(found)) <= 10
    assert not (found == np.arange(50)[:, None]).any()


def test_the_decoder_is_given_the_row_and_one_of_its_nearest_rows(tmp_path: Path) -> None:
    words = [f"word{letter}" for letter in "abcdefgh"]
    texts = [" ".join(words[(i + j) % 8] for j in range(3)) for i in range(8)] * 2
    pq.write_table(pa.table({"id": range(16), "text": texts}), tmp_path / "corpus.parquet")
    config = TrainConfig(
        CorpusConfig(str(tmp_path / "corpus.parquet"), "text"),
        str(tmp_path / "hasher"),
        method=MethodConfig(neighbor_share=0.25, neighbors=2),
        validation=ValidationConfig(fraction=0),
    )
    data = read_training_set(config)
    assert data.neighbor_NJ is not None
    target_NV = data.target_NV.toarray()  # type: ignore[union-attr]
    row_G = np.arange(16)[::-1].copy()

    def targets(workers: int) -> np.ndarray:
        parts = []
        for rank in range(workers):
            rows = data.batch(row_G, *share_of(rank, workers, 16), key=7).target_BV
            assert isinstance(rows, SparseRows)
            arrays = (rows.value_M.numpy(), rows.column_M.numpy(), rows.offset_B1.numpy())
            parts.append(scipy.sparse.csr_matrix(arrays, shape=(len(rows), rows.width)).toarray())
        return np.concatenate(parts)

    found = targets(1)
    np.testing.assert_array_equal(found, targets(3))
    for row, target in zip(row_G, found, strict=True):
        mixed = [0.75 * target_NV[row] + 0.25 * target_NV[near] for near in data.neighbor_NJ[row]]
        assert any(np.allclose(target, one, atol=1e-6) for one in mixed)
