"""Append, delete, compact, roll back and gc as commands on Ray: bounded steps, and the rows that there must be."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from distindex.building import append, build
from distindex.change_config import AppendConfig, DeleteConfig
from distindex.codeset import CodeSet
from distindex.config import BuildConfig
from distindex.errors import ConflictError, DamagedError, InputError
from distindex.index.index import Index
from distindex.index.manifest import versions
from distindex.storage import Storage
from tests import oracle
from tests.pipeline import run, tree_of
from tests.runbook import answers
from tests.test_building_build import codes_of, write_code_set

building = importlib.import_module("distindex.building.build")
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids in many groups; the driver decides how many."""
    monkeypatch.setattr("distindex.index.construction.IDS_PER_GROUP", 97)


@pytest.mark.parametrize("text_ids", [False, True])
def test_appends_and_replacements_equal_the_oracle(tmp_path: Path, small_steps: None, text_ids: bool) -> None:
    code_NC = codes_of(900, 32)
    ids: list[Any] = [f"item {number}" for number in range(900)] if text_ids else list(range(900))
    home = str(tmp_path / "index")
    build(BuildConfig(write_code_set(tmp_path / "a", code_NC[:500], ids[:500]), home, shards=2))
    added = append(AppendConfig(write_code_set(tmp_path / "b", code_NC[500:800], ids[500:800]), home, shards=2))
    assert (added.version, added.added, added.replaced, added.rows, added.shards) == (2, 300, 0, 800, 4)
    # 200 rows again with other codes, and 100 new ones.
    moved = write_code_set(tmp_path / "c", code_NC[::-1][:300], ids[600:])
    before = tree_of(tmp_path / "index")
    with pytest.raises(InputError, match=r"and 199 more are in version 2 already; delete them first, or replace"):
        append(AppendConfig(moved, home))
    assert tree_of(tmp_path / "index") == before
    replaced = append(AppendConfig(moved, home, on_conflict="replace"))
    assert (replaced.version, replaced.added, replaced.replaced, replaced.rows) == (3, 300, 200, 900)
    again = append(AppendConfig(moved, home))
    assert (again.version, again.replaced, again.rows) == (3, 0, 900), "it has these rows already"
    now_NC = np.concatenate([code_NC[:600], code_NC[::-1][:300]])
    query_QC = np.concatenate([now_NC[:6], codes_of(4, 32, seed=9)])
    with Index.open(home) as index:
        for k in (1, 40):
            found = index.search(query_QC, k, columns=["text"])
            assert answers(found) == oracle.search(query_QC, now_NC, ids, k=k)
            assert all(match.payload == {"text": f"text of {match.id}"} for matches in found for match in matches)
    assert not (tmp_path / "index" / "building").exists()


def test_the_commands_from_append_to_gc(tmp_path: Path) -> None:
    code_NC, home = codes_of(300, 16), str(tmp_path / "index")
    uri = write_code_set(tmp_path / "a", code_NC[:200], list(range(200)))
    more = write_code_set(tmp_path / "b", code_NC[200:], list(range(200, 300)))
    assert run("build", f"--codes={uri}", f"--output={home}", "--shards=2", "--json").json["version"] == 1
    assert run("append", f"--codes={more}", f"--index={home}", "--json").json["rows"] == 300
    refused = run("append", f"--codes={more}", f"--index={home}")
    assert (refused.code, refused.out.split(";")[1].strip()) == (0, "100 rows were added"), refused.err
    deleted = run("delete", f"--index={home}", "--ids=[3, 4, 250, 999]", "--json").json
    assert (deleted["version"], deleted["deleted"], deleted["missing"], deleted["rows"]) == (3, 3, 1, 297)
    (tmp_path / "ids.txt").write_text("5\n6\n")
    shown = run("delete", f"--index={home}", f"--ids_file={tmp_path / 'ids.txt'}")
    assert shown.out.endswith("; 2 rows were deleted\n"), shown.err
    wrong = run("delete", f"--index={home}", "--ids=[x]")
    assert (wrong.code, wrong.err.splitlines()[-1]) == (
        2,
        f"distindex: error: ids: 'x' is no integer, but the ids of {home} are",
    )
    compacted = run("compact", f"--index={home}", "--shards=1", "--json").json
    assert [compacted[name] for name in ("version", "rows", "shards", "rewritten", "dropped")] == [5, 295, 1, 3, 5]
    assert compacted["bytes"] < compacted["bytes_before"]
    kept = [row for row in range(300) if row not in (3, 4, 5, 6, 250)]
    assert (
        Index.open(home).manifest.shards
        == Index.create(str(tmp_path / "fresh"), code_NC[kept], kept, _texts(kept)).manifest.shards
    )
    filtered = run(
        "query",
        f"--target={home}",
        f"--codes=['{code_NC[0].tobytes().hex()}']",
        "--filter=text == 'text of 7'",
        "--json",
    )
    assert [match["id"] for match in filtered.json["results"][0]] == [7]
    assert run("rollback", f"--index={home}", "--version=2", "--json").json["rows"] == 300
    listed = run("versions", f"--index={home}", "--json").json
    assert [(entry["version"], entry["rows"], entry["deleted"], entry["parent"]) for entry in listed] == [
        (1, 200, 0, None), (2, 300, 0, 1), (3, 297, 3, 2), (4, 295, 5, 3), (5, 295, 0, 4), (6, 300, 0, 5)
    ]  # fmt: skip
    facts = run("inspect", f"--uri={home}", "--json").json
    assert (facts["rows"], facts["deleted rows"], facts["shards"], facts["versions"]) == (
        300,
        0,
        3,
        "1, 2, 3, 4, 5, 6",
    )
    assert facts["bit balance"].startswith("ones in 0.")
    young = run("gc", f"--index={home}", "--keep=1", "--remove=true", "--json").json
    assert (young["versions"], young["paths"]) == ([], [])
    before = tree_of(tmp_path / "index")
    old = ["gc", f"--index={home}", "--keep=1", "--older_than_hours=0"]
    assert "nothing was removed" in run(*old).out
    assert tree_of(tmp_path / "index") == before
    gone = run(*old, "--remove=true", "--json").json
    assert gone["versions"] == [1, 2, 3, 4, 5]
    # The compacted shard, and what was deleted from the two shards of the first build and the appended one, twice.
    assert sum(path.startswith("shards/") for path in gone["paths"]) == 1
    assert sum(path.startswith("deletions/") for path in gone["paths"]) >= 3
    assert [entry["version"] for entry in run("versions", f"--index={home}", "--json").json] == [6]
    assert Index.open(home).rows == 300


