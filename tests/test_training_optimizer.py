"""The optimizer of the word tables against Adagrad's formula, and against its own slow path."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from distindex.hashing.networks import select_rows
from distindex.training.optimizer import RowAdagrad

ROWS, UNITS, STEPS, RATE, EPS = 12, 5, 40, 1e-2, 1e-7


def _occurring(step: int) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(step).random(ROWS) < 0.3)


def _slopes(step: int, rows: int) -> np.ndarray:
    return np.random.default_rng([step, 1]).normal(size=(rows, UNITS))


def _trained(dtype: torch.dtype) -> torch.Tensor:
    table = torch.zeros(ROWS, UNITS, dtype=dtype, requires_grad=True)
    optimizer = RowAdagrad([table], RATE)
    for step in range(STEPS):
        rows = _occurring(step)
        optimizer.zero_grad()
        (select_rows(table, torch.from_numpy(rows)) * torch.from_numpy(_slopes(step, len(rows)))).sum().backward()
        optimizer.step()
    return table.detach()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_rows_move_as_with_adagrad(dtype: torch.dtype, rtol: float) -> None:
    """Every number's step is divided by the root of its gradients' squares so far; rows that do not occur stay."""
    table, squares = np.zeros((ROWS, UNITS)), np.zeros((ROWS, UNITS))
    for step in range(STEPS):
        gradient = np.zeros((ROWS, UNITS))
        rows = _occurring(step)
        gradient[rows] = _slopes(step, len(rows))
        squares += gradient**2
        table -= RATE * gradient / (np.sqrt(squares) + EPS)
    np.testing.assert_allclose(_trained(dtype).numpy(), table, rtol=rtol, atol=1e-7)


def test_a_table_that_is_read_twice_in_a_step_gets_the_sum_of_both_gradients() -> None:
    def moved(reads: list[list[int]]) -> np.ndarray:
        table = torch.zeros(4, 2, requires_grad=True)
        optimizer = RowAdagrad([table], RATE)
        for rows in reads:
            (select_rows(table, torch.tensor(rows)) * torch.tensor([[1.0, 2.0]])).sum().backward()
        optimizer.step()
        return table.detach().numpy()

    twice, once = moved([[0, 1], [1, 3]]), moved([[0, 1, 3]])
    # A first step is as long for a large gradient as for a small one.
    np.testing.assert_allclose(twice, once, rtol=1e-4)
    assert (twice[[0, 1, 3]] < 0).all()
    assert (twice[2] == 0).all()


def test_a_resumed_optimizer_goes_on_where_it_stopped() -> None:
    def step(optimizer: RowAdagrad, table: torch.Tensor, number: int) -> None:
        rows = _occurring(number)
        optimizer.zero_grad()
        (select_rows(table, torch.from_numpy(rows)) * torch.from_numpy(_slopes(number, len(rows)))).sum().backward()
        optimizer.step()

    first = torch.zeros(ROWS, UNITS, dtype=torch.float64, requires_grad=True)
    optimizer = RowAdagrad([first], RATE)
    for number in range(10):
        step(optimizer, first, number)
    second = first.detach().clone().requires_grad_()
    resumed = RowAdagrad([second], RATE)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(10, 20):
        step(optimizer, first, number)
        step(resumed, second, number)
    np.testing.assert_array_equal(first.detach().numpy(), second.detach().numpy())
