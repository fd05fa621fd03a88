"""The command line in this process, and one run of its six commands."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distindex import cli

ROWS, WIDTH, BITS, EPOCHS = 240, 8, 16, 3


class Ran(NamedTuple):
    """What one command gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, "with --json the result is one line"
        assert not self.err, "with --json nothing but the result is printed"
        return json.loads(self.out)


def run(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


def tree_of(root: Path) -> dict[str, str]:
    """Everything below a directory, files with the hash of their content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in root.rglob("*")
    }


@dataclasses.dataclass
class World:
    """A corpus of three clusters on disk, and what the commands made of it."""

    root: Path
    vector_NV: np.ndarray
    results: dict[str, Any]

    def path(self, name: str) -> Path:
        return self.root / name

    def corpus(self, name: str = "corpus", prefix: str = "--corpus", label: bool = False) -> list[str]:
        given = [f"{prefix}.uri={self.path(name)}", f"{prefix}.feature_column=vector"]
        return [*given, f"{prefix}.label_column=label"] if label else given


def table_of(vector_NV: np.ndarray, label_N: Sequence[str | None], first: int = 0) -> pa.Table:
    ids = pa.array(range(first, first + len(vector_NV)), pa.int64())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector_NV.astype(np.float32).ravel()), vector_NV.shape[1])
    payload = pa.array([f"item {row}" for row in range(len(vector_NV))])
    return pa.table({"id": ids, "vector": vectors, "label": pa.array(label_N, pa.string()), "title": payload})


def write_parts(directory: Path, *tables: pa.Table) -> None:
    directory.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, directory / f"{number}.parquet")


def pipeline(root: Path) -> World:
    """The six commands, each once, with --json; needs a Ray.

    Args:
        root: an empty directory for what they read and make.
    """
    random = np.random.default_rng(0)
    class_N = np.arange(ROWS) % 3
    vector_NV = 3 * random.standard_normal((3, WIDTH))[class_N] + random.standard_normal((ROWS, WIDTH))
    label_N = [f"class {number}" for number in class_N]
    half = ROWS // 2
    write_parts(
        root / "corpus",
        table_of(vector_NV[:half], label_N[:half]),
        table_of(vector_NV[half:], label_N[half:], half),
    )
    made = World(root, vector_NV, {})
    settings = {
        "corpus": {"uri": str(root / "corpus"), "feature_column": "vector", "label_column": "label"},
        "output": str(root / "hasher"),
        "bits": BITS,
        "labels": {"fraction": 0.5},
        "method": {"hidden": [32]},
        "optimization": {"epochs": 50, "batch_size": 60},
        "workers": {"count": 1, "cpus": 1},
    }
    # JSON is YAML.
    (root / "train.yaml").write_text(json.dumps(settings))
    commands: dict[str, list[Any]] = {
        "train": ["--config", root / "train.yaml", f"--optimization.epochs={EPOCHS}"],
        "encode": [
            *made.corpus(),
            "--corpus.payload_columns=[title]",
            f"--hasher={root / 'hasher'}",
            f"--output={root / 'codes'}",
        ],
        "build": [f"--codes={root / 'codes'}", f"--hasher={root / 'hasher'}", f"--output={root / 'index'}"],
        "query": [
            f"--target={root / 'index'}",
            f"--vectors={json.dumps(vector_NV[:3].tolist())}",
            "--k=7",
            "--columns=[title]",
        ],
        "evaluate": [
            f"--hasher={root / 'hasher'}",
            *made.corpus(prefix="--database", label=True),
            *made.corpus(prefix="--queries", label=True),
            f"--output={root / 'evaluation'}",
            "--k=[10]",
        ],
        "inspect": [f"--uri={root / 'index'}"],
    }
    for verb, arguments in commands.items():
        made.results[verb] = (arguments, run(verb, *arguments, "--json").json)
    return made
