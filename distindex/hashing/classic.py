"""Classic hashing by one linear map: LSH, PCA-sign and ITQ. Saved as Hashers, so every tool works on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA

from distindex.corpus.features import Features
from distindex.errors import InputError
from distindex.hashing.hasher import Hasher

Matrix = Any
"""A dense float32 array or a CSR matrix `x_NV`; type checkers know too little of the latter."""


def fit_lsh(features: Features, x_NV: Matrix, feature_column: str, bits: int, seed: int = 0) -> Hasher:
    """Random hyperplanes through the mean of the data: bit j is `sign((x - mean) . g_j)`, g_j normal.

    Source: Charikar, STOC 2002.
    """
    direction_VK = np.random.default_rng(seed).standard_normal((features.width, bits))
    return _linear("lsh", features, x_NV, feature_column, direction_VK)


def fit_pca_sign(features: Features, x_NV: Matrix, feature_column: str, bits: int, seed: int = 0) -> Hasher:
    """Signs of the first K principal components.

    Raises:
        InputError: there are fewer rows or dimensions than bits.
    """
    return _linear("pca-sign", features, x_NV, feature_column, _principal_VK(features, x_NV, bits, seed))


def fit_itq(
    features: Features, x_NV: Matrix, feature_column: str, bits: int, seed: int = 0, iterations: int = 50
) -> Hasher:
    """Iterative quantization: principal components, rotated to be near their signs.

    Alternates `B = sign(V R)` and `R = argmin ||B - V R||` over rotations (orthogonal Procrustes).
    Source: Gong and Lazebnik, CVPR 2011.

    Raises:
        InputError: there are fewer rows or dimensions than bits.
    """
    direction_VK = _principal_VK(features, x_NV, bits, seed)
    projected_NK = x_NV @ direction_VK - _mean(x_NV) @ direction_VK
    rotation_KK, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    for _ in range(iterations):
        left, _, right = np.linalg.svd(np.sign(projected_NK @ rotation_KK).T @ projected_NK)
        rotation_KK = (left @ right).T
    return _linear("itq", features, x_NV, feature_column, direction_VK @ rotation_KK)


CLASSIC = {"lsh": fit_lsh, "pca-sign": fit_pca_sign, "itq": fit_itq}


def _principal_VK(features: Features, x_NV: Matrix, bits: int, seed: int) -> npt.NDArray[np.float64]:
    most = min(x_NV.shape)
    if bits > most:
        raise InputError(
            f"bits: {bits} principal components asked of {x_NV.shape[0]} rows in {features.width} dimensions"
        )
    solver = "covariance_eigh" if features.width <= 1024 else "arpack"
    pca = PCA(bits, svd_solver=solver, random_state=seed).fit(x_NV)
    return np.asarray(pca.components_).T


def _mean(x_NV: Matrix) -> npt.NDArray[np.float64]:
    return np.asarray(x_NV.mean(axis=0), np.float64).ravel()


def _linear(
    method: str, features: Features, x_NV: Matrix, feature_column: str, direction_VK: npt.NDArray[np.float64]
) -> Hasher:
    bias_K = -(_mean(x_NV) @ direction_VK)
    table = torch.from_numpy(np.ascontiguousarray(direction_VK, np.float32))
    return Hasher(
        method=method,
        bits=direction_VK.shape[1],
        feature_column=feature_column,
        features=features,
        tables=[(table, torch.from_numpy(bias_K.astype(np.float32)))],
    )