def _texts(ids: list[int]) -> Any:
    import pyarrow as pa

    return pa.table({"text": [f"text of {item}" for item in ids]})


@pytest.mark.parametrize("first", [30, 50])
def test_an_append_made_at_the_same_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    code_NC, home = codes_of(60, 16), str(tmp_path / "index")
    build(BuildConfig(write_code_set(tmp_path / "a", code_NC[:30], list(range(30))), home))
    more = write_code_set(tmp_path / "b", code_NC[30:40], list(range(30, 40)))
    theirs = list(range(first, first + 10))
    write_parts = building.write_parts

    def slowly(*arguments: Any) -> Any:
        entries = write_parts(*arguments)
        if arguments[-1] and versions(Storage(home)) == [1]:
            Index.append(home, code_NC[50:], theirs, _texts(theirs)).close()
        return entries

    monkeypatch.setattr(building, "write_parts", slowly)
    if first == 30:
        with pytest.raises(InputError, match=r"id 3\d and 9 more are in version 2 already"):
            append(AppendConfig(more, home))
        assert Index.open(home).rows == 40
    else:
        report = append(AppendConfig(more, home))
        assert (report.version, report.rows) == (3, 50)
        assert Index.open(home).manifest.parent == 2


def test_too_few_shards_for_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distindex.index.construction.write_memory", lambda rows, row_bytes, kind: 1 << 60)
    uri = write_code_set(tmp_path / "a", codes_of(60, 16), list(range(60)))
    with pytest.raises(InputError, match=r"no node of the cluster has more than .* MB; give more shards"):
        build(BuildConfig(uri, str(tmp_path / "index")))
    assert not (tmp_path / "index").exists()


def test_a_code_set_is_read_in_rounds(tmp_path: Path) -> None:
    uri = write_code_set(tmp_path / "a", codes_of(100, 16), list(range(100)))
    code_set = CodeSet.open(uri)
    file = max(code_set.manifest.files, key=lambda part: part.rows)
    tables = list(code_set.rounds(file, ["code", "id"], 7))
    assert {table.num_rows for table in tables[:-1]} == {7}
    assert sum(table.num_rows for table in tables) == file.rows
    assert {tuple(table.column_names) for table in tables} == {("code", "id")}
    path = tmp_path / "a" / file.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="does not match the sha256"):
        list(code_set.rounds(file, ["id"], 7))


def test_a_job_whose_files_another_has_removed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_code_set(tmp_path / "a", codes_of(60, 16), list(range(60)))
    check_ids = building.check_ids

    def removes(construction: Any, *arguments: Any) -> None:
        check_ids(construction, *arguments)
        construction.storage.remove(construction.directory)

    monkeypatch.setattr(building, "check_ids", removes)
    with pytest.raises(ConflictError, match="another job with the same rows has finished"):
        build(BuildConfig(uri, str(tmp_path / "index")))


def test_ids_that_are_deleted_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give ids or ids_file, one of them"):
        DeleteConfig(str(tmp_path))
    with pytest.raises(InputError, match="give ids or ids_file, one of them"):
        DeleteConfig(str(tmp_path), [1], "file")


KILLED = """
import importlib, os, signal, sys
from distindex.change_config import AppendConfig
from distindex.config import BuildConfig
from distindex.storage import Storage
building = importlib.import_module("distindex.building.build")
point, codes, home, verb = sys.argv[1:]
def dies(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(building, point, dies)
if verb == "build":
    building.build(BuildConfig(codes, home, shards=2))
else:
    building.append(AppendConfig(codes, home))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "point"), [("build", "write_parts"), ("build", "commit"), ("append", "write_parts")]
)
def test_killed_jobs_are_finished_by_the_next(tmp_path: Path, verb: str, point: str) -> None:
    code_NC, home = codes_of(400, 16), str(tmp_path / "index")
    if verb == "append":
        Index.create(home, code_NC[:100], range(100), _texts(list(range(100)))).close()
    first = 100 if verb == "append" else 0
    uri = write_code_set(tmp_path / "codes", code_NC[first:], list(range(first, 400)))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, point, uri, home, verb],
        capture_output=True,
        text=True,
        timeout=300,
        # Another driver of the same cluster: its tasks die with it.
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert versions(Storage(home)) == ([1] if verb == "append" else [])
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "index" / "building").rglob("rows-*")}
    assert len(left) == 3
    if verb == "build":
        build(BuildConfig(uri, home, shards=2))
    else:
        append(AppendConfig(uri, home))
    assert not (tmp_path / "index" / "building").exists()
    with Index.open(home) as index:
        assert answers(index.search(code_NC[:5], 30)) == oracle.search(code_NC[:5], code_NC, list(range(400)), k=30)
