"""Figures on real data that an independent implementation measured: sentence embeddings of web snippets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from distindex.codes import pack
from distindex.evaluation import compare_methods

# Precision@100 as its expectation under random ties: 2,280 queries, 10,060 rows, 384 dimensions.
MEASURED = {"sign": 0.573, "centred sign": 0.593, "PCA-sign 16": 0.452, "PCA-sign 64": 0.389, "float cosine": 0.638}


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pyarrow.parquet.read_table(path)
    x_NV = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    return x_NV, np.array(table["label"].to_pylist())


def test_precision_of_unsupervised_codes_is_the_measured_one(shared_data: Path) -> None:
    folder = shared_data / "web_snippets_minilm"
    x_QV, name_Q = read(folder / "test.parquet")
    x_NV, name_N = read(folder / "train.parquet")
    names = np.unique(name_N)
    label_Q, label_N = np.searchsorted(names, name_Q), np.searchsorted(names, name_N)
    mean_V = x_NV.mean(axis=0)
    component_VV = np.linalg.eigh(np.cov(x_NV, rowvar=False))[1][:, ::-1]

    def codes(projection_VK: np.ndarray, center_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return pack((x_QV - center_V) @ projection_VK > 0), pack((x_NV - center_V) @ projection_VK > 0)

    identity_VV = np.eye(384, dtype=np.float32)
    results = compare_methods(
        {
            "sign": codes(identity_VV, np.zeros(384, np.float32)),
            "centred sign": codes(identity_VV, mean_V),
            "PCA-sign 16": codes(component_VV[:, :16], mean_V),
            "PCA-sign 64": codes(component_VV[:, :64], mean_V),
        },
        lambda start, stop: label_Q[start:stop, None] == label_N[None],
        ks=(100,),
        cosine=(x_QV, x_NV),
        reference=False,
    )
    for result in results:
        assert result.metrics.precision[100] == pytest.approx(MEASURED[result.method], abs=0.0015), result.method
