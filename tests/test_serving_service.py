"""The served index as a service: its page and figures, many callers, lost shards, what it refuses to start with.

What it answers is in test_conformance.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from distindex.codes import to_hex, unpack
from distindex.config import FeaturesConfig
from distindex.corpus.features import fit_features
from distindex.errors import ConflictError, InputError, NotFoundError
from distindex.hashing import Hasher
from distindex.hashing.classic import fit_lsh
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serve_config import ServeConfig
from distindex.serving.activity import STAGES
from distindex.serving.client import connect
from distindex.serving.service import Service, serve
from tests.oracle import Answer, search
from tests.serving_backend import free_port

ROWS, WIDTH, BITS, SHARDS = 20_000, 12, 32, 3


class Case(NamedTuple):
    """A hasher, an index of the rows it encoded, and the rows themselves."""

    index: str
    hasher: Hasher
    hasher_uri: str
    x_NV: np.ndarray
    code_NC: np.ndarray
    ids: list[str]


def dense(x_NV: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x_NV.reshape(-1)), x_NV.shape[1])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """20,000 rows on 900 points: about 22 rows a code, so that nearly every cut goes through a tie."""
    directory = tmp_path_factory.mktemp("served")
    generator = np.random.default_rng(5)
    x_NV = generator.standard_normal((900, WIDTH)).astype(np.float32)[generator.integers(0, 900, ROWS)]
    features = fit_features(FeaturesConfig(), "dense", [dense(x_NV)])
    hasher = fit_lsh(features, features.transform(dense(x_NV)), "vector", BITS)  # type: ignore[arg-type]
    hasher_uri = str(directory / "hasher")
    hasher.save(hasher_uri)
    code_NC = hasher.encode(dense(x_NV))
    ids = [f"item-{number}" for number in generator.permutation(ROWS)]
    payload = pa.table({"row": np.arange(ROWS), "name": [f"name of {item}" for item in ids]})
    named = {"uri": hasher_uri, "fingerprint": hasher.fingerprint}
    index = str(directory / "index")
    Index.create(index, code_NC, ids, payload, shards=SHARDS, hasher=named).close()
    return Case(index, hasher, hasher_uri, x_NV, code_NC, ids)


@pytest.fixture(scope="module")
def service(ray_cluster: None, case: Case) -> Iterator[Service]:
    with serve(ServeConfig(case.index, port=free_port(), timeout_s=20), blocking=False) as started:
        yield started


def oracle(case: Case, query_QC: np.ndarray, k: int | None, radius: int | None) -> list[list[Answer]]:
    return search(query_QC, case.code_NC, case.ids, k=k, radius=radius)


def rows_of(matches: Matches) -> list[list[Answer]]:
    return [[(match.distance, match.code, match.id) for match in answers] for answers in matches]


def some_queries(case: Case, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    exact = case.code_NC[generator.integers(0, ROWS, count // 2)]
    return np.concatenate([exact, generator.integers(0, 256, (count - len(exact), BITS // 8), np.uint8)])


def test_k_beyond_all_rows_answers_all(case: Case, service: Service) -> None:
    query = case.code_NC[:1]
    with connect(case.index) as local, connect(service.url) as served:
        everything = local.search(query, k=ROWS + 5)
        assert len(everything.id_M) == ROWS
        first = served.search(query, k=10_000)
    assert first.id_M.equals(everything.id_M[:10_000])


def test_more_queries_than_one_request_takes(case: Case, service: Service) -> None:
    queries = some_queries(case, 3000, seed=9)
    with connect(case.index) as local, connect(service.url) as served:
        assert served.search(queries, k=3).to_table().equals(local.search(queries, k=3).to_table())


def test_the_page_and_its_figures_are_those_of_all_shards(case: Case, service: Service) -> None:
    assert httpx.get(service.url).headers["content-type"].startswith("text/html")
    found = httpx.get(f"{service.url}/v1/statistics", timeout=30).json()
    np.testing.assert_allclose(found["bit_balance"], unpack(case.code_NC).mean(axis=0), atol=1e-4)
    assert sum(size["codes"] for size in found["bucket_sizes"]) == len(np.unique(case.code_NC, axis=0))
    body = {"vectors": case.x_NV[:3].tolist()}
    coded = httpx.post(f"{service.url}/v1/codes", json=body, timeout=30).json()
    assert coded["codes"] == to_hex(case.code_NC[:3])
    by_item = httpx.post(f"{service.url}/v1/codes", json={"items": case.ids[:3]}, timeout=30).json()
    assert by_item["codes"] == coded["codes"]


def test_prometheus_finds_the_figures_at_the_exporter_of_ray(case: Case, service: Service) -> None:
    import ray

    for _ in range(3):
        httpx.post(f"{service.url}/v1/search", json={"vectors": case.x_NV[:5].tolist()}, timeout=30)
    (node,) = ray.nodes()
    exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    expected = {
        "shard_up": {str(shard): 1.0 for shard in range(SHARDS)},
        "index_version": 1.0,
        "stages": STAGES,
        "all_counted": True,
    }
    found: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    while found != expected and time.monotonic() < deadline:
        samples = [
            sample
            for family in text_string_to_metric_families(httpx.get(exporter, timeout=30).text)
            for sample in family.samples
            if sample.name.startswith("ray_distindex_") and sample.value
        ]
        found = {
            "shard_up": {one.labels["shard"]: one.value for one in samples if one.name.endswith("_shard_up")},
            "index_version": max((one.value for one in samples if one.name.endswith("_index_version")), default=0),
            "stages": tuple(
                name
                for name in STAGES
                if any(one.name.endswith("_stage_seconds_count") and one.labels["stage"] == name for one in samples)
            ),
            # Processes hand their figures to the exporter now and then, and not all at once.
            "all_counted": all(
                sum(one.value for one in samples if one.name == f"ray_distindex_{name}") >= least
                for name, least in (("queries_total", 15), ("batch_queries_sum", 15))
            )
            and sum(
                one.value
                for one in samples
                if one.name.endswith("_requests_total")
                and (one.labels["route"], one.labels["status"]) == ("/v1/search", "200")
            )
            >= 3,
        }
        time.sleep(0.2)
    assert found == expected


def test_ready_live_and_unknown_paths(service: Service) -> None:
    assert httpx.get(f"{service.url}/ready", timeout=30).json() == {"status": "ready", "version": 1}
    assert httpx.get(f"{service.url}/live").status_code == 200
    unknown = httpx.get(f"{service.url}/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    bad = httpx.post(f"{service.url}/v1/search", content=b"{")
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_request")


def test_concurrent_requests_get_their_own_answers(case: Case, service: Service) -> None:
    queries = some_queries(case, 64, seed=17)
    expected = oracle(case, queries, 5, None)
    with connect(service.url) as served, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda query: rows_of(served.search(query, k=5))[0], queries))
    assert found == expected


def test_a_second_service_on_the_same_port_or_cluster_is_refused(case: Case, service: Service) -> None:
    with pytest.raises(InputError, match="set port to a free one"):
        serve(ServeConfig(case.index, port=int(service.url.rsplit(":", 1)[1])), blocking=False)
    with pytest.raises(ConflictError, match="serves already"):
        serve(ServeConfig(case.index, port=free_port()), blocking=False)
    assert httpx.get(f"{service.url}/ready", timeout=30).status_code == 200


@pytest.mark.slow
def test_a_killed_shard_gives_right_answers_or_503(case: Case, service: Service) -> None:
    import ray
    from ray.util import list_named_actors

    queries = some_queries(case, 6, seed=23)
    expected = oracle(case, queries, 20, None)
    statuses = []
    for _ in range(2):
        actors: list[Any] = list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in actors if "#shard-1#" in actor["name"]]
        assert len(names) == 1
        ray.kill(ray.get_actor(names[0], namespace="serve"), no_restart=True)
        for _ in range(5):
            response = httpx.post(f"{service.url}/v1/search", json={"codes": to_hex(queries), "k": 20}, timeout=60)
            statuses.append(response.status_code)
            if response.status_code == 200:
                results = response.json()["results"]
                assert [[(a["distance"], a["code"], a["id"]) for a in answers] for answers in results] == expected
            else:
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "unavailable"
    assert 200 in statuses


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": "nothing/here"}, NotFoundError, "no index here"),
        ({"version": 7}, NotFoundError, "no version 7"),
        ({"hasher": "nothing/here"}, NotFoundError, "no hasher here"),
        ({"host": "192.0.2.1"}, InputError, "cannot listen"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(
    case: Case, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"index": case.index, "port": free_port(), **change}
    with pytest.raises(error, match=message):
        serve(ServeConfig(**arguments), blocking=False)


def test_a_hasher_that_did_not_make_the_index_is_refused(case: Case, tmp_path: Path) -> None:
    features = case.hasher.features
    for bits, message in ((BITS, "was made by hasher"), (2 * BITS, "makes 64")):
        uri = str(tmp_path / str(bits))
        other = fit_lsh(features, case.x_NV, "vector", bits, seed=bits)
        other.save(uri)
        with pytest.raises(InputError, match=message):
            serve(ServeConfig(case.index, hasher=uri, port=free_port()), blocking=False)
        with connect(case.index, hasher=uri) as searcher, pytest.raises(InputError, match=message):
            searcher.search(vectors=case.x_NV[0])
