"""Which rows each distinct code has: offsets of 8 bytes a block of codes and one to four bytes a code.

The rows of a shard are sorted by code, so the rows of distinct code u are `offset[u]:offset[u + 1]`. An offset is
kept as that of its block of 64 codes plus a difference, in the smallest unsigned type that holds all differences:
1.1 bytes a code where hardly any code is shared, instead of 8.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.errors import DamagedError
from distindex.index.matches import one_chunk

BLOCK = 64
_FIRST, _DELTA, _OFFSET = "first", "delta", "offset"


@dataclasses.dataclass(frozen=True, eq=False)
class Postings:
    """The rows of U distinct codes.

    Attributes:
        distinct: U.
        rows: number of rows, which is the offset after the last code.
        first_B: offset of the first code of each block.
        delta_D: per code, and for the end after the last, what to add; padded to whole blocks.
    """

    distinct: int
    rows: int
    first_B: npt.NDArray[np.int64]
    delta_D: npt.NDArray[np.unsignedinteger]

    @classmethod
    def of_offsets(cls, offset_U1: npt.NDArray[np.int64]) -> Postings:
        """From the offsets of all codes and the number of rows as the last."""
        blocks = -(-len(offset_U1) // BLOCK)
        padded = np.full(blocks * BLOCK, offset_U1[-1], np.int64)
        padded[: len(offset_U1)] = offset_U1
        first_B = padded[::BLOCK].copy()
        padded -= np.repeat(first_B, BLOCK)
        delta_D = padded.astype(np.min_scalar_type(int(padded.max())))
        return cls(len(offset_U1) - 1, int(offset_U1[-1]), first_B, delta_D)

    @classmethod
    def of_table(cls, table: pa.Table, where: str) -> Postings:
        """From `postings.arrow` of format 2, or of format 1 with its plain offsets.

        Raises:
            DamagedError: the table is neither.
        """
        if table.column_names == [_OFFSET] and table.num_rows:
            return cls.of_offsets(one_chunk(table.column(_OFFSET)).to_numpy())
        about = table.schema.metadata or {}
        if table.column_names != [_FIRST, _DELTA] or b"distinct" not in about:
            raise DamagedError(f"{where}: has columns {table.column_names}, which are no postings")
        delta_D = one_chunk(table.column(_DELTA)).flatten().to_numpy()
        return cls(int(about[b"distinct"]), int(about[b"rows"]), one_chunk(table.column(_FIRST)).to_numpy(), delta_D)

    def to_table(self) -> pa.Table:
        """One row a block: its first offset, and 64 differences."""
        delta = pa.FixedSizeListArray.from_arrays(pa.array(self.delta_D), BLOCK)
        table = pa.table({_FIRST: self.first_B, _DELTA: delta})
        return table.replace_schema_metadata({"distinct": str(self.distinct), "rows": str(self.rows)})

    def rows_of(self, position_A: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first row of each of the codes, and the number of its rows."""
        after_A = position_A + 1
        first_A = self.first_B[position_A // BLOCK] + self.delta_D[position_A]
        return first_A, self.first_B[after_A // BLOCK] + self.delta_D[after_A] - first_A

    def codes_of(self, row_A: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The distinct code u of each row."""
        block_A = np.searchsorted(self.first_B, row_A, side="right") - 1
        offset_AI = self.first_B[block_A, None] + self.delta_D.reshape(-1, BLOCK)[block_A]
        return block_A * BLOCK + (offset_AI <= row_A[:, None]).sum(axis=1) - 1

    def every_offset(self) -> npt.NDArray[np.int64]:
        """`offset_U1` in full, 8 bytes a code."""
        return (np.repeat(self.first_B, BLOCK) + self.delta_D)[: self.distinct + 1]
