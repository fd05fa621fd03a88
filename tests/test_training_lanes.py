"""The order of streamed rows, by numbers alone: no row twice, none left out, whatever the number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.hashing.distributed import share_of
from distindex.training.lanes import EpochOrder, EpochSteps, epoch_steps, lane_count

pieces = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def rows_of(order: EpochOrder, lane: int, first: int, stop: int) -> list[tuple[int, int]]:
    """Rows of a lane as (piece, row in the piece)."""
    rows = [(s.piece, s.first + i) for s in order.segments(lane, first) for i in range(s.count)]
    return rows[: stop - first]


@given(pieces, st.integers(1, 20), st.integers(0, 3))
def test_the_lanes_of_an_epoch_hold_every_row_once(rows_P: list[int], lanes: int, epoch: int) -> None:
    order = EpochOrder(np.array(rows_P), lanes, seed=4, epoch=epoch)
    found = []
    for lane in range(lanes):
        whole = rows_of(order, lane, 0, order.lane_rows(lane))
        assert len(whole) == order.lane_rows(lane)
        assert rows_of(order, lane, len(whole) // 2, len(whole)) == whole[len(whole) // 2 :]
        found += whole
    assert sorted(found) == [(piece, row) for piece, rows in enumerate(rows_P) for row in range(rows)]
    sizes = [order.lane_rows(lane) for lane in range(lanes)]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(
    st.integers(2, 300), st.integers(0, 40), st.integers(2, 33), st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 5)
)
def test_the_steps_of_an_epoch_take_every_row_once_and_workers_share_them(
    streamed: int, labeled: int, batch_size: int, fraction: float, workers: int
) -> None:
    steps = EpochSteps(streamed, labeled, batch_size, fraction)
    lanes = lane_count(batch_size)
    seen, draws = [], []
    for number in range(len(steps)):
        step = steps[number]
        if labeled:
            assert 1 <= step.drawn[1] - step.drawn[0] < batch_size
            assert step.rows <= batch_size
        elif number + 1 < len(steps):
            assert step.rows == batch_size
        whole = step.share(0, step.rows, lanes)
        parts = [step.share(*share_of(rank, workers, step.rows), lanes) for rank in range(workers)]
        for rank, (runs, drawn, at) in enumerate(parts):
            begin, end = share_of(rank, workers, step.rows)
            assert sum(run.stop - run.first for run in runs) + drawn[1] - drawn[0] == end - begin
            assert len(at) == drawn[1] - drawn[0]
            assert all(0 <= place < end - begin for place in at)
        rows = [(run.lane, row) for part in parts for run in part[0] for row in range(run.first, run.stop)]
        assert rows == [(run.lane, row) for run in whole[0] for row in range(run.first, run.stop)]
        assert [d for part in parts for d in range(*part[1])] == list(range(*whole[1]))
        seen += rows
        draws += list(range(*whole[1]))
    assert len(seen) == len(set(seen)) == streamed
    order = EpochOrder(np.array([streamed]), lanes, 0, 0)
    assert set(seen) == {(lane, row) for lane in range(lanes) for row in range(order.lane_rows(lane))}
    assert draws == list(range(len(draws)))


@given(st.integers(1, 30), st.integers(0, 90), st.integers(0, 60))
def test_draws_are_permutations_one_after_the_other(labeled: int, first: int, count: int) -> None:
    order = EpochOrder(np.array([5]), 8, seed=1, epoch=2)
    whole = order.drawn(labeled, 0, first + count)
    np.testing.assert_array_equal(order.drawn(labeled, first, first + count), whole[first:])
    for start in range(0, len(whole) - labeled + 1, labeled):
        assert sorted(whole[start : start + labeled]) == list(range(labeled))


def test_powers_of_two_of_workers_divide_the_lanes_where_they_can() -> None:
    assert [lane_count(size) for size in (64, 70, 200, 1000, 131)] == [64, 70, 100, 100, 128]
    assert [lane_count(size, 40) for size in (64, 200, 131)] == [32, 40, 40]


@pytest.mark.parametrize(("fraction", "streamed", "draws"), [(0.0, 50, 0), (0.25, 40, 10), (1.0, 0, 10)])
def test_which_rows_are_streamed(fraction: float, streamed: int, draws: int) -> None:
    steps = epoch_steps(50, 10, 8, fraction)
    assert sum(steps[i].streamed[1] - steps[i].streamed[0] for i in range(len(steps))) == streamed
    assert sum(steps[i].drawn[1] - steps[i].drawn[0] for i in range(len(steps))) >= draws
    for labeled in (0, 50):
        assert not epoch_steps(50, labeled, 8, fraction).draws
