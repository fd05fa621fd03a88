"""Build a version of an index from a code set, and add a code set to an index.

1. One task checks the kind, or chooses it by trying kinds out on a sample.
2. One task per file of the code set cuts its rows by the shard of their code, and its ids into groups, into files
   below `building/` of the index.
3. One task per group looks for ids that stand twice. Where rows are added, one task per shard of the index looks for
   ids that it has already.
4. One task per shard sorts its rows, makes its search structure, and writes them under the name of their content.
5. The version file is created; from then on the version exists.

No task and no driver holds all rows. What was written before a failure is found again, so the same command takes up
from there. The intermediate files go when the work is done, or when the input turns out to be bad.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

from distindex.building.each import on_ray
from distindex.change_config import AppendConfig
from distindex.codeset import CodeSet, CodeSetManifest
from distindex.config import BuildConfig
from distindex.errors import DamagedError, InputError, NotFoundError
from distindex.index.changes import add_shards
from distindex.index.construction import Construction, StoredIds, check_ids, split_code_file, write_parts
from distindex.index.kinds import Choice, parameters
from distindex.index.manifest import (
    ShardEntry,
    VersionManifest,
    check_columns,
    commit,
    following,
    newest_manifest,
    read_manifest,
)
from distindex.progress import say
from distindex.runtime import start_ray
from distindex.settings import command_line
from distindex.storage import Storage

# Rows that `--kind auto` looks at.
SAMPLE_ROWS = 250_000


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


@dataclasses.dataclass(frozen=True)
class AppendReport:
    """What was added.

    Attributes:
        uri: directory of the index.
        version: number of the version that has the rows.
        added: rows that were added.
        replaced: rows of the index that they took the place of.
        rows: rows of the version.
        shards: its shards.
        bytes: size of its files.
        seconds: wall time.
    """

    uri: str
    version: int
    added: int
    replaced: int
    rows: int
    shards: int
    bytes: int
    seconds: float


def build(config: BuildConfig) -> BuildReport:
    """Build a version of the index at `config.output` from the code set at `config.codes`.

    Where the newest version holds exactly these rows already, it is left as it is and reported.

    Raises:
        NotFoundError: there is no code set, or no hasher.
        InputError: an id stands twice; codes of other bits or another hasher than the hasher given, or
            than the newest version of the index; too few shards for the memory; a kind that this machine cannot
            build, or that does not reach the recall. No version was written.
        DamagedError: a file of the code set does not match its sha256. No version was written.
        ConflictError: another writer committed the same version meanwhile.
    """
    started = time.monotonic()
    code_set = CodeSet.open(config.codes, config.storage_options)
    _check_hasher(config.hasher, config.codes, config.storage_options, code_set.manifest)
    output = Storage(config.output, config.storage_options)
    parent = newest_manifest(output)
    planned = _following(parent, output, code_set, config.hasher)
    say(_headline("build", code_set, config.shards, output, planned))
    construction = _construction(output, code_set, config.shards)
    start_ray()
    kind = _kind(config, code_set)
    planned = dataclasses.replace(planned, kind=kind, parameters=parameters(kind, config.recall, ()))
    with construction.cleaned():
        counts = _split(construction, code_set)
        entries = write_parts(construction, counts, kind, config.recall, on_ray)
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
    what = "choosing the kind" if config.kind == "auto" else "checking the kind"
    (chosen,) = on_ray(_choose, config, [code_set], what=what)
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


def append(config: AppendConfig) -> AppendReport:
    """Add the rows of a code set to an index, as new shards of its kind in a new version.

    Where the newest version has these shards already, it is left as it is and reported.

    Raises:
        NotFoundError: there is no index, no code set, or no hasher.
        InputError: an id stands twice, or is in the index already and is not to be replaced; rows that do not fit
            the index: other bits, ids, columns or hasher. No version was written.
        DamagedError: a file of the code set or of the index does not match its sha256. No version was written.
    """
    started = time.monotonic()
    code_set = CodeSet.open(config.codes, config.storage_options)
    _check_hasher(config.hasher, config.codes, config.storage_options, code_set.manifest)
    storage = Storage(config.index, config.storage_options)
    parent = read_manifest(storage)
    planned = _following(parent, storage, code_set, config.hasher)
    if code_set.manifest.files:
        check_columns(parent, storage, planned.payload)
    say(_headline("append", code_set, config.shards, storage, planned))
    construction = _construction(storage, code_set, config.shards)
    start_ray()
    with construction.cleaned():
        counts = _split(construction, code_set)
        manifest, replaced = add_shards(
            storage,
            StoredIds(construction),
            code_set.manifest.rows,
            lambda after, store: write_parts(construction, counts, after.kind, after.recall_target, on_ray, store),
            on_conflict=config.on_conflict,
            command=planned.command,
            each=on_ray,
        )
    return AppendReport(
        uri=storage.uri,
        version=manifest.version,
        added=code_set.manifest.rows,
        replaced=replaced,
        rows=manifest.rows,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
        seconds=time.monotonic() - started,
    )


def _headline(verb: str, code_set: CodeSet, shards: int, storage: Storage, planned: VersionManifest) -> str:
    codes = code_set.manifest
    return (
        f"{verb}: {codes.rows:,} codes of {codes.bits} bits in {len(codes.files)} files "
        f"-> {shards} shards of {storage.uri}, version {planned.version}"
    )


def _following(
    parent: VersionManifest | None, storage: Storage, code_set: CodeSet, hasher: str | None
) -> VersionManifest:
    codes = code_set.manifest
    return following(
        parent,
        storage,
        bits=codes.bits,
        id_type=codes.id_type,
        payload=[{"name": field.name, "type": str(field.type)} for field in code_set.payload_fields()],
        hasher={"uri": hasher or codes.hasher.uri, "fingerprint": codes.hasher.fingerprint},
        command=command_line(sys.argv),
    )


def _construction(storage: Storage, code_set: CodeSet, shards: int) -> Construction:
    codes = code_set.manifest
    fields = code_set.payload_fields()
    return Construction.of(
        storage,
        ["code set", [file.sha256 for file in codes.files]],
        bits=codes.bits,
        id_type=codes.id_type,
        payload=fields,
        sources=[file.path for file in codes.files],
        shards=shards,
        rows_to_check=codes.rows,
    )


def _split(construction: Construction, code_set: CodeSet) -> list[dict[str, Any]]:
    """Split the files of the code set, and check their ids."""
    files = list(enumerate(code_set.manifest.files))
    counts = on_ray(split_code_file, (construction, code_set), files, what="reading codes")
    check_ids(construction, code_set.manifest.rows, code_set.storage.uri, on_ray)
    return counts


def _check_hasher(
    hasher: str | None, codes_uri: str, storage_options: dict[str, Any], codes: CodeSetManifest
) -> None:
    if hasher is None:
        return
    storage = Storage(hasher, storage_options)
    try:
        description = storage.read_json("hasher.json")
    except NotFoundError as error:
        raise NotFoundError(f"{hasher}: no hasher here (hasher.json is missing)") from error
    where = storage.full_uri("hasher.json")
    if not isinstance(description, dict) or not {"bits", "fingerprint"} <= description.keys():
        raise DamagedError(f"{where}: names no bits or no fingerprint")
    if description["bits"] != codes.bits:
        raise InputError(
            f"{codes_uri}: codes of {codes.bits} bits, but the hasher {hasher} makes "
            f"{description['bits']} bits; encode the corpus with this hasher"
        )
    if description["fingerprint"] != codes.hasher.fingerprint:
        raise InputError(
            f"{codes_uri}: made by hasher {codes.hasher.fingerprint}, but {hasher} is "
            f"{description['fingerprint']}; encode the corpus with this hasher"
        )


def _holds(version: VersionManifest, planned: VersionManifest, entries: Sequence[ShardEntry]) -> bool:
    names = sorted(entry.name for entry in entries if entry.rows)
    return (
        names == sorted(entry.name for entry in version.shards if entry.rows)
        and not version.deletions
        and (version.kind, version.recall_target) == (planned.kind, planned.recall_target)
        and version.hasher == planned.hasher
        and version.payload == planned.payload
    )
