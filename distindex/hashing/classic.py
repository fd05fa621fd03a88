"""Classic hashing by one linear map: LSH, PCA-sign, ITQ and SSH. Saved as Hashers, so every tool works on them.

Each is fitted at once, with all rows in memory; sparse rows stay sparse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg
import torch

from distindex.corpus.features import Features
from distindex.errors import InputError
from distindex.hashing.hasher import Hasher

# Up to here a matrix of features by features is cheaper than iterating over the rows for each direction.
_DENSE_WIDTH = 1024
_BLOCK_ROWS = 8192

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
    return _linear("itq", features, x_NV, feature_column, _rotated(x_NV, direction_VK, seed, iterations))


def fit_ssh(
    features: Features,
    x_NV: Matrix,
    label_NC: Matrix,
    feature_column: str,
    bits: int,
    seed: int = 0,
    unlabeled_weight: float = 0.001,
    orthogonality: float = 0.01,
    iterations: int = 50,
) -> Hasher:
    """Semi-supervised hashing: directions of the adjusted covariance, not orthogonal, whose signs are the bits.

    With X centred and M = X_l S X_l' + eta X X' / N it maximises

        tr W' M W - rho / 2 ||W'W - I||^2,  whose solutions are  W = U (I + L / rho)^(1/2) R

    for the first K eigenvectors U and eigenvalues L of M and any rotation R. A strong direction then speaks in
    many bits, where orthogonal directions give it one and the rest to noise: C classes have C - 1 directions
    between them. R is that of iterative quantization (`fit_itq`).

    S_ij is 1 / (2 P) for the P pairs of labeled rows that share a label and -1 / (2 Q) for the Q that do not, so
    that both kinds weigh the same for any number of classes (the source has 1 and -1). Rows with the same set of
    labels have equal rows in S, so that the pair sum needs the sums of X over the sets only, not all pairs.
    Source: Wang, Kumar, Chang, CVPR 2010 (the non-orthogonal solution); the rotation is ours.

    Args:
        features: the fitted feature recipe.
        x_NV: the rows, dense or CSR.
        label_NC: one-hot or multi-hot labels, dense or CSR; a row of zeros is unlabeled.
        feature_column: the column that the hasher reads.
        bits: code length K.
        seed: start of the eigenvector iteration and of the rotation.
        unlabeled_weight: eta.
        orthogonality: rho as a share of the largest eigenvalue of M.
        iterations: steps of the rotation.

    Raises:
        InputError: no row is labeled, or there are fewer rows or dimensions than bits.
    """
    check_classic("ssh", x_NV, label_NC, bits)
    label_NC = scipy.sparse.csr_matrix(label_NC)
    labeled = np.flatnonzero(np.diff(label_NC.indptr))
    set_SC, set_of = np.unique(label_NC[labeled].toarray() > 0, axis=0, return_inverse=True)
    member_SN = scipy.sparse.csr_matrix(
        (np.ones(len(labeled)), (set_of.ravel(), labeled)), shape=(len(set_SC), x_NV.shape[0])
    )
    mean_V, rows_S = _mean(x_NV), np.asarray(member_SN.sum(1))
    sum_SV = _dense(member_SN @ x_NV) - rows_S * mean_V
    similar_SS = set_SC.astype(np.int64) @ set_SC.T > 0
    pairs_SS = rows_S * rows_S.T
    similar, dissimilar = float(pairs_SS[similar_SS].sum()), float(pairs_SS[~similar_SS].sum())
    weight_SS = np.where(similar_SS, 0.5 / similar, -0.5 / max(1.0, dissimilar))

    share = unlabeled_weight / x_NV.shape[0]
    if features.width <= _DENSE_WIDTH:
        matrix_VV = sum_SV.T @ weight_SS @ sum_SV + share * _scatter(x_NV, mean_V)
        value_K, direction_VK = np.linalg.eigh(matrix_VV)
    else:

        def adjusted(w_V: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            projected_N = x_NV @ w_V - mean_V @ w_V
            covariance_V = x_NV.T @ projected_N - mean_V * projected_N.sum()
            return sum_SV.T @ (weight_SS @ (sum_SV @ w_V)) + share * covariance_V

        shape = (features.width, features.width)
        operator = scipy.sparse.linalg.LinearOperator(shape, matvec=adjusted, dtype=np.float64)  # type: ignore[call-arg]
        start_V = np.random.default_rng(seed).standard_normal(features.width)
        value_K, direction_VK = scipy.sparse.linalg.eigsh(operator, bits, which="LA", v0=start_V)
    largest = np.argsort(-value_K)[:bits]
    value_K, direction_VK = value_K[largest], direction_VK[:, largest]
    # A direction along which the pairs disagree more than the rows spread counts as much as one without either.
    strength_K = np.sqrt(1 + np.maximum(value_K, 0) / max(orthogonality * value_K[0], np.finfo(np.float64).tiny))
    return _linear("ssh", features, x_NV, feature_column, _rotated(x_NV, direction_VK * strength_K, seed, iterations))


# Those that need no labels.
CLASSIC = {"lsh": fit_lsh, "pca-sign": fit_pca_sign, "itq": fit_itq}


def fit_classic(
    name: str, features: Features, x_NV: Matrix, label_NC: Matrix, feature_column: str, bits: int, seed: int
) -> Hasher:
    """Fit the method of this name (`method_config.CLOSED_FORM`); only ssh reads the labels.

    Raises:
        InputError: there are fewer rows or dimensions than bits, or no labels where the method needs them.
    """
    if name == "ssh":
        return fit_ssh(features, x_NV, label_NC, feature_column, bits, seed)
    return CLASSIC[name](features, x_NV, feature_column, bits, seed)


def check_classic(name: str, x_NV: Matrix, label_NC: Matrix, bits: int) -> None:
    """Refuse what the method of this name cannot be fitted to.

    Raises:
        InputError: as `fit_classic`.
    """
    if name != "lsh":
        _check_size(x_NV, bits)
    if name == "ssh" and not label_NC.sum():
        raise InputError("method.name: ssh needs labels, and no row is labeled that is not held out for validation")


def _check_size(x_NV: Matrix, bits: int) -> None:
    rows, width = x_NV.shape
    if bits > min(rows, width):
        raise InputError(f"bits: {bits} directions asked of {rows:,} rows in {width:,} dimensions; take fewer bits")


def _rotated(
    x_NV: Matrix, direction_VK: npt.NDArray[np.float64], seed: int, iterations: int
) -> npt.NDArray[np.float64]:
    """The directions, rotated among themselves such that the rows' projections are near their signs."""
    projected_NK = x_NV @ direction_VK - _mean(x_NV) @ direction_VK
    bits = direction_VK.shape[1]
    rotation_KK, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    for _ in range(iterations):
        left, _, right = np.linalg.svd(np.sign(projected_NK @ rotation_KK).T @ projected_NK)
        rotation_KK = (left @ right).T
    return direction_VK @ rotation_KK


def _principal_VK(features: Features, x_NV: Matrix, bits: int, seed: int) -> npt.NDArray[np.float64]:
    # Here, since every process that trains loads this module.
    from sklearn.decomposition import PCA

    _check_size(x_NV, bits)
    solver = "covariance_eigh" if features.width <= _DENSE_WIDTH else "arpack"
    pca = PCA(bits, svd_solver=solver, random_state=seed).fit(x_NV)
    return np.asarray(pca.components_).T


def _scatter(x_NV: Matrix, mean_V: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum over the rows of `(x - mean)' (x - mean)`; a block of rows is dense at a time."""
    scatter_VV = np.zeros((len(mean_V), len(mean_V)))
    for start in range(0, x_NV.shape[0], _BLOCK_ROWS):
        centred_BV = _dense(x_NV[start : start + _BLOCK_ROWS]) - mean_V
        scatter_VV += centred_BV.T @ centred_BV
    return scatter_VV


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
