from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex.config import CorpusConfig
from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.ids import as_ids, check_ids
from distindex.corpus.rows import ColumnCheck
from distindex.errors import InputError, NotFoundError

WIDTH = 4


def make_table(first: int, rows: int, **columns: Any) -> pa.Table:
    x_NV = np.arange(first * WIDTH, (first + rows) * WIDTH, dtype=np.float32).reshape(rows, WIDTH)
    made: dict[str, Any] = {
        "id": pa.array(range(first, first + rows), pa.int64()),
        "embedding": pa.array(list(x_NV), pa.list_(pa.float32())),
        "title": [f"item {i}" for i in range(first, first + rows)],
    }
    return pa.table({**made, **columns})


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def config_of(uri: object, **settings: Any) -> CorpusConfig:
    return CorpusConfig(**{"uri": str(uri), "feature_column": "embedding", **settings})


@pytest.fixture
def corpus_dir(tmp_path: Path) -> Path:
    write(tmp_path / "corpus" / "a.parquet", make_table(0, 10), row_group_size=3)
    write(tmp_path / "corpus" / "deep" / "b.parquet", make_table(10, 0))
    write(tmp_path / "corpus" / "deep" / "c.parquet", make_table(10, 5))
    (tmp_path / "corpus" / "_SUCCESS").write_text("")
    return tmp_path / "corpus"


@pytest.mark.parametrize(("suffix", "rows"), [("", 15), ("/a.parquet", 10), ("/deep/*.parquet", 5), ("/", 15)])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_file_directory_and_glob(corpus_dir: Path, prefix: str, suffix: str, rows: int) -> None:
    corpus = Corpus.open(config_of(f"{prefix}{corpus_dir}{suffix}"))
    assert corpus.rows == rows
    ids = corpus.read(["id"])["id"].to_pylist()
    assert ids == list(range(15))[-rows:] if rows == 5 else ids == list(range(rows))
    assert corpus.feature_kind == "dense"
    assert corpus.row_check() == ColumnCheck("dense", WIDTH)


