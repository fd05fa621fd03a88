"""Build a version of an index from a code set, in parallel over its files and then over the shards.

1. One task per file of the code set splits its rows by the shard of their code, and its ids into groups.
2. One task per group looks for ids that stand twice. Nothing is written before all of them are done.
3. One task per shard sorts its rows and writes them under the name of their content.
4. The version file is created; from then on the version exists.

What was written before a failure is found again by its content, so building again takes up from there.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codeset import CODE_COLUMN, ID_COLUMN, CodeSet, CodeSetManifest, OutputFile
from distindex.config import BuildConfig
from distindex.errors import DamagedError, DistindexError, InputError, NotFoundError
from distindex.index.kinds import Choice
from distindex.index.manifest import ShardEntry, VersionManifest, commit, following, newest_manifest
from distindex.index.matches import code_rows, one_chunk
from distindex.index.partition import duplicate_rows, group_of_ids, shard_of_codes
from distindex.progress import Bar, say
from distindex.runtime import start_ray
from distindex.settings import command_line
from distindex.storage import Storage

# Rows that `--kind auto` looks at.
SAMPLE_ROWS = 250_000
# Ids that one task checks at once: 128 MB of int64 ids, and as much again to sort them.
_IDS_PER_GROUP = 1 << 24


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        uri: directory of the index.
        version: number of the version.
        rows: rows in it.
        distinct: distinct codes in it.
        shards: shards that hold rows.
        bytes: size of the shards' files.
        seconds: wall time.
        kind: search structure of the shards.
        recall: what an approximate kind reached on held-out codes, in the shard where it is lowest; None for
            exact kinds.
    """

    uri: str
    version: int
    rows: int
    distinct: int
    shards: int
    bytes: int
    seconds: float
    kind: str
    recall: float | None


def build(config: BuildConfig) -> BuildReport:
    """Build a version of the index at `config.output` from the code set at `config.codes`.

    Where the newest version holds exactly these rows already, it is left as it is and reported.

    Raises:
        NotFoundError: there is no code set, or no hasher.
        InputError: an id stands twice; codes of other bits or another hasher than the hasher given, or
            than the newest version of the index. Nothing was written.
        DamagedError: a file of the code set does not match its sha256. Nothing was written.
        ConflictError: another writer committed the same version meanwhile.
    """
    started = time.monotonic()
    code_set = CodeSet.open(config.codes, config.storage_options)
    codes = code_set.manifest
    if config.hasher is not None:
        _check_hasher(config, codes)
    output = Storage(config.output, config.storage_options)
    parent = newest_manifest(output)
    planned = following(
        parent,
        output,
        bits=codes.bits,
        id_type=codes.id_type,
        # A code set without a single file has no schema to take the columns from.
        payload=[dataclasses.asdict(column) for column in codes.payload if codes.files],
        hasher={"uri": config.hasher or codes.hasher.uri, "fingerprint": codes.hasher.fingerprint},
        command=command_line(sys.argv),
    )
    say(
        f"build: {codes.rows:,} codes of {codes.bits} bits in {len(codes.files)} files "
        f"-> {config.shards} shards of {output.uri}, version {planned.version}"
    )
    start_ray()
    planned = dataclasses.replace(planned, kind=_kind(config, code_set))
    entries = _write_shards(code_set, output, config.shards, planned.kind, config.recall)
    if parent is not None and _holds(parent, planned, entries):
        say(f"build: version {parent.version} holds these rows already")
        manifest = parent
    else:
        manifest = commit(output, planned, entries)
    return BuildReport(
        uri=output.uri,
        version=manifest.version,
        rows=manifest.rows,
        distinct=manifest.distinct,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
        seconds=time.monotonic() - started,
        kind=manifest.kind,
        recall=manifest.parameters.get("recall", {}).get("reached"),
    )


def _kind(config: BuildConfig, code_set: CodeSet) -> str:
    """The kind to build, checked where shards are written and not here, where torch may be loaded."""
    import ray

    (chosen,) = _collect([ray.remote(_choose).remote(config, code_set)], lambda _: None)
    if config.kind == "auto":
        say(f"build: kind {chosen.kind}: {chosen.reason}")
    return chosen.kind


