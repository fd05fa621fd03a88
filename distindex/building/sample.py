"""A sample of a code set: its distinct codes, and what it says about the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from distindex.codes import CodeArray
from distindex.codeset import CODE_COLUMN, CodeSet
from distindex.index.matches import code_rows


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows of a code set, taken from files spread over all of it.

    Attributes:
        rows: how many.
        code_UC: their distinct codes in byte order.
        half_distinct: distinct codes of one half of the rows.
        bytes_per_row: memory of a row's id and payload in Arrow.
    """

    rows: int
    code_UC: CodeArray
    half_distinct: int
    bytes_per_row: float

    def distinct_of(self, rows: int) -> int:
        """Distinct codes of so many rows, by Heaps' law through the half of the sample and the whole of it.

        Rather too many: the growth of most corpora slows down.
        """
        if rows <= self.rows or self.rows < 2:
            return min(rows, len(self.code_UC))
        growth = np.log2(len(self.code_UC) / self.half_distinct)
        most = min(rows, 1 << (8 * self.code_UC.shape[1]))
        return int(min(most, len(self.code_UC) * (rows / self.rows) ** min(1.0, growth)))


def sample_of(code_set: CodeSet, rows: int) -> Sample:
    """Read about so many rows of a code set, at least one file whole.

    Raises:
        DamagedError: a file does not match its sha256.
    """
    files = code_set.manifest.files
    tables: list[pa.Table] = []
    taken = 0
    # Files in an order that spreads over the code set from the first on.
    for place in np.random.default_rng(0).permutation(len(files)):
        if taken >= rows:
            break
        tables.append(code_set.read(files[place], verify=True))
        taken += tables[-1].num_rows
    if not taken:
        return Sample(0, np.empty((0, code_set.manifest.bits // 8), np.uint8), 0, 0.0)
    table = pa.concat_tables(tables)
    chosen = np.random.default_rng(0).permutation(taken)[:rows]
    code_NC = code_rows(table.column(CODE_COLUMN))[chosen]
    beside = table.drop_columns([CODE_COLUMN])
    return Sample(
        rows=len(chosen),
        code_UC=np.unique(code_NC, axis=0),
        half_distinct=len(np.unique(code_NC[: max(1, len(chosen) // 2)], axis=0)),
        bytes_per_row=beside.nbytes / taken,
    )
