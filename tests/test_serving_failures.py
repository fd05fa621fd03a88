"""Lost shards and damaged files: an error or a named gap, never a wrong answer."""

from __future__ import annotations

import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from distindex.codes import to_hex
from distindex.config import FeaturesConfig
from distindex.corpus.features import fit_features
from distindex.errors import DamagedError, UnavailableError
from distindex.hashing.classic import fit_lsh
from distindex.index.index import Index
from distindex.index.manifest import read_manifest
from distindex.serve_config import ServeConfig
from distindex.serving.client import connect
from distindex.serving.plan import APPLICATION
from distindex.serving.request import RequestError
from distindex.serving.service import serve
from distindex.storage import Storage
from tests.oracle import asymmetric_search, search
from tests.serving_backend import free_port

TEXTS = [
    f"{animal} {place} {number % 7}x"
    for number, (animal, place) in enumerate(
        (animal, place) for animal in ("cats", "dogs", "birds", "snakes") for place in ("houses", "gardens", "rivers")
    )
] * 20


def replicas_of(deployment: str) -> set[str]:
    """The names of its replicas that are there."""
    from ray.util import list_named_actors

    actors: list[Any] = list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in actors if f"#{deployment}#" in actor["name"]}


def kill(replica: str) -> None:
    import ray

    ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)


def lose_shard(index: str, position: int) -> None:
    """Kill the shard's replica when its files are gone, so that it cannot come back."""
    shutil.rmtree(Path(index) / "shards" / read_manifest(Storage(index)).shards[position].name)
    (replica,) = replicas_of(f"shard-{position}")
    kill(replica)


