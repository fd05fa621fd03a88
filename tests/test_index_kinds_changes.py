"""Indexes of every kind that are appended to, deleted from, filtered, compacted and rolled back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from distindex.errors import InputError
from distindex.index.changes import delete, roll_back
from distindex.index.compaction import compact, plan_compaction
from distindex.index.index import Index
from distindex.index.kinds import CAPABILITIES
from distindex.index.manifest import VersionManifest, read_manifest
from distindex.storage import Storage
from tests import oracle

KINDS = [kind for kind in CAPABILITIES if kind != "gpu-flat"]
APPROXIMATE = [kind for kind in KINDS if not CAPABILITIES[kind].exact]
BITS, ROWS = 32, 3000
RECALL = 0.6


def codes_of(rows: int, seed: int) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    centre = np.random.default_rng(7).integers(0, 256, (20, BITS // 8), dtype=np.uint8)
    flipped = np.packbits(random.random((rows, BITS)) < 0.1, axis=1)
    return centre[random.integers(0, 20, rows)] ^ flipped


OLD, NEW = codes_of(ROWS, 1), codes_of(ROWS // 2, 2)
EVERY = np.concatenate([OLD, NEW])
QUERIES = codes_of(20, 3)
IDS = np.arange(len(EVERY))
SHELF = IDS % 50
GONE = IDS[IDS % 3 == 0]


def create(uri: str, kind: str, recall: float = RECALL) -> None:
    payload = pa.table({"shelf": SHELF[:ROWS]})
    Index.create(uri, OLD, IDS[:ROWS], payload, shards=2, kind=kind, recall=recall).close()


def append(uri: str) -> None:
    Index.append(uri, NEW, IDS[ROWS:], pa.table({"shelf": SHELF[ROWS:]})).close()


def expected(keep_N: npt.NDArray[np.bool_], **options: Any) -> list[list[tuple[int, int | str]]]:
    """Distance and id of the answers."""
    ids = IDS[keep_N].tolist()
    return [[(int(row[0]), row[2]) for row in rows] for rows in oracle.search(QUERIES, EVERY[keep_N], ids, **options)]


def answers(index: Index, **options: Any) -> list[list[tuple[int, Any]]]:
    return [[(match.distance, match.id) for match in rows] for rows in index.search(QUERIES, **options)]


def check(index: Index, keep_N: npt.NDArray[np.bool_]) -> None:
    """What is found is left, at its own distance and in order; nearly all where the kind is approximate."""
    every = expected(keep_N, k=len(EVERY))
    found = answers(index, k=10)
    if CAPABILITIES[index.kind].exact:
        assert found == [rows[:10] for rows in every]
        return
    as_near = 0
    for rows, all_rows in zip(found, every, strict=True):
        place = {row: at for at, row in enumerate(all_rows)}
        places = [place[row] for row in rows]
        assert places == sorted(places)
        as_near += sum(distance <= all_rows[9][0] for distance, _ in rows)
    assert as_near >= 0.5 * 10 * len(QUERIES)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_keep_the_kind_and_what_is_found_is_there(tmp_path: Path, kind: str) -> None:
    uri = str(tmp_path / "index")
    create(uri, kind)
    first = read_manifest(Storage(uri))
    append(uri)
    with Index.open(uri) as index:
        check(index, np.ones(len(EVERY), bool))
    delete(Storage(uri), GONE)
    left_N = ~np.isin(IDS, GONE)
    with Index.open(uri) as index:
        check(index, left_N)
    compact(Storage(uri), plan_compaction(Storage(uri), shards=1))
    compacted = read_manifest(Storage(uri))
    assert (len(compacted.shards), compacted.deletions) == (1, ())
    with Index.open(uri) as index:
        check(index, left_N)
    manifests = [read_manifest(Storage(uri), version) for version in range(1, compacted.version + 1)]
    assert {manifest.kind for manifest in manifests} == {kind}
    assert {manifest.recall_target for manifest in manifests} == {first.recall_target}
    if kind in APPROXIMATE:
        assert first.recall_target == RECALL
        assert all(manifest.parameters["recall"]["reached"] >= RECALL for manifest in manifests)
    # Compacting everything is building what is left: the shard has the same bytes, and so the same name.
    payload = pa.table({"shelf": SHELF[left_N]})
    other = str(tmp_path / "other")
    with Index.create(other, EVERY[left_N], IDS[left_N], payload, kind=kind, recall=RECALL) as again:
        assert again.manifest.shards == compacted.shards


@pytest.mark.parametrize("kind", KINDS)
def test_filters_are_exact_for_every_kind_also_beside_deletions(tmp_path: Path, kind: str) -> None:
    uri = str(tmp_path / "index")
    create(uri, kind)
    append(uri)
    delete(Storage(uri), GONE)
    left_N = ~np.isin(IDS, GONE)
    with Index.open(uri) as index:
        for text, pass_N in (("shelf == 4", SHELF == 4), ("shelf < 45", SHELF < 45), ("shelf > 99", SHELF > 99)):
            keep_N = left_N & pass_N
            assert answers(index, k=10, filter=text) == expected(keep_N, k=10)
            assert answers(index, radius=6, filter=text) == expected(keep_N, radius=6)


@pytest.mark.parametrize("deleted", [0, 10, 2900])
def test_no_radius_for_hnsw_however_much_is_deleted(tmp_path: Path, deleted: int) -> None:
    uri = str(tmp_path / "index")
    create(uri, "hnsw")
    delete(Storage(uri), IDS[:deleted])
    with Index.open(uri) as index, pytest.raises(InputError, match="radius: an index of kind hnsw cannot do that"):
        index.search(QUERIES, radius=3)


def test_candidates_of_rescoring_are_exact_after_deletions(tmp_path: Path) -> None:
    logit_QK = np.random.default_rng(5).normal(size=(8, BITS)).astype(np.float32)
    found = []
    for kind in ("flat", "ivf"):
        uri = str(tmp_path / kind)
        create(uri, kind)
        delete(Storage(uri), GONE)
        with Index.open(uri) as index:
            found.append(index.search(logits=logit_QK, k=10, candidates=50).id_M.to_pylist())
    assert found[0] == found[1]


def test_a_recall_too_few_codes_to_measure_is_asked_for_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    Index.create(uri, OLD[:100], IDS[:100], kind="ivf", recall=RECALL).close()
    few = read_manifest(Storage(uri))
    assert few.parameters["recall"] == {"target": RECALL, "reached": None, "k": None, "queries": 0}
    Index.append(uri, OLD[100:], IDS[100:ROWS]).close()
    many = read_manifest(Storage(uri))
    assert many.parameters["recall"]["target"] == RECALL
    assert many.parameters["recall"]["reached"] >= RECALL


def test_an_append_takes_the_kind_that_another_writer_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    create(uri, "flat")
    create(uri, "ivf")
    roll_back(Storage(uri), 1)
    from distindex.index import changes

    commit = changes.commit
    interrupted = False

    def late(storage: Storage, manifest: VersionManifest, *rest: Any) -> VersionManifest:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            roll_back(storage, 2)
        return commit(storage, manifest, *rest)

    monkeypatch.setattr(changes, "commit", late)
    append(uri)
    with Index.open(uri) as index:
        assert (index.version, index.kind, index.rows) == (5, "ivf", len(EVERY))
        assert all(entry.recall is not None for entry in index.manifest.shards)
