"""The backend of a listening process over the versions that it has open. Knows nothing of Ray.

Another version is loaded beside the one that is served, and then takes its place between two requests: whatever a
request asks, it asks one version. The version before is let go of when the last of its requests is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from distindex.codes import CodeArray
from distindex.errors import UnavailableError, reason_of
from distindex.index.matches import Matches
from distindex.index.statistics import ShardStatistics
from distindex.serving.application import Router
from distindex.serving.body import Limits
from distindex.serving.parts import Part, answer_of
from distindex.serving.request import Logits, SearchRequest

logger = logging.getLogger(__name__)

# A deployer that is lost is replaced meanwhile.
_PATIENCE_S = 30.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A version to serve, as it was started once.

    Attributes:
        name: tells apart whatever was started, also of the same version.
        info: what `inspection.describe` says of the version, and what queries its hasher reads.
    """

    name: str
    info: dict[str, Any] = dataclasses.field(hash=False)

    @property
    def version(self) -> int:
        """The version's number."""
        return self.info["version"]


@dataclasses.dataclass(frozen=True)
class Order:
    """What every listening process is to do.

    Attributes:
        id: tells orders apart.
        serve: what to answer from.
        load: what to have ready beside it.
    """

    id: str
    serve: Target
    load: Target | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a listening process is.

    Attributes:
        process: its name.
        served: the name of the target that it answers from.
        open: the names of those that it has open.
        failed: of targets that it could not load, why.
    """

    process: str
    served: str
    open: tuple[str, ...]
    failed: dict[str, str]


class _Opened:
    """A router, and how many requests ask it."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.users = 0
        self.unused = asyncio.Event()
        self.unused.set()

    def enter(self) -> None:
        self.users += 1
        self.unused.clear()

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            self.unused.set()


class _Pin:
    """The router that a request asks, from its first question on."""

    def __init__(self) -> None:
        self.opened: _Opened | None = None


_pin: ContextVar[_Pin | None] = ContextVar("pin", default=None)


class Switch:
    """Answers from one of several routers.

    Args:
        open_router: opens the router of a target.
        limits: what one request may ask for.
    """

    def __init__(self, open_router: Callable[[Target], Awaitable[Router]], limits: Limits) -> None:
        self._open_router = open_router
        self.limits = limits
        self._opened: dict[str, _Opened] = {}
        self._served = ""
        self._failed: dict[str, str] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._at_work = asyncio.Lock()

    async def start(self, leader: Part) -> None:
        """Serve what the deployer says; raises what fails to open."""
        while True:
            order = await answer_of(leader, "first_order", (), _PATIENCE_S)
            if not isinstance(order, Order):
                logger.warning("the deployer does not say what to serve: %s", order)
                continue
            if order.serve.name == self._served:
                return
            # It may say something else by the time that this is open.
            router = await self._open_router(order.serve)
            for before in self._opened.values():
                await before.router.close()
            self._opened = {order.serve.name: _Opened(router)}
            self._served = order.serve.name

    async def follow(self, process: str, leader: Part) -> None:
        """Do what the deployer says, for good.

        Args:
            process: the name of this process.
            leader: the deployer.
        """

        async def tell() -> None:
            await answer_of(leader, "tell", (self.progress(process),), _PATIENCE_S)

        heard = ""
        at_work: set[asyncio.Task[None]] = set()
        while True:
            order = await answer_of(leader, "follow", (self.progress(process), heard), _PATIENCE_S)
            if isinstance(order, Order):
                heard = order.id
                # Loading takes its time, and the deployer is to hear meanwhile that this process is alive.
                task = asyncio.create_task(self.obey(order, tell))
                at_work.add(task)
                task.add_done_callback(at_work.discard)

    async def obey(self, order: Order, tell: Callable[[], Awaitable[None]]) -> None:
        """Do what an order says, one after another.

        Args:
            order: a target that cannot be loaded is noted in the progress, and what is served stays as it is.
            tell: called at each progress.
        """
        async with self._at_work:
            for target in (order.serve, order.load):
                if target is not None:
                    await self._load(target)
            if order.serve.name in self._opened:
                self._served = order.serve.name
            await tell()
            kept = {self._served, order.serve.name, order.load.name if order.load else ""}
            for name in self._opened.keys() - kept - self._closing.keys():
                # Not here: whoever reads the last answer slowly holds up no order.
                closing = asyncio.create_task(self._close(name, tell))
                self._closing[name] = closing
                closing.add_done_callback(lambda _, name=name: self._closing.pop(name))

    async def _load(self, target: Target) -> None:
        if target.name in self._opened:
            return
        router: Router | None = None
        try:
            router = await self._open_router(target)
            await router.check()
        except Exception as error:
            # Whatever it is: what is served stays, and who asked for the other is told.
            self._failed = {target.name: reason_of(error)}
            if router is not None:
                await router.close()
        else:
            self._opened[target.name] = _Opened(router)

    async def _close(self, name: str, tell: Callable[[], Awaitable[None]]) -> None:
        opened = self._opened[name]
        await opened.unused.wait()
        del self._opened[name]
        try:
            await opened.router.close()
        except Exception:
            # It is not asked any more; what it holds must not keep this process from going on.
            logger.exception("version %d could not be closed", opened.router.info()["version"])
        await tell()

    def progress(self, process: str) -> Progress:
        """How far this process, of this name, is."""
        return Progress(process, self._served, tuple(self._opened), dict(self._failed))

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Whatever the block asks, it asks one version: the one that is served when it first asks."""
        pin = _Pin()
        token = _pin.set(pin)
        try:
            yield
        finally:
            _pin.reset(token)
            if pin.opened is not None:
                pin.opened.leave()
                pin.opened = None

    @contextlib.contextmanager
    def _router(self) -> Iterator[Router]:
        pin = _pin.get()
        if pin is None:
            with self.pinned(), self._router() as router:
                yield router
            return
        if pin.opened is None:
            if not self._served:
                raise UnavailableError("no version is served yet; try again")
            pin.opened = self._opened[self._served]
            pin.opened.enter()
        yield pin.opened.router

    def info(self) -> dict[str, Any]:
        """What is served."""
        with self._router() as router:
            return router.info()

    async def search(self, request: SearchRequest) -> Matches:
        """See `Router.search`."""
        with self._router() as router:
            return await router.search(request)

    async def codes_of(self, request: SearchRequest) -> tuple[CodeArray, Logits | None]:
        """See `Router.codes_of`."""
        with self._router() as router:
            return await router.codes_of(request)

    async def statistics(self) -> ShardStatistics:
        """See `Router.statistics`."""
        with self._router() as router:
            return await router.statistics()

    async def lookup(self, id: int | str) -> Matches:
        """See `Router.lookup`."""
        with self._router() as router:
            return await router.lookup(id)

    async def lost_shards(self) -> dict[int, str]:
        """See `Router.lost_shards`."""
        with self._router() as router:
            return await router.lost_shards()

    async def problems(self) -> list[str]:
        """See `Router.problems`."""
        with self._router() as router:
            return await router.problems()


class Pinned:
    """ASGI middleware: each request asks one version, from its first question to the end of its answer."""

    def __init__(self, app: ASGIApp, switch: Switch) -> None:
        self._app, self._switch = app, switch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._switch.pinned():
            await self._app(scope, receive, send)
