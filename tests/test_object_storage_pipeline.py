"""The whole path on object storage: nothing that a command reads or writes is on this machine's disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex import connect
from distindex.serve_config import ServeConfig
from distindex.serving.service import serve
from distindex.storage import Storage
from tests.oracle import search
from tests.pipeline import run, table_of
from tests.serving_backend import free_port

ROOT = "s3://bucket/pipeline"
ROWS, MORE, WIDTH, BITS = 240, 60, 8, 16


def write(options: dict[str, Any], path: str, table: pa.Table) -> None:
    with Storage(ROOT, options).open_output(path) as stream:
        pq.write_table(table, stream)


@pytest.mark.slow
def test_every_command_against_s3_paths(
    s3_options: dict[str, Any],
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    class_N = np.arange(ROWS + MORE) % 3
    vector_NV = 3 * random.standard_normal((3, WIDTH))[class_N] + random.standard_normal((ROWS + MORE, WIDTH))
    label_N = [f"class {number}" for number in class_N]
    half = ROWS // 2
    write(s3_options, "corpus/0.parquet", table_of(vector_NV[:half], label_N[:half]))
    write(s3_options, "corpus/1.parquet", table_of(vector_NV[half:ROWS], label_N[half:ROWS], half))
    write(s3_options, "more/0.parquet", table_of(vector_NV[ROWS:], label_N[ROWS:], ROWS))
    Storage(ROOT, s3_options).write_bytes("labeled.txt", "\n".join(map(str, range(0, ROWS, 2))).encode())
    options = json.dumps(s3_options)

    def corpus(name: str, prefix: str = "--corpus") -> list[str]:
        given = {"uri": f"{ROOT}/{name}", "feature_column": "vector", "label_column": "label"}
        return [*(f"{prefix}.{key}={value}" for key, value in given.items()), f"{prefix}.storage_options={options}"]

    def command(verb: str, *arguments: str) -> Any:
        return run(verb, *arguments, "--json").json

    common = [f"--storage_options={options}"]
    encode = [f"--hasher={ROOT}/hasher", "--corpus.payload_columns=[title]", "--workers.count=1", "--workers.cpus=1"]

    trained = command(
        "train",
        *corpus("corpus"),
        f"--labels.ids={ROOT}/labeled.txt",
        f"--output={ROOT}/hasher",
        f"--bits={BITS}",
        "--method.hidden=[16]",
        "--optimization.epochs=2",
        "--workers.count=1",
        "--workers.cpus=1",
    )
    assert (trained["rows"], trained["labeled"], trained["epochs"]) == (ROWS, ROWS // 2, 2)
    assert command("encode", *corpus("corpus"), *encode, f"--output={ROOT}/codes")["rows"] == ROWS
    built = command("build", f"--codes={ROOT}/codes", f"--hasher={ROOT}/hasher", f"--output={ROOT}/index", *common)
    assert (built["rows"], built["version"]) == (ROWS, 1)
    command("encode", *corpus("more"), *encode, f"--output={ROOT}/more-codes")
    appended = command("append", f"--codes={ROOT}/more-codes", f"--index={ROOT}/index", *common)
    assert (appended["rows"], appended["version"]) == (ROWS + MORE, 2)
    assert command("inspect", f"--uri={ROOT}/index", *common)["rows"] == ROWS + MORE

    vectors = vector_NV[[0, 1, ROWS]]
    queried = command(
        "query", f"--target={ROOT}/index", f"--vectors={json.dumps(vectors.tolist())}", "--columns=[title]", *common
    )
    with connect(f"{ROOT}/index", storage_options=s3_options) as local:
        everything = local.search(vectors=vector_NV, k=1)
        expected = local.search(vectors=vectors, k=10)
    # The codes as the hasher in the bucket gives them, against all rows: an oracle without the index.
    from distindex import Hasher

    column = pa.FixedSizeListArray.from_arrays(pa.array(vector_NV.astype(np.float32).ravel()), WIDTH)
    code_NC = Hasher.load(f"{ROOT}/hasher", s3_options).encode(column)
    oracle = search(code_NC[[0, 1, ROWS]], code_NC, list(range(ROWS + MORE)), k=10)
    assert [[(match.distance, match.code, match.id) for match in answers] for answers in expected] == oracle
    assert all(answers[0].distance == 0 for answers in everything)
    assert [[match["id"] for match in answers] for answers in queried["results"]] == [
        [match.id for match in answers] for answers in expected
    ]

    with (
        serve(ServeConfig(f"{ROOT}/index", port=free_port(), storage_options=s3_options), blocking=False) as service,
        connect(service.url) as remote,
    ):
        served = remote.search(vectors=vectors, k=10, columns=["title"])
    assert served.version == 2
    assert [[match.id for match in answers] for answers in served] == [
        [match.id for match in answers] for answers in expected
    ]
    evaluated = command(
        "evaluate",
        f"--hasher={ROOT}/hasher",
        *corpus("corpus", "--database"),
        *corpus("more", "--queries"),
        f"--output={ROOT}/evaluation",
        "--k=[10]",
    )
    assert evaluated["uri"] == f"{ROOT}/evaluation"
    assert "metrics.json" in Storage(f"{ROOT}/evaluation", s3_options).names()

    # Copies in the cache are all that may be on the disk.
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
