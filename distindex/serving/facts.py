"""What can be asked beside searches, as JSON: the codes of queries, and figures about the index and the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from distindex.codes import CodeArray, to_hex
from distindex.index.statistics import ShardStatistics
from distindex.serving.request import Logits


def codes_to_json(info: Mapping[str, Any], code_QC: CodeArray, logit_QK: Logits | None) -> bytes:
    """`{"version", "bits", "codes", "logits"}` in UTF-8: codes in hexadecimal, logits null where there are none."""
    return orjson.dumps(
        {
            "version": info["version"],
            "bits": info["bits"],
            "codes": to_hex(code_QC),
            "logits": None if logit_QK is None else logit_QK.tolist(),
        }
    )


def statistics_to_json(info: Mapping[str, Any], counts: ShardStatistics, searches: Mapping[str, Any]) -> bytes:
    """`{"version", "bit_balance", "bucket_sizes", "searches"}` in UTF-8.

    Args:
        info: what is served.
        counts: over the codes of all its shards.
        searches: what `activity.figures` says.
    """
    share_K = counts.ones_share()
    sizes = counts.bucket_sizes()
    return orjson.dumps(
        {
            "version": info["version"],
            "bit_balance": None if share_K is None else [round(share, 4) for share in share_K.tolist()],
            "bucket_sizes": [{"fewest": fewest, "most": most, "codes": codes} for fewest, most, codes in sizes],
            "searches": searches,
        }
    )
