"""Requests that arrive together are searched together: a batch costs less than its queries one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from distindex.codes import CodeArray
from distindex.index.matches import Matches, starts_of

SettingsT = TypeVar("SettingsT", bound=Hashable)


class _Waiting(NamedTuple):
    code_QC: CodeArray
    found: asyncio.Future[Matches]


class Together(Generic[SettingsT]):
    """Searches at most so many batches at once; what comes meanwhile waits, and goes on together.

    Only requests with equal settings share a batch, so that each gets the answer it would get alone.

    Args:
        search: searches a batch.
        most: queries that a batch with these settings may have.
        at_once: batches at work at once.
    """

    def __init__(
        self,
        search: Callable[[CodeArray, SettingsT], Awaitable[Matches]],
        most: Callable[[SettingsT], int],
        at_once: int,
    ) -> None:
        self._search, self._most, self._at_once = search, most, at_once
        self._at_work = 0
        self._waiting: dict[SettingsT, list[_Waiting]] = {}
        self._batches: set[asyncio.Task[None]] = set()

    async def search(self, code_QC: CodeArray, settings: SettingsT) -> Matches:
        """The answers to these queries; raises what the search raises."""
        found: asyncio.Future[Matches] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(settings, []).append(_Waiting(code_QC, found))
        self._begin()
        return await found

    async def finished(self) -> None:
        """Return when no batch is at work, also of those whose callers have gone."""
        while self._batches:
            await asyncio.wait(self._batches)

    def _begin(self) -> None:
        while self._at_work < self._at_once and self._waiting:
            # Those that began to wait first: a dictionary keeps the order in which its keys came.
            settings = next(iter(self._waiting))
            waiting = self._waiting.pop(settings)
            most, size, taken = self._most(settings), 0, 0
            while taken < len(waiting) and (not taken or size + len(waiting[taken].code_QC) <= most):
                size += len(waiting[taken].code_QC)
                taken += 1
            if waiting[taken:]:
                self._waiting[settings] = waiting[taken:]
            self._at_work += 1
            batch = asyncio.create_task(self._run(waiting[:taken], settings))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)

    async def _run(self, batch: list[_Waiting], settings: SettingsT) -> None:
        # Whoever asked may have gone meanwhile.
        batch = [waiting for waiting in batch if not waiting.found.done()]
        try:
            if not batch:
                return
            matches = await self._search(np.concatenate([waiting.code_QC for waiting in batch]), settings)
            start_B1 = starts_of(np.array([len(waiting.code_QC) for waiting in batch]))
            for waiting, start, stop in zip(batch, start_B1[:-1], start_B1[1:], strict=True):
                if not waiting.found.done():
                    waiting.found.set_result(matches.part(int(start), int(stop)))
        except Exception as error:
            for waiting in batch:
                if not waiting.found.done():
                    waiting.found.set_exception(error)
        finally:
            self._at_work -= 1
            self._begin()
