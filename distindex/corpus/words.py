"""Counts of the words that a vocabulary knows, read from the bytes of a text.

scikit-learn makes a Python string of every word before it looks for it, which took a large part of the time of
encoding texts. Here a word is read character by character in lower case and found by its hash. Texts with one of the
few characters whose lower case is no single one, lists of tokens, and terms of several words go the long way, to the
same counts.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from distindex.config import TextConfig
from distindex.corpus import text
from distindex.corpus.rows import Column, chunks, is_list

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]
Values = npt.NDArray[np.float32]
Counted = tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]

# Characters beyond these are rare ideographs.
_CHARACTERS = 0x20000
_LONG_WAY, _DIGIT, _SPACE = -1, 1 << 20, ord(" ")
_BASIS, _PRIME, _HALF = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3), np.uint64(32)


class Table(NamedTuple):
    """Terms by their hash, in slots of open addressing.

    Attributes:
        term_S: the term of each slot, or -1.
        byte_M: the terms' bytes, one after the other.
        offset_T1: where each term begins, and the end.
    """

    term_S: Numbers
    byte_M: Bytes
    offset_T1: Places

    @classmethod
    def of(cls, terms: list[str]) -> Table:
        written = [term.encode() for term in terms]
        offset_T1 = np.cumsum([0, *map(len, written)], dtype=np.int64)
        # At least half of the slots are empty.
        term_S = np.full(1 << (2 * len(terms)).bit_length(), -1, np.int32)
        table = cls(term_S, np.frombuffer(b"".join(written), np.uint8).copy(), offset_T1)
        _fill(table)
        return table


class WordCounter:
    """Counts known words and known runs of characters.

    Args:
        words: the words, or runs of words.
        grams: the runs of characters within words.
        config: how texts become words.
    """

    def __init__(self, words: list[str], grams: list[str], config: TextConfig) -> None:
        self.words, self.grams, self.config = words, grams, config
        self._tables = Table.of(words), Table.of(grams), Table.of(text.stop_words(config))

    def count(self, column: Column) -> Counted:
        """How often each word, and each run of characters, stands in each row; float32 CSR with sorted indices."""
        if is_list(column.type) or self.config.ngrams > 1 or not len(column):
            return self._the_long_way(column)
        parts = [self._count_chunk(pc.cast(chunk, pa.large_string())) for _, chunk in chunks(column) if len(chunk)]
        return _stacked([words for words, _ in parts]), _stacked([grams for _, grams in parts])

    def _count_chunk(self, chunk: pa.LargeStringArray) -> Counted:
        _, offsets, data = chunk.buffers()
        offset_N1 = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        byte_M = np.frombuffer(data or b"", np.uint8)
        byte_M.flags.writeable = offset_N1.flags.writeable = False
        lower_C = _lower_case()
        long_N = _long_way(byte_M, offset_N1, lower_C)
        shortest, length = max(1, self.config.minimum_length), self.config.character_ngrams
        counted = _count(byte_M, offset_N1, long_N, lower_C, *self._tables, shortest, length)
        found = [
            scipy.sparse.csr_matrix((count_M, term_M, start_N1), (len(chunk), len(terms)))
            for (count_M, term_M, start_N1), terms in zip(counted, (self.words, self.grams), strict=True)
        ]
        if long_N.any():
            row_N = np.argsort(np.concatenate([np.flatnonzero(~long_N), np.flatnonzero(long_N)]))
            others = self._the_long_way(chunk.filter(pa.array(long_N)))
            found = [_stacked([some[~long_N], other])[row_N] for some, other in zip(found, others, strict=True)]
        return found[0], found[1]

    def _the_long_way(self, column: Column) -> Counted:
        words = text.count_terms(column, self.words, self.config)
        if not self.grams:
            return words, scipy.sparse.csr_matrix((len(column), 0), dtype=np.float32)
        return words, text.count_grams(column, self.grams, self.config)


def _stacked(parts: list[scipy.sparse.csr_matrix]) -> scipy.sparse.csr_matrix:
    return parts[0] if len(parts) == 1 else scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, format="csr"))


@functools.cache
def _lower_case() -> Numbers:
    """Of each character the lower case, marked where it is a digit; 0 for what is part of no word."""
    word, digit = re.compile(r"\w"), re.compile(r"\d")
    lower_C = np.zeros(_CHARACTERS, np.int32)
    for number in range(_CHARACTERS):
        lower = chr(number).lower()
        # The lower case of a capital sigma depends on where it stands.
        if len(lower) > 1 or number == ord("Σ"):
            lower_C[number] = _LONG_WAY
        elif word.match(lower):
            lower_C[number] = ord(lower) | (_DIGIT if digit.match(lower) else 0)
    return lower_C


@numba.njit(nogil=True, cache=True)
def _character(byte_M: Bytes, place: int, stop: int) -> tuple[np.int64, int]:
    """The character that begins there and its bytes; 0 bytes where there is none."""
    first = np.int64(byte_M[place])
    if first < 0x80:
        return first, 1
    size = 2 if 0xC0 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4 if 0xF0 <= first < 0xF8 else 0
    if not size or place + size > stop:
        return np.int64(0), 0
    number = first & (0xFF >> (size + 1))
    for following in range(place + 1, place + size):
        if byte_M[following] & 0xC0 != 0x80:
            return np.int64(0), 0
        number = (number << 6) | (np.int64(byte_M[following]) & 0x3F)
    return number, size


@numba.njit(nogil=True, cache=True)
def _write(byte_M: Bytes, place: int, number: int) -> int:
    """Write a character there; where the next one goes."""
    if number < 0x80:
        byte_M[place] = number
        return place + 1
    size = 2 if number < 0x800 else 3 if number < 0x10000 else 4
    for following in range(place + size - 1, place, -1):
        byte_M[following] = 0x80 | (number & 0x3F)
        number >>= 6
    byte_M[place] = ((0xF00 >> size) & 0xFF) | number
    return place + size


@numba.njit(nogil=True, cache=True)
def _long_way(byte_M: Bytes, offset_N1: Places, lower_C: Numbers) -> npt.NDArray[np.bool_]:
    """Rows with a character that only Python knows in lower case, or that is none."""
    long_N = np.zeros(len(offset_N1) - 1, np.bool_)
    for row in range(len(long_N)):
        place, stop = offset_N1[row], offset_N1[row + 1]
        while place < stop and not long_N[row]:
            if byte_M[place] < 0x80:
                place += 1
                continue
            number, size = _character(byte_M, place, stop)
            long_N[row] = not size or number >= _CHARACTERS or lower_C[number] == _LONG_WAY
            place += size
    return long_N


@numba.njit(nogil=True, cache=True)
def _hash(byte_M: Bytes, start: int, stop: int) -> np.uint64:
    # FNV-1a, and the upper half folded in, since slots are chosen by the lower bits.
    key = _BASIS
    for place in range(start, stop):
        key = (key ^ np.uint64(byte_M[place])) * _PRIME
    return key ^ (key >> _HALF)


@numba.njit(nogil=True, cache=True)
def _fill(table: Table) -> None:
    last = len(table.term_S) - 1
    for term in range(len(table.offset_T1) - 1):
        slot = np.int64(_hash(table.byte_M, table.offset_T1[term], table.offset_T1[term + 1])) & last
        while table.term_S[slot] >= 0:
            slot = (slot + 1) & last
        table.term_S[slot] = term


@numba.njit(nogil=True, cache=True)
def _find(table: Table, byte_M: Bytes, start: int, stop: int) -> int:
    """The term that stands there, or -1."""
    last = len(table.term_S) - 1
    slot = np.int64(_hash(byte_M, start, stop)) & last
    while table.term_S[slot] >= 0:
        term = table.term_S[slot]
        first = table.offset_T1[term]
        if table.offset_T1[term + 1] - first == stop - start:
            same = 0
            while same < stop - start and table.byte_M[first + same] == byte_M[start + same]:
                same += 1
            if same == stop - start:
                return term
        slot = (slot + 1) & last
    return -1


@numba.njit(nogil=True, cache=True)
def _count(
    byte_M: Bytes,
    offset_N1: Places,
    skip_N: npt.NDArray[np.bool_],
    lower_C: Numbers,
    words: Table,
    grams: Table,
    stop_words: Table,
    shortest: int,
    gram_length: int,
) -> tuple[tuple[Values, Numbers, Places], ...]:
    """Counts, terms and where each row begins: of words, and of runs of characters."""
    rows, total, longest = len(skip_N), 0, 0
    for row in range(rows):
        if not skip_N[row]:
            total += offset_N1[row + 1] - offset_N1[row]
            longest = max(longest, offset_N1[row + 1] - offset_N1[row])
    # A word of n characters takes n bytes and, but for the last of a row, one that ends it; it has up to n + 1 runs.
    word_M, word_start_N1 = np.empty(total // 2 + rows, np.int32), np.zeros(rows + 1, np.int64)
    gram_M, gram_start_N1 = np.empty(total + rows if gram_length else 0, np.int32), np.zeros(rows + 1, np.int64)
    word_count_M, gram_count_M = np.empty(len(word_M), np.float32), np.empty(len(gram_M), np.float32)
    word_seen_W = np.zeros(len(words.offset_T1) - 1, np.float32)
    gram_seen_G = np.zeros(len(grams.offset_T1) - 1, np.float32)
    has_stop_words = len(stop_words.offset_T1) > 1
    # A word in lower case between two spaces, and where its characters begin; some are longer in lower case.
    marked, start_C = np.empty(2 * longest + 2, np.uint8), np.empty(longest + 3, np.int64)
    marked[0] = _SPACE
    start_C[0] = 0
    word_end, gram_end = 0, 0
    for row in range(rows):
        place, stop = offset_N1[row], offset_N1[row + 1]
        while place < stop and not skip_N[row]:
            size, end, digit = 0, 1, False
            while place < stop:
                number, length = _character(byte_M, place, stop)
                place += length
                lower = lower_C[number]
                if not lower:
                    break
                if not size:
                    digit = lower >= _DIGIT
                size += 1
                start_C[size] = end
                end = _write(marked, end, lower & (_DIGIT - 1))
            if size < shortest or digit or (has_stop_words and _find(stop_words, marked, 1, end) >= 0):
                continue
            word_end = _see(_find(words, marked, 1, end), word_M, word_end, word_seen_W)
            if gram_length:
                marked[end] = _SPACE
                start_C[size + 1], start_C[size + 2] = end, end + 1
                for first in range(max(1, size + 3 - gram_length)):
                    last = min(first + gram_length, size + 2)
                    term = _find(grams, marked, start_C[first], start_C[last])
                    gram_end = _see(term, gram_M, gram_end, gram_seen_G)
        _close(word_M[word_start_N1[row] : word_end], word_count_M[word_start_N1[row] : word_end], word_seen_W)
        _close(gram_M[gram_start_N1[row] : gram_end], gram_count_M[gram_start_N1[row] : gram_end], gram_seen_G)
        word_start_N1[row + 1], gram_start_N1[row + 1] = word_end, gram_end
    return (
        (word_count_M[:word_end], word_M[:word_end], word_start_N1),
        (gram_count_M[:gram_end], gram_M[:gram_end], gram_start_N1),
    )


@numba.njit(nogil=True, cache=True)
def _see(term: int, term_M: Numbers, end: int, seen_T: Values) -> int:
    """Count a term of the row; where the row's list of terms ends then."""
    if term < 0:
        return end
    if seen_T[term] == 0:
        term_M[end] = term
        end += 1
    seen_T[term] += 1
    return end


@numba.njit(nogil=True, cache=True)
def _close(term_M: Numbers, count_M: Values, seen_T: Values) -> None:
    """Sort the terms of a row, and write and forget their counts."""
    term_M.sort()
    for place in range(len(term_M)):
        count_M[place] = seen_T[term_M[place]]
        seen_T[term_M[place]] = 0
