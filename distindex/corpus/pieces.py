"""Corpora in pieces of some row groups, each read alone and in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.files import CorpusFile, RowGroups, cut_row_groups
from distindex.corpus.rows import BadRows, Column, RowCheck
from distindex.errors import InputError


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive row groups of one file.

    Attributes:
        file: the file, without its lists of row groups.
        groups: its row groups.
    """

    file: CorpusFile
    groups: RowGroups


def cut_corpus(corpus: Corpus, size: float) -> list[Piece]:
    """The pieces of a corpus of about `size` bytes of its columns, uncompressed, in the order of its rows."""
    return [
        Piece(dataclasses.replace(file, group_rows=(), group_bytes=()), groups)
        for file in corpus.files
        for groups in cut_row_groups(file, size)
    ]


def good_rows(
    corpus: Corpus, piece: Piece, columns: Sequence[str], check: RowCheck, batch_rows: int = 8192
) -> Iterator[tuple[pa.Table, int]]:
    """The rows of a piece that can be used, some at a time, and how many beside them are bad.

    Args:
        corpus: the corpus.
        piece: one of its pieces.
        columns: what is read; with the id and the feature column the rows are those of `split_bad_rows`.
        check: finds the rows whose features are bad.
        batch_rows: rows that are read at once.

    Raises:
        NotFoundError: the file has gone since the corpus was opened.
        InputError: the file is damaged, or there is a bad row and `on_bad_rows` is `fail`.
    """
    for batch in corpus.batches(columns, batch_rows, [piece.file], piece.groups):
        rows, bad = split_bad_rows(batch, check, corpus.config)
        yield rows, bad.num_rows


@dataclasses.dataclass(frozen=True)
class NumberedRows:
    """The good rows of a corpus, numbered in its order, which any piece knows without those before it.

    Attributes:
        corpus: the corpus.
        pieces: its pieces.
        good_P: int64, good rows of each piece, as `good_rows` has counted them.
        check: finds the rows whose features are bad.
    """

    corpus: Corpus
    pieces: tuple[Piece, ...]
    good_P: npt.NDArray[np.int64]
    check: RowCheck

    @cached_property
    def first_P1(self) -> npt.NDArray[np.int64]:
        """The number of the first good row of each piece, and of all rows."""
        return np.concatenate([[0], np.cumsum(self.good_P)])

    def read(self, piece: int, batch_rows: int = 8192) -> Iterator[tuple[pa.ChunkedArray, npt.NDArray[np.int64]]]:
        """The feature column of a piece's good rows, some at a time, and the numbers of these rows.

        Raises:
            NotFoundError: the file has gone.
            InputError: the file is damaged, or has changed since its rows were counted.
        """
        config, chosen = self.corpus.config, self.pieces[piece]
        number, end = int(self.first_P1[piece]), int(self.first_P1[piece + 1])
        # Where all rows are good, there is nothing to look for, nor an id to read.
        all_good = end - number == chosen.groups.rows
        columns = [config.feature_column, *([] if all_good else [config.id_column])]
        check = _NONE if all_good else self.check
        for rows, _ in good_rows(self.corpus, chosen, columns, check, batch_rows):
            yield rows[config.feature_column], np.arange(number, number + rows.num_rows)
            number += rows.num_rows
        if number != end:
            raise InputError(f"{chosen.file.uri}: the file has changed while training reads it; start again")


class _NoCheck:
    def bad_rows(self, column: Column) -> BadRows:
        return []


_NONE = _NoCheck()
