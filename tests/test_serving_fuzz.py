"""Bad requests to both interfaces over an index in this process, by seed; `python -m benchmarks.fuzz` sends more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("schemathesis")

from benchmarks.fuzz import fuzz_arrow, fuzz_grpc, fuzz_openapi
from distindex.serving.api import make_api
from distindex.serving.responder import Responder
from tests.serving_backend import BITS, LIMITS, IndexBackend, served, served_over_grpc, small_index

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def responder(tmp_path_factory: pytest.TempPathFactory) -> Responder:
    return Responder(IndexBackend(small_index(tmp_path_factory.mktemp("index")), LIMITS))


@pytest.fixture(scope="module")
def url(responder: Responder) -> Iterator[str]:
    with served(make_api(responder)) as address:
        yield address


def test_the_service_answers_as_its_openapi_document_says(url: str) -> None:
    counts = fuzz_openapi(url, 40, 1)
    assert counts.keys() >= {"200", "400", "404"}


def test_no_arrow_stream_makes_the_service_fail(url: str) -> None:
    counts = fuzz_arrow(url, BITS, 200, 1)
    assert counts.keys() >= {"200", "400"}


def test_no_call_makes_the_service_fail(responder: Responder) -> None:
    with served_over_grpc(responder) as address:
        counts = fuzz_grpc(address, BITS, 200, 1)
    assert counts.keys() >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
