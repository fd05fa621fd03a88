"""`distindex query`: one search from the command line."""

from __future__ import annotations

import re

from distindex.errors import InputError
from distindex.index.matches import Matches
from distindex.serve_config import QueryConfig
from distindex.serving.client import connect
from distindex.serving.request import RequestError
from distindex.storage import Storage


def query(config: QueryConfig) -> Matches:
    """Search a service or an index on disk.

    Raises:
        InputError: there is no such index or image, or the queries do not fit it.
        UnavailableError: the service does not answer.
    """
    with connect(config.target, config.hasher, storage_options=config.storage_options) as searcher:
        try:
            return searcher.search(
                config.codes or None,
                vectors=config.vectors or None,
                texts=config.texts or None,
                images=[Storage(path, config.storage_options).read_bytes("") for path in config.images] or None,
                k=config.k,
                radius=config.radius,
                limit=config.limit,
                columns=config.columns,
                logits=config.logits or None,
                rescore=config.rescore,
                candidates=config.candidates,
                filter=config.filter,
                items=config.items or None,
            )
        except RequestError as error:
            place = re.fullmatch(r"images\[(\d+)\]", error.field or "")
            if place is None:
                raise
            raise InputError(f"{config.images[int(place[1])]}: {error}") from error
