"""Codes as arrays: K bits packed into C = K/8 bytes, bit j is bit j%8 of byte j//8.

Shape suffixes used in the whole project: B batch, V input features, K bits, C bytes (K/8), N rows,
Q queries, M answers, S shards, A candidates.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distindex.errors import InputError

CodeArray = npt.NDArray[np.uint8]


def pack(bit_NK: npt.ArrayLike) -> CodeArray:
    """Pack rows of K zeros and ones (or booleans) into codes `code_NC`.

    Raises:
        InputError: not two-dimensional, or K is not a multiple of 8.
    """
    bits = np.asarray(bit_NK)
    if bits.ndim != 2 or bits.shape[1] % 8:
        raise InputError(f"bits of shape {bits.shape}: expected rows of a multiple of 8 bits")
    return np.packbits(bits.astype(bool), axis=1, bitorder="little")


def unpack(code_NC: CodeArray) -> npt.NDArray[np.uint8]:
    """The bits `bit_NK` of codes, as zeros and ones."""
    return np.unpackbits(np.atleast_2d(code_NC), axis=1, bitorder="little")


def check_codes(codes: npt.ArrayLike, bits: int, what: str = "codes") -> CodeArray:
    """Codes as a contiguous `code_NC`; a single code becomes one row.

    Raises:
        InputError: wrong type, shape or length for codes of `bits` bits.
    """
    array = np.asarray(codes)
    if array.ndim == 1:
        array = array[None, :] if array.size else array.reshape(0, bits // 8)
    if array.dtype != np.uint8 or array.ndim != 2:
        raise InputError(
            f"{what}: expected uint8 rows of {bits // 8} bytes, got {array.dtype} of shape {array.shape}"
        )
    if array.shape[1] * 8 != bits:
        raise InputError(f"{what}: codes of {array.shape[1] * 8} bits, but {bits} bits are expected")
    return np.ascontiguousarray(array)


def from_strings(texts: Sequence[str], bits: int, what: str = "codes") -> CodeArray:
    """Codes from hexadecimal or base64 strings, told apart by their length.

    Raises:
        InputError: a string is neither, naming its position.
    """
    size = bits // 8
    code_NC = np.empty((len(texts), size), np.uint8)
    for row, text in enumerate(texts):
        try:
            # Both are 8 characters for codes of 32 bits; base64 then ends with "=", which no number does.
            is_hex = len(text) == 2 * size and not text.endswith("=")
            data = bytes.fromhex(text) if is_hex else base64.b64decode(text, validate=True)
        except (ValueError, TypeError, AttributeError, binascii.Error) as error:
            raise InputError(f"{what}[{row}]: neither hexadecimal nor base64") from error
        if len(data) != size:
            raise InputError(f"{what}[{row}]: a code of {8 * len(data)} bits, but {bits} bits are expected")
        code_NC[row] = np.frombuffer(data, np.uint8)
    return code_NC


def to_hex(code_NC: CodeArray) -> list[str]:
    return [row.tobytes().hex() for row in np.atleast_2d(code_NC)]


def check_logits(logits: npt.ArrayLike, bits: int, what: str = "logits") -> npt.NDArray[np.float32]:
    """Logits as a contiguous `logit_QK`; the logits of a single query become one row.

    Raises:
        InputError: not numbers, another shape, NaN or infinite, or so large that a sum of their magnitudes is.
    """
    array = np.asarray(logits)
    if array.ndim == 1:
        array = array[None, :] if array.size else array.reshape(0, bits)
    if array.dtype.kind not in "fiu" or array.ndim != 2:
        raise InputError(f"{what}: expected rows of {bits} numbers, got {array.dtype} of shape {array.shape}")
    if array.shape[1] != bits:
        raise InputError(f"{what}: {array.shape[1]} numbers a query, but codes of {bits} bits are expected")
    with np.errstate(over="ignore"):
        logit_QK = np.ascontiguousarray(array, np.float32)
        sum_Q = np.abs(logit_QK).sum(axis=1)
    wrong = np.flatnonzero(~np.isfinite(sum_Q))
    if len(wrong):
        raise InputError(f"{what}[{wrong[0]}]: the numbers must be finite, and their sum too")
    return logit_QK


def hamming(query_QC: CodeArray, code_NC: CodeArray) -> npt.NDArray[np.int32]:
    """All distances `distance_QN` in bits, by XOR and popcount in blocks that stay in cache."""
    query_QW, code_NW = _words(query_QC), _words(code_NC)
    distance_QN = np.empty((len(query_QW), len(code_NW)), np.int32)
    block = max(1, (1 << 18) // max(1, len(query_QW)))
    for start in range(0, len(code_NW), block):
        part = code_NW[start : start + block]
        distance_QN[:, start : start + block] = np.bitwise_count(query_QW[:, None, :] ^ part[None, :, :]).sum(
            axis=2, dtype=np.int32
        )
    return distance_QN


def byte_weights(logit_QK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Tables `weight_QCX` [Q, C, 256]: the sum of |logit| over the bits that a byte of differing bits holds.

    Bit for bit the same for a query whatever other queries stand beside it.
    """
    queries, bits = logit_QK.shape
    magnitude_QCb = np.abs(logit_QK.astype(np.float64)).reshape(queries, bits // 8, 8)
    weight_QCX = np.zeros((queries, bits // 8, 256))
    for bit in range(8):
        size = 1 << bit
        weight_QCX[:, :, size : 2 * size] = weight_QCX[:, :, :size] + magnitude_QCb[:, :, bit, None]
    return weight_QCX


def asymmetric(weight_QCX: npt.NDArray[np.float64], differing_QNC: CodeArray) -> npt.NDArray[np.float32]:
    """Asymmetric distances `score_QN` of real-valued queries from codes; smaller is nearer.

    The distance of code b from logits l is the sum of |l_j| over the bits where b differs from sign(l), which
    is `(sum_j |l_j| - sum_j l_j b_j) / 2` for b in {-1, 1}: it ranks as the inner product of l and b does, and
    is 0 at sign(l). With all |l_j| = 1 it is the Hamming distance.

    Source: Gordo, Perronnin, Gong and Lazebnik, Asymmetric Distances for Binary Embeddings, PAMI 2014.

    Args:
        weight_QCX: `byte_weights` of the logits.
        differing_QNC: each code XOR the query's own code, sign(l).
    """
    queries, size = weight_QCX.shape[:2]
    weights, table_Q1 = weight_QCX.reshape(-1), np.arange(queries)[:, None] * size
    score_QN = np.zeros(differing_QNC.shape[:2])
    # Byte by byte and in float64: the sum of a pair is rounded once, and alike in every block and shard. A matrix
    # product is not, and two shards must not disagree about the order of two rows.
    for byte in range(size):
        score_QN += weights.take((table_Q1 + byte) * 256 + differing_QNC[:, :, byte])
    return score_QN.astype(np.float32)


def _words(code_NC: CodeArray) -> npt.NDArray[np.uint64]:
    rows, size = code_NC.shape
    padded = np.zeros((rows, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = code_NC
    return padded.view(np.uint64)
