"""The order in which an epoch's rows are streamed: by numbers alone, the same for any number of workers.

The pieces of the corpus are put in a random order and joined to one long sequence of rows, which is cut into lanes of
equal length. A lane is read from its beginning to its end, some thousand rows at a time, which are shuffled (a
window). A global batch takes the next rows of all lanes. So every row stands in exactly one batch, a batch has rows
from as many parts of the corpus as there are lanes, a worker reads the lanes that its share comes from, and any step
can be begun with, since a window depends on its number alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from distindex.corpus.pair_answers import PairAnswers
from distindex.hashing.batch import AnsweredPairs
from distindex.hashing.distributed import share_of

FEWEST_LANES, MOST_LANES = 8, 128
_PIECES, _WINDOW, _LABELED, _PAIRS = 1, 2, 3, 4

Numbers = npt.NDArray[np.int64]


def lane_count(batch_size: int, most: int = MOST_LANES) -> int:
    """Half of `most` lanes at least, such that powers of two of workers divide them evenly where the batch lets them.

    Where files are sorted, all rows of a lane are alike for a while: a batch is a fair sample by many lanes.
    """
    divisors = [lanes for lanes in range(most // 2, most + 1) if batch_size % lanes == 0]
    return max(divisors, key=lambda lanes: (lanes & -lanes, lanes), default=most)


def batch_bounds(rows: int, batch_size: int) -> Numbers:
    """Where each batch begins, and the end.

    The last batch is short; one row alone has no batch statistics and joins the batch before it.
    """
    start_S = np.arange(0, rows, batch_size, dtype=np.int64)
    if len(start_S) > 1 and rows - start_S[-1] < 2:
        start_S = start_S[:-1]
    return np.append(start_S, rows)


def labeled_of_batch(batch_size: int, labeled_fraction: float) -> int:
    """Labeled rows of a batch with a `labeled_fraction`: at least one row of each kind."""
    return min(batch_size - 1, max(1, round(labeled_fraction * batch_size)))


def pairs_of_batch(batch_size: int, pair_fraction: float) -> int:
    """Answered pairs of a batch with a `pair_fraction`: at least one, beside two other rows."""
    return min((batch_size - 2) // 2, max(1, round(pair_fraction * batch_size / 2)))


def drawn_in_rounds(stream: Sequence[int], count: int, first: int, stop: int) -> Numbers:
    """The draws `first` to `stop` of one permutation of `count` things after the other, by number."""
    rounds = range(first // count, -(-stop // count))
    order = [np.random.default_rng([*stream, each]).permutation(count) for each in rounds]
    begin = first - rounds.start * count
    return np.concatenate([*order, np.zeros(0, np.int64)])[begin : begin + stop - first].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class DrawnPairs:
    """The answered pairs of one global batch, whose rows are spread evenly among its other rows.

    Attributes:
        others: other rows of the batch.
        row_P2: the rows of each pair; none without answers.
        similar_P: whether they are alike.
    """

    others: int
    row_P2: Numbers
    similar_P: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, answers: PairAnswers, seed: int, epoch: int, first: int, count: int, others: int) -> DrawnPairs:
        """The draws `first` to `first + count` of one permutation of the answers after the other."""
        chosen_P = drawn_in_rounds([seed, epoch, _PAIRS], len(answers), first, first + count)
        return cls(others, answers.row_P2[chosen_P], answers.similar_P[chosen_P])

    @property
    def rows(self) -> int:
        """Rows of the global batch."""
        return self.others + self.row_P2.size

    @property
    def place_D(self) -> Numbers:
        """Where the pairs' rows stand in the global batch, those of a pair one after the other."""
        drawn = self.row_P2.size
        return ((np.arange(drawn) + 0.5) * self.rows / max(1, drawn)).astype(np.int64)

    def share(self, rank: int, workers: int) -> tuple[tuple[int, int], tuple[int, int], Numbers]:
        """A worker's range of the other rows, of the pairs' rows, and the places of these in its share."""
        begin, end = share_of(rank, workers, self.rows)
        low, high = (int(at) for at in np.searchsorted(self.place_D, [begin, end]))
        return (begin - low, end - high), (low, high), self.place_D[low:high] - begin

    def answered(self) -> AnsweredPairs | None:
        """The pairs as the loss reads them."""
        if not len(self.row_P2):
            return None
        place_P2 = torch.from_numpy(self.place_D.reshape(-1, 2))
        return AnsweredPairs(place_P2[:, 0], place_P2[:, 1], torch.from_numpy(self.similar_P))


def spread(row_B: Numbers, drawn_D: Numbers, at_D: Numbers) -> Numbers:
    """Rows with drawn ones among them, which come to stand at these places."""
    spread_B = np.empty(len(row_B) + len(drawn_D), np.int64)
    is_drawn_B = np.zeros(len(spread_B), bool)
    is_drawn_B[at_D] = True
    spread_B[is_drawn_B], spread_B[~is_drawn_B] = drawn_D, row_B
    return spread_B


class Segment(NamedTuple):
    """Consecutive rows of one piece; `first` counts from 0 in the piece."""

    piece: int
    first: int
    count: int


