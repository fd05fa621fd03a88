"""Which format a corpus has, and the files that it consists of."""

from __future__ import annotations

from distindex.config import CorpusConfig
from distindex.corpus.files import Described, Format
from distindex.corpus.image_files import IMAGE_FOLDER, WEBDATASET
from distindex.corpus.lance_tables import LANCE
from distindex.corpus.lines import CSV, JSONL
from distindex.corpus.parquet import PARQUET
from distindex.corpus.tables import TABLES
from distindex.errors import InputError
from distindex.listing import FileInfo, list_files
from distindex.storage import Storage

FORMATS = {each.name: each for each in (PARQUET, JSONL, CSV, IMAGE_FOLDER, WEBDATASET, LANCE)}
# What tells a table's directory from one of files.
_MARKS = {"_delta_log": "delta", "metadata": "iceberg", "_versions": "lance"}


def describe(config: CorpusConfig) -> list[Described]:
    """The files of a corpus, each with the types of the columns that the config names.

    Raises:
        NotFoundError: nothing is there, or nothing of a format that can be read.
        InputError: files of several formats, or one that cannot be read.
    """
    table = _table(config) if config.format == "auto" else config.format
    if table == LANCE.name:
        return LANCE.describe(config, [])
    if table in TABLES:
        return PARQUET.describe(config, TABLES[table](config))
    chosen, found = _files(config)
    return chosen.describe(config, found)


def _table(config: CorpusConfig) -> str | None:
    if _is_pattern(config.uri):
        return None
    if config.uri.endswith(".metadata.json"):
        return "iceberg"
    storage = Storage(config.uri, config.storage_options)
    for mark in set(storage.names()) & set(_MARKS):
        if mark != "metadata" or any(name.endswith(".metadata.json") for name in storage.names(mark)):
            return _MARKS[mark]
    return None


def _files(config: CorpusConfig) -> tuple[Format, list[FileInfo]]:
    asked = FORMATS.get(config.format)
    suffixes = asked.suffixes if asked else tuple(suffix for each in FORMATS.values() for suffix in each.suffixes)
    found = list_files(config.uri, suffixes, config.storage_options)
    if asked is None:
        kinds: dict[str, FileInfo] = {}
        for info in found:
            kinds.setdefault(_format_of(info.uri).name, info)
        if len(kinds) > 1:
            raise InputError(
                f"{config.uri}: files of several formats ({', '.join(info.uri for info in kinds.values())}); "
                f"set corpus.format to one of {', '.join(kinds)}, or give a pattern such as *.parquet"
            )
        asked = FORMATS[next(iter(kinds))]
    if asked is IMAGE_FOLDER and (_is_pattern(config.uri) or found[0].uri == Storage(config.uri).location):
        raise InputError(f"{config.uri}: give the directory of the images, whose directories are their labels")
    return asked, found


def _format_of(uri: str) -> Format:
    name = uri.lower()
    # Parquet files are often written without a suffix.
    return next((each for each in FORMATS.values() if name.endswith(each.suffixes)), PARQUET)


def _is_pattern(uri: str) -> bool:
    return any(character in uri for character in "*?[")
