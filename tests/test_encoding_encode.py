from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distindex import codeset
from distindex.codeset import CodeSet, CodeSetManifest
from distindex.config import CorpusConfig, EncodeConfig, FeaturesConfig, WorkersConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import fit_features
from distindex.corpus.ids import bucket_of
from distindex.encoding import encode
from distindex.encoding.part import StoppedError, encode_task
from distindex.encoding.tasks import plan_tasks
from distindex.encoding.verification import WrittenPart, read_back
from distindex.errors import ConflictError, DamagedError, FormatError, InputError, NotFoundError
from distindex.hashing.classic import fit_lsh
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage

WIDTH, BITS = 12, 16
ROWS = (500, 0, 321)


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def write_corpus(directory: Path, ids: Callable[[int], Any] = int, bad: bool = False) -> list[pa.Table]:
    directory.mkdir(parents=True, exist_ok=True)
    tables, first = [], 0
    for number, rows in enumerate(ROWS):
        values: list[Any] = list(vectors(rows, number))
        if bad and rows:
            values[7] = values[7].copy()
            values[7][2] = np.nan
            values[11] = None
            values[13] = [1.0]
        id_type = pa.int32() if isinstance(ids(0), int) else pa.large_string()
        table = pa.table(
            {
                "key": pa.array([ids(first + i) for i in range(rows)], id_type),
                "vector": pa.array(values, pa.list_(pa.float32())),
                "title": pa.array([f"item {first + i}" for i in range(rows)], pa.string()),
                "tags": pa.array([["a"] * (i % 3) for i in range(rows)], pa.list_(pa.string())),
            }
        )
        pq.write_table(table, directory / f"{number}.parquet", row_group_size=100)
        tables.append(table)
        first += rows
    return tables


@pytest.fixture(scope="module")
def hasher_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("hasher") / "lsh"
    column = pa.array(list(vectors(1000, 99)), pa.list_(pa.float32()))
    features = fit_features(FeaturesConfig(), "dense", [column])
    fit_lsh(features, features.transform(column), "embedding", BITS).save(str(uri))
    return str(uri)


def config_of(tmp_path: Path, hasher_uri: str, output: str = "codes", actors: int = 1, **corpus: Any) -> EncodeConfig:
    settings = {"uri": str(tmp_path / "corpus"), "feature_column": "vector", "id_column": "key", **corpus}
    return EncodeConfig(
        CorpusConfig(**settings),
        hasher_uri,
        str(tmp_path / output),
        batch_rows=64,
        workers=WorkersConfig(count=actors, cpus=1),
    )


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def rows_of(uri: str) -> pa.Table:
    code_set = CodeSet.open(uri)
    return pa.concat_tables(code_set.read(file, verify=True) for file in code_set.manifest.files)


