"""Requests that are searched together get the answers that they would get alone."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serving.together import Together

MOST = 7


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    code_NC = np.random.default_rng(0).integers(0, 256, (300, 1), np.uint8)
    return Index.create(str(tmp_path_factory.mktemp("index")), code_NC, np.arange(300))


class Searches:
    """Searches an index, and remembers what was asked of it at once."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.sizes: list[int] = []
        self.at_work = self.most_at_work = 0

    async def __call__(self, code_QC: CodeArray, k: int) -> Matches:
        self.sizes.append(len(code_QC))
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(0.001)
        self.at_work -= 1
        if k == 0:
            raise InputError("k: 0")
        return self.index.search(code_QC, k)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=30),
    at_once=st.integers(1, 3),
)
def test_each_request_gets_its_own_answers(index: Index, requests: list[tuple[int, int, bool]], at_once: int) -> None:
    random = np.random.default_rng(1)
    query_RQC = [random.integers(0, 256, (size, 1), np.uint8) for size, _, _ in requests]
    searches = Searches(index)

    async def ask() -> list[Any]:
        together = Together(searches, lambda k: MOST, at_once)
        tasks = []
        for query_QC, (_, k, later) in zip(query_RQC, requests, strict=True):
            tasks.append(asyncio.create_task(together.search(query_QC, k)))
            if later:
                await asyncio.sleep(0.0005)
        return await asyncio.gather(*tasks, return_exceptions=True)

    for found, query_QC, (_, k, _) in zip(asyncio.run(ask()), query_RQC, requests, strict=True):
        if k == 0:
            assert isinstance(found, InputError)
        else:
            assert found.to_table().equals(index.search(query_QC, k).to_table())
            assert len(found) == len(query_QC)
    assert searches.most_at_work <= at_once
    assert all(size <= max(MOST, 9) for size in searches.sizes)


def test_what_waits_goes_on_together_and_who_has_gone_is_left_out(index: Index) -> None:
    searches = Searches(index)

    async def ask() -> list[Any]:
        together = Together(searches, lambda k: 100, 1)
        query_QC = np.zeros((2, 1), np.uint8)
        tasks = [asyncio.create_task(together.search(query_QC, 1)) for _ in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask())
    assert searches.sizes == [2, 16]
    assert [type(each).__name__ for each in found] == ["Matches"] * 3 + ["CancelledError"] + ["Matches"] * 6
