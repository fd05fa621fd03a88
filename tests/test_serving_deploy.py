"""A running service goes to other versions: no request fails, and every answer is that of exactly one version."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from distindex.cli import main
from distindex.codes import CodeArray, to_hex
from distindex.errors import InputError, UnavailableError
from distindex.index.index import Index
from distindex.index.manifest import read_manifest
from distindex.serve_config import DeployConfig, ServeConfig
from distindex.serving.client import connect
from distindex.serving.deploy import deploy
from distindex.serving.plan import Listening
from distindex.serving.service import Service, serve
from distindex.storage import Storage
from tests.oracle import search

ROWS, BITS, K, DAMAGED = 2000, 64, 5, 4


class Case(NamedTuple):
    """An index whose versions have different codes; the ids say which version they are of."""

    uri: str
    codes: dict[int, CodeArray]

    def ids(self, version: int) -> list[int]:
        return [version * ROWS + row for row in range(ROWS)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make(directory: Path, shards: dict[int, int]) -> Case:
    generator = np.random.default_rng(4)
    codes = {version: generator.integers(0, 256, (ROWS, BITS // 8), np.uint8) for version in shards}
    case = Case(str(directory), codes)
    for version, code_NC in codes.items():
        Index.create(case.uri, code_NC, case.ids(version), shards=shards[version]).close()
    return case


def damage(case: Case, version: int) -> None:
    name = read_manifest(Storage(case.uri), version).shards[0].name
    path = Path(case.uri) / "shards" / name / "codes.faiss"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


class Asked:
    """Threads that ask a service again and again, and check each answer against the oracle of its version."""

    def __init__(self, case: Case, url: str) -> None:
        self.query_QC = np.concatenate([code_NC[:1] for code_NC in case.codes.values()])
        self._expected = {
            version: search(self.query_QC, code_NC, case.ids(version), k=K) for version, code_NC in case.codes.items()
        }
        self._url, self._done = url, threading.Event()
        self.versions: Counter[int] = Counter()
        self.wrong: list[str] = []

    def _ask(self) -> None:
        body = {"codes": to_hex(self.query_QC), "k": K}
        # A connection of its own each time now and then, to reach every listening process.
        while not self._done.is_set():
            with httpx.Client(timeout=60) as client:
                for _ in range(10):
                    self._check(client.post(f"{self._url}/v1/search", json=body))
                    time.sleep(0.01)

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            self.wrong.append(f"{response.status_code} {response.text}")
            return
        answer = response.json()
        rows = [[(a["distance"], a["code"], a["id"]) for a in found] for found in answer["results"]]
        self.versions[answer["version"]] += 1
        if rows != self._expected[answer["version"]]:
            self.wrong.append(f"not the answer of version {answer['version']}: {rows}")

    def _run(self) -> None:
        try:
            self._ask()
        except httpx.HTTPError as error:
            self.wrong.append(repr(error))

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()


def actors_of(deployment: str) -> dict[str, Any]:
    import ray
    from ray.util import list_named_actors

    actors: list[Any] = list_named_actors(all_namespaces=True)
    return {
        actor["name"]: ray.get_actor(actor["name"], namespace="serve")
        for actor in actors
        if f"#{deployment}#" in actor["name"]
    }


# First: a cluster has one service at a time, and the tests below share theirs to the end.
@pytest.mark.slow
def test_shards_of_their_own_are_started_beside_and_stopped_after(ray_cluster: None, tmp_path: Path) -> None:
    def shards() -> set[str]:
        return set(actors_of("shard-0")) | set(actors_of("shard-1"))

    def left(expected: int) -> set[str]:
        deadline = time.monotonic() + 30
        while len(shards()) > expected and time.monotonic() < deadline:
            time.sleep(0.2)
        return shards()

    case = make(tmp_path, {1: 2, 2: 2, 3: 1})
    damage(case, 3)
    with serve(ServeConfig(case.uri, port=free_port(), version=1), blocking=False) as service:
        asked = Asked(case, service.url)
        first = shards()
        with asked.meanwhile():
            deploy(DeployConfig(service.url, 2))
            second = left(2)
            with pytest.raises(UnavailableError, match=r"version 3 cannot be served: .*codes\.faiss"):
                deploy(DeployConfig(service.url))
        assert not asked.wrong, asked.wrong[:3]
        assert set(asked.versions) == {1, 2}
        assert len(first) == len(second) == 2
        assert not first & second
        assert left(2) == second


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The third version has more shards than the others, as after an append; the fourth is damaged."""
    made = make(tmp_path_factory.mktemp("versions"), {1: 1, 2: 1, 3: 3, DAMAGED: 1})
    damage(made, DAMAGED)
    return made


