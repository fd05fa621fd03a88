"""Classic hashing by one linear map: LSH, PCA-sign, ITQ and SSH. Saved as Hashers, so every tool works on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg
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


def fit_ssh(
    features: Features,
    x_NV: Matrix,
    label_NC: Matrix,
    feature_column: str,
    bits: int,
    seed: int = 0,
    unlabeled_weight: float = 0.01,
) -> Hasher:
    """Semi-supervised hashing: the first K eigenvectors of the adjusted covariance, whose signs are the bits.

    Maximises `1/2 tr W' [ X_l S X_l' + eta X X' ] W` over orthogonal W, X centred, with S_ij = 1 where two labeled
    rows share a label and -1 where they do not. Here S is divided by the number of labeled pairs and X X' by the
    number of rows, so that eta, the `unlabeled_weight`, means the same for any share of labels. The rows of S of
    one set of labels are equal, so that the pair sum needs the sums of X over the sets only, not all pairs.
    C classes have C - 1 directions between them; more bits than that fall back to principal components.
    Source: Wang, Kumar, Chang, CVPR 2010 (the orthogonal solution).

    Args:
        features: the fitted feature recipe.
        x_NV: the rows, dense or CSR.
        label_NC: one-hot or multi-hot labels, dense or CSR; a row of zeros is unlabeled.
        feature_column: the column that the hasher reads.
        bits: code length K.
        seed: start of the eigenvector iteration.
        unlabeled_weight: eta.

    Raises:
        InputError: no row is labeled, or there are fewer rows or dimensions than bits.
    """
    if bits > min(x_NV.shape):
        raise InputError(f"bits: {bits} directions asked of {x_NV.shape[0]} rows in {features.width} dimensions")
    label_NC = scipy.sparse.csr_matrix(label_NC)
    labeled = np.flatnonzero(np.diff(label_NC.indptr))
    if not len(labeled):
        raise InputError("ssh: no row is labeled; it needs labels")
    set_SC, set_of = np.unique(label_NC[labeled].toarray() > 0, axis=0, return_inverse=True)
    member_SN = scipy.sparse.csr_matrix(
        (np.ones(len(labeled)), (set_of.ravel(), labeled)), shape=(len(set_SC), x_NV.shape[0])
    )
    mean_V, rows_S = _mean(x_NV), np.asarray(member_SN.sum(1))
    sum_SV = _dense(member_SN @ x_NV) - rows_S * mean_V
    sign_SS = np.where(set_SC.astype(np.int64) @ set_SC.T > 0, 1.0, -1.0) / len(labeled) ** 2

    def adjusted(w_V: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        projected_N = x_NV @ w_V - mean_V @ w_V
        covariance_V = x_NV.T @ projected_N - mean_V * projected_N.sum()
        return sum_SV.T @ (sign_SS @ (sum_SV @ w_V)) + unlabeled_weight / x_NV.shape[0] * covariance_V

    width = features.width
    if width <= 1024:
        matrix_VV = np.stack([adjusted(unit_V) for unit_V in np.eye(width)], axis=1)
        direction_VK = np.linalg.eigh((matrix_VV + matrix_VV.T) / 2)[1][:, -bits:][:, ::-1]
    else:
        operator = scipy.sparse.linalg.LinearOperator((width, width), matvec=adjusted, dtype=np.float64)  # type: ignore[call-arg]
        start_V = np.random.default_rng(seed).standard_normal(width)
        _, direction_VK = scipy.sparse.linalg.eigsh(operator, bits, which="LA", v0=start_V)
    return _linear("ssh", features, x_NV, feature_column, direction_VK)


# Those that need no labels.
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


def _dense(matrix: Matrix) -> npt.NDArray[np.float64]:
    return np.asarray(matrix.toarray() if scipy.sparse.issparse(matrix) else matrix, np.float64)


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
