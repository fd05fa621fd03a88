"""`distindex inspect`: what a directory holds."""

from __future__ import annotations

from typing import Any

from distindex.codeset import CodeSet
from distindex.corpus.label_store import LabelStore
from distindex.errors import NotFoundError
from distindex.hashing.description import read_description
from distindex.index.manifest import VersionManifest, read_manifest, versions
from distindex.plan_config import InspectConfig
from distindex.storage import Storage


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Facts about the hasher, code set, index or label store at a URI.

    Raises:
        NotFoundError: there is none of them.
    """
    storage = Storage(config.uri, config.storage_options)
    if storage.exists("hasher.json"):
        return _hasher(storage)
    if storage.exists("manifest.json"):
        return _code_set(storage)
    if storage.names("versions"):
        return _index(storage, config.version)
    if storage.exists("label_store.json"):
        return _label_store(storage)
    raise NotFoundError(
        f"{config.uri}: neither a hasher (hasher.json), nor a code set (manifest.json), nor an index (versions/), "
        "nor a label store (label_store.json)"
    )


def _hasher(storage: Storage) -> dict[str, Any]:
    description = read_description(storage)
    metadata = description["metadata"]
    return {
        "kind": "hasher",
        "method": description["method"],
        "bits": description["bits"],
        "fingerprint": description["fingerprint"],
        "features": _features(description["features"]),
        "network": _network(description["network"]),
        "labels": ", ".join(description["label_names"]) or "none",
        "created": description["created"],
        "trained on rows": metadata.get("rows"),
        "labeled rows": metadata.get("labeled"),
        "best epoch": metadata.get("best_epoch"),
        "validation precision": metadata.get("precision"),
    }


def _features(features: dict[str, Any]) -> str:
    if features["kind"] != "image":
        return features["kind"]
    image = features["image"]
    return f"image, {image['height']} x {image['width']} x {image['channels']}"


def _network(network: dict[str, Any]) -> str:
    layers = " -> ".join(str(width) for width in network["layers"])
    channels = network.get("convolutions")
    return f"convolutions of {', '.join(map(str, channels))} channels, then {layers}" if channels else layers


def _code_set(storage: Storage) -> dict[str, Any]:
    manifest = CodeSet.open(storage.uri, storage.options).manifest
    return {
        "kind": "code set",
        "rows": manifest.rows,
        "rejected": manifest.rejected,
        "bits": manifest.bits,
        "hasher": f"{manifest.hasher.fingerprint} ({manifest.hasher.uri})",
        "id type": manifest.id_type,
        "payload": ", ".join(column.name for column in manifest.payload) or "none",
        "files": len(manifest.files),
        "created": manifest.created,
    }


def _label_store(storage: Storage) -> dict[str, Any]:
    store = LabelStore.open(storage.uri, storage.options)
    votes, resolved = store.votes(), store.resolved()
    undecided = sum(conflict.winner is None for conflict in resolved.conflicts)
    return {
        "kind": "label store",
        "id type": str(store.id_type),
        "votes": len(votes),
        "annotators": ", ".join(sorted({vote.annotator for vote in votes})) or "none",
        "labeled items": len(resolved.labels),
        "labels": ", ".join(sorted({label for labels in resolved.labels.values() for label in labels})) or "none",
        "pairs": len(resolved.pairs),
        "conflicts": f"{len(resolved.conflicts)}, {undecided} of them undecided",
        "last vote": votes[-1].time.isoformat(timespec="seconds") if votes else None,
    }


def _index(storage: Storage, version: int) -> dict[str, Any]:
    manifest = read_manifest(storage, version)
    recall = manifest.parameters.get("recall")
    return {
        "kind": f"index, {manifest.kind}",
        **({"recall": _recall(recall)} if recall else {}),
        "version": manifest.version,
        "rows": manifest.rows,
        "deleted rows": manifest.deleted,
        "distinct codes": manifest.distinct,
        "rows per code": round((manifest.rows + manifest.deleted) / max(1, manifest.distinct), 2),
        "bits": manifest.bits,
        "bit balance": _bit_balance(storage, manifest),
        "bytes": manifest.bytes,
        "bytes per row": round(manifest.bytes / max(1, manifest.rows), 2),
        "shards": len(manifest.shards),
        "rows of the shards": _range([shard.rows for shard in manifest.shards]),
        "id type": manifest.id_type,
        "payload": ", ".join(column["name"] for column in manifest.payload) or "none",
        "hasher": f"{manifest.hasher['fingerprint']} ({manifest.hasher['uri']})" if manifest.hasher else "not known",
        "parent": manifest.parent,
        "versions": ", ".join(map(str, versions(storage)[-20:])),
        "created": manifest.created,
        "command": manifest.command,
    }


def _range(rows: list[int]) -> str:
    return f"{min(rows):,}" if len(set(rows)) == 1 else f"{min(rows):,} to {max(rows):,}"


def _bit_balance(storage: Storage, manifest: VersionManifest) -> str:
    """How often the bits are 1, over the rows of the largest shard; rows go to shards by a hash of their code."""
    from distindex.index.statistics import ones_share

    share_K = ones_share(storage, manifest)
    if share_K is None:
        return "no rows"
    constant = int(((share_K == 0) | (share_K == 1)).sum())
    same = f"; {constant} bits are the same in all rows" if constant else ""
    return f"ones in {share_K.min():.2f} to {share_K.max():.2f} of the rows, {share_K.mean():.2f} on average{same}"


def _recall(recall: dict[str, Any]) -> str:
    if recall["reached"] is None:
        return f"{recall['target']} asked for; too few codes to measure it"
    return f"{recall['reached']} of the nearest {recall['k']}, by distance"
