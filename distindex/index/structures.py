"""Making and opening the search structure of a shard, whatever its kind: all have `SearchStructure`'s methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distindex.index.approximate import Approximate
from distindex.index.flat import Flat
from distindex.index.gpu import GpuFlat, check_gpu
from distindex.index.kinds import CAPABILITIES, check_recall
from distindex.index.structure import SearchStructure

# What an approximate kind keeps beside the codes.
STRUCTURE_FILE = "structure.faiss"


def check_buildable(kind: str, recall: float) -> None:
    """Refuse what cannot be built on this machine, before any work.

    Raises:
        InputError: no such kind, a recall out of range, or no GPU for a kind that needs one.
    """
    check_recall(kind, recall)
    if kind == "gpu-flat":
        check_gpu()


def build_approximate(kind: str, flat: Flat, recall: float) -> Approximate | None:
    """What a shard of this kind stores beside its codes; None for exact kinds, which store nothing.

    Raises:
        InputError: no setting of the kind reaches the recall.
    """
    return None if CAPABILITIES[kind].exact else Approximate.build(kind, flat, recall)


def open_structure(
    kind: str, flat: Flat, parameters: Mapping[str, Any], paths: Mapping[str, Path]
) -> SearchStructure:
    """The structure that a shard is searched with.

    Args:
        kind: of the shard.
        flat: its codes.
        parameters: of the kind, as they were stored.
        paths: its files by name.

    Raises:
        DamagedError: a file holds something else.
        InputError: the kind needs a GPU, and there is none.
    """
    if kind == "gpu-flat":
        return GpuFlat(flat)
    if CAPABILITIES[kind].exact:
        flat.prepare()
        return flat
    return Approximate.open(paths[STRUCTURE_FILE], kind, flat, parameters)
