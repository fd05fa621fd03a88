"""distindex: learned short binary codes, encoded in bulk, indexed in shards, searched by Hamming distance.

The public Python interface. Submodules are imported at first use: `import distindex` loads neither torch,
faiss nor Ray, and the client over HTTP never does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Hasher": "distindex.hashing",
    "Index": "distindex.index.index",
    "Matches": "distindex.index.matches",
    "connect": "distindex.serving.client",
    "connect_async": "distindex.serving.client",
    "train": "distindex.training",
    "encode": "distindex.encoding",
    "build": "distindex.building",
    "append": "distindex.building",
    "delete": "distindex.building",
    "compact": "distindex.building",
    "roll_back": "distindex.building",
    "list_versions": "distindex.building",
    "collect_garbage": "distindex.building",
    "serve": "distindex.serving.service",
    "evaluate": "distindex.evaluation.run",
    "label": "distindex.rounds",
    "DistindexError": "distindex.errors",
}
__all__ = [
    "DistindexError",
    "Hasher",
    "Index",
    "Matches",
    "__version__",
    "append",
    "build",
    "collect_garbage",
    "compact",
    "connect",
    "connect_async",
    "delete",
    "encode",
    "evaluate",
    "label",
    "list_versions",
    "roll_back",
    "serve",
    "train",
]

if TYPE_CHECKING:
    from distindex.building import append as append
    from distindex.building import build as build
    from distindex.building import collect_garbage as collect_garbage
    from distindex.building import compact as compact
    from distindex.building import delete as delete
    from distindex.building import list_versions as list_versions
    from distindex.building import roll_back as roll_back
    from distindex.encoding import encode as encode
    from distindex.errors import DistindexError as DistindexError
    from distindex.evaluation.run import evaluate as evaluate
    from distindex.hashing import Hasher as Hasher
    from distindex.index.index import Index as Index
    from distindex.index.matches import Matches as Matches
    from distindex.rounds import label as label
    from distindex.serving.client import connect as connect
    from distindex.serving.client import connect_async as connect_async
    from distindex.serving.service import serve as serve
    from distindex.training import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'distindex' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
