"""One local Ray for each process that runs tests, and the shared data where a checkout has it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distindex.runtime import prepare_environment
from tests.azure_storage import azure_server, is_installed
from tests.browser import launched
from tests.object_storage import options_of, s3_server

# An epoch lasts at least one poll, and those of the tests' small corpora not much longer than this.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.02")
# As on every Ray that distindex starts on one machine.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
prepare_environment()

# The files that take longest, as measured on two cores, the longest first.
LONGEST = (
    "test_training_interruption",
    "test_jobs",
    "test_encoding_interruption",
    "test_training_train",
    "test_examples",
    "test_docs_run",
    "test_rounds",
    "test_serving_failures",
    "test_training_elastic",
    "test_cli_pipeline",
    "test_training_stream",
    "test_serving_deploy",
)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: of several processes none is then left with one when the others have ended."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_runtest_setup() -> None:
    """Give the Ray of all tests what a cluster of several nodes takes from its process when it ends."""
    if "ray" not in sys.modules:
        return
    import ray
    from ray._private.worker import global_worker
    from ray.experimental import internal_kv

    if ray.is_initialized() and not internal_kv._internal_kv_initialized():
        worker: Any = global_worker
        internal_kv._initialize_internal_kv(worker.gcs_client)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all tests that need one: 4 logical CPUs, so that 2 workers fit beside the rest."""
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=1 << 30,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data sets are not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port on loopback of an S3 endpoint with one bucket, `bucket`."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server() as port:
        yield port


@pytest.fixture(scope="session")
def s3_options(s3_port: int) -> dict[str, Any]:
    """Storage options for that endpoint; each test takes its own prefix of the bucket."""
    return options_of(s3_port)


@pytest.fixture(scope="session")
def azure_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Storage options for an Azure endpoint on loopback with one container, `container`."""
    pytest.importorskip("adlfs")
    if not is_installed():
        pytest.skip("Azurite is not installed (npm install -g azurite)")
    with azure_server(tmp_path_factory.mktemp("azurite")) as options:
        yield options


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver, launched(driver) as opened:
        if opened is None:
            pytest.skip("there is no browser: `make browser` installs one")
        yield opened
