"""Adam for the networks, and what stands for it in the word tables, of which a step sees a few rows.

Adam over a table of 10,000 words x 500 units is the largest part of a training step, though only some hundred
words occur in a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distindex.config import OptimizationConfig
from distindex.hashing.base import Method

_SQUARE_DECAY, _EPS = 0.999, 1e-7


class RowAdam(torch.optim.Optimizer):
    """Adam without momentum over the rows that a sparse gradient holds.

    The mean square of a row decays with every step, whether the row occurs in it or not, as in Adam, but is
    brought up to date only when the row occurs. Adam's momentum would move a row in the steps after that too;
    over them all it moves as far as here at once.

    Args:
        parameters: tables `[V, U]` whose gradients are sparse.
        learning_rate: Adam's step size.
    """

    def __init__(self, parameters: list[Tensor], learning_rate: float) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        for table in parameters:
            self.state[table] = {
                "step": torch.zeros((), dtype=torch.int64),
                "seen": torch.zeros(len(table), dtype=torch.int64, device=table.device),
                "square": torch.zeros_like(table),
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows of each gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group["lr"], self.state[table])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of another run; torch has made whole numbers of it those of the table's type."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["seen"] = state["seen"].to(torch.int64)

    @staticmethod
    def _update(table_VU: Tensor, learning_rate: float, state: dict[str, Tensor]) -> None:
        row_A, gradient_AU = _rows_of(table_VU.grad)  # type: ignore[arg-type]
        state["step"] += 1
        step = int(state["step"])
        correction = math.sqrt(1 - _SQUARE_DECAY**step)
        if table_VU.device.type == "cpu" and table_VU.dtype == torch.float32:
            _update_rows(
                table_VU.numpy(),
                state["square"].numpy(),
                state["seen"].numpy(),
                row_A.numpy(),
                gradient_AU.contiguous().numpy(),
                step,
                np.float32(learning_rate),
                np.float32(correction),
            )
            return
        decay_A = torch.pow(_SQUARE_DECAY, (step - state["seen"][row_A]).to(gradient_AU.dtype))
        square_AU = state["square"].index_select(0, row_A).mul_(decay_A[:, None])
        square_AU.addcmul_(gradient_AU, gradient_AU, value=1 - _SQUARE_DECAY)
        state["square"].index_copy_(0, row_A, square_AU)
        state["seen"][row_A] = step
        deviation_AU = square_AU.sqrt_().div_(correction).add_(_EPS)
        table_VU.index_add_(0, row_A, gradient_AU / deviation_AU, alpha=-learning_rate)


def _rows_of(gradient_VU: Tensor) -> tuple[Tensor, Tensor]:
    """The rows `row_A`, ascending, and values `[A, U]` of a sparse gradient."""
    row_A = gradient_VU._indices()[0]
    # autograd drops the mark that a gradient is coalesced already; to do it again takes longer than the update.
    if not bool((row_A[1:] > row_A[:-1]).all()):
        gradient_VU = gradient_VU.coalesce()
    return gradient_VU._indices()[0], gradient_VU._values()


@numba.njit(nogil=True, fastmath=True, cache=True)
def _update_rows(
    table: npt.NDArray[np.float32],
    square: npt.NDArray[np.float32],
    seen: npt.NDArray[np.int64],
    row_A: npt.NDArray[np.int64],
    gradient: npt.NDArray[np.float32],
    step: int,
    learning_rate: np.float32,
    correction: np.float32,
) -> None:
    for position in range(len(row_A)):
        row = row_A[position]
        decay = np.float32(_SQUARE_DECAY ** (step - seen[row]))
        seen[row] = step
        for unit in range(gradient.shape[1]):
            slope = gradient[position, unit]
            mean = square[row, unit] * decay + np.float32(1 - _SQUARE_DECAY) * slope * slope
            square[row, unit] = mean
            table[row, unit] -= learning_rate * slope / (np.sqrt(mean) / correction + np.float32(_EPS))


class Optimizer:
    """Adam with the reference's eps, and `RowAdam` for the tables whose gradients are sparse."""

    def __init__(self, model: Method, config: OptimizationConfig) -> None:
        tables = model.sparse_parameters()
        chosen = {id(table) for table in tables}
        dense = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        self._parts: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.Adam(dense, lr=config.learning_rate, eps=_EPS, fused=True)
        }
        if tables:
            self._parts["rows"] = RowAdam(tables, config.learning_rate)

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
