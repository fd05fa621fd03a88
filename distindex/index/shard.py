"""One shard, opened: what it answers from its own rows. Its files are those of `shard_files`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import CodeArray, asymmetric, byte_weights
from distindex.errors import DamagedError, NotFoundError
from distindex.index.candidates import Nominees, can_be_answers
from distindex.index.deletions import is_among, places_among, read_deletion
from distindex.index.files import checked_file, map_arrow
from distindex.index.filters import Filter
from distindex.index.flat import Flat
from distindex.index.kinds import check_kind
from distindex.index.manifest import DeletionEntry, ShardEntry, check_format
from distindex.index.matches import Matches, one_chunk, starts_of
from distindex.index.postings import Postings
from distindex.index.selection import Selection
from distindex.index.shard_files import (
    CODES,
    DESCRIPTION,
    DIRECTORY,
    FORMAT_VERSION,
    IDS,
    OLDEST_FORMAT_VERSION,
    PAYLOAD,
    POSTINGS,
)
from distindex.index.structure import Neighbors, SearchStructure
from distindex.index.structures import open_structure
from distindex.storage import Storage


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """An opened shard of N rows and U distinct codes; its files are mapped, not copied, where it can be.

    Attributes:
        flat: the distinct codes.
        structure: what finds them; the same as `flat` for that kind.
        postings: the rows of each distinct code.
        id_N: ids, ascending within a code.
        payload: payload columns; None where the index has none.
        keep_N: the rows that are not deleted; None where none is.
    """

    flat: Flat
    structure: SearchStructure
    postings: Postings
    id_N: pa.ChunkedArray
    payload: pa.Table | None
    keep_N: npt.NDArray[np.bool_] | None = None

    @classmethod
    def open(
        cls,
        storage: Storage,
        entry: ShardEntry,
        cache: Path,
        deletion: DeletionEntry | None = None,
        *,
        searched: bool = True,
    ) -> Shard:
        """Open a shard that a version names, every file checked against its recorded sha256.

        Args:
            storage: the index.
            entry: the shard.
            deletion: what the version says is deleted from it.
            cache: directory for copies of the files of an index in object storage.
            searched: False opens it for its rows alone, without what makes searches fast and without a GPU.

        Raises:
            DamagedError: a file is missing, cut, changed, or belongs to another shard; names the file.
            FormatError: of a format version or a kind that this release does not know.
            InputError: its kind needs a GPU, and there is none.
        """
        home = storage.child(f"{DIRECTORY}/{entry.name}")
        description = _description(home, entry)
        paths = {
            name: checked_file(home, name, about["sha256"], cache) for name, about in description["files"].items()
        }
        flat = Flat.open(paths[CODES], description["bits"])
        structure: SearchStructure = flat
        if searched:
            structure = open_structure(description["kind"], flat, description.get("parameters", {}), paths)
        shard = cls(
            flat=flat,
            structure=structure,
            postings=Postings.of_table(map_arrow(paths[POSTINGS]), home.full_uri(POSTINGS)),
            id_N=map_arrow(paths[IDS]).column("id"),
            payload=map_arrow(paths[PAYLOAD]) if PAYLOAD in paths else None,
        )
        counts = (len(shard.flat), shard.postings.distinct, shard.postings.rows, len(shard.id_N))
        if counts != (entry.distinct, entry.distinct, entry.rows, entry.rows):
            raise DamagedError(f"{home.uri}: its files disagree about the number of rows; build the index again")
        if deletion is None:
            return shard
        deleted_N = is_among(shard.id_N, read_deletion(storage, deletion, cache))
        if deleted_N.sum() != deletion.rows:
            raise DamagedError(f"{home.uri}: {deletion.rows} ids are deleted, but not all of them are in the shard")
        return dataclasses.replace(shard, keep_N=~deleted_N)

    @cached_property
    def _ids(self) -> pa.Array:
        return one_chunk(self.id_N)

    @cached_property
    def _kept(self) -> Selection | None:
        """The rows that are not deleted; None where all are."""
        return None if self.keep_N is None else Selection.of_mask(self.flat, self.postings, self.keep_N)

    def select(self, filter: Filter | None) -> Selection | None:
        """The rows that are not deleted and pass the filter; None where that is all of them.

        Raises:
            InputError: the filter does not fit the payload.
        """
        if filter is None:
            return self._kept
        payload = pa.table({}) if self.payload is None else self.payload
        keep_N = filter.mask(payload.select([name for name in filter.columns if name in payload.column_names]))
        return Selection.of_mask(self.flat, self.postings, keep_N if self.keep_N is None else keep_N & self.keep_N)

    def remaining_rows(self) -> tuple[CodeArray, pa.Array, pa.Table | None]:
        """Codes, ids and payload of the rows that are not deleted, in the order of the shard."""
        sizes = np.diff(self.postings.every_offset())
        code_NC = np.repeat(self.flat.code_UC, sizes, axis=0)
        if self.keep_N is None:
            return code_NC, one_chunk(self.id_N), self.payload
        rows = pa.array(np.flatnonzero(self.keep_N))
        payload = None if self.payload is None else self.payload.take(rows)
        return code_NC[self.keep_N], one_chunk(self.id_N.take(rows)), payload

    def search(
        self,
        code_QC: CodeArray,
        *,
        version: int,
        k: int | None,
        radius: int | None,
        limit: int | None,
        columns: Sequence[str],
        filter: Filter | None = None,
        exact: bool = False,
    ) -> Matches:
        """The k nearest rows, or the rows within `radius` bits (the best `limit` of them), that pass the filter.

        `exact` searches the codes themselves, whatever the kind.
        """
        most = k if radius is None else limit
        selection = self.select(filter)
        # A filter can leave few codes far apart, which an approximate structure would miss.
        structure = self.structure if filter is None and not exact else self.flat
        searched = structure if selection is None else selection.searched_by(structure)
        if most is None:
            neighbors = searched.within(code_QC, radius or 0)
        else:
            # The best rows carry at most as many codes, and these are the best codes.
            neighbors = searched.knn(code_QC, most)
            if radius is not None:
                neighbors = neighbors.cut(radius)
        return self._expand(neighbors, version, columns, selection, most)

    def lookup(self, id_Q: pa.Array, *, version: int, columns: Sequence[str]) -> Matches:
        """The row of each id that is here and not deleted, at distance 0; no answer for the others."""
        here_N = is_among(self._ids, id_Q)
        here_A = np.flatnonzero(here_N if self.keep_N is None else here_N & self.keep_N)
        place_Q = places_among(id_Q, self._ids.take(pa.array(here_A)))
        row_M = here_A[place_Q[place_Q >= 0]]
        rows = pa.array(row_M)
        return Matches(
            offset_Q1=starts_of(place_Q >= 0),
            distance_M=np.zeros(len(row_M), np.int32),
            code_MC=self.flat.code_UC[self.postings.codes_of(row_M)],
            id_M=self._ids.take(rows),
            payload=self.payload.select(list(columns)).take(rows) if columns and self.payload is not None else None,
            version=version,
        )

    def nominate(
        self,
        code_QC: CodeArray,
        logit_QK: npt.NDArray[np.float32],
        *,
        version: int,
        k: int,
        candidates: int,
        columns: Sequence[str],
        whole: bool,
        filter: Filter | None = None,
    ) -> Nominees:
        """What the shard contributes to an asymmetric search; see `candidates`.

        Args:
            code_QC: the signs of the logits.
            logit_QK: the queries.
            version: of the index.
            k: answers per query.
            candidates: distinct codes that are scored, at least k.
            columns: payload columns of the rows.
            whole: the index has no other shards.
            filter: only rows that pass take part, and only codes of such rows are candidates.
        """
        selection = self.select(filter)
        codes = len(self.flat) if selection is None else len(selection.position_A)
        # Exact for every kind: candidates that one shard misses would change what others may leave out.
        nearest = (self.flat if selection is None else selection.searched_by(self.flat)).knn(code_QC, candidates)
        shape = (len(code_QC), min(candidates, codes))
        position_QA = nearest.position_M.reshape(shape)
        distance_QA = nearest.distance_M.astype(np.int16).reshape(shape)
        code_QAC = self.flat.code_UC[position_QA]
        score_QA = asymmetric(byte_weights(logit_QK), code_QAC ^ code_QC[:, None])
        query_A, place_A = np.nonzero(can_be_answers(score_QA, k))
        # The sort is stable, so that equal scores stay in (distance, code) order.
        order_A = np.lexsort((score_QA[query_A, place_A], query_A))
        query_A, place_A = query_A[order_A], place_A[order_A]
        chosen = Neighbors(
            np.searchsorted(query_A, np.arange(len(code_QC) + 1)),
            nearest.distance_M.reshape(shape)[query_A, place_A],
            position_QA[query_A, place_A],
        )
        matches = self._expand(
            chosen, version, columns, selection, k if whole else None, each=k, score_A=score_QA[query_A, place_A]
        )
        told = 0 if whole else shape[1]
        return Nominees(distance_QA[:, :told], code_QAC[:, :told], matches)

    def _expand(
        self,
        neighbors: Neighbors,
        version: int,
        columns: Sequence[str],
        selection: Selection | None,
        most: int | None,
        each: int | None = None,
        score_A: npt.NDArray[np.float32] | None = None,
    ) -> Matches:
        """From codes to rows, at most `most` per query and `each` per code."""
        position_M = neighbors.position_M
        if selection is None:
            first_A, size_A = self.postings.rows_of(position_M)
        else:
            first_A = selection.offset_U1[position_M]
            size_A = selection.offset_U1[position_M + 1] - first_A
        if each is not None:
            size_A = np.minimum(size_A, each)
        before_A1 = starts_of(size_A)
        offset_Q1 = before_A1[neighbors.offset_Q1]
        size_Q = offset_Q1[1:] - offset_Q1[:-1]
        if most is not None and size_Q.max(initial=0) > most:
            # Cut before expanding: one code may have millions of rows.
            before_A = before_A1[:-1] - np.repeat(offset_Q1[:-1], np.diff(neighbors.offset_Q1))
            size_A = np.minimum(size_A, np.maximum(most - before_A, 0))
            before_A1 = starts_of(size_A)
            offset_Q1 = before_A1[neighbors.offset_Q1]
        answer_M = np.repeat(np.arange(len(size_A)), size_A)
        row_M = np.arange(before_A1[-1]) + (first_A - before_A1[:-1])[answer_M]
        rows = pa.array(row_M if selection is None else selection.row_L[row_M])
        return Matches(
            offset_Q1=offset_Q1,
            distance_M=neighbors.distance_M[answer_M],
            code_MC=self.flat.code_UC[position_M[answer_M]],
            id_M=self._ids.take(rows),
            payload=self.payload.select(list(columns)).take(rows) if columns and self.payload is not None else None,
            version=version,
            score_M=None if score_A is None else score_A[answer_M],
        )


def _description(home: Storage, entry: ShardEntry) -> dict[str, Any]:
    where = home.full_uri(DESCRIPTION)
    try:
        data = home.read_bytes(DESCRIPTION)
    except NotFoundError as error:
        raise DamagedError(f"{where}: the file is missing; build the index again") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedError(f"{where}: does not match the sha256 in the version file; build the index again")
    description = json.loads(data)
    check_format(description, where, FORMAT_VERSION, OLDEST_FORMAT_VERSION)
    check_kind(description["kind"], where)
    return description


def stored_ids(storage: Storage, entry: ShardEntry, cache: Path) -> pa.Array:
    """The ids of all rows of a shard, deleted or not, without opening the rest of it.

    Raises:
        DamagedError, FormatError: as `Shard.open`.
    """
    home = storage.child(f"{DIRECTORY}/{entry.name}")
    sha256 = _description(home, entry)["files"][IDS]["sha256"]
    return one_chunk(map_arrow(checked_file(home, IDS, sha256, cache)).column("id"))


def keep_shard(storage: Storage, entry: ShardEntry) -> None:
    """Write a shard's description again, with the same bytes, so that `gc` takes the shard for a new one.

    Raises:
        DamagedError: it is missing or has other content.
    """
    home = storage.child(f"{DIRECTORY}/{entry.name}")
    _description(home, entry)
    home.write_bytes(DESCRIPTION, home.read_bytes(DESCRIPTION))


def payload_schema(storage: Storage, entry: ShardEntry) -> pa.Schema:
    """The payload columns of a shard, without reading them."""
    path = f"{DIRECTORY}/{entry.name}/{PAYLOAD}"
    if not storage.exists(path):
        return pa.schema([])
    with storage.arrow.open_input_file(storage.full_path(path)) as source:
        return pa.ipc.open_file(source).schema