def _choose(config: BuildConfig, code_set: CodeSet) -> Choice:
    from distindex.building.sample import sample_of
    from distindex.index.choose import choose
    from distindex.index.structures import check_buildable

    check_buildable(config.kind, config.recall)
    if config.kind != "auto":
        return Choice(config.kind, "as asked for")
    sample = sample_of(code_set, SAMPLE_ROWS)
    return choose(sample.code_UC, sample.distinct_of(code_set.manifest.rows) // config.shards, config.recall)


def _check_hasher(config: BuildConfig, codes: CodeSetManifest) -> None:
    storage = Storage(config.hasher or "", config.storage_options)
    try:
        description = storage.read_json("hasher.json")
    except NotFoundError as error:
        raise NotFoundError(f"{config.hasher}: no hasher here (hasher.json is missing)") from error
    where = storage.full_uri("hasher.json")
    if not isinstance(description, dict) or not {"bits", "fingerprint"} <= description.keys():
        raise DamagedError(f"{where}: names no bits or no fingerprint")
    if description["bits"] != codes.bits:
        raise InputError(
            f"{config.codes}: codes of {codes.bits} bits, but the hasher {config.hasher} makes "
            f"{description['bits']} bits; encode the corpus with this hasher"
        )
    if description["fingerprint"] != codes.hasher.fingerprint:
        raise InputError(
            f"{config.codes}: made by hasher {codes.hasher.fingerprint}, but {config.hasher} is "
            f"{description['fingerprint']}; encode the corpus with this hasher"
        )


def _holds(version: VersionManifest, planned: VersionManifest, entries: Sequence[ShardEntry]) -> bool:
    names = sorted(entry.name for entry in entries if entry.rows)
    return (
        names == sorted(entry.name for entry in version.shards if entry.rows)
        and version.kind == planned.kind
        and version.hasher == planned.hasher
        and version.payload == planned.payload
    )


def _write_shards(code_set: CodeSet, output: Storage, shards: int, kind: str, recall: float) -> list[ShardEntry]:
    import ray

    codes = code_set.manifest
    groups = max(1, -(-codes.rows // _IDS_PER_GROUP))
    split = ray.remote(_split_file).options(num_returns=1 + shards + groups)
    check = ray.remote(_check_group)
    write = ray.remote(_write_shard)

    # Of each file: its number of rows, then its rows per shard, then its ids per group.
    split_FR: list[Any] = [split.remote(code_set, file, shards, groups) for file in codes.files]
    with Bar("reading codes", codes.rows, "rows") as bar:
        _collect([split_R[0] for split_R in split_FR], bar.advance)
    paths = [file.path for file in codes.files]
    checks = [check.remote(paths, *(split_R[1 + shards + group] for split_R in split_FR)) for group in range(groups)]
    with Bar("checking ids", groups, "groups") as bar:
        found = [twice for twice in _collect(checks, lambda _: bar.advance(1)) if twice]
    if found:
        raise InputError(f"{code_set.storage.uri}: {found[0]}; ids must be unique, nothing was written")
    writes = [
        write.remote(
            output, codes, kind, recall, codes.rows == shard == 0, *(split_R[1 + shard] for split_R in split_FR)
        )
        for shard in range(shards)
    ]
    # Ray frees the rows of a shard as soon as it is written, if nobody else holds on to them.
    del split_FR
    with Bar("writing shards", shards, "shards") as bar:
        entries = _collect(writes, lambda _: bar.advance(1))
    return [entry for entry in entries if entry is not None]


def _collect(references: Sequence[Any], done: Callable[[Any], None]) -> list[Any]:
    """The results of tasks in their order; an error is raised as its task raised it."""
    import ray
    from ray.exceptions import RayTaskError

    position_of = {reference: position for position, reference in enumerate(references)}
    waiting = list(references)
    results: list[Any] = [None] * len(references)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            for reference in ready:
                result = results[position_of[reference]] = ray.get(reference)
                done(result)
    except RayTaskError as error:
        for reference in waiting:
            ray.cancel(reference)
        if isinstance(error.cause, DistindexError):
            raise error.cause from None
        raise
    return results


def _split_file(code_set: CodeSet, file: OutputFile, shards: int, groups: int) -> tuple[Any, ...]:
    """How many rows the file has, its rows per shard as tables, and its ids per group."""
    table = _read(code_set, file)
    shard_N = shard_of_codes(code_rows(table.column(CODE_COLUMN)), shards)
    id_N = one_chunk(table.column(ID_COLUMN))
    group_N = group_of_ids(id_N, groups)
    tables = [table.take(_rows_of(shard_N, shard)) if shards > 1 else table for shard in range(shards)]
    ids = [id_N.take(_rows_of(group_N, group)) if groups > 1 else id_N for group in range(groups)]
    return (table.num_rows, *tables, *ids)


def _rows_of(part_N: npt.NDArray[np.int64], part: int) -> pa.Array:
    return pa.array(np.flatnonzero(part_N == part))


def _read(code_set: CodeSet, file: OutputFile) -> pa.Table:
    codes = code_set.manifest
    payload = [column.name for column in codes.payload]
    table = code_set.read(file, verify=True)
    where = code_set.storage.full_uri(file.path)
    expected = {ID_COLUMN: codes.id_type, CODE_COLUMN: f"fixed_size_binary[{codes.bits // 8}]"}
    for name in [ID_COLUMN, CODE_COLUMN, *payload]:
        if name not in table.column_names:
            raise DamagedError(f"{where}: has no column {name!r}, which the manifest names; encode again")
    for name, kind in expected.items():
        column = table.column(name)
        if str(column.type) != kind or column.null_count:
            raise DamagedError(f"{where}: column {name!r} is not {kind} without nulls; encode again")
    return table.select([ID_COLUMN, CODE_COLUMN, *payload])


def _check_group(paths: Sequence[str], *parts: pa.Array) -> str | None:
    """Says which id stands twice and where, None if none does."""
    if not parts:
        return None
    id_N = pa.concat_arrays(parts)
    rows = duplicate_rows(id_N)
    if rows is None:
        return None
    file_of_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    one, other = (paths[file_of_N[row]] for row in rows)
    places = f"twice in {one}" if one == other else f"in {one} and in {other}"
    return f"id {id_N[rows[0]].as_py()!r} stands {places}"


def _write_shard(
    output: Storage, codes: CodeSetManifest, kind: str, recall: float, keep_empty: bool, *parts: pa.Table
) -> ShardEntry | None:
    # Here and not above: the driver may have torch loaded, whose OpenMP runtime faiss does not get on with.
    from distindex.index.shard import write_shard

    tables = parts or (_no_rows(codes),)
    table = pa.concat_tables(tables)
    if not table.num_rows and not keep_empty:
        return None
    code_NC = code_rows(table.column(CODE_COLUMN))
    payload = table.drop_columns([ID_COLUMN, CODE_COLUMN])
    return write_shard(output, code_NC, one_chunk(table.column(ID_COLUMN)), payload, kind, recall)


def _no_rows(codes: CodeSetManifest) -> pa.Table:
    id_type = pa.int64() if codes.id_type == "int64" else pa.string()
    return pa.schema([(ID_COLUMN, id_type), (CODE_COLUMN, pa.binary(codes.bits // 8))]).empty_table()
