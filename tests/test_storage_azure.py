"""Azure Blob Storage, against Azurite: what commits rest on, and encoding with Azure paths only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex.codeset import CodeSet
from distindex.config import CorpusConfig, EncodeConfig, WorkersConfig
from distindex.encoding import encode
from distindex.errors import ConflictError, InputError, NotFoundError
from distindex.hashing.hasher import Hasher
from distindex.listing import list_files
from distindex.storage import Storage
from tests.test_encoding_interruption import ROWS, write_corpus, write_hasher


@pytest.mark.parametrize("protocol", ["abfs", "abfss", "az"])
def test_files(azure_options: dict[str, Any], protocol: str) -> None:
    home = Storage(f"{protocol}://container/files-{protocol}", azure_options)
    assert not home.exists()
    assert home.names() == []
    home.write_bytes("a/b.bin", b"old")
    home.write_bytes("a/b.bin", b"new")
    assert home.read_bytes("a/b.bin") == b"new"
    before = home.info("a/b.bin").etag
    data = np.random.default_rng(0).bytes(18 << 20)
    with home.open_output("large.bin") as stream:
        for start in range(0, len(data), 5 << 20):
            stream.write(data[start : start + (5 << 20)])
    with home.open_input("large.bin") as stream:
        stream.seek(7 << 20)
        assert stream.read(11 << 20) == data[7 << 20 :]
    home.write_bytes("a/b.bin", b"newer")
    assert home.info("a/b.bin").etag != before
    assert home.info("large.bin").size == len(data)

    def abandoned() -> None:
        with home.open_output("half.bin") as stream:
            stream.write(data[: 9 << 20])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        abandoned()
    assert home.names() == ["a", "large.bin"]
    found = list_files(f"{home.uri}/*.bin", [".bin"], azure_options)
    assert [file.uri for file in found] == [f"{home.uri}/large.bin"]
    with pytest.raises(NotFoundError, match="no such file"):
        home.read_bytes("none.bin")
    home.remove("a")
    assert home.names() == ["large.bin"]


@pytest.mark.parametrize("size", [10, 9 << 20])
def test_one_writer_of_many_creates_a_file(azure_options: dict[str, Any], size: int) -> None:
    home = Storage(f"abfs://container/race-{size}", azure_options)

    def create(number: int) -> bool:
        try:
            home.create_bytes("manifest.json", bytes([number]) * size)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert home.read_bytes("manifest.json") == bytes([won.index(True)]) * size


def test_what_is_not_there(azure_options: dict[str, Any]) -> None:
    with pytest.raises(NotFoundError):
        Storage("abfs://no-such-container/x", azure_options).read_bytes("a.bin")
    wrong = {"connection_string": azure_options["connection_string"].replace("AccountKey=Eby8", "AccountKey=AAAA")}
    with pytest.raises(InputError, match=r"abfs://container/x/a\.bin: access denied"):
        Storage("abfs://container/x", wrong).write_bytes("a.bin", b"x")


def test_encoding_with_azure_paths_only(azure_options: dict[str, Any], ray_cluster: None) -> None:
    root = "abfs://container/encoding"
    write_corpus(Storage(f"{root}/corpus", azure_options), 3)
    write_hasher(f"{root}/hasher", azure_options)
    corpus = CorpusConfig(f"{root}/corpus/*.parquet", "vector", storage_options=azure_options)
    config = EncodeConfig(corpus, f"{root}/hasher", f"{root}/codes", workers=WorkersConfig(2, 1))
    report = encode(config)
    assert (report.rows, report.files) == (3 * ROWS, 3)
    code_set = CodeSet.open(f"{root}/codes", azure_options)
    parts = pa.concat_tables(code_set.read(file, verify=True) for file in code_set.manifest.files)
    assert parts["id"].to_pylist() == list(range(3 * ROWS))
    first = pq.read_table(Storage(f"{root}/corpus", azure_options).open_input("00.parquet"))
    expected = Hasher.load(f"{root}/hasher", azure_options).encode(first["vector"])
    assert b"".join(parts["code"].to_pylist()[:ROWS]) == expected.tobytes()
    names = {"manifest.json", "report.json", *(file.path for file in code_set.manifest.files)}
    assert set(Storage(f"{root}/codes", azure_options).names()) == names
    assert encode(config).reused == 3
