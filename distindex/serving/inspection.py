"""What an index version is, in the words of `info()` and /v1/index, and whether a hasher belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distindex.errors import InputError
from distindex.index.manifest import VersionManifest


def describe(uri: str, manifest: VersionManifest) -> dict[str, Any]:
    """One version of an index as JSON: shards is their number, payload names its columns with their types."""
    return {
        "index": uri,
        "version": manifest.version,
        "rows": manifest.rows,
        "distinct": manifest.distinct,
        "bits": manifest.bits,
        "kind": manifest.kind,
        "shards": len(manifest.shards),
        "id_type": manifest.id_type,
        "payload": [dict(column) for column in manifest.payload],
        "hasher": dict(manifest.hasher) if manifest.hasher else None,
        "created": manifest.created,
    }


def check_hasher(info: Mapping[str, Any], hasher_uri: str, bits: int, fingerprint: str) -> None:
    """Refuse a hasher whose codes cannot be compared with those of the index.

    Raises:
        InputError: the length of the codes or the fingerprint differs.
    """
    where = f"{info['index']}: version {info['version']}"
    if bits != info["bits"]:
        raise InputError(f"{where} has codes of {info['bits']} bits, but the hasher {hasher_uri} makes {bits}")
    expected = (info["hasher"] or {}).get("fingerprint")
    if expected and fingerprint != expected:
        raise InputError(
            f"{where} was made by hasher {expected}, but {hasher_uri} is {fingerprint}: "
            "give the hasher that encoded this index"
        )
