"""From rows in files to shards, with bounded memory: split, check ids, write. Needs no faiss but in its last step.

1. `split_*`: each source (a file of a code set, or a shard that is rewritten) is cut by the shard of its codes, and
   its ids by their group, into two files below `building/` of the index.
2. `check_group`: ids that stand twice within a group.
3. `write_part`: the rows of one shard, sorted and written under the name of their content.

Each step finds what an earlier attempt has finished, so a killed job goes on. No step holds the rows of more than one
round of a source, one group of ids, or one shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codeset import CODE_COLUMN, ID_COLUMN, CodeSet, OutputFile
from distindex.errors import ConflictError, DamagedError, InputError, NotFoundError
from distindex.index.files import default_cache
from distindex.index.kinds import CAPABILITIES
from distindex.index.manifest import DeletionEntry, ShardEntry
from distindex.index.matches import code_rows, one_chunk
from distindex.index.partition import duplicate_rows, group_of_ids, shard_of_codes
from distindex.index.runs import ROWS_AT_ONCE, read_runs, write_runs
from distindex.index.tasks import Each
from distindex.settings import fingerprint
from distindex.storage import Storage

DIRECTORY = "building"
# Ids that one step checks at once: 128 MB of int64 ids, and four times as much to sort or hash them.
IDS_PER_GROUP = 1 << 24


@dataclasses.dataclass(frozen=True)
class Construction:
    """What all steps of one job share.

    Attributes:
        storage: the index.
        directory: where its intermediate files are, inside the index; the same for the same job.
        schema: id, code and payload columns of the rows.
        sources: names of the sources, for messages.
        shards: number of shards that the rows are cut into.
        groups: number of groups that the ids are cut into; 0 where they are known to differ.
    """

    storage: Storage
    directory: str
    schema: pa.Schema
    sources: tuple[str, ...]
    shards: int
    groups: int

    @classmethod
    def of(
        cls,
        storage: Storage,
        what: Any,
        *,
        bits: int,
        id_type: str,
        payload: Sequence[pa.Field],
        sources: Sequence[str],
        shards: int,
        rows_to_check: int,
    ) -> Construction:
        """A job.

        Args:
            storage: the index.
            what: names the rows by their content, as JSON: jobs of the same rows share their files.
            bits: length of the codes.
            id_type: int64 or string.
            payload: the payload columns.
            sources: names of the sources.
            shards: number of shards to cut into.
            rows_to_check: rows whose ids are not known to differ.
        """
        schema = pa.schema([(ID_COLUMN, pa.type_for_alias(id_type)), (CODE_COLUMN, pa.binary(bits // 8)), *payload])
        groups = -(-rows_to_check // IDS_PER_GROUP)
        name = fingerprint(what, str(schema), shards, groups)
        return cls(storage, f"{DIRECTORY}/{name}", schema, tuple(sources), shards, groups)

    @property
    def rows_at_once(self) -> int:
        """Rows of a round: fewer with payload, of which one row may have many kilobytes."""
        return ROWS_AT_ONCE if len(self.schema) == 2 else ROWS_AT_ONCE // 8

    def rows_path(self, source: int) -> str:
        """The rows of a source, by shard."""
        return f"{self.directory}/rows-{source:06d}.arrow"

    def ids_path(self, source: int) -> str:
        """The ids of a source, by group."""
        return f"{self.directory}/ids-{source:06d}.arrow"

    def counts_path(self, source: int) -> str:
        """How many rows of a source each shard gets; written last."""
        return f"{self.directory}/counts-{source:06d}.json"

    def part_path(self, part: Part) -> str:
        """The shard that was written."""
        return f"{self.directory}/shard-{part.shard:06d}-{part.kind}-{part.recall}.json"

    @contextlib.contextmanager
    def cleaned(self) -> Iterator[None]:
        """Remove the intermediate files when the block ends, or finds bad input; not when it is cut short."""
        try:
            yield
        except InputError as error:
            if isinstance(error, NotFoundError) and self.directory in str(error):
                raise ConflictError(
                    f"{self.storage.uri}: another job with the same rows has finished and removed its intermediate "
                    "files, which this one shared; run again"
                ) from error
            self._clean()
            raise
        self._clean()

    def _clean(self) -> None:
        self.storage.remove(self.directory)
        self.storage.prune(DIRECTORY)


def split_code_file(shared: tuple[Construction, CodeSet], item: tuple[int, OutputFile]) -> dict[str, Any]:
    """Split one file of a code set.

    Returns:
        `rows`: rows per shard; `bytes`: size of all rows in memory.

    Raises:
        DamagedError: the file does not match the manifest of the code set.
    """
    construction, code_set = shared
    source, file = item

    def rounds() -> Iterator[pa.Table]:
        for table in code_set.rounds(file, construction.schema.names, construction.rows_at_once):
            try:
                yield table.cast(construction.schema)
            except pa.ArrowException as error:
                where = code_set.storage.full_uri(file.path)
                raise DamagedError(f"{where}: its columns are not those of the other files ({error})") from error

    return _split(construction, source, rounds)


def split_shard(construction: Construction, item: tuple[int, ShardEntry, DeletionEntry | None]) -> dict[str, Any]:
    """Split the rows of a shard that are not deleted."""
    from distindex.index.shard import Shard

    source, entry, deletion = item

    def rounds() -> Iterator[pa.Table]:
        shard = Shard.open(construction.storage, entry, default_cache(), deletion, searched=False)
        code_NC, id_N, payload = shard.remaining_rows()
        flat = pa.py_buffer(np.ascontiguousarray(code_NC))
        code = pa.FixedSizeBinaryArray.from_buffers(pa.binary(code_NC.shape[1]), len(code_NC), [None, flat])
        columns = [id_N, code, *([] if payload is None else payload.columns)]
        table = pa.table(columns, schema=construction.schema)
        for start in range(0, table.num_rows, construction.rows_at_once):
            yield table.slice(start, construction.rows_at_once)

    return _split(construction, source, rounds)


def _split(construction: Construction, source: int, rounds: Callable[[], Iterator[pa.Table]]) -> dict[str, Any]:
    storage, schema = construction.storage, construction.schema
    counts_path = construction.counts_path(source)
    if storage.exists(counts_path):
        return storage.read_json(counts_path)
    size = 0

    def shard_of(table: pa.Table) -> npt.NDArray[np.int64]:
        nonlocal size
        size += table.nbytes
        return shard_of_codes(code_rows(table.column(CODE_COLUMN)), construction.shards)

    def group_of(table: pa.Table) -> npt.NDArray[np.int64]:
        return group_of_ids(one_chunk(table.column(ID_COLUMN)), construction.groups)

    rows_S = write_runs(storage, construction.rows_path(source), schema, rounds(), shard_of, construction.shards)
    if construction.groups:
        ids = pa.schema([schema.field(ID_COLUMN)])
        # From what was just written: the source is not read and checked twice.
        written = _rounds_of(storage, construction.rows_path(source), construction.shards)
        write_runs(storage, construction.ids_path(source), ids, written, group_of, construction.groups)
    counts = {"rows": rows_S.tolist(), "bytes": size}
    storage.write_json(counts_path, counts)
    return counts


def _rounds_of(storage: Storage, path: str, parts: int) -> Iterator[pa.Table]:
    with storage.arrow.open_input_file(storage.full_path(path)) as source:
        reader = pa.ipc.open_file(source)
        for start in range(0, reader.num_record_batches, parts):
            batches = [reader.get_batch(at).select([ID_COLUMN]) for at in range(start, start + parts)]
            yield pa.Table.from_batches(batches)


def check_group(construction: Construction, group: int) -> str | None:
    """Says which id stands twice in a group and where, None if none does."""
    paths = [construction.ids_path(source) for source in range(len(construction.sources))]
    schema = pa.schema([construction.schema.field(ID_COLUMN)])
    table, rows_F = read_runs(construction.storage, paths, schema, group, construction.groups)
    id_N = one_chunk(table.column(ID_COLUMN))
    rows = duplicate_rows(id_N)
    if rows is None:
        return None
    source_of = np.repeat(np.arange(len(rows_F)), rows_F)
    one, other = (construction.sources[source_of[row]] for row in rows)
    places = f"twice in {one}" if one == other else f"in {one} and in {other}"
    return f"id {id_N[rows[0]].as_py()!r} stands {places}"


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the shards that rows are cut into.

    Attributes:
        shard: its number.
        kind: its search structure.
        recall: what an approximate kind must reach.
        keep_empty: write it even where it has no rows.
        store: False only says what would be written.
    """

    shard: int
    kind: str
    recall: float
    keep_empty: bool = False
    store: bool = True


