"""`distindex query`: one search from the command line."""

from __future__ import annotations

from distindex.config import QueryConfig
from distindex.index.matches import Matches
from distindex.serving.client import connect


def query(config: QueryConfig) -> Matches:
    """Search a service or an index on disk.

    Raises:
        InputError: there is no such index, or the queries do not fit it.
        UnavailableError: the service does not answer.
    """
    with connect(config.target, config.hasher) as searcher:
        return searcher.search(
            config.codes or None,
            vectors=config.vectors or None,
            texts=config.texts or None,
            k=config.k,
            radius=config.radius,
            limit=config.limit,
            columns=config.columns,
            logits=config.logits or None,
            rescore=config.rescore,
            candidates=config.candidates,
            filter=config.filter,
        )
