"""Lance tables as corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distindex.corpus import lance_tables
from distindex.encoding.tasks import plan_tasks
from distindex.errors import DamagedError, InputError
from tests.test_corpus_formats import opened, rows_of

lance: Any = pytest.importorskip("lance")

ROWS = 50


def table(first: int = 0, rows: int = ROWS) -> pa.Table:
    ids = range(first, first + rows)
    vector = pa.array([[float(i), -float(i)] for i in ids], pa.list_(pa.float32(), 2))
    return pa.table({"id": ids, "vector": vector, "other": [f"o{i}" for i in ids]})


def ids_of(corpus: Any) -> list[int]:
    rows = rows_of(corpus)
    assert all(row["vector"] == [row["id"], -row["id"]] for row in rows)
    return [row["id"] for row in rows]


def test_fragments_deleted_rows_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "items")
    lance.write_dataset(table(), uri, max_rows_per_file=20)
    corpus = opened(uri)
    assert (corpus.rows, [file.rows for file in corpus.files]) == (ROWS, [20, 20, 10])
    assert ids_of(corpus) == list(range(ROWS))
    assert all(file.size > 0 for file in corpus.files)

    lance.dataset(uri).delete("id >= 10 AND id < 15")
    lance.write_dataset(table(ROWS, 5), uri, mode="append")
    grown = opened(uri)
    left = [i for i in range(ROWS + 5) if not 10 <= i < 15]
    assert ids_of(grown) == left
    # What is as before is known again, for `since`; what has lost rows is another file.
    assert [file.etag == other.etag for file, other in zip(corpus.files, grown.files, strict=False)] == [
        False, True, True
    ]  # fmt: skip

    monkeypatch.setattr(lance_tables, "_GROUP_ROWS", 8)
    cut = opened(uri)
    tasks = plan_tasks(cut, task_mib=0.0)
    assert [task.rows for task in tasks] == [8, 7, 8, 8, 4, 8, 2, 5]
    read: list[int] = []
    for task in tasks:
        for batch in cut.batches(["id"], 3, [task.file], None if task.whole else task.groups):
            assert batch.table.num_rows <= 3
            read += batch.table["id"].to_pylist()
    assert read == left


def test_a_table_that_changes_while_it_is_used(tmp_path: Path) -> None:
    uri = str(tmp_path / "items")
    lance.write_dataset(table(), uri)
    corpus = opened(uri)
    lance.write_dataset(table(ROWS), uri, mode="append")
    assert ids_of(corpus) == list(range(ROWS)), "rows that have come are not of this corpus"
    lance.dataset(uri).delete("id = 3")
    with pytest.raises(DamagedError, match=r"items#0: the table has changed since the job began"):
        rows_of(corpus)
    lance.write_dataset(table(), uri, mode="overwrite")
    with pytest.raises(DamagedError, match="the table has changed"):
        rows_of(corpus)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a Lance table"):
        opened(tmp_path / "nowhere", format="lance")
    (tmp_path / "_versions").mkdir()
    with pytest.raises(InputError, match="cannot be read as a Lance table"):
        opened(tmp_path)


def test_object_storage(s3_options: dict[str, Any]) -> None:
    options = {
        "aws_endpoint": s3_options["endpoint_url"],
        "aws_access_key_id": s3_options["key"],
        "aws_secret_access_key": s3_options["secret"],
        "allow_http": "true",
        "aws_region": "us-east-1",
    }
    lance.write_dataset(table(), "s3://bucket/lance/items", storage_options=options, max_rows_per_file=20)
    corpus = opened("s3://bucket/lance/items", storage_options=s3_options)
    assert len(corpus.files) == 3
    assert ids_of(corpus) == list(range(ROWS))