class EpochOrder:
    """The lanes of one epoch.

    Args:
        rows_P: rows of each piece that are streamed.
        lanes: how many lanes L.
        seed: of the run.
        epoch: counted from 0.
    """

    def __init__(self, rows_P: Numbers, lanes: int, seed: int, epoch: int) -> None:
        self.lanes, self.rows, self._seed = lanes, int(rows_P.sum()), [seed, epoch]
        self._piece_P = np.random.default_rng([*self._seed, _PIECES]).permutation(len(rows_P))
        self._start_P1 = np.concatenate([[0], np.cumsum(rows_P[self._piece_P])])

    def lane_rows(self, lane: int) -> int:
        """Rows of a lane; lanes differ by one row at most."""
        return (self.rows - lane + self.lanes - 1) // self.lanes

    def segments(self, lane: int, first: int) -> Iterator[Segment]:
        """The rows of a lane from its row `first` on."""
        start = sum(self.lane_rows(before) for before in range(lane))
        stop, start = start + self.lane_rows(lane), start + first
        place = int(np.searchsorted(self._start_P1, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._start_P1[place + 1]))
            if end > start:
                yield Segment(int(self._piece_P[place]), start - int(self._start_P1[place]), end - start)
            start, place = end, place + 1

    def shuffled(self, lane: int, window: int, rows: int) -> Numbers:
        """The order of the rows of a lane's window."""
        return np.random.default_rng([*self._seed, _WINDOW, lane, window]).permutation(rows)

    def drawn(self, labeled: int, first: int, stop: int) -> Numbers:
        """The draws `first` to `stop` of one permutation of the `labeled` rows after the other, by place."""
        return drawn_in_rounds([*self._seed, _LABELED], labeled, first, stop)


class Run(NamedTuple):
    """Rows `first` to `stop` of a lane, the first of which has the place `place` in the global batch."""

    lane: int
    first: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One global batch: streamed rows by their place in the epoch, and draws of labeled rows.

    The streamed rows of a batch are ordered by lane, so that a worker's share comes from few lanes, and the labeled
    rows are spread evenly among them, so that no worker has them all.
    """

    streamed: tuple[int, int]
    drawn: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.streamed[1] - self.streamed[0] + self.drawn[1] - self.drawn[0]

    def share(self, begin: int, end: int, lanes: int) -> tuple[list[Run], tuple[int, int], Numbers]:
        """What its rows `begin` to `end` are: runs of lanes, a range of draws, and the places of these there."""
        draws = self.drawn[1] - self.drawn[0]
        place_D = ((np.arange(draws) + 0.5) * self.rows / max(1, draws)).astype(np.int64)
        low, high = (int(at) for at in np.searchsorted(place_D, [begin, end]))
        first_L, stop_L = (-(-(position - np.arange(lanes)) // lanes) for position in self.streamed)
        start_L = np.concatenate([[0], np.cumsum(stop_L - first_L)])
        runs = []
        for lane in range(lanes):
            first = max(begin - low, int(start_L[lane]))
            stop = min(end - high, int(start_L[lane + 1]))
            if first < stop:
                shift = int(first_L[lane] - start_L[lane])
                runs.append(Run(lane, first + shift, stop + shift))
        return runs, (self.drawn[0] + low, self.drawn[0] + high), place_D[low:high] - begin


class EpochSteps:
    """The global batches of any epoch.

    Args:
        streamed: rows that are streamed.
        labeled: labeled rows that are drawn beside them; 0 without.
        batch_size: rows of a batch.
        labeled_fraction: share of each batch that is drawn from the labeled rows; 1 takes them alone.
    """

    def __init__(self, streamed: int, labeled: int, batch_size: int, labeled_fraction: float) -> None:
        self._mine = labeled_of_batch(batch_size, labeled_fraction) if labeled and streamed else 0
        self._batch_size, self._only_labeled = batch_size, not streamed
        if self._mine:
            self._bound_S1 = np.append(np.arange(0, streamed, batch_size - self._mine, dtype=np.int64), streamed)
        else:
            self._bound_S1 = batch_bounds(streamed or labeled, batch_size)

    @property
    def draws(self) -> bool:
        """Whether labeled rows are drawn; they are not streamed then."""
        return bool(self._mine) or self._only_labeled

    def __len__(self) -> int:
        return len(self._bound_S1) - 1

    def __getitem__(self, number: int) -> Step:
        first, stop = int(self._bound_S1[number]), int(self._bound_S1[number + 1])
        if self._only_labeled:
            return Step((0, 0), (first, stop))
        if not self._mine:
            return Step((first, stop), (0, 0))
        # A short batch keeps the share.
        wanted = max(1, round(self._mine * (stop - first) / (self._batch_size - self._mine)))
        return Step((first, stop), (number * self._mine, number * self._mine + wanted))


def epoch_steps(rows: int, labeled: int, batch_size: int, labeled_fraction: float) -> EpochSteps:
    """The global batches of an epoch over `rows` rows, of which `labeled` have a label that the loss may read."""
    if not labeled_fraction or labeled in (0, rows):
        return EpochSteps(rows, 0, batch_size, 0)
    return EpochSteps(0 if labeled_fraction == 1 else rows - labeled, labeled, batch_size, labeled_fraction)
