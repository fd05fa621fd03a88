"""The kinds of search structure a shard can have, and what each can do. Needs no faiss.

`CAPABILITIES` is what code asks before it reaches faiss, which answers some questions with -1, with nothing, or by
ending the process; docs/kinds.md shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from distindex.errors import FormatError, InputError

DEFAULT_RECALL = 0.99

Kind = Literal["flat", "ivf", "hash", "multihash", "hnsw", "gpu-flat"]


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a kind can do.

    Attributes:
        exact: the answers are those of a scan over all codes; else some may be missing.
        radius: it can be searched by radius.
        mapped: its memory is that of mapped files and shared by processes; else each process has its own.
        bytes_per_code: memory per distinct code of 64 bits, beside postings and ids; with `flat` 8 of them are
            the codes and the rest tables, which are there only where they make searches faster.
        setting: what trades recall for speed; None where nothing does.
    """

    exact: bool
    radius: bool
    mapped: bool
    bytes_per_code: tuple[int, int]
    setting: str | None


CAPABILITIES: Mapping[str, Capabilities] = {
    "flat": Capabilities(exact=True, radius=True, mapped=True, bytes_per_code=(8, 24), setting=None),
    "ivf": Capabilities(exact=False, radius=True, mapped=False, bytes_per_code=(24, 24), setting="nprobe"),
    "hash": Capabilities(exact=False, radius=True, mapped=False, bytes_per_code=(35, 48), setting="nflip"),
    "multihash": Capabilities(exact=False, radius=True, mapped=False, bytes_per_code=(79, 88), setting="nflip"),
    "hnsw": Capabilities(exact=False, radius=False, mapped=False, bytes_per_code=(146, 171), setting="efSearch"),
    "gpu-flat": Capabilities(exact=True, radius=True, mapped=True, bytes_per_code=(8, 8), setting=None),
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A kind, and why it."""

    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Recall:
    """How much of the exact answer an approximate structure finds, by distance.

    A code found counts if it is as near as the last one of the exact answer: which of several codes at the same
    distance is found says nothing.

    Attributes:
        target: what was asked for.
        reached: mean over the queries.
        k: codes per query.
        queries: held-out codes that were searched for before they were added.
    """

    target: float
    reached: float
    k: int
    queries: int


def check_kind(kind: str, where: str) -> None:
    """Refuse a stored kind that this release does not know.

    Raises:
        FormatError: names the kind and those that are known.
    """
    if kind not in CAPABILITIES:
        raise FormatError(f"{where}: index kind {kind!r} is not known; this release knows {', '.join(CAPABILITIES)}")


def check_recall(kind: str, recall: float) -> None:
    """Refuse a recall that no structure or not this kind can be built for.

    Raises:
        InputError: no such kind, a recall outside (0, 1], or 1 with an approximate kind.
    """
    if kind != "auto" and kind not in CAPABILITIES:
        raise InputError(f"kind: {kind!r} is not known; it can be {', '.join(CAPABILITIES)}")
    if not 0 < recall <= 1:
        raise InputError(f"recall: {recall} must lie in (0, 1]")
    if recall == 1 and kind != "auto" and not CAPABILITIES[kind].exact:
        raise InputError(f"recall: {kind} cannot promise 1; ask for less, or use flat, which is exact")


def refuse(kind: str, what: str, instead: str) -> InputError:
    """The error for what a kind cannot do."""
    return InputError(f"{what}: an index of kind {kind} cannot do that; {instead}")


def parameters(kind: str, target: float, recalls: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The parameters of a version: for approximate kinds, what was asked for and the least that its shards reached.

    Args:
        kind: of all its shards.
        target: recall that they were built for.
        recalls: what each of them reached; None for those with too few codes to measure it.
    """
    if CAPABILITIES[kind].exact:
        return {}
    known = [recall for recall in recalls if recall]
    return {
        "recall": {
            "target": target,
            "reached": min((recall["reached"] for recall in known), default=None),
            "k": known[0]["k"] if known else None,
            "queries": sum(recall["queries"] for recall in known),
        }
    }
