"""From a code set to an index version with Ray: the same answers, and nothing half done."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex.building import build
from distindex.codeset import CodeSetManifest, HasherReference, OutputFile, PayloadColumn, commit
from distindex.config import BuildConfig
from distindex.errors import ConflictError, DamagedError, InputError, NotFoundError
from distindex.index.index import Index
from distindex.storage import Storage
from tests import oracle

# The package gives its function the module's name.
building = importlib.import_module("distindex.building.build")
pytestmark = pytest.mark.usefixtures("ray_cluster")


def codes_of(rows: int, bits: int = 64, seed: int = 0) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    pool = random.integers(0, 256, (max(1, rows // 6), bits // 8), dtype=np.uint8)
    return pool[random.integers(0, len(pool), rows)]


def write_code_set(
    root: Path, code_NC: npt.NDArray[np.uint8], ids: list[Any], files: int = 3, hasher: str = "f1"
) -> str:
    """A code set with one payload column, cut into `files` parts of different lengths, one of them empty."""
    storage = Storage(str(root))
    bounds = [0, *sorted({len(ids) * (i + 1) ** 2 // (files + 1) ** 2 for i in range(files - 2)}), len(ids)]
    spans = [*itertools.pairwise(bounds), (0, 0)]
    id_type = pa.int64() if not ids or isinstance(ids[0], int) else pa.string()
    parts = []
    for number, (start, stop) in enumerate(spans):
        size = code_NC.shape[1]
        table = pa.table(
            {
                "id": pa.array(ids[start:stop], id_type),
                "code": pa.array([code.tobytes() for code in code_NC[start:stop]], pa.binary(size)),
                "text": pa.array([f"text of {i}" for i in ids[start:stop]], pa.string()),
            }
        )
        path = f"part-{number}.parquet"
        with storage.open_output(path) as stream:
            pq.write_table(table, stream)
        data = storage.read_bytes(path)
        parts.append(OutputFile(path, stop - start, len(data), hashlib.sha256(data).hexdigest()))
    manifest = CodeSetManifest(
        bits=code_NC.shape[1] * 8,
        hasher=HasherReference(uri="the/hasher", fingerprint=hasher),
        id_type="int64" if id_type == pa.int64() else "string",
        payload=(PayloadColumn("text", "string"),),
        rows=len(ids),
        rejected=0,
        inputs=(),
        files=tuple(parts),
    )
    commit(storage, manifest)
    return str(root)


def write_hasher(root: Path, bits: int, fingerprint: str) -> str:
    Storage(str(root)).write_json("hasher.json", {"bits": bits, "fingerprint": fingerprint})
    return str(root)


def nothing_written(path: Path) -> bool:
    return not path.exists() or not any(entry.is_file() for entry in path.rglob("*"))


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_built_index_answers_as_the_oracle(tmp_path: Path, shards: int, text_ids: bool) -> None:
    code_NC = codes_of(3000)
    numbers = np.random.default_rng(5).permutation(3000).tolist()
    ids = [f"item {number}" for number in numbers] if text_ids else numbers
    uri = write_code_set(tmp_path / "codes", code_NC, ids, files=4)
    hasher = write_hasher(tmp_path / "hasher", 64, "f1")
    report = build(BuildConfig(codes=uri, output=str(tmp_path / "index"), hasher=hasher, shards=shards))
    assert (report.version, report.rows, report.shards) == (1, 3000, shards)
    assert report.distinct == len(np.unique(code_NC, axis=0))
    index = Index.open(report.uri)
    assert index.manifest.bytes == report.bytes
    assert index.hasher == {"uri": hasher, "fingerprint": "f1"}
    query_QC = np.concatenate([code_NC[:8], codes_of(8, seed=9)])
    for k in (1, 50, 500):
        found = index.search(query_QC, k, columns=["text"])
        assert [[(m.distance, m.code, m.id) for m in matches] for matches in found] == oracle.search(
            query_QC, code_NC, ids, k=k
        )
        assert all(m.payload == {"text": f"text of {m.id}"} for matches in found for m in matches)


def test_the_same_shards_come_from_any_cut_into_files_and_a_second_build_adds_nothing(tmp_path: Path) -> None:
    code_NC, ids = codes_of(1000), list(range(1000))
    manifests = []
    for files in (2, 5):
        order = np.random.default_rng(files).permutation(1000)
        uri = write_code_set(tmp_path / f"codes-{files}", code_NC[order], [ids[row] for row in order], files)
        report = build(BuildConfig(codes=uri, output=str(tmp_path / f"index-{files}"), shards=2))
        manifests.append(Index.open(report.uri).manifest)
    assert manifests[0].shards == manifests[1].shards
    again = build(BuildConfig(codes=str(tmp_path / "codes-5"), output=str(tmp_path / "index-2"), shards=2))
    assert again.version == 1
    resharded = build(BuildConfig(codes=str(tmp_path / "codes-5"), output=str(tmp_path / "index-2"), shards=3))
    assert (resharded.version, resharded.shards) == (2, 3)
    assert Index.open(str(tmp_path / "index-2"), version=1).manifest.parent is None
    assert Index.open(str(tmp_path / "index-2")).manifest.parent == 1


def test_ids_are_unique_over_files_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distindex.index.construction.IDS_PER_GROUP", 100)
    code_NC, ids = codes_of(900), list(range(900))
    ids[899] = 3
    assert (code_NC[899] != code_NC[3]).any()
    uri = write_code_set(tmp_path / "codes", code_NC, ids, files=3)
    with pytest.raises(InputError, match=r"id 3 stands in part-0\.parquet and in part-1\.parquet"):
        build(BuildConfig(codes=uri, output=str(tmp_path / "index"), shards=3))
    assert nothing_written(tmp_path / "index")
    ids[899], ids[2] = 899, 1
    uri = write_code_set(tmp_path / "codes-2", code_NC, ids, files=3)
    with pytest.raises(InputError, match=r"id 1 stands twice in part-0\.parquet"):
        build(BuildConfig(codes=uri, output=str(tmp_path / "index"), shards=1))
    assert nothing_written(tmp_path / "index")


@pytest.mark.parametrize("shards", [1, 2])
def test_an_empty_code_set_gives_an_empty_index(tmp_path: Path, shards: int) -> None:
    uri = write_code_set(tmp_path / "codes", np.zeros((0, 2), np.uint8), [], files=2)
    report = build(BuildConfig(codes=uri, output=str(tmp_path / "index"), shards=shards))
    assert (report.rows, report.distinct) == (0, 0)
    matches = Index.open(report.uri).search(np.zeros((2, 2), np.uint8), 5, columns=["text"])
    assert [list(found) for found in matches] == [[], []]


def test_codes_and_hasher_must_belong_together(tmp_path: Path) -> None:
    uri = write_code_set(tmp_path / "codes", codes_of(50), list(range(50)))
    output = str(tmp_path / "index")
    for hasher, message in (
        (write_hasher(tmp_path / "long", 128, "f1"), "codes of 64 bits, but the hasher .* makes 128 bits"),
        (write_hasher(tmp_path / "other", 64, "f2"), "made by hasher f1, but .* is f2"),
    ):
        with pytest.raises(InputError, match=message):
            build(BuildConfig(codes=uri, output=output, hasher=hasher))
    with pytest.raises(NotFoundError, match="no hasher here"):
        build(BuildConfig(codes=uri, output=output, hasher=str(tmp_path / "nowhere")))
    with pytest.raises(NotFoundError, match="no code set here"):
        build(BuildConfig(codes=str(tmp_path / "nothing"), output=output))
    assert nothing_written(tmp_path / "index")


def test_an_index_of_other_bits_or_another_hasher_is_not_continued(tmp_path: Path) -> None:
    output = str(tmp_path / "index")
    build(BuildConfig(write_code_set(tmp_path / "a", codes_of(50), list(range(50))), output))
    with pytest.raises(InputError, match="has codes of 64 bits, these have 32 bits"):
        build(BuildConfig(write_code_set(tmp_path / "b", codes_of(50, 32), list(range(50))), output))
    with pytest.raises(InputError, match="was made by hasher f1, these codes by hasher f2"):
        build(BuildConfig(write_code_set(tmp_path / "c", codes_of(50), list(range(50)), hasher="f2"), output))
    assert Index.open(output).version == 1


def test_a_damaged_code_file_is_refused_by_name(tmp_path: Path) -> None:
    uri = write_code_set(tmp_path / "codes", codes_of(200), list(range(200)))
    path = tmp_path / "codes" / "part-1.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"part-1\.parquet: does not match the sha256"):
        build(BuildConfig(codes=uri, output=str(tmp_path / "index")))
    assert nothing_written(tmp_path / "index")


def test_a_code_set_whose_files_differ_from_its_manifest_is_refused(tmp_path: Path) -> None:
    uri = write_code_set(tmp_path / "codes", codes_of(200), list(range(200)))
    path = tmp_path / "codes" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id_type": "string"}))
    with pytest.raises(DamagedError, match="column 'id' is not string without nulls"):
        build(BuildConfig(codes=uri, output=str(tmp_path / "index")))
    assert nothing_written(tmp_path / "index")


def test_a_version_committed_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_code_set(tmp_path / "codes", codes_of(200), list(range(200)))
    output = str(tmp_path / "index")
    write_parts = building.write_parts

    def slowly(*arguments: Any) -> Any:
        entries = write_parts(*arguments)
        Index.create(output, codes_of(10), list(range(10)), command="the other writer")
        return entries

    monkeypatch.setattr(building, "write_parts", slowly)
    with pytest.raises(ConflictError, match=r"version 1 was committed by another writer.*the other writer"):
        build(BuildConfig(codes=uri, output=output))
    assert Index.open(output).rows == 10


def test_a_build_that_died_before_its_commit_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_code_set(tmp_path / "codes", codes_of(500), list(range(500)))
    config = BuildConfig(codes=uri, output=str(tmp_path / "index"), shards=2)

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    with pytest.raises(NotFoundError, match="no index here"):
        Index.open(config.output)
    files = [path for path in (tmp_path / "index" / "shards").rglob("*") if path.is_file()]
    assert len(files) == 10
    # The descriptions are written again, with the same bytes, so that `gc` sees that they are in use.
    written = {path: path.stat().st_mtime_ns for path in files if path.name != "shard.json"}
    assert (tmp_path / "index" / "building").is_dir()
    report = build(config)
    assert (report.version, report.rows) == (1, 500)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not (tmp_path / "index" / "building").exists()
    clean = build(BuildConfig(codes=uri, output=str(tmp_path / "clean"), shards=2))
    assert Index.open(clean.uri).manifest.shards == Index.open(report.uri).manifest.shards
