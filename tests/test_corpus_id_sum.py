from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from distindex.corpus.id_sum import IdSum

MASK = (1 << 64) - 1
INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1))
TEXTS = st.lists(st.text(max_size=40))


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def digits_of(ids: list[Any]) -> str:
    """The definition in docs/formats.md, one id at a time."""
    totals = []
    for start in (0x243F6A8885A308D3, 0x13198A2E03707344):
        total = 0
        for each in ids:
            data = each.to_bytes(8, "little", signed=True) if isinstance(each, int) else each.encode()
            h = start
            for first in range(0, len(data), 8):
                h = splitmix64(h ^ int.from_bytes(data[first : first + 8], "little"))
            total += splitmix64(h ^ len(data))
        totals.append(total & MASK)
    return "".join(f"{total:016x}" for total in totals)


@given(INTEGERS, TEXTS)
def test_sums_are_their_definition(integers: list[int], texts: list[str]) -> None:
    for ids, kind in ((integers, pa.int64()), (texts, pa.string())):
        found = IdSum.of(pa.array(ids, kind))
        assert (found.rows, found.digits) == (len(ids), digits_of(ids))


@given(TEXTS, st.randoms(use_true_random=False), st.integers(0, 40))
def test_order_pieces_and_nulls_do_not_matter(texts: list[str], shuffle: random.Random, cut: int) -> None:
    whole = IdSum.of(pa.array(texts, pa.string()))
    moved = [*texts, None]
    shuffle.shuffle(moved)
    assert IdSum.of(pa.array(moved, pa.string())) == whole
    array = pa.array(texts, pa.string())
    assert IdSum.of(array.slice(0, cut)) + IdSum.of(array.slice(cut)) == whole
    assert IdSum.of(pa.chunked_array([array.slice(cut), array.slice(0, cut)])) == whole
    assert whole - IdSum.of(array.slice(cut)) == IdSum.of(array.slice(0, cut))


def test_what_is_lost_doubled_or_changed_shows() -> None:
    ids = list(range(100_000))
    whole = IdSum.of(pa.array(ids))
    assert IdSum.of(pa.array(ids[:-1])) != whole
    assert IdSum.of(pa.array([*ids[1:], 1])) != whole
    # Two errors that plain sums of ids would not see.
    assert IdSum.of(pa.array([*ids[:-2], 99_997, 100_000])) != whole
    assert IdSum.of(pa.array(["ab", "c"])) != IdSum.of(pa.array(["a", "bc"]))
    assert IdSum.of(pa.array(["a", ""])) != IdSum.of(pa.array(["a\0", ""]))
