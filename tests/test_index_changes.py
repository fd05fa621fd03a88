"""Appends, deletions, compaction, rolling back: the rows are those that there must be, after every step."""

from __future__ import annotations

import datetime
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distindex.errors import ConflictError, DamagedError, InputError, NotFoundError
from distindex.index.changes import delete, roll_back
from distindex.index.compaction import compact, plan_compaction
from distindex.index.deletions import deletion_path
from distindex.index.garbage import find_garbage, remove_garbage
from distindex.index.index import Index
from distindex.index.manifest import read_manifest, versions
from distindex.storage import Storage
from tests import oracle
from tests.pipeline import tree_of
from tests.runbook import Runbook, answers


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "steps"), [(16, 700), (72, 300)])
def test_a_thousand_random_changes_and_searches(tmp_path: Path, bits: int, steps: int) -> None:
    runbook = Runbook(f"memory://{tmp_path.name}/runbook-{bits}", tmp_path / "cache", bits, seed=bits)
    for _ in range(steps):
        runbook.step()
    assert set(runbook.done) == {"append", "replace", "refuse", "delete", "compact", "roll back", "search"}
    assert min(runbook.done.values()) >= 5
    assert versions(runbook.storage)[-1] > steps / 3


def rows_of(first: int, count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng([seed, first])
    ids = np.arange(first, first + count)
    return {
        "code_NC": random.integers(0, 4, (count, 3), dtype=np.uint8),
        "ids": ids,
        "payload": pa.table({"label": [f"of {item}" for item in ids]}),
    }


def ids_in(uri: str, version: int = 0) -> list[int]:
    with Index.open(uri, version) as index:
        return sorted(match.id for match in index.search(np.zeros(3, np.uint8), radius=24)[0])  # type: ignore[type-var]


def test_open_readers_keep_their_version(tmp_path: Path) -> None:
    home = str(tmp_path)
    first = Index.create(home, **rows_of(0, 50), shards=2)
    second = Index.append(home, **rows_of(50, 20))
    delete(Storage(home), [1, 2, 3, 60])
    storage = Storage(home)
    compact(storage, plan_compaction(storage, shards=1))
    age = datetime.timedelta(0)
    remove_garbage(storage, find_garbage(storage, 1, age), age)
    assert versions(storage) == [4]
    assert [len(index.search(np.zeros(3, np.uint8), 1000)[0]) for index in (first, second)] == [50, 70]
    assert ids_in(home) == sorted({*range(70)} - {1, 2, 3, 60})
    with pytest.raises(NotFoundError, match="no version 1; the newest are 4"):
        Index.open(home, 1)


def test_compacting_all_shards_is_building_anew(tmp_path: Path) -> None:
    changed, fresh = str(tmp_path / "changed"), str(tmp_path / "fresh")
    Index.create(changed, **rows_of(0, 60), shards=2)
    Index.append(changed, **rows_of(60, 30), shards=3)
    delete(Storage(changed), [*range(10, 25)])
    storage = Storage(changed)
    version = compact(storage, plan_compaction(storage, shards=2))
    parts = [rows_of(0, 60), rows_of(60, 30)]
    keep = [row for row in range(90) if not 10 <= row < 25]
    codes = np.concatenate([part["code_NC"] for part in parts])[keep]
    payload = pa.concat_tables([part["payload"] for part in parts]).take(keep)
    expected = Index.create(fresh, codes, keep, payload, shards=2).manifest
    assert (version.shards, version.deletions) == (expected.shards, ())
    assert compact(storage, plan_compaction(storage, shards=2)) == version, "there is nothing left to do"
    assert not (tmp_path / "changed" / "building").exists()


def test_what_is_worth_compacting(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    Index.create(str(tmp_path), **rows_of(0, 100))
    assert plan_compaction(storage).chosen == ()
    Index.append(str(tmp_path), **rows_of(100, 10))
    assert plan_compaction(storage).chosen == (), "one small shard has nothing to be merged with"
    Index.append(str(tmp_path), **rows_of(110, 10))
    assert [entry.rows for entry in plan_compaction(storage).chosen] == [10, 10]
    delete(storage, list(range(9)))
    assert [entry.rows for entry in plan_compaction(storage).chosen] == [10, 10]
    delete(storage, list(range(12)))
    assert [entry.rows for entry in plan_compaction(storage).chosen] == [100, 10, 10]
    version = compact(storage, plan_compaction(storage))
    assert [(version.rows, version.deleted), len(version.shards)] == [(108, 0), 2]
    assert ids_in(str(tmp_path)) == list(range(12, 120))


def test_rows_deleted_during_a_compaction_stay_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, storage = str(tmp_path), Storage(str(tmp_path))
    Index.create(home, **rows_of(0, 60), shards=2)
    delete(storage, [5])
    plan = plan_compaction(storage, shards=3)
    delete(storage, [7, 8, 9])
    Index.append(home, **rows_of(60, 10))
    version = compact(storage, plan)
    assert version.rows == 66
    assert ids_in(home) == sorted({*range(70)} - {5, 7, 8, 9})
    stale = plan_compaction(storage, shards=1)
    compact(storage, plan_compaction(storage, shards=2))
    with pytest.raises(ConflictError, match="no longer has shard"):
        compact(storage, stale)
    assert ids_in(home) == sorted({*range(70)} - {5, 7, 8, 9})


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    home = str(tmp_path)
    with pytest.raises(NotFoundError, match="no index here"):
        Index.append(home, **rows_of(0, 5))
    Index.create(home, **rows_of(0, 5), hasher={"uri": "a", "fingerprint": "one"})
    before = tree_of(tmp_path)
    fits = rows_of(5, 5)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"payload": None}, r"its payload columns are label \(string\), but those of the new rows are none"),
        ({"payload": pa.table({"label": range(5)})}, r"new rows are label \(int64\)"),
        ({"code_NC": np.zeros((5, 4), np.uint8)}, "has codes of 24 bits, these have 32 bits"),
        ({"ids": ["a", "b", "c", "d", "e"]}, "has ids of type int64, these are string"),
        ({"hasher": {"uri": "b", "fingerprint": "two"}}, "was made by hasher one, these codes by hasher two"),
        ({"ids": [4, 5, 6, 7, 8]}, "id 4 is in version 1 already"),
        (
            {"ids": [3, 4, 6, 7, 8]},
            "id 3 and 1 more are in version 1 already|id 4 and 1 more are in version 1 already",
        ),
        ({"ids": [9, 9, 6, 7, 8]}, "id 9 stands twice"),
    ]
    for change, message in changes:
        with pytest.raises(InputError, match=message):
            Index.append(home, **(fits | change))
    with pytest.raises(InputError, match="has ids of type int64, these are string"):
        delete(Storage(home), ["a"])
    with pytest.raises(NotFoundError, match="no version 7"):
        roll_back(Storage(home), 7)
    with pytest.raises(NotFoundError, match="no version -1"):
        roll_back(Storage(home), -1)
    assert tree_of(tmp_path) == before


