"""Versions of an index, with Ray over index/: built from a code set, and changed."""

from distindex.building.build import AppendReport, BuildReport, append, build
from distindex.building.change import (
    CompactReport,
    DeleteReport,
    GarbageReport,
    RollbackReport,
    VersionReport,
    collect_garbage,
    compact,
    delete,
    list_versions,
    roll_back,
)

__all__ = [
    "AppendReport",
    "BuildReport",
    "CompactReport",
    "DeleteReport",
    "GarbageReport",
    "RollbackReport",
    "VersionReport",
    "append",
    "build",
    "collect_garbage",
    "compact",
    "delete",
    "list_versions",
    "roll_back",
]
