"""Real data that every installation has: handwritten digits, and the documentation of installed packages."""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from distindex.storage import Storage

T = TypeVar("T")
DOCUMENTED_PACKAGES = ("matplotlib", "numpy", "pandas", "ray", "scipy", "sklearn", "torch")
_LEAST_WORDS = 25
_MOST_PER_PACKAGE = 800
_MOST_FILES = 120
_QUERY_SHARE = 0.2


def write_digits(storage: Storage) -> None:
    """1,797 handwritten digits of 8 x 8 pixels (UCI, with scikit-learn): `corpus.parquet`, `queries.parquet`."""
    pixel_NV, digit_N = load_digits(return_X_y=True)
    image_NV = np.asarray(pixel_NV, np.float32)
    table = pa.table(
        {
            "pixels": pa.FixedSizeListArray.from_arrays(image_NV.ravel(), image_NV.shape[1]),
            "label": pa.array([str(digit) for digit in digit_N]),
        }
    )
    _write_split(storage, table)


def write_documentation(storage: Storage) -> None:
    """Docstrings of installed packages, each labeled with its package: `corpus.parquet`, `queries.parquet`."""
    names, texts, labels = [], [], []
    for package in DOCUMENTED_PACKAGES:
        for name, text in _docstrings(package):
            names.append(name)
            texts.append(text)
            labels.append(package)
    _write_split(storage, pa.table({"text": texts, "label": labels, "name": names}))


def _write_split(storage: Storage, table: pa.Table) -> None:
    # Shuffled before the ids are given: ties are ordered by id, which must not tell the label.
    table = table.take(np.random.default_rng(1).permutation(table.num_rows))
    table = table.add_column(0, "id", pa.array(range(table.num_rows), pa.int64()))
    queries = int(table.num_rows * _QUERY_SHARE)
    for name, part in (("queries", table.slice(0, queries)), ("corpus", table.slice(queries))):
        with storage.open_output(f"{name}.parquet") as stream:
            pq.write_table(part, stream, compression="zstd")


def _docstrings(package: str) -> list[tuple[str, str]]:
    """`(name, text)` of a package's documented functions and classes; read from source, nothing is imported.

    The first lines are taken without the package's own name, which would give the label away.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    found: dict[str, str] = {}
    paths = [path for path in sorted(root.rglob("*.py")) if not {"tests", "test", "testing"} & set(path.parts)]
    for path in _evenly(paths, _MOST_FILES):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                words = text.replace(package, " ").split()
                if len(words) >= _LEAST_WORDS:
                    found.setdefault(f"{module}.{node.name}", " ".join(words[:120]))
    distinct = {text: name for name, text in sorted(found.items())}
    return [(distinct[text], text) for text in _evenly(sorted(distinct), _MOST_PER_PACKAGE)]


def _evenly(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, from the whole range rather than the start of the alphabet."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).astype(int)]