def test_changes_that_change_nothing_add_no_version(tmp_path: Path) -> None:
    home, storage = str(tmp_path), Storage(str(tmp_path))
    Index.create(home, **rows_of(0, 20))
    appended = Index.append(home, **rows_of(20, 5))
    assert Index.append(home, **rows_of(20, 5)).version == appended.version == 2, "a repeated append is done already"
    assert delete(storage, [77, 78]) == (appended.manifest, 0)
    assert roll_back(storage, 2) == appended.manifest
    assert versions(storage) == [1, 2]
    again = Index.append(home, **rows_of(20, 5), on_conflict="replace")
    assert (again.version, again.rows) == (2, 25)
    delete(storage, list(range(20, 25)))
    back = Index.append(home, **rows_of(20, 5))
    assert (back.version, back.rows, back.manifest.deletions) == (4, 25, ())


def _write(job: tuple[str, int]) -> int:
    uri, number = job
    if number % 4 == 3:
        return delete(Storage(uri), [number])[0].version
    return Index.append(uri, **rows_of(1000 + 10 * number, 10), command=f"writer {number}").version


def test_sixteen_writers_at_once_make_a_version_each_and_lose_nothing(tmp_path: Path) -> None:
    Index.create(str(tmp_path), **rows_of(0, 40))
    # Threads of one process share nothing but the directory; each writer has its own Storage.
    with ThreadPoolExecutor(16) as pool:
        made = sorted(pool.map(_write, [(str(tmp_path), number) for number in range(16)]))
    assert made == list(range(2, 18))
    assert versions(Storage(str(tmp_path))) == list(range(1, 18))
    appended = {1000 + 10 * number + row for number in range(16) if number % 4 != 3 for row in range(10)}
    deleted = {number for number in range(16) if number % 4 == 3}
    assert ids_in(str(tmp_path)) == sorted({*range(40)} - deleted | appended)
    parents = [read_manifest(Storage(str(tmp_path)), version).parent for version in range(2, 18)]
    assert parents == list(range(1, 17))


