"""Corpora that are not Parquet: what was written is what comes back, whatever the format, the sizes and the store."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from distindex.config import CorpusConfig, FeaturesConfig, ImageConfig
from distindex.corpus import lines
from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.features import fit_features
from distindex.corpus.files import RowGroups
from distindex.errors import DamagedError, InputError, NotFoundError

VECTORS = [
    {"id": "a", "vector": [1, 2], "label": None},
    {"id": "2020-01-01", "vector": [0.5, -1e-3], "label": "2021-05-05T00:00:00"},
    {"id": "ü\n", "vector": [3, 4], "label": "x", "more": {"deep": 1}},
]


def opened(uri: object, feature_column: str = "vector", **given: Any) -> Corpus:
    return Corpus.open(CorpusConfig(str(uri), feature_column, **given))


def rows_of(corpus: Corpus, batch_rows: int = 8192) -> list[dict[str, Any]]:
    """All rows, after a check that batches follow each other and that their number is what was counted."""
    rows: list[dict[str, Any]] = []
    for file in corpus.files:
        first = 0
        for batch in corpus.batches(corpus.schema.names, batch_rows, [file]):
            assert batch.first_row == first
            assert 0 < batch.table.num_rows <= batch_rows
            assert batch.table.schema == corpus.schema
            first += batch.table.num_rows
            rows += batch.table.to_pylist()
        assert first == file.rows
    assert len(rows) == corpus.rows
    return rows


def write_json(path: Path, rows: Sequence[dict[str, Any]], end: str = "\n") -> Path:
    data = ("\n".join(json.dumps(row) for row in rows) + end).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz"])
@pytest.mark.parametrize("end", ["\n", "", "\n\n \n"])
@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: str, block: int) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    path = write_json(tmp_path / name, VECTORS, end)
    for uri in (path, tmp_path, tmp_path / "rows*"):
        corpus = opened(uri, label_column="label")
        assert corpus.feature_kind == "dense"
        assert corpus.width == 2
        expected = [{name: row[name] for name in ("id", "vector", "label")} for row in VECTORS]
        assert rows_of(corpus, batch_rows=2) == expected
    assert corpus.places_of("ü\n") == [f"{path} row 2"]


def test_json_texts_and_tokens_in_several_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.jsonl", [{"id": 1, "text": "one"}, {"id": 2}])
    write_json(tmp_path / "b.jsonl", [{"id": 3, "text": None}, {"id": 4, "text": "four", "tokens": ["x", "y"]}])
    corpus = opened(tmp_path, "text")
    assert rows_of(corpus) == [
        {"id": number, "text": text} for number, text in [(1, "one"), (2, None), (3, None), (4, "four")]
    ]
    tokens = opened(tmp_path / "b.jsonl", "tokens")
    assert tokens.feature_kind == "text"
    rejecting = opened(tmp_path, "text", on_bad_rows="reject")
    aside = [
        split_bad_rows(batch, rejecting.row_check(), rejecting.config)[1] for batch in rejecting.batches(["text"])
    ]
    assert [(row["file"].rsplit("/", 1)[1], row["row"]) for table in aside for row in table.to_pylist()] == [
        ("a.jsonl", 1),
        ("b.jsonl", 0),
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters='\n\r\t"'), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3)), min_size=1))
def test_any_json_comes_back(tmp_path: Path, rows: list[tuple[str, list[float]]]) -> None:
    expected = [{"id": text, "vector": [*vector, 0.5]} for text, vector in rows]
    path = write_json(tmp_path / "rows.jsonl", expected)
    assert rows_of(opened(path), batch_rows=7) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), TEXTS.filter(bool)), min_size=1))
def test_any_csv_comes_back(tmp_path: Path, rows: list[tuple[int, str]]) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC)
        # Texts of digits alone would be numbers: the last row is none.
        writer.writerows([["id", "text"], *rows, [0, "end"]])
    corpus = opened(path, "text")
    assert rows_of(corpus, batch_rows=5) == [{"id": a, "text": b} for a, b in [*rows, (0, "end")]]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_types_follow_from_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    head = "id,text,label,price,zip\n"
    body = [f"{number},words {number},,{number},0{number}\n" for number in range(100)]
    text = head + "".join(body) + '100,"a, ""quoted""\nline",spam,1.5,17\n101,NA,,,\n'
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    corpus = opened(tmp_path / name, "text", label_column="label", payload_columns=["price", "zip"])
    assert [str(field.type) for field in corpus.schema] == ["int64", "string", "string", "double", "string"]
    rows = rows_of(corpus, batch_rows=3)
    assert rows[7] == {"id": 7, "text": "words 7", "label": None, "price": 7.0, "zip": "07"}
    assert rows[100] == {"id": 100, "text": 'a, "quoted"\nline', "label": "spam", "price": 1.5, "zip": "17"}
    assert rows[101] == {"id": 101, "text": "NA", "label": None, "price": None, "zip": None}


def test_ids_with_leading_zeros_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text\n1,a\n007,b\n")
    assert [row["id"] for row in rows_of(opened(tmp_path, "text"))] == ["1", "007"]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as stream:
        for number in range(300_000):
            stream.write(json.dumps({"id": number, "text": f"{number} " * 20}) + "\n")
    assert path.stat().st_size > 4 * lines.BLOCK_BYTES
    before = pa.total_allocated_bytes()
    corpus = opened(path, "text")
    held = rows = 0
    for batch in corpus.batches(["id", "text"]):
        held, rows = max(held, pa.total_allocated_bytes() - before), rows + batch.table.num_rows
    assert rows == corpus.rows == 300_000
    assert held < 4 * lines.BLOCK_BYTES


BAD_FILES = {
    "no json": ("rows.jsonl", b'{"id": 1, "vector": [1]}\n{"id": 2, "vector"\n', "cannot be read as JSON Lines"),
    "json array": ("rows.jsonl", b'[{"id": 1}]\n', "cannot be read as JSON Lines"),
    "two types": ("rows.jsonl", b'{"id": 1, "vector": [1]}\n{"id": 2, "vector": "x"}\n', "JSON Lines"),
    "missing column": ("rows.jsonl", b'{"id": 1, "text": "x"}\n', 'no column "vector"; its columns are id, text'),
    "gzip cut off": ("rows.jsonl.gz", gzip.compress(b'{"id": 1, "vector": [1]}\n' * 999)[:-20], "as JSON Lines"),
    "no gzip": ("rows.jsonl.gz", b'{"id": 1, "vector": [1]}\n', "cannot be read as JSON Lines"),
    "ragged csv": ("rows.csv", b"id,vector\n1,2\n3\n", "cannot be read as CSV"),
    "empty csv": ("rows.csv", b"", "cannot be read as CSV"),
    "vectors in csv": ("rows.csv", b"id,vector\n1,2\n", "a feature column holds lists of numbers"),
    "no rows": ("rows.csv", b"id,vector\n", "the corpus is empty"),
    "no tar": ("rows.tar", bytes(100), "cannot be read as"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    name, data, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(data)
    column = "image" if name.endswith("tar") else "vector"
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, column)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_json_type_that_changes_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1)
    write_json(tmp_path / "rows.jsonl", [{"id": 1, "vector": [1]}, {"id": "2", "vector": [1]}])
    with pytest.raises(InputError, match=r"rows\.jsonl: rows before and after 1: the types of a column"):
        opened(tmp_path)


def picture(number: int, size: int = 4, kind: str = "PNG") -> bytes:
    pixel_HWC = np.full((size, size, 3), number % 256, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixel_HWC).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number, name in enumerate(["cat/1.png", "cat/2.jpg", "cat/kittens/3.webp", "dog/1.png", "4.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, kind={".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[path.suffix]))
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


@pytest.mark.parametrize("slash", ["", "/"])
def test_image_folder(folder: Path, slash: str) -> None:
    corpus = opened(f"{folder}{slash}", "image", label_column="label")
    assert corpus.feature_kind == "image"
    found = {row["id"]: row for row in rows_of(corpus, batch_rows=1)}
    names = ["4.png", "cat/1.png", "cat/2.jpg", "cat/kittens/3.webp", "dog/1.png"]
    assert sorted(found) == names
    assert all(found[name]["image"] == (folder / name).read_bytes() for name in names)
    assert [found[name]["label"] for name in names] == [None, "cat", "cat", "cat", "dog"]
    config = FeaturesConfig(image=ImageConfig(height=4, width=4))
    features = fit_features(config, "image", [batch.table["image"] for batch in corpus.batches(["image"])])
    assert features.width == 48
    (folder / "dog" / "1.png").write_bytes(b"other")
    with pytest.raises(DamagedError, match=r"dog: the images have changed"):
        rows_of(corpus)


def test_image_folder_in_pieces_and_in_another_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distindex.corpus import image_files

    monkeypatch.setattr(image_files, "_GROUP_IMAGES", 2)
    memory = fsspec.filesystem("memory")
    for number in range(5):
        memory.pipe_file(f"/pictures/all/{number}.png", picture(number))
    try:
        corpus = opened("memory://pictures", "image", label_column="label")
        (file,) = corpus.files
        assert (file.rows, file.row_groups, file.group_rows) == (5, 3, (2, 2, 1))
        assert sum(file.group_bytes) == file.size
        (batch,) = corpus.batches(["id", "image"], files=[file], groups=RowGroups(1, 2, 2, 3))
        assert batch.first_row == 2
        assert batch.table["id"].to_pylist() == ["all/2.png", "all/3.png", "all/4.png"]
        assert batch.table["image"].to_pylist() == [picture(number) for number in (2, 3, 4)]
    finally:
        memory.rm("/pictures", recursive=True)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distindex.corpus import image_files

    monkeypatch.setattr(image_files, "IMAGES_AT_ONCE", 2)
    first = {f"{number:03d}.jpg": picture(number, kind="JPEG") for number in range(3)}
    labels = {f"{number:03d}.cls": f"{number % 2}\n".encode() for number in range(3)}
    write_tar(tmp_path / "0.tar", dict(sorted({**first, **labels}.items())))
    write_tar(tmp_path / "1.tar", {"deep/x.json": b'{"a": 1}', "deep/x.png": picture(9), "y.txt": "sö".encode()})
    corpus = opened(tmp_path, "image", label_column="label", payload_columns=["text", "json"])
    assert [file.rows for file in corpus.files] == [3, 2]
    rows = rows_of(corpus)
    assert [row["id"] for row in rows] == ["000", "001", "002", "deep/x", "y"]
    assert [row["image"] for row in rows] == [*first.values(), picture(9), None]
    assert [row["label"] for row in rows] == ["0", "1", "0", None, None]
    assert [(row["text"], row["json"]) for row in rows[3:]] == [(None, '{"a": 1}'), ("sö", None)]
    assert rows_of(opened(tmp_path / "1.tar", "text"))[1] == {"id": "y", "text": "sö"}


def test_a_mix_of_formats_is_refused_unless_one_is_asked_for(tmp_path: Path) -> None:
    write_json(tmp_path / "a.jsonl", [{"id": 1, "text": "x"}])
    (tmp_path / "b.csv").write_text("id,text\n2,y\n3,z\n")
    (tmp_path / "README.md").write_text("neither")
    with pytest.raises(InputError, match=r"files of several formats .*set corpus\.format to one of jsonl, csv"):
        opened(tmp_path, "text")
    assert opened(tmp_path, "text", format="csv").rows == 2
    assert opened(tmp_path / "*.jsonl", "text").rows == 1
    with pytest.raises(NotFoundError, match=r"no \.parquet file"):
        opened(tmp_path, "text", format="parquet")
    (tmp_path / "part-0").write_bytes((tmp_path / "b.csv").read_bytes())
    assert opened(tmp_path / "part-0", "text", format="csv").rows == 2
    (tmp_path / "1.png").write_bytes(picture(1))
    with pytest.raises(InputError, match="give the directory of the images"):
        opened(tmp_path / "1.png", "image")


TABLE = pa.table({"id": [1, 2, 3], "vector": pa.array([[1.0, 2.0]] * 3), "day": ["a", "b", "a"]})


def test_delta(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    uri = str(tmp_path / "table")
    deltalake.write_deltalake(uri, TABLE)
    more = TABLE.set_column(0, "id", pa.array([4, 5, 6]))
    deltalake.write_deltalake(uri, more, mode="append")
    assert sorted(row["id"] for row in rows_of(opened(uri))) == [1, 2, 3, 4, 5, 6]
    # What was overwritten stays in the directory, and is no part of the table.
    deltalake.write_deltalake(uri, more, mode="overwrite")
    assert len(list(Path(uri).glob("*.parquet"))) == 3
    assert sorted(row["id"] for row in rows_of(opened(uri))) == [4, 5, 6]
    deltalake.DeltaTable(uri).delete("id = 5")
    assert sorted(row["id"] for row in rows_of(opened(uri))) == [4, 6]

    parted = str(tmp_path / "parted")
    deltalake.write_deltalake(parted, TABLE, partition_by="day")
    assert opened(parted).rows == 3
    with pytest.raises(InputError, match='column "day" partitions this Delta table'):
        opened(parted, payload_columns=["day"])
    with pytest.raises(InputError, match="cannot be read as a table of Delta"):
        opened(tmp_path / "nowhere", format="delta")


def test_delta_with_deletion_vectors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(str(tmp_path), TABLE)
    # The package reads deletion vectors and does not write them.
    one = [pa.record_batch({"filepath": ["part-0.parquet"]})]
    monkeypatch.setattr(deltalake.DeltaTable, "deletion_vectors", lambda table: one)
    with pytest.raises(InputError, match=r"1 file\(s\) of this Delta table have rows that are deleted"):
        opened(tmp_path)


def test_delta_in_object_storage(s3_options: dict[str, Any]) -> None:
    deltalake = pytest.importorskip("deltalake")
    options = {
        "AWS_ENDPOINT_URL": s3_options["endpoint_url"],
        "AWS_ACCESS_KEY_ID": s3_options["key"],
        "AWS_SECRET_ACCESS_KEY": s3_options["secret"],
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }
    deltalake.write_deltalake("s3://bucket/delta", TABLE, storage_options=options)
    corpus = opened("s3://bucket/delta", storage_options=s3_options)
    assert sorted(row["id"] for row in rows_of(corpus)) == [1, 2, 3]


def test_iceberg(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    catalog = pytest.importorskip("pyiceberg.catalog.memory").InMemoryCatalog("test", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("space")
    table = catalog.create_table("space.items", TABLE.schema)
    table.append(TABLE)
    table.append(TABLE.set_column(0, "id", pa.array([4, 5, 6])))
    uri = table.location()
    assert sorted(row["id"] for row in rows_of(opened(uri))) == [1, 2, 3, 4, 5, 6]
    assert opened(table.metadata_location).rows == 6
    table.delete("id = 5")
    assert sorted(row["id"] for row in rows_of(opened(uri))) == [1, 2, 3, 4, 6]
    with table.update_schema() as update:
        update.delete_column("vector")
    with table.update_schema() as update:
        from pyiceberg.types import DoubleType, ListType

        update.add_column("vector", ListType(100, DoubleType(), element_required=False))
    with pytest.raises(InputError, match='column "vector" was dropped and added again'):
        opened(uri)
    with pytest.raises(NotFoundError, match="no Iceberg table here"):
        opened(tmp_path / "nowhere", format="iceberg")


@pytest.mark.parametrize(
    ("name", "extra"), [("deltalake", "delta"), ("pyiceberg.table", "iceberg"), ("lance", "lance")]
)
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    def missing(module: str) -> Any:
        raise ImportError(f"No module named {module}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=rf"pip install 'distindex\[{extra}\]'"):
        opened(tmp_path, format=extra)
