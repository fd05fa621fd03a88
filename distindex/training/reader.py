"""Reading the lanes of an epoch: a worker's shares of the global batches, made beside it in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distindex.config import TrainConfig
from distindex.corpus.features import Matrix
from distindex.hashing.neighbors import Anchors
from distindex.runtime import fetch
from distindex.training.lanes import EpochOrder, Run, spread
from distindex.training.scan import stack

if TYPE_CHECKING:
    from distindex.training.stream import StreamedSet

_BATCH_ROWS = 2048
# Blocks that are made while one is used.
_AHEAD = 2


@dataclasses.dataclass
class Block:
    """A worker's shares of some consecutive global batches.

    Attributes:
        x_NV: the encoder's input of its rows, batch after batch.
        row_N: their numbers in the corpus.
        near_NJ: places of their neighbours among the anchors; None without.
        offset_S1: where each batch's share begins, and the end.
    """

    x_NV: Matrix
    row_N: npt.NDArray[np.int64]
    near_NJ: npt.NDArray[np.int32] | None
    offset_S1: npt.NDArray[np.int64]


class Lane:
    """The rows of one lane of an epoch, window by window.

    Args:
        data: what is read.
        order: the epoch's.
        lane: the lane's number.
        left_out: rows that are not streamed, ascending.
    """

    def __init__(self, data: StreamedSet, order: EpochOrder, lane: int, left_out: npt.NDArray[np.int64]) -> None:
        self._data, self._order, self._lane, self._left_out = data, order, lane, left_out
        self._window = -1
        self._x_RV: Matrix = np.zeros((0, 0), np.float32)
        self._row_R = np.zeros(0, np.int64)
        self._pieces: Iterator[tuple[pa.ChunkedArray, npt.NDArray[np.int64]]] = iter(())
        self._rest: tuple[pa.ChunkedArray, npt.NDArray[np.int64]] | None = None

    def take(self, first: int, stop: int) -> tuple[Matrix, npt.NDArray[np.int64]]:
        """The input and the numbers of the lane's rows `first` to `stop`, shuffled within each window."""
        size = self._data.streaming.window
        parts, numbers = [], []
        for window in range(first // size, (stop - 1) // size + 1):
            self._load(window)
            chosen = slice(max(0, first - window * size), stop - window * size)
            parts.append(self._x_RV[chosen])  # type: ignore[index]
            numbers.append(self._row_R[chosen])
        return stack(parts), np.concatenate(numbers)

    def _load(self, window: int) -> None:
        if window == self._window:
            return
        first = window * self._data.streaming.window
        if window != self._window + 1 or window == 0:
            self._pieces, self._rest = self._read(first), None
        left = count = min(self._data.streaming.window, self._order.lane_rows(self._lane) - first)
        chunks: list[pa.Array] = []
        numbers: list[npt.NDArray[np.int64]] = []
        while left:
            column, row_N = self._rest or next(self._pieces)
            self._rest = (column.slice(left), row_N[left:]) if len(row_N) > left else None
            chunks += column.slice(0, left).chunks
            numbers.append(row_N[:left])
            left -= len(numbers[-1])
        order_R = self._order.shuffled(self._lane, window, count)
        x_RV = self._data.features.transform(pa.chunked_array(chunks), checked=True)
        self._x_RV, self._row_R, self._window = x_RV[order_R], np.concatenate(numbers)[order_R], window  # type: ignore[index]

    def _read(self, first: int) -> Iterator[tuple[pa.ChunkedArray, npt.NDArray[np.int64]]]:
        batch_rows = min(_BATCH_ROWS, self._data.streaming.window)
        for segment in self._order.segments(self._lane, first):
            skip, left = segment.first, segment.count
            for column, row_N in self._data.numbered.read(segment.piece, batch_rows):
                if len(self._left_out):
                    streamed_N = ~is_in(row_N, self._left_out)
                    column, row_N = column.filter(pa.array(streamed_N)), row_N[streamed_N]
                skipped, skip = skip, max(0, skip - len(row_N))
                column, row_N = column.slice(skipped, left), row_N[skipped : skipped + left]
                if len(row_N):
                    yield column, row_N
                    left -= len(row_N)
                if not left:
                    break


def is_in(row_N: npt.NDArray[np.int64], sorted_M: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows are among others that are ascending."""
    place_N = np.searchsorted(sorted_M, row_N)
    return sorted_M[np.minimum(place_N, len(sorted_M) - 1)] == row_N


class Reader:
    """Makes a worker's blocks, in any order, but without reading twice only in that of the batches.

    Args:
        data: what is read.
        config: the run's.
        rank: the worker's.
        workers: how many there are.
    """

    def __init__(self, data: StreamedSet, config: TrainConfig, rank: int, workers: int) -> None:
        self._data, self._config, self._rank, self._workers = data, config, rank, workers
        self._steps = data.epoch_steps(config)
        self._left_out = data.labeled if self._steps.draws else np.zeros(0, np.int64)
        bound_P1 = np.searchsorted(self._left_out, data.numbered.first_P1)
        self._rows_P = data.numbered.good_P - np.diff(bound_P1)
        self._epoch = -1
        self._order: EpochOrder
        self._lanes: dict[int, Lane] = {}
        self._anchors: Anchors | None = None
        if data.anchors is not None:
            x_AV = data.features.network_input(data.x_of(data.anchors))
            self._anchors = Anchors(x_AV, data.anchors, config.method.neighbors)

    def block(self, epoch: int, first: int, stop: int) -> Block:
        """The worker's shares of the batches `first` to `stop` of an epoch.

        Raises:
            InputError: a file has changed or gone, or is damaged.
        """
        if epoch != self._epoch:
            settings, lanes = self._config.optimization, self._data.streaming.lanes
            self._epoch, self._lanes = epoch, {}
            self._order = EpochOrder(self._rows_P, lanes, settings.seed, epoch)
        drawn = [self._data.drawn_pairs(self._config, epoch, s, self._steps[s].rows) for s in range(first, stop)]
        paired = [each.share(self._rank, self._workers) for each in drawn]
        shares = [
            self._steps[step].share(*others, self._order.lanes)
            for step, (others, _, _) in zip(range(first, stop), paired, strict=True)
        ]
        runs = [run for share in shares for run in share[0]]
        x_NV, row_N, begin_of = self._read(runs)
        drawn_first, drawn_stop = shares[0][1][0], shares[-1][1][1]
        if drawn_stop > drawn_first:
            labeled = self._data.labeled
            row_D = labeled[self._order.drawn(len(labeled), drawn_first, drawn_stop)]
            x_DV = self._data.x_of(row_D)
            x_NV, row_N = stack([x_NV, x_DV]), np.concatenate([row_N, row_D])
        place_of_draw = len(row_N) - drawn_stop
        places = [self._places(share, begin_of, place_of_draw) for share in shares]
        row_P = [each.row_P2.ravel()[slice(*mine)] for each, (_, mine, _) in zip(drawn, paired, strict=True)]
        if sum(map(len, row_P)):
            begin_S = len(row_N) + np.cumsum([0, *map(len, row_P)])
            places = [
                spread(place, np.arange(begin_S[s], begin_S[s + 1]), paired[s][2]) for s, place in enumerate(places)
            ]
            row_D = np.concatenate(row_P)
            x_NV, row_N = stack([x_NV, self._data.x_of(row_D)]), np.concatenate([row_N, row_D])
        place_N = np.concatenate(places)
        x_NV, row_N = x_NV[place_N], row_N[place_N]  # type: ignore[index]
        near_NJ = None
        if self._anchors is not None and len(row_N):
            near_NJ = self._anchors.nearest(self._data.features.network_input(x_NV), row_N)
        offset_S1 = np.concatenate([[0], np.cumsum([len(place) for place in places])])
        return Block(x_NV, row_N, near_NJ, offset_S1)

    def _read(self, runs: list[Run]) -> tuple[Matrix, npt.NDArray[np.int64], dict[int, int]]:
        """The rows of all runs, lane after lane, and for each lane its row's place less its number."""
        parts: list[Matrix] = [self._data.held_HV[:0]]  # type: ignore[index]
        numbers, begin_of, place = [np.zeros(0, np.int64)], {}, 0
        for lane in sorted({run.lane for run in runs}):
            first = min(run.first for run in runs if run.lane == lane)
            stop = max(run.stop for run in runs if run.lane == lane)
            if lane not in self._lanes:
                self._lanes[lane] = Lane(self._data, self._order, lane, self._left_out)
            x_RV, row_R = self._lanes[lane].take(first, stop)
            parts.append(x_RV)
            numbers.append(row_R)
            begin_of[lane] = place - first
            place += stop - first
        return stack(parts), np.concatenate(numbers), begin_of

    @staticmethod
    def _places(
        share: tuple[list[Run], tuple[int, int], npt.NDArray[np.int64]], begin_of: dict[int, int], place_of_draw: int
    ) -> npt.NDArray[np.int64]:
        runs, draws, at_D = share
        streamed = [np.arange(run.first, run.stop) + begin_of[run.lane] for run in runs]
        streamed_M = np.concatenate([*streamed, np.zeros(0, np.int64)]).astype(np.int64)
        return spread(streamed_M, np.arange(*draws) + place_of_draw, at_D)


class ReadAhead:
    """A reader in a process of its own on the worker's node, which makes the next blocks while one is used.

    In the worker's own process a thread that splits texts into terms would hold Python's lock from the step.
    """

    def __init__(self, reference: ray.ObjectRef, steps: int, config: TrainConfig, rank: int, workers: int) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor: Any = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)(Reader)
        self._actor = actor.options(scheduling_strategy=here).remote(reference, config, rank, workers)
        self._steps, self._epochs = steps, config.optimization.epochs
        self._asked: dict[tuple[int, int, int], ray.ObjectRef] = {}

    def block(self, epoch: int, first: int, stop: int) -> Block:
        """As `Reader.block`; the blocks of the same size that follow are asked for too."""
        wanted, span = (epoch, first, stop), stop - first
        key = wanted
        for _ in range(1 + _AHEAD):
            if key not in self._asked:
                self._asked[key] = self._actor.block.remote(*key)
            epoch, _, end = key
            epoch, end = (epoch, end) if end < self._steps else (epoch + 1, 0)
            if epoch == self._epochs:
                break
            key = (epoch, end, min(end + span, self._steps))
        return fetch(self._asked.pop(wanted))
