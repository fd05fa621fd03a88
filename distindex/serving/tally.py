"""What all listening processes have done: each tells the deployer, which hands it to whoever is asked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from distindex.serving.activity import Activity, Searches
from distindex.serving.parts import Part, answer_of

# A process tells anew after so long; one that is not heard of for three times as long is gone.
_HEARD_S = 4.0
# Longest wait of one who looks for those that have not told yet; then what they told before counts.
_LOOK_S = 1.0
# A deployer that is lost is replaced meanwhile.
_PATIENCE_S = 30.0


class Tally:
    """What each process has told. Processes are asked to tell when somebody looks, and not before."""

    def __init__(self) -> None:
        self._looks = 0
        # Of each process: for which look it told, when, and what.
        self._told: dict[str, tuple[int, float, Searches]] = {}
        self._changed = asyncio.Condition()

    async def tell(self, searches: Searches, look: int) -> int:
        """Take what a process has done; returns the number of the latest look when there is another, or in a while.

        Args:
            searches: what it has done.
            look: the number that the process heard last; 0 at first.
        """
        self._told[searches.process] = look, time.monotonic(), searches
        await self._until(lambda: self._looks != look, _HEARD_S)
        return self._looks

    async def look(self) -> list[Searches]:
        """What each process that is alive has done until now."""
        self._looks += 1
        look = self._looks
        await self._until(lambda: all(told >= look for told, _, _ in self._alive()), _LOOK_S)
        return [searches for _, _, searches in self._alive()]

    def _alive(self) -> list[tuple[int, float, Searches]]:
        oldest = time.monotonic() - 3 * _HEARD_S
        self._told = {process: told for process, told in self._told.items() if told[1] > oldest}
        return list(self._told.values())

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Tell those that wait of a change, and return when the condition holds, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                self._changed.notify_all()
                await self._changed.wait_for(condition)


class Teller:
    """The part of one listening process.

    Args:
        activity: what it does.
        deployer: has the tally.
    """

    def __init__(self, activity: Activity, deployer: Part) -> None:
        self._activity, self._deployer = activity, deployer

    async def run(self) -> None:
        """Tell whenever somebody looks; does not return."""
        look = 0
        while True:
            heard = await answer_of(self._deployer, "tell_searches", (self._activity.searches(), look), _PATIENCE_S)
            look = heard if isinstance(heard, int) else look

    async def everywhere(self) -> list[Searches]:
        """What each process has done; this one's alone where the deployer does not answer."""
        found = await answer_of(self._deployer, "searches", (), 2 * _LOOK_S)
        told = [] if isinstance(found, Exception) else found
        own = self._activity.searches()
        return [own, *(searches for searches in told if searches.process != own.process)]
