"""Encoding killed for real, and encoding to object storage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.encode_kills import processes_below
from distindex.codeset import CodeSet
from distindex.config import CorpusConfig, EncodeConfig, FeaturesConfig, WorkersConfig
from distindex.corpus.features import fit_features
from distindex.encoding import encode, lease
from distindex.errors import ConflictError, InputError
from distindex.hashing.classic import fit_lsh
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage
from tests.object_storage import FaultyProxy

FILES, ROWS, WIDTH, BITS = 12, 2000, 32, 64

SCRIPT = """
import sys
from distindex.config import CorpusConfig, EncodeConfig, WorkersConfig
from distindex.encoding import encode
corpus = CorpusConfig(sys.argv[1], "vector", storage_options={})
encode(EncodeConfig(corpus, sys.argv[2], sys.argv[3], batch_rows=2, workers=WorkersConfig(count=1, cpus=1)))
"""


def write_corpus(storage: Storage, files: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(files):
        x_NV = generator.standard_normal((ROWS, WIDTH)).astype(np.float32)
        vector = pa.FixedSizeListArray.from_arrays(pa.array(x_NV.ravel()), WIDTH)
        table = pa.table({"id": np.arange(ROWS) + number * ROWS, "vector": vector})
        with storage.open_output(f"{number:02d}.parquet") as stream:
            pq.write_table(table, stream)


def write_hasher(uri: str, options: dict[str, Any] | None = None) -> None:
    column = pa.array(list(np.random.default_rng(1).standard_normal((100, WIDTH))))
    features = fit_features(FeaturesConfig(), "dense", [column])
    fit_lsh(features, features.transform(column), "vector", BITS).save(uri, options)


class Whole(NamedTuple):
    """A corpus, a hasher, and the code set of a run that nobody disturbed."""

    corpus: str
    hasher: str
    output: Path

    def config(self, output: Path, batch_rows: int) -> EncodeConfig:
        workers = WorkersConfig(count=2, cpus=1)
        return EncodeConfig(CorpusConfig(self.corpus, "vector"), self.hasher, str(output), batch_rows, workers)

    def check_same(self, output: Path) -> None:
        """Every file but the report, and the manifest with its times, is byte for byte the same."""
        names = {path.name for path in output.iterdir()}
        assert names == {path.name for path in self.output.iterdir()}
        for name in names - {"manifest.json", "report.json"}:
            assert (output / name).read_bytes() == (self.output / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    made = Whole(str(root / "corpus"), str(root / "hasher"), root / "codes")
    write_corpus(Storage(made.corpus), FILES)
    write_hasher(made.hasher)
    report = encode(made.config(made.output, 16))
    assert (report.rows, report.reused) == (FILES * ROWS, 0)
    return made


@pytest.mark.slow
def test_sigkill_and_again_gives_the_same_bytes(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"
    arguments = [sys.executable, "-c", SCRIPT, whole.corpus, whole.hasher, str(killed)]
    # Its own session, so that its embedded Ray dies with it.
    process = subprocess.Popen(arguments, start_new_session=True, env={**os.environ, "RAY_ADDRESS": ""})
    records = killed / "_progress"
    try:
        deadline = time.monotonic() + 120
        while not any(records.glob("part-*.json")):
            assert process.poll() is None, "encoding ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ConflictError, match=f"another run is encoding here .*process {process.pid}"):
            encode(whole.config(killed, 16))
        assert process.poll() is None, "encoding ended before a second run was refused"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "manifest.json").exists()

    # That it is dead is known here.
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    resumed = encode(whole.config(killed, 16))
    assert 0 < resumed.reused < FILES
    assert resumed.rows == FILES * ROWS
    whole.check_same(killed)


@pytest.mark.slow
def test_actors_killed_at_random_moments(whole: Whole, tmp_path: Path) -> None:
    """One of the encoders now and then, then all of them at once, while the run goes on."""
    output, moments, ended, kills = tmp_path / "killed", random.Random(5), threading.Event(), []

    def records() -> int:
        return len(list(output.glob("_progress/part-*.json")))

    def kill() -> None:
        for every in (False, True):
            seen = records()
            while records() < seen + 2 and not ended.wait(0.01):
                pass
            ended.wait(moments.uniform(0, 0.3))
            encoders = processes_below(os.getpid(), "EncoderActor")
            for process in encoders if every else encoders[:1]:
                os.kill(process, signal.SIGKILL)
                kills.append(records())

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        report = encode(whole.config(output, 4))
    finally:
        ended.set()
        killer.join()
    assert len(kills) >= 2
    assert max(kills) < FILES, "killed before the end"
    assert (report.rows, report.parts) == (FILES * ROWS, FILES)
    whole.check_same(output)


@pytest.mark.long
def test_a_driver_an_encoder_and_a_raylet_killed(tmp_path: Path) -> None:
    """In a process with a cluster of its own; `python -m benchmarks.encode_kills` kills twenty."""
    arguments = [sys.executable, "-m", "benchmarks.encode_kills", "--quick", f"--output={tmp_path}"]
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run(arguments, cwd=root, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "encode_kills-quick.json").read_text())["figures"]
    assert figures["kills"] == {"driver": 1, "encoder": 1, "raylet": 1}
    assert figures["starts of the driver"] >= 2


@pytest.mark.slow
def test_object_storage(s3_options: dict[str, Any], ray_cluster: None) -> None:
    write_corpus(Storage("s3://bucket/coding/corpus", s3_options), 3)
    write_hasher("s3://bucket/coding/hasher", s3_options)
    corpus = CorpusConfig("s3://bucket/coding/corpus/*.parquet", "vector", storage_options=s3_options)
    config = EncodeConfig(
        corpus, "s3://bucket/coding/hasher", "s3://bucket/coding/codes", workers=WorkersConfig(2, 1)
    )
    report = encode(config)
    assert (report.rows, report.files) == (3 * ROWS, 3)
    code_set = CodeSet.open("s3://bucket/coding/codes", s3_options)
    parts = pa.concat_tables(code_set.read(file, ["id"], verify=True) for file in code_set.manifest.files)
    assert parts["id"].to_pylist() == list(range(3 * ROWS))
    assert all(file.etag and file.uri.startswith("s3://bucket/coding/corpus/") for file in code_set.manifest.inputs)
    names = {"manifest.json", "report.json", *(file.path for file in code_set.manifest.files)}
    assert set(Storage("s3://bucket/coding/codes", s3_options).names()) == names
    assert encode(config).reused == 3

    bad = pa.table({"id": [1], "vector": pa.array([[np.nan] * WIDTH])})
    with Storage("s3://bucket/coding/bad", s3_options).open_output("a.parquet") as stream:
        pq.write_table(bad, stream)
    corpus = CorpusConfig("s3://bucket/coding/bad", "vector", storage_options=s3_options)
    with pytest.raises(InputError, match=r's3://bucket/coding/bad/a\.parquet row 0: column "vector" holds NaN'):
        encode(
            EncodeConfig(corpus, "s3://bucket/coding/hasher", "s3://bucket/coding/out", workers=WorkersConfig(1, 1))
        )
    assert Storage("s3://bucket/coding/out", s3_options).names() == []


@pytest.mark.slow
def test_object_storage_that_fails_for_a_while(s3_port: int, s3_options: dict[str, Any], ray_cluster: None) -> None:
    root = "s3://bucket/failing"
    write_corpus(Storage(f"{root}/corpus", s3_options), 3)
    write_hasher(f"{root}/hasher", s3_options)
    with FaultyProxy(s3_port, share=0.3, faults=20) as proxy:
        corpus = CorpusConfig(f"{root}/corpus", "vector", storage_options=proxy.options)
        report = encode(EncodeConfig(corpus, f"{root}/hasher", f"{root}/codes", workers=WorkersConfig(2, 1)))
        assert sum(proxy.counted.values()) == 20
    assert (report.rows, report.rejected) == (3 * ROWS, 0)

    code_set = CodeSet.open(f"{root}/codes", s3_options)
    names = {"manifest.json", "report.json", *(file.path for file in code_set.manifest.files)}
    assert set(Storage(f"{root}/codes", s3_options).names()) == names
    parts = pa.concat_tables(code_set.read(file, verify=True) for file in code_set.manifest.files)
    rows = pa.concat_tables(
        pq.read_table(Storage(f"{root}/corpus/{number:02d}.parquet", s3_options).open_input(""))
        for number in range(3)
    )
    assert parts["id"].to_pylist() == rows["id"].to_pylist()
    expected = Hasher.load(f"{root}/hasher", s3_options).encode(rows["vector"])
    assert b"".join(parts["code"].to_pylist()) == expected.tobytes()
