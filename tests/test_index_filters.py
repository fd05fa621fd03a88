"""Filters: what passes equals Python's own reading of the expression; what is no filter is refused and never run."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.errors import InputError
from distindex.index.filters import Filter
from distindex.index.index import Index
from tests import oracle
from tests.runbook import answers

Value = int | float | str | bool | None


def three_valued(operator: str, left: Value, right: Any) -> bool | None:
    """A comparison as SQL has it: unknown with a null, unless it asks for the null itself."""
    if right is None:
        return (left is None) == (operator == "==")
    if left is None:
        return None
    if operator == "in":
        return left in right
    if operator == "not in":
        return left not in right
    return {
        "==": left == right, "!=": left != right,
        **({} if isinstance(left, bool) else {
            "<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}),
    }[operator]  # fmt: skip


def decide(tree: Any, row: dict[str, Value]) -> bool | None:
    """The truth of a tree of ("and", a, b), ("or", a, b), ("not", a) and (column, operator, constant)."""
    if tree[0] == "not":
        inner = decide(tree[1], row)
        return None if inner is None else not inner
    if tree[0] in ("and", "or"):
        one, two = decide(tree[1], row), decide(tree[2], row)
        decisive = tree[0] == "or"
        if decisive in (one, two):
            return decisive
        return None if None in (one, two) else not decisive
    return three_valued(tree[1], row[tree[0]], tree[2])


def written(tree: Any) -> str:
    if tree[0] == "not":
        return f"not ({written(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({written(tree[1])}) {tree[0]} ({written(tree[2])})"
    return f"{tree[0]} {tree[1]} {tree[2]!r}"


numbers = st.integers(-3, 3) | st.sampled_from([0.5, -1.5, 2.0, 2**63, -(2**70), 1e300])
ordered = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
comparisons = st.one_of(
    st.tuples(st.just("whole"), ordered, numbers),
    st.tuples(st.just("real"), ordered, st.integers(-3, 3) | st.sampled_from([0.5, -1.5, 1e300])),
    st.tuples(st.just("text"), ordered, st.sampled_from(["", "a", "b", "é", "'quoted\""])),
    st.tuples(st.just("flag"), st.sampled_from(["==", "!="]), st.booleans()),
    st.tuples(st.just("whole"), st.sampled_from(["in", "not in"]), st.lists(numbers, max_size=3)),
    st.tuples(st.just("text"), st.sampled_from(["in", "not in"]), st.lists(st.sampled_from(["a", "z"]), max_size=2)),
    st.tuples(st.sampled_from(["whole", "real", "text", "flag"]), st.sampled_from(["==", "!="]), st.none()),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=6,
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "whole": st.none() | st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
            "real": st.none() | st.sampled_from([-1.5, 0.0, 0.5, 2.0]),
            "text": st.none() | st.sampled_from(["", "a", "b", "é", "'quoted\""]),
            "flag": st.none() | st.booleans(),
        }
    ),
    max_size=12,
)
SCHEMA = pa.schema([("whole", pa.int64()), ("real", pa.float64()), ("text", pa.string()), ("flag", pa.bool_())])


@settings(max_examples=300, deadline=None)
@given(tree=trees, data=rows)
def test_what_passes_is_what_the_expression_says(tree: Any, data: list[dict[str, Value]]) -> None:
    mask_N = Filter(written(tree)).mask(pa.Table.from_pylist(data, SCHEMA))
    assert mask_N.tolist() == [decide(tree, row) is True for row in data]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 <= n < 3", [True, True, False]),
        ("2 == n", [False, True, False]),
        ("flag", [True, False, False]),
        ("not flag", [False, True, False]),
        ('column("two words") == "x"', [True, False, True]),
        ('when >= "2020-01-02"', [False, True, True]),
        ('when == "2020-01-02" or n == 3', [False, True, True]),
        ("n in (1, 3)", [True, False, True]),
        ("  n != 2  ", [True, False, True]),
        ("small == 300", [False, False, False]),
        ("small < 300", [True, True, True]),
        ("single == 0.1", [True, False, False]),
    ],
)
def test_ways_to_write_a_filter(text: str, expected: list[bool]) -> None:
    days = [datetime.datetime(2020, 1, day) for day in (1, 2, 3)]
    table = pa.table(
        {
            "n": [1, 2, 3],
            "flag": [True, False, None],
            "two words": ["x", "y", "x"],
            "when": pa.array(days, pa.timestamp("us")),
            "small": pa.array([1, 2, 3], pa.uint8()),
            "single": pa.array([0.1, 0.2, 0.3], pa.float32()),
        }
    )
    assert Filter(text).mask(table).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("n ==", "invalid syntax"),
        ("n = 3", "write for instance"),
        ("__import__('os').system('true')", "is not part of a filter"),
        ("n == open('x')", "is not part of a filter"),
        ("n.real == 3", "compares no column"),
        ("n + 1 == 3", "compares no column"),
        ("n == m", "compares column n with column m"),
        ("1 == 1", "compares no column"),
        ("n is None", "use == None"),
        ("n in [1, None]", "None stands in the list"),
        ("n in text", "compares column n with column text"),
        ("n in 3", "in takes a column and a list"),
        ("n < None", "None goes with == and != only"),
        ("n == 1j", "is not part of a filter"),
        ("(lambda: n)()", "is not part of a filter"),
        ("n == 1 " + "or n == 1 " * 3000, "characters, but at most"),
        ("(" * 400 + "n == 1" + ")" * 400, "nested"),
        ("not " * 4000 + "n == 1", "nested"),
        ("missing == 3", 'has no column "missing"; its payload columns are n, text'),
        ("text == 3", "column text is of type string and cannot be compared (==) with 3"),
        ('n == "three"', 'column n is of type int64 and cannot be compared (==) with "three"'),
        ("n == True", "column n is of type int64 and cannot be compared (==) with True"),
        ("n in [1, 'a']", "column n is of type int64"),
    ],
)
def test_what_is_no_filter_is_refused(text: str, message: str) -> None:
    table = pa.table({"n": [1], "text": ["a"]})
    with pytest.raises(InputError) as caught:
        Filter(text).mask(table)
    assert str(caught.value).startswith("filter: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_filtered_search_is_that_of_the_rows_that_pass(tmp_path_factory: Any, share: float, shards: int) -> None:
    random = np.random.default_rng(int(share * 1000) + shards)
    rows, bits = 4000, 32
    # Half of the rows share 30 codes; the codes near a query mostly have no row that passes.
    pool = random.integers(0, 256, (900, bits // 8), np.uint8)
    code_NC = pool[np.where(random.random(rows) < 0.5, random.integers(0, 30, rows), random.integers(0, 900, rows))]
    passing_U = random.random(900) < share
    of_code = {code.tobytes(): bool(passes) for code, passes in zip(pool, passing_U, strict=True)}
    score = np.array([of_code[code.tobytes()] for code in code_NC]) & (random.random(rows) < 0.8)
    ids = random.permutation(rows)
    home = str(tmp_path_factory.mktemp("filtered"))
    index = Index.create(home, code_NC, ids, pa.table({"score": score.astype(np.float64)}), shards=shards)
    queries = np.concatenate([pool[:4], random.integers(0, 256, (4, bits // 8), np.uint8)])
    kept, kept_ids = code_NC[score], ids[score].tolist()
    for k in (1, 10, 300, 5000):
        found = index.search(queries, k, filter="score > 0.5")
        assert answers(found) == oracle.search(queries, kept, kept_ids, k=k)
    for radius in (0, 8, 32):
        found = index.search(queries, radius=radius, filter="score > 0.5")
        assert answers(found) == oracle.search(queries, kept, kept_ids, radius=radius)
    logits = random.standard_normal((3, bits)).astype(np.float32)
    for candidates in (5, 40, 4000):
        found = index.search(logits=logits, k=5, candidates=candidates, filter="score > 0.5")
        expected = oracle.asymmetric_search(logits, kept, kept_ids, k=5, candidates=candidates)
        assert answers(found) == [[row[1:] for row in matches] for matches in expected]


def test_an_index_without_payload_or_rows_refuses_and_answers(tmp_path: Any) -> None:
    bare = Index.create(str(tmp_path / "bare"), np.zeros((3, 2), np.uint8), [1, 2, 3])
    with pytest.raises(InputError, match="it has no payload columns"):
        bare.search(np.zeros(2, np.uint8), filter="a == 1")
    payload = pa.table({"a": pa.array([], pa.int64())})
    empty = Index.create(str(tmp_path / "empty"), np.zeros((0, 2), np.uint8), pa.array([], pa.int64()), payload)
    assert list(empty.search(np.zeros(2, np.uint8), filter="a == 1")) == [[]]
    with pytest.raises(InputError, match="cannot be compared"):
        empty.search(np.zeros(2, np.uint8), filter='a == "x"')
