"""What follows from answers about pairs, against a closure made pair by pair."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.corpus.labels import Labels, read_labels
from distindex.corpus.pair_answers import RowPairs, close


def labels_of(names: list[str | None] | list[list[str]]) -> Labels:
    return read_labels(pa.array(names))


def pairs_of(answers: dict[tuple[int, int], bool]) -> RowPairs:
    rows = np.array(list(answers), np.int64).reshape(-1, 2)
    return RowPairs(rows, np.array(list(answers.values()), bool))


def names_of(labels: Labels) -> list[list[str]]:
    return [[labels.names[i] for i in np.flatnonzero(row)] for row in labels.one_hot()]


def reached(rows: int, answers: dict[tuple[int, int], bool]) -> np.ndarray:
    """The transitive closure of `same`, by Warshall."""
    together = np.eye(rows, dtype=bool)
    for (i, j), same in answers.items():
        if same:
            together[i, j] = together[j, i] = True
    for k in range(rows):
        together |= together[:, k, None] & together[None, k, :]
    return together


@st.composite
def situations(draw: Any) -> tuple[list[str | None], dict[tuple[int, int], bool]]:
    rows = draw(st.integers(2, 9))
    names = draw(st.lists(st.sampled_from([None, None, "a", "b"]), min_size=rows, max_size=rows))
    every = list(itertools.combinations(range(rows), 2))
    asked = draw(st.lists(st.sampled_from(every), unique=True, max_size=12))
    return names, {pair: draw(st.booleans()) for pair in asked}


@settings(deadline=None, max_examples=300)
@given(situations())
def test_labels_follow_as_by_the_transitive_closure(drawn: Any) -> None:
    names, answers = drawn
    rows = len(names)
    together = reached(rows, answers)
    torn = np.zeros(rows, bool)
    expected: list[str | None] = list(names)
    for row in range(rows):
        others = np.flatnonzero(together[row])
        given_names = {names[i] for i in others} - {None}
        torn[row] = len(given_names) > 1 or any(
            not same and together[row, i] and together[row, j] for (i, j), same in answers.items()
        )
        if not torn[row] and given_names:
            expected[row] = given_names.pop()
    kept, counts = {}, {"resolved": 0, "contradictory": 0}
    for (i, j), same in answers.items():
        if expected[i] is not None and expected[j] is not None:
            counts["resolved" if (expected[i] == expected[j]) == same else "contradictory"] += 1
        elif together[i, j] and torn[i]:
            counts["contradictory"] += 1
        else:
            kept[i, j] = same
    labels, found = close(labels_of(names), pairs_of(answers))
    assert names_of(labels) == [[name] if name else [] for name in expected]
    assert {tuple(row): bool(same) for row, same in zip(found.row_P2.tolist(), found.similar_P, strict=True)} == kept
    assert (found.resolved, found.contradictory) == (counts["resolved"], counts["contradictory"])
    assert sum(found.counts().values()) == len(answers)


def test_rows_that_are_not_there_are_counted() -> None:
    labels, found = close(labels_of(["a", None, None]), pairs_of({(0, 1): True, (-1, 2): True, (2, -1): False}))
    assert names_of(labels) == [["a"], ["a"], []]
    assert found.counts() == {"used": 0, "resolved": 1, "contradictory": 0, "unknown": 2, "unused": 0}


def test_nothing_follows_where_rows_have_several_labels() -> None:
    names = [["a", "b"], [], ["b"], ["c"]]
    labels, found = close(labels_of(names), pairs_of({(0, 1): True, (1, 3): True, (0, 2): True, (0, 3): True}))
    assert names_of(labels) == names
    assert found.row_P2.tolist() == [[0, 1], [1, 3]]
    assert (found.resolved, found.contradictory) == (1, 1), "b is shared, and nothing with c"


def test_answers_that_a_method_does_not_read_are_counted_as_unused() -> None:
    _, found = close(labels_of(["a", None, None]), pairs_of({(0, 1): True, (1, 2): False}))
    assert (len(found), len(found.left_unused()), found.left_unused().counts()["unused"]) == (1, 0, 1)