@pytest.mark.slow
def test_a_lost_shard_is_never_silent(ray_cluster: None, tmp_path: Path) -> None:
    column = pa.array(TEXTS)
    features = fit_features(FeaturesConfig(kind="text"), "text", [column])
    hasher = fit_lsh(features, features.transform(column), "text", 40)
    hasher.save(str(tmp_path / "hasher"))
    codes, ids = hasher.encode(column), np.arange(len(TEXTS))
    index = str(tmp_path / "index")
    named = {"uri": str(tmp_path / "hasher"), "fingerprint": hasher.fingerprint}
    Index.create(index, codes, ids, shards=2, hasher=named).close()
    with Index.open(index, shards=[0]) as alone:
        kept = alone.search(codes[:1], radius=40).id_M.to_pylist()
    assert 0 < len(kept) < len(TEXTS)

    config = ServeConfig(index, port=free_port(), timeout_s=4)
    with serve(config, blocking=False) as service, connect(service.url) as served:
        whole = served.search(texts=TEXTS[:6], k=30)
        expected = search(codes[:6], codes, ids.tolist(), k=30)
        assert [[(m.distance, m.code, m.id) for m in found] for found in whole] == expected
        by_text = served.search(texts=TEXTS[:6], k=30, rescore=True)
        logit_QK = hasher.logits_of(column)[:6]
        assert by_text.to_table().equals(served.search(logits=logit_QK, k=30, rescore=True).to_table())
        with pytest.raises(RequestError, match="reads texts"):
            served.search(vectors=[1.0, 2.0])

        lose_shard(index, 1)
        body = {"codes": to_hex(codes[:6]), "k": 30}
        # Each of them waits for the lost shard as long as it may.
        with ThreadPoolExecutor() as pool:
            losing = pool.submit(httpx.post, f"{service.url}/v1/search", json=body, timeout=60)
            asking = pool.submit(httpx.get, f"{service.url}/ready", timeout=60)
            partly = pool.submit(served.search, codes[:6], k=30, allow_partial=True)
            rescoring = pool.submit(
                served.search, logits=logit_QK, k=30, rescore=True, candidates=40, allow_partial=True
            )
        lost, ready, partial, rescored = losing.result(), asking.result(), partly.result(), rescoring.result()
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "unavailable")
        assert "shard 1 of 2" in lost.json()["error"]["message"]
        assert ready.status_code == 503
        assert "shard 1" in ready.json()["error"]["message"]
        assert httpx.get(f"{service.url}/live", timeout=60).status_code == 200

        assert partial.missing_shards == (1,)
        rest = search(codes[:6], codes[kept], kept, k=30)
        assert [[(m.distance, m.code, m.id) for m in found] for found in partial] == rest

        assert rescored.missing_shards == (1,)
        best = asymmetric_search(logit_QK, codes[kept], kept, k=30, candidates=40)
        assert [[(m.score, m.distance, m.code, m.id) for m in found] for found in rescored] == best

        lose_shard(index, 0)
        nothing = httpx.post(f"{service.url}/v1/search", json={**body, "allow_partial": True}, timeout=60)
        assert nothing.status_code == 503
    with connect(service.url) as gone, pytest.raises(UnavailableError, match="distindex serve"):
        gone.info()


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_nothing_is_left_running(ray_cluster: None, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (100, 8), np.uint8)
    Index.create(str(tmp_path), codes, np.arange(100)).close()
    damaged = next(tmp_path.glob("shards/*/codes.faiss"))
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    port = free_port()
    with pytest.raises(DamagedError, match=r"codes\.faiss") as raised:
        serve(ServeConfig(str(tmp_path), port=port), blocking=False)
    assert "\n" not in str(raised.value)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_a_killed_ingress_is_replaced_on_its_port_while_the_other_answers(ray_cluster: None, tmp_path: Path) -> None:
    from ray import serve as ray_serve
    from ray.serve._private.common import ReplicaState

    codes = np.random.default_rng(1).integers(0, 256, (500, 8), np.uint8)
    Index.create(str(tmp_path), codes, np.arange(500)).close()
    expected = search(codes[:3], codes, list(range(500)), k=4)

    def running() -> int:
        states = ray_serve.status().applications[APPLICATION].deployments["http"].replica_states
        return states.get(ReplicaState.RUNNING, 0)

    with serve(ServeConfig(str(tmp_path), port=free_port(), replicas=2), blocking=False) as service:
        before = replicas_of("http")
        assert len(before) == 2
        for _ in range(10):
            with connect(service.url) as served:
                served.search(codes[:3], k=4)
        with service.connect() as served:
            searches = served.statistics()["searches"]
        # Of both together, whichever was asked.
        assert (searches["requests"], searches["queries"], len(searches["processes"])) == (10, 30, 2)
        killed: set[str] = set()
        for name in before:
            kill(name)
            # Each asks through a connection of its own; the client's own retries are all that is needed.
            for _ in range(10):
                with connect(service.url) as served:
                    found = served.search(codes[:3], k=4)
                assert [[(m.distance, m.code, m.id) for m in answers] for answers in found] == expected
            deadline = time.monotonic() + 120
            killed.add(name)
            while (len(replicas_of("http") - killed) < 2 or running() < 2) and time.monotonic() < deadline:
                time.sleep(0.2)
        assert len(replicas_of("http") - killed) == 2


@pytest.mark.slow
def test_the_sibling_of_a_killed_shard_replica_answers(ray_cluster: None, tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(0, 256, (500, 8), np.uint8)
    Index.create(str(tmp_path), codes, np.arange(500), shards=2).close()
    expected = search(codes[:3], codes, list(range(500)), k=4)
    body = {"codes": to_hex(codes[:3]), "k": 4}
    with serve(ServeConfig(str(tmp_path), port=free_port(), replicas=2), blocking=False) as service:
        killed: set[str] = set()
        for shard in ("shard-0", "shard-1"):
            before = replicas_of(shard)
            assert len(before) == 2
            killed.add(min(before))
            kill(min(before))
        # Each once, with no second attempt of the caller.
        with httpx.Client() as client:
            for _ in range(20):
                answered = client.post(f"{service.url}/v1/search", json=body)
                assert answered.status_code == 200, answered.text
                rows = [
                    [(row["distance"], row["code"], row["id"]) for row in found]
                    for found in answered.json()["results"]
                ]
                assert rows == expected
        deadline = time.monotonic() + 120
        while any(len(replicas_of(shard) - killed) < 2 for shard in ("shard-0", "shard-1")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
