"""Images that are files: directories named after their labels, and WebDataset shards (tar archives).

Both have the columns `id`, `image` and `label`: the directory's name, or what a shard's `.cls` member holds. A shard
has `text` (`.txt`) and `json` (`.json`) too. What a sample lacks is null.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import pyarrow as pa

from distindex.config import CorpusConfig
from distindex.corpus.files import CorpusFile, Described, Format, RowGroups, errors_named, select
from distindex.errors import DamagedError, InputError
from distindex.listing import FileInfo, list_files
from distindex.settings import fingerprint
from distindex.storage import Storage

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Images at once in memory, and in a piece that can be read alone.
IMAGES_AT_ONCE = 256
_GROUP_IMAGES = 4096
_THREADS = 16

FOLDER_SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.string())])
SHARD_SCHEMA = pa.schema([*FOLDER_SCHEMA, ("text", pa.string()), ("json", pa.string())])
_MEMBERS = {
    **{suffix.removeprefix("."): "image" for suffix in SUFFIXES},
    "cls": "label",
    "txt": "text",
    "json": "json",
}


# Directories


def _describe_folder(config: CorpusConfig, found: Sequence[FileInfo]) -> list[Described]:
    schema = select(FOLDER_SCHEMA, config, config.uri)
    directories: dict[str, list[FileInfo]] = {}
    for info in found:
        directories.setdefault(info.uri.rpartition("/")[0], []).append(info)
    return [(_directory(uri, infos), schema) for uri, infos in sorted(directories.items())]


def _directory(uri: str, infos: Sequence[FileInfo]) -> CorpusFile:
    pieces = [infos[first : first + _GROUP_IMAGES] for first in range(0, len(infos), _GROUP_IMAGES)]
    sizes = [sum(info.size for info in piece) for piece in pieces]
    tag = fingerprint([[info.uri, info.size, info.etag] for info in infos])
    rows = tuple(len(piece) for piece in pieces)
    return CorpusFile(uri, sum(sizes), tag, len(infos), len(pieces), rows, tuple(sizes), IMAGE_FOLDER.name)


def _read_folder(
    config: CorpusConfig, file: CorpusFile, schema: pa.Schema, batch_rows: int, groups: RowGroups | None
) -> Iterator[pa.Table]:
    storage = Storage(file.uri, config.storage_options)
    inside = file.uri.removeprefix(Storage(config.uri).location).strip("/")
    infos = [info for info in list_files(file.uri, SUFFIXES, config.storage_options) if _parent(info) == file.uri]
    if _directory(file.uri, infos).etag != file.etag:
        raise DamagedError(f"{file.uri}: the images have changed since the job began; start again")
    first, rows = (groups.first_row, groups.rows) if groups else (0, file.rows)
    size = min(batch_rows, IMAGES_AT_ONCE)
    label = inside.partition("/")[0] or None

    def read(info: FileInfo) -> bytes:
        return storage.read_bytes(_name(info), info.size)

    with ThreadPoolExecutor(_THREADS) as pool, errors_named(file.uri, IMAGE_FOLDER.title):
        for start in range(first, first + rows, size):
            chosen = infos[start : min(start + size, first + rows)]
            columns = {
                "id": [f"{inside}/{_name(info)}" if inside else _name(info) for info in chosen],
                "image": list(pool.map(read, chosen)) if "image" in schema.names else [None] * len(chosen),
                "label": [label] * len(chosen),
            }
            yield pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema})


def _parent(info: FileInfo) -> str:
    return info.uri.rpartition("/")[0]


def _name(info: FileInfo) -> str:
    return info.uri.rpartition("/")[2]


# WebDataset shards


def _describe_shards(config: CorpusConfig, found: Sequence[FileInfo]) -> list[Described]:
    schema = select(SHARD_SCHEMA, config, config.uri)

    def describe(info: FileInfo) -> Described:
        with errors_named(info.uri, WEBDATASET.title), _open(info.uri, config) as stream:
            # A tar archive has no table of contents: each member's head says where the next one is.
            rows = sum(1 for _ in _samples(stream, info.uri, set()))
        return CorpusFile(info.uri, info.size, info.etag, rows, 1, (rows,), (info.size,), WEBDATASET.name), schema

    with ThreadPoolExecutor(min(_THREADS, len(found))) as pool:
        return list(pool.map(describe, found))


def _open(uri: str, config: CorpusConfig) -> BinaryIO:
    return Storage(uri, config.storage_options).open_input("")


def _samples(stream: BinaryIO, uri: str, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Consecutive members whose names are equal up to the first dot behind the last slash are one sample."""
    sample: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                directory, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                key = f"{directory}/{stem}" if directory else stem
                if sample and sample["id"] != key:
                    yield sample
                    sample = {}
                sample.setdefault("id", key)
                column = _MEMBERS.get(extension.lower())
                if column in wanted:
                    content = archive.extractfile(member)
                    assert content is not None, "it is a file"
                    sample[column] = _value(column, content.read(), f"{uri}: {member.name}")
                # tarfile would keep every member's head.
                archive.members.clear()  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise InputError(f"{uri}: cannot be read as a tar archive ({error})") from error
    if sample:
        yield sample


def _value(column: str, content: bytes, where: str) -> bytes | str:
    if column == "image":
        return content
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text in UTF-8 ({error})") from error
    return text.strip() if column == "label" else text


def _read_shard(
    config: CorpusConfig, file: CorpusFile, schema: pa.Schema, batch_rows: int, groups: RowGroups | None
) -> Iterator[pa.Table]:
    size = min(batch_rows, IMAGES_AT_ONCE)
    waiting: list[dict[str, Any]] = []
    with errors_named(file.uri, WEBDATASET.title), _open(file.uri, config) as stream:
        for sample in _samples(stream, file.uri, set(schema.names)):
            waiting.append(sample)
            if len(waiting) == size:
                yield pa.Table.from_pylist(waiting, schema)
                waiting = []
    if waiting:
        yield pa.Table.from_pylist(waiting, schema)


IMAGE_FOLDER = Format("image-folder", "images", SUFFIXES, _describe_folder, _read_folder)
WEBDATASET = Format("webdataset", "a WebDataset shard", (".tar",), _describe_shards, _read_shard)
