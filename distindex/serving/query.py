"""`distindex query`: one search from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from distindex.config import QueryConfig
from distindex.errors import InputError
from distindex.index.matches import Matches
from distindex.serving.client import Searcher, connect
from distindex.serving.inspection import check_hasher
from distindex.storage import Storage


def query(config: QueryConfig) -> Matches:
    """Search a service or an index on disk.

    Raises:
        InputError: there is no such index or image, or the queries do not fit it.
        UnavailableError: the service does not answer.
    """
    with _searcher(config) as searcher:
        logits = config.logits or None
        return searcher.search(
            config.codes or None,
            vectors=config.vectors or None,
            texts=config.texts or None,
            k=config.k,
            radius=config.radius,
            limit=config.limit,
            columns=config.columns,
            logits=_image_logits(config, searcher.info()) if config.images else logits,
            rescore=config.rescore,
            candidates=config.candidates,
            filter=config.filter,
        )


def _searcher(config: QueryConfig) -> Searcher:
    # Images are encoded here, so that a service may be searched with a hasher of one's own copy.
    return connect(config.target, None if config.images else config.hasher, storage_options=config.storage_options)


def _image_logits(config: QueryConfig, info: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The logits `logit_QK` of the image files."""
    uri = config.hasher or (info["hasher"] or {}).get("uri")
    if not uri:
        raise InputError(f"{config.target}: the index names no hasher; give one with hasher")
    import pyarrow as pa

    from distindex.hashing import Hasher

    hasher = Hasher.load(uri, config.storage_options)
    check_hasher(info, uri, hasher.bits, hasher.fingerprint)
    if hasher.features.kind != "image":
        raise InputError(f"images: the hasher {uri} reads {hasher.features.kind} features, not images")
    column = pa.array([Storage(path, config.storage_options).read_bytes("") for path in config.images], pa.binary())
    bad = hasher.features.bad_rows(column)
    if bad:
        raise InputError(f"{config.images[bad[0][0]]}: {bad[0][1]}")
    return hasher.logits_of(column)
