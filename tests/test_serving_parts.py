"""Replicas that answer, hang or fail: whoever is first is heard. Without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

import pytest
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from distindex.errors import UnavailableError
from distindex.serving.parts import There, first_answer_of
from distindex.serving.request import RequestError

HANGS = None


class Replicas:
    """A handle of a deployment that does with each question the next thing in a list: hang, raise, or answer."""

    def __init__(self, *does: Any) -> None:
        self.does, self.asked, self.cancelled = list(does), 0, 0

    @property
    def search(self) -> Replicas:
        return self

    def remote(self) -> Response:
        # The last again and again.
        does = self.does[min(self.asked, len(self.does) - 1)]
        self.asked += 1
        return Response(self, does)

    def part(self, replicas: int = 2) -> There:
        return There(cast(DeploymentHandle, self), replicas)


class Response:
    def __init__(self, replicas: Replicas, does: Any) -> None:
        self.replicas, self.does = replicas, does

    def __await__(self) -> Generator[Any, None, Any]:
        if self.does is HANGS:
            yield from asyncio.Event().wait().__await__()
        if isinstance(self.does, Exception):
            raise self.does
        return self.does

    def cancel(self) -> None:
        self.replicas.cancelled += 1


def ask(part: There, timeout_s: float) -> Any:
    return asyncio.run(first_answer_of(part, "search", (), timeout_s))


@pytest.mark.parametrize(
    ("does", "asked"),
    [
        (["answer"], 1),
        ([HANGS, "answer"], 2),
        ([HANGS, HANGS, "answer"], 3),
        # A lost replica says so, and its sibling is asked at once.
        ([RayError(), "answer"], 2),
        ([HANGS, RayError(), "answer"], 3),
    ],
)
def test_another_replica_is_asked_while_one_hangs(does: list[Any], asked: int) -> None:
    replicas = Replicas(*does)
    assert ask(replicas.part(), 5.0) == "answer"
    assert replicas.asked == asked


def test_one_replica_is_asked_once() -> None:
    replicas = Replicas(HANGS, "answer")
    assert isinstance(ask(replicas.part(1), 0.3), UnavailableError)
    assert replicas.asked == 1


def test_when_all_hang_there_is_an_end() -> None:
    replicas = Replicas(HANGS)
    assert isinstance(ask(replicas.part(), 0.2), UnavailableError)
    assert replicas.asked == 3


def test_a_wrong_question_is_not_asked_again() -> None:
    replicas = Replicas(RequestError("wrong"))
    with pytest.raises(RequestError, match="wrong"):
        ask(replicas.part(), 5.0)
    assert replicas.asked == 1


def test_who_goes_takes_all_attempts_along() -> None:
    async def run() -> None:
        replicas = Replicas(HANGS)
        asking = asyncio.create_task(first_answer_of(replicas.part(), "search", (), 1.0))
        while replicas.asked < 2:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.01)
        assert replicas.cancelled == replicas.asked == 2

    asyncio.run(run())


def test_attempts_that_were_overtaken_end_by_themselves() -> None:
    async def run() -> None:
        replicas = Replicas(HANGS, "answer")
        part = replicas.part()
        assert await first_answer_of(part, "search", (), 0.3) == "answer"
        assert (len(part.beside), replicas.cancelled) == (1, 0)
        while part.beside:
            await asyncio.sleep(0.01)
        assert replicas.cancelled == 1

    asyncio.run(run())


def test_where_all_are_slow_few_are_asked_again() -> None:
    async def run() -> None:
        replicas = Replicas(HANGS)
        part = replicas.part()
        found = await asyncio.gather(*(first_answer_of(part, "search", (), 0.5) for _ in range(50)))
        assert all(isinstance(one, UnavailableError) for one in found)
        assert replicas.asked == 54
        assert not part.beside

    asyncio.run(run())