def test_memory_uri(corpus_dir: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in corpus_dir.rglob("*.parquet"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    try:
        corpus = Corpus.open(config_of("memory://bucket", payload_columns=["title"]))
        assert corpus.rows == 15
        assert [row["title"] for row in corpus.read(["title"]).to_pylist()] == [f"item {i}" for i in range(15)]
        assert corpus.places_of(12) == ["memory:///bucket/c.parquet row 2"]
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_batches_cover_every_row_once(corpus_dir: Path, batch_rows: int) -> None:
    corpus = Corpus.open(config_of(corpus_dir))
    seen = []
    for batch in corpus.batches(["embedding", "id"], batch_rows):
        assert batch.table.column_names == ["embedding", "id"]
        assert 0 < batch.table.num_rows <= batch_rows
        base = 0 if batch.file.uri.endswith("a.parquet") else 10
        assert batch.table["id"][0].as_py() == base + batch.first_row
        seen += batch.table["id"].to_pylist()
    assert seen == list(range(15))
    only = list(corpus.batches(["id"], files=corpus.files[2:]))
    assert only[0].table["id"].to_pylist() == list(range(10, 15))


def test_fingerprint_follows_files_and_columns(corpus_dir: Path) -> None:
    first = Corpus.open(config_of(corpus_dir)).fingerprint
    assert Corpus.open(config_of(corpus_dir)).fingerprint == first
    assert Corpus.open(config_of(corpus_dir, payload_columns=["title"])).fingerprint != first
    write(corpus_dir / "d.parquet", make_table(100, 1))
    assert Corpus.open(config_of(corpus_dir)).fingerprint != first


def test_a_file_whose_labels_are_all_null(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", make_table(0, 2, label=pa.nulls(2)))
    write(tmp_path / "b.parquet", make_table(2, 2, label=["x", None]))
    corpus = Corpus.open(config_of(tmp_path, label_column="label"))
    assert corpus.read(["label"])["label"].to_pylist() == [None, None, "x", None]
    batches = corpus.batches(["label"])
    assert [batch.table.schema.field("label").type for batch in batches] == [pa.string()] * 2


BAD_TABLES: Mapping[str, tuple[pa.Table, dict[str, Any], str]] = {
    "missing column": (
        make_table(0, 2),
        {"label_column": "label"},
        'no column "label"; its columns are id, embedding, title',
    ),
    "feature type": (make_table(0, 2), {"feature_column": "id"}, "features of type int64"),
    "id type": (make_table(0, 2), {"id_column": "embedding"}, "ids are integers or strings"),
    "label type": (
        make_table(0, 1, label=pa.array([{"a": 1}])),
        {"label_column": "label"},
        "labels of type struct<a: int64>",
    ),
    "empty": (make_table(0, 0), {}, "the corpus is empty"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_unsuitable_corpora(tmp_path: Path, case: str) -> None:
    table, settings, message = BAD_TABLES[case]
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(InputError, match=message) as caught:
        Corpus.open(config_of(path, **settings))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file or directory"):
        Corpus.open(config_of(tmp_path / "nowhere"))
    with pytest.raises(NotFoundError, match=r"no \.parquet file"):
        Corpus.open(config_of(tmp_path))
    with pytest.raises(NotFoundError, match="matches no file"):
        Corpus.open(config_of(tmp_path / "*.parquet"))


def test_damaged_footer_is_named(corpus_dir: Path) -> None:
    path = corpus_dir / "a.parquet"
    path.write_bytes(path.read_bytes()[:-4] + b"XXXX")
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        Corpus.open(config_of(corpus_dir))
    assert str(path) in str(caught.value)


def test_damaged_pages_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", make_table(0, 1000), compression="zstd")
    data = bytearray(path.read_bytes())
    data[20:200] = b"\xff" * 180
    path.write_bytes(bytes(data))
    corpus = Corpus.open(config_of(path))
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        corpus.read(["id"])
    assert str(path) in str(caught.value)


def test_types_that_differ_between_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", make_table(0, 2))
    write(tmp_path / "b.parquet", make_table(2, 2, id=["2", "3"]))
    with pytest.raises(InputError, match=r'b\.parquet: column "id" has type string, but type int64 in'):
        Corpus.open(config_of(tmp_path))


def bad_table() -> pa.Table:
    vectors = [[0.0] * WIDTH for _ in range(7)]
    vectors[1][2] = float("nan")
    vectors[2] = [1.0, 2.0]
    vectors[3][0] = float("-inf")
    vectors[5][1] = 1e300
    values: list[Any] = [*vectors]
    values[4] = None
    values[6] = [0.0, None, 0.0, 0.0]
    return make_table(0, 8, embedding=pa.array([*values, [0.0] * WIDTH], pa.list_(pa.float64())))


REASONS = {
    1: "holds NaN",
    2: f"has 2 dimensions, expected {WIDTH}",
    3: "holds infinity",
    4: "is null",
    5: "holds a number too large for float32",
    6: "holds null",
}


def test_bad_rows_fail_with_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "part-3.parquet", bad_table().slice(1))
    corpus = Corpus.open(config_of(path))
    batch = next(corpus.batches(["id", "embedding"]))
    with pytest.raises(InputError, match=r'part-3\.parquet row 0: column "embedding" holds NaN'):
        split_bad_rows(batch, ColumnCheck("dense", WIDTH), corpus.config)


def test_bad_rows_are_put_aside(tmp_path: Path) -> None:
    table = bad_table().set_column(0, "id", pa.array([0, 1, 2, 3, 4, 5, 6, None], pa.int64()))
    path = write(tmp_path / "a.parquet", table)
    corpus = Corpus.open(config_of(path, on_bad_rows="reject", payload_columns=["title"]))
    good_ids, rejected = [], []
    for batch in corpus.batches(["id", "embedding", "title"], batch_rows=3):
        good, bad = split_bad_rows(batch, corpus.row_check(), corpus.config)
        good_ids += good["id"].to_pylist()
        rejected += bad.to_pylist()
    assert good_ids == [0]
    expected = {**{row: f'column "embedding" {reason}' for row, reason in REASONS.items()}, 7: 'column "id" is null'}
    assert {row["row"]: row["reason"] for row in rejected} == expected
    assert [row["id"] for row in rejected] == ["1", "2", "3", "4", "5", "6", None]
    assert {row["file"] for row in rejected} == {str(path)}


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.large_list(pa.float64()), pa.list_(pa.float32(), WIDTH)])
def test_bad_rows_of_every_list_type(kind: pa.DataType) -> None:
    rows: list[Any] = [[1.0] * WIDTH, None, [1.0, float("nan"), 0.0, 0.0]]
    column = pa.chunked_array([pa.array(rows, kind), pa.array(rows, kind).slice(1)])
    found = ColumnCheck("dense", WIDTH).bad_rows(column)
    assert found == [(1, "is null"), (2, "holds NaN"), (3, "is null"), (4, "holds NaN")]


def test_ids_come_back_as_they_were() -> None:
    assert as_ids(pa.array([1, 2**31 - 1], pa.int32()), "ids").type == pa.int64()
    assert as_ids(pa.array(["b", "a"]).dictionary_encode(), "ids").to_pylist() == ["b", "a"]
    assert as_ids(pa.array(["b"], pa.large_string()), "ids").type == pa.string()
    with pytest.raises(InputError, match="id 18446744073709551615 does not fit int64"):
        as_ids(pa.array([2**64 - 1], pa.uint64()), "ids")


def test_ids_must_be_unique_and_present() -> None:
    check_ids(pa.array([3, 1, 2]), "corpus")
    with pytest.raises(InputError, match="corpus: id 'x' is there 2 times, in rows 0, 2"):
        check_ids(pa.chunked_array([["x", "y"], ["x"]]), "corpus")
    with pytest.raises(InputError, match="corpus row 1: the id is null"):
        check_ids(pa.array([1, None]), "corpus")
