"""Object storage that throttles, drops connections and cuts answers: what is there comes, or one clear line."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex import retry
from distindex.errors import ConflictError, InputError, NotFoundError, UnavailableError
from distindex.listing import list_files
from distindex.storage import Storage
from tests.object_storage import FAULTS, FaultyProxy

# The smallest part of an upload that S3 takes, so that a small file has several.
PART_BYTES = 5 << 20


@pytest.fixture
def proxy(s3_port: int) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3_port, share=0.4, faults=30) as started:
        yield started


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a tenth, so that the same number of failures takes a tenth of the time."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: random.random() * 0.1)


def storage(proxy: FaultyProxy, name: str, **options: Any) -> Storage:
    return Storage(f"s3://bucket/faults/{name}", {**proxy.options, **options})


def test_what_is_written_is_read(proxy: FaultyProxy, brisk: None, tmp_path: Path) -> None:
    generator = random.Random(1)
    home = storage(proxy, "files", default_block_size=PART_BYTES)
    large = generator.randbytes(2 * PART_BYTES + 17)
    with home.open_output("large") as stream:
        for start in range(0, len(large), 1 << 20):
            stream.write(large[start : start + (1 << 20)])
    written = {f"{number:02d}": generator.randbytes(generator.randrange(2000)) for number in range(25)} | {"00": b""}
    for name, data in written.items():
        home.write_bytes(name, data)
        assert home.read_bytes(name) == data
    assert home.names() == sorted([*written, "large"])
    assert home.exists("large")
    assert not home.exists("small")
    assert {file.uri.rsplit("/", 1)[1]: file.size for file in list_files(home.uri, [""], home.options)} == {
        name: len(data) for name, data in [*written.items(), ("large", large)]
    }
    assert home.fetch("large", tmp_path).read_bytes() == large
    with home.open_input("large") as stream:
        assert hashlib.file_digest(stream, "sha256").digest() == hashlib.sha256(large).digest()  # type: ignore[arg-type]
        for _ in range(20):
            start = generator.randrange(len(large))
            stream.seek(start)
            assert stream.read(1000) == large[start : start + 1000]
    table = pa.table({"number": range(50_000)})
    with home.open_output("numbers.parquet") as stream:
        pq.write_table(table, stream, row_group_size=5000)
    with home.arrow.open_input_file(home.full_path("numbers.parquet")) as source:
        assert pq.read_table(source).equals(table)
    home.remove("large")
    assert not home.exists("large")
    assert not proxy.left, "the endpoint should have failed all the while"
    assert set(proxy.counted) == set(FAULTS)


def test_a_create_whose_answer_was_lost_has_won(proxy: FaultyProxy, brisk: None) -> None:
    home = storage(proxy, "created")
    for number in range(10):
        home.create_bytes(f"{number}", b"first")
        with pytest.raises(ConflictError, match=f"{home.uri}/{number}: exists already"):
            home.create_bytes(f"{number}", b"other")
        assert home.read_bytes(f"{number}") == b"first"
    assert proxy.counted["answer lost"]


def test_one_of_many_creators_wins(proxy: FaultyProxy, brisk: None) -> None:
    home = storage(proxy, "raced")

    def create(writer: int) -> bool:
        try:
            home.create_bytes("name", str(writer).encode())
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert home.read_bytes("name") == str(won.index(True)).encode()


def test_a_stream_that_is_given_up_leaves_no_file(proxy: FaultyProxy, brisk: None) -> None:
    home = storage(proxy, "abandoned", default_block_size=PART_BYTES)

    def give_up() -> None:
        with home.open_output("file") as stream:
            stream.write(bytes(PART_BYTES + 1))
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        give_up()
    assert home.names() == []


OPERATIONS = {
    "read": lambda home: home.read_bytes("x"),
    "write": lambda home: home.write_bytes("x", b"1"),
    "create": lambda home: home.create_bytes("x", b"1"),
    "stream": lambda home: write_stream(home),
    "exists": lambda home: home.exists("x"),
    "names": lambda home: home.names(),
    "remove": lambda home: home.remove("x"),
    "list": lambda home: list_files(home.uri, [".parquet"], home.options),
}


def write_stream(home: Storage) -> None:
    with home.open_output("x") as stream:
        stream.write(b"1")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_cannot_succeed_fails_at_once(s3_port: int, operation: str) -> None:
    with FaultyProxy(s3_port, share=0, faults=0) as proxy:
        proxy.denied = True
        home = storage(proxy, "denied")
        with pytest.raises(
            InputError, match=r"^s3://bucket/faults/denied\S*: access denied \(.*check the cred"
        ) as told:
            OPERATIONS[operation](home)
        assert "\n" not in str(told.value)
        assert proxy.requests <= 3


@pytest.mark.parametrize("operation", ["read", "write", "create", "stream", "list"])
def test_a_bucket_that_is_not_there(s3_options: dict[str, Any], operation: str) -> None:
    home = Storage("s3://no-such-bucket/x", s3_options)
    with pytest.raises(NotFoundError, match=r"^s3://no-such-bucket/x\S*: no such bucket"):
        OPERATIONS[operation](home)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_goes_on_failing(s3_port: int, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    monkeypatch.setattr(retry, "PATIENCE_S", 0.0)
    with FaultyProxy(s3_port, share=1, faults=10_000, kinds=("throttled", "dropped")) as proxy:
        home = storage(proxy, "away", config_kwargs={"retries": {"max_attempts": 0}})
        monkeypatch.setattr(type(home.fs), "retries", 1)
        with pytest.raises(UnavailableError, match=r"^s3://bucket/faults/away\S*: the store keeps failing"):
            OPERATIONS[operation](home)


def test_missing_credentials_are_named(s3_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    home = Storage("s3://bucket/x", {"endpoint_url": s3_options["endpoint_url"]})
    with pytest.raises(InputError, match="s3://bucket/x/y: no credentials for this store"):
        home.read_bytes("y")


def test_a_file_that_shrinks_while_it_is_read(s3_options: dict[str, Any]) -> None:
    home = Storage("s3://bucket/faults/shrunk", s3_options)
    home.write_bytes("file", bytes(100))
    began = time.monotonic()
    with home.open_input("file") as stream:
        home.write_bytes("file", bytes(60))
        with pytest.raises(InputError, match="has changed while it was read"):
            stream.read()
    assert time.monotonic() - began < retry.PATIENCE_S


def test_a_failed_replacement_is_not_taken_for_done(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(s3_port, share=0, faults=10_000, kinds=("throttled",)) as proxy:
        home = storage(proxy, "replaced", config_kwargs={"retries": {"max_attempts": 0}})
        monkeypatch.setattr(type(home.fs), "retries", 1)
        home.write_bytes("x", b"0")
        proxy.share = 1
        with pytest.raises(UnavailableError, match="the store keeps failing"):
            write_stream(home)
        proxy.share = 0
        assert home.read_bytes("x") == b"0"
        write_stream(home)
        assert home.read_bytes("x") == b"1"