def test_every_row_is_encoded_once(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    tables = write_corpus(tmp_path / "corpus")
    report = encode(config_of(tmp_path, hasher_uri, actors=2, payload_columns=["title", "tags"]))
    assert (report.rows, report.rejected, report.files, report.parts, report.reused) == (821, 0, 3, 3, 0)
    out = rows_of(report.uri)
    assert out.schema.names == ["id", "code", "title", "tags"]
    assert out.schema.types == [pa.int64(), pa.binary(BITS // 8), pa.string(), pa.list_(pa.string())]
    expected = pa.concat_tables(tables)
    assert out["id"].to_pylist() == expected["key"].to_pylist()
    assert out["title"].to_pylist() == expected["title"].to_pylist()
    assert out["tags"].to_pylist() == expected["tags"].to_pylist()
    hasher = Hasher.load(hasher_uri)
    code_NC = hasher.encode(expected["vector"])
    assert out["code"].to_pylist() == [code.tobytes() for code in code_NC]
    # The codes are the signs of the documented linear map, whatever the Hasher does inside.
    x_NV = hasher.features.transform(expected["vector"])
    logit_NK = np.asarray(x_NV) @ hasher.tables[0][0].numpy() + hasher.tables[0][1].numpy()
    np.testing.assert_array_equal(np.packbits(logit_NK > 0, axis=1, bitorder="little"), code_NC)

    manifest = CodeSet.open(report.uri).manifest
    assert manifest.bits == BITS
    assert manifest.hasher.fingerprint == hasher.fingerprint
    assert manifest.id_type == "int64"
    assert [(column.name, column.type) for column in manifest.payload] == [
        ("title", "string"),
        ("tags", "list<element: string>"),
    ]
    assert [file.rows for file in manifest.inputs] == list(ROWS)
    assert [file.rows for file in manifest.files] == list(ROWS)
    assert set(files_of(tmp_path / "codes")) == {
        "manifest.json",
        "report.json",
        *(file.path for file in manifest.files),
    }

    before = files_of(tmp_path / "codes")
    again = encode(config_of(tmp_path, hasher_uri, payload_columns=["title", "tags"]))
    assert (again.rows, again.reused) == (821, 3)
    assert files_of(tmp_path / "codes") == before
    with pytest.raises(ConflictError, match="of other columns"):
        encode(config_of(tmp_path, hasher_uri))
    assert files_of(tmp_path / "codes") == before


def test_who_waits_for_a_processor_is_told(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=4)
    class Service:
        def ready(self) -> bool:
            return True

    write_corpus(tmp_path / "corpus")
    arguments = ["encode", "--corpus.uri", str(tmp_path / "corpus"), "--corpus.feature_column", "vector"]
    arguments += ["--corpus.id_column", "key", "--hasher", hasher_uri, "--output", str(tmp_path / "codes")]
    service = Service.remote()  # type: ignore[attr-defined]
    assert ray.get(service.ready.remote())
    told: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "distindex.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            told.append(line)
            if "no CPU is free" in line:
                break
        ray.kill(service)  # type: ignore[arg-type]
        process.stderr.read()
    assert "waits until what holds them ends" in told[-1], told
    assert process.returncode == 0
    assert CodeSet.open(str(tmp_path / "codes")).manifest.rows == sum(ROWS)


def test_the_number_of_actors_changes_nothing(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_corpus(tmp_path / "corpus", ids=lambda i: f"doc-{i}", bad=True)
    settings: dict[str, Any] = {"on_bad_rows": "reject", "payload_columns": ["title"]}
    one = encode(config_of(tmp_path, hasher_uri, "one", actors=1, **settings))
    two = encode(config_of(tmp_path, hasher_uri, "two", actors=2, **settings))
    assert (one.rows, one.rejected) == (two.rows, two.rejected) == (815, 6)
    first, second = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    for name in ("manifest.json", "report.json"):
        assert first.pop(name) != b""
        assert second.pop(name) != b""
    assert first == second

    out = rows_of(two.uri)
    assert out.schema.field("id").type == pa.string()
    assert out["title"].to_pylist() == [f"item {key.removeprefix('doc-')}" for key in out["id"].to_pylist()]
    code_set = CodeSet.open(two.uri)
    rejected = pa.concat_tables(code_set.read(file) for file in code_set.manifest.rejected_files).to_pylist()
    assert [(Path(row["file"]).name, row["row"], row["id"], row["reason"]) for row in rejected] == [
        ("0.parquet", 7, "doc-7", 'column "vector" holds NaN'),
        ("0.parquet", 11, "doc-11", 'column "vector" is null'),
        ("0.parquet", 13, "doc-13", 'column "vector" has 1 dimensions, expected 12'),
        ("2.parquet", 7, "doc-507", 'column "vector" holds NaN'),
        ("2.parquet", 11, "doc-511", 'column "vector" is null'),
        ("2.parquet", 13, "doc-513", 'column "vector" has 1 dimensions, expected 12'),
    ]
    assert {row["id"] for row in rejected}.isdisjoint(out["id"].to_pylist())


@pytest.mark.parametrize("kind", ["dense", "text"])
def test_the_size_of_batches_changes_no_bit(tmp_path: Path, kind: str) -> None:
    """Of a network with hidden layers, whose sums might be added up in another order for another batch."""
    random = np.random.default_rng(0)
    rows, bits = 1100, 64
    if kind == "dense":
        column = pa.array(list(random.standard_normal((rows, 40)).astype(np.float32)), pa.list_(pa.float32()))
        features = fit_features(FeaturesConfig(), "dense", [column])
    else:
        words = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        column = pa.array([" ".join(random.choice(words, 12)) for _ in range(rows)])
        features = fit_features(FeaturesConfig(), "text", [column])
    widths, generator = [features.width, 300, 200, bits], torch.Generator().manual_seed(0)
    tables = [(torch.randn(a, b, generator=generator), torch.zeros(b)) for a, b in itertools.pairwise(widths)]
    hasher = Hasher("csb-vae", bits, "vector", features, tables)
    hasher.save(str(tmp_path / "hasher"))
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"key": range(rows), "vector": column}), tmp_path / "corpus" / "a.parquet")
    config = config_of(tmp_path, str(tmp_path / "hasher"))
    corpus = Corpus.open(config.corpus)
    (task,) = plan_tasks(corpus, config.task_mib)
    found = {}
    for batch_rows in (1, 3, 8, 17, 64, 65, 331, 1000, 4096):
        output = Storage(str(tmp_path / f"batches-{batch_rows}"))
        part = encode_task(corpus, task, hasher, output, batch_rows, lambda: False).part
        found[batch_rows] = pq.read_table(output.full_path(part.path))["code"].to_pylist()
    whole = [code.tobytes() for code in hasher.encode(column)]
    assert [size for size, codes in found.items() if codes != whole] == []


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_corpus(tmp_path / "corpus", bad=True)
    settings: dict[str, Any] = {"on_bad_rows": "reject"}
    encode(config_of(tmp_path, hasher_uri, "whole", **settings))
    # What a killed run leaves: one file done, another file's part half written, parts of an older corpus.
    config = config_of(tmp_path, hasher_uri, "killed", **settings)
    corpus, hasher, output = Corpus.open(config.corpus), Hasher.load(hasher_uri), Storage(config.output)
    tasks = plan_tasks(corpus, config.task_mib)
    names = [task.names(corpus, hasher.fingerprint) for task in tasks]
    encode_task(corpus, tasks[0], hasher, output, 64, lambda: False)
    done_at = (tmp_path / "killed" / names[0].part).stat().st_mtime_ns
    output.write_bytes(names[2].part, b"PAR1 half")
    output.write_bytes("part-00002-0123456789abcdef.parquet.77.tmp", b"half")
    output.write_bytes("part-00009-0123456789abcdef.parquet", b"old")
    output.write_bytes("rejected/part-00009-0123456789abcdef.parquet", b"old")
    output.write_bytes("_progress/failed-0123", b"")
    output.write_bytes("notes.txt", b"not ours")

    report = encode(config)
    assert report.reused == 1
    assert (tmp_path / "killed" / names[0].part).stat().st_mtime_ns == done_at
    expected, found = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert found.pop("notes.txt") == b"not ours"
    assert found.keys() == expected.keys()
    for path in expected.keys() - {"manifest.json", "report.json"}:
        assert found[path] == expected[path]
    assert CodeSet.open(config.output).manifest.files == CodeSet.open(str(tmp_path / "whole")).manifest.files


def test_a_stopped_file_leaves_nothing(tmp_path: Path, hasher_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "corpus")
    config = config_of(tmp_path, hasher_uri)
    monkeypatch.setattr("distindex.encoding.part._SECONDS_BETWEEN_STOP_CHECKS", -1.0)
    corpus, hasher = Corpus.open(config.corpus), Hasher.load(hasher_uri)
    task = plan_tasks(corpus, config.task_mib)[0]
    with pytest.raises(StoppedError):
        encode_task(corpus, task, hasher, Storage(config.output), 64, lambda: True)
    assert files_of(tmp_path / "codes") == {}


def test_a_file_that_changed_is_noticed(tmp_path: Path, hasher_uri: str) -> None:
    write_corpus(tmp_path / "corpus")
    config = config_of(tmp_path, hasher_uri)
    corpus, hasher = Corpus.open(config.corpus), Hasher.load(hasher_uri)
    task = plan_tasks(corpus, config.task_mib)[0]
    task = dataclasses.replace(task, groups=dataclasses.replace(task.groups, rows=499))
    with pytest.raises(DamagedError, match=r"0\.parquet: 500 rows were read, but it had 499"):
        encode_task(corpus, task, hasher, Storage(config.output), 64, lambda: False)
    assert files_of(tmp_path / "codes") == {}


def test_a_bad_row_stops_the_run(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_corpus(tmp_path / "corpus", bad=True)
    with pytest.raises(InputError, match=r'corpus/0\.parquet row 7: column "vector" holds NaN'):
        encode(config_of(tmp_path, hasher_uri))
    assert not (tmp_path / "codes").exists()


def test_ids_that_repeat_across_files(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_corpus(tmp_path / "corpus", ids=lambda i: i % 600)
    (tmp_path / "codes").mkdir()
    with pytest.raises(InputError, match=r"id 0 is there more than once: .*0\.parquet row 0, .*2\.parquet row 100"):
        encode(config_of(tmp_path, hasher_uri))
    assert list((tmp_path / "codes").iterdir()) == []


def test_all_rows_bad(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    (tmp_path / "corpus").mkdir()
    column = pa.array([[1.0], None], pa.list_(pa.float32()))
    pq.write_table(pa.table({"key": [1, 2], "vector": column}), tmp_path / "corpus" / "a.parquet")
    with pytest.raises(InputError, match="all 2 rows are bad"):
        encode(config_of(tmp_path, hasher_uri, on_bad_rows="reject"))
    assert not (tmp_path / "codes").exists()


def test_what_does_not_fit_is_refused_before_work(tmp_path: Path, hasher_uri: str) -> None:
    write_corpus(tmp_path / "corpus")
    with pytest.raises(NotFoundError, match="no hasher here"):
        encode(config_of(tmp_path, str(tmp_path / "nowhere")))
    with pytest.raises(NotFoundError, match="no such file or directory"):
        encode(config_of(tmp_path, hasher_uri, uri=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match='no column "embedding"'):
        encode(config_of(tmp_path, hasher_uri, feature_column="embedding"))
    with pytest.raises(InputError, match=r'column "title" holds text features, but the hasher .* takes dense'):
        encode(config_of(tmp_path, hasher_uri, feature_column="title"))
    with pytest.raises(InputError, match="a name is there twice in title, title"):
        encode(config_of(tmp_path, hasher_uri, payload_columns=["title", "title"]))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10, np.float32)), 5)
    pq.write_table(pa.table({"key": [1, 2], "vector": fixed, "code": [1, 2]}), tmp_path / "fixed.parquet")
    with pytest.raises(InputError, match=r'column "vector" has 5 dimensions, but the hasher .* takes 12'):
        encode(config_of(tmp_path, hasher_uri, uri=str(tmp_path / "fixed.parquet")))
    write_corpus(tmp_path / "corpus")
    table = write_corpus(tmp_path / "named")[0].append_column("code", pa.array(range(500)))
    pq.write_table(table, tmp_path / "named.parquet")
    with pytest.raises(InputError, match='"code" is the name of a column that every code set has'):
        encode(config_of(tmp_path, hasher_uri, uri=str(tmp_path / "named.parquet"), payload_columns=["code"]))
    assert not (tmp_path / "codes").exists()


def test_another_hasher_is_refused(tmp_path: Path, hasher_uri: str) -> None:
    write_corpus(tmp_path / "corpus")
    config = config_of(tmp_path, hasher_uri)
    manifest = a_manifest()
    codeset.commit(Storage(config.output), manifest)
    with pytest.raises(ConflictError, match="holds a code set made by another hasher"):
        encode(config)
    same_hasher = codeset.HasherReference(hasher_uri, Hasher.load(hasher_uri).fingerprint)
    Storage(config.output).write_json("manifest.json", dataclasses.replace(manifest, hasher=same_hasher).to_json())
    with pytest.raises(ConflictError, match="holds a code set made of other input files"):
        encode(config)


# Ids over all parts


def write_parts(directory: Path, parts: list[list[Any]], kind: pa.DataType) -> tuple[Storage, CodeSetManifest]:
    files = []
    directory.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(parts):
        path = directory / f"part-{number}.parquet"
        pq.write_table(pa.table({"id": pa.array(ids, kind)}), path)
        files.append(codeset.OutputFile(path.name, len(ids), path.stat().st_size, ""))
    rows = sum(map(len, parts))
    return Storage(str(directory)), dataclasses.replace(a_manifest(), rows=rows, files=tuple(files))


@pytest.mark.parametrize("ids_per_task", [1000, 40])
def test_repeated_ids_are_found_in_any_number_of_tasks(tmp_path: Path, ray_cluster: None, ids_per_task: int) -> None:
    ids = [*range(-50, 50)]
    parts: list[list[Any]] = [ids[:30], [], ids[30:90], ids[90:]]

    def repeated(name: str, kind: pa.DataType) -> int | str | None:
        storage, manifest = write_parts(tmp_path / name, parts, kind)
        manifest = dataclasses.replace(manifest, id_type="int64" if kind == pa.int64() else "string")
        return read_back(storage, manifest, [WrittenPart(file) for file in manifest.files], ids_per_task).repeated

    assert repeated("a", pa.int64()) is None
    parts[3] = [*parts[3], -50]
    assert repeated("b", pa.int64()) == -50
    parts = [[f"é{i}" for i in part] for part in parts]
    assert repeated("c", pa.string()) == "é-50"


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(1, 9))
def test_equal_ids_share_a_bucket(ids: list[int], buckets: int) -> None:
    for column in (pa.chunked_array([ids], pa.int64()), pa.chunked_array([[str(i) for i in ids]])):
        bucket_N = bucket_of(column, buckets)
        assert bucket_N.max() < buckets
        np.testing.assert_array_equal(bucket_N, [bucket_of(column.slice(i, 1), buckets)[0] for i in range(len(ids))])


def test_buckets_are_even() -> None:
    for column in (pa.chunked_array([range(0, 70_000, 7)]), pa.chunked_array([[f"doc-{i}" for i in range(10_000)]])):
        counts = np.bincount(bucket_of(column, 8).astype(int), minlength=8)
        assert counts.max() < 1.5 * counts.min()


# The manifest


def a_manifest() -> CodeSetManifest:
    return CodeSetManifest(
        bits=16,
        hasher=codeset.HasherReference("h", "0123"),
        id_type="int64",
        payload=(codeset.PayloadColumn("title", "string"),),
        rows=2,
        rejected=1,
        inputs=(codeset.InputFile("a.parquet", 10, "tag", 3),),
        files=(codeset.OutputFile("part-0.parquet", 2, 9, "00"),),
    )


def test_manifest_round_trip_and_refusals(tmp_path: Path) -> None:
    storage, manifest = Storage(str(tmp_path)), a_manifest()
    with pytest.raises(NotFoundError, match="no code set here"):
        CodeSet.open(str(tmp_path))
    codeset.commit(storage, manifest)
    assert CodeSet.open(str(tmp_path)).manifest == manifest
    with pytest.raises(ConflictError):
        codeset.commit(storage, manifest)
    value = json.loads((tmp_path / "manifest.json").read_text())
    changes: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"format_version": 2}, FormatError, "format version 2"),
        ({"kind": "hasher"}, FormatError, "not the manifest of a code set"),
        ({"rows": 3}, DamagedError, "do not add up"),
        ({"id_type": "float"}, DamagedError, "neither int64 nor string"),
        ({"files": [{"path": "x"}]}, DamagedError, "damaged"),
    ]
    for change, error, message in changes:
        storage.write_json("manifest.json", {**value, **change})
        with pytest.raises(error, match=message):
            CodeSet.open(str(tmp_path))


def test_damaged_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table({"id": [1, 2]}), path)
    data = path.read_bytes()
    file = codeset.OutputFile(path.name, 2, len(data), "00")
    code_set = CodeSet(Storage(str(tmp_path)), a_manifest())
    assert code_set.read(file, ["id"])["id"].to_pylist() == [1, 2]
    with pytest.raises(DamagedError, match=r"part-0\.parquet: does not match the sha256"):
        code_set.read(file, verify=True)
    with pytest.raises(DamagedError, match=r"part-0\.parquet: \d+ bytes, but"):
        code_set.read(dataclasses.replace(file, bytes=1))
    with pytest.raises(DamagedError, match=r"part-0\.parquet: 2 rows, but"):
        code_set.read(dataclasses.replace(file, rows=3))
    path.write_bytes(data[:-4] + b"XXXX")
    with pytest.raises(DamagedError, match=r"part-0\.parquet: cannot be read as Parquet"):
        code_set.read(file)
    path.unlink()
    with pytest.raises(NotFoundError):
        code_set.read(file)
