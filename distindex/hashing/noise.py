"""Noise that depends on (seed, step, row of the global batch, column) and on nothing else.

A counter-based generator: every number is a hash of where it is used. So the noise of a row is the same
whichever worker holds it, on CPU and GPU, and after a resume, with no generator state to save.
The mixing function is splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

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


def uniform_at(key: int, row_M: Tensor, column_M: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) at single (row, column) positions; the shapes broadcast."""
    mixed = _mix(_mix(row_M.to(torch.int64) ^ key) ^ column_M.to(torch.int64))
    return (_shift(mixed, 40).to(torch.float32) + 0.5) * (1.0 / (1 << 24))


def uniform(key: int, row_B: Tensor, columns: int) -> Tensor:
    """Uniform numbers in (0, 1) of shape `[B, columns]` for the given rows of the global batch."""
    column = torch.arange(columns, device=row_B.device)
    return uniform_at(key, row_B[:, None], column[None, :])


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
    lane = torch.arange(-(-units // 4), device=row_B.device)
    mixed = _mix(_mix(row_B.to(torch.int64)[:, None] ^ key) ^ lane[None, :])
    keep = mixed.view(torch.int16)[:, :units] >= round(share * 65536) - 32768
    return x_BU * keep * (1 / (1 - share))
