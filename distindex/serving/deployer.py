"""One process that says which version the listening processes serve, and leads them to another.

It starts the shards of the other version beside those that answer, has every listening process open and check it, and
only when all of them could, tells all to serve it. Then it stops the shards of the version before. What goes wrong
until then leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.serve.exceptions import RayServeException
from ray.serve.metrics import Counter, Gauge
from ray.serve.schema import ApplicationStatus

from distindex.errors import ConflictError, DistindexError, UnavailableError, reason_of
from distindex.index.manifest import read_manifest, versions
from distindex.serving.activity import Searches
from distindex.serving.inspection import describe
from distindex.serving.plan import SHARDS, Plan, shard_applications, shard_targets, target_of
from distindex.serving.request import RequestError
from distindex.serving.status import failure_of
from distindex.serving.switch import Order, Progress, Target
from distindex.serving.tally import Tally
from distindex.storage import Storage

logger = logging.getLogger(__name__)

# A listening process asks again after so long; one that is not heard of for three times as long is gone.
_HEARD_S = 4.0
_START_TIMEOUT_S = 600.0
_SWITCH_TIMEOUT_S = 30.0
# Longer than a request may take, its answer included; who is not done by then asks shards that have gone.
_DRAIN_TIMEOUT_S = 60.0
# Between two looks at the index, and the least age of a look that is answered from.
_LOOK_S, _FRESH_S = 60.0, 2.0
# Where the cluster remembers what each service serves.
NAMESPACE, KEPT = "distindex", "served-by-"


class Deployer:
    """The replica of the deployment that there is one of.

    Args:
        plan: what of the service does not change.
        target: what was started with the service; a replica that replaces one goes on with what was served last.
    """

    async def __init__(self, plan: Plan, target: Target) -> None:
        self._plan = plan
        self._storage = Storage(plan.index, plan.storage_options)
        self._seen = target.version
        kept = internal_kv._internal_kv_get(KEPT + plan.service, namespace=NAMESPACE)
        if kept is not None:
            served = json.loads(kept)
            target, self._seen = Target(served["name"], served["info"]), served["seen"]
        # One thread: Serve's configs register a module for pickling while they are made, two at once trip each other.
        self._serve_thread = ThreadPoolExecutor(1, "serve")
        self._order = Order(secrets.token_hex(4), target)
        # Names of the targets whose shards are to stay.
        self._needed = {target.name}
        self._heard: dict[str, tuple[float, Progress]] = {}
        self._changed = asyncio.Event()
        self._tally = Tally()
        self._step: str | None = None
        self._deploying: Target | None = None
        self._error: str | None = None
        self._newest, self._looked = target.version, 0.0
        self._newest_version = Gauge("distindex_newest_version", "the newest version of the index")
        self._deploys = Counter("distindex_deploys", "changes of the version that is served", ("outcome",))  # type: ignore[arg-type]
        self._tasks = {asyncio.create_task(self._watch()), asyncio.create_task(self._settle(target))}

    async def first_order(self) -> Order:
        """What a listening process that starts is to serve."""
        return Order("", self._order.serve)

    async def follow(self, progress: Progress, heard: str) -> Order | None:
        """The order after the one that a process has heard, or None after some seconds without one."""
        await self.tell(progress)
        until = time.monotonic() + _HEARD_S
        while self._order.id == heard and time.monotonic() < until:
            await self._wait(until - time.monotonic())
        return self._order if self._order.id != heard else None

    async def tell(self, progress: Progress) -> None:
        """Take note of how far a process is."""
        before = self._heard.get(progress.process)
        self._heard[progress.process] = time.monotonic(), progress
        if before is None or before[1] != progress:
            self._wake()

    async def tell_searches(self, searches: Searches, look: int) -> int:
        """See `Tally.tell`."""
        return await self._tally.tell(searches, look)

    async def searches(self) -> list[Searches]:
        """See `Tally.look`."""
        return await self._tally.look()

    async def state(self) -> dict[str, Any]:
        """What is served, the newest version, and what the latest deployment does or why it failed."""
        if time.monotonic() - self._looked > _FRESH_S:
            await self._look()
        return self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "version": self._order.serve.version,
            "newest": self._newest,
            "deploying": self._deploying.version if self._deploying else None,
            "step": self._step,
            "error": self._error,
        }

    async def deploy(self, version: int) -> dict[str, Any]:
        """Begin to go to another version, 0 for the newest; answers as `state`.

        Raises:
            RequestError: there is no such version, or it cannot take the place of the one that is served.
            ConflictError: the service is on its way to another one.
            UnavailableError: the index cannot be read.
        """
        info = await asyncio.to_thread(self._describe, version)
        if self._deploying is not None:
            if self._deploying.version != info["version"]:
                raise ConflictError(
                    f"the service is on its way to version {self._deploying.version}; deploy again when it is there"
                )
        elif info["version"] != self._order.serve.version:
            # Before anything is awaited: two who ask at once find one deployment.
            self._deploying, self._step, self._error = target_of(info), "starting", None
            self._begin(self._go(self._deploying))
        else:
            self._error = None
        # At once: what has ended meanwhile, and how, is for those who ask again.
        return self._state()

    def _describe(self, version: int) -> dict[str, Any]:
        try:
            manifest = read_manifest(self._storage, version)
        except DistindexError as error:
            raise RequestError(str(error), "version") from error
        except Exception as error:
            raise UnavailableError(f"{self._plan.index}: cannot be read ({reason_of(error)}); try again") from error
        info, served = describe(self._plan.index, manifest), self._order.serve.info
        made_by, served_by = ((about["hasher"] or {}).get("fingerprint") for about in (info, served))
        for what, found, expected in (
            ("codes of {} bits", info["bits"], served["bits"]),
            ("ids of type {}", info["id_type"], served["id_type"]),
            ("codes made by hasher {}", made_by, served_by),
        ):
            if found != expected and None not in (found, expected):
                raise RequestError(
                    f"version {info['version']} has {what.format(found)}, but version {served['version']}, which is "
                    f"served, {what.format(expected)}; start another service for it",
                    "version",
                )
        return {**info, "encodes": served["encodes"]}

    async def _settle(self, target: Target) -> None:
        """Have what is served there, and nothing else: at the start, and after the loss of a deployer."""
        try:
            await self._start(target)
        except Exception as error:
            # Whatever it is: another version may be deployed instead.
            logger.error("version %d cannot be served", target.version, exc_info=error)
            self._error = f"version {target.version} cannot be served: {reason_of(error)}"
        try:
            await self._until(lambda progress: progress.open == (target.name,), _DRAIN_TIMEOUT_S, "open it")
        except UnavailableError as error:
            logger.warning("%s", error)
        await self._clean_up()

    async def _go(self, target: Target) -> None:
        try:
            await self._change(target)
            await self._clean_up()
        finally:
            self._deploying = self._step = None

    async def _change(self, target: Target) -> None:
        before = self._order.serve
        self._needed.add(target.name)
        try:
            await self._start(target)
            self._step = "loading"
            self._give(Order(secrets.token_hex(4), before, target))
            await self._until(
                lambda progress: target.name in progress.open or target.name in progress.failed,
                _START_TIMEOUT_S,
                "load it",
            )
            for progress in self._alive():
                if target.name in progress.failed:
                    raise UnavailableError(progress.failed[target.name])
            self._step = "switching"
            self._seen = max(self._seen, target.version)
            await asyncio.to_thread(self._keep, target)
        except Exception as error:
            # Whatever it is: what is served stays, and who asks is told why.
            logger.error("version %d cannot be served", target.version, exc_info=error)
            self._error = f"version {target.version} cannot be served: {reason_of(error)}"
            self._seen = max(self._seen, target.version)
            self._give(Order(secrets.token_hex(4), before))
            self._needed.discard(target.name)
            self._deploys.inc(1, {"outcome": "failed"})
        else:
            self._give(Order(secrets.token_hex(4), target))
            await self._drain(target)
            self._needed.discard(before.name)
            self._deploys.inc(1, {"outcome": "done"})

    async def _drain(self, target: Target) -> None:
        for step, is_done, seconds in (
            ("switching", lambda progress: progress.served == target.name, _SWITCH_TIMEOUT_S),
            ("draining", lambda progress: progress.open == (target.name,), _DRAIN_TIMEOUT_S),
        ):
            self._step = step
            try:
                await self._until(is_done, seconds, "switch")
            except UnavailableError as error:
                # The order stands, and the process follows it as soon as it can.
                logger.warning("%s", error)

    async def _start(self, target: Target) -> None:
        names = shard_applications(self._plan, target)
        if not names:
            return

        def start() -> None:
            # A deployer before this one may have been here already.
            if not set(names) <= set(serve.status().applications):
                serve.run_many(shard_targets(self._plan, target), wait_for_applications_running=False)

        await self._ask_serve(start)
        until = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < until:
            running = (await self._ask_serve(serve.status)).applications
            found = [running[name] for name in names if name in running]
            for application in found:
                failure_of(application)
            if len(found) == len(names) and all(one.status == ApplicationStatus.RUNNING for one in found):
                return
            await asyncio.sleep(0.1)
        raise UnavailableError(f"its shards did not start within {_START_TIMEOUT_S:.0f} s; are there CPUs for them?")

    def _keep(self, target: Target) -> None:
        kept = {"name": target.name, "info": target.info, "seen": self._seen}
        # Serve keeps what it has to remember here too.
        internal_kv._internal_kv_put(KEPT + self._plan.service, json.dumps(kept), namespace=NAMESPACE)

    async def _clean_up(self) -> None:
        """Stop the shards of what is no longer needed, also of a deployment that a deployer before this one began."""

        def unneeded() -> list[str]:
            names = [name for name in serve.status().applications if name.startswith(SHARDS)]
            return [name for name in names if not any(name.startswith(f"{kept}-") for kept in self._needed)]

        try:
            for name in await self._ask_serve(unneeded):
                # All at once, and then for all of them: each takes its seconds.
                await self._ask_serve(lambda name=name: serve.delete(name, _blocking=False))
            until = time.monotonic() + _DRAIN_TIMEOUT_S
            while (left := await self._ask_serve(unneeded)) and time.monotonic() < until:
                await asyncio.sleep(0.1)
            if left:
                logger.warning("still there after %d s: %s", _DRAIN_TIMEOUT_S, ", ".join(left))
        except (RayError, RayServeException) as error:
            # The next deployment tries again.
            logger.warning("cannot stop shards that are no longer needed: %s", reason_of(error))

    async def _ask_serve(self, question: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._serve_thread, question)

    async def _watch(self) -> None:
        while True:
            await self._look()
            if self._plan.watch_s and self._newest > self._seen and self._deploying is None:
                try:
                    await self.deploy(self._newest)
                except RequestError as error:
                    self._seen, self._error = self._newest, reason_of(error)
                except DistindexError as error:
                    # The next look tries again.
                    logger.warning("cannot go to version %d: %s", self._newest, reason_of(error))
            await asyncio.sleep(self._plan.watch_s or _LOOK_S)

    async def _look(self) -> None:
        try:
            self._newest = (await asyncio.to_thread(versions, self._storage))[-1]
            self._newest_version.set(self._newest)
        except Exception as error:
            # Storage that does not answer now may later; what was seen stands.
            logger.warning("cannot look at the versions of the index: %s", reason_of(error))
        self._looked = time.monotonic()

    def _give(self, order: Order) -> None:
        self._order = order
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _alive(self) -> list[Progress]:
        oldest = time.monotonic() - 3 * _HEARD_S
        self._heard = {name: heard for name, heard in self._heard.items() if heard[0] > oldest}
        return [progress for _, progress in self._heard.values()]

    async def _until(self, is_done: Callable[[Progress], bool], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not ((alive := self._alive()) and all(map(is_done, alive))):
            if time.monotonic() >= until:
                raise UnavailableError(f"not every listening process could {what} within {seconds:.0f} s")
            await self._wait(1.0)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