@pytest.fixture(scope="module")
def service(ray_cluster: None, case: Case) -> Iterator[Service]:
    config = ServeConfig(case.uri, version=1, port=free_port(), replicas=2)
    with serve(config, blocking=False) as started:
        yield started


def test_a_service_goes_to_other_versions_and_back_under_load(
    case: Case, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(actors_of("http"))
    asked = Asked(case, service.url)
    with asked.meanwhile():
        for version in (2, 3, 1):
            report = deploy(DeployConfig(service.url, version))
            assert (report.version, report.rows) == (version, ROWS)
            with connect(service.url) as served:
                assert served.info()["version"] == version
                assert served.info()["shards"] == len(read_manifest(Storage(case.uri), version).shards)
        assert main(["deploy", f"--target={service.url}", "--version=2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["before"] == 1
        # To where it is already: nothing to do.
        assert deploy(DeployConfig(service.url, 2)).before == 2
    assert not asked.wrong, asked.wrong[:3]
    assert set(asked.versions) == {1, 2, 3}
    # In place: the processes are those of before.
    assert set(actors_of("http")) == before


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(case: Case, service: Service) -> None:
    asked = Asked(case, service.url)
    with asked.meanwhile():
        served = httpx.get(f"{service.url}/v1/index").json()["version"]
        with pytest.raises(UnavailableError, match=r"version 4 cannot be served: .*codes\.faiss") as raised:
            deploy(DeployConfig(service.url))
        assert "\n" not in str(raised.value)
        health = httpx.get(f"{service.url}/health", timeout=30)
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["newest"]) == ("stale", DAMAGED)
    assert "codes.faiss" in health.json()["deploy_error"]
    assert not asked.wrong, asked.wrong[:3]
    assert set(asked.versions) == {served}


def test_what_cannot_be_deployed_is_refused(case: Case, service: Service) -> None:
    with pytest.raises(InputError, match="no version 99"):
        deploy(DeployConfig(service.url, 99))
    with pytest.raises(InputError, match="not an address"):
        deploy(DeployConfig(case.uri))
    url = f"{service.url}/v1/deploy"
    for content, headers in (
        (b'{"version": 1}', {"content-type": "text/plain"}),
        (b'{"version": -1}', {"content-type": "application/json"}),
        (b'{"other": 1}', {"content-type": "application/json"}),
        (b"{", {"content-type": "application/json"}),
    ):
        response = httpx.post(url, content=content, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    large = httpx.post(url, content=b" " * 5000, headers={"content-type": "application/json"})
    assert large.status_code == 413
    assert httpx.get(url).json()["deploying"] is None


@pytest.mark.slow
def test_a_lost_deployer_and_a_lost_ingress_forget_nothing(case: Case, service: Service) -> None:
    import ray

    deploy(DeployConfig(service.url, 3))
    killed = dict([*actors_of("deployer").items(), *list(actors_of("http").items())[:1]])
    for actor in killed.values():
        ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + 120
    while len((set(actors_of("deployer")) | set(actors_of("http"))) - set(killed)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # The one that was left answers meanwhile; the new one begins with what is served; both follow the new deployer.
    assert deploy(DeployConfig(service.url, 1)).before == 3
    for _ in range(10):
        with connect(service.url) as served:
            assert served.info()["version"] == 1


@pytest.mark.parametrize(
    ("host", "asking", "deploying", "may"),
    [
        ("127.0.0.1", (), (), True),
        ("localhost", (), (), True),
        ("0.0.0.0", (), (), False),
        ("0.0.0.0", (b"x",), (), True),
        ("0.0.0.0", (), (b"y",), True),
    ],
)
def test_who_may_choose_the_version(
    host: str, asking: tuple[bytes, ...], deploying: tuple[bytes, ...], may: bool
) -> None:
    from distindex.serving.access import Access

    assert Listening(host, 80, access=Access(asking, deploying)).may_deploy is may


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"watch_s": -1.0}, "must not be negative"), ({"watch_s": 5.0, "version": 2}, "leave one of them out")],
)
def test_a_watch_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServeConfig("index", **settings)
