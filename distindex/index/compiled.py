"""Machine code for the searchers, compiled by numba once per machine and then read from its cache.

The cache lies beside the sources, or, where these cannot be written, below `NUMBA_CACHE_DIR` or the user's cache
directory. Compiled functions release the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import from_dtype, njit, types
from numba.extending import intrinsic

# A candidate as one number, its distance above its position: numbers then sort as answers do.
POSITION_BITS = 40
POSITION_MASK = (1 << POSITION_BITS) - 1


@intrinsic
def _popcount(typing_context: Any, word: Any) -> Any:
    """The number of ones of an unsigned integer, in its own type; LLVM makes vector instructions of it."""
    return word(word), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def _byte_swap(typing_context: Any, word: Any) -> Any:
    """The same bytes in the other order: words of codes then compare as the bytes of the codes do."""
    return word(word), lambda context, builder, signature, arguments: builder.bswap(arguments[0])


popcount: Callable[[Any], Any] = _popcount  # type: ignore[assignment]
byte_swap: Callable[[Any], Any] = _byte_swap  # type: ignore[assignment]


def array_type(dtype: npt.DTypeLike, dimensions: int, *, readonly: bool = False) -> Any:
    """The type of an array argument; a read-only one may also be mapped at any address."""
    return types.Array(from_dtype(np.dtype(dtype)), dimensions, "C", readonly=readonly, aligned=not readonly)


def each_type(items: int) -> Any:
    """The type of a tuple of so many integers, whose length compiled functions know."""
    return types.UniTuple(types.int64, items)


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for one signature now, or read what an earlier process compiled."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:
            # Nowhere to keep it: each process compiles for itself.
            return njit(signature, nogil=True)(function)

    return decorate


# For what compiled functions call: it becomes a part of them.
part: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(nogil=True, forceinline=True)  # type: ignore[assignment]
