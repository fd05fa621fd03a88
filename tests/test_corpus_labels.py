from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from distindex.corpus.labels import Labels, label_lists, label_mask, labeled_ids_mask, read_labels, share_a_label
from distindex.errors import InputError, NotFoundError

LABEL_LISTS = st.lists(st.none() | st.lists(st.sampled_from("abcdef") | st.none(), max_size=4), max_size=30)
SINGLE = st.lists(st.none() | st.sampled_from("abcdef"), max_size=30)


def as_sets(labels: Labels) -> list[set[str]]:
    parts = np.split(labels.index, labels.offset_N1[1:-1]) if len(labels) else []
    return [{labels.names[i] for i in part} for part in parts]


@given(LABEL_LISTS, st.integers(1, 7))
def test_lists_against_sets_and_sklearn(rows: list[list[str | None] | None], chunk: int) -> None:
    pieces = [rows[i : i + chunk] for i in range(0, len(rows), chunk)]
    labels = read_labels(pa.chunked_array(pieces, pa.list_(pa.string())))
    expected = [{label for label in row or [] if label is not None} for row in rows]
    assert as_sets(labels) == expected
    assert labels.names == tuple(sorted(set().union(*expected)))
    assert labels.multi == any(len(row) > 1 for row in expected)
    assert labels.labeled().tolist() == [bool(row) for row in expected]
    if rows and labels.names:
        oracle = MultiLabelBinarizer(classes=list(labels.names)).fit_transform(expected)
        np.testing.assert_array_equal(labels.one_hot(), oracle)


@given(LABEL_LISTS)
def test_hide_and_take(rows: list[list[str | None] | None]) -> None:
    labels = read_labels(pa.array(rows, pa.list_(pa.string())))
    generator = np.random.default_rng(len(rows))
    keep_N = generator.random(len(rows)) < 0.5
    hidden = labels.hide(keep_N)
    full = as_sets(labels)
    assert as_sets(hidden) == [row if keep else set() for row, keep in zip(full, keep_N, strict=True)]
    assert hidden.names == labels.names
    assert hidden.multi == labels.multi
    order = generator.permutation(len(rows))
    assert as_sets(labels.take(order)) == [full[i] for i in order]
    assert as_sets(labels.take(keep_N)) == [row for row, keep in zip(full, keep_N, strict=True) if keep]


@given(SINGLE, SINGLE)
def test_share_a_label_single(queries: list[str | None], rows: list[str | None]) -> None:
    similar_QN = share_a_label(read_labels(pa.array(queries, pa.string())), read_labels(pa.array(rows, pa.string())))
    expected = [[q is not None and q == r for r in rows] for q in queries]
    np.testing.assert_array_equal(similar_QN, np.array(expected, bool).reshape(len(queries), len(rows)))


@given(LABEL_LISTS, LABEL_LISTS)
def test_share_a_label_multi(queries: list[list[str | None] | None], rows: list[list[str | None] | None]) -> None:
    kind = pa.list_(pa.string())
    similar_QN = share_a_label(read_labels(pa.array(queries, kind)), read_labels(pa.array(rows, kind)))
    expected = [[bool((set(q or []) & set(r or [])) - {None}) for r in rows] for q in queries]
    np.testing.assert_array_equal(similar_QN, np.array(expected, bool).reshape(len(queries), len(rows)))


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array([3, None, 1, 3], pa.int8()), ("1", "3")),
        (pa.array([True, None, False, True]), ("false", "true")),
        (pa.array([3.0, float("nan"), 1.0, 3.0]), ("1", "3")),
        (pa.array(["y", None, "x", "y"]).dictionary_encode(), ("x", "y")),
        (pa.array([["y"], [], ["x"], ["y", "y"]], pa.large_list(pa.large_string())), ("x", "y")),
    ],
)
def test_types_of_labels(column: pa.Array, names: tuple[str, ...]) -> None:
    labels = read_labels(column)
    assert labels.names == names
    assert as_sets(labels) == [{names[1]}, set(), {names[0]}, {names[1]}]
    assert not labels.multi


def test_all_null() -> None:
    labels = read_labels(pa.nulls(3))
    assert labels.names == ()
    assert not labels.labeled().any()
    assert labels.one_hot().shape == (3, 0)


def test_label_errors() -> None:
    with pytest.raises(InputError, match="label 'z' is not one of the 2 known labels"):
        read_labels(pa.array(["a", "z"]), names=["a", "b"])
    with pytest.raises(InputError, match="not whole"):
        read_labels(pa.array([0.5]))
    with pytest.raises(InputError, match="labels of type struct"):
        read_labels(pa.array([{"a": 1}]))
    assert read_labels(pa.array(["b"]), names=["b", "a"]).one_hot().tolist() == [[0, 1]]


@settings(max_examples=30)
@given(st.integers(0, 300), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_masks_are_the_references_and_nested(rows: int, a: float, b: float, seed: int) -> None:
    small, large = sorted((a, b))
    np.random.seed(seed)
    order = np.arange(rows)
    np.random.shuffle(order)
    np.random.shuffle(order)
    expected = np.isin(np.arange(rows), order[: int(small * rows)])
    keep_N = label_mask(rows, small, seed)
    np.testing.assert_array_equal(keep_N, expected)
    assert not (keep_N & ~label_mask(rows, large, seed)).any()


def test_explicit_ids(tmp_path: Path) -> None:
    path = tmp_path / "labeled.txt"
    path.write_text("7\n\n 3 \n")
    assert labeled_ids_mask(pa.chunked_array([[3, 5], [7]]), str(path)).tolist() == [True, False, True]
    assert labeled_ids_mask(pa.array(["3", "x", "7"]), str(path)).tolist() == [True, False, True]
    with pytest.raises(InputError, match="id 7 is not in the corpus"):
        labeled_ids_mask(pa.array([3]), str(path))
    path.write_text("7\nseven\n")
    with pytest.raises(InputError, match="line 2: 'seven' is not an integer"):
        labeled_ids_mask(pa.array([7]), str(path))
    path.write_text("\n")
    with pytest.raises(InputError, match="no id in this file"):
        labeled_ids_mask(pa.array([7]), str(path))
    with pytest.raises(NotFoundError):
        labeled_ids_mask(pa.array([7]), str(tmp_path / "nowhere.txt"))


@given(LABEL_LISTS | SINGLE | st.lists(st.none() | st.integers(-2, 2), max_size=12))
def test_label_lists_are_read_as_the_column_is(rows: list[object]) -> None:
    column = pa.array(rows)
    lists = label_lists(column)
    assert lists.type == pa.list_(pa.string())
    before, after = read_labels(column), read_labels(lists)
    assert (before.names, before.multi) == (after.names, after.multi)
    assert as_sets(before) == as_sets(after)