def write_part(construction: Construction, part: Part) -> ShardEntry | None:
    """Write one shard; None where it has no rows.

    Raises:
        InputError: its kind cannot reach the recall on its codes, or a column is too large for one shard.
    """
    # Here and not above: the caller may have torch loaded, whose OpenMP runtime faiss does not get on with.
    from distindex.index.shard import keep_shard
    from distindex.index.shard_files import write_shard

    storage, done = construction.storage, construction.part_path(part)
    if storage.exists(done):
        entry = ShardEntry(**storage.read_json(done))
        keep_shard(storage, entry)
        return entry
    paths = [construction.rows_path(source) for source in range(len(construction.sources))]
    table, _ = read_runs(storage, paths, construction.schema, part.shard, construction.shards)
    if not table.num_rows and not part.keep_empty:
        return None
    payload = table.drop_columns([ID_COLUMN, CODE_COLUMN])
    code_NC = code_rows(table.column(CODE_COLUMN))
    try:
        entry = write_shard(
            storage,
            code_NC,
            one_chunk(table.column(ID_COLUMN)),
            payload,
            kind=part.kind,
            recall=part.recall,
            store=part.store,
        )
    except pa.ArrowInvalid as error:
        # Arrow's texts are addressed by 32 bits within a column.
        raise InputError(
            f"shards: a column of a shard of {table.num_rows:,} rows holds more than 2 GB; give more shards ({error})"
        ) from error
    if part.store:
        storage.write_json(done, dataclasses.asdict(entry))
    return entry


