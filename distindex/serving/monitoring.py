"""Figures for Prometheus, through the exporter that Ray runs on every node.

Names and labels are listed in docs/serving.md. Each HTTP replica tells its own, so that several add up; Ray adds the
labels of its node and its replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from typing import Any, Protocol

import numpy as np
from ray.serve.metrics import Counter, Gauge, Histogram

from distindex.codes import CodeArray
from distindex.errors import UnavailableError
from distindex.index.kinds import CAPABILITIES
from distindex.index.matches import Matches
from distindex.serving.activity import SEARCH_ROUTE, Done

_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_SIZES = [float(1 << power) for power in range(11)]
_CANARY_PERIOD_S = 10.0
# Of a batch that is searched again; of a longest history, that the estimate is the mean of.
_RECALL_QUERIES, _RECALL_KEPT = 4, 400


class Watched(Protocol):
    """What is watched: the backend of a replica."""

    def info(self) -> dict[str, Any]:
        """What is served."""
        ...

    async def lost_shards(self) -> dict[int, str]:
        """The positions of the shards that do not answer a canary query now, and why."""
        ...


class Searched(Protocol):
    """Who searched a batch: the router of one version."""

    def info(self) -> dict[str, Any]:
        """What it searches."""
        ...

    async def search_exactly(self, code_QC: CodeArray, k: int) -> Matches:
        """The k nearest by a full scan."""
        ...


class Monitor:
    """Tells Ray's exporter what a replica of the HTTP deployment does.

    Args:
        watched: its backend.
        recall_sample: share of the searched batches of an approximate kind that are searched again exactly.
    """

    def __init__(self, watched: Watched, recall_sample: float) -> None:
        self._watched, self._share = watched, recall_sample
        self._recalls: deque[float] = deque(maxlen=_RECALL_KEPT)
        self._recalls_version = 0
        self._comparing: asyncio.Task[None] | None = None
        labels: Any = ("route", "status", "interface")
        self._requests = Counter("distindex_requests", "requests that were answered", labels)
        self._queries = Counter("distindex_queries", "queries of searches that were answered")
        self._seconds = Histogram("distindex_request_seconds", "from a search's head to its answer", _SECONDS)
        self._stages = Histogram("distindex_stage_seconds", "the stages of searches", _SECONDS, ("stage",))
        self._batches = Histogram("distindex_batch_queries", "queries that were searched together", _SIZES)
        self._at_work = Histogram("distindex_requests_at_work", "requests at work when a search is taken", _SIZES)
        self._versions = Gauge("distindex_index_version", "the index version that is served")
        self._shards = Gauge("distindex_shard_up", "1 while the shard answers a canary query", ("shard",))
        self._recall = Gauge("distindex_recall_estimate", "share of the nearest, by distance, that are found")

    def observe(self, done: Done) -> None:
        """Count a request that was answered."""
        interface = "gRPC" if done.method == "gRPC" else "HTTP"
        self._requests.inc(1, {"route": done.route or "none", "status": str(done.status), "interface": interface})
        if done.route != SEARCH_ROUTE or done.status >= 400:
            return
        self._seconds.observe(done.seconds)
        for name, seconds in done.stages.items():
            self._stages.observe(seconds, {"stage": name})
        if done.queries:
            self._queries.inc(done.queries)
        self._at_work.observe(done.at_work)

    def observe_batch(self, searched: Searched, code_QC: CodeArray, k: int | None, found: Matches) -> None:
        """Count a batch; now and then, search a part of it again exactly.

        Args:
            searched: who searched it.
            code_QC: its queries.
            k: answers per query; None where the batch is not a search for the nearest of all rows.
            found: its answers.
        """
        self._batches.observe(len(code_QC))
        idle = self._comparing is None or self._comparing.done()
        exact = CAPABILITIES[searched.info()["kind"]].exact
        if k is not None and idle and not exact and not found.missing_shards and random.random() < self._share:
            few = found.part(0, min(_RECALL_QUERIES, len(found)))
            self._comparing = asyncio.create_task(self._compare(searched, code_QC[: len(few)], k, few))

    async def _compare(self, searched: Searched, code_QC: CodeArray, k: int, found: Matches) -> None:
        with contextlib.suppress(UnavailableError):
            recalls = recall_by_distance(found, await searched.search_exactly(code_QC, k))
            if found.version != self._recalls_version:
                self._recalls.clear()
                self._recalls_version = found.version
            self._recalls.extend(recalls)
            self._recall.set(float(np.mean(self._recalls)))

    async def run(self) -> None:
        """Ask the shards every ten seconds whether they answer; does not return."""
        while True:
            info = self._watched.info()
            self._versions.set(info["version"])
            lost = await self._watched.lost_shards()
            for shard in range(info["shards"]):
                self._shards.set(0 if shard in lost else 1, {"shard": str(shard)})
            await asyncio.sleep(_CANARY_PERIOD_S)


def recall_by_distance(found: Matches, exact: Matches) -> list[float]:
    """Per query, the answers no farther than the farthest exact one, as a share of the exact ones."""
    recalls = []
    for query in range(len(exact)):
        nearest = exact.part(query, query + 1).distance_M
        if len(nearest):
            near = found.part(query, query + 1).distance_M <= nearest.max()
            recalls.append(min(1.0, float(near.sum()) / len(nearest)))
    return recalls
