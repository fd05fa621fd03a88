"""Adam for the networks, Adagrad for the word tables, of which a step sees a few rows.

Adam would be the largest part of a training step, as it moves a table of 10,000 words x 500 units though only some
hundred words occur in a batch. And it divides a word's gradient by a mean square that has decayed since the word
last occurred, so a rare word moves some thirty times as far at each occurrence as a common one: on short texts, whose
words are mostly rare, the codes then learn rows by heart.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distindex.config import OptimizationConfig
from distindex.hashing.base import Method

_EPS = 1e-7
# Adagrad's steps shrink as a word goes on occurring: it begins where Adam would be slow.
_WORD_RATE = 10


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad over the rows that a sparse gradient holds: steps of rate * gradient / sqrt(sum of squared gradients).

    Source: Duchi, Hazan, Singer, JMLR 2011. torch's own does the same in several passes over the gradient.

    Args:
        parameters: tables `[V, U]` whose gradients are sparse.
        learning_rate: length of the first step.
    """

    def __init__(self, parameters: list[Tensor], learning_rate: float) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        for table in parameters:
            self.state[table] = {"squares": torch.zeros_like(table)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows of each gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group["lr"], self.state[table]["squares"])

    @staticmethod
    def _update(table_VU: Tensor, learning_rate: float, squares_VU: Tensor) -> None:
        row_A, gradient_AU = _rows_of(table_VU.grad)  # type: ignore[arg-type]
        if table_VU.device.type == "cpu" and table_VU.dtype == torch.float32:
            _update_rows(
                table_VU.numpy(),
                squares_VU.numpy(),
                row_A.numpy(),
                gradient_AU.contiguous().numpy(),
                np.float32(learning_rate),
            )
            return
        squares_VU.index_add_(0, row_A, gradient_AU.square())
        deviation_AU = squares_VU.index_select(0, row_A).sqrt_().add_(_EPS)
        table_VU.index_add_(0, row_A, gradient_AU / deviation_AU, alpha=-learning_rate)


def _rows_of(gradient_VU: Tensor) -> tuple[Tensor, Tensor]:
    """The rows `row_A`, ascending, and values `[A, U]` of a sparse gradient."""
    row_A = gradient_VU._indices()[0]
    # autograd drops the mark that a gradient is coalesced already; to do it again takes longer than the update.
    place_A = row_A.numpy() if row_A.device.type == "cpu" else row_A
    if not (place_A[1:] > place_A[:-1]).all():
        gradient_VU = gradient_VU.coalesce()
    return gradient_VU._indices()[0], gradient_VU._values()


@numba.njit(nogil=True, fastmath=True, cache=True)
def _update_rows(
    table: npt.NDArray[np.float32],
    squares: npt.NDArray[np.float32],
    row_A: npt.NDArray[np.int64],
    gradient: npt.NDArray[np.float32],
    learning_rate: np.float32,
) -> None:
    for position in range(len(row_A)):
        row = row_A[position]
        for unit in range(gradient.shape[1]):
            slope = gradient[position, unit]
            total = squares[row, unit] + slope * slope
            squares[row, unit] = total
            table[row, unit] -= learning_rate * slope / (np.sqrt(total) + np.float32(_EPS))


class Optimizer:
    """Adam with the reference's eps, and `RowAdagrad` for the tables whose gradients are sparse."""

    def __init__(self, model: Method, config: OptimizationConfig) -> None:
        tables = model.sparse_parameters()
        chosen = {id(table) for table in tables}
        dense = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        self._parts: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.Adam(dense, lr=config.learning_rate, eps=_EPS, fused=True)
        }
        if tables:
            self._parts["rows"] = RowAdagrad(tables, _WORD_RATE * config.learning_rate)

    def zero_grad(self) -> None:
        for part in self._parts.values():
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
