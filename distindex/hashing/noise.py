"""Noise that depends on (seed, step, row of the global batch, column) and on nothing else.

A counter-based generator: every number is a hash of where it is used. So the noise of a row is the same
whichever worker holds it, on CPU and GPU, and after a resume, with no generator state to save.
The mixing function is splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask clears the copies of the sign bit.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


_GOLDEN_U, _FIRST_U, _SECOND_U = (np.uint64(value & _MASK) for value in (_GOLDEN, _FIRST, _SECOND))
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@numba.njit(nogil=True, cache=True)
def _mix_number(x: np.uint64) -> np.uint64:
    x = x + _GOLDEN_U
    x = (x ^ (x >> _30)) * _FIRST_U
    x = (x ^ (x >> _27)) * _SECOND_U
    return x ^ (x >> _31)


@numba.njit(nogil=True, cache=True)
def _grid_of_hashes(key: int, row_B: npt.NDArray[np.int64], columns: int) -> npt.NDArray[np.int64]:
    hash_BX = np.empty((len(row_B), columns), np.int64)
    for place in range(len(row_B)):
        row = _mix_number(np.uint64(row_B[place] ^ key))
        for column in range(columns):
            hash_BX[place, column] = np.int64(_mix_number(row ^ np.uint64(column)))
    return hash_BX


@numba.njit(nogil=True, cache=True)
def _list_of_hashes(key: int, row_M: npt.NDArray[np.int64], column_M: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    hash_M = np.empty(len(row_M), np.int64)
    for place in range(len(row_M)):
        row = _mix_number(np.uint64(row_M[place] ^ key))
        hash_M[place] = np.int64(_mix_number(row ^ np.uint64(column_M[place])))
    return hash_M


def key_of(*parts: int) -> int:
    """One 64-bit key from a seed, a step and whatever else tells streams of noise apart."""
    # In Python's own numbers: a step needs half a dozen keys, and torch takes 20 us for each part of one.
    key = 0
    for part in parts:
        key = ((key ^ part) + _GOLDEN) & _MASK
        key = ((key ^ (key >> 30)) * _FIRST) & _MASK
        key = ((key ^ (key >> 27)) * _SECOND) & _MASK
        key ^= key >> 31
    return _signed(key)


def hashes(key: int, row_B: Tensor, columns: int) -> Tensor:
    """64 random bits for each of the given rows and each column, int64 `[B, columns]`."""
    if row_B.device.type == "cpu":
        # A step on a CPU draws small tables: torch spends more on starting its operations than on their work.
        return torch.from_numpy(_grid_of_hashes(key, row_B.numpy(), columns))
    return _mix(_mix(row_B.to(torch.int64) ^ key)[:, None] ^ torch.arange(columns, device=row_B.device))


def uniform_at(key: int, row_M: Tensor, column_M: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) at single (row, column) positions, of shape `[M]`."""
    if row_M.device.type == "cpu":
        return _uniform_of(torch.from_numpy(_list_of_hashes(key, row_M.numpy(), column_M.numpy())))
    return _uniform_of(_mix(_mix(row_M.to(torch.int64) ^ key) ^ column_M.to(torch.int64)))


def uniform(key: int, row_B: Tensor, columns: int) -> Tensor:
    """Uniform numbers in (0, 1) of shape `[B, columns]` for the given rows of the global batch."""
    return _uniform_of(hashes(key, row_B, columns))


def _uniform_of(hash_X: Tensor) -> Tensor:
    return (_shift(hash_X, 40).to(torch.float32) + 0.5) * (1.0 / (1 << 24))


def logistic(key: int, row_B: Tensor, columns: int) -> Tensor:
    """Logistic noise `log u - log(1 - u)` of shape `[B, columns]`, 1e-7 inside the logarithms."""
    u = uniform(key, row_B, columns)
    return torch.log(u + 1e-7) - torch.log(1 - u + 1e-7)


def normal(key: int, row_B: Tensor, columns: int) -> Tensor:
    """Standard normal noise of shape `[B, columns]`, by the inverse of the distribution function."""
    return torch.special.ndtri(uniform(key, row_B, columns))


def dropout(x_BU: Tensor, share: float, key: int, row_B: Tensor) -> Tensor:
    """Set a share of the entries, to the nearest 1/65536, to zero and scale up the others."""
    if share == 0:
        return x_BU
    units = x_BU.shape[1]
    # Each 64-bit hash decides four columns: hashing costs more than the layer that is dropped from.
    lanes = hashes(key, row_B, -(-units // 4)).view(torch.int16)[:, :units]
    keep_BU = (lanes >= round(share * 65536) - 32768).to(x_BU.dtype)
    return x_BU * keep_BU.mul_(1 / (1 - share))
