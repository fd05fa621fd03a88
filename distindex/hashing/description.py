"""What `hasher.json` says of a hasher; read without torch, which only its weights need."""

from __future__ import annotations

from typing import Any

from distindex.errors import DamagedError, FormatError, NotFoundError
from distindex.settings import fingerprint
from distindex.storage import Storage

FORMAT_VERSION = 1
_IDENTITY = (
    "format_version",
    "kind",
    "method",
    "bits",
    "feature_column",
    "features",
    "network",
    "label_names",
    "files",
)


def read_description(storage: Storage) -> dict[str, Any]:
    """The content of `hasher.json`, checked for its format version and against its fingerprint.

    Raises:
        NotFoundError: there is no hasher in this directory.
        FormatError: its format is not known to this release.
        DamagedError: what it says is not what was written.
    """
    try:
        description = storage.read_json("hasher.json")
    except NotFoundError as error:
        raise NotFoundError(f"{storage.uri}: no hasher here (hasher.json is missing); train one first") from error
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(f"{storage.uri}: hasher of format {version}; this release reads format {FORMAT_VERSION}")
    identity = {name: description.get(name) for name in _IDENTITY}
    if fingerprint(identity) != description.get("fingerprint") or "metadata" not in description:
        raise DamagedError(f"{storage.full_uri('hasher.json')}: does not match its fingerprint; the file is damaged")
    return description
