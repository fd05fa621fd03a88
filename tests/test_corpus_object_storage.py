"""What reading a corpus asks of object storage: only the columns that are named, in few ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex.config import CorpusConfig
from distindex.corpus.dataset import Corpus
from distindex.storage import Storage
from tests.object_storage import FaultyProxy

GROUPS, ROWS, WIDTH = 4, 3000, 64


def table() -> pa.Table:
    random = np.random.default_rng(0)
    x_NV = random.standard_normal((GROUPS * ROWS, WIDTH)).astype(np.float32)
    return pa.table(
        {
            "before": [random.bytes(300) for _ in range(GROUPS * ROWS)],
            "id": np.arange(GROUPS * ROWS),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(x_NV.ravel()), WIDTH),
            "between": [random.bytes(300) for _ in range(GROUPS * ROWS)],
            "title": [f"row {row}" for row in range(GROUPS * ROWS)],
        }
    )


@pytest.mark.parametrize(("payload", "ranges"), [([], 1), (["title"], 2)])
def test_ranges_and_bytes(s3_port: int, s3_options: dict[str, Any], payload: list[str], ranges: int) -> None:
    path, expected = f"s3://bucket/ranges/{len(payload)}/a.parquet", table()
    with Storage(path, s3_options).open_output("") as stream:
        pq.write_table(expected, stream, row_group_size=ROWS)
    metadata = pq.read_metadata(Storage(path, s3_options).open_input(""))
    columns = ["id", "vector", *payload]
    groups = [metadata.row_group(number) for number in range(GROUPS)]
    needed = sum(
        group.column(number).total_compressed_size
        for group in groups
        for number in range(group.num_columns)
        if group.column(number).path_in_schema.split(".")[0] in columns
    )
    with FaultyProxy(s3_port, share=0, faults=0) as proxy:
        config = CorpusConfig(path, "vector", payload_columns=payload, storage_options=proxy.options)
        corpus = Corpus.open(config)
        opened, described = proxy.requests, proxy.sent
        read = pa.concat_tables(batch.table for batch in corpus.batches(columns, batch_rows=700))
        asked, sent = proxy.requests - opened, proxy.sent - described
    assert read.equals(expected.select(columns))
    # Once for the size, and once for the footer, of which 64 KiB are fetched.
    assert asked == 2 + ranges * GROUPS
    assert needed < sent < 1.01 * needed + (64 << 10)
    assert described < 100 << 10


def test_a_reader_that_stops_early_and_one_that_fails(s3_port: int, s3_options: dict[str, Any]) -> None:
    path = "s3://bucket/ranges/early.parquet"
    with Storage(path, s3_options).open_output("") as stream:
        pq.write_table(table(), stream, row_group_size=ROWS)
    with FaultyProxy(s3_port, share=0, faults=0) as proxy:
        corpus = Corpus.open(CorpusConfig(path, "vector", storage_options=proxy.options))
        before = proxy.requests
        batches = corpus.batches(["id", "vector"], batch_rows=100)
        assert next(batches).table.column("id").to_pylist() == list(range(100))
        batches.close()  # type: ignore[attr-defined]
        assert proxy.requests - before == 3, "one row group, and no more than is asked for"
        proxy.denied = True
        with pytest.raises(Exception, match="access denied"):
            next(corpus.batches(["id", "vector"]))