@dataclasses.dataclass(frozen=True)
class StoredIds:
    """Ids that lie in the files of a job, one group in memory at a time; see `changes.Ids`."""

    construction: Construction

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.construction.groups

    def group(self, number: int) -> pa.Array:
        """The ids of one group."""
        construction = self.construction
        paths = [construction.ids_path(source) for source in range(len(construction.sources))]
        schema = pa.schema([construction.schema.field(ID_COLUMN)])
        table, _ = read_runs(construction.storage, paths, schema, number, construction.groups)
        return one_chunk(table.column(ID_COLUMN))


def write_parts(
    construction: Construction,
    counts: Sequence[Mapping[str, Any]],
    kind: str,
    recall: float,
    each: Each,
    store: bool = True,
) -> list[ShardEntry]:
    """Write the shards of a job whose sources were split; those without rows are left out, unless there is no row.

    Args:
        construction: the job.
        counts: what splitting gave for each source.
        kind: search structure of the shards.
        recall: what an approximate kind must reach.
        each: runs the steps.
        store: False only says what would be written.
    """
    rows_S = np.sum([count["rows"] for count in counts] or [[0] * construction.shards], axis=0)
    rows = int(rows_S.sum())
    memory = write_memory(int(rows_S.max()), sum(count["bytes"] for count in counts) / max(1, rows), kind)
    # The fullest shards first: the last to finish is then a small one.
    order = np.argsort(-rows_S, kind="stable").tolist()
    parts = [Part(shard, kind, recall, keep_empty=rows == shard == 0, store=store) for shard in order]
    written = each(write_part, construction, parts, what="writing shards", memory=memory)
    by_shard = {part.shard: entry for part, entry in zip(parts, written, strict=True)}
    return [entry for shard in range(construction.shards) if (entry := by_shard[shard]) is not None]


def check_ids(construction: Construction, rows: int, where: str, each: Each) -> None:
    """Refuse rows of which two have the same id.

    Args:
        construction: the job, whose sources were split.
        rows: their number.
        where: what errors name.
        each: runs the steps.

    Raises:
        InputError: names the id and the sources.
    """
    # Ids and their ranks, sorted: four times 8 bytes, if the ids are no long texts.
    memory = 32 * min(rows, IDS_PER_GROUP)
    groups = range(construction.groups)
    found = [twice for twice in each(check_group, construction, groups, what="checking ids", memory=memory) if twice]
    if found:
        raise InputError(f"{where}: {found[0]}; ids must be unique, nothing was written")


def write_memory(rows: int, row_bytes: float, kind: str) -> int:
    """Bytes that writing a shard takes, for rows of so many bytes: five copies of them, and 64 bytes to sort each.

    An approximate structure comes on top.
    """
    structure = 0 if CAPABILITIES[kind].exact else CAPABILITIES[kind].bytes_per_code[1]
    return int(rows * (5 * row_bytes + 64 + structure))
