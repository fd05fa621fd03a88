"""An index and, beside it, what it must hold: rows in plain Python, and every search by brute force over them."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from distindex.errors import InputError
from distindex.index.changes import delete, roll_back
from distindex.index.compaction import compact, plan_compaction
from distindex.index.garbage import find_garbage, remove_garbage
from distindex.index.index import Index
from distindex.index.manifest import versions
from distindex.storage import Storage
from tests import oracle

Row = tuple[bytes, str, int | None]
LABELS = ["a", "b", "c"]
FILTERS: list[tuple[str, Any]] = [
    ('label == "a"', lambda label, year: label == "a"),
    ('label != "b" and year >= 2003', lambda label, year: label != "b" and year is not None and year >= 2003),
    ("year in [2001, 2004, 2007]", lambda label, year: year in (2001, 2004, 2007)),
    ("not (year < 2005)", lambda label, year: year is not None and year >= 2005),
    ('year == None or label == "c"', lambda label, year: year is None or label == "c"),
    ("year == 1999", lambda label, year: False),
]


@dataclasses.dataclass
class Runbook:
    """Random steps, each followed by a check against the rows that there must be."""

    uri: str
    cache: Path
    bits: int
    seed: int
    rows: dict[int, Row] = dataclasses.field(default_factory=dict)
    history: dict[int, dict[int, Row]] = dataclasses.field(default_factory=dict)
    done: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.storage = Storage(self.uri)
        self.pool = self.random.integers(0, 256, (40, self.bits // 8), dtype=np.uint8)
        Index.create(self.uri, *self.arrays({})).close()
        self.keep(1)

    def new_rows(self, ids: npt.NDArray[np.int64]) -> dict[int, Row]:
        random = self.random
        code_NC = self.pool[random.integers(0, len(self.pool), len(ids))]
        years = [None if random.random() < 0.1 else int(random.integers(2000, 2010)) for _ in ids]
        return {
            int(item): (code.tobytes(), LABELS[random.integers(0, 3)], year)
            for item, code, year in zip(ids, code_NC, years, strict=True)
        }

    def arrays(self, rows: dict[int, Row]) -> tuple[Any, Any, pa.Table]:
        code_NC = np.frombuffer(b"".join(row[0] for row in rows.values()), np.uint8).reshape(-1, self.bits // 8)
        years = pa.array([row[2] for row in rows.values()], pa.int64())
        labels = pa.array([row[1] for row in rows.values()], pa.string())
        return code_NC, pa.array(list(rows), pa.int64()), pa.table({"label": labels, "year": years})

    def keep(self, version: int) -> None:
        self.history[version] = dict(self.rows)

    def step(self) -> None:
        name = str(self.random.choice(["append", "replace", "refuse", "delete", "compact", "roll back", "search"],
                                      p=[0.2, 0.12, 0.05, 0.2, 0.08, 0.05, 0.3]))  # fmt: skip
        getattr(self, name.replace(" ", "_"))()
        self.done[name] = self.done.get(name, 0) + 1

    def append(self) -> None:
        ids = self.random.integers(0, 10**12, self.random.integers(1, 30))
        self._add(self.new_rows(np.array([item for item in ids if item not in self.rows], np.int64)), "refuse")

    def replace(self) -> None:
        known = self.random.permutation(list(self.rows) or [0])[: self.random.integers(0, 12)]
        fresh = self.random.integers(0, 10**12, self.random.integers(1, 5))
        self._add(self.new_rows(np.concatenate([known, fresh]).astype(np.int64)), "replace")

    def _add(self, rows: dict[int, Row], on_conflict: Any) -> None:
        shards = int(self.random.integers(1, 4))
        index = Index.append(self.uri, *self.arrays(rows), shards=shards, on_conflict=on_conflict)
        index.close()
        self.rows |= rows
        self.keep(index.version)

    def refuse(self) -> None:
        if not self.rows:
            return
        before = versions(self.storage)
        rows = self.new_rows(np.array([next(iter(self.rows)), 10**13], np.int64))
        message = f"id {next(iter(self.rows))} is in version {before[-1]} already"
        with pytest.raises(InputError, match=message):
            Index.append(self.uri, *self.arrays(rows))
        assert versions(self.storage) == before

    def delete(self) -> None:
        known = self.random.permutation(list(self.rows) or [0])[: self.random.integers(0, 20)]
        gone = [*map(int, known), -1]
        version, deleted = delete(self.storage, gone)
        assert deleted == sum(item in self.rows for item in gone)
        for item in gone:
            self.rows.pop(item, None)
        self.keep(version.version)

    def compact(self) -> None:
        shards = int(self.random.integers(0, 4))
        plan = plan_compaction(self.storage, shards)
        version = compact(self.storage, plan)
        if shards:
            assert version.deletions == ()
            assert len(version.shards) <= shards
        self.keep(version.version)

    def roll_back(self) -> None:
        known = versions(self.storage)
        chosen = int(self.random.choice(known[-10:]))
        version = roll_back(self.storage, chosen)
        self.rows = dict(self.history[chosen])
        self.keep(version.version)

    def search(self) -> None:
        if self.random.random() < 0.2:
            age = datetime.timedelta(0)
            remove_garbage(self.storage, find_garbage(self.storage, 12, age), age)
        known = versions(self.storage)
        # Mostly the newest, sometimes an earlier one, which must still be what it was.
        version = known[-1] if self.random.random() < 0.8 else int(self.random.choice(known))
        with Index.open(self.uri, version, cache=self.cache) as index:
            self.check(index, self.history[version])

    def check(self, index: Index, rows: dict[int, Row]) -> None:
        assert index.rows == len(rows)
        random = self.random
        queries = np.concatenate(
            [self.pool[random.integers(0, 40, 2)], random.integers(0, 256, (1, self.bits // 8), dtype=np.uint8)]
        )
        text, passes = FILTERS[random.integers(0, len(FILTERS))]
        filter = text if random.random() < 0.6 else None
        kept = {item: row for item, row in rows.items() if filter is None or passes(row[1], row[2])}
        code_NC, ids, _ = self.arrays(kept)
        k = int(random.choice([1, 3, 20, 1000]))
        found = index.search(queries, k, filter=filter, columns=["label", "year"])
        assert answers(found) == oracle.search(queries, code_NC, ids.to_pylist(), k=k)
        for match in (match for matches in found for match in matches):
            assert (match.payload["label"], match.payload["year"]) == kept[match.id][1:]  # type: ignore[index]
        radius, limit = int(random.integers(0, self.bits // 2)), int(random.integers(1, 30))
        within = index.search(queries, radius=radius, limit=limit, filter=filter)
        expected = oracle.search(queries, code_NC, ids.to_pylist(), radius=radius)
        assert answers(within) == [matches[:limit] for matches in expected]
        logits = random.standard_normal((2, self.bits)).astype(np.float32)
        scored = index.search(logits=logits, k=4, candidates=6, filter=filter)
        ranked = oracle.asymmetric_search(logits, code_NC, ids.to_pylist(), k=4, candidates=6)
        assert answers(scored) == [[row[1:] for row in matches] for matches in ranked]


def answers(matches: Any) -> list[list[oracle.Answer]]:
    return [[(match.distance, match.code, match.id) for match in found] for found in matches]
