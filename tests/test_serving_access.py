"""Tokens, rates, pages elsewhere and TLS, over real connections; no Ray."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from distindex.codes import to_hex
from distindex.errors import InputError, NotFoundError, UnavailableError
from distindex.index.index import Index
from distindex.serve_config import ServeConfig
from distindex.serving.access import Access, Gate, Guard, digests_of, read_tokens
from distindex.serving.api import make_api
from distindex.serving.body import Limits
from distindex.serving.client import connect
from distindex.serving.listener import check_certificate
from distindex.serving.responder import Responder
from distindex.serving.service import listening_of
from tests.serving_backend import IndexBackend, served, served_over_grpc

FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"
CODE = to_hex(np.zeros((1, 8), np.uint8))[0]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> IndexBackend:
    code_NC = np.random.default_rng(0).integers(0, 256, (50, 8), np.uint8)
    index = Index.create(str(tmp_path_factory.mktemp("index")), code_NC, list(range(50)))
    return IndexBackend(index, Limits(max_queries=8, max_k=100, max_requests=4))


def test_only_who_has_a_token_is_answered(backend: IndexBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTINDEX_TOKEN", raising=False)
    access = Access(digests_of([FIRST, SECOND], "tokens"))
    with served(make_api(Responder(backend, access=access))) as url:
        for path in ("/live", "/ready", "/", "/page/page.js"):
            assert httpx.get(url + path).status_code == 200, path
        closed = [("GET", "/v1/index"), ("GET", "/openapi.json"), ("POST", "/v1/search"), ("GET", "/nothing")]
        for header in (None, "Bearer", "Bearer wrong", f"Basic {FIRST}", FIRST, f"Bearer {FIRST}x", "Bearer \\xe9"):
            headers = {} if header is None else {"Authorization": header}
            for method, path in closed:
                refused = httpx.request(method, url + path, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
                assert refused.headers["www-authenticate"] == "Bearer"
        for token in (FIRST, SECOND):
            with connect(url, token=token) as index:
                assert len(index.search(CODE, k=3).id_M) == 3
                assert index.item(7).id == 7
        with connect(url) as index, pytest.raises(InputError, match=r"a token is needed.*DISTINDEX_TOKEN"):
            index.info()
        monkeypatch.setenv("DISTINDEX_TOKEN", SECOND)
        with connect(url) as index:
            assert index.info()["rows"] == 50
    with served_over_grpc(Responder(backend, access=access)) as address:
        with connect(f"grpc://{address}") as index:
            assert index.info()["rows"] == 50
        with (
            connect(f"grpc://{address}", token="wrong") as index,
            pytest.raises(InputError, match="a token is needed"),
        ):
            index.info()


@pytest.mark.parametrize("token", ["short", "fifteen-letters", "with a space in the middle", "umlauts-äöü-01234567"])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(InputError, match="file: a token needs 16"):
        digests_of([FIRST, token], "file")


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{FIRST}\n\n  {SECOND}\n")
    assert read_tokens(str(file)) == [FIRST, SECOND]
    monkeypatch.setenv("DISTINDEX_TOKEN", SECOND)
    listening, own = listening_of(ServeConfig("index", token_file=str(file)))
    assert (listening.access.token_digests, own) == (digests_of([FIRST, SECOND], ""), FIRST)
    listening, own = listening_of(ServeConfig("index"))
    assert (listening.access.token_digests, own) == (digests_of([SECOND], ""), SECOND)
    monkeypatch.delenv("DISTINDEX_TOKEN")
    listening, own = listening_of(ServeConfig("index"))
    assert (listening.access.token_digests, own) == ((), None)
    others = tmp_path / "deploy-tokens"
    others.write_text(f"{SECOND}\n")
    listening, own = listening_of(ServeConfig("index", deploy_token_file=str(others)))
    assert (listening.access, own) == (Access((), digests_of([SECOND], "")), None)
    others.write_text("short")
    with pytest.raises(InputError, match=f"deploy_token_file: {others}: a token needs 16"):
        listening_of(ServeConfig("index", deploy_token_file=str(others)))
    # The tokens themselves do not travel.
    assert FIRST not in repr(listening_of(ServeConfig("index", token_file=str(file)))[0])
    file.write_text("\n")
    with pytest.raises(InputError, match="holds no token"):
        listening_of(ServeConfig("index", token_file=str(file)))
    with pytest.raises(NotFoundError):
        listening_of(ServeConfig("index", token_file=str(tmp_path / "nothing")))


def test_each_client_has_its_rate() -> None:
    now = [0.0]

    async def answered(scope: object, receive: object, send: object) -> None:
        taken.append(1)

    gate = Gate(Access(requests_per_s=2.0), clock=lambda: now[0])
    guard = Guard(answered, gate)
    taken: list[int] = []
    sent: list[dict] = []

    def ask(client: str, times: int = 1, path: str = "/v1/search") -> int:
        async def send(message: dict) -> None:
            sent.append(message)

        taken.clear()
        for _ in range(times):
            scope = {"type": "http", "path": path, "client": (client, 1), "headers": []}
            asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
        return len(taken)

    assert ask("a", 25) == 20
    headers = dict(next(message for message in sent if "headers" in message)["headers"])
    assert (sent[0]["status"], headers[b"retry-after"]) == (429, b"1")
    assert ask("b", 25) == 20
    assert ask("a", 3, "/live") == 3
    now[0] = 2.0
    assert ask("a", 25) == 4
    now[0] = 1000.0
    assert ask("a", 25) == 20
    for client in range(10_100):
        ask(str(client))
    assert len(gate._left) == 10_000


def test_pages_elsewhere_may_ask_only_if_named(backend: IndexBackend) -> None:
    here, there = "https://example.org", "https://example.com"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with served(make_api(Responder(backend, access=Access(digests_of([FIRST], ""), origins=(here,))))) as url:
        allowed = httpx.options(f"{url}/v1/search", headers={"Origin": here, **asked})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, here)
        assert httpx.options(f"{url}/v1/search", headers={"Origin": there, **asked}).status_code == 400
        refused = httpx.get(f"{url}/v1/index", headers={"Origin": here})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, here)
    with served(make_api(Responder(backend))) as url:
        assert "access-control-allow-origin" not in httpx.get(f"{url}/v1/index", headers={"Origin": here}).headers


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    made, key = str(directory / "certificate.pem"), str(directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run([*command, *names, "-keyout", key, "-out", made], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return made, key


def test_a_client_trusts_the_authorities_it_is_given(
    backend: IndexBackend, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = certificate
    with served(make_api(Responder(backend)), ssl_certfile=made, ssl_keyfile=key) as plain:
        url = plain.replace("http://", "https://")
        with connect(url, certificates=made) as index:
            assert len(index.search(CODE, k=3).id_M) == 3
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/live")
    with pytest.raises(InputError, match="certificates: "):
        connect(url, certificates=key + "-not")
    with served_over_grpc(Responder(backend), certificate) as address:
        with connect(f"grpcs://{address}", certificates=made) as index:
            assert len(index.search(CODE, k=3).id_M) == 3
        with pytest.raises(NotFoundError):
            connect(f"grpcs://{address}", certificates=key + "-not")
        monkeypatch.setattr("distindex.serving.remote.ATTEMPTS", 1)
        with connect(f"grpcs://{address}") as index, pytest.raises(UnavailableError, match="certificate"):
            index.info()


def test_certificates_that_cannot_be_used_are_refused(certificate: tuple[str, str], tmp_path: Path) -> None:
    made, key = certificate
    check_certificate(made, key)
    listening, _ = listening_of(ServeConfig("index", tls_certificate=made, tls_key=key))
    assert listening.tls == (made, key)
    for wrong in ((key, made), (made, str(tmp_path / "nothing")), (made, made)):
        with pytest.raises(InputError, match=r"tls_certificate: .* cannot be used"):
            listening_of(ServeConfig("index", tls_certificate=wrong[0], tls_key=wrong[1]))
    with pytest.raises(InputError, match="goes with tls_key"):
        ServeConfig("index", tls_certificate=made)
