"""Versions, content-addressed shards, and what is refused: damage, races, other formats."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distindex.errors import ConflictError, DamagedError, FormatError, InputError, NotFoundError
from distindex.index.index import Index
from distindex.index.manifest import commit, following, newest_manifest, read_manifest, versions
from distindex.index.partition import duplicate_rows, group_of_ids, shard_of_codes
from distindex.index.shard_files import write_shard
from distindex.storage import Storage

FILES = ["codes.faiss", "ids.arrow", "payload.arrow", "postings.arrow", "shard.json"]


def rows(count: int = 500, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "code_NC": random.integers(0, 4, (count, 3), dtype=np.uint8),
        "ids": np.arange(count),
        "payload": pa.table({"text": [f"text {row}" for row in range(count)]}),
    }


def all_files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_layout_and_manifest(tmp_path: Path) -> None:
    hasher = {"uri": "hashers/one", "fingerprint": "abc"}
    index = Index.create(str(tmp_path), **rows(), shards=2, hasher=hasher, command="a command")
    names = [shard.name for shard in index.manifest.shards]
    expected = {f"shards/{name}/{file}" for name in names for file in FILES} | {"versions/00000001.json"}
    stored = all_files(tmp_path)
    assert set(stored) == expected
    manifest = json.loads(stored["versions/00000001.json"])
    created = manifest.pop("created")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", created)
    shards = manifest.pop("shards")
    assert sum(shard["rows"] for shard in shards) == 500
    assert sum(shard["distinct"] for shard in shards) == 64
    assert [shard["bytes"] for shard in shards] == [
        sum(len(data) for path, data in stored.items() if name in path) for name in names
    ]
    assert manifest == {
        "format_version": 1,
        "version": 1,
        "kind": "flat",
        "parameters": {},
        "bits": 24,
        "hasher": hasher,
        "id_type": "int64",
        "payload": [{"name": "text", "type": "string"}],
        "deletions": [],
        "parent": None,
        "command": "a command",
    }
    assert index.hasher == hasher
    assert index.kind == "flat"


def test_versions_follow_each_other_and_the_old_one_stays(tmp_path: Path) -> None:
    first = Index.create(str(tmp_path), **rows())
    second = Index.create(str(tmp_path), **rows(600, seed=1))
    assert (first.version, second.version, second.manifest.parent) == (1, 2, 1)
    assert Index.open(str(tmp_path)).rows == 600
    assert Index.open(str(tmp_path), version=1).rows == 500
    assert Index.open(str(tmp_path), version=1).search(np.zeros(3, np.uint8)).version == 1
    with pytest.raises(NotFoundError, match="has no version 3; the newest are 1, 2"):
        Index.open(str(tmp_path), version=3)
    with pytest.raises(InputError, match="has no shard 1; it has 1"):
        Index.open(str(tmp_path), shards=[0, 1])


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no index here"):
        Index.open(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_NC": np.zeros((500, 4), np.uint8)}, "has codes of 24 bits, these have 32 bits"),
        ({"ids": [str(row) for row in range(500)]}, "has ids of type int64, these are string"),
        ({"hasher": {"uri": "b", "fingerprint": "two"}}, "was made by hasher one, these codes by hasher two"),
        ({"ids": np.arange(499)}, "ids: 499 rows, but there are 500 codes"),
        ({"payload": pa.table({"text": ["x"]})}, "payload: 1 rows, but there are 500 codes"),
        ({"ids": [*range(499), 17]}, "id 17 stands twice, in rows 17 and 499"),
        ({"ids": [*range(499), None]}, "the id of row 499 is null"),
        ({"ids": np.arange(500.0)}, "ids are of type double"),
        ({"ids": np.arange(500).astype(np.uint64) + np.uint64(2**63)}, "ids: "),
        ({"code_NC": np.zeros((500, 3))}, "expected uint8"),
        ({"code_NC": np.zeros(500, np.uint8)}, "expected rows of bytes"),
        ({"shards": 0}, "shards: 0 must be positive"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    Index.create(str(tmp_path), **rows(), hasher={"uri": "a", "fingerprint": "one"})
    before = all_files(tmp_path)
    with pytest.raises(InputError, match=message):
        Index.create(str(tmp_path), **(rows() | change))
    assert all_files(tmp_path) == before


def test_the_same_rows_in_any_order_are_the_same_shard(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes, ids = random.integers(0, 3, (300, 5), dtype=np.uint8), [f"id {row}" for row in range(300)]
    payload = pa.table(
        {
            "number": pa.array([None if row % 3 else row for row in range(300)]),
            "flag": pa.array([None if row % 5 == 0 else row % 2 == 0 for row in range(300)]),
            "tags": pa.array([None if row % 4 == 0 else ["t"] * (row % 3) for row in range(300)]),
            "point": pa.array([None if row % 6 == 0 else {"x": row} for row in range(300)]),
        }
    )
    entries = []
    for attempt in range(5):
        order = random.permutation(300) if attempt else np.arange(300)
        part = payload.take(pa.array(order))
        if attempt == 3:
            part = pa.concat_tables([part.slice(0, 100), part.slice(100)]).replace_schema_metadata({"a": "b"})
        if attempt == 4:
            part = pa.table({name: part.column(name).combine_chunks() for name in part.column_names})
        id_N = pa.array([ids[row] for row in order])
        storage = Storage(str(tmp_path / str(attempt)))
        entries.append(write_shard(storage, codes[order], id_N, part))
    assert len({entry.sha256 for entry in entries}) == 1
    stored = [all_files(tmp_path / str(attempt)) for attempt in range(5)]
    assert all(files == stored[0] for files in stored)


def test_a_shard_that_is_there_is_not_written_again_and_a_damaged_one_is_repaired(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), **rows())
    home = tmp_path / "shards" / index.manifest.shards[0].name
    times = {path: path.stat().st_mtime_ns for path in home.iterdir() if path.name != "shard.json"}
    assert len(times) == 4
    assert Index.create(str(tmp_path), **rows()).manifest.shards == index.manifest.shards
    assert {path: path.stat().st_mtime_ns for path in times} == times
    before = all_files(home)
    (home / "shard.json").unlink()
    (home / "ids.arrow").write_bytes(b"half")
    (home / "codes.faiss").write_bytes(before["codes.faiss"][:-1] + b"!")
    with pytest.raises(DamagedError):
        Index.open(str(tmp_path))
    Index.create(str(tmp_path), **rows())
    assert all_files(home) == before
    assert Index.open(str(tmp_path), version=1).rows == 500


def test_of_sixteen_writers_one_commits(tmp_path: Path) -> None:
    Index.create(str(tmp_path), **rows())
    storage = Storage(str(tmp_path))
    entry = read_manifest(storage).shards[0]

    def write(number: int) -> int | str:
        own = Storage(str(tmp_path))
        planned = following(
            read_manifest(own, 1),
            own,
            bits=24,
            id_type="int64",
            payload=[{"name": "text", "type": "string"}],
            hasher=None,
            command=f"writer {number}",
        )
        try:
            commit(own, planned, [entry])
        except ConflictError as error:
            return str(error)
        return number

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(write, range(16)))
    (winner,) = [result for result in results if isinstance(result, int)]
    assert versions(storage) == [1, 2]
    assert read_manifest(storage).command == f"writer {winner}"
    losers = [result for result in results if isinstance(result, str)]
    assert len(losers) == 15
    assert all("version 2 was committed by another writer" in text and f"writer {winner}" in text for text in losers)
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["00000001.json", "00000002.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "empty"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, file: str, damage: str) -> None:
    index = Index.create(str(tmp_path), **rows(), shards=2)
    path = tmp_path / "shards" / index.manifest.shards[1].name / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if damage == "cut" else b"" if damage == "empty" else data)
    if damage == "lose":
        path.unlink()
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        Index.open(str(tmp_path))
    assert Index.open(str(tmp_path), shards=[0]).positions == (0,)


def test_exchanged_shards_are_refused(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), **rows(), shards=2)
    one, two = (tmp_path / "shards" / shard.name for shard in index.manifest.shards)
    shutil.move(one, tmp_path / "aside")
    shutil.move(two, one)
    shutil.move(tmp_path / "aside", two)
    with pytest.raises(DamagedError, match=re.escape(str(one / "shard.json"))):
        Index.open(str(tmp_path))


def test_a_file_of_another_shard_is_refused(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), **rows(), shards=2)
    one, two = (tmp_path / "shards" / shard.name for shard in index.manifest.shards)
    shutil.copy(one / "ids.arrow", two / "ids.arrow")
    with pytest.raises(DamagedError, match=re.escape(str(two / "ids.arrow"))):
        Index.open(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": 2}, FormatError, "format version 2"),
        ({"kind": "tree"}, FormatError, "index kind 'tree' is not known"),
        ({"deletions": ["one.arrow"]}, DamagedError, "not a version file"),
        (
            {"deletions": [{"shard": "x", "rows": 1, "bytes": 1, "sha256": "y"}]},
            DamagedError,
            "its deletions do not belong to its shards",
        ),
        ({"shards": []}, DamagedError, "names no shard"),
        ({"shards": [{"name": "x"}]}, DamagedError, "not a version file"),
        ({"bits": None, "surprise": 1}, DamagedError, "not a version file"),
        ({"version": 5}, DamagedError, "says that it is version 5"),
    ],
)
def test_version_files_that_cannot_be_understood_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    Index.create(str(tmp_path), **rows())
    path = tmp_path / "versions" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message) as caught:
        Index.open(str(tmp_path))
    assert str(path) in str(caught.value)
    path.write_text("[1, 2")
    with pytest.raises(InputError, match="not valid JSON"):
        Index.open(str(tmp_path))


def test_an_index_in_object_storage_is_copied_once_and_a_bad_copy_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"memory://{tmp_path.name}/index"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default"))
    Index.create(uri, **rows(), shards=2)
    cache = tmp_path / "cache"
    opened = Index.open(uri, cache=cache)
    copies = sorted(cache.iterdir())
    assert len(copies) == 2 * (len(FILES) - 1)
    expected = list(opened.search(rows()["code_NC"][:5], 9, columns=["text"]))
    victim = next(path for path in copies if path.name.endswith("ids.arrow"))
    opened.close()
    victim.unlink()
    victim.write_bytes(b"bad copy")
    again = Index.open(uri, cache=cache)
    assert list(again.search(rows()["code_NC"][:5], 9, columns=["text"])) == expected
    storage = Storage(uri)
    ids = f"shards/{again.manifest.shards[0].name}/ids.arrow"
    storage.write_bytes(ids, storage.read_bytes(ids)[:-1] + b"x")
    shutil.rmtree(cache)
    with pytest.raises(DamagedError, match=r"ids\.arrow"):
        Index.open(uri, cache=cache)


def test_newest_manifest_of_nothing(tmp_path: Path) -> None:
    assert newest_manifest(Storage(str(tmp_path))) is None


def splitmix64(state: int) -> int:
    """The reference generator's first output, in Python integers."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@pytest.mark.parametrize("size", [1, 3, 8, 13, 32])
