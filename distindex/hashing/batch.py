"""One mini-batch as the methods see it: dense or sparse rows, labels, and each row's place in the global batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from distindex.hashing.distributed import union_over_workers


@dataclasses.dataclass
class SparseRows:
    """Rows of mostly zeros, as compressed sparse rows.

    Attributes:
        offset_B1: where each row's entries start, and the end; int64 `[B + 1]`.
        column_M: column of each entry; int64 `[M]`.
        value_M: value of each entry; float32 `[M]`.
        width: number of columns V.
    """

    offset_B1: Tensor
    column_M: Tensor
    value_M: Tensor
    width: int

    @classmethod
    def of(cls, matrix: scipy.sparse.csr_matrix) -> SparseRows:
        return cls(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(np.asarray(matrix.data, np.float32)),
            int(matrix.shape[1]),  # type: ignore[index]
        )

    def __len__(self) -> int:
        return len(self.offset_B1) - 1

    @property
    def row_M(self) -> Tensor:
        """The row of each entry."""
        counts = self.offset_B1.diff()
        return torch.repeat_interleave(torch.arange(len(self), device=counts.device), counts)

    def occurring(self) -> tuple[Tensor, SparseRows]:
        """`word_A`: the columns that occur in the global batch, ascending; and the rows over these alone."""
        word_A = union_over_workers(self.column_M, self.width)
        place_V = word_A.new_empty(self.width)
        place_V[word_A] = torch.arange(len(word_A), device=word_A.device)
        return word_A, dataclasses.replace(self, column_M=place_V[self.column_M], width=len(word_A))

    def to(self, device: torch.device) -> SparseRows:
        return SparseRows(
            self.offset_B1.to(device, non_blocking=True),
            self.column_M.to(device, non_blocking=True),
            self.value_M.to(device, non_blocking=True),
            self.width,
        )


Rows = Tensor | SparseRows


def rows_of(matrix: np.ndarray | scipy.sparse.csr_matrix) -> Rows:
    """Tensor rows from a feature matrix `x_NV`: dense or sparse as it is, float32, but uint8 pixels as they are."""
    if scipy.sparse.issparse(matrix):
        return SparseRows.of(matrix)  # type: ignore[arg-type]
    if matrix.dtype == np.uint8:
        return torch.from_numpy(np.require(matrix, requirements=["C", "W"]))
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32))


@dataclasses.dataclass
class AnsweredPairs:
    """Pairs of rows of the global batch of which it is known whether they are alike, the same on every worker.

    Attributes:
        left_P: the one row's position in the global batch; int64 `[P]`.
        right_P: the other one's.
        similar_P: whether they are alike; bool `[P]`.
    """

    left_P: Tensor
    right_P: Tensor
    similar_P: Tensor

    def __len__(self) -> int:
        return len(self.left_P)

    def to(self, device: torch.device) -> AnsweredPairs:
        return AnsweredPairs(self.left_P.to(device), self.right_P.to(device), self.similar_P.to(device))


@dataclasses.dataclass
class Batch:
    """The rows of one step that this worker holds.

    Attributes:
        x_BV: the encoder's input; of images the pixels, uint8.
        target_BV: what the decoder is to reconstruct; of images the pixels, uint8.
        label_BC: one-hot or multi-hot labels; a row of zeros is unlabeled.
        row_B: the row's position in the global batch, which spans all workers.
        global_rows: rows of the global batch.
        key: the step's noise key, the same on every worker.
        answered: pairs known beside the labels; None without. Not both of their rows are labeled.
    """

    x_BV: Rows
    target_BV: Rows
    label_BC: Tensor
    row_B: Tensor
    global_rows: int
    key: int
    answered: AnsweredPairs | None = None

    def to(self, device: torch.device) -> Batch:
        return dataclasses.replace(
            self,
            x_BV=self.x_BV.to(device),
            target_BV=self.target_BV.to(device),
            label_BC=self.label_BC.to(device),
            row_B=self.row_B.to(device),
            answered=None if self.answered is None else self.answered.to(device),
        )
