"""Steady requests to a service from a process of their own, each in three ways and compared with what is right."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import aiohttp

from distindex.index.matches import Matches
from distindex.serving.client import connect_async
from distindex.serving.searcher import AsyncSearcher

K, VERSION = 10, 1
_CONNECTIONS = 64

Way = Literal["raw", "client", "client, gRPC"]
WAYS: tuple[Way, ...] = ("raw", "client", "client, gRPC")
"""One HTTP request with no second attempt; the Python client with its own, over HTTP and over gRPC."""

Answer = Sequence[tuple[int, int]]
"""The (distance, id) of each row, in order."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One query, by a code in hexadecimal or by a text, and its only right answer."""

    field: Literal["codes", "texts"]
    value: str
    answer: Answer


@dataclasses.dataclass(frozen=True)
class Asked:
    """What became of one request.

    Attributes:
        way: how it was asked.
        due: when, in seconds of the system's monotonic clock.
        ended: when its answer was there, or it had failed.
        failure: why there was no answer; empty where there was one.
        wrong: the answer is not the right one, or names another version.
    """

    way: Way
    due: float
    ended: float
    failure: str = ""
    wrong: bool = False


class _WrongError(Exception):
    """An answer that is not the right one."""


def _check(version: int, missing: Sequence[int], rows: Answer, question: Question) -> None:
    if version != VERSION or missing or rows != question.answer:
        raise _WrongError


def _rows_of(found: Matches) -> Answer:
    return list(zip(found.distance_M.tolist(), found.id_M.to_pylist(), strict=True))


async def _ask_once(session: aiohttp.ClientSession, url: str, question: Question) -> None:
    body = {question.field: question.value, "k": K}
    async with session.post(f"{url}/v1/search", json=body) as response:
        if response.status != 200:
            raise ConnectionError(f"{response.status} {await response.text()}")
        answer = await response.json()
    rows = [(row["distance"], row["id"]) for row in answer["results"][0]]
    _check(answer["version"], answer["missing_shards"], rows, question)


async def _ask_client(searcher: AsyncSearcher, question: Question) -> None:
    if question.field == "codes":
        found = await searcher.search([question.value], k=K)
    else:
        found = await searcher.search(texts=[question.value], k=K)
    _check(found.version, found.missing_shards, _rows_of(found), question)


async def _send(urls: Mapping[str, str], questions: Sequence[Question], rate: float, stop: Any) -> list[Asked]:
    done: list[Asked] = []
    connector, timeout = aiohttp.TCPConnector(limit=_CONNECTIONS), aiohttp.ClientTimeout(60)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        connect_async(urls["http"]) as over_http,
        connect_async(urls["grpc"]) as over_grpc,
    ):
        asks: dict[Way, Callable[[Question], Awaitable[None]]] = {
            "raw": lambda question: _ask_once(session, urls["http"], question),
            "client": lambda question: _ask_client(over_http, question),
            "client, gRPC": lambda question: _ask_client(over_grpc, question),
        }

        async def ask(way: Way, question: Question, due: float) -> None:
            failure, wrong = "", False
            try:
                await asks[way](question)
            except _WrongError:
                wrong = True
            except Exception as error:
                # Whatever it is: it is what a caller would have got.
                failure = f"{type(error).__name__}: {error}"
            done.append(Asked(way, due, time.monotonic(), failure, wrong))

        began, sent = time.monotonic(), 0
        tasks: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            # The ways take turns, each with every question.
            due, way = began + sent / rate, WAYS[sent % len(WAYS)]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(ask(way, questions[sent // len(WAYS) % len(questions)], due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.gather(*tasks)
    return done


def _load_process(
    urls: Mapping[str, str], questions: Sequence[Question], rate: float, stop: Any, result: Any
) -> None:
    result.put(asyncio.run(_send(urls, questions, rate, stop)))


class SteadyLoad:
    """Requests at fixed times, whether or not those before are answered, until it is stopped.

    Args:
        urls: the service, over `http` and over `grpc`.
        questions: what is asked, in turn.
        rate: requests a second, of all ways together.
    """

    def __init__(self, urls: Mapping[str, str], questions: Sequence[Question], rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._result = context.Event(), context.Queue()
        self._process = context.Process(
            target=_load_process, args=(urls, questions, rate, self._stop, self._result), daemon=True
        )
        self._process.start()

    def stop(self) -> list[Asked]:
        """What became of every request."""
        self._stop.set()
        done: list[Asked] = self._result.get(timeout=180)
        self._process.join()
        return done