def test_the_shard_of_a_code_is_what_the_format_says(size: int) -> None:
    # The published first output of splitmix64 for seed 0 anchors the reference itself.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    code_NC = np.random.default_rng(size).integers(0, 256, (3000, size), dtype=np.uint8)
    for shards in (1, 2, 7):
        expected = []
        for code in code_NC[:200]:
            state = 0
            for start in range(0, size, 8):
                state = splitmix64(state ^ int.from_bytes(code[start : start + 8].tobytes(), "little"))
            expected.append(state % shards)
        assert shard_of_codes(code_NC, shards)[:200].tolist() == expected
    distinct = np.unique(code_NC, axis=0)
    counts = np.bincount(shard_of_codes(distinct, 4), minlength=4)
    assert counts.min() > len(distinct) / 4 * 0.6


@pytest.mark.parametrize("text", [False, True])
def test_equal_ids_share_a_group(text: bool) -> None:
    values = np.random.default_rng(0).permutation(140_000) % 70_000
    names = ["" if value == 0 else f"{value}-é" for value in values.tolist()]
    id_N = pa.array(names) if text else pa.array(values)
    group_N = group_of_ids(id_N, 5)
    group_of: dict[Any, int] = {}
    for value, group in zip(id_N.to_pylist(), group_N.tolist(), strict=True):
        assert group_of.setdefault(value, group) == group
    assert np.bincount(group_N, minlength=5).min() > 140_000 / 5 * 0.9
    sliced = group_of_ids(id_N.slice(1000, 70_000), 5)
    assert (sliced == group_N[1000:71_000]).all()


def test_duplicate_rows() -> None:
    assert duplicate_rows(pa.array([3, 1, 2])) is None
    assert duplicate_rows(pa.array([3, 1, 2, 1])) == (1, 3)
    assert duplicate_rows(pa.array(["a", "c", "b", "c"])) == (1, 3)
    assert duplicate_rows(pa.array([], pa.string())) is None
