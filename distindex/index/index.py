"""An index in storage: open a version, search it, create one from arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import check_codes, check_logits, pack
from distindex.errors import InputError
from distindex.index.candidates import Nominees, default_candidates, merge_nominees
from distindex.index.changes import IdsInMemory, OnConflict, add_shards
from distindex.index.files import default_cache
from distindex.index.filters import Filter
from distindex.index.kinds import DEFAULT_RECALL
from distindex.index.manifest import VersionManifest, check_columns, commit, newest_manifest, read_manifest
from distindex.index.matches import Matches, merge, one_after_another
from distindex.index.rows import Rows
from distindex.index.shard import Shard
from distindex.index.statistics import ShardStatistics
from distindex.index.structures import check_buildable
from distindex.storage import Storage

DEFAULT_K = 10
# Candidates at work at once, some 40 bytes each.
_CANDIDATES_AT_ONCE = 1 << 20


class Index:
    """One version of an index, opened for search. Use `Index.open`.

    Attributes:
        manifest: what the version consists of.
        positions: the shards that are open, by their position in the manifest.
    """

    def __init__(self, manifest: VersionManifest, shards: Mapping[int, Shard]) -> None:
        self.manifest = manifest
        self.positions = tuple(shards)
        self._shards: tuple[Shard, ...] | None = tuple(shards.values())

    @classmethod
    def open(
        cls,
        uri: str,
        version: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        shards: Sequence[int] | None = None,
        cache: Path | None = None,
    ) -> Index:
        """Open a version, every file checked against its recorded sha256.

        Args:
            uri: directory of the index.
            version: its number; 0 takes the newest.
            storage_options: passed to the fsspec file system.
            shards: positions of the shards to load, all by default; searches then cover only these.
            cache: directory for copies of files from object storage; default `~/.cache/distindex`.

        Raises:
            NotFoundError: no index, or no such version.
            DamagedError: a file does not match its recorded sha256.
            FormatError: written by a release that this one does not know.
            InputError: a shard position that the version does not have.
        """
        storage = Storage(uri, storage_options)
        manifest = read_manifest(storage, version)
        chosen = list(range(len(manifest.shards))) if shards is None else sorted(set(shards))
        for position in chosen:
            if not 0 <= position < len(manifest.shards):
                raise InputError(
                    f"{uri}: version {manifest.version} has no shard {position}; it has {len(manifest.shards)}"
                )
        if not chosen:
            raise InputError(f"{uri}: no shard was chosen")
        directory = cache or default_cache()

        def open_shard(position: int) -> Shard:
            entry = manifest.shards[position]
            return Shard.open(storage, entry, directory, manifest.deletion_of(entry.name))

        with ThreadPoolExecutor(max_workers=min(8, len(chosen) or 1)) as pool:
            opened = list(pool.map(open_shard, chosen))
        return cls(manifest, dict(zip(chosen, opened, strict=True)))

    @classmethod
    def create(
        cls,
        uri: str,
        code_NC: npt.ArrayLike,
        ids: Any,
        payload: pa.Table | None = None,
        *,
        shards: int = 1,
        hasher: Mapping[str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        command: str = "Index.create",
        kind: str = "flat",
        recall: float = DEFAULT_RECALL,
    ) -> Index:
        """Write codes that fit in memory as a new version, and open it. For more, see building/.

        Args:
            uri: directory of the index.
            code_NC: one code per row.
            ids: one id per row, integers or texts, all different.
            payload: one row per id; its columns can be asked for in searches.
            shards: number of shards.
            hasher: `uri` and `fingerprint` of what made the codes.
            storage_options: passed to the fsspec file system.
            command: recorded in the version file.
            kind: search structure, one of `kinds.CAPABILITIES`.
            recall: share of the nearest codes, by distance, that an approximate kind must find.

        Raises:
            InputError: no such kind, or it cannot reach the recall; arrays of different lengths, wrong types, or
                an id that stands twice.
            ConflictError: another writer committed the same version first.
        """
        check_buildable(kind, recall)
        storage = Storage(uri, storage_options)
        rows = Rows.of(code_NC, ids, payload, shards)
        planned = rows.following(newest_manifest(storage), storage, hasher, command, kind, recall)
        committed = commit(storage, planned, rows.write(storage, shards, planned))
        return cls.open(uri, committed.version, storage_options)

    @classmethod
    def append(
        cls,
        uri: str,
        code_NC: npt.ArrayLike,
        ids: Any,
        payload: pa.Table | None = None,
        *,
        shards: int = 1,
        on_conflict: OnConflict = "refuse",
        hasher: Mapping[str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        command: str = "Index.append",
    ) -> Index:
        """Add rows that fit in memory to those of the newest version, and open the version that has both.

        The new shards are of the kind of that version.

        Args:
            uri: directory of the index.
            code_NC: one code per row.
            ids: one id per row, integers or texts, all different.
            payload: one row per id, with the payload columns of the index.
            shards: number of shards that are added.
            on_conflict: refuse ids that the index has already, or replace their rows.
            hasher: `uri` and `fingerprint` of what made the codes.
            storage_options: passed to the fsspec file system.
            command: recorded in the version file.

        Raises:
            NotFoundError: there is no index.
            InputError: as `create`, or rows that do not fit the index, or ids that it has already.
        """
        storage = Storage(uri, storage_options)
        rows = Rows.of(code_NC, ids, payload, shards)
        parent = read_manifest(storage)
        rows = rows.in_columns(
            check_columns(parent, storage, rows.following(parent, storage, hasher, command).payload)
        )
        version, _ = add_shards(
            storage,
            IdsInMemory(rows.id_N),
            len(rows.code_NC),
            lambda after, store: rows.write(storage, shards, after, store),
            on_conflict=on_conflict,
            command=command,
        )
        return cls.open(uri, version.version, storage_options)

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def bits(self) -> int:
        return self.manifest.bits

    @property
    def rows(self) -> int:
        """Rows of the whole version that are not deleted, also where only some of its shards are open."""
        return self.manifest.rows

    @property
    def distinct(self) -> int:
        """Distinct codes stored in the whole version; one that stands in several shards counts in each."""
        return self.manifest.distinct

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def hasher(self) -> Mapping[str, str] | None:
        """`uri` and `fingerprint` of the hasher that made the codes, where it is known."""
        return self.manifest.hasher

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the payload columns."""
        return tuple(column["name"] for column in self.manifest.payload)

    def search(
        self,
        code_QC: npt.ArrayLike | None = None,
        k: int | None = None,
        *,
        radius: int | None = None,
        limit: int | None = None,
        columns: Sequence[str] = (),
        logits: npt.ArrayLike | None = None,
        candidates: int | None = None,
        filter: str | None = None,
        exact: bool = False,
    ) -> Matches:
        """The nearest rows of each query, ordered by (distance, code bytes, id).

        With `filter` the answers are those of an index that holds only the rows that pass, and exact for every kind.
        Without it an index of an approximate kind may miss some; what it finds comes in the same order.

        With `logits` the search is asymmetric: the nearest `candidates` distinct codes by (distance, code bytes)
        are ranked by the query's logits, and the answers are ordered by (score, distance, code bytes, id); see
        `codes.asymmetric` for the score.

        Args:
            code_QC: query codes, uint8; a single code counts as one query. May be left out with `logits`.
            k: rows per query; fewer where the index has fewer. 10 where neither k nor radius is given.
            radius: instead of k, all rows at most this many bits away.
            limit: with radius, only the best so many rows per query.
            columns: payload columns of the answers.
            logits: `logit_QK`, the hasher's output for the queries, whose codes are their signs.
            candidates: with logits, the codes that are ranked, at least k; default: 10 k, and at least 1000.
            filter: a condition on payload columns, such as `label == "sport" and year >= 2020`; see `filters`.
            exact: find every answer, whatever the kind; with logits the answers are those of all kinds anyway.

        Raises:
            InputError: queries of another type or length, both k and radius, a number out of range, a column
                that the index does not have, logits with a radius or with codes that are not their signs, or a
                radius that the index's kind cannot search by, or a filter that cannot be read or compares a column
                with what its type cannot be compared with.
        """
        if logits is not None:
            if radius is not None or limit is not None:
                raise InputError("radius and limit go without logits, which rank the k nearest")
            return self._search_asymmetric(code_QC, logits, k, candidates, columns, filter)
        if candidates is not None:
            raise InputError("candidates go with logits, which rank them")
        if code_QC is None:
            raise InputError("queries: give codes or logits")
        queries = check_codes(code_QC, self.bits, "queries")
        if k is not None and radius is not None:
            raise InputError("give k or radius, not both")
        if radius is None and limit is not None:
            raise InputError("limit goes with radius; use k for the nearest rows")
        if radius is None:
            k = _whole_number("k", DEFAULT_K if k is None else k, 1)
        else:
            radius = _whole_number("radius", radius, 0)
            limit = None if limit is None else _whole_number("limit", limit, 1)
        wanted = self._payload_columns(columns)
        passing = self._filter(filter)
        parts = [
            shard.search(
                queries,
                version=self.version,
                k=k,
                radius=radius,
                limit=limit,
                columns=wanted,
                filter=passing,
                exact=exact,
            )
            for shard in self._open_shards()
        ]
        return merge(parts, k if radius is None else limit)

    def _search_asymmetric(
        self,
        code_QC: npt.ArrayLike | None,
        logits: npt.ArrayLike,
        k: int | None,
        candidates: int | None,
        columns: Sequence[str],
        filter: str | None,
    ) -> Matches:
        logit_QK = check_logits(logits, self.bits)
        if code_QC is not None and not np.array_equal(check_codes(code_QC, self.bits, "queries"), pack(logit_QK > 0)):
            raise InputError("queries: the codes are not the signs of the logits; leave them out")
        k = _whole_number("k", DEFAULT_K if k is None else k, 1)
        candidates = default_candidates(k) if candidates is None else _whole_number("candidates", candidates, k)
        block = max(1, _CANDIDATES_AT_ONCE // max(1, min(candidates, self.distinct)))
        parts = [
            merge_nominees(
                self.nominate(logit_QK[start : start + block], k, candidates, columns, filter), k, candidates
            )
            for start in range(0, max(1, len(logit_QK)), block)
        ]
        return one_after_another(parts)

    def nominate(
        self,
        logit_QK: npt.ArrayLike,
        k: int,
        candidates: int,
        columns: Sequence[str] = (),
        filter: str | None = None,
    ) -> list[Nominees]:
        """What each open shard contributes to an asymmetric search, for `merge_nominees` over all shards.

        Args:
            logit_QK: the queries; all of them are at work at once, 40 bytes a candidate.
            k: answers per query.
            candidates: distinct codes of the whole index that are ranked, at least k.
            columns: payload columns of the answers.
            filter: as in `search`.

        Raises:
            InputError: as `search`.
        """
        queries = check_logits(logit_QK, self.bits)
        k = _whole_number("k", k, 1)
        candidates = _whole_number("candidates", candidates, k)
        wanted = self._payload_columns(columns)
        passing = self._filter(filter)
        return [
            shard.nominate(
                pack(queries > 0),
                queries,
                version=self.version,
                k=k,
                candidates=candidates,
                columns=wanted,
                whole=len(self.manifest.shards) == 1,
                filter=passing,
            )
            for shard in self._open_shards()
        ]

    def lookup(self, ids: Sequence[int | str], columns: Sequence[str] = ()) -> Matches:
        """The rows that have these ids: per id one answer at distance 0, or none where no open shard has it.

        Args:
            ids: integers or texts, as the index has them.
            columns: payload columns of the answers.

        Raises:
            InputError: ids of another type, or a column that the index does not have.
        """
        wanted = self._payload_columns(columns)
        kind = pa.int64() if self.manifest.id_type == "int64" else pa.string()
        try:
            id_Q = pa.array(ids, kind)
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(f"ids: the ids of this index are of type {kind}") from error
        if id_Q.null_count:
            raise InputError("ids: none may be null")
        parts = [shard.lookup(id_Q, version=self.version, columns=wanted) for shard in self._open_shards()]
        return merge(parts, 1)

    def statistics(self) -> ShardStatistics:
        """How often each bit is 1 and how many rows share a code, counted over the open shards; .1 s each."""
        return ShardStatistics.sum([ShardStatistics.of_shard(shard) for shard in self._open_shards()])

    def _open_shards(self) -> tuple[Shard, ...]:
        if self._shards is None:
            raise InputError("the index is closed; open it again")
        return self._shards

    def _payload_columns(self, columns: Sequence[str]) -> list[str]:
        wanted = list(dict.fromkeys([columns] if isinstance(columns, str) else columns))
        for column in wanted:
            if column not in self.columns:
                known = ", ".join(self.columns) or "none"
                raise InputError(f"columns: the index has no payload column {column!r}; it has {known}")
        return wanted

    def _filter(self, text: str | None) -> Filter | None:
        if text is None:
            return None
        passing = Filter(text)
        passing.check(self.columns)
        return passing

    def close(self) -> None:
        """Let go of the shards; the index cannot be searched any more."""
        self._shards = None

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole_number(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name}: {value!r} is not a whole number") from error
    if isinstance(value, bool) or number < least:
        raise InputError(f"{name}: {value!r} must be a whole number of at least {least}")
    return number