KILLED = """
import datetime, json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_index_changes import CHANGES, ids_in, prepare
from distindex.storage import Storage

root = Path(sys.argv[1])
outcomes = {}
for name, change in CHANGES.items():
    before = root / name / "before"
    prepare(str(before))
    expected = {}
    whole = root / name / "whole"
    shutil.copytree(before, whole)
    change(str(whole))
    expected = (ids_in(str(before)), ids_in(str(whole)))
    point = 0
    while True:
        home = root / name / str(point)
        shutil.copytree(before, home)
        child = os.fork()
        if child == 0:
            counted = 0
            def dies(original):
                def wrapped(self, *arguments, **options):
                    global counted
                    if counted == point:
                        os.kill(os.getpid(), signal.SIGKILL)
                    counted += 1
                    return original(self, *arguments, **options)
                return wrapped
            # Every way in which a file comes to be or goes.
            for method in ("open_output", "create_bytes", "remove"):
                setattr(Storage, method, dies(getattr(Storage, method)))
            change(str(home))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        left = ids_in(str(home))
        assert left in expected, (name, point, left)
        change(str(home))
        assert ids_in(str(home)) == expected[1], (name, point, "run again")
        shutil.rmtree(home)
        point += 1
    outcomes[name] = point
print(json.dumps(outcomes))
"""


def prepare(uri: str) -> None:
    Index.create(uri, **rows_of(0, 40), shards=2)
    Index.append(uri, **rows_of(40, 10))
    delete(Storage(uri), [1, 2, 41])


def _compact(uri: str) -> None:
    compact(Storage(uri), plan_compaction(Storage(uri), shards=2))


def _collect(uri: str) -> None:
    age = datetime.timedelta(0)
    remove_garbage(Storage(uri), find_garbage(Storage(uri), 1, age), age)


CHANGES: dict[str, Callable[[str], object]] = {
    "append": lambda uri: Index.append(uri, **rows_of(60, 10), shards=2),
    "replace": lambda uri: Index.append(uri, **rows_of(30, 30, seed=1), on_conflict="replace"),
    "delete": lambda uri: delete(Storage(uri), [5, 6, 45]),
    "compact": _compact,
    "roll back": lambda uri: roll_back(Storage(uri), 1),
    "collect garbage": _collect,
}


def test_killed_at_any_write_the_index_is_old_or_new_and_running_again_completes(tmp_path: Path) -> None:
    """SIGKILL before each file that a change writes or removes, one after the other."""
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), root],
        capture_output=True,
        text=True,
        timeout=500,
        # A forked process cannot use the threads of its parent.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)
    assert points.keys() == CHANGES.keys()
    assert points["append"] >= 10
    assert points["compact"] >= 15
    assert min(points.values()) >= 2


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "exchange"])
def test_damaged_deletions_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    Index.create(str(tmp_path), **rows_of(0, 40), shards=2)
    version, _ = delete(Storage(str(tmp_path)), list(range(20)))
    one, two = (tmp_path / deletion_path(entry) for entry in version.deletions)
    data = bytearray(one.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    if damage == "exchange":
        data = bytearray(two.read_bytes())
    one.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "lose":
        one.unlink()
    with pytest.raises(DamagedError, match=re.escape(str(one))):
        Index.open(str(tmp_path))
    assert Index.open(str(tmp_path), version=1).rows == 40


def test_an_index_of_format_1_is_read_and_changed(tmp_path: Path) -> None:
    home = tmp_path / "index"
    shutil.copytree(Path(__file__).parent / "data" / "index-format-1", home)
    random = np.random.default_rng(1)
    code_NC = random.integers(0, 256, (9, 3), np.uint8)[random.integers(0, 9, 40)]
    ids = random.permutation(1000)[:40].tolist()
    assert {json.loads(path.read_text())["format_version"] for path in home.rglob("*.json")} == {1}
    with Index.open(str(home)) as index:
        found = index.search(code_NC[:5], 50, columns=["label", "year"])
        assert answers(found) == oracle.search(code_NC[:5], code_NC, ids, k=50)
        for match in found[0]:
            assert match.payload == {"label": "ab"[match.id % 2], "year": 2000 + match.id % 7}  # type: ignore[operator]
    storage = Storage(str(home))
    delete(storage, ids[:10])
    compact(storage, plan_compaction(storage, shards=1))
    with Index.open(str(home)) as index:
        assert answers(index.search(code_NC[:5], 50)) == oracle.search(code_NC[:5], code_NC[10:], ids[10:], k=50)


def test_opening_and_closing_leaks_nothing(tmp_path: Path) -> None:
    Index.create(str(tmp_path), **rows_of(0, 200), shards=2)
    delete(Storage(str(tmp_path)), list(range(50)))

    def held() -> tuple[int, int]:
        gc.collect()
        mapped = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return mapped, len(list(Path("/proc/self/fd").iterdir()))

    def use() -> None:
        with Index.open(str(tmp_path)) as index:
            index.search(np.zeros(3, np.uint8), 5, columns=["label"], filter='label != "of 3"')

    use()
    before = held()
    for _ in range(20):
        use()
    assert held() == before
