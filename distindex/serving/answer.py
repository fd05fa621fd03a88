"""Matches on the wire: JSON for people and any language, an Arrow stream for the client."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from distindex.index.matches import Matches

ARROW_STREAM = "application/vnd.apache.arrow.stream"


def to_json(matches: Matches, bits: int) -> bytes:
    """`{"version", "bits", "results": [[{"id", "distance", "code", "payload"}]], "missing_shards"}` in UTF-8.

    Answers that were rescored have a "score" too.
    Codes are hexadecimal. int64 ids are JSON integers, beyond 2^53 too: readers that keep numbers as doubles
    (JavaScript) round those.
    """
    ids = matches.id_M.to_pylist()
    distances = matches.distance_M.tolist()
    size = bits // 8
    text = matches.code_MC.tobytes().hex()
    codes = [text[start : start + 2 * size] for start in range(0, len(text), 2 * size)]
    payload = [_plain(row) for row in matches.payload.to_pylist()] if matches.payload is not None else [{}] * len(ids)
    answers = [
        {"id": item, "distance": distance, "code": code, "payload": row}
        for item, distance, code, row in zip(ids, distances, codes, payload, strict=True)
    ]
    if matches.score_M is not None:
        answers = [found | {"score": score} for found, score in zip(answers, matches.score_M.tolist(), strict=True)]
    offsets = matches.offset_Q1.tolist()
    answer = {
        "version": matches.version,
        "bits": bits,
        "results": [answers[start:stop] for start, stop in itertools.pairwise(offsets)],
        "missing_shards": list(matches.missing_shards),
    }
    return orjson.dumps(answer)


def item_to_json(matches: Matches) -> bytes:
    """`{"version", "id", "code", "payload"}` of the only answer, in UTF-8, as `to_json` writes them."""
    payload = matches.payload.to_pylist()[0] if matches.payload is not None else {}
    item = {
        "version": matches.version,
        "id": matches.id_M[0].as_py(),
        "code": matches.code_MC.tobytes().hex(),
        "payload": _plain(payload),
    }
    return orjson.dumps(item)


def _plain(value: Any) -> Any:
    """A payload value as JSON knows it: times in ISO 8601, bytes in base64, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def to_arrow(matches: Matches) -> bytes:
    """The answers' table as an Arrow IPC stream: exact types, no text in between."""
    return stream_of(matches.to_table())


def stream_of(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_arrow(data: bytes) -> Matches:
    """The inverse of `to_arrow`."""
    return Matches.from_table(pa.ipc.open_stream(data).read_all())
